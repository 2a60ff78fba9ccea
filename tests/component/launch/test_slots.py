"""Workers of several code versions share the machine, and none of it idles while a run of any version waits."""

from __future__ import annotations

import logging
import shutil
import sys

import pytest

from harness import PACKAGE_ROOT
from harness.launch import local, planning, submit
from harness.launch.worker import Worker
from harness.messages import show_messages
from harness.records import snapshot
from harness.records.layout import SubmissionLayout
from harness.slurm.profile import Profile
from harness.study.expand import load_study


@pytest.mark.parametrize(
    ("num_runs", "jobs", "shares"),
    [
        ({"a": 4}, 2, {"a": 2}),
        ({"a": 1, "b": 9}, 4, {"b": 4}),
        ({"a": 3, "b": 3}, 2, {"a": 1, "b": 1}),
        ({"a": 2, "b": 6}, 4, {"a": 1, "b": 3}),
        ({"a": 1, "b": 1, "c": 1}, 1, {"a": 1}),
    ],
)
def test_slots_begin_with_the_versions_that_have_the_most_runs(num_runs, jobs, shares):
    first = local._share_slots(num_runs, jobs)
    assert {code: first.count(code) for code in set(first)} == shares


def test_a_worker_has_left_what_nobody_took_or_cancelled(tmp_path):
    layout = SubmissionLayout(tmp_path)
    for folder in ("claims", "cancelled"):
        (tmp_path / folder).mkdir()
    layout.claim_path("aaaa").write_text("1")
    layout.cancelled_path("bbbb").write_text("{}")
    queue = tuple(tmp_path / name for name in ("aaaa", "bbbb", "cccc"))
    assert Worker(queue, tmp_path, 1).left() == [tmp_path / "cccc"]


@pytest.fixture
def submission(tmp_path, tiny_study):
    """Return one slot for three runs, of which one is to go on with the code of another day."""
    tiny_study("replicates: 3\n", "train.steps=2")
    plan = planning.plan(load_study(tmp_path / "tiny.yaml", sets=["train.steps=2"]), tmp_path / "runs")
    submit._register_runs(plan)
    for name in ("harness", "analysis"):
        shutil.copytree(PACKAGE_ROOT / name, tmp_path / "tree" / name, symlinks=True)
    store = tmp_path / "runs" / ".code"
    today = snapshot.take(store, tmp_path / "tree")
    (tmp_path / "tree" / "harness" / "another_day.txt").write_text("")
    codes = dict(
        zip([run.run_key for run in plan.runs], [today, today, snapshot.take(store, tmp_path / "tree")], strict=True)
    )
    folder = tmp_path / "runs" / ".jobs" / "tiny" / "20260101"
    SubmissionLayout(folder).claims_folder.mkdir(parents=True)
    options = {"jobs": 1, "profile": Profile(), "sync": False, "tracking_uri": None}
    return local.launch_local(plan, list(plan.runs), folder, codes, **options), codes


@pytest.mark.slow
def test_one_slot_serves_each_run_with_its_own_code(submission):
    launched, codes = submission
    assert launched.wait(lambda: None)
    assert [planned.state for planned in launched.now()] == ["done"] * 3
    assert {planned.run_key: snapshot.of(planned.path) for planned in launched.runs} == {
        key: code.id for key, code in codes.items()
    }
    assert len(launched.jobs) == 2


def test_what_the_runs_are_shown_on_may_fail_and_no_worker_goes_on_unseen(submission):
    launched, _ = submission

    def tick():
        raise BrokenPipeError("the reader of our output has gone")

    with pytest.raises(BrokenPipeError):
        launched.wait(tick)
    assert launched.alive() == []
    assert len(launched.jobs) == 1  # and no other was started


def test_a_run_whose_worker_cannot_begin_says_so_with_the_log(submission):
    launched, codes = submission
    for code in codes.values():  # the folder that workers import from is gone
        (code.path / "harness" / "launch" / "worker.py").unlink(missing_ok=True)
    assert launched.wait(lambda: None)
    for planned in launched.now():
        assert (planned.state, planned.status.cause) == ("interrupted", "not_begun")
        assert planned.status.reason.startswith("its worker ended before it began; its log: ")


def test_a_terminal_that_is_not_utf_8_ends_no_command(capfdbinary, monkeypatch):
    with open(1, "w", encoding="ascii", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        show_messages("stdout")
        logging.getLogger("harness").info("noise ± 0.1 → é")
        print("noise ± 0.1")
    assert capfdbinary.readouterr().out == b"noise \\xb1 0.1 \\u2192 \\xe9\nnoise \\xb1 0.1\n"


def test_a_standard_output_that_is_closed_ends_no_command(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    show_messages("stdout")
    assert not sys.stdout.isatty()
    print("nobody reads this")
    sys.stdout.close()
