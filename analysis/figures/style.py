"""The style of all figures: a colour-blind-safe palette, widths and labels as a study has them, files with provenance.

Figures start from matplotlib's own defaults, not from what a notebook, a matplotlibrc or the environment has set: the
same records give the same bytes everywhere. Modules that draw import matplotlib's classes from here, because `import
matplotlib` alone fails on a backend in MPLBACKEND that is not installed.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness.analysis.csv_files import write_csv
from harness.analysis.figures.fitting import fit
from harness.analysis.provenance import METADATA, Provenance
from harness.errors import HarnessError
from harness.spec.presentation import FigureStyle, Presentation, width_in_inches
from harness.text import printable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    Result = TypeVar("Result")


def _import_matplotlib() -> Any:
    """Import matplotlib without a backend; the one in MPLBACKEND stays the choice for others where it exists."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except (ValueError, OSError) as error:
        raise HarnessError(
            f"matplotlib cannot be imported: {error}; look for a damaged matplotlibrc in this folder, in "
            "$MATPLOTLIBRC and in ~/.config/matplotlib"
        ) from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with suppress(ValueError):  # not installed here
            matplotlib.rcParams["backend"] = backend
    return matplotlib


matplotlib = _import_matplotlib()

from matplotlib.cm import ScalarMappable  # noqa: E402, F401
from matplotlib.colors import Normalize  # noqa: E402, F401
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402, F401
from matplotlib.ticker import MaxNLocator  # noqa: E402

# Okabe and Ito (2008) without the yellow, which is hardly visible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: Any = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))  # both of two coinciding curves are visible
SAMPLER_LINES: Any = ("-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 4)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"

ONE_COLUMN, TWO_COLUMNS = 3.4, 6.9  # inches, of a two-column paper
DPI = 200

_RC: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same bytes everywhere
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # text is stored as text
    "svg.hashsalt": "harness",
}


NARROWEST_PANEL = 1.65  # inches; below it panels are stacked

_CHOSEN: ContextVar[FigureStyle] = ContextVar("chosen figure style", default=FigureStyle())  # noqa: B039 (it is frozen)

_KEPT = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch", "savefig.directory")


@contextmanager
def style() -> Iterator[None]:
    """Draw with matplotlib's own defaults and our style; afterwards the settings are again what they were."""
    epoch = os.environ.pop(
        "SOURCE_DATE_EPOCH", None
    )  # figures have no date, and matplotlib fails on one it cannot read
    try:
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
            defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in _KEPT}
            matplotlib.rcParams.update(defaults | _RC)
            yield
    finally:
        if epoch is not None:
            os.environ["SOURCE_DATE_EPOCH"] = epoch


@contextmanager
def chosen(figure_style: FigureStyle) -> Iterator[None]:
    """Draw as a study wants its figures: its width, colours and labels."""
    token = _CHOSEN.set(figure_style)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def full_width(default: float = TWO_COLUMNS) -> float:
    """Return the width that figures are to have, in inches: the study's, else the default."""
    width = _CHOSEN.get().width
    return default if width is None else width_in_inches(width)


def in_style(draw: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate a function that draws: it does so in our style, whatever the surroundings have set; no text is cut."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Result:
        with style():
            result = draw(*arguments, **options)
            if isinstance(result, Figure):
                fit(result)
            return result

    return drawn


def label(text: object) -> str:
    """Escape a text from records for matplotlib: no formula, no control characters, not hidden from legends."""
    shown = printable(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def arm_label(arm: str) -> str:
    """Return an arm's name for a figure: the study's label, which may hold formulas, else the escaped name."""
    return _CHOSEN.get().labels.get(arm) or label(arm)


def with_usable_labels(presentation: Presentation) -> tuple[Presentation, dict[str, str]]:
    """Return a presentation without the labels that cannot be drawn, and why those cannot, by arm."""
    labels = presentation.figures.labels
    reasons = unusable_labels(labels)
    usable = {arm: text for arm, text in labels.items() if arm not in reasons}
    figures = presentation.figures.model_copy(update={"labels": usable})
    return presentation.model_copy(update={"figures": figures}), reasons


def unusable_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return why labels hold no formula that can be drawn, by arm."""
    from matplotlib.mathtext import MathTextParser

    reasons = {}
    for arm, text in labels.items():
        try:
            if printable(text) != text or not text.strip():
                raise ValueError("it is empty, or has characters that cannot be shown")
            MathTextParser("path").parse(text)
        except ValueError as error:
            reasons[arm] = " ".join(str(error).split())
    return reasons


def title_of(text: str, arm: str) -> str:
    """Return a text that begins with an arm's name for a figure, with the arm's label instead of it."""
    return arm_label(arm) + label(text.removeprefix(arm)) if text.startswith(arm) else label(text)


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = TWO_COLUMNS,
    height: float = 2.6,
    stacks: bool = True,
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """Return a figure in our style and its axes, [rows, columns]; without pyplot. Call it within `in_style`.

    Args:
        width, height: in inches, where the study says nothing of the width.
        stacks: whether the panels of a row may be put below each other where the study's width is too narrow for them;
            their heights follow the width. Else width and height are as given.
        options: of `Figure.subplots`.
    """
    if not stacks or _CHOSEN.get().width is None:
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)
    wanted = full_width()
    lines = -(-columns // max(1, int(wanted / NARROWEST_PANEL)))
    per_line = -(-columns // lines)
    scale = np.clip((wanted / per_line) / (width / columns), 0.75, 1.15)
    figure = Figure(figsize=(wanted, height * lines * scale), dpi=DPI, layout="constrained")
    if lines == 1:
        return figure, figure.subplots(rows, columns, squeeze=False, **options)
    grid = figure.add_gridspec(rows * lines, per_line)
    axes = np.empty((rows, columns), object)
    for row, column in np.ndindex(rows, columns):
        axes[row, column] = figure.add_subplot(grid[row * lines + column // per_line, column % per_line])
    return figure, axes


def is_stacked(axes: np.ndarray) -> bool:
    """Return whether `subplots` has put the panels of a row below each other."""
    return axes[0, 0].get_subplotspec().get_gridspec().ncols < axes.shape[1]


def arm_style(index: int) -> dict[str, Any]:
    """Return colour, line and marker of the arm with this number; different for up to 147 arms."""
    colours = _CHOSEN.get().palette or COLOURS
    return {
        "color": colours[index % len(colours)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[(index + index // 21) % len(MARKERS)],
    }


def plain_log_numbers(axes: Axes) -> None:
    """Label a logarithmic y axis with plain numbers: 1, 2, 5, 10; powers only over many decades."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    if decades < 0.7:
        axes.yaxis.set_major_locator(FixedLocator(MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)
    if decades < 4.5:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend_below(figure: Figure, axes: Axes) -> None:
    """Add one legend for the curves of all panels, below them, in as many columns as there is room for."""
    handles, names = axes.get_legend_handles_labels()
    columns = 4 if len(names) % 4 == 0 else 3
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, min(columns, len(names))))


_CREATOR = {"Creator": "diffusion-harness"}


@in_style
def save(figure: Figure, frame: pd.DataFrame, stem: Path, provenance: Provenance) -> list[Path]:
    """Write `stem`.png, .csv and the other formats that the study wants, and return them.

    No timestamps: the same records give the same bytes. The PNG is always written, for the page.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    description, facts = provenance.sentence(), provenance.as_json()
    png = {"Title": provenance.title, "Description": description, "Software": "diffusion-harness", METADATA: facts}
    figure.savefig(f"{stem}.png", metadata=png)
    formats = [name for name in ("pdf", "svg") if name in _CHOSEN.get().formats]
    pdf = {"Title": provenance.title, "Subject": description, "Keywords": facts} | _CREATOR
    if "pdf" in formats:
        figure.savefig(f"{stem}.pdf", metadata=pdf | {"CreationDate": None})
    if "svg" in formats:
        svg = {"Title": provenance.title, "Description": description, "Keywords": [facts]} | _CREATOR
        figure.savefig(f"{stem}.svg", metadata=svg | {"Date": None})
    write_csv(frame, Path(f"{stem}.csv"))
    return [Path(f"{stem}.{suffix}") for suffix in ("png", *formats, "csv")]


def width_inches(png: Path) -> float | None:
    """Return the width of a figure that `save` wrote; None if there is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(png, formats=["PNG"]) as picture:
            return picture.width / DPI
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None
