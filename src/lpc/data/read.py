"""Preference data from the hub or from files, brought into one form.

A row is a dict: row_id, prompt_id (SHA-256 of its content and of its prompt), source, messages (list of {role,
content}, ending with the user's), completions (list of {model, response, score, aspects}; at least two). Rows come in
two kinds:

- `ultrafeedback`: instruction and several scored completions, as in openbmb/UltraFeedback and argilla's copies.
- `pairs`: chosen and rejected, either as whole dialogues ("\\n\\nHuman: …\\n\\nAssistant: …", as in
  Anthropic/hh-rlhf), as lists of messages (as in HuggingFaceH4/ultrafeedback_binarized), or as plain strings beside a
  `prompt`. Chosen comes first and scores 1, rejected 0: which is better is all that such data says.
"""

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
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, json.loads(line)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct `path` of this dataset") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}); fetch or make it again") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error}); one JSON object a line is expected") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert it, or give it the suffix of its format") from None


def _parquet_records(path: str) -> Iterator[tuple[int, object]]:
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1000)
        yield from enumerate((record for batch in batches for record in batch.to_pylist()), 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct `path` of this dataset") from None
    except (pa.ArrowInvalid, OSError) as error:
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
    for number, record in enumerate(rows, 1):
        yield source["path"], number, record
    if number == 0:
        raise UserError(f"{source['path']}: split {split!r} holds no rows; correct `hub_split`")


# Rows


def read(source: dict) -> tuple[list[dict], list[dict], int]:
    """(rows, rejects, copies) of a source.json.

    rows are sorted by row_id, and so independent of the order in the files; rejects are the malformed ones as
    {file, row, reason}; copies counts rows left out because an equal one is there already.
    """
    # The name of rows that carry no source of their own: "hh-rlhf" for Anthropic/hh-rlhf and for data/hh-rlhf.jsonl.gz.
    default = source["path"].rstrip("/").rpartition("/")[2].partition(".jsonl")[0].removesuffix(".parquet")
    normalise = pair_row if source["kind"] == "pairs" else scored_row
    rows, rejects, copies = {}, [], 0
    for file, number, record in records(source):
        try:
            row = normalise(record, default)
        except Malformed as error:
            rejects.append({"file": file, "row": number, "reason": str(error)})
            continue
        copies += row["row_id"] in rows
        rows[row["row_id"]] = row
    return [rows[row_id] for row_id in sorted(rows)], rejects, copies


def check_share(rows: int, rejects: list[dict], allowed: float) -> dict[str, int]:
    """Malformed rows by reason; stops if they are more than the share `allowed`, or if nothing else is there."""
    reasons = dict(sorted(collections.Counter(reject["reason"] for reject in rejects).items()))
    if not rows or len(rejects) > allowed * (rows + len(rejects)):
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        first = rejects[0]
        raise UserError(
            f"{len(rejects)} of {rows + len(rejects)} rows are malformed ({counts}; the first is row {first['row']} of "
            f"{first['file']}); mend them, correct `kind`, or raise `max_rejected_rows` (now {allowed})"
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
        [{"role": "user", "content": instruction}],
        [
            {
                "model": completion["model"] if isinstance(completion.get("model"), str) else None,
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
        dialogue = _field(record, name)
        if isinstance(dialogue, str) and "prompt" not in record:
            dialogue = _dialogue(dialogue, name)
        elif isinstance(dialogue, str):
            prompt = record["prompt"]
            prompt = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            dialogue = [*prompt, {"role": "assistant", "content": dialogue}]
        elif isinstance(dialogue, list) and len(dialogue) == 1 and isinstance(record.get("prompt"), list):
            dialogue = [*record["prompt"], *dialogue]
        *prompt, last = _messages(dialogue, name)
        prompts.append(prompt)
        responses.append(last["content"])
    if prompts[0] != prompts[1]:
        raise Malformed("chosen and rejected have different prompts")
    completions = [
        {"model": None, "response": response, "score": score, "aspects": None}
        for response, score in zip(responses, (1.0, 0.0), strict=True)
    ]
    return _row(_source(record, default_source), prompts[0], completions)


def _row(source: str, messages: list[dict], completions: list[dict]) -> dict:
    content = files.canonical([source, messages, completions])
    # The same question in another Unicode form, or with other white space around it, belongs into the same split.
    prompt = files.canonical([{**message, "content": _identity(message["content"])} for message in messages])
    return {
        "row_id": sha256(content.encode()).hexdigest(),
        "prompt_id": sha256(prompt.encode()).hexdigest(),
        "source": source,
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
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed("score is not a number")
    return float(value)


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
        except (TypeError, ValueError):
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
