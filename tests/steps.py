"""The steps of the workflow in the process of a test: starting one with torch costs ten seconds of CPU time."""

import argparse
import functools
import importlib

from lpc import cli, files


def run_step(name: str, spec: dict, *arguments) -> None:
    """Run a step with the command line that a rule gives it."""
    module = importlib.import_module(f"lpc.steps.{name}")
    module.main(cli.parse(_parser(name), ["--spec", files.canonical(spec), *map(str, arguments)]))


@functools.cache  # with the text of --help, which takes up to a second
def _parser(name: str) -> argparse.ArgumentParser:
    return importlib.import_module(f"lpc.steps.{name}").parser()
