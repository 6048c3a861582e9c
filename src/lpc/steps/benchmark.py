"""Run one benchmark task on one model and write its result and its per-sample log.

Without --model the base itself is evaluated. With --questions, that file is the task's test split in place of `data`.
The step downloads nothing: `download_task` has put the task's data into the cache.
"""

import os

from lpc import cli, files
from lpc.config import specs


def parser():
    parser = cli.step_parser(__doc__, specs.Benchmark)
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

    from lpc.evaluation import benchmarks, tasks
    from lpc.evaluation.harness import LatentLM

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    base = files.read_json(args.base)
    entry = args.spec.model_dump(exclude={"batch_size", "inference"})
    inference = args.spec.inference and dict(args.spec.inference)
    if args.questions:
        entry["data"] = {"test": args.questions}
    loaded = tasks.load_task(entry)  # before the model: a wrong name must not wait for it
    lm = LatentLM.of_base(base, args.model, batch_size=args.spec.batch_size, inference=inference)
    result, samples = benchmarks.run_task(lm, loaded, entry)
    result |= {"base": base["name"]}
    benchmarks.write_samples(args.samples, samples)
    files.write_json(args.output, result)
    value = result["metrics"][entry["metric"]]["value"]
    numbers = (result["task"], entry["metric"], value, result["n"], result["seconds"])
    logging.getLogger("lpc").info("%s %s = %.4f (n = %d, %.1f s)", *numbers)


if __name__ == "__main__":
    cli.run(parser(), main)
