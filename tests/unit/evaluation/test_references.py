"""What samples are compared with: a split of the data, or a file of reference statistics."""

import numpy as np
import pytest
import torch

from harness.data import load_dataset
from harness.errors import DataError
from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts.fidelity import features_of
from harness.metrics.feature_metrics import measure
from harness.metrics.reference import read_reference, reference_of, write_reference
from harness.spec.evaluation import Evaluation, Fidelity
from harness.spec.run import RunSpec


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def context_of(digits, fidelity):
    spec = RunSpec.model_validate(
        {"data": "digits", "model": {"channels": 32, "attention_resolutions": []}, "train": {"steps": 4}}
    )
    evaluation = Evaluation(fidelity=fidelity).resolve(spec, inception=False)
    return EvaluationContext(None, spec, digits, evaluation, torch.device("cpu"))


def test_a_reference_file_gives_the_features_of_the_split_that_it_was_written_from(digits, tmp_path):
    context = context_of(digits, Fidelity(extractor="random_features"))
    extractor = context.extractor("random_features")
    write_reference(tmp_path / "train.npz", reference_of(extractor, digits, "train", None))
    of_file = context_of(digits, Fidelity(extractor="random_features", reference=str(tmp_path / "train.npz")))
    part = of_file.evaluation.fidelity
    assert torch.equal(of_file.reference(extractor, part.reference), context.reference(extractor, "train"))
    assert part.reference_sha256 == read_reference(tmp_path / "train.npz").sha256
    again = context_of(digits, part)
    np.savez(tmp_path / "train.npz", mu=np.zeros(384), sigma=np.eye(384), features=np.zeros((9, 384)))
    with pytest.raises(DataError, match="is not the file that the evaluation was planned with"):
        again.reference(extractor, part.reference)


def test_a_reference_file_of_another_network_is_refused(digits, tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2), sigma=np.eye(2), features=np.zeros((9, 2)))
    context = context_of(digits, Fidelity(extractor="random_features", reference=str(tmp_path / "adm.npz")))
    extractor = context.extractor("random_features")
    with pytest.raises(DataError, match=r"adm\.npz: has 2 features, and random_features has 384"):
        context.reference(extractor, context.evaluation.fidelity.reference)


def test_fid_takes_a_file_of_mean_and_covariance_alone_and_is_the_same(digits, tmp_path):
    part = Fidelity(extractor="random_features", metrics=("fid",))
    context = context_of(digits, part)
    extractor = context.extractor("random_features")
    features = context.reference(extractor, "train").double()
    np.savez(tmp_path / "adm.npz", mu=features.mean(0).numpy(), sigma=torch.cov(features.T).numpy())
    of_file = context_of(digits, part.model_copy(update={"reference": str(tmp_path / "adm.npz")}))
    samples = context.reference(extractor, "test")
    own, others = (features_of(one, one.evaluation.fidelity, extractor, samples) for one in (context, of_file))
    assert measure(others, ("fid",))["fid"] == pytest.approx(measure(own, ("fid",))["fid"], rel=1e-4)
