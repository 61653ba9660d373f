"""The documentation site: pages of docs/, every notebook, the settings and the API, built offline and checked.

python tools/docs.py           # builds build/site and checks it
python tools/docs.py check     # checks what is there

Pages are Markdown. `{{README: Heading}}` and `{{CONTRIBUTING: Heading}}` stand for that section of the file, so that
nothing is said twice; `{{settings}}` is the table of all settings. Zensical builds the site from an mkdocs.yml.
"""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs"
BUILD = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
REPOSITORY = "https://github.com/gesture-nb/gesture_nb"
PARTS = {   # first digit of a notebook's number → its part of the menu
    "0": "Recordings first", "1": "Reading recordings", "2": "Features", "3": "Judgement", "4": "Members",
    "5": "Ground", "6": "Training", "7": "Serving", "8": "Seeing", "9": "The whole",
}
PUBLIC = {  # page of the API → modules on it
    "Front door": ["gesture_nb.api"],
    "Recordings": ["gesture_nb.data.sequences", "gesture_nb.data.readers", "gesture_nb.data.convert",
                   "gesture_nb.data.arrays", "gesture_nb.data.adapters", "gesture_nb.data.understanding",
                   "gesture_nb.data.simulate"],
    "Features": ["gesture_nb.features.frames", "gesture_nb.features.compute", "gesture_nb.features.summary",
                 "gesture_nb.features.views", "gesture_nb.features.wearer"],
    "Members": ["gesture_nb.models.base", "gesture_nb.models.registry"],
    "Judgement": ["gesture_nb.evaluation.metric", "gesture_nb.evaluation.folds", "gesture_nb.evaluation.decode"],
    "Training": ["gesture_nb.training.dataset", "gesture_nb.training.blend", "gesture_nb.training.adaptation",
                 "gesture_nb.training.decision", "gesture_nb.training.results"],
    "Serving": ["gesture_nb.serving.predictor", "gesture_nb.serving.wearers", "gesture_nb.serving.classifier"],
    "Sensors, settings, sinks": ["gesture_nb.sensors", "gesture_nb.settings", "gesture_nb.sinks"],
}


def section(file, heading):
    """The text below a heading of the second level in a Markdown file of the project, with links that hold in docs/."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = re.search(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text)
    if not found:
        sys.exit(f"docs: {file} has no section '{heading}', which a page of docs/ asks for.")
    return with_site_links(found[1].strip())


def with_site_links(text):
    """Links to files of the project become pages of the site, or the file in the repository."""
    def target(match):
        name, path = match[1], match[2]
        if re.match(r"[a-z]+:|#", path):
            return match[0]
        if path.startswith("nbs/") and path.endswith(".ipynb"):
            return f"[{name}](notebooks/{Path(path).stem}.md)"
        if path.startswith("nbs/images/"):
            return f"[{name}](images/{Path(path).name})"
        if path == "CONTRIBUTING.md":
            return f"[{name}](extend.md)"
        return f"[{name}]({REPOSITORY}/blob/main/{path})"
    return re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", target, text)


def page_text(path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\{\{(README|CONTRIBUTING): ([^}]+)\}\}", lambda m: section(f"{m[1]}.md", m[2]), text)
    if "{{settings}}" in text:
        text = text.replace("{{settings}}", settings_table())
    return text


def settings_table():
    from gesture_nb.api import settings_table as table

    return table()


def write_pages():
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    for path in sorted(SOURCE.glob("*.md")):
        (BUILD / path.name).write_text(page_text(path), encoding="utf-8")
    shutil.copy(SOURCE / "wide.css", BUILD)
    shutil.copytree(ROOT / "nbs" / "images", BUILD / "images")


def write_notebooks():
    """Every notebook as Markdown with its outputs; returns menu part → pages."""
    import nbformat
    from nbconvert import MarkdownExporter

    folder, parts = BUILD / "notebooks", {}
    folder.mkdir()
    shutil.copytree(ROOT / "nbs" / "images", folder / "images")
    exporter = MarkdownExporter()
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        nb.metadata["language_info"] = {"name": "python"}   # nbdev_clean takes it away; without it nothing is coloured
        text, resources = exporter.from_notebook_node(nb, {"output_files_dir": f"{path.stem}_files"})
        for name, data in resources["outputs"].items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / f"{path.stem}.md").write_text(readable(text), encoding="utf-8")
        title = nb.cells[0].source.splitlines()[0].lstrip("# ").strip()
        parts.setdefault(PARTS[path.stem[0]], []).append({title: f"notebooks/{path.stem}.md"})
    return parts


def readable(text):
    """Without nbdev's directives, and with links between notebooks that hold on the site."""
    text = re.sub(r"(?m)^#\|.*\n", "", text)
    text = re.sub(r"(?m)^```(?:python)?\n\s*```\n", "", text)
    text = re.sub(r"(?s)<style scoped>.*?</style>", "", text)
    text = re.sub(r"\]\((?:nbs/)?([\w.]+)\.ipynb\)", r"](\1.md)", text)
    return text


def write_api():
    """A page a part of the package; the signatures' comments become tables of parameters (tools/docments.py)."""
    folder, pages = BUILD / "api", []
    folder.mkdir()
    for title, modules in PUBLIC.items():
        name = re.sub(r"\W+", "-", title.lower())
        there = [m for m in modules if (ROOT / (m.replace(".", "/") + ".py")).exists()]
        body = "\n".join(f"::: {module}\n" for module in there)
        (folder / f"{name}.md").write_text(f"# {title}\n\n{body}", encoding="utf-8")
        pages.append({title: f"api/{name}.md"})
    return pages


def write_config(notebooks, api):
    import yaml

    config = yaml.safe_load((SOURCE / "mkdocs.yml").read_text(encoding="utf-8"))
    config["nav"] += [{"Notebooks": [{part: pages} for part, pages in notebooks.items()]}, {"API": api}]
    config |= {"docs_dir": BUILD.name, "site_dir": SITE.name}
    for plugin in config["plugins"]:
        if isinstance(plugin, dict) and "mkdocstrings" in plugin:
            python = plugin["mkdocstrings"]["handlers"]["python"]
            python["paths"] = [str(ROOT)]
            python["options"]["extensions"] = [str(ROOT / "tools" / "docments.py")]
    (BUILD.parent / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def build():
    write_pages()
    write_config(write_notebooks(), write_api())
    shutil.rmtree(SITE, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict", "-f", "mkdocs.yml"]
    subprocess.run(command, cwd=BUILD.parent, check=True)


class Links(HTMLParser):
    """Targets of links, the page's own anchors, and what it loads."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors, self.loaded = [], set(), []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif found.get("src"):
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("href") and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(found["href"])


def links_of(path):
    parser = Links()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def faults(site=SITE):
    """Sentences: links to pages or anchors that are not there, and whatever would be loaded from outside."""
    pages = {path.resolve(): links_of(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} holds no page: build it with `make docs`"]
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for target in page.loaded:
            url = urlsplit(target)
            if url.scheme in ("http", "https") or url.netloc:
                found.append(f"{name} loads {target} from outside")
            elif url.scheme != "data" and not resolved(path, url.path, site).exists():
                found.append(f"{name} loads {target}, which is not there")
        for target in page.links:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            goal = resolved(path, url.path, site)
            if not goal.exists():
                found.append(f"{name} links to {target}, which is not there")
            elif url.fragment and goal in pages and unquote(url.fragment) not in pages[goal].anchors:
                found.append(f"{name} links to {target}: no such place on that page")
    return found


def resolved(page, path, site):
    if not path:
        return page
    goal = (site / path.lstrip("/")) if path.startswith("/") else page.parent / unquote(path)
    goal = goal.resolve()
    return goal / "index.html" if goal.is_dir() else goal


def check():
    found = faults()
    if found:
        listing = "\n  ".join(sorted(set(found))[:60])
        sys.exit(f"docs: {len(set(found))} faults\n  {listing}")
    size = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file())
    count = len(list(SITE.rglob("*.html")))
    print(f"docs: {count} pages, {size / 1e6:.1f} MB, links checked, nothing from outside: {SITE / 'index.html'}")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["check"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        build()
    check()
