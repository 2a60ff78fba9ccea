"""Real images, mixed in pairs at levels of noise and denoised (DDPM, figures 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.fig_samples import tile
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord, arm_index, by_arm
from harness.spec.metrics import array_file

TITLE = "Interpolation"
NEEDS = "an evaluation with interpolation of images"
MAX_ROWS = 8  # of an arm: pairs and levels of noise
COLUMNS = ["evaluation", "arm", "arm_index", "replicate", "run_key", "t", "weights", "images", "originals"]


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the first pairs of each arm's first measured replicate, at every level of noise.

    `t` is [K], `weights` of the second image [W], `images` uint8 [K, W, N, C, H, W], `originals` [2, N, C, H, W].
    """
    index, rows = arm_index(runs), list[dict]()
    for arm, replicates in by_arm(runs).items():
        first: dict[str, dict] = {}
        for run in replicates:
            for measurement in run.measured("interpolation"):
                arrays = run.arrays(array_file(measurement.prefix, "interpolation"))
                if not arrays or measurement.name in first or arrays["images"].dtype != np.uint8:
                    continue
                count = max(1, MAX_ROWS // len(arrays["t"]))
                values = [measurement.name, arm, index[arm], run.replicate, run.run_key, arrays["t"], arrays["weights"]]
                values += [arrays["images"][:, :, :count], arrays["originals"][:, :count]]
                first[measurement.name] = dict(zip(COLUMNS, values, strict=True))
        rows += first.values()
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("evaluation", kind="stable")


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel for each arm: a row for each pair and level of noise, between the two real images."""
    shapes = [(len(row["t"]) * row["images"].shape[2], len(row["weights"]) + 2) for _, row in frame.iterrows()]
    size = min(0.55, (style.full_width() - 0.5) / max(columns for _, columns in shapes))
    heights = [size * rows + 0.42 for rows, _ in shapes]
    width = max(size * max(columns for _, columns in shapes) + 0.5, 2.0)
    figure, panels = style.subplots(
        len(frame), 1, width=style.full_width(width), height=sum(heights) + 0.1, stacks=False, height_ratios=heights
    )
    several = frame["evaluation"].nunique() > 1
    for axes, (rows, columns), (_, row) in zip(panels[:, 0], shapes, frame.iterrows(), strict=True):
        canvas = tile(_tiles(row), columns)
        step = (canvas.shape[1] + 2) / columns
        axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        weights = ["first", *(f"{weight:.2g}" for weight in row["weights"]), "second"]
        middles = (np.arange(max(rows, columns)) + 0.5) * step - 1
        axes.set_xticks(middles[:columns], weights, fontsize=min(7.5, 18 * size))
        axes.set_yticks(middles[:rows], [f"t = {t}" for _ in range(row["images"].shape[2]) for t in row["t"]])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.set_anchor("W")
        title = f"{row['arm']} ({row['evaluation']})" if several else row["arm"]
        axes.set_title(style.title_of(title, row["arm"]), color=style.arm_style(row["arm_index"])["color"])
    panels[-1, 0].set_xlabel("weight of the second image")
    return figure


def _tiles(row: pd.Series) -> np.ndarray:
    """Return the pictures row by row, [N K (W + 2), C, H, W]: each between its two originals."""
    images, originals = row["images"], row["originals"]
    ends = [np.broadcast_to(end, (len(images), 1, *end.shape)) for end in originals]
    columns = np.concatenate([ends[0], images, ends[1]], axis=1)  # [K, W + 2, N, C, H, W]
    return columns.transpose(2, 0, 1, 3, 4, 5).reshape(-1, *images.shape[3:])


def caption(frame: pd.DataFrame) -> str:
    return (
        "Pairs of real images of one replicate (left and right), both noised to step t with the same noise, mixed, and "
        "denoised from there; DDPM, figures 8 and 9. The higher t, the less of the two is left and the more the model "
        "fills in."
    )
