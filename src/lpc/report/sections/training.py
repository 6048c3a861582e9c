"""Section on training curves of the main experiment, by base, data set and objective."""

from collections import defaultdict

import numpy as np

from lpc.report import figures
from lpc.report.page import Figure, Figures, Missing, Section, Text
from lpc.report.results import Results
from lpc.report.runs import has_posterior, latent_kind
from lpc.report.words import objective


def section(results: Results) -> Section:
    groups = defaultdict(list)
    for run in results.main:
        if run["noise"] == "clean":
            groups[run["base"], run["dataset"], run["objective"]["name"]].append(run)
    loss, accuracy = {"": lambda line: line.get("loss")}, {"": lambda line: line.get("accuracy")}
    codes = {"KL(q ‖ p)": lambda line: line.get("kl"), "I(code; prompt)": code_information}
    panels = {  # name of the figure, title, values
        "loss": ("loss", loss),
        "accuracy": ("accuracy on training pairs", accuracy),
        "codes": ("codes (nats)", codes),
        "validation-loss": ("loss on validation pairs", loss),
        "validation-accuracy": ("accuracy on validation pairs", accuracy),
    }
    blocks: list = []
    for (base, dataset, kind), runs in groups.items():
        of_training, of_validation = ([log(run) for run in runs] for log in (results.training_log, results.evaluations))
        drawn = []
        for name, (title, values) in panels.items():
            logs, smoothing = (of_validation, 1) if name.startswith("validation") else (of_training, 9)
            lines = []
            for run, log in zip(runs, logs, strict=True):
                if name == "codes" and not has_posterior(latent_kind(run)):
                    continue  # their KL is 0 by definition
                for label, value in values.items():
                    points = [(line["step"], value(line)) for line in log if value(line) is not None]
                    x, y = ([point[i] for point in points] for i in (0, 1))
                    if points:
                        lines.append({"name": f"{run['recipe']}: {label}" if label else run["recipe"], "x": x, "y": y})
            if lines:
                drawing = figures.curves(f"{objective(kind)}: {title}", lines, smoothing=smoothing)
                caption = f"{objective(kind)} on {base}, {dataset}: {title}."
                drawn.append(Figure.of(f"training-{base}-{dataset}-{kind}-{name}", drawing, caption))
        if drawn:
            blocks.append(Figures(drawn))
    lead = Text(
        "Metrics by step, those of training smoothed over nine logging steps. Lines of one colour are the seeds of a "
        "recipe."
    )
    found = [lead, *blocks] if blocks else [Missing("No run of the main experiment has a training log yet.")]
    return Section("training", "Training", found)


def code_information(line: dict) -> float | None:
    """Return I(code; prompt) over a logging interval: H(mean p) − mean H(p), from the two perplexities."""
    if line.get("prior_perplexity") is None:
        return None
    return float(np.log(line["mean_prior_perplexity"] / line["prior_perplexity"]))
