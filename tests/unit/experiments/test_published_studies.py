"""The published studies say what was published: planned without any data, every number held against the papers'.

The numbers here are typed from the papers' tables (and their authors' commands), not read from the files under test.
"""

from pathlib import Path

import pytest

from harness.study.expand import is_search, load_study

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
PUBLISHED = sorted(p for folder in ("iddpm", "ddpm") for p in (EXPERIMENTS / folder).glob("*.yaml"))
SIDDM = sorted((EXPERIMENTS / "siddm").glob("*.yaml"))
IMAGENET64, CIFAR10 = (1, 2, 3, 4), (1, 2, 2, 2)


def load(name):
    return load_study(EXPERIMENTS / name)


def by_arm(name):
    study = load(name)
    assert all(run.replicate == 0 for run in study.runs)
    return {run.arm: run for run in study.runs}


def fidelity(run):
    """Return {(number of samples, steps, k, reference)} over a run's evaluations."""
    found = [evaluation.fidelity for evaluation in run.evaluations if evaluation.fidelity]
    return {(one.num_samples, one.num_steps, one.k, one.reference) for one in found}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_published_study_is_planned_without_data_and_begins_with_its_question(path, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)
    study = load_study(path)
    assert study.runs
    assert study.warnings() == []
    schema, question = path.read_text().splitlines()[:2]
    assert schema.startswith("# yaml-language-server: ")
    assert question.startswith("# ") and "?" in question
    for run in study.runs:
        assert run.spec.train.ema_rate == 0.9999
        assert run.spec.optim.weight_decay == 0
        assert run.resources.gpus_per_node == 1
        assert run.evaluations


def test_table_1_is_the_eight_rows_of_the_paper():
    # T, schedule, objective, thousands of iterations
    rows = [
        (1000, "linear", "simple", 200),
        (4000, "linear", "simple", 200),
        (4000, "linear", "hybrid", 200),
        (4000, "cosine", "simple", 200),
        (4000, "cosine", "hybrid", 200),
        (4000, "cosine", "vlb", 200),
        (4000, "cosine", "hybrid", 1500),
        (4000, "cosine", "vlb", 1500),
    ]
    runs = load("iddpm/table1_imagenet64.yaml").runs
    assert [
        (s.diffusion.num_timesteps, s.diffusion.schedule.name, s.objective.name, s.train.steps // 1000)
        for s in (run.spec for run in runs)
    ] == rows
    for run, (num_timesteps, *_) in zip(runs, rows, strict=True):
        check_iddpm_training(run.spec, IMAGENET64, dropout=0.0)
        assert run.spec.data.name == "imagenet64"
        assert fidelity(run) == {(10_000, num_timesteps, 5, "train")}


def test_table_2_is_the_six_rows_of_the_paper_with_their_confound_in_dropout():
    rows = [
        (1000, "linear", "simple", 0.1),
        (4000, "linear", "simple", 0.1),
        (4000, "linear", "hybrid", 0.1),
        (4000, "cosine", "simple", 0.3),
        (4000, "cosine", "hybrid", 0.3),
        (4000, "cosine", "vlb", 0.3),
    ]
    path = EXPERIMENTS / "iddpm/table2_cifar10.yaml"
    runs = load_study(path).runs
    assert [
        (s.diffusion.num_timesteps, s.diffusion.schedule.name, s.objective.name, s.model.dropout)
        for s in (run.spec for run in runs)
    ] == rows
    for run, (num_timesteps, *_, dropout) in zip(runs, rows, strict=True):
        check_iddpm_training(run.spec, CIFAR10, dropout=dropout)
        assert run.spec.data.name == "cifar10" and run.spec.data.batches == (1, 2, 3, 4, 5)
        assert run.spec.train.steps == 500_000
        assert fidelity(run) == {(50_000, num_timesteps, 5, "train")}
        assert all(one.nll.estimator == "full" for one in run.evaluations if one.nll)
    assert "confound" in path.read_text().lower()


def check_iddpm_training(spec, channel_mult, *, dropout, channels=128, lr=1e-4, batch_size=128, lambda_vlb=0.001):
    """Hold one run against IDDPM's hyperparameters (its section 4 and its code)."""
    model = spec.model
    assert (model.channels, model.channel_mult, model.num_res_blocks) == (channels, channel_mult, 3)
    assert (model.attention_resolutions, model.num_heads, model.use_scale_shift_norm) == ((16, 8), 4, True)
    assert model.dropout == dropout
    assert spec.optim.lr == pytest.approx(lr, rel=1e-7)
    assert (spec.optim.warmup_steps, spec.optim.grad_clip, spec.data.horizontal_flip) == (0, None, False)
    assert spec.train.batch_size == batch_size
    assert spec.diffusion.mean_type == "epsilon"
    assert spec.diffusion.var_type == ("fixed" if spec.objective.name == "simple" else "learned_range")
    if spec.diffusion.schedule.name == "cosine":
        assert spec.diffusion.schedule.s == 0.008
    if spec.objective.name == "hybrid":
        assert spec.objective.lambda_vlb == lambda_vlb


@pytest.mark.parametrize("name", ["iddpm/table1_imagenet64.yaml", "iddpm/table2_cifar10.yaml"])
def test_only_the_rows_of_l_vlb_draw_t_by_its_loss(name):
    for run in load(name).runs:
        sampler = run.spec.timestep_sampler
        if run.spec.objective.name == "vlb":
            assert (sampler.name, sampler.history_per_term, sampler.uniform_prob) == ("loss_second_moment", 10, 0.001)
        else:
            assert sampler.name == "uniform"


@pytest.mark.parametrize("name", ["iddpm/table1_imagenet64.yaml", "iddpm/table2_cifar10.yaml"])
def test_rows_with_a_fixed_variance_are_measured_with_both_choices_of_it(name):
    for run in load(name).runs:
        choices = {one.fixed_variance for one in run.evaluations if one.nll}
        assert choices == ({"large", "small"} if run.spec.diffusion.var_type == "fixed" else {"large"})


def test_table_2_with_equal_dropout_shares_two_trainings_with_table_2():
    table = {run.run_key for run in load("iddpm/table2_cifar10.yaml").runs}
    runs = load("iddpm/table2_cifar10_equal_dropout.yaml").runs
    cells = {(run.spec.diffusion.schedule.name, run.spec.model.dropout): run.run_key in table for run in runs}
    assert cells == {("linear", 0.1): True, ("linear", 0.3): False, ("cosine", 0.1): False, ("cosine", 0.3): True}


def test_figure_6_compares_l_vlb_l_vlb_resampled_and_l_hybrid_along_training():
    runs = by_arm("iddpm/fig6_learning_curves.yaml")
    assert {arm: (run.spec.objective.name, run.spec.timestep_sampler.name) for arm, run in runs.items()} == {
        "vlb": ("vlb", "uniform"),
        "vlb-resampled": ("vlb", "loss_second_moment"),
        "hybrid": ("hybrid", "uniform"),
    }
    for run in runs.values():
        check_iddpm_training(run.spec, IMAGENET64, dropout=0.0)
        assert run.spec.diffusion.num_timesteps == 4000
        assert run.spec.train.steps == 200_000
        assert run.evaluations[0].every == 2000 and run.evaluations[0].nll
    table = {run.arm: run.run_key for run in load("iddpm/table1_imagenet64.yaml").runs}
    assert runs["hybrid"].run_key == table["cosine-hybrid"]
    assert runs["vlb-resampled"].run_key == table["cosine-vlb"]


def test_figure_7_measures_the_trainings_of_figure_6_and_keeps_their_checkpoints():
    figure_6, figure_7 = load("iddpm/fig6_learning_curves.yaml"), load("iddpm/fig7_noise_scale.yaml")
    assert [run.run_key for run in figure_7.runs] == [run.run_key for run in figure_6.runs]
    assert all(run.records.keep_every == 10_000 for run in figure_7.runs)


def test_figure_8_has_all_step_counts_and_all_four_curves_on_both_data_sets():
    runs = by_arm("iddpm/fig8_sampling_steps.yaml")
    curves = set()
    for run in runs.values():
        assert run.spec.diffusion.num_timesteps == 4000
        for evaluation in run.evaluations:
            sweep = evaluation.sweep
            assert sweep.num_steps == (25, 50, 100, 200, 400, 1000, 4000)
            assert sweep.num_samples == {"imagenet64": 10_000, "cifar10": 50_000}[run.spec.data.name]
            for sampler in sweep.samplers:
                sigma = "learned" if run.spec.objective.name == "hybrid" else evaluation.fixed_variance
                curves.add((run.spec.data.name, "ddim" if sampler.name == "ddim" else sigma))
                if sampler.name == "ddim":
                    assert (sampler.eta, sampler.spacing) == (0, "ddim")
    for data in ("imagenet64", "cifar10"):
        assert {curve for name, curve in curves if name == data} == {"learned", "large", "small", "ddim"}
    names = [evaluation.name for run in runs.values() for evaluation in run.evaluations]
    assert len(set(names)) == len(names)


def test_figure_8_evaluates_the_cosine_rows_of_both_tables_and_trains_nothing_new():
    figure = by_arm("iddpm/fig8_sampling_steps.yaml")
    for data, table in (("imagenet64", "table1_imagenet64"), ("cifar10", "table2_cifar10")):
        rows = by_arm(f"iddpm/{table}.yaml")
        for objective in ("hybrid", "simple"):
            assert figure[f"{data}-{objective}"].run_key == rows[f"cosine-{objective}"].run_key


def test_figure_10_scales_four_widths_with_lr_falling_as_the_root_of_the_width():
    runs = load("iddpm/fig10_scaling.yaml").runs
    assert [run.spec.model.channels for run in runs] == [64, 96, 128, 192]
    for run in runs:
        width = run.spec.model.channels
        check_iddpm_training(run.spec, IMAGENET64, dropout=0.0, channels=width, lr=1e-4 / (width / 128) ** 0.5)
        assert (run.spec.objective.name, run.spec.train.steps) == ("hybrid", 1_500_000)
        assert run.spec.diffusion.num_timesteps == 4000
    longest = by_arm("iddpm/table1_imagenet64.yaml")["cosine-hybrid-1500k"]
    assert runs[2].run_key == longest.run_key


def test_table_4_is_class_conditional_with_k_5_and_250_steps():
    runs = by_arm("iddpm/table4_class_conditional.yaml")
    assert set(runs) == {"small", "large"}
    small, large = runs["small"].spec, runs["large"].spec
    check_iddpm_training(small, IMAGENET64, dropout=0.0)
    check_iddpm_training(large, IMAGENET64, dropout=0.0, channels=192, lr=3e-4, batch_size=2048, lambda_vlb=1 / 4000)
    assert (small.train.steps, large.train.steps) == (1_700_000, 250_000)
    assert (small.model.rescale_timesteps, large.model.rescale_timesteps) == (True, False)
    for run in runs.values():
        assert run.spec.model.class_cond and run.spec.diffusion.num_timesteps == 4000
        assert fidelity(run) == {(50_000, 250, 5, "train")}


def test_ddpm_on_cifar10_is_as_published():
    (run,) = load("ddpm/cifar10.yaml").runs
    spec, model = run.spec, run.spec.model
    check_ddpm_training(spec)
    assert (spec.objective.name, spec.diffusion.mean_type, spec.diffusion.var_type) == ("simple", "epsilon", "fixed")
    assert (model.channels, model.channel_mult, model.num_res_blocks) == (128, CIFAR10, 2)
    assert (model.attention_resolutions, model.dropout, model.use_scale_shift_norm) == ((16,), 0.1, False)
    assert all(evaluation.fixed_variance == "large" for evaluation in run.evaluations)
    assert {(samples, steps, reference) for samples, steps, _, reference in fidelity(run)} == {
        (50_000, 1000, "train"),
        (50_000, 1000, "test"),
    }


def check_ddpm_training(spec):
    assert (spec.diffusion.num_timesteps, spec.diffusion.schedule.name) == (1000, "linear")
    assert (spec.optim.lr, spec.optim.warmup_steps, spec.optim.grad_clip) == (2e-4, 5000, 1.0)
    assert (spec.train.steps, spec.train.batch_size) == (800_000, 128)
    assert spec.data.name == "cifar10" and spec.data.horizontal_flip


def test_ddpm_table_2_has_its_six_parametrisations():
    runs = load("ddpm/table2_parametrisations.yaml").runs
    assert {(run.spec.diffusion.mean_type, run.spec.objective.name, run.spec.diffusion.var_type) for run in runs} == {
        ("previous_x", "vlb", "learned"),
        ("previous_x", "vlb", "fixed_large"),
        ("previous_x", "simple", "fixed"),
        ("epsilon", "vlb", "learned"),
        ("epsilon", "vlb", "fixed_large"),
        ("epsilon", "simple", "fixed"),
    }
    assert len(runs) == 6
    for run in runs:
        check_ddpm_training(run.spec)
    assert load("ddpm/cifar10.yaml").runs[0].run_key == runs[-1].run_key


@pytest.mark.parametrize("path", SIDDM, ids=lambda path: path.stem)
def test_every_study_of_siddm_is_planned_without_data_and_says_what_is_not_sourced(path, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)
    study = load_study(path)
    assert study.runs and study.warnings() == []
    assert all(run.evaluations and run.resources.gpus_per_node == 1 for run in study.runs)
    schema, question = path.read_text().splitlines()[:2]
    assert schema.startswith("# yaml-language-server: ")
    assert question.startswith("# ") and "?" in question
    assert "not sourced" in path.read_text()


def test_the_mixture_is_trained_with_five_numbers_of_steps_by_every_method_and_form():
    runs = load("siddm/mixture.yaml").runs
    assert {run.spec.diffusion.num_timesteps for run in runs} == {1, 2, 4, 8, 16}
    assert {run.replicate for run in runs} == {0, 1, 2}
    forms = {
        (getattr(spec.method, "cross_entropy", spec.method.name), getattr(spec.method, "c_psi_target", ""))
        for spec in (run.spec for run in runs)
        if getattr(spec.method, "lambda_afd", 1)
    }
    assert forms == {
        *{(cross_entropy, target) for cross_entropy in ("exact", "printed") for target in ("x_t", "renoised")},
        *{("exact", None), ("ddgan", ""), ("gaussian", "")},
    }
    assert {run.spec.objective.name for run in runs if run.spec.method.name == "gaussian"} == {"simple", "hybrid"}
    assert any(getattr(run.spec.method, "lambda_afd", 1) == 0 for run in runs)
    for run in runs:  # DDGAN, appendix C.5
        assert (run.spec.model.width, run.spec.model.depth) == (512, 3)
        assert (run.spec.train.steps, run.spec.train.batch_size) == (50_000, 512)
        assert run.evaluations[0].modes and run.evaluations[0].trajectories
        if run.spec.method.name != "gaussian":
            assert (run.spec.method.discriminator.width, run.spec.method.discriminator.depth) == (512, 3)


def test_ddgan_on_cifar10_and_celebahq_is_the_published_command():
    # What `import-checkpoint` says of the published files, which tests/unit/interop holds against the commands.
    from harness.interop.ddgan import published_spec

    cifar10, celebahq = by_arm("siddm/cifar10.yaml")["ddgan"], by_arm("siddm/celebahq256.yaml")["ddgan"]
    assert cifar10.run_key == published_spec("ddgan_cifar10").run_key
    assert celebahq.run_key == published_spec("ddgan_celebahq256").run_key
    assert fidelity(cifar10) == {(50_000, 4, 3, "train")}


def test_siddm_on_cifar10_has_the_weights_of_afd_of_the_paper():
    runs = by_arm("siddm/cifar10.yaml")
    assert len({run.spec.model for run in runs.values()}) == 1
    specs = [run.spec for run in runs.values() if run.spec.method.name == "siddm"]
    assert {spec.diffusion.num_timesteps for spec in specs} == {4}
    weights = {(m.lambda_afd, m.adversarial, m.denoising_weight > 0) for m in (spec.method for spec in specs)}
    assert weights == {
        *{(weight, True, True) for weight in (0, 0.1, 0.5, 1, 5)},
        *{(1, False, True), (1, True, False)},
    }


def test_siddm_on_cifar10_by_steps_shares_its_four_steps_with_the_study_of_weights():
    runs = load("siddm/cifar10_steps.yaml").runs
    assert [(run.spec.method.name, run.spec.diffusion.num_timesteps) for run in runs] == [
        (method, steps) for method in ("ddgan", "siddm") for steps in (1, 2, 4, 8)
    ]
    shared = {run.run_key for run in load("siddm/cifar10.yaml").runs}
    assert [run.spec.diffusion.num_timesteps for run in runs if run.run_key in shared] == [4, 4]
    for run in runs:
        assert fidelity(run) == {(50_000, run.spec.diffusion.num_timesteps, 3, "train")}


def test_siddm_on_imagenet64_is_class_conditional_in_imagens_order():
    for run in load("siddm/imagenet64.yaml").runs:
        assert (run.spec.data.name, run.spec.model.class_cond, run.spec.model.resample_first) == (
            *("imagenet64", True, True),
        )


def test_the_digits_on_a_laptop_compare_three_families_at_few_steps_with_labels():
    runs = load("laptop/siddm_digits.yaml").runs
    assert {run.spec.method.name for run in runs} == {"ddgan", "siddm", "gaussian"}
    for run in runs:
        assert run.spec.model.class_cond and run.spec.train.steps <= 1000
        assert run.evaluations[0].sweep.num_steps == (1, 2, 4)


def test_the_networks_have_the_published_numbers_of_parameters():
    # Millions: DDPM B.3; IDDPM figure 10 (30, 68, 120, 270) and its CIFAR-10 model (52.5).
    assert millions(load("ddpm/cifar10.yaml").runs[0]) == pytest.approx(35.7, abs=0.05)
    assert millions(load("iddpm/table2_cifar10.yaml").runs[-1]) == pytest.approx(52.5, abs=0.05)
    widths = [millions(run) for run in load("iddpm/fig10_scaling.yaml").runs]
    assert widths == [pytest.approx(published, rel=0.02) for published in (30, 68, 120, 270)]


def millions(run):
    import torch

    from harness.data import DATASET_FACTS
    from harness.registry import make_network

    with torch.device("meta"):
        network = make_network(run.spec, DATASET_FACTS[run.spec.data.name])
    return sum(weight.numel() for weight in network.parameters()) / 1e6


LAPTOP = [path for path in sorted((EXPERIMENTS / "laptop").glob("*.yaml")) if not is_search(path)]


@pytest.mark.parametrize("path", LAPTOP, ids=lambda path: path.stem)
def test_every_laptop_study_is_planned_without_data_and_without_a_warning(path):
    study = load_study(path)
    assert study.runs and study.warnings() == []
    assert path.read_text().startswith("# ")
    assert all(run.resources.gpus_per_node == 0 for run in study.runs)


def test_the_laptop_scaling_study_has_five_widths_at_equal_data_two_replicates_and_a_learning_rate_for_each():
    runs = load("laptop/scaling_digits.yaml").runs
    widths = {run.spec.model.channels for run in runs}
    assert len(widths) == 5 and len(runs) == 10
    for run in runs:
        assert run.spec.optim.lr == pytest.approx(2e-3 * (32 / run.spec.model.channels) ** 0.5, rel=0.003)
    assert len({(run.spec.train.steps, run.spec.train.batch_size) for run in runs}) == 1
    for run in runs:
        assert run.evaluations[0].nll and run.evaluations[0].fidelity


@pytest.mark.parametrize(
    ("study", "trained_by"),
    [
        ("iddpm/fig4_skipped_steps.yaml", "iddpm/table1_imagenet64.yaml"),
        ("ddpm/reverse_process.yaml", "ddpm/cifar10.yaml"),
        ("laptop/reverse_process.yaml", "laptop/iddpm_digits.yaml"),
    ],
)
def test_a_study_of_the_reverse_process_only_evaluates_what_another_has_trained(study, trained_by):
    keys = [{run.run_key for run in load(name).runs} for name in (study, trained_by)]
    assert keys[0] and keys[0] <= keys[1]
    measured = {part for run in load(study).runs for evaluation in run.evaluations for part in evaluation.parts}
    assert measured <= {
        "skip", "rate_distortion", "progressive", "trajectories", "interpolation", "noise_scale"
    }  # fmt: skip
