"""Dialogues as lists of messages, or as text ("\\n\\nHuman: …\\n\\nAssistant: …"): what several kinds share."""

import re

from lpc.data.formats.base import Malformed, check_text, field


def is_dialogue(text: str) -> bool:
    """Return whether a prompt is a dialogue of Human and Assistant rather than a user's text."""
    ends = text.rstrip().endswith("\n\nAssistant:") and "\n\nHuman:" in f"\n\n{text}"
    return text.startswith("\n\nHuman:") or ends


def parse_dialogue(text: str, name: str) -> list[dict]:
    """Return the messages of "\\n\\nHuman: …\\n\\nAssistant: …". Raises Malformed, which calls it `name`."""
    start, *turns = re.split(r"\n\n(Human|Assistant):", text)
    if start.strip() or not turns:
        raise Malformed(f"{name} is not a dialogue of Human and Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def prompt_messages(prompt: object, name: str = "prompt") -> list:
    """Return the messages of a prompt, unchecked: a list of them, a dialogue that may end in "Assistant:", or a user's
    text. Raises Malformed, which calls it `name`."""
    if isinstance(prompt, list):
        return prompt
    if not isinstance(prompt, str):
        raise Malformed(f"{name} is neither text nor messages")
    if not is_dialogue(prompt):
        return [{"role": "user", "content": prompt}]
    turns = parse_dialogue("\n\n" + prompt.lstrip("\n"), name)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def check_messages(dialogue: object, name: str, last: str = "assistant") -> list[dict]:
    """Return messages that any chat template renders: perhaps one of the system, then user and assistant in turn.

    last: the role of the last one. Raises Malformed, which calls them `name`.
    """
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
    if turns[-1:] != [last] or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        ending = ", ending with the user" if last == "user" else ""
        raise Malformed(f"{name} does not alternate between user and assistant{ending}")
    return messages


def check_prompt(prompt: object, name: str = "prompt") -> list[dict]:
    """Return the messages of a prompt (see `prompt_messages`), the last one the user's. Raises Malformed."""
    return check_messages(prompt_messages(prompt, name), name, last="user")
