"""Whatever a configuration or a `--spec` holds, it is accepted or refused in the project's own words."""

import argparse
import copy
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpc import cli
from lpc.config import specs
from lpc.config.load import ConfigError, load, resolve

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "config/demo.yaml").read_text()
DEMO = yaml.safe_load(TEXT)


def budget(examples: int):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def nested(depth: int):
    """A list in a list in a list, and so on."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def mixed(depth: int):
    value = 1
    for _ in range(depth):
        value = {"recipes": [value]}
    return value


ODD = [
    "",
    " ",
    "\x00",
    "\n",
    "\ud800",
    "é😀",
    "a/b",
    "../x",
    "-",
    "{x}",
    "*",
    "null",
    "1e3",
    "a" * 5000,
    "%s",
    "x\u2028y",
]
words = st.sampled_from(ODD) | st.text(max_size=8)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, -1, 0, 1e308])
scalars = st.none() | st.booleans() | numbers | words
deep = st.sampled_from([nested(45), mixed(30), mixed(60)])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


def places(value, way=()):
    """Every way to an element of nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from places(inner, (*way, key))


KNOWN = [inner for way in places(DEMO) for inner in [way[-1]] if isinstance(inner, str)]


@st.composite
def mutated(draw, start=DEMO, others=values | deep):
    """`start` with up to three elements replaced, deleted, added, or moved to where another one was."""
    config = copy.deepcopy(start)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(config))[:300]
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        inner = config
        for key in way:
            inner = inner[key]
        action = draw(st.sampled_from(["replace", "delete", "add", "move"]))
        if action == "delete":
            del inner[last]
        elif action == "add" and isinstance(inner, dict):
            inner[draw(st.sampled_from(KNOWN) | words | st.integers() | st.none())] = copy.deepcopy(draw(others))
        elif action == "move":
            inner[last] = copy.deepcopy(DEMO[draw(st.sampled_from(list(DEMO)))])
        else:
            inner[last] = copy.deepcopy(draw(others))
    return config


def check(read, *arguments) -> bool:
    """Whether a configuration is accepted; a refusal must have a line for each fault that it counts, and no other."""
    try:
        assert read(*arguments).runs is not None
        return True
    except ConfigError as error:
        first, *lines = str(error).splitlines()
        assert not lines or int(first.split()[0]) == len(lines), error
        str(error).encode()
        return False


@budget(100)
@given(mutated())
def test_a_mutated_configuration(monkeypatch, config):
    monkeypatch.chdir(ROOT)
    check(resolve, config)


@budget(60)
@given(
    st.lists(
        st.tuples(st.integers(0, len(TEXT)), st.integers(0, 6), words | st.sampled_from("\t:{[&*!|-#")), max_size=3
    )
)
def test_a_file_with_a_few_characters_changed(tmp_path, monkeypatch, edits):
    monkeypatch.chdir(ROOT)
    text = TEXT
    for place, length, new in edits:
        text = text[:place] + new + text[place + length :]
    (tmp_path / "config.yaml").write_bytes(text.encode(errors="surrogatepass"))
    check(load, tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"", b"[" * 1200, b"- a", b"a: &a [*a]", b"a: !!python/name:os.system"]
)
def test_a_file_that_is_no_configuration(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    assert not check(load, tmp_path / "config.yaml")


@pytest.mark.parametrize("value", [nested(5000), mixed(5000)], ids=["lists", "sections"])
@pytest.mark.parametrize("section", ["recipes", "project"])
def test_a_section_that_is_nested_without_end(monkeypatch, section, value):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=rf"{section}.*: nested more than 50 levels deep"):
        resolve(DEMO | {section: value})


def test_the_start_of_the_mutations_is_accepted(monkeypatch):
    """Otherwise nothing but refusals would be tested."""
    monkeypatch.chdir(ROOT)
    assert check(resolve, DEMO)


SPEC = {
    "objective": {"name": "dpo", "beta": 0.1},
    "latent": {"kind": "lpc", "codes": 8},
    "tokens": {"max_length": 64, "max_prompt_length": 32},
    "training": {"epochs": 1, "batch_size": 16},
    "seed": 0,
}


def parsed(text: str) -> bool:
    """Whether a command line with that `--spec` is accepted; `cli.fail` makes one line of a refusal."""
    try:
        given = cli.json_object(text)
        specs.Train.parse(given, {})
        return True
    except argparse.ArgumentTypeError as error:
        assert str(error).strip()
    except ValueError as error:
        assert type(error) is ValueError, error  # of ours, not of a library
        assert str(error).strip()
    return False


@budget(100)
@given(mutated(SPEC, values))
def test_a_mutated_spec(spec):
    keys = {str(key): value for key, value in spec.items()}
    parsed(json.dumps(keys))


@budget(60)
@given(
    st.text(max_size=30)
    | st.sampled_from(["@", "@/", "@\x00", "[" * 5000, '{"seed":' * 900 + "1" + "}" * 900, "{} {}"])
)
def test_a_spec_of_any_text(text):
    assert not parsed(text)


def test_the_spec_that_is_mutated_is_accepted():
    assert parsed(json.dumps(SPEC))
