"""Preference data from the hub or from files, brought into the form of `lpc.data.formats`.

Rows may belong to groups, such as annotators or populations: the group of a row is the value of a column, or its
prompt.
"""

import codecs
import collections
import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from lpc import files
from lpc.cli import UserError
from lpc.data import formats
from lpc.data.formats.base import ASPECTS, Malformed, Rows, check_text

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

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


# Files


def list_files(path: str) -> list[Path]:
    """Return the data files that a local path names: itself, or all of a folder's (not of its folders'), sorted."""
    place = Path(path)
    if place.is_dir():
        if found := sorted(file for file in place.iterdir() if file.name.endswith(SUFFIXES)):
            return found
        raise UserError(f"{path}: no {', '.join(SUFFIXES)} file in this folder; correct `path` of this dataset")
    if not place.is_file():
        raise UserError(f"{path}: no such file; correct `path` of this dataset")
    if not place.name.endswith(SUFFIXES):
        raise UserError(f"{path}: unsupported file type; use {', '.join(SUFFIXES)}")
    return [place]


def records(dataset: dict) -> Iterator[tuple[str, int, object]]:
    """Yield (file, number of the row in it from 1, row as it stands) of what a dataset.json names.

    A file that is missing, empty, cut short or not of its format stops with one line that names it.
    """
    if dataset["revision"] is not None:
        yield from _hub_records(dataset)
        return
    for path in dataset["files"]:
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


def _hub_records(dataset: dict) -> Iterator[tuple[str, int, object]]:
    """Rows of the downloaded copy of a hub data set: `datasets` finds the files of each split."""
    import datasets  # with pandas a second: only for these

    folder, split = dataset["folder"], dataset["hub_split"]
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}: the downloaded data set is gone; rerun download_dataset, or set HF_HOME as it was then"
        )
    try:
        # Streaming reads the files themselves; otherwise a second copy of all rows would be written to the cache.
        rows = datasets.load_dataset(
            folder, dataset.get("hub_config"), data_dir=dataset.get("data_dir"), split=split, streaming=True
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(
            f"{dataset['path']}: split {split!r} cannot be read ({error}); correct `hub_split`, `hub_config`, "
            "`data_dir` or `split` of this dataset"
        ) from None
    number = 0
    try:
        for number, record in enumerate(rows, 1):
            yield f"{dataset['path']} ({split})", number, record
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{dataset['path']}: split {split!r} cannot be read after row {number} ({error}); download it again"
        ) from None
    if number == 0:
        raise UserError(f"{dataset['path']}: split {split!r} holds no rows; correct `hub_split` or `split`")


# Rows


def read(dataset: dict) -> tuple[list[dict], list[dict], int]:
    """Return (rows, rejects, copies) of a dataset.json.

    rows are packed (see `pack`) and sorted by row_id, and so independent of the order in the files; those of the data's
    own splits have a `split`. rejects are the malformed ones as {file, row, reason, columns}; copies counts rows left
    out because an equal one is there already: of two splits, that of test is kept, then that of validation.
    """
    # The name of rows that carry no source of their own: "hh-rlhf" for Anthropic/hh-rlhf and for data/hh-rlhf.jsonl.gz.
    default = dataset["path"].rstrip("/").rpartition("/")[2].partition(".jsonl")[0].removesuffix(".parquet")
    kind = formats.kind(dataset["kind"])
    group, columns = dataset.get("group"), dataset.get("columns") or {}
    rows, rejects, copies, missing = {}, [], 0, set(columns.values())
    for own, file, number, record in all_records(dataset):
        try:
            if isinstance(record, Malformed):
                raise record
            if isinstance(record, dict):
                missing -= record.keys()
            row = with_group(kind.row(with_names(record, columns), default), record, group)
        except Malformed as error:
            rejects.append({"file": file, "row": number, "reason": str(error), "columns": _columns(record)})
            continue
        if row["row_id"] in rows:
            copies += 1
        else:
            rows[row["row_id"]] = pack(row | own)
    absent = {f"columns.{name}": column for name, column in columns.items() if column in missing}
    if rows and group and all(row["group"] is None for row in rows.values()):
        absent["group"] = group
    for key, column in absent.items():
        found = _columns(record)
        close = difflib.get_close_matches(column, found, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(
            f"{key}: no row has a value in column {column!r}{hint}; correct `{key}` of this dataset (columns of the "
            f"last row: {', '.join(found)})"
        )
    return [rows[row_id] for row_id in sorted(rows)], rejects, copies


def all_records(dataset: dict) -> Iterator[tuple[dict, str, int, object]]:
    """Yield what `records` does, of the data's own splits first, after {"split": "test"} or {"split": "validation"},
    and then of the rest, after {}."""
    place = "files" if dataset["revision"] is None else "hub_split"
    own = dataset.get("own_splits") or {}
    parts = [({"split": name}, {place: own[name]}) for name in ("test", "validation") if name in own]
    for split, part in [*parts, ({}, {})]:
        yield from ((split, *found) for found in records(dataset | part))


CONTENT = ("messages", "completions")


def pack(row: dict) -> dict:
    """Return a row with its texts as bytes under the key "content", a third of the memory of Python objects."""
    rest = {name: value for name, value in row.items() if name not in CONTENT}
    return rest | {"content": files.canonical({name: row[name] for name in CONTENT}).encode()}


def unpack(row: dict) -> dict:
    """Return the row that `pack` was given, with the keys that were added since."""
    return {name: value for name, value in row.items() if name != "content"} | json.loads(row["content"])


def with_names(record: object, columns: dict[str, str]) -> object:
    """Return a record with its columns under the names that its kind reads; unchanged if it is not an object.

    columns: the file's column by our name. A row without that column has none of our name, either.
    """
    if not columns or not isinstance(record, dict):
        return record
    mapped = {*columns, *columns.values()}
    rest = {name: value for name, value in record.items() if name not in mapped}
    return rest | {name: record[column] for name, column in columns.items() if column in record}


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
        group = check_text(str(value), "group")
    except ValueError:
        raise Malformed("group is a number of thousands of digits") from None
    return {**row, "group": group, "row_id": sha256(files.canonical([row["row_id"], group]).encode()).hexdigest()}


def _columns(record: object) -> list[str]:
    """Names of the columns of a row, for a message: few, short and printable."""
    names = list(record)[:20] if isinstance(record, dict) else []
    return [str(name).encode("ascii", "backslashreplace").decode()[:40] for name in names]


def check_share(rows: int, rejects: list[dict], allowed: float) -> dict[str, int]:
    """Return malformed rows by reason; stop if they are more than the share `allowed`, or if nothing else is there."""
    reasons = dict(sorted(collections.Counter(reject["reason"] for reject in rejects).items()))
    if not rows or len(rejects) > allowed * (rows + len(rejects)):
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        first = rejects[0]
        columns = f", with columns {', '.join(first['columns'])}" if first["columns"] else ""
        # The two kinds that read most of the columns found.
        kinds = [(name, kind) for name, kind in formats.KINDS.items() if issubclass(kind, Rows)]
        kinds.sort(key=lambda item: -len({*first["columns"]}.intersection(item[1].reads)))
        forms = "; ".join(f"`{name}` reads {kind.title}" for name, kind in kinds[:2])
        raise UserError(
            f"{len(rejects)} of {rows + len(rejects)} rows are malformed ({counts}; the first is row {first['row']} of "
            f"{first['file']}{columns}); {forms}; correct them or `kind` (docs/data.md has a row of each), or "
            f"give `columns`, or raise `max_rejected_rows` (now {allowed})"
        )
    return reasons
