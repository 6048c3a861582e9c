"""Where every file of a project lies under `results/<project>/`. Rules spell no such path themselves.

Names may be Snakemake's wildcards: `layout.run("{base}", "{variant}", "{recipe}", "{seed}").model` is the pattern of
all models, and the same call with the names of one run is the model of that run. Nothing here touches a disk.
"""

from pathlib import Path

from lpc.evaluation.folder import Evaluated


def noisy(dataset: str, noise: str) -> str:
    """Return the variant of `dataset` with a noise; without noise the variant is the dataset itself."""
    return f"{dataset}.{noise}"


def dataset_of(variant: str) -> str:
    """Return the dataset that a variant was made from. Names of datasets have no dot."""
    return variant.split(".")[0]


class Layout:
    """The results of one project; `root` is their folder."""

    def __init__(self, root: str | Path):
        self.root = root = Path(root)
        self.tables = root / "tables"
        self.report = root / "report.html"
        self.configuration = root / "configuration.json"
        self.crate = root / "ro-crate-metadata.json"
        self.timings = root / "timing"
        self.alpacaeval_instructions = root / "alpacaeval" / "instructions.json"
        self.alpacaeval_reference = root / "alpacaeval" / "reference.json"

    def data(self, variant: str) -> "Data":
        """Return the files of a dataset, or of one of its variants, which has pairs alone."""
        return Data(self.root / "data" / variant)

    def base(self, base: str) -> "Base":
        return Base(self.root / "bases" / base)

    def reference(self, base: str, variant: str) -> "Reference":
        return Reference(self.root / "reference" / base / variant)

    def run(self, base: str, variant: str, recipe: str, seed: int | str) -> "Run":
        return Run(self.root / "runs" / base / variant / recipe / f"seed-{seed}")

    def of(self, run: dict) -> "Run":
        """Return the files of a run that is given by its keys base, variant, recipe and seed."""
        return self.run(run["base"], run["variant"], run["recipe"], run["seed"])

    def checkpoints(self, base: str, variant: str, recipe: str, seed: int | str) -> Path:
        """Return the folder of a run's checkpoints. It is no output of a rule, or Snakemake would delete it when the
        job fails."""
        return self.root / "checkpoints" / _joined(base, variant, recipe, seed)

    def finished(self, rule: str, *names: str | int) -> Path:
        """Return the folder with the finished parts of an evaluation job. It is not an output of a rule: Snakemake
        would delete it before the job."""
        return self.root / "finished" / rule / _joined(*names)

    def task(self, task: str) -> "Task":
        return Task(self.root / "tasks" / task)

    def table(self, table: str) -> Path:
        return self.tables / f"{table}.csv"

    def caption(self, table: str) -> Path:
        """Return the caption of a table and its columns, for Snakemake's own report."""
        return self.tables / f"{table}.rst"

    def log(self, rule: str, *names: str) -> Path:
        """Log of the job of `rule` for these names (its wildcards); without any, of its only job."""
        return self.root / "logs" / rule / f"{_joined(*names or [rule])}.log"

    def timing(self, rule: str, *names: str) -> Path:
        """Return the path of the time and memory of the same job, by Snakemake."""
        return self.timings / rule / f"{_joined(*names or [rule])}.tsv"


class Data:
    """A dataset: where its rows are from, the rows with their split, and the pairs."""

    def __init__(self, folder: Path):
        self.record = folder / "dataset.json"
        self.world = folder / "world.jsonl.gz"
        self.rows = folder / "rows.parquet"
        self.rejects = folder / "rejects.jsonl"
        self.split = folder / "split.json"
        self.pairs = folder / "pairs.parquet"
        self.pairs_summary = folder / "pairs.json"


class Base:
    """A base model: its record, and the model where it is made here: trained from scratch, or quantised."""

    def __init__(self, folder: Path):
        self.record = folder / "base.json"
        self.model = folder / "model"
        self.benchmarks = Benchmarks(folder / "benchmarks")


class Reference:
    """Log-probabilities of a base for the pairs of a variant, and statistics of its hidden states."""

    def __init__(self, folder: Path):
        self.logps = folder / "reference.parquet"
        self.statistics = folder / "statistics.safetensors"


class Run(Evaluated):
    """A trained run and all that was measured of it."""

    def __init__(self, folder: Path):
        super().__init__(folder / "evaluation")
        self.folder = folder
        self.model = folder / "model"
        self.metrics = folder / "train.jsonl"
        self.summary = folder / "train.json"
        self.card = folder / "README.md"
        self.benchmarks = Benchmarks(folder / "benchmarks")
        self.answers = folder / "alpacaeval" / "outputs.json"
        self.judged = folder / "alpacaeval" / "judged.json"
        self.annotations = folder / "alpacaeval" / "annotations.json"


class Benchmarks:
    """Benchmark results of one model."""

    def __init__(self, folder: Path):
        self.folder = folder

    def result(self, task: str) -> Path:
        return self.folder / f"{task}.json"

    def samples(self, task: str) -> Path:
        """Return the path of the log of each sample."""
        return self.folder / f"{task}.samples.jsonl"


class Task:
    """A benchmark task: the record that its data was fetched, or the questions that were generated."""

    def __init__(self, folder: Path):
        self.download = folder / "download.json"
        self.questions = folder / "questions.jsonl"


def _joined(*names: str) -> str:
    return "~".join(map(str, names))
