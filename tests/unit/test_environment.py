"""Variables that reach a container."""

import os

import pytest

from lpc.cli import UserError
from lpc.environment import VARIABLES, binds, prepare, variables


def test_variables_of_the_network_reach_containers(tmp_path, monkeypatch):
    before = dict(os.environ)
    monkeypatch.setattr(
        os, "environ", {**before, "NCCL_SOCKET_IFNAME": "^lo,docker0", "FI_PROVIDER": "cxi", "NCC": "1"}
    )
    monkeypatch.delenv("HF_HOME", raising=False)
    prepare(tmp_path, containers=True, main=False)
    passed = {name: value for name, value in os.environ.items() if name.startswith("APPTAINERENV_")}
    assert passed == {"APPTAINERENV_NCCL_SOCKET_IFNAME": "^lo,docker0", "APPTAINERENV_FI_PROVIDER": "cxi"}


def test_the_folder_of_shared_results_reaches_jobs_and_containers(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("APPTAINER_BIND", raising=False)
    monkeypatch.delenv("LPC_CACHE", raising=False)
    assert variables() == VARIABLES and binds(tmp_path) == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("LPC_CACHE", "shared")
    assert variables() == {**VARIABLES, "LPC_CACHE": str(tmp_path / "shared")}
    assert binds(tmp_path / "checkout") == f"{tmp_path}/checkout,{tmp_path}/shared"
    monkeypatch.setenv("LPC_CACHE", "none")
    with pytest.raises(UserError, match="LPC_CACHE=none is not a folder"):
        variables()
