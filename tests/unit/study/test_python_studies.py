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


RUNGS = "        rungs=[1000, 4000],\n        reduction_factor=2,\n        compare={'metric': 'nll'},\n    )\n"
WITH_RUNGS = (
    STUDY.replace('"nll"', '"every": 500, "nll"').replace('"steps": 1', '"steps": 4000')[: -len("    )\n")] + RUNGS
)


def test_rungs_are_those_of_the_same_study_in_yaml_and_no_part_of_a_key(write):
    yaml = YAML.replace("steps: 1", "steps: 4000").replace("nll", "every: 500, nll")
    rungs = "rungs: [1000, 4000]\nreduction_factor: 2\ncompare: {metric: nll}\n"
    in_yaml, in_python = load_study(write(yaml + rungs, "study.yaml")), load_study(write(WITH_RUNGS))
    assert in_python.rungs == in_yaml.rungs and in_python.rungs.steps == (1000, 4000)
    assert [run.run_key for run in in_python.runs] == [run.run_key for run in in_yaml.runs]
    flat = load_study(write(WITH_RUNGS.replace("rungs=[1000, 4000],", "").replace("reduction_factor=2,", "")))
    assert flat.rungs is None and [run.run_key for run in flat.runs] == [run.run_key for run in in_python.runs]
    assert load_study(write(WITH_RUNGS.replace("[1000, 4000]", "(1000, 4000)"))).rungs == in_yaml.rungs
    assert load_study(write(WITH_RUNGS.replace("reduction_factor=2,", ""))).rungs.reduction_factor == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1000, 4000]", "1000", "rungs: a list of steps"),
        ("[1000, 4000]", "[4000, 1000]", "each more than the one before"),
        ("[1000, 4000]", "[1000, 2000]", "the last rung, 2000, is not the end of arm width-32"),
        ("[1000, 4000]", "[750, 4000]", "eval is measured every 500 steps and so not at step 750"),
        ('"every": 500, ', "", "no evaluation measures nll during training"),
        ("compare={'metric': 'nll'},", "", "compare.metric decides who goes on"),
        ("reduction_factor=2", "reduction_factor=1", "reduction_factor: a whole number from 2"),
        ("rungs=[1000, 4000],", "", "reduction_factor: is of rungs, and there are none"),
    ],
)
def test_rungs_that_cannot_be_decided_are_refused_as_in_yaml(write, old, new, message):
    assert WITH_RUNGS.count(old) == 1
    path = write(WITH_RUNGS.replace(old, new))
    assert refusal(path).startswith(f"{path}:7: ") and message in refusal(path)


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
