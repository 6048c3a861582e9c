"""Prompts with a response for each of several populations that disagree, as in Linear95/DSP.

A person of a population prefers its response to that of any other. So a prompt gives a pair for each population and
each other response, and every choice is contradicted by another population's. Who judges is drawn: annotators, each of
one population, with a number of pairs whose prompts all differ.
"""

import collections
from hashlib import sha256
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from lpc import files
from lpc.cli import UserError
from lpc.config.keys import Integer, Section, Seed, Unique, fault, key
from lpc.data.formats.base import Malformed, Rows, check_text, field, make_row


class Annotators(Section):
    """Annotators that are drawn, after prompts are split."""

    pairs: Integer = key(8, "pairs of each annotator in training", ge=1)
    held_out_pairs: Integer = key(32, "pairs of each annotator in validation and test", ge=1)
    without: Annotated[list[str], Unique()] = key([], "responses that give no pairs, e.g. `[normal]`")
    seed: Seed = key(0, "of the draw")


class Populations(Rows):
    title: ClassVar[str] = "`prompt`, and `responses` with the name and the response of each population"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "responses")

    kind: Literal["populations"]
    annotators: Annotators = key(Annotators(), "who judges: annotators of one population each, drawn")

    @property
    def has_groups(self) -> bool:
        return True

    @model_validator(mode="after")
    def _annotators_are_the_groups(self) -> "Populations":
        if self.group is not None:
            raise fault("group", "annotators are the groups of this kind; drop group")
        if self.split.by != "prompt":
            raise fault("split.by", "annotators are drawn within a split of prompts, so none is in two; drop by")
        return self

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        prompt = check_text(field(record, "prompt"), "prompt")
        responses = field(record, "responses")
        if not isinstance(responses, dict) or len(responses) < 2:
            raise Malformed("responses is not an object of two or more")
        return make_row(
            record,
            default_source,
            [{"role": "user", "content": prompt}],
            [
                {"model": check_text(name, "population"), "response": response, "score": 0.0, "aspects": None}
                for name, response in sorted(responses.items())
                if check_text(response, "response")
            ],
        )

    @staticmethod
    def draw_annotators(rows: list[dict], settings: Annotators) -> list[dict]:
        """Return a row for each pair that an annotator judges, the preferred response with score 1, the other with 0.

        rows: with a split and each population's response, as `Populations.row` makes them. In each split, a population
        judges a prompt against every other response, one after the other in random order: as many rounds as there are
        other responses. In a round the prompts are shuffled and dealt to annotators. Prompts that are too few for one
        more annotator are left out. The source of a row is its population, its group the annotator. Sorted by row_id.

        Raises UserError where a response to leave out is in no row, or the prompts of a split are too few for one
        annotator.
        """
        names = {completion["model"] for row in rows for completion in row["completions"]}
        if unknown := sorted(set(settings.without) - names):
            raise UserError(
                f"annotators.without: no prompt has a response of {', '.join(unknown)}; there are "
                f"{', '.join(sorted(names))}"
            )
        found = []
        for split in sorted({row["split"] for row in rows}):
            size = settings.pairs if split == "train" else settings.held_out_pairs
            rounds = collections.defaultdict(list)
            for row in (row for row in rows if row["split"] == split):
                responses = [each for each in row["completions"] if each["model"] not in settings.without]
                for own in responses:
                    others = [other for other in responses if other is not own]
                    others.sort(key=lambda other: _hash(settings.seed, own["model"], other["model"], row["row_id"]))
                    for turn, other in enumerate(others):
                        rounds[own["model"], turn].append({**row, "completions": [{**own, "score": 1.0}, other]})
            if max(map(len, rounds.values()), default=0) < size:
                prompts = len({row["prompt_id"] for row in rows if row["split"] == split})
                raise UserError(
                    f"annotators: {prompts} prompts in split {split} are too few for an annotator of {size} pairs; "
                    f"lower {'pairs' if split == 'train' else 'held_out_pairs'}, or change `split` of this dataset"
                )
            for (population, turn), judged in sorted(rounds.items()):
                judged.sort(key=lambda row: _hash(settings.seed, population, turn, row["row_id"]))
                for position, row in enumerate(judged[: len(judged) // size * size]):
                    group = f"{split}-{population}-{turn}-{position // size}"
                    names = [completion["model"] for completion in row["completions"]]
                    row_id = sha256(files.canonical([row["row_id"], group, names]).encode()).hexdigest()
                    found.append({**row, "row_id": row_id, "source": population, "group": group})
        return sorted(found, key=lambda row: row["row_id"])


def _hash(*content) -> bytes:
    return sha256(f"lpc annotators {files.canonical(content)}".encode()).digest()
