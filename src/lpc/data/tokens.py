"""From preference pairs to token ids and batches.

Prompt and completion are tokenised apart and their ids joined, so that the boundary is the same for both completions
and for generation, whatever a byte-pair merge would have done across it.
"""

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lpc.cli import UserError


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
        """Tokens of each pair, its prompt counted once."""
        rows = zip(self.prompts, self.chosen, self.rejected, strict=True)
        return np.array([len(p) + len(c) + len(r) for p, c, r in rows])

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


def collate(items: list[dict]) -> dict:
    """One batch of B pairs: keyword arguments of `LatentPolicy.encode`, and what the objective needs.

    The pairs stand in one row without padding, each as prompt, chosen, rejected. input_ids, positions [1, T]: a
    rejected completion's positions go on from its prompt's; lengths: (prompt, chosen, rejected) tokens of each pair;
    prompt_ends [B], ends [2B] (chosen, then rejected): where the last prompt token and the last token stand in the row;
    states, token_rows, token_columns, labels [N]: for each completion token where the token *before* it stands, which
    of the 2B completions it belongs to, its number in it, and its id; index [B]: row of the data set; chosen_tokens,
    rejected_tokens [B]: completion lengths; tokens [B]: of the pair; and, where known, reference_chosen_logps,
    reference_rejected_logps [B] float32.
    """
    lengths = np.array([[len(item[part]) for part in ("prompt", "chosen", "rejected")] for item in items])
    prompts, chosen, rejected = lengths.T
    totals = lengths.sum(1)
    starts = np.cumsum(totals) - totals
    prompt_ends, middles = starts + prompts - 1, starts + prompts + chosen
    positions = np.arange(totals.sum()) - np.repeat(starts, totals)
    positions -= np.repeat(np.stack([0 * chosen, chosen], 1), np.stack([prompts + chosen, rejected], 1).ravel())
    input_ids = np.concatenate([item[part] for item in items for part in ("prompt", "chosen", "rejected")])
    completions = np.concatenate([chosen, rejected])
    columns = np.concatenate([np.arange(n) for n in completions])
    rows = np.repeat(np.arange(2 * len(items)), completions)
    where = np.concatenate([prompt_ends + 1, middles])[rows] + columns
    batch = {
        "input_ids": input_ids[None].astype(np.int64),
        "positions": positions[None],
        "prompt_ends": prompt_ends,
        "ends": np.concatenate([middles, starts + totals]) - 1,
        # The first token of either completion follows the end of the prompt.
        "states": np.where(columns > 0, where - 1, np.tile(prompt_ends, 2)[rows]),
        "token_rows": rows,
        "token_columns": columns,
        "labels": input_ids[where].astype(np.int64),
        "index": np.array([item["index"] for item in items]),
        "chosen_tokens": chosen,
        "rejected_tokens": rejected,
        "tokens": totals,
    }
    batch = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}
    batch["lengths"] = [tuple(row) for row in lengths.tolist()]
    if "reference" in items[0]:
        reference = torch.from_numpy(np.stack([item["reference"] for item in items])).float()
        batch["reference_chosen_logps"], batch["reference_rejected_logps"] = reference[:, 0], reference[:, 1]
    return batch


MODEL_INPUTS = (
    "input_ids",
    "positions",
    "lengths",
    "prompt_ends",
    "ends",
    "states",
    "token_rows",
    "token_columns",
    "labels",
)
"""The entries of a batch that `LatentPolicy.encode` takes."""
