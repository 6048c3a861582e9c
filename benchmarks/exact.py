"""Time and peak memory of the LM head, forwards and backwards: log-probabilities under K codes against under one z.

    python benchmarks/exact.py --vocabulary 4096 128256 --codes 8 64 --output exact.json

`z` is `token_logps` of hidden states with z added, as a training step of the negative ELBO has it, `codes` is
`code_logps`, as the exact objective has it; `loop` calls `token_logps` once for each code and is timed for the smallest
number of codes alone. Random weights, float32 on a CPU, bfloat16 with float32 sums on a GPU where there is one. Each
case runs in a process of its own, so that peaks of memory are its own: `grow` is the peak above the inputs and their
gradients. The time is the median over the steps after one for warming up.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[4096, 128_256])
    parser.add_argument("--codes", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--tokens", type=int, default=2048, help="of all completions of a step")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", help="also write the numbers here (.json)")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    return parser


def main():
    args = parser().parse_args()
    if args.run:
        print(json.dumps(run(args, args.run[0], int(args.run[1]))))
        return
    results = {}
    cases = [("z", 1), ("loop", min(args.codes)), *(("codes", codes) for codes in args.codes)]
    print("| vocabulary | what | seconds | to z | memory grows by | to z |\n|---|---|---|---|---|---|")
    for vocabulary, (case, codes) in product(args.vocabulary, cases):
        command = [sys.executable, __file__, "--run", case, str(codes), "--vocabulary", str(vocabulary)]
        for name in ("tokens", "hidden", "steps", "threads"):
            command += [f"--{name}", str(getattr(args, name))]
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        result = results[f"{vocabulary} {case} {codes}"] = json.loads(done.stdout.splitlines()[-1])
        plain = results[f"{vocabulary} z 1"]
        seconds, memory = result["seconds"], result["grow_gib"]
        print(
            f"| {vocabulary} | {case} {codes} | {seconds:.3f} | {seconds / plain['seconds']:.2f} "
            f"| {memory:.3f} GiB | {memory / plain['grow_gib']:.2f} |",
            flush=True,
        )
    if args.output:
        import torch

        record = {"arguments": vars(args), "results": results, "torch": torch.__version__}
        Path(args.output).write_text(json.dumps(record | {"machine": platform.platform()}, indent=2) + "\n")


def run(args, case: str, count: int) -> dict:
    import torch
    from training import memory

    from lpc.model.code_logps import code_logps
    from lpc.model.logps import token_logps

    torch.set_num_threads(args.threads)
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    leaf = lambda *shape: torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    (vocabulary,) = args.vocabulary
    hidden, codes = leaf(args.tokens, args.hidden), leaf(count, args.hidden)
    weight = (leaf(vocabulary, args.hidden).detach() * args.hidden**-0.5).requires_grad_()
    labels = torch.randint(vocabulary, (args.tokens,), generator=generator).to(device)
    upstream = torch.rand(args.tokens, count, generator=generator).to(device)
    for tensor in (hidden, codes, weight):
        tensor.grad = torch.zeros_like(tensor)
    used = lambda peak: (  # noqa: E731
        (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**30
        if gpu
        else memory("VmHWM" if peak else "VmRSS")
    )
    before, times = used(False), []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        if case == "codes":
            (code_logps(hidden, weight, labels, codes) * upstream).sum().backward()
        else:
            for code, grad in zip(codes, upstream.t(), strict=True):
                (token_logps(hidden + code, weight, labels) * grad).sum().backward()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "times": times, "grow_gib": used(True) - before}


if __name__ == "__main__":
    main()
