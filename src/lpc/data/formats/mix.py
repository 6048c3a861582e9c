"""A mixture: the pairs of other datasets of the configuration, each with a share of its training pairs."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lpc.config.keys import REQUIRED, Name, Seed, key
from lpc.data.formats.base import Dataset


class Mix(Dataset):
    title: ClassVar[str] = "the pairs of other datasets, each with its own split and `pairs`"

    kind: Literal["mix"]
    mix: dict[Name, Annotated[float, Field(gt=0, le=1)]] = key(
        REQUIRED,
        "names from `datasets`, each with the share of its training pairs that is used: `{feedback: 1.0, hh: 0.5}`",
        min_length=1,
    )
    seed: Seed = key(0, "draws the training pairs")
