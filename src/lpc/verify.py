"""Compare the files of a finished project with the digests that its records hold (`make verify`).

Records are dataset.json, base.json, reference.parquet, train.json and the benchmarks' results. Prints one line for each
difference and exits with code 1, or one line with the counts. A dry run shows whether results are up to date.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lpc.cli import UserError, fail
from lpc.config.load import load
from lpc.files import parquet_metadata, read_json, sha256
from lpc.layout import Layout

MAKE_AGAIN = "restore it from a copy, or delete it and rerun the workflow, which makes it again"
USER_FILE = "restore it, or rerun the workflow, which then uses the new content"

content = cache(sha256)


@dataclass(frozen=True)
class Claim:
    """A digest that a record holds of a file or a model's folder."""

    record: Path
    file: Path
    recorded: str
    digest: Callable[[Path], str] = content
    fix: str = MAKE_AGAIN

    def fault(self) -> str | None:
        """Return what is wrong, and what to do, in one line; None where the file is the recorded one."""
        try:
            found = self.digest(self.file)
        except (FileNotFoundError, UserError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) else str(error)
            return f"{self.file}: {reason}, but {self.record} has its digest; {self.fix}"
        if found == self.recorded:
            return None
        digests = f"its digest is {found[:16]}, but {self.recorded[:16]} in {self.record}"
        return f"{self.file}: not the file that was used ({digests}); {self.fix}"


def claims(root: Path) -> Iterator[Claim]:
    """Yield the digests that the records of a project's results hold.

    root: folder of the results, relative to the working directory, as the paths in its records are.
    """
    results = Layout(root)
    for record in sorted(root.glob("data/*/dataset.json")):
        for file, digest in read_json(record)["sha256"].items():
            made = Path(file).is_relative_to(root)
            yield Claim(record, Path(file), digest, fix=MAKE_AGAIN if made else USER_FILE)
    for record in sorted(root.glob("bases/*/base.json")):
        base = read_json(record)
        made = Path(base["path"]).is_relative_to(root)
        yield Claim(record, Path(base["path"]), base["sha256"], checkpoint, MAKE_AGAIN if made else USER_FILE)
    for record in sorted(root.glob("reference/*/*/reference.parquet")):
        base, variant = record.parts[-3:-1]
        made_from = parquet_metadata(record)
        yield Claim(record, results.data(variant).pairs, made_from["pairs_sha256"])
        yield Claim(record, results.base(base).record, made_from["base_sha256"], recorded_base)
        yield Claim(record, results.reference(base, variant).statistics, made_from["statistics_sha256"])
    for record in sorted(root.glob("runs/*/*/*/*/train.json")):
        base, variant, recipe, seed = record.parts[-5:-1]
        run = results.run(base, variant, recipe, seed.removeprefix("seed-"))
        summary = read_json(record)
        inputs = summary["identity"]
        yield Claim(record, results.base(base).record, inputs["base"], recorded_base)
        yield Claim(record, results.data(variant).pairs, inputs["pairs"])
        if inputs["reference"] is not None:
            yield Claim(record, results.reference(base, variant).logps, inputs["reference"])
        if inputs["statistics"] is not None:
            yield Claim(record, results.reference(base, variant).statistics, inputs["statistics"])
        for name, digest in summary["files"].items():
            yield Claim(
                record, run.model / name, digest, fix=f"restore it from a copy, or delete {run.model} and rerun"
            )
    for record in sorted([*root.glob("bases/*/benchmarks/*.json"), *root.glob("runs/*/*/*/*/benchmarks/*.json")]):
        for data in (read_json(record)["data"] or {}).values():
            made = Path(data["file"]).is_relative_to(root)
            yield Claim(record, Path(data["file"]), data["sha256"], fix=MAKE_AGAIN if made else USER_FILE)


@cache
def checkpoint(folder: Path) -> str:
    """Return the digest of a base's folder, as base.json holds it."""
    from lpc.model.checkpoint import digest  # which imports transformers

    return digest(folder)


def recorded_base(record: Path) -> str:
    return read_json(record)["sha256"]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", nargs="+", required=True, help="configuration of the project, as for Snakemake")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print all differences; return 1 if there are any."""
    root = Layout(f"results/{load(*args.configfile).settings.project}").root
    try:
        found = list(claims(root))
    except KeyError as error:
        raise UserError(
            f"{root}: a record has no {error}, since an earlier version wrote it; rerun the workflow"
        ) from None
    if not found:
        raise UserError(f"{root}: no results with digests; use the configuration of a project that has run")
    faults = dict.fromkeys(fault for claim in found if (fault := claim.fault()))
    for fault in faults:
        print(fault)
    total = f"{len(found)} digests of {len({claim.file for claim in found})} files"
    print(f"{len(faults)} of {total} differ" if faults else f"{total}: all as recorded")
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parser().parse_args()))
    except UserError as error:
        fail(str(error), 1)
