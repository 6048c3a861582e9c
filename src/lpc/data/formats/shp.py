"""Rows with two replies to a post, as in stanfordnlp/SHP."""

from typing import ClassVar, Literal

from lpc.data.formats.base import Malformed, Rows, check_text, field, make_row
from lpc.data.formats.completions import check_choice, check_number, completion


class SHP(Rows):
    title: ClassVar[str] = "`history`, `human_ref_A`, `human_ref_B` and `labels`, 1 where A is preferred"
    reads: ClassVar[tuple[str, ...]] = ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B")

    kind: Literal["shp"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        post, *replies = (check_text(field(record, name), name) for name in ("history", "human_ref_A", "human_ref_B"))
        a_is_better = check_choice(field(record, "labels"), "labels")
        scores = [float(a_is_better), 1.0 - a_is_better]
        if record.get("score_A") is not None or record.get("score_B") is not None:
            scores = [check_number(field(record, name), name) for name in ("score_A", "score_B")]
            if scores[0] == scores[1] or (scores[0] > scores[1]) != a_is_better:
                raise Malformed("score_A and score_B contradict labels")
        return make_row(
            record, default_source, [{"role": "user", "content": post}], list(map(completion, replies, scores))
        )
