"""Labels, names and paths are shown as they are, whatever is in them: in lines, pages, plots, tables and files."""

import json
import random
import sys
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest
from test_progress import run_cells

from gesture_nb.errors import Interrupted, UserError
from gesture_nb.text import display_width, html_text, pad, printable, short, short_names

LABELS = [
    "a$b$",
    "$\\frac",
    "c_$x^{$",
    "_x",
    "%#&~^{}",
    "{fold}%s",
    "<b>bold</b><script>alert(1)</script>",
    "\"quoted' & &amp;",
    "手势",
    "نص عربي",
    "😀👩\u200d👩",
    "a\x00b",
    "c\x1b[2J",
    "x\ny",
    "a\u202ebc",
    "z\u200bw",
    "q" * 500,
    "q" * 499 + "r",
]


def has_controls(text, keep=""):
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in keep for c in text) or any(
        c in text for c in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200e\u200f\ufeff"
    )


# texts


def test_any_text_is_printable_on_one_line():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(chr(rng.randrange(rng.choice((256, 0x3000, 0x110000)))) for _ in range(5))
        shown = printable(text)
        assert not has_controls(shown) and shown.strip() and printable(shown) == shown
        assert "<" not in html_text(text) and '"' not in html_text(text) and "'" not in html_text(text)
        assert display_width(pad(shown, 70)) == 70
        assert len(short(text, 8)) <= 8


@pytest.mark.parametrize("blank", [" ", "\xa0", "\u200b", "\u3164", "\u2800", "\t", "\u2003 \u00ad"])
def test_what_looks_empty_is_quoted(blank):
    assert printable(blank).startswith("'") and printable(blank).endswith("'")


def test_plain_texts_stay():
    for text in ("wave", "Above ear - pull hair", "", "Straße", "a$b$", "手", "é"):
        assert printable(text) == text
    assert printable("a\nb", keep="\n") == "a\nb" and printable("\n", keep="\n") == "\n"
    assert printable("\ud800") == "\\ud800"


def test_names_are_cut_and_told_apart():
    names = short_names(LABELS * 2)
    assert len(set(names)) == len(names) and max(map(len, names)) <= 26


def test_sentences_hold_one_line():
    assert str(UserError("the label a\nb\x1b[2J is odd")) == "the label a\\nb\\x1b[2J is odd"


# plots

ODD = {
    "text.usetex": True,
    "text.parse_math": True,
    "axes.formatter.use_mathtext": True,
    "savefig.format": "pdf",
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "font.family": "no such font",
    "font.size": 30,
    "axes.prop_cycle": "cycler(lw=[9])",
    "image.origin": "lower",
    "figure.dpi": 500,
    "path.sketch": (1, 100, 2),
    "axes.unicode_minus": False,
    "lines.linewidth": 9,
}


def pictures():
    from gesture_nb.data.sequences import table_from_arrays
    from gesture_nb.report.dashboard import Prediction, probability_figure
    from gesture_nb.report.report import MemberHistory, learning_curves_figure
    from gesture_nb.show import bars, confusion, curves, png, signals, tof_frames

    n = len(LABELS)
    x = np.random.default_rng(0).normal(size=(2, 3, 20))
    table = table_from_arrays(x, ("acc_x", "acc_y", "acc_z"), gesture=LABELS[:2], subject=["_$p\n", "q" * 500])
    history = MemberHistory("epoch", {0: {"loss": np.array([3.0, 2.0]), "check_loss": np.array([1.0, 2.0])}})
    yield png(confusion(np.arange(n * n).reshape(n, n), LABELS))
    yield png(bars({label: i for i, label in enumerate(LABELS)}, "$\\title"))
    yield png(curves({label: {"loss": [3, 2, 1]} for label in LABELS}, title="_$x^{"))
    yield png(signals(table, 1))
    yield png(tof_frames(np.zeros((2, 8, 8)), LABELS[:2]))
    yield png(probability_figure(Prediction(LABELS[0], tuple(LABELS), np.arange(n) / n), LABELS[0], length=n))
    yield png(learning_curves_figure({"lgbm": history}))


def test_pictures_do_not_depend_on_a_notebooks_style(recwarn):
    import matplotlib

    expected = list(pictures())
    before = dict(matplotlib.rcParams)
    try:
        matplotlib.rcParams.update(ODD)
        changed = dict(matplotlib.rcParams)
        assert list(pictures()) == expected
        assert dict(matplotlib.rcParams) == changed
    finally:
        matplotlib.rcParams.update(before)
    assert not [w for w in recwarn if "Glyph" in str(w.message) or "font" in str(w.message)]


def test_a_figure_keeps_our_style_whoever_draws_it(tmp_path):
    """As a notebook does that shows figures by `%matplotlib inline`."""
    import matplotlib

    from gesture_nb.show import bars

    figure = bars({"a$b$": 1.0, "c": 1e9})
    with matplotlib.rc_context({"text.usetex": True}):
        figure.canvas.print_figure(tmp_path / "a.png")
        figure.savefig(tmp_path / "b.pdf")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_letters_without_a_font_become_escapes():
    from gesture_nb.figures import _fonts, drawable

    assert drawable("aé$") == "aé$" and _fonts(10**9)
    assert drawable("\U000e0041").isascii() and drawable("\uf8ff\U0010fffd").isascii()


@pytest.mark.parametrize("n", [60, 300])
def test_many_classes_stay_readable_and_small(n):
    from gesture_nb.report.report import class_numbers
    from gesture_nb.show import bars, confusion, curves, png

    names = [f"class {i} " + "q" * 500 for i in range(n)]
    matrix = confusion(np.eye(n), names)
    texts = [label.get_text() for label in matrix.axes[0].get_yticklabels()]
    assert len(texts) <= 60 and len(set(texts)) == len(texts) and max(map(len, texts)) <= 26
    assert ("class 7 " in class_numbers(names)) == (n > 60)
    others = bars(dict.fromkeys(names, 1.0)), curves({name: {"loss": [1, 2]} for name in names})
    for figure in (matrix, *(others if n == 300 else ())):
        assert max(figure.get_size_inches()) <= 25 and len(png(figure)) < 400_000


@pytest.mark.parametrize("environ", [{"MPLBACKEND": "Nope"}, {"MATPLOTLIBRC": "{folder}/rc"}])
def test_a_backend_that_does_not_exist_ends_nothing(program, tmp_path, environ):
    (tmp_path / "rc").write_bytes(b"font.size: \xff\xfe\n")
    environ = {name: value.format(folder=tmp_path) for name, value in environ.items()}
    code = "import os; from gesture_nb.show import bars, png; png(bars({'a$': 1})); print(dict(os.environ) == before)"
    done = program("-c", f"import os; before = dict(os.environ); {code}", module=False, **environ)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr


# a run


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of recordings with such labels, people and paths; the lines that it printed."
    import contextlib
    import io

    import pandas as pd

    import gesture_nb as gn

    folder = tmp_path_factory.mktemp("plain") / "a $b$ <i>\n\x1b[2J"
    folder.mkdir()
    rng, frames = np.random.default_rng(0), []
    for i in range(4 * len(LABELS)):
        k, person = i % len(LABELS), i // len(LABELS)
        acc = rng.normal(size=(12, 3)) * (1 + k) + [0, 0, 9.8]
        frame = pd.DataFrame(acc, columns=["acc_x", "acc_y", "acc_z"])
        names = {"sequence_id": f"s{i} $_\\{{\n<u>", "subject": f"p{person} $\x1b[31m<i>", "gesture": LABELS[k]}
        frames.append(frame.assign(**names, sequence_counter=np.arange(12), sample_rate_hz=20.0))
    pd.concat(frames).to_parquet(folder / "data.parquet")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        outcome = gn.main(data=folder / "data.parquet", output_path=folder / "run $_<i>", members="lgbm", folds=2,
                          boosting_rounds=2, progress="lines")
        print(outcome)
    return outcome, out.getvalue()


def test_lines_of_a_run_hold_no_controls(run):
    assert not has_controls(run[1], keep="\n") and "\n\\x1b" not in run[1]


def test_files_of_a_run_hold_labels_as_they_are(run):
    import pyarrow.parquet as pq

    folder = run[0].folder
    assert set(json.loads((folder / "metrics.json").read_text())["classes"]) == set(LABELS)
    oof = pq.read_table(folder / "oof.parquet")
    assert set(oof["gesture"].to_pylist()) == set(LABELS) and "s0 $_\\{\n<u>" in oof["sequence_id"].to_pylist()
    submission = pq.read_table(folder / "submission.parquet")
    assert set(submission["gesture"].to_pylist()) <= set(LABELS)


def test_the_report_shows_labels_as_text(run):
    page = Page((run[0].folder / "report.html").read_text())
    assert not page.tags & {"b", "script", "u"} and not has_controls(page.text, keep="\n")
    for label in LABELS:
        assert printable(label) in page.text
    assert "p0 $\\x1b[31m<i>" in page.text


def test_notebooks_show_labels_as_text(run, monkeypatch):
    import gesture_nb as gn
    from gesture_nb.app import picker

    monkeypatch.setenv("PROGRESS", "lines")
    outcome, predictor = run[0], run[0].predictor(0)
    for thing in (outcome, predictor, gn.Run(outcome.folder)):
        page = Page(thing._repr_html_())
        assert not page.tags & {"b", "script", "u", "i"} - {"b"} and not has_controls(page.text)
        assert not has_controls(repr(thing), keep="\n")
    message = picker(outcome).message
    assert message.startswith("s0 $_\\{\\n<u> · p0") and not has_controls(message)


# errors


def test_a_script_shows_one_line(program):
    code = "from gesture_nb.errors import *; raise {}"
    done = program("-c", code.format("UserError('no\\x1bfile')"), module=False)
    assert (done.returncode, done.stderr, done.stdout) == (1, "UserError: no\\x1bfile\n", "")
    done = program("-c", code.format("Interrupted"), module=False)
    assert (done.returncode, done.stderr) == (130, "")
    done = program("-c", code.format("RuntimeError(UserError('x'))"), module=False)
    assert done.returncode == 1 and "Traceback" in done.stderr
    done = program("-X", "dev", "-c", code.format("UserError('x')"), module=False)
    assert done.returncode == 1 and "Traceback" in done.stderr
    hook = "import sys; sys.excepthook = lambda *a: print('mine');"
    assert program("-c", hook + code.format("UserError('x')"), module=False).stdout == "mine\n"


def test_errors_are_what_they_were():
    import pickle

    error = pickle.loads(pickle.dumps(UserError("a\nb")))
    assert isinstance(error, ValueError) and error.args == ("a\nb",)
    assert isinstance(Interrupted(), KeyboardInterrupt) and not isinstance(Interrupted(), Exception)
    assert sys.excepthook is not None


def test_a_notebook_shows_one_line_and_fails_all_the_same(tmp_path):
    cells = ["import gesture_nb as gn\ngn.train('sim:10', out='o', folds='many')",
             "from gesture_nb.control import StopSignal\nstop = StopSignal()\n"
             "with stop.on_signals(print):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGINT)"]
    nb = run_cells(tmp_path, *cells, expect_error=True)
    for cell, name in zip(nb.cells, ("UserError", "Interrupted")):
        error = next(output for output in cell.outputs if output.output_type == "error")
        assert error.ename == name and len(error.traceback) == 1 and "\n" not in error.traceback[0]
        assert error.traceback[0].startswith(f"{name}: ")
    assert "folds" in nb.cells[0].outputs[-1].evalue
