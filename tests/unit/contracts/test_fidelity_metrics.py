"""The metrics of features: the names in the spec, the functions and what they leave are held equal; golden values."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from harness.metrics.feature_metrics import CONSTANTS, FEATURE_METRICS, Features, measure
from harness.spec.fidelity_metrics import FIDELITY_METRICS, FidelityMetricName
from harness.spec.metrics import METRIC_KINDS, metric_kind

# Of the features below; computed once, and held. Each has a closed form or an independent computation in
# tests/unit/metrics.
GOLDEN = {
    "fid": {"fid": 0.4062726},
    "fid_standard_error": {"fid_standard_error": 0.083416},
    "fid_infinity": {"fid_infinity": 0.3349917, "fid_infinity_low": 0.1714994, "fid_infinity_high": 0.4984841},
    "class_fid": {"class_fid": 0.7628789},
    "kid": {"kid": 0.2404574, "kid_standard_error": 0.0683264},
    "mind": {"mind": 1.293637},
    "inception_score": {"inception_score": 1.709012, "inception_score_std": 0.2104285},
    "precision": {"precision": 0.95},
    "recall": {"recall": 0.9},
    "f_score": {"f_score": 0.9243243},
    "density": {"density": 1.163889},
    "coverage": {"coverage": 0.92},
    "memorisation": {
        "memorisation_auc": 0.57375,
        "memorisation_auc_low": 0.5008344,
        "memorisation_auc_high": 0.6466656,
        "memorised_share": 0.2083333,
    },
}


def features(count=120, dim=4):
    draws = np.random.default_rng(0).standard_normal((4, count, dim)).astype(np.float32)
    reference, samples, train, test = torch.from_numpy(draws)
    return Features(
        samples=samples * 0.9 + 0.2,
        reference=reference,
        prc_reference=reference[:100],
        k=3,
        labels=torch.arange(count) % 3,
        reference_labels=torch.arange(count) % 3,
        logits=samples * 2,
        train=torch.cat([train, samples[:20] * 0.9 + 0.2]),
        test=test,
    )


def test_the_spec_names_exactly_the_metrics_that_have_a_function():
    assert get_args(FidelityMetricName) == tuple(FIDELITY_METRICS) == tuple(FEATURE_METRICS)
    assert CONSTANTS.keys() <= FEATURE_METRICS.keys()
    assert GOLDEN.keys() == FEATURE_METRICS.keys()


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_a_metric_leaves_the_numbers_that_it_declares_and_they_are_the_golden_ones(name):
    values = measure(features(), (name,))
    assert tuple(values) == FIDELITY_METRICS[name].outputs
    assert values == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_each_number_of_a_metric_has_a_kind_of_its_own(name):
    declared = FIDELITY_METRICS[name]
    for kind in declared.outputs:
        assert metric_kind(f"eval/{kind}_digitsnet_10_ddim5") == METRIC_KINDS[kind]
    for kind in declared.curves:
        assert metric_kind(f"eval/{kind}_digitsnet_10_ddim5") in METRIC_KINDS.values()


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_samples_that_diverged_have_no_value(name):
    finite = features()
    samples, logits = finite.samples.clone(), finite.logits.clone()
    samples[5, 1] = logits[5, 1] = math.nan
    diverged = Features(**{**vars(finite), "samples": samples, "logits": logits})
    assert all(math.isnan(value) for value in measure(diverged, (name,)).values())
