"""Step time and peak memory of training against TRL's trainers, on the same model and pairs.

    python benchmarks/training.py --vocabulary 4096 --means --rounds 3 --output training.json
    python benchmarks/training.py --model FOLDER --lengths data/alpacaeval_preferences.jsonl.gz --pairs 4 --rounds 3 \
        --longest 192 --cases "trl dpo" "lpc dpo" "lpc dpo latent" "lpc dpo exact8" "lpc dpo exact64"
    python benchmarks/training.py --shape llama-8b --vocabulary 128256 --pairs 1 --lengths ultrafeedback.jsonl \
        --optimizer adamw_8bit --checkpointing --cases "trl dpo" "lpc dpo" "lpc dpo latent"     # a GPU of 141 GB

Ours goes through `lpc.training.train.train`, as the workflow's step does; TRL through its own trainer. Both have the
same token ids, cached reference log-probabilities for DPO, optimizer (`--optimizer`), gradient checkpointing
(`--checkpointing`) and precision: float32 on a CPU; on a GPU float32 weights with bfloat16 autocast. TRL runs as a user
of it would run it, ours with the environment variables that the workflow gives its jobs (`lpc.environment`); the cases
of `MEANS` exchange that, too. Token ids are drawn at random. Their numbers are `--prompt` and `--completion`, or those
of the pairs of a file (`--lengths`), by the model's tokenizer or one that is trained on these texts.

Each case runs in a process of its own, so that peaks of memory are its own: `grow` is the peak above the memory in use
right before the first step (weights, data and libraries are the same on both sides), `peak` is the whole process, or
all that torch has on the GPU. Seconds are the mean over steps after two for warming up, since steps of real lengths
differ, and then the median over rounds. The results are written after each case. A case that fails is named and left
out.

On a GPU, `matrix_share` is the share of its matrix rate (model FLOPs utilisation): 6 operations for each weight of the
decoder layers and each token of prompt, chosen and rejected (the prompt once, for TRL too), 6 for each weight of the
head and each token of the completions, without attention and recomputation; over the rate of a product of two 8192 x
8192 matrices in bfloat16, measured in the same process.

Without a network, carry these wheels to a machine: transformers 5.23.0, trl 1.16.0, datasets 5.2.0, dill 0.4.1,
multiprocess 0.70.19, and for `adamw_8bit` torchao.
"""

import argparse
import importlib.metadata
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

OURS = ["lpc dpo", "lpc dpo latent", "lpc simpo", "lpc simpo latent", "lpc dpo exact8", "lpc dpo exact64"]
CASES = ["trl dpo", "trl simpo", *OURS]
DEFAULT = ["trl dpo", "lpc dpo", "lpc dpo latent", "trl simpo", "lpc simpo", "lpc simpo latent"]
# One means taken away or added: our jobs' environment variables for TRL and not for us, logits of all tokens at once,
# gated MLPs that keep all, bfloat16 autocast, with it adapters of the last third of the layers, torch.compile of the
# decoder layers, four times as many pairs.
MEANS = ["trl dpo variables", "lpc dpo no-variables", "lpc dpo full-logits", "lpc dpo kept-gates"]
MEANS += ["lpc dpo bfloat16", "lpc dpo adapters", "lpc dpo compile", "lpc dpo fourfold"]
SHAPES = {
    "tiny": {"hidden": 32, "layers": 2, "intermediate": 64, "heads": 4, "key_value_heads": 2},
    "small": {"hidden": 256, "layers": 4, "intermediate": 1024, "heads": 8, "key_value_heads": 4},
    "llama-8b": {"hidden": 4096, "layers": 32, "intermediate": 14336, "heads": 32, "key_value_heads": 8},
}
LATENTS = {
    "latent": {},
    "exact8": {"kind": "exact", "codes": 8},
    "exact64": {"kind": "exact", "codes": 64},
}
TRL_OPTIMIZERS = {"adamw": {}, "adamw_8bit": {"optim": "adamw_torch_8bit"}}
RATIOS = [
    ("DPO, step time and memory", "lpc dpo", "trl dpo"),
    ("DPO with the latent, against TRL's plain DPO", "lpc dpo latent", "trl dpo"),
    ("SimPO", "lpc simpo", "trl simpo"),
    ("DPO, our environment variables for TRL, too", "lpc dpo", "trl dpo variables"),
    ("our environment variables against none", "lpc dpo", "lpc dpo no-variables"),
    ("latent against our own plain DPO", "lpc dpo latent", "lpc dpo"),
    ("latent against our own plain SimPO", "lpc simpo latent", "lpc simpo"),
    ("exact, 8 codes, against our own plain DPO", "lpc dpo exact8", "lpc dpo"),
    ("exact, 64 codes, against our own plain DPO", "lpc dpo exact64", "lpc dpo"),
    ("chunked against full logits", "lpc dpo", "lpc dpo full-logits"),
    ("gated MLPs that compute anew against those that keep all", "lpc dpo", "lpc dpo kept-gates"),
    ("bfloat16 autocast against float32", "lpc dpo bfloat16", "lpc dpo"),
    ("adapters of the last third of the layers, in bfloat16", "lpc dpo adapters", "lpc dpo bfloat16"),
    ("torch.compile against none", "lpc dpo compile", "lpc dpo"),
    ("a step among four times as many pairs", "lpc dpo fourfold", "lpc dpo"),
]


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint (default: a random Llama of --shape)")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[128_256], help="of the random Llama")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per step")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--completion", type=int, default=128, help="tokens")
    parser.add_argument("--lengths", type=Path, help="data whose pairs have the lengths to take (.jsonl or .jsonl.gz)")
    parser.add_argument("--longest", type=int, default=1024, help="tokens of prompt and completion, at most")
    parser.add_argument("--optimizer", choices=TRL_OPTIMIZERS, default="adamw")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, on both sides")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--rounds", type=int, default=1, help="of all cases, one after the other: evens out a busy machine"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES + MEANS, default=DEFAULT)
    parser.add_argument("--means", action="store_true", help="also each means by itself, in the first round alone")
    parser.add_argument("--profile", action="store_true", help="print what each case spends its time on; slows it down")
    parser.add_argument("--output", help="also write the numbers here (.json)")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "PAIRS"), help=argparse.SUPPRESS)
    return parser


def main():
    args = parser().parse_args()
    if args.run:
        case, file = args.run
        print(json.dumps(run(args, case, json.loads(Path(file).read_text()))))
        return
    common = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true"}
    runs: dict[str, list] = {}
    schedule = args.cases + (MEANS if args.means else []) + args.cases * (args.rounds - 1)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.json"
        for vocabulary in args.vocabulary:
            file.write_text(json.dumps(lengths_of_pairs(args, vocabulary)))
            for case in schedule:
                measure(args, case, vocabulary, file, common, runs)
                if args.output:
                    record = {"arguments": {name: str(value) for name, value in vars(args).items()}, "results": runs}
                    record |= {"versions": versions, "machine": platform.platform()}
                    Path(args.output).write_text(json.dumps(record, indent=2) + "\n")
    median = lambda case, key: statistics.median(result[key] for result in runs[case])  # noqa: E731
    print("\n| vocabulary | what | time | memory above the start | peak of the process |\n|---|---|---|---|---|")
    for vocabulary, (title, ours, theirs) in product(args.vocabulary, RATIOS):
        label = label_of(args, vocabulary)
        a, b = f"{label} {ours}", f"{label} {theirs}"
        if a in runs and b in runs:
            ratios = " | ".join(f"{median(a, key) / median(b, key):.2f}" for key in ("seconds", "grow_gib", "peak_gib"))
            print(f"| {label} | {title} | {ratios} |")


def label_of(args, vocabulary: int) -> str:
    """Return the name of the model that is trained in lines and keys of the results."""
    return args.model.name if args.model else str(vocabulary)


def lengths_of_pairs(args, vocabulary: int) -> list[tuple[int, int, int]]:
    """Return (prompt, chosen, rejected) tokens of four times as many pairs as the steps take."""
    count = 4 * args.pairs * (args.steps + 2)
    if args.lengths is None:
        return [(args.prompt, args.completion, args.completion)] * count
    from packing import texts_of_pairs, token_lengths  # beside this file
    from transformers import AutoTokenizer

    from lpc.model.scratch import train_tokenizer

    texts = texts_of_pairs(args.lengths, count)
    if args.model:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    else:
        tokenizer = train_tokenizer([text for row in texts for text in row], vocabulary)
    cut = []
    for prompt, *completions in token_lengths(texts, tokenizer):
        prompt = min(prompt, args.longest // 2)
        cut.append((prompt, *(min(n, args.longest - prompt) for n in completions)))
    return (cut * (count // len(cut) + 1))[:count]  # a small file's pairs come again


def measure(args, case: str, vocabulary: int, file: Path, common: dict, runs: dict[str, list]) -> None:
    """Run a case in a process of its own, add its result to `runs`, and print it."""
    command = [sys.executable, __file__, "--run", case, file, "--vocabulary", str(vocabulary), "--shape", args.shape]
    for name in ("pairs", "steps", "threads", "optimizer", "longest"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--model", args.model] if args.model else []
    command += ["--profile"] * args.profile + ["--checkpointing"] * args.checkpointing
    # Ours have them and TRL has not, but for the case of either whose name ends so.
    has_variables = case.startswith("lpc") != case.endswith("variables")
    environment, label = common | (VARIABLES if has_variables else {}), label_of(args, vocabulary)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{label:>7} {case:<20} failed with exit code {done.returncode}; its error stands above", flush=True)
        return
    result = json.loads(done.stdout.splitlines()[-1])
    runs.setdefault(f"{label} {case}", []).append(result)
    rate = f"  {result['matrix_share']:.0%} of the matrix rate" if result["matrix_share"] else ""
    print(
        f"{label:>7} {case:<20} {result['seconds']:7.3f} s  {result['tokens_per_second']:8.0f} tokens/s  "
        f"grow {result['grow_gib']:6.3f} GiB  peak {result['peak_gib']:6.3f} GiB{rate}",
        flush=True,
    )


def run(args, case: str, lengths: list[list[int]]) -> dict:
    import numpy as np
    import torch
    import transformers.trainer
    from transformers import TrainerCallback

    torch.set_num_threads(args.threads)
    library, objective, *option = case.split()
    option, gpu = "".join(option), torch.cuda.is_available()
    model = make_model(args, "cuda" if gpu else "cpu")
    count = args.pairs * (args.steps + 2) * (4 if option == "fourfold" else 1)
    lengths, rng = lengths[:count], np.random.default_rng(0)
    ids = [[rng.integers(2, model.config.vocab_size, n).astype(np.int32) for n in row] for row in lengths]
    folder = Path(tempfile.mkdtemp())

    class Clock(TrainerCallback):
        """Times of steps, and memory from right before the first one to the end of the last one."""

        def __init__(self):
            self.times, self.before, self.peak = [], 0.0, 0.0

        def on_step_begin(self, *_, **__):
            if not self.times:
                if gpu:
                    torch.cuda.reset_peak_memory_stats()
                else:
                    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
                self.before = torch.cuda.memory_allocated() / 2**30 if gpu else memory("VmRSS")
                self.times.append(time.perf_counter())

        def on_step_end(self, _, state, control, **__):
            if gpu:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            self.peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else memory("VmHWM")
            control.should_training_stop |= state.global_step == args.steps + 2

    clock = Clock()
    transformers.trainer.DEFAULT_CALLBACKS.append(clock)  # both trainers are transformers' own
    prepare = prepare_ours if library == "lpc" else prepare_trl
    train = prepare(args, model, ids, objective, option, folder, gpu)
    matrix_rate = gpu and matrix_operations_per_second()
    with torch.profiler.profile() if args.profile else nullcontext() as profiler:
        train()
    if args.profile:
        order = "self_device_time_total" if gpu else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=12), file=sys.stderr)
    steps = [b - a for a, b in pairwise(clock.times)][2:]
    seconds, trained = statistics.mean(steps), np.array(lengths[: args.pairs * (args.steps + 2)])
    per_step = trained.mean(0) * args.pairs
    head = model.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    operations = 6 * (layers * per_step.sum() + head * per_step[1:].sum())
    return {
        "seconds": seconds, "steps": steps, "peak_gib": clock.peak, "grow_gib": clock.peak - clock.before,
        "tokens_per_second": (per_step.sum() + per_step[0]) / seconds,
        "matrix_share": operations / seconds / matrix_rate if gpu else None,
    }  # fmt: skip


def make_model(args, device: str):
    """Return the checkpoint, or a random Llama, with float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if args.model:
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device)
    shape, (vocabulary,) = SHAPES[args.shape], args.vocabulary
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
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=torch.float32)


def prepare_ours(args, model, ids, objective: str, option: str, folder: Path, gpu: bool):
    """Return a function that trains with `lpc.training.train.train`."""
    import numpy as np

    from lpc import latents, objectives
    from lpc.config.models import Lora, Training
    from lpc.data.tokens import PairTokens
    from lpc.model.policy import LatentPolicy
    from lpc.reference import reference_logps
    from lpc.training import activations
    from lpc.training.adapters import add_adapters
    from lpc.training.train import train

    count = len(ids)
    pairs = PairTokens(np.arange(count), *([row[side] for row in ids] for side in range(3)), 0)
    precision = "bfloat16" if gpu or option in ("bfloat16", "adapters") else "float32"
    policy = LatentPolicy(model)
    pairs.reference, _ = reference_logps(
        policy.eval(), pairs, np.zeros(count, bool), batch_size=args.pairs, precision=precision
    )
    if option == "full-logits":
        policy.token_logps = lambda hidden, labels, z: (
            policy.head(hidden).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
        )
    if option == "kept-gates":
        activations.recompute_gates = lambda backbone: 0
    if option == "compile":
        for layer in model.model.layers:
            layer.compile()
    if option == "adapters":
        add_adapters(policy, Lora(last_layers=model.config.num_hidden_layers // 3 or 1), seed=0)
    if option in LATENTS:
        policy.latent = latents.build(latents.parse(LATENTS[option]), model.config.hidden_size, 0)
        policy.latent.rescale(policy.logit_unit())
    training = Training(
        batch_size=args.pairs, micro_batch_size=args.pairs, learning_rate=1e-5, precision=precision,
        gradient_checkpointing=args.checkpointing, logging_steps=1000, save_minutes=1e6, optimizer=args.optimizer,
    )  # fmt: skip
    return lambda: train(
        policy.train(), pairs, objective=objectives.parse({"name": objective}), training=training, seed=0,
        checkpoints=folder / "checkpoints", log_file=folder / "train.jsonl",
    )  # fmt: skip


def prepare_trl(args, model, ids, objective: str, option: str, folder: Path, gpu: bool):
    """Return a function that trains with TRL, on words of which each is one token."""
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size = model.config.vocab_size
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, size)}, "w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    # TRL adds the end of the sequence itself, so a completion has one word less than tokens.
    text = {
        side: [" " + " ".join(f"w{i}" for i in row[place][: None if side == "prompt" else -1]) for row in ids]
        for place, side in enumerate(("prompt", "chosen", "rejected"))
    }
    common = {"output_dir": str(folder), "per_device_train_batch_size": args.pairs, "report_to": [], "max_length": 4096}
    common |= {"use_cpu": not gpu, "bf16": gpu, "save_strategy": "no", "logging_steps": 1000, "learning_rate": 1e-5}
    common |= {"gradient_checkpointing": args.checkpointing, "disable_tqdm": True, "num_train_epochs": 1}
    common |= TRL_OPTIMIZERS[args.optimizer]
    if objective == "dpo":
        config, kind = trl.DPOConfig(beta=0.1, precompute_ref_log_probs=True, **common), trl.DPOTrainer
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        config = CPOConfig(loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, beta=2.0, **common)
        kind = CPOTrainer
    trainer = kind(model, args=config, train_dataset=Dataset.from_dict(text), processing_class=tokenizer)
    # Of SimPO, each completion's sequence has the prompt, too.
    prompts, *names = (
        (1, "prompt_ids", "chosen_ids", "rejected_ids")
        if objective == "dpo"
        else (2, "chosen_input_ids", "rejected_input_ids")
    )
    found = sum(len(row[name]) for row in trainer.train_dataset for name in names)
    # A random prompt and completion may share tokens where chosen and rejected begin alike: then the prompt grows.
    if found != (expected := sum(prompts * len(row[0]) + len(row[1]) + len(row[2]) for row in ids)):
        raise SystemExit(f"TRL trains on {found} tokens, ours on {expected}")
    return trainer.train


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
