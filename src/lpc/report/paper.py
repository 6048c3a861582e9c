"""The paper's results (arXiv 2505.04993, Tables 1 to 3), in per cent; None where no text version has the number."""

# Hub names of the paper's bases, lower case, to the paper's names for them.
BASES = {
    "mistralai/mistral-7b-v0.1": "Mistral-7B",
    "meta-llama/meta-llama-3-8b": "Llama3-8B",
    "meta-llama/meta-llama-3-8b-instruct": "Llama3-8B-Instruct",
}
# lm-eval's names of the tasks to the paper's columns.
TASKS = {"arc_challenge": "ARC-c", "arc_easy": "ARC-e", "gsm8k": "GSM8K", "truthfulqa_mc2": "TruthfulQA"}

# Table 1: base → method → scores in the order of TASKS, then the average. A method is (objective, with LPC).
BENCHMARKS = {
    "Mistral-7B": {
        ("base", False): (49.74, 80.72, 37.30, 41.13, 52.22),
        ("dpo", False): (55.38, 83.33, 40.11, 48.10, 56.73),
        ("dpo", True): (None, None, None, None, 57.81),
        ("ipo", False): (58.19, 84.76, 30.48, 48.96, 55.60),
        ("ipo", True): (None, None, None, None, 58.61),
        ("simpo", False): (58.11, 84.68, 31.01, 49.33, 55.78),
        ("simpo", True): (None, None, None, None, 55.97),
    },
    "Llama3-8B": {
        ("base", False): (50.43, 80.05, 49.51, 43.82, 55.95),
        ("dpo", False): (54.01, 81.27, 54.36, 43.70, 58.33),
        ("dpo", True): (None, None, None, None, 58.92),
        ("ipo", False): (51.37, 80.89, 50.42, 44.19, 56.72),
        ("ipo", True): (None, None, None, None, 57.18),
        ("simpo", False): (54.95, 81.90, 46.02, 39.53, 55.60),
        ("simpo", True): (None, None, None, None, 58.54),
    },
    "Llama3-8B-Instruct": {
        ("base", False): (52.90, 81.52, 75.66, 46.88, 64.24),
        ("dpo", False): (54.35, 82.24, 77.03, 47.00, 65.16),
        ("dpo", True): (None, None, None, None, 65.90),
        ("ipo", False): (53.84, 81.57, 73.69, 47.25, 64.09),
        ("ipo", True): (None, None, None, None, 65.06),
        ("simpo", False): (55.97, 83.50, 66.79, 56.79, 65.77),
        ("simpo", True): (None, None, None, None, 67.48),
    },
}
# Table 2: base → objective → preference accuracy without and with LPC.
PREFERENCE = {
    "Llama3-8B": {"dpo": (69.3, 70.8), "ipo": (68.0, 70.6), "simpo": (69.2, 71.8)},
    "Llama3-8B-Instruct": {"dpo": (70.1, 69.9), "ipo": (68.3, 70.3), "simpo": (74.1, 73.2)},
    "Mistral-7B": {"dpo": (71.9, 73.4), "ipo": (74.2, 74.7), "simpo": (73.5, 75.6)},
}
# Table 3: base → objective → (length-controlled win rate, win rate) without and with LPC.
ALPACAEVAL = {
    "Llama3-8B-Instruct": {
        "dpo": ((15.03, 13.55), (15.31, 13.57)),
        "ipo": ((14.44, 12.96), (15.04, 13.50)),
        "simpo": ((12.77, 8.12), (15.56, 9.63)),
    }
}


def base_name(base: dict) -> str | None:
    """Return the paper's name of a base of the configuration; None for any other base."""
    return BASES.get((base.get("model") or "").lower())
