"""Section on provenance: commit, software, inputs with their checksums, configuration."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np

from lpc.images import current
from lpc.report.page import Preformatted, Section, Table, text_column
from lpc.report.results import Results


def section(results: Results) -> Section:
    layout = results.layout
    summaries = [results.json(layout.of(run).summary) for run in results.runs]
    facts = {"commit of the workflow": results.commit}
    for key in ("device", "processes", "threads", "torch", "transformers"):
        facts[f"training: {key}"] = values_of(key, summaries)
    facts["evaluation harness"] = values_of("harness_version", benchmark_results(results))
    facts["tables and figures"] = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {version('scikit-learn')}, "
        f"Matplotlib {matplotlib.__version__}"
    )
    facts["randomness"] = results.seeds()[1]
    rows = [{"fact": key, "value": value} for key, value in facts.items() if value]
    blocks: list = [Table("Software and hardware of these results", [text_column("fact"), text_column("value")], rows)]
    inputs = []
    for dataset in results.settings["datasets"]:
        origin = results.json(layout.data(dataset).record)
        for file, digest in (origin.get("sha256") or {}).items():
            inputs.append(
                {"input": f"dataset {dataset}", "of": origin["revision"] or Path(file).name, "sha256": digest}
            )
    for base in results.settings["bases"]:
        record = results.json(layout.base(base).record)
        if record:
            of = record["revision"] or f"{record['parameters']:,} parameters"
            inputs.append({"input": f"base {base}", "of": of, "sha256": record["sha256"]})
    containers = [record.get("container") for record in json_records(results)]
    for image in [*containers, current()]:  # the last one made tables, figures and this page
        row = image and {"input": "container image", "of": image["image"], "sha256": image["sha256"]}
        if row and row not in inputs:
            inputs.append(row)
    if inputs:
        columns = [text_column("input"), text_column("revision or file", "of"), text_column("SHA-256", "sha256")]
        blocks.append(Table("Inputs", columns, inputs))
    configuration = json.dumps(results.settings, indent=2, ensure_ascii=False)
    blocks.append(Preformatted("The configuration, with every default filled in", configuration))
    return Section("provenance", "Provenance", blocks)


def values_of(key: str, records: list[dict]) -> str:
    return ", ".join(sorted({str(record[key]) for record in records if record.get(key) is not None}))


def benchmark_results(results: Results) -> list[dict]:
    layout = results.layout
    models = [*map(layout.of, results.runs), *map(layout.base, results.settings["bases"])]
    return [results.json(model.benchmarks.result(task)) for model in models for task in results.tasks]


def json_records(results: Results) -> list[dict]:
    """Return the JSON records that steps wrote of the page's data, bases and runs; {} where one is absent."""
    layout, settings, paths = results.layout, results.settings, []
    for dataset in map(layout.data, settings["datasets"]):
        paths += [dataset.record, dataset.split]
    variants = (*settings["datasets"], *(run["variant"] for run in results.runs))
    paths += [layout.data(variant).pairs_summary for variant in variants]
    paths += [layout.base(base).record for base in settings["bases"]]
    for run in results.runs:
        of_run = layout.of(run)
        paths += [of_run.summary, of_run.latents_summary, of_run.judged, *map(of_run.preference, run["heldout"])]
    return [*map(results.json, dict.fromkeys(paths)), *benchmark_results(results)]
