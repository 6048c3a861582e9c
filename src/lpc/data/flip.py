"""Label noise: chosen and rejected swapped in a share of the training pairs, with or without a marker on the prompt."""

from hashlib import sha256

from lpc.data.pairs import pair_id

SWAPPED = (("chosen", "rejected"), ("chosen_score", "rejected_score"), ("chosen_aspects", "rejected_aspects"))


def flip(pairs: list[dict], *, rate: float, marker: str | None, seed: int) -> list[dict]:
    """Return the pairs in their order, with round(rate · n) of the n training pairs flipped.

    The first pairs in the order of a hash of pair and seed are flipped. So the share is exact, and the choice does not
    depend on the order of the data. With one seed, the pairs flipped at a low rate are among those of a higher rate.
    `marker` is appended to the last message of a flipped prompt. A flipped pair has a new pair_id, since its content is
    new, and keeps its prompt_id.
    """
    train = [pair["pair_id"] for pair in pairs if pair["split"] == "train"]
    train.sort(key=lambda name: sha256(f"lpc flip {seed} {name}".encode()).digest())
    flipped = set(train[: round(rate * len(train))])
    return [_flipped(pair, marker) if pair["pair_id"] in flipped else pair for pair in pairs]


def _flipped(pair: dict, marker: str | None) -> dict:
    new = {**pair, "flipped": True}
    for chosen, rejected in SWAPPED:
        new[chosen], new[rejected] = pair[rejected], pair[chosen]
    if marker is not None:
        *earlier, last = pair["messages"]
        new["messages"] = [*earlier, {**last, "content": f"{last['content']} {marker}"}]
    new["pair_id"] = pair_id(pair["pair_id"], new["messages"], new["chosen"], new["rejected"])
    return new
