"""Preference pairs from rows: the best completion against a random other one."""

import collections
from collections.abc import Iterable
from hashlib import sha256

import pyarrow as pa

from lpc import files
from lpc.cli import UserError
from lpc.data.read import ASPECT_SCORES, MESSAGES
from lpc.data.split import SPLITS

PAIRS = pa.schema(
    {
        "pair_id": pa.string(),
        "prompt_id": pa.string(),
        "split": pa.string(),
        "source": pa.string(),
        "group": pa.string(),
        "messages": MESSAGES,
        "chosen": pa.string(),
        "rejected": pa.string(),
        "chosen_score": pa.float64(),
        "rejected_score": pa.float64(),
        "chosen_aspects": ASPECT_SCORES,
        "rejected_aspects": ASPECT_SCORES,
        "flipped": pa.bool_(),
    }
)


def choose(row: dict, seed: int) -> tuple[dict, dict]:
    """Return (chosen, rejected) of a row: the first of the best-scored completions, and one of the rest by a hash of
    row and seed."""
    completions = row["completions"]
    best = max(range(len(completions)), key=lambda i: completions[i]["score"])  # max takes the first of equals
    rest = completions[:best] + completions[best + 1 :]
    draw = sha256(f"lpc rejected {seed} {row['row_id']}".encode()).digest()
    # 64 bits modulo three or so: the bias is below 1e-18.
    return completions[best], rest[int.from_bytes(draw[:8], "big") % len(rest)]


def pair_id(*content) -> str:
    """Name of a pair by its content, the same in every order of the data."""
    return sha256(files.canonical(content).encode()).hexdigest()[:32]


def make_pair(row: dict, chosen: dict, rejected: dict) -> dict:
    """Return the pair of two completions of a row, in the columns of `PAIRS`."""
    texts = (chosen["response"], rejected["response"])
    return {
        "pair_id": pair_id(row["row_id"], row["messages"], *texts),
        **{name: row[name] for name in ("prompt_id", "split", "source", "group", "messages")},
        "chosen": texts[0],
        "rejected": texts[1],
        "chosen_score": chosen["score"],
        "rejected_score": rejected["score"],
        "chosen_aspects": chosen["aspects"],
        "rejected_aspects": rejected["aspects"],
        "flipped": False,
    }


def by_aspects(row: dict) -> dict:
    """Return the row with each completion's mean rating of its aspects as its score; None where it has no rating."""
    return {**row, "completions": [{**found, "score": mean_rating(found)} for found in row["completions"]]}


def mean_rating(completion: dict) -> float | None:
    """Return the mean of those aspects of a completion that are rated."""
    ratings = [rating for rating in (completion["aspects"] or {}).values() if rating is not None]
    return sum(ratings) / len(ratings) if ratings else None


def is_misread(completion: dict) -> bool:
    """Return whether a score of 10 was one of 1: its aspects, of 1 to 5, have a mean of at most 2.

    UltraFeedback's first release wrote 10 for 1, and such a completion may be the best of its row; see
    https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences.
    """
    rating = mean_rating(completion)
    return completion["score"] == 10 and rating is not None and rating <= 2


def build(
    rows: Iterable[dict],
    *,
    ties: str,
    seed: int,
    drop_sources: list[str],
    min_margin: float = 0.0,
    score: str = "overall",
) -> tuple[list[dict], dict[str, int]]:
    """Return pairs sorted by pair_id, and how many rows gave none, by reason.

    ties: what becomes of a pair whose scores are equal, "keep" (as the published binarisation does) or "drop".
    min_margin: the least difference of scores. score: "overall", or "aspects" for `by_aspects`; a row with a completion
    that has no rating gives no pair. By the overall score, a row with a misread one (see `is_misread`) gives none. A
    pair of identical texts is always left out: nothing can be learned from it or measured on it.
    """
    pairs, unknown, splits = [], set(drop_sources), set()
    dropped = dict.fromkeys(("source", "unrated", "misread", "identical", "tie", "margin"), 0)
    for row in rows:
        unknown.discard(row["source"])
        splits.add(row["split"])
        if row["source"] in drop_sources:
            dropped["source"] += 1
            continue
        if score == "aspects":
            row = by_aspects(row)
            if any(found["score"] is None for found in row["completions"]):
                dropped["unrated"] += 1
                continue
        elif any(map(is_misread, row["completions"])):
            dropped["misread"] += 1
            continue
        chosen, rejected = choose(row, seed)
        if chosen["response"] == rejected["response"]:
            dropped["identical"] += 1
        elif ties == "drop" and chosen["score"] == rejected["score"]:
            dropped["tie"] += 1
        elif chosen["score"] - rejected["score"] < min_margin:
            dropped["margin"] += 1
        else:
            pairs.append(make_pair(row, chosen, rejected))
    if unknown:
        raise UserError(f"pairs.drop_sources: no row is from {', '.join(sorted(unknown))}; correct or remove it")
    pairs.sort(key=lambda pair: pair["pair_id"])
    if empty := [name for name in SPLITS if name in splits and all(pair["split"] != name for pair in pairs)]:
        raise UserError(
            f"no pairs are left in {', '.join(empty)} ({dropped} dropped); change `pairs` or `split` of this dataset"
        )
    return pairs, dropped


def describe(pairs: list[dict]) -> dict:
    """Return counts for each split: pairs, prompts, ties, flipped, pairs by source, and the share whose chosen text is
    longer (a tie is half; None without pairs)."""
    summary = {}
    for name in SPLITS:
        part = [pair for pair in pairs if pair["split"] == name]
        longer = [len(pair["chosen"]) - len(pair["rejected"]) for pair in part]
        summary[name] = {
            "pairs": len(part),
            "prompts": len({pair["prompt_id"] for pair in part}),
            "ties": sum(pair["chosen_score"] == pair["rejected_score"] for pair in part),
            "flipped": sum(pair["flipped"] for pair in part),
            "longer_chosen": sum((d > 0) + 0.5 * (d == 0) for d in longer) / len(part) if part else None,
            "sources": dict(sorted(collections.Counter(pair["source"] for pair in part).items())),
        }
    return summary
