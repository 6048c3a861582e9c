"""Kill a small workflow, and one of its trainings, at random moments; let each finish; compare all artefacts.

Each round has a folder of its own. The workflow is rerun after each fault as docs/howto/resume.md says. It must end
with exit code 0 and the artefacts of an undisturbed run (`compare.py`). After each fault, too, a file that has its
final name must be complete: equal to the undisturbed run's. The rounds follow from the seed but for the speed of the
machine.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "src"), str(TESTS / "workflow"), str(TESTS)]

from checkout import SMALL, Checkout  # noqa: E402
from compare import MASKED, digests  # noqa: E402

from lpc.files import canonical, write_json, write_text  # noqa: E402
from lpc.layout import Layout  # noqa: E402

SCHEDULE = [
    ("training", "KILL, KILL"),
    ("workflow", "orphans, KILL"),
    ("second Snakemake", ""),
    ("full disk", ""),
    ("training", "TERM"),
    ("workflow", "INT"),
    ("workflow", "KILL, KILL, KILL"),
    ("training", "INT, KILL"),
    ("workflow", "TERM"),
    ("full disk", ""),
]
"""Kind and faults of the rounds, from the start again after the last."""
LIMIT = 1800
"""Seconds after which a process counts as hanging."""
EPOCHS = 4
"""Of the training rounds, so that there are steps enough to kill it twice and to resume."""
MARK = "LPC_STORM_FOLDER"
"""Environment variable of the processes that a project starts."""
LOCKED = "cannot be locked"
CONFIG = {
    **SMALL,
    "project": "storm",
    "recipes": {"dpo-lpc": SMALL["recipes"]["dpo-lpc"]},
    "experiments": {"main": {**SMALL["experiments"]["main"], "recipes": ["dpo-lpc"]}},
}
RUN = Layout(f"results/{CONFIG['project']}").run("tiny", "world", "dpo-lpc", 0)


class Failure(Exception):
    """A promise that was not kept."""


@dataclasses.dataclass
class Round:
    number: int
    kind: str
    faults: str
    moments: list[str] = dataclasses.field(default_factory=list)
    """When each fault came: the jobs done by then, or the training's step."""
    resumed: list[int] = dataclasses.field(default_factory=list)
    """The steps from which the training resumed."""
    unlocked: int = 0
    torn: list[str] = dataclasses.field(default_factory=list)
    """Files that had their final name after a fault, and were not complete."""
    different: list[str] = dataclasses.field(default_factory=list)
    """Artefacts at the end that the undisturbed run has not, or has with other content."""
    failure: str = ""
    seconds: int = 0

    @property
    def good(self) -> bool:
        return not (self.torn or self.different or self.failure)


class Project:
    """One checkout in which the workflow is started, disturbed and finished."""

    def __init__(self, folder: Path, cores: int):
        self.folder, self.cores = folder, cores
        folder.mkdir(parents=True)
        self.config = Checkout(folder).write(CONFIG)
        self.results = folder / "results" / CONFIG["project"]
        self.output = folder / "output.txt"

    def start(self, *words: object, output: Path | None = None) -> subprocess.Popen:
        """Start Snakemake in a session of its own."""
        words = words or ("all", "--cores", self.cores)
        return self.run([sys.executable, "-m", "snakemake", *words, "--configfile", self.config], output)

    def run(self, words: list, output: Path | None = None) -> subprocess.Popen:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", MARK: str(self.folder)}
        environment["PYTHONPATH"] = str(TESTS.parent / "src")
        with open(output or self.output, "ab") as stream:
            return subprocess.Popen(
                [*map(str, words)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def text(self, begin: int = 0) -> str:
        return self.output.read_bytes()[begin:].decode(errors="replace") if self.output.exists() else ""

    def unlock(self) -> None:
        if (code := self.start("all", "--unlock").wait(LIMIT)) != 0:
            raise Failure(f"--unlock ended with exit code {code}")

    def finish(self, record: Round) -> None:
        """Run the workflow to its end, and remove Snakemake's lock where it says that there is one."""
        for _ in range(2):
            begin = len(self.text().encode())
            if (code := self.start().wait(LIMIT)) == 0:
                return
            if LOCKED not in self.text(begin):
                break
            self.unlock()
            record.unlocked += 1
        raise Failure(f"the rerun ended with exit code {code}, see {self.output}")

    def end(self) -> None:
        """Kill all processes that were started here, orphans too. Their environment tells them from all others."""
        killed = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.folder):
                    process.kill()
                    killed.append(process)
        psutil.wait_procs(killed, timeout=60)  # until then, they keep their file system busy


class Storm:
    def __init__(self, work: Path, cores: int):
        self.work, self.cores = work, cores
        self.finished: Project | None = None
        self.expected: dict[str, str] = {}
        self.trained: dict[str, str] = {}

    def prepare(self) -> None:
        """Make the undisturbed run, and its training once more with more epochs."""
        self.finished = Project(self.work / "undisturbed", self.cores)
        if self.finished.start().wait(LIMIT) != 0:
            raise Failure(self.finished.text()[-3000:])
        self.expected = digests(self.finished.results)
        folder = self.work / "undisturbed-training"
        if self.train(folder).wait(LIMIT) != 0:
            raise Failure((folder / "output.txt").read_text()[-3000:])
        self.trained = digests(folder / "run")
        self.steps = json.loads((folder / "run/train.json").read_text())["steps"]

    def round(self, number: int, seed: int, kind: str, faults: str) -> Round:
        record = Round(number, kind, faults)
        rng = random.Random(f"{seed} {number}")
        begin = time.monotonic()
        folder = self.work / f"round-{number}"
        method = {
            "training": self.disturb_training,
            "workflow": self.disturb_workflow,
            "full disk": self.fill_disk,
            "second Snakemake": self.start_twice,
        }[kind]
        try:
            method(folder, record, rng)
        except (Failure, subprocess.TimeoutExpired) as error:
            record.failure = str(error)
            self.finished.end()
        record.seconds = round(time.monotonic() - begin)
        if record.good:
            shutil.rmtree(folder)
        return record

    # Kinds of rounds

    def disturb_workflow(self, folder: Path, record: Round, rng: random.Random) -> None:
        project = Project(folder, self.cores)
        try:
            for fault in record.faults.split(", "):
                share, delay = rng.uniform(0, 0.7), rng.uniform(0, 4)
                begin = len(project.text().encode())
                process = project.start()
                wait(process, lambda: done(project.text(begin))[0] >= share)  # noqa: B023
                time.sleep(delay)
                when = f"{done(project.text(begin))[1]} + {delay:.1f} s"
                if process.poll() is None:
                    send(process, fault)
                    process.wait(LIMIT)
                else:
                    when = f"{fault} too late"
                record.moments.append(when)
                record.torn += self.torn(project.results)
                if any(folder.glob(".snakemake/locks/*")):
                    project.unlock()
                    record.unlocked += 1
            project.finish(record)
            record.resumed = resumed(project.results)
            record.different = differences(self.expected, digests(project.results))
        finally:
            project.end()

    def disturb_training(self, folder: Path, record: Round, rng: random.Random) -> None:
        faults, last = record.faults.split(", "), 0
        for fault in faults:
            # Each after another part of the steps, early enough that some are left.
            step = rng.randrange(last + 1, last + 1 + self.steps // (2 * len(faults)))
            process = self.train(folder)
            wait(process, lambda: newest(folder) >= step)  # noqa: B023
            time.sleep(rng.uniform(0, 0.2))
            if process.poll() is not None:
                raise Failure(f"the training ended before {fault}, see {folder}/output.txt")
            send(process, fault)
            process.wait(LIMIT)
            last = newest(folder)
            record.moments.append(f"step {last} of {self.steps}")
            record.torn += [name for name in ("model", "train.json") if (folder / "run" / name).exists()]
        if (code := self.train(folder).wait(LIMIT)) != 0:
            raise Failure(f"the training ended with exit code {code}, see {folder}/output.txt")
        record.resumed = json.loads((folder / "run/train.json").read_text())["resumed_from"]
        if len(record.resumed) != len(faults):
            raise Failure(f"{len(faults)} faults, but resumed {len(record.resumed)} times")
        record.different = differences(self.trained, digests(folder / "run"))

    def fill_disk(self, folder: Path, record: Round, rng: random.Random) -> None:
        whole = sum(path.stat().st_size for path in self.finished.results.rglob("*") if path.is_file())
        size = int(whole * rng.uniform(0.05, 1.2)) // 4096 * 4096
        project = Project(folder, self.cores)
        place = folder / "results"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode:
            record.moments.append(f"skipped: {' '.join(mounted.stderr.split())}")
            return
        try:
            code = project.start().wait(LIMIT)
            share = f"{size / 1e6:.2f} of {whole / 1e6:.2f} MB"
            record.moments.append(f"{share}, {done(project.text())[1]}" if code else f"{share}: enough")
            if code and "No space left on device" not in project.text():
                raise Failure(f"no line says that the disk is full, see {project.output}")
            record.torn += self.torn(project.results)
            subprocess.run(["mount", "-o", f"remount,size={100 * whole}", place], check=True)
            project.finish(record)
            record.resumed = resumed(project.results)
            record.different = differences(self.expected, digests(project.results))
        finally:
            project.end()
            subprocess.run(["umount", place], check=True)

    def start_twice(self, folder: Path, record: Round, rng: random.Random) -> None:
        project = Project(folder, self.cores)
        try:
            first = project.start()
            delay = rng.uniform(0, 20)
            time.sleep(delay)
            record.moments.append(f"after {delay:.1f} s")
            others = folder / "second.txt"
            second = project.start(output=others)
            codes = [first.wait(LIMIT), second.wait(LIMIT)]
            said = [LOCKED in project.text(), LOCKED in others.read_text()]
            record.faults = "one refused" if sum(said) == 1 else f"{sum(said)} refused"
            if sum(said) != 1 or sorted(code != 0 for code in codes) != [False, True]:
                raise Failure(f"exit codes {codes}; of two Snakemakes, {sum(said)} were refused")
            record.different = differences(self.expected, digests(project.results))
        finally:
            project.end()

    # What they share

    def train(self, folder: Path) -> subprocess.Popen:
        """Start the training step of the finished project, with a checkpoint after every step."""
        project = self.finished
        summary = json.loads((project.folder / RUN.summary).read_text())
        spec = summary["identity"]["spec"]
        spec["training"]["epochs"] = EPOCHS
        layout = Layout(project.results.relative_to(project.folder))
        reference = layout.reference("tiny", "world")
        words = ["--spec", canonical(spec), "--execution", canonical({"training": {"save_minutes": 1e-9}})]
        words += ["--base", layout.base("tiny").record, "--pairs", layout.data("world").pairs]
        run = folder / "run"
        words += ["--reference", reference.logps, "--checkpoints", folder / "checkpoints", "--output", run / "model"]
        words += ["--metrics", run / "train.jsonl", "--summary", run / "train.json"]
        run.mkdir(parents=True, exist_ok=True)
        return project.run([sys.executable, "-m", "lpc.steps.train", *words], folder / "output.txt")

    def torn(self, results: Path) -> list[str]:
        """Files that have their final name, and are not the undisturbed run's. A training's log grows with it."""
        trained = {str(path.parent) for path in results.rglob("train.json")}
        found = digests(results)
        for name in [name for name in found if name.endswith("train.jsonl")]:
            if str((results / name).parent) not in trained:
                del found[name]
        return sorted(name for name, digest in found.items() if self.expected.get(name) != digest)


def wait(process: subprocess.Popen, condition) -> None:
    """Wait until `condition()` or the end of the process."""
    end = time.monotonic() + LIMIT
    while not condition() and process.poll() is None:
        if time.monotonic() > end:
            raise Failure(f"nothing happened for {LIMIT} s")
        time.sleep(0.01)


def send(process: subprocess.Popen, fault: str) -> None:
    """Signal all processes of the session, or kill Snakemake alone, so that its jobs go on as orphans."""
    if fault == "orphans":
        process.kill()
    else:
        os.killpg(process.pid, signal.Signals[f"SIG{fault}"])


def done(text: str) -> tuple[float, str]:
    """Return the share of its jobs that a Snakemake has done, and in words."""
    found = re.findall(r"(\d+) of (\d+) steps", text)
    if not found:
        return 0.0, "0 jobs"
    return int(found[-1][0]) / int(found[-1][1]), f"{found[-1][0]} of {found[-1][1]} jobs"


def newest(folder: Path) -> int:
    """Return the step of a training's newest complete checkpoint; 0 where there is none."""
    return max(
        (int(file.parent.name.split("-")[1]) for file in folder.glob("checkpoints/*/c*-*/complete.json")), default=0
    )


def resumed(results: Path) -> list[int]:
    files = sorted(results.glob("runs/**/train.json"))
    return [step for file in files for step in json.loads(file.read_text())["resumed_from"]]


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


COLUMNS = "round | kind | faults | when | resumed at step | locks removed | torn files | different files | failure | s"


def table(rounds: list[Round], command: str) -> str:
    """Return the rounds as Markdown, with the command, the date and the machine."""
    good, minutes = sum(record.good for record in rounds), sum(record.seconds for record in rounds) / 60
    system = f"{platform.machine()} with {os.cpu_count()} cores, Linux {platform.release()}"
    masked = "; ".join(f"in {kind} {', '.join(sorted(names))}" for kind, names in MASKED.items())
    lines = [
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {system}, Python {platform.python_version()}.",
        f"{len(rounds)} rounds in {minutes:.0f} minutes, {good} of them good. Masked in the comparison: {masked}.",
        "",
        f"| {COLUMNS} |",
        "|---" * (COLUMNS.count("|") + 1) + "|",
    ]
    for r in rounds:
        steps, torn, different = (", ".join(map(str, values)) or "-" for values in (r.resumed, r.torn, r.different))
        cells = [r.number, r.kind, r.faults or "disk full", "; ".join(r.moments), steps, r.unlocked, torn, different]
        lines.append(f"| {' | '.join(map(str, [*cells, r.failure.replace('|', '/') or '-', r.seconds]))} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="number of rounds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first round (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=sorted({kind for kind, _ in SCHEDULE}), help="only these rounds")
    parser.add_argument("--seed", type=int, default=1, help="of kinds of moments (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="cores of each Snakemake (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no round after this time")
    parser.add_argument("--work", type=Path, required=True, help="empty folder for the runs; failed rounds stay in it")
    parser.add_argument("--output", type=Path, required=True, help="folder of rounds.json and table.md")
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the rounds; return 1 if one of them had a difference."""
    args = parser().parse_args(words)
    command = shlex.join(["python", "tests/storm/storm.py", *(sys.argv[1:] if words is None else words)])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background commands with it ignored
    storm = Storm(args.work.resolve(), args.cores)
    rounds: list[Round] = []
    try:
        storm.prepare()
        begin = time.monotonic()
        for number in range(args.first, args.first + args.rounds):
            kind, faults = SCHEDULE[number % len(SCHEDULE)]
            if args.kinds and kind not in args.kinds:
                continue
            if time.monotonic() - begin > 60 * args.minutes:
                break
            rounds.append(storm.round(number, args.seed, kind, faults))
            print(rounds[-1], flush=True)
            write_json(args.output / "rounds.json", [dataclasses.asdict(record) for record in rounds])
            write_text(args.output / "table.md", table(rounds, command))
    finally:
        if storm.finished:
            storm.finished.end()
    return 0 if all(record.good for record in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
