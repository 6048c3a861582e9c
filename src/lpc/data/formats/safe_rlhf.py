"""Rows with two responses and the number of the better one, as in PKU-Alignment/PKU-SafeRLHF."""

from typing import ClassVar, Literal

from lpc.data.formats.base import Rows, check_text, field, make_row, preferred
from lpc.data.formats.completions import check_choice


class SafeRLHF(Rows):
    title: ClassVar[str] = "`prompt`, `response_0`, `response_1` and `better_response_id`, 0 or 1"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "response_0", "response_1", "better_response_id")

    kind: Literal["safe-rlhf"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        prompt, *responses = (check_text(field(record, name), name) for name in ("prompt", "response_0", "response_1"))
        better = check_choice(field(record, "better_response_id"), "better_response_id")
        completions = preferred(responses[better], responses[1 - better])
        return make_row(record, default_source, [{"role": "user", "content": prompt}], completions)
