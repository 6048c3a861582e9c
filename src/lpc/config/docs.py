"""The tables of config/README.md and the JSON schema for editors, made from the models.

`python -m lpc.config.docs` writes both; a test holds them against the models.
"""

import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

from lpc import latents
from lpc.config import specs
from lpc.config.faults import sections
from lpc.config.keys import Role, Section, role_of
from lpc.config.models import DEFAULT, Images, Resources, Settings, TrainingOverride, TrainResources

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
    rows = ["| key | meaning | type | default | role | reruns |", "|---|---|---|---|---|---|"]
    for name in names:
        rows += [
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in _rows(Settings, name, name)
        ]
    return "\n".join(rows) + "\n"


def help_text(spec: type[specs.Spec]) -> str:
    """Return the keys of a step's spec for `--help`, one or two lines each."""
    lines = []
    for path, meaning, kind, default, role, _ in _below([spec], ""):
        lines += [f"  {path.strip('`.')}: {meaning}", f"      {kind}; default {default}; {role}"]
    return "\n".join(lines).replace("`", "").replace("; default required", "; required")


def _rows(section: type[Section], name: str, path: str) -> Iterator[tuple[str, ...]]:
    """The rows of one key, and of all keys below it."""
    annotation = section.model_fields[name].annotation
    kinds = sections(annotation)
    if kinds[:1] == [TrainingOverride]:
        yield (f"`{path}`", section.model_fields[name].description, "section", "{}", "", "")
    elif kinds and issubclass(kinds[0], Resources):
        # Every rule has the same keys: one row for all of them, and one for what rule train alone has.
        if name == "default":
            yield from _below([Resources], f"resources.{ANY}")
        elif name == "train":
            own = [name for name in TrainResources.model_fields if name not in Resources.model_fields]
            yield from (_row(kinds, name, f"resources.train.{name}") for name in own)
    else:
        if not kinds or _optional(annotation):
            yield _row([section], name, path)
        if kinds:
            inside = f"{path}.{ANY}" if typing.get_origin(annotation) is dict else path
            yield from _below(kinds, inside)


def _below(kinds: list[type[Section]], path: str) -> Iterator[tuple[str, ...]]:
    """The rows of a section; of one that has several kinds, a key that several have gets one row."""
    names = dict.fromkeys(name for kind in kinds for name in kind.model_fields)
    for name in sorted(names, key=lambda name: name not in _TAGS):
        having = [kind for kind in kinds if name in kind.model_fields]
        if sections(having[0].model_fields[name].annotation):
            yield from _rows(having[0], name, f"{path}.{name}")
        else:
            yield _row(having, name, f"{path}.{name}", [kind for kind in kinds if kind not in having])


def _row(having: list[type[Section]], name: str, path: str, others: Sequence[type[Section]] = ()) -> tuple[str, ...]:
    """One row. having: the kinds of the section that have the key; others: those that have not."""
    fields = {_tag(kind): kind.model_fields[name] for kind in having}
    first = fields[_tag(having[0])]
    if name in _TAGS and len(having) > 1:
        default = f"`{latents.DEFAULT}`" if latents.DEFAULT in fields else "required"
        meaning = "; ".join(
            f"`{tag}`: {field.description or _title(kind)}"
            for (tag, field), kind in zip(fields.items(), having, strict=True)
        )
        return (
            f"`{path}`",
            meaning,
            ", ".join(f"`{tag}`" for tag in fields),
            default,
            "science",
            _reruns(having, name),
        )
    meaning = _same(fields, lambda field: field.description or "")
    if others and "`)" not in meaning:
        few = list(fields) if len(having) <= len(others) else map(_tag, others)
        meaning += f" ({'not ' * (len(having) > len(others))}{', '.join(f'`{tag}`' for tag in few)})"
    default = _same(fields, _default)
    if issubclass(having[0], Resources) and getattr(DEFAULT, name, None) is not None:
        default = f"`{getattr(DEFAULT, name)}`"
    return f"`{path}`", meaning, _type(first), default, str(role_of(having[0], name)), _reruns(having, name)


_TAGS = ("kind", "name")
"""Keys that say which kind of section it is."""


def _same(fields: dict[str, Any], words: Callable[[Any], str]) -> str:
    """What `words` says of a key; where kinds differ, with the kinds that each part is about."""
    found: dict[str, list[str]] = {}
    for tag, field in fields.items():
        found.setdefault(words(field), []).append(f"`{tag}`")
    return "; ".join(text if len(found) == 1 else f"{text} ({', '.join(tags)})" for text, tags in found.items())


def _reruns(having: list[type[Section]], name: str) -> str:
    role = role_of(having[0], name)
    if having == [Images]:
        return "rules that run in it"  # Snakemake sees that their container changed
    if role is Role.EXECUTION:
        return "nothing"
    if role is Role.DISPLAY:
        return "tables, report"
    keys = [(kind, name) for kind in having]
    for kind in having:
        keys += [(inner, key) for inner in sections(kind.model_fields[name].annotation) for key in inner.model_fields]
    readers = {rule for kind, key in keys for rule in specs.readers(kind, key)}
    return ", ".join(rule for rule in specs.RULES if rule in readers) or "what is new"


def _tag(kind: type[Section]) -> str:
    """The tag of a kind, such as `dpo`; of a section without one its class's name."""
    for name in _TAGS:
        if name in kind.model_fields and typing.get_origin(kind.model_fields[name].annotation) is typing.Literal:
            return typing.get_args(kind.model_fields[name].annotation)[0]
    return {"ScratchBase": "scratch", "PretrainedBase": "model", "QuantizedBase": "quantize"}.get(
        kind.__name__, kind.__name__
    )


def _title(kind: type[Section]) -> str:
    """The name of a kind in tables."""
    return getattr(latents.KINDS.get(_tag(kind), kind), "title", kind.__name__)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    text = json.dumps(field.get_default(call_default_factory=True))
    return "`" + re.sub(r"^(\d+)e-0*", r"\1.0e-", text) + "`"  # YAML reads 5e-07 as text


def _type(field: Any) -> str:
    """Type and bounds of a key."""
    options = [part for part in _union(field.annotation) if part is not type(None)]
    literals = [
        value for part in options if typing.get_origin(part) is typing.Literal for value in typing.get_args(part)
    ]
    if literals:
        text = ", ".join(f"`{value}`" for value in literals)
    else:
        text = " or ".join(dict.fromkeys(_WORDS.get(typing.get_origin(part) or part, "section") for part in options))
    bounds = [
        words.format(getattr(item, name))
        for item in _metadata(field)
        for kind, name, words in _BOUNDS
        if isinstance(item, kind) and getattr(item, name) != 2**32
    ]
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
    inner = _inner(annotation)
    return [inner] if inner is annotation else _union(inner)


def _optional(annotation: Any) -> bool:
    return type(None) in _union(annotation)


if __name__ == "__main__":
    README.write_text(tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
