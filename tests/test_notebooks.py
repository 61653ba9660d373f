"""Every notebook from top to bottom in a kernel of its own, as a reader runs it."""

import os

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if not p.name.startswith(("_", ".")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_in_its_own_kernel(path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IN_TEST", "1")
    nb = nbformat.read(path, as_version=4)
    skipped = ("#| notest", "#| slow", "#| eval: false")
    nb.cells = [c for c in nb.cells if c.cell_type != "code" or not c.source.startswith(skipped)]
    client = NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=dict(os.environ))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) > 25
