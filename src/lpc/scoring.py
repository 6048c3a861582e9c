"""From a file of pairs to hidden states under a policy: split, token ids, reference log-probabilities, batches.

Whatever scores pairs goes through here, so that all of it sees the same tokens in the same arithmetic.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lpc.cli import UserError
from lpc.config.models import Tokens
from lpc.data.cut import cut_warnings
from lpc.data.tokens import MODEL_INPUTS, PairTokens, collate, tokenize_batches
from lpc.files import read_batches, read_parquet
from lpc.model.policy import Encoded, LatentPolicy

log = logging.getLogger("lpc")


def load_pairs(
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    *,
    split: str | None = None,
    pair_ids: list[str] | None = None,
    reference: str | os.PathLike | None = None,
    columns: list[str] | None = None,
) -> tuple[pa.Table, PairTokens]:
    """Read and tokenise the pairs of a file: those of `split`, those of `pair_ids` in this order, or all.

    tokens: the lengths to which pairs are cut. reference: a file of reference log-probabilities to attach. columns: of
    the rows that are returned, with pair_id; None: all, which takes the memory of their texts. Returns the rows of the
    pairs that are left after tokenisation, and their tokens in the same order. Raises UserError where no pair is left.
    """
    kept: list[pa.Table] = []

    def batches() -> Iterator[pa.Table]:
        for pairs in _selected(path, split, pair_ids):
            kept.append(pairs if columns is None else pairs.select(columns))
            yield pairs

    tokenised = tokenize_batches(batches(), tokenizer, **dict(tokens))
    pairs, what = pa.concat_tables(kept), f"{split} pair" if split else "pair"
    if len(pairs) == 0:
        raise UserError(f"{path}: no {what} in this file; change `split` of this dataset")
    if len(tokenised) == 0:
        raise UserError(
            f"{path}: no {what} is left after tokenisation, since all {len(pairs)} have equal completions once they are"
            " cut; raise tokens.max_length"
        )
    for message in cut_warnings(tokenised.cut_shares(), **dict(tokens)):
        log.warning("%s: of its %ss %s", path, what, message)
    rows = pairs.take(pa.array(tokenised.rows))
    if reference is not None:
        attach_reference(tokenised, rows, reference)
    return rows, tokenised


def _selected(path: str | os.PathLike, split: str | None, pair_ids: list[str] | None) -> Iterator[pa.Table]:
    """The pairs that `load_pairs` reads; the few of `pair_ids` in one table."""
    batches = read_batches(path)
    if split is not None:
        batches = (pairs.filter(pa.compute.equal(pairs["split"], split)) for pairs in batches)
    if pair_ids is None:
        yield from batches
        return
    wanted = pa.array(pair_ids, pa.string())
    pairs = pa.concat_tables(pairs.filter(pa.compute.is_in(pairs["pair_id"], wanted)) for pairs in batches)
    yield pairs.take(pa.compute.index_in(wanted, pairs["pair_id"].combine_chunks()))


def attach_reference(tokens: PairTokens, rows: pa.Table, path: str | os.PathLike) -> None:
    """Give `tokens` the reference log-probabilities of its rows (`rows`: the table, already reduced to them) by
    pair_id.

    Stops if a pair is missing or was scored with other token counts: then the file is of other data or settings.
    """
    table = read_parquet(path)
    position = {pair_id: i for i, pair_id in enumerate(table["pair_id"].to_pylist())}
    try:
        order = [position[pair_id] for pair_id in rows["pair_id"].to_pylist()]
    except KeyError as error:
        raise UserError(
            f"{path}: no reference for pair {error}; it is of another pair set, rerun the reference"
        ) from None
    table = table.take(pa.array(order, pa.int64()))
    for side, completions in (("chosen", tokens.chosen), ("rejected", tokens.rejected)):
        if table[f"{side}_tokens"].to_pylist() != [len(c) for c in completions]:
            raise UserError(f"{path}: made with another tokeniser or other `tokens` settings; rerun the reference")
    tokens.reference = np.stack([table["chosen_logp"].to_numpy(), table["rejected_logp"].to_numpy()], -1)


def to_device(policy: LatentPolicy) -> LatentPolicy:
    """Move a policy to the GPU if there is one, in evaluation mode."""
    return policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def autocast(policy: LatentPolicy, precision: str) -> contextlib.AbstractContextManager:
    """Return the context of training's arithmetic: `precision` is float32 or bfloat16 (autocast over float32 weights).

    Without gradients, W·z alone is more exact (`LatentPolicy.greedy_logps`).
    """
    return torch.autocast(policy.device.type, torch.bfloat16, enabled=precision == "bfloat16")


def encoded_batches(
    policy: LatentPolicy, tokens: PairTokens, batch_size: int, precision: str, title: str
) -> Iterator[tuple[np.ndarray, dict, Encoded]]:
    """Yield (positions in `tokens`, batch, hidden states) over all pairs, batched by length, with progress shown."""
    batches = tokens.sorted_batches(batch_size)
    for number, positions in enumerate(tqdm(batches, desc=title, disable=not sys.stderr.isatty())):
        batch = collate([tokens[i] for i in positions])
        batch = {k: v.to(policy.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with torch.no_grad(), autocast(policy, precision):
            yield np.array(positions), batch, policy.encode(**{name: batch[name] for name in MODEL_INPUTS})
        if not sys.stderr.isatty() and (number + 1) % max(1, len(batches) // 4) == 0:
            log.info("%s: %d of %d batches", title, number + 1, len(batches))


def prompt_states(policy: LatentPolicy, tokens: PairTokens, *, batch_size: int, precision: str) -> torch.Tensor:
    """Return the states h_x of every pair, float32 [n, d], from the prompts alone."""
    states = torch.empty(len(tokens), policy.head.weight.shape[1], device=policy.device)
    order = np.argsort([-len(p) for p in tokens.prompts], kind="stable")
    for start in range(0, len(order), 2 * batch_size):
        part = order[start : start + 2 * batch_size]
        lengths = torch.tensor([len(tokens.prompts[i]) for i in part], device=policy.device)
        ids = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
        for row, i in enumerate(part):
            ids[row, : len(tokens.prompts[i])] = torch.from_numpy(tokens.prompts[i])
        with torch.no_grad(), autocast(policy, precision):
            hidden = policy.hidden(ids.to(policy.device))
        states[part] = hidden[torch.arange(len(part), device=policy.device), lengths - 1].float()
    return states
