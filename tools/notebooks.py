"""What is done to notebooks: export them, build README.md from the index, run them, see that all of it is committed.

python tools/notebooks.py export   # after editing: clean, export, README
python tools/notebooks.py drift    # fails if the package, the README or an unclean notebook is not what it should be
python tools/notebooks.py test     # nbdev_test, with a heartbeat, of all but those that pytest runs in kernels
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# what tests/test_notebooks.py runs, by the beginnings of names
IN_KERNEL = ("54_panel", "55_", "83_explorer", "83_report.dashboard", "90_", "91_", "index")
MULTI_LINE_IMPORT = re.compile(r"(?m)^from (gesture_nb\.[\w.]+) import \($")


def nbdev(command, *arguments, cwd=ROOT, **environ):
    subprocess.run([str(BIN / command), *arguments], cwd=cwd, check=True, env={**os.environ, **environ})


def readme_text(index):
    """The index notebook as Markdown: prose as it is, code in fences unless it is hidden, its kept output below."""
    parts = []
    for cell in json.loads(Path(index).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if not source or "#| hide" in source:
            continue
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("](images/", "](nbs/images/"))
            continue
        if "#| echo: false" not in source:
            shown = "\n".join(s for s in source.splitlines() if not s.startswith("#|"))
            parts.append(f"```python\n{shown}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data:
                parts.append("".join(data["text/markdown"]).rstrip())
                continue
            text = "".join(output.get("text", data.get("text/plain", []))).rstrip()
            if text:
                parts.append("\n".join("    " + s for s in text.splitlines()))
    return "\n\n".join(parts) + "\n"


def tidy_modules(root):
    """What nbdev leaves undone: imports over several lines made relative, imports sorted, `__all__` wrapped at 120."""
    for path in (root / "gesture_nb").rglob("*.py"):
        if path.name == "_modidx.py":
            continue
        package = path.relative_to(root).parent.parts
        text = path.read_text(encoding="utf-8")
        tidy = MULTI_LINE_IMPORT.sub(partial(relative_import, package=package), text)
        tidy = re.sub(r"(?ms)^__all__ = \[(.*?)\]$", wrapped_all, tidy)
        if tidy != text:
            path.write_text(tidy, encoding="utf-8")
    command = [str(BIN / "ruff"), "check", "--quiet", "--select", "I", "--fix", "--exit-zero", "gesture_nb"]
    subprocess.run(command, cwd=root, check=True)


def relative_import(match, package):
    """The first line of an import as a module of the package with these `package` parts writes it."""
    parts = match[1].split(".")
    same = 0
    while same < min(len(parts), len(package)) and parts[same] == package[same]:
        same += 1
    return f"from {'.' * (len(package) - same + 1)}{'.'.join(parts[same:])} import ("


def wrapped_all(match):
    names = " ".join(match[1].split())
    return textwrap.fill(f"__all__ = [{names}]", 119, subsequent_indent=" " * 11, break_long_words=False)


def export(root=ROOT):
    nbdev("nbdev_clean", cwd=root)
    nbdev("nbdev_export", cwd=root)
    tidy_modules(root)
    (root / "README.md").write_text(readme_text(root / "nbs" / "index.ipynb"), encoding="utf-8")


def generated(root):
    """Everything that comes from the notebooks, and the notebooks themselves."""
    paths = [p for d in ("nbs", "gesture_nb") for p in sorted((root / d).rglob("*"))]
    keep = {".ipynb", ".py"}
    files = [p for p in [*paths, root / "README.md"] if p.is_file() and ".ipynb_checkpoints" not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files if p.suffix in keep or p.name == "README.md"}


def drift():
    """Exports a copy of the tree and compares; the working tree is not touched."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv*", "out", ".git", "__pycache__", "*.egg-info"))
        for module in (copy / "gesture_nb").rglob("*.py"):
            module.unlink()
        export(copy)
        before, after = generated(ROOT), generated(copy)
    names = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    if names:
        sys.exit(
            f"drift: these differ from what the notebooks give: {', '.join(names)}. "
            "Run `make notebooks` and commit the result."
        )
    print(f"drift: {len(before)} files are what the notebooks give", flush=True)


TIMED = re.compile(r"(\S+\.ipynb): (\d+) secs\n")   # what `nbdev_test --timing` adds at its end, the slowest first
SLOWEST = 10


def beat(done, start):
    while not done.wait(9):
        print(f"nbdev_test: {time.monotonic() - start:.0f} s", flush=True)


def pass_on(lines):
    """Prints the lines of nbdev_test, and of the times only the longest."""
    times = []
    for line in lines:
        if match := TIMED.fullmatch(line):
            times.append(f"{match[1]} {match[2]} s")
        else:
            print(line, end="", flush=True)
    if times:
        print(f"nbdev_test: the slowest are {', '.join(times[:SLOWEST])}", flush=True)


def test():
    done, start = threading.Event(), time.monotonic()
    threading.Thread(target=beat, args=(done, start), daemon=True).start()
    skipped = ("_", ".", *IN_KERNEL)
    skip_re = f"^({'|'.join(map(re.escape, skipped))})"
    command = [BIN / "nbdev_test", "--n_workers", "2", "--do_print", "--timing", "--skip_file_re", skip_re]
    environ = {**os.environ, "PROGRESS": "lines", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, errors="replace")
    printer = threading.Thread(target=pass_on, args=(process.stdout,), daemon=True)
    printer.start()
    code = process.wait()
    printer.join(10)   # a process that a notebook left behind would keep the pipe open
    done.set()
    if code:
        sys.exit(code)
    notebooks = [p for p in (ROOT / "nbs").rglob("*.ipynb") if not p.name.startswith(skipped)]
    count = len([p for p in notebooks if ".ipynb_checkpoints" not in p.parts])
    print(f"nbdev_test: {count} notebooks passed in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    verbs = {"export": export, "drift": drift, "test": test}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]]()
