"""What MLflow shows of a spec as parameters."""

from harness.tracking.sync import params_of


def test_a_param_that_is_too_long_for_mlflow_is_cut_visibly():
    (value,) = params_of({"note": "x" * 7000}).values()
    assert len(value) == 6000
    assert value.endswith(" ... (7000 characters; whole in spec.yaml)")


def test_params_keep_plain_text_and_write_all_else_as_json():
    spec = {"a": {"name": "cosine", "on": True, "none": None}, "list": [1, 2.5], "empty": {}}
    assert params_of(spec) == {
        "a.name": "cosine",
        "a.on": "true",
        "a.none": "null",
        "list": "[1, 2.5]",
        "empty": "{}",
    }
