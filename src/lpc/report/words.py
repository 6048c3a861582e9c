"""Numbers, lists and names in the words of the page."""

import numpy as np

from lpc import objectives

NONE = "–"


def percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def number(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """Return a number with a true minus sign; an en dash where there is none. A rounded zero has no sign."""
    if value is None:
        return NONE
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    elif sign and value > 0:
        text = f"+{text}"
    return text.replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits; whole numbers in full."""
    if value is None:
        return NONE
    if value == 0 or isinstance(value, int):
        return number(value, 0)
    return number(value, min(max(0, digits - 1 - int(np.floor(np.log10(abs(value))))), 8))


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """Return "[low, high]" with one digit; empty where there is none."""
    return "" if low is None or high is None else f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def span(values: list[float], digits: int = 1, *, sign: bool = False) -> str:
    """Return "low to high", or one number if both round to it."""
    ends = [number(end, digits, sign=sign) for end in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(n: int, singular: str) -> str:
    return f"{n:,} {singular}" + ("" if n == 1 else "s")


def part_of(shown: int, total: int, singular: str) -> str:
    """Return "all 8 codes" or "24 of 64 codes"."""
    return f"all {count(total, singular)}" if shown == total else f"{shown} of {count(total, singular)}"


def listed(parts: list[str], word: str) -> str:
    """Return "a, b and c", with `word` for "and"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def objective(name: str) -> str:
    return objectives.kind(name).title
