"""Figures start from matplotlib's own defaults, whatever a notebook, a matplotlibrc or the environment has set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from harness.analysis.figures import fig_alpha_bar, style

ROOT = Path(__file__).parents[3]
DRAW = """
import sys
from pathlib import Path
{before}
from harness.analysis.figures import fig_alpha_bar, style
frame = fig_alpha_bar.data([])
provenance = style.Provenance("x", "schedules", (), (), "harness figures")
style.save(fig_alpha_bar.draw(frame), frame, Path(sys.argv[1]) / "x", provenance)
"""
MATPLOTLIBRC = """
backend: nonsense
text.usetex: True
font.family: serif
font.size: 20
savefig.bbox: tight
savefig.dpi: 17
axes.formatter.use_locale: True
pdf.compression: 0
lines.linewidth: 9
a line without a colon
"""
NOTEBOOK = """
import matplotlib
matplotlib.rcParams.update({"text.usetex": True, "font.size": 30, "savefig.bbox": "tight", "axes.facecolor": "black"})
"""


def draw(folder: Path, before: str = "", check: bool = True, **environment: str) -> tuple[dict[str, str], str]:
    """Draw a figure in a fresh interpreter that works in a folder; return the digests of its files, and its errors."""
    (folder / "figures").mkdir(parents=True)
    command = [sys.executable, "-c", DRAW.format(before=before), str(folder / "figures")]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=surroundings | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=check,
    )
    paths = sorted((folder / "figures").glob("x.*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}, done.stderr


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, str]:
    files, _ = draw(tmp_path_factory.mktemp("plain"))
    assert set(files) == {"x.png", "x.pdf", "x.csv"}
    return files


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "nonsense"},
        {"MPLBACKEND": "tkagg", "DISPLAY": ":77"},
        {"SOURCE_DATE_EPOCH": "yesterday"},
        {"SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "7"},
        {"MATPLOTLIBRC": "/dev/null", "HOME": "/nonexistent"},
    ],
    ids=" ".join,
)
def test_the_environment_does_not_change_a_byte(plain, tmp_path, environment):
    assert draw(tmp_path / "x", **environment)[0] == plain


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("place", ["matplotlibrc", "rc/matplotlibrc", "home/.config/matplotlib/matplotlibrc"])
def test_a_matplotlibrc_does_not_change_a_byte(plain, tmp_path, place):
    folder = tmp_path / "x"
    path = folder / place
    path.parent.mkdir(parents=True)
    path.write_text(MATPLOTLIBRC)
    environment = {"HOME": str(folder / "home")} if "home" in place else {}
    environment |= {"MATPLOTLIBRC": str(folder / "rc")} if "rc/" in place else {}
    assert draw(folder, **environment)[0] == plain


@pytest.mark.process
@pytest.mark.slow
def test_the_settings_of_a_notebook_do_not_change_a_byte(plain, tmp_path):
    assert draw(tmp_path / "x", before=NOTEBOOK)[0] == plain


@pytest.mark.process
@pytest.mark.slow
def test_a_matplotlibrc_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "matplotlibrc").write_bytes(b"\xff\xfe")
    files, errors = draw(tmp_path / "x", check=False)
    assert not files
    assert "HarnessError: matplotlib cannot be imported: " in errors
    assert "look for a damaged matplotlibrc in this folder" in errors


def test_drawing_leaves_the_settings_of_the_surroundings_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 23.0)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    before = dict(matplotlib.rcParams)
    frame = fig_alpha_bar.data([])
    figure = fig_alpha_bar.draw(frame)
    style.save(figure, frame, tmp_path / "x", style.Provenance("x", "s", (), (), "c"))
    assert dict(matplotlib.rcParams) == before
    assert os.environ["SOURCE_DATE_EPOCH"] == "5"


def test_a_name_from_records_is_no_formula_and_stays_in_the_legend(tmp_path):
    names = ["$x^{", "a$b$", "_hidden", "\x1b[2J", "100 %"]

    @style.in_style
    def draw_names():
        figure, ((axes,),) = style.subplots()
        for name in names:
            axes.plot([0, 1], label=style.label(name))
        style.legend_below(figure, axes)
        return figure

    figure = draw_names()
    figure.savefig(tmp_path / "x.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        r"\$x^{",
        r"a\$b\$",
        " _hidden",
        " [2J",
        "100 %",
    ]
