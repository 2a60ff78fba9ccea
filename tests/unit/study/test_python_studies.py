"""Studies in Python: the same rules, the same records, mistakes with the line of their `harness.run`."""

import pytest

from harness.errors import SpecError
from harness.study.expand import load_study

STUDY = """import harness

SMALL = {"data": "digits", "train": {"steps": 1}}


def study():
    return harness.python_study(
        "widths",
        [
            harness.run(
                arm=f"width-{width}",
                spec={**SMALL, "model": {"channels": width, "channel_mult": [1], "attention_resolutions": []}},
                replicates=2,
                evaluate=[{"name": "eval", "nll": {}}],
            )
            for width in (32, 64)
        ],
    )
"""
YAML = """
study: widths
data: digits
train: {steps: 1}
model: {channel_mult: [1], attention_resolutions: []}
replicates: 2
arms:
  width-32: {model.channels: 32}
  width-64: {model.channels: 64}
evaluate: [{name: eval, nll: {}}]
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="my_study.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refusal(path):
    with pytest.raises(SpecError) as caught:
        load_study(path)
    return str(caught.value)


def test_a_study_in_python_asks_for_the_runs_of_the_same_study_in_yaml(write):
    def identity(study):
        return [
            (run.study, run.arm, run.replicate, run.run_key, [e.key for e in run.evaluations]) for run in study.runs
        ]

    assert identity(load_study(write(STUDY))) == identity(load_study(write(YAML, "study.yaml")))


def test_a_value_can_be_set_for_once(write):
    assert {run.spec.train.steps for run in load_study(write(STUDY), sets=["train.steps=7"]).runs} == {7}


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('"channels"', '"chanels"', 10, "model.chanels: unknown key; did you mean 'channels'?"),
        ('"nll": {}', '"nl": {}', 10, "evaluate.0.nl: unknown key; did you mean 'nll'?"),
        ("(32, 64)", "(32, 32)", 10, "'width-32' is already defined at line 10"),
        ('arm=f"width-{width}"', 'arm="a/b"', 10, "an arm's name must be printable"),
        ('"widths"', '"no/name"', 7, "a study's name has letters"),
        ("(32, 64)", "(32 / 0,)", 16, "ZeroDivisionError"),
        ("(32, 64)", "()", 7, "a study needs at least one run"),
        ("def study", "def studie", 1, "needs a function study()"),
        ("    return", "    return 3\n    return", 6, "study() must return harness.python_study"),
        ("import harness", "import harness, no_such_package_at_all", 1, "ModuleNotFoundError"),
    ],
)
def test_a_mistake_is_told_with_its_line(write, old, new, line, message):
    path = write(STUDY.replace(old, new))
    assert refusal(path).splitlines()[0].startswith(f"{path}:{line}: ")
    assert message in refusal(path)


def test_a_file_that_is_missing_is_named(tmp_path):
    assert refusal(tmp_path / "gone.py") == f"{tmp_path / 'gone.py'}: cannot be read: No such file or directory"
