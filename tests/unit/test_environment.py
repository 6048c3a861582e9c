"""Variables that reach a container."""

import os

from lpc.environment import prepare


def test_variables_of_the_network_reach_containers(tmp_path, monkeypatch):
    before = dict(os.environ)
    monkeypatch.setattr(
        os, "environ", {**before, "NCCL_SOCKET_IFNAME": "^lo,docker0", "FI_PROVIDER": "cxi", "NCC": "1"}
    )
    monkeypatch.delenv("HF_HOME", raising=False)
    prepare(tmp_path, containers=True, main=False)
    passed = {name: value for name, value in os.environ.items() if name.startswith("APPTAINERENV_")}
    assert passed == {"APPTAINERENV_NCCL_SOCKET_IFNAME": "^lo,docker0", "APPTAINERENV_FI_PROVIDER": "cxi"}
