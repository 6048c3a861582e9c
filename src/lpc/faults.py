"""Messages about a faulty configuration: file, line, key, value, what is allowed, and the likely slip."""

import contextlib
import difflib
import functools
import json
import re
from collections.abc import Iterable

import jsonschema
import yaml


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
        """A key given twice: YAML would quietly take the last one."""
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
        lines = [f"{file}{f':{line}' if line else ''}: {key}: {message}" for (file, line), key, message in placed]
        return "\n  ".join([f"{count} in the configuration:", *lines])


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


def explain(error: jsonschema.ValidationError, faults: Faults, path: tuple | None = None) -> None:
    """Turn one error of the validator into what a person needs: the value, what is allowed, the likely slip."""
    value, rule, limit = error.instance, error.validator, error.validator_value
    path = tuple(error.absolute_path) if path is None else path
    shown = json.dumps(value, ensure_ascii=False)
    if rule == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        for key in value:
            if key not in known:
                faults.add((*path, key), f"unknown key{closest(key, known)} (allowed: {one_of(known)})")
    elif rule == "required":
        for key in limit:
            if key not in value:
                faults.add(path, f"{key} is missing")
    elif rule == "type":
        types = [limit] if isinstance(limit, str) else limit
        hint = ""
        if {"number", "integer"} & set(types) and isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            hint = f"; YAML reads it as text: write {_yaml_number(value)}"
        elif "string" in types and not isinstance(value, (dict, list)):
            hint = "; write it in quotes"
        faults.add(path, f"{shown} is {kind(value)}, expected {' or '.join(_TYPES[name] for name in types)}{hint}")
    elif rule == "enum":
        faults.add(path, f"{shown} is not one of {one_of(limit)}{closest(value, limit)}")
    elif rule == "pattern":
        faults.add(path, f"{shown} is no name: allowed are {_PATTERNS[limit]}")
    elif rule in _BOUNDS:
        faults.add(path, f"{shown} is out of range, {_BOUNDS[rule].format(limit)}")
    elif rule == "uniqueItems":
        faults.add(path, f"{shown} names something twice")
    else:
        faults.add(path, error.message)


_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TYPES = {
    "object": "a section of keys",
    "array": "a list",
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "null": "null",
}
_BOUNDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "minLength": "must not be empty",
    "minItems": "needs at least {} entry",
    "minProperties": "needs at least {} entry",
}
_PATTERNS = {
    "^[a-z0-9][a-z0-9-]*$": "small letters, digits and hyphens, not a hyphen first",
    "^[A-Za-z0-9][A-Za-z0-9_-]*$": "letters, digits, hyphens and underscores",
    "^[A-Za-z_][A-Za-z0-9_]*$": "letters, digits and underscores, as in an environment variable",
}


def _yaml_number(text: str) -> str:
    """`5e-7` as YAML 1.1 wants it: 5.0e-7."""
    mantissa, mark, exponent = text.strip().lower().replace("_", "").partition("e")
    if not mark:
        return mantissa
    return f"{float(mantissa)}e{exponent if exponent[0] in '+-' else '+' + exponent}"
