"""Train, validation and test by prompt: all rows of one prompt go to one split."""

import collections
from hashlib import sha256

from lpc.cli import UserError

SPLITS = ("train", "validation", "test")


def split_prompts(rows: dict[str, int], sizes: dict[str, int], seed: int) -> dict[str, str]:
    """Assign prompts to splits.

    rows: prompt_id to its number of rows; sizes: wanted rows of validation and test. Prompts are taken in the order of
    a salted hash, each that still fits; so a split misses its size by less than the rows of one prompt, if there are
    enough prompts. The salt matters: data sets exist whose prompts were themselves selected by an unsalted hash.
    """
    total = sum(rows.values())
    if sum(sizes.values()) >= total:
        raise UserError(
            f"split: test ({sizes['test']}) and validation ({sizes['validation']}) must leave rows for training, but "
            f"the data has {total}; make `split` of this dataset smaller"
        )
    order = sorted(rows, key=lambda prompt_id: sha256(f"lpc split {seed} {prompt_id}".encode()).digest())
    assigned = {}
    for name in ("test", "validation"):
        room = sizes[name]
        for prompt_id in order:
            if prompt_id not in assigned and rows[prompt_id] <= room:
                assigned[prompt_id] = name
                room -= rows[prompt_id]
    assigned |= {prompt_id: "train" for prompt_id in order if prompt_id not in assigned}
    filled = collections.Counter()
    for prompt_id, name in assigned.items():
        filled[name] += rows[prompt_id]
    if empty := [name for name in SPLITS if not filled[name]]:
        raise UserError(
            f"split {' and '.join(empty)}: no rows left, with {total} rows of {len(rows)} prompts and "
            f"sizes {sizes}; change `split` of this dataset"
        )
    return assigned


def count_rows(rows: list[dict]) -> dict[str, int]:
    """Rows of each prompt_id."""
    return dict(collections.Counter(row["prompt_id"] for row in rows))


def describe(rows: list[dict]) -> dict:
    """Exact numbers of rows, prompts and rows by source in each split. rows: dicts with split, prompt_id, source."""
    summary = {}
    for name in SPLITS:
        part = [row for row in rows if row["split"] == name]
        summary[name] = {
            "rows": len(part),
            "prompts": len({row["prompt_id"] for row in part}),
            "sources": dict(sorted(collections.Counter(row["source"] for row in part).items())),
        }
    return summary
