"""Section on provenance: commit, software, inputs with their checksums, configuration."""

import json
import platform
from pathlib import Path

import matplotlib
import numpy as np
import sklearn

from lpc.images import running
from lpc.report.page import Preformatted, Section, Table, text_column
from lpc.report.results import Results


def section(results: Results) -> Section:
    summaries = [results.json(f"{run['folder']}/train.json") for run in results.runs]
    facts = {"commit of the workflow": results.commit}
    for key in ("device", "processes", "threads", "torch", "transformers"):
        facts[f"training: {key}"] = values_of(key, summaries)
    facts["evaluation harness"] = values_of("harness_version", benchmark_results(results))
    facts["tables and figures"] = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}, "
        f"Matplotlib {matplotlib.__version__}"
    )
    facts["randomness"] = results.seeds()[1]
    rows = [{"fact": key, "value": value} for key, value in facts.items() if value]
    blocks: list = [Table("Software and hardware of these results", [text_column("fact"), text_column("value")], rows)]
    inputs = []
    for dataset in results.settings["datasets"]:
        origin = results.json(f"data/{dataset}/source.json")
        for file, digest in (origin.get("sha256") or {}).items():
            inputs.append(
                {"input": f"dataset {dataset}", "of": origin["revision"] or Path(file).name, "sha256": digest}
            )
    for base in results.settings["bases"]:
        record = results.json(f"bases/{base}/base.json")
        if record:
            of = record["revision"] or f"{record['parameters']:,} parameters"
            inputs.append({"input": f"base {base}", "of": of, "sha256": record["sha256"]})
    containers = [record.get("container") for record in json_records(results)]
    for image in [*containers, running()]:  # the last one made tables, figures and this page
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
    folders = [*(run["folder"] for run in results.runs), *(f"bases/{base}" for base in results.settings["bases"])]
    return [results.json(f"{folder}/benchmarks/{task}.json") for folder in folders for task in results.tasks]


def json_records(results: Results) -> list[dict]:
    """Return the JSON records that steps wrote of the page's data, bases and runs; {} where one is absent."""
    settings = results.settings
    paths = [f"data/{dataset}/{name}" for dataset in settings["datasets"] for name in ("source", "split")]
    paths += [f"data/{variant}/pairs" for variant in (*settings["datasets"], *(run["variant"] for run in results.runs))]
    paths += [f"bases/{base}/base" for base in settings["bases"]]
    for run in results.runs:
        names = ("train", "latents", "alpacaeval/judged", *(f"preference/{name}" for name in run["heldout"]))
        paths += [f"{run['folder']}/{name}" for name in names]
    return [*(results.json(f"{path}.json") for path in dict.fromkeys(paths)), *benchmark_results(results)]
