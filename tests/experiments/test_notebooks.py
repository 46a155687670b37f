"""The notebooks find the project wherever it lies, and run from top to bottom in smoke form."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text())["cells"]


def test_there_are_notebooks_without_outputs():
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        assert all(not cell.get("outputs") for cell in cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("start", "root"),
    [(".", "a name of mine"), ("a name of mine", "a name of mine"), ("a name of mine/deep/er", "a name of mine")],
    ids=["from above", "from inside", "from below"],
)
def test_a_notebook_finds_the_project_under_any_name(path, start, root, tmp_path, monkeypatch):
    (tmp_path / "a name of mine" / "vqvae_jax").mkdir(parents=True)
    (tmp_path / "a name of mine" / "vqvae_jax" / "run.py").touch()
    (tmp_path / "a name of mine" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "another folder").mkdir()
    monkeypatch.chdir(tmp_path / start)
    monkeypatch.setattr(sys, "path", [])
    setup = next("".join(cell["source"]) for cell in cells(path) if "ROOT" in "".join(cell["source"]))
    exec(compile(setup, str(path), "exec"), {})
    assert sys.path == [str(tmp_path / root)]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("VQVAE_SMOKE", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # It looks for the project from where it is started, and writes where it is started.
    start = tmp_path / "here"
    start.mkdir()
    os.symlink(ROOT, start / "a name of mine")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(start)}}).execute()
