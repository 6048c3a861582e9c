"""Reading and writing of artefacts. Every file appears under its final name only when it is complete and on the disk.

Nothing here imports torch; pyarrow is imported where Parquet is touched, so that rules without data start fast.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from lpc import process
from lpc.cli import REMEDIES, Stopped, UserError
from lpc.images import current


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on failure.

    The caller creates a file or a folder at the temporary path. It is synchronized with the disk before the rename, so
    a crash of the machine leaves no torn file. An existing folder is replaced: two renames in a row, and a process
    killed between them leaves the old folder in the hidden temporary one.

    Raises UserError if the file system refuses the write.
    """
    path = Path(path)
    # In a folder, so that the name keeps its suffix: some writers choose the format by it.
    folder = path.parent / f".{path.name}.{_process()}.{uuid.uuid4().hex[:8]}"
    with writing(path, folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(path)
        folder.mkdir()
        temporary = folder / path.name
        yield temporary
        synchronize(temporary)
        _replace(temporary, path, folder / f"{path.name}.replaced")
        _synchronize_folder(path.parent)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path, folder: Path) -> Iterator[None]:
    """Delete `folder`, which holds the unfinished files of `path`, on failure.

    Raises UserError if the file system refused a write, also where a library reports that without its cause.
    """
    try:
        yield
    except BaseException as error:
        cause = _refusal(error, path, folder)
        shutil.rmtree(folder, ignore_errors=True)
        if cause is None:
            raise
        reason = os.strerror(cause.errno) + ("" if cause is error else f" ({error})")
        raise UserError(f"{path}: {reason}; {_free(folder)}; {REMEDIES[cause.errno]}, then rerun") from error


def synchronize(path: Path) -> None:
    """Wait until a file, or a folder with all that it contains, is on the disk.

    Also makes it as accessible as the folder that it is in: some writers create files that only their owner may read,
    whatever the umask (safetensors).
    """
    if path.is_symlink():
        return
    is_folder = path.is_dir()
    mode = stat.S_IMODE(path.stat().st_mode)
    wanted = mode | path.parent.stat().st_mode & (0o777 if is_folder else 0o666)
    if wanted != mode:
        path.chmod(wanted)
    if is_folder:
        for entry in path.iterdir():
            synchronize(entry)
        _synchronize_folder(path)
    else:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def _synchronize_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system offers that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not offered for folders, as on CIFS
            raise
    finally:
        os.close(descriptor)


def _replace(temporary: Path, path: Path, aside: Path) -> None:
    """Rename `temporary` to `path`. A rename replaces only an empty folder, so an old one is renamed to `aside`."""
    if not path.is_dir() or path.is_symlink():
        os.replace(temporary, path)
        return
    os.rename(path, aside)
    try:
        os.replace(temporary, path)
    except OSError:
        os.rename(aside, path)
        raise


def _process() -> str:
    return f"{fingerprint(process.machine())[:8]}-{os.getpid()}-{process.start_time(os.getpid())}"


def _delete_leftovers(path: Path) -> None:
    """Delete temporary folders for `path` whose processes died on this machine. On others, they may be alive."""
    here = _process().partition("-")[0]
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{here}-(\d+)-(\d+)\.\w+")
    for entry in os.listdir(path.parent):
        found = pattern.fullmatch(entry)
        if found and process.start_time(int(found[1])) != found[2]:
            shutil.rmtree(path.parent / entry, ignore_errors=True)


def _refusal(error: BaseException, path: Path, folder: Path) -> OSError | None:
    """Return the file system's error behind a failed write of `path`; None if the failure has another cause."""
    if isinstance(error, OSError) and error.errno is not None:
        own = _may_concern(path, error.filename) or _may_concern(folder, error.filename)
        return error if own and error.errno in REMEDIES else None
    if not isinstance(error, Exception) or isinstance(error, UserError | Stopped):
        return None
    # safetensors and tokenizers raise types of their own, with Rust's text of the operating system's error.
    number = re.search(r"\(os error (\d+)\)", str(error))
    # torch.save hides the number (RuntimeError "unexpected pos"). Its unfinished file is still there, so that a small
    # write fails for the same reason.
    cause = OSError(int(number[1]), os.strerror(int(number[1]))) if number else _probe(folder / ".probe")
    return cause if cause and cause.errno in REMEDIES else None


def _may_concern(output: Path, name: str | bytes | int | None) -> bool:
    """Tell whether an error's file name is unknown, in `output`, or a parent of it. Otherwise it is an input's."""
    if name is None or isinstance(name, int):
        return True
    output, named = Path(os.path.abspath(output)), Path(os.path.abspath(os.fsdecode(name)))
    return named.is_relative_to(output) or output.is_relative_to(named)


def _probe(path: Path) -> OSError | None:
    try:
        with open(path, "wb") as stream:
            stream.write(bytes(2**16))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error
    return None


def _free(folder: Path) -> str:
    """Describe how much of the folder's file system is free."""
    while not os.path.exists(folder):  # False also where permissions hide the answer
        folder = folder.parent
    status = os.statvfs(folder)
    if status.f_files and not status.f_favail:
        return "its file system has no free inodes"
    return f"its file system has {status.f_bavail * status.f_frsize:,} bytes free"


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8. Raises UserError for half of a surrogate pair, which JSON input can hold as an escape."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        near = ascii(text[max(0, error.start - 20) : error.end + 20])
        raise UserError(f"{path}: lone surrogate in the text {near}; it must be Unicode: correct the input") from None
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value) -> None:
    """Write JSON with sorted keys and a final newline. NaN is refused: it is not JSON and would hide a broken number.

    An object that is written in a container also names the image, under the key "container".
    """
    if isinstance(value, dict) and (image := current()):
        value = {**value, "container": image}
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path):
    """Read a JSON file. Raises UserError if it is missing, not JSON, or has a number beyond the range of a float."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_float)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: must be a JSON file, but is a folder") from None
    except (ValueError, RecursionError) as error:  # both JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: not valid JSON ({error}); delete it and rerun the rule that writes it") from None


def _integer(text: str) -> int:
    _float(text)
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        shown = text if len(text) <= 20 else f"{text[:10]}... with {len(text)} characters"
        raise ValueError(f"the number {shown} is not finite")
    return value


def write_parquet(path: str | Path, table, metadata: dict | None = None) -> None:
    """Write a pyarrow Table; `metadata` (JSON values) goes into the file's own schema metadata under the key "lpc".

    In a container, the image is added to it as "container".
    """
    _write_tables(path, [table], table.schema, metadata)


def write_rows(path: str | Path, rows: Iterable[dict], schema, metadata: dict | None = None) -> None:
    """Write rows as `write_parquet` writes a table, `BATCH` at a time: all of them as a table would double the memory.

    schema: a pyarrow Schema.
    """
    import pyarrow

    rows = iter(rows)
    parts = iter(lambda: list(itertools.islice(rows, BATCH)), [])
    _write_tables(path, (pyarrow.Table.from_pylist(part, schema=schema) for part in parts), schema, metadata)


BATCH = 1000
"""Rows that are read or written at once where a file may be larger than the memory."""


def _write_tables(path: str | Path, tables: Iterable, schema, metadata: dict | None) -> None:
    import pyarrow.parquet as parquet

    if image := current():
        metadata = {**(metadata or {}), "container": image}
    if metadata is not None:
        schema = schema.with_metadata(
            {**(schema.metadata or {}), b"lpc": json.dumps(metadata, sort_keys=True).encode()}
        )
    with atomic(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def read_parquet(path: str | Path, columns: list[str] | None = None):
    """Return a pyarrow Table. Raises UserError for a file that is missing or not Parquet."""
    with _parquet(path) as parquet:
        return parquet.read_table(path, columns=columns)


def read_batches(path: str | Path) -> Iterator:
    """Yield a file's rows as pyarrow Tables of up to `BATCH` rows, the first one empty: there is always a table.

    Raises UserError as `read_parquet` does.
    """
    import pyarrow

    with _parquet(path) as parquet, parquet.ParquetFile(path) as file:
        yield file.schema_arrow.empty_table()
        for batch in file.iter_batches(BATCH):
            yield pyarrow.Table.from_batches([batch])


@contextlib.contextmanager
def _parquet(path: str | Path):
    """Yield the module pyarrow.parquet to read `path` with."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        yield parquet
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # by the file system; one without a number is of a footer or page that cannot be decoded
        raise UserError(f"{path}: not a readable Parquet file ({error}); delete it and rerun") from None


def parquet_metadata(path: str | Path) -> dict:
    """Return the metadata that `write_parquet` wrote; {} where there is none."""
    with _parquet(path) as parquet:
        return json.loads((parquet.read_schema(path).metadata or {}).get(b"lpc", b"{}"))


def sha256(path: str | Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical(value) -> str:
    """Return one string for equal values: sorted keys, no spaces. Used for specs, hashes and Snakemake parameters."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(value) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]
