"""Describe the results of a finished project as an RO-Crate 1.1 (`make crate`): ro-crate-metadata.json beside them.

It has the configuration, each result of it, the models, the workflow with its commit, and the versions of libraries.
Digests are those of the records, so `make verify` compares them with the files. Of one state, only `datePublished`
differs from crate to crate.
"""

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from lpc import files
from lpc.cli import UserError, fail
from lpc.config.load import ROOT, Config, load
from lpc.jobs import all_jobs
from lpc.layout import Layout
from lpc.modules import commit
from lpc.verify import claims, content

CITATION = ROOT / "CITATION.cff"
FORMATS = {
    ".csv": "text/csv",
    ".gz": "application/gzip",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
WORKFLOW, RUN = "#workflow", "#run"


def describe(config: Config, layout: Layout, citation: Path, published: str) -> dict:
    """Return the JSON-LD of a project's crate.

    layout: of the results, relative to the working directory, as the paths in their records are. citation: file in the
    Citation File Format with licence and authors of the results. published: date or time in ISO 8601. Raises UserError
    for results that are missing.
    """
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    jobs = all_jobs(config, layout)
    if missing := [job for job in jobs if not all(file.exists() for file in job.files)]:
        raise UserError(
            f"{layout.root}: {len(missing)} of {len(jobs)} jobs have no results, {missing[0].rule} first; "
            "finish the project with `snakemake all`"
        )
    digests = {claim.file: claim.recorded for claim in claims(layout.root) if claim.digest is content}
    crate, root = ROCrate(version="1.1"), layout.root
    crate.metadata.extra_terms["sha256"] = "https://schema.org/sha256"

    def reference(entity: dict) -> dict:
        crate.add(ContextEntity(crate, entity["@id"], {k: v for k, v in entity.items() if k != "@id"}))
        return {"@id": entity["@id"]}

    def add(path: Path, description: str) -> dict:
        about = {"description": description, "contentSize": str(path.stat().st_size)}
        about |= {"encodingFormat": FORMATS[path.suffix]} if path.suffix in FORMATS else {}
        about |= {"sha256": digests[path]} if path in digests else {}
        name = str(path.relative_to(root))
        return {"@id": crate.add_file(dest_path=name, properties={"name": name, **about}).id}

    project = config.settings.project
    given = [add(layout.configuration, "configuration of the project, its files merged")]
    made = [add(file, f"result of rule {job.rule}") for job in jobs for file in job.files]
    libraries = set()
    for run in config.runs:
        of_run = layout.run(run.base, run.variant, run.recipe, run.seed)
        record = files.read_json(of_run.summary)
        parts = [add(of_run.model / name, "file of a trained model") for name in sorted(record["files"])]
        name = f"{run.recipe} on {run.base} and {run.variant}, seed {run.seed}"
        about = {"name": name, "description": f"trained model of {record['parameters']:,} parameters", "hasPart": parts}
        made.append({"@id": crate.add_dataset(dest_path=f"{of_run.model.relative_to(root)}/", properties=about).id})
        libraries |= set(record["identity"]["versions"].items())
    versions = [
        reference({"@id": f"#{name}-{version}", "@type": "SoftwareApplication", "name": name, "version": version})
        for name, version in sorted(libraries)
    ]

    software, credits = _citation(CITATION), {}
    for file in (citation, CITATION):
        found = _citation(file)
        credits[file] = {name: [reference(entity) for entity in found[name]] for name in ("license", "author")}
    language = {"@id": "https://snakemake.github.io", "@type": "ComputerLanguage", "name": "Snakemake"}
    workflow = reference(
        {
            "@id": WORKFLOW,
            "@type": "SoftwareSourceCode",
            "name": software["title"],
            "description": "workflow/Snakefile at the commit that is checked out where this crate was written",
            "version": software["version"],
            "identifier": commit(),
            "programmingLanguage": reference(language),
            "softwareRequirements": versions,
            **credits[CITATION],
        }
    )
    action = {"@id": RUN, "@type": "CreateAction", "name": f"Run of project {project}", "instrument": workflow}
    crate.root_dataset["name"] = f"Results of project {project}"
    crate.root_dataset["description"] = (
        f"{software['title']}: {len(config.runs)} trained models of project {project}, their evaluation and the report"
    )
    crate.root_dataset["datePublished"] = published
    crate.root_dataset["mentions"] = [reference({**action, "object": given, "result": made})]
    for name, entities in credits[citation].items():
        crate.root_dataset[name] = entities
    return crate.metadata.generate()


def _citation(path: Path) -> dict[str, Any]:
    """Title and version of a file in the Citation File Format, and entities of its licences and authors."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        licences = [found["license"]] if isinstance(found["license"], str) else found["license"]
        return {
            "title": found["title"],
            "version": str(found.get("version", "")),
            "license": [
                {"@id": f"https://spdx.org/licenses/{name}", "@type": "CreativeWork", "name": name} for name in licences
            ],
            "author": [*_authors(found["authors"])],
        }
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); it must be in the Citation File Format, with "
            "title, license and authors"
        ) from None


def _authors(authors: list[dict]) -> Iterator[dict]:
    for author in authors:
        name = author.get("name") or " ".join(filter(None, (author.get("given-names"), author["family-names"])))
        kind = "Organization" if "name" in author else "Person"
        yield {"@id": author.get("orcid", f"#{quote(name)}"), "@type": kind, "name": name}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", nargs="+", required=True, help="configuration of the project, as for Snakemake")
    parser.add_argument(
        "--citation",
        type=Path,
        default=CITATION,
        help="file in the Citation File Format with licence and authors of the results (default: the workflow's)",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    config = load(*args.configfile)
    layout = Layout(f"results/{config.settings.project}")
    if not layout.root.is_dir():
        raise UserError(f"{layout.root}: no such folder; use the configuration of a project that has run")
    files.write_json(layout.configuration, config.settings.model_dump(mode="json", exclude_unset=True))
    published = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    crate = describe(config, layout, args.citation, published)
    files.write_text(layout.crate, json.dumps(crate, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"{layout.crate}: {len(crate['@graph'])} entities")


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
