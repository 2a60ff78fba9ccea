"""Which averages a run keeps, and which of them an evaluation may measure."""

import pytest
from pydantic import ValidationError

from harness.spec.averages import profile_error
from harness.spec.evaluation import Evaluation
from harness.spec.run import RunSpec

RATES = {"ema": [0.9, 0.99]}
WIDTHS = {"ema": {"power": [0.05, 0.1], "every": 50}}


def spec(train: dict, **parts) -> RunSpec:
    return RunSpec.model_validate({"data": "mog", "model": {"name": "mlp"}, "train": {"steps": 1000} | train} | parts)


def chosen(ema, train: dict, **fields):
    return Evaluation(grid=4, ema=ema, **fields).resolve(spec(train), inception=False).ema


@pytest.mark.parametrize("train", [RATES, WIDTHS])
def test_what_is_written_is_read_again_without_an_ema_rate(train):
    run = spec(train)
    written = run.model_dump(mode="json")
    assert "ema_rate" not in written["train"] and written["train"]["ema"] == train["ema"]
    assert RunSpec.model_validate(written) == run
    assert run.run_key not in (spec({}).run_key, spec({"ema": [0.9, 0.999]}).run_key)
    assert run.cost_key != spec({}).cost_key


def test_a_run_that_asks_for_none_is_written_as_ever():
    assert spec({}).model_dump(mode="json")["train"] == {
        "steps": 1000,
        "batch_size": 128,
        "ema_rate": 0.9999,
        "precision": "fp32",
    }


@pytest.mark.parametrize(
    ("train", "parts", "message"),
    [
        (RATES | {"ema_rate": 0.9}, {}, "ema_rate 0.9 and ema are both given"),
        ({"ema": [0.9]}, {}, "a single one is train.ema_rate"),
        ({"ema": [0.9, 0.9]}, {}, "two of them are equal"),
        ({"ema": {"power": [0.1, 0.1], "every": 5}}, {}, "two of them are equal"),
        ({"ema": {"power": [0.05, 0.5], "every": 5}}, {}, "less than or equal to 0.28"),
        (WIDTHS, {"continue_from": "566baaac0e8635f3"}, "snapshots of a continued run"),
        (RATES, {"imported_sha256": "0" * 64}, "imported weights are not averaged"),
    ],
)
def test_what_cannot_be_kept_is_refused(train, parts, message):
    with pytest.raises(ValidationError, match=message):
        spec(train, **parts)


def test_null_takes_the_place_of_an_ema_rate_that_is_inherited():
    assert spec(RATES | {"ema_rate": None}) == spec(RATES)


@pytest.mark.parametrize("train", [RATES, WIDTHS])
@pytest.mark.parametrize("name", ["ddgan", "siddm"])
def test_adversarial_methods_keep_them_too(name, train):
    assert spec(train, method={"name": name}).train.averages == ("ema", "0.99" if train == RATES else "0.1")


def test_the_first_average_is_the_one_that_is_measured_without_a_choice():
    assert chosen(0.9, RATES) is None
    assert chosen({"width": 0.05}, WIDTHS) is None
    assert chosen(0.99, RATES) == 0.99
    assert chosen({"width": 0.15}, WIDTHS).width == 0.15
    assert chosen(0.9999, {}) is None


@pytest.mark.parametrize(
    ("ema", "train", "fields", "message"),
    [
        (0.5, RATES, {}, r"rate 0.5; choices: 0.9, 0.99"),
        (0.5, {}, {}, r"rate 0.5; choices: 0.9999"),
        ({"width": 0.1}, RATES, {}, "made of snapshots"),
        (0.9, WIDTHS, {}, "by width, not by rate"),
        ({"width": 0.02}, {"ema": {"power": [0.05, 0.1], "every": 500}}, {}, "34% away from it"),
        (0.99, RATES, {"weights": "raw"}, "weights: raw are measured"),
        ({"width": 0.1}, WIDTHS, {"every": 100, "nll": {}}, "when the training is over"),
    ],
)
def test_what_a_run_does_not_keep_cannot_be_measured(ema, train, fields, message):
    with pytest.raises(ValueError, match=message):
        chosen(ema, train, **fields)


def test_many_snapshots_are_judged_by_some_of_them():
    assert 0 < profile_error(0.15, (0.05, 0.1), 1, 20_000) < 0.001  # all 20,000 would take hours
