"""The tables of config/README.md and the JSON schema for editors, made from the models.

`python -m lpc.config.docs` writes both; a test holds them against the models.
"""

import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic_core import PydanticUndefined

from lpc.config import specs
from lpc.config.faults import sections
from lpc.config.keys import Role, Section, role_of
from lpc.config.models import DEFAULT, Resources, Settings

ROOT = Path(__file__).parents[3]
README = ROOT / "config" / "README.md"
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
ANY = "…"
"""A name that the user chooses."""


def schema() -> str:
    """Return the JSON schema of a configuration, for editors."""
    return json.dumps(Settings.model_json_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def tables(text: str) -> str:
    """Return `text`, config/README.md, with every table of keys made anew.

    A table stands between `<!-- keys: SECTIONS -->`, which names sections of the configuration, and `<!-- end -->`.
    """
    pattern = re.compile(r"(<!-- keys: ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + table(found[2].split(", ")) + found[3], text)


def table(names: list[str]) -> str:
    """Return the table of the keys of these sections, as Markdown."""
    rows = ["| key | meaning | type, default | role | reruns |", "|---|---|---|---|---|"]
    for name in names:
        rows += [f"| {' | '.join(row)} |" for row in _rows(Settings, name, name)]
    return "\n".join(rows) + "\n"


def _rows(section: type[Section], name: str, path: str) -> Iterator[tuple[str, str, str, str, str]]:
    """The rows of one key, and of all keys below it."""
    field = section.model_fields[name]
    if section is not Settings or not sections(field.annotation):
        if not sections(field.annotation) or _optional(field.annotation):
            yield _row([section], name, path)
    if issubclass(_only(sections(field.annotation)), Resources):
        if name == "default":
            yield from _below([Resources], f"resources.{ANY}")
        elif name == "train":
            yield _row([sections(field.annotation)[0]], "launch", "resources.train.launch")
        return
    if kinds := sections(field.annotation):
        inside = f"{path}.{ANY}" if typing.get_origin(_inner(field.annotation)) is dict else path
        yield from _below(kinds, inside)


def _below(kinds: list[type[Section]], path: str) -> Iterator[tuple[str, str, str, str, str]]:
    """The rows of a section; of one that has several kinds, a key that several have gets one row."""
    for name in dict.fromkeys(name for kind in kinds for name in kind.model_fields):
        having = [kind for kind in kinds if name in kind.model_fields]
        if sections(having[0].model_fields[name].annotation):
            yield from _rows(having[0], name, f"{path}.{name}")
        else:
            yield _row(having, name, f"{path}.{name}", len(having) < len(kinds))


def _row(having: list[type[Section]], name: str, path: str, only: bool = False) -> tuple[str, str, str, str, str]:
    meanings: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for kind in having:
        field = kind.model_fields[name]
        meanings.setdefault(field.description or "", []).append(_title(kind))
        values.setdefault(_value(field), []).append(_title(kind))
    meaning = "; ".join(
        f"{text} ({_code(kinds)})" if only or len(meanings) > 1 else text for text, kinds in meanings.items()
    )
    value = "; ".join(f"{text} ({_code(kinds)})" if len(values) > 1 else text for text, kinds in values.items())
    role = role_of(having[0], name)
    reruns = "nothing" if role is Role.EXECUTION else "tables, report" if role is Role.DISPLAY else ""
    found = [rule for rule in specs.RULES if any(rule in specs.readers(kind, name) for kind in having)]
    return f"`{path}`", _escape(meaning), _escape(value), str(role), reruns or ", ".join(found) or "what is new"


def _title(kind: type[Section]) -> str:
    """The tag of a kind, such as `dpo`; of a section without one its class's name."""
    for name in ("kind", "name"):
        if name in kind.model_fields and typing.get_origin(kind.model_fields[name].annotation) is typing.Literal:
            return typing.get_args(kind.model_fields[name].annotation)[0]
    return {"ScratchBase": "scratch", "PretrainedBase": "model"}.get(kind.__name__, kind.__name__)


def _value(field: Any) -> str:
    """Type, bounds and default of a key."""
    if field.is_required():
        return f"{_type(field)}, required"
    default = field.get_default(call_default_factory=True)
    return f"{_type(field)}, {json.dumps(default)}"


def _type(field: Any) -> str:
    options = [part for part in _union(field.annotation) if part is not type(None)]
    literals = [value for part in options if typing.get_origin(part) is typing.Literal for value in typing.get_args(part)]
    if literals:
        text = ", ".join(f"`{value}`" for value in literals)
    else:
        text = " or ".join(dict.fromkeys(_WORDS.get(typing.get_origin(part) or part, "section") for part in options))
    bounds = [words.format(getattr(item, name)) for item in _metadata(field) for kind, name, words in _BOUNDS if isinstance(item, kind)]
    text = " ".join([text, *bounds])
    return f"{text} or null" if _optional(field.annotation) else text


_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", list: "list", dict: "section"}
_BOUNDS = ((Ge, "ge", "≥ {}"), (Gt, "gt", "> {}"), (Le, "le", "≤ {}"), (Lt, "lt", "< {}"))


def _metadata(field: Any) -> list[Any]:
    """Constraints of a key, those of the one type beside null in an optional one included."""
    inner = [item for part in _union(field.annotation) for item in getattr(part, "__metadata__", ())]
    found = []
    for item in [*field.metadata, *inner]:
        found += getattr(item, "metadata", [item])
    return found


def _inner(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _union(annotation: Any) -> list[Any]:
    """The members of a union, without their annotations for tags; a type that is none is its only member."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return [part for member in typing.get_args(annotation) for part in _union(member)]
    return [_inner(annotation)]


def _optional(annotation: Any) -> bool:
    return type(None) in _union(annotation)


def _only(kinds: list[type[Section]]) -> type:
    return kinds[0] if len(kinds) == 1 else object


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
