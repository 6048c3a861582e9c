"""From preference pairs to token ids and batches.

Prompt and completion are tokenised apart and their ids joined, so that the boundary is the same for both completions
and for generation, whatever a byte-pair merge would have done across it.
"""

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lpc.cli import UserError
from lpc.files import read_parquet


def load_tokenizer(
    folder: str | os.PathLike, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with `chat_template` (Jinja text) in place of its own if given.

    Stops where there is no template or no end-of-sequence token: nothing could be trained to end.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded ({error})") from None
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: its tokenizer has no chat template; set `chat_template` of this base")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-sequence token; add one to tokenizer_config.json")
    return tokenizer


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[list[dict]]) -> list[list[int]]:
    """Token ids of chat prompts (lists of {"role", "content"}), ending where the assistant's turn begins.

    Exactly one BOS if the tokenizer uses one, whether the template writes it or not.
    """
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    # What the tokenizer itself puts before a text tells whether it uses BOS; having one defined does not (Qwen).
    if bos is not None and tokenizer("")["input_ids"][:1] == [bos]:
        ids = [row if row[:1] == [bos] else [bos, *row] for row in ids]
    return ids


def encode_completions(tokenizer: PreTrainedTokenizerBase, completions: list[str]) -> list[list[int]]:
    """Token ids of completions, each with exactly one EOS at its end."""
    eos = tokenizer.eos_token_id
    ids = tokenizer(completions, add_special_tokens=False)["input_ids"]
    return [row if row[-1:] == [eos] else [*row, eos] for row in ids]


@dataclass
class PairTokens(torch.utils.data.Dataset):
    """Tokenised pairs: int32 arrays per row, and the row's number in the table that they came from.

    `reference` [n, 2] float64: log-probabilities of the base model for chosen and rejected, or None.
    """

    rows: np.ndarray
    prompts: list[np.ndarray]
    chosen: list[np.ndarray]
    rejected: list[np.ndarray]
    dropped: int
    reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        item = {"index": int(self.rows[i])}
        item |= {"prompt": self.prompts[i], "chosen": self.chosen[i], "rejected": self.rejected[i]}
        if self.reference is not None:
            item["reference"] = self.reference[i]
        return item

    def lengths(self) -> np.ndarray:
        """Tokens of the longer of the two sequences of each pair."""
        rows = zip(self.prompts, self.chosen, self.rejected, strict=True)
        return np.array([len(p) + max(len(c), len(r)) for p, c, r in rows])

    def sorted_batches(self, batch_size: int) -> list[list[int]]:
        """Positions in batches of similar length, the longest first, so that too large a batch fails at once."""
        order = np.argsort(-self.lengths(), kind="stable")
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def tokenize_pairs(
    pairs: pa.Table, tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_prompt_length: int
) -> PairTokens:
    """Tokenise a table of pairs (columns messages, chosen, rejected).

    A prompt keeps its last `max_prompt_length` tokens: its end holds the question and the assistant's turn; BOS stays.
    A completion keeps its first `max_length` − prompt tokens, chosen and rejected alike, and loses its EOS with its
    end. Rows whose two completions have the same ids after that teach nothing and would count as ties: dropped and
    counted.
    """
    if not 0 < max_prompt_length < max_length:
        raise UserError(
            f"tokens.max_prompt_length ({max_prompt_length}): must be below tokens.max_length ({max_length}), "
            "or no token of a completion would be left"
        )
    bos = tokenizer.bos_token_id
    prompts = encode_prompts(tokenizer, pairs["messages"].to_pylist())
    chosen = encode_completions(tokenizer, pairs["chosen"].to_pylist())
    rejected = encode_completions(tokenizer, pairs["rejected"].to_pylist())
    kept = PairTokens(np.empty(0, np.int64), [], [], [], 0)
    rows = []
    for row, (prompt, good, bad) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        if len(prompt) > max_prompt_length:
            starts_with_bos = bos is not None and prompt[0] == bos
            tail = prompt[len(prompt) - max_prompt_length + starts_with_bos :]
            prompt = [bos, *tail] if starts_with_bos else tail
        room = max_length - len(prompt)
        good, bad = good[:room], bad[:room]
        if good == bad:
            kept.dropped += 1
            continue
        rows.append(row)
        kept.prompts.append(np.array(prompt, np.int32))
        kept.chosen.append(np.array(good, np.int32))
        kept.rejected.append(np.array(bad, np.int32))
    kept.rows = np.array(rows, np.int64)
    return kept


def collate(items: list[dict]) -> dict[str, Tensor]:
    """One batch of B pairs: keyword arguments of `LatentPolicy.forward`, and what the objective needs.

    input_ids [2B, T], right-padded, chosen first; prompt_ends, ends [2B]: positions of the last prompt token and of the
    last token; token_rows, token_columns, labels [N]: for each completion token its sequence, the position *before* it
    and its id; index [B]: row of the data set; chosen_tokens, rejected_tokens [B]: completion lengths; and, where
    known, reference_chosen_logps, reference_rejected_logps [B] float32.
    """
    prompts = [item["prompt"] for item in items] * 2
    completions = [item["chosen"] for item in items] + [item["rejected"] for item in items]
    lengths = np.array([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)])
    # Any id will do for padding: no real token sees it and no loss reads it, so pad may well equal EOS.
    input_ids = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        input_ids[row, : lengths[row]] = np.concatenate([prompt, completion])
    completion_lengths = np.array([len(c) for c in completions])
    prompt_ends = lengths - completion_lengths - 1
    token_rows = np.repeat(np.arange(len(prompts)), completion_lengths)
    token_columns = np.concatenate([np.arange(e, e + n) for e, n in zip(prompt_ends, completion_lengths, strict=True)])
    pairs = len(items)
    batch = {
        "input_ids": input_ids,
        "prompt_ends": prompt_ends,
        "ends": lengths - 1,
        "token_rows": token_rows,
        "token_columns": token_columns,
        "labels": input_ids[token_rows, token_columns + 1],
        "index": np.array([item["index"] for item in items]),
        "chosen_tokens": completion_lengths[:pairs],
        "rejected_tokens": completion_lengths[pairs:],
    }
    batch = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}
    if "reference" in items[0]:
        reference = torch.from_numpy(np.stack([item["reference"] for item in items])).float()
        batch["reference_chosen_logps"], batch["reference_rejected_logps"] = reference[:, 0], reference[:, 1]
    return batch


MODEL_INPUTS = ("input_ids", "prompt_ends", "ends", "token_rows", "token_columns", "labels")
"""The entries of a batch that `LatentPolicy.encode` takes."""


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
