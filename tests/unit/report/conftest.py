from pathlib import Path

import pytest
import results_tree


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A small tree of results with tables and t-SNE figures; read only."""
    root = tmp_path_factory.mktemp("results")
    results_tree.build(root)
    return root
