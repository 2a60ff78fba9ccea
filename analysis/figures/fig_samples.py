"""The first samples of every arm side by side, not selected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord, arm_index, by_arm
from harness.data.facts import DATASET_FACTS

TITLE = "Samples"
NEEDS = "an evaluation with grid"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return, for each arm, the first samples of its first measured replicate.

    `pictures` is uint8 [n, C, H, W], or float [n, 2, 1, 1] where the data are points of the plane. Class-conditional
    models cycle through the classes, so with `columns` classes a column of the grid is a class.
    """
    index = arm_index(runs)
    rows: list[dict] = []
    for arm, replicates in by_arm(runs).items():
        first: dict[str, dict] = {}
        for run in replicates:
            for measurement in run.measured("grid"):
                samples, name = run.samples(measurement), measurement.name
                if samples is not None and name not in first:
                    columns = _columns(run)
                    count = len(samples) if samples.shape[-1] == 1 else columns * min(columns, 6)
                    row = {"evaluation": name, "arm": arm, "arm_index": index[arm], "replicate": run.replicate}
                    shown = {"run_key": run.run_key, "columns": columns, "pictures": samples[:count]}
                    first[name] = row | shown
        rows += first.values()
    names = ["evaluation", "arm", "arm_index", "replicate", "run_key", "columns", "pictures"]
    return pd.DataFrame(rows, columns=names).sort_values("evaluation", kind="stable")


def _columns(run: RunRecord) -> int:
    facts = DATASET_FACTS.get(run.spec["data"]["name"])  # None for a plugin's data
    classes = facts.num_classes if facts else None
    return classes if run.spec["model"]["class_cond"] and classes and classes <= 10 else 6


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    columns = min(len(frame), 3 if len(frame) in (3, 5, 6, 9) else 4, max(1, int(style.full_width() / 1.5)))
    rows = -(-len(frame) // columns)
    size = min(2.3, style.full_width() / columns)
    tall = max(min(grid, 6) / grid for grid in frame["columns"])
    width, height = style.full_width(size * columns), (size * tall + 0.22) * rows
    figure, panels = style.subplots(rows, columns, width=width, height=height, stacks=False)
    several = frame["evaluation"].nunique() > 1
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (_, row) in zip(panels.flat, frame.iterrows(), strict=False):
        if row["pictures"].shape[-1] == 1:
            axes.scatter(*row["pictures"].reshape(-1, 2).T, s=1, color=style.INK, lw=0, alpha=0.5)
            axes.set_aspect("equal")
        else:
            axes.imshow(tile(row["pictures"], row["columns"]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        title = f"{row['arm']} ({row['evaluation']})" if several else row["arm"]
        letters = min(8.5, size * 72 / (0.68 * len(title)))  # points: a long name still fits its panel
        axes.set_title(
            style.title_of(title, row["arm"]), color=style.arm_style(row["arm_index"])["color"], fontsize=letters
        )
    return figure


def tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Arrange uint8 images [n, C, H, W] in rows of `columns` with a thin gap; [h, w], or [h, w, 3] for colour."""
    count, channels, size, _ = pictures.shape
    enlarge = max(1, 32 // size)  # so that the gap between small pictures stays thin
    pictures = pictures.repeat(enlarge, 2).repeat(enlarge, 3).transpose(0, 2, 3, 1)
    step = size * enlarge + 2
    canvas = np.full((-(-count // columns) * step - 2, min(columns, count) * step - 2, channels), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (place * step for place in divmod(number, columns))
        canvas[top : top + step - 2, left : left + step - 2] = picture
    return canvas[:, :, 0] if channels == 1 else canvas


def caption(frame: pd.DataFrame) -> str:
    classes = " A column is a class." if (frame["columns"] != 6).all() else ""
    return (
        f"The first samples of one replicate of each arm, unselected.{classes} All arms start from the same noise, so "
        "pictures at the same place may be compared."
    )
