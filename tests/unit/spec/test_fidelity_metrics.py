"""Which metrics of features a protocol may ask for."""

import pytest
from pydantic import ValidationError

from harness.spec.costs import network_evaluations
from harness.spec.evaluation import Evaluation, Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.metrics import outputs
from harness.spec.run import RunSpec

DIGITS = {
    "data": {"name": "digits"},
    "model": {"name": "unet", "channels": 8, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []},
    "train": {"steps": 4, "batch_size": 16},
}
EVERY_METRIC = tuple(FIDELITY_METRICS)


def spec_of(**changes):
    sections = {key: {**DIGITS.get(key, {}), **value} for key, value in changes.items()}
    return RunSpec.model_validate(DIGITS | sections)


def resolved(spec=None, **part):
    evaluation = Evaluation(fidelity=Fidelity(num_samples=100, num_steps=10, **part))
    return evaluation.resolve(spec or spec_of(), inception=False)


def test_the_three_of_earlier_versions_are_the_default_and_change_no_key():
    earlier = Evaluation(fidelity=Fidelity(num_samples=100, num_steps=10))
    said = Evaluation(fidelity=Fidelity(num_samples=100, num_steps=10, metrics=("recall", "fid", "precision")))
    assert said.key == earlier.key == "f1f36d92ffd15b9a"
    assert "metrics" not in said.model_dump(mode="json")["fidelity"]


def test_the_same_metrics_are_the_same_protocol_in_whatever_order_they_are_written():
    first, second = (resolved(metrics=names) for names in (("kid", "fid"), ("fid", "kid")))
    assert first.fidelity.metrics == ("fid", "kid")
    assert first.key == second.key != resolved(metrics=("fid",)).key
    written = first.model_dump(mode="json")
    assert written["fidelity"]["metrics"] == ["fid", "kid"]
    assert Evaluation.model_validate(written).key == first.key


def test_names_say_what_was_measured_and_how():
    declared = outputs(resolved(metrics=("fid", "fid_infinity", "memorisation")), spec_of())
    assert declared.metrics[:2] == ("eval/fid_digitsnet_100_ancestral10", "eval/fid_infinity_digitsnet_100_ancestral10")
    assert "eval/memorisation_auc_low_digitsnet_100_ancestral10" in declared.metrics
    assert declared.pictures == ("eval_nearest_training_images.png",)


def test_a_class_conditional_run_can_be_measured_by_all_of_them():
    spec = spec_of(model={"class_cond": True})
    declared = outputs(resolved(spec, metrics=EVERY_METRIC), spec)
    assert len(declared.metrics) == sum(len(metric.outputs) for metric in FIDELITY_METRICS.values())
    assert declared.curves == ("eval/class_fid_by_class_digitsnet_100_ancestral10",)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [((), "at least 1 item"), (("fid", "fid"), "fid is there twice"), (("fib",), "Input should be 'fid', ")],
)
def test_metrics_that_are_none_twice_or_unknown_are_refused(metrics, message):
    with pytest.raises(ValidationError, match=message):
        Fidelity(metrics=metrics)


def test_the_metric_by_class_needs_a_class_conditional_model_and_samples_of_each_class():
    with pytest.raises(
        ValueError, match=r"class_fid needs samples of known classes: train with model\.class_cond: tru"
    ):
        resolved(metrics=("class_fid",))
    few = Evaluation(fidelity=Fidelity(num_samples=16, num_steps=10, metrics=("class_fid",)))
    with pytest.raises(ValueError, match="2 samples of each of 10 classes: num_samples 16 must be 20 or more"):
        few.resolve(spec_of(model={"class_cond": True}), inception=False)


def test_the_inception_score_needs_an_extractor_with_logits():
    points = RunSpec.model_validate({"data": "mog", "model": {"name": "mlp"}, "train": {"steps": 10}})
    with pytest.raises(
        ValueError, match="needs logits, and extractor coordinates has none: use extractor: inception or"
    ):
        resolved(points, metrics=("inception_score",))
    assert resolved(points, metrics=("kid", "memorisation")).fidelity.extractor == "coordinates"
    assert not outputs(resolved(points, metrics=("memorisation",)), points).pictures


def test_all_that_a_metric_needs_is_said_with_the_metrics_that_need_nothing():
    with pytest.raises(
        ValueError, match="or use other metrics: fid, fid_standard_error, fid_infinity, kid, mind, prec"
    ):
        resolved(metrics=("class_fid",))


def test_one_sampling_seed_changes_no_key_and_several_leave_a_curve_of_each_number():
    assert resolved(seeds=1).key == resolved().key != resolved(seeds=4).key
    declared = outputs(resolved(seeds=4, metrics=("fid", "recall")), spec_of())
    assert declared.metrics == outputs(resolved(metrics=("fid", "recall")), spec_of()).metrics
    assert declared.curves == tuple(f"eval/{kind}_by_seed_digitsnet_100_ancestral10" for kind in ("fid", "recall"))


def test_the_cost_counts_every_sampling_seed():
    costs = [network_evaluations(resolved(seeds=seeds), spec_of())["fidelity"] for seeds in (1, 4)]
    assert costs == [1000, 4000]
