"""Snakemake's command line in forks of one process that has imported it: the imports take longer than a dry run.

Reads requests from standard input, one a line: `[folder, [argument, ...], file for the output]`; answers each with the
exit code. Only Snakemake and what it imports are shared: each fork reads the workflow and its package anew.
"""

import json
import os
import sys

import jinja2  # noqa: F401
import pydantic  # noqa: F401
import requests  # noqa: F401
import snakemake.cli
import snakemake.report.html_reporter
import snakemake.workflow


def run(folder: str, arguments: list[str], output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.chdir(folder)
    sys.argv[1:] = arguments
    snakemake.cli.main(arguments)


for line in sys.stdin:
    process = os.fork()
    if process == 0:
        run(*json.loads(line))  # ends the process
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
