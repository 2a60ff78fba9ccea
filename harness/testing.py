"""Small studies, and finished runs with given results, for tests of code that reads runs.

    [run] = tiny_study(tmp_path, "evaluate: [{nll: {}}]")
    write_finished_run(run, tmp_path / "runs", {"nll_bpd": 2.5})

Nothing is trained and torch is not loaded. The records are written by the same functions as in a job, so that the
format is always the current one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import TrainingError
from harness.evaluation.images import image_grid
from harness.evaluation.result import EvaluationResult, PartResult
from harness.job.writer import record_evaluation
from harness.records.directory import RunDirectory
from harness.records.journal import Journal
from harness.records.status import Status
from harness.spec.evaluation import Evaluation
from harness.spec.metrics import METRIC_KINDS, TRAIN_COMPUTE, Outputs, part_outputs, trajectory_frames
from harness.spec.run import LEARNED, RunSpec
from harness.study.expand import load_study
from harness.study.model import Run

TINY_STUDY = """
study: tiny
data: digits
diffusion: {num_timesteps: 30, schedule: cosine}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
optim: {lr: 1.0e-3}
train: {steps: 12, batch_size: 16, ema_rate: 0.8}
records: {log_every: 5}
resources: {device: cpu, threads: 1}
"""
"""A study that trains in a second on one CPU thread: one run of 12 steps on scikit-learn's digits."""

MEASURED = {
    "nll_bpd": 3.0,
    "untrained_nll_bpd": 5.0,
    "gaussian_baseline_bpd": 2.5,
    "fid": 10.0,
    "precision": 0.5,
    "recall": 0.4,
    "reconstruction_mse": 0.1,
    "fid_ancestral": 5.0,
    "fid_ddim": 4.0,
    "fid_dpmpp_2m": 3.0,
    "modes_covered": 25.0,
    "high_quality": 0.9,
    "train_multiply_adds": 1e9,
}
"""Default results of `write_finished_run`."""


Values = Mapping[str, float]

_NUM_IMAGES = 355  # of a whole split: the test images of digits


def tiny_study(folder: Path, extra: str = "", sets: Sequence[str] = (), *, study: str = TINY_STUDY) -> list[Run]:
    """Write a study's file into a folder and return its runs.

    Args:
        extra: more lines of YAML.
        sets: changes such as `train.steps=3`, as `--set` takes them.
        study: the YAML before them.

    Raises:
        SpecError: the study is invalid; the message has the line.
    """
    path = folder / "tiny.yaml"
    path.write_text(study + extra)
    return list(load_study(path, sets=sets).runs)


def write_run(run: Run, runs: Path) -> RunDirectory:
    """Write the directory of a run that has not started, and return it."""
    directory = RunDirectory(runs / run.run_key)
    directory.register(run)
    return directory


def write_finished_run(run: Run, runs: Path, measured: Values | None = None, *, state: str = "done") -> RunDirectory:
    """Write a run directory as a job does, with decreasing curves and the requested measurements.

    Args:
        measured: kind of metric (`nll_bpd`, `fid`, `train_multiply_adds`) -> its value, over the defaults in
            `MEASURED`; every other metric is 1. `fid_<sampler>` is the limit of a sweep's FID, and
            `untrained_nll_bpd` the NLL of an evaluation of the untrained weights.
        state: of the run; one that is not done has been trained, but not evaluated.
    """
    values = MEASURED | dict(measured or {})
    directory, steps = write_run(run, runs), run.spec.train.steps
    directory.write_environment(1, {"harness": "1.2.3", "threads": 1})
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        _write_training(journal, run.spec, values)
        for evaluation in run.evaluations if state == "done" else ():
            result = fake_result(evaluation, run.spec, values)
            record_evaluation(directory, journal, evaluation, evaluation.name, result, steps)
        if state in ("done", "failed", "pruned"):
            journal.event("finished" if state == "done" else state, reason="")
    directory.set_status(Status(state=state, step=steps, num_steps=steps, attempt=1))
    return directory


def fake_result(evaluation: Evaluation, spec: RunSpec, measured: Values, prefix: str | None = None) -> EvaluationResult:
    """Return the result of an evaluation that measured the given values.

    Args:
        measured: as for `write_finished_run`.
        prefix: of the metrics' names, the evaluation's name by default.
    """
    values = {kind: 1.0 for kind in METRIC_KINDS} | dict(measured)
    if evaluation.weights == "untrained":
        values["nll_bpd"] = values.get("untrained_nll_bpd", values["nll_bpd"])
    result = EvaluationResult()
    for part, names in part_outputs(evaluation, spec).items():
        fake = PartResult(metrics={name: values.get(_kind(name), 1.0) for name in names.metrics})
        if part in _FILL:
            _FILL[part](fake, names, getattr(evaluation, part), spec, values)
        result.add(part, prefix or evaluation.name, fake)
    return result


def _kind(name: str) -> str:
    """Return the kind of a metric by its name: `fid` of `fid_digitsnet_64_ddim10`; of a plugin's metric its name."""
    return max((kind for kind in METRIC_KINDS if name == kind or name.startswith(f"{kind}_")), key=len, default=name)


def _write_training(journal: Journal, spec: RunSpec, values: Values) -> None:
    """Write ten lines of a log and the last checkpoint's event."""
    steps = spec.train.steps
    for step in sorted({max(1, steps * tenth // 10) for tenth in range(1, 11)}):
        journal.metrics(step, {"train/mse": 10 / step, "train/vb": 1 / step, "train/loss": 10 / step})
    journal.metrics(steps, {TRAIN_COMPUTE: values["train_multiply_adds"]})
    if "parameters" in values:
        journal.metrics(steps, {"compute/parameters": values["parameters"]})
    journal.event("checkpoint", step=steps)


def _fill_likelihood(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    L_t = values["nll_bpd"] * 0.5 ** np.arange(1, spec.diffusion.num_timesteps + 1)
    num_images = part.num_images or _NUM_IMAGES
    fake.curves["L_t_bpd"] = [(t, float(L_t[t])) for t in range(0, len(L_t), max(1, len(L_t) // 10))]
    fake.arrays["likelihood"] = {
        "L_t_bpd": L_t,
        "prior_bpd": np.array(0.0),
        "image_index": np.arange(num_images),
    }
    fake.protocol["likelihood"] = {"estimator": part.estimator, "num_images": num_images}


def _fill_fidelity(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    for name in names.curves:
        value = values[_kind(name)]
        if "_by_seed_" in name:  # 1 % of the value apart, around it
            middle = (part.seeds - 1) / 2
            fake.curves[name] = [(seed, value * (1 + (seed - middle) / 100)) for seed in range(part.seeds)]
        else:
            fake.curves[name] = [(label, value) for label in range(spec.data.facts.num_classes or 0)]
    if not np.isnan(error := values.get("fid_standard_error", np.nan)):
        fake.protocol["fidelity"] = {"fid_standard_error": error}
    if names.pictures:
        images = np.zeros((60, spec.data.facts.channels, spec.data.pixels, spec.data.pixels), np.uint8)
        fake.pictures |= {name: image_grid(images, columns=6) for name in names.pictures}


def _fill_sweep(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    kinds = [(sampler.name, kind) for sampler in part.samplers for kind in part.metrics]
    for name, (sampler, kind) in zip(names.curves, kinds, strict=True):
        limit = values.get(f"{kind}_{sampler}", values[kind])
        distance = 100 if kind == "fid" else -0.5
        fake.curves[name] = [(steps, limit + distance / steps) for steps in sorted(part.num_steps)]


def _fill_skip(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    [name] = names.curves
    fake.curves[name] = [(round(100 * fraction), values["fid"]) for fraction in sorted(part.fractions)]


def _fill_modes(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    """Spread points evenly over the modes that are covered, those of low quality between the modes."""
    mixture, random = spec.data.mixture, np.random.default_rng(0)
    assert mixture is not None, "resolved"
    centres, covered = np.array(mixture.centres), int(values["modes_covered"])
    arrays: dict[str, np.ndarray] = {"centres": centres, "num_steps": np.array(part.num_steps)}
    for num_steps in part.num_steps:
        points = centres[np.arange(part.num_samples) % covered] if covered else np.zeros((part.num_samples, 2))
        points = points + mixture.std * random.normal(size=points.shape).clip(-2, 2)
        points[round(values["high_quality"] * part.num_samples) :] += 2.5 / 11
        shares = np.where(np.arange(len(centres)) < covered, 1 / max(1, covered), 0)
        arrays |= {f"points_{num_steps}": points.astype(np.float32), f"shares_{num_steps}": shares}
    fake.arrays["modes"] = arrays
    fake.protocol["modes"] = {"num_modes": len(centres), "std": mixture.std, "radius": 3 * mixture.std}


def _fill_rate_distortion(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    count = part.num_steps or spec.diffusion.num_timesteps
    fake.arrays["rate_distortion"] = {
        "reverse_steps": np.arange(1, count + 1),
        **({"rate_bpd": np.linspace(0, values["rate_bpd"], count)} if "rate_bpd" in names.metrics else {}),
        "distortion_rmse": np.linspace(80, values["distortion_rmse"], count),
        "image_index": np.arange(part.num_images or _NUM_IMAGES),
    }


def _fill_grid(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    facts, random = spec.data.facts, np.random.default_rng(0)
    shape = (part, facts.channels, spec.data.pixels, spec.data.pixels)
    if facts.levels is None:
        fake.arrays["samples"] = {"samples": random.normal(size=shape).astype(np.float32)}
        return
    fake.arrays["samples"] = {"samples": random.integers(0, 256, shape, dtype=np.uint8)}
    fake.pictures["samples"] = image_grid(fake.arrays["samples"]["samples"])


def _fill_trajectories(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    facts, random, made = spec.data.facts, np.random.default_rng(0), trajectory_frames(part.num_steps, part.num_frames)
    shape = (len(made), part.num_samples, facts.channels, spec.data.pixels, spec.data.pixels)
    x = random.normal(size=shape).astype(np.float32)
    arrays = {"steps_left": part.num_steps - np.array(made), "x_t": x, "x_0": x}
    if facts.levels is not None:
        arrays |= {name: random.integers(0, 256, shape, dtype=np.uint8) for name in ("x_t", "x_0")}
        images = arrays["x_t"].reshape(-1, *shape[2:])
        fake.pictures["trajectories"] = image_grid(np.concatenate([images, images]), columns=len(made))
    fake.arrays["trajectories"] = arrays


def _fill_progressive(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    [name] = names.curves
    frames = trajectory_frames(part.num_steps, part.num_frames)
    fake.curves[name] = [(made, values["fid"] + 100 * (1 - made / part.num_steps)) for made in frames]


def _fill_interpolation(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    facts, random, pairs = spec.data.facts, np.random.default_rng(0), part.num_pairs
    shape = (len(part.t), part.num_weights, pairs, facts.channels, spec.data.pixels, spec.data.pixels)
    arrays: dict[str, np.ndarray] = {
        "t": np.array(part.t),
        "weights": np.linspace(0, 1, part.num_weights),
        "image_index": np.arange(2 * pairs).reshape(2, pairs),
        "images": random.normal(size=shape).astype(np.float32),
        "originals": random.normal(size=(2, *shape[2:])).astype(np.float32),
    }
    if facts.levels is not None:
        for name in ("images", "originals"):
            arrays[name] = random.integers(0, 256, arrays[name].shape, dtype=np.uint8)
        tiles = np.zeros(((part.num_weights + 2) * len(part.t) * pairs, *shape[3:]), np.uint8)
        fake.pictures["interpolation"] = image_grid(tiles, columns=part.num_weights + 2)
    fake.arrays["interpolation"] = arrays


def _fill_reconstruction(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    errors = np.array([[values["reconstruction_mse"] / count] for count in part.num_steps])
    num_images = part.num_images or _NUM_IMAGES
    fake.curves["reconstruction_mse_by_steps"] = list(zip(part.num_steps, errors[:, 0].tolist(), strict=True))
    arrays = {"num_steps": np.array(part.num_steps), "mse": errors.repeat(num_images, 1)}
    fake.arrays["reconstruction"] = arrays | {"image_index": np.arange(num_images)}


def _fill_metrics(fake: PartResult, names: Outputs, part: Any, spec: RunSpec, values: Values) -> None:
    fake.protocol["metrics"] = {metric.name: list(metric.names) for metric in part}


_FILL = {
    "nll": _fill_likelihood,
    "fidelity": _fill_fidelity,
    "sweep": _fill_sweep,
    "skip": _fill_skip,
    "modes": _fill_modes,
    "rate_distortion": _fill_rate_distortion,
    "grid": _fill_grid,
    "trajectories": _fill_trajectories,
    "progressive": _fill_progressive,
    "interpolation": _fill_interpolation,
    "reconstruction": _fill_reconstruction,
    "metrics": _fill_metrics,
}


def check_parts(run: Run) -> None:
    """Check what training and sampling require of a run's schedule, networks and objective, without data.

    Of a method without an objective, one training step and one step of sampling are tried.

    For tests of plugins: `for run in load_study("my_study.yaml").runs: check_parts(run)`.

    Raises:
        AssertionError: the message names the part and says what is wrong with it.
    """
    import torch

    from harness.registry import implementation, make_gaussian, make_method, parameters
    from harness.spec.resources import Resources

    spec = run.spec
    schedule, facts = spec.diffusion.schedule, spec.data.facts
    _check_betas(implementation("schedule", schedule)(spec.diffusion.num_timesteps, **parameters(schedule)), spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if "objective" not in spec.method.owns:
            _check_step(make_method(spec, facts, Resources(), torch.device("cpu")), spec)
            return
        method = make_gaussian(spec, facts, Resources(), torch.device("cpu"))
        network = method.network.eval()
        with torch.no_grad():
            for weight in network.parameters():  # a layer that starts at zero would hide the layers before it
                weight.add_(torch.randn_like(weight), alpha=0.05)
        x_0 = torch.randn(4, facts.channels, spec.data.pixels, spec.data.pixels)
        t = torch.linspace(0, spec.diffusion.num_timesteps - 1, len(x_0)).long()
        y = torch.arange(len(x_0)) if spec.model.class_cond else None
        _check_network(network, x_0, t, y, spec)
        try:
            terms = method.terms(x_0, y, t, torch.randn_like(x_0))
        except TrainingError as error:
            raise AssertionError(f"objective {spec.objective.name}: {error}") from None
        _check_loss(terms["loss"], network, spec)


def _check_step(method: Any, spec: RunSpec) -> None:
    """Check that a training step gives what the method declares, and that its denoiser gives images."""
    import torch

    from harness.methods.base import Batch
    from harness.randomness import Streams
    from harness.registry import make_process
    from harness.training.distributed import ProcessGroup

    name, facts = f"method {spec.method.name}", spec.data.facts
    x_0 = torch.randn(spec.train.batch_size, facts.channels, spec.data.pixels, spec.data.pixels).clamp(-1, 1)
    y = torch.arange(len(x_0)) % (facts.num_classes or 1) if spec.model.class_cond else None
    output = method.step(0, Batch.whole(x_0, y), Streams(0), ProcessGroup())
    for kind, values, declared in (
        ("terms", output.terms, method.terms_logged),
        ("scalars", output.scalars, method.scalars_logged),
    ):
        assert set(values) == set(declared), f"{name}: a step gives the {kind} {sorted(values)}, not {sorted(declared)}"
    shapes = {term: list(value.shape) for term, value in {**output.terms, "loss": output.loss}.items()}
    assert all(shape == [len(x_0)] for shape in shapes.values()), f"{name}: one number an example is wanted: {shapes}"
    process = make_process(spec.diffusion, facts.levels)
    denoise = method.denoiser("ema", process, y=y, generator=torch.Generator().manual_seed(0), clip=False)
    with torch.no_grad():
        denoised = denoise(torch.randn_like(x_0), torch.full((len(x_0),), process.num_timesteps - 1))
    for part, value in denoised._asdict().items():
        assert value.expand_as(x_0).isfinite().all(), f"{name}: the denoiser's {part} is not finite"


def _check_betas(betas: np.ndarray, spec: RunSpec) -> None:
    name, num_timesteps = f"schedule {spec.diffusion.schedule.name}", spec.diffusion.num_timesteps
    assert betas.shape == (num_timesteps,), f"{name}: betas have the shape {list(betas.shape)}, not [{num_timesteps}]"
    assert betas.dtype == np.float64, f"{name}: betas are {betas.dtype}, not float64"
    assert ((betas > 0) & (betas < 1)).all(), f"{name}: betas lie in {betas.min():g} .. {betas.max():g}, not in (0, 1)"


def _check_network(network: Any, x_t: Any, t: Any, y: Any, spec: RunSpec) -> None:
    """Check a network's output: its shape, and that each example's is deterministic and independent of the others."""
    import torch

    name = f"model {spec.model.name}"
    with torch.no_grad():
        output, again = network(x_t, t, y), network(x_t, t, y)
        alone = network(x_t[:1], t[:1], None if y is None else y[:1])
    channels = x_t.shape[1] * (2 if spec.diffusion.var_type in LEARNED else 1)
    expected = (len(x_t), channels, *x_t.shape[2:])
    assert tuple(output.shape) == expected, (
        f"{name}: the output has the shape {list(output.shape)}, not {list(expected)}"
    )
    assert torch.equal(output, again), f"{name}: in eval mode the same input gives another output"
    assert torch.allclose(output[:1], alone, rtol=1e-4, atol=1e-5), (
        f"{name}: an output depends on the rest of the batch"
    )


def _check_loss(loss: Any, network: Any, spec: RunSpec) -> None:
    """Check that an objective gives a finite loss that the network can learn from."""
    name = f"objective {spec.objective.name}"
    assert loss.isfinite().all(), f"{name}: the loss is not finite: {loss.tolist()}"
    loss.sum().backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert any(gradient.any() for gradient in gradients), f"{name}: the loss has no gradient"
