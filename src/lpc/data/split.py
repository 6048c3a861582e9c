"""Train, validation and test by prompt, or by group too: no prompt is in two splits."""

import collections
from hashlib import sha256

from lpc.cli import UserError

SPLITS = ("train", "validation", "test")


def split_prompts(rows: dict[str, int], sizes: dict[str, int], seed: int, what: str = "prompts") -> dict[str, str]:
    """Assign prompts, or other groups of rows named by `what`, to splits.

    rows: prompt_id to its number of rows; sizes: wanted rows of validation, of test, or of both. Prompts are taken in
    the order of a salted hash, each that still fits; so a split misses its size by less than the rows of one prompt, if
    there are enough prompts. The salt matters: data sets exist whose prompts were themselves selected by an unsalted
    hash.
    """
    total = sum(rows.values())
    drawn = [name for name in ("test", "validation") if name in sizes]
    if sizes and sum(sizes.values()) >= total:
        wanted = " and ".join(f"{name} ({sizes[name]})" for name in drawn)
        raise UserError(
            f"split: {wanted} must leave rows for training, but the data has {total}; make `split` of this dataset "
            "smaller"
        )
    order = sorted(rows, key=lambda prompt_id: sha256(f"lpc split {seed} {prompt_id}".encode()).digest())
    assigned = {}
    for name in drawn:
        room = sizes[name]
        for prompt_id in order:
            if prompt_id not in assigned and rows[prompt_id] <= room:
                assigned[prompt_id] = name
                room -= rows[prompt_id]
    assigned |= {prompt_id: "train" for prompt_id in order if prompt_id not in assigned}
    filled = collections.Counter()
    for prompt_id, name in assigned.items():
        filled[name] += rows[prompt_id]
    if empty := [name for name in SPLITS if name in ("train", *drawn) and not filled[name]]:
        raise UserError(
            f"split {' and '.join(empty)}: no rows left, with {total} rows of {len(rows)} {what} and "
            f"sizes {sizes}; change `split` of this dataset"
        )
    return assigned


def keep_own(rows: list[dict]) -> list[dict]:
    """Return the rows without those whose prompt is in another of the data's own splits: test first, then validation.

    rows: those of own splits have a `split`. Raises UserError where no row of an own split is left.
    """
    own = {row["split"] for row in rows if "split" in row}
    for name in ("test", "validation"):
        taken = {row["prompt_id"] for row in rows if row.get("split") == name}
        rows = [row for row in rows if row.get("split") == name or row["prompt_id"] not in taken]
        if name in own and not taken:
            raise UserError(f"split {name}: no rows left, since all its prompts are in test; correct `split.{name}`")
    return rows


def limited(rows: list[dict], limit: int | None) -> list[dict]:
    """Return the rows of own splits and `limit` of the others, the first in the order of a salted hash; None: all."""
    drawn = [row["row_id"] for row in rows if "split" not in row]
    drawn.sort(key=lambda row_id: sha256(f"lpc limit {row_id}".encode()).digest())
    left_out = set() if limit is None else set(drawn[limit:])
    return [row for row in rows if row["row_id"] not in left_out]


def split_groups(rows: list[dict], sizes: dict[str, int], seed: int) -> list[dict]:
    """Return the rows with a split such that neither a group nor a prompt is in two of them.

    Groups are assigned as `split_prompts` assigns prompts. People can share prompts. So a row is dropped whose prompt
    is in a split that comes first: test, then validation, then train. What is held out keeps all rows of its groups,
    but for validation rows of test prompts. Raises UserError where a row has no group or no row is left of a split.
    """
    if without := sum(row["group"] is None for row in rows):
        raise UserError(
            f"split.by: {without} of {len(rows)} rows have no group; set `group` of this dataset to a column that all "
            "rows fill, or split by prompt"
        )
    assigned = split_prompts(count_rows(rows, "group"), sizes, seed, "groups")
    taken: set[str] = set()
    kept = set()
    for name in reversed(SPLITS):
        own = {id(row): row["prompt_id"] for row in rows if assigned[row["group"]] == name}
        own = {row: prompt for row, prompt in own.items() if prompt not in taken}
        if not own:
            raise UserError(
                f"split {name}: no rows left, since all its groups' prompts are in another split, too; make `split` of "
                "this dataset smaller, or split by prompt"
            )
        taken |= set(own.values())
        kept |= own.keys()
    return [{**row, "split": assigned[row["group"]]} for row in rows if id(row) in kept]


def count_rows(rows: list[dict], by: str = "prompt_id") -> dict[str, int]:
    """Return the number of rows of each prompt_id, or of each value of another key."""
    return dict(collections.Counter(row[by] for row in rows))


def describe(rows: list[dict]) -> dict:
    """Return the exact numbers of rows, prompts and rows by source in each split. rows: dicts with split, prompt_id,
    source."""
    summary = {}
    for name in SPLITS:
        part = [row for row in rows if row["split"] == name]
        summary[name] = {
            "rows": len(part),
            "prompts": len({row["prompt_id"] for row in part}),
            "sources": dict(sorted(collections.Counter(row["source"] for row in part).items())),
        }
    return summary
