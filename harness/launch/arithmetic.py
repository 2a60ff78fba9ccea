"""The parameters and multiply-adds of a run's networks before it has run, for estimates of its cost.

They are counted from the networks themselves, built without values on torch's meta device, and kept in the cache:

    arithmetic/<digest of what the cost of a step depends on>.json
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass

from harness import __version__
from harness.data.cache import cache_folder
from harness.errors import DataError, RecordError
from harness.records.files import replace_file
from harness.records.reading import Fields, read_json
from harness.spec.run import RunSpec


@dataclass(frozen=True)
class Arithmetic:
    """What a run's networks compute.

    Attributes:
        parameters: of all networks that are trained.
        step_multiply_adds: of a training step, forward and backward, for one example.
        forward_multiply_adds: of one evaluation of the network that samples are drawn with.
    """

    parameters: int
    step_multiply_adds: float
    forward_multiply_adds: float


def arithmetic_of(spec: RunSpec) -> Arithmetic | None:
    """Return the arithmetic of a run; None if it cannot be counted, as of a plugin's network that needs values.

    torch is loaded unless the cache has it.
    """
    try:
        kept = cache_folder("arithmetic") / f"{spec.cost_key}-{__version__}.json"
    except DataError:  # no folder for it
        return _count(spec)
    try:
        fields = Fields(read_json(kept), str(kept))
        step, forward = (fields.finite(f"{name}_multiply_adds", low=0) for name in ("step", "forward"))
        return Arithmetic(fields.integer("parameters", low=0), step, forward)
    except (FileNotFoundError, RecordError):
        counted = _count(spec)
    if counted:
        with contextlib.suppress(RecordError):  # a full or read-only disk: it is counted again the next time
            replace_file(kept, json.dumps(asdict(counted)), durable=False)
    return counted


def _count(spec: RunSpec) -> Arithmetic | None:
    import torch

    from harness.job.compute import one_example, step_compute
    from harness.metrics.flops import forward_compute
    from harness.registry import make_method
    from harness.spec.resources import Resources

    try:
        with torch.device("meta"):
            method = make_method(spec, spec.data.facts, Resources(device="cpu"), torch.device("meta"))
        counted = step_compute(method, spec.data.facts)
        sampled = next(iter(method.networks().values()))
        forward = forward_compute(sampled.module, *sampled.inputs(one_example(spec.data.facts)))
    except Exception:  # a user's own network may do anything there
        return None
    if counted.multiply_adds is None:
        return None
    return Arithmetic(counted.parameters, counted.multiply_adds, float(forward.multiply_adds))
