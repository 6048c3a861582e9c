"""What a kind of dataset is: settings, and a function that reads one row.

A kind is a file of this package with one subclass of `Rows` (files, or a data set of the hub), the columns that it
`reads`, and its `row`. A kind that reads no file is a subclass of `OwnRows`, or of `Dataset` where it has no rows.

A row that the split writes is a dict: row_id, prompt_id (SHA-256 of its content and of its prompt), source, group (or
None), messages (list of {role, content}, ending with the user's), completions (list of {model, response, score,
aspects}; at least two). `make_row` makes it from messages and completions.

Modules of this package import neither torch nor pyarrow: the configuration reads the settings of every kind, and each
job of a workflow reads the configuration.
"""

import unicodedata
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from lpc import files
from lpc.config.keys import REQUIRED, Integer, Section, Seed, Share, Text, Unique, fault, key

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
"""Ratings that a completion may have beside its score."""


class Malformed(Exception):
    """A row that cannot be used; the message is the reason under which it is counted."""


# Settings


def _rows_or_name(value: Any) -> int | str:
    """Refuse here what is neither, so that a fault is told once and not for each of the two types."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if number or (isinstance(value, str) and value and not value.strip().isdigit()):
        return value
    message = f"{value!r} is neither a number of rows, at least 1, nor the name of a split"
    raise PydanticCustomError("rows_or_name", "{message}", {"message": message})


ALL = "all"
"""In place of a number of test rows: every row. `datasets` gives no split this name."""
RowsOrName = Annotated[int | str, BeforeValidator(_rows_or_name)]


class Split(Section):
    validation: RowsOrName | None = key(
        None,
        "rows to draw for validation, or the data's own split: its name on the hub, or a local file. No prompt is in "
        "two splits: own splits keep theirs, test first, and other rows of these prompts are dropped. Required unless "
        "`test` is `all`",
    )
    test: RowsOrName = key(
        REQUIRED, "the same for testing; `all`: every row, of a dataset that no run trains on (docs/data.md)"
    )
    limit: Integer | None = key(
        None, "rows that are used besides own splits, at most: the first by a hash; null: all", ge=1
    )
    seed: Seed = key(0, "chooses which prompts or groups")
    by: Literal["prompt", "group"] = key(
        "prompt",
        "what stays whole; `group`: no group is in two splits either, and other rows of held-out prompts are dropped",
    )

    def own(self) -> dict[str, str]:
        """Return the data's own splits by our names."""
        return {name: size for name, size in self._held_out().items() if isinstance(size, str)}

    def sizes(self) -> dict[str, int]:
        """Return the numbers of rows to draw, by split."""
        return {name: size for name, size in self._held_out().items() if isinstance(size, int)}

    @property
    def is_test_alone(self) -> bool:
        """Return whether every row is for testing."""
        return self.test == ALL

    def _held_out(self) -> dict[str, int | str]:
        return {} if self.is_test_alone else {"validation": self.validation, "test": self.test}

    @model_validator(mode="after")
    def _validation_beside_training(self):
        if self.is_test_alone and self.validation is not None:
            raise fault("validation", f"test: {ALL} leaves no rows for validation; remove it, or give `test` a number")
        if not self.is_test_alone and self.validation is None:
            raise fault("validation", "is missing; give a number of rows, or the data's own split")
        return self

    @model_validator(mode="after")
    def _groups_are_drawn(self):
        if self.by == "group" and self.own():
            raise fault("by", "group draws validation and test; use numbers of rows, or split by prompt")
        return self


class Pairs(Section):
    ties: Literal["keep", "drop"] = key(
        "keep", "a best completion that shares its score: `keep` (the first is chosen) or `drop`"
    )
    min_margin: float = key(0.0, "least difference of the two scores; closer pairs are left out", ge=0)
    score: Literal["overall", "aspects"] = key(
        "overall",
        "what completions are compared by: their score, or `aspects`, the mean of UltraFeedback's four ratings",
    )
    seed: Seed = key(0, "draws the rejected completion")
    drop_sources: Annotated[list[str], Unique()] = key([], "sources that give no pairs, e.g. `[truthful_qa]`")


class Dataset(Section):
    """A dataset. A subclass adds its own keys, and makes `kind` a Literal of one value."""

    title: ClassVar[str]
    """The form of its rows, for the documentation and for the error of too many malformed rows."""

    kind: str

    @property
    def has_groups(self) -> bool:
        """Whether rows belong to groups."""
        return False


class OwnRows(Dataset):
    """A dataset with rows of its own, which are split and give pairs."""

    split: Split = key(REQUIRED, "sizes of the splits")
    pairs: Pairs = key(Pairs(), "how pairs are built")
    max_rejected_rows: Share = key(0.0, "share of malformed rows above which the split stops")

    @model_validator(mode="after")
    def _groups_to_split_by(self):
        if self.split.by == "group" and not self.has_groups:
            raise fault(
                "split.by", "group needs a dataset with `group`, or a world with `people`; set it, or split by prompt"
            )
        return self

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        """Return the row of one record of the data as it stands; see `make_row`. Raises Malformed."""
        raise NotImplementedError


class Rows(OwnRows):
    """A dataset of local files or of the hub."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Columns that `row` reads beside `source` and `system`: the names that `columns` may map."""

    path: Text = key(REQUIRED, "name on the hub, or a local .jsonl, .jsonl.gz or .parquet")
    revision: str | None = key(None, "commit, branch or tag on the hub; null: the newest, and its commit is recorded")
    hub_split: Text = key("train", "split of the hub's dataset that is read")
    hub_config: Text | None = key(None, "configuration of the hub's dataset, also called subset; null: its only one")
    data_dir: Text | None = key(None, "folder in the hub's dataset that is read; null: all of it")
    group: Text | None = key(
        None,
        "column of the group that a row belongs to, such as its annotator; `prompt`: rows of a prompt are a group",
    )
    columns: dict[str, Text] = key(
        {},
        "the file's column for each name that `kind` reads, and for `source`, `system` and `group`, where the file has "
        "another name: `{prompt: question}`",
    )

    @model_validator(mode="before")
    @classmethod
    def _group_among_columns(cls, values: Any) -> Any:
        """`columns: {group: annotator}` is `group: annotator`."""
        columns = values.get("columns") if isinstance(values, dict) else None
        if not isinstance(columns, dict) or "group" not in columns:
            return values
        if values.get("group") not in (None, columns["group"]):
            raise fault("columns.group", "`group` of this dataset names another column; remove one of the two")
        rest = {name: column for name, column in columns.items() if name != "group"}
        return {**values, "columns": rest, "group": columns["group"]}

    @model_validator(mode="after")
    def _columns_that_are_read(self):
        known = (*self.reads, "source", "system", "group")
        if unknown := [name for name in self.columns if name not in known]:
            raise fault(
                f"columns.{unknown[0]}", f"kind {self.kind} reads no column of this name; use {', '.join(known)}"
            )
        return self

    @property
    def has_groups(self) -> bool:
        return self.group is not None


# Rows


def make_row(record: object, default_source: str, messages: list[dict], completions: list[dict]) -> dict:
    """Return the row of `messages` and `completions`, with ids. Raises Malformed.

    The columns `source` (else `default_source`) and `system` (the system turn) are read from `record`.
    """
    source = _source(check_object(record), default_source)
    messages = _with_system(record, messages)
    content = files.canonical([source, messages, completions])
    # The same question in another Unicode form, or with other white space around it, belongs into the same split.
    prompt = files.canonical([{**message, "content": identity(message["content"])} for message in messages])
    return {
        "row_id": sha256(content.encode()).hexdigest(),
        "prompt_id": sha256(prompt.encode()).hexdigest(),
        "source": source,
        "group": None,
        "messages": messages,
        "completions": completions,
    }


def preferred(chosen: str, rejected: str) -> list[dict]:
    """Return the completions of a row without scores: chosen first with score 1, rejected 0."""
    return [
        {"model": None, "response": response, "score": score, "aspects": None}
        for response, score in ((chosen, 1.0), (rejected, 0.0))
    ]


def check_object(value: object) -> dict:
    """Return `value`, a dict. Raises Malformed."""
    if not isinstance(value, dict):
        raise Malformed("not an object")
    return value


def field(record: object, name: str) -> Any:
    """Return what the column `name` of a record holds. Raises Malformed where it is missing or null."""
    if check_object(record).get(name) is None:
        raise Malformed(f"missing field {name}")
    return record[name]


def check_text(value: object, name: str) -> str:
    """Return `value`, a text that is not blank. Raises Malformed, which calls it `name`."""
    if not isinstance(value, str):
        raise Malformed(f"{name} is not text")
    if not value.strip():
        raise Malformed(f"empty {name}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can say half of a surrogate pair, no file can hold it
        raise Malformed(f"{name} is not valid Unicode") from None
    return value


def identity(text: str) -> str:
    """Return the form in which texts are compared: composed (NFC), without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def _source(record: dict, default: str) -> str:
    source = record.get("source")
    return default if source is None else check_text(source, "source")


def _with_system(record: dict, messages: list[dict]) -> list[dict]:
    """`messages` after the turn of a column `system`, which must not contradict their own. Refuses pictures."""
    for name in ("image", "images"):
        if record.get(name):
            raise Malformed(f"{name} cannot be used, only text")
    system = record.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    turn = {"role": "system", "content": check_text(system, "system")}
    if messages[0]["role"] != "system":
        return [turn, *messages]
    if identity(messages[0]["content"]) != identity(system):
        raise Malformed("the system column is not the system turn of the messages")
    return messages
