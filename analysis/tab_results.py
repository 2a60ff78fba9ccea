"""NLL, FID, precision, recall and the metrics of plugins for every arm, with two baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.analysis import html
from harness.analysis.intervals import Estimate, can_be_told_apart, format_values, summarise
from harness.analysis.noise import FEWEST_SEEDS, SamplingError, of_features, sampling_error, shared_error
from harness.analysis.runs import Measurement, RunRecord, arm_index, by_arm
from harness.analysis.selection import ensemble, selected_steps, selection
from harness.analysis.settings import Labels
from harness.records.scored import read_scored
from harness.spec.evaluation import Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.metrics import MetricKind, metric_kind
from harness.spec.protocols import PROTOCOLS, protocol_id
from harness.spec.run import METHODS
from harness.text import markdown as markdown_text

TITLE = "Results"
NEEDS = "an evaluation with nll, fidelity or metrics"
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


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per model, arm, evaluation and metric: `values` over replicates and their summary.

    `model` is `trained`, `untrained network`, `Gaussian per pixel`, or `not ours` for images from elsewhere that
    `harness score` has put beside the study's arms; `protocol_id` is the same where values are comparable; `planned` is
    the study's number of replicates, so that a table can show how many of them are missing. `method` is there if a run
    has another than the default one.
    """
    index = arm_index(runs)
    planned = {arm: len(replicates) for arm, replicates in by_arm(runs).items()}
    methods = {run.arm: run.named("method") or "gaussian" for run in runs}
    # By run: no replicate overwrites another.
    values_of: dict[tuple, dict[str, tuple[float, SamplingError | None]]] = {}
    data_of = data_texts(runs)
    for run in runs:
        for measurement in run.measurements:
            of_features = bool(measurement.evaluation["fidelity"])
            for model, arm, metric, protocol, value in measured_values(run, measurement, data_of[run.run_key]):
                # Two evaluations of one name in one study have different parts, so no value is overwritten here.
                name = measurement.name if model != GAUSSIAN else ""
                error = sampling_error(run, measurement, metric) if of_features and metric in OF_FEATURES else None
                values_of.setdefault((model, arm, name, metric, *protocol), {})[run.run_key] = value, error
    for arm, metric, protocol, value, error in _scored(runs, data_of):
        values_of[NOT_OURS, arm, "", metric, *protocol] = {"": (value, error)}
    rows = []
    for (model, arm, evaluation, metric, extractor, protocol, variance, identity), values in values_of.items():
        row = {"model": model, "arm": arm, "arm_index": index.get(arm, -1), "method": methods.get(arm, "")}
        row["evaluation"] = evaluation
        # The Gaussian is a property of the data: every run must give the same.
        numbers = [value for value, _ in values.values()]
        numbers = sorted(set(numbers)) if model == GAUSSIAN else numbers
        row |= {"metric": metric, "extractor": extractor, "protocol": protocol, "protocol_id": identity}
        row |= {"fixed_variance": variance}
        row |= {"planned": planned.get(arm, 0)} | summarise(numbers)._asdict()
        row |= {"values": " ".join(f"{value:.10g}" for value in numbers)}
        rows.append(row | _errors([error for _, error in values.values()]))
    columns = ["model", "arm", "arm_index", "method", "evaluation", "metric", "extractor", "protocol", "protocol_id"]
    columns += ["fixed_variance", "planned", "n", "mean", "low", "high", "kind", "values"]
    with_errors = any("sampling_errors" in row for row in rows)
    frame = pd.DataFrame(rows, columns=[*columns, *SAMPLING_ERRORS] if with_errors else columns)
    for index, row in frame[frame["kind"] == "interval"].iterrows():
        if (estimate := _estimate(row)) and not np.isnan(row.get("shared_error", np.nan)):
            half_width = estimate.half_width
            frame.loc[index, ["low", "high"]] = row["mean"] - half_width, row["mean"] + half_width
    if accuracies := _accuracies(runs):
        frame["extractor_accuracy"] = frame["extractor"].map(accuracies).fillna("")
    if steps := selected_steps(runs):
        frame["selected_steps"] = frame["evaluation"].map(steps).fillna("")
    order = frame["model"].map({TRAINED: 0, NOT_OURS: 1, UNTRAINED: 2, GAUSSIAN: 3})
    unused = ["order"] if set(methods.values()) - {"gaussian"} else ["order", "method"]
    return frame.assign(order=order).sort_values(["order", "arm_index"], kind="stable").drop(columns=unused)


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


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the table's rows: one per model, arm and evaluation, with cells as text.

    `best` has the metrics in which the row's mean is the best of the trained ones, or cannot be told from it; `note` is
    the evaluation's name if the study has several. `block` numbers the tables: values of different protocols are in no
    column together.
    """
    trained = frame[frame["model"] == TRAINED]
    several = trained["evaluation"].nunique() > 1
    table: list[dict[str, Any]] = []
    blocks: list[dict[str, str]] = []  # metric -> the protocol of its column
    for (model, arm, evaluation), whole in frame.groupby(["model", "arm", "evaluation"], sort=False):
        for part in _without_repeated_metrics(whole):
            row: dict[str, Any] = {"model": model, "arm": arm, "arm_index": int(part["arm_index"].iloc[0])}
            planned, n = int(part["planned"].iloc[0]), int(part["n"].max())
            missing = f" of {planned}" if model == TRAINED and n < planned else ""
            row |= {"best": set(), "replicates": "" if model in (GAUSSIAN, NOT_OURS) else f"{n}{missing}"}
            notes = [str(evaluation) if several and model == TRAINED else ""]
            row["note"] = " · ".join(
                filter(None, notes + (list(part["protocol"].unique()) if model == NOT_OURS else []))
            )
            row["protocols"] = dict(zip(part["metric"], _columns(part), strict=True))
            row["block"] = _block(row["protocols"], blocks)
            for _, cell in part.iterrows():
                metric = cell["metric"]
                row[metric] = _cell(cell)
                column = (trained["metric"] == metric) & (_columns(trained) == row["protocols"][metric])
                if model == TRAINED and _is_best(cell, trained[column]):
                    row["best"].add(metric)
            table.append(row)
    return sorted(table, key=lambda row: row["block"])


def _columns(frame: pd.DataFrame) -> pd.Series:
    """Return what is the same of the values of a metric that may stand in one column: protocol and extractor."""
    return frame["protocol_id"] + " " + frame["extractor"]


def _block(protocols: dict[str, str], blocks: list[dict[str, str]]) -> int:
    """Return the first table in whose columns a row with these protocols by metric fits, or a new one."""
    for index, columns in enumerate(blocks):
        if all(columns.get(metric, protocol) == protocol for metric, protocol in protocols.items()):
            columns |= protocols
            return index
    blocks.append(dict(protocols))
    return len(blocks) - 1


def _cell(cell: pd.Series) -> str:
    """Return the text of a cell: values with an interval, and what that covers if it is not all."""
    values, digits = [float(value) for value in cell["values"].split()], DIGITS.get(cell["metric"], 3)
    errors, source = _sampling_errors(cell), cell.get("sampling_errors_from")
    if cell["kind"] == "interval":
        diverged = f", {len(values) - cell['n']} NaN" if cell["n"] < len(values) else ""
        return f"{cell['mean']:.{digits}f} ± {cell['high'] - cell['mean']:.{digits}f}{diverged}"
    if cell["n"] < len(values) or not values:
        return format_values(values, digits)
    if not errors:
        return f"{format_values(values, digits)}{f' ({NO_INTERVAL})' if cell['metric'] == 'fid' else ''}"
    halves = [Estimate(*pair, cell["sampling_freedom"]).half_width for pair in zip(values, errors, strict=True)]
    pairs = zip(values, halves, strict=True)
    return f"{' / '.join(f'{value:.{digits}f} ± {half:.{digits}f}' for value, half in pairs)} ({source})"


NO_INTERVAL = "no interval"


def _sampling_errors(cell: pd.Series) -> list[float]:
    """Return the standard error of each value over draws of its samples; empty where they are not known."""
    text = cell.get("sampling_errors")
    return [float(error) for error in text.split()] if isinstance(text, str) else []


def _estimate(cell: pd.Series) -> Estimate | None:
    """Return a cell's mean with its error: over replicates from three on, else over draws of the samples; or None."""
    shared = cell.get("shared_error", np.nan)
    if cell["kind"] == "interval":
        values = np.array([float(value) for value in cell["values"].split()])
        error = float(np.nanstd(values, ddof=1) / np.sqrt(cell["n"]))
        if np.isnan(shared):
            return Estimate(cell["mean"], error, cell["n"] - 1)
        return Estimate(cell["mean"], float(np.hypot(error, shared)), min(cell["n"] - 1, cell["sampling_freedom"]))
    errors = _sampling_errors(cell)
    if not errors or cell["n"] < len(errors):  # one diverged
        return None
    return Estimate(cell["mean"], float(np.linalg.norm(errors)) / len(errors), cell["sampling_freedom"])


def _is_best(cell: pd.Series, cells: pd.DataFrame) -> bool:
    """Return whether a trained arm's mean is the best of several, or cannot be told from it."""
    direction = kind_of(str(cell["metric"])).direction
    if direction is None or len(cells) == 1 or cells["mean"].isna().all():
        return False
    best = cells.loc[cells["mean"].idxmin() if direction == "minimize" else cells["mean"].idxmax()]
    if cell["mean"] == best["mean"]:
        return True
    own, other = _estimate(cell), _estimate(best)
    return own is not None and other is not None and not can_be_told_apart(own, other)


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


def selections(frame: pd.DataFrame) -> str:
    """Say which steps the checkpoints are of that a metric selected; empty where the last ones were measured."""
    if "selected_steps" not in frame:
        return ""
    chosen = frame[frame["selected_steps"] != ""].drop_duplicates("evaluation")
    return "".join(
        f" Checkpoints of {name}: of steps {steps}."
        for name, steps in zip(chosen["evaluation"], chosen["selected_steps"], strict=True)
    )


def undefined(frame: pd.DataFrame) -> str:
    """Say for which methods a column of NLL has a dash because they have no likelihood; empty where there are none."""
    if "method" not in frame:
        return ""
    methods = [name for name in frame["method"].unique() if name in METHODS and "nll" not in METHODS[name].measures]
    if "nll" not in set(frame["metric"]) or not methods:
        return ""
    return f" –: {KINDS['nll'].label} is not defined for {' and '.join(methods)}, for want of a likelihood."


def caption(frame: pd.DataFrame) -> str:
    return (
        f"{intervals(frame)} Bold: the best mean, and each that cannot be told from it: where both have an interval, a "
        "difference below 1.96 (of few values, Welch's t) times the root of both squared standard errors is "
        f"inconclusive. {protocols(frame)}{selections(frame)}{classifiers(frame)}{undefined(frame)}"
    )


def intervals(frame: pd.DataFrame) -> str:
    """Say what the intervals in the cells cover."""
    n = frame.loc[frame["model"] == TRAINED, "n"].max()
    sentences = {1: ["One replicate."], 2: ["Both values of two replicates."]}.get(
        n, ["Mean ± half of the 95 % t-interval over replicates, from three on."]
    )
    of_features = frame[(frame["kind"] == "interval") & frame["metric"].isin(OF_FEATURES)]
    if len(of_features):
        covers_all = "shared_error" in of_features and of_features["shared_error"].notna().all()
        sentences.append(
            "It covers trainings and samples."
            if covers_all
            else "It covers trainings, and of samples what differs between replicates, which share their noise; with "
            f"`seeds: {FEWEST_SEEDS}` or more in fidelity it covers both."
        )
    few = frame[(frame["kind"] != "interval") & (frame["n"] > 0)]
    texts = {
        "seeds": "± (seeds): half of the 95 % t-interval over sampling seeds",
        "features": "± (features): 1.96 standard errors, from the features of one draw",
    }
    sources = few["sampling_errors_from"].dropna().unique() if "sampling_errors_from" in few else []
    if shown := [text for source, text in texts.items() if source in sources]:
        sentences.append(f"{'; '.join(shown)}: samples alone, not other trainings.")
    if any(_cell(cell).endswith(f"({NO_INTERVAL})") for _, cell in few[few["metric"] == "fid"].iterrows()):
        sentences.append("No interval: neither several trainings nor FID's standard error were recorded.")
    if "fid" in set(frame["metric"]):
        sentences.append("No interval covers FID's bias, which depends on the number of samples.")
    return " ".join(sentences)


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
    """Return the columns' titles by metric, with the feature extractors; the first of these has their accuracy.

    What has no better direction, such as an error or the end of an interval, is in results.csv alone.
    """
    nll = KINDS["nll"]
    titles = {"nll": f"{nll.axis} {nll.arrow}"} if "nll" in set(frame["metric"]) else {}
    accuracies = dict(zip(frame["extractor"], frame.get("extractor_accuracy", [""] * len(frame)), strict=True))
    for metric in OF_FEATURES:
        extractors = frame.loc[frame["metric"] == metric, "extractor"].unique()
        if len(extractors) and KINDS[metric].direction:
            names = " / ".join(
                f"{name}, accuracy {accuracy}" if (accuracy := accuracies.pop(name, "")) else name
                for name in extractors
            )
            titles[metric] = f"{KINDS[metric].label} ({names}) {KINDS[metric].arrow}"
    return titles | {metric: metric for metric in others(frame)}


def _label(row: dict) -> str:
    whose = f" ({row['arm']})" if row["arm"] else ""
    name = row["arm"] if row["model"] == TRAINED else row["model"] + whose
    if row["model"] == NOT_OURS:
        name = f"{row['arm']} ({NOT_OURS})"
    return f"{name} · {row['note']}" if row["note"] else name


def tables(frame: pd.DataFrame) -> list[tuple[str, dict[str, str], list[dict[str, Any]]]]:
    """Return a heading, titles of columns by metric, and rows for each table; a single table has no heading."""
    result, all_rows = [], rows(frame)
    for block in dict.fromkeys(row["block"] for row in all_rows):
        members = [row for row in all_rows if row["block"] == block]
        columns = {column for row in members for column in row["protocols"].items()}
        part = frame[[column in columns for column in zip(frame["metric"], _columns(frame), strict=True)]]
        result.append((protocols(part) or " ".join(part["protocol"].unique()), heads(part), members))
    return result if len(result) > 1 else [("", titles, members) for _, titles, members in result]


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as Markdown; one for each of several protocols."""
    lines = []
    for heading, titles, members in tables(frame):
        lines += [markdown_text(heading), ""] if heading else []
        lines.append(f"| arm | runs | {' | '.join(map(markdown_text, titles.values()))} |")
        lines.append("|---|---" + "|---:" * len(titles) + "|")
        for row in members:
            cells = [f"**{row[metric]}**" if metric in row["best"] else row.get(metric, "–") for metric in titles]
            lines.append(f"| {markdown_text(_label(row))} | {row['replicates']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, markdown_text(caption(frame)), ""])


def as_html(frame: pd.DataFrame) -> Markup:
    """Return the table as HTML, styled by the page; one for each of several protocols."""
    shown = [
        (heading, titles, [row | {"label": _label(row), "trained": row["model"] == TRAINED} for row in members])
        for heading, titles, members in tables(frame)
    ]
    return html.render("results.html", tables=shown)
