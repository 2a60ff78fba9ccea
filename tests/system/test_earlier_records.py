"""What the code made before its packages were redrawn stays: keys, bits of trainings, and records that lie on disks.

`earlier/` holds small studies, what they gave then (expected.json, curve.json), and a folder of runs as it was left
then (runs.tar.gz). All goes through the command line and the files of run directories, since modules may move; the
one helper that has to import the harness stands first.

Bits are compared where the machine is the recorded one: versions, kind of CPU and its instruction set. Elsewhere other
kernels round otherwise, and results are compared within bounds that were measured: see RELATIVE and its neighbours.

After a change that is meant to change results: `python tests/system/test_earlier_records.py` records them anew. A diff
of expected.json then shows to what; runs.tar.gz is never made anew, for it is what lies on people's disks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
EARLIER = Path(__file__).parent / "earlier"
STUDIES = ("hard", "further", "demo", "points", "curve")  # in this order: further goes on from a run of hard

# Measured over these studies between AVX-512 kernels, AVX2 ones and the plainest (ATEN_CPU_CAPABILITY=avx2 and
# default, ONEDNN_MAX_CPU_ISA=AVX2 and SSE41): results differed by up to 2.9e-6 of their value, and L_t near zero by up
# to 1.2e-9 bits/dim. Features come from a classifier of 480 steps that each machine trains for itself, which amplifies
# rounding: FID differed by up to 4.4 %, and precision and recall of 32 samples by half a sample (0.016).
RELATIVE, ABSOLUTE = 1e-5, 1e-8
RELATIVE_FID = 0.1
ABSOLUTE_SHARE = 2 / 32


def planned_runs(study: Path) -> list[str]:
    """Return `run_key arm replicate: evaluation keys; with Inception: evaluation keys` of each run of a study's file.

    A search is planned at the low corner of its space.
    """
    from harness.search.loading import load_search
    from harness.study.expand import is_search, load_study

    def runs(inception: bool) -> tuple:
        if is_search(study):
            search = load_search(study, inception=inception)
            return search.trial(0, search.choose(lambda parameter: parameter.corners()[0])).runs
        return load_study(study, inception=inception).runs

    def keys(run: Any) -> str:
        return " ".join(evaluation.key for evaluation in run.evaluations)

    return [
        f"{run.run_key} {run.arm} {run.replicate}: {keys(run)}; with Inception: {keys(other)}"
        for run, other in zip(runs(False), runs(True), strict=True)
    ]


# --------------------------------------------------------------------------------------------------- the command line


IN_TURN = """
import json, runpy, sys
codes = [0]
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["harness", *arguments]
    try:
        runpy.run_module("harness.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        codes.append(end.code or 0)
sys.exit(max(codes))
"""


def harness(*commands: Sequence[str | Path], cwd: Path, exit_code: int = 0, **variables: str) -> str:
    """Run command lines in one process, since torch takes seconds to load; return what they printed.

    The exit code is the largest of theirs.
    """
    program = json.dumps([list(map(str, command)) for command in commands])
    return python("-c", IN_TURN, program, cwd=cwd, exit_code=exit_code, **variables)


def python(*arguments: str | Path, cwd: Path, exit_code: int = 0, **variables: str) -> str:
    """Run Python with the code under test in a folder; return what it printed."""
    left_out = ("HARNESS_RUNS", "HARNESS_DATA", "HARNESS_INCEPTION_WEIGHTS", "MLFLOW_TRACKING_URI")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout


AS_THEN = ("--set", "resources.kernels=reference")
"""What was not a choice then; runs that were begun then go on so by themselves."""


def submission(study: str, *options: str) -> tuple[str, ...]:
    """Return the command that does what is left of a study in `runs`, within its own process."""
    return ("submit", str(EARLIER / f"{study}.yaml"), "--cluster", "debug", "--no-sync", *options)


def states(folder: Path, *studies: str) -> dict[str, dict[str, str]]:
    """Return by study the state of each run, by arm and replicate."""
    plans = harness(*[("plan", EARLIER / f"{study}.yaml", "--json") for study in studies], cwd=folder)
    read, start = json.JSONDecoder().raw_decode, 0
    found = {}
    for study in studies:
        plan, start = read(plans, start)
        found[study] = {f"{run['arm']} {run['replicate']}": run["state"] for run in plan["runs"]}
        start += 1  # the line's end
    return found


# ---------------------------------------------------------------------------------------------------- run directories


def attempts(run: Path) -> list[list[dict]]:
    """Return the lines of each attempt's journal."""
    return [
        [json.loads(line[9:]) for line in path.read_text().splitlines()] for path in sorted(run.glob("journal-*.jsonl"))
    ]


def result_rows(run: Path) -> list[str]:
    """Return each result that stands as `key step at value`, in the order in which they were made; no timings."""
    lines = attempts(run)
    resumed = [entries[0]["facts"]["resumed_from_step"] for entries in lines]
    rows: dict[tuple[str, int], str] = {}
    for index, entries in enumerate(lines):
        last = min(resumed[index + 1 :], default=math.inf)
        for entry in entries:
            for key, value in entry.get("metrics", {}).items():
                timing = key.startswith(("system/", "perf/")) or key.endswith("_seconds")
                if not timing and entry["at"] <= last:
                    rows.setdefault((key, entry["step"]), f"{key} {entry['step']} {entry['at']} {value!r}")
    return list(rows.values())


def events(run: Path) -> list[str]:
    """Return what happened in each attempt, as `name step`."""
    entries = [entry for lines in attempts(run) for entry in lines if "event" in entry]
    return [f"{entry['event']} {entry['facts'].get('step', '')}".strip() for entry in entries]


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """Return the step of the newest checkpoint and a digest of each part of its state."""
    path = max((run / "checkpoints").glob("step-*.pt"))
    parts: dict[str, Any] = {}
    for name, leaf in leaves(torch.load(path, weights_only=True)):
        keys = name.split(".")
        part = ".".join(keys[:2]) if keys[0] == "method" else keys[0]
        parts.setdefault(part, hashlib.sha256()).update(f"{name} {digest(leaf)}\n".encode())
    return {"step": int(path.name.split("-")[1]), "parts": {part: one.hexdigest()[:32] for part, one in parts.items()}}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts, lists and tuples with their dotted names."""
    if not isinstance(value, dict | list | tuple):
        yield name, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, f"{name}.{key}" if name else str(key))


def digest(leaf: Any) -> str:
    """Return a digest of type, shape and bytes of an array, or of type and value of anything else."""
    head, content = type(leaf).__name__, repr(leaf).encode()
    if isinstance(leaf, torch.Tensor):
        head, content = (
            f"{leaf.dtype} {tuple(leaf.shape)}",
            leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    elif isinstance(leaf, np.ndarray):
        head, content = f"{leaf.dtype} {leaf.shape}", leaf.tobytes()
    return hashlib.sha256(head.encode() + b"\0" + content).hexdigest()[:32]


def measurements(run: Path) -> dict[str, Any]:
    """Return digests of arrays and protocols, and the names of pictures."""
    arrays: dict[str, str] = {}
    for path in sorted(run.glob("arrays/*.npz")):
        with np.load(path) as file:
            arrays |= {f"{path.name} {name}": digest(file[name]) for name in file.files}
    return {
        "arrays": arrays,
        "evaluations": {
            path.stem: digest(without(json.loads(path.read_text()), YOUNGER_FACTS))
            for path in sorted(run.glob("evaluations/*.json"))
        },
        "pictures": sorted(path.name for path in run.glob("samples/*")),
    }


YOUNGER_FACTS = {"test_majority_share", "protocol_id", "fid_standard_error"}
"""What evaluations say of themselves only since the records were taken."""


def without(value: Any, names: set[str]) -> Any:
    """Return a JSON value without the fields of these names."""
    if isinstance(value, dict):
        return {name: without(entry, names) for name, entry in value.items() if name not in names}
    return [without(entry, names) for entry in value] if isinstance(value, list) else value


def results(run: Path) -> dict[str, Any]:
    """Return all that does not depend on how often a run was interrupted."""
    return {"checkpoint": newest_checkpoint(run), "rows": result_rows(run), **measurements(run)}


def layout(run: Path) -> dict[str, Any]:
    """Return the run's identity, its events, and its files, checkpoints named by their steps alone."""
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith("kept/")}  # samples and features were not kept then
    return {
        "spec": hashlib.sha256((run / "spec.json").read_bytes()).hexdigest()[:32],
        "studies": {
            path.stem: f"{facts['arm']} {facts['replicate']}"
            for path in sorted(run.glob("studies/*.json"))
            for facts in [json.loads(path.read_text())]
        },
        # Nothing was told then of a collapse, and one of these runs has a recall of 0, nor of what was measured.
        "events": [event for event in events(run) if not event.startswith(("collapse", "measured"))],
        "files": sorted(name[: len("checkpoints/step-00000000")] if name.endswith(".pt") else name for name in files),
    }


# --------------------------------------------------------------------------------------------------------- comparison


def machine() -> dict[str, str]:
    """Return what bits depend on."""
    import scipy

    facts = {}
    if (path := Path("/proc/cpuinfo")).exists():
        lines = [line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines()]
        facts = {name.strip(): value.strip() for name, value in lines}
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": " ".join(facts.get(name, "?") for name in ("model name", "cpu family", "model")),
    }


def require_equal(found: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Compare bit for bit on the recorded machine; elsewhere rows within what kernels differ by, and names."""
    if machine() == EXPECTED["machine"]:
        assert found == recorded
        return
    assert _without_digests(found) == _without_digests(recorded)
    for row, other in zip(found["rows"], recorded["rows"], strict=True):
        name, value = row.rsplit(" ", 1)
        other_name, other_value = other.rsplit(" ", 1)
        assert name == other_name
        assert near(name, float(value), float(other_value)), (row, other)


def near(name: str, value: float, recorded: float) -> bool:
    """Tell whether a result differs by no more than another CPU's kernels make it differ."""
    if "/fid_" in name:
        return math.isclose(value, recorded, rel_tol=RELATIVE_FID)
    if "/precision_" in name or "/recall_" in name:
        return math.isclose(value, recorded, abs_tol=ABSOLUTE_SHARE)
    return math.isclose(value, recorded, rel_tol=RELATIVE, abs_tol=ABSOLUTE) or (
        value != value and recorded != recorded
    )


def _without_digests(found: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in found.items() if key != "rows"}
    for key in ("arrays", "evaluations"):
        rest[key] = sorted(rest[key])
    return rest | {"checkpoint": found["checkpoint"]["step"]}


# ----------------------------------------------------------------------------------------------------------- fixtures

EXPECTED = json.loads((EARLIER / "expected.json").read_text()) if (EARLIER / "expected.json").exists() else {}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the classifier that gives features be trained by the code under test, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in whose `runs` the studies were trained now."""
    folder = tmp_path_factory.mktemp("fresh")
    harness(*(submission(study, *AS_THEN) for study in STUDIES), cwd=folder)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a folder with the runs of then in `runs`."""
    return unpack(tmp_path)


@pytest.fixture(scope="module")
def taken_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in whose `runs` each of the runs of then was worked on now, except for the search's.

    In `reversed/runs` lies a copy, made before, in which one was.
    """
    folder = unpack(tmp_path_factory.mktemp("taken_up"))
    with_other_times(folder, "reversed")
    commands = (
        submission("hard", "--new-code", "--set", "replicates=1"),
        submission("more"),
        submission("later", "--new-code"),
        submission("later", "--new-code", "--runs", "reversed/runs"),
        ("retry", EARLIER / "failing.yaml", "--failed", "--cluster", "debug", "--no-sync", "--new-code"),
    )
    harness(*commands, cwd=folder, exit_code=1)  # for the last fails again
    return folder


def unpack(folder: Path) -> Path:
    """Put the runs of then into a folder, times of files included."""
    with tarfile.open(EARLIER / "runs.tar.gz") as file:
        file.extractall(folder, filter="data")
    return folder


def with_other_times(folder: Path, how: str) -> Path:
    """Copy `folder/runs` as a tool that does not keep the times of files; return the folder that the copy lies in."""
    copy = folder / how
    shutil.copytree(folder / "runs", copy / "runs")
    paths = sorted((folder / "runs").rglob("*"), key=lambda path: path.stat().st_mtime_ns)
    times = [path.stat().st_mtime_ns for path in paths]
    times = times[::-1] if how == "reversed" else [times[0]] * len(times)
    for path, time_ns in zip(paths, times, strict=True):
        os.utime(copy / path.relative_to(folder), ns=(time_ns, time_ns))
    return copy


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("name", EXPECTED.get("shipped", {}))
def test_a_shipped_study_plans_the_runs_and_evaluations_that_it_did_before(name):
    assert planned_runs(ROOT / "experiments" / name) == EXPECTED["shipped"][name]


def test_every_shipped_study_is_recorded():
    assert shipped_studies() == list(EXPECTED["shipped"])


def shipped_studies() -> list[str]:
    """Return the files that can be planned; what others only extend has no name of its own."""
    experiments = ROOT / "experiments"
    named = [path for path in sorted(experiments.rglob("*.yaml")) if "\nstudy: " in path.read_text()]
    return [path.relative_to(experiments).as_posix() for path in named]


# ------------------------------------------------------------------------------------------------------ trained afresh


@pytest.mark.slow
@pytest.mark.parametrize("key", EXPECTED.get("runs", {}))
def test_a_run_that_is_trained_now_is_the_recorded_one(fresh, key):
    run = fresh / "runs" / key
    require_equal({**layout(run), **results(run)}, EXPECTED["runs"][key])


@pytest.mark.slow
def test_a_training_that_goes_on_from_another_run_says_so(fresh):
    (run,) = [path.parents[1] for path in fresh.glob("runs/*/studies/earlier-further.json")]
    assert events(run)[:3] == ["started", "continued 40", "checkpoint 40"]


@pytest.mark.slow
def test_the_golden_curve_is_trained_again_step_by_step(fresh):
    recorded = json.loads((EARLIER / "curve.json").read_text())
    losses = curve(fresh)
    assert len(losses) == 50
    if machine() == recorded["machine"]:
        assert losses == recorded["losses"]
    else:
        assert losses == pytest.approx(recorded["losses"], rel=RELATIVE)


def curve(folder: Path) -> list[float]:
    """Return the loss of each step of curve.yaml."""
    (run,) = [path.parents[1] for path in folder.glob("runs/*/studies/earlier-curve.json")]
    return [float(row.rsplit(" ", 1)[1]) for row in result_rows(run) if row.startswith("train/loss ")]


def search(folder: Path, *options: str) -> dict[str, Any]:
    """Go on with search.yaml in a folder and return its trials, by name."""
    harness(("search", EARLIER / "search.yaml", "--jobs", "1", "--no-sync", *AS_THEN, *options), cwd=folder)
    trials = {}
    for path in sorted(folder.glob("runs/.search/earlier-search/trials/*.json")):
        stored = json.loads(path.read_text())
        (key,) = stored["run_keys"]
        kept = {name: stored[name] for name in ("point", "run_keys", "state", "values")}
        trials[path.stem] = kept | {"rows": result_rows(folder / "runs" / key)}
    return trials


def require_trial(found: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Compare a trial as runs are compared; the last bit of a drawn number, and so its run's key, is the machine's."""
    if machine() == EXPECTED["machine"]:
        assert found == recorded
        return
    assert found["state"] == recorded["state"]
    assert found["point"]["diffusion.schedule"] == recorded["point"]["diffusion.schedule"]
    for part, name in (("point", "objective.lambda_vlb"), ("values", "eval/nll_bpd")):
        assert found[part][name] == pytest.approx(recorded[part][name], rel=RELATIVE)
    assert len(found["rows"]) == len(recorded["rows"])
    for row, other in zip(found["rows"], recorded["rows"], strict=True):
        assert near(row, float(row.rsplit(" ", 1)[1]), float(other.rsplit(" ", 1)[1])), (row, other)


@pytest.mark.slow
def test_a_search_that_begins_now_asks_for_the_recorded_first_trial(tmp_path):
    trials = search(tmp_path, "--set", "search.trials=1")
    assert list(trials) == ["trial-0000"]
    require_trial(trials["trial-0000"], EXPECTED["trials"]["trial-0000"])


# ------------------------------------------------------------------------------------------------- records of earlier

STATES = {
    "hard": {"base 0": "interrupted", "base 1": "new"},
    "demo": {"simple 0": "done", "hybrid 0": "interrupted", "vlb 0": "new"},
    "later": {"hybrid 0": "interrupted"},
    "more": {"simple 0": "evaluate"},
    "failing": {"base 0": "failed"},
}
HARD, DONE, OF_TWO_STUDIES, FAILED = "d9dd4260ef745b91", "8c8c7d8773c0faef", "0dff24ed228de7d8", "773685fc5580e804"


@pytest.mark.slow
@pytest.mark.parametrize("times", ["kept", "equal", "reversed"])
def test_earlier_runs_are_planned_in_their_states_whatever_the_times_of_their_files(old, times):
    folder = old if times == "kept" else with_other_times(old, times)
    assert states(folder, *STATES) == STATES


@pytest.mark.slow
def test_an_earlier_interrupted_run_goes_on_to_the_bits_of_its_unbroken_twin(old, taken_up):
    assert newest_checkpoint(old / "runs" / HARD)["step"] == 26
    run = taken_up / "runs" / HARD
    assert [lines[0]["facts"]["resumed_from_step"] for lines in attempts(run)] == [0, 26]
    found = results(run)
    require_equal(found, {name: EXPECTED["runs"][HARD][name] for name in found})


@pytest.mark.slow
def test_an_earlier_done_run_is_evaluated_further_and_not_trained(old, taken_up):
    before, run = old / "runs" / DONE, taken_up / "runs" / DONE
    assert {path.name for path in run.glob("checkpoints/*")} == {path.name for path in before.glob("checkpoints/*")}
    happened = [event for event in events(run) if event != "environment_changed 30"]  # said on any other machine
    assert happened == [*events(before), "started", "evaluation 30", "finished"]
    rows = result_rows(before)
    assert result_rows(run)[: len(rows)] == rows
    require_equal(results(run) | {"rows": result_rows(run)[len(rows) :]}, EXPECTED["more"])
    assert states(taken_up, "more") == {"more": {"simple 0": "done"}}


@pytest.mark.slow
def test_an_earlier_failed_run_is_begun_again_by_retry_and_fails_for_the_same_reason(old, taken_up):
    before, now = (json.loads((folder / "runs" / FAILED / "status.json").read_text()) for folder in (old, taken_up))
    assert "not a number at step 1 " in before["reason"]
    assert now["state"] == "failed"
    # The step and the images that it fails at; what it advises may be worded otherwise today.
    assert now["reason"].partition(";")[0] == before["reason"].partition(";")[0]
    assert events(taken_up / "runs" / FAILED) == ["started", "failed"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "reversed"])
def test_the_study_that_is_submitted_and_was_joined_last_decides_about_resources_and_records(taken_up, folder):
    run = taken_up / folder / "runs" / OF_TWO_STUDIES
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    steps = [entry["step"] for entry in attempts(run)[-1] if "train/loss" in entry.get("metrics", {})]
    microbatch = json.loads((run / "environment.json").read_text())[-1]["microbatch"]
    # earlier-demo, joined first, has every 10 steps and no microbatch.
    assert (steps, microbatch) == ([20, 24, 28, 30], 8)


@pytest.mark.slow
def test_an_earlier_search_whose_coordinator_was_killed_goes_on_to_the_recorded_trials(old):
    stored = [json.loads(path.read_text()) for path in sorted(old.glob("runs/.search/*/trials/*.json"))]
    assert [trial["state"] for trial in stored] == ["complete", "complete", "running"]
    before = {path: path.read_bytes() for path in old.glob("runs/.search/*/trials/trial-000[01].json")}
    trials = search(old)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert list(trials) == list(EXPECTED["trials"])
    for name, trial in trials.items():
        require_trial(trial, EXPECTED["trials"][name])


@pytest.mark.slow
def test_an_earlier_study_is_exported_and_imported_with_nothing_lost(old):
    elsewhere = old / "elsewhere"
    elsewhere.mkdir()
    harness(("export", "earlier-demo", "--checkpoints", "newest", "-o", "first.tar.gz"), cwd=old)
    harness(("import", "../first.tar.gz"), cwd=elsewhere)
    assert states(elsewhere, "demo") == {"demo": STATES["demo"]}
    for key in (DONE, OF_TWO_STUDIES):
        assert results(elsewhere / "runs" / key) == results(old / "runs" / key)
    harness(("export", "earlier-demo", "--checkpoints", "newest", "-o", "second.tar.gz"), cwd=elsewhere)
    assert (elsewhere / "second.tar.gz").read_bytes() == (old / "first.tar.gz").read_bytes()


@pytest.mark.slow
def test_earlier_runs_are_carried_into_a_new_mlflow_store_row_for_row(old):
    harness(("sync",), ("sync", "--check"), cwd=old, MLFLOW_TRACKING_URI=f"sqlite:///{old}/fresh.db")
    with sqlite3.connect(old / "fresh.db") as database:
        experiments = database.execute("SELECT name FROM experiments").fetchall()
        tags = database.execute("SELECT value FROM tags WHERE key = 'run_key'").fetchall()
        hard = f"SELECT run_uuid FROM tags WHERE key = 'run_key' AND value = '{HARD}'"
        losses = f"SELECT step, value FROM metrics WHERE key = 'train/loss' AND run_uuid IN ({hard}) ORDER BY step"
        sent = [f"train/loss {step} {step} {value!r}" for step, value in database.execute(losses)]
    studies = {path.stem for path in old.glob("runs/*/studies/*.json")}
    assert {name for (name,) in experiments} >= studies
    begun = {path.parent.name for path in old.glob("runs/*/journal-0001.jsonl")}
    assert {key for (key,) in tags} >= begun
    assert sent == [row for row in result_rows(old / "runs" / HARD) if row.startswith("train/loss ")]


@pytest.mark.slow
def test_earlier_runs_are_drawn_from_the_recorded_numbers(old):
    python("-m", "harness.cli", "figures", "earlier-demo", cwd=old)
    page = (old / "figures/index.html").read_text()
    assert DONE in page and OF_TWO_STUDIES in page
    assert figure_digests(old) == EXPECTED["figures"]


def figure_digests(folder: Path) -> dict[str, str]:
    """Return digests of the numbers behind each figure of a study."""
    paths = sorted((folder / "figures").glob("earlier-*/*.csv"))
    return {
        path.relative_to(folder / "figures").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        for path in paths
    }


# ---------------------------------------------------------------------------------------------------------- recording


def record(folder: Path) -> None:
    """Write expected.json and curve.json as the code gives them now, here."""
    shipped = {name: planned_runs(ROOT / "experiments" / name) for name in shipped_studies()}
    harness(*(submission(study, *AS_THEN) for study in STUDIES), cwd=folder)
    paths = sorted(path.parent for path in folder.glob("runs/*/spec.json"))
    runs = {path.name: {**layout(path), **results(path)} for path in paths}
    runs = {key: run for key, run in runs.items() if "earlier-curve" not in run["studies"]}
    trials = search(folder)
    earlier = unpack(folder / "earlier")
    python("-m", "harness.cli", "figures", "earlier-demo", cwd=earlier)
    figures, run = figure_digests(earlier), earlier / "runs" / DONE
    before = len(result_rows(run))
    harness(submission("more"), cwd=earlier)
    more = results(run) | {"rows": result_rows(run)[before:]}
    expected = {"machine": machine(), "shipped": shipped, "runs": runs, "trials": trials, "more": more}
    (EARLIER / "expected.json").write_text(json.dumps(expected | {"figures": figures}, indent=1) + "\n")
    golden = {"machine": machine(), "losses": curve(folder)}
    (EARLIER / "curve.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HARNESS_CACHE"] = f"{scratch}/cache"
        record(Path(scratch))
