"""Describe which weights were measured, and warn where a selection of the checkpoint flatters them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.analysis.runs import Measurement, RunRecord


def selection(measurement: Measurement) -> str:
    """Describe which checkpoint was measured, if not the last; ", of the checkpoint with ..."."""
    match measurement.protocol.get("checkpoint"):
        case {"metric": str(metric), "split": str(split), "seed": int(seed)}:
            evaluation = measurement.evaluation
            if metric.endswith("nll_bpd"):
                flatters = split == evaluation["split"] and bool(evaluation["nll"])
                cause = f"selected on the same {split} split"
            else:
                flatters = seed == evaluation["seed"] and not evaluation["nll"]
                cause = f"selected by samples of the same seed {seed}"
            return f", of the checkpoint with the lowest {metric}{f' ({cause}, so too good)' if flatters else ''}"
        case {"metric": str(metric)}:
            return f", of the checkpoint with the lowest {metric}"
    return ""


def ensemble(measurement: Measurement) -> str:
    """Describe the ensemble by t that was measured, if it was one."""
    part = measurement.evaluation.get("ensemble")
    return f", with the network of run {part['middle'][:8]} for {part['low']} ≤ t < {part['high']}" if part else ""


def selected_steps(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return by the evaluation's name which steps the selected checkpoints are of: `4–8 of 24`."""
    steps: dict[str, list[tuple[int, int]]] = {}
    for run in runs:
        for measurement in run.measurements:
            match measurement.protocol.get("checkpoint"):
                case {"step": int(step), "last_step": int(last)}:
                    steps.setdefault(measurement.name, []).append((step, last))
    return {name: f"{_range(s for s, _ in of)} of {_range(last for _, last in of)}" for name, of in steps.items()}


def _range(steps) -> str:
    distinct = sorted(set(steps))
    return "–".join(f"{step:,}" for step in dict.fromkeys((distinct[0], distinct[-1])))
