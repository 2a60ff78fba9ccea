"""The JSON schema of study files: the committed file is up to date, and the shipped studies hold to it."""

import json
from pathlib import Path

import jsonschema
import pydantic
import pytest

from harness.search.space import Settings
from harness.study.document import parse_yaml
from harness.study.schema import study_schema

ROOT = Path(__file__).parents[3]
STUDIES = sorted(ROOT.glob("experiments/**/*.yaml"))
COMMITTED = ROOT / "experiments" / "study.schema.json"


def problems(text):
    value, _ = parse_yaml(text, "study.yaml")
    validator = jsonschema.Draft202012Validator(study_schema(Settings))
    return [error.message for error in validator.iter_errors(value)]


@pytest.mark.skipif(
    f"\npydantic=={pydantic.VERSION}\n" not in (ROOT / "constraints.txt").read_text(),
    reason="each release of pydantic writes schemas in its own way; the committed one is of that in constraints.txt",
)
def test_the_committed_schema_is_up_to_date():
    assert json.loads(COMMITTED.read_text()) == study_schema(Settings), (
        f"write it anew: harness schema > {COMMITTED.relative_to(ROOT)}"
    )


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(study_schema(Settings))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_holds_to_the_schema_and_names_it(path):
    text = path.read_text()
    assert problems(text) == []
    comment, _, name = text.splitlines()[0].partition("=")
    assert comment == "# yaml-language-server: $schema"
    assert (path.parent / name).resolve() == COMMITTED


@pytest.mark.parametrize(
    "text",
    [
        "study: x\nreplicats: 3\n",
        "study: x\nmodel: {chanels: 32}\n",
        "study: x\ndiffusion: {schedule: cosin}\n",
        "study: x\ndiffusion: {schedule: {name: linear, s: 0.1}}\n",
        "study: x\nobjective: {lambda_vlb: 0.1}\n",
        "study: x\ntrain: {steps: 0}\n",
        "study: x\narms: {a: {modle.channels: 32}}\n",
        "study: x\nevaluate: [{name: eval, nll: {num_image: 4}}]\n",
        "study: x\nsearch: {trails: 4}\n",
    ],
)
def test_a_misspelt_key_name_or_value_is_a_problem(text):
    assert problems(text)


def test_what_the_extended_file_may_say_is_not_required():
    assert problems("extends: base.yaml\ndata: {name: image_folder, image_size: 32}\n") == []


@pytest.mark.parametrize("schedule", ["cosine", "{name: cosine, s: 0.01}"])
def test_a_part_is_named_in_short_or_with_its_parameters(schedule):
    assert problems(f"study: x\ndiffusion: {{schedule: {schedule}}}\n") == []
