"""Time and memory of the model class `lpc` against lm-eval's own `hf`, on the same random model and requests.

    python benchmarks/harness.py --output harness.json

Log-likelihoods and greedy generation, plain and with a latent. Each measurement runs in a process of its own, so that
the peaks of memory are its own; the time is that of the requests alone, after a warm-up, best of --repeats.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

CASES = [(task, model) for task in ("loglikelihood", "generate_until") for model in ("hf", "lpc plain", "lpc latent")]


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128_256, help="Llama 3's by default")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=192, help="tokens before each continuation or generation")
    parser.add_argument("--continuation", type=int, default=16, help="tokens scored, or generated")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", help="also write the numbers here (.json)")
    parser.add_argument("--case", nargs=2, metavar=("TASK", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def make_models(args, folder):
    """Two checkpoints with the same random backbone: without and with a latent."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from lpc import latents
    from lpc.model.policy import LatentPolicy

    torch.manual_seed(0)
    backbone = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=max(1, args.hidden // 64),
            max_position_embeddings=2 * (args.context + args.continuation),
            tie_word_embeddings=False,
        )
    ).to(getattr(torch, args.dtype))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(args.vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0")
    for name, latent in (("plain", None), ("latent", latents.build(latents.parse({"codes": 64}), args.hidden, seed=0))):
        LatentPolicy(backbone, latent).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def measure(args, task, model):
    """{"seconds", "memory_mib", "checksum"} of one case; memory is the peak above what the loaded model took."""
    import numpy as np
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lpc.evaluation.harness import LatentLM

    cuda = torch.cuda.is_available()
    folder = str(Path(args.folder) / ("latent" if model == "lpc latent" else "plain"))
    options = {"batch_size": args.batch_size, "dtype": args.dtype, "device": "cuda" if cuda else "cpu"}
    lm = HFLM(folder, **options) if model == "hf" else LatentLM(folder, **options)

    rng = np.random.default_rng(0)

    def text(count):
        return " ".join(f"w{i}" for i in rng.integers(3, args.vocabulary, size=count))

    def requests(count):
        contexts = [text(args.context - int(rng.integers(0, args.context // 4))) for _ in range(count)]
        if task == "loglikelihood":
            return [
                Instance(task, {}, (context, " " + text(args.continuation)), i) for i, context in enumerate(contexts)
            ]
        until = {"until": ["never"], "max_gen_toks": args.continuation, "do_sample": False}
        return [Instance("generate_until", {}, (context, until), i) for i, context in enumerate(contexts)]

    run = lm.loglikelihood if task == "loglikelihood" else lm.generate_until
    run(requests(2), disable_tqdm=True)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    todo, seconds = requests(args.requests), []
    for _ in range(args.repeats):
        start = time.perf_counter()
        results = run(todo, disable_tqdm=True)
        seconds.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    checksum = sum(result[0] for result in results) if task == "loglikelihood" else hash(tuple(results)) % 10**6
    return {"seconds": min(seconds), "memory_mib": (after - before) / 2**20, "checksum": checksum}


def main():
    args = parser().parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    if args.case:
        print(json.dumps(measure(args, *args.case)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_models(args, Path(folder))
        rows = []
        for task, model in CASES:
            command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--case", task, model]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            rows.append({"task": task, "model": model} | json.loads(done.stdout.splitlines()[-1]))
            first = next(row for row in rows if row["task"] == task)
            rows[-1]["time_ratio"] = rows[-1]["seconds"] / first["seconds"]
            rows[-1]["memory_ratio"] = rows[-1]["memory_mib"] / first["memory_mib"]
    print(f"{'task':14} {'model':11} {'seconds':>8} {'of hf':>6} {'MiB':>8} {'of hf':>6}   checksum")
    for row in rows:
        print(
            f"{row['task']:14} {row['model']:11} {row['seconds']:8.2f} {row['time_ratio']:6.2f} "
            f"{row['memory_mib']:8.0f} {row['memory_ratio']:6.2f}   {row['checksum']:.3f}"
        )
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key not in ("case", "folder", "output")}
        Path(args.output).write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
