"""Preference data from the hub or from files, brought into one form.

A row is a dict: row_id, prompt_id (SHA-256 of its content and of its prompt), source, group (or None), messages (list
of {role, content}, ending with the user's), completions (list of {model, response, score, aspects}; at least two). Rows
come in two kinds:

- `ultrafeedback`: instruction and several scored completions, as in openbmb/UltraFeedback and argilla's copies.
- `pairs`: chosen and rejected, either as whole dialogues ("\\n\\nHuman: …\\n\\nAssistant: …", as in
  Anthropic/hh-rlhf), as lists of messages (as in HuggingFaceH4/ultrafeedback_binarized), or as completions beside a
  `prompt`, which is text, a dialogue or a list of messages. Chosen comes first and scores 1, rejected 0: which is
  better is all that such data says.

A column `system` is the system turn in both kinds. Rows may belong to groups, such as annotators or populations: the
group of a row is the value of a column, or its prompt.
"""

import codecs
import collections
import gzip
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet

from lpc import files
from lpc.cli import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
ASPECT_SCORES = pa.struct(dict.fromkeys(ASPECTS, pa.float64()))
COMPLETION = pa.struct({"model": pa.string(), "response": pa.string(), "score": pa.float64(), "aspects": ASPECT_SCORES})
ROWS = pa.schema(
    {
        "row_id": pa.string(),
        "prompt_id": pa.string(),
        "split": pa.string(),
        "source": pa.string(),
        "group": pa.string(),
        "messages": MESSAGES,
        "completions": pa.list_(COMPLETION),
    }
)


class Malformed(Exception):
    """A row that cannot be used; the message is the reason under which it is counted."""


# Files


def list_files(path: str) -> list[Path]:
    """The data files that a local path names: itself, or all of a folder's (not of its folders'), sorted."""
    place = Path(path)
    if place.is_dir():
        if found := sorted(file for file in place.iterdir() if file.name.endswith(SUFFIXES)):
            return found
        raise UserError(f"{path}: no {', '.join(SUFFIXES)} file in this folder; correct `path` of this dataset")
    if not place.is_file():
        raise UserError(f"{path}: no such file; correct `path` of this dataset")
    if not place.name.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown format; give a file that ends in {', '.join(SUFFIXES)}")
    return [place]


def records(source: dict) -> Iterator[tuple[str, int, object]]:
    """Yield (file, number of the row in it from 1, row as it stands) of what a source.json names.

    A file that is missing, empty, cut short or not of its format stops with one line that names it.
    """
    if source["revision"] is not None:
        yield from _hub_records(source)
        return
    for path in source["files"]:
        read = _parquet_records if path.endswith(".parquet") else _json_records
        number = 0
        for number, record in read(path):
            yield path, number, record
        if number == 0:
            raise UserError(f"{path}: the file holds no rows; fetch or make it again")


def _json_records(path: str) -> Iterator[tuple[int, object]]:
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, _json(line)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct `path` of this dataset") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}); fetch or make it again") from None


def _json(line: bytes) -> object:
    """The value of a line; Malformed, returned and not raised, where it has none."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return Malformed("not UTF-8 text")
    except RecursionError:
        return Malformed("nested too deeply")
    except ValueError:  # of JSON, or an integer of thousands of digits
        return Malformed("not JSON")


def _parquet_records(path: str) -> Iterator[tuple[int, object]]:
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=256)
        yield from enumerate((record for batch in batches for record in batch.to_pylist()), 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct `path` of this dataset") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete Parquet file ({error}); fetch or make it again") from None


def _hub_records(source: dict) -> Iterator[tuple[str, int, object]]:
    """Rows of the downloaded copy of a hub data set: `datasets` knows which of its files make which split."""
    folder, split = source["folder"], source["hub_split"]
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}: the downloaded data set is gone; rerun download_dataset, or set HF_HOME as it was then"
        )
    try:
        # Streaming reads the files themselves; otherwise a second copy of all rows would be written to the cache.
        rows = datasets.load_dataset(folder, split=split, streaming=True)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{source['path']}: split {split!r} cannot be read ({error}); correct `hub_split`") from None
    number = 0
    try:
        for number, record in enumerate(rows, 1):
            yield source["path"], number, record
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{source['path']}: split {split!r} cannot be read after row {number} ({error}); download it again"
        ) from None
    if number == 0:
        raise UserError(f"{source['path']}: split {split!r} holds no rows; correct `hub_split`")


# Rows


def read(source: dict) -> tuple[list[dict], list[dict], int]:
    """(rows, rejects, copies) of a source.json.

    rows are sorted by row_id, and so independent of the order in the files; rejects are the malformed ones as
    {file, row, reason, columns}; copies counts rows left out because an equal one is there already.
    """
    # The name of rows that carry no source of their own: "hh-rlhf" for Anthropic/hh-rlhf and for data/hh-rlhf.jsonl.gz.
    default = source["path"].rstrip("/").rpartition("/")[2].partition(".jsonl")[0].removesuffix(".parquet")
    normalise = pair_row if source["kind"] == "pairs" else scored_row
    rows, rejects, copies = {}, [], 0
    for file, number, record in records(source):
        try:
            if isinstance(record, Malformed):
                raise record
            row = with_group(normalise(record, default), record, source.get("group"))
        except Malformed as error:
            rejects.append({"file": file, "row": number, "reason": str(error), "columns": _columns(record)})
            continue
        copies += row["row_id"] in rows
        rows[row["row_id"]] = row
    if rows and source.get("group") and all(row["group"] is None for row in rows.values()):
        raise UserError(
            f"group: no row has a value in column {source['group']!r}; correct `group` of this dataset (columns of the "
            f"last row: {', '.join(_columns(record))})"
        )
    return [rows[row_id] for row_id in sorted(rows)], rejects, copies


PROMPT_GROUP = "prompt"
"""Name of a group for which all rows of one prompt are a group, in place of a column."""


def with_group(row: dict, record: dict, column: str | None) -> dict:
    """Return a row with its group: the value of `column` in the record, its prompt_id, or None where there is none.

    Equal judgements of two groups are two rows, so a group of its own is part of row_id. Raises Malformed.
    """
    if column is None:
        return row
    if column == PROMPT_GROUP:
        return {**row, "group": row["prompt_id"]}
    value = record.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of integers in which some are missing
    if value is None:
        return row
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Malformed("group is neither text nor a whole number")
    try:
        group = _text(str(value), "group")
    except ValueError:
        raise Malformed("group is a number of thousands of digits") from None
    return {**row, "group": group, "row_id": sha256(files.canonical([row["row_id"], group]).encode()).hexdigest()}


def _columns(record: object) -> list[str]:
    """Names of the columns of a row, for a message: few, short and printable."""
    names = list(record)[:20] if isinstance(record, dict) else []
    return [str(name).encode("ascii", "backslashreplace").decode()[:40] for name in names]


SHAPES = (
    "`pairs` reads chosen and rejected as dialogues of Human and Assistant, as lists of messages, or as completions "
    "beside a prompt; `ultrafeedback` reads instruction and completions with response and overall_score"
)


def check_share(rows: int, rejects: list[dict], allowed: float) -> dict[str, int]:
    """Malformed rows by reason; stops if they are more than the share `allowed`, or if nothing else is there."""
    reasons = dict(sorted(collections.Counter(reject["reason"] for reject in rejects).items()))
    if not rows or len(rejects) > allowed * (rows + len(rejects)):
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        first = rejects[0]
        columns = f", with columns {', '.join(first['columns'])}" if first["columns"] else ""
        raise UserError(
            f"{len(rejects)} of {rows + len(rejects)} rows are malformed ({counts}; the first is row {first['row']} of "
            f"{first['file']}{columns}); {SHAPES}; correct them or `kind`, or raise `max_rejected_rows` (now {allowed})"
        )
    return reasons


def scored_row(record: object, default_source: str) -> dict:
    """A row of the UltraFeedback schema. Raises Malformed."""
    instruction = _text(_field(record, "instruction"), "instruction")
    completions = _field(record, "completions")
    if not isinstance(completions, list) or not completions:
        raise Malformed("no completions")
    if len(completions) < 2:
        raise Malformed("fewer than two completions")
    return _row(
        _source(record, default_source),
        _with_system(record, [{"role": "user", "content": instruction}]),
        [
            {
                "model": _model(completion.get("model")),
                "response": _text(_field(completion, "response"), "response"),
                "score": _score(_field(completion, "overall_score")),
                "aspects": _aspects(completion.get("annotations")),
            }
            for completion in map(_object, completions)
        ],
    )


def pair_row(record: object, default_source: str) -> dict:
    """A row with a chosen and a rejected completion. Raises Malformed."""
    prompts, responses = [], []
    for name in ("chosen", "rejected"):
        *prompt, last = _messages(_whole(record, name), name)
        prompts.append(prompt)
        responses.append(last["content"])
    if prompts[0] != prompts[1]:
        raise Malformed("chosen and rejected have different prompts")
    completions = [
        {"model": None, "response": response, "score": score, "aspects": None}
        for response, score in zip(responses, (1.0, 0.0), strict=True)
    ]
    return _row(_source(record, default_source), _with_system(record, prompts[0]), completions)


def _whole(record: object, name: str) -> list:
    """The dialogue that ends with the completion `name`, from the prompt on; its messages are not checked yet."""
    value, prompt = _field(record, name), record.get("prompt")
    if isinstance(value, str) and not value.startswith("\n\nHuman:") and prompt is not None:
        turns = _prompt(prompt)
        # In a dialogue, the space after "Assistant:" is none of the completion.
        value = value.strip() if isinstance(prompt, str) and _is_dialogue(prompt) else value
        return [*turns, {"role": "assistant", "content": value}]
    if isinstance(value, str):
        dialogue = _dialogue(value, name)
    elif not isinstance(value, list):
        raise Malformed(f"{name} is neither text nor messages")
    elif prompt is not None and value and _object(value[0]).get("role") == "assistant":
        return [*_prompt(prompt), *value]
    else:
        dialogue = value
    if prompt is not None and not _agree(prompt, _messages(dialogue, name)[:-1]):
        raise Malformed(f"the prompt is not that of {name}")
    return dialogue


def _is_dialogue(prompt: str) -> bool:
    ends = prompt.rstrip().endswith("\n\nAssistant:") and "\n\nHuman:" in f"\n\n{prompt}"
    return prompt.startswith("\n\nHuman:") or ends


def _prompt(prompt: object) -> list:
    """The messages of a column `prompt`: a list of them, a dialogue that may end in "Assistant:", or a user's text."""
    if isinstance(prompt, list):
        return prompt
    if not isinstance(prompt, str):
        raise Malformed("prompt is neither text nor messages")
    if not _is_dialogue(prompt):
        return [{"role": "user", "content": prompt}]
    turns = _dialogue("\n\n" + prompt.lstrip("\n"), "prompt")
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _agree(prompt: object, messages: list[dict]) -> bool:
    """Whether a column `prompt` says what the messages before the completion say, or one of the user's turns."""
    turns = _prompt(prompt)
    if isinstance(prompt, str) and not _is_dialogue(prompt):
        users = [message["content"] for message in messages if message["role"] == "user"]
        return _identity(prompt) in map(_identity, users)
    said = [(_field(turn, "role"), _identity(_text(_field(turn, "content"), "message in prompt"))) for turn in turns]
    return said == [(message["role"], _identity(message["content"])) for message in messages]


def _with_system(record: dict, messages: list[dict]) -> list[dict]:
    """`messages` after the turn of a column `system`, which must not contradict their own. Refuses pictures."""
    for name in ("image", "images"):
        if record.get(name):
            raise Malformed(f"{name} cannot be used, only text")
    system = record.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    turn = {"role": "system", "content": _text(system, "system")}
    if messages[0]["role"] != "system":
        return [turn, *messages]
    if _identity(messages[0]["content"]) != _identity(system):
        raise Malformed("the system column is not the system turn of the messages")
    return messages


def _row(source: str, messages: list[dict], completions: list[dict]) -> dict:
    content = files.canonical([source, messages, completions])
    # The same question in another Unicode form, or with other white space around it, belongs into the same split.
    prompt = files.canonical([{**message, "content": _identity(message["content"])} for message in messages])
    return {
        "row_id": sha256(content.encode()).hexdigest(),
        "prompt_id": sha256(prompt.encode()).hexdigest(),
        "source": source,
        "group": None,
        "messages": messages,
        "completions": completions,
    }


def _identity(text: str) -> str:
    """The form in which texts are compared: composed (NFC), without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def _object(value: object) -> dict:
    if not isinstance(value, dict):
        raise Malformed("not an object")
    return value


def _field(record: object, name: str):
    if _object(record).get(name) is None:
        raise Malformed(f"missing field {name}")
    return record[name]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{name} is not text")
    if not value.strip():
        raise Malformed(f"empty {name}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can say half of a surrogate pair, no file can hold it
        raise Malformed(f"{name} is not valid Unicode") from None
    return value


def _score(value: object) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise Malformed("score is not a number")


def _model(value: object) -> str | None:
    return _text(value, "model") if isinstance(value, str) and value.strip() else None


def _source(record: dict, default: str) -> str:
    source = record.get("source")
    return default if source is None else _text(source, "source")


def _aspects(annotations: object) -> dict | None:
    """UltraFeedback's four ratings, strings such as "4" or "N/A" in nested objects; None where there are none."""
    ratings = {}
    for name in ASPECTS:
        aspect = annotations.get(name) if isinstance(annotations, dict) else None
        # The hub's rows hold one object an aspect, the files of the first release a list of one.
        aspect = aspect[0] if isinstance(aspect, list) and aspect else aspect
        rating = aspect.get("Rating") if isinstance(aspect, dict) else None
        try:
            ratings[name] = float(rating)
        except (TypeError, ValueError, OverflowError):
            ratings[name] = None  # "N/A": the annotator saw nothing to rate
        if ratings[name] is not None and not math.isfinite(ratings[name]):
            ratings[name] = None
    return ratings if any(rating is not None for rating in ratings.values()) else None


def _dialogue(text: str, name: str) -> list[dict]:
    """The messages of "\\n\\nHuman: …\\n\\nAssistant: …"."""
    start, *turns = re.split(r"\n\n(Human|Assistant):", text)
    if start.strip() or not turns:
        raise Malformed(f"{name} is no dialogue of Human and Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def _messages(dialogue: object, name: str) -> list[dict]:
    """Messages that any chat template renders: perhaps one of the system, then user and assistant in turn."""
    if not isinstance(dialogue, list):
        raise Malformed(f"{name} is neither text nor messages")
    messages = [
        {
            "role": _text(_field(message, "role"), "role"),
            "content": _text(_field(message, "content"), f"message in {name}"),
        }
        for message in dialogue
    ]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise Malformed(f"{name} does not alternate between user and assistant")
    return messages
