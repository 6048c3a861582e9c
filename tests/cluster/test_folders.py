"""Folders outside of the working directory: the checkout under --directory, and the cache of the hub."""

import json

import pytest
from cluster import ROOT

from lpc import environment
from lpc.cli import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.timeout(2700)  # the first test of a session builds the images
def test_checkout_and_cache_outside_of_the_working_directory(cluster, folder):
    """A data set of the hub's cache is recorded in a container on the login node, and read by a job in another one."""
    home, elsewhere = folder / "models and data", folder / "elsewhere"
    repository = home / "hub/datasets--lpc--prefs"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    pairs = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    (snapshot / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = {"datasets": {"prefs": {"kind": "pairs", "path": "lpc/prefs", "split": {"validation": 5, "test": 10}}}}
    (cluster.checkout / "hub.yaml").write_text(json.dumps(config))
    elsewhere.mkdir()

    code, output = cluster.snakemake(
        "results/cluster/data/prefs/split.json",
        "--directory",
        str(elsewhere),
        config=("hub.yaml",),
        # By its whole path, since its file of partitions is looked up from the new working directory.
        profile=("--profile", str(cluster.checkout / "slurm")),
        # No hub answers, so the download uses the copy that the cache holds.
        variables={"HF_HOME": str(home), "APPTAINERENV_HF_ENDPOINT": "http://127.0.0.1:1"},
    )
    assert code == 0, output[-8000:]
    data = elsewhere / "results/cluster/data/prefs"
    assert json.loads((data / "dataset.json").read_text())["files"] == [str(snapshot / "train.jsonl")]
    assert json.loads((data / "split.json").read_text())["container"]["image"].startswith("training-")
    assert not (cluster.checkout / "results/cluster/data/prefs").exists()


def test_only_needed_folders_are_bound_each_once(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("APPTAINER_BIND", "/lustre/project,/etc/pki:/pki:ro")
    assert environment.binds(ROOT) == f"/lustre/project,/etc/pki:/pki:ro,{ROOT}"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("APPTAINER_BIND", environment.binds(ROOT))
    assert environment.binds(ROOT) == f"/lustre/project,/etc/pki:/pki:ro,{ROOT},{tmp_path}"


def test_missing_cache_is_named_before_any_job(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    with pytest.raises(UserError, match=rf"HF_HOME={tmp_path}/none is not a folder on \S+; create it"):
        environment.binds(ROOT)
