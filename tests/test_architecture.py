"""Importing is silent, quick and pulls in nothing heavy; imports only ever go down and never in a circle."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "gesture_nb").rglob("*.py")
    if p.name not in ("__init__.py", "__main__.py", "_modidx.py")
)
HEAVY = (
    "tensorflow",
    "keras",
    "ipywidgets",
    "lightgbm",
    "sklearn",
    "matplotlib",
    "nbdev",
    "fastcore",
    "polars",
    "onnxruntime",
    "plotly",
    "optuna",
)


IMPORTS = """
import json, os, sys
import numpy, pandas, pyarrow, scipy, torch   # allowed, and slow: loaded once, before the process forks
before = [name for name in HEAVY if name in sys.modules]
found = {}
for module in MODULES:
    out, err = os.path.join(FILES, "out"), os.path.join(FILES, "err")
    child = os.fork()
    if child == 0:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        __import__(module)
        heavy = [name for name in HEAVY if name in sys.modules and name not in before]
        sys.stdout.flush()
        os.write(2, f"loads {heavy}".encode() if heavy else b"")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found[module] = [code, open(out).read(), open(err).read(), os.listdir()]
print(json.dumps({"before": before, "found": found}))
"""


@pytest.fixture(scope="module")
def imports(tmp_path_factory):
    """Module → [exit code, output, errors and heavy libraries, new files], each imported in a process of its own."""
    folder, files = tmp_path_factory.mktemp("imports"), str(tmp_path_factory.mktemp("streams"))
    head = f"HEAVY, MODULES, FILES = {HEAVY!r}, {MODULES!r}, {files!r}\n"
    command = [sys.executable, "-c", head + IMPORTS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["before"] == []  # else their being loaded by a module of ours would not be seen
    return told["found"]


@pytest.mark.parametrize("module", MODULES)
def test_import_is_silent_and_light(module, imports):
    assert imports[module] == [0, "", "", []]


def test_the_package_itself_loads_nothing_at_all(tmp_path):
    libraries = (*HEAVY, "torch", "pandas", "pyarrow", "scipy")
    code = f"import sys, gesture_nb; print([m for m in {libraries!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def notebook_of(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    lines = [line for source in code for line in source.splitlines()]
    target = next((line.split()[-1] for line in lines if line.startswith("#| default_exp")), None)
    return target, [c for c in code if c.startswith("#| export")]


NOTEBOOKS = {t: (p, cells) for p in sorted((ROOT / "nbs").glob("*.ipynb")) for t, cells in [notebook_of(p)] if t}
GROUND = ("errors", "registry", "config", "sensors", "schema", "control", "artifacts", "tasks", "sinks", "progress")
GROUND += ("show", "parsers", "settings", "unread", "forked", "threads", "presets")
GROUND += ("events", "tracked_values", "tracking", "trackers")
GROUND += ("text", "isolation", "files", "writing", "figures", "panel", "remaining", "story", "terminal")
GROUND += ("machine", "scratch")
FLOORS = (
    GROUND,
    ("data",),
    ("features",),
    ("evaluation",),
    ("models",),
    ("training", "executors"),
    ("serving", "report", "explorer", "analysis"),
    ("session", "app", "commands", "tuning", "api", "cli_options", "cli", "__main__", "__init__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def floor_of(module):
    return FLOOR[module.split(".")[0]]


def imported_modules(source):
    """Modules of the package that a source imports, at its top or inside functions."""
    known, found = set(NOTEBOOKS), set()
    tree = ast.parse(source)
    only_typing = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in only_typing:  # read by editors, never run
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gesture_nb"):
            base = node.module.removeprefix("gesture_nb").lstrip(".")
            names = [f"{base}.{a.name}".lstrip(".") for a in node.names]
            found |= {n for n in [base, *names] if n in known}
    return found


def import_graph():
    """Module → modules it imports, lazily or not."""
    return {t: {m for c in cells for m in imported_modules(c)} - {t} for t, (_, cells) in NOTEBOOKS.items()}


def cycle_in(graph):
    """A cycle of the graph as a list of modules, or None."""
    path, done = [], set()

    def visit(module):
        if module in path:
            return path[path.index(module) :] + [module]
        if module in done:
            return None
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return None

    return next((found for module in sorted(graph) if (found := visit(module))), None)


def test_imports_only_go_down():
    graph = import_graph()
    wrong = [f"{t} imports {m}" for t, others in graph.items() for m in others if floor_of(m) > floor_of(t)]
    assert not wrong


def test_no_modules_import_each_other():
    """Lazy imports included: a circle that is closed inside a function is a circle all the same."""
    assert cycle_in(import_graph()) is None


def test_circles_through_functions_are_seen():
    source = "def f():\n    from gesture_nb.app import main\n"
    assert imported_modules(source) == {"app"}
    assert cycle_in({"app": {"commands"}, "commands": imported_modules(source)}) == ["app", "commands", "app"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_notebooks_are_read_upwards():
    """Numbers order the reading; the first page meets a recording before any plumbing."""
    first = sorted(p.name for p in (ROOT / "nbs").glob("[0-9]*.ipynb"))[0]
    assert first == "00_first_look.ipynb" and notebook_of(ROOT / "nbs" / first)[0] is None


def test_exported_cells_import_or_define():
    mixed = []
    for p, cells in NOTEBOOKS.values():
        for c in cells:
            kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(c).body}
            defines = any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.parse(c).body)
            if True in kinds and defines:
                mixed.append(p.name)
    assert not mixed


def test_every_import_in_the_package_is_declared_or_ours():
    known = set(sys.stdlib_module_names) | {
        "gesture_nb",
        "numpy",
        "pandas",
        "pyarrow",
        "scipy",
        "sklearn",
        "torch",
        "lightgbm",
        "tensorflow",
        "keras",
        "ipywidgets",
        "matplotlib",
        "tqdm",
        "rich",
        "click",
        "jinja2",
        "safetensors",
        "filelock",
        "threadpoolctl",
        "joblib",
        "lightning_fabric",
        "datasets",
        "IPython",
        "polars",
        "kaggle_evaluation",
        "onnx",
        "onnxruntime",
        "tensorboard",
        "mlflow",
        "wandb",
        "optuna",
        "ray",
        "submitit",
    }
    found = {
        (a.name if isinstance(n, ast.Import) else n.module).split(".")[0]
        for p in (ROOT / "gesture_nb").rglob("*.py")
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(n, ast.Import) or (isinstance(n, ast.ImportFrom) and n.level == 0)
        for a in n.names[:1]
    }
    assert found <= known


def test_no_print_and_no_pickle_in_the_package():
    calls = [
        (p.name, n.lineno)
        for p in (ROOT / "gesture_nb").rglob("*.py")
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print" and p.name not in ("sinks.py", "cli.py")
    ]
    assert not calls


def test_our_own_wheel_is_the_same_package(tmp_path):
    from gesture_nb.serving.kaggle import write_wheel

    names = zipfile.ZipFile(write_wheel(tmp_path)).namelist()
    assert {n for n in names if n.endswith(".py")} == {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "gesture_nb").rglob("*.py")
    }
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path / "site"),
            str(next(Path(tmp_path).glob("*.whl"))),
        ],
        check=True,
        capture_output=True,
        text=True,
    )


def test_nothing_of_this_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = [
        p
        for p in map(ROOT.joinpath, listed.stdout.split())
        if p.suffix in (".ipynb", ".py", ".md", ".ini", ".toml", ".lock", ".html") and p.exists()
    ]
    home = str(Path.home())
    marks = [str(ROOT), "/tmp/tmp", "site-packages/"] + ([home + "/"] if len(home) > 1 else [])
    assert not [
        (p.name, m)
        for p in texts
        if p.name != "test_architecture.py"
        for m in marks
        if m in p.read_text(encoding="utf-8")
    ]
