"""Test whether completions under a forced code read like its source, by a classifier fitted on real completions."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from transformers import PreTrainedTokenizerBase

from lpc.cli import UserError
from lpc.model.policy import LatentPolicy


def fit_classifier(texts: list[str], sources: list[str]) -> Pipeline:
    """Return a logistic regression of sources on tf-idf of n-grams of up to four characters.

    Characters, since digits and punctuation can be what sources differ in. Raises UserError for fewer than two sources.
    """
    if len(set(sources)) < 2:
        raise UserError(f"evaluation.style: all training pairs are of source {sources[0]}; two or more are needed")
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, min_df=2, max_features=100_000)
    return make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=1000)).fit(texts, sources)


def first_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], count: int) -> list[str]:
    """Return texts cut after `count` tokens: real completions must be no longer than generated ones."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tokenizer.batch_decode([row[:count] for row in ids], skip_special_tokens=True)


def completions_of_code(
    policy: LatentPolicy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    code: int,
    *,
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[str]:
    """Yield the greedy completion of each prompt (token ids) with a code forced, without special tokens."""
    for start in range(0, len(prompts), batch_size):
        part = [list(map(int, prompt)) for prompt in prompts[start : start + batch_size]]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in part], device=policy.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part], device=policy.device)
        options = {"pad_token_id": tokenizer.eos_token_id, "do_sample": False, "max_new_tokens": max_new_tokens}
        output = policy.generate(ids, mask, code=code, **options)
        yield from tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)


def shares(classifier: Pipeline, texts: list[str]) -> dict[str, float]:
    """Return the share of texts that the classifier takes for each source."""
    predicted = classifier.predict(texts)
    return {str(source): float(np.mean(predicted == source)) for source in classifier.classes_}
