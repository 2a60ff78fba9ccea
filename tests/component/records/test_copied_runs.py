"""A folder of runs copied in any way (cp -r, rsync without times, an archive of dates long ago) means the same."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.cli import status_view, timeline
from harness.job.request import RunRequest
from harness.launch import claims, manage, planning
from harness.records import layout, throughput
from harness.records.archive import export_study
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.records.throughput import Throughput
from harness.study.expand import load_study
from harness.tracking.check import check
from harness.tracking.sync import sync_run

EVALUATE = "replicates: 4\nevaluate: [{nll: {num_images: 16, evaluations_per_image: 4}}]\n"


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def all_equal(paths: list[Path]) -> None:
    for path in paths:
        os.utime(path, (1_000_000_000, 1_000_000_000))


def reversed_times(paths: list[Path]) -> None:
    """Let the file that was written first be the newest."""
    times = sorted(path.stat().st_mtime for path in paths)
    for path, seconds in zip(sorted(paths, key=lambda path: -path.stat().st_mtime_ns), times, strict=True):
        os.utime(path, (seconds, seconds))


@pytest.fixture
def runs(tmp_path, tiny_study) -> Path:
    """Write runs in all states; the first is a member of three studies, each of which wants other resources."""
    folder = tmp_path / "runs"
    planned = tiny_study(EVALUATE)
    for run, state in zip(planned, ("done", "interrupted", "queued", "failed"), strict=True):
        directory = RunDirectory(folder / run.run_key)
        directory.register(run)
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            journal.metrics(12, {"train/loss": 0.5, "eval/nll_bpd": 2.0})
            journal.event("checkpoint", step=12)
            journal.event("evaluation", step=12, key=run.evaluations[0].key)
        directory.set_status(Status(state, step=12, num_steps=12, attempt=1))
    shared = RunDirectory(folder / planned[0].run_key)
    for study, threads, root in (("zebra", 3, "/z"), ("ant", 5, "/a")):
        resources = planned[0].resources.model_copy(update={"threads": threads})
        shared.register(replace(planned[0], study=study, resources=resources, data_root=root))
        time.sleep(0.01)  # so that their files differ in time
    for device_name, seconds in (("slow", 3.0), ("fast", 1.0)):
        throughput.record(folder, Throughput("cost", seconds, "cpu", device_name, threads=1))
        time.sleep(0.01)
    for stamp, cluster in (("20260101-000000-000000-1", "local"), ("20260102-000000-000000-1", "debug")):
        submission = layout.SubmissionLayout(folder / ".jobs" / "tiny" / stamp)
        submission.claims_folder.mkdir(parents=True)
        facts = {"cluster": cluster, "jobs": 1, "profile": {}, "user": "ada", "time": 1e9, "runs": [planned[1].run_key]}
        submission.submission_path.write_text(json.dumps(facts))
        submission.claim_path(planned[1].run_key).write_text(stamp)
        submission.job_log_path(stamp).write_text(cluster)
    claims.mark_cancelled(submission.folder, planned[1].run_key, "ada")
    return folder


def meaning(runs: Path, study_path: Path, archive: Path) -> dict[str, object]:
    """Return all that plan, status, why, retry, jobs and export read out of a folder of runs."""
    plan = planning.plan(load_study(study_path), runs)
    directories = [RunDirectory(path) for path in layout.run_paths(runs)]
    rows = [asdict(row) for row in status_view.status_rows(directories)]
    for row in rows:
        del row["run_dir"]
    logs = [claims.run_log(runs, directory.key) for directory in directories]
    return {
        "plan": [(planned.run_key, planned.state, planned.status) for planned in plan.runs],
        "requests": [RunRequest.of(directory) for directory in directories],
        "status": rows,
        "why": [timeline.timeline(directory) for directory in directories],
        "options": manage.last_options(plan),
        "logs": [log and log.relative_to(runs) for log in logs],
        "throughput": throughput.load(runs),
        "export": export_study("tiny", directories, archive).sha256,
    }


@pytest.mark.parametrize("set_times", [all_equal, reversed_times])
def test_a_copy_with_other_file_times_means_the_same(runs, tmp_path, set_times):
    shutil.copytree(runs, tmp_path / "copied" / "runs")
    copy = tmp_path / "copied" / "runs"
    set_times(files_below(copy))
    here = meaning(runs, tmp_path / "tiny.yaml", tmp_path / "here.tar")
    there = meaning(copy, tmp_path / "tiny.yaml", tmp_path / "there.tar")
    assert here == there
    # And it is what it should be, whatever the names of studies and devices.
    shared = next(request for request in here["requests"] if request.data_root)
    assert (shared.resources.threads, shared.data_root) == (5, "/a")
    assert [fact.device_name for fact in here["throughput"]["cost"]] == ["fast", "slow"]
    assert {row["state"] for row in here["status"]} == {"done", "interrupted", "queued", "failed"}
    assert here["options"]["cluster"] == "debug"


@pytest.mark.slow
@pytest.mark.parametrize("set_times", [all_equal, reversed_times])
def test_the_cursors_of_a_copy_lose_no_row(runs, tmp_path, set_times):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    directory = RunDirectory(layout.run_paths(runs)[0])
    sync_run(directory, tracking_uri=uri)
    shutil.copytree(runs, tmp_path / "copied" / "runs")
    copy = RunDirectory(tmp_path / "copied" / "runs" / directory.key)
    set_times(files_below(tmp_path / "copied"))
    with copy.lock(), copy.open_journal(resumed_from_step=12) as journal:
        journal.metrics(12, {"eval/more": 1.0})
        journal.event("checkpoint", step=12)
    set_times(files_below(tmp_path / "copied"))
    sync_run(copy, tracking_uri=uri)
    report = check(copy, tracking_uri=uri)
    assert report.ok
    assert report.num_rows_compared >= 3
