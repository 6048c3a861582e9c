"""Reading and writing of artefacts. Every file appears under its final name only when it is complete.

Nothing here imports torch; pyarrow is imported where Parquet is touched, so that rules without data start fast.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lpc.cli import UserError
from lpc.images import running


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on failure.

    The caller creates a file or a folder at the temporary path. An existing folder of the final name is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of our own, so that the name inside keeps its suffix: some writers choose the format by it.
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary = holder / path.name
        yield temporary
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value) -> None:
    """JSON with sorted keys and a final newline. NaN is refused: it is not JSON and would hide a broken number.

    An object that is written in a container also says in which image, under the key "container".
    """
    if isinstance(value, dict) and (image := running()):
        value = {**value, "container": image}
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and rerun the rule that writes it") from None


def write_parquet(path: str | Path, table, metadata: dict | None = None) -> None:
    """Write a pyarrow Table; `metadata` (JSON values) goes into the file's own schema metadata under the key "lpc".

    In a container, the image is added to it as "container".
    """
    import pyarrow.parquet as parquet

    if image := running():
        metadata = {**(metadata or {}), "container": image}
    if metadata is not None:
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), b"lpc": json.dumps(metadata, sort_keys=True).encode()}
        )
    with atomic(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def read_parquet(path: str | Path, columns: list[str] | None = None):
    """A pyarrow Table. A file that is missing or no Parquet stops with its name."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.read_table(path, columns=columns)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); delete it and rerun") from None


def parquet_metadata(path: str | Path) -> dict:
    """The metadata that `write_parquet` wrote; {} where there is none."""
    import pyarrow.parquet as parquet

    return json.loads((parquet.read_schema(path).metadata or {}).get(b"lpc", b"{}"))


def sha256(path: str | Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical(value) -> str:
    """One string for equal values: sorted keys, no spaces. Used for specs, hashes and Snakemake parameters."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(value) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]
