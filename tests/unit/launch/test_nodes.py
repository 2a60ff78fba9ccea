"""Nodes that ended a run are listed for a day, and left out meanwhile."""

import time

import pytest

from harness.launch import requeue
from harness.launch.nodes import exclude_option, note_failed_nodes
from harness.records.directory import RunDirectory
from harness.records.nodes import EXCLUDED_SECONDS, bad_nodes, report_bad_node
from harness.slurm.jobs import JobAttempt, JobInfo


def names(runs):
    return [entry.node for entry in bad_nodes(runs)]


def test_a_node_is_listed_for_a_day_with_its_newest_fault(tmp_path):
    now = time.time()
    report_bad_node(tmp_path, "n1", "ECC", now - 60)
    report_bad_node(tmp_path, "n2", "ECC", now - EXCLUDED_SECONDS - 1)
    report_bad_node(tmp_path, "n1", "NVLink", now)
    assert names(tmp_path) == ["n1"] and bad_nodes(tmp_path)[0].reason == "NVLink"
    text = bad_nodes(tmp_path)[0].describe(tmp_path)
    assert text.startswith("node n1 is excluded until 2")
    assert text.endswith(f": NVLink; to use it before that, remove {tmp_path / '.nodes' / 'n1.json'}")
    (tmp_path / ".nodes" / "n1.json").write_text("{")
    assert names(tmp_path) == []  # damaged: nothing is excluded by it


def test_the_profiles_nodes_stay_excluded_beside_the_bad_ones(tmp_path):
    report_bad_node(tmp_path, "n1", "ECC")
    assert exclude_option("n7", bad_nodes(tmp_path)) == "n7,n1"
    assert exclude_option("n7", []) == "n7" and exclude_option(None, []) is None


def ended(seconds_ago):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - seconds_ago))


def test_a_failed_node_is_told_by_slurm_if_the_job_had_only_that_one(tmp_path):
    attempts = (
        JobAttempt("NODE_FAIL", "n3", end=ended(60)),
        JobAttempt("NODE_FAIL", "n[4-5]", end=ended(60)),
        JobAttempt("NODE_FAIL", "n6", end=ended(EXCLUDED_SECONDS + 60)),
        JobAttempt("OUT_OF_MEMORY", "n7", end=ended(60)),
        JobAttempt("RUNNING", "n8"),
    )
    note_failed_nodes(tmp_path, [None, JobInfo("7_0", "RUNNING", attempts=attempts)])
    assert names(tmp_path) == ["n3"]
    report_bad_node(tmp_path, "n3", "found since")
    note_failed_nodes(tmp_path, [JobInfo("7_0", "RUNNING", attempts=attempts)])
    assert bad_nodes(tmp_path)[0].reason == "found since"


def test_a_broken_device_sends_the_job_elsewhere_and_three_of_them_give_the_run_up(tmp_path, tiny_study):
    facts = {"killed": False, "preempted": False, "preemption_cancels": False}
    assert requeue.requeue_action("", device_broken=True, **facts) == "resubmit"
    (run,) = tiny_study()
    directory = RunDirectory(tmp_path / run.run_key)
    directory.register(run)
    for expected in (None, None, "no_progress"):
        with directory.lock(), directory.open_journal(resumed_from_step=4) as journal:
            journal.event("interrupted", reason="ECC", cause="device")
        ending = requeue.given_up(directory.path)
        assert (ending.cause if ending else None) == expected


@pytest.mark.parametrize("cause", [{}, {"cause": "signal"}])
def test_a_person_who_stops_a_run_three_times_gives_nothing_up(tmp_path, tiny_study, cause):
    (run,) = tiny_study()
    directory = RunDirectory(tmp_path / run.run_key)
    directory.register(run)
    for _ in range(3):
        with directory.lock(), directory.open_journal(resumed_from_step=4) as journal:
            journal.event("interrupted", reason="SIGTERM", **cause)
    assert requeue.given_up(directory.path) is None
