"""Several sampling seeds: the first draws what an only one draws, and each survives a kill on its own."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from harness.datasets import make_dataset
from harness.evaluation.context import EvaluationContext
from harness.evaluation.evaluator import evaluate
from harness.evaluation.keeping import Keeping
from harness.registry import make_method
from harness.spec.evaluation import Evaluation, Fidelity
from harness.spec.resources import Resources

CPU = torch.device("cpu")
KINDS = ("fid", "precision", "recall")
NAME = "coordinates_40_ancestral2"


class Killed(Exception):
    """Stands for what ends a process in the midst of an evaluation."""


@pytest.fixture
def context_of(tiny_study, tmp_path, mixture):
    """Return a function that makes a context with the same weights each time; `drawn` has the seed of each batch."""

    def make(seeds, *, kill_after=None, **options):
        spec = tiny_study("", "data=mog", "model={name: mlp, width: 16}", "diffusion.num_timesteps=10")[0].spec
        method = make_method(spec, mixture, Resources(), CPU)
        part = Fidelity(num_samples=40, num_steps=2, prc_reference=50, seeds=seeds)
        evaluation = Evaluation(batch_size=16, fidelity=part).resolve(spec, inception=False)
        context = EvaluationContext(method, spec, mixture, evaluation, CPU, **options)
        context.keeping = Keeping(tmp_path / "kept")
        context.drawn, denoiser = [], method.denoiser

        def count_batches(*arguments, **options):
            if len(context.drawn) == kill_after:
                raise Killed
            context.drawn.append(options["generator"].initial_seed())
            return denoiser(*arguments, **options)

        method.denoiser = count_batches
        return context

    return make


@pytest.fixture
def mixture(tiny_study):
    return make_dataset(tiny_study("", "data=mog", "model={name: mlp, width: 16}")[0].spec.data)


def by_seed(result, kind="fid"):
    return [value for _, value in result.curves[f"eval/{kind}_by_seed_{NAME}"]]


def test_each_number_is_the_mean_over_seeds_and_the_first_is_the_number_of_one_seed(context_of):
    single, several = evaluate(context_of(1)), evaluate(context_of(3))
    assert not single.curves
    assert set(several.curves) == {f"eval/{kind}_by_seed_{NAME}" for kind in KINDS}
    for kind in KINDS:
        assert by_seed(several, kind)[0] == single.metrics[f"eval/{kind}_{NAME}"]
        assert several.metrics[f"eval/{kind}_{NAME}"] == float(np.mean(by_seed(several, kind)))
    assert len(set(by_seed(several))) == 3, "each seed has noise of its own"
    error = several.protocol["fidelity"]["fid_standard_error"]
    assert 0 < error < several.metrics[f"eval/fid_{NAME}"]


def test_a_killed_draw_of_several_seeds_goes_on_in_the_same_seed_to_the_same_numbers(context_of):
    killed = context_of(2, kill_after=4)  # three batches a seed
    with pytest.raises(Killed):
        evaluate(killed)
    going_on = context_of(2)
    result = evaluate(going_on)
    assert len(killed.drawn) == 4
    assert len(going_on.drawn) == 2
    assert len({*killed.drawn, *going_on.drawn}) == 6, "no batch is drawn twice"
    going_on.keeping = None
    unbroken = context_of(2)
    unbroken.keeping = None
    assert evaluate(unbroken).curves == result.curves


def test_further_seeds_leave_the_samples_of_the_first_for_the_grid(context_of):
    single, several = context_of(1), context_of(2)
    single.keeping = several.keeping = None
    evaluate(single)
    evaluate(several)
    assert torch.equal(single.samples, several.samples)


def test_progress_goes_over_all_seeds(context_of):
    reported = []
    context = context_of(2, on_progress=lambda *progress: reported.append(progress))
    evaluate(context)
    sampling = [(done, total) for task, done, total in reported if task == "sampling"]
    assert {total for _, total in sampling} == {160}  # 2 seeds, 40 samples, 2 steps
    assert sampling[-1] == (160, 160)
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(sampling))
