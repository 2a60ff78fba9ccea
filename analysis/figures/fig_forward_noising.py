"""One image diffused to noise under each schedule (IDDPM, figure 3). Needs only NumPy and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord
from harness.data.digits import read_table
from harness.diffusion.schedules import SCHEDULES, tables

TITLE = "A digit under each schedule"
NUM_TIMESTEPS = 1000
COLUMNS = 11
PICTURE = 0  # of scikit-learn's 1,797 digits


def data(runs: Sequence[RunRecord] = ()) -> pd.DataFrame:
    """Return x_t at equally spaced steps from t = 0 to T, one row each; `picture` is [8, 8] in the units of x_0.

    All use the same noise, so that pictures differ only in t and in the schedule.
    """
    *pixels, label = read_table()[PICTURE]
    x_0 = np.reshape(pixels, (8, 8)) / 16 * 2 - 1
    noise = np.random.default_rng(0).standard_normal(x_0.shape)
    rows = []
    for name, make in SCHEDULES.items():
        # Before the first step there is no noise, so alpha-bar of t = 0 (counted as in the figure) is 1.
        alpha_bar = np.append(1.0, tables(make(NUM_TIMESTEPS)).alphas_cumprod)
        for t in np.linspace(0, NUM_TIMESTEPS, COLUMNS).astype(int):
            x_t = np.sqrt(alpha_bar[t]) * x_0 + np.sqrt(1 - alpha_bar[t]) * noise
            values = {"schedule": name, "t": t, "u": t / NUM_TIMESTEPS, "alpha_bar": alpha_bar[t]}
            rows.append({**values, "label": int(label), "picture": x_t})
    return pd.DataFrame(rows)


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    schedules = list(frame["schedule"].unique())
    columns = len(frame) // len(schedules)
    figure, axes = style.subplots(
        len(schedules), columns, width=style.full_width(), height=0.9 + 0.104 * style.full_width(), stacks=False
    )
    for row, schedule in enumerate(schedules):
        for column, (_, cell) in enumerate(frame[frame["schedule"] == schedule].iterrows()):
            ax = axes[row, column]
            ax.imshow(cell["picture"], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == len(schedules) - 1:
                ax.set_xlabel(f"{cell['u']:.1f}", labelpad=2, fontsize=7.5)
        axes[row, 0].set_ylabel(schedule, rotation=0, ha="right", va="center")
    figure.supxlabel("diffusion step t / T", fontsize=8)
    return figure


def caption(frame: pd.DataFrame) -> str:
    return (
        "One of scikit-learn's 8×8 digits at steps equally spaced over the chain, with the same noise everywhere; "
        "IDDPM, figure 3. In the last quarter the linear schedule shows almost pure noise: steps that teach little."
    )
