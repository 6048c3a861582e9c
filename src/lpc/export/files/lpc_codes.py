"""Codes of Latent Preference Coding as biases of the logits: W(h + z) = Wh + Wz. For serving programs."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

CODES = "codes.safetensors"


def read_table(device: torch.device) -> Tensor:
    """Return the biases of the K codes, [K, vocabulary] float32, from the file beside this one."""
    return load_file(Path(__file__).with_name(CODES), device=str(device))["table"]


def weights(extra_args: dict | None, codes: int) -> list[float]:
    """Return the weights of the K codes in z that a request asks for, with `lpc_code` or `lpc_weights`.

    Raises ValueError where it asks for none: the model was not trained to answer without z.
    """
    wanted = {name: value for name, value in (extra_args or {}).items() if name in ("lpc_code", "lpc_weights")}
    if len(wanted) != 1:
        raise ValueError("a request needs one of lpc_code and lpc_weights in its extra_args (vllm_xargs over HTTP)")
    if "lpc_weights" in wanted:
        values = wanted["lpc_weights"]
        if len(values) != codes:
            raise ValueError(f"lpc_weights: has {len(values)} numbers; it must have one for each of the {codes} codes")
        return [float(value) for value in values]
    code = wanted["lpc_code"]
    if not isinstance(code, int) or not 0 <= code < codes:
        raise ValueError(f"lpc_code: {code!r} must be a whole number from 0 to {codes - 1}")
    return [float(k == code) for k in range(codes)]


def codes() -> int:
    """Return K."""
    from safetensors import safe_open

    with safe_open(Path(__file__).with_name(CODES), "pt") as file:
        return file.get_slice("table").get_shape()[0]


def check_vocabulary(table: Tensor, logits: Tensor) -> None:
    """Raise ValueError where the table is of another model than the logits."""
    if table.shape[1] != logits.shape[-1]:
        raise ValueError(
            f"{CODES}: of a vocabulary of {table.shape[1]}, but the served model has {logits.shape[-1]}; serve the run "
            "that it was exported from"
        )
