"""Training from Python, by the same steps as the workflow's rules, in this process."""

import contextlib
import gc
import importlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lpc import cli
from lpc.cli import UserError
from lpc.config import models, specs
from lpc.config.faults import explain_all
from lpc.config.keys import Section
from lpc.data.pairs import PAIRS, make_pair
from lpc.files import canonical, parquet_metadata, read_json, sha256, write_rows
from lpc.layout import Base, Data, Reference, Run
from lpc.trained import Policy, load, rows_of
from lpc.training.identity import another_run, changes, identity

Pairs = Iterable[dict] | str | os.PathLike
Given = Mapping[str, Any] | Section | None


def train(
    pairs: Pairs,
    base: str | os.PathLike | Given,
    folder: str | os.PathLike,
    *,
    objective: str | Given = "dpo",
    latent: str | Given = None,
    training: Given = None,
    tokens: Given = None,
    seed: int = 0,
    reference: str | os.PathLike | None = None,
) -> Policy:
    """Train one run and return its policy; a run that is finished in `folder` is loaded.

    Settings that are not given have the defaults of config/README.md. An interrupt (Ctrl-C) saves a checkpoint and
    raises `lpc.Stopped`; the same call goes on from there. For several processes, use the workflow.

    Args:
        pairs: dicts {prompt or messages, chosen, rejected, group or none}, where `prompt` is the user's text and
            `messages` a list of {role, content}; or the path of a pairs.parquet, whose split `train` is read.
        base: folder or hub name of the model to start from, the path of its base.json, or a section of `bases`.
        folder: of the run: model/, train.json, train.jsonl, base.json, and the inputs that are made here.
        objective: section of a recipe, or the objective's name.
        latent: section of a recipe, or the latent's kind; None: the plain objective.
        training: section of the configuration.
        tokens: section of the configuration.
        seed: of the training.
        reference: what `make_reference` made of these pairs and this base; None: made in `folder` if it is needed.

    Raises:
        UserError: settings, pairs or base that cannot be used, or another run in `folder`.
    """
    with _faults(models.Recipe):
        recipe = models.Recipe.model_validate(
            {
                "objective": _section(objective, "name"),
                "latent": None if latent is None else _section(latent, "kind"),
                "training": _section(training),
            }
        )
    limits = _tokens(tokens)
    with _faults(specs.Train):
        spec = specs.Train.of_recipe(recipe, limits, seed)
    run, folder = Run(Path(folder)), Path(folder)
    record, made = Base(folder).record, _pairs_file(pairs, folder)
    with _inputs(pairs, base, folder) as (new_record, new_pairs):
        if run.summary.exists():
            now = identity(spec, base=new_record, pairs=new_pairs, reference=None, statistics=None)
            if another_run(changed := changes(read_json(run.summary)["identity"], now)):
                raise UserError(f"{folder}: has another run ({', '.join(changed)} differ); choose another folder")
            return load(folder)
        _move(new_record, record)
        _move(new_pairs, made)
    files = {}
    if spec.objective.needs_reference or (spec.latent is not None and spec.latent.needs_statistics):
        found = Reference(folder) if reference is None else Reference(Path(reference).parent)
        of_reference = _reference_spec(recipe.training, limits)
        if reference is None:
            _make_reference(record, made, found, of_reference)
        elif stale := _stale(record, made, found, of_reference):
            raise UserError(f"{reference}: {stale}; make it again with `make_reference`")
        if spec.objective.needs_reference:
            files["reference"] = found.logps
        if spec.latent is not None and spec.latent.needs_statistics:
            files["statistics"] = found.statistics
    with _signals_kept():
        _step(
            "train",
            spec,
            **{"base": record, "pairs": made, **files, "checkpoints": folder / "checkpoints"},
            **{"output": run.model, "metrics": run.metrics, "summary": run.summary},
        )
    gc.collect()  # the trainer refers to itself, and would hold its memory beside the loaded policy
    return load(folder)


def make_reference(
    pairs: Pairs,
    base: str | os.PathLike | Given,
    folder: str | os.PathLike,
    *,
    training: Given = None,
    tokens: Given = None,
) -> Path:
    """Write the base's log-probabilities of the pairs, for several calls of `train`; return their reference.parquet.

    Arguments are those of `train`; of `training`, `precision` and `micro_batch_size` are read.
    """
    with _faults(models.Training):
        settings = models.Training.model_validate(_section(training))
    folder, limits = Path(folder), _tokens(tokens)
    record, made = Base(folder).record, _pairs_file(pairs, folder)
    with _inputs(pairs, base, folder) as (new_record, new_pairs):
        _move(new_record, record)
        _move(new_pairs, made)
    _make_reference(record, made, Reference(folder), _reference_spec(settings, limits))
    return Reference(folder).logps


def _section(value: Any, tag: str | None = None) -> Any:
    """The dict of a section that is given as a dict, as a section, or by its tag alone."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, str) and tag:
        return {tag: value}
    return {} if value is None else dict(value)


def _tokens(value: Given) -> models.Tokens:
    with _faults(models.Tokens):
        return models.Tokens.model_validate(_section(value))


@contextlib.contextmanager
def _faults(section: type[Section]) -> Iterator[None]:
    """Raise UserError with all faults that pydantic finds in a section."""
    try:
        yield
    except ValidationError as error:
        found = [f"{'.'.join(map(str, path)) or 'settings'}: {text}" for path, text in explain_all(error, section)]
        raise UserError("; ".join(found)) from None


def _is_file(pairs: Pairs) -> bool:
    return isinstance(pairs, str | os.PathLike)


def _pairs_file(pairs: Pairs, folder: Path) -> Path:
    return Path(pairs) if _is_file(pairs) else Data(folder).pairs


@contextlib.contextmanager
def _inputs(pairs: Pairs, base: Any, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield base.json and the file of pairs, new ones in a temporary folder: `folder` may hold another run's."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        new, made = Path(temporary), _pairs_file(pairs, Path(temporary))
        if not _is_file(pairs):
            rows = ({**row, "split": "train"} for row in rows_of(pairs))
            # In the order of the ids: a run depends on its pairs, not on the order in which they are given.
            found = sorted((make_pair(row, *row["completions"]) for row in rows), key=lambda pair: pair["pair_id"])
            write_rows(made, found, PAIRS)
        record = Base(new).record
        if isinstance(base, str | os.PathLike) and Path(base).suffix == ".json":
            shutil.copyfile(base, record)
        else:
            _step("download_base", _base_spec(base), output=record)
        yield record, made


def _base_spec(base: Any) -> specs.DownloadBase:
    given = {"model": os.fspath(base)} if isinstance(base, str | os.PathLike) else _section(base)
    with _faults(models.PretrainedBase):
        settings = models.PretrainedBase.model_validate(given)
    # The record must name a folder for any later working directory.
    model = os.path.abspath(settings.model) if Path(settings.model).is_dir() else settings.model
    return specs.DownloadBase(name=Path(model).name, **dict(settings) | {"model": model})


def _move(source: Path, target: Path) -> None:
    """Move a file that is new, unless its place has the same content."""
    if source != target and not (target.exists() and sha256(target) == sha256(source)):
        os.replace(source, target)


def _reference_spec(training: models.Training, limits: models.Tokens) -> specs.Reference:
    return specs.Reference(tokens=limits, precision=training.precision, micro_batch_size=training.micro_batch_size)


def _make_reference(record: Path, pairs: Path, made: Reference, spec: specs.Reference) -> None:
    """Make the reference unless it is there: a repeated one may differ in the last bits, and resume no training."""
    if not made.logps.exists() or _stale(record, pairs, made, spec):
        _step("reference", spec, base=record, pairs=pairs, output=made.logps, statistics=made.statistics)


def _stale(record: Path, pairs: Path, made: Reference, spec: specs.Reference) -> str | None:
    """Return what else a reference was made of; None: of this base, these pairs and these settings."""
    metadata = parquet_metadata(made.logps)
    if metadata.get("base_sha256") != read_json(record)["sha256"]:
        return "made with another base"
    if metadata.get("pairs_sha256") != sha256(pairs):
        return "made of other pairs"
    return None if metadata["spec"] == spec.tracked() else "made with other `tokens` or another `training.precision`"


def _step(name: str, spec: specs.Spec, **paths: Path) -> None:
    """Run a step with the command line that its rule gives it."""
    module = importlib.import_module(f"lpc.steps.{name}")
    words = ["--spec", canonical(spec.tracked()), "--execution", canonical(spec.execution())]
    words += [word for option, path in paths.items() for word in (f"--{option}", str(path))]
    module.main(cli.parse(module.parser(), words))


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Give the signals that a training handles back to the program that called it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
