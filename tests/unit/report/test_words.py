"""Numbers in the words of the page."""

from lpc.report import words


def test_numbers_as_written():
    assert words.number(-1.25, 1) == "−1.2"
    assert words.number(-0.04, 1, sign=True) == "0.0"
    assert words.number(0.04, 1, sign=True) == "0.0"
    assert words.number(3, 1, sign=True) == "+3.0"
    assert words.number(None) == "–"
    assert words.number(12345.6, 0) == "12,346"
    assert [words.significant(value) for value in (0.0001234, 14.52, 1234.5, 3, 0, None)] == [
        "0.000123",
        "14.5",
        "1,234",
        "3",
        "0",
        "–",
    ]
    assert words.span([1.02, 0.98], 1) == "1.0"
    assert words.span([-0.5, 2], 1, sign=True) == "−0.5 to +2.0"
    assert [words.duration(seconds) for seconds in (42, 600, 7200)] == ["42 s", "10 min", "2.0 h"]
