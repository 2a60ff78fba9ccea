"""NLL and FID against recorded training compute, with a power law where three points allow it (IDDPM, figure 10)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import style
from harness.analysis.intervals import describe_bands, summarise
from harness.analysis.runs import RunRecord
from harness.analysis.scaling import PowerLaw, bootstrap, fit_power_law
from harness.analysis.settings import Labels, measured_weights, sampling_protocol
from harness.analysis.style import Figure
from harness.spec.metrics import TRAIN_COMPUTE, metric_kind

TITLE = "Scaling with training compute"
NEEDS = "arms that differ in size or length of training, and their measurements"
KINDS = {"nll": metric_kind("nll_bpd"), "fid": metric_kind("fid")}
COMPUTE = metric_kind(TRAIN_COMPUTE)
LEAST_RATIO = 1.5  # of compute within a series; less is another number of output channels, not scale


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per series, metric and arm: compute, the value over replicates, and the series' fit.

    Arms of a series differ only in the model's size, the length of training and the optimizer's settings for them.
    `compute_multiply_adds` is the recorded `compute/train_multiply_adds`.
    """
    groups: dict[tuple, dict[str, list[tuple[float, float]]]] = {}
    series, protocols = Labels(), Labels()
    for run in runs:
        compute = run.final(TRAIN_COMPUTE)
        parts = " ".join(filter(None, [run.named("diffusion.schedule"), run.named("objective")]))
        name = series.add(parts, _series(run))
        for metric, label, protocol, value in _measured(run):
            if not np.isnan(compute + value):
                key = (name, metric, protocols.add(label, protocol))
                groups.setdefault(key, {}).setdefault(run.arm, []).append((compute, value))
    names, texts = series.texts(), protocols.texts()
    rows = []
    for (name, metric, protocol), arms in groups.items():
        compute_of = {arm: float(np.mean([x for x, _ in points])) for arm, points in arms.items()}
        if len(arms) < 2 or max(compute_of.values()) < LEAST_RATIO * min(compute_of.values()):
            continue
        ordered = sorted(arms, key=lambda arm: compute_of[arm])
        values = {arm: [y for _, y in arms[arm]] for arm in ordered}
        law = _fit([compute_of[arm] for arm in ordered], [values[arm] for arm in ordered])
        for arm in ordered:
            row: dict[str, object] = {"series": names[name], "metric": metric, "protocol": texts[protocol], "arm": arm}
            row |= {"compute_multiply_adds": compute_of[arm]}
            rows.append({**row, **summarise(values[arm])._asdict(), **_fit_columns(law)})
    columns = ["series", "metric", "protocol", "arm", "compute_multiply_adds", "n", "mean", "low", "high", "kind"]
    return pd.DataFrame(rows, columns=[*columns, *_fit_columns(None)])


def _measured(run: RunRecord) -> Iterator[tuple[str, str, dict[str, Any], float]]:
    """Return the run's first NLL and first FID: metric, how it was measured in short and in full, value."""
    for measurement in islice(run.measured("nll"), 1):
        protocol = {name: measurement.evaluation[name] for name in ("nll", "split")}
        protocol |= measured_weights(measurement.evaluation)
        yield "nll", KINDS["nll"].unit, protocol, run.nll(measurement)
    for measurement in islice(run.measured("fidelity"), 1):
        part, protocol = measurement.evaluation["fidelity"], sampling_protocol(measurement, "fidelity")
        yield "fid", f"{run.extractor(part)}, {part['num_samples']} samples", protocol, run.fidelity(measurement)


def _series(run: RunRecord) -> dict[str, Any]:
    spec = {key: value for key, value in run.spec.items() if key not in ("seed", "model", "optim", "train")}
    return spec | {"batch_size": run.spec["train"]["batch_size"]}


def _fit(compute: list[float], values: list[list[float]]) -> PowerLaw | None:
    law = fit_power_law(compute, [float(np.mean(replicates)) for replicates in values])
    if law is None or max(map(len, values)) < 2:
        return law
    exponents = [resampled.c for resampled in bootstrap(compute, values)]
    if not exponents:
        return law
    low, high = np.quantile(exponents, [0.025, 0.975])
    return replace(law, c_low=float(low), c_high=float(high))


def _fit_columns(law: PowerLaw | None) -> dict[str, float]:
    if law is None:
        return dict.fromkeys(["fit_a", "fit_b", "fit_c", "fit_c_low", "fit_c_high", "fit_degrees_of_freedom"], np.nan)
    return {
        "fit_a": law.a,
        "fit_b": law.b,
        "fit_c": law.c,
        "fit_c_low": law.c_low,
        "fit_c_high": law.c_high,
        "fit_degrees_of_freedom": law.degrees_of_freedom,
    }


def _law(part: pd.DataFrame) -> PowerLaw | None:
    row = part.iloc[0]
    if np.isnan(row["fit_c"]):
        return None
    freedom = int(row["fit_degrees_of_freedom"])
    return PowerLaw(row["fit_a"], row["fit_b"], row["fit_c"], freedom, row["fit_c_low"], row["fit_c_high"])


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel for each metric and protocol: values of different protocols share no axis."""
    pairs = frame[["metric", "protocol"]].drop_duplicates().itertuples(index=False, name=None)
    panels = sorted(pairs, key=lambda panel: list(KINDS).index(panel[0]))
    all_series = list(frame["series"].unique())
    several = len(all_series) > 1
    figure, (all_axes,) = style.subplots(1, len(panels), width=style.ONE_COLUMN * len(panels), height=2.8)
    for axes, (metric, protocol) in zip(all_axes, panels, strict=True):
        shown = frame[(frame["metric"] == metric) & (frame["protocol"] == protocol)]
        for series, part in shown.groupby("series", sort=False):
            look = style.arm_style(all_series.index(series))
            x, law = part["compute_multiply_adds"], _law(part)
            axes.errorbar(
                x, part["mean"], [part["mean"] - part["low"], part["high"] - part["mean"]],
                color=look["color"], marker=look["marker"], linestyle="", elinewidth=0.9, capsize=2.5,
                label=style.label(series) if several else None,
            )  # fmt: skip
            if law:
                fine = np.geomspace(x.min() / 1.25, x.max() * 1.25, 200)
                axes.plot(fine, law(fine), color=look["color"], linewidth=1, linestyle="--", label=_formula(law))
            for row in part.itertuples() if not several else ():
                position = (row.compute_multiply_adds, row.mean)
                axes.annotate(
                    style.arm_label(row.arm), position, (7, 6), textcoords="offset points", fontsize=7, color=style.INK
                )
        label = KINDS[metric].label
        axes.set(xscale="log", yscale="log", xlabel=COMPUTE.axis, title=label)
        axes.set_ylabel(style.label(f"{label} ({protocol})"))
        axes.margins(x=0.22, y=0.14)
        style.plain_log_numbers(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower left")
    return figure


def _formula(law: PowerLaw) -> str:
    asymptote = f"{law.a:.3g} + " if law.a else ""
    interval = "" if np.isnan(law.c_low) else f"  [{law.c_low:.2g}, {law.c_high:.2g}]"
    return f"{asymptote}({law.b:.2g} C)$^{{-{law.c:.3g}}}${interval}"


def caption(frame: pd.DataFrame) -> str:
    if frame["fit_c"].isna().all():
        fit = "No power law: it needs at least three amounts of compute, and values that decrease with compute."
    elif (frame["fit_degrees_of_freedom"] < 2).all():
        fit = "Dashed: power law with asymptote 0, since three points allow no third parameter; read it as a slope."
    else:
        fit = "Dashed: a + (b C)⁻ᶜ by least squares, a fitted too (IDDPM chose a by hand)."
    if frame["fit_c_low"].notna().any():
        few = " (of two: too narrow by about a third)" if frame["n"].max() == 2 else ""
        fit += f" In brackets: 95 % of a bootstrap of the exponent over replicates{few}."
    return (
        f"Measurements against the training's compute in {COMPUTE.unit}, counted on the network (forward and backward, "
        f"without optimizer and EMA); IDDPM, figure 10. {describe_bands(frame['kind']).capitalize()}. {fit}"
    )
