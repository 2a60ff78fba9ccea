"""predict: what a study's scaling says of an amount of training compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import Output, json_option, members, runs_folder_option, show_damage
from harness.errors import LaunchError

if TYPE_CHECKING:
    from harness.analysis.statistics.scaling_series import Multiplier, Series


@click.command()
@click.argument("study")
@click.option(
    "--compute", required=True, type=float, metavar="MULTIPLY_ADDS", help="Of the whole training, such as 1e20."
)
@click.option("--metric", help="Only this one: nll or fid.  [default: all that were measured]")
@json_option
@runs_folder_option
def predict(study: str, compute: float, metric: str | None, output: Output, runs_folder: Path) -> None:
    """Predict what more compute gives.

    A law is fitted to arms that differ in nothing but size and length of training, three at least. The interval is
    95 %, of the mean over the seeds that were run. Held out: the largest size, predicted from the others.

    With --json: {"study", "compute_multiply_adds", "predictions": [{"series", "metric", "protocol", "value", "low",
    "high", "form", "a", "b", "c", "c_low", "c_high", "asymptote_p", "held_out": {"compute_multiply_adds", "measured",
    "predicted", "low", "high", "error"}, "measured_from", "measured_to", "extrapolates", "warnings"}], "multipliers":
    [{"ours", "other", "metric", "protocol", "factor", "low", "high", "shared_exponent", "shared_exponent_p",
    "at_value"}]}; what is not known is null.
    """
    from harness.analysis.presentation import presentation_of
    from harness.analysis.runs import load_records
    from harness.analysis.statistics.scaling_series import multipliers, series_of
    from harness.text import count

    if not (math.isfinite(compute) and compute > 0):
        raise LaunchError(f"--compute {compute:g}: give a positive number of multiply-adds, such as 1e20")
    name, directories = members(study, runs_folder)
    show_damage(runs_folder, directories)
    chosen = {directory.path for directory in directories}
    all_series = series_of([run for run in load_records(runs_folder, str(name)) if run.folder in chosen])
    series = [each for each in _of_metric(all_series, metric) if each.scaling]
    if not series:
        longest = max((len(each.sizes) for each in all_series), default=0)
        raise LaunchError(
            f"study {name} has no law to predict with: it takes three amounts of compute in arms that differ only in "
            "the size of the model or the length of training, and values that fall with it; it has "
            f"{count(longest, 'such arm')}"
        )
    worth = multipliers(series, presentation_of(runs_folder, str(name)).compare.baseline)
    output.document({
        "study": name,
        "compute_multiply_adds": compute,
        "predictions": [_prediction(each, compute) for each in series],
        "multipliers": [_as_values(each) for each in worth],
    })  # fmt: skip
    if not output.as_json:
        _show(series, worth, compute)


def _of_metric(series: list[Series], metric: str | None) -> list[Series]:
    from harness.text import did_you_mean

    known = list(dict.fromkeys(each.metric for each in series))
    if metric is not None and known and metric not in known:
        raise LaunchError(f"--metric {metric}: not measured over compute; {did_you_mean(metric, known)}")
    return [each for each in series if metric in (None, each.metric)]


def _prediction(series: Series, compute: float) -> dict[str, Any]:
    assert series.scaling
    scaling, chosen = series.scaling, series.scaling.chosen
    value, law, exponent, held_out = scaling.predict(compute), chosen.power_law, scaling.exponent, chosen.held_out
    return {
        "series": series.name,
        "metric": series.metric,
        "protocol": series.protocol,
        **value._asdict(),
        "form": chosen.form,
        **{"a": law.a, "b": law.b, "c": law.c, "c_low": exponent.low, "c_high": exponent.high},
        "asymptote_p": scaling.asymptote_p,
        "held_out": held_out
        and {
            "compute_multiply_adds": held_out.compute,
            "measured": held_out.measured,
            "predicted": held_out.predicted.value,
            "low": held_out.predicted.low,
            "high": held_out.predicted.high,
            "error": held_out.error,
        },
        "measured_from": float(scaling.compute[0]),
        "measured_to": float(scaling.compute[-1]),
        "extrapolates": scaling.extrapolates(compute),
        "warnings": _warnings(series, compute),
    }


def _warnings(series: Series, compute: float) -> list[str]:
    assert series.scaling
    if not series.scaling.extrapolates(compute):
        return series.warnings
    least, most = series.scaling.compute[0], series.scaling.compute[-1]
    factor = compute / most if compute > most else least / compute
    side = "above" if compute > most else "below"
    measured = f"what was measured ({least:.3g} to {most:.3g})"
    return [f"{compute:g} is {factor:.3g} times {side} {measured}: take it as no more than a guess", *series.warnings]


def _as_values(worth: Multiplier) -> dict[str, Any]:
    return {
        "ours": worth.ours,
        "other": worth.other,
        "metric": worth.metric,
        "protocol": worth.protocol,
        "factor": worth.factor.value,
        "low": worth.factor.low,
        "high": worth.factor.high,
        "shared_exponent": worth.shared,
        "shared_exponent_p": worth.shared_p,
        "at_value": worth.at_value,
    }


def _show(series: list[Series], worth: list[Multiplier], compute: float) -> None:
    from harness.analysis.statistics.scaling_series import KINDS
    from harness.cli.tables import Table

    click.echo(f"at {compute:g} multiply-adds of training")
    rows = [
        (f"{KINDS[each.metric].label} ({each.protocol})", each.name, *_cells(_prediction(each, compute)))
        for each in series
    ]
    Table(("metric", "series", "predicted", "95 %", "law", "held out, largest size"), rows).show()
    click.echo()
    for multiplier in worth:
        click.echo(f"{multiplier.sentence}.")
    notes: dict[str, list[str]] = {}
    for each in series:
        for note in _warnings(each, compute):
            notes.setdefault(note, []).append(f"{KINDS[each.metric].label}, {each.name}")
    for note, names in notes.items():
        click.echo(f"warning: {'; '.join(names)}: {note}.")


def _cells(prediction: dict[str, Any]) -> tuple[str, str, str, str]:
    held_out = prediction["held_out"]
    error = f"{100 * held_out['error']:+.2g} %" if held_out else "–"
    if held_out and not math.isnan(held_out["low"]):
        inside = held_out["low"] <= held_out["measured"] <= held_out["high"]
        error += ", within its interval" if inside else ", outside of its interval"
    asymptote = f"{prediction['a']:.3g} + " if prediction["a"] else ""
    law = (
        f"{asymptote}({prediction['b']:.2g} C)^-{prediction['c']:.3g}{_span(prediction['c_low'], prediction['c_high'])}"
    )
    return f"{prediction['value']:.4g}", _span(prediction["low"], prediction["high"]).strip(" []") or "–", law, error


def _span(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
