"""What is done to notebooks: export them, build README.md from the index, run them, and see that all of it is committed.

    python tools/notebooks.py export   # after editing: clean, export, README
    python tools/notebooks.py drift    # fails if the package, the README or an unclean notebook differs from what is committed
    python tools/notebooks.py test     # nbdev_test, with a heartbeat
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def nbdev(command, *arguments, cwd=ROOT, **environ):
    subprocess.run([str(BIN / command), *arguments], cwd=cwd, check=True, env={**os.environ, **environ})


def readme_text(index):
    """The index notebook as Markdown: prose as it is, shown code in fences, its kept text output below."""
    parts = []
    for cell in json.loads(Path(index).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if not source or "#| hide" in source:
            continue
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("](images/", "](nbs/images/"))
            continue
        shown = "\n".join(s for s in source.splitlines() if not s.startswith("#|"))
        parts.append(f"```python\n{shown}\n```")
        for output in cell.get("outputs", []):
            text = "".join(output.get("text", output.get("data", {}).get("text/plain", []))).rstrip()
            if text:
                parts.append("\n".join("    " + s for s in text.splitlines()))
    return "\n\n".join(parts) + "\n"


def export(root=ROOT):
    nbdev("nbdev_clean", cwd=root)
    nbdev("nbdev_export", cwd=root)
    (root / "README.md").write_text(readme_text(root / "nbs" / "index.ipynb"), encoding="utf-8")


def generated(root):
    """Everything that comes from the notebooks, and the notebooks themselves."""
    paths = [p for d in ("nbs", "gesture_nb") for p in sorted((root / d).rglob("*"))]
    keep = {".ipynb", ".py"}
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in [*paths, root / "README.md"]
            if p.is_file() and (p.suffix in keep or p.name == "README.md") and ".ipynb_checkpoints" not in p.parts}


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
        sys.exit("drift: these differ from what the notebooks give: " + ", ".join(names) + ". Run `make notebooks` and commit the result.")
    print(f"drift: {len(before)} files are what the notebooks give", flush=True)


def test():
    done, start = threading.Event(), time.monotonic()

    def beat():
        while not done.wait(9):
            print(f"nbdev_test: {time.monotonic() - start:.0f} s", flush=True)

    threading.Thread(target=beat, daemon=True).start()
    nbdev("nbdev_test", "--n_workers", "2", "--do_print", PROGRESS="lines")
    done.set()
    count = len([p for p in (ROOT / "nbs").rglob("*.ipynb") if not p.name.startswith(("_", ".")) and ".ipynb_checkpoints" not in p.parts])
    print(f"nbdev_test: {count} notebooks passed in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    {"export": export, "drift": drift, "test": test}[sys.argv[1]]()
