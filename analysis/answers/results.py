"""What was measured of each arm, for the results table: values over replicates, and how comparable they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.analysis import papers
from harness.analysis.answers.best import AgainstBest, against_best
from harness.analysis.runs import Measurement, RunRecord, arm_index, by_arm
from harness.analysis.selection import ensemble, selected_steps, selection
from harness.analysis.settings import Labels
from harness.analysis.statistics.intervals import Estimate, summarise
from harness.analysis.statistics.noise import SamplingError, of_features, sampling_error, shared_error
from harness.records.scored import read_scored
from harness.spec.evaluation import Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.metrics import MetricKind, metric_kind
from harness.spec.protocols import PROTOCOLS, protocol_id

OF_FEATURES = tuple(kind for metric in FIDELITY_METRICS.values() for kind in metric.outputs)
DIGITS = {
    "fid": 2,
    "fid_infinity": 2,
    "class_fid": 2,
    "kid": 5,
    "kid_standard_error": 5,
}  # after the point; of all else 3
KINDS: dict[str, MetricKind] = {"nll": metric_kind("nll_bpd"), **{kind: metric_kind(kind) for kind in OF_FEATURES}}
TRAINED, NOT_OURS, UNTRAINED, GAUSSIAN = "trained", "not ours", "untrained network", "Gaussian per pixel"
PAPER = "paper"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per model, arm, evaluation and metric: `values` over replicates and their summary.

    `model` is `trained`, `untrained network`, `Gaussian per pixel`, `not ours` for images from elsewhere that
    `harness score` has put beside the study's arms, or `paper` for a paper's own number of the same arm and protocol,
    which has its `source` and is nobody's replicate (n = 0); `protocol_id` is the same where values are comparable;
    `planned` is the study's number of replicates, so that a table can show how many are missing. `method` is there if
    a run has another than the default one. `against_best` is the verdict of a trained arm against the best one of its
    column, in pairs; see `analysis.best`.
    """
    index = arm_index(runs)
    planned = {arm: len(replicates) for arm, replicates in by_arm(runs).items()}
    methods = {run.arm: run.named("method") or "gaussian" for run in runs}
    # By run: no replicate overwrites another.
    values_of: Values = {}
    data_of = data_texts(runs)
    for run in runs:
        for measurement in run.measurements:
            of_features = bool(measurement.evaluation["fidelity"])
            for model, arm, metric, protocol, value in measured_values(run, measurement, data_of[run.run_key]):
                # Two evaluations of one name in one study have different parts, so no value is overwritten here.
                name = measurement.name if model != GAUSSIAN else ""
                error = sampling_error(run, measurement, metric) if of_features and metric in OF_FEATURES else None
                of_evaluation = standard_error(run, measurement, metric)
                values_of.setdefault((model, arm, name, metric, *protocol), {})[run.run_key] = (
                    value,
                    error,
                    of_evaluation,
                )
    for arm, metric, protocol, value, error in _scored(runs, data_of):
        values_of[NOT_OURS, arm, "", metric, *protocol] = {"": (value, error, 0.0)}
    rows = []
    judged = _against_best(runs, values_of)
    for key, values in values_of.items():
        model, arm, evaluation, metric, extractor, protocol, variance, identity = key
        row = {"model": model, "arm": arm, "arm_index": index.get(arm, -1), "method": methods.get(arm, "")}
        row["evaluation"] = evaluation
        # The Gaussian is a property of the data: every run must give the same.
        numbers = [value for value, _, _ in values.values()]
        numbers = sorted(set(numbers)) if model == GAUSSIAN else numbers
        row |= {"metric": metric, "extractor": extractor, "protocol": protocol, "protocol_id": identity}
        row |= {"fixed_variance": variance}
        row |= {"planned": planned.get(arm, 0)} | summarise(numbers)._asdict()
        row |= {"values": " ".join(f"{value:.10g}" for value in numbers), "against_best": judged.get(key, "")}
        rows.append(row | _errors([error for _, error, _ in values.values()]))
    references = list(_published(runs, data_of))
    rows += [row | {"arm_index": index[row["arm"]], "method": methods[row["arm"]]} for row in references]
    columns = ["model", "arm", "arm_index", "method", "evaluation", "metric", "extractor", "protocol", "protocol_id"]
    columns += ["fixed_variance", "planned", "n", "mean", "low", "high", "kind", "values", "against_best"]
    with_errors = any("sampling_errors" in row for row in rows)
    columns += [*SAMPLING_ERRORS] if with_errors else []
    frame = pd.DataFrame(rows, columns=[*columns, "source"] if references else columns)
    for index, row in frame[frame["kind"] == "interval"].iterrows():
        if (estimate := estimate_of(row)) and not np.isnan(row.get("shared_error", np.nan)):
            half_width = estimate.half_width
            frame.loc[index, ["low", "high"]] = row["mean"] - half_width, row["mean"] + half_width
    if accuracies := _accuracies(runs):
        frame["extractor_accuracy"] = frame["extractor"].map(accuracies).fillna("")
    if steps := selected_steps(runs):
        frame["selected_steps"] = frame["evaluation"].map(steps).fillna("")
    if references:
        frame["source"] = frame["source"].fillna("")
    order = frame["model"].map({TRAINED: 0, PAPER: 0, NOT_OURS: 1, UNTRAINED: 2, GAUSSIAN: 3})
    unused = ["order"] if set(methods.values()) - {"gaussian"} else ["order", "method"]
    return frame.assign(order=order).sort_values(["order", "arm_index"], kind="stable").drop(columns=unused)


Values = dict[tuple, dict[str, tuple[float, SamplingError | None, float]]]


def _against_best(runs: Sequence[RunRecord], values_of: Values) -> dict[tuple, AgainstBest]:
    """Compare the trained sides of each column that has a better direction with the best of them."""
    seeds = {run.run_key: run.spec["seed"] for run in runs}
    columns: dict[tuple, dict[tuple, dict[int, tuple[float, float]]]] = {}
    for key, values in values_of.items():
        model, _, _, metric, extractor, _, _, identity = key
        if model == TRAINED and kind_of(metric).direction:
            by_seed = {seeds[run_key]: (value, error) for run_key, (value, _, error) in values.items()}
            columns.setdefault((metric, extractor, identity), {})[key] = by_seed
    result: dict[tuple, AgainstBest] = {}
    for (metric, _, _), sides in columns.items():
        result |= against_best(sides, higher_is_better=kind_of(metric).direction == "maximize")
    return result


def _published(runs: Sequence[RunRecord], data_of: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Return a row for each number that a paper has of an arm, in the column of the arm's first fitting measurement."""
    known: set[tuple[str, str, str]] = set()
    for run in runs:
        if not papers.of_training(run.spec):
            continue
        for measurement in run.measurements:
            for model, arm, metric, protocol, _ in measured_values(run, measurement, data_of[run.run_key]):
                for row in papers.of_measurement(run, measurement, metric) if model == TRAINED else ():
                    if (key := (arm, metric, row.source)) not in known:
                        known.add(key)
                        values = (PAPER, arm, measurement.name, metric, protocol.extractor, protocol.text, protocol.id)
                        names = ("model", "arm", "evaluation", "metric", "extractor", "protocol", "protocol_id")
                        yield dict(zip(names, values, strict=True)) | {
                            "fixed_variance": "", "planned": 0, "n": 0, "mean": float(row.values[metric]),
                            "kind": PAPER, "values": row.values[metric], "against_best": "", "source": row.origin,
                        }  # fmt: skip


SAMPLING_ERRORS = ("sampling_errors", "sampling_freedom", "sampling_errors_from", "shared_error")
"""Columns of the standard errors of `values` over draws of the samples, there if a run has one; `shared_error` is what
replicates have in common of their mean's error, since they share their noise."""


def _errors(errors: Sequence[SamplingError | None]) -> dict[str, Any]:
    """Return the columns of sampling errors; empty unless every value has one."""
    known = [error for error in errors if error is not None]
    if not known or len(known) < len(errors):
        return {}
    fewest = min(known, key=lambda error: error.freedom)
    texts = " ".join(f"{error.standard_error:.10g}" for error in known)
    shared = shared_error([error.by_seed for error in known])
    return dict(zip(SAMPLING_ERRORS, (texts, fewest.freedom, fewest.source, shared), strict=True))


def _accuracies(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return the test accuracy of each classifier whose features are compared, as text; a range if it differs."""
    values: dict[str, set[float]] = {}
    for run in runs:
        for measurement in run.measurements:
            match measurement.protocol.get("extractor"):
                case {"name": str(name), "test_accuracy": float(accuracy)}:
                    values.setdefault(name, set()).add(round(100 * accuracy, 1))
    return {name: f"{'–'.join(f'{value:g}' for value in sorted({min(v), max(v)}))} %" for name, v in values.items()}


class Protocol(NamedTuple):
    """How a value was measured: for people, and what is the same of all values that are comparable with it."""

    extractor: str
    text: str
    fixed_variance: str
    id: str


def data_texts(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return by run_key what follows the words for a split: ` of cifar10`; empty if all runs have the same data."""
    labels = Labels()
    keys = {}
    for run in runs:
        settings = {name: value for name, value in run.spec["data"].items() if name != "horizontal_flip"}
        keys[run.run_key] = labels.add(run.spec["data"]["name"], settings)
    texts = labels.texts()
    return {run_key: f" of {texts[key]}" if len(texts) > 1 else "" for run_key, key in keys.items()}


def measured_values(
    run: RunRecord, measurement: Measurement, of_data: str
) -> Iterator[tuple[str, str, str, Protocol, float]]:
    """Return (model, arm, metric, protocol, value) of one measurement."""
    model, evaluation = TRAINED if measurement.trained else UNTRAINED, measurement.evaluation
    variance, chosen = run.variance(measurement).replace("learned", ""), selection(measurement) + ensemble(measurement)
    if evaluation["nll"]:
        images = measurement.protocol.get("likelihood", {}).get("num_images", "?")
        where = f"on {images} {evaluation['split']} images{of_data}"
        text = f"{evaluation['nll']['estimator']} sum over t {where}{chosen}"
        yield model, run.arm, "nll", Protocol("", text, variance, text), run.nll(measurement)
        gaussian = run.metric(measurement, "gaussian_baseline_bpd")
        if measurement.trained and not np.isnan(gaussian):
            yield GAUSSIAN, "", "nll", Protocol("", where, "", text), gaussian
    if evaluation["fidelity"]:
        part = evaluation["fidelity"]
        identity = protocol_id(evaluation, run.spec["diffusion"]["num_timesteps"])
        text = f"{part['num_samples']} samples of {part['sampler']['name']} {part['num_steps']} steps"
        text += f" against {_reference(part)}{of_data}, k = {part['k']}{chosen}"
        text += f", guidance {guidance:g}" if (guidance := evaluation.get("guidance", 1.0)) != 1 else ""
        text += f", the mean of {part['seeds']} sampling seeds" if part.get("seeds", 1) > 1 else ""
        text += f" (protocol {identity})" if identity in PROTOCOLS else ""
        protocol = Protocol(run.extractor(part), text, variance, identity + of_data)
        for name in part.get("metrics", Fidelity.model_fields["metrics"].default):
            for metric in FIDELITY_METRICS[name].outputs:
                yield model, run.arm, metric, protocol, run.fidelity(measurement, metric)
    names = measurement.protocol.get("metrics", {})
    for part in evaluation.get("metrics", ()):
        options = ", ".join(f"{key} {value}" for key, value in part.items() if key != "name") or part["name"]
        for metric in names.get(part["name"], ()):
            protocol = Protocol("", options, "", options + of_data)
            yield model, run.arm, metric, protocol, run.metric(measurement, metric)


def standard_error(run: RunRecord, measurement: Measurement, metric: str) -> float:
    """Return the standard error of a value that the evaluation alone causes; 0 if it measured none."""
    if metric == "nll":
        error = run.metric(measurement, "nll_standard_error_bpd")
        return 0.0 if np.isnan(error) else error
    known = sampling_error(run, measurement, metric) if metric in OF_FEATURES else None
    return known.standard_error if known else 0.0


def _reference(part: dict[str, Any]) -> str:
    """Describe what samples are compared with: a split of the data, or a file of statistics."""
    digest = part.get("reference_sha256")
    return f"the reference file of sha256 {str(digest)[:12]}" if digest else f"the {part['reference']} split"


def _scored(
    runs: Sequence[RunRecord], data_of: dict[str, str]
) -> Iterator[tuple[str, str, Protocol, float, SamplingError | None]]:
    """Return (arm, metric, protocol, value, its error) of images from elsewhere beside the runs."""
    known: dict[tuple, str] = {}
    for run in runs:
        for measurement in run.measured("fidelity"):
            part = measurement.evaluation["fidelity"]
            place = (run.extractor(part), part["num_samples"], part["reference"], part["k"])
            identity = protocol_id(measurement.evaluation, run.spec["diffusion"]["num_timesteps"])
            known.setdefault(place, identity + data_of[run.run_key])
    places = dict.fromkeys((run.folder.parent, run.study) for run in runs)
    for scored in (scored for folder, study in places for scored in read_scored(folder, study)):
        text = f"{scored.num_images} images against the {scored.reference} split, k = {scored.k}"
        # How they were drawn is not known, and is what their arm is about.
        identity = known.get((scored.extractor, scored.num_images, scored.reference, scored.k), text)
        for metric in KINDS:
            if metric in scored.metrics:
                error = of_features(scored.fid_standard_error) if metric == "fid" else None
                protocol = Protocol(scored.extractor, text, "", identity)
                yield scored.arm, metric, protocol, scored.metrics[metric], error


def kind_of(metric: str) -> MetricKind:
    """Return the kind of a metric; a plugin's has its own name as label, and no direction."""
    return KINDS.get(metric) or MetricKind(metric)


def others(frame: pd.DataFrame) -> list[str]:
    """Return the metrics of plugins in the table."""
    return [metric for metric in frame["metric"].unique() if metric not in KINDS]


def sampling_errors_of(cell: pd.Series) -> list[float]:
    """Return the standard error of each value over draws of its samples; empty where they are not known."""
    text = cell.get("sampling_errors")
    return [float(error) for error in text.split()] if isinstance(text, str) else []


def estimate_of(cell: pd.Series) -> Estimate | None:
    """Return a cell's mean with its error: over replicates from three on, else over draws of the samples; or None."""
    shared = cell.get("shared_error", np.nan)
    if cell["kind"] == "interval":
        values = np.array([float(value) for value in cell["values"].split()])
        error = float(np.nanstd(values, ddof=1) / np.sqrt(cell["n"]))
        if np.isnan(shared):
            return Estimate(cell["mean"], error, cell["n"] - 1)
        return Estimate(cell["mean"], float(np.hypot(error, shared)), min(cell["n"] - 1, cell["sampling_freedom"]))
    errors = sampling_errors_of(cell)
    if not errors or cell["n"] < len(errors):  # one diverged
        return None
    return Estimate(cell["mean"], float(np.linalg.norm(errors)) / len(errors), cell["sampling_freedom"])
