"""What is shown: the same words on a terminal and elsewhere, and no file can draw on the screen."""

from __future__ import annotations

import io
import json
import shlex
import sys
import time
from typing import Any

import pytest

from harness import text
from harness.cli import plan_view, status_view, tables, timeline
from harness.cli.common import Output
from harness.launch import planning
from harness.records.directory import RunDirectory
from harness.records.layout import JOBS, SubmissionLayout
from harness.records.status import Status
from harness.slurm.jobs import JobAttempt, JobInfo
from harness.study.expand import load_study


def last_nll(directory):
    return status_view.last_result([path.read_bytes() for path in directory.journal_paths()], ["eval/nll_bpd"])


def a_standing(**facts) -> status_view.StatusRow:
    known: dict[str, Any] = {
        "run_key": "a" * 16,
        "studies": ("tiny",),
        "arm": "cosine",
        "replicate": 1,
        "state": "running",
        "step": 50,
        "num_steps": 200,
        "steps_per_second": 2.5,
        "eta_seconds": 60.0,
        "loss": 0.25,
        "nll_bpd": None,
        "reason": "",
        "run_dir": "runs/a",
    }
    return status_view.StatusRow(**(known | facts))


# -------------------------------------------------------------------------------------------------------------- tables


def test_a_plain_table_is_aligned_and_has_no_trailing_spaces():
    table = tables.Table(("run", "state"), [("abc", "done"), ("a", "new")])
    assert table.plain() == "run  state\nabc  done\na    new"


def test_a_table_without_rows_is_its_header():
    assert tables.Table(("run", "state"), []).plain() == "run  state"


def test_no_name_can_move_the_cursor_or_forge_a_line():
    assert text.printable("a\x1b[2J\nb\u202ec") == "a [2J b c"
    assert tables.Table(("arm",), [("x\r\ny",)]).plain() == "arm\nx  y"


def test_the_terminal_gets_the_same_words_and_reads_no_markup():
    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    screen.print(tables.Table(("arm", "state"), [("[red]x[/red]", "failed")]).rich())
    drawn = screen.file.getvalue()
    assert "[red]x[/red]" in drawn
    assert "\x1b[31mfailed" in drawn


@pytest.mark.parametrize(
    ("num_bytes", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**41, "2.0 TiB")]
)
def test_sizes_are_in_binary_units(num_bytes, said):
    assert text.size(num_bytes) == said


def test_states_are_counted_in_the_order_in_which_they_follow():
    assert tables.state_counts(["done", "new", "failed", "done"]) == "1 new, 1 failed, 2 done"


# ---------------------------------------------------------------------------------------------------------------- plan


def test_a_plan_adds_up_what_is_known_and_says_what_is_not(tmp_path, tiny_study, capsys):
    tiny_study("arms: {small: {}, wide: {model.channels: 16}}\nreplicates: 2\nbudget_gpu_hours: 40\n")
    study = load_study(tmp_path / "tiny.yaml", sets=["resources.device=auto"])
    folder = tmp_path / "runs" / ".throughput"
    folder.mkdir(parents=True)
    measured = {
        "seconds_per_step": 100.0,
        "device": "cuda",
        "threads": 1,
        "kernels": "fused",
        "checkpoint_bytes": 2**20,
    }
    (folder / f"{study.runs[0].spec.cost_key}.json").write_text(json.dumps(measured))
    plan_view.show_plan(planning.plan(study, tmp_path / "runs"))
    shown = capsys.readouterr().out.splitlines()
    assert shown[2:5] == [
        "arm    runs  state  training left  device time  checkpoints",
        "small  2     2 new  40 min         40 min       4.0 MiB",
        "wide   2     2 new  ?              ?            ?",
    ]
    assert shown[-3:] == [
        "training left: 40 GPU minutes on cuda, an unknown time for 2 runs (no similar run has been measured yet), "
        "without evaluations; budget: 40 GPU hours",
        "checkpoints will take: 4.0 MiB + ?",
        f"`harness calibrate {tmp_path / 'tiny.yaml'} --set resources.device=auto --runs {tmp_path / 'runs'}` measures "
        "what is unknown",
    ]


def test_a_plan_lists_what_each_arm_is_measured_by_and_its_cost(tmp_path, tiny_study, capsys):
    tiny_study(
        "arms: {a: {}, b: {optim.lr: 2e-3}, c: {optim.lr: 3e-3}}\n"
        "evaluate:\n"
        "  - {name: eval, arms: [a, b], nll: {estimator: full, num_images: 64}}\n"
        "  - {name: eval_samples, arms: [a], fidelity: {num_samples: 100, num_steps: 5}, grid: 64}\n"
    )
    study = load_study(tmp_path / "tiny.yaml")
    folder = tmp_path / "runs" / ".throughput"
    folder.mkdir(parents=True)
    measured = {"seconds_per_step": 4.8, "device": "cpu", "threads": 1, "kernels": "fused"}  # 0.1 s per image forward
    (folder / f"{study.runs[0].spec.cost_key}.json").write_text(json.dumps(measured))
    plan_view.show_plan(planning.plan(study, tmp_path / "runs"))
    shown = capsys.readouterr().out.splitlines()
    first = next(index for index, line in enumerate(shown) if line.startswith("evaluation "))
    assert shown[first : first + 4] == [
        "evaluation    arms  measures        network evaluations a run  time a run",
        "eval          a, b  nll             2.4 k                      about 4 min",
        "eval_samples  a     fidelity, grid  500                        about 50 s",
        "none          c     -               -                          -",
    ]
    assert any(line.startswith("training left: ") and "; evaluations: about 8.8 min" in line for line in shown)


@pytest.mark.parametrize(
    ("hours", "cell", "said"),
    [
        (0, "0 s", "0 GPU seconds"),
        (1e-5, "<0.1 s", "<0.1 GPU seconds"),
        (0.0036, "13 s", "13 GPU seconds"),
        (1 / 60, "60 s", "60 GPU seconds"),
        (0.1, "6 min", "6 GPU minutes"),
        (0.999, "1 h", "1 GPU hour"),
        (3.14, "3.1 h", "3.1 GPU hours"),
        (9.96, "10 h", "10 GPU hours"),
        (1234.5, "1,234 h", "1,234 GPU hours"),
    ],
)
def test_a_cost_is_said_in_the_unit_that_a_person_would_use(hours, cell, said):
    assert (text.compute_time(hours), text.device_time(hours, "GPU")) == (cell, said)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.2, "<1 s"), (89, "89 s"), (91, "2 min"), (3599, "1 h"), (12_000, "3 h 20 min"), (2e5, "2 d 7 h")],
)
def test_a_time_on_the_clock_has_at_most_two_units(seconds, said):
    assert text.duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.62e-3, "3.62 ms"), (0.25, "250 ms"), (0.9999, "1 s"), (12.34, "12.3 s"), (3600, "3,600 s")]
)
def test_a_step_takes_milliseconds_or_seconds(seconds, said):
    assert text.step_time(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (14_200, "14.2 k"), (999_999, "1 M"), (2.5e9, "2.5 G")]
)
def test_large_numbers_have_three_digits(number, said):
    assert text.rounded_count(number) == said


def test_what_differs_is_spelt_briefly():
    overrides = {"objective": {"name": "hybrid", "lambda_vlb": 0.001}, "model.channel_mult": [1, 2], "data": "digits"}
    assert plan_view._overrides(overrides) == "objective=hybrid(lambda_vlb=0.001) model.channel_mult=[1,2] data=digits"
    assert plan_view._overrides({}) == "-"


# -------------------------------------------------------------------------------------------------------------- status


def test_speed_and_time_left_are_shown_of_running_runs_alone():
    headers = dict(zip(status_view.STATUS_HEADERS, a_standing().row(), strict=True))
    assert (headers["it/s"], headers["ETA"], headers["step"]) == ("2.5", "60 s", "50/200")
    stopped = dict(zip(status_view.STATUS_HEADERS, a_standing(state="failed", reason="boom").row(), strict=True))
    assert (stopped["it/s"], stopped["ETA"], stopped["why"]) == ("-", "-", "boom")


def test_images_per_second_become_steps_per_second(tiny_run):
    directory = RunDirectory(tiny_run())
    with directory.lock():
        directory.set_status(Status("running", 6, 12, 1, images_per_second=40.0))
        [found] = status_view.status_rows([directory])
    assert found.steps_per_second == 40.0 / 16
    assert (found.arm, found.replicate, found.num_steps, found.studies) == ("base", 0, 12, ("tiny",))


def test_the_newest_likelihood_is_found_behind_long_curves(tiny_run):
    directory = RunDirectory(tiny_run())
    for value in (4.0, 3.0):
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            journal.metrics(6, {"eval/nll_bpd": value + 0.5})
            journal.metrics(12, {"perf/steps_per_second": 1.0, "eval/nll_bpd": value, "eval/L_T_bpd": 0.1})
            for t in range(300):
                journal.metrics(t, {"eval/L_t_bpd": 0.5}, train_step=12)
    assert last_nll(directory) == 3.0


def test_the_fid_beside_the_likelihood_is_the_evaluation_s_own_and_no_other_metric_of_features(tiny_run):
    directory = RunDirectory(tiny_run())
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        others = {"eval/fid_infinity_digitsnet_500_ddim50": 1.0, "eval/precision_digitsnet_500_ddim50": 0.5}
        journal.metrics(
            12, {"eval/fid_digitsnet_500_ddim50": 7.25, "eval_other/fid_digitsnet_500_ddim50": 9.0, **others}
        )
        journal.metrics(0, {"eval/fid_by_seed_digitsnet_500_ddim50": 8.0}, train_step=12)
        directory.set_status(Status("done", 12, 12, 1))
    [row] = status_view.status_rows([directory])
    assert row.fid == 7.25
    assert dict(zip(status_view.STATUS_HEADERS, row.row(), strict=True))["fid"] == "7.25"


def test_the_studies_of_a_run_are_a_column_on_request():
    table = status_view.status_table([a_standing(studies=("digits", "scaling"))], study=True)
    assert table.plain().splitlines()[0].split()[:3] == ["run", "study", "arm"]
    assert "digits, scaling" in table.plain()


def test_a_torn_line_has_no_likelihood(tiny_run):
    directory = RunDirectory(tiny_run())
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.metrics(12, {"eval/nll_bpd": 3.0})
    path = directory.path / "journal-0001.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert last_nll(directory) is None


def test_without_a_terminal_a_line_is_said_when_a_state_changes(capsys):
    seen = [
        [a_standing(state="new", step=0)],
        [a_standing()],
        [a_standing(step=60)],
        [a_standing(state="done", step=200, nll_bpd=3.5)],
    ]
    with status_view.Follower(lambda: seen.pop(0)) as follower:
        for _ in range(3):
            follower.tick()
    lines = [line[9:] for line in capsys.readouterr().out.splitlines()]  # less the time of day
    assert lines == [
        f"{'a' * 16} cosine r1: new -> running; step 50/200, 60 s left, loss 0.2500",
        f"{'a' * 16} cosine r1: running -> done; step 200/200, loss 0.2500, nll 3.5000 bits/dim",
    ]


def test_without_a_terminal_running_runs_are_mentioned_now_and_then(capsys):
    with status_view.Follower(lambda: [a_standing()]) as follower:
        follower.tick()
        assert capsys.readouterr().out == ""
        follower._last_news -= status_view.NEWS_EVERY_SECONDS
        follower.tick()
    assert "cosine r1: running; step 50/200, 60 s left" in capsys.readouterr().out


def test_on_a_terminal_a_table_is_redrawn_with_those_at_work_first(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("TERM", "xterm")
    done = [a_standing(run_key=f"{number:016x}", state="done") for number in range(50)]
    with status_view.Follower(lambda: [*done, a_standing(run_key="f" * 16)]) as follower:
        follower.tick()
    drawn = screen.getvalue()
    assert "f" * 16 in drawn
    assert "51 runs: 1 running, 50 done" in drawn
    assert f"{49:016x}" not in drawn  # there is no room for it


# ----------------------------------------------------------------------------------------------------------------- why


def test_a_chain_of_events_keeps_the_last_of_many_checkpoints_and_hides_tracebacks(tiny_run):
    directory = RunDirectory(tiny_run())
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        for step in (2, 4, 6):
            journal.event("checkpoint", step=step)
        journal.event("failed", reason="boom", traceback="Traceback ...")
    with directory.lock(), directory.open_journal(resumed_from_step=4):
        pass
    lines = [line.split("  ", 1)[1] for line in timeline.timeline(directory)]
    assert lines[0].startswith("started on ")
    assert lines[1:3] == ["checkpoint  step=6  (superseded by a later attempt)", "failed  reason=boom"]
    assert lines[3].startswith("resumed at step 4 on ")
    assert "(attempt 2, process " in lines[3]


def test_what_happens_within_one_second_is_told_in_its_order(tiny_run, monkeypatch):
    """SLURM's times are whole seconds: a start of 12:00:01 was after a submission of 12:00:01.7.

    The journal's are whole milliseconds: the run starts 0.9 ms before its submission, by the numbers alone.
    """
    directory = RunDirectory(tiny_run())
    submission = SubmissionLayout(directory.path.parent / JOBS / "tiny" / "20261126-120000-000000-1")
    submission.claims_folder.mkdir(parents=True)
    submission.claim_path(directory.key).write_text("7\n")
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.event("checkpoint", step=4)
        journal.event("interrupted", reason="SIGUSR2")
    ended = time.time()
    submitted = directory.events()[0].time_ms / 1000 + 0.0009
    description = {"cluster": "slurm", "user": "ada", "time": submitted}
    submission.submission_path.write_text(json.dumps(description))

    def of_slurm(seconds: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))

    attempts = (
        JobAttempt("PREEMPTED", "n1", of_slurm(submitted), of_slurm(ended), "0:12"),
        JobAttempt("RUNNING", "n2", of_slurm(ended)),
    )
    queue = {"7": JobInfo("7", "RUNNING", attempts=attempts)}
    monkeypatch.setattr(timeline, "read_recent_queue", lambda _: queue)
    lines = [line.split("  ", 1)[1] for line in timeline.timeline(directory)]
    assert lines[:2] == ["submitted by ada (slurm, job 7)", "SLURM starts job 7 on n1"]
    assert lines[2].startswith("started on ")
    assert lines[3:] == [
        "checkpoint  step=4",
        "interrupted  reason=SIGUSR2",
        "SLURM ends job 7: PREEMPTED, exit code 0:12",
        "SLURM starts job 7 again on n2",
    ]


@pytest.mark.parametrize(
    ("facts", "eta", "note"),
    [
        ({}, "60 s", ""),
        ({"evaluation": "eval", "step": 200, "eta_seconds": None}, "-", "evaluates eval"),
        (
            {"evaluation": "eval, sampling", "evaluation_done": 30, "evaluation_total": 64, "step": 200},
            "60 s",
            "evaluates eval, sampling: 30/64",
        ),
        ({"step": 200, "eta_seconds": 0.0}, "-", ""),  # written by a version that did not say what it evaluates
    ],
)
def test_a_run_that_evaluates_says_what_and_when_it_has_measured_that_part(facts, eta, note):
    row = a_standing(**facts)
    cells = dict(zip(status_view.STATUS_HEADERS, row.row(), strict=True))
    assert (cells["ETA"], cells["why"]) == (eta, note)


@pytest.mark.parametrize("name", ["a b.yaml", "$HOME/x.yaml", "it's.yaml", "-rf.yaml", "a;b.yaml"])
def test_a_command_that_is_suggested_can_be_pasted(name):
    assert shlex.split(f"harness submit {text.shell_word(name)}") == ["harness", "submit", name]


def test_a_document_has_null_for_numbers_that_json_does_not_have():
    stream = io.StringIO()
    Output(stream).document({"a": [float("nan"), 1.5], "b": {"c": float("inf")}, "d": ("x", None)})
    refuse = pytest.fail  # what json.loads calls for NaN and Infinity
    assert json.loads(stream.getvalue(), parse_constant=refuse) == {
        "a": [None, 1.5],
        "b": {"c": None},
        "d": ["x", None],
    }
