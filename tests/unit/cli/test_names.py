"""How a run is named on the command line."""

import pytest

from harness.cli.common import all_runs, find_run, studies_or_runs
from harness.errors import LaunchError
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for


@pytest.fixture
def runs(tmp_path):
    """Two studies that share an arm's name; their arms in an order that is that of no alphabet and of no key."""
    folder = tmp_path / "runs"
    asked = {"digits": ["linear", "cosine"], "scaling": ["wide", "linear"]}
    number = 0xF00000000000
    for study, arms in asked.items():
        places = {}
        for arm in arms:
            for replicate in (0, 1):
                number -= 1
                spec = {"seed": replicate, "arm": arm, "study": study}
                directory = RunDirectory(folder / f"{number:012x}").create(spec, schema_version=1)
                places[directory.key] = {"arm": arm, "replicate": replicate, "evaluations": []}
                directory.add_to_study(study, places[directory.key])
        ask_for(folder, study, places)
    return folder


def place(directory):
    return {study: (entry["arm"], entry["replicate"]) for study, entry in directory.studies().items()}


@pytest.mark.parametrize("name", ["digits/cosine/1", "digits/cosine/r1", "cosine/1", "cosine/r1"])
def test_a_run_is_named_by_its_place_and_where_that_is_unique_without_its_study(runs, name):
    assert place(find_run(name, runs)) == {"digits": ("cosine", 1)}


def test_an_arm_of_two_studies_needs_the_study(runs):
    with pytest.raises(LaunchError, match="'linear/0' is in 2 studies; choices: digits/linear/0, scaling/linear/0"):
        find_run("linear/0", runs)
    assert place(find_run("scaling/linear/0", runs)) == {"scaling": ("linear", 0)}


def test_a_place_that_is_in_no_study_is_refused_with_the_choices(runs):
    with pytest.raises(LaunchError, match=r"no study 'cosin' in .*; choices: digits, scaling"):
        find_run("cosin/0", runs)
    with pytest.raises(LaunchError, match=r"no run 'digits/cosin/0' in .*; choices: digits/linear/0"):
        find_run("digits/cosin/0", runs)


def test_verbs_that_take_several_names_take_an_arm_too(runs):
    assert [place(run) for run in studies_or_runs(["wide/0", "digits/cosine"], runs)] == [
        {"scaling": ("wide", 0)},
        {"digits": ("cosine", 0)},
        {"digits": ("cosine", 1)},
    ]


def test_all_runs_are_in_the_order_of_the_studies_files(runs):
    places = [next(iter(place(run).values())) for run in all_runs(runs)]
    assert places == [(arm, number) for arm in ("linear", "cosine", "wide", "linear") for number in (0, 1)]
