"""Run benchmark tasks on one model, which is loaded once, and write each task's result and its per-sample log.

Without --model the base itself is evaluated. A task that --finished holds with the same settings, data, model, code and
versions is taken from there; the model is loaded only where a task is left. A task that fails does not stop the others.
The step downloads nothing: `download_task` has put the tasks' data into the cache.
"""

import os
from pathlib import Path

from lpc import cli, files
from lpc.config import specs
from lpc.modules import modules_of_task


def parser():
    parser = cli.step_parser(__doc__, specs.Benchmark)
    parser.add_argument("--model", type=Path, help="a run's model folder (default: the base)")
    parser.add_argument("--base", required=True, help="the base's record (base.json)")
    parser.add_argument("--finished", type=Path, required=True, help="folder of this model's finished tasks")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the results (<task>.json) and logs (<task>.samples.jsonl)"
    )
    return parser


def main(args):
    # Before the first import of these libraries, which read them once.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_MININTERVAL", "1" if os.isatty(2) else "30")  # a bar on a terminal, lines in a log
    import logging

    from lpc.evaluation import benchmarks, finished, tasks
    from lpc.evaluation.harness import LatentLM

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    base = files.read_json(args.base)
    inference = args.spec.inference and dict(args.spec.inference)
    shared = finished.of_model(base, args.model) | {"inference": inference}
    shared |= finished.of_code("benchmark", finished.latent_module(args.model), ("torch", "transformers", "lm_eval"))
    due, failed = {}, []
    for name, task in args.spec.tasks.items():
        kept = args.finished / name
        entry = {"name": name, **task.model_dump(exclude={"download"})}
        entry["task"] = entry["task"] or name
        try:
            identity = shared | identity_of_task(task.tracked(), entry)
            if not finished.restore(kept, identity, files_of(args.output, name)):
                due[name] = entry, identity, tasks.load_task(entry)  # before the model: a fault must not wait for it
                continue
        except Exception as error:
            failed.append(reason(name, error))
            continue
        cli.log.info("%s: taken from %s, since nothing that it depends on has changed", name, kept)
    if due:
        cli.log.info("%s: the model is loaded", ", ".join(due))
        lm = LatentLM.of_base(base, args.model, batch_size=args.spec.batch_size, inference=inference)
    for name, (entry, identity, loaded) in due.items():
        try:
            result, samples = benchmarks.run_task(lm, loaded, entry)
            value = result["metrics"][entry["metric"]]["value"]  # a group may lack one that its tasks have
        except Exception as error:
            failed.append(reason(name, error))
            continue
        output, log = files_of(args.output, name)
        files.write_json(output, result | {"base": base["name"]})
        benchmarks.write_samples(log, samples)
        finished.keep(args.finished / name, identity, (output, log))
        numbers = (name, entry["metric"], value, result["n"], result["seconds"])
        cli.log.info("%s %s = %.4f (n = %d, %.1f s)", *numbers)
    if failed:
        raise cli.UserError(f"{len(failed)} of {len(args.spec.tasks)} tasks failed; {'; '.join(failed)}")


def identity_of_task(tracked: dict, entry: dict) -> dict:
    """Return what the result of a task depends on besides the model: its settings, data, definition and functions.

    tracked: of a `lpc.config.specs.BenchmarkTask`. entry: the task as in `lpc.evaluation.tasks`.
    """
    from lpc.evaluation import finished, tasks

    own = modules_of_task(entry["task"]) if entry["task"].endswith(".yaml") else ()
    return {
        "task": tracked,
        "data": tasks.describe_files(entry),
        "download": tracked["download"] and files.sha256(tracked["download"]),
        "definition": finished.digests(own, Path(entry["task"]).parent),
    }


def files_of(output: Path, name: str) -> tuple[Path, Path]:
    """Return a task's result and samples. `lpc.layout` has the same paths, but an edit of others there must not compute
    every benchmark again."""
    return output / f"{name}.json", output / f"{name}.samples.jsonl"


def reason(name: str, error: Exception) -> str:
    """Log why a task failed, with the traceback of what is no fault of the user, and return it in one line."""
    ours = not isinstance(error, cli.UserError)
    text = f"{type(error).__name__}: {error} (its traceback is in the log)" if ours else str(error)
    text = text if text.startswith(f"task {name}: ") else f"task {name}: {text}"
    cli.log.error(text, exc_info=error if ours else None)
    return text


if __name__ == "__main__":
    cli.run(parser(), main)
