"""Build the container images (`make images`): containers/images/<name>-<version>.sif, each with a record beside it.

How to reach the package sources is taken from the machine's own configuration, for the build alone: the mirror of apt,
and pip's index, wheel folders and certificates. An image that is there already is left as it is.
"""

import argparse
import ast
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from spython.main import Client

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from lpc import images
from lpc.cli import UserError, fail
from lpc.files import sha256, write_json

PYTHON = "python:3.11-slim-bookworm"
# Decompresses as fast as the default and packs several times faster, for a tenth more space.
SQUASHFS = "-comp zstd -Xcompression-level 3"
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="images to build, with those that they start from (default: all)")
    parser.add_argument(
        "--base",
        default=PYTHON,
        help='image of a registry, as a CUDA runtime, or "debootstrap": from Debian packages (default: %(default)s)',
    )
    parser.add_argument(
        "--mirror", help="Debian mirror for debootstrap (default: that of this machine's apt, if Debian)"
    )
    parser.add_argument("--certificates", help="certificate bundle for pip (default: that of this machine's pip)")
    parser.add_argument("--fakeroot", action="store_true", help="build as a user who is not root")
    parser.add_argument("--force", action="store_true", help="build what is up to date, too")
    parser.add_argument("--print", action="store_true", help="print the images' paths and build nothing")
    return parser


def main(args: argparse.Namespace) -> None:
    wanted = []
    for name in args.names or images.PARENTS:
        if name not in images.PARENTS:
            raise UserError(f"{name}: no such image; there are {', '.join(images.PARENTS)}")
        wanted += [image for image in lineage(name) if image not in wanted]
    if args.print:
        print(*(images.path(name) for name in wanted), sep="\n")
        return
    missing = [name for name in wanted if args.force or not images.path(name).exists()]
    for name in wanted:
        if name not in missing:
            print(f"{images.path(name).name}: up to date", flush=True)
    if not missing:
        return
    if not shutil.which("singularity"):  # the name that spython calls; Apptainer comes with it
        raise UserError("no apptainer on PATH; load its module or install it (docs/cluster.md)")
    if os.getuid() != 0 and not args.fakeroot:
        raise UserError("building needs root or --fakeroot (make images ARGUMENTS=--fakeroot)")
    # In /tmp, which Apptainer shows to the build. A base folder elsewhere (TMPDIR) would not be seen there.
    with tempfile.TemporaryDirectory(prefix="lpc-images-", dir="/tmp") as scratch:
        config, folders = pip_configuration(Path(scratch), args.certificates)
        options = ["--mksquashfs-args", SQUASHFS, *(["--fakeroot"] if args.fakeroot else [])]
        for name in missing:
            if name == "base":
                build(name, options, base_arguments(args))
            else:
                parent = images.path(images.PARENTS[name])
                arguments = {"PARENT": str(parent), "PIP_CONFIG": str(config), "FOLDERS": " ".join(folders)}
                build(name, [*options, *(part for folder in folders for part in ("--bind", folder))], arguments)


def lineage(name: str) -> list[str]:
    """The image and all that it starts from, first one first."""
    return [*(lineage(images.PARENTS[name]) if images.PARENTS[name] else []), name]


def base_arguments(args: argparse.Namespace) -> dict[str, str]:
    if args.base != "debootstrap":
        return {"BOOTSTRAP": "docker", "FROM": args.base}
    if not shutil.which("debootstrap"):
        raise UserError("no debootstrap on PATH; install it, or name a base image that can be reached (--base)")
    mirror = args.mirror or apt_mirror()
    if not mirror:
        raise UserError("no Debian mirror is known on this system; name one (--mirror)")
    return {"BOOTSTRAP": "debootstrap", "MIRROR": mirror}


def apt_mirror() -> str | None:
    """The mirror that this machine gets its own Debian release from; None on another system."""
    if not shutil.which("apt-get"):
        return None
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        return None
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return next((line.split()[1] for line in lines if line.split()[0] == release["VERSION_CODENAME"]), None)


def pip_configuration(folder: Path, certificates: str | None) -> tuple[Path, list[str]]:
    """Write this machine's pip settings for the build; also the local folders that they name, to be bound."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    settings = {}
    for line in sorted(listing.stdout.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
        key, value = line.split("=", 1)
        settings[key.rpartition(".")[2]] = ast.literal_eval(value)
    if certificates:
        settings["cert"] = str(Path(certificates).resolve())
    used = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "default-timeout", "timeout")
    settings = {key: settings[key] for key in used if key in settings}
    if "cert" in settings:
        # Not bound: the image may hold a file of that name.
        settings["cert"] = str(shutil.copy(settings["cert"], folder / "certificates.pem"))
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {' '.join(value.split())}\n" for key, value in settings.items()))
    locations = " ".join(settings.get(key, "") for key in ("index-url", "extra-index-url", "find-links")).split()
    local = [Path(location.removeprefix("file://")) for location in locations if location.startswith(("/", "file://"))]
    # The pages of an index (.../simple) link to files beside it, so its parent is what the build must see.
    folders = {str(folder.parent if folder.name == "simple" else folder) for folder in local if folder.is_dir()}
    return config, sorted(folders)


def build(name: str, options: list[str], arguments: dict[str, str]) -> None:
    """Build one image under a temporary name, then write its record and give it its name."""
    image = images.path(name)
    image.parent.mkdir(exist_ok=True)
    partial, log = image.with_suffix(".partial.sif"), image.with_suffix(".log")
    print(f"{image.name}: building (log: {os.path.relpath(log)})", flush=True)
    options = [*options, *(option for key, value in arguments.items() for option in ("--build-arg", f"{key}={value}"))]
    begin = time.monotonic()
    code = in_child(lambda: Client.build(f"{name}.def", str(partial), sudo=False, force=True, options=options), log)
    seconds = time.monotonic() - begin
    # The client returns nothing on failure, so the file tells.
    if code or not partial.exists():
        lines = list(dict.fromkeys(log.read_text(errors="replace").splitlines()))  # the client prints some twice
        advice = "; --base debootstrap needs no image registry" if arguments.get("BOOTSTRAP") == "docker" else ""
        raise UserError(f"{image.name}: the build failed: {' | '.join(lines[-3:])}{advice}; the whole log is {log}")
    freeze = ["python", "-m", "pip", "--disable-pip-version-check", "freeze"]
    result = Client.execute(str(partial), freeze, options=["--cleanenv"], return_result=True)
    if result["return_code"]:
        raise UserError(f"{image.name}: does not run: {result['message']}")
    # The client gives a string, or a list of standard output and error where both were written.
    packages = result["message"] if isinstance(result["message"], str) else "".join(result["message"][:1])
    write_json(
        image.with_suffix(".json"),
        {
            "image": image.name,
            "sha256": sha256(partial),
            "bytes": partial.stat().st_size,
            "build_seconds": round(seconds, 1),
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "from": Path(arguments["PARENT"]).name if name != "base" else arguments.get("FROM", "debootstrap"),
            "packages": packages.split(),
        },
    )
    partial.rename(image)
    print(f"{image.name}: {image.stat().st_size / 1e6:.0f} MB in {seconds:.0f} s", flush=True)


def in_child(function, log: Path) -> int:
    """Call `function` in a child process in the definitions' folder, with its output in `log`; return the exit code.

    A root whose capabilities are cut (as in a container) cannot run a %post section. Root of a new user namespace in
    which every user is itself has all of them, so there the child gets such a namespace.
    """
    cut = os.getuid() == 0 and bounding_set() != (1 << int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1) - 1
    unshared_read, unshared_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with open(log, "wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            os.chdir(images.FOLDER)
            if cut:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
                    raise OSError(ctypes.get_errno(), "no user namespace for root with cut capabilities")
                os.write(unshared_write, b".")
                os.read(mapped_read, 1)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
            function()
            sys.stdout.flush()  # the client prints what the build said on standard error
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(unshared_write)
    if cut and os.read(unshared_read, 1):  # nothing to read: the child ended
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{kind}").write_text("0 0 65536\n")
        os.write(mapped_write, b".")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for end in (unshared_read, mapped_read, mapped_write):
        os.close(end)
    return code


def bounding_set() -> int:
    """The capabilities that this process and its children can ever have, as bits."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:")), 16)


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted; run it again to go on", 130)
