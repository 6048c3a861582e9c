"""Memory and time of a training by formula: which model fits on how many GPUs (docs/planning.md).

    python benchmarks/planning.py       # writes the table of docs/planning.md anew

`tests/unit/test_planning.py` holds the table against this file, and the formulas against PyTorch's fake tensors. All
sizes are in bytes; GB are 10^9 bytes. P is a number of parameters, T the tokens that a GPU takes at once.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "planning.md"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int = 128_256
    tied: bool = False
    head: int = 128

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        attention = 2 * self.hidden * self.head * (self.heads + self.key_value_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside the decoder layers."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.root

    @property
    def linear(self) -> int:
        """Parameters of the decoder's linear layers."""
        return self.layers * (self.layer - 2 * self.hidden)

    def latent(self, codes: int = 64) -> int:
        """Parameters of LPC's latent: prior and posterior networks as wide as the model, and the codebook."""
        return 3 * self.hidden**2 + 2 * self.hidden + 2 * (self.hidden + 1) * codes + codes * self.hidden


SHAPES = (
    Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, tied=True, head=64),
    Shape("Llama-3-8B", 32, 4096, 14336, 32, 8),
    Shape("Llama-3-70B", 80, 8192, 28672, 64, 8),
)

GPUS = (1, 2, 4, 8, 16)
PER_NODE = 8
CARDS = {40: 312e12, 80: 989e12, 141: 989e12}
"""GB of a card, and its rate of dense bfloat16 products in operations a second: A100, H100, H200."""
MICRO = (8, 4, 2, 1)
"""Values of training.micro_batch_size."""
PROMPT, COMPLETION = 512, 512
"""Tokens of the longest prompt and completions under `tokens: {max_length: 1024, max_prompt_length: 512}`."""
CHUNK = 2**25
"""Logits that exist at once (lpc.model.logps.CHUNK_LOGITS)."""
CUDA, WASTE = 1.5e9, 1.05
"""What CUDA and NCCL take of a card, and the factor for fragments that PyTorch's allocator cannot use."""
PROCESS = 3e9
"""Main memory of a process without weights: Python, PyTorch with CUDA, and the tokenised pairs."""

PAIRS, MEAN_PROMPT, MEAN_COMPLETION = 60_000, 200, 300
"""UltraFeedback's size: training pairs, and mean tokens of a prompt and of a completion (assumed)."""
UTILISATION = 0.4
"""Share of the card's rate that a training reaches (assumed)."""


EIGHT_BITS = 2 * (1 + 4 / 256)
"""Bytes of two moments in 8 bits, with a float32 scale for each block of 256 numbers."""
OPTIMIZERS = {
    "adamw": ((4, 4, 8), (4, 4, 8)),
    "adamw_split": ((2, 4, 8 + 2), (4, 4, 8)),
    "adamw_8bit": ((4, 4, EIGHT_BITS), (4, 4, EIGHT_BITS)),
    "adamw_8bit_bfloat16": ((2, 4, EIGHT_BITS), (4, 4, EIGHT_BITS)),
}
"""By `training.optimizer`: bytes of weight, gradient and optimizer state, of each parameter of the decoder's linear
layers and of each other one."""


def states(others: int, linear: int = 0, optimizer: str = "adamw") -> dict[str, int]:
    """Return the bytes that stay from step to step, whatever `training.precision`.

    linear: parameters of the decoder's linear layers; others: all others. For AdamW they need not be told apart.
    """
    parts = zip(("weights", "gradients", "optimizer"), *OPTIMIZERS[optimizer], strict=True)
    return {name: round(low * linear + high * others) for name, low, high in parts}


def layer_activations(shape: Shape, prompts: int, completions: int, *, repeated: bool = True) -> int:
    """Return the bytes that a decoder layer saves for its backward pass under bfloat16 autocast, beside its input.

    prompts, completions: tokens of all pairs at once. repeated: keys and values are copied for each query head, as
    `lpc.model.packing` does on a GPU.
    """
    tokens, queries = prompts + completions, shape.head * shape.heads
    keys = queries if repeated else shape.head * shape.key_value_heads
    norms = 4 * 3 * shape.hidden  # in float32: the normalised states of both, and the second one's input
    products = 2 * 5 * shape.hidden  # autocast's copy of the input for query, key, value, gate and up each
    mlp = 2 * 4 * shape.intermediate  # gate, its SiLU, up, and their product
    # Queries, outputs, and the input of the output product. The prompt's keys and values stand once more before the
    # rejected completions; values of all tokens are kept beside them.
    attention = 2 * (3 * tokens * queries + keys * (2 * tokens + 2 * prompts + completions // 2))
    return tokens * (norms + products + mlp) + attention


def saved(shape: Shape, prompts: int, completions: int) -> int:
    """Return the bytes saved by the forward pass with a checkpoint for each layer: the residual stream in float32."""
    tokens = prompts + completions
    return 4 * shape.hidden * (shape.layers * tokens + 2 * tokens + completions)  # layers, last norm, LM head


def activations(shape: Shape, micro: int) -> int:
    """Return the bytes of activations and their gradients at the peak of the backward pass.

    It is in the LM head, beside a chunk of logits, or in the last decoder layer, whose activations are made anew.
    """
    prompts, completions = micro * PROMPT, micro * 2 * COMPLETION
    tokens = prompts + completions
    head = saved(shape, prompts, completions) + 4 * completions * shape.hidden + (4 + 2 + 2) * CHUNK
    gradients = 2 * 2 * tokens * shape.intermediate + 2 * 4 * tokens * shape.hidden
    layer = 4 * shape.hidden * shape.layers * tokens + layer_activations(shape, prompts, completions) + gradients
    return max(head, layer)


def gathered(shape: Shape, gpus: int, optimizer: str = "adamw") -> int:
    """Return the bytes of whole weights and gradients that a GPU holds for a while.

    Sharded: in bfloat16 the root's weights and the head's gradient through the backward pass, and the weights of two
    layers and gradient of one; in float32 the gradients of two layers that are being reduced. Or, before and after
    the layers, the head's gradient in float32, or those of the root that are being reduced. On one GPU: autocast's
    copies, of the head alone where the others are in bfloat16 already, and the head's gradient.
    """
    if gpus == 1:
        low = OPTIMIZERS[optimizer][0][0] == 2
        return 2 * (shape.embedding if low else shape.parameters) + 4 * shape.embedding
    layers = 2 * shape.embedding + (2 * 2 + 2 + 4 * 2) * shape.layer
    head = (2 + 4) * shape.embedding
    end = (2 + 4) * shape.root
    return 2 * shape.root + max(layers, head, end)


def gpu(shape: Shape, gpus: int, micro: int, optimizer: str = "adamw") -> float:
    """Return the bytes of GPU memory that a training with LPC's latent needs on each GPU."""
    others = shape.parameters + shape.latent() - shape.linear
    own = sum(states(others, shape.linear, optimizer).values()) / gpus
    return CUDA + WASTE * (own + gathered(shape, gpus, optimizer) + activations(shape, micro))


def host(shape: Shape, gpus: int) -> float:
    """Return the bytes of main memory on the first node: its processes, and at the end base and result in bfloat16."""
    return min(gpus, PER_NODE) * PROCESS + 2 * 2 * shape.parameters


def operations(shape: Shape) -> float:
    """Return the operations of one epoch: 8 for each weight and token, with the second forward pass of checkpoints.

    The head sees completions alone. Attention's own products are left out: 1 % at these lengths.
    """
    completions = 2 * MEAN_COMPLETION
    return PAIRS * 8 * (shape.layers * shape.layer * (MEAN_PROMPT + completions) + shape.embedding * completions)


def hours(shape: Shape, gpus: int, rate: float) -> float:
    """Return the hours of one epoch on GPUs of `rate` operations a second."""
    return operations(shape) / (gpus * rate * UTILISATION) / 3600


def table() -> str:
    """Return the table of docs/planning.md, as Markdown."""
    rows = ["| model | GPUs | GB a GPU, micro 1 | micro 4 | 40 GB | 80 GB | 141 GB | host GB | h, A100 | h, H100 |"]
    rows.append("|---|---|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for gpus in GPUS:
            largest = [next((m for m in MICRO if gpu(shape, gpus, m) <= size * 1e9), None) for size in CARDS]
            cells = [shape.name, str(gpus), *(f"{gpu(shape, gpus, micro) / 1e9:.0f}" for micro in (1, 4))]
            cells += ["no" if micro is None else f"micro {micro}" for micro in largest]
            cells += [f"{host(shape, gpus) / 1e9:.0f}"]
            times = [hours(shape, gpus, rate) for rate in (CARDS[40], CARDS[80])]
            # No time where no card of the kind has room: 80 GB A100s exist, hence the larger card for both.
            cells += ["–" if largest[2] is None else f"{time:.2g}" for time in times]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def one_card() -> str:
    """Return the table of optimizers for one GPU, as Markdown."""
    rows = ["| model | optimizer | bytes a parameter | GB, micro 1 | micro 4 | 40 GB | 80 GB | 141 GB |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES[:2]:
        for name, (low, _) in OPTIMIZERS.items():
            sizes = [gpu(shape, 1, micro, name) for micro in (1, 4)]
            cells = [shape.name, f"`{name}`", f"{sum(low) + 2 * (low[0] == 4):.0f}"]
            cells += [f"{size / 1e9:.0f}" for size in sizes]
            largest = [next((m for m in MICRO if gpu(shape, 1, m, name) <= size * 1e9), None) for size in CARDS]
            cells += ["no" if micro is None else f"micro {micro}" for micro in largest]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """Return `text`, docs/planning.md, with its tables made anew between their comments."""
    for name, made in (("plan", table()), ("one card", one_card())):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda found: found[1] + made + found[2], text, flags=re.S)  # noqa: B023
    return text


if __name__ == "__main__":
    DOCS.write_text(with_table(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(table() + "\n" + one_card())
