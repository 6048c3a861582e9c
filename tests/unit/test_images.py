"""Images of a registry: the Containerfile against what build.py builds, references, and what a job says of its own."""

import hashlib
import re
import shlex

import pytest

from lpc import doctor, images
from lpc.config.load import ConfigError, resolve

DIGEST = "0123456789abcdef" * 4
REFERENCE = f"docker://registry.example:5000/group/lpc-training@sha256:{DIGEST}"


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction of the Containerfile, lines that go on joined."""
    text = (images.FOLDER / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """stage: (the one that it starts from, its instructions)"""
    found = {}
    for word, rest in instructions():
        if word == "FROM":
            parent, name = rest.split(" AS ")
            found[name] = parent, []
        elif found:
            found[name][1].append((word, rest))
    return found


def sections(name: str) -> dict[str, list[str]]:
    """section of an image's definition for Apptainer: its lines without comments"""
    parts = re.split(r"^%(\w+)\n", (images.FOLDER / f"{name}.def").read_text(), flags=re.MULTILINE)
    lines = lambda text: [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]  # noqa: E731
    return dict(zip(parts[1::2], map(lines, parts[2::2]), strict=True))


def test_stages_are_the_images():
    assert {name: parent for name, (parent, _) in stages().items()} == {
        name: parent or "${FROM}" for name, parent in images.PARENTS.items()
    }
    assert instructions()[0] == ("ARG", f"FROM={images.CHOICE['base']}")


@pytest.mark.parametrize("name", images.PARENTS)
def test_a_stage_does_what_the_definition_does(name):
    """The same pins, commands, variables and labels; only pip's configuration comes another way."""
    of, definition = stages()[name][1], sections(name)

    def rest(word: str) -> list[str]:
        return [text for found, text in of if found == word]

    def commands(lines: list[str]) -> list[str]:
        return [part.strip() for line in lines for part in line.replace("then", "then;").split(";") if part.strip()]

    run = [re.sub(r"^--mount=type=secret,id=pip,target=/etc/pip.conf\s+", "", text) for text in rest("RUN")]
    post = [line.replace("PIP_CONFIG_FILE={{ PIP_CONFIG }} ", "") for line in definition["post"]]
    assert commands(run) == commands(post + definition["test"])
    assert rest("COPY") == definition.get("files", [])
    exports = [line.removeprefix("export ") for line in definition.get("environment", [])]
    assert rest("ENV") == exports
    labels = [shlex.split(text)[0].split("=", 1) for text in rest("LABEL")]
    assert labels == [line.split(maxsplit=1) for line in definition["labels"]]


def test_what_is_sent_to_the_build_are_the_pins_alone():
    """Else gigabytes of images for Apptainer would be."""
    assert (images.FOLDER / ".dockerignore").read_text().split() == ["*", "!*.txt"]


@pytest.mark.parametrize(
    "text",
    [
        "docker://ghcr.io/org/lpc-training:latest",
        "docker://ghcr.io/org/lpc-training",
        f"docker://ghcr.io/org/lpc-training:1.0@sha256:{DIGEST}",
        f"ghcr.io/org/lpc-training@sha256:{DIGEST}",
        f"docker://ghcr.io/org/lpc-training@sha256:{DIGEST[1:]}",
        f"docker://ghcr.io/org/lpc training@sha256:{DIGEST}",
        f"docker://ghcr.io/org/$(rm)@sha256:{DIGEST}",
        f"{REFERENCE}\n",
    ],
)
def test_a_reference_without_a_digest_is_refused_in_one_line(text, small):
    with pytest.raises(ConfigError) as raised:
        resolve({**small, "images": {"training": text}}, [])
    [line] = [line for line in str(raised.value).splitlines() if "images" in line]
    wanted = "must name an image by digest: use docker://host/name@sha256: and 64 hexadecimal digits"
    assert "images.training: " in line and line.endswith(wanted)


@pytest.fixture
def small():
    return {
        "project": "small",
        "datasets": {"world": {"kind": "world", "rows": 400, "split": {"validation": 40, "test": 100}}},
        "bases": {"tiny": {"scratch": {"dataset": "world"}}},
        "recipes": {"dpo": {"objective": {"name": "dpo"}}},
        "experiments": {"main": {"bases": ["tiny"], "datasets": ["world"], "recipes": ["dpo"]}},
    }


def test_references_are_those_that_are_given(small):
    settings = resolve({**small, "images": {"training": REFERENCE}}, []).settings
    assert settings.images.references() == {"training": REFERENCE}
    assert resolve(small, []).settings.images.references() == {}


def test_a_job_names_the_reference_of_its_image(monkeypatch):
    """Snakemake calls the file by the MD5 of the reference."""
    other = REFERENCE.replace("training", "reporting")
    monkeypatch.setenv("LPC_IMAGES", f"{other} {REFERENCE}")
    monkeypatch.setenv("APPTAINER_CONTAINER", f"/x/.snakemake/singularity/{md5(REFERENCE)}.simg")
    assert images.current() == {"image": REFERENCE, "sha256": DIGEST}
    monkeypatch.setenv("APPTAINER_CONTAINER", "/x/containers/images/training-1.sif")
    assert images.current() == {"image": "training-1.sif", "sha256": None}


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ((), ["base", "training", "evaluation", "reporting"]),
        (("training",), ["base", "evaluation", "reporting"]),
        (("training", "evaluation"), ["base", "reporting"]),
        (("training", "evaluation", "reporting"), []),
    ],
)
def test_doctor_asks_for_local_images_alone(tmp_path, monkeypatch, given, lacking):
    for file in images.FOLDER.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(images, "FOLDER", tmp_path)
    findings = list(doctor.check_images(dict.fromkeys(given, REFERENCE)))
    notes = [finding.text.partition(":")[0] for finding in findings if finding.level == "note"]
    assert notes == list(given)
    failures = [finding.text for finding in findings if finding.level == "FAILED"]
    named = [name for text in failures for name in re.findall(r"(\w+)-[0-9a-f]{12}-", text)]
    assert named == lacking and len(failures) == bool(lacking)
