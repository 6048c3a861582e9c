"""What every script of `lpc.steps` shares: its argument parser, its log lines, and how it fails.

A step module defines `parser()` and `main(args)`, and ends with

    if __name__ == "__main__":
        cli.run(parser(), main)
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import stat
import sys

from lpc.images import current

log = logging.getLogger("lpc")

WORKFLOW_STDERR = "LPC_STDERR"
"""Environment variable: path of the standard error that a job had before its log took the place."""

REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "delete your files there, or ask for a larger quota",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
    errno.EROFS: "use a folder on a writable file system",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk or the file server",
}
"""Remedies for errors of the file system, by their number."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, what to do. Shown without a traceback."""


class Stopped(Exception):
    """Work was saved before its end, on a signal or before the end of a job: to run again is to go on. Exit code 85."""


class _StepParser(argparse.ArgumentParser):
    """Describes the keys of its spec when help is asked for: that takes as long as a small job's imports."""

    def format_help(self) -> str:
        from lpc.config.docs import help_text  # which imports this module

        self.epilog = f"keys of --spec and --execution:\n{help_text(self.get_default('spec_type'))}"
        return super().format_help()


def step_parser(description: str, spec) -> argparse.ArgumentParser:
    """Return a parser with `--spec` and `--execution`, from which `run` makes `args.spec`, of the type `spec`.

    spec: a class of `lpc.config.specs`, whose keys `--help` lists.
    """
    parser = _StepParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(spec_type=spec)
    words = "or @FILE to read it from a file"
    parser.add_argument(
        "--spec", type=json_object, default={}, help=f"JSON of the keys that results depend on, {words}"
    )
    parser.add_argument(
        "--execution",
        type=json_object,
        default={},
        help=f"JSON of the keys that only say how the work is done, {words}",
    )
    return parser


def json_object(text: str) -> dict:
    """Parse a JSON object; "@file" reads it from a file, which is handier by hand than a quoted line."""
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as stream:
                text = stream.read()
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # not only JSONDecodeError: also UnicodeDecodeError
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def parse(parser: argparse.ArgumentParser, words: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments of a command line (None: this process's own), with `spec` of the parser's type.

    Raises ValueError, which lists every fault, for a spec that is no value of it.
    """
    args = parser.parse_args(words)
    if spec_type := getattr(args, "spec_type", None):
        args.spec = spec_type.parse(args.spec, args.execution)
    return args


def run(parser: argparse.ArgumentParser, main) -> None:
    """Parse the command line and call `main(args)`.

    A `UserError` or a failing file system ends with one line and exit code 1; an interrupt with 130; anything else
    with its traceback, since that is our bug and the log must show it.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    # Prompts and weights must not be writable by everyone, whatever the user's umask.
    os.umask(os.umask(0o077) | stat.S_IWOTH)
    try:
        args = parse(parser)
    except ValueError as error:
        fail(f"--spec: {error}; --help lists the keys", 1)
    try:
        if image := current():
            log.info("image %(image)s, SHA-256 %(sha256)s", image)
        main(args)
    except UserError as error:
        fail(str(error), 1)
    except Stopped as error:
        fail(str(error), 85)
    except OSError as error:
        what = f"{error.filename or 'input/output'}: {error.strerror or error}"
        fail(f"{what}; {REMEDIES.get(error.errno, 'correct the cause')}, then rerun", 1)
    except KeyboardInterrupt:
        fail("interrupted; rerun to resume", 130)


def fail(message: str, code: int) -> None:
    line = f"error: {' '.join(message.split())}"
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # the log is on the full disk, too: the exit code must still be right, and the reason must be seen
        with contextlib.suppress(OSError), open(os.environ.get(WORKFLOW_STDERR, os.devnull), "a") as stream:
            print(line, file=stream)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # Not sys.exit: threads of a library (data loaders, telemetry) must not keep a failed job alive.
    os._exit(code)
