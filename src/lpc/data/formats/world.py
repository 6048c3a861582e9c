"""The generated preference world, which `lpc.data.world` writes in UltraFeedback's form."""

from typing import ClassVar, Literal

from lpc.config.keys import Integer, Seed, key
from lpc.data.formats.base import Dataset
from lpc.data.formats.ultrafeedback import scored_row


class World(Dataset):
    title: ClassVar[str] = "generated rows whose hidden preferences are known"

    kind: Literal["world"]
    rows: Integer = key(7500, "rows to generate", ge=1)
    completions: Integer = key(4, "completions of a generated row", ge=2)
    score_noise: float = key(0.8, "standard deviation of the noise on generated scores", ge=0)
    seed: Seed = key(0, "of the generator")

    @staticmethod
    def row(record: object, default_source: str) -> dict:
        return scored_row(record, default_source)
