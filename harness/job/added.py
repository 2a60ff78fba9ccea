"""Measurements after the training: what is added to a run, and who asks for it; earlier checkpoints; other images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.data.base import Dataset
from harness.datasets import make_dataset
from harness.errors import LaunchError, SpecError
from harness.job.request import RunRequest
from harness.records import manifest
from harness.records.data_digest import require_same_data
from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests
from harness.records.plugins import read_spec
from harness.spec.averages import EmaOfWidth
from harness.spec.evaluation import AnySampler, Evaluation, Fidelity
from harness.spec.protocols import ProtocolError, compared, difference, expand, protocol_id
from harness.spec.run import DataModel, RunSpec


def fidelity_protocols(
    directory: RunDirectory,
    sampler: AnySampler | None = None,
    num_steps: Sequence[int] = (),
    num_samples: int | None = None,
    *,
    protocol: str | None = None,
    inception: bool,
) -> list[Evaluation]:
    """Return evaluations of samples for a run: the first that its studies ask for, with these settings instead.

    Each has a name of its own, such as `eval_ddim50`, since the name is the prefix of its metrics.

    Args:
        num_steps: an evaluation for each; empty for the number that the first evaluation has.
        protocol: a named one instead of the other settings.

    Raises:
        SpecError: the run's chain has no such number of steps, or cannot be measured so; or no such protocol.
    """
    spec = read_spec(directory.path, directory.spec())
    asked = (
        one
        for one in RunRequest.of(directory).evaluations
        if one.fidelity and one.weights != "untrained" and not one.ensemble
    )
    base = next(asked, Evaluation(fidelity=Fidelity()))
    assert base.fidelity is not None
    if protocol is not None:
        return [_by_protocol(protocol, base, directory, spec, inception)]
    evaluations, counts = [], tuple[int | None, ...](num_steps) or (base.fidelity.num_steps,)
    for count in counts:
        change: dict[str, Any] = {"num_steps": count, "sampler": sampler or base.fidelity.sampler}
        fidelity = base.fidelity.model_copy(
            update=change | ({"num_samples": num_samples} if num_samples is not None else {})
        )
        name = f"{base.name}_{fidelity.sampler.name}{count or spec.diffusion.num_timesteps}"
        shared = (*_FREE, "weights", "ema", "checkpoint", "guidance")
        try:
            evaluation = Evaluation(name=name, fidelity=fidelity, **{key: getattr(base, key) for key in shared})
            evaluations.append(evaluation.resolve(spec, inception=inception))
        except ValueError as error:
            raise SpecError(f"run {directory.key}: {error}") from None
    return evaluations


_FREE = ("fixed_variance", "seed", "batch_size")


def _by_protocol(name: str, base: Evaluation, directory: RunDirectory, spec: RunSpec, inception: bool) -> Evaluation:
    fields = {"name": f"{base.name}_{name}", "protocol": name} | {key: getattr(base, key) for key in _FREE}
    try:
        fields = expand({**fields, "fidelity": {"metrics": base.fidelity.metrics} if base.fidelity else {}})
        return Evaluation(**fields).resolve(spec, inception=inception)
    except ProtocolError as error:
        raise SpecError(f"--protocol {error}") from None
    except ValueError as error:
        raise SpecError(f"run {directory.key}: protocol {name}: {error}") from None


def ask_for(runs_folder: Path, study: str, evaluations: dict[str, list[Evaluation]]) -> None:
    """Let a study ask for more evaluations of its runs, until it is submitted again without them.

    Args:
        evaluations: by the run's key.

    Raises:
        RecordError: the manifest cannot be written.
    """
    manifests, changed = Manifests(runs_folder), {}
    for run_key, added in evaluations.items():
        directory = RunDirectory(runs_folder / run_key)
        membership = manifests.memberships(directory)[study]
        known = list(membership["evaluations"])
        new = [document for one in added if (document := one.model_dump(mode="json")) not in known]
        if new:
            changed[run_key] = membership | {"evaluations": known + new}
    if manifests.of(study) is not None:
        manifest.join(runs_folder, study, changed)
        return
    for run_key, membership in changed.items():
        RunDirectory(runs_folder / run_key).add_to_study(study, membership)


def require_trained(directory: RunDirectory) -> None:
    """Raise LaunchError if a run's training has not ended, or if somebody works on the run."""
    if directory.may_be_written():
        raise LaunchError(f"run {directory.key} is being worked on: harness status shows by what")
    step, (num_steps, _) = directory.durable_step(), directory.training_size()
    if step < num_steps:
        raise LaunchError(
            f"run {directory.key} is at step {step} of {num_steps}: harness submit trains it, and --checkpoint STEP "
            "evaluates what it has"
        )


def evaluate_checkpoint(
    directory: RunDirectory, step: int, evaluations: Sequence[Evaluation], *, on_progress: Any
) -> dict[str, float]:
    """Measure the weights of a kept checkpoint; return the metrics, which are not recorded.

    The records of a run are of its last weights: a value of others beside them would be taken for one of them.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    import torch

    from harness.evaluation.context import EvaluationContext
    from harness.evaluation.evaluator import evaluate
    from harness.evaluation.keeping import Keeping
    from harness.evaluation.measured import with_width
    from harness.evaluation.sampling import load_method
    from harness.job.environment import choose_device
    from harness.training.checkpoints import Checkpoints
    from harness.training.distributed import RankInfo

    request, spec = RunRequest.of(directory), read_spec(directory.path, directory.spec())
    data = make_dataset(spec.data, request.data_root)
    require_same_data(directory, data.digest)
    device: torch.device = choose_device(request.resources.device, RankInfo())
    method, _ = load_method(directory.path, spec, data, device=device, step=step)
    metrics: dict[str, float] = {}
    for evaluation in evaluations:
        keeping = Keeping(directory.kept_folder, request.records.keep_samples, request.records.keep_features_mib)
        ema, checkpoints = evaluation.ema, Checkpoints(directory.checkpoints_folder)
        chosen = (
            with_width(method, spec, data, device, checkpoints, step, ema.width)
            if isinstance(ema, EmaOfWidth)
            else method
        )
        context = EvaluationContext(chosen, spec, data, evaluation, device, evaluation.name, on_progress, keeping)
        metrics |= evaluate(context).metrics
        context.release()
    return metrics


def protocol_of(
    data: DataModel, data_root: str | None = None, protocol: str | None = None
) -> tuple[str, Dataset, Fidelity, set[str]]:
    """Return "", the data, a named or else the default measurement of samples, and no arms.

    Raises:
        DataError: the data are not on this machine.
        SpecError: no such protocol.
    """
    try:
        fields = expand({} if protocol is None else {"protocol": protocol})
    except ProtocolError as error:
        raise SpecError(f"--protocol {error}") from None
    return "", make_dataset(data, data_root), Fidelity(**fields.get("fidelity", {})), set()


def study_protocol(
    study: str | None,
    directories: Sequence[RunDirectory],
    data_root: str | None = None,
    protocol: str | None = None,
) -> tuple[str, Dataset, Fidelity, set[str]]:
    """Return a study's name, its data, a measurement of its samples, and the names of its arms.

    Args:
        data_root: folder of the data sets, None for the one that the study names.
        protocol: the name of the measurement's protocol; None for the first measurement.

    Raises:
        SpecError: the study measures no samples, or none by this protocol; the message says how they differ.
        DataError: the data are not on this machine, or not those of the runs.
    """
    manifests = Manifests(directories[0].path.parent)
    arms = {str(manifests.memberships(directory).get(str(study), {}).get("arm")) for directory in directories}
    others: dict[str, str] = {}
    for directory in directories:
        request, spec = RunRequest.of(directory), read_spec(directory.path, directory.spec())
        for evaluation in request.evaluations:
            if evaluation.fidelity is None:
                continue
            own = evaluation.model_dump(mode="json")
            if protocol is None or protocol_id(own, spec.diffusion.num_timesteps) == protocol:
                dataset = make_dataset(spec.data, data_root or request.data_root)
                require_same_data(directory, dataset.digest)
                return str(study), dataset, evaluation.fidelity, arms
            others[evaluation.name] = _against(protocol, own, spec)
    if not others:
        raise SpecError(f"study {study} has no evaluation with fidelity: give --data instead of --study")
    names = "; ".join(f"{name}: {text}" for name, text in others.items())
    raise SpecError(f"study {study} has no measurement by protocol {protocol}, which has other settings: {names}")


def _against(protocol: str, own: dict[str, Any], spec: RunSpec) -> str:
    """Describe in what a named protocol differs from a run's measurement."""
    try:
        fields = expand({"protocol": protocol})
    except ProtocolError as error:
        raise SpecError(f"--protocol {error}") from None
    num_timesteps = spec.diffusion.num_timesteps
    named = compared(Evaluation(**fields).model_dump(mode="json"), num_timesteps)
    fixed = {*fields["fidelity"], "weights", "guidance"}
    return difference({key: value for key, value in named.items() if key in fixed}, compared(own, num_timesteps))
