"""Table of the cost of each job, from the files that Snakemake's directive `benchmark` writes."""

import csv

from lpc.report.tables.base import Inputs, TableDefinition, parse


def rows(inputs: Inputs) -> list[dict]:
    found = []
    folder = inputs.layout.timings
    for path in sorted(folder.rglob("*.tsv")):
        rule, *rest = path.relative_to(folder).with_suffix("").parts
        with path.open(encoding="utf-8", newline="") as stream:
            for measured in csv.DictReader(stream, delimiter="\t"):
                row = {"rule": rule, "job": "/".join(rest)}
                for column, key in {"seconds": "s", "cpu_seconds": "cpu_time", "max_rss_mib": "max_rss"}.items():
                    value = parse(measured.get(key) or "")
                    # Snakemake writes "NA" or "-" for a job that was too short to be measured.
                    row[column] = None if isinstance(value, str) else value
                found.append(row)
    return found


TABLE = TableDefinition(
    caption="Wall time, processor time and peak memory of each job, as Snakemake measured them.",
    section="cost",
    columns={
        "rule": "rule of the workflow",
        "job": "wildcards of the job",
        "seconds": "wall time",
        "cpu_seconds": "processor time",
        "max_rss_mib": "peak resident memory, MiB",
    },
    rows=rows,
)
