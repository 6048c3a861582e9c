"""Rows with a chosen and a rejected completion.

They are whole dialogues ("\\n\\nHuman: …\\n\\nAssistant: …", as in Anthropic/hh-rlhf), lists of messages (as in
HuggingFaceH4/ultrafeedback_binarized), or completions beside a `prompt`, which is text, a dialogue or a list of
messages.
"""

from typing import ClassVar, Literal

from lpc.data.formats.base import Malformed, Rows, check_object, check_text, field, identity, make_row
from lpc.data.formats.completions import check_number, completion
from lpc.data.formats.dialogues import check_messages, is_dialogue, parse_dialogue, prompt_messages


class FlatPairs(Rows):
    title: ClassVar[str] = (
        "`chosen` and `rejected` as dialogues of Human and Assistant, as lists of messages, or as completions beside a"
        " `prompt`"
    )
    reads: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")

    kind: Literal["pairs"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        return pair_row(record, default_source)


def pair_row(record: object, default_source: str) -> dict:
    """Return the row of a record with a chosen and a rejected completion. Raises Malformed."""
    prompts, responses = [], []
    for name in ("chosen", "rejected"):
        *prompt, last = check_messages(_whole(record, name), name)
        prompts.append(prompt)
        responses.append(last["content"])
    if prompts[0] != prompts[1]:
        raise Malformed("chosen and rejected have different prompts")
    return make_row(record, default_source, prompts[0], list(map(completion, responses, _scores(record))))


def _scores(record: dict) -> tuple[float, float]:
    """The scores of chosen and rejected completion; 1 and 0 where the row has no scores."""
    names = ("chosen_score", "rejected_score")
    if all(record.get(name) is None for name in names):
        return 1.0, 0.0
    chosen, rejected = (check_number(field(record, name), name) for name in names)
    if chosen < rejected:
        raise Malformed("chosen_score is below rejected_score")
    return chosen, rejected


def _whole(record: object, name: str) -> list:
    """The dialogue that ends with the completion `name`, from the prompt on; its messages are not checked yet."""
    value, prompt = field(record, name), record.get("prompt")
    if isinstance(value, str) and not value.startswith("\n\nHuman:") and prompt is not None:
        turns = prompt_messages(prompt)
        # In a dialogue, the space after "Assistant:" is none of the completion.
        value = value.strip() if isinstance(prompt, str) and is_dialogue(prompt) else value
        return [*turns, {"role": "assistant", "content": value}]
    if isinstance(value, str):
        dialogue = parse_dialogue(value, name)
    elif not isinstance(value, list):
        raise Malformed(f"{name} is neither text nor messages")
    elif prompt is not None and value and check_object(value[0]).get("role") == "assistant":
        return [*prompt_messages(prompt), *value]
    else:
        dialogue = value
    if prompt is not None and not _agree(prompt, check_messages(dialogue, name)[:-1]):
        raise Malformed(f"the prompt is not that of {name}")
    return dialogue


def _agree(prompt: object, messages: list[dict]) -> bool:
    """Whether a column `prompt` equals the messages before the completion, or one of the user's turns."""
    turns = prompt_messages(prompt)
    if isinstance(prompt, str) and not is_dialogue(prompt):
        users = [message["content"] for message in messages if message["role"] == "user"]
        return identity(prompt) in map(identity, users)
    said = [(field(turn, "role"), identity(check_text(field(turn, "content"), "message in prompt"))) for turn in turns]
    return said == [(message["role"], identity(message["content"])) for message in messages]
