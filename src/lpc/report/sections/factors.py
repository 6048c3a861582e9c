"""Section on generated data: its known ceilings, and how well the codes find its sources."""

from lpc.report.cells import mean_cell
from lpc.report.page import Column, Section, Table, Text, number_column, rough, text_column
from lpc.report.results import Results
from lpc.report.words import percent

JUDGES = {
    "score_oracle": "oracle: each source's rule without its noise",
    "source_blind": "best rule blind to the source",
    "longer": "always the longer completion",
}


def section(results: Results) -> Section | None:
    """Return the section; None where no data was generated."""
    worlds = [name for name, entry in results.settings["datasets"].items() if entry["kind"] == "world"]
    if not worlds:
        return None
    lead = Text("This data was generated, so the best possible accuracy and the true factors are known.")
    return Section("factors", "Known factors and ceilings", [lead, *blocks_of(worlds, results)])


def blocks_of(worlds: list[str], results: Results) -> list:
    blocks: list = []
    for dataset in worlds:
        rows = [
            {"judge": JUDGES[key], "mean": percent(value), "low": None, "high": None}
            for key, value in results.ceilings(dataset).items()
        ]
        scored = [
            row for row in results.accuracy() if row["dataset"] == row["variant"] == dataset and results.in_main(row)
        ]
        rows += [{**row, "judge": f"{row['recipe']} on {row['base']}"} for row in scored]
        rows.sort(key=lambda row: -row["mean"])
        columns = [text_column("judge"), Column("accuracy %", mean_cell)]
        blocks.append(Table(f"Between chance and oracle, test pairs of {dataset}", columns, rows))
    found = [row for row in results.tables["latents"] if row["variant"] in worlds and results.in_main(row)]
    found = [row for row in found if row["status"] == "ok"]
    columns = [
        text_column("recipe"),
        number_column("seed"),
        number_column("NMI code", "nmi_code_source", 2, "strongest code and source"),
        number_column("NMI z", "nmi_z_kmeans_source", 2, "k-means clusters of z and source"),
        number_column("NMI h", "nmi_h_kmeans_source", 2, "k-means clusters of h and source"),
        number_column("probe z", "probe_z_source", 3),
        number_column("probe h", "probe_h_source", 3),
        number_column("chance", "probe_chance", 3),
        Column("spread of z", lambda row: rough(row["z_spread"])),
        Column("|h|", lambda row: rough(row["h_norm"])),
    ]
    note = (
        "Each source of this world judges by one hidden rule, so the sources are the true factors. z is computed from "
        "h, so it holds no more information about the source than h. Where the spread of z is tiny compared with |h|, "
        "a good score of z means little."
    )
    if found:
        table = Table("Do the codes find the known factors?", columns, found, results.csv("latents"), [note])
        blocks.append(table)
    return blocks
