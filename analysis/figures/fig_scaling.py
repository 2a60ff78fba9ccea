"""NLL and FID against recorded training compute, with a power law and its extrapolation (IDDPM, figure 10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord
from harness.analysis.statistics.intervals import describe_bands, summarise
from harness.analysis.statistics.scaling import MAX_EXTRAPOLATION, Scaling
from harness.analysis.statistics.scaling_series import KINDS, Series, multipliers, series_of
from harness.spec.metrics import TRAIN_COMPUTE, metric_kind

TITLE = "Scaling with training compute"
NEEDS = "arms that differ in size or length of training, and their measurements"
COMPUTE = metric_kind(TRAIN_COMPUTE)
MEASURED, LAW = "measured", "law"
_FAN_POINTS = 40
_FIT = (
    *("form", "fit_a", "fit_b", "fit_c", "fit_c_low", "fit_c_high", "asymptote_p"),
    *("held_out_error", "held_out_low", "held_out_high"),
)
_COLUMNS = (
    *(
        "role",
        "series",
        "metric",
        "protocol",
        "arm",
        "compute_multiply_adds",
        "n",
        "mean",
        "low",
        "high",
        "kind",
        "fitted",
    ),
    *(*_FIT, "multiplier_of", "multiplier", "multiplier_low", "multiplier_high", "warnings"),
)


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per series, metric and arm, and rows of the law where there is one, with the series' fit.

    Arms of a series differ only in the model's size, the length of training and the optimizer's settings for them.
    `compute_multiply_adds` is the recorded `compute/train_multiply_adds`. `low` and `high` of rows of the law are its
    95 % interval, `held_out_low` and `_high` that of the prediction of the largest arm from the others, whose relative
    error is `held_out_error`. `multiplier` is what the series is worth in compute of `multiplier_of`.
    """
    rows: list[dict[str, object]] = []
    all_series = series_of(runs)
    worth = {(each.ours, each.metric, each.protocol): each for each in multipliers(all_series)}
    for series in all_series:
        shared: dict[str, object] = {"series": series.name, "metric": series.metric, "protocol": series.protocol}
        shared |= {"warnings": "; ".join(series.warnings)}
        if each := worth.get((series.name, series.metric, series.protocol)):
            factor = each.factor
            shared |= {"multiplier_of": each.other, "multiplier": factor.value}
            shared |= {"multiplier_low": factor.low, "multiplier_high": factor.high}
        shared |= _fit_columns(series.scaling)
        for size in series.sizes:
            row = {"role": MEASURED, **shared, "arm": size.arm, "compute_multiply_adds": size.compute}
            rows.append(row | summarise(size.values.values())._asdict() | {"fitted": size in series.fitted})
        if series.scaling:
            rows += [{"role": LAW, **shared, **point} for point in _fan(series)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _fan(series: Series) -> list[dict[str, float]]:
    assert series.scaling
    compute = series.scaling.compute
    fine = np.geomspace(compute[0] / 1.25, compute[-1] * MAX_EXTRAPOLATION, _FAN_POINTS)
    return [
        dict(zip(("compute_multiply_adds", "mean", "low", "high"), map(float, point), strict=True))
        for point in zip(fine, *series.scaling.fan(fine), strict=True)
    ]


def _fit_columns(scaling: Scaling | None) -> dict[str, object]:
    if scaling is None:
        return {}
    law, exponent, held_out = scaling.chosen.power_law, scaling.exponent, scaling.chosen.held_out
    columns: dict[str, object] = {"form": scaling.chosen.form, "fit_a": law.a, "fit_b": law.b, "fit_c": law.c}
    columns |= {"fit_c_low": exponent.low, "fit_c_high": exponent.high, "asymptote_p": scaling.asymptote_p}
    if held_out:
        columns |= {"held_out_error": held_out.error}
        columns |= {"held_out_low": held_out.predicted.low, "held_out_high": held_out.predicted.high}
    return columns


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel for each metric and protocol: values of different protocols share no axis."""
    pairs = frame[["metric", "protocol"]].drop_duplicates().itertuples(index=False, name=None)
    panels = sorted(pairs, key=lambda panel: list(KINDS).index(panel[0]))
    all_series = list(frame["series"].unique())
    several = len(all_series) > 1
    figure, (all_axes,) = style.subplots(1, len(panels), width=style.ONE_COLUMN * len(panels), height=2.9)
    for axes, (metric, protocol) in zip(all_axes, panels, strict=True):
        shown = frame[(frame["metric"] == metric) & (frame["protocol"] == protocol)]
        for series, rows in shown.groupby("series", sort=False):
            look = style.arm_style(all_series.index(series))
            part, law = rows[rows["role"] == MEASURED], rows[rows["role"] == LAW]
            if len(law):
                _draw_law(axes, law, part["compute_multiply_adds"].max(), look["color"])
            for fitted, points in part.groupby("fitted", sort=False):
                axes.errorbar(
                    points["compute_multiply_adds"], points["mean"],
                    [points["mean"] - points["low"], points["high"] - points["mean"]],
                    color=look["color"], marker=look["marker"], linestyle="", elinewidth=0.9, capsize=2.5,
                    alpha=1 if fitted else 0.35, label=_label(series if several else "", law) if fitted else None,
                )  # fmt: skip
            for row in part.itertuples() if not several and len(part) < 8 else ():
                position = (row.compute_multiply_adds, row.mean)
                name = style.arm_label(row.arm)
                axes.annotate(name, position, (5, 5), textcoords="offset points", fontsize=6.5, color=style.INK)
        label = KINDS[metric].label
        axes.set(xscale="log", yscale="log", xlabel=COMPUTE.axis, title=label)
        axes.set_ylabel(style.label(f"{label} ({protocol})"))
        axes.margins(x=0.06 if LAW in set(shown["role"]) else 0.22, y=0.14)
        _limit(axes, shown)
        style.plain_log_numbers(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper left", bbox_to_anchor=(-0.12, -0.2))
    return figure


def _draw_law(axes: style.Axes, law: pd.DataFrame, largest: float, colour: str) -> None:
    x = law["compute_multiply_adds"]
    axes.fill_between(x, law["low"], law["high"], color=colour, alpha=0.15, linewidth=0)
    for inside, line in ((x <= largest * 1.001, "-"), (x >= largest * 0.999, "--")):
        # Both parts have the point at the border in common.
        chosen = inside | inside.shift(1, fill_value=False) if line == "-" else inside
        axes.plot(x[chosen], law["mean"][chosen], color=colour, linewidth=1, linestyle=line)


def _limit(axes: style.Axes, shown: pd.DataFrame) -> None:
    """Keep a fan that is wide beyond use from flattening what was measured."""
    points = shown[shown["role"] == MEASURED]
    least, most = min(points["low"].min(), shown["mean"].min()), max(points["high"].max(), shown["mean"].max())
    if not least > 0:
        return
    room = max(most / least, 1.02)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, least / room**0.8), min(high, most * room**0.5))


def _label(series: str, law: pd.DataFrame) -> str | None:
    """Return series and law for the legend; None if there is nothing to say."""
    return ":  ".join(filter(None, [series and style.label(series), _formula(law.iloc[0]) if len(law) else ""])) or None


def _formula(row: pd.Series) -> str:
    asymptote = f"{row['fit_a']:.3g} + " if row["fit_a"] else ""
    interval = "" if np.isnan(row["fit_c_low"]) else f"  [{row['fit_c_low']:.2g}, {row['fit_c_high']:.2g}]"
    return f"{asymptote}({row['fit_b']:.2g} C)$^{{-{row['fit_c']:.3g}}}${interval}"


def caption(frame: pd.DataFrame) -> str:
    laws = frame[frame["role"] == LAW].drop_duplicates(["series", "metric", "protocol"])
    points = frame[frame["role"] == MEASURED]
    parts = [
        f"Measurements against the training's compute in {COMPUTE.unit}, counted on the network (forward and backward, "
        f"without optimizer and EMA); IDDPM, figure 10. {describe_bands(points['kind']).capitalize()}."
    ]
    if not len(laws):
        parts.append("No power law: it needs at least three amounts of compute, and values that decrease with compute.")
        return parts[0] + " " + parts[1]
    parts.append(
        "Lines: (b C)⁻ᶜ, or a + (b C)⁻ᶜ where that predicts the largest size better; dashed beyond the measured range, "
        f"up to {MAX_EXTRAPOLATION:g} times. Bands, and brackets of the exponent: 95 %, over both forms where the data "
        "rule neither out."
    )
    parts += [_held_out(row) for _, row in laws.iterrows() if not np.isnan(row["held_out_error"])]
    for _, row in laws[laws["multiplier"].notna()].iterrows():
        low, high = row["multiplier_low"], row["multiplier_high"]
        span = "" if np.isnan(low) else f" ({low:.2g} to {high:.2g})"
        parts.append(
            f"{KINDS[row['metric']].label}: {row['series']} is worth {row['multiplier']:.2g}x the compute of "
            f"{row['multiplier_of']}{span}."
        )
    parts += [
        f"{warning[0].upper()}{warning[1:]}."
        for warning in dict.fromkeys("; ".join(laws["warnings"]).split("; "))
        if warning
    ]
    return " ".join(parts)


def _held_out(row: pd.Series) -> str:
    name = f"{KINDS[row['metric']].label}, {row['series']}"
    return f"{name}: the largest size, predicted from the others, is off by {100 * row['held_out_error']:+.2g} %."
