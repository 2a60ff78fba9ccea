"""The samples that are most likely copies, each beside its nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord, arm_index, by_arm
from harness.records.directory import RunDirectory
from harness.spec.metrics import picture_file

TITLE = "Samples and their nearest training images"
NEEDS = "an evaluation with fidelity.metrics: [memorisation]"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return, for each arm and evaluation, the first measured replicate's picture, uint8 [h, w, 3], and AUC."""
    index = arm_index(runs)
    rows: list[dict] = []
    for arm, replicates in by_arm(runs).items():
        first: dict[str, dict] = {}
        for run in replicates:
            for measurement in run.measured("fidelity"):
                name = measurement.name
                folder = RunDirectory(run.folder).samples_folder
                picture = _read(folder / picture_file(measurement.prefix, "nearest_training_images"))
                if name not in first and picture is not None:
                    row = {"evaluation": name, "arm": arm, "arm_index": index[arm], "replicate": run.replicate}
                    measured = {"memorisation_auc": run.fidelity(measurement, "memorisation_auc"), "picture": picture}
                    first[name] = row | {"run_key": run.run_key} | measured
        rows += first.values()
    names = ["evaluation", "arm", "arm_index", "replicate", "run_key", "memorisation_auc", "picture"]
    return pd.DataFrame(rows, columns=names).sort_values("evaluation", kind="stable")


def _read(path: Path) -> np.ndarray | None:
    """Return a picture, or None if there is none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    columns = min(len(frame), 4, max(1, int(style.full_width() / 1.5)))
    rows = -(-len(frame) // columns)
    tall = max(picture.shape[0] / picture.shape[1] for picture in frame["picture"])
    size = min(2.3, style.full_width() / columns)
    width, height = style.full_width(size * columns), (size * tall + 0.22) * rows
    figure, panels = style.subplots(rows, columns, width=width, height=height, stacks=False)
    several = frame["evaluation"].nunique() > 1
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (_, row) in zip(panels.flat, frame.iterrows(), strict=False):
        axes.imshow(row["picture"], interpolation="nearest")
        name = f"{row['arm']} ({row['evaluation']})" if several else row["arm"]
        title = f"{name}: AUC {row['memorisation_auc']:.3f}"
        letters = min(8.5, size * 72 / (0.68 * len(title)))  # points: a long name still fits its panel
        axes.set_title(
            style.title_of(title, row["arm"]), color=style.arm_style(row["arm_index"])["color"], fontsize=letters
        )
    return figure


def caption(frame: pd.DataFrame) -> str:
    return (
        "Ten samples of one replicate of each arm, those nearest to a training image in proportion to its own "
        "neighbours, a row each: the sample, then its nearest training images in order, by the features of the "
        "evaluation. AUC: how much nearer samples are to training images than test images are; 0.5 is no memorisation."
    )
