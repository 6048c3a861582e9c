"""The commands of README's section on clusters, on a machine that has nothing but a clone."""

import re
import subprocess
import sys

import yaml
from cluster import ROOT


def test_make_images_installs_what_the_next_command_needs(tmp_path):
    [commands] = re.findall(r"## On a cluster\n.*?```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for line in commands.splitlines()]
    assert lines[0] == "make images"
    assert lines.index(". .venv/bin/activate") < lines.index("snakemake --profile slurm all")

    clone = tmp_path
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    make = ["make", "--dry-run", "images", f"PYTHON={sys.executable}"]
    planned = subprocess.run(make, cwd=clone, check=True, capture_output=True, text=True).stdout
    [extras] = re.findall(r'--editable "\.\[(.*?)\]"', planned)
    # The profile's executor comes with the extra of the same name, the client of Apptainer with the other one.
    executor = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())["executor"]
    assert set(extras.split(",")) == {executor, "images"}
    assert planned.index("pip install") < planned.index("containers/build.py")
