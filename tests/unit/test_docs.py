"""What the pages say is true: their examples load, and the files that they name exist."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from harness import __version__
from harness.slurm.profile import Profile, load_profile
from harness.spec import evaluation, run
from harness.spec.methods import METHODS
from harness.spec.resources import Resources
from harness.study.expand import STUDY_PARTS, load_study

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "write_a_study.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
NUM_RUNS = {
    "cosine-or-linear": 6,
    "smaller-lr": 6,
    "widths": 15,
    "offsets": 12,
    "decided-beforehand": 12,
    "which-sigma": 6,
    "by-protocol": 6,
    "on-a-gpu": 6,
}


def name_of(example):
    return re.search(r"^study: (.*)$", example, re.MULTILINE).group(1)


@pytest.fixture
def folder(tmp_path):
    for example in EXAMPLES:
        (tmp_path / f"{name_of(example)}.yaml").write_text(example)
    return tmp_path


def test_the_page_has_these_examples():
    assert [name_of(example) for example in EXAMPLES] == list(NUM_RUNS)


@pytest.mark.parametrize("name", NUM_RUNS)
def test_an_example_of_a_study_loads_with_its_number_of_runs_and_no_warning(folder, name):
    study = load_study(folder / f"{name}.yaml")
    assert len(study.runs) == NUM_RUNS[name]
    assert study.warnings() == []


def test_an_example_on_another_machine_has_the_same_keys(folder):
    here, there = (load_study(folder / f"{name}.yaml").runs for name in ("cosine-or-linear", "on-a-gpu"))
    assert [run.run_key for run in here] == [run.run_key for run in there]


@pytest.mark.parametrize("text", re.findall(r"`--set ([^`]*=[^`]*)`", PAGE.read_text().replace("path=value", "")))
def test_an_example_of_set_works(folder, text):
    assert load_study(folder / "cosine-or-linear.yaml", sets=["diffusion.schedule=cosine", "arms=null", text]).runs


def test_the_page_names_every_field_of_a_study_and_every_field_of_an_evaluation():
    text = PAGE.read_text()
    for field in (*STUDY_PARTS, *run.RunSpec.model_fields, *evaluation.Evaluation.model_fields, "resources", "records"):
        if field not in ("seed", "batch_size"):
            assert re.search(rf"\b{field}\b", text), field


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: page.stem)
def test_the_files_that_a_page_names_exist(page):
    for path in re.findall(r"`((?:harness|tests|experiments|docs|slurm|analysis)/[\w./]*)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_readmes_study_loads(tmp_path):
    example, _ = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "study.yaml").write_text(example.replace("extends: ", f"extends: {ROOT}/"))
    study = load_study(tmp_path / "study.yaml")
    assert len(study.runs) == 12
    assert study.warnings() == []


def test_the_study_of_the_adversarial_methods_page_loads(tmp_path):
    page = (ROOT / "docs" / "howto" / "adversarial_methods.md").read_text()
    example = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    (tmp_path / "study.yaml").write_text(example.replace("extends: ", f"extends: {ROOT}/"))
    study = load_study(tmp_path / "study.yaml")
    assert [run.spec.method.name for run in study.runs] == ["gaussian", "ddgan", "siddm"]
    assert study.warnings() == []


def test_the_adversarial_methods_page_names_every_field_of_both():
    page = (ROOT / "docs" / "howto" / "adversarial_methods.md").read_text()
    for field in {*METHODS["ddgan"].model_fields, *METHODS["siddm"].model_fields} - {"name"}:
        assert f"`{field}`" in page, field


def test_the_readmes_search_loads(tmp_path):
    from harness.search.loading import load_search

    _, example = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "search.yaml").write_text(example.replace("extends: ", f"extends: {ROOT}/"))
    assert load_search(tmp_path / "search.yaml").settings.trials == 20


def test_the_version_is_the_same_wherever_it_is_written():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == __version__ == citation["version"]
    assert project["license"] == citation["license"] == "MIT"


CLUSTERS = ROOT / "docs" / "howto" / "describe_a_cluster.md"
PROFILES = re.findall(r"```yaml\n(.*?)```", CLUSTERS.read_text(), re.DOTALL)


def test_the_example_of_a_cluster_is_a_profile_that_shows_every_field(tmp_path):
    example = ROOT / "slurm/clusters/example.yaml"
    necessary = {
        "partition",
        "account",
        "gpus_per_node",
        "cpus",
        "memory_gib",
        "time_minutes",
    }  # what a copy that is submitted must change
    assert load_profile(example).model_fields_set == necessary
    # The others stand in comments, each as a line that would do, alone or with all others.
    in_comment = re.compile(r"^# (?=[a-z_]+: )", re.MULTILINE)
    (tmp_path / "all.yaml").write_text(in_comment.sub("", example.read_text()))
    assert load_profile(tmp_path / "all.yaml").model_fields_set == set(Profile.model_fields)


@pytest.mark.parametrize("number", range(2))
def test_an_example_on_the_page_of_clusters_is_a_profile(tmp_path, number):
    path = tmp_path / "cluster.yaml"
    path.write_text(PROFILES[number])
    assert load_profile(path).partition in ("gpu", "preemptible")


def test_the_page_of_clusters_has_these_examples_and_explains_every_field_with_its_default():
    assert len(PROFILES) == 2
    rows = re.findall(r"^\| (`.*?`) \| .* \| (.*?) \|$", CLUSTERS.read_text(), re.MULTILINE)
    defaults = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    assert defaults.keys() == Profile.model_fields.keys()
    study_first = set(Profile.model_fields) & set(Resources.model_fields)
    assert study_first == {"time_minutes", "gpus_per_node", "cpus", "memory_gib", "pack"}
    for name in study_first:
        assert f"{getattr(Resources(), name):g}" in defaults[name].split(", "), name
