"""Two methods behind one loop: a second one, with a critic, goes through all that a run goes through."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from harness.analysis.answers import results
from harness.analysis.figures import fig_learning_curves, fig_sampling_steps
from harness.analysis.runs import load_records
from harness.cli import cli
from harness.errors import SpecError
from harness.evaluation.sampling import SampleSettings, sample_run
from harness.interop.checkpoints import export_checkpoint
from harness.job import job
from harness.job.verify import digests, verify_resume
from harness.launch import calibrate, planning
from harness.records.directory import RunDirectory
from harness.records.plugins import read_spec
from harness.registry import make_method
from harness.spec.evaluation import Ancestral
from harness.spec.metrics import training_terms
from harness.spec.resources import Resources
from harness.study.expand import load_study
from harness.training.checkpoints import Checkpoints

PLUGIN = Path(__file__).parent / "critic"
CPU = torch.device("cpu")

STUDY = """study: critics
plugins: [critic.py]
method: {name: critic, weight: 0.2}
data: mog
model: {name: mlp, width: 16, depth: 1}
diffusion: {num_timesteps: 4, schedule: cosine}
optim: {lr: 2.0e-3}
train: {steps: 40, batch_size: 32, ema_rate: 0.8}
records: {log_every: 5}
resources: {device: cpu, threads: 1}
"""
EVALUATE = "evaluate:\n  - {fidelity: {num_samples: 64, num_steps: 4}}\n"


@pytest.fixture
def study(tmp_path):
    """Return a function that plans STUDY with extra lines of YAML and `--set`s, its plugin beside it."""
    for path in PLUGIN.glob("*.py"):
        shutil.copy(path, tmp_path)

    def plan(extra: str = "", *sets: str):
        path = tmp_path / "critics.yaml"
        path.write_text(STUDY + extra)
        return load_study(path, sets=sets)

    return plan


def run_in(folder: Path, run) -> RunDirectory:
    """Train and evaluate a planned run in this process."""
    directory = RunDirectory(folder / run.run_key)
    directory.register(run)
    state = job.run_job(directory.path, sync=False, show_progress=False)
    assert state == "done", directory.status().reason
    return directory


# -- in a study


def test_what_belongs_to_another_method_is_refused_with_its_line_and_the_choices(study):
    for extra, line, message in [
        ("objective: hybrid\n", 11, "objective is used by method gaussian, not by critic: remove it, or choose method"),
        ("timestep_sampler: uniform\n", 11, "timestep_sampler is used by method gaussian, not by critic"),
        ("arms:\n  a: {diffusion.var_type: learned}\n", 12, "diffusion.var_type is used by method gaussian"),
        (
            "evaluate:\n  - {nll: {}}\n",
            12,
            "nll cannot be measured under method critic; choices: fidelity, sweep, skip",
        ),
        ("evaluate:\n  - {weights: raw, noise_scale: {}}\n", 12, "noise_scale cannot be measured under method critic"),
    ]:
        with pytest.raises(SpecError) as caught:
            study(extra)
        assert f"critics.yaml:{line}: " in str(caught.value) and message in str(caught.value)


def test_an_unknown_method_and_an_unknown_parameter_are_refused_with_the_choices(study):
    with pytest.raises(
        SpecError, match=r"critics\.yaml:\d+: method.*unknown name 'critik'.*choices: gaussian, ddgan, siddm, critic"
    ):
        study("arms:\n  a: {method: critik}\n")
    with pytest.raises(SpecError, match=r"method\.wait: unknown key"):
        study("", "method.wait=1")


def test_a_spec_says_nothing_of_what_its_method_does_not_read(study):
    written = study().runs[0].spec.model_dump(mode="json")
    assert written["method"] == {"name": "critic", "weight": 0.2, "critic_lr": 1e-3}
    assert not {"objective", "timestep_sampler"} & set(written)
    assert set(written["diffusion"]) == {"num_timesteps", "schedule"}
    gaussian = study("", "method=gaussian").runs[0].spec
    assert "method" not in gaussian.model_dump(mode="json") and "objective" in gaussian.model_dump(mode="json")
    assert gaussian.cost_key != study().runs[0].spec.cost_key


def test_a_stored_spec_is_read_with_the_method_that_was_frozen_beside_it(study, tmp_path):
    run = study().runs[0]
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    directory.register(run)
    (tmp_path / "critic.py").unlink()
    assert read_spec(directory.path, directory.spec()).run_key == run.run_key


# -- through a run


def test_it_trains_is_sampled_and_scored_and_its_records_have_its_own_names(study, tmp_path):
    sweep = "  - {name: eval_sweep, sweep: {num_samples: 64, num_steps: [2, 4], samplers: [ancestral]}}\n"
    directory = run_in(tmp_path / "runs", study(EVALUATE + sweep).runs[0])
    names = {row.key for row in directory.rows()}
    assert {"train/mse", "train/verdict", "train/critic_loss"} <= set(training_terms(names))
    for name in ("loss", "mse", "mse_q3", "verdict", "critic_loss", "critic_accuracy", "critic_penalty", "lr"):
        assert f"train/{name}" in names, name
    assert directory.history("train/critic_lr") == ([5, 10, 15, 20, 25, 30, 35, 40], [1e-3] * 8)
    assert "train/vb" not in names and "train/grad_norm_preclip" not in names
    for kind in ("fid", "precision", "recall"):
        assert math.isfinite(directory.history(f"eval/{kind}_coordinates_64_ancestral4")[1][0])
    records = load_records(tmp_path / "runs", "critics")
    drawn = fig_learning_curves.data(records)
    assert {"verdict", "critic_accuracy"} <= set(drawn["curve"])
    fig_learning_curves.draw(drawn)
    assert set(results.data(records)["metric"]) == {"fid", "precision", "recall"}
    assert list(fig_sampling_steps.data(records)["num_steps"]) == [2, 4]


def test_the_arithmetic_of_all_its_networks_is_counted(study, tmp_path):
    run = study().runs[0]
    directory = run_in(tmp_path / "runs", run)
    method = make_method(run.spec, run.spec.data.facts, Resources(), CPU)
    sizes = {name: sum(w.numel() for w in network.module.parameters()) for name, network in method.networks().items()}
    assert set(sizes) == {"network", "critic"}
    assert directory.history("compute/parameters")[1] == [sum(sizes.values())]
    # Linear layers of the critic: 2 x 16 + 16, forward and both sides backward, less the gradient of its input.
    critic = 3 * (3 * (2 * 16 + 16) - 2 * 16)
    network_alone = run_in(tmp_path / "plain", study("", "method=gaussian").runs[0])
    (both,), (one,) = (d.history("compute/train_multiply_adds")[1] for d in (directory, network_alone))
    assert both - one == critic * 40 * 32


def test_samples_come_from_a_checkpoint_alone(study, tmp_path):
    directory = run_in(tmp_path / "runs", study().runs[0])
    first, again = (sample_run(directory.path, SampleSettings(Ancestral(), 4, 8)).read_bytes() for _ in range(2))
    assert first == again


def test_its_network_is_exported(study, tmp_path):
    unet = "{name: unet, channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}"
    run = study("", "data=digits", f"model={unet}", "train.steps=2").runs[0]
    directory = run_in(tmp_path / "runs", run)
    assert export_checkpoint(directory.path, tmp_path / "out.pt") == 2
    stored = Checkpoints(directory.checkpoints_folder).load(2)["method"]["ema"]
    exported = torch.load(tmp_path / "out.pt", weights_only=True)
    assert exported.keys() == stored.keys() and all(torch.equal(exported[name], stored[name]) for name in stored)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_bits_of_an_unbroken_one(study, tmp_path):
    run = study(EVALUATE, "train.steps=500").runs[0]
    certificate = verify_resume(run, tmp_path / "runs", kills=1)
    assert certificate["verdict"] == "equal", certificate
    assert [end["signal"] for end in certificate["ends"]].count("SIGKILL") == 1
    assert {"method.critic", "method.critic_optimizer", "critic", "window"} <= set(certificate["digests"])


@pytest.mark.slow
def test_two_processes_train_what_one_does_within_rounding_and_alike_each_time(study, tmp_path):
    alone = run_in(tmp_path / "one", study().runs[0])
    both = [
        run_in(tmp_path / folder, study("", "resources.processes_per_node=2").runs[0]) for folder in ("two", "again")
    ]
    states = [Checkpoints(directory.checkpoints_folder).latest()[1] for directory in (alone, *both)]
    assert digests(states[1]["method"]) == digests(states[2]["method"])
    for part in ("network", "critic", "ema"):
        for name, value in states[0]["method"][part].items():
            assert torch.allclose(value, states[1]["method"][part][name], rtol=1e-3, atol=1e-5), (part, name)
    curves = [directory.history("train/critic_penalty")[1] for directory in (alone, both[0])]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.slow
def test_its_steps_are_timed_in_a_process_of_their_own(study, tmp_path):
    study()
    plan = planning.plan(load_study(tmp_path / "critics.yaml"), tmp_path / "runs")
    (calibrated,) = calibrate.calibrate(plan, steps=10)
    assert calibrated.error == "" and calibrated.timing.seconds_per_step > 0


@pytest.mark.slow
def test_the_command_line_plans_and_submits_it(study, tmp_path):
    study(EVALUATE)
    arguments = [str(tmp_path / "critics.yaml"), "--runs", str(tmp_path / "runs")]
    assert CliRunner().invoke(cli, ["plan", *arguments]).exit_code == 0
    done = CliRunner().invoke(cli, ["submit", *arguments, "--cluster", "debug", "--no-sync"])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(path.read_text())["state"] == "done"
