"""A small Llama trained from scratch on the texts of a dataset, with a tokenizer and a chat template of its own.

It stands in for a hub model where none can be had: a plain transformers checkpoint that loads everywhere.
"""

import logging
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from lpc.cli import UserError
from lpc.data.tokens import cut_prompt, encode_completions, encode_prompts

log = logging.getLogger("lpc")

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of `vocabulary` entries, special tokens and the 256 bytes included."""
    special = [PAD, BOS, EOS, *ROLES]
    if vocabulary < 256 + len(special):
        raise UserError(
            f"scratch.vocabulary: {vocabulary} is too small; a byte-level tokenizer needs {256 + len(special)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # As in Llama 3: plain text gets a BOS from the tokenizer, a rendered chat already carries its own.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


def encode(tokenizer, rows: list[dict], max_length: int, max_prompt_length: int) -> list[list[int]]:
    """Return the token ids of prompt + completion for every completion of `rows`; a long prompt keeps its end (see
    `cut_prompt`), a long completion its beginning."""
    encoded = []
    for row, prompt in zip(rows, encode_prompts(tokenizer, [row["messages"] for row in rows]), strict=True):
        messages = row["messages"]
        if len(prompt) > max_prompt_length:
            messages, prompt = cut_prompt(tokenizer, messages, prompt, max_prompt_length)
        responses = [completion["response"] for completion in row["completions"]]
        completions = encode_completions(tokenizer, [messages] * len(responses), responses)
        encoded += [(prompt + completion)[:max_length] for completion in completions]
    return encoded


def batches(lengths: list[int], batch_size: int, generator: torch.Generator):
    """Return endless batches of indices. Each epoch is a new shuffle, in which stretches of 50 batches are sorted by
    length, so that a batch holds texts of like length and little padding."""
    while True:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        stretches = [order[i : i + 50 * batch_size] for i in range(0, len(order), 50 * batch_size)]
        epoch = []
        for stretch in stretches:
            stretch.sort(key=lambda i: lengths[i])
            epoch += [stretch[i : i + batch_size] for i in range(0, len(stretch), batch_size)]
        for i in torch.randperm(len(epoch), generator=generator).tolist():
            yield epoch[i]


def train(
    rows: list[dict],
    folder: Path,
    *,
    vocabulary: int,
    hidden_size: int,
    layers: int,
    heads: int,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    max_length: int,
    max_prompt_length: int,
) -> dict:
    """Train on prompt and every completion of `rows` (dicts with messages and completions); save model and tokenizer to
    `folder`.

    The language-model loss covers all tokens, the prompt's too: a base model knows its users' words. AdamW, linear
    warm-up over 5 % of the steps, then cosine to zero. Returns parameters, steps, tokens, seconds, first_loss,
    last_loss (mean of the last tenth; nats per token). The same seed, rows and number of threads give the same bytes.
    """
    if hidden_size % (2 * heads):
        raise UserError(
            f"scratch.hidden_size: {hidden_size} must be a multiple of 2 · scratch.heads ({heads}); change either"
        )
    texts = [message["content"] for row in rows for message in row["messages"]]
    texts += [completion["response"] for row in rows for completion in row["completions"]]
    tokenizer = train_tokenizer(texts, vocabulary)
    encoded = encode(tokenizer, rows, max_length, max_prompt_length)

    set_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = max(1, round(epochs * len(encoded) / batch_size))
    log.info(
        "%d parameters, %d texts, %d tokens, %d steps on %s",
        parameters,
        len(encoded),
        sum(map(len, encoded)),
        steps,
        device,
    )

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = max(1, round(0.05 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    draw = batches([len(ids) for ids in encoded], batch_size, torch.Generator().manual_seed(seed))
    losses, tokens, start = [], 0, time.monotonic()
    for step in tqdm(range(steps), desc="pretrain", unit="step", disable=None):  # None: a bar on a terminal only
        batch = [torch.tensor(encoded[i]) for i in next(draw)]
        # Padding is on the right and attention is causal, so that no real token ever sees it; labels of -100 are
        # ignored.
        input_ids = pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id).to(device)
        labels = pad_sequence(batch, batch_first=True, padding_value=-100).to(device)
        loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        tokens += sum(map(len, batch))
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            log.info(
                "step %d/%d loss %.4f %.0f tokens/s", step + 1, steps, losses[-1], tokens / (time.monotonic() - start)
            )
    if not math.isfinite(sum(losses)):
        raise UserError(f"pretraining diverged (loss {losses[-1]}); lower scratch.learning_rate ({learning_rate})")
    model.to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tail = losses[-max(1, steps // 10) :]
    return {
        "parameters": parameters,
        "steps": steps,
        "tokens": tokens,
        "seconds": round(time.monotonic() - start, 2),
        "first_loss": losses[0],
        "last_loss": sum(tail) / len(tail),
    }
