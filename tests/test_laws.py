"""Importing is silent, quick and pulls in nothing heavy; imports only ever go down; the wheel holds the whole package and nothing else."""
import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "gesture_nb").rglob("*.py")
                 if p.name not in ("__init__.py", "__main__.py", "_modidx.py"))
HEAVY = ("tensorflow", "keras", "ipywidgets", "lightgbm", "sklearn", "matplotlib", "nbdev", "fastcore", "polars", "onnxruntime")


@pytest.mark.parametrize("module", MODULES)
def test_import_is_silent_and_light(module, tmp_path):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip() == "[]"
    assert not list(tmp_path.iterdir())


def notebook_of(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    target = next((s.split()[-1] for c in code for s in c.splitlines() if s.startswith("#| default_exp")), None)
    return target, [c for c in code if c.startswith("#| export")]


NOTEBOOKS = {t: (p, cells) for p in sorted((ROOT / "nbs").glob("*.ipynb")) for t, cells in [notebook_of(p)] if t}
FLOOR = {"0": 0, "1": 1, "2": 1, "3": 2, "4": 3, "5": 4, "6": 5, "7": 5, "8": 6, "9": 6}


def test_imports_only_go_down():
    floor = {f"gesture_nb.{t}": FLOOR[p.name[0]] for t, (p, _) in NOTEBOOKS.items()}
    wrong = [f"{p.name} imports {n.module}" for t, (p, cells) in NOTEBOOKS.items() for c in cells for n in ast.walk(ast.parse(c))
             if isinstance(n, ast.ImportFrom) and floor.get(n.module, 0) > floor[f"gesture_nb.{t}"]]
    assert not wrong


def test_exported_cells_import_or_define():
    mixed = []
    for t, (p, cells) in NOTEBOOKS.items():
        for c in cells:
            kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(c).body}
            defines = any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.parse(c).body)
            if True in kinds and defines:
                mixed.append(p.name)
    assert not mixed


def test_every_import_in_the_package_is_declared_or_ours():
    known = set(sys.stdlib_module_names) | {"gesture_nb", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "torch", "lightgbm", "tensorflow", "keras",
                                            "ipywidgets", "matplotlib", "tqdm", "safetensors", "filelock", "IPython", "polars", "kaggle_evaluation",
                                            "onnx", "onnxruntime"}
    found = {(a.name if isinstance(n, ast.Import) else n.module).split(".")[0]
             for p in (ROOT / "gesture_nb").rglob("*.py") for n in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
             if isinstance(n, ast.Import) or (isinstance(n, ast.ImportFrom) and n.level == 0) for a in n.names[:1]}
    assert found <= known


def test_no_print_and_no_pickle_in_the_package():
    calls = [(p.name, n.lineno) for p in (ROOT / "gesture_nb").rglob("*.py") for n in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
             if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print" and p.name not in ("sinks.py", "cli.py")]
    assert not calls


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    """Built from the sources, installed without its dependencies, every module imported from another folder."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)],
                   check=True, capture_output=True, text=True)
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"gesture_nb"}
    packaged = {n for n in names if n.endswith(".py")}
    assert packaged == {p.relative_to(ROOT).as_posix() for p in (ROOT / "gesture_nb").rglob("*.py")}
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
                   check=True, capture_output=True, text=True)
    code = f"import importlib, sys; sys.path[:] = [{str(target)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]\n" \
           f"ms = [importlib.import_module(m) for m in {MODULES!r}]\nassert all(m.__file__.startswith({str(target)!r}) for m in ms)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_our_own_wheel_is_the_same_package(tmp_path):
    from gesture_nb.serving.kaggle import write_wheel

    names = zipfile.ZipFile(write_wheel(tmp_path)).namelist()
    assert {n for n in names if n.endswith(".py")} == {p.relative_to(ROOT).as_posix() for p in (ROOT / "gesture_nb").rglob("*.py")}
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(next(Path(tmp_path).glob("*.whl")))],
                   check=True, capture_output=True, text=True)


def test_nothing_of_this_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = [p for p in map(ROOT.joinpath, listed.stdout.split()) if p.suffix in (".ipynb", ".py", ".md", ".ini", ".toml", ".lock", ".html") and p.exists()]
    home = str(Path.home())
    marks = [str(ROOT), "/tmp/tmp", "site-packages/"] + ([home + "/"] if len(home) > 1 else [])
    assert not [(p.name, m) for p in texts if p.name != "test_laws.py" for m in marks if m in p.read_text(encoding="utf-8")]
