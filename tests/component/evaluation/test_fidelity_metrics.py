"""Every metric of features, measured on one set of samples of a small model."""

import numpy as np
import pytest
import torch

from harness.data.base import to_uint8
from harness.datasets import make_dataset
from harness.evaluation.context import EvaluationContext
from harness.evaluation.evaluator import evaluate
from harness.evaluation.images import image_grid
from harness.metrics.logits import class_logits
from harness.registry import make_method
from harness.spec.evaluation import Evaluation, Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.metrics import outputs
from harness.spec.resources import Resources
from harness.testing import fake_result

CPU = torch.device("cpu")


@pytest.fixture
def context(tiny_study):
    """A class-conditional model of digits under a protocol with every metric of features."""
    spec = tiny_study("", "model.class_cond=true")[0].spec
    part = Fidelity(num_samples=80, num_steps=2, prc_reference=100, metrics=tuple(FIDELITY_METRICS))
    evaluation = Evaluation(weights="raw", batch_size=80, fidelity=part).resolve(spec, inception=False)
    data = make_dataset(spec.data)
    return EvaluationContext(make_method(spec, data, Resources(), CPU), spec, data, evaluation, CPU, "eval")


def test_one_set_of_samples_gives_exactly_the_numbers_curves_and_pictures_that_are_declared(context, monkeypatch):
    counted, sample = [], EvaluationContext.sample
    monkeypatch.setattr(EvaluationContext, "sample", lambda *a, **k: counted.append(1) or sample(*a, **k))
    result, declared = evaluate(context), outputs(context.evaluation, context.spec, "eval")
    assert len(counted) == 1
    assert tuple(result.metrics) == declared.metrics
    assert tuple(result.curves) == declared.curves
    assert tuple(result.pictures) == declared.pictures == ("eval_nearest_training_images.png",)

    fake = fake_result(context.evaluation, context.spec, {})
    assert list(fake.metrics) == list(result.metrics)
    [curve] = result.curves.values()
    assert [label for label, _ in curve] == list(range(10)) == [label for label, _ in fake.curves[declared.curves[0]]]
    name = "_digitsnet_80_ancestral2"
    assert result.metrics[f"eval/class_fid{name}"] == pytest.approx(np.mean([value for _, value in curve]))
    [picture], [faked] = result.pictures.values(), fake.pictures.values()
    assert picture.shape == faked.shape

    constants = result.protocol["fidelity"]["constants"]
    assert constants["memorisation"] == {"neighbours": 50, "test_share": 0.01, "train_images": 1442, "test_images": 355}
    assert constants["kid"] == {"kernel_degree": 3, "kernel_offset": 1.0}
    assert 0 <= result.metrics[f"eval/memorisation_auc{name}"] <= 1
    assert 1 <= result.metrics[f"eval/inception_score{name}"] <= 10


def test_copies_of_training_images_are_found_and_shown_beside_them(context, monkeypatch):
    copies = context.data.train.images[:80]
    unit = context.data.to_unit(copies)
    monkeypatch.setattr(EvaluationContext, "sample", lambda *a, **k: unit)
    result = evaluate(context)
    assert result.metrics["eval/memorisation_auc_low_digitsnet_80_ancestral2"] > 0.9
    assert result.metrics["eval/memorised_share_digitsnet_80_ancestral2"] > 0.9
    picture = result.pictures["eval_nearest_training_images.png"]
    tile = image_grid(to_uint8(unit[:1]).numpy()).shape[0] - 4  # without the gaps
    first, second = picture[2 : 2 + tile, 2 : 2 + tile], picture[2 : 2 + tile, 4 + tile : 4 + 2 * tile]
    assert np.abs(first.astype(int) - second).max() <= 1  # to_uint8 may come out one lower


def test_the_logits_of_the_classifier_are_those_of_its_whole_network(context):
    extractor = context.extractor("classifier")
    images = context.data.to_images(context.data.test.images)
    guesses = class_logits(extractor, extractor.features(images)).argmax(1).numpy()
    assert float((guesses == context.data.test.labels).mean()) == pytest.approx(extractor.accuracy)


def test_the_default_protocol_records_what_it_did_before(context):
    part = Fidelity(num_samples=80, num_steps=2, prc_reference=100)
    context.evaluation = Evaluation(batch_size=80, fidelity=part).resolve(context.spec, inception=False)
    result = evaluate(context)
    assert [name.partition("_")[0] for name in result.metrics] == ["eval/fid", "eval/precision", "eval/recall"]
    fields = {"reference_images", "reference", "prc_reference_images", "k", "fid_standard_error"}
    assert set(result.protocol["fidelity"]) == fields
    assert not result.pictures and not result.curves
