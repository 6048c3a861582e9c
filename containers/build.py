"""Build the container images that are missing (`make images`), each with a record beside it.

How to reach the package sources is taken from the machine's own configuration, for the build alone: the mirror of apt,
and pip's index, wheel folders and certificates. What the images start from and PyTorch's variant are recorded
in containers/images/choice.json, which decides their names (lpc.images) from then on.
"""

import argparse
import ast
import ctypes
import json
import os
import platform
import shutil
import signal
import socket
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
from lpc.files import sha256, synchronize, write_json

# Decompresses as fast as the default and packs several times faster, for a tenth more space.
SQUASHFS = "-comp zstd -Xcompression-level 3"
# What an image holds, without an import of PyTorch. Its version file has the variant where its metadata has none.
CONTENTS = """
import importlib.metadata, importlib.util, json, runpy
packages = sorted(f"{package.name}=={package.version}" for package in importlib.metadata.distributions())
torch = importlib.util.find_spec("torch")
version = torch and runpy.run_path(torch.submodule_search_locations[0] + "/version.py")["__version__"]
print(json.dumps({"packages": packages, "variant": version and (version.partition("+")[2] or "cpu")}))
"""
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


class Unreachable(Exception):
    """The image to start from could not be fetched from a registry."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="images to build, with those that they start from (default: all)")
    parser.add_argument(
        "--base",
        help="image of a registry, e.g. a CUDA runtime, or debootstrap: from Debian packages (default: as built last; "
        f"at first {images.CHOICE['base']}, or debootstrap where no registry answers)",
    )
    parser.add_argument(
        "--variant", help="require this variant of PyTorch, e.g. cpu, cu128, rocm6.4 (default: what pip finds)"
    )
    parser.add_argument(
        "--mirror", help="Debian mirror for debootstrap (default: that of this machine's apt, if Debian)"
    )
    parser.add_argument("--certificates", help="certificate bundle for pip (default: that of this machine's pip)")
    parser.add_argument("--force", action="store_true", help="build what is up to date, too")
    parser.add_argument("--print", action="store_true", help="print the images' paths and build nothing")
    return parser


def main(args: argparse.Namespace) -> None:
    unknown = [name for name in args.names if name not in images.PARENTS]
    if unknown:
        raise UserError(f"{unknown[0]}: no such image; use {', '.join(images.PARENTS)}")
    wanted = list(dict.fromkeys(image for name in args.names or images.PARENTS for image in images.lineage(name)))
    recorded = images.choice()
    chosen = (recorded or images.CHOICE) | {key: getattr(args, key) for key in images.CHOICE if getattr(args, key)}
    if args.print:
        print(*(images.path(name, chosen) for name in wanted), sep="\n")
        return
    if args.force or not all(images.path(name, chosen).exists() for name in wanted):
        if not shutil.which("singularity"):  # the name that spython calls; Apptainer comes with it
            raise UserError("no apptainer on PATH; load its module or install it (docs/cluster.md)")
        gain_capabilities()
    # In /tmp, which Apptainer shows to the build. A base folder elsewhere (TMPDIR) would not be seen there.
    with tempfile.TemporaryDirectory(prefix="lpc-images-", dir="/tmp") as scratch:
        for name in wanted:
            try:
                provide(name, chosen, args, Path(scratch))
            except Unreachable as error:
                if recorded or args.base:
                    raise UserError(f"{error}; use --base debootstrap if no registry answers") from None
                print(f"{error}; no base was chosen, so the images start from debootstrap", flush=True)
                chosen["base"] = "debootstrap"
                provide(name, chosen, args, Path(scratch))
    if chosen != recorded:
        write_json(images.FOLDER / "images/choice.json", chosen)


def provide(name: str, chosen: dict[str, str], args: argparse.Namespace, scratch: Path) -> None:
    """Build an image unless it is there. The build of the training image sets chosen["variant"]."""
    image = images.path(name, chosen)
    if image.exists() and not args.force:
        print(f"{image.name}: up to date", flush=True)
        return
    if name == "base":
        arguments, folders = base_arguments(chosen["base"], args.mirror), []
    else:
        config, folders = pip_configuration(scratch, args.certificates)
        parent = images.path(images.PARENTS[name], chosen)
        arguments = {"PARENT": str(parent), "PIP_CONFIG": str(config), "FOLDERS": " ".join(folders)}
    image.parent.mkdir(exist_ok=True)
    partial, log = image.with_suffix(".partial.sif"), image.with_suffix(".log")
    print(f"{image.name}: building (log: {os.path.relpath(log)})", flush=True)
    begin = time.monotonic()
    build(name, partial, log, arguments, folders)
    seconds = time.monotonic() - begin
    found = contents(partial)
    if name == "training":
        if args.variant not in (None, found["variant"]):
            partial.unlink()
            raise UserError(
                f"pip found PyTorch for {found['variant']}, not --variant {args.variant}; set PIP_EXTRA_INDEX_URL to "
                "PyTorch's index of that variant (docs/cluster.md)"
            )
        chosen["variant"] = found["variant"]
        image = images.path(name, chosen)
    write_json(
        image.with_suffix(".json"),
        {
            "image": image.name,
            "sha256": sha256(partial),
            "bytes": partial.stat().st_size,
            "build_seconds": round(seconds, 1),
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "from": Path(arguments["PARENT"]).name if name != "base" else chosen["base"],
            "packages": found["packages"],
        },
    )
    synchronize(partial)
    partial.rename(image)
    print(f"{image.name}: {image.stat().st_size / 1e6:.0f} MB in {seconds:.0f} s", flush=True)


def build(name: str, image: Path, log: Path, arguments: dict[str, str], folders: list[str]) -> None:
    options = ["--force", "--mksquashfs-args", SQUASHFS, *(["--fakeroot"] if os.getuid() != 0 else [])]
    options += [part for folder in folders for part in ("--bind", folder)]
    options += [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    command = ["singularity", "build", *options, image, f"{name}.def"]
    # Not by spython, which keeps what the build prints until it ends, and prints some of it twice.
    with open(log, "wb") as stream:
        if subprocess.call(command, cwd=images.FOLDER, stdout=stream, stderr=subprocess.STDOUT) == 0:
            return
    last = log.read_text(errors="replace").splitlines()[-3:]
    reason = " | ".join(last).partition("conveyor failed to get: ")[2]
    if reason and arguments.get("BOOTSTRAP") == "docker":
        raise Unreachable(f"{arguments['FROM']}: not fetched ({reason})")
    raise UserError(f"{log.stem}: the build failed: {' | '.join(last)}; the whole log is {log}")


def contents(image: Path) -> dict:
    """Return an image's packages and its variant of PyTorch, None without PyTorch."""
    command = ["python", "-c", CONTENTS]
    try:
        return json.loads("".join(Client.execute(str(image), command, options=["--cleanenv"], stream=True, quiet=True)))
    except subprocess.CalledProcessError as error:
        raise UserError(f"{image}: cannot list its packages, exit code {error.returncode}") from None


def base_arguments(base: str, mirror: str | None) -> dict[str, str]:
    if base != "debootstrap":
        return {"BOOTSTRAP": "docker", "FROM": base}
    if not shutil.which("debootstrap"):
        raise UserError("no debootstrap on PATH; install it, or use a base image that can be reached (--base)")
    mirror = mirror or apt_mirror()
    if not mirror:
        raise UserError("no Debian mirror is known on this system; set one with --mirror")
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


def gain_capabilities() -> None:
    """Let a root whose capabilities are cut, as in a container, go on in a child process that has all of them.

    Apptainer needs them to run a %post section. The child is root of a new user namespace in which every user is
    itself, which has all capabilities. Does nothing for others.
    """
    status = Path("/proc/self/status").read_text()
    bounding = next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:"))
    every = (1 << int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1) - 1
    if os.getuid() != 0 or int(bounding, 16) == every:
        return
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
            raise UserError(f"root lacks capabilities, and gets no user namespace: {os.strerror(ctypes.get_errno())}")
        theirs.send(b"unshared")
        theirs.recv(1)
        return
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child gets it, too, and says so
    if ours.recv(8):  # nothing to read: the child ended
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{kind}").write_text("0 0 65536\n")
        ours.send(b".")
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except UserError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted; rerun to resume", 130)
