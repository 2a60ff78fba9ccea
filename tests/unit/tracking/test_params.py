"""What MLflow shows of a spec as parameters."""

import pytest

from harness.tracking.described import params_of
from harness.tracking.store import param_name, read_cursor, tag_text


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


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("diffusion.schedule.s", "diffusion.schedule.s"),
        ("plugins.my_part.py", "plugins.my_part.py"),
        ("plugins.<b>", "plugins._b_"),
        ("../../x", "x"),
        ("/a//b/", "a/b"),
        ("a\nb\x1b", "a_b_"),
        ("x" * 300, "x" * 250),
        ("..", "_"),
        ("", "_"),
    ],
)
def test_a_param_has_a_name_that_mlflow_accepts(name, accepted):
    assert param_name(name) == accepted


def test_a_tag_keeps_its_lines_and_no_control_characters():
    assert tag_text("loss is nan\nat step\t7") == "loss is nan\nat step\t7"
    assert tag_text("\x1b[2J\x00\ud800\u202e") == " [2J   "
    assert params_of({"note": "a\x00\ud800"}) == {"note": "a  "}


DAMAGED = """
[] | x | {"run_id": 7} | {"run_id": "../x"} | {"sent_step": "all"} | {"sent_line": ["a"]} | {"tags": 1}
| {"problems": [1]} | {"sent_line": 7} |
"""


@pytest.mark.parametrize("content", [*DAMAGED.split("|"), "[" * 100_000])
def test_a_damaged_cursor_is_none(tmp_path, content):
    (tmp_path / "cursor.json").write_text(content)
    assert read_cursor(tmp_path / "cursor.json") == {}
    assert read_cursor(tmp_path / "absent.json") == {}
