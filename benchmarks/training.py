"""Step time and peak memory of training against TRL's trainers, on the same random Llama and the same pairs.

    python benchmarks/training.py --vocabulary 4096 --means --rounds 3 --output training.json
    python benchmarks/training.py --shape llama-8b --vocabulary 128256 --pairs 1 --prompt 256 --completion 384 \
        --cases "trl dpo" "lpc dpo" "lpc dpo latent" --output training-8b.json      # a GPU of 141 GB

Both sides train through transformers.Trainer with AdamW, with cached reference log-probabilities for DPO, in float32 on
the CPU and in bfloat16 (weights and the optimizer's states too) on a GPU where there is one. TRL runs as a user of it
would run it, ours with the environment variables that the workflow gives its jobs (`lpc.environment`); the cases of
`MEANS` exchange that, too. Each case runs in a process of its own, so that peaks of memory are its own: `grow` is the
peak above the memory in use right before the first step (weights, data and libraries are the same on both sides),
`peak` is the whole process, or all that torch has on the GPU. The time is the median over steps after two for warming
up, then over rounds. On a GPU the share of its matrix rate counts 6 operations for each weight and token of chosen and
rejected (each with its prompt), against a product of two 8192 x 8192 matrices measured in the same process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from itertools import pairwise, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from lpc.environment import VARIABLES

CASES = ["trl dpo", "lpc dpo", "lpc dpo latent", "trl simpo", "lpc simpo", "lpc simpo latent"]
# One means taken away or added: our jobs' environment variables for TRL and not for us, logits of all tokens at once,
# bfloat16 autocast, torch.compile of the decoder layers, four times as many pairs.
MEANS = ["trl dpo variables", "lpc dpo no-variables"]
MEANS += ["lpc dpo full-logits", "lpc dpo bfloat16", "lpc dpo compile", "lpc dpo fourfold"]
SHAPES = {
    "small": {"hidden": 256, "layers": 4, "intermediate": 1024, "heads": 8, "key_value_heads": 4},
    "llama-8b": {"hidden": 4096, "layers": 32, "intermediate": 14336, "heads": 32, "key_value_heads": 8},
}
RATIOS = [
    ("DPO, step time and memory", "lpc dpo", "trl dpo"),
    ("DPO with the latent, against TRL's plain DPO", "lpc dpo latent", "trl dpo"),
    ("SimPO", "lpc simpo", "trl simpo"),
    ("DPO, our environment variables for TRL, too", "lpc dpo", "trl dpo variables"),
    ("our environment variables against none", "lpc dpo", "lpc dpo no-variables"),
    ("latent against our own plain DPO", "lpc dpo latent", "lpc dpo"),
    ("latent against our own plain SimPO", "lpc simpo latent", "lpc simpo"),
    ("chunked against full logits", "lpc dpo", "lpc dpo full-logits"),
    ("bfloat16 autocast against float32", "lpc dpo bfloat16", "lpc dpo"),
    ("torch.compile against none", "lpc dpo compile", "lpc dpo"),
    ("a step among four times as many pairs", "lpc dpo fourfold", "lpc dpo"),
]


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[128_256])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per step")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--completion", type=int, default=128, help="tokens")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--rounds", type=int, default=1, help="of all cases, one after the other: evens out a busy machine"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES + MEANS, default=CASES)
    parser.add_argument("--means", action="store_true", help="also each means by itself, in the first round alone")
    parser.add_argument("--profile", action="store_true", help="print what each case spends its time on; slows it down")
    parser.add_argument("--output", help="also write the numbers here (.json)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser


def main():
    args = parser().parse_args()
    if args.run:
        print(json.dumps(run(args, args.run)))
        return
    common = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true"}
    runs: dict[str, list] = {}
    schedule = args.cases + (MEANS if args.means else []) + args.cases * (args.rounds - 1)
    for vocabulary, case in product(args.vocabulary, schedule):
        command = [sys.executable, __file__, "--run", case, "--vocabulary", str(vocabulary)]
        for name in ("shape", "pairs", "prompt", "completion", "steps", "threads"):
            command += [f"--{name}", str(getattr(args, name))]
        command += ["--profile"] * args.profile
        # Ours have them and TRL has not, but for the case of either whose name ends so.
        has_variables = case.startswith("lpc") != case.endswith("variables")
        environment = common | (VARIABLES if has_variables else {})
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        runs.setdefault(f"{vocabulary} {case}", []).append(result)
        seconds, grow = result["seconds"], result["grow_gib"]
        rate = f"  {result['matrix_share']:.0%} of the matrix rate" if result["matrix_share"] else ""
        print(
            f"{vocabulary:>7} {case:<20} {seconds:7.3f} s  {result['tokens_per_second']:8.0f} tokens/s  "
            f"grow {grow:6.3f} GiB  peak {result['peak_gib']:6.3f} GiB{rate}",
            flush=True,
        )
    median = lambda case, key: statistics.median(result[key] for result in runs[case])  # noqa: E731
    print("\n| vocabulary | what | time | memory above the start | peak of the process |\n|---|---|---|---|---|")
    for vocabulary in args.vocabulary:
        for title, ours, theirs in RATIOS:
            a, b = f"{vocabulary} {ours}", f"{vocabulary} {theirs}"
            if a in runs and b in runs:
                ratios = " | ".join(
                    f"{median(a, key) / median(b, key):.2f}" for key in ("seconds", "grow_gib", "peak_gib")
                )
                print(f"| {vocabulary} | {title} | {ratios} |")
    if args.output:
        import torch
        import transformers
        import trl

        versions = {m.__name__: m.__version__ for m in (torch, transformers, trl)}
        record = {"arguments": vars(args), "results": runs, "versions": versions, "machine": platform.platform()}
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


def run(args, case: str) -> dict:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    torch.set_num_threads(args.threads)
    (vocabulary,), shape, gpu = args.vocabulary, SHAPES[args.shape], torch.cuda.is_available()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["key_value_heads"],
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.device("cuda" if gpu else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if gpu else torch.float32)
    rng = np.random.default_rng(0)
    library, objective, *option = case.split()
    count = args.pairs * (args.steps * (4 if option == ["fourfold"] else 1) + 2)
    ids = {
        side: rng.integers(2, vocabulary, (count, length))
        for side, length in (("prompt", args.prompt), ("chosen", args.completion), ("rejected", args.completion))
    }

    class Clock(TrainerCallback):
        def __init__(self):
            self.times = []

        def on_step_end(self, *_, **__):
            self.times.append(time.perf_counter())

    folder = tempfile.mkdtemp()
    if library == "lpc":
        from lpc import latents, objectives
        from lpc.data.tokens import PairTokens
        from lpc.model.policy import LatentPolicy
        from lpc.training.train import training_arguments
        from lpc.training.trainer import PreferenceTrainer

        rows = {side: [row.astype(np.int32) for row in values] for side, values in ids.items()}
        pairs = PairTokens(np.arange(count), rows["prompt"], rows["chosen"], rows["rejected"], 0)
        pairs.reference = np.zeros((count, 2))
        settings = {"epochs": 1, "batch_size": args.pairs, "micro_batch_size": args.pairs, "learning_rate": 1e-5}
        settings |= {"warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0}
        settings |= {"logging_steps": 1000, "save_minutes": 1e6, "gradient_checkpointing": args.shape != "small"}
        settings["precision"] = "bfloat16" if gpu or option == ["bfloat16"] else "float32"
        policy = LatentPolicy(model)
        if option == ["full-logits"]:
            policy.token_logps = lambda hidden, labels, z: (
                policy.head(hidden).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
            )
        if option == ["compile"]:
            for layer in model.model.layers:
                layer.compile()
        if option == ["latent"]:
            policy.latent = latents.build(latents.parse({}), shape["hidden"], 0)
        arguments = training_arguments(settings, seed=0, output_dir=Path(folder), processes=1)
        trainer = PreferenceTrainer(
            policy, arguments, pairs, objectives.parse({"name": objective}), Path(folder) / "log"
        )
        trainer.check_first_loss = False  # the cached reference is made of zeros: its values cost nothing
    else:
        import trl
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, vocabulary)}, "w2"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
        text = {side: [" " + " ".join(f"w{i}" for i in row) for row in values] for side, values in ids.items()}
        common = {"output_dir": folder, "per_device_train_batch_size": args.pairs, "report_to": [], "max_length": 4096}
        common |= {"use_cpu": not gpu, "bf16": gpu, "save_strategy": "no", "logging_steps": 1000}
        common |= {"gradient_checkpointing": args.shape != "small", "disable_tqdm": True, "num_train_epochs": 1}
        if objective == "dpo":
            config, kind = trl.DPOConfig(beta=0.1, precompute_ref_log_probs=True, **common), trl.DPOTrainer
        else:
            from trl.experimental.cpo import CPOConfig, CPOTrainer

            config = CPOConfig(loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, beta=2.0, **common)
            kind = CPOTrainer
        trainer = kind(model, args=config, train_dataset=Dataset.from_dict(text), processing_class=tokenizer)
    clock = Clock()
    trainer.add_callback(clock)
    matrix_rate = gpu and matrix_operations_per_second()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: TRL has computed its reference by now
    before = torch.cuda.memory_allocated() / 2**30 if gpu else memory("VmRSS")
    with torch.profiler.profile() if args.profile else nullcontext() as profiler:
        trainer.train()
    if args.profile:
        order = "self_device_time_total" if gpu else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=12), file=sys.stderr)
    steps = [b - a for a, b in pairwise(clock.times)][1:]
    seconds = statistics.median(steps)
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else memory("VmHWM")
    tokens = args.pairs * 2 * (args.prompt + args.completion)
    operations = 6 * sum(p.numel() for p in model.parameters()) * tokens / seconds
    return {
        "seconds": seconds, "steps": steps, "peak_gib": peak, "grow_gib": peak - before,
        "tokens_per_second": tokens / seconds, "matrix_share": operations / matrix_rate if gpu else None,
    }  # fmt: skip


def matrix_operations_per_second() -> float:
    """Of a bfloat16 product of two 8192 x 8192 matrices on the GPU."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def memory(field: str) -> float:
    """GiB of this process, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**20
    raise KeyError(field)


if __name__ == "__main__":
    main()
