"""Run one benchmark task on one model and write its result and its per-sample log.

--spec: an entry of `evaluation.benchmarks.tasks` with its name and the batch size: {"name", "task", "metric",
"num_fewshot", "limit", "chat_template", "data", "batch_size"}; see `lpc.evaluation.benchmarks`.
Without --model the base itself is evaluated. With --questions, that file is the task's test split in place of `data`.
Nothing is fetched: what the task needs was brought by `download_task`.
"""

import os

from lpc import cli, files


def parser():
    parser = cli.step_parser(__doc__)
    parser.add_argument("--model", help="a run's model folder (default: the base)")
    parser.add_argument("--base", required=True, help="the base's record (base.json)")
    parser.add_argument("--questions", help="generated questions (.jsonl), the test split")
    parser.add_argument("--output", required=True, help="the result (.json)")
    parser.add_argument("--samples", required=True, help="the per-sample log (.jsonl)")
    return parser


def main(args):
    # Before the first import of these libraries, which read them once.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_MININTERVAL", "1" if os.isatty(2) else "30")  # a bar on a terminal, lines in a log
    import logging

    from lpc.evaluation import benchmarks
    from lpc.evaluation.harness import LatentLM

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    base = files.read_json(args.base)
    entry = dict(args.spec)
    batch_size, inference = entry.pop("batch_size"), entry.pop("inference", None)
    if args.questions:
        entry["data"] = {"test": args.questions}
    loaded = benchmarks.load_task(entry)  # before the model: a wrong name must not wait for it
    lm = LatentLM.of_base(base, args.model, batch_size=batch_size, inference=inference)
    result, samples = benchmarks.run_task(lm, loaded, entry)
    result |= {"base": base["name"]}
    benchmarks.write_samples(args.samples, samples)
    files.write_json(args.output, result)
    value = result["metrics"][result["primary"]]["value"]
    numbers = (result["task"], result["primary"], value, result["n"], result["seconds"])
    logging.getLogger("lpc").info("%s %s = %.4f (n = %d, %.1f s)", *numbers)


if __name__ == "__main__":
    cli.run(parser(), main)
