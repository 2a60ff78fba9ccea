"""Planning is reading; committing leaves what is done, takes up what is broken and begins what is absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import DataError, LaunchError
from harness.launch import claims, local, manage, planning, processes, requeue, states, submit, worker
from harness.launch.submission import BlockingSubmission, Submission
from harness.records import snapshot
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.slurm.jobs import JobInfo, live_jobs
from harness.slurm.profile import Profile
from harness.spec.base import SCHEMA_VERSION
from harness.study.expand import load_study
from harness.study.model import Study

EVALUATE = "evaluate: [{nll: {num_images: 16, evaluations_per_image: 4}}]\n"


@pytest.fixture
def study(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., Study]:
    """Return a function that loads the tiny study with extra lines of YAML."""

    def load(extra: str = "", *sets: str) -> Study:
        tiny_study(extra)
        return load_study(tmp_path / "tiny.yaml", sets=sets)

    return load


def write(runs_folder: Path, run, status: Status) -> RunDirectory:
    directory = RunDirectory(runs_folder / run.run_key)
    directory.create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
    directory.set_status(status)
    return directory


def files_below(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


# ---------------------------------------------------------------------------------------------------------------- plan


def test_without_records_every_run_is_new_and_planning_writes_nothing(tmp_path, study):
    plan = planning.plan(study("replicates: 3\n"), tmp_path / "runs")
    assert [planned.state for planned in plan.runs] == ["new"] * 3
    assert len(plan.to_do) == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("status", "state", "to_do"),
    [
        (Status("done", step=12), "done", False),
        (Status("failed", step=3, reason="boom"), "failed", True),
        (Status("interrupted", step=3), "interrupted", True),
        (Status("running", step=3), "interrupted", True),  # nobody holds its lock: it was killed
        (Status("queued"), "queued", False),
        (Status("pruned"), "pruned", False),
    ],
)
def test_a_run_is_to_do_unless_it_is_done_queued_or_pruned(tmp_path, study, status, state, to_do):
    tiny = study()
    write(tmp_path / "runs", tiny.runs[0], status)
    before = files_below(tmp_path)
    plan = planning.plan(tiny, tmp_path / "runs")
    assert plan.runs[0].state == state
    assert bool(plan.to_do) == to_do
    assert files_below(tmp_path) == before


def test_a_run_with_a_living_writer_is_left_alone(tmp_path, study):
    tiny = study()
    directory = write(tmp_path / "runs", tiny.runs[0], Status("running"))
    with directory.lock():
        plan = planning.plan(tiny, tmp_path / "runs")
        assert plan.runs[0].state == "running"
        assert not plan.to_do


def test_a_done_run_of_which_more_is_asked_is_to_be_evaluated(tmp_path, study):
    tiny = study(EVALUATE)
    directory = write(tmp_path / "runs", tiny.runs[0], Status("done", step=12))
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "evaluate"
    with directory.lock(), directory.open_journal(resumed_from_step=12) as journal:
        journal.event("evaluation", key=tiny.runs[0].evaluations[0].key)
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "done"
    another = study(EVALUATE.replace("16", "17"))
    assert planning.plan(another, tmp_path / "runs").runs[0].state == "evaluate"


def test_a_torn_line_is_no_evaluation(tmp_path, study):
    tiny = study(EVALUATE)
    directory = write(tmp_path / "runs", tiny.runs[0], Status("done", step=12))
    with directory.lock(), directory.open_journal(resumed_from_step=12) as journal:
        journal.event("evaluation", key=tiny.runs[0].evaluations[0].key)
    path = directory.path / "journal-0001.jsonl"
    path.write_bytes(path.read_bytes()[:-2])
    assert directory.evaluated_keys() == set()


def test_the_cost_is_what_is_left_at_the_recorded_throughput(tmp_path, study):
    tiny = study("replicates: 2\n")
    runs = tmp_path / "runs"
    assert planning.plan(tiny, runs).training_seconds(planning.plan(tiny, runs).runs[0]) is None
    write(runs, tiny.runs[1], Status("interrupted", step=8))
    (runs / ".throughput").mkdir()
    measured = {"seconds_per_step": 2.0, "device": "cpu", "threads": 1}
    (runs / ".throughput" / f"{tiny.runs[0].spec.cost_key}.json").write_text(json.dumps(measured))
    plan = planning.plan(tiny, runs)
    assert [plan.training_seconds(planned) for planned in plan.runs] == [24.0, 8.0]
    assert plan.measured(plan.runs[0]).device == "cpu"
    done = replace(plan.runs[0], state="done")
    assert plan.training_seconds(done) == 0.0


def test_a_plan_as_json_has_exactly_the_promised_fields(tmp_path, study):
    tiny = study()
    run = tiny.runs[0]
    assert planning.plan(tiny, tmp_path / "runs").as_json() == {
        "study": "tiny",
        "runs": [
            {
                "run_key": run.run_key,
                "state": "new",
                "arm": "base",
                "replicate": 0,
                "run_dir": str(tmp_path / "runs" / run.run_key),
            }
        ],
    }


# -------------------------------------------------------------------------------------------------------------- commit


def test_missing_data_stop_a_submission_before_anything_is_written(tmp_path, study):
    tiny = study(f"data_root: {tmp_path}/nowhere\n", "data=cifar10")
    with pytest.raises(DataError, match=r"cifar10: missing"):
        submit.submit(planning.plan(tiny, tmp_path / "runs"), cluster="debug", sync=False)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_cluster_is_refused_with_the_choices(tmp_path, study):
    with pytest.raises(LaunchError, match=r"no cluster 'cloud'; the choices are local, debug, slurm"):
        submit.submit(planning.plan(study(), tmp_path / "runs"), cluster="cloud")


def test_what_is_known_of_a_run_stands_in_its_directory_before_a_job_starts(tmp_path, study):
    tiny = study("replicates: 2\n")
    plan = planning.plan(tiny, tmp_path / "runs")
    assert submit._register_runs(plan) == list(plan.runs)
    for run in tiny.runs:
        directory = RunDirectory(tmp_path / "runs" / run.run_key)
        assert directory.spec() == run.spec.model_dump(mode="json")
        assert directory.studies()["tiny"] == json.loads(json.dumps(run.membership()))
    before = files_below(tmp_path)
    assert submit._register_runs(plan) == []
    assert files_below(tmp_path) == before


def test_a_store_that_cannot_be_reached_keeps_nobody_from_submitting(tmp_path, study):
    (tmp_path / "mlflow.db").write_text("no database")
    tiny = study()
    write(tmp_path / "runs", tiny.runs[0], Status("done", step=12))
    planned = planning.plan(tiny, tmp_path / "runs").runs
    [note] = submit._sync_finished_runs(list(planned), f"sqlite:///{tmp_path}/mlflow.db")
    assert note.endswith("is not a database; `harness sync` will upload the runs that were done before")


def test_a_run_whose_further_evaluation_did_not_begin_is_not_finished(tmp_path, study):
    tiny = study(EVALUATE)
    write(tmp_path / "runs", tiny.runs[0], Status("done", step=12))
    submission = Submission(list(planning.plan(tiny, tmp_path / "runs").runs), tmp_path)
    assert [planned.state for planned in submission.unfinished()] == ["evaluate"]


def test_a_failing_run_opens_no_debugger_and_stops_no_other(tmp_path, study, monkeypatch):
    # Nothing could answer a debugger: reading its commands from here would raise.
    monkeypatch.setattr(sys, "stdin", None)
    tiny = study("arms: {explodes: {optim.lr: 1.0e+30}, learns: {}}\n")
    plan = planning.plan(tiny, tmp_path / "runs")
    submission = submit.submit(plan, cluster="debug", sync=False)
    assert isinstance(submission, BlockingSubmission)
    assert submission.wait(lambda: None)
    assert [planned.state for planned in submission.now()] == ["failed", "done"]
    [failed] = submission.unfinished()
    assert failed.run.arm == "explodes"
    assert failed.status.reason

    again = submit.submit(planning.plan(study(), tmp_path / "runs"), cluster="debug", sync=False)
    assert again.runs == []  # the learning arm is this study's only run, and done


def test_an_error_of_the_worker_itself_opens_no_debugger_and_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    queue_worker = worker.Worker((tmp_path / "runs" / "abcd",), tmp_path / "no_such_folder", 1)
    executor = processes.make_executor(tmp_path / "jobs", "debug")
    submission = local.DebugSubmission([], tmp_path, [executor.submit(queue_worker, "debug")])
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        submission.wait(lambda: None)


def test_a_run_is_claimed_once_in_a_submission(tmp_path, tiny_run, capsys):
    (tmp_path / "jobs" / "claims").mkdir(parents=True)
    run = tiny_run()
    (tmp_path / "jobs" / "claims" / run.name).write_text("another worker")
    worker.Worker((run,), tmp_path / "jobs", 1, sync=False)("debug")
    assert capsys.readouterr().out == ""
    assert RunDirectory(run).status().state == "new"


def test_a_run_that_another_submission_works_on_is_left_alone(tmp_path, tiny_run, capsys):
    (tmp_path / "jobs" / "claims").mkdir(parents=True)
    run = tiny_run()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from harness.records.directory import RunDirectory\n"
            "with RunDirectory(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()",
            str(run),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    worker.Worker((run,), tmp_path / "jobs", 1, sync=False)("debug")
    holder.communicate()
    assert f"in use by process {holder.pid}" in capsys.readouterr().out
    assert RunDirectory(run).attempts() == []


# ------------------------------------------------------------------------------------------------------- this machine


def test_the_visible_gpus_are_those_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert processes.visible_gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert processes.visible_gpus() == []


def test_processes_that_start_get_their_threads_and_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with processes.process_environment(processes.thread_environment(3)):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_worker_does_not_hear_ctrl_c():
    program = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    before = signal.getsignal(signal.SIGINT)
    with local._ignoring_sigint():
        heard = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert heard.stdout == "True\n"
    assert signal.getsignal(signal.SIGINT) == before


# ---------------------------------------------------------------------------------------------------------------- code


@pytest.fixture
def begun(tmp_path, study) -> tuple[planning.Plan, snapshot.Snapshot]:
    """Return the plan of a run that has a checkpoint, made by the code of another day."""
    (tmp_path / "tree" / "harness").mkdir(parents=True)
    (tmp_path / "tree" / "harness" / "__init__.py").write_text("# of another day\n")
    old = snapshot.take(tmp_path / "runs" / ".code", tmp_path / "tree")
    tiny = study()
    directory = write(tmp_path / "runs", tiny.runs[0], Status("interrupted", step=4, attempt=1))
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.event("checkpoint", step=4)
    directory.write_environment(1, {"code_snapshot": old.id})
    return planning.plan(tiny, tmp_path / "runs"), old


def code_of(plan: planning.Plan, *, new_code: bool = False) -> str:
    _, code = submit._frozen_code(plan, plan.to_do, new_code)
    return code[plan.runs[0].run_key].id


def test_a_run_goes_on_with_the_code_that_it_began_with_unless_told_otherwise(begun):
    plan, old = begun
    assert code_of(plan) == old.id
    assert code_of(plan, new_code=True) == snapshot.take(plan.runs_folder / ".code").id != old.id


def test_a_run_whose_code_is_gone_or_was_changed_is_not_mixed_silently(begun):
    plan, old = begun
    file = old.path / "harness" / "__init__.py"
    file.chmod(0o644)
    file.write_text("# changed\n")
    with pytest.raises(LaunchError, match=r"was changed \(harness/__init__.py\); --new-code"):
        code_of(plan)
    shutil.rmtree(old.path)
    with pytest.raises(LaunchError, match=rf"began with code {old.id}, which is no longer in .*; --new-code"):
        code_of(plan)
    assert code_of(plan, new_code=True) != old.id


# --------------------------------------------------------------------------------------------------------------- SLURM


def submit_to_slurm(study: Study, runs_folder: Path, **settings) -> Submission:
    profile = Profile(time_minutes=20, memory_gib=1.5, **settings)
    return submit.submit(planning.plan(study, runs_folder), cluster="slurm", profile=profile, sync=False)


def wait_for(done: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.2)


@pytest.mark.slurm
def test_what_slurm_refuses_leaves_the_states_as_they_were(tmp_path, study, slurm):
    tiny = study()
    write(tmp_path / "runs", tiny.runs[0], Status("interrupted", step=4))
    with pytest.raises(LaunchError, match=r"SLURM did not take the jobs: .*nvalid partition"):
        submit_to_slurm(tiny, tmp_path / "runs", partition="no_such_partition")
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "interrupted"


@pytest.mark.slurm
def test_a_thousand_runs_are_a_handful_of_calls_of_sbatch_and_scancel(tmp_path, study, slurm, monkeypatch):
    grid = ", ".join(f"{1e-3 * (1 + index):.3f}" for index in range(100))
    many = study(f"grid: {{optim.lr: [{grid}]}}\nreplicates: 10\n")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "scancel"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} >>{folder}/calls\nexec {shutil.which(name)} "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    subprocess.run(["scontrol", "update", "partitionname=main", "state=down"], check=True)  # none is to start
    try:
        began = time.perf_counter()
        submission = submit_to_slurm(many, tmp_path / "runs", max_array_size=301)
        print(f"1,000 runs were submitted in {time.perf_counter() - began:.1f} s")
        assert len({job.job_id for job in submission.jobs}) == 1000
        assert submit_to_slurm(many, tmp_path / "runs").runs == []
        assert len(manage.cancel([planned.directory for planned in submission.runs])) == 1000
        assert {planned.state for planned in planning.plan(many, tmp_path / "runs").runs} == {"interrupted"}
    finally:
        subprocess.run(["scontrol", "update", "partitionname=main", "state=up"], check=True)
    assert (folder / "calls").read_text().split() == ["sbatch"] * 4 + ["scancel"] * 2  # 500 to a command line


@pytest.mark.slurm
def test_an_array_waits_its_turn_is_not_submitted_twice_and_is_again_after_a_cancel(tmp_path, study, slurm):
    tiny = study("replicates: 3\n")
    runs = tmp_path / "runs"
    first = submit_to_slurm(tiny, runs, max_parallel=1)
    assert len(first.jobs) == 3
    assert len({job.job_id.split("_")[0] for job in first.jobs}) == 1
    assert submit_to_slurm(tiny, runs).runs == []
    subprocess.run(["scancel", first.jobs[2].job_id], check=True)
    wait_for(lambda: first.jobs[2].job_id not in live_jobs())
    again = submit_to_slurm(tiny, runs)
    assert [planned.run.replicate for planned in again.runs] == [2]
    wait_for(lambda: not first.unfinished())
    assert not again.unfinished()


@pytest.mark.slurm
def test_a_job_that_is_told_to_leave_writes_a_checkpoint_and_comes_back(tmp_path, study, slurm):
    tiny = study("", "train.steps=1500")
    submission = submit_to_slurm(tiny, tmp_path / "runs")
    directory = submission.runs[0].directory
    wait_for(lambda: directory.latest())
    subprocess.run(["scancel", "--signal=USR2", submission.jobs[0].job_id], check=True)
    wait_for(lambda: not submission.unfinished())
    assert len(directory.events("interrupted")) == 1
    resumed = [event.fields["resumed_from_step"] for event in directory.events("started")]
    assert len(resumed) == 2
    assert resumed[1] > 0


# ------------------------------------------------------------------------------------------------ where a run stands


def claim_of(tmp_path: Path, run_key: str, job_id: str = "7_0", **facts) -> claims.Claim:
    folder = tmp_path / "runs" / ".jobs" / "tiny" / f"20260101-{time.monotonic_ns()}"
    (folder / "claims").mkdir(parents=True)
    (folder / "claims" / run_key).write_text(job_id)
    (folder / "submission.json").write_text(json.dumps({"cluster": "slurm", "runs": [run_key], "profile": {}} | facts))
    return claims.Claim(folder, (job_id,))


@pytest.mark.parametrize(
    ("status", "job", "reason"),
    [
        (Status("queued"), JobInfo("7_0", "PENDING", reason="Priority", live=True), "(Priority)"),
        (Status("queued"), JobInfo("7_0", "RUNNING", "n1", live=True), "starts on n1"),
        (Status("queued"), JobInfo("7_0", "CANCELLED", user="ada"), "CANCELLED by ada"),
        (Status("queued"), None, "SLURM no longer knows its job 7_0: cancelled before it began"),
        (Status("queued"), JobInfo("7_0", "COMPLETED"), "job 7_0 finished but never ran this run"),
        (
            Status("interrupted", cause="signal", stopped_by="SIGUSR2", reason="stopped by SIGUSR2"),
            JobInfo("7_0", "PENDING", reason="BeginTime", live=True),
            "(BeginTime); requeued, stopped by SIGUSR2",
        ),
        (
            Status("running", step=3),  # and nobody holds its lock
            JobInfo("7_0", "OUT_OF_MEMORY", "n1", start="2026-01-01T00:00:00"),
            "killed: OUT_OF_MEMORY on n1",
        ),
    ],
)
def test_people_are_told_why_a_run_waits_or_ended(tmp_path, study, monkeypatch, status, job, reason):
    tiny = study()
    directory = write(tmp_path / "runs", tiny.runs[0], status)
    claim_of(tmp_path, directory.key)
    monkeypatch.setattr(states, "read_queue", lambda jobs: {"7_0": job} if job and set(jobs) == {"7_0"} else {})
    assert planning.plan(tiny, tmp_path / "runs").runs[0].status.reason == reason


@pytest.mark.parametrize("old", [False, True])
def test_a_run_that_was_cancelled_says_by_whom_and_when(tmp_path, study, monkeypatch, old):
    tiny = study()
    stopped = Status("interrupted", cause="signal", stopped_by="SIGTERM")
    directory = write(tmp_path / "runs", tiny.runs[0], stopped)
    claim = claim_of(tmp_path, directory.key)
    claims.mark_cancelled(claim.folder, directory.key, "ada")
    path = claim.folder / "cancelled" / directory.key
    if old:  # the name alone, and the file's time
        path.write_text("ada\n")
        os.utime(path, (7, 7))
    monkeypatch.setattr(states, "read_queue", lambda jobs: {})
    status = planning.plan(tiny, tmp_path / "runs").runs[0].status
    assert (status.cause, status.reason) == ("cancelled", "cancelled by ada")
    assert abs(claim.cancellation(directory.key).cancelled_seconds - (7 if old else time.time())) < 60


def attempt(directory: RunDirectory, step: int, *events: str) -> None:
    with directory.lock(), directory.open_journal(resumed_from_step=step) as journal:
        for name in events:
            journal.event(name, step=step)


def test_three_kills_without_progress_leave_a_run_failed_until_a_retry(tmp_path, study):
    tiny = study()
    runs = tmp_path / "runs"
    directory = write(runs, tiny.runs[0], Status("running"))
    attempt(directory, 0, "checkpoint")
    for _ in range(2):
        attempt(directory, 4)
    assert planning.plan(tiny, runs).runs[0].state == "interrupted"
    attempt(directory, 4)
    plan = planning.plan(tiny, runs)
    assert plan.runs[0].state == "failed"
    assert plan.runs[0].status.reason.startswith("killed 3 times at step 4 without progress: on ")
    assert submit.submit(plan, cluster="debug", sync=False).runs == []
    again = manage.select_retries(plan, failed=True, killed=False)
    assert [planned.run_key for planned in again.to_do] == [directory.key]
    assert requeue.given_up(directory.path) is None


def test_what_a_changed_study_no_longer_asks_for_is_found_unless_another_study_does(tmp_path, study):
    before = study("replicates: 3\n")
    runs = tmp_path / "runs"
    for run in before.runs:
        write(runs, run, Status("queued")).add_to_study("tiny", run.membership())
    RunDirectory(runs / before.runs[2].run_key).add_to_study("another", {})
    plan = planning.plan(study("replicates: 1\n"), runs)
    assert [orphan.key for orphan in manage.orphans(plan)] == [before.runs[1].run_key]


# ---------------------------------------------------------------------------------------------------------------- logs


def test_a_run_of_a_version_without_logs_of_its_own_has_its_newest_jobs(tmp_path):
    for stamp, job in (("20260101-000000-1", "11"), ("20260102-000000-1", "12")):
        folder = tmp_path / ".jobs" / "tiny" / stamp
        (folder / "claims").mkdir(parents=True)
        (folder / "claims" / "aaaa").write_text(job)
        (folder / f"{job}_0_log.out").write_text(f"job {job}\n")
    assert claims.run_log(tmp_path, "aaaa") == tmp_path / ".jobs" / "tiny" / "20260102-000000-1" / "12_0_log.out"
    (folder / "aaaa_log.out").touch()  # of a run that shared its job
    assert claims.run_log(tmp_path, "aaaa") == folder / "aaaa_log.out"


def test_a_run_that_no_job_took_has_no_log(tmp_path):
    assert claims.run_log(tmp_path, "aaaa") is None
    assert claims.job_log(tmp_path, "aaaa") is None


def test_a_workers_run_prints_to_a_log_of_its_attempt_and_children_and_tracebacks_too(tmp_path, tiny_run):
    runs = tiny_run("replicates: 2\n").parent
    path = next(runs.iterdir())
    program = """
import os, subprocess, sys
from pathlib import Path
from harness.job import job
from harness.launch.worker import execute_run
path = Path(sys.argv[1])
def run_job(path, **options):
    print("a plain line")
    sys.stderr.write("an error line\\n")
    subprocess.run(["echo", "a line of a child"])
    os.write(1, b"a line of a library\\n")
    raise ValueError("what went wrong")
job.run_job = run_job
print("before", flush=True)
assert execute_run(path, 1, False, None) == "failed"
assert execute_run(path, 1, False, None) == "failed"
print("after", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "after"]
    directory = RunDirectory(path)
    assert claims.run_log(runs, path.name) == directory.log_path(1)  # both starts: neither came as far as an attempt
    text = directory.log_path(1).read_text()
    for line in ("a plain line", "an error line", "a line of a child", "a line of a library", "what went wrong"):
        assert text.count(f"{line}\n") >= 2, line
    assert text.count("Traceback") == 2


def test_every_attempt_has_a_log_of_its_own(tmp_path, study):
    plan = planning.plan(study(), tmp_path / "runs")
    submit.submit(plan, cluster="local", sync=False).wait(lambda: None)
    directory = plan.runs[0].directory
    assert [path.name for path in directory.log_paths()] == ["attempt-0001.log"]
    assert f"{directory.key} is done" in directory.log_path(1).read_text()
    more = planning.plan(study(EVALUATE), tmp_path / "runs")
    assert more.runs[0].state == "evaluate"
    submit.submit(more, cluster="local", sync=False).wait(lambda: None)
    assert [path.name for path in directory.log_paths()] == ["attempt-0001.log", "attempt-0002.log"]
    assert claims.run_log(tmp_path / "runs", directory.key) == directory.log_path(2)
