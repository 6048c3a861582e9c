"""Where datasets and models lie. A module of its own, so that an edit of `lpc.config` reruns no download."""

from pathlib import Path


def is_local(path: str) -> bool:
    """Return whether a dataset or model is named by its place on disk rather than by its name on the hub."""
    return (
        path.startswith(("/", "./", "../")) or path.endswith((".jsonl", ".jsonl.gz", ".parquet")) or Path(path).exists()
    )
