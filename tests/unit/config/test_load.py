"""The configuration: defaults, every fault at once in words, runs and sweeps."""

import copy
from pathlib import Path

import pytest
import yaml

from lpc.config import specs
from lpc.config.load import ConfigError, load, resolve
from lpc.config.models import AllResources, dump
from lpc.config.runs import Run
from lpc.files import canonical

ROOT = Path(__file__).parents[3]
DEMO = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
DEMO["experiments"] = {"main": DEMO["experiments"]["main"]}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    """Paths of a configuration are relative to the working directory."""
    monkeypatch.chdir(ROOT)


def changed(**values):
    """The demo's configuration with values set at dotted keys; `...` deletes."""
    config = copy.deepcopy(DEMO)
    for path, value in values.items():
        *parents, last = path.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return config


def faults(**values):
    with pytest.raises(ConfigError) as caught:
        resolve(changed(**values))
    return str(caught.value)


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configurations_are_valid_and_complete(file, tmp_path, monkeypatch):
    # What a study reads from the folder that it runs in.
    (tmp_path / "data/SmolLM2-135M-Instruct").mkdir(parents=True)
    (tmp_path / "data/SmolLM2-135M-Instruct/config.json").touch()
    for name in ("alpacaeval_preferences", "dsp_responses", "hh_rlhf_helpful_harmless"):
        (tmp_path / f"data/{name}.jsonl.gz").touch()
    monkeypatch.chdir(tmp_path)
    config = load(file)
    assert config.runs
    # Filling in defaults twice changes nothing, so the filled configuration is itself valid.
    assert resolve(dump(config.settings)).settings == config.settings


def test_numbers_are_of_the_type_of_their_key():
    """1 and 1.0 must give the same spec, or writing one for the other would rerun a training."""
    whole = resolve(changed(recipes__dpo__objective={"name": "dpo", "beta": 1}, training__epochs=2.0))
    point = resolve(changed(recipes__dpo__objective={"name": "dpo", "beta": 1.0}, training__epochs=2))
    assert canonical(dump(whole.settings)) == canonical(dump(point.settings))
    assert '"beta":1.0' in (text := canonical(dump(whole.recipes["dpo"]))) and '"epochs":2,' in text


def test_training_of_a_recipe_overrides_single_keys():
    config = resolve(changed(recipes__dpo__training={"learning_rate": 0.5}))
    whole = config.settings.training
    assert config.recipes["dpo"].training == whole.model_copy(update={"learning_rate": 0.5})
    assert config.recipes["ipo"].training == whole


HUB = {"kind": "pairs", "path": "org/prefs", "split": {"validation": 5, "test": 5}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"training__learning_rate": "5e-7"}, ["training.learning_rate", '"5e-7" is a string', "write 5.0e-7"]),
        ({"training__learning_rate": "1e5"}, ["write 1.0e+5"]),
        ({"training__learnin_rate": 1.0}, ["training.learnin_rate: unknown key; did you mean learning_rate?"]),
        ({"training__batch_size": "32"}, ['"32" is a string, expected an integer', "write 32"]),
        ({"training__epochs": 0}, ["training.epochs: 0 is out of range, must be at least 1"]),
        ({"training__epochs": True}, ["training.epochs: true is true or false, expected an integer"]),
        ({"training__warmup_ratio": 1.5}, ["training.warmup_ratio: 1.5 is out of range, must be less than 1"]),
        ({"training__learning_rate": float("nan")}, ["1 fault", "training.learning_rate: nan is not a finite number"]),
        ({"datasets__world__rows": 10}, ["datasets.world.split: validation and test take", "of 10 rows"]),
        ({"training__precision": "bfloat61"}, ["bfloat61", "float32, bfloat16", "did you mean bfloat16?"]),
        ({"training__micro_batch_size": 5}, ["32 must be a multiple of 5", "recipes.dpo.training.batch_size"]),
        ({"project": "My Project"}, ['project: invalid name "My Project"', "lowercase letters, digits and hyphens"]),
        ({"project": 3}, ["project: 3 is an integer, expected a string; write it in quotes"]),
        ({"datasets": ...}, ["top level: datasets is missing"]),
        ({"datasets__world__kind": "wrld"}, ["datasets.world.kind", "did you mean world?"]),
        ({"datasets__world__path": "x"}, ["datasets.world.path: unknown key"]),
        ({"datasets__Bad": {}}, ['datasets: invalid name "Bad"']),
        (
            {"datasets__mine": {"kind": "pairs", "path": "./no.jsonl.gz", "split": {"validation": 1, "test": 1}}},
            ["datasets.mine.path: ./no.jsonl.gz: no such file"],
        ),
        ({"datasets__mine": {"kind": "pairs"}}, ["datasets.mine: path is missing", "datasets.mine: split is missing"]),
        ({"datasets__world__split": {"validation": 0, "test": 5}}, ["split.validation: 0 is neither a number of rows"]),
        ({"datasets__world__split": {"validation": 5, "test": "9"}}, ["1 fault", "world.split.test: '9' is neither"]),
        ({"datasets__world__split": {"validation": 5, "test": "x"}}, ["split.test: a generated world has no splits"]),
        ({"datasets__world__split": {"validation": 5, "test": 5, "limit": 10}}, ["test take 10 of 10 rows; leave"]),
        (
            {"datasets__mine": HUB | {"split": {"validation": 5, "test": "x", "by": "group"}}},
            ["mine.split.by: group dr"],
        ),
        ({"datasets__mine": HUB | {"columns": {"promt": "q"}}}, ["mine.columns.promt: kind pairs reads no column of"]),
        ({"datasets__mine": HUB | {"columns": {"group": 3}}}, ["mine.group: 3 is an integer, expected a string"]),
        ({"datasets__mine": HUB | {"columns": {"group": "a"}, "group": "b"}}, ["mine.columns.group: `group` of this"]),
        (
            {
                "datasets__mine": HUB
                | {"path": __file__, "hub_config": "x", "split": {"validation": 5, "test": "no.jsonl"}}
            },
            ["mine.hub_config: only a dataset of the hub has it", "mine.split.test: no.jsonl: no such file"],
        ),
        ({"datasets__world__split": {"test": 5}}, ["world.split.validation: is missing; give a number of rows"]),
        (
            {"datasets__world__split": {"validation": 5, "test": "all"}},
            ["world.split.validation: test: all leaves no rows for validation"],
        ),
        (
            {"datasets__world__split": {"test": "all"}},
            [
                "2 faults",
                "experiments.main.datasets[0]: world has `test: all`, so it has no training pairs",
                "bases.tiny.scratch.dataset: world has `test: all`",
            ],
        ),
        (
            {"datasets__both": {"kind": "mix", "mix": {"world": 0.0, "wold": 1.0}}},
            ["1 fault", "datasets.both.mix.world: 0.0 is out of range, must be more than 0"],
        ),
        (
            {"datasets__both": {"kind": "mix", "mix": {"world": 1.5}}, "datasets__more": {"kind": "mix", "mix": {}}},
            [
                "both.mix.world: 1.5 is out of range, must be at most 1",
                "more.mix: {} is out of range, needs at least 1",
            ],
        ),
        (
            {"datasets__both": {"kind": "mix", "mix": {"wold": 1.0}, "split": {}}},
            ["datasets.both.split: unknown key"],
        ),
        (
            {
                "datasets__both": {"kind": "mix", "mix": {"wold": 1, "all": 1}},
                "datasets__all": {"kind": "mix", "mix": {"world": 1}},
                "bases__tiny__scratch__dataset": "all",
            },
            [
                "3 faults",
                "datasets.both.mix.wold: wold is not defined under datasets; did you mean world?",
                "datasets.both.mix.all: all is a mixture, which has no rows of its own; name its datasets instead",
                "bases.tiny.scratch.dataset: all is a mixture",
            ],
        ),
        ({"noise__clean": {"rate": 0.5}}, ["noise.clean: clean is the name of a dataset without noise"]),
        ({"tokens__max_prompt_length": 256}, ["tokens.max_prompt_length: 256 leaves no room"]),
        ({"bases__tiny__scratch__dataset": "wold"}, ["bases.tiny.scratch.dataset: wold is not defined under datasets"]),
        ({"bases__tiny__scratch__heads": 3}, ["bases.tiny.scratch.hidden_size: 128 must be a multiple of heads (3)"]),
        ({"bases__mine": {"model": "./tests"}}, ["bases.mine.model: ./tests is not a checkpoint"]),
        ({"bases__mine": {}}, ["bases.mine: model is missing"]),
        ({"bases__mine": {"quantize": "tinny"}}, ["bases.mine.quantize: tinny is not defined", "did you mean tiny?"]),
        (
            {"bases__mine": {"quantize": "tiny"}, "bases__again": {"quantize": "mine"}},
            ["bases.again.quantize: mine is quantised itself; name the base that it rounds"],
        ),
        ({"bases__mine": {"quantize": "tiny", "dtype": "float32"}}, ["bases.mine.dtype: unknown key"]),
        (
            {"recipes__dpo__objective": {"name": "dpo", "tau": 0.1}},
            ["recipes.dpo.objective.tau: unknown key", "(allowed: name, nll_weight, beta, label_smoothing"],
        ),
        ({"recipes__ipo__objective": {"name": "ipo"}}, ["recipes.ipo.objective: tau is missing"]),
        ({"recipes__dpo__objective": {"name": "dpoo"}}, ['"dpoo" is not one of cpo, dpo, ipo', "; did you mean dpo?"]),
        ({"recipes__dpo__latent": {"kind": "vector", "codes": 3}}, ["recipes.dpo.latent.codes: unknown key"]),
        ({"recipes__base": {"objective": {"name": "dpo"}}}, ["recipes.base: base is the name of a base model"]),
        ({"recipes__dpo__latent": {"codes": 1}}, ["recipes.dpo.latent.codes: 1 is out of range, must be at least 2"]),
        (
            {"recipes__dpo__latent": {"codebook_init": "kmeans"}},
            ["recipes.dpo.latent.codebook_init: kmeans needs standardize: true"],
        ),
        (
            {"recipes__dpo__latent": {"information_weight": 1}, "training__micro_batch_size": 1},
            ["recipes.dpo.latent.information_weight: requires micro_batch_size > 1"],
        ),
        (
            {"training__evaluate": {"steps": 2, "patience": 3}},
            ["training.evaluate.patience: 3 needs best_by, which is null"],
        ),
        (
            {
                "training__evaluate": {"steps": 2},
                "training__optimizer": "adamw_split",
                "training__precision": "bfloat16",
            },
            ["training.optimizer: adamw_split requires evaluate: null"],
        ),
        (
            {
                "training__evaluate": {"steps": 2},
                "resources": {"train": {"gpus": 2, "launch": "config/accelerate/fsdp.yaml"}},
            },
            ["recipes.dpo.training.evaluate: not with FSDP, which resources.train.launch"],
        ),
        (
            {"recipes__dpo__latent": {"kind": "exact", "group_size": 3}, "training__micro_batch_size": 4},
            ["recipes.dpo.latent.group_size: 3 must divide micro_batch_size (4), so that no group is split"],
        ),
        (
            {"recipes__dpo__latent": {"gamma": {"until": 0}}},
            ["latent.gamma.until: 0 is out of range, must be more than 0"],
        ),
        ({"recipes__dpo__latent": {"kind": "mlp", "free_bits": 1}}, ["recipes.dpo.latent.free_bits: unknown key"]),
        ({"experiments__main__bases": ["tinny"]}, ["experiments.main.bases[0]: tinny is not", "did you mean tiny?"]),
        ({"experiments__main__noise": ["flip"]}, ["experiments.main.noise[0]: flip is not defined under noise"]),
        ({"experiments__main__recipes": []}, ["experiments.main.recipes: [] is out of range, needs at least 1 entry"]),
        ({"experiments__main__seeds": [1, 1]}, ["experiments.main.seeds: [1, 1] contains duplicates"]),
        ({"experiments__main__sweep": {"objective.beta": [1]}}, ["recipe ipo has no such key", "sweeps take:"]),
        (
            {"experiments__main__sweep": {"training.learning_rate": ["1e-3"]}},
            ["experiments.main.sweep.training.learning_rate", "write 1.0e-3"],
        ),
        ({"evaluation__preference__datasets": ["hh"]}, ["evaluation.preference.datasets[0]: hh is not defined"]),
        ({"evaluation__benchmarks__tasks__x": {"metric": "acc", "task": "x.yaml"}}, ["tasks.x.task: x.yaml: no such"]),
        (
            {"evaluation__benchmarks__tasks__x": {"metric": "acc", "data": {"test": "./no.jsonl"}}},
            ["evaluation.benchmarks.tasks.x.data.test: ./no.jsonl: no such file"],
        ),
        (
            {"experiments__main__seeds": [2**70]},
            ["seeds[0]: 1180591620717411303424 is out of range, must"],
        ),
        ({"experiments__train": {}}, ["experiments.train: train is the name of a rule of the workflow"]),
        ({"project": "x\n"}, ["project: invalid name"]),
        ({"training": 3}, ["training: 3 is an integer, expected a section of keys"]),
        ({"datasets": []}, ["datasets: [] is a list, expected a section of keys"]),
        ({"recipes__dpo__training": {"epoch": 1}}, ["recipes.dpo.training.epoch: unknown key; did you mean epochs?"]),
        ({"resources__trian": {"threads": 1}}, ["resources.trian: unknown key; did you mean train?"]),
        ({"resources__train": {"gpus": 2}}, ["2 devices (nodes: 1, gpus: 2) need launch"]),
        (
            {"resources__train": {"nodes": 3}},
            ["3 devices (nodes: 3, gpus: 0) need launch", "times the devices of rule train (3)"],
        ),
        ({"resources__train": {"launch": "config/no.yaml"}}, ["resources.train.launch: config/no.yaml: no such file"]),
    ],
)
def test_fault_names_key_value_and_what_is_allowed(values, expected):
    message = faults(**values)
    for part in expected:
        assert part in message


def test_keys_that_yaml_does_not_read_as_text():
    config = changed()
    config["experiments"][True] = {}
    with pytest.raises(ConfigError, match="True as a key is read by YAML as true or false; write it in quotes"):
        resolve(config)


def test_all_faults_are_listed_at_once():
    message = faults(
        training__learning_rate="5e-7",
        training__epoch=2,
        experiments__main__bases=["tny"],
        recipes__dpo__objective={"name": "dpo", "tau": 0.1},
        bases__mine={"model": "./nowhere"},
    )
    assert message.startswith("5 faults in the configuration:")
    assert len(message.splitlines()) == 6


def test_faults_name_file_and_line(tmp_path):
    file = tmp_path / "mine.yaml"
    text = (ROOT / "config/demo.yaml").read_text()
    file.write_text(text.replace("epochs: 1\n", "epochs: 0\n"))
    line = next(n for n, row in enumerate(text.splitlines(), 1) if row == "  epochs: 1")
    with pytest.raises(ConfigError, match=rf"{file}:{line}: training.epochs: 0 is out of range"):
        load(file)


def test_later_files_win_and_are_named(tmp_path):
    file = tmp_path / "override.yaml"
    file.write_text("training:\n  learning_rate: 5e-7\n")
    with pytest.raises(ConfigError, match=rf"{file}:2: training.learning_rate"):
        load(ROOT / "config/demo.yaml", file)
    file.write_text("training: {learning_rate: 5.0e-7}\n")
    assert load(ROOT / "config/demo.yaml", file).settings.training.learning_rate == 5e-7


def test_key_given_twice(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text((ROOT / "config/demo.yaml").read_text() + "tokens: {max_length: 64}\n")
    with pytest.raises(ConfigError, match="tokens: given twice, in lines"):
        load(file)


@pytest.mark.parametrize("text", ["a: [", "just text", ""])
def test_files_that_are_no_configuration(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=str(file)):
        load(file)


def test_json_with_tabs_is_checked_too(tmp_path):
    """Valid JSON, no valid YAML: there are no lines to name, but the fault is."""
    file = tmp_path / "mine.json"
    file.write_text('{\n\t"project": 3\n}')
    with pytest.raises(ConfigError, match="project: 3 is an integer"):
        resolve({"project": 3}, [file])


def test_runs_of_experiments_are_products_and_shared():
    config = resolve(
        changed(
            noise__flip50={"rate": 0.5},
            experiments={
                "main": {"bases": ["tiny"], "datasets": ["world"], "recipes": ["dpo", "dpo-lpc"], "seeds": [0, 1]},
                "noise": {
                    "bases": ["tiny"],
                    "datasets": ["world"],
                    "noise": ["clean", "flip50"],
                    "recipes": ["dpo"],
                },
            },
        )
    )
    shared = Run("tiny", "world", "clean", "dpo", 0)
    assert shared in config.experiments["main"] and shared in config.experiments["noise"]
    assert [f"{run.base}/{run.variant}/{run.recipe}/seed-{run.seed}" for run in config.runs] == [
        "tiny/world/dpo/seed-0",
        "tiny/world/dpo/seed-1",
        "tiny/world/dpo-lpc/seed-0",
        "tiny/world/dpo-lpc/seed-1",
        "tiny/world.flip50/dpo/seed-0",
    ]


def test_sweep_derives_recipes_and_keeps_the_own_value():
    config = resolve(
        changed(
            experiments__main__recipes=["dpo-lpc"],
            experiments__main__sweep={"latent.codes": [8, 64], "training.learning_rate": [0.001, 5.0e-7]},
        )
    )
    assert [run.recipe for run in config.runs] == [
        "dpo-lpc+latent.codes=8",
        "dpo-lpc+latent.codes=8+training.learning_rate=5e-07",
        "dpo-lpc",
        "dpo-lpc+training.learning_rate=5e-07",
    ]
    both = config.recipes["dpo-lpc+latent.codes=8+training.learning_rate=5e-07"]
    assert (both.latent.codes, both.training.learning_rate) == (8, 5e-7)
    assert config.recipes["dpo-lpc"].latent.codes == 64


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("latent.inference", "mode", "dpo-lpc+latent.inference=mode"),
        ("latent.gumbel_noise", False, "dpo-lpc+latent.gumbel_noise=false"),
        ("latent.gamma.start", 1, "dpo-lpc+latent.gamma.start=1.0"),
        ("latent.learning_rate", None, "dpo-lpc+latent.learning_rate=null"),
        ("objective.beta", 0.5, "dpo-lpc+objective.beta=0.5"),
    ],
)
def test_sweep_over_any_key_of_a_recipe(key, value, name):
    config = resolve(changed(experiments__main__recipes=["dpo-lpc"], experiments__main__sweep={key: [value]}))
    assert [run.recipe for run in config.runs] == [name]


def test_pairs_that_share_a_code_need_groups():
    latent = {"kind": "exact", "group_size": 4}
    message = faults(recipes__dpo__latent=latent)
    assert "experiments.main.datasets: recipe dpo has latent.group_size 4, but dataset world has no groups" in message
    rows = {"kind": "pairs", "path": "hub/name", "group": "annotator", "split": {"validation": 1, "test": 2}}
    swept = {
        "recipes__exact": {"objective": {"name": "dpo"}, "latent": {"kind": "exact"}},
        "experiments__main__recipes": ["exact"],
        "experiments__main__sweep": {"latent.group_size": [1, 4]},
    }
    names = [run.recipe for run in resolve(changed(datasets__world=rows, **swept)).runs]
    assert names == ["exact", "exact+latent.group_size=4"]
    message = faults(**swept)
    assert message.count("has no groups") == 1 and "recipe exact+latent.group_size=4 has" in message


def test_a_mixture_has_groups_where_all_of_its_datasets_have():
    rows = {"kind": "pairs", "path": "hub/name", "group": "annotator", "split": {"validation": 1, "test": 2}}
    values = {
        "recipes__dpo__latent": {"kind": "exact", "group_size": 4},
        "datasets__mine": rows,
        "datasets__both": {"kind": "mix", "mix": {"mine": 0.5, "world": 0.5}},
        "experiments__main__datasets": ["both"],
        "experiments__main__recipes": ["dpo"],
    }
    assert "dataset both has no groups" in faults(**values)
    assert resolve(changed(**values, datasets__world__people=12)).runs


@pytest.mark.parametrize(
    "latent", [{"kind": "exact", "group_size": 4}, {"kind": "lpc", "information_weight": 0.1}], ids=["groups", "pairs"]
)
def test_tables_and_report_read_recipes_without_execution_keys(latent):
    """A default of micro_batch_size in their place must not be checked against the latent."""
    config = resolve(changed(recipes__dpo__latent=latent, datasets__world__people=12))
    settings = {name: getattr(config, name) for name in ("settings", "recipes")}
    of_tables = {"recipes": config.recipes, "tasks": [], "datasets": [], "sweeps": {}}
    for spec in (specs.Tables(runs=[], **of_tables), specs.Report(runs=[], **settings)):
        assert type(spec).parse(spec.tracked(), {}).recipes["dpo"].latent == config.recipes["dpo"].latent


def test_a_split_by_group_needs_groups():
    message = faults(datasets__world__split__by="group")
    assert "datasets.world.split.by: group needs a dataset with `group`" in message


def test_sweep_names_that_no_file_system_holds():
    """The name of a recipe holds every swept key; logs hold the whole run."""
    sweep = {f"latent.{name}": [value] for name, value in SWEPT.items()}
    message = faults(experiments__main__recipes=["dpo-lpc"], experiments__main__sweep=sweep)
    assert "is too long for a file; sweep fewer keys at once" in message


SWEPT = {
    "kl_weight": 0.123456789, "kl_warmup": 0.123456789, "free_bits": 0.123456789, "code_scale": 0.123456789,
    "temperature": 0.123456789, "learning_rate": 0.123456789, "logit_scale": 0.123456789,
}  # fmt: skip


def test_recipe_names_a_relation_that_its_training_breaks_once_in_a_sweep():
    message = faults(
        training__micro_batch_size=1,
        experiments__main__recipes=["dpo-lpc"],
        experiments__main__sweep={"latent.information_weight": [1.0]},
    )
    assert "experiments.main.sweep.latent.information_weight: requires micro_batch_size > 1" in message


def test_resources_of_later_attempts_stay_below_their_limits():
    """Memory grows by shares, time with the attempt; a training resumes, so its time does not."""
    config = resolve(
        changed(
            resources={
                "default": {"mem_mb": 1000, "runtime": 10, "max_mem_mb": 2500, "max_runtime": 15},
                "train": {"mem_mb_per_billion": 500, "runtime": 12},
            }
        )
    )
    split, train = config.settings.resources.of("split"), config.settings.resources.of("train")
    assert [split.memory_at(shares, 0) for shares in (1, 2, 3)] == [1000, 2000, 2500]
    assert [split.minutes_at(attempt) for attempt in (1, 2)] == [10, 15]
    assert train.memory_at(1, 2_000_000_000) == 2000
    assert [train.minutes_at(attempt) for attempt in (1, 2)] == [12, 12]


def test_requests_of_a_training_on_several_nodes():
    """A task on each node, started by the job itself, and the GPUs of each node."""

    def requests(**train):
        resources = AllResources(train=train).of("train")
        return resources.processes, resources.requests()

    tasks = {"nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun", "gpu": 0}
    assert requests(gpus=2) == (2, {"gpu": 2})
    assert requests(nodes=2) == (2, tasks)
    assert requests(nodes=2, gpus=1) == (2, tasks | {"gres": "gpu:1"})
