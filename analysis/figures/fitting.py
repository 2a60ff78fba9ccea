"""Make a figure's texts fit: nothing is cut off at the edge, however narrow the figure is.

Titles and labels of axes that are longer than their panel are put on two lines, then made smaller; legends get fewer
columns, and go below the panels where they would take too much of the width.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text
    from matplotlib.transforms import BboxBase

SMALLEST_LETTERS = 4.5  # points
ROUNDS = 8
BESIDE = 0.34  # of the width, at most, for a legend beside the panels; in a narrow figure there is none
NARROW = 4.5  # inches
TICKS = 0.5  # of a panel's width, at most, for the labels of its y axis
EDGE = 1.0  # pixels that a text may come near to another panel


def fit(figure: Figure) -> None:
    """Lay a figure out, and change what does not fit until all does, or letters are at their smallest.

    Ticks may change with the layout, and the layout with them, so what still does not fit is laid out once more. Then
    the layout stays, in all formats that the figure is saved in.
    """
    unchanged = 0
    for _ in range(ROUNDS):
        with warnings.catch_warnings():  # what does not fit in the first round is what is changed then
            warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
            figure.draw_without_rendering()
        changed = any([_fit_legends(figure), _fit_ticks(figure), _fit_labels(figure), _fit_others(figure)])
        unchanged = 0 if changed else unchanged + 1
        if not changed and (unchanged == 3 or not outside(figure)):
            break
    figure.set_layout_engine("none")


def outside(figure: Figure) -> list[str]:
    """Return which texts, axes with labels and legends are not wholly within a figure that was laid out."""
    names = []
    for artist in [*_texts(figure), *_axes_of_labels(figure), *figure.legends]:
        box = _box(artist)
        if box is not None and _overhang(box, figure.bbox) > EDGE:
            names.append(_name(artist))
    return names


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of a legend or title and another text, of another panel too, that lie on each other."""
    movable = [*figure.legends, *(text for text in _texts(figure) if text.axes and text not in text.axes.texts)]
    others: list[Any] = [*movable, *_axes_of_labels(figure)]
    pairs = []
    for index, first in enumerate(movable):
        for other in others[index + 1 :]:
            boxes = _box(first), _box(other)
            if None not in boxes and _overlap(*boxes) > EDGE:  # type: ignore[arg-type]
                pairs.append((_name(first), _name(other)))
    return pairs


def _name(artist: Any) -> str:
    if hasattr(artist, "get_texts"):
        return f"legend {' '.join(text.get_text() for text in artist.get_texts())}"
    return artist.get_text() if hasattr(artist, "get_text") else f"axis {artist.get_label_text()}"


def _texts(figure: Figure) -> Iterator[Text]:
    """Iterate over the visible texts of a figure but those of axes and legends: titles, annotations."""
    from matplotlib.text import Text

    for owner in [figure, *figure.axes]:
        for text in owner.get_children():
            if isinstance(text, Text) and text.get_visible() and text.get_text().strip():
                yield text


def _axes_of_labels(figure: Figure) -> Iterator[Any]:
    """Iterate over the x and y axes that are drawn."""
    for axes in figure.axes:
        if axes.get_visible() and axes.axison:
            yield from (axes.xaxis, axes.yaxis)


def _box(artist: Any) -> BboxBase | None:
    """Return where an artist is, in pixels; None if it draws nothing."""
    box = artist.get_tightbbox() if hasattr(artist, "get_ticklabels") else artist.get_window_extent()
    return box if box is not None and box.width > 0 and box.height > 0 else None


def _overhang(inner: BboxBase, outer: BboxBase) -> float:
    """Return by how many pixels a box reaches beyond another."""
    return max(outer.x0 - inner.x0, inner.x1 - outer.x1, outer.y0 - inner.y0, inner.y1 - outer.y1)


def _overlap(first: BboxBase, other: BboxBase) -> float:
    """Return by how many pixels two boxes overlap, along the axis where it is less."""
    wide = min(first.x1, other.x1) - max(first.x0, other.x0)
    high = min(first.y1, other.y1) - max(first.y0, other.y0)
    return min(wide, high)


# -- changes: each returns whether it has changed something


def _fit_ticks(figure: Figure) -> bool:
    """Make the labels of y ticks smaller where they take too much of a panel, as long names do."""
    changed = False
    for axes in figure.axes:
        box = _box(axes.yaxis) if axes.axison else None
        room = TICKS * figure.bbox.width / _grid(axes)[0]
        labels = axes.get_yticklabels()
        if box is not None and labels and box.width > room:
            size = float(labels[0].get_fontsize())
            smaller = max(SMALLEST_LETTERS, size * min(0.97, room / box.width))
            axes.tick_params(axis="y", labelsize=smaller)
            changed |= smaller < size
    return changed | any([_drop_minor_numbers(axes) for axes in figure.axes if axes.axison])


def _drop_minor_numbers(axes: Axes) -> bool:
    """Leave the numbers between the powers of ten of an x axis out where they would lie on each other."""
    from matplotlib.ticker import NullFormatter

    minor, major = (
        [box for label in axes.get_xticklabels(which=which) if label.get_text() and (box := _box(label)) is not None]
        for which in ("minor", "major")
    )
    seen = [box for box in (*minor, *major) if axes.bbox.x0 - EDGE <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + EDGE]
    ordered = sorted(seen, key=lambda box: box.x0)
    crowded = any(_overlap(first, after) > 0 for first, after in itertools.pairwise(ordered))
    if not (minor and crowded and any(box in seen for box in major)):
        return False
    axes.xaxis.set_minor_formatter(NullFormatter())
    return True


def _fit_labels(figure: Figure) -> bool:
    """Fit titles and labels of axes to the room of their panel."""
    changed = False
    for axes in figure.axes:
        for text, length, room in _lengths(figure, axes):
            if length > room + EDGE:
                changed |= _shorten(text, room / length)
    return changed


def _lengths(figure: Figure, axes: Axes) -> Iterator[tuple[Text, float, float]]:
    """Iterate over the title and the labels of axes with their length and the room for it, in pixels."""
    from matplotlib.text import Text

    columns, rows = _grid(axes)
    slot_width, slot_height = figure.bbox.width / columns, figure.bbox.height / rows
    for title in axes.get_children():
        if isinstance(title, Text) and title not in axes.texts and title.get_text().strip():
            box = _box(title)
            if box is not None:
                room = _end_of_room(figure, axes) - box.x0
                if title.get_horizontalalignment() == "center":
                    room = min(slot_width, box.width - 2 * max(0.0, _overhang(box, figure.bbox)))
                yield title, box.width, max(room, 0.3 * slot_width)
    if axes.axison:
        for label, side, ends, room in (
            (axes.xaxis.label, "width", "x", slot_width),
            (axes.yaxis.label, "height", "y", slot_height),
        ):
            box = _box(label) if label.get_visible() and label.get_text().strip() else None
            if box is not None:
                low, high = (getattr(box, f"{ends}{end}") for end in (0, 1))
                cut = max(getattr(figure.bbox, f"{ends}0") - low, high - getattr(figure.bbox, f"{ends}1"))
                size = getattr(box, side)
                yield label, size, min(room, size - 2 * cut if cut > EDGE else room)


def _grid(axes: Axes) -> tuple[int, int]:
    """Return of how many columns and rows of panels axes are a part."""
    spec = axes.get_subplotspec()
    if spec is None:
        return 1, 1
    grid = spec.get_gridspec()
    return grid.ncols, grid.nrows


def _end_of_room(figure: Figure, axes: Axes) -> float:
    """Return where the room of a panel ends on its right, in pixels: at the next panel, at a legend, or at the edge."""
    ends = [figure.bbox.x1]
    neighbours = [other.yaxis for other in figure.axes if other.bbox.x0 > axes.bbox.x1 and _side_by_side(axes, other)]
    for artist in [*neighbours, *filter(_is_beside, figure.legends)]:
        box = _box(artist)
        ends += [box.x0 - EDGE] if box is not None else []
    return min(ends)


def _side_by_side(axes: Axes, other: Axes) -> bool:
    return bool(min(axes.bbox.y1, other.bbox.y1) > max(axes.bbox.y0, other.bbox.y0))


def _shorten(text: Text, factor: float) -> bool:
    """Put a text on two lines, or make its letters smaller; return whether either was possible."""
    words = text.get_text()
    if "\n" not in words and factor < 0.95 and (place := _middle_space(words)) is not None:
        text.set_text(f"{words[:place]}\n{words[place + 1 :]}")
        return True
    return _make_smaller(text, factor)


def _make_smaller(text: Text, factor: float) -> bool:
    size = float(text.get_fontsize())
    smaller = max(SMALLEST_LETTERS, size * min(0.97, factor))
    text.set_fontsize(smaller)
    return smaller < size


def _middle_space(text: str) -> int | None:
    """Return the place of the space that is nearest to the middle and not within a formula; None if there is none."""
    places = [place for place, c in enumerate(text) if c == " " and text[:place].replace(r"\$", "").count("$") % 2 == 0]
    return min(places, key=lambda place: abs(place - len(text) / 2), default=None)


def _fit_legends(figure: Figure) -> bool:
    """Fit the legends of the figure to its width, and those of panels to the panel."""
    changed = False
    legends: list[Any] = list(figure.legends)  # Any: how they were placed has no public name
    for legend in legends:
        box = _box(legend)
        if box is None:
            continue
        if _is_beside(legend) and (box.width > BESIDE * figure.bbox.width or figure.get_figwidth() < NARROW):
            _replace(figure, legend, max(1, min(3, len(legend.get_texts()))))
            changed = True
        elif _overhang(box, figure.bbox) > EDGE or box.width > figure.bbox.width:
            if legend._ncols > 1:
                _replace(figure, legend, legend._ncols - 1)
                changed = True
            else:
                changed |= _smaller_legend(legend, figure.bbox.width / box.width)
    for axes in figure.axes:
        own = axes.get_legend()
        if own is not None and (box := _box(own)) is not None and box.width > axes.bbox.width:
            changed |= _smaller_legend(own, axes.bbox.width / box.width)
    return changed


def _is_beside(legend: Any) -> bool:
    return legend._outside_loc in ("left", "right")


def _replace(figure: Figure, legend: Legend, columns: int) -> None:
    """Put a legend below the panels with another number of columns."""
    handles = [handle for handle in legend.legend_handles if handle is not None]
    names = [text.get_text() for text in legend.get_texts()]
    size = legend.get_texts()[0].get_fontsize()
    legend.remove()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=size)


def _smaller_legend(legend: Legend, factor: float) -> bool:
    return any([_make_smaller(text, factor) for text in legend.get_texts()])


def _fit_others(figure: Figure) -> bool:
    """Make other texts smaller where they are cut off at the figure's edge."""
    changed = False
    for text in _texts(figure):
        box = _box(text)
        if box is not None and (text.axes is None or text in text.axes.texts) and _overhang(box, figure.bbox) > EDGE:
            changed |= _shorten(text, figure.bbox.width / max(box.width, figure.bbox.width * 1.02))
    return changed
