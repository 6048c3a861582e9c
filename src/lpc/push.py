"""Upload the model of a run with its card to the hub, in one commit. Log in first: `hf auth login`."""

import argparse
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from lpc.cli import UserError, fail
from lpc.layout import Run


def files_of(run: Run) -> dict[str, Path]:
    """Return the files to upload, by their path in the repository: those of `model/`, and the card."""
    if not run.model.is_dir():
        raise UserError(f"{run.model}: no such folder; name the folder of a finished run")
    if not run.card.is_file():
        raise UserError(f"{run.card}: no model card; make the cards with `snakemake cards` and --configfile")
    found = {str(file.relative_to(run.model)): file for file in sorted(run.model.rglob("*")) if file.is_file()}
    return {**{name: file for name, file in found.items() if not name.startswith(".")}, run.card.name: run.card}


def push(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Create the repository unless it exists, upload a run's model and card, and return the address of the commit.

    folder: of the run. repository: `owner/name` on the hub. Raises UserError where the hub refuses.
    """
    files = files_of(Run(Path(folder)))
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(
            repository,
            operations=[CommitOperationAdd(name, file) for name, file in files.items()],
            commit_message=f"Model of {folder}",
        )
    except HFValidationError as error:
        raise UserError(f"{repository}: must be owner/name on the hub ({' '.join(str(error).split())})") from None
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{repository}: the hub refuses ({reason}); log in with `hf auth login`, or correct the name"
        ) from None
    return commit.commit_url


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run, results/<project>/runs/<base>/<data>/<recipe>/seed-<n>")
    parser.add_argument("repository", help="owner/name on the hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    return parser


def main(args: argparse.Namespace) -> None:
    print(push(args.run, args.repository, private=args.private))


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
