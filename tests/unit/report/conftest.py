from pathlib import Path

import pytest
import results_tree


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A small tree of results with tables and t-SNE figures; read only."""
    root = tmp_path_factory.mktemp("results")
    results_tree.build(root)
    return root


@pytest.fixture(scope="session", autouse=True)
def commit():
    """Somebody who commits while the tests run must not change the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPC_COMMIT", "0123456789abcdef")
        yield
