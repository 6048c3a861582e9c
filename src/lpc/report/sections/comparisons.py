"""Section on paired comparisons of runs, over seeds and seed by seed."""

from lpc.report.cells import difference_cell, seeds_cell
from lpc.report.page import Cell, Column, Missing, Section, Table, Text, cell, number_column, text_column
from lpc.report.results import Results


def section(results: Results) -> Section:
    lead = Text(
        "Two runs are compared pair by pair on the test pairs that both scored. The interval is a 95 % bootstrap over "
        "prompts (10,000 resamples), because pairs of one prompt are not independent. McNemar's test is exact and "
        "two-sided, on the pairs where the two runs differ; it ignores shared prompts. The interval over seeds is "
        "Student's t. Nothing is corrected for the number of comparisons."
    )
    rows = results.tables["comparisons"]
    if not rows:
        return Section("comparisons", "Comparisons", [lead, Missing("No run has a latent, so nothing is compared.")])
    which = [
        text_column("recipe"),
        text_column("against"),
        text_column("base"),
        text_column("trained on", "variant"),
        text_column("tested on", "dataset"),
    ]
    sizes = [
        Column("difference", difference_cell, "points; 95 % paired bootstrap interval over test prompts"),
        Column("over seeds", seeds_cell, "95 % t interval of the difference over seeds"),
    ]
    paired = [number_column("wins"), number_column("losses"), number_column("McNemar p", "mcnemar_p", 3)]
    rest = [number_column("pairs", "n"), Column("note", note, number=False)]
    seed = Column("seed", lambda row: cell(row["seed"], 0))
    csv = results.csv("comparisons")
    means = [row for row in rows if row["seed"] == "mean"]
    single = [row for row in rows if row["seed"] != "mean"]
    blocks: list = [lead]
    if means:
        notes = ["Strong: every interval of the row excludes zero."]
        blocks.append(Table("Means over seeds", [*which, number_column("seeds"), *sizes, *rest], means, csv, notes))
    columns = [*which, seed, sizes[0], *paired, *rest]
    blocks.append(Table("Every seed", columns, single, csv, folded=f"All {len(single)} comparisons, seed by seed"))
    return Section("comparisons", "Comparisons", blocks)


def note(row: dict) -> Cell:
    differs = f"differs in {row['differs']}" if row["differs"] else ""
    words = differs if row["status"] == "ok" else row["status"]
    return Cell(words, words)
