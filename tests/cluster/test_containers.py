"""The container images: their names, their pins, what is in them, and how a build ends."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import ROOT, image_path

from lpc import images
from lpc.cli import UserError


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


def test_names_hold_architecture_variant_and_what_the_images_start_from(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpu = {"base": "debootstrap", "variant": "cpu"}
    pattern = {name: r"-[0-9a-f]{12}-aarch64\.sif" for name in ("base", "reporting")}
    pattern |= {name: r"-[0-9a-f]{12}-aarch64-cpu\.sif" for name in ("training", "evaluation")}
    for name in images.PARENTS:
        assert re.fullmatch(name + pattern[name], images.path(name, cpu).name)
        assert images.path(name, {**cpu, "base": "another"}) != images.path(name, cpu)
        other = images.path(name, {**cpu, "variant": "cu128"})
        assert (other == images.path(name, cpu)) == (name in ("base", "reporting"))


def test_choice_of_the_last_build_decides_the_names(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FOLDER", tmp_path)
    assert images.path("training") == images.path("training", images.CHOICE)
    (tmp_path / "images").mkdir()
    choice = {"base": "debootstrap", "variant": "rocm6.4"}
    (tmp_path / "images/choice.json").write_text(json.dumps(choice))
    assert images.path("training") == images.path("training", choice) != images.path("training", images.CHOICE)
    for torn in ("", "{", "[]", '{"base": "debootstrap"}'):
        (tmp_path / "images/choice.json").write_text(torn)
        with pytest.raises(UserError, match=r"choice\.json: must be a JSON object with base and variant; delete it"):
            images.path("training")


def build(checkout, apptainer, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "containers/build.py", *arguments],
        cwd=checkout,
        env={**os.environ, "PATH": f"{apptainer}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
    )


class TestBuilt:
    pytestmark = pytest.mark.timeout(2700)  # the first test builds the images

    def test_what_is_up_to_date_is_left_alone(self, checkout, apptainer):
        result = build(checkout, apptainer)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == [
            f"{image_path(checkout, name).name}: up to date" for name in images.PARENTS
        ]

    def test_another_base_or_variant_is_not_up_to_date(self, checkout, apptainer):
        def missing(*options):
            printed = build(checkout, apptainer, "--print", *options, "training").stdout.splitlines()
            return [Path(image).name.partition("-")[0] for image in printed if not os.path.exists(image)]

        assert missing() == []
        assert missing("--base", "localhost:1/python") == ["base", "training"]
        assert missing("--variant", "cu999") == ["training"]

    def test_failed_build_leaves_no_image_and_names_its_log(self, checkout, apptainer, tmp_path):
        shutil.copytree(checkout / "src", tmp_path / "src")
        copy = tmp_path / "containers"
        shutil.copytree(checkout / "containers", copy, ignore=shutil.ignore_patterns("images"))
        (copy / "images").mkdir()
        base = image_path(checkout, "base").name
        for file in (base, "choice.json"):
            os.symlink(checkout / "containers/images" / file, copy / "images" / file)
        (copy / "reporting.txt").write_text("lpc-has-no-such-package==1\n")
        result = build(tmp_path, apptainer, "reporting")
        assert result.returncode == 1
        [error] = result.stderr.splitlines()
        assert error.startswith("error: reporting-") and error.endswith(".log")
        assert "lpc-has-no-such-package" in error
        assert [image.name for image in (copy / "images").glob("*.sif")] == [base]

    def test_base_that_cannot_be_pulled_names_the_way_without_a_registry(self, checkout, apptainer, tmp_path):
        shutil.copytree(checkout / "src", tmp_path / "src")
        shutil.copytree(checkout / "containers", tmp_path / "containers", ignore=shutil.ignore_patterns("images"))
        result = build(tmp_path, apptainer, "--base", "localhost:1/python", "base")
        assert result.returncode == 1
        [error] = result.stderr.splitlines()
        assert error.startswith("error: localhost:1/python: not fetched (") and "--base debootstrap" in error
        assert not list((tmp_path / "containers/images").glob("*.sif"))

    def test_first_build_without_a_registry_starts_from_debian_packages(self, checkout, apptainer, tmp_path):
        shutil.copytree(checkout / "src", tmp_path / "src")
        shutil.copytree(checkout / "containers", tmp_path / "containers", ignore=shutil.ignore_patterns("images"))
        base = image_path(checkout, "base")
        (tmp_path / "containers/images").mkdir()
        os.symlink(base, tmp_path / "containers/images" / base.name)
        proxy = "http://localhost:1"
        result = build(tmp_path, apptainer, "base", HTTPS_PROXY=proxy, https_proxy=proxy)
        assert result.returncode == 0, result.stderr
        tried, fallback, done = result.stdout.splitlines()
        assert tried.startswith("base-") and images.CHOICE["base"] in fallback
        assert fallback.endswith("no base was chosen, so the images start from debootstrap")
        assert done == f"{base.name}: up to date"
        assert json.loads((tmp_path / "containers/images/choice.json").read_text())["base"] == "debootstrap"

    def test_variant_that_pip_did_not_find_is_refused(self, checkout, apptainer, tmp_path):
        """The parent is the built training image itself, so that pip has nothing to install."""
        shutil.copytree(checkout / "src", tmp_path / "src")
        copy = tmp_path / "containers"
        shutil.copytree(checkout / "containers", copy, ignore=shutil.ignore_patterns("images"))
        (copy / "training.txt").write_text("torch\n")
        (copy / "images").mkdir()
        base = image_path(checkout, "base").name
        os.symlink(image_path(checkout, "training"), copy / "images" / base)
        result = build(tmp_path, apptainer, "--base", "debootstrap", "--variant", "cu999", "training")
        assert result.returncode == 1
        [error] = result.stderr.splitlines()
        assert "not --variant cu999; set PIP_EXTRA_INDEX_URL" in error
        assert [image.name for image in (copy / "images").glob("*.sif")] == [base]

    @pytest.mark.parametrize("name", images.PARENTS)
    def test_labels_and_record(self, checkout, apptainer, name):
        image = image_path(checkout, name)
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
        image = image_path(checkout, name)
        result = subprocess.run(
            [apptainer / "apptainer", "test", "--cleanenv", image], capture_output=True, text=True, cwd=checkout
        )
        assert result.returncode == 0, result.stderr
        assert "No broken requirements found" in result.stdout
