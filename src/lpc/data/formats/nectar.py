"""Rows with several ranked answers, as in berkeley-nest/Nectar."""

from typing import ClassVar, Literal

from lpc.data.formats.base import Malformed, Rows, check_text, field, make_row
from lpc.data.formats.completions import check_number, completion
from lpc.data.formats.dialogues import check_prompt


class Nectar(Rows):
    title: ClassVar[str] = "`prompt`, and `answers` with `answer` and `rank`, 1 the best"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "answers")

    kind: Literal["nectar"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        messages, answers = check_prompt(field(record, "prompt")), field(record, "answers")
        if not isinstance(answers, list) or len(answers) < 2:
            raise Malformed("fewer than two answers")
        source = record.get("source")
        if isinstance(source, list):  # a prompt that several collections hold
            source = "+".join(check_text(name, "source") for name in source) or None
        # The space after "Assistant:" is none of the answer.
        completions = [
            completion(
                check_text(field(answer, "answer"), "answer").strip(),
                -check_number(field(answer, "rank"), "rank"),
                answer.get("model"),
            )
            for answer in answers
        ]
        return make_row({**record, "source": source}, default_source, messages, completions)
