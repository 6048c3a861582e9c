"""From preference pairs to token ids and batches.

A pair is rendered as a conversation by the model's own chat template. The prompt is the text that the template renders
for generation; the completion is the rest of the conversation, up to the token that ends the assistant's turn. They are
tokenised apart and their ids joined. So no byte-pair merge crosses the boundary, and it is the same for both
completions and for generation.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lpc.cli import UserError
from lpc.files import BATCH, atomic

# What the end of a turn is found with; short words, so that no template shortens or wraps them.
PROBE = [{"role": "user", "content": "Hello"}]
PROBE_COMPLETION = "world"


def load_tokenizer(
    folder: str | os.PathLike,
    *,
    chat_template: str | None = None,
    chat_template_kwargs: dict | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, with its chat settings (see `set_chat_template`).

    Raises UserError where there is no template or no end-of-sequence token: nothing could be trained to end.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded ({error})") from None
    set_chat_template(tokenizer, chat_template, chat_template_kwargs)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: its tokenizer has no chat template; set `chat_template` of this base")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-sequence token; add one to tokenizer_config.json")
    return tokenizer


def set_chat_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, kwargs: dict | None = None
) -> None:
    """Give a tokenizer `chat_template` (Jinja text) in place of its own, and `kwargs` as variables of the template.

    The variables, such as {"enable_thinking": False}, become `set` statements at the start of the template. So they are
    saved with the tokenizer, and whoever loads it later renders the same text. Giving them again changes nothing.
    """
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not kwargs or tokenizer.chat_template is None:
        return
    if wrong := [name for name in kwargs if not name.isidentifier()]:
        raise UserError(f"chat_template_kwargs: {wrong[0]!r} must be the name of a variable of the template")
    # The line break after a statement is not rendered (trim_blocks), and leaves the template at the start of a line.
    statements = "".join(f"{{% set {name} = {value!a} %}}\n" for name, value in sorted(kwargs.items()))
    template = tokenizer.get_chat_template()
    if not template.startswith(statements):
        tokenizer.chat_template = statements + template


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], completion: str | None = None) -> str:
    """Render a prompt (list of {"role", "content"}) for generation; with `completion`, the text that the template
    writes after it for the assistant's turn.

    Raises UserError where the template fails, leaves out a system turn, or renders a conversation that does not begin
    with the prompt: the model would be trained on other prompts than it is asked with.
    """
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if completion is None:
            return _with_system(prompt, messages)
        turns = [*messages, {"role": "assistant", "content": completion}]
        conversation = tokenizer.apply_chat_template(turns, tokenize=False)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"the chat template fails ({error}); correct `chat_template` of this base or the data"
        ) from None
    if not conversation.startswith(prompt):
        same = next((i for i, (a, b) in enumerate(zip(prompt, conversation, strict=False)) if a != b), 0)
        raise UserError(
            f"the chat template renders a prompt that the conversation does not begin with ({prompt[same:][:40]!r} "
            f"where the conversation has {conversation[same:][:40]!r}); correct `chat_template` of this base, or set "
            "`chat_template_kwargs`"
        )
    return conversation[len(prompt) :]


def _with_system(prompt: str, messages: list[dict]) -> str:
    for message in messages:
        if message["role"] == "system" and message["content"].strip() not in prompt:
            raise UserError("the chat template leaves out the system turn; correct `chat_template` of this base")
    return prompt


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """Return the id of the token that ends the assistant's turn, and the text that the template writes after a
    completion.

    The token is the first added token of that text; EOS where the template writes none.
    """
    rest = render(tokenizer, PROBE, PROBE_COMPLETION)
    _, found, tail = rest.rpartition(PROBE_COMPLETION)
    if not found:
        raise UserError("the chat template leaves out the assistant's turn; correct `chat_template` of this base")
    added = tokenizer.added_tokens_decoder
    ends = [token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in added]
    return (ends[0] if ends else tokenizer.eos_token_id), tail


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template takes a system turn. Raises UserError where it cannot be used at all: it fails,
    renders nothing, or leaves out the question or the answer."""
    questions = [[{"role": "user", "content": text}] for text in ("Hello", "What colour is the sky?")]
    first, second = (render(tokenizer, question) for question in questions)
    if not first or not second:
        raise UserError("the chat template renders nothing; correct `chat_template` of this base")
    if first == second:
        raise UserError("the chat template leaves out the user's turn; correct `chat_template` of this base")
    turn_end(tokenizer)
    system = [{"role": "system", "content": "Be brief."}, *questions[0]]
    try:
        render(tokenizer, system)
        render(tokenizer, system, "world")
    except UserError:
        return False
    return True


def stop_tokens(tokenizer: PreTrainedTokenizerBase, configured: int | list[int] | None) -> int | list[int]:
    """Return the ids that end generation: those that the model is configured with, EOS, and the end of a turn.

    One id stays an int, as transformers writes it.
    """
    configured = [configured] if isinstance(configured, int) else configured or []
    ids = sorted({*configured, tokenizer.eos_token_id, turn_end(tokenizer)[0]})
    return ids[0] if len(ids) == 1 else ids


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[list[dict]], first: int = 0
) -> list[list[int]]:
    """Return token ids of chat prompts (lists of {"role", "content"}), ending where the assistant's turn begins.

    Exactly one BOS if the tokenizer uses one, whether the template writes it or not. `first` is the number of the first
    row, for messages.
    """
    texts = [_numbered(number, tokenizer, prompt) for number, prompt in enumerate(prompts, first)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    bos = tokenizer.bos_token_id
    # A tokenizer uses BOS if it puts BOS before a text. A defined BOS alone does not show that (Qwen).
    if bos is not None and tokenizer("")["input_ids"][:1] == [bos]:
        ids = [row if row[:1] == [bos] else [bos, *row] for row in ids]
    return ids


def cut_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], ids: list[int], room: int, number: int = 0
) -> tuple[list[dict], list[int]]:
    """Return the messages that are left of a prompt with more than `room` tokens, and their ids.

    The oldest turns go first, each question with its answer, and then the system turn. A last question that is too long
    by itself keeps the last `room` tokens, which end where the assistant's turn begins, and its BOS. ids: of all
    messages. number: of the row, for messages of errors.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    ends = [messages[i:] for i, message in enumerate(messages) if message["role"] == "user"]
    for messages in [[*system, *end] for end in ends[1:]] + (ends[-1:] if system else []):
        (ids,) = encode_prompts(tokenizer, [messages], number)
        if len(ids) <= room:
            return messages, ids
    starts_with_bos = ids[0] == tokenizer.bos_token_id
    return messages, ids[:starts_with_bos] + ids[len(ids) - room + starts_with_bos :]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[list[dict]], completions: Iterable[str], first: int = 0
) -> list[list[int]]:
    """Return token ids of completions of chat prompts, as the template writes the assistant's turn.

    Each ends with exactly one end-of-turn token (see `turn_end`); what the template writes after it is dropped.
    `first` is the number of the first row, for messages.
    """
    end, tail = turn_end(tokenizer)
    rows = enumerate(zip(prompts, completions, strict=True), first)
    texts = [_numbered(number, tokenizer, prompt, completion) for number, (prompt, completion) in rows]
    if end not in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        # The template writes no end; the white space after a turn would stand before EOS.
        texts = [text.removesuffix(tail) + tail.rstrip() + tokenizer.eos_token for text in texts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [_until_end(row, end) for row in ids]


def _numbered(number: int, tokenizer: PreTrainedTokenizerBase, *turns) -> str:
    try:
        return render(tokenizer, *turns)
    except UserError as error:
        raise UserError(f"row {number}: {error}") from None


def _until_end(ids: list[int], end: int) -> list[int]:
    """`ids` up to the last `end`; a completion whose own text ends with it has it once."""
    if end not in ids:
        raise UserError("the chat template ends some turns with another token; correct `chat_template` of this base")
    last = len(ids) - 1 - ids[::-1].index(end)
    while last > 0 and ids[last - 1] == end:
        last -= 1
    return ids[: last + 1]


class Ragged:
    """Arrays of different lengths, one behind the other in one array: 4 bytes a token, where a list of Python integers
    takes 36.

    ids [N] int32: the arrays, joined; offsets [n + 1] int64: where each begins. An item is a view of `ids`.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray):
        self.ids, self.offsets = ids, offsets

    @classmethod
    def join(cls, rows: Iterable[list[int]]) -> "Ragged":
        rows = list(rows)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths.sum())
        return cls(ids, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def concatenate(cls, parts: list["Ragged"]) -> "Ragged":
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        i = range(len(self))[i]  # raises IndexError at the end, which ends a loop, and counts negative ones from there
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


@dataclass
class PairTokens(torch.utils.data.Dataset):
    """Tokenised pairs: int32 arrays per row, and the row's number in the table that they came from.

    `reference` [n, 2] float64: log-probabilities of the base model for chosen and rejected, or None. `groups` [n]
    int32: the number of the pair's group, −1 where it has none; None where the table has no such column. `cut` [3]: the
    numbers of these pairs whose prompt, chosen and rejected completion lost tokens.
    """

    rows: np.ndarray
    prompts: Sequence[np.ndarray]
    chosen: Sequence[np.ndarray]
    rejected: Sequence[np.ndarray]
    dropped: int
    reference: np.ndarray | None = None
    groups: np.ndarray | None = None
    cut: Sequence[int] = (0, 0, 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        item = {"index": int(self.rows[i])}
        item |= {"prompt": self.prompts[i], "chosen": self.chosen[i], "rejected": self.rejected[i]}
        if self.reference is not None:
            item["reference"] = self.reference[i]
        if self.groups is not None:
            item["group"] = self.groups[i]
        return item

    def save(self, folder: str | os.PathLike) -> None:
        """Write everything as .npy files into a new folder, or in place of an old one."""
        arrays = {name: getattr(self, name) for name in ("rows", "dropped", "reference", "groups", "cut")}
        for name in ("prompts", "chosen", "rejected"):
            column = getattr(self, name)
            arrays |= {f"{name}.ids": column.ids, f"{name}.offsets": column.offsets}
        with atomic(folder) as temporary:
            temporary.mkdir()
            for name, array in arrays.items():
                if array is not None:
                    np.save(temporary / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "PairTokens":
        """Return what `save` wrote. Token ids are mapped: all processes of a machine share one copy of them."""

        def array(name: str, mmap_mode: str | None = None) -> np.ndarray | None:
            file = Path(folder) / f"{name}.npy"
            return np.load(file, mmap_mode=mmap_mode, allow_pickle=False) if file.exists() else None

        columns = {
            name: (array(f"{name}.ids", "r"), array(f"{name}.offsets")) for name in ("prompts", "chosen", "rejected")
        }
        return cls(
            array("rows"),
            **{name: Ragged(np.asarray(ids), offsets) for name, (ids, offsets) in columns.items()},
            dropped=int(array("dropped")),
            reference=array("reference"),
            groups=array("groups"),
            cut=array("cut").tolist(),
        )

    def close(self) -> None:
        """Let go of the mapped files: some network file systems delete no folder with a file in use."""
        self.prompts = self.chosen = self.rejected = Ragged.join([])

    def part(self, number: int, parts: int) -> "PairTokens":
        """Return every `parts`-th pair from the one at position `number` on."""
        own = slice(number, None, parts)
        columns = ([column[i] for i in range(len(self))[own]] for column in (self.prompts, self.chosen, self.rejected))
        reference, groups = (None if array is None else array[own] for array in (self.reference, self.groups))
        return PairTokens(self.rows[own], *columns, dropped=0, reference=reference, groups=groups)

    def cut_shares(self) -> dict[str, float]:
        """Return the share of prompts that are not whole, and of chosen and rejected completions without their end."""
        names = ("prompts", "chosen", "rejected")
        return {name: count / len(self) for name, count in zip(names, self.cut, strict=True)}

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each pair, its prompt counted once."""
        rows = zip(self.prompts, self.chosen, self.rejected, strict=True)
        return np.array([len(p) + len(c) + len(r) for p, c, r in rows])

    def sorted_batches(self, batch_size: int) -> list[list[int]]:
        """Return positions in batches of similar length, the longest first, so that too large a batch fails at once."""
        order = np.argsort(-self.lengths(), kind="stable")
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def tokenize_pairs(
    pairs: pa.Table, tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_prompt_length: int
) -> PairTokens:
    """Tokenise a table of pairs; see `tokenize_batches`."""
    batches = (pairs.slice(start, BATCH) for start in range(0, len(pairs), BATCH))
    return tokenize_batches(batches, tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)


def tokenize_batches(
    batches: Iterable[pa.Table], tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_prompt_length: int
) -> PairTokens:
    """Tokenise pairs that arrive as tables (columns messages, chosen, rejected, and group where they have groups).

    A prompt keeps its end, of at most `max_prompt_length` tokens (see `cut_prompt`). A completion keeps its first
    `max_length` − prompt tokens, chosen and rejected alike, and loses its end-of-turn token with its end. Rows
    whose two completions have the same ids after that teach nothing and would count as ties: dropped and counted.
    """
    if not 0 < max_prompt_length < max_length:
        raise UserError(
            f"tokens.max_prompt_length ({max_prompt_length}): must be below tokens.max_length ({max_length}), "
            "or no token of a completion would be left"
        )
    empty = Ragged.join([])
    count, numbers, groups, prompts, chosen, rejected = 0, [], [], [empty], [empty], [empty]
    cut = np.zeros(3, int)
    for pairs in batches:
        batch = _tokenize(pairs, tokenizer, count, max_length, max_prompt_length)
        count += len(pairs)
        numbers += [number for number, *_ in batch]
        for parts, column in zip((prompts, chosen, rejected), range(1, 4), strict=True):
            parts.append(Ragged.join(row[column] for row in batch))
        cut += np.array([row[4] for row in batch], int).reshape(-1, 3).sum(0)
        groups += pairs["group"].to_pylist() if "group" in pairs.column_names else []
    columns = map(Ragged.concatenate, (prompts, chosen, rejected))
    rows = np.array(numbers, np.int64)
    codes = pa.array(groups, pa.string()).dictionary_encode().indices.fill_null(-1).to_numpy()[rows] if groups else None
    return PairTokens(rows, *columns, dropped=count - len(numbers), groups=codes, cut=cut.tolist())


def tokenize_context(
    context: Sequence[dict], tokenizer: PreTrainedTokenizerBase, *, max_length: int, max_prompt_length: int
) -> PairTokens:
    """Tokenise labelled pairs {"prompt", "chosen", "rejected"}; a prompt is the user's text or a list of messages.

    Raises UserError for a pair without these, and where all pairs have equal completions once they are cut.
    """
    for number, pair in enumerate(context, 1):
        for name, kinds in (("prompt", (str, list)), ("chosen", str), ("rejected", str)):
            if not isinstance(pair.get(name), kinds):
                kind = "text or a list of messages" if name == "prompt" else "text"
                raise UserError(f"context: pair {number}: {name} is {pair.get(name)!r:.40}; it must be {kind}")
    prompts = [pair["prompt"] for pair in context]
    table = {
        "messages": [[{"role": "user", "content": turns}] if isinstance(turns, str) else turns for turns in prompts],
        **{name: [pair[name] for pair in context] for name in ("chosen", "rejected")},
    }
    tokens = tokenize_pairs(pa.table(table), tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    if context and not len(tokens):
        raise UserError(f"context: all {len(context)} pairs have equal completions; use pairs that differ")
    return tokens


def _tokenize(
    pairs: pa.Table, tokenizer: PreTrainedTokenizerBase, first: int, max_length: int, max_prompt_length: int
) -> list[tuple[int, list[int], list[int], list[int], tuple[bool, bool, bool]]]:
    """(row, prompt, chosen, rejected, which of these three were cut) of the pairs that are kept; `first` is the number
    of the first row."""
    kept, shortened = [], set()
    messages = pairs["messages"].to_pylist()
    prompts = encode_prompts(tokenizer, messages, first)
    for i, prompt in enumerate(prompts):
        if len(prompt) > max_prompt_length:
            messages[i], prompts[i] = cut_prompt(tokenizer, messages[i], prompt, max_prompt_length, first + i)
            shortened.add(first + i)
    chosen = encode_completions(tokenizer, messages, pairs["chosen"].to_pylist(), first)
    rejected = encode_completions(tokenizer, messages, pairs["rejected"].to_pylist(), first)
    for row, (prompt, good, bad) in enumerate(zip(prompts, chosen, rejected, strict=True), first):
        room = max_length - len(prompt)
        cut = (row in shortened, len(good) > room, len(bad) > room)
        good, bad = good[:room], bad[:room]
        if good != bad:
            kept.append((row, prompt, good, bad, cut))
    return kept


def collate(items: list[dict]) -> dict:
    """Return one batch of B pairs: keyword arguments of `LatentPolicy.encode`, and what the objective needs.

    The pairs stand in one row without padding, each as prompt, chosen, rejected. input_ids, positions [1, T]: a
    rejected completion's positions go on from its prompt's; lengths: (prompt, chosen, rejected) tokens of each pair;
    prompt_ends [B], ends [2B] (chosen, then rejected): where the last prompt token and the last token stand in the row;
    states, token_rows, token_columns, labels [N]: for each completion token where the token *before* it stands, which
    of the 2B completions it belongs to, its number in it, and its id; index [B]: row of the data set; chosen_tokens,
    rejected_tokens [B]: completion lengths; tokens [B]: of the pair; and, where known, reference_chosen_logps,
    reference_rejected_logps [B] float32, and groups [B], the numbers of their groups.
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
    if "group" in items[0]:
        batch["groups"] = torch.tensor([int(item["group"]) for item in items])
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
