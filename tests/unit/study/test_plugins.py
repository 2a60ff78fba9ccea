"""Plugins: parts of a user's own, in the tables that the built-in parts stand in."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import RecordError, SpecError
from harness.records.directory import RunDirectory
from harness.records.plugins import read_spec
from harness.spec.base import SCHEMA_VERSION
from harness.spec.parts import active, choices
from harness.spec.plugins import files_digest, load_plugin
from harness.spec.run import RunSpec, Schedule
from harness.study.expand import load_study

ROOT = Path(__file__).parents[3]

SIGMOID = """
from typing import Literal
from harness.plugins import Field, ScheduleModel

class Sigmoid(ScheduleModel):
    name: Literal["sigmoid"] = "sigmoid"
    tau: float = Field(1.0, gt=0)

def sigmoid(num_timesteps, tau):
    return [tau] * num_timesteps

SCHEDULES = {"sigmoid": (Sigmoid, sigmoid)}
"""
DATA = """
from typing import Literal
from harness.plugins import DataModel
class Toy(DataModel):
    name: Literal["toy"] = "toy"
DATASETS = {"toy": (Toy, print)}
"""
METHOD = """
from typing import Literal
from harness.plugins import MethodSpec
class Toy(MethodSpec):
    name: Literal["toy"] = "toy"; ...
METHODS = {"toy": (Toy, print)}
"""
METRIC = """
from typing import Literal
from harness.plugins import MetricModel
class Toy(MetricModel):
    name: Literal["toy"] = "toy"; outputs = ("toy value",)
METRICS = {"toy": (Toy, print)}
"""
STUDY = """
study: tiny
plugins: [my_parts.py]
data: digits
model: {channels: 16, channel_mult: [1], num_heads: 1, attention_resolutions: []}
train: {steps: 1}
arms:
  built-in: {}
  own: {diffusion.schedule: sigmoid}
"""


@pytest.fixture
def study(tmp_path):
    def write(plugin=SIGMOID, text=STUDY, folder=tmp_path, **files):
        folder.mkdir(exist_ok=True)
        (folder / "my_parts.py").write_text(plugin)
        for name, content in files.items():
            (folder / f"{name}.py").write_text(content)
        (folder / "study.yaml").write_text(text)
        return folder / "study.yaml"

    return write


def keys(path):
    return {run.arm: run.run_key for run in load_study(path).runs}


def refusal(path):
    with pytest.raises(SpecError) as caught:
        load_study(path)
    return str(caught.value)


def test_the_digest_is_part_of_runs_that_use_the_plugin_and_of_no_others(study):
    path = study()
    runs = {run.arm: run for run in load_study(path).runs}
    digest = files_digest({"my_parts.py": SIGMOID.encode()})
    assert runs["own"].spec.plugins == {"my_parts.py": digest}
    assert "plugins" not in runs["built-in"].spec.model_dump(mode="json")
    without = STUDY.replace("plugins: [my_parts.py]\n", "").replace("  own: {diffusion.schedule: sigmoid}\n", "")
    assert keys(study(text=without)) == {"built-in": runs["built-in"].run_key}


def test_an_edited_plugin_gives_other_run_keys_to_those_who_use_it(study):
    before, after = keys(study()), keys(study(SIGMOID.replace("[tau]", "[tau / 2]")))
    assert before["built-in"] == after["built-in"]
    assert before["own"] != after["own"]


def test_a_file_that_an_implementation_names_belongs_to_the_plugin(study):
    plugin = SIGMOID.replace("(Sigmoid, sigmoid)", '(Sigmoid, "more.py:sigmoid")')
    before = keys(study(plugin, more="def sigmoid(num_timesteps, tau): return 1"))
    after = keys(study(plugin, more="def sigmoid(num_timesteps, tau): return 2"))
    assert before["own"] != after["own"]


@pytest.mark.process
def test_a_study_with_a_plugin_is_planned_without_torch(study):
    plugin = SIGMOID.replace("(Sigmoid, sigmoid)", '(Sigmoid, "more.py:sigmoid")')
    path = study(plugin, more="import torch\ndef sigmoid(num_timesteps, tau): return torch.zeros(num_timesteps)")
    code = (
        "import sys; from harness.study.expand import load_study;"
        "assert len(load_study(sys.argv[1]).runs) == 2; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT, timeout=240)


def test_a_name_that_a_plugin_adds_is_among_the_choices_only_while_it_is_active(study):
    path = study(text=STUDY.replace("sigmoid}", "sigmoit}"))
    assert "study.yaml:9" in refusal(path) and "did you mean 'sigmoid'?" in refusal(path)
    assert "(choices: linear, cosine, vp, geometric, sigmoid)" in refusal(path)
    assert list(choices(Schedule)) == ["linear", "cosine", "vp", "geometric"]


def test_the_parameters_of_a_plugins_part_are_validated_with_file_and_line(study):
    path = study(text=STUDY.replace("schedule: sigmoid}", "schedule: {name: sigmoid, tao: 1}}"))
    assert refusal(path) == f"{path}:9: diffusion.schedule.tao: unknown key; did you mean 'tau'?"
    path = study(text=STUDY.replace("schedule: sigmoid}", "schedule: {name: sigmoid, tau: 0}}"))
    assert refusal(path).startswith(f"{path}:9: diffusion.schedule.tau: input should be greater than 0")


@pytest.mark.parametrize(
    ("plugin", "line", "message"),
    [
        (SIGMOID + "1 / 0\n", 13, "ZeroDivisionError: division by zero"),
        (SIGMOID + "def f():\n    raise ValueError('no')\nf()\n", 14, "ValueError: no"),
        ("import no_such_package_at_all\n", 1, "ModuleNotFoundError"),
        ("x = 1\ndef broken(:\n", 2, "not Python"),
        ("x = 1\n", 1, "a plugin needs one or more of the tables SCHEDULES, "),
        ("import torch\n" + SIGMOID, 1, "imports torch at module level"),
        (SIGMOID.replace('{"sigmoid"', '{"cosine"'), 12, "'cosine' is built in"),
        (SIGMOID.replace('{"sigmoid"', '{"other"'), 12, 'must declare name: Literal["other"]'),
        (SIGMOID.replace("(Sigmoid, sigmoid)", "sigmoid"), 12, "(parameter class, implementation) is expected"),
        (SIGMOID.replace("(Sigmoid, sigmoid)", "(sigmoid, sigmoid)"), 12, "must derive from harness.plugins."),
        (SIGMOID.replace("(Sigmoid, sigmoid)", "(Sigmoid, 3)"), 12, "its implementation must be"),
        (SIGMOID.replace("(Sigmoid, sigmoid)", '(Sigmoid, "gone.py:f")'), 12, "gone.py cannot be read"),
        (SIGMOID + "OBJECTIVES = [1]\n", 13, "OBJECTIVES: a mapping of names"),
        (SIGMOID + "import sys\nsys.exit(3)\n", 14, "SystemExit: 3"),
        (SIGMOID + "import other\n", 13, "imports other, which would not be stored with the plugin"),
        (SIGMOID + "def f():\n    from other import x\n", 14, "imports other, which would not be stored"),
        (SIGMOID + "from . import other\n", 13, "imports ., which would not be stored with the plugin"),
        (
            SIGMOID.replace("(Sigmoid, sigmoid)", '(Sigmoid, "other.py:y")'),
            12,
            "other.py does not define y; choices: x",
        ),
        (DATA, 6, "'toy': declare its facts: "),
        (
            METHOD.replace("...", 'owns = ("objectiv",)'),
            6,
            "owns: 'objectiv' belongs to no method; choices: objective, ",
        ),
        (METHOD.replace("...", 'measures = frozenset({"fi"})'), 6, "an evaluation has no part 'fi'; choices: nll, "),
        (METRIC.replace("toy value", "fid_of_toys"), 6, "'fid_of_toys' would be read as a built-in metric"),
        (METRIC, 6, "'toy value': a name has letters, digits and underscores"),
    ],
)
def test_a_broken_plugin_is_told_with_its_file_and_line(study, plugin, line, message):
    path = study(plugin, other="x = 1\n")
    text = refusal(path)
    assert text.startswith(f"{path.parent / 'my_parts.py'}:{line}: ")
    assert message in text


def test_a_file_that_is_named_and_is_not_python_is_told_with_its_line(study):
    path = study(SIGMOID.replace("(Sigmoid, sigmoid)", '(Sigmoid, "more.py:f")'), more="x = 1\ndef f(:\n")
    assert refusal(path).startswith(f"{path.parent / 'more.py'}:2: not Python")


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("def check(self, run): return run.no_such_part", 10),
        ("@field_validator('tau')\n    @classmethod\n    def small(cls, tau): return tau.no_such_part", 12),
    ],
)
def test_a_check_that_fails_is_told_with_its_file_and_line(study, method, line):
    plugin = SIGMOID.replace("gt=0)\n", f"gt=0)\n\n\n    {method}\n").replace("Field,", "Field, field_validator,")
    path = study(plugin, text=STUDY.replace("schedule: sigmoid}", "schedule: {name: sigmoid, tau: 2.0}}"))
    assert refusal(path).startswith(f"{path.parent / 'my_parts.py'}:{line}: AttributeError: ")


def test_a_check_that_refuses_is_told_where_the_study_says_the_part(study):
    check = "    def check(self, run): raise ValueError('diffusion.schedule: too steep')\n"
    path = study(SIGMOID.replace("gt=0)\n", f"gt=0)\n{check}"))
    assert refusal(path) == f"{path}:9: diffusion.schedule: too steep"


def test_a_plugin_that_is_named_twice_is_one(study, tmp_path):
    path = study()
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text("study: child\nextends: ../study.yaml\nplugins: [../my_parts.py, ../sub/../my_parts.py]\n")
    assert keys(child) == keys(path)


def test_two_plugins_of_one_name_are_refused_where_the_second_is_named(study, tmp_path):
    path = study()
    study(SIGMOID.replace('"sigmoid"', '"other"'), folder=tmp_path / "sub")
    path.write_text(STUDY.replace("[my_parts.py]", "[my_parts.py, sub/my_parts.py]"))
    assert refusal(path) == f"{path}:3: plugins: two files have the name my_parts.py; rename one"


def test_a_plugin_that_is_a_folder_is_told_where_it_is_named(study):
    path = study()
    (path.parent / "my_parts.py").unlink()
    (path.parent / "my_parts.py").mkdir()
    assert refusal(path) == f"{path}:3: plugins: {path.parent / 'my_parts.py'} is not a file"


def test_a_plugin_that_is_missing_is_told_where_it_is_named(study):
    path = study()
    (path.parent / "my_parts.py").unlink()
    assert refusal(path).startswith(f"{path}:3: plugins: {path.parent / 'my_parts.py'} does not exist")


def test_plugins_are_named_relative_to_the_file_that_names_them(study, tmp_path):
    study(folder=tmp_path / "base")
    child = tmp_path / "child.yaml"
    child.write_text("study: child\nextends: base/study.yaml\n")
    assert keys(child) == keys(tmp_path / "base" / "study.yaml")


def test_two_plugins_with_the_same_part_are_refused(study):
    path = study(text=STUDY.replace("[my_parts.py]", "[my_parts.py, other.py]"), other=SIGMOID + "# another\n")
    assert "other.py and my_parts.py both have a schedule 'sigmoid'" in refusal(path)


@pytest.mark.parametrize("name", ["/tmp/x.py", "~/x.py"])
def test_a_plugin_is_named_by_a_relative_path(study, name):
    assert "give a path relative to this file" in refusal(study(text=STUDY.replace("my_parts.py", name)))


def test_a_package_that_is_not_installed_is_refused(study):
    assert "no installed package provides a plugin 'acme'" in refusal(study(text=STUDY.replace("my_parts.py", "acme")))


def test_an_installed_package_offers_a_plugin_by_an_entry_point(study, tmp_path, monkeypatch):
    (tmp_path / "acme_parts.py").write_text(SIGMOID)
    info = tmp_path / "acme-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[diffusion_harness.plugins]\nacme = acme_parts\n")
    monkeypatch.syspath_prepend(tmp_path)
    runs = {run.arm: run for run in load_study(study(text=STUDY.replace("my_parts.py", "acme"))).runs}
    assert list(runs["own"].spec.plugins) == ["acme 1.2"]
    directory = RunDirectory(tmp_path / "runs" / runs["own"].run_key)
    directory.create(runs["own"].spec.model_dump(mode="json"), SCHEMA_VERSION)
    assert read_spec(directory.path, directory.spec()) == runs["own"].spec
    with pytest.raises(SpecError, match="installed with another content"):
        read_spec(directory.path, directory.spec() | {"plugins": {"acme 1.2": "0" * 64}})


# -- frozen with the run


@pytest.fixture
def own_run(study, tmp_path):
    run = next(run for run in load_study(study()).runs if run.arm == "own")
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    directory.register(run)
    return run, directory


def test_a_run_keeps_exactly_the_files_that_it_uses(own_run):
    run, directory = own_run
    (digest,) = run.spec.plugins.values()
    assert [path.name for path in (directory.path / "plugins").iterdir()] == [digest]
    assert (directory.path / "plugins" / digest / "my_parts.py").read_text() == SIGMOID


@pytest.mark.process
def test_a_stored_spec_is_read_with_the_frozen_plugin_in_another_process(own_run, study):
    run, directory = own_run
    study("raise RuntimeError('the file beside the study is not asked')")
    code = (
        "import sys; from harness.records.directory import RunDirectory; from harness.records.plugins import read_spec;"
        "directory = RunDirectory(sys.argv[1]); print(read_spec(directory.path, directory.spec()).run_key)"
    )
    command = [sys.executable, "-c", code, str(directory.path)]
    output = subprocess.run(command, check=True, cwd=ROOT, timeout=240, capture_output=True, text=True).stdout
    assert output.strip() == run.run_key


def test_frozen_files_that_were_changed_are_refused(own_run):
    _, directory = own_run
    (path,) = directory.path.glob("plugins/*/my_parts.py")
    path.write_text(SIGMOID + "# edited\n")
    with pytest.raises(SpecError, match="not the plugin that the run started with"):
        read_spec(directory.path, directory.spec())


def test_frozen_files_that_are_gone_are_named(own_run):
    _, directory = own_run
    shutil.rmtree(directory.path / "plugins")
    with pytest.raises(RecordError, match=r"plugin my_parts\.py is not in"):
        read_spec(directory.path, directory.spec())


def test_records_are_read_without_executing_a_plugin(own_run):
    _, directory = own_run
    (path,) = directory.path.glob("plugins/*/my_parts.py")
    path.write_text("raise SystemExit('executed')")
    assert directory.spec()["diffusion"]["schedule"]["name"] == "sigmoid"
    assert directory.rows() == [] and directory.status().state == "new"


def test_two_versions_of_a_plugin_are_read_in_one_process(study, tmp_path):
    first = load_plugin(study(folder=tmp_path / "a").parent / "my_parts.py")
    second = load_plugin(study(SIGMOID.replace("1.0", "2.0"), folder=tmp_path / "b").parent / "my_parts.py")
    taus = []
    for plugin in (first, second, first):
        with active([plugin]):
            spec = RunSpec.model_validate(
                {
                    "data": "digits",
                    "diffusion": {"schedule": "sigmoid"},
                    "train": {"steps": 1},
                    "model": {"attention_resolutions": []},
                }
            )
        taus.append((spec.diffusion.schedule.tau, spec.plugins["my_parts.py"] == plugin.digest))
    assert taus == [(1.0, True), (2.0, True), (1.0, True)]


def test_a_stored_spec_goes_through_json(own_run):
    run, directory = own_run
    stored = json.loads(json.dumps(run.spec.model_dump(mode="json")))
    assert read_spec(directory.path, stored).run_key == run.run_key
