"""The generated preference world, which `lpc.data.world` writes in UltraFeedback's form."""

from typing import ClassVar, Literal

from pydantic import model_validator

from lpc.config.keys import Integer, Seed, fault, key
from lpc.data.formats.base import OwnRows
from lpc.data.formats.ultrafeedback import scored_row


class World(OwnRows):
    title: ClassVar[str] = "generated rows whose hidden preferences are known"

    kind: Literal["world"]
    rows: Integer = key(7500, "rows to generate", ge=1)
    completions: Integer = key(4, "completions of a generated row", ge=2)
    score_noise: float = key(0.8, "standard deviation of the noise on generated scores", ge=0)
    seed: Seed = key(0, "of the generator")
    people: Integer | None = key(
        None,
        "number of people, each with one of six hidden tastes; a person's rows are a group, and no prompt shows a "
        "taste. null: prompts show the taste, and there are no groups",
        ge=6,
    )

    @property
    def has_groups(self) -> bool:
        return self.people is not None

    @model_validator(mode="after")
    def _rows_left_for_training(self):
        for name in self.split.own():
            raise fault(f"split.{name}", "a generated world has no splits of its own; use a number of rows")
        held_out, rows = sum(self.split.sizes().values()), min(self.rows, self.split.limit or self.rows)
        if held_out >= rows:
            raise fault("split", f"validation and test take {held_out} of {rows} rows; leave some for training")
        return self

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        return scored_row(record, default_source)
