"""One job, one run: whatever happens to it, the record is true and the next job goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import CheckpointError, RecordError
from harness.job import job
from harness.records import throughput
from harness.records.directory import RunDirectory
from harness.records.disk import best_step, scores
from harness.records.journal import MEASURED
from harness.records.status import status_from
from harness.slurm.time_limit import TimeLimit
from harness.study.expand import load_study
from harness.testing import TINY_STUDY, write_run
from harness.training.checkpoints import Checkpoints, DamagedCheckpointWarning

EVALUATE = "evaluate:\n  - {nll: {estimator: full, num_images: 4}, grid: 4}\n"


def run_job(folder: Path, **options) -> str:
    return job.run_job(folder, **{"sync": False, "show_progress": False} | options)


def final_weights(folder: Path) -> dict:
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    assert checkpoint is not None
    return checkpoint[1]["method"]["ema"]


def results(folder: Path) -> list:
    return [
        (row.key, row.x, row.value)
        for row in RunDirectory(folder).rows()
        if not row.key.startswith(("perf/", "system/")) and not row.key.endswith("_seconds")
    ]


def test_a_job_trains_evaluates_and_says_so(tiny_run):
    folder = tiny_run(EVALUATE)
    assert run_job(folder) == "done"
    directory = RunDirectory(folder)
    status = directory.status()
    assert (status.state, status.step, status.num_steps, status.attempt) == ("done", 12, 12, 1)
    assert [event.name for event in directory.events()] == ["started", "checkpoint", "evaluation", "finished"]
    assert (folder / "samples/eval_samples.png").exists() and (folder / "arrays/eval_likelihood.npz").exists()
    keys = {row.key for row in directory.rows()}
    assert {
        "train/loss",
        "eval/nll_bpd",
        "eval/L_t_bpd",
        "compute/train_multiply_adds",
        "perf/images_per_second",
    } <= keys
    environment = directory.environments()[0]
    assert environment["threads"] == 1 and environment["torch"] == torch.__version__ and environment["data_digest"]


def test_while_it_evaluates_its_status_says_what_and_how_far(tiny_run, monkeypatch):
    folder = tiny_run(
        "evaluate:\n  - {nll: {estimator: full, num_images: 4}, every: 4}\n  - {name: pictures, grid: 4}\n"
    )
    monkeypatch.setattr(job, "_STATUS_EVERY_SECONDS", 0.0)
    statuses = []
    set_status = RunDirectory.set_status
    monkeypatch.setattr(
        RunDirectory, "set_status", lambda self, status: (statuses.append(status), set_status(self, status))
    )
    assert run_job(folder) == "done"
    evaluating = [status for status in statuses if status.evaluation]
    assert {status.state for status in evaluating} == {"running"}
    timed = [status for status in evaluating if status.eta_seconds is not None]
    assert timed and all(status.evaluation_total and status.eta_seconds >= 0 for status in timed)
    assert {status_from(json.loads(json.dumps(asdict(status))), "status.json") for status in timed} == set(timed)
    assert {status.evaluation.split(",")[0] for status in evaluating} == {"eval", "pictures"}
    assert {status.step for status in evaluating if "during training" in status.evaluation} == {4, 8}
    counted = [(status.evaluation_done, status.evaluation_total) for status in evaluating if status.evaluation_total]
    assert counted and all(0 <= done <= total for done, total in counted)
    training = [status for status in statuses if status.state == "running" and not status.evaluation]
    assert {4, 8} <= {status.step for status in training}  # it says so when it trains again
    final = RunDirectory(folder).status()
    assert (final.state, final.evaluation, final.evaluation_total) == ("done", "", None)


def test_a_done_run_that_is_asked_for_another_evaluation_trains_nothing(tiny_run, tiny_study):
    folder = tiny_run(EVALUATE)
    run_job(folder)
    weights, before = final_weights(folder), results(folder)
    run = tiny_study("evaluate:\n  - {name: eval_raw, weights: raw, nll: {estimator: full, num_images: 4}}\n")[0]
    RunDirectory(folder).add_to_study("another", run.membership())
    assert run_job(folder) == "done"
    added = [row for row in results(folder) if row not in before]
    assert {key.split("/")[0] for key, _, _ in added} == {"eval_raw"}
    assert all(torch.equal(weights[name], value) for name, value in final_weights(folder).items())


def test_two_protocols_under_one_name_do_not_mix(tiny_run, tiny_study):
    folder = tiny_run(EVALUATE)
    run_job(folder)
    run = tiny_study("evaluate:\n  - {weights: raw, nll: {estimator: full, num_images: 4}}\n")[0]
    RunDirectory(folder).add_to_study("another", run.membership())
    run_job(folder)
    key = run.evaluations[0].key
    assert {"eval/nll_bpd", f"eval_{key[:6]}/nll_bpd"} <= {row[0] for row in results(folder)}
    assert RunDirectory(folder).problems() == []


def test_the_likelihood_is_measured_during_training_where_asked(tiny_run):
    folder = tiny_run("evaluate:\n  - {nll: {estimator: full, num_images: 4}, every: 4}\n")
    run_job(folder)
    directory = RunDirectory(folder)
    assert directory.history("eval/nll_bpd")[0] == [4, 8, 12]
    facts = [
        (event.fields["step"], event.fields["prefix"], event.fields["key"]) for event in directory.events(MEASURED)
    ]
    [key] = directory.evaluated_keys()
    assert facts == [(4, "eval", key), (8, "eval", key)], "the last value is that of the evaluation"


def test_the_number_of_threads_is_that_of_the_first_start(tiny_run):
    folder = tiny_run("", "resources.threads=null")
    before = torch.get_num_threads()
    try:
        run_job(folder, threads=2)
        RunDirectory(folder).add_to_study("tiny", RunDirectory(folder).studies()["tiny"] | {"evaluations": []})
        run_job(folder, threads=1)
        assert [one["threads"] for one in RunDirectory(folder).environments()] == [2, 2]
    finally:
        torch.set_num_threads(before)


def test_a_run_that_fails_leaves_its_reason_and_goes_on_when_the_reason_is_gone(tiny_run, tiny_study, monkeypatch):
    folder = tiny_run("", "data=fashion_mnist", "model.channel_mult=[1, 1, 1]", "data_root=/nowhere")
    assert run_job(folder) == "failed"
    status = RunDirectory(folder).status()
    assert status.state == "failed" and "fashion_mnist: missing" in status.reason and "/nowhere" in status.reason
    assert RunDirectory(folder).events("failed")[0].fields["reason"] == status.reason


def test_a_training_that_diverges_is_left_failed_with_its_step(tiny_run):
    folder = tiny_run("", "optim.lr=1e30", "train.steps=40")
    assert run_job(folder) == "failed"
    assert "not a number at step" in RunDirectory(folder).status().reason


def test_weights_of_inception_that_are_not_on_this_machine_fail_a_job_before_its_training(tmp_path, monkeypatch):
    evaluate = "evaluate: [{fidelity: {num_samples: 16, num_steps: 5, extractor: inception}}]\n"
    (tmp_path / "tiny.yaml").write_text(TINY_STUDY + evaluate)
    run = write_run(load_study(tmp_path / "tiny.yaml", inception=True).runs[0], tmp_path / "runs")
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)
    assert run_job(run.path) == "failed"
    assert "put it anywhere and set HARNESS_INCEPTION_WEIGHTS to the file" in run.status().reason
    assert run.durable_step() == 0 and run.rows() == []


def test_a_second_job_is_refused_while_the_first_works(tiny_run):
    folder = tiny_run()
    with RunDirectory(folder).lock(), pytest.raises(RecordError, match=f"process {os.getpid()}"):
        run_job(folder)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_is_trained_and_evaluated_again_to_the_same_numbers(tiny_run):
    folder = tiny_run(EVALUATE, "records.keep_every=5")
    run_job(folder)
    weights, before = final_weights(folder), results(folder)
    newest = max((folder / "checkpoints").glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(DamagedCheckpointWarning):
        assert run_job(folder) == "done"
    assert RunDirectory(folder).events("started")[1].fields["resumed_from_step"] == 10
    assert sorted(results(folder)) == sorted(before)
    assert all(torch.equal(weights[name], value) for name, value in final_weights(folder).items())
    assert RunDirectory(folder).problems() == []


BEST = "evaluate:\n  - {nll: {estimator: full, num_images: 4}, every: 4}\n"


@pytest.mark.slow
def test_the_best_checkpoint_by_the_metric_that_the_spec_names_is_kept_with_the_score_of_its_own_step(tiny_run):
    # A rate at which training only gets worse: the best is an early one, which would be gone otherwise.
    folder = tiny_run(BEST, "records.best=eval/nll_bpd", "optim.lr=1.0", "train.steps=24", "train.ema_rate=0")
    assert run_job(folder) == "done"
    steps, values = RunDirectory(folder).history("eval/nll_bpd")
    assert steps == [4, 8, 12, 16, 20, 24]
    best = steps[values.index(min(values))]
    assert best < 20, values
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.steps() == [best, 20, 24]
    assert best_step(folder / "checkpoints") == best
    known = scores(folder / "checkpoints")
    assert known == {step: value for step, value in zip(steps, values, strict=True) if step in checkpoints.steps()}


@pytest.mark.slow
def test_an_evaluation_of_the_best_checkpoint_has_its_numbers_and_says_how_it_was_selected(tiny_run):
    entries = BEST.replace("- {", "- {name: eval, ") + "  - {name: chosen, checkpoint: best, nll: {estimator: full}}\n"
    entries += "  - {name: again, checkpoint: best, nll: {estimator: full, num_images: 4}}\n"
    folder = tiny_run(entries, "records.best=eval/nll_bpd", "optim.lr=1.0", "train.steps=12", "train.ema_rate=0")
    assert run_job(folder) == "done"
    directory = RunDirectory(folder)
    steps, values = directory.history("eval/nll_bpd")
    best = steps[values.index(min(values))]
    assert best < 12, values
    assert directory.history("again/nll_bpd") == ([12], [min(values)])
    assert directory.history("chosen/nll_bpd")[1] != [min(values)]
    [key] = [event.fields["key"] for event in directory.events("evaluation") if event.fields["prefix"] == "chosen"]
    recorded = json.loads(directory.evaluation_path(key).read_text())["checkpoint"]
    about = {"step": best, "last_step": 12, "metric": "eval/nll_bpd", "value": min(values), "split": "test", "seed": 0}
    assert recorded == about


def test_fid_chooses_a_checkpoint_where_it_is_measured_during_training(tiny_run):
    entry = "{during_training: [fidelity], fidelity: {num_samples: 32, num_steps: 2}, nll: {num_images: 4}, every: 4}"
    name = "eval/fid_digitsnet_32_ancestral2"
    folder = tiny_run(f"evaluate:\n  - {entry}\n", f"records.best={name}", "train.steps=10")
    assert run_job(folder) == "done"
    history = RunDirectory(folder).history
    assert history(name)[0] == [4, 8, 10]
    assert history("eval/recall_digitsnet_32_ancestral2")[0] == [4, 8, 10]
    assert history("eval/nll_bpd")[0] == [10]
    values = dict(zip(*history(name), strict=True))
    kept = Checkpoints(folder / "checkpoints").steps()
    assert scores(folder / "checkpoints") == {step: values[step] for step in kept}
    assert best_step(folder / "checkpoints") == min(values, key=values.__getitem__)


def test_the_last_step_is_scored_by_the_evaluation_at_the_end(tiny_run):
    folder = tiny_run(BEST, "records.best=eval/nll_bpd", "train.steps=10")
    run_job(folder)
    assert scores(folder / "checkpoints")[10] == RunDirectory(folder).history("eval/nll_bpd")[1][-1]


def test_verbs_take_the_best_checkpoint_and_refuse_where_there_is_none(tiny_run):
    folder = tiny_run(BEST, "records.best=eval/nll_bpd", "train.steps=10")
    run_job(folder)
    best = json.loads((folder / "checkpoints" / "scores.json").read_text())
    (folder / "checkpoints" / "scores.json").write_text(json.dumps(best | {"scores": {"8": 1.0, "10": 2.0}}))
    common = ["--runs", str(folder.parent)]
    sampled = ["sample", folder.name, "--checkpoint", "best", "--num-steps", "5", "--num-samples", "2", *common]
    assert "_step8.png" in CliRunner().invoke(cli, sampled).output
    exported = ["export-checkpoint", folder.name, str(folder / "x.pt"), "--checkpoint", "best", *common]
    assert "at step 8\n" in CliRunner().invoke(cli, exported).output
    (folder / "checkpoints" / "scores.json").unlink()
    refused = CliRunner().invoke(cli, exported).exception
    assert isinstance(refused, CheckpointError)
    assert "no best checkpoint: its studies name no metric in records.best" in str(refused)


def test_a_checkpoint_of_another_spec_is_refused_with_the_difference(tiny_run):
    folder, other = tiny_run("", folder="a"), tiny_run("", "optim.lr=0.5", "train.steps=13", folder="b")
    run_job(folder)
    shutil.copytree(folder / "checkpoints", other / "checkpoints")
    assert run_job(other) == "failed"
    assert RunDirectory(other).status().reason.splitlines() == [
        "the checkpoint of step 12 is of another spec:",
        "  spec.optim.lr: stored 0.001, now 0.5",
        "  spec.train.steps: stored 12, now 13",
    ]
    assert not [event for event in RunDirectory(other).events() if event.name == "checkpoint"]


def test_a_run_directory_of_another_spec_is_refused_on_the_command_line_with_the_difference(tiny_run, tmp_path):
    folder = tiny_run()
    stored = json.loads((folder / "spec.json").read_text())
    stored["spec"]["optim"]["lr"] = 0.5
    (folder / "spec.json").write_text(json.dumps(stored))
    submit = ["submit", str(tmp_path / "tiny.yaml"), "--no-sync", "--runs", str(folder.parent)]
    refused = CliRunner().invoke(cli, submit).exception
    assert isinstance(refused, RecordError)
    assert str(refused) == f"{folder} belongs to another spec:\n  spec.optim.lr: stored 0.5, now 0.001"
    assert RunDirectory(folder).attempts() == []


@pytest.mark.slow
def test_a_run_killed_between_training_and_evaluation_loses_no_row(tiny_run, monkeypatch):
    unbroken, killed = tiny_run(EVALUATE, folder="a"), tiny_run(EVALUATE, folder="b")
    run_job(unbroken)
    with monkeypatch.context() as patch:
        patch.setattr("harness.job.job.record_compute", lambda *_: (_ for _ in ()).throw(MemoryError("killed here")))
        assert run_job(killed) == "failed"
    assert run_job(killed) == "done"
    assert sorted(results(unbroken)) == sorted(results(killed))


def start_job(folder: Path) -> subprocess.Popen:
    code = f"from harness.job.job import run_job; print(run_job({str(folder)!r}, sync=False))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_until(condition, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


LONG = ("train.steps=150", "records.checkpoint_every_seconds=0.1", "records.log_every=7", "model.dropout=0.1")


@pytest.mark.slow
def test_a_run_killed_by_sigkill_and_resumed_ends_in_the_bits_of_an_unbroken_one(tiny_run):
    unbroken, killed = tiny_run(EVALUATE, *LONG, folder="a"), tiny_run(EVALUATE, *LONG, folder="b")
    assert run_job(unbroken) == "done"
    process = start_job(killed)
    wait_until(lambda: RunDirectory(killed).status().step >= 14 and RunDirectory(killed).events("checkpoint"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunDirectory(killed).status().state == "interrupted"
    assert run_job(killed) == "done"
    assert RunDirectory(killed).events("started")[1].fields["resumed_from_step"] > 0
    for name, value in final_weights(unbroken).items():
        assert torch.equal(value, final_weights(killed)[name]), name
    assert results(unbroken) == results(killed)


def test_a_worker_that_ignores_sigint_goes_on_ignoring_it(tiny_run, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        seen = []
        monkeypatch.setattr(
            "harness.job.job._Job._evaluate_at_end", lambda *_: seen.append(signal.getsignal(signal.SIGINT))
        )
        run_job(tiny_run())
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_stop_checkpoints_at_the_next_step(tiny_run, number):
    folder = tiny_run("", "train.steps=100000", "records.checkpoint_every_seconds=1000")
    process = start_job(folder)
    wait_until(lambda: RunDirectory(folder).status().step >= 5)
    process.send_signal(number)
    assert process.communicate(timeout=240)[0].strip() == "interrupted"
    directory = RunDirectory(folder)
    assert directory.status().state == "interrupted" and directory.status().stopped_by == signal.Signals(number).name
    assert directory.durable_step() >= directory.status().step > 0


def test_a_checkpoint_whose_weights_are_not_finite_is_neither_sampled_nor_exported(tiny_run, tmp_path):
    folder = tiny_run()
    run_job(folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    latest = checkpoints.latest()
    assert latest is not None
    step, state = latest
    name, weight = next((name, value) for name, value in state["method"]["ema"].items() if value.is_floating_point())
    weight.view(-1)[0] = torch.nan
    checkpoints.save(step, state)
    for verb in (
        ["sample", folder.name, "--num-steps", "5"],
        ["export-checkpoint", folder.name, str(tmp_path / "x.pt")],
    ):
        refused = CliRunner().invoke(cli, [*verb, "--runs", str(folder.parent)]).exception
        assert isinstance(refused, CheckpointError)
        assert f"step {step}, ema weights: 1 of the {weight.numel()} values of {name} are not finite" in str(refused)


def test_a_training_whose_checkpoints_take_too_long_for_the_signal_stops_ahead_of_it_and_records_how_long(tiny_run):
    folder = tiny_run("", "records.checkpoint_every_seconds=0")
    limit = TimeLimit(ends_monotonic=time.monotonic(), limit_seconds=3600, lead_seconds=0)
    assert run_job(folder, time_limit=limit) == "interrupted"
    directory = RunDirectory(folder)
    assert directory.status().stopped_by == "SIGUSR2" and directory.durable_step() == 2  # the first tells how long
    assert run_job(folder) == "done"
    ((measured,),) = throughput.load(folder.parent).values()
    assert measured.checkpoint_seconds is not None and measured.checkpoint_seconds > 0
