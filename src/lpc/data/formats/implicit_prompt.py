"""Rows with two texts that begin with the same prompt: TRL's standard format with an implicit prompt."""

import itertools
import re
from typing import ClassVar, Literal

from lpc.data.formats.base import Malformed, Rows, check_text, field, make_row, preferred


class ImplicitPrompt(Rows):
    title: ClassVar[str] = "`chosen` and `rejected` as texts that begin with the same prompt"
    reads: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    kind: Literal["implicit-prompt"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        chosen, rejected = (check_text(field(record, name), name) for name in ("chosen", "rejected"))
        # Cut at the end of a word: "blue" and "black" share "bl", which is not part of the prompt.
        same = itertools.takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False))
        prompt = re.sub(r"\S*\Z", "", "".join(letter for letter, _ in same))
        if not prompt.strip():
            raise Malformed("chosen and rejected begin with no common word")
        messages = [{"role": "user", "content": prompt.strip()}]
        return make_row(record, default_source, messages, preferred(chosen[len(prompt) :], rejected[len(prompt) :]))
