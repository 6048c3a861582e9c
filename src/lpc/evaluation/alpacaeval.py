"""AlpacaEval 2: instructions, a run's outputs in the package's format, and the judgement by the package `alpaca_eval`.

Judging needs that package, a key and a network. Where one is missing the outputs are still there and the result says
"not judged" and why, so that a workflow without a key runs to its end.
"""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import huggingface_hub
import huggingface_hub.errors
import yaml

from lpc import files
from lpc.cli import UserError

HUB = {"repo_id": "tatsu-lab/alpaca_eval", "repo_type": "dataset"}
BASELINE = "alpaca_eval_gpt4_baseline.json"  # GPT-4 Turbo's outputs for the 805 instructions, in their order
LENGTH_CONTROL = "df_gamed.csv"  # instruction difficulties and baseline annotations of the length-controlled win rate


def prepare(instructions: str | None, reference: str | None) -> tuple[list[dict], list[dict]]:
    """Return (instructions, reference outputs) from local JSON files, or the package's from the hub where neither is
    named.

    Rows of the first have instruction and dataset; those of the second also output and generator. Instructions of one's
    own have no reference outputs unless a file of them is named: then nothing can be judged.
    """
    outputs = []
    if reference is not None:
        outputs = _rows(reference, ("instruction", "output", "generator"))
    elif instructions is None:
        try:
            outputs = _rows(huggingface_hub.hf_hub_download(filename=BASELINE, **HUB), ("instruction", "output"))
        except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise UserError(
                f"{HUB['repo_id']}: the AlpacaEval baseline cannot be fetched ({error}); run this where there is a "
                "network, or set `instructions` and `reference` to local files"
            ) from None
    asked = outputs if instructions is None else _rows(instructions, ("instruction",))
    return [{"instruction": row["instruction"], "dataset": row.get("dataset", "local")} for row in asked], outputs


def _rows(path: str | Path, fields: tuple[str, ...]) -> list[dict]:
    rows = files.read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a JSON list of objects with {', '.join(fields)}")
    for i, row in enumerate(rows):
        if missing := [field for field in fields if not isinstance(row, dict) or not isinstance(row.get(field), str)]:
            raise UserError(f"{path}: row {i} has no text under {', '.join(missing)}")
    return rows


def answer(lm, instructions: list[dict], *, generator: str, max_new_tokens: int) -> list[dict]:
    """Return the rows with `output` and `generator` that alpaca_eval reads: greedy answers of an lm-eval model to
    chats."""
    from lm_eval.api.instance import Instance

    if lm.tokenizer.chat_template is None:
        raise UserError("AlpacaEval: this base's tokenizer has no chat template; set `chat_template` of the base")
    if max_new_tokens >= lm.max_length:
        raise UserError(
            f"alpacaeval.max_new_tokens: {max_new_tokens} leaves no room in a context of {lm.max_length} tokens"
        )
    options = {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False}
    prompts = [lm.apply_chat_template([{"role": "user", "content": row["instruction"]}]) for row in instructions]
    outputs = lm.generate_until([Instance("generate_until", {}, (text, options), i) for i, text in enumerate(prompts)])
    # The package strips what it generates itself.
    return [
        row | {"output": text.strip(), "generator": generator} for row, text in zip(instructions, outputs, strict=True)
    ]


# ---- judging


def annotations_json(annotations: list[dict]) -> str:
    """Return the judge's answers as JSON; what the package leaves out (NaN) is null."""
    import pandas

    return pandas.DataFrame(annotations).to_json(orient="records", indent=2, force_ascii=False) + "\n"


class NotJudgedError(Exception):
    """Why there is no judgement, in words for the table."""


def judge(outputs: list[dict], reference: list[dict], settings: dict | None, cache: Path) -> tuple[dict, list[dict]]:
    """Return (result, annotations). The result's `status` is "judged" or "not judged", the latter with a `reason`.

    settings: annotator, model, base_url, key_variable (see the configuration), or None for no judge. Win rates and
    their standard errors are in percent, as the package and the paper have them. `cache` keeps what the judge has said,
    so that an interrupted job pays for nothing twice.
    """
    result = {"judge": settings, "n": len(outputs), "mean_length": fmean(len(row["output"]) for row in outputs)}
    try:
        annotations, name = _annotate(outputs, reference, settings, cache)
    except NotJudgedError as error:
        return result | {"status": "not judged", "reason": str(error), "metrics": {}}, []
    import alpaca_eval.metrics
    import pandas

    table = pandas.DataFrame(annotations)
    scores = alpaca_eval.metrics.get_winrate(table)
    metrics = {"win_rate": {"value": float(scores["win_rate"]), "stderr": float(scores["standard_error"])}}
    uncontrolled = _no_length_control(len(annotations))
    if uncontrolled is None:
        controlled = alpaca_eval.metrics.get_length_controlled_winrate(table, save_weights_dir=None)
        metrics["length_controlled_winrate"] = {
            "value": float(controlled["length_controlled_winrate"]),
            "stderr": float(controlled["lc_standard_error"]),
        }
    return result | {
        "status": "judged",
        "reason": uncontrolled,
        "metrics": metrics,
        "n": int(scores["n_total"]),
        "wins": int(scores["n_wins"]),
        "losses": int(scores["n_wins_base"]),
        "draws": int(scores["n_draws"]),
        "unanswered": len(annotations) - int(scores["n_total"]),
        "reference_mean_length": fmean(len(row["output"]) for row in reference),
        "annotator": name,
        "package_version": version("alpaca_eval"),
    }, annotations


def _annotate(outputs: list[dict], reference: list[dict], settings: dict | None, cache: Path) -> tuple[list[dict], str]:
    """(annotations in the reference's order, name of the annotator); raises NotJudgedError with the reason where there
    are none."""
    if not settings:
        raise NotJudgedError("no judge is configured")
    key = os.environ.get(settings["key_variable"])
    if not key:
        raise NotJudgedError(f"no key: the environment variable {settings['key_variable']} is not set")
    known = {row["instruction"] for row in reference}
    if unknown := sum(row["instruction"] not in known for row in outputs):
        raise NotJudgedError(f"{unknown} of {len(outputs)} instructions have no reference output")

    # The package reads these when it is imported. The configuration says who judges, whatever the shell's own settings.
    os.environ.pop("OPENAI_CLIENT_CONFIG_PATH", None)
    os.environ["OPENAI_API_KEYS"] = os.environ["OPENAI_API_KEY"] = key
    if settings["base_url"]:
        os.environ["OPENAI_API_BASE"] = settings["base_url"]
    try:
        import alpaca_eval.annotators
        import alpaca_eval.constants
        import openai
    except ImportError as error:
        raise NotJudgedError(f"the package alpaca_eval is not installed ({error})") from None

    configs = alpaca_eval.constants.EVALUATORS_CONFIG_DIR
    annotator_file = configs / settings["annotator"] / "configs.yaml"
    if not annotator_file.is_file():
        raise UserError(
            f"alpacaeval.judge.annotator: alpaca_eval {version('alpaca_eval')} has no {settings['annotator']!r}"
        )
    ((name, config),) = yaml.safe_load(annotator_file.read_text()).items()
    config["prompt_template"] = str(configs / config["prompt_template"])
    if settings["model"]:
        # The package's cache knows annotations by the annotator's name: another model must not answer to the same one.
        config["completions_kwargs"]["model_name"] = settings["model"]
        name = f"{name}+{settings['model']}"

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotator" / "configs.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump({name: config}))
        annotator = alpaca_eval.annotators.PairwiseAnnotator(annotators_config=path, caching_path=cache)
        try:
            annotations = annotator.annotate_head2head(
                outputs_1=[{key: row[key] for key in ("instruction", "output", "generator")} for row in reference],
                outputs_2=outputs,
            )
        except openai.OpenAIError as error:
            raise NotJudgedError(f"the judge could not be asked ({type(error).__name__}: {error})") from None
    if all(row["preference"] is None or row["preference"] != row["preference"] for row in annotations):
        raise NotJudgedError("the judge's answers hold no preference; does it return log-probabilities?")
    return annotations, name


def _no_length_control(count: int) -> str | None:
    """Why the length-controlled win rate cannot be computed for `count` annotations; None where it can.

    Its model has a difficulty for each of the 805 instructions, by their position: for others it would be nonsense.
    """
    import pandas

    try:
        path = huggingface_hub.hf_hub_download(filename=LENGTH_CONTROL, **HUB)
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        return f"no length-controlled win rate: {LENGTH_CONTROL} of {HUB['repo_id']} cannot be fetched ({error})"
    expected = pandas.read_csv(path)["index"].nunique()
    if count != expected:
        return f"no length-controlled win rate: it is defined for all {expected} instructions, and {count} were judged"
    return None
