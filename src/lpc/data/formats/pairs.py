"""Rows with a chosen and a rejected completion.

They are whole dialogues ("\\n\\nHuman: …\\n\\nAssistant: …", as in Anthropic/hh-rlhf), lists of messages (as in
HuggingFaceH4/ultrafeedback_binarized), or completions beside a `prompt`, which is text, a dialogue or a list of
messages.
"""

import re
from typing import ClassVar, Literal

from lpc.data.formats.base import Malformed, Rows, check_object, check_text, field, identity, make_row, preferred


class FlatPairs(Rows):
    title: ClassVar[str] = (
        "`chosen` and `rejected` as dialogues of Human and Assistant, as lists of messages, or as completions beside a"
        " `prompt`"
    )

    kind: Literal["pairs"]

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        return pair_row(record, default_source)


def pair_row(record: object, default_source: str) -> dict:
    """Return the row of a record with a chosen and a rejected completion. Raises Malformed."""
    prompts, responses = [], []
    for name in ("chosen", "rejected"):
        *prompt, last = _messages(_whole(record, name), name)
        prompts.append(prompt)
        responses.append(last["content"])
    if prompts[0] != prompts[1]:
        raise Malformed("chosen and rejected have different prompts")
    return make_row(record, default_source, prompts[0], preferred(*responses))


def _whole(record: object, name: str) -> list:
    """The dialogue that ends with the completion `name`, from the prompt on; its messages are not checked yet."""
    value, prompt = field(record, name), record.get("prompt")
    if isinstance(value, str) and not value.startswith("\n\nHuman:") and prompt is not None:
        turns = _prompt(prompt)
        # In a dialogue, the space after "Assistant:" is none of the completion.
        value = value.strip() if isinstance(prompt, str) and _is_dialogue(prompt) else value
        return [*turns, {"role": "assistant", "content": value}]
    if isinstance(value, str):
        dialogue = _dialogue(value, name)
    elif not isinstance(value, list):
        raise Malformed(f"{name} is neither text nor messages")
    elif prompt is not None and value and check_object(value[0]).get("role") == "assistant":
        return [*_prompt(prompt), *value]
    else:
        dialogue = value
    if prompt is not None and not _agree(prompt, _messages(dialogue, name)[:-1]):
        raise Malformed(f"the prompt is not that of {name}")
    return dialogue


def _is_dialogue(prompt: str) -> bool:
    ends = prompt.rstrip().endswith("\n\nAssistant:") and "\n\nHuman:" in f"\n\n{prompt}"
    return prompt.startswith("\n\nHuman:") or ends


def _prompt(prompt: object) -> list:
    """The messages of a column `prompt`: a list of them, a dialogue that may end in "Assistant:", or a user's text."""
    if isinstance(prompt, list):
        return prompt
    if not isinstance(prompt, str):
        raise Malformed("prompt is neither text nor messages")
    if not _is_dialogue(prompt):
        return [{"role": "user", "content": prompt}]
    turns = _dialogue("\n\n" + prompt.lstrip("\n"), "prompt")
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _agree(prompt: object, messages: list[dict]) -> bool:
    """Whether a column `prompt` says what the messages before the completion say, or one of the user's turns."""
    turns = _prompt(prompt)
    if isinstance(prompt, str) and not _is_dialogue(prompt):
        users = [message["content"] for message in messages if message["role"] == "user"]
        return identity(prompt) in map(identity, users)
    said = [(field(turn, "role"), identity(check_text(field(turn, "content"), "message in prompt"))) for turn in turns]
    return said == [(message["role"], identity(message["content"])) for message in messages]


def _dialogue(text: str, name: str) -> list[dict]:
    """The messages of "\\n\\nHuman: …\\n\\nAssistant: …"."""
    start, *turns = re.split(r"\n\n(Human|Assistant):", text)
    if start.strip() or not turns:
        raise Malformed(f"{name} is no dialogue of Human and Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def _messages(dialogue: object, name: str) -> list[dict]:
    """Messages that any chat template renders: perhaps one of the system, then user and assistant in turn."""
    if not isinstance(dialogue, list):
        raise Malformed(f"{name} is neither text nor messages")
    messages = [
        {
            "role": check_text(field(message, "role"), "role"),
            "content": check_text(field(message, "content"), f"message in {name}"),
        }
        for message in dialogue
    ]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise Malformed(f"{name} does not alternate between user and assistant")
    return messages
