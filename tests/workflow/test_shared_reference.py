"""Two projects that share reference scores, run for real up to these."""

import copy

from checkout import SMALL

from lpc.files import sha256
from lpc.layout import Layout


def test_the_second_project_takes_the_scores_of_the_first(checkout, monkeypatch):
    shared = checkout.folder / "with space"
    shared.mkdir()
    monkeypatch.setenv("LPC_CACHE", str(shared))

    def run(project, **training):
        config = copy.deepcopy(SMALL)
        config["project"] = project
        config["training"].update(training)
        # As a pretrained base of a sweep would be: one folder for all projects.
        if project != "first":
            config["bases"] = {"other-name": {"model": "results/first/bases/tiny/model"}}
            config["experiments"]["main"]["bases"] = ["other-name"]
        layout, [base] = Layout(f"results/{project}"), config["bases"]
        files = layout.reference(base, "world")
        checkout.snakemake(files.logps, "--cores", "2", "--configfile", checkout.write(config, f"{project}.yaml"))
        log = (checkout.folder / layout.log("reference", base, "world")).read_text()
        return log, [sha256(checkout.folder / file) for file in (files.logps, files.statistics)]

    log, first = run("first")
    assert "not in " in log and "batches" in log
    log, second = run("second")
    [record] = shared.glob("*.json")
    assert second == first
    assert f"taken from {record}" in log and "batches" not in log
    log, third = run("third", precision="bfloat16")
    assert third != first and "not in " in log and "batches" in log
