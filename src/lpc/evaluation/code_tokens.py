"""The tokens that each code makes more and less likely: the largest and smallest of W·e_k against the mean code."""

import torch
from transformers import PreTrainedTokenizerBase

from lpc.model.policy import LatentPolicy

COUNT = 10
"""Tokens kept at each end, of each code."""


@torch.no_grad()
def code_tokens(policy: LatentPolicy, tokenizer: PreTrainedTokenizerBase, count: int = COUNT) -> list[dict]:
    """Return {"code", "raised", "lowered"} of each code, the last two lists of {"token", "logit"}, the strongest first.

    A logit is that of W·(e_k − ē), where ē is the mean of all codes, less its mean over the tokens: what a softmax sees
    of code k where ē stood. What all codes share is left out, since it would fill every code's list. Scales of the
    logits are applied, caps are not, since they bend large logits alone. Of a head (`lpc.latents.heads`) e_k is the
    part that no hidden state changes. Rows of W beyond the tokenizer's vocabulary are padding and left out. Raises
    ValueError where the latent has no codes.
    """
    if policy.latent is None or not policy.latent.has_codes:
        raise ValueError("a latent without codes has no tokens of codes")
    codebook = policy.latent.codebook
    logits = policy.z_logits(codebook - codebook.mean(0)) * policy.scale
    logits = logits[:, : len(tokenizer)]
    logits = logits - logits.mean(1, keepdim=True)
    found = []
    for code, row in enumerate(logits):
        ends = {"raised": row.topk(min(count, len(row))), "lowered": (-row).topk(min(count, len(row)))}
        lists = {
            name: [{"token": text_of(tokenizer, index), "logit": row[index].item()} for index in top.indices.tolist()]
            for name, top in ends.items()
        }
        found.append({"code": code, **lists})
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """Return the text of one token; of one that is part of a character, the tokenizer's own name of it."""
    text = tokenizer.decode([index], clean_up_tokenization_spaces=False)
    return tokenizer.convert_ids_to_tokens(index) if "\ufffd" in text else text
