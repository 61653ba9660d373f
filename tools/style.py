"""Measures how the code and the notebooks read, in the terms that CONTRIBUTING.md names.

python tools/style.py            # the working tree
python tools/style.py REVISION   # the same of an earlier commit, beside it
"""

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPREHENSIONS = (ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
# Words of a private language that this project once spoke; the field has terms for all of them.
PRIVATE = re.compile(
    r"\b(told|said|asked|lever|levers|verdict|settle|outlook|stand_in|suited|seen_by|drawn|judged|"
    r"heads_told|as_told|mean_told|sum_told|meant|likeliest_of|answers_of|kept_facts|facts_in_time)\b"
)
HEAVY = {
    "tensorflow",
    "keras",
    "torch",
    "lightgbm",
    "pandas",
    "sklearn",
    "scipy",
    "pyarrow",
    "matplotlib",
    "ipywidgets",
    "polars",
    "onnx",
    "onnxruntime",
    "tqdm",
    "safetensors",
    "filelock",
    "IPython",
}


def read_tree(revision):
    "Path → text of the package's modules and the notebooks, in the working tree or at a revision."

    def wanted(name):
        module = name.startswith("gesture_nb/") and name.endswith(".py") and not name.endswith("_modidx.py")
        return module or (name.startswith("nbs/") and name.endswith(".ipynb"))

    if revision is None:
        names = [p.relative_to(ROOT).as_posix() for folder in ("gesture_nb", "nbs") for p in (ROOT / folder).rglob("*")]
        return {
            n: (ROOT / n).read_text(encoding="utf-8") for n in sorted(names) if wanted(n) and "checkpoints" not in n
        }
    git = ["git", "-C", str(ROOT)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", revision], capture_output=True, text=True, check=True
    )
    names = [n for n in listed.stdout.splitlines() if wanted(n)]
    shown = {
        n: subprocess.run([*git, "show", f"{revision}:{n}"], capture_output=True, text=True, check=True) for n in names
    }
    return {n: done.stdout for n, done in shown.items()}


def same_line_statements(tree):
    "How many statements follow another one on its line."
    count = 0
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            count += sum(a.lineno == b.lineno for a, b in zip(body, body[1:]))
    return count


def nested_comprehensions(tree):
    outer = [n for n in ast.walk(tree) if isinstance(n, COMPREHENSIONS)]
    return sum(any(isinstance(c, COMPREHENSIONS) for c in ast.walk(n) if c is not n) for n in outer)


def implicit_optionals(tree):
    "Parameters and fields whose default None their annotation does not admit."

    def admits_none(annotation):
        text = ast.unparse(annotation)
        return "None" in text or "Optional" in text or text in ("object", "Any")

    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            positional = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            pairs = [*zip(positional, node.args.defaults), *zip(node.args.kwonlyargs, node.args.kw_defaults)]
            count += sum(
                isinstance(d, ast.Constant)
                and d.value is None
                and a.annotation is not None
                and not admits_none(a.annotation)
                for a, d in pairs
            )
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant) and node.value.value is None:
            count += not admits_none(node.annotation)
    return count


def local_imports(tree):
    "Imports inside functions of modules that are not heavy."
    count = 0
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        for node in ast.walk(function):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            count += sum(n.split(".")[0] not in HEAVY for n in names)
    return count


def bare_returns(tree):
    "Functions that promise a `dict` or `tuple` and do not say of what."
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return sum(isinstance(f.returns, ast.Name) and f.returns.id in ("dict", "tuple") for f in functions)


def code_measures(modules):
    lines = [line for text in modules.values() for line in text.splitlines() if line.strip()]
    trees = [ast.parse(text) for text in modules.values()]
    words = sum(len(PRIVATE.findall(line.split("#")[0])) for line in lines)
    longest = max(map(len, lines))
    return {
        "lines of code": len(lines),
        "lines over 120 characters, %": round(100 * sum(len(x) > 120 for x in lines) / len(lines), 1),
        "longest line": longest,
        "second statements on a line": sum(map(same_line_statements, trees)),
        "comprehensions in comprehensions": sum(map(nested_comprehensions, trees)),
        "bare -> dict or -> tuple": sum(map(bare_returns, trees)),
        "implicit Optional": sum(map(implicit_optionals, trees)),
        "local imports of light modules": sum(map(local_imports, trees)),
        "private words": words,
    }


def notebook_measures(notebooks):
    sizes, pictures = [], 0
    for text in notebooks.values():
        cells = json.loads(text)["cells"]
        outputs = [o for c in cells for o in c.get("outputs", [])]
        pictures += any("image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for o in outputs)
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and re.search(r"^#\s*\|\s*exports?\b", source, re.M):
                sizes.append(sum(bool(s.strip()) and not s.startswith("#|") for s in source.splitlines()))
    return {
        "notebooks": len(notebooks),
        "notebooks with a picture": pictures,
        "exported cells": len(sizes),
        "median lines of an exported cell": statistics.median(sizes),
        "90 % of exported cells are below": sorted(sizes)[int(0.9 * len(sizes))],
        "longest exported cell": max(sizes),
    }


def measures(revision=None):
    tree = read_tree(revision)
    modules = {n: t for n, t in tree.items() if n.endswith(".py")}
    notebooks = {n: t for n, t in tree.items() if n.endswith(".ipynb")}
    return code_measures(modules) | notebook_measures(notebooks)


def main(arguments):
    columns = {"now": measures()}
    if arguments:
        columns = {arguments[0][:12]: measures(arguments[0])} | columns
    print(f"{'':<36}" + "".join(f"{name:>14}" for name in columns))
    for key in columns["now"]:
        print(f"{key:<36}" + "".join(f"{column[key]:>14}" for column in columns.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
