"""How a key of the configuration is declared: type, bounds, default, description and role, in one place.

A section is a class; a key is one of its fields. Objectives, latents and kinds of datasets declare their settings with
the same two names, `Section` and `key`. Nothing heavy is imported here, since every job of a workflow reads the
configuration.
"""

import enum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError, core_schema


class Role(enum.StrEnum):
    """What depends on a key."""

    SCIENCE = "science"
    """Results: part of the rule's parameter and of a checkpoint's identity."""
    INFERENCE = "inference"
    """Results of evaluation alone: a change evaluates again and trains nothing."""
    EXECUTION = "execution"
    """How the work is done: a change reruns nothing and keeps checkpoints."""
    DISPLAY = "display"
    """What tables show: a change remakes tables and report alone."""


class Section(BaseModel):
    """A section of the configuration: unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )


REQUIRED: Any = ...


def key(default: Any, description: str, *, role: Role = Role.SCIENCE, added: bool = False, **bounds: Any) -> Any:
    """Declare a key of a section.

    Args:
        default: its value where the configuration does not give it; REQUIRED if it must be given.
        description: what it means, for the tables of config/README.md and the JSON schema.
        role: what depends on it.
        added: the key is younger than runs that are still valid. So a step gets it only where it differs from its
            default, and the parameters and identities of those runs stay as they were.
        bounds: pydantic's constraints, such as `ge`, `gt`, `le`, `lt`, `min_length`.
    """
    extra = {"role": str(role)} | ({"added": True} if added else {})
    if isinstance(default, (dict, list, BaseModel)):
        return Field(default_factory=lambda: default, description=description, json_schema_extra=extra, **bounds)
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def role_of(section: type[BaseModel], name: str) -> Role:
    """Return the role of the key `name` of a section."""
    return Role((section.model_fields[name].json_schema_extra or {}).get("role", Role.SCIENCE))


def fault(name: str, message: str) -> PydanticCustomError:
    """Return the error of a relation between keys of one section, to be raised by its validator; `name`: the key."""
    return PydanticCustomError("relation", "{message}", {"key": name, "message": message})


# Types of keys


def _whole(value: Any) -> Any:
    """2.0 for 2: both must become the same text, or writing one for the other would rerun a training."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
"""An integer; a whole number with a point counts as one."""
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)]
"""A name that becomes a folder."""
Text = Annotated[str, StringConstraints(min_length=1)]


class Unique:
    """Annotation of a list without duplicates."""

    def __get_pydantic_core_schema__(self, source, handler):
        return core_schema.no_info_after_validator_function(_without_duplicates, handler(source))

    def __get_pydantic_json_schema__(self, schema, handler):
        return {**handler(schema), "uniqueItems": True}


def _without_duplicates(values: list) -> list:
    if any(value in values[:position] for position, value in enumerate(values)):
        raise PydanticCustomError("duplicates", "contains duplicates")
    return values
