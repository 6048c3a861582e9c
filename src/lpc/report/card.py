"""The model card of a run: what it is, what it was trained on, its figures with their intervals, and the commit."""

import json

from lpc import files
from lpc.layout import dataset_of
from lpc.paths import is_local
from lpc.report.results import Results, in_words
from lpc.report.runs import names
from lpc.report.words import count, interval, number, objective, percent, significant

ONE_SEED = (
    "Intervals are over test prompts, not over seeds: with another seed, a small difference could reverse."
    " Compare runs by the report of their project."
)


def card(results: Results, run: dict) -> str:
    """Return the card of one of `results.runs`, Markdown with the metadata that the hub reads.

    Raises UserError where the run was not trained.
    """
    layout = results.layout
    summary = files.read_json(layout.of(run).summary)
    blocks = [
        f"# {run['recipe']} on {run['base']}, seed {run['seed']}",
        _what(results, run, summary),
        "## Data\n\n" + _data(results, run, summary),
        "## Preference accuracy\n\n" + _accuracy(results, run),
        _comparisons(results, run),
        _benchmarks(results, run),
        "## Use\n\n" + _use(run),
        "## Recipe\n\n" + _fenced(json.dumps(_recipe(run), indent=2, ensure_ascii=False), "json"),
        "## Provenance\n\n" + _provenance(results, run, summary),
    ]
    return _metadata(results, run) + "\n\n".join(block for block in blocks if block) + "\n"


def _recipe(run: dict) -> dict:
    return {section: run[section] for section in ("objective", "latent", "training")}


def _hub_names(results: Results, run: dict) -> dict[str, str]:
    """Hub names of the base, or of what it was quantised from, and of the dataset, those that have one."""
    settings = results.settings
    bases, base = settings["bases"], settings["bases"][run["base"]]
    found = {
        "base_model": bases.get(base.get("quantize"), base).get("model"),
        "dataset": settings["datasets"][run["dataset"]].get("path"),
    }
    return {key: name for key, name in found.items() if name and not is_local(name)}


def _metadata(results: Results, run: dict) -> str:
    """The YAML block at the start; JSON strings are YAML, too."""
    known = _hub_names(results, run)
    tags = ["preference-optimization", run["objective"]["name"]]
    tags += ["latent-preference-coding"] if run["latent"] else []
    lines = ["library_name: transformers", "pipeline_tag: text-generation", f"tags: {json.dumps(tags)}"]
    lines += [f"base_model: {json.dumps(known['base_model'])}"] if "base_model" in known else []
    lines += [f"datasets: [{json.dumps(known['dataset'])}]"] if "dataset" in known else []
    return "\n".join(["---", *lines, "---"]) + "\n\n"


def _what(results: Results, run: dict, summary: dict) -> str:
    latent = run["latent"]
    which = f"a latent of kind `{latent['kind']}`" if latent else "no latent"
    parameters = f"{summary['parameters']:,} parameters"
    if latent:
        parameters += f", and {summary['latent_parameters']:,} of the latent"
    known = _hub_names(results, run)
    base = f"[{known['base_model']}](https://huggingface.co/{known['base_model']})" if "base_model" in known else ""
    base = base or f"the base model {run['base']}"
    if "quantize" in results.settings["bases"][run["base"]]:
        base += ", rounded to 4 bits,"
    return (
        f"Trained from {base} with {objective(run['objective']['name'])} and {which}"
        f" ([Latent Preference Coding](https://arxiv.org/abs/2505.04993)). It has {parameters}."
    )


def _data(results: Results, run: dict, summary: dict) -> str:
    known = _hub_names(results, run)
    name = f"[{known['dataset']}](https://huggingface.co/datasets/{known['dataset']})" if "dataset" in known else ""
    said = f"{count(summary['pairs'], 'training pair')} of {name or 'the dataset ' + run['dataset']}"
    if run["noise"] != "clean":
        noise = results.settings["noise"][run["noise"]]
        said += f", of which {number(100 * noise['rate'], 0)} % had their completions swapped"
    return f"{said}. No prompt of its test pairs is among the training pairs."


def _accuracy(results: Results, run: dict) -> str:
    rows = _rows(results, "preference_accuracy", run)
    lines = ["| test pairs of | pairs | accuracy, % | 95 % interval |", "|---|---|---|---|"]
    for row in rows:
        if row["accuracy"] is None:
            lines.append(f"| {row['dataset']} | | {row['status']} | |")
            continue
        ends = interval(percent(row["low"]), percent(row["high"]))
        lines.append(f"| {row['dataset']} | {row['n']:,} | {number(percent(row['accuracy']))} | {ends} |")
    how = "A pair counts as right where the chosen completion has the higher reward. "
    return "\n".join(lines) + f"\n\n{how}{ONE_SEED}"


def _comparisons(results: Results, run: dict) -> str:
    """The run against the plain one and the controls, on the test pairs of its own dataset."""
    rows = [
        row
        for row in _rows(results, "comparisons", run)
        if row["dataset"] == dataset_of(row["variant"]) and row["difference"] is not None
    ]
    return "\n".join(f"- {in_words(row)}." for row in rows)


def _benchmarks(results: Results, run: dict) -> str:
    rows = [row for row in _rows(results, "benchmarks", run) if row["primary"] == 1]
    if not rows:
        return ""
    lines = ["| task | metric | score | standard error | questions |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['task']} | {row['metric']} | {significant(row['value'])} | {significant(row['stderr'])} | {row['n']} |"
        for row in rows
    ]
    return "## Benchmarks\n\n" + "\n".join(lines)


def _rows(results: Results, table: str, run: dict) -> list[dict]:
    wanted = {name: run[name] for name in ("base", "variant", "recipe", "seed")}
    return [row for row in results.tables[table] if all(row[name] == value for name, value in wanted.items())]


def _use(run: dict) -> str:
    plain = 'AutoModelForCausalLM.from_pretrained("THIS REPOSITORY")'
    if not run["latent"]:
        return _fenced(f"from transformers import AutoModelForCausalLM\n\nmodel = {plain}", "python")
    said = "transformers loads the backbone without the latent. With the latent:\n\n"
    lines = [
        "import lpc",
        "from huggingface_hub import snapshot_download",
        "",
        'policy = lpc.load(snapshot_download("THIS REPOSITORY"))',
        'print(policy.generate("a prompt"))',
    ]
    return said + _fenced("\n".join(lines), "python")


def _provenance(results: Results, run: dict, summary: dict) -> str:
    record = files.read_json(results.layout.base(run["base"]).record)
    base = [f"revision {record['revision']}"] if record.get("revision") else []
    which = ", ".join(f"{key} {value}" for key, value in names(run).items() if value is not None)
    facts = {
        "commit of the workflow": results.commit,
        "project, run": f"{results.settings['project']}, {which}",
        "base model": ", ".join([*base, f"digest {record['sha256']}"]),
        "training pairs, SHA-256": summary["identity"]["pairs"],
        "software": f"torch {summary['torch']}, transformers {summary['transformers']}",
        "device": summary["device"],
    }
    lines = ["| fact | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]
    return "\n".join(lines)


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
