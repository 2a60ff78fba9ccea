"""NLL, FID, precision, recall and the metrics of plugins for every arm, with two baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.analysis import html
from harness.analysis.intervals import format_values, summarise
from harness.analysis.runs import Measurement, RunRecord, arm_index, by_arm
from harness.records.scored import read_scored
from harness.spec.evaluation import Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.metrics import MetricKind, metric_kind
from harness.spec.run import METHODS
from harness.text import markdown as markdown_text

TITLE = "Results"
NEEDS = "an evaluation with nll, fidelity or metrics"
OF_FEATURES = tuple(kind for metric in FIDELITY_METRICS.values() for kind in metric.outputs)
DIGITS = {"fid": 2, "kid": 5, "kid_standard_error": 5}  # after the point; of all else 3
KINDS: dict[str, MetricKind] = {"nll": metric_kind("nll_bpd"), **{kind: metric_kind(kind) for kind in OF_FEATURES}}
TRAINED, NOT_OURS, UNTRAINED, GAUSSIAN = "trained", "not ours", "untrained network", "Gaussian per pixel"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per model, arm, evaluation and metric: `values` over replicates and their summary.

    `model` is `trained`, `untrained network`, `Gaussian per pixel`, or `not ours` for images from elsewhere that
    `harness score` has put beside the study's arms; `planned` is the study's number of replicates, so
    that a table can show how many of them are missing. `method` is there if a run has another than the default one.
    """
    index = arm_index(runs)
    planned = {arm: len(replicates) for arm, replicates in by_arm(runs).items()}
    methods = {run.arm: run.named("method") or "gaussian" for run in runs}
    values_of: dict[tuple, dict[str, float]] = {}  # by run: no replicate overwrites another
    for run in runs:
        for measurement in run.measurements:
            for model, arm, metric, protocol_parts, value in measured_values(run, measurement):
                # Two evaluations of one name in one study have different parts, so no value is overwritten here.
                name = measurement.name if model != GAUSSIAN else ""
                values_of.setdefault((model, arm, name, metric, *protocol_parts), {})[run.run_key] = value
    for arm, metric, protocol_parts, value in _scored(runs):
        values_of[NOT_OURS, arm, "", metric, *protocol_parts] = {"": value}
    rows = []
    for (model, arm, evaluation, metric, extractor, protocol, variance), values in values_of.items():
        row = {"model": model, "arm": arm, "arm_index": index.get(arm, -1), "method": methods.get(arm, "")}
        row["evaluation"] = evaluation
        # The Gaussian is a property of the data: every run must give the same.
        numbers = sorted(set(values.values())) if model == GAUSSIAN else list(values.values())
        rows.append(
            row
            | {"metric": metric, "extractor": extractor, "protocol": protocol, "fixed_variance": variance}
            | {"planned": planned.get(arm, 0)}
            | summarise(numbers)._asdict()
            | {"values": " ".join(f"{value:.10g}" for value in numbers)}
        )
    columns = ["model", "arm", "arm_index", "method", "evaluation", "metric", "extractor", "protocol", "fixed_variance"]
    frame = pd.DataFrame(rows, columns=[*columns, "planned", "n", "mean", "low", "high", "kind", "values"])
    if accuracies := _accuracies(runs):
        frame["extractor_accuracy"] = frame["extractor"].map(accuracies).fillna("")
    order = frame["model"].map({TRAINED: 0, NOT_OURS: 1, UNTRAINED: 2, GAUSSIAN: 3})
    unused = ["order"] if set(methods.values()) - {"gaussian"} else ["order", "method"]
    return frame.assign(order=order).sort_values(["order", "arm_index"], kind="stable").drop(columns=unused)


def _accuracies(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return the test accuracy of each classifier whose features are compared, as text; a range if it differs."""
    values: dict[str, set[float]] = {}
    for run in runs:
        for measurement in run.measurements:
            match measurement.protocol.get("extractor"):
                case {"name": str(name), "test_accuracy": float(accuracy)}:
                    values.setdefault(name, set()).add(round(100 * accuracy, 1))
    return {name: f"{'–'.join(f'{value:g}' for value in sorted({min(v), max(v)}))} %" for name, v in values.items()}


def measured_values(
    run: RunRecord, measurement: Measurement
) -> Iterator[tuple[str, str, str, tuple[str, str, str], float]]:
    """Return (model, arm, metric, (extractor, protocol, fixed variance), value) of one measurement."""
    model, evaluation = TRAINED if measurement.trained else UNTRAINED, measurement.evaluation
    variance = run.variance(measurement).replace("learned", "")
    if evaluation["nll"]:
        images = measurement.protocol.get("likelihood", {}).get("num_images", "?")
        protocol = f"{evaluation['nll']['estimator']} sum over t on {images} {evaluation['split']} images"
        yield model, run.arm, "nll", ("", protocol, variance), run.nll(measurement)
        gaussian = run.metric(measurement, "gaussian_baseline_bpd")
        if measurement.trained and not np.isnan(gaussian):
            yield GAUSSIAN, "", "nll", ("", f"on {images} {evaluation['split']} images", ""), gaussian
    if evaluation["fidelity"]:
        part = evaluation["fidelity"]
        protocol = f"{part['num_samples']} samples of {part['sampler']['name']} {part['num_steps']} steps"
        protocol += f" against {_reference(part)}, k = {part['k']}"
        protocol_parts = (run.extractor(part), protocol, variance)
        for name in part.get("metrics", Fidelity.model_fields["metrics"].default):
            for metric in FIDELITY_METRICS[name].outputs:
                yield model, run.arm, metric, protocol_parts, run.fidelity(measurement, metric)
    names = measurement.protocol.get("metrics", {})
    for part in evaluation.get("metrics", ()):
        options = ", ".join(f"{key} {value}" for key, value in part.items() if key != "name") or part["name"]
        for metric in names.get(part["name"], ()):
            yield model, run.arm, metric, ("", options, ""), run.metric(measurement, metric)


def standard_error(run: RunRecord, measurement: Measurement, metric: str) -> float:
    """Return the standard error of a value that the evaluation alone causes; 0 if it measured none."""
    if metric == "nll":
        error = run.metric(measurement, "nll_standard_error_bpd")
    elif metric in ("fid", "kid") and f"{metric}_standard_error" in OF_FEATURES:
        error = run.fidelity(measurement, f"{metric}_standard_error")
    else:
        return 0.0
    return 0.0 if np.isnan(error) else error


def _reference(part: dict[str, Any]) -> str:
    """Describe what samples are compared with: a split of the data, or a file of statistics."""
    digest = part.get("reference_sha256")
    return f"the reference file of sha256 {str(digest)[:12]}" if digest else f"the {part['reference']} split"


def _scored(runs: Sequence[RunRecord]) -> Iterator[tuple[str, str, tuple[str, str, str], float]]:
    """Return (arm, metric, (extractor, protocol, ""), value) of images from elsewhere that stand beside the runs."""
    places = dict.fromkeys((run.folder.parent, run.study) for run in runs)
    for scored in (scored for folder, study in places for scored in read_scored(folder, study)):
        protocol = f"{scored.num_images} images against the {scored.reference} split, k = {scored.k}"
        for metric in KINDS:
            if metric in scored.metrics:
                yield scored.arm, metric, (scored.extractor, protocol, ""), scored.metrics[metric]


def kind_of(metric: str) -> MetricKind:
    """Return the kind of a metric; a plugin's has its own name as label, and no direction."""
    return KINDS.get(metric) or MetricKind(metric)


def others(frame: pd.DataFrame) -> list[str]:
    """Return the metrics of plugins in the table."""
    return [metric for metric in frame["metric"].unique() if metric not in KINDS]


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the table's rows: one per model, arm and evaluation, with cells as text.

    `best` has the metrics in which the row's mean is the best of the trained ones; `note` is the evaluation's name if
    the study has several. What was measured by another protocol has a row of its own, with the protocol as its note.
    """
    trained = frame[frame["model"] == TRAINED]
    several = trained["evaluation"].nunique() > 1
    table = []
    for (model, arm, evaluation), whole in frame.groupby(["model", "arm", "evaluation"], sort=False):
        name = str(evaluation) if several and model == TRAINED else ""
        for index, part in enumerate(_without_repeated_metrics(whole)):
            row: dict[str, Any] = {"model": model, "arm": arm, "arm_index": int(part["arm_index"].iloc[0])}
            planned, n = int(part["planned"].iloc[0]), int(part["n"].max())
            missing = f" of {planned}" if model == TRAINED and n < planned else ""
            row |= {"best": set(), "replicates": "" if model in (GAUSSIAN, NOT_OURS) else f"{n}{missing}"}
            own_protocol = index or model == NOT_OURS
            row["note"] = " · ".join(filter(None, [name, "; ".join(part["protocol"].unique()) if own_protocol else ""]))
            for _, cell in part.iterrows():
                metric = cell["metric"]
                row[metric] = format_values([float(value) for value in cell["values"].split()], DIGITS.get(metric, 3))
                means = trained.loc[trained["metric"] == metric, "mean"]
                best = {"minimize": means.min(), "maximize": means.max(), None: None}[kind_of(metric).direction]
                if model == TRAINED and cell["mean"] == best and len(means) > 1:
                    row["best"].add(metric)
            table.append(row)
    return table


def _without_repeated_metrics(part: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Split rows of one model, arm and evaluation so that each part has every metric once."""
    order = part.groupby("metric", sort=False).cumcount()
    return (part[order == index] for index in sorted(order.unique()))


def protocols(frame: pd.DataFrame) -> str:
    """Describe how each metric was measured, and for which arms if they differ."""
    trained = frame[frame["model"] == TRAINED]
    sentences = []
    others_of_features = set(trained["metric"]) & ({*OF_FEATURES} - {"fid", "precision", "recall"})
    of_features = "metrics of features" if others_of_features else "FID, precision and recall"
    groups: dict[str, tuple[str, ...]] = {"NLL": ("nll",), of_features: OF_FEATURES}
    groups |= {name: (name,) for name in others(frame)}
    for name, metrics in groups.items():
        part = trained[trained["metric"].isin(metrics)]
        for protocol in part["protocol"].unique():
            sentences.append(f"{name}{_whose(part, 'protocol', protocol)}: {protocol}.")
    fixed = trained[trained["fixed_variance"] != ""]
    for variance in fixed["fixed_variance"].unique():
        sentences.append(f"Where the variance is fixed{_whose(fixed, 'fixed_variance', variance)}: σ² = {variance}.")
    return " ".join(sentences)


def _whose(frame: pd.DataFrame, column: str, value: str) -> str:
    """Return the evaluations or arms that a value belongs to, empty if it belongs to all."""
    if frame[column].nunique() == 1:
        return ""
    for owner in ("evaluation", "arm"):
        if frame.groupby(owner)[column].nunique().max() == 1:
            return f" ({', '.join(frame.loc[frame[column] == value, owner].unique())})"
    matches = frame.loc[frame[column] == value].drop_duplicates(["arm", "evaluation"])
    return f" ({', '.join(matches['arm'] + ' · ' + matches['evaluation'])})"


def undefined(frame: pd.DataFrame) -> str:
    """Say for which methods a column of NLL has a dash because they have no likelihood; empty where there are none."""
    if "method" not in frame:
        return ""
    methods = [name for name in frame["method"].unique() if name in METHODS and "nll" not in METHODS[name].measures]
    if "nll" not in set(frame["metric"]) or not methods:
        return ""
    return f" –: {KINDS['nll'].label} is not defined for {' and '.join(methods)}, for want of a likelihood."


def caption(frame: pd.DataFrame) -> str:
    n = frame.loc[frame["model"] == TRAINED, "n"].max()
    spread = {1: "One replicate.", 2: "Both values of two replicates; no interval."}.get(
        n, "Mean ± half of the 95 % t-interval over replicates, from three on."
    )
    return (
        f"{spread} Bold: the best mean, which need not differ from the others by more than chance. {protocols(frame)}"
        f"{classifiers(frame)}{undefined(frame)}"
    )


def classifiers(frame: pd.DataFrame) -> str:
    """Say how good the classifiers are whose features are compared; empty where there is none."""
    if "extractor_accuracy" not in frame:
        return ""
    known = frame[frame["extractor_accuracy"] != ""].drop_duplicates("extractor")
    return "".join(
        f" {name} is a classifier of the data's own labels, right on {accuracy} of the test images."
        for name, accuracy in zip(known["extractor"], known["extractor_accuracy"], strict=True)
    )


def heads(frame: pd.DataFrame) -> dict[str, str]:
    """Return the columns' titles by metric, with the feature extractors."""
    nll = KINDS["nll"]
    titles = {"nll": f"{nll.axis} {nll.arrow}"} if "nll" in set(frame["metric"]) else {}
    for metric in OF_FEATURES:
        extractors = frame.loc[frame["metric"] == metric].drop_duplicates("extractor")
        if len(extractors):
            accuracies = extractors.get("extractor_accuracy", pd.Series("", extractors.index))
            names = " / ".join(
                f"{name}, accuracy {accuracy}" if accuracy else name
                for name, accuracy in zip(extractors["extractor"], accuracies, strict=True)
            )
            titles[metric] = f"{KINDS[metric].label} ({names}) {KINDS[metric].arrow}".rstrip()
    return titles | {metric: metric for metric in others(frame)}


def _label(row: dict) -> str:
    whose = f" ({row['arm']})" if row["arm"] else ""
    name = row["arm"] if row["model"] == TRAINED else row["model"] + whose
    if row["model"] == NOT_OURS:
        name = f"{row['arm']} ({NOT_OURS})"
    return f"{name} · {row['note']}" if row["note"] else name


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as Markdown."""
    titles = heads(frame)
    lines = [
        f"| arm | runs | {' | '.join(map(markdown_text, titles.values()))} |",
        "|---|---" + "|---:" * len(titles) + "|",
    ]
    for row in rows(frame):
        cells = [f"**{row[metric]}**" if metric in row["best"] else row.get(metric, "–") for metric in titles]
        lines.append(f"| {markdown_text(_label(row))} | {row['replicates']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", markdown_text(caption(frame)), ""])


def as_html(frame: pd.DataFrame) -> Markup:
    """Return the table as HTML, styled by the page."""
    shown = [row | {"label": _label(row), "trained": row["model"] == TRAINED} for row in rows(frame)]
    return html.render("results.html", titles=heads(frame), rows=shown)
