"""What a table is, what it is computed from, and its two files: <table>.csv (rows), <table>.rst (what they mean).

Every run of the configuration has its row in every table that concerns it. Where a result is absent, the row's
`status` names the missing file.
"""

import csv
import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from lpc import files
from lpc.evaluation import intervals
from lpc.layout import Layout
from lpc.report.runs import has_codes, has_posterior, latent_kind


@dataclass
class Inputs:
    """What tables are computed from."""

    layout: Layout
    """The project's files."""
    runs: list[dict]
    """Runs of the configuration, as `lpc.report.runs.resolve` gives them."""
    tasks: dict[str, str] = field(default_factory=dict)
    """By name of each benchmark task, the metric that the page shows."""
    sweeps: dict[str, list] = field(default_factory=dict)
    """By experiment, [key, values] of each swept key, in the configuration's order."""
    _outcomes: dict = field(default_factory=dict)

    def load(self, path: Path) -> tuple[dict, str]:
        """Return a JSON file of the results and "ok", or {} and a status that names the missing file."""
        if not path.exists():
            return {}, f"missing: {path.relative_to(self.layout.root)}"
        return files.read_json(path), "ok"

    def outcomes(self, run: dict, dataset: str, latent: str = "") -> pa.Table | None:
        """Return pair_id, prompt_id, source and outcome of each test pair, by pair_id; None without the file.

        `latent` is "" for z from the prior, "_zero" for z = 0. Each file is read once.
        """
        path = self.layout.of(run).rewards(dataset)
        if (path, latent) not in self._outcomes:
            table = None
            if path.exists():
                rewards = [f"chosen_reward{latent}", f"rejected_reward{latent}"]
                names = ["pair_id", "prompt_id", "source"]
                table = files.read_parquet(path, [*names, *rewards])
                outcome = intervals.outcomes(*(table[name] for name in rewards))
                table = table.select(names).append_column("outcome", pa.array(outcome))
                table = table.sort_by("pair_id")
            self._outcomes[path, latent] = table
        return self._outcomes[path, latent]

    def codes(self, columns: list[str]):
        """Yield each run with codes that has its latents, and these columns of them; `posterior` where it has one."""
        for run in self.runs:
            path, kind = self.layout.of(run).latents, latent_kind(run)
            if has_codes(kind) and path.exists():
                yield run, files.read_parquet(path, [c for c in columns if c != "posterior" or has_posterior(kind)])


@dataclass(frozen=True)
class TableDefinition:
    """One table. Its module is its name."""

    caption: str
    """What the table shows, in reStructuredText."""
    section: str
    """Id of the section of the page that shows it."""
    columns: dict[str, str]
    """Meaning of each column by its name, in the order of the file."""
    rows: Callable[[Inputs], list[dict]]
    """Computes the rows; a column that a row lacks is an empty field."""


RUN = {
    "base": "base model",
    "variant": "data set trained on, and the label noise after a dot",
    "recipe": "recipe, with the swept values after a plus sign",
    "objective": "preference objective",
    "latent": "kind of latent; empty: none",
    "seed": "seed of the run",
}
"""Columns that name a run."""
ACCURACIES = {
    "accuracy_zero": "accuracy of the same model with z = 0",
    "accuracy_shuffled": "accuracy with z of another prompt; equals the accuracy if z carries no prompt information",
    "accuracy_posterior": "accuracy with z from the posterior, which sees the chosen completion: a diagnostic only",
    "accuracy_posterior_swapped": "the same with completions swapped; far below if the posterior only copies the label",
}
"""Columns of accuracies that are diagnostics of a latent."""
STATUS = {"status": "ok, or which file is missing"}


def select(columns, *parts: dict) -> dict:
    """Merge dicts, the later winning, and keep `columns`."""
    merged = {key: value for part in parts for key, value in part.items()}
    return {key: merged[key] for key in columns if key in merged}


def write(folder: str | Path, name: str, table: TableDefinition, rows: list[dict]) -> None:
    """Write `<name>.csv`, and `<name>.rst` with the caption and the meaning of each column.

    Numbers have up to eight decimals; None is an empty field.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, table.columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: round(value, 8) if isinstance(value, float) else value for key, value in row.items()})
    files.write_text(Path(folder) / f"{name}.csv", stream.getvalue())
    meanings = "".join(f":{column}: {meaning}\n" for column, meaning in table.columns.items())
    files.write_text(Path(folder) / f"{name}.rst", f"{textwrap.fill(table.caption, 120)}\n\n{meanings}")


def read(folder: str | Path, name: str) -> list[dict]:
    """Return the rows of `<name>.csv`: numbers as int or float, an empty field as None."""
    path = Path(folder) / f"{name}.csv"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [{key: parse(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError:
        raise files.UserError(f"{path}: no such file; run the tables step first") from None


def parse(text: str) -> int | float | str | None:
    """Return a CSV field as the number or the text that it is; an empty one as None."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None
