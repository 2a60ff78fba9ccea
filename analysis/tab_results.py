"""NLL, FID, precision and recall of every arm, with the untrained network and a Gaussian beside them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.intervals import spell, summarise
from analysis.runs import Measurement, RunRecord, arm_index, by_arm

TITLE = "Results"
NEEDS = "an evaluation with nll or fidelity"
DIGITS = {"nll": 3, "fid": 2, "precision": 3, "recall": 3}
HEADS = {"nll": "NLL (bits/dim) ↓", "fid": "FID ↓", "precision": "precision ↑", "recall": "recall ↑"}
TRAINED, UNTRAINED, GAUSSIAN = "trained", "untrained network", "Gaussian per pixel"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row for each model, arm, protocol and metric: `values` over replicates and what may be said of them.

    `model` is `trained`, `untrained network` or `Gaussian per pixel`; `planned` is the number of replicates that the
    study has, so that a table can say how many of them are missing.
    """
    index = arm_index(runs)
    planned = {arm: len(replicates) for arm, replicates in by_arm(runs).items()}
    found: dict[tuple, dict[int, float]] = {}
    for run in runs:
        for one in run.measurements:
            for model, arm, metric, protocol, value in _values(run, one):
                # Two evaluations of one name in one study hold different parts, so no value is overwritten here.
                found.setdefault((model, arm, one.name, metric, protocol), {})[run.replicate] = value
    rows = []
    for (model, arm, evaluation, metric, protocol), values in found.items():
        about = {"model": model, "arm": arm, "arm_index": index.get(arm, -1), "evaluation": evaluation}
        if model == GAUSSIAN:  # a property of the data: every run must give the same
            values = dict(enumerate(sorted(set(values.values()))))
        numbers = list(values.values())
        rows.append(
            about
            | {"metric": metric, "protocol": protocol, "planned": planned.get(arm, 0)}
            | summarise(numbers)._asdict()
            | {"values": " ".join(f"{value:.10g}" for value in numbers)}
        )
    columns = ["model", "arm", "arm_index", "evaluation", "metric", "protocol", "planned"]
    frame = pd.DataFrame(rows, columns=[*columns, "n", "mean", "low", "high", "kind", "values"])
    order = frame["model"].map({TRAINED: 0, UNTRAINED: 1, GAUSSIAN: 2})
    return frame.assign(order=order).sort_values(["order", "arm_index"], kind="stable").drop(columns="order")


def _values(run: RunRecord, one: Measurement) -> list[tuple[str, str, str, str, float]]:
    """Return (model, arm, metric, protocol, value) of one measurement."""
    model, asked = TRAINED if one.trained else UNTRAINED, one.asked
    variance = {"small": "σ² = β̃", "large": "σ² = β"}[asked["fixed_variance"]]
    variance = f", {variance}" if run.spec["diffusion"]["var_type"] == "fixed" else ""
    found = []
    if asked["nll"]:
        said = one.protocol.get("likelihood", {})
        protocol = f"{asked['split']} split, {asked['nll']['estimator']} on {said.get('num_images', '?')} images"
        found.append((model, run.arm, "nll", protocol + variance, run.nll(one)))
        gaussian = run.final(f"{one.prefix}/gaussian_baseline_bpd")
        if one.trained and not np.isnan(gaussian):
            found.append((GAUSSIAN, "", "nll", protocol, gaussian))
    if asked["fidelity"]:
        part = asked["fidelity"]
        how = (
            f"{run.extractor(part)}, {part['num_samples']} samples, {part['sampler']['name']} {part['num_steps']} steps"
        )
        for metric in ("fid", "precision", "recall"):
            k = f", k = {part['k']}" if metric != "fid" else ""
            found.append((model, run.arm, metric, how + k + variance, run.fidelity(one, metric)))
    return found


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the table as people read it: a row for each model, arm and evaluation, its cells spelt out.

    `best` names the metrics in which the row's mean is the best of the trained ones; `note` is the evaluation's name
    where the study has several.
    """
    trained = frame[frame["model"] == TRAINED]
    several = trained["evaluation"].nunique() > 1
    table = []
    for (model, arm, evaluation), part in frame.groupby(["model", "arm", "evaluation"], sort=False):
        row: dict[str, Any] = {"model": model, "arm": arm, "arm_index": int(part["arm_index"].iloc[0]), "best": set()}
        planned, n = int(part["planned"].iloc[0]), int(part["n"].max())
        missing = f" of {planned}" if model == TRAINED and n < planned else ""
        row["replicates"] = "" if model == GAUSSIAN else f"{n}{missing}"
        row["note"] = str(evaluation) if several and model == TRAINED else ""
        for _, one in part.iterrows():
            metric = one["metric"]
            row[metric] = spell([float(value) for value in one["values"].split()], DIGITS[metric])
            means = trained.loc[trained["metric"] == metric, "mean"]
            best = means.min() if metric in ("nll", "fid") else means.max()
            if model == TRAINED and one["mean"] == best and len(means) > 1:
                row["best"].add(metric)
        table.append(row)
    return table


def protocols(frame: pd.DataFrame) -> list[str]:
    """Say for each metric how it was measured, each protocol once."""
    said = []
    for metric, part in frame[frame["model"] == TRAINED].groupby("metric", sort=False):
        for protocol in part["protocol"].unique():
            name = HEADS[str(metric)].split(" ")[0]
            arms = part.loc[part["protocol"] == protocol, "arm"].unique()
            whose = "" if part["protocol"].nunique() == 1 else f" [{', '.join(arms)}]"
            said.append(f"{name}: {protocol}{whose}")
    return said


def caption(frame: pd.DataFrame) -> str:
    n = int(frame.loc[frame["model"] == TRAINED, "n"].max())
    how = {1: "One replicate", 2: "Both values of two replicates; no interval"}.get(
        n, "Mean ± half of the 95 % t-interval over replicates"
    )
    return f"{how}. Bold: the best mean, which need not be a significant one. {'. '.join(protocols(frame))}."


def _heads(table: list[dict]) -> list[str]:
    return [metric for metric in HEADS if any(metric in row for row in table)]


def _label(row: dict) -> str:
    whose = f" ({row['arm']})" if row["arm"] else ""
    name = row["arm"] if row["model"] == TRAINED else row["model"] + whose
    return f"{name} · {row['note']}" if row["note"] else name


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as Markdown."""
    table = rows(frame)
    heads = _heads(table)
    lines = [f"| arm | runs | {' | '.join(HEADS[head] for head in heads)} |", "|---|---" + "|---" * len(heads) + "|"]
    for row in table:
        cells = [f"**{row[head]}**" if head in row["best"] else row.get(head, "–") for head in heads]
        lines.append(f"| {_label(row)} | {row['replicates']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", caption(frame), ""])


def as_html(frame: pd.DataFrame) -> str:
    """Return the table as a piece of HTML; the page's own style dresses it."""
    table = rows(frame)
    heads = _heads(table)
    lines = ['<table class="results"><thead><tr><th>arm</th><th>runs</th>']
    lines += [f"<th>{HEADS[head]}</th>" for head in heads] + ["</tr></thead><tbody>"]
    for row in table:
        dot = f'<i class="dot arm{row["arm_index"]}"></i>' if row["model"] == TRAINED else ""
        kind = "" if row["model"] == TRAINED else ' class="baseline"'
        lines.append(f"<tr{kind}><td>{dot}{html.escape(_label(row))}</td><td>{row['replicates']}</td>")
        for head in heads:
            cell = row.get(head, "–")
            lines.append(f"<td><b>{cell}</b></td>" if head in row["best"] else f"<td>{cell}</td>")
        lines.append("</tr>")
    return "\n".join([*lines, "</tbody></table>"])
