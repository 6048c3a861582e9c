"""Rows with two responses and the strength of the preference, as in nvidia/HelpSteer3."""

from typing import ClassVar, Literal

from lpc.data.formats.base import Rows, field, make_row
from lpc.data.formats.completions import check_number, completion
from lpc.data.formats.dialogues import check_prompt


class HelpSteer3(Rows):
    title: ClassVar[str] = (
        "`context`, `response1`, `response2` and `overall_preference`, below 0 where the first is preferred"
    )
    reads: ClassVar[tuple[str, ...]] = ("context", "response1", "response2", "overall_preference")

    kind: Literal["helpsteer3"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        messages = check_prompt(field(record, "context"), "context")
        preference = check_number(field(record, "overall_preference"), "overall_preference")
        # The margin of the scores is the strength of the preference; at 0 they tie.
        scores = [max(-preference, 0.0), max(preference, 0.0)]
        responses = [field(record, name) for name in ("response1", "response2")]
        return make_row(record, default_source, messages, list(map(completion, responses, scores)))
