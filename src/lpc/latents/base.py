from typing import Literal, ClassVar
from lpc.config.keys import *


class Inference(Section):
    inference: str = key("mean", "z from the prior", role=Role.INFERENCE)
    inference_seed: Seed = key(0, "of sample", role=Role.INFERENCE)


class LatentSettings(Section):
    compares_pairs: ClassVar = False
    learning_rate: float | None = key(1e-4, "peak", gt=0)


class LPC(LatentSettings, Inference):
    kind: Literal["lpc"] = "lpc"
    codes: Integer = key(64, "K", ge=2)


class Vector(LatentSettings):
    kind: Literal["vector"] = "vector"
