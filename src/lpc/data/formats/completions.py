"""Completions with their scores: what several kinds of datasets share."""

import math

from lpc.data.formats.base import Malformed, check_text


def completion(response: object, score: object, model: object = None, aspects: dict | None = None) -> dict:
    """Return a completion of a row. model: the name of its model; null if not text. Raises Malformed."""
    return {
        "model": check_text(model, "model") if isinstance(model, str) and model.strip() else None,
        "response": check_text(response, "response"),
        "score": check_number(score, "score"),
        "aspects": aspects,
    }


def check_number(value: object, name: str) -> float:
    """Return `value`, a finite number. Raises Malformed, which calls it `name`."""
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise Malformed(f"{name} is not a number")


def check_choice(value: object, name: str) -> int:
    """Return `value`, 0 or 1. Raises Malformed, which calls it `name`."""
    if check_number(value, name) not in (0, 1):
        raise Malformed(f"{name} is neither 0 nor 1")
    return int(value)
