"""What studies of a mixture have in common: one row a method, one column a number of sampling steps.

A number of steps is reached in two ways: by a chain that was trained with so many, and by a longer one that is sampled
in fewer. Arms that differ in the length of their chain alone are one row, by whole chains. A chain that is sampled in
fewer steps has its length T in the row's name; beside such a row of whole chains it is a row of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.analysis.runs import Measurement, RunRecord, arm_index
from harness.analysis.settings import Labels, sampling_protocol, settings_of
from harness.data.mog import SCALE
from harness.spec.base import canonical_json
from harness.spec.metrics import array_file, modes_name

CHAIN = "diffusion.num_timesteps"


@dataclass(frozen=True)
class SampledMixture:
    """The samples of one run in one number of steps.

    Attributes:
        row: the method's label, the same for all numbers of steps.
        index: decides the row's colour: the arm's number where rows are arms, else the row's own.
    """

    row: str
    index: int
    run: RunRecord
    measurement: Measurement
    num_steps: int

    def metric(self, kind: str) -> float:
        """Return modes_covered, high_quality, frechet, mmd2 or log_density_nats."""
        part = self.measurement.evaluation["modes"]
        name = modes_name(kind, part["num_samples"], part["sampler"]["name"], self.num_steps)
        return self.run.metric(self.measurement, name)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return `points`, `shares` and `centres`; empty if the arrays are missing."""
        arrays = self.run.arrays(array_file(self.measurement.prefix, "modes"))
        names = {"points": f"points_{self.num_steps}", "shares": f"shares_{self.num_steps}", "centres": "centres"}
        return {key: arrays[name] for key, name in names.items()} if {*names.values()} <= arrays.keys() else {}


def sampled_mixtures(runs: Sequence[RunRecord]) -> list[SampledMixture]:
    """Return the samples of all runs by their rows, in the order of the arms and of the numbers of steps."""
    index, labels, rows = arm_index(runs), Labels(), Labels()
    arms: dict[str, dict[str, None]] = {}
    for run in runs:
        arms.setdefault(_family(run), {})[run.arm] = None
    entries = list(_entries(runs))
    in_fewer = {_family(run) for run, _, num_steps in entries if num_steps < _length(run)}
    keyed = []
    for run, measurement, num_steps in entries:
        family = _family(run)
        protocol = sampling_protocol(measurement, "modes")
        protocol["modes"] = {name: value for name, value in protocol["modes"].items() if name != "num_steps"}
        name, settings = _common_name(list(arms[family])), dict[str, Any](family=family)
        if num_steps < _length(run) or (len(arms[family]) == 1 and family in in_fewer):
            name, settings = f"{name}, T = {_length(run)}", settings | {"T": _length(run)}
        first = index[next(iter(arms[family]))]
        keyed.append((labels.add("", protocol), rows.add(name, settings), first, run, measurement, num_steps))
    protocols, names = labels.texts(), rows.texts()
    samples = []
    for protocol_key, row, first, run, measurement, num_steps in keyed:
        label = f"{names[row]} {protocols[protocol_key]}".strip()
        samples.append(SampledMixture(label, first, run, measurement, num_steps))
    samples.sort(key=_order)
    if all(len(names) == 1 for names in arms.values()):
        return samples
    numbers = {row: number for number, row in enumerate(dict.fromkeys(sample.row for sample in samples))}
    return [replace(sample, index=numbers[sample.row]) for sample in samples]


def distance_scale(run: RunRecord) -> float:
    """Return the factor from Fréchet distances of our data to those of SIDDM's coordinates, 0 .. 20 a side.

    A Fréchet distance grows with the square of the data's scale, and mog is the authors' points divided by 11. It is 1
    for other data.
    """
    return SCALE**2 if run.spec["data"]["name"] == "mog" else 1.0


def _entries(runs: Sequence[RunRecord]) -> Iterator[tuple[RunRecord, Measurement, int]]:
    for run in runs:
        for measurement in run.measured("modes"):
            for num_steps in measurement.evaluation["modes"]["num_steps"]:
                yield run, measurement, num_steps


def _order(sample: SampledMixture) -> tuple:
    words = re.split(r"(\d+)", sample.row)
    natural = [(int(word), "") if number % 2 else (0, word) for number, word in enumerate(words)]
    return sample.index, natural, sample.num_steps, sample.run.replicate


def _length(run: RunRecord) -> int:
    return int(run.spec["diffusion"]["num_timesteps"])


def _family(run: RunRecord) -> str:
    """Return what the arms of one row have in common: all values of the spec but the length of the chain."""
    settings: dict[str, Any] = {path: value for path, value in settings_of(run).items() if path != CHAIN}
    return canonical_json(settings)


def _common_name(arms: Sequence[str]) -> str:
    """Return the words that all of these names have, `siddm` of `siddm-num_timesteps=2` and `siddm-num_timesteps=4`."""
    if len(arms) == 1:
        return arms[0]
    words = [re.split(r"[-\s]+", arm) for arm in arms]
    common = [word for word in words[0] if all(word in others for others in words)]
    prefix = "".join(letters[0] for letters in _while_equal(arms))
    return "-".join(common) or prefix.rstrip("-_ =T") or " / ".join(arms)


def _while_equal(arms: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for letters in zip(*arms, strict=False):
        if len(set(letters)) > 1:
            return
        yield letters
