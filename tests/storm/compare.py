"""Artefacts of a project, compared byte by byte but for measured times, memory and the record of resumption."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from lpc.files import fingerprint, sha256

MEASURED = {"seconds", "seconds_per_step", "tokens_per_second", "cpu_seconds", "max_rss_mib", "peak_memory_gib"}
MASKED = {
    "JSON": {*MEASURED, "memory_gib", "resumed_from"},
    "CSV": MEASURED,
    "report.html": {
        *("time", "s / step", "to plain", "tokens / s", "peak GiB"),
        *("wall time", "processor time", "peak memory MiB"),
    },
}
"""Keys of JSON files, and columns of CSV files and of the page's tables. On the page, the time in "of computing in" and
the same columns of each CSV file inside it are masked, too."""
NO_ARTEFACTS = {"logs", "timing", "checkpoints"}
"""Folders of what a job says while it works."""


def artefacts(results: Path) -> dict[str, Path]:
    """Return the files of a project by their path in it, without logs, timings, checkpoints and hidden files."""
    found = {}
    for path in sorted(results.rglob("*")):
        parts = path.relative_to(results).parts
        hidden = any(part.startswith(".") for part in parts)
        if not hidden and parts[0] not in NO_ARTEFACTS and "tensorboard" not in parts and path.is_file():
            found["/".join(parts)] = path
    return found


def digests(results: Path) -> dict[str, str]:
    """Return the masked digest of each artefact. A file that vanishes meanwhile is left out."""
    found = {}
    for name, path in artefacts(results).items():
        try:
            found[name] = digest(path)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError) as error:
            found[name] = f"unreadable: {error}"
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, of JSON, CSV and HTML without `MASKED`."""
    mask = MASKS.get(path.suffix)
    return sha256(path) if mask is None else fingerprint(mask(path.read_text(encoding="utf-8")))


def masked_json(text: str):
    return without(json.loads(text))


def masked_lines(text: str) -> list:
    return [masked_json(line) for line in text.splitlines()]


def without(value):
    if isinstance(value, dict):
        return {key: without(item) for key, item in value.items() if key not in MASKED["JSON"]}
    return [without(item) for item in value] if isinstance(value, list) else value


def masked_csv(text: str) -> list[dict]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{key: value for key, value in row.items() if key not in MASKED["CSV"]} for row in rows]


def masked_page(text: str) -> str:
    text = re.sub(r"(?<=<dt>of computing in )([^<]*)</dt><dd>[^<]*", r"\1", text)
    text = re.sub(r"(?<=data:text/csv;base64,)[^\"]*", masked_link, text)
    return re.sub(r"<table.*?</table>", masked_table, text, flags=re.DOTALL)


def masked_link(match: re.Match) -> str:
    return json.dumps(masked_csv(base64.b64decode(match[0]).decode()))


def masked_table(match: re.Match) -> str:
    labels = re.findall(r"<button[^>]*>(.*?)</button>", match[0])
    masked = [label in MASKED["report.html"] for label in labels]
    rows = []
    for row in re.findall(r"<tr>(.*?)</tr>", match[0].partition("<tbody>")[2], flags=re.DOTALL):
        cells = re.findall(r"<t[hd] .*?</t[hd]>", row, flags=re.DOTALL)
        if len(cells) != len(labels):
            raise ValueError(f"a row of {len(cells)} cells below {len(labels)} labels: {row}")
        rows.append([cell for cell, hidden in zip(cells, masked, strict=True) if not hidden])
    return json.dumps([labels, rows])


MASKS: dict[str, Callable] = {
    ".json": masked_json,
    ".jsonl": masked_lines,
    ".csv": masked_csv,
    ".html": masked_page,
}
