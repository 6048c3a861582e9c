"""What is generated from the models: tables of config/README.md, JSON schema, help of the steps."""

import json
import re

import jsonschema
import pytest
import yaml

from lpc.config import docs, specs
from lpc.config.keys import Role


def test_readme_tables_are_those_of_the_models():
    text = docs.README.read_text(encoding="utf-8")
    assert docs.tables(text) == text, "run python -m lpc.config.docs"


def test_json_schema_is_that_of_the_models():
    assert docs.SCHEMA.read_text(encoding="utf-8") == docs.schema(), "run python -m lpc.config.docs"


def test_every_section_has_a_table_and_every_key_a_description():
    text = docs.README.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    named = {row[0].strip("| `").split(".")[0] for row in rows}
    assert named == set(docs.Settings.model_fields)
    assert len({row[0] for row in rows}) == len(rows)
    assert [row[0] for row in rows if not row[1].strip()] == []


@pytest.mark.parametrize("file", sorted((docs.ROOT / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configurations_fit_the_schema_of_editors(file):
    validator = jsonschema.Draft202012Validator(json.loads(docs.SCHEMA.read_text(encoding="utf-8")))
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    validator.validate(config)
    config["tokens"] = {"max_lenght": 1}
    assert not validator.is_valid(config)


@pytest.mark.parametrize(
    ("section", "name", "readers"),
    [
        (docs.Settings.model_fields["training"].annotation, "learning_rate", ["train"]),
        (docs.Settings.model_fields["training"].annotation, "precision",
         ["reference", "train", "evaluate"]),
        (docs.Settings.model_fields["tokens"].annotation, "max_length",
         ["pretrain", "reference", "train", "evaluate"]),
        (docs.Settings.model_fields["noise"].annotation.__args__[1], "rate", ["flip"]),
    ],
)  # fmt: skip
def test_rules_that_a_key_reruns(section, name, readers):
    assert specs.readers(section, name) == readers


def test_execution_and_display_keys_are_in_no_tracked_parameter():
    spec = specs.Train.parse({"objective": {"name": "dpo"}}, {"training": {"micro_batch_size": 4}})
    assert "micro_batch_size" not in spec.tracked()["training"]
    own = {"micro_batch_size": 4, "micro_batch_tokens": None, "attention": "loop", "gradient_checkpointing": False}
    assert spec.execution() == {"training": {**own, "logging_steps": 10, "save_minutes": 10.0}}
    execution = {"tasks": {"x": {"metric": "acc"}}, "batch_size": 3}
    benchmark = specs.Benchmark.parse({"tasks": {"x": {"task": "arc_easy"}}}, execution)
    assert benchmark.execution() == execution
    assert "batch_size" not in benchmark.tracked() and "metric" not in benchmark.tracked()["tasks"]["x"]


def test_inference_is_tracked_where_it_counts():
    latent = {"kind": "lpc", "inference": "mode"}
    train = specs.Train.parse({"objective": {"name": "dpo"}, "latent": latent}, {})
    assert "inference" not in train.tracked()["latent"] and "codes" in train.tracked()["latent"]
    scored = specs.Latents.parse({"inference": {"inference": "mode"}}, {})
    assert scored.tracked()["inference"]["inference"] == "mode"


@pytest.mark.parametrize(("rule", "spec"), specs.RULES.items())
def test_specs_survive_their_own_command_line(rule, spec):
    """A step gets exactly the spec that its rule filled in."""
    values = {
        "path": "x.jsonl", "model": "m", "kind": "easy" if rule == "questions" else "pairs", "name": "n", "task": "t",
        "metric": "acc", "rate": 0.5, "split": {"validation": 1, "test": 2}, "scratch": {"dataset": "d"},
        "objective": {"name": "dpo"}, "preference": {"objective": {"name": "dpo"}}, "runs": [], "recipes": {},
        "tasks": {"x": {"metric": "acc"}} if rule.startswith("benchmark") else [], "datasets": [], "sweeps": {},
        "mix": {"a": 0.5}, "quantize": "b",
        "settings": {
            "project": "p", "datasets": {"d": {"kind": "world", "split": {"validation": 1, "test": 2}}},
            "bases": {"b": {"model": "m"}}, "recipes": {"r": {"objective": {"name": "dpo"}}},
            "experiments": {"e": {"bases": ["b"], "datasets": ["d"], "recipes": ["r"]}},
        },
    }  # fmt: skip
    first = spec.parse({name: value for name, value in values.items() if name in spec.model_fields}, {})
    again = spec.parse(json.loads(json.dumps(first.tracked())), json.loads(json.dumps(first.execution())))
    assert again == first


@pytest.mark.parametrize(
    ("tracked", "message"),
    [
        ({}, "objective is missing"),
        ({"objective": {"name": "dpo", "bet": 1.0}}, "objective.bet: unknown key; did you mean beta?"),
        ({"objective": {"name": "dpo"}, "seed": -1}, "seed: -1 is out of range, must be at least 0"),
        ({"objective": {"name": "dpo"}, "sed": 1}, "sed: unknown key; did you mean seed?"),
    ],
)
def test_faulty_specs_name_the_key(tracked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        specs.Train.parse(tracked, {})


def test_every_role_occurs():
    text = docs.README.read_text(encoding="utf-8")
    for role in Role:
        assert f"| {role} |" in text
