import math

import numpy as np
import pytest
import torch

from harness.datasets import make_dataset
from harness.diffusion.process import Denoised
from harness.errors import RecordError, SpecError
from harness.evaluation.context import EvaluationContext
from harness.evaluation.evaluator import evaluate, evaluate_during_training
from harness.evaluation.parts.rate_distortion import distortion
from harness.evaluation.sampling import SampleSettings, sample_run
from harness.randomness import Streams
from harness.registry import make_method
from harness.spec.evaluation import (
    Ancestral,
    Ddim,
    DpmSolverPP,
    Evaluation,
    Fidelity,
    Interpolation,
    Modes,
    Nll,
    NoiseScale,
    Progressive,
    RateDistortion,
    Reconstruction,
    Skip,
    Sweep,
    Trajectories,
)
from harness.spec.metrics import METRIC_KINDS, PART_OUTPUTS, metric_kind, outputs
from harness.spec.resources import Resources
from harness.testing import fake_result
from harness.training.batches import Batches

CPU = torch.device("cpu")


def context_of(run, **parts) -> EvaluationContext:
    data = make_dataset(run.spec.data)
    method = make_method(run.spec, data, Resources(), CPU)
    measured = parts if parts.keys() - {"seed"} else {"grid": 4, **parts}
    evaluation = Evaluation(batch_size=32, **measured).resolve(run.spec, inception=False)
    return EvaluationContext(method, run.spec, data, evaluation, CPU, evaluation.name)


def use_network(method, network) -> None:
    """Let a method be that of another network, network(x_t, t, y) -> output."""
    method.predict = lambda weights: network


def test_likelihood_terms_add_up_to_the_bound(tiny_study):
    result = evaluate(context_of(tiny_study()[0], nll=Nll(estimator="full", num_images=8)))
    curve = [value for _, value in result.curves["eval/L_t_bpd"]]
    assert [t for t, _ in result.curves["eval/L_t_bpd"]] == list(range(30))
    assert sum(curve) + result.metrics["eval/L_T_bpd"] == pytest.approx(result.metrics["eval/nll_bpd"], rel=1e-6)
    assert curve[0] == pytest.approx(result.metrics["eval/L_0_bpd"])
    assert result.protocol["likelihood"]["levels"] == 17


@pytest.mark.slow
def test_the_estimator_agrees_with_the_full_sum(tiny_study):
    run = tiny_study("", "diffusion.num_timesteps=200")[0]
    full = evaluate(context_of(run, nll=Nll(estimator="full", num_images=64))).metrics
    some = evaluate(context_of(run, nll=Nll(num_images=64, evaluations_per_image=20))).metrics
    error = abs(some["eval/nll_bpd"] - full["eval/nll_bpd"])
    assert error < 4 * math.hypot(some["eval/nll_standard_error_bpd"], full["eval/nll_standard_error_bpd"])


def test_beta_and_beta_tilde_are_two_evaluations_of_one_training(tiny_study):
    run = tiny_study()[0]
    nll = Nll(estimator="full", num_images=8)
    large = evaluate(context_of(run, nll=nll, fixed_variance="large")).metrics["eval/nll_bpd"]
    small = evaluate(context_of(run, nll=nll, fixed_variance="small")).metrics["eval/nll_bpd"]
    assert large != small


def test_during_training_the_numbers_of_the_likelihood_alone_are_measured_and_are_the_same(tiny_study):
    context = context_of(tiny_study()[0], nll=Nll(estimator="full", num_images=8), grid=4, every=6)
    during, at_end = evaluate_during_training(context), evaluate(context)
    assert tuple(during) == outputs(context.evaluation, context.spec).during_training
    assert during == {name: at_end.metrics[name] for name in during}


def test_the_gaussian_baseline_stands_beside_the_model(tiny_study):
    result = evaluate(context_of(tiny_study()[0], nll=Nll(estimator="full", num_images=8)))
    assert 1.5 < result.metrics["eval/gaussian_baseline_bpd"] < 4.1  # 17 levels are 4.09 bits


@pytest.mark.parametrize("sampler", [Ancestral(), Ddim(), Ddim(eta=0.5), DpmSolverPP()])
def test_samples_are_a_function_of_weights_protocol_and_seed(tiny_study, sampler):
    run = tiny_study()[0]
    with torch.inference_mode():
        first, again, other = (context_of(run, seed=seed).sample(sampler, 5, 40) for seed in (0, 0, 1))
    assert first.shape == (40, 1, 8, 8)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_class_conditional_samples_take_the_classes_in_turn(tiny_study):
    context, seen = context_of(tiny_study("", "model.class_cond=true")[0]), []
    use_network(context.method, lambda x, t, y: seen.append(y) or torch.zeros_like(x))
    with torch.inference_mode():
        context.sample(Ancestral(), 2, 40)
    assert torch.cat(seen[::2]).tolist() == [i % 10 for i in range(40)]


def test_fidelity_names_extractor_count_sampler_and_steps(tiny_study):
    result = evaluate(context_of(tiny_study()[0], fidelity=Fidelity(num_samples=32, num_steps=3, sampler=Ddim(), k=4)))
    assert {
        "eval/fid_digitsnet_32_ddim3",
        "eval/precision_digitsnet_32_ddim3",
        "eval/recall_digitsnet_32_ddim3",
    } == set(result.metrics)
    assert result.protocol["fidelity"] == {
        "reference_images": 1442,
        "reference": "train",
        "prc_reference_images": 1442,
        "k": 4,
    }
    assert result.protocol["extractor"]["test_accuracy"] >= 0.97


def test_a_sweep_is_a_curve_over_the_number_of_steps(tiny_study):
    result = evaluate(
        context_of(tiny_study()[0], sweep=Sweep(num_samples=32, samplers=(Ancestral(),), num_steps=(6, 2)))
    )
    assert [steps for steps, _ in result.curves["sweep/fid_digitsnet_32_ancestral"]] == [2, 6]


def test_a_sweep_and_fidelity_measure_the_same_at_a_number_of_steps(tiny_study):
    settings = {"num_samples": 32, "k": 4, "prc_reference": 500}
    sweep = Sweep(samplers=(Ancestral(),), num_steps=(3,), metrics=("recall", "fid", "precision"), **settings)
    result = evaluate(context_of(tiny_study()[0], fidelity=Fidelity(num_steps=3, **settings), sweep=sweep))
    curves = {name: curve for name, ((_, curve),) in result.curves.items()}
    assert list(curves) == [f"sweep/{kind}_digitsnet_32_ancestral" for kind in ("recall", "fid", "precision")]
    for kind in ("fid", "precision", "recall"):
        assert curves[f"sweep/{kind}_digitsnet_32_ancestral"] == result.metrics[f"eval/{kind}_digitsnet_32_ancestral3"]


def test_the_fid_of_predictions_along_the_chain_ends_in_that_of_the_samples(tiny_study):
    settings = {"num_samples": 32, "num_steps": 4}
    progressive = Progressive(**settings, num_frames=3)
    result = evaluate(context_of(tiny_study()[0], fidelity=Fidelity(**settings), progressive=progressive))
    curve = dict(result.curves["eval/fid_digitsnet_32_ancestral4_by_steps_made"])
    assert list(curve) == [0, 2, 4]
    assert curve[4] == result.metrics["eval/fid_digitsnet_32_ancestral4"]
    assert curve[0] != curve[2] != curve[4]


def test_interpolated_pairs_end_in_variants_of_their_images(tiny_study):
    part = Interpolation(num_pairs=2, t=(1, 5), num_weights=3)
    context = context_of(tiny_study()[0], interpolation=part)
    use_network(context.method, lambda x, t, y: torch.zeros_like(x))
    arrays = evaluate(context).arrays["eval_interpolation.npz"]
    images, originals = arrays["images"].astype(float), arrays["originals"].astype(float)
    assert images.shape == (2, 3, 2, 1, 8, 8) and arrays["image_index"].shape == (2, 2)
    x_0, _ = context.load_images(context.data.test, arrays["image_index"][0])
    np.testing.assert_array_equal(originals[0], context.to_images(x_0))
    near, far = np.abs(images[:, [0, 2]] - originals).mean((1, 2, 3, 4, 5))  # by level
    assert near < far
    other = np.abs(images[0, [2, 0]] - originals).mean()
    assert near < other


def test_interpolated_points_share_the_latents_of_a_denoising_gan_too(tiny_study):
    sets = ("data=mog", "model={name: mlp, width: 16}", "method={name: siddm}")
    context = context_of(tiny_study("", *sets)[0], interpolation=Interpolation(num_pairs=2, t=(2,), num_weights=3))
    seen, denoiser = [], context.method.denoiser

    def recorded(*arguments, generator, **options):
        denoise = denoiser(*arguments, generator=generator, **options)
        return lambda x, t: seen.append(generator.get_state()) or denoise(x, t)

    context.method.denoiser = recorded
    evaluate(context)
    chains = [seen[start : start + 3] for start in (0, 3, 6)]  # of each weight
    assert all(torch.equal(ours, first) for chain in chains for ours, first in zip(chain, chains[0], strict=True))
    assert not torch.equal(chains[0][0], chains[0][1])


def test_a_network_that_predicts_no_noise_reconstructs_all_but_the_first_steps_scale(tiny_study):
    context = context_of(tiny_study()[0], reconstruction=Reconstruction(num_images=8, num_steps=(2, 5)))
    use_network(context.method, lambda x, t, y: torch.zeros_like(x))
    result = evaluate(context)
    arrays = result.arrays["eval_reconstruction.npz"]
    x_0, _ = context.load_images(context.data.test, arrays["image_index"])
    # x_0 enters as x at t = 0, so that it comes back divided by sqrt(abar_0).
    excess = context.process().alphas_cumprod[0] ** -0.5 - 1
    expected = (x_0.double() * excess / 2).square().mean().item()
    assert dict(result.curves["eval/reconstruction_mse_by_steps"]) == pytest.approx(
        {2: expected, 5: expected}, rel=1e-3
    )


@pytest.mark.parametrize(
    ("part", "sets", "message"),
    [
        ({"interpolation": Interpolation(t=(100,))}, [], "interpolation: t: 100: the chain's last t is"),
        ({"interpolation": Interpolation()}, ["model.class_cond=true"], "a pair has two classes"),
        ({"reconstruction": Reconstruction(num_steps=(2, 500))}, [], "cannot keep exactly 500"),
    ],
)
def test_what_a_run_cannot_be_asked_for_is_refused_before_anything_is_queued(tiny_study, part, sets, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(**part).resolve(tiny_study("", *sets)[0].spec, inception=False)


def test_samples_that_diverged_have_no_fid(tiny_study):
    context = context_of(tiny_study()[0], fidelity=Fidelity(num_samples=32, num_steps=2))
    use_network(context.method, lambda x, t, y: torch.full_like(x, torch.nan))
    assert math.isnan(evaluate(context).metrics["eval/fid_digitsnet_32_ancestral2"])


@pytest.mark.slow
def test_points_of_the_plane_are_measured_by_their_coordinates(tiny_study):
    run = tiny_study(
        "", "data=mog", "model={name: mlp, width: 16}", "diffusion.num_timesteps=10", "train.batch_size=8"
    )[0]
    result = evaluate(context_of(run, nll=Nll(num_images=16), fidelity=Fidelity(num_samples=64, num_steps=5), grid=64))
    assert {"eval/nll_bpd", "eval/fid_coordinates_64_ancestral5"} <= set(result.metrics)
    assert "eval/gaussian_baseline_bpd" not in result.metrics
    assert not result.pictures
    assert result.arrays["eval_samples.npz"]["samples"].shape == (64, 2, 1, 1)


def test_a_run_without_a_checkpoint_cannot_be_sampled(tiny_run):
    with pytest.raises(RecordError, match="no checkpoint yet"):
        sample_run(tiny_run(), SampleSettings(Ancestral(), 5, 4))


def test_a_number_of_steps_that_the_chain_has_not_is_refused(tiny_run):
    with pytest.raises(SpecError, match="--num-steps 31"):
        sample_run(tiny_run(), SampleSettings(Ancestral(), 31, 4))


def test_untrained_weights_are_those_of_the_seed(tiny_run, tiny_study):
    run, folder = tiny_study()[0], tiny_run()
    path = sample_run(folder, SampleSettings(Ddim(), 2, 4, weights="untrained"))
    method = make_method(run.spec, run.spec.data.facts, Resources(), CPU)
    evaluation = Evaluation(name="samples", weights="untrained")
    context = EvaluationContext(method, run.spec, run.spec.data.facts, evaluation, CPU)
    with torch.inference_mode():
        expected = context.to_images(context.sample(Ddim(), 2, 4)).numpy()
    assert np.array_equal(np.load(path.with_suffix(".npz"))["samples"], expected)


def test_the_whole_chain_is_walked_where_no_number_of_steps_is_said(tiny_study):
    result = evaluate(context_of(tiny_study()[0], fidelity=Fidelity(num_samples=16, num_steps=None)))
    assert "eval/fid_digitsnet_16_ancestral30" in result.metrics


def test_skipping_the_start_of_the_chain_saves_its_steps(tiny_study):
    context, seen = context_of(tiny_study()[0], skip=Skip(num_samples=16, num_steps=10, fractions=(0.0, 0.3))), []
    use_network(context.method, lambda x, t, y: seen.append(int(t[0])) or torch.zeros_like(x))
    result = evaluate(context)
    assert [percent for percent, _ in result.curves["eval/fid_digitsnet_16_ancestral10_by_skipped_percent"]] == [0, 30]
    assert len(seen) == 10 + 7


def test_rate_and_distortion_end_where_the_bound_says(tiny_study):
    run = tiny_study()[0]
    result = evaluate(context_of(run, rate_distortion=RateDistortion(num_images=8)))
    bound = evaluate(context_of(run, nll=Nll(estimator="full", num_images=8))).metrics
    # What has arrived before the last step, and what the decoder then adds, are the bound: of two draws of the noise.
    rate = result.metrics["eval/rate_bpd"]
    assert rate + bound["eval/L_0_bpd"] == pytest.approx(bound["eval/nll_bpd"], rel=0.05)
    assert result.arrays["eval_rate_distortion.npz"]["distortion_rmse"].shape == (30,)


def test_distortion_without_a_likelihood_is_that_of_the_rate_distortion_curve(tiny_study):
    context = context_of(tiny_study()[0], rate_distortion=RateDistortion(num_images=8))
    curve = evaluate(context).arrays["eval_rate_distortion.npz"]["distortion_rmse"]
    with torch.inference_mode():
        _, _, x_0, _ = context.choose_images(8)
        np.testing.assert_allclose(distortion(context, context.process(), x_0, None, clip=True), curve, rtol=1e-6)


@pytest.mark.parametrize("method", ["ddgan", "siddm"])
def test_a_generator_has_a_distortion_at_each_of_its_steps_and_no_rate(tiny_study, method):
    sets = (f"method={{name: {method}, latent_dim: 4}}", "diffusion.num_timesteps=4")
    run = tiny_study("", *sets)[0]
    context = context_of(run, rate_distortion=RateDistortion(num_images=40))
    first, again = evaluate(context), evaluate(context)
    assert list(first.metrics) == ["eval/distortion_rmse"] and first.metrics == again.metrics
    arrays = first.arrays["eval_rate_distortion.npz"]
    assert arrays["reverse_steps"].tolist() == [1, 2, 3, 4] and "rate_bpd" not in arrays
    with torch.inference_mode():
        _, _, x_0, _ = context.choose_images(40)
    context.denoiser = lambda *_, **__: lambda x_t, t: Denoised(torch.zeros_like(x_t), *[x_t] * 3)
    with torch.inference_mode():
        of_grey = distortion(context, context.process(), x_0, None, clip=True)
    np.testing.assert_allclose(of_grey, 127.5 * x_0.square().mean().sqrt(), rtol=1e-5)


def test_the_gradient_noise_scale_is_that_of_the_runs_own_objective(tiny_study):
    run = tiny_study("objective: vlb\n", "diffusion.var_type=learned_range")[0]
    data = make_dataset(run.spec.data)
    method = make_method(run.spec, data, Resources(), CPU)
    torch.manual_seed(0)  # not whatever tests before this one left: some draws overflow
    for weight in method.network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    wanted = Evaluation(weights="raw", noise_scale=NoiseScale(batch_size=8, small_per_big=4, num_big=6))
    context = EvaluationContext(method, run.spec, data, wanted, CPU)
    first, again = (evaluate(context).metrics["eval/gradient_noise_scale"] for _ in range(2))
    assert first == again and first > 0


def test_guidance_of_one_is_the_conditional_network_and_of_zero_the_unconditional(tiny_study):
    run = tiny_study("", "model.class_cond=true", "model.label_dropout=0.1")[0]
    data, seen = make_dataset(run.spec.data), []

    def predict(x, t, y):
        seen.append(y)
        return torch.where((y == 10).view(-1, 1, 1, 1), x, -x)

    def samples(guidance):
        evaluation = Evaluation(guidance=guidance, grid=4).resolve(run.spec, inception=False)
        method = make_method(run.spec, data, Resources(), CPU)
        use_network(method, predict)
        return EvaluationContext(method, run.spec, data, evaluation, CPU).sample(Ddim(), 3, 4)

    conditional, free = samples(1.0), samples(0.0)
    assert not torch.equal(conditional, free)
    assert {int(y[0]) for y in seen} == {0, 10}


EVERY_PART = {
    "nll": Nll(num_images=8, evaluations_per_image=4),
    "fidelity": Fidelity(num_samples=32, num_steps=3, prc_reference=32),
    "sweep": Sweep(
        num_samples=32, samplers=(Ancestral(), Ddim(), DpmSolverPP()), num_steps=(2, 3), metrics=("fid", "recall")
    ),
    "skip": Skip(num_samples=32, num_steps=3, fractions=(0.0, 0.5)),
    "rate_distortion": RateDistortion(num_images=4, num_steps=3),
    "noise_scale": NoiseScale(batch_size=4, small_per_big=2, num_big=2),
    "grid": 4,
    "trajectories": Trajectories(num_samples=2, num_steps=6, num_frames=4),
    "progressive": Progressive(num_samples=32, num_steps=3, num_frames=3),
    "interpolation": Interpolation(num_pairs=2, t=(2, 4), num_weights=3),
    "reconstruction": Reconstruction(num_images=4, num_steps=(3, 6)),
}
OF_MIXTURES = {"modes": Modes(num_samples=32, num_steps=(3, 2))}


@pytest.mark.parametrize("data", ["digits", "mog"])
@pytest.mark.parametrize("prefix", ["eval", "eval_raw_12ab34"])
def test_an_evaluation_with_every_part_leaves_exactly_the_names_that_are_declared(tiny_study, data, prefix):
    sets = [] if data == "digits" else ["data=mog", "model={name: mlp, width: 16}"]
    spec = tiny_study("", *sets)[0].spec
    every_part = EVERY_PART | (OF_MIXTURES if data == "mog" else {})
    dataset, evaluation = make_dataset(spec.data), Evaluation(weights="raw", batch_size=32, **every_part)
    method = make_method(spec, dataset, Resources(), CPU)
    evaluation = evaluation.resolve(spec, inception=False)
    context = EvaluationContext(method, spec, dataset, evaluation, CPU, prefix)
    result, declared = evaluate(context), outputs(evaluation, spec, prefix)
    elsewhere = {"metrics"} | (set() if data == "mog" else set(OF_MIXTURES))  # tests/component/plugins
    assert {*evaluation.parts} == set(PART_OUTPUTS) - elsewhere
    assert tuple(result.metrics) == declared.metrics
    assert tuple(result.curves) == declared.curves
    assert tuple(result.arrays) == declared.arrays
    assert tuple(result.pictures) == declared.pictures
    assert all(metric_kind(name) in METRIC_KINDS.values() for name in (*declared.metrics, *declared.curves))
    assert form(fake_result(evaluation, spec, {}, prefix)) == form(result)


def form(result):
    """Return the names of what was measured, the shapes and types of the arrays, and where curves were measured."""
    arrays = {
        name: {key: (value.shape, value.dtype) for key, value in arrays.items()}
        for name, arrays in result.arrays.items()
    }
    # Of a likelihood's curve the points depend on the estimator.
    curves = {name: None if "L_t" in name else [x for x, _ in curve] for name, curve in result.curves.items()}
    return list(result.metrics), curves, arrays, {name: image.shape for name, image in result.pictures.items()}


def test_the_grid_shows_the_samples_that_fid_was_measured_on(tiny_study):
    context = context_of(tiny_study()[0], fidelity=EVERY_PART["fidelity"], grid=4)
    shown = evaluate(context).arrays["eval_samples.npz"]["samples"]
    assert np.array_equal(shown, context.to_images(context.samples[:4]).numpy())


def test_hidden_labels_are_the_class_after_the_last(tiny_study):
    spec = tiny_study("", "model.class_cond=true", "model.label_dropout=0.25", "train.batch_size=512")[0].spec
    y = Batches(spec, make_dataset(spec.data), Streams(0))(0).y
    assert 0.15 < (y == 10).float().mean() < 0.35
    assert y.max() == 10 and y.min() == 0


MOG = ("data=mog", "model={name: mlp, width: 16, depth: 1}", "diffusion.num_timesteps=8")


class TestModes:
    def test_samples_of_each_number_of_steps_are_kept_with_their_modes_quality_and_moments(self, tiny_study):
        result = evaluate(context_of(tiny_study("", *MOG)[0], modes=Modes(num_samples=64, num_steps=(8, 2, 2))))
        arrays = result.arrays["eval_modes.npz"]
        assert arrays["num_steps"].tolist() == [2, 8] and arrays["centres"].shape == (25, 2)
        for num_steps in (2, 8):
            points, shares = arrays[f"points_{num_steps}"], arrays[f"shares_{num_steps}"]
            assert (points.shape, points.dtype, shares.shape) == ((64, 2), np.float32, (25,))
            name = f"64_ancestral{num_steps}"
            assert result.metrics[f"eval/modes_covered_{name}"] == (shares > 0).sum()
            distances = np.linalg.norm(points[:, None] - arrays["centres"], axis=-1).min(1)
            assert result.metrics[f"eval/high_quality_{name}"] == (distances <= 1 / 11).mean()
            assert result.metrics[f"eval/frechet_{name}"] > 0
            assert result.metrics[f"eval/log_density_nats_{name}"] < result.metrics["eval/data_log_density_nats"]
        assert result.protocol["modes"]["radius"] == pytest.approx(1 / 11)

    def test_by_default_the_whole_chain_is_sampled(self, tiny_study):
        context = context_of(tiny_study("", *MOG)[0], modes=Modes(num_samples=16))
        assert context.evaluation.modes.num_steps == (8,)
        assert "eval/mmd2_16_ancestral8" in evaluate(context).metrics

    def test_the_frechet_distance_is_fid_on_coordinates(self, tiny_study):
        fidelity = Fidelity(num_samples=64, num_steps=2, prc_reference=32)
        context = context_of(tiny_study("", *MOG)[0], modes=Modes(num_samples=64, num_steps=(2,)), fidelity=fidelity)
        metrics = evaluate(context).metrics
        assert metrics["eval/frechet_64_ancestral2"] == metrics["eval/fid_coordinates_64_ancestral2"]

    def test_samples_that_diverged_are_near_no_mode_and_have_no_distance(self, tiny_study):
        context = context_of(tiny_study("", *MOG)[0], modes=Modes(num_samples=32, num_steps=(2,)))
        use_network(context.method, lambda x, t, y: torch.full_like(x, math.nan))
        metrics = evaluate(context).metrics
        assert metrics["eval/modes_covered_32_ancestral2"] == metrics["eval/high_quality_32_ancestral2"] == 0
        assert all(
            math.isnan(metrics[f"eval/{kind}_32_ancestral2"]) for kind in ("frechet", "mmd2", "log_density_nats")
        )

    def test_images_have_no_known_modes(self, tiny_study):
        with pytest.raises(SpecError, match=r"tiny\.yaml:\d+: .*modes: data digits are not a mixture"):
            tiny_study("evaluate: [{modes: {}}]\n")

    def test_more_steps_than_the_chain_has_are_refused(self, tiny_study):
        with pytest.raises(SpecError, match=r"has 8 steps, cannot keep 16 of them"):
            tiny_study("evaluate: [{modes: {num_steps: [4, 16]}}]\n", *MOG)


@pytest.mark.parametrize("data", ["digits", "mog"])
def test_a_trajectory_begins_with_the_noise_and_ends_with_the_sample(tiny_study, data):
    sets = () if data == "digits" else MOG
    part = Trajectories(num_samples=40, num_steps=6, num_frames=4)  # two batches
    context = context_of(tiny_study("", *sets)[0], trajectories=part)
    result = evaluate(context)
    arrays = result.arrays["eval_trajectories.npz"]
    assert arrays["steps_left"].tolist() == [6, 4, 2, 0]
    with torch.inference_mode():
        samples = context.sample(part.sampler, 6, 40)
    noise = Streams(0).normal("x_T", 0, (32, *samples.shape[1:]))
    assert np.array_equal(arrays["x_t"][0][:32], context.to_images(noise).numpy())
    assert arrays["x_t"].shape == arrays["x_0"].shape == (4, *samples.shape)
    for name in ("x_t", "x_0"):
        assert np.array_equal(arrays[name][-1], context.to_images(samples).numpy())
    assert not np.array_equal(arrays["x_0"][0], arrays["x_0"][-1])
    if data == "digits":
        assert result.pictures["eval_trajectories.png"].shape == (80 * 50 + 2, 4 * 50 + 2)


def test_a_short_chain_is_kept_whole(tiny_study):
    context = context_of(tiny_study("", *MOG)[0], trajectories=Trajectories(num_samples=1, num_steps=2))
    assert evaluate(context).arrays["eval_trajectories.npz"]["steps_left"].tolist() == [2, 1, 0]
