"""The steps of the workflow in the process of a test: starting one with torch costs ten seconds of CPU time."""

import importlib

from lpc import cli, files


def run_step(name: str, spec: dict, *arguments) -> None:
    """Run a step with the command line that a rule gives it."""
    module = importlib.import_module(f"lpc.steps.{name}")
    module.main(cli.parse(module.parser(), ["--spec", files.canonical(spec), *map(str, arguments)]))
