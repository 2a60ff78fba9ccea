"""DDGAN and SIDDM behind the seam: what a study may ask of them, and what a run of theirs goes through."""

import math
import os

import pytest
import torch

from harness.analysis.runs import load_records
from harness.errors import SpecError
from harness.evaluation.sampling import SampleSettings, sample_run
from harness.job import job
from harness.job.verify import digests, verify_resume
from harness.launch import calibrate, planning
from harness.methods.base import Batch
from harness.randomness import Streams
from harness.records.directory import RunDirectory
from harness.registry import make_method
from harness.spec.evaluation import Ancestral
from harness.spec.resources import Resources
from harness.study.expand import load_study
from harness.training.checkpoints import Checkpoints
from harness.training.distributed import ProcessGroup

CPU = torch.device("cpu")
KILLS = min(20, int(os.environ.get("KILLS", 1)))  # `make faults` has more

STUDY = """study: games
method: {name: %s, latent_dim: 2, style_dim: 8, mapping_layers: 2, discriminator: {name: mlp, width: 16, depth: 2}}
data: mog
model: {name: mlp, width: 16, depth: 2}
optim: {lr: 2.0e-3}
train: {steps: 40, batch_size: 32, ema_rate: 0.8}
records: {log_every: 5}
resources: {device: cpu, threads: 1}
"""
SMALL_UNET = (
    "{name: unet, channels: 8, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}"
)
EVALUATE = "evaluate:\n  - {fidelity: {num_samples: 64, num_steps: 4}}\n"
METHODS = ("ddgan", "siddm")
FORMS = {
    "printed": ["method.cross_entropy=printed"],
    "renoised": ["method.c_psi_target=renoised"],
    "both": ["method.cross_entropy=printed", "method.c_psi_target=renoised"],
    "without C_psi": ["method.c_psi_target=null"],
    "without AFD": ["method.lambda_afd=0"],
    "without the regulariser": ["method.denoising_weight=0"],
    "AFD only": ["method.adversarial=false"],
    "one step": ["diffusion.num_timesteps=1"],
}


@pytest.fixture
def study(tmp_path):
    """Return a function that plans STUDY for a method, with extra lines of YAML and `--set`s."""

    def plan(name: str, extra: str = "", *sets: str):
        path = tmp_path / "games.yaml"
        path.write_text(STUDY % name + extra)
        return load_study(path, sets=sets)

    return plan


def run_in(folder, run) -> RunDirectory:
    """Train and evaluate a planned run in this process."""
    directory = RunDirectory(folder / run.run_key)
    directory.register(run)
    state = job.run_job(directory.path, sync=False, show_progress=False)
    assert state == "done", directory.status().reason
    return directory


def method_of(run):
    return make_method(run.spec, run.spec.data.facts, Resources(), CPU)


# -- in a study


def test_what_is_left_open_has_the_published_values_and_they_are_written(tmp_path):
    path = tmp_path / "open.yaml"
    path.write_text("study: open\nmethod: ddgan\ndata: digits\nmodel: {attention_resolutions: []}\ntrain: {steps: 1}\n")
    written = load_study(path).runs[0].spec.model_dump(mode="json")
    assert written["diffusion"] == {
        "num_timesteps": 4,
        "schedule": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
    }
    assert (written["optim"]["lr"], written["optim"]["betas"]) == (1.6e-4, [0.5, 0.9])
    assert written["method"]["discriminator"]["name"] == "small" and "objective" not in written
    assert load_study(path, sets=["data=mog", "model=mlp"]).runs[0].spec.method.discriminator.name == "mlp"
    assert load_study(path, sets=["optim.lr=1e-3", "diffusion.num_timesteps=2"]).runs[0].spec.optim.lr == 1e-3


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("ddgan", ["method.discriminator=small"], "method.discriminator: small is for images; choose mlp for points"),
        ("ddgan", ["data=digits", f"model={SMALL_UNET}"], "mlp is for points such as mog; choose small, large or unet"),
        (
            "siddm",
            ["data=digits", f"model={SMALL_UNET}", "method.discriminator=small"],
            "method.discriminator small has no heads to predict images with.*choose unet | mlp",
        ),
        ("siddm", ["method.adversarial=false", "method.lambda_afd=0"], "nothing would be trained"),
        ("ddgan", ["model.class_cond=true", "model.label_dropout=0.1"], "classifier-free guidance, which adversarial"),
        ("ddgan", ["objective=hybrid"], "objective is used by method gaussian, not by ddgan"),
        ("ddgan", ["method.lambda_afd=1"], "method.lambda_afd: unknown key"),
        ("ddgan", ["resources.microbatch=8"], "resources: microbatch: method ddgan needs all examples of a process"),
        ("ddgan", ["optim.final_lr=1e-5"], "final_lr is where a decay ends"),
        (
            "ddgan",
            ["data=digits", f"model={SMALL_UNET}", "method.discriminator=small", "train.batch_size=30"],
            "train.batch_size is 30, but discriminator small compares groups of 4 examples: choose a multiple of 4",
        ),
        (
            "ddgan",
            [
                *("data=digits", f"model={SMALL_UNET}", "method.discriminator=small", "train.batch_size=12"),
                "resources.processes_per_node=2",
            ],
            "with 2 processes and train.batch_size 12 the share of one is 6",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_choices(study, name, sets, message):
    with pytest.raises(SpecError, match=message):
        study(name, "", *sets)


def test_the_likelihood_is_refused_with_what_can_be_measured(study):
    with pytest.raises(SpecError, match="nll cannot be measured under method siddm; choices: fidelity"):
        study("siddm", "evaluate:\n  - {nll: {}}\n")


# -- a step


class TwoOfTwo(ProcessGroup):
    """A group in which each process only looks at its own rows."""

    def gather(self, terms, rows, batch_size):
        return {
            name: term.new_zeros(batch_size).index_copy(0, torch.arange(batch_size)[rows], term) if term.ndim else term
            for name, term in terms.items()
        }


def test_the_groups_that_a_discriminator_compares_are_those_of_any_number_of_processes(study):
    sets = ["data=digits", f"model={SMALL_UNET}", "method.discriminator={name: small, channels: 4, time_dim: 8}"]
    sets += ["train.batch_size=16", "method.r1_every=1"]
    run = study("ddgan", "", *sets).runs[0]
    x_0, streams = torch.rand(16, 1, 8, 8) * 2 - 1, Streams(0)
    whole = method_of(run).step(0, Batch.whole(x_0), streams, ProcessGroup())
    halves = []
    for rank in range(2):
        rows = slice(8 * rank, 8 * rank + 8)
        output = method_of(run).step(0, Batch(x_0[rows], None, 16, rows), streams, TwoOfTwo(rank, 2))
        halves.append(output.scalars)
    for name in ("discriminator_loss_real", "discriminator_loss_fake", "accuracy_real", "r1_penalty"):
        both = sum(scalars[name] for scalars in halves)  # each has zeros for the other's rows
        torch.testing.assert_close(both, whole.scalars[name], rtol=1e-4, atol=1e-6)


def test_a_penalty_that_is_not_due_keeps_its_last_value_in_the_records(study):
    method = method_of(study("ddgan", "", "method.r1_every=3").runs[0])
    x_0 = torch.randn(32, 2, 1, 1)
    values = [
        method.step(step, Batch.whole(x_0), Streams(0), ProcessGroup()).scalars["r1_penalty"].item()
        for step in range(5)
    ]
    assert values[1:3] == [values[0]] * 2 and values[3] != values[0] and values[4] == values[3]


def test_a_saturated_discriminator_is_an_event_once_until_it_recovers(study):
    method = method_of(study("ddgan").runs[0])
    assert method.events() == []
    method._accuracy = torch.tensor([0.999, 0.998])
    [(name, fields)] = method.events()
    assert name == "collapse" and fields["sign"] == "discriminator_saturated"
    assert fields["accuracy_fake"] == pytest.approx(0.998) and method.events() == []
    state = method.state_dict()
    other = method_of(study("ddgan").runs[0])
    other.load_state_dict(state)
    assert other.events() == []  # told before
    other._accuracy = torch.tensor([0.8, 0.999])
    assert other.events() == []
    other._accuracy = torch.tensor([0.999, 0.999])
    assert len(other.events()) == 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_siddm_trains_what_it_logs(study, form):
    run = study("siddm", "", *FORMS[form]).runs[0]
    method = method_of(run)
    before = [weight.clone() for weight in method.generator.parameters()]
    outputs = [
        method.step(step, Batch.whole(torch.randn(32, 2, 1, 1)), Streams(0), ProcessGroup()) for step in range(3)
    ]
    assert set(outputs[-1].terms) == set(method.terms_logged)
    assert set(outputs[-1].scalars) == set(method.scalars_logged)
    assert all(value.isfinite().all() for value in (*outputs[-1].terms.values(), *outputs[-1].scalars.values()))
    assert any(not torch.equal(old, new) for old, new in zip(before, method.generator.parameters(), strict=True))
    assert ("afd" in outputs[-1].terms) == (form not in ("without C_psi", "without AFD"))
    assert ("denoising_loss" in outputs[-1].scalars) == (form != "without the regulariser")


# -- through a run


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_is_sampled_and_scored_and_its_records_have_its_own_names(study, tmp_path, name):
    sweep = "  - {name: eval_sweep, sweep: {num_samples: 64, num_steps: [1, 2, 4], samplers: [ancestral]}}\n"
    directory = run_in(tmp_path / "runs", study(name, EVALUATE + sweep).runs[0])
    names = {row.key for row in directory.rows()}
    expected = {"generator_loss", "generator_loss_q3", "accuracy_real", "accuracy_fake", "grad_norm_generator", "lr"}
    expected |= {"r1_penalty"} if name == "ddgan" else {"afd", "afd_entropy", "regression_loss", "denoising_loss"}
    assert {f"train/{each}" for each in expected} <= names
    assert directory.history("train/lr_discriminator")[1] == [1.25e-4] * 8
    for kind in ("fid", "precision", "recall"):
        assert math.isfinite(directory.history(f"eval/{kind}_coordinates_64_ancestral4")[1][0])
    assert directory.history("compute/train_multiply_adds")[1][0] > 0
    sizes = [
        sum(w.numel() for w in part.module.parameters())
        for part in method_of(load_study(tmp_path / "games.yaml").runs[0]).networks().values()
    ]
    assert directory.history("compute/parameters")[1] == [sum(sizes)] and len(sizes) == 2
    assert len(load_records(tmp_path / "runs", "games")) == 1
    first, again = (sample_run(directory.path, SampleSettings(Ancestral(), 4, 8)).read_bytes() for _ in range(2))
    assert first == again


@pytest.mark.slow
def test_images_and_their_classes_go_the_same_way(study, tmp_path):
    unet = SMALL_UNET.replace("name: unet", "name: unet, class_cond: true")
    discriminators = {
        "ddgan": "{name: small, channels: 4, time_dim: 8}",
        "siddm": "{name: unet, channels: 8, channel_mult: [1, 2], num_res_blocks: 1}",
    }
    for name, discriminator in discriminators.items():
        sets = ["data=digits", f"model={unet}", f"method.discriminator={discriminator}", "train.steps=3"]
        directory = run_in(tmp_path / name, study(name, "evaluate: [{grid: 4}]\n", *sets).runs[0])
        assert list(directory.samples_folder.glob("*.png"))


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_bits_of_an_unbroken_one(study, tmp_path):
    run = study(
        "siddm", EVALUATE, f"train.steps={150 * (KILLS + 1)}", "method.r1_gamma=0.01", "method.r1_every=3"
    ).runs[0]
    certificate = verify_resume(run, tmp_path / "runs", kills=KILLS)
    assert certificate["verdict"] == "equal", certificate
    assert [end["signal"] for end in certificate["ends"]].count("SIGKILL") == KILLS
    assert {"method.generator", "method.discriminator", "method.ema", "method.discriminator_optimizer", "game"} <= set(
        certificate["digests"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_what_one_does_within_rounding_and_alike_each_time(study, tmp_path, name):
    alone = run_in(tmp_path / "one", study(name).runs[0])
    both = [
        run_in(tmp_path / folder, study(name, "", "resources.processes_per_node=2").runs[0])
        for folder in ("two", "again")
    ]
    states = [Checkpoints(directory.checkpoints_folder).latest()[1] for directory in (alone, *both)]
    assert digests(states[1]["method"]) == digests(states[2]["method"])
    for part in ("generator", "discriminator", "ema"):
        for key, value in states[0]["method"][part].items():
            assert torch.allclose(value, states[1]["method"][part][key], rtol=1e-3, atol=1e-5), (part, key)
    curves = [directory.history("train/discriminator_loss_fake")[1] for directory in (alone, both[0])]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.slow
def test_its_steps_are_timed_in_a_process_of_their_own(study, tmp_path):
    study("siddm")
    plan = planning.plan(load_study(tmp_path / "games.yaml"), tmp_path / "runs")
    (calibrated,) = calibrate.calibrate(plan, steps=10)
    assert calibrated.error == "" and calibrated.timing.seconds_per_step > 0
