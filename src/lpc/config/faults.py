"""Messages about a faulty configuration: file, line, key, value, what is allowed, and the likely slip."""

import contextlib
import difflib
import functools
import json
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from pydantic import BaseModel, Tag, ValidationError


class Faults:
    """Collected faults, in the order found, with the line of the file where each stands."""

    def __init__(self, files: Iterable) -> None:
        self.files = [str(file) for file in files]
        self.entries: list[tuple[tuple, str]] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, path: tuple, message: str) -> None:
        if (path, message) not in self.entries:
            self.entries.append((path, message))

    def none_under(self, *prefix: str) -> bool:
        return all(path[: len(prefix)] != prefix for path, _ in self.entries)

    @functools.cached_property
    def _trees(self) -> list[tuple[str, yaml.Node]]:
        trees = []
        for file in self.files:
            with open(file, encoding="utf-8") as stream, contextlib.suppress(yaml.YAMLError):
                # JSON that YAML cannot read (tabs) gets messages without lines.
                trees.append((file, yaml.compose(stream, Loader=yaml.SafeLoader)))
        return trees

    def add_duplicates(self) -> None:
        """Add keys that are given twice, of which YAML would take the last one."""
        for file, tree in self._trees:
            stack: list[tuple[tuple, yaml.Node]] = [((), tree)]
            while stack:
                path, node = stack.pop()
                if isinstance(node, yaml.SequenceNode):
                    stack += [((*path, index), item) for index, item in enumerate(node.value)]
                if isinstance(node, yaml.MappingNode):
                    seen: dict[str, int] = {}
                    for key, item in node.value:
                        line = key.start_mark.line + 1
                        if key.value in seen:
                            self.add(
                                (*path, key.value),
                                f"given twice, in lines {seen[key.value]} and {line} of {file}; keep one",
                            )
                        seen[key.value] = line
                        stack.append(((*path, key.value), item))

    def _place(self, path: tuple) -> tuple[str, int]:
        """File and line of the key, or of the nearest one above it that is written down; line 0 where none is."""
        deepest, best = 0, (", ".join(self.files) or "configuration", 0)
        for file, tree in self._trees:
            depth, node, line = 0, tree, 1
            for part in path:
                if isinstance(node, yaml.MappingNode):
                    found = [(key, item) for key, item in node.value if key.value == str(part)]
                    if not found:
                        break
                    line, node = found[-1][0].start_mark.line + 1, found[-1][1]
                elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                    node = node.value[part]
                    line = node.start_mark.line + 1
                else:
                    break
                depth += 1
            if depth >= max(deepest, 1):
                deepest, best = depth, (file, line)
        return best

    def __str__(self) -> str:
        count = "1 fault" if len(self.entries) == 1 else f"{len(self.entries)} faults"
        placed = sorted((self._place(path), _dotted(path), message) for path, message in self.entries)
        lines = [
            one_line(f"{file}{f':{line}' if line else ''}: {key}: {message}") for (file, line), key, message in placed
        ]
        return "\n  ".join([f"{count} in the configuration:", *lines])


def one_line(text: object) -> str:
    """Return a message without line breaks, and with escapes for what no file can hold."""
    return " ".join(str(text).split()).encode("utf-8", "backslashreplace").decode()


def _dotted(path: tuple) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "top level"


def kind(value) -> str:
    names = {str: "a string", bool: "true or false", int: "an integer", float: "a number", dict: "a section of keys"}
    return "nothing (null)" if value is None else names.get(type(value), f"a {type(value).__name__}")


def one_of(values) -> str:
    return ", ".join(json.dumps(value) if not isinstance(value, str) else value for value in values) or "none"


def closest(name, names) -> str:
    close = difflib.get_close_matches(str(name), [str(known) for known in names], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def explain_all(error: ValidationError, root: Any) -> Iterator[tuple[tuple, str]]:
    """Yield the path and the message of every fault that pydantic found.

    root: the type that was validated, from which the keys that are allowed at a path are read.
    """
    for entry in error.errors(include_url=False):
        path, message = _explain(entry, root)
        yield tuple(part for part in path if not _is_tag(part)), message


def _explain(entry: dict, root: Any) -> tuple[tuple, str]:
    """One fault: the value, the rule, and the likely slip."""
    path, value, rule, context = entry["loc"], entry["input"], entry["type"], entry.get("ctx", {})
    shown = json.dumps(value, ensure_ascii=False, default=str)
    if path and path[-1] == "[key]":
        path = path[:-2]
    if rule == "extra_forbidden":
        known = allowed(root, path[:-1])
        return path, f"unknown key{closest(path[-1], known)} (allowed: {one_of(known)})"
    if rule == "missing":
        return path[:-1], f"{path[-1]} is missing"
    if rule in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'").removesuffix("()")
        if not isinstance(value, dict):
            return path, f"{shown} is {kind(value)}, expected a section of keys"
        if rule == "union_tag_not_found":
            return path, f"{tag} is missing"
        known = [name.strip("<>") for name in re.findall(r"'(<.*?>)'", context["expected_tags"])]
        found = value.get(tag)
        return (*path, tag), f"{json.dumps(found)} is not one of {one_of(known)}{closest(found, known)}"
    if rule in _EXPECTED:
        hint = ""
        if rule in _NUMBERS and isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            hint = f"; YAML reads it as text: write {_yaml_number(value)}"
        elif rule == "string_type" and not isinstance(value, (dict, list)):
            hint = "; write it in quotes"
        return path, f"{shown} is {kind(value)}, expected {_EXPECTED[rule]}{hint}"
    if rule == "literal_error":
        known = re.findall(r"'(.*?)'", context["expected"])
        return path, f"{shown} is not one of {one_of(known)}{closest(value, known)}"
    if rule == "string_pattern_mismatch":
        return path, f"invalid name {shown}: use {_PATTERNS[context['pattern']]}"
    if rule == "string_too_long":
        return path, f"{shown} is too long; must have at most {context['max_length']} characters"
    if rule in _BOUNDS:
        bound, words = _BOUNDS[rule]
        return path, f"{shown} is out of range, {words.format(context.get(bound))}"
    if rule == "finite_number":
        return path, f"{value} is not a finite number"
    if rule == "duplicates":
        return path, f"{shown} contains duplicates"
    if rule == "relation":
        return (*path, *context["key"].split(".")), context["message"]
    return path, entry["msg"]


def allowed(root: Any, path: tuple) -> list[str]:
    """Return the keys of the section at `path` of the type `root`."""
    for part in path:
        root = _below(root, part)
    section = next(iter(sections(root)), None)
    return list(section.model_fields) if section else []


def sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the section classes that a type names, at any depth of unions, lists and dictionaries."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in sections(part)]


def _below(annotation: Any, part: Any) -> Any:
    """The type of what stands at `part` in a value of this type."""
    if _is_tag(part):
        return next(member for member, name in _tagged(annotation) if name == part)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[part].annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (dict, list):
        return arguments[-1]
    # Annotated or optional: there is one section, dictionary or list in it.
    inner = next(argument for argument in arguments if typing.get_args(argument) or sections(argument))
    return _below(inner, part)


def _tagged(annotation: Any) -> Iterator[tuple[Any, str]]:
    """The members of a union with their tags."""
    for argument in typing.get_args(annotation):
        tag = next((item.tag for item in typing.get_args(argument) if isinstance(item, Tag)), None)
        if tag is None:
            yield from _tagged(argument)
        else:
            yield typing.get_args(argument)[0], tag


def _is_tag(part: Any) -> bool:
    return isinstance(part, str) and part.startswith("<")


_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_NUMBERS = ("int_type", "int_from_float", "float_type")
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least {}"),
    "greater_than": ("gt", "must be more than {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "less_than": ("lt", "must be less than {}"),
    "string_too_short": ("min_length", "must not be empty"),
    "too_short": ("min_length", "needs at least {} entry"),
}
_PATTERNS = {
    "^[a-z0-9][a-z0-9-]*$": "lowercase letters, digits and hyphens, starting with a letter or digit",
    "^[A-Za-z0-9][A-Za-z0-9_-]*$": "letters, digits, hyphens and underscores, starting with a letter or digit",
    "^[A-Za-z_][A-Za-z0-9_]*$": "letters, digits and underscores, as in an environment variable",
}


def _yaml_number(text: str) -> str:
    """`5e-7` as YAML 1.1 wants it: 5.0e-7."""
    mantissa, mark, exponent = text.strip().lower().replace("_", "").partition("e")
    if not mark:
        return mantissa
    return f"{float(mantissa)}e{exponent if exponent[0] in '+-' else '+' + exponent}"
