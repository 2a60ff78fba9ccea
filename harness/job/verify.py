"""Proof of resume: train once without interruption and once with kills and resumes, and compare the results bit by bit.

The killed side gets what happens on a cluster: SIGKILL, which leaves no time to prepare, and SIGTERM, after which the
training saves a checkpoint. Both sides are real jobs in separate processes, in a scratch folder beside the runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import PACKAGE_ROOT
from harness.errors import TrainingError
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.journal import is_measurement
from harness.records.lineage import parent_of
from harness.spec.base import SCHEMA_VERSION
from harness.study.model import Run

POLL_SECONDS = 0.002


def verify_resume(
    run: Run,
    runs_folder: Path,
    *,
    kills: int = 3,
    steps: int | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a run uninterrupted and killed-and-resumed, compare the two, and write a certificate.

    Data order, noise, dropout and timesteps depend on the spec only, so both sides must end in the same bits.

    Args:
        run: of a study; if its run directory exists, the certificate is written to certificates/ in it.
        kills: number of SIGKILLs, at random steps; one SIGTERM is added.
        steps: train only this far, by a spec that differs only in train.steps; None means to the end. A run that
            continues another counts from there.
        on_progress: called with a line for each thing that is done.

    Returns:
        the certificate; `verdict` is "equal" or "different", in which case `first_difference` describes the first.

    Raises:
        TrainingError: the run was imported, a side failed, or training ended before it could be killed.
    """
    if run.spec.imported_sha256:
        raise TrainingError(f"{run.run_key}: its weights were imported, so there is no training to resume")
    spec = run.spec.model_dump(mode="json")
    parent, first_step = parent_of(run.spec, runs_folder) if run.spec.continue_from else (None, 0)
    spec["train"]["steps"] = num_steps = min(first_step + (steps or run.spec.train.steps), run.spec.train.steps)
    scratch_home = runs_folder / ".verify"
    scratch_home.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{run.run_key}-", dir=scratch_home))
    directory = RunDirectory(runs_folder / run.run_key)
    threads = next((environment["threads"] for environment in directory.environments()), None)

    if parent:
        for side in ("straight", "killed"):
            (scratch / side).mkdir()
            (scratch / side / parent.key).symlink_to(parent.path.absolute())

    on_progress(f"training to step {num_steps} without interruption")
    began = time.monotonic()
    straight = _prepare(scratch / "straight" / run.run_key, spec, run, run.records.checkpoint_every_seconds)
    _finish(straight, threads)
    # On this side checkpoints are written often between the kills, so that resumes start at many different steps.
    every = (time.monotonic() - began) / (8 * (kills + 1))
    killed = _prepare(scratch / "killed" / run.run_key, spec, run, every)
    ends = _kill(killed, threads, kills, first_step, num_steps, on_progress)
    on_progress("continuing to the end")
    _finish(killed, threads)

    certificate = {
        "what": "one training without interruption and one killed and resumed: state and result rows, bit by bit",
        "run_key": run.run_key,
        "steps": num_steps,
        "steps_of_the_run": run.spec.train.steps,
        "evaluations": [evaluation.name for evaluation in run.evaluations],
        "ends": ends,
        "environment": straight.environments()[0],
        **_compare(straight, killed),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    environments = [*straight.environments(), *killed.environments()]
    first = environments[0]
    changed = {name for other in environments for name in other if other[name] != first.get(name)} - {"attempt"}
    if changed:
        certificate["environment_differs_in"] = sorted(changed)
    if certificate["verdict"] == "equal":
        shutil.rmtree(scratch)
        if not any(scratch_home.iterdir()):
            scratch_home.rmdir()
    else:
        certificate["kept"] = str(scratch)
    if directory.spec_path.exists():
        folder = directory.certificates_folder
        folder.mkdir(exist_ok=True)
        code = re.sub(r"[^\w.+-]", "_", certificate["environment"]["code_version"])
        path = folder / f"resume-{code}.json"
        replace_file(path, json.dumps(certificate, indent=2), durable=True)
        certificate["certificate"] = str(path)
    return certificate


def advice(certificate: dict[str, Any]) -> str:
    """Return a possible explanation of a difference, if one is known."""
    environment = certificate["environment"]
    if not environment["deterministic"] and environment["device"] != "cpu":
        return "CUDA's fast kernels are not deterministic; resources.deterministic: true selects deterministic ones"
    if certificate.get("environment_differs_in"):
        return f"the two sides differ in {', '.join(certificate['environment_differs_in'])}"
    return ""


# ----------------------------------------------------------------------------------------------------------- two sides


def _prepare(path: Path, spec: dict, run: Run, checkpoint_every_seconds: float) -> RunDirectory:
    directory = RunDirectory(path).create(spec, SCHEMA_VERSION)
    # Rows show the training's progress, so a short training has to log more often than a long one.
    log_every = min(run.records.log_every, max(1, spec["train"]["steps"] // 20))
    records = run.records.model_copy(
        update={"checkpoint_every_seconds": checkpoint_every_seconds, "log_every": log_every}
    )
    directory.add_to_study(run.study, run.membership() | {"records": records.model_dump(mode="json")})
    return directory


def _begin(directory: RunDirectory, threads: int | None) -> subprocess.Popen:
    search_path = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    with (directory.path / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.job.verify", str(directory.path), str(threads or 0)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": search_path},
        )


def _finish(directory: RunDirectory, threads: int | None) -> None:
    process = _begin(directory, threads)
    try:
        process.wait()
    finally:
        process.kill()
    status = directory.status()
    if status.state != "done":
        raise TrainingError(f"{directory.path} is {status.state}: {status.reason or 'see its log.txt'}")


def _kill(
    directory: RunDirectory,
    threads: int | None,
    kills: int,
    first_step: int,
    num_steps: int,
    on_progress: Callable[[str], None],
) -> list[dict]:
    """Stop the training `kills` times by SIGKILL and once by SIGTERM; return a description of each."""
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM]
    random.shuffle(signals)
    ends = []
    for index, number in enumerate(signals):
        # One in each equal share of the first nine tenths, so that none comes after the training has ended.
        target = first_step + 1 + int((index + random.random()) / len(signals) * 0.9 * (num_steps - first_step))
        last_attempt = max(directory.attempts(), default=0)
        process = _begin(directory, threads)
        try:
            while process.poll() is None and _logged_step(directory, last_attempt) < target:
                time.sleep(POLL_SECONDS)
            process.send_signal(number)
            process.wait()
        finally:
            process.kill()
        if directory.status().state != "interrupted":
            raise TrainingError(
                f"{directory.path}: {directory.status().state} before it was stopped at step {target} of {num_steps}"
                f" ({directory.status().reason or 'training too short: use fewer --kills or more --steps'})"
            )
        after, durable = _logged_step(directory, last_attempt), directory.durable_step()
        on_progress(f"{number.name} after the row of step {after}; the newest checkpoint is of step {durable}")
        ends.append({"signal": number.name, "after_the_row_of_step": after, "durable_step": durable})
    return ends


def _logged_step(directory: RunDirectory, last_attempt: int) -> int:
    """Return the step of the newest row that was made after that attempt."""
    row = directory.latest().get("train/loss")
    return row.x if row and row.attempt > last_attempt else 0


# ---------------------------------------------------------------------------------------------------------- comparison


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a state_dict with their dotted paths."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from flatten(item, f"{path}.{key}" if path else str(key))


def digests(state: Any) -> dict[str, str]:
    """Return the sha256 of every leaf of a state_dict by its path: of a tensor its dtype, shape and bytes."""
    import torch

    digest_by_path = {}
    for path, leaf in flatten(state):
        if isinstance(leaf, torch.Tensor):
            head = f"{leaf.dtype} {tuple(leaf.shape)}".encode()
            data = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            head, data = type(leaf).__name__.encode(), repr(leaf).encode()
        digest_by_path[path] = hashlib.sha256(head + b"\0" + data).hexdigest()
    return digest_by_path


def results(directory: RunDirectory) -> list[tuple[str, int, float]]:
    """Return the rows that must be reproducible, in the journal's order; no timings, no system metrics."""
    return [(row.key, row.x, row.value) for row in directory.rows() if not is_measurement(row.key)]


def _compare(straight: RunDirectory, killed: RunDirectory) -> dict[str, Any]:
    from harness.training.checkpoints import Checkpoints

    (step, state), (killed_step, killed_state) = (
        Checkpoints(directory.checkpoints_folder).latest() or (0, {}) for directory in (straight, killed)
    )
    assert step == killed_step, "both are done"
    digests_straight = digests(state)
    rows_straight, rows_killed = results(straight), results(killed)
    difference = _first_row_difference(rows_straight, rows_killed) or first_state_difference(state, killed_state, step)
    parts = {}
    for name in _parts(state):
        leaves = {path: digest for path, digest in digests_straight.items() if path.startswith(f"{name}.")}
        parts[name] = _together(leaves) if leaves else "has no state"
    compared: dict[str, Any] = {
        "verdict": "different" if difference else "equal",
        "digests": parts | {"result_rows": hashlib.sha256(repr(rows_straight).encode()).hexdigest()},
        "num_state_entries": len(digests_straight),
        "num_result_rows": len(rows_straight),
    }
    return compared | ({"first_difference": difference} if difference else {})


def _parts(state: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of a checkpoint's parts whose digests a certificate lists: `method.ema`, `window`."""
    for name, part in state.items():
        if name == "method":
            yield from (f"method.{inner}" for inner in part)
        elif isinstance(part, dict) and name != "spec":
            yield name


def _together(digest_by_path: dict[str, str]) -> str:
    lines = "\n".join(f"{path} {digest_by_path[path]}" for path in sorted(digest_by_path))
    return hashlib.sha256(lines.encode()).hexdigest()


def _first_row_difference(straight: list, killed: list) -> str | None:
    """Describe the first row that differs, which locates the step better than the final state does."""
    for (key, step, value), (other_key, other_step, other) in zip(straight, killed, strict=False):
        if (key, step, repr(value)) != (other_key, other_step, repr(other)):
            if (key, step) != (other_key, other_step):
                return f"row {key} at step {step}: the killed side has {other_key} at step {other_step} in its place"
            return f"row {key} at step {step}: uninterrupted {value!r}, killed {other!r}"
    return None if len(straight) == len(killed) else f"{len(straight)} rows uninterrupted, {len(killed)} killed"


def first_state_difference(straight: Any, killed: Any, step: int) -> str | None:
    """Describe the first entry in which two state_dicts of a step differ; None when all bits are equal."""
    import torch

    of_straight, of_killed = digests(straight), digests(killed)
    straight, killed = dict(flatten(straight)), dict(flatten(killed))
    for path in [*straight, *(path for path in killed if path not in straight)]:
        if of_straight.get(path) == of_killed.get(path):
            continue
        expected, actual = straight.get(path), killed.get(path)
        if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor) and expected.shape == actual.shape:
            distance = float((expected.double() - actual.double()).abs().max())
            count = f"{int((expected != actual).sum())} of {expected.numel()} values"
            return f"{path} at step {step}: {count}, by up to {distance:g}"
        return f"{path} at step {step}: uninterrupted {_brief(expected)}, killed {_brief(actual)}"
    return None


def _brief(value: Any) -> str:
    import torch

    return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _main(folder: str, threads: str) -> None:
    from harness.job.job import run_job

    run_job(Path(folder), threads=int(threads) or None, sync=False, show_progress=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
