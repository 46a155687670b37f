"""The notebooks run from top to bottom, in smoke form."""

import json
import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "experiments" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks_without_outputs():
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        assert all(not cell.get("outputs") for cell in json.loads(path.read_text())["cells"])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("VQVAE_SMOKE", "1")
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent.parent))
    # It looks for the project from where it is started, and writes where it is started.
    start = tmp_path / "here"
    start.mkdir()
    os.symlink(path.parent.parent.parent, start / "vqvae_jax")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(start)}}).execute()
