"""Table of training runs: size, losses, speed and memory of each."""

from lpc.report.runs import names
from lpc.report.tables.base import RUN, STATUS, Inputs, TableDefinition, select

COLUMNS = {
    **RUN,
    "steps": "optimizer steps",
    "pairs": "training pairs",
    "dropped": "pairs that tokenisation could not keep",
    "cut_prompts": "share of prompts cut at tokens.max_prompt_length",
    "cut_chosen": "share of chosen completions that lost their end at tokens.max_length",
    "cut_rejected": "the same of rejected completions",
    "tokens": "tokens processed",
    "seconds": "wall time of training",
    "seconds_per_step": "wall time of one optimizer step",
    "tokens_per_second": "throughput",
    "peak_memory_gib": "peak memory, GiB",
    "parameters": "parameters of base model and latent",
    "latent_parameters": "parameters of the latent",
    "first_loss": "loss of the first step",
    "last_loss": "loss of the last logging interval",
    "saved_dtype": "dtype of the saved weights",
    "undone": "share of the weights that training moved and rounding to that dtype returned to the base",
    "margin_before": "mean reward margin of a sample of training pairs before that rounding",
    "margin_after": "the same after it",
    "device": "device of training",
    "processes": "processes of training",
    **STATUS,
}


def rows(inputs: Inputs) -> list[dict]:
    found = []
    for run in inputs.runs:
        summary, status = inputs.load(inputs.layout.of(run).summary)
        cut = {f"cut_{name}": share for name, share in summary.get("cut", {}).items()}
        found.append(select(COLUMNS, summary, names(run), saved(summary), cut, {"status": status}))
    return found


def saved(summary: dict) -> dict:
    """Return what saving did to the weights; weights saved in float32 have no rounding to report."""
    record = summary.get("saved", {})
    margin = record.get("margin", {})
    return {
        "saved_dtype": record.get("dtype"),
        "undone": record.get("undone"),
        "margin_before": margin.get("before"),
        "margin_after": margin.get("after"),
    }


TABLE = TableDefinition(
    caption="Size, losses, speed and memory of each training run.",
    section="cost",
    columns=COLUMNS,
    rows=rows,
)
