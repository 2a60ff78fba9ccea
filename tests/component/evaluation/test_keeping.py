"""Samples and features that are kept: a repeated evaluation draws what is missing, and ends in the same bits."""

import numpy as np
import pytest
import torch

from harness.data.base import to_uint8
from harness.datasets import make_dataset
from harness.evaluation.context import EvaluationContext
from harness.evaluation.evaluator import evaluate
from harness.evaluation.keeping import Keeping, to_unit
from harness.registry import make_method
from harness.spec.evaluation import Ancestral, Ddim, Evaluation, Fidelity, Nll, RateDistortion, Reconstruction, Sweep
from harness.spec.resources import Resources

CPU = torch.device("cpu")
POINTS = ("data=mog", "model={name: mlp, width: 16}", "diffusion.num_timesteps=10")
BATCH = 16


class Killed(Exception):
    """Stands for what ends a process in the midst of an evaluation."""


@pytest.fixture
def context_of(tiny_study, tmp_path):
    """Return a function that makes a context with the same weights each time; `drawn` has the rows of each batch."""

    def make(*sets, folder="kept", data=None, kill_after=None, keeping=None, **parts):
        spec = tiny_study("", *sets)[0].spec
        facts = spec.data.facts if data is None else data
        method = make_method(spec, facts, Resources(), CPU)
        evaluation = Evaluation(**{"batch_size": BATCH} | parts).resolve(spec, inception=False)
        context = EvaluationContext(method, spec, facts, evaluation, CPU, evaluation.name)
        context.keeping = keeping or Keeping(tmp_path / folder)
        context.drawn, denoiser = [], method.denoiser

        def count_batches(*arguments, **options):
            if len(context.drawn) == kill_after:
                raise Killed
            context.drawn.append(options["generator"].initial_seed())
            return denoiser(*arguments, **options)

        method.denoiser = count_batches
        return context

    return make


def test_every_level_of_an_image_is_the_same_after_it_was_kept():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(levels)), levels)


@pytest.mark.parametrize("sets", [(), POINTS], ids=["images", "points"])
@pytest.mark.parametrize("kill_after", [0, 1, 3])
def test_samples_go_on_where_they_were_killed_and_are_those_of_an_unbroken_draw(context_of, sets, kill_after):
    with torch.inference_mode():
        unbroken = context_of(*sets, folder="unbroken", grid=4)
        expected = unbroken.to_images(unbroken.sample(Ddim(), 2, 50))
        killed = context_of(*sets, grid=4, kill_after=kill_after)
        with pytest.raises(Killed):
            killed.sample(Ddim(), 2, 50)
        resumed = context_of(*sets, grid=4)
        assert torch.equal(resumed.to_images(resumed.sample(Ddim(), 2, 50)), expected)
    assert unbroken.drawn == killed.drawn + resumed.drawn and len(killed.drawn) == kill_after


PARTS_OF_BATCHES = {
    "nll": Nll(num_images=33, evaluations_per_image=4),
    "the full sum": Nll(num_images=33, estimator="full"),
    "rate_distortion": RateDistortion(num_images=33),
    "reconstruction": Reconstruction(num_images=33, num_steps=(2, 4)),
}


@pytest.mark.parametrize("case", PARTS_OF_BATCHES)
def test_a_part_of_real_images_goes_on_where_it_was_killed_and_ends_in_the_same_bits(
    context_of, tiny_study, monkeypatch, case
):
    monkeypatch.setattr("harness.evaluation.context.BATCHES_AT_ONCE", 2)
    part = PARTS_OF_BATCHES[case]
    name = case if case in ("rate_distortion", "reconstruction") else "nll"

    def measure(calls, folder, kill_after=None):
        data = make_dataset(tiny_study("")[0].spec.data)
        context = context_of("diffusion.num_timesteps=8", folder=folder, data=data, **{name: part})
        predict = context.method.predict

        def counting(weights):
            network = predict(weights)

            def call(x, t, y):
                if len(calls) == kill_after:
                    raise Killed
                calls.append(len(x))
                return network(x, t, y)

            return call

        context.method.predict = counting
        return context, evaluate(context)

    unbroken, before, after = [], [], []
    expected = measure(unbroken, "unbroken")[1]
    kill_after = len(unbroken) // 2
    with pytest.raises(Killed):
        measure(before, "killed", kill_after)
    context, resumed = measure(after, "killed")
    assert resumed.metrics == expected.metrics and resumed.curves == expected.curves
    for file, arrays in expected.arrays.items():
        for array in arrays:
            assert np.array_equal(resumed.arrays[file][array], arrays[array], equal_nan=True)
    assert len(after) < len(unbroken) and len(before) == kill_after, "what was kept is not computed again"
    context.release()
    assert not list(context.keeping.folder.rglob("batch-*"))


def test_other_weights_seeds_and_settings_share_no_samples(context_of):
    with torch.inference_mode():
        first = context_of(*POINTS, grid=4)
        first.sample(Ancestral(), 2, BATCH)
        others = [context_of(*POINTS, grid=4, **parts) for parts in ({"seed": 1}, {"fixed_variance": "small"})]
        others.append(context_of(*POINTS, grid=4))
        with torch.inference_mode(False):
            next(others[-1].method.sampling_network("ema").parameters()).data += 1
        for other in others:
            other.sample(Ancestral(), 2, BATCH)
            assert len(other.drawn) == 1
        again = context_of(*POINTS, grid=4)
        again.sample(Ancestral(), 2, BATCH)
        again.sample(Ddim(), 2, BATCH)
        again.sample(Ancestral(), 3, BATCH)
        again.sample(Ancestral(), 2, BATCH, skipped=0.5)
        again.sample(Ancestral(), 2, BATCH - 1)  # a smaller batch is another draw of the noise
    assert len(again.drawn) == 4


def test_a_damaged_batch_is_drawn_again(context_of, caplog):
    with torch.inference_mode():
        expected = context_of(*POINTS, grid=4).sample(Ddim(), 2, 48)
        [path] = context_of(*POINTS, grid=4).keeping.folder.glob("*/batch-000001-*")
        path.write_bytes(path.read_bytes()[:-4])
        again = context_of(*POINTS, grid=4)
        assert torch.equal(again.sample(Ddim(), 2, 48), expected)
    assert len(again.drawn) == 1 and "is damaged" in caplog.text


def test_a_batch_with_a_sample_that_diverged_stays_one(context_of):
    def diverge(x, t, y):
        output = torch.zeros_like(x)
        output[3, 0, 0, 0] = torch.nan
        return output

    with torch.inference_mode():
        first, again = context_of(grid=4), context_of(grid=4)
        for context in (first, again):
            context.method.predict = lambda weights: diverge
        drawn, kept = (context.sample(Ddim(), 2, BATCH) for context in (first, again))
    assert not again.drawn and torch.equal(drawn.isfinite(), kept.isfinite()) and not kept[3].isfinite().all()
    assert torch.equal(first.to_images(drawn), again.to_images(kept))


def test_where_nothing_can_be_kept_the_samples_are_the_same_and_it_is_said_once(context_of, tmp_path, caplog):
    (tmp_path / "full").write_text("a file where the folder should be")
    with torch.inference_mode():
        expected = context_of(*POINTS, grid=4).sample(Ddim(), 2, 48)
        assert torch.equal(context_of(*POINTS, grid=4, folder="full").sample(Ddim(), 2, 48), expected)
    assert caplog.text.count("the evaluation goes on, but a kill would lose its samples") == 1


def test_the_first_of_many_samples_are_drawn_without_the_others(context_of):
    with torch.inference_mode():
        every = context_of(*POINTS, grid=4).sample(Ddim(), 2, 40)
        some = context_of(*POINTS, folder="other", grid=4)
        assert torch.equal(some.sample(Ddim(), 2, 40, only_first=20), every[:20])
    assert len(some.drawn) == 2


@pytest.fixture(scope="module")
def points():
    from harness.spec.run import Mog

    return make_dataset(Mog())


def test_a_metric_that_is_added_later_samples_nothing_and_is_the_number_that_it_would_have_been(context_of, points):
    first = {"num_samples": 64, "num_steps": 2, "k": 3}
    later = first | {"k": 5, "reference": "test"}
    at_once = context_of(*POINTS, data=points, folder="other", fidelity=Fidelity(**later), grid=4)
    expected = evaluate(at_once)
    context = context_of(*POINTS, data=points, fidelity=Fidelity(**first))
    evaluate(context)
    context.release()
    [features] = context.keeping.folder.glob("*/*.npy")
    assert features.name.startswith("features-coordinates-none-64-")
    added = context_of(*POINTS, data=points, fidelity=Fidelity(**later), grid=4)
    result = evaluate(added)
    assert result.metrics == expected.metrics
    # The picture needs the samples themselves: the first batch of them is drawn again, and is the same.
    assert len(at_once.drawn) == 4 and len(added.drawn) == 1
    assert np.array_equal(result.arrays["eval_samples.npz"]["samples"], expected.arrays["eval_samples.npz"]["samples"])


def test_a_reader_that_needs_the_samples_beside_kept_features_has_those_that_the_features_are_of(context_of, points):
    first, again = (context_of(*POINTS, data=points, grid=4) for _ in range(2))
    with torch.inference_mode():
        features = first.sampled_features(first.extractor("coordinates"), Ddim(), 2, 40)
        kept = again.sampled_features(again.extractor("coordinates"), Ddim(), 2, 40, with_samples=True)
        assert torch.equal(features, kept) and torch.equal(first.samples, again.samples)
    assert len(first.drawn) == 3 and not again.drawn


@pytest.mark.parametrize("samples", [False, True])
def test_features_above_the_limit_are_not_kept_and_samples_only_on_request(
    context_of, points, tmp_path, samples, caplog
):
    caplog.set_level("INFO")
    keeping = Keeping(tmp_path / "kept", samples=samples, features_mib=64 * 2 * 4 / (1 << 20) - 1e-9)
    part = Fidelity(num_samples=64, num_steps=2)
    context = context_of(*POINTS, data=points, keeping=keeping, fidelity=part)
    evaluate(context)
    context.release()
    assert "set records.keep_features_mib to 1 or more" in caplog.text
    assert len([*keeping.folder.glob("*/*.npy")]) == (4 if samples else 0)
    assert keeping.folder.exists() == samples
    again = context_of(*POINTS, data=points, keeping=keeping, fidelity=part)
    evaluate(again)
    assert len(again.drawn) == (0 if samples else 4)


def test_a_part_that_needs_the_samples_of_another_does_not_draw_them_twice(context_of, points):
    fidelity = Fidelity(num_samples=32, num_steps=2)
    sweep = Sweep(num_samples=32, num_steps=(2, 3), samplers=(Ancestral(),))
    context = context_of(*POINTS, data=points, fidelity=fidelity, sweep=sweep)
    result = evaluate(context)
    assert len(context.drawn) == 4
    assert result.curves["sweep/fid_coordinates_32_ancestral"][0] == (
        2,
        result.metrics["eval/fid_coordinates_32_ancestral2"],
    )
