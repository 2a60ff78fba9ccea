"""Planning is reading; committing leaves what is done, takes up what is broken and begins what is absent."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from harness import PACKAGE_ROOT
from harness.cli import cli
from harness.errors import DataError, LaunchError
from harness.launch import claims, local, manage, planning, processes, submit, worker
from harness.launch.submission import BlockingSubmission, Refused, Submission
from harness.records import snapshot
from harness.records.directory import RunDirectory
from harness.records.nodes import bad_nodes
from harness.records.status import Status
from harness.slurm.cluster import read_config
from harness.slurm.jobs import live_jobs
from harness.slurm.profile import Profile
from harness.spec.base import SCHEMA_VERSION
from harness.study.expand import load_study
from harness.study.model import Study
from harness.testing import write_finished_run
from harness.text import harness_command

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
    submit._register_runs(plan)
    for run in tiny.runs:
        directory = RunDirectory(tmp_path / "runs" / run.run_key)
        assert directory.spec() == run.spec.model_dump(mode="json")
        assert directory.studies()["tiny"] == json.loads(json.dumps(run.membership()))
    before = files_below(tmp_path)
    submit._register_runs(plan)
    assert files_below(tmp_path) == before


def test_a_store_that_cannot_be_reached_keeps_nobody_from_submitting(tmp_path, study):
    (tmp_path / "mlflow.db").write_text("no database")
    tiny = study()
    write_finished_run(tiny.runs[0], tmp_path / "runs")
    plan = planning.plan(tiny, tmp_path / "runs")
    [note] = submit._sync_ended_runs(list(plan.runs), plan, f"sqlite:///{tmp_path}/mlflow.db")
    command = harness_command("sync", runs_folder=tmp_path / "runs")
    assert note.endswith(f"is not a database; `{command}` will upload the runs that were done before")


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
    with pytest.raises(LaunchError, match=rf"started with code {old.id}, which is no longer in .*; --new-code"):
        code_of(plan)
    assert code_of(plan, new_code=True) != old.id


# --------------------------------------------------------------------------------------------------------------- SLURM


def submit_to_slurm(study: Study, runs_folder: Path, **settings) -> Submission:
    profile = Profile(time_minutes=20, memory_gib=1.5, **settings)
    return submit.submit(planning.plan(study, runs_folder), cluster="slurm", profile=profile, sync=False)


def batch_script_of(submission: Submission) -> str:
    (script,) = submission.folder.glob("*_submission.sh")
    return script.read_text()


def wait_for(done: Callable[[], object], seconds: float = 480, pause_seconds: float = 0.2) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(pause_seconds)


@pytest.mark.slurm
def test_what_slurm_refuses_leaves_the_states_as_they_were(tmp_path, study, slurm):
    tiny = study()
    write(tmp_path / "runs", tiny.runs[0], Status("interrupted", step=4))
    with pytest.raises(LaunchError, match=r"SLURM did not accept the jobs: .*nvalid partition"):
        submit_to_slurm(tiny, tmp_path / "runs", partition="no_such_partition")
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "interrupted"


@pytest.mark.slurm
def test_slurm_gets_as_many_jobs_as_it_takes_and_the_rest_when_others_have_ended(
    tmp_path, study, slurm, submit_limit, calls_of, monkeypatch
):
    """With MaxSubmitJobs=3 an array of five is refused as a whole; the limit itself says how many fit."""
    five, runs = study("replicates: 5\n", "train.steps=2"), tmp_path / "runs"
    wait_for(lambda: not live_jobs())  # of other tests, which count, too
    submit_limit(3)
    calls = calls_of("sbatch")
    subprocess.run(["scontrol", "update", "partitionname=main", "state=down"], check=True)  # none is to start
    try:
        submission = submit_to_slurm(five, runs, max_parallel=2)
        states = [planned.state for planned in planning.plan(five, runs).runs]
        assert (len(submission.runs), len(submission.left), states.count("new")) == (3, 2, 2)
        (note,) = [note for note in submission.notes if note.startswith("2 runs not submitted")]
        assert "SLURM takes no more jobs now: SLURM did not accept the jobs: " in note
        assert calls() == ["sbatch"] * 2  # of five, and of the three for which there is room
        with pytest.raises(Refused):
            submit_to_slurm(five, runs)
        assert len(list((runs / ".jobs" / "tiny").iterdir())) == 1  # a refused submission leaves no trace
    finally:
        subprocess.run(["scontrol", "update", "partitionname=main", "state=up"], check=True)
    monkeypatch.setattr(submit, "WATCH_SECONDS", 1.0)
    messages: list[str] = []
    profile = Profile(time_minutes=20, memory_gib=1, max_parallel=2)
    options = {"cluster": "slurm", "profile": profile, "sync": False}
    asked = len(calls())
    submit.submit_rest(lambda: planning.plan(five, runs), 4, messages.append, **options)
    assert messages[-1].endswith("; 0 to go")
    assert len(calls()) - asked <= 2  # SLURM is not asked for what it would refuse
    wait_for(lambda: all(planned.state == "done" for planned in planning.plan(five, runs).runs))
    claims = [path for path in (runs / ".jobs").glob("**/claims/*") if path.read_text().strip()]
    assert len(claims) == 5  # none was submitted twice
    directories = [planned.directory for planned in planning.plan(five, runs).runs]
    begun = [directory.events("started")[0].time_ms for directory in directories]
    ended = [directory.events("finished")[0].time_ms for directory in directories]
    at_a_time = [sum(start <= moment < end for start, end in zip(begun, ended, strict=True)) for moment in begun]
    assert max(at_a_time) <= 2  # over all arrays


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("holder", "tries"),
    [
        ("qos", [5, 3]),  # which says how many fit, as the limit of a user does
        ("account", [5, 2, 2, 1, 1]),  # colleagues may use it up, so what fits is found by halves
    ],
)
def test_a_limit_of_a_qos_or_an_account_leaves_the_rest_for_later(
    tmp_path, study, slurm, submit_limit, calls_of, monkeypatch, holder, tries
):
    five, runs = study("replicates: 5\n"), tmp_path / "runs"
    monkeypatch.setattr(submit, "WATCH_SECONDS", 0.5)
    wait_for(lambda: not live_jobs())
    submit_limit(3, holder)
    calls = calls_of("sbatch")
    subprocess.run(["scontrol", "update", "partitionname=main", "state=down"], check=True)  # none is to start
    try:
        submission = submit_to_slurm(five, runs)
        assert (len(submission.jobs), len(submission.left), len(calls())) == (3, 2, len(tries))
        assert any(note.startswith("2 runs not submitted") for note in submission.notes)
        subprocess.run(
            ["scancel", *(job.job_id for job in submission.jobs[:2])], check=True
        )  # so there is room for two
        rest = planning.plan(five, runs)
        left = [planned.run_key for planned in submission.left]
        only = replace(rest, runs=tuple(planned for planned in rest.runs if planned.run_key in left))
        options = {"cluster": "slurm", "profile": Profile(time_minutes=20, memory_gib=1.5), "sync": False}
        submit.submit_rest(lambda: only, 2, lambda line: None, **options)
        assert all(planned.state == "queued" for planned in planning.plan(five, runs).runs if planned.run_key in left)
        assert len(live_jobs()) == 3
    finally:
        subprocess.run(["scancel", "--me"], check=True)
        subprocess.run(["scontrol", "update", "partitionname=main", "state=up"], check=True)


@pytest.mark.slurm
def test_slurm_knows_of_a_job_what_the_profile_says_and_not_what_the_shell_says(tmp_path, study, slurm, monkeypatch):
    for name, value in {"TIMELIMIT": "1", "NO_REQUEUE": "1", "PARTITION": "nowhere", "MEM_PER_CPU": "7"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    for name in ("SQUEUE_STATES", "SACCT_STATE", "SCANCEL_STATE"):  # the job below waits
        monkeypatch.setenv(name, "RUNNING")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SACCT_FORMAT", "jobid")
    said = {"partition": "main", "comment": "for the paper", "nice": 10, "begin": "now+1hour", "exclusive": "user"}
    options = {"sbatch": {"switches": 1}, "memory_request": "mem-per-cpu", "mail_user": "ada@example.org", "cpus": 2}
    said["clusters"] = read_config()["ClusterName"]  # its own, by the name that the accounting has for it
    tiny = study()
    write(tmp_path / "runs", tiny.runs[0], Status("failed", cause="out_of_memory"))
    submission = submit_to_slurm(tiny, tmp_path / "runs", **said, **options, mail_type="END", max_memory_gib=4)
    number = submission.jobs[0].job_id.split("_")[0]
    try:
        shown = subprocess.run(["scontrol", "show", "job", number], check=True, capture_output=True, text=True).stdout
        assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "queued"
    finally:
        manage.cancel([run.directory for run in submission.runs])
    (cancelled,) = planning.plan(tiny, tmp_path / "runs").runs
    assert (cancelled.state, cancelled.status.cause) == ("interrupted", "cancelled")
    wait_for(lambda: number not in {job.split("_")[0] for job in live_jobs()})
    assert f"#SBATCH --clusters={said['clusters']}\n" in batch_script_of(submission)
    expected = (
        "Partition=main Comment=for the paper TimeLimit=00:20:00 MinMemoryCPU=1152M Requeue=1 MailUser=ada@example.org"
    )
    for part in re.split(r" (?=[A-Z])", expected):
        assert part in shown
    assert "Switches=1" in shown and "Nice=10" in shown and "WCKey=*\n" in shown  # the user's own
    note = "not used, since the study and the profile say it: "
    names = ", ".join(f"SBATCH_{name}" for name in ("MEM_PER_CPU", "NO_REQUEUE", "PARTITION", "TIMELIMIT"))
    assert note + names in submission.notes
    assert "killed for memory before: 1 run with 2.25 GiB now (max_memory_gib: 4)" in submission.notes


@pytest.mark.slurm
def test_a_chain_of_runs_is_one_job_that_works_on_one_after_another_and_tells_when_all_have_ended(
    tmp_path, study, slurm
):
    notify = f'echo "$HARNESS_EVENT $HARNESS_MESSAGE" >>{tmp_path}/told'
    submission = submit_to_slurm(study("replicates: 3\n"), tmp_path / "runs", chain=3, notify=notify)
    assert len({job.job_id for job in submission.jobs}) == 1
    wait_for((tmp_path / "told").exists)
    assert {planned.state for planned in submission.now()} == {"done"}
    directories = [planned.directory for planned in submission.runs]
    begun = [directory.events("started")[0].time_ms for directory in directories]
    ended = [directory.events("finished")[0].time_ms for directory in directories]
    assert all(end <= start for end, start in zip(ended, begun[1:], strict=False))
    assert (tmp_path / "told").read_text() == "ended tiny: all 3 runs have ended, 0 failed\n"


@pytest.mark.slurm
def test_a_study_starts_when_another_has_ended(tmp_path, study, slurm):
    first = submit_to_slurm(study(), tmp_path / "runs")
    second = study("seed: 7\n")
    directories = [planned.directory for planned in first.runs]
    plan = planning.plan(second, tmp_path / "runs")
    profile = Profile(time_minutes=20, memory_gib=1.5)
    later = submit.submit(plan, cluster="slurm", profile=profile, sync=False, after=directories, asks=False)
    numbers = [submission.jobs[0].job_id.split("_")[0] for submission in (first, later)]
    shown = subprocess.run(["scontrol", "show", "job", numbers[1]], check=True, capture_output=True, text=True).stdout
    assert f"Dependency=afterany:{numbers[0]}" in shown
    wait_for(lambda: not later.unfinished())
    ended, begun = directories[0].events("finished")[0], later.runs[0].directory.events("started")[0]
    assert ended.time_ms <= begun.time_ms
    assert submit.jobs_of(directories) == []
    with pytest.raises(LaunchError, match="submit one study after the other"):
        submit.submit(plan, cluster="local", after=directories)


@pytest.mark.slurm
def test_a_thousand_runs_are_a_handful_of_calls_of_sbatch_and_scancel(tmp_path, study, slurm, calls_of):
    grid = ", ".join(f"{1e-3 * (1 + index):.3f}" for index in range(100))
    many = study(f"grid: {{optim.lr: [{grid}]}}\nreplicates: 10\n")
    calls = calls_of("sbatch", "scancel")
    subprocess.run(["scontrol", "update", "partitionname=main", "state=down"], check=True)  # none is to start
    try:
        submission = submit_to_slurm(many, tmp_path / "runs", max_array_size=301)
        assert len({job.job_id for job in submission.jobs}) == 1000
        assert submit_to_slurm(many, tmp_path / "runs").runs == []
        assert len(manage.cancel([planned.directory for planned in submission.runs])) == 1000
        assert {planned.state for planned in planning.plan(many, tmp_path / "runs").runs} == {"interrupted"}
    finally:
        subprocess.run(["scontrol", "update", "partitionname=main", "state=up"], check=True)
    assert calls() == ["sbatch"] * 4 + ["scancel"] * 2  # 500 to a command line


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


@contextlib.contextmanager
def held(directory: RunDirectory, until: Callable[[], object]) -> Iterator[int]:
    """Let the process that works on a run stand still within a block, from when a condition holds; yield its pid."""
    wait_for(until, pause_seconds=0.02)
    writer = directory.writer()
    assert writer is not None, "it ended before it could be held"
    os.kill(writer["pid"], signal.SIGSTOP)
    yield writer["pid"]
    os.kill(writer["pid"], signal.SIGCONT)


def asks_to_be_requeued(job_id: str) -> bool:
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return any(command[-2:] == ["requeue", job_id] for command in commands)


@pytest.mark.slurm
def test_a_job_that_is_told_to_leave_comes_back_when_slurm_does_not_answer_and_from_an_evaluation(
    tmp_path, study, slurm
):
    tiny = study("evaluate: [{batch_size: 16, nll: {num_images: 300}}]\n", "train.steps=200")
    submission = submit_to_slurm(tiny, tmp_path / "runs")
    directory, job_id = submission.runs[0].directory, submission.jobs[0].job_id
    with held(directory, until=directory.latest) as pid, slurm.outage():
        os.kill(pid, signal.SIGUSR2)  # as slurmstepd does ahead of a time limit
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: asks_to_be_requeued(job_id))
        os.kill(pid, signal.SIGTERM)  # as at the time limit
    with held(directory, until=directory.num_kept_batches):
        subprocess.run(["scancel", "--signal=USR2", job_id], check=True)
    wait_for(lambda: len(directory.attempts()) == 3)
    kept = directory.events("started")[2].fields["kept_batches"]
    wait_for(lambda: not submission.unfinished())
    assert [planned.state for planned in submission.now()] == ["done"]
    assert kept > 0
    resumed = [event.fields["resumed_from_step"] for event in directory.events("started")]
    assert resumed[0] == 0 and 0 < resumed[1] <= 200 and resumed[2] == 200
    assert [event.fields["stopped_by"] for event in directory.events("interrupted")] == ["SIGUSR2"] * 2


@dataclass(frozen=True)
class Colleague:
    """Another user of this machine, who has this harness in a folder that is open to all."""

    name: str
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        user = pwd.getpwnam(self.name)
        names = {"USER": self.name, "LOGNAME": self.name, "HOME": str(self.folder), "PYTHONPATH": str(self.folder)}
        return subprocess.run(
            command,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            umask=0,
            cwd=self.folder,
            env=os.environ | names,
            capture_output=True,
            text=True,
        )

    def harness(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.folder / "bin" / "python3"), "-m", "harness.cli", *words)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        shutil.copy2(source, target)


@pytest.fixture
def colleague(slurm) -> Iterator[Colleague]:
    """Return a second user, with a folder into which every user can write; pytest's own are closed to them.

    So may be the Python that runs these tests: links to its files are open, or copies on another file system.
    """
    umask = os.umask(0)
    of_slurm = ("user", "daemon", "account=lab", "wckeys=thesis")  # which SLURM wants of all but administrators
    subprocess.run(["sacctmgr", "--immediate", "add", *of_slurm], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(prefix="harness-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        base, version = folder / "base", f"python3.{sys.version_info.minor}"
        places = {
            sysconfig.get_path("stdlib"): base / "lib" / version,
            sysconfig.get_path("purelib"): folder / "lib" / version / "site-packages",
        }
        unneeded = shutil.ignore_patterns("site-packages", "include", "mlflow", "test", "tests")
        for program in (base / "bin" / "python3", folder / "bin" / "python3"):
            program.parent.mkdir(parents=True)
        for place, to in places.items():
            shutil.copytree(place, to, symlinks=True, ignore=unneeded, copy_function=link_or_copy)
        link_or_copy(str(Path(sys.executable).resolve()), str(base / "bin" / "python3"))
        (folder / "bin" / "python3").symlink_to(base / "bin" / "python3")
        (folder / "pyvenv.cfg").write_text(f"home = {base}/bin\n")
        for package in ("harness", "analysis"):
            shutil.copytree(PACKAGE_ROOT / package, folder / package, symlinks=True)
        yield Colleague("daemon", folder)
    os.umask(umask)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which takes root")
def test_two_users_of_a_folder_of_runs_see_each_others_jobs_end_only_their_own_and_train_each_run_once(
    study, slurm, colleague
):
    runs, file = colleague.folder / "runs", colleague.folder / "tiny.yaml"
    first = submit_to_slurm(study("", "train.steps=200"), runs)
    mine, job_id = first.runs[0].directory, first.jobs[0].job_id
    both = study("replicates: 2\n", "train.steps=200")
    [their_key] = {run.run_key for run in both.runs} - {mine.key}
    theirs = RunDirectory(runs / their_key)
    shutil.copyfile(both.path, file)
    (colleague.folder / "profile.yaml").write_text("time_minutes: 20\nmemory_gib: 1.5\nwckey: thesis\n")
    of_slurm = ("--cluster", "slurm", "--profile", "profile.yaml", "--set", "train.steps=200", "--no-sync", "--json")

    def asked(*words: str) -> Any:
        done = colleague.harness(*words, "--runs", str(runs))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with held(mine, until=mine.latest):
        submitted = asked("submit", str(file), *of_slurm)
        assert (submitted["submitted"], submitted["skipped"]) == ([their_key], [mine.key])
        shown = {run["run_key"]: run["state"] for run in asked("status", "tiny", "--json")}
        assert shown[mine.key] == "running" and shown[their_key] in ("queued", "running", "done")
        refusal = colleague.harness("cancel", mine.key, "--runs", str(runs))
        assert refusal.returncode == 2
        assert f"SLURM does not let you end the job {job_id} of root (" in refusal.stderr
        wait_for(lambda: theirs.status().state == "done")
        assert mine.status().state == "running" and not list(runs.glob(".jobs/**/cancelled/*"))
    wait_for(lambda: not first.unfinished())
    assert {planned.state for planned in planning.plan(both, runs).runs} == {"done"}
    for directory, owner in ((mine, "root"), (theirs, colleague.name)):
        assert len(directory.attempts()) == 1
        assert len(claims.claims_of(runs, [directory.key])[directory.key]) == 1
        assert directory.log_path(1).owner() == owner
    assert submit_to_slurm(both, runs).runs == []


# ------------------------------------------------------------------------------------------------ where a run stands


def claim_of(tmp_path: Path, run_key: str, job_id: str = "7_0", **facts) -> claims.Claim:
    folder = tmp_path / "runs" / ".jobs" / "tiny" / f"20260101-{time.monotonic_ns()}"
    (folder / "claims").mkdir(parents=True)
    (folder / "claims" / run_key).write_text(job_id)
    (folder / "submission.json").write_text(json.dumps({"cluster": "slurm", "runs": [run_key], "profile": {}} | facts))
    return claims.Claim(folder, (job_id,))


# ---------------------------------------------------------------------------------------------------------------- logs


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


def test_to_start_after_another_study_is_slurms(tmp_path, study):
    runs = tmp_path / "runs"
    run = study().runs[0]
    write(runs, run, Status("done")).register(run)
    arguments = ["submit", str(tmp_path / "tiny.yaml"), "--runs", str(runs), "--no-sync"]
    result = CliRunner().invoke(cli, [*arguments, "--after", "tiny"])
    assert isinstance(result.exception, LaunchError) and "submit one study after the other" in str(result.exception)
    assert isinstance(CliRunner().invoke(cli, [*arguments, "--after", "nothing"]).exception, LaunchError)


BROKEN_WHERE_IT_BEGINS = """
import os
from pathlib import Path
from typing import Literal

from harness.plugins import ObjectiveModel

BROKEN = Path("MARK")


class Ecc(ObjectiveModel):
    name: Literal["ecc"] = "ecc"


def ecc(process, model_output, x_0, x_t, t, noise):
    from harness.diffusion.objectives import training_terms

    node = os.environ["SLURMD_NODENAME"]
    if not BROKEN.exists():
        BROKEN.write_text(node)
    if BROKEN.read_text() == node:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    terms = training_terms(process, model_output, x_0, x_t, t, noise, learn_variance=False)
    return {"loss": terms["mse"], **terms}


OBJECTIVES = {"ecc": (Ecc, ecc)}
"""


@pytest.mark.slurm
@pytest.mark.slow
def test_a_run_on_a_broken_device_goes_on_at_another_node_and_new_jobs_leave_that_out(tmp_path, study, slurm):
    (tmp_path / "own.py").write_text(BROKEN_WHERE_IT_BEGINS.replace("MARK", str(tmp_path / "broken")))
    runs, lines = tmp_path / "runs", "plugins: [own.py]\nobjective: ecc\n"
    (run,) = submit_to_slurm(study(lines), runs).runs
    wait_for(lambda: run.directory.status().state in ("done", "failed"))
    node = (tmp_path / "broken").read_text()
    assert run.directory.status().state == "done"
    assert [entry.node for entry in bad_nodes(runs)] == [node]
    first, second = run.directory.events("started")
    assert first.fields["slurm_job_id"] != second.fields["slurm_job_id"]
    (ending,) = run.directory.events("interrupted")
    assert ending.fields["cause"] == "device" and node in ending.fields["reason"]
    again = submit_to_slurm(study(lines + "seed: 5\n"), runs)
    number = again.jobs[0].job_id.split("_")[0]
    shown = subprocess.run(["scontrol", "show", "job", number], check=True, capture_output=True, text=True).stdout
    assert f"ExcNodeList={node}\n" in shown
    assert any(note.startswith(f"node {node} is excluded until ") for note in again.notes)
    status = CliRunner().invoke(cli, ["status", "tiny", "--runs", str(runs)]).output
    assert f"node {node} is excluded until " in status
    wait_for(lambda: again.runs[0].directory.status().state == "done")
