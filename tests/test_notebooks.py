"""Notebooks from top to bottom, each in a kernel of its own, as a reader runs them.

`make test` runs most of them by nbdev_test, and here those with something that only a kernel shows: widgets, pictures
of runs, a guarded `main()`. `make soak` runs every one here.
"""

import os
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from notebooks import IN_KERNEL  # noqa: E402

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if not p.name.startswith(("_", ".")))
CASES = [pytest.param(p, id=p.stem, marks=() if p.name.startswith(IN_KERNEL) else pytest.mark.soak) for p in NOTEBOOKS]


@pytest.mark.parametrize("path", CASES)
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
