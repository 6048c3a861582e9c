"""The container images: their names, their pins, what is in them, and how a build ends."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from cluster import ROOT

from lpc import images


def pins(file):
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", ["training", "evaluation", "reporting"])
def test_pins_are_those_of_the_tests(name):
    tested = pins(ROOT / "constraints.txt")
    different = {
        package: (version, tested.get(package))
        for package, version in pins(ROOT / f"containers/{name}.txt").items()
        if version != tested.get(package)
    }
    assert not different, f"(containers/{name}.txt, constraints.txt)"


def test_names_change_with_what_the_image_and_its_parents_are_made_of(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "containers", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("images"))
    monkeypatch.setattr(images, "FOLDER", tmp_path)

    def names():
        return {name: images.path(name).name for name in images.PARENTS}

    def changed(file):
        before = names()
        with open(tmp_path / file, "a") as stream:
            stream.write("\n")
        return {name for name in before if names()[name] != before[name]}

    assert changed("training.txt") == {"training", "evaluation"}
    assert changed("reporting.def") == {"reporting"}
    assert changed("base.def") == set(images.PARENTS)
    assert changed("build.py") == set()


def build(checkout, apptainer, *arguments):
    return subprocess.run(
        [sys.executable, "containers/build.py", *arguments],
        cwd=checkout,
        env={**os.environ, "PATH": f"{apptainer}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


class TestBuilt:
    pytestmark = pytest.mark.timeout(2700)  # the first test builds the images

    def test_what_is_up_to_date_is_left_alone(self, checkout, apptainer):
        result = build(checkout, apptainer)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == [f"{images.path(name).name}: up to date" for name in images.PARENTS]

    def test_failed_build_leaves_no_image_and_names_its_log(self, checkout, apptainer, tmp_path):
        shutil.copytree(checkout / "src", tmp_path / "src")
        copy = tmp_path / "containers"
        shutil.copytree(checkout / "containers", copy, ignore=shutil.ignore_patterns("images"))
        (copy / "images").mkdir()
        base = images.path("base").name
        os.symlink(checkout / "containers/images" / base, copy / "images" / base)
        (copy / "reporting.txt").write_text("lpc-has-no-such-package==1\n")
        result = build(tmp_path, apptainer, "reporting")
        assert result.returncode == 1
        [error] = result.stderr.splitlines()
        assert error.startswith("error: reporting-") and error.endswith(".log")
        assert "lpc-has-no-such-package" in error
        assert [path.name for path in (copy / "images").glob("*.sif")] == [base]

    def test_base_that_cannot_be_pulled_names_the_way_without_a_registry(self, checkout, apptainer, tmp_path):
        shutil.copytree(checkout / "src", tmp_path / "src")
        shutil.copytree(checkout / "containers", tmp_path / "containers", ignore=shutil.ignore_patterns("images"))
        result = build(tmp_path, apptainer, "--base", "localhost:1/python", "base")
        assert result.returncode == 1
        [error] = result.stderr.splitlines()
        assert error.startswith("error: base-") and "--base debootstrap" in error
        assert not list((tmp_path / "containers/images").glob("*.sif"))

    @pytest.mark.parametrize("name", images.PARENTS)
    def test_labels_and_record(self, checkout, apptainer, name):
        image = checkout / "containers/images" / images.path(name).name
        inspect = [apptainer / "apptainer", "inspect", "--labels", "--json", image]
        inspected = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)
        assert inspected["data"]["attributes"]["labels"]["org.opencontainers.image.title"] == f"lpc-{name}"
        record = json.loads(image.with_suffix(".json").read_text())
        assert record["bytes"] == image.stat().st_size
        packages = {line.split("==")[0].lower().replace("_", "-") for line in record["packages"]}
        assert ("torch" in packages) == (name in ("training", "evaluation"))
        assert ("lm-eval" in packages) == (name == "evaluation")

    @pytest.mark.parametrize("name", ["evaluation", "reporting"])  # the former holds the training image's packages, too
    def test_own_tests_pass_where_jobs_run(self, checkout, apptainer, name):
        image = checkout / "containers/images" / images.path(name).name
        result = subprocess.run(
            [apptainer / "apptainer", "test", "--cleanenv", image], capture_output=True, text=True, cwd=checkout
        )
        assert result.returncode == 0, result.stderr
        assert "No broken requirements found" in result.stdout
