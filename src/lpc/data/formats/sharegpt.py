"""Rows whose turns are objects with `from` and `value`, as LLaMA-Factory's ShareGPT preferences."""

from typing import ClassVar, Literal

from lpc.data.formats.base import Malformed, Rows, check_object, field
from lpc.data.formats.pairs import pair_row

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class ShareGPT(Rows):
    title: ClassVar[str] = "`conversations`, `chosen` and `rejected`, whose turns have `from` and `value`"
    reads: ClassVar[tuple[str, ...]] = ("conversations", "chosen", "rejected")

    kind: Literal["sharegpt"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        prompt = _messages(check_object(record).get("conversations") or [], "conversations")
        whole = {name: prompt + _messages(field(record, name), name) for name in ("chosen", "rejected")}
        return pair_row({**record, **whole, "prompt": None}, default_source)


def _messages(turns: object, name: str) -> list[dict]:
    """The messages of one turn or a list of them; their texts are not checked yet."""
    messages = []
    for turn in turns if isinstance(turns, list) else [turns]:
        speaker = field(turn, "from")
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise Malformed(f"{name} has a turn that is from none of {', '.join(ROLES)}")
        messages.append({"role": ROLES[speaker], "content": field(turn, "value")})
    return messages
