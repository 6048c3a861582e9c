"""A mixture of datasets: a share of each one's training pairs, and all of its other pairs."""

from hashlib import sha256

from lpc.cli import UserError
from lpc.data.split import SPLITS


def mix(
    members: dict[str, list[dict]], shares: dict[str, float], seed: int
) -> tuple[list[dict], dict[str, dict[str, int]]]:
    """Return the mixture's pairs sorted by pair_id, and how many of each member's pairs are left out, by reason.

    members: each dataset's pairs by its name; shares: of its training pairs, in (0, 1]. A pair's source is the name of
    its member. No prompt is in two splits: a pair is left out (`held_out`) whose prompt another member has in a split
    that comes first, test, then validation, then training. A pair that an earlier member has, too, is left out
    (`copies`). Of the training pairs, round(share · n) of the n groups are kept, the first by a hash of seed, member
    and group; a pair without a group is a group of its own. So a larger share keeps what a smaller one has. The rest is
    `beyond_share`. Raises UserError where a member has no training pair left, or the mixture no validation pair.
    """
    dropped = {name: {"held_out": 0, "copies": 0, "beyond_share": 0} for name in members}
    found: dict[str, dict] = {}
    earlier: set[str] = set()
    for split in reversed(SPLITS):
        prompts = set()
        for name, pairs in members.items():
            own = [pair for pair in pairs if pair["split"] == split]
            new = [pair for pair in own if pair["prompt_id"] not in earlier]
            dropped[name]["held_out"] += len(own) - len(new)
            prompts |= {pair["prompt_id"] for pair in new}
            own, new = new, [pair for pair in new if pair["pair_id"] not in found]
            dropped[name]["copies"] += len(own) - len(new)
            if split == "train":
                own, new = new, drawn(new, shares[name], f"lpc mix {seed} {name}")
                dropped[name]["beyond_share"] += len(own) - len(new)
                if not new:
                    raise UserError(
                        f"mix.{name}: no training pair is left at a share of {shares[name]} ({dropped[name]} left out);"
                        " raise the share, or remove this dataset from the mixture"
                    )
            found |= {pair["pair_id"]: of_member(pair, name) for pair in new}
        if not prompts:
            raise UserError(f"mix: no {split} pair is left ({dropped} left out); change `split` of these datasets")
        earlier |= prompts
    return [found[name] for name in sorted(found)], dropped


def drawn(pairs: list[dict], share: float, salt: str) -> list[dict]:
    """Return the pairs of a share of the groups, the first in the order of a hash; see `mix`."""
    groups = {pair["group"] or pair["pair_id"] for pair in pairs}
    order = sorted(groups, key=lambda group: sha256(f"{salt} {group}".encode()).digest())
    kept = set(order[: round(share * len(order))])
    return [pair for pair in pairs if (pair["group"] or pair["pair_id"]) in kept]


def of_member(pair: dict, name: str) -> dict:
    """Return a pair with its member as source, and a group that no other member has."""
    return {**pair, "source": name, "group": pair["group"] and f"{name}/{pair['group']}"}
