"""Rows with several scored completions, as in openbmb/UltraFeedback and argilla's copies."""

import math
from typing import ClassVar, Literal

from lpc.data.formats.base import ASPECTS, Malformed, Rows, check_object, check_text, field, make_row
from lpc.data.formats.completions import completion


class UltraFeedback(Rows):
    title: ClassVar[str] = "`instruction`, and `completions` with `response` and `overall_score`"
    reads: ClassVar[tuple[str, ...]] = ("instruction", "completions")

    kind: Literal["ultrafeedback"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        return scored_row(record, default_source)


def scored_row(record: object, default_source: str) -> dict:
    """Return the row of a record of the UltraFeedback schema. Raises Malformed."""
    instruction = check_text(field(record, "instruction"), "instruction")
    completions = field(record, "completions")
    if not isinstance(completions, list) or not completions:
        raise Malformed("no completions")
    if len(completions) < 2:
        raise Malformed("fewer than two completions")
    return make_row(
        record,
        default_source,
        [{"role": "user", "content": instruction}],
        [
            completion(
                field(found, "response"),
                field(found, "overall_score"),
                found.get("model"),
                _aspects(found.get("annotations")),
            )
            for found in map(check_object, completions)
        ],
    )


def _aspects(annotations: object) -> dict | None:
    """UltraFeedback's four ratings, strings such as "4" or "N/A" in nested objects; None where there are none."""
    ratings = {}
    for name in ASPECTS:
        aspect = annotations.get(name) if isinstance(annotations, dict) else None
        # The hub's rows hold one object an aspect, the files of the first release a list of one.
        aspect = aspect[0] if isinstance(aspect, list) and aspect else aspect
        rating = aspect.get("Rating") if isinstance(aspect, dict) else None
        try:
            ratings[name] = float(rating)
        except (TypeError, ValueError, OverflowError):
            ratings[name] = None  # "N/A": the annotator saw nothing to rate
        if ratings[name] is not None and not math.isfinite(ratings[name]):
            ratings[name] = None
    return ratings if any(rating is not None for rating in ratings.values()) else None
