"""A run goes on, and is evaluated, only with the data that it was trained on; others are refused by name."""

import json

import numpy as np
import pytest
from PIL import Image

from harness.errors import DataError
from harness.job import job
from harness.launch import planning
from harness.launch.submit import submit
from harness.records.data_digest import recorded_data_digest
from harness.records.directory import RunDirectory
from harness.study.expand import load_study
from harness.testing import TINY_STUDY, tiny_study, write_run

STUDY = TINY_STUDY.replace("digits", "{name: image_folder, path: pictures, image_size: 8, test_fraction: 0.3}")
EVALUATE = "evaluate:\n  - {nll: {estimator: full, num_images: 2}}\n"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Return a function that adds images to the study's folder; it holds twelve."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    random, folder = np.random.default_rng(0), tmp_path / "data" / "pictures"
    folder.mkdir(parents=True)

    def add(*names):
        for name in names:
            Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / name)
        return folder

    add(*(f"{number}.png" for number in range(12)))
    return add


def run_job(folder, **options):
    return job.run_job(folder, sync=False, show_progress=False, **options)


def first_run(tmp_path, extra="", *sets):
    return write_run(tiny_study(tmp_path, extra, sets, study=STUDY)[0], tmp_path / "runs")


def plan(tmp_path):
    return planning.plan(load_study(tmp_path / "tiny.yaml"), tmp_path / "runs")


def run_here(tmp_path):
    submit(plan(tmp_path), cluster="debug", sync=False).wait(lambda: None)


def test_a_run_records_the_account_of_its_data(tmp_path, draw):
    draw().joinpath("notes.txt").touch()
    run = first_run(tmp_path)
    assert run_job(run.path) == "done"
    [environment] = run.environments()
    account = environment["data_account"]
    assert (account["seen"], account["used"], account["ignored"]) == (13, 12, {".txt": 1})
    assert account["train"] + account["test"] == 12
    assert recorded_data_digest(run) == environment["data_digest"]


def test_a_run_does_not_resume_on_other_data_and_does_when_they_are_back(tmp_path, draw):
    run = first_run(tmp_path)
    assert run_job(run.path, stop_after_steps=5) == "interrupted"
    folder = draw("new.png")
    assert run_job(run.path) == "failed"
    status = run.status()
    assert f"run {run.key} was trained on other data" in status.reason
    assert "Restore the files as they were; or move" in status.reason
    assert status.step == 0 or run.durable_step() == 5  # it trained no step more
    (folder / "new.png").unlink()
    assert run_job(run.path) == "done"
    assert run.events("environment_changed") == []


def test_a_done_run_is_not_evaluated_on_other_data_and_submit_says_so_before_it_begins(tmp_path, draw):
    run = first_run(tmp_path)
    assert run_job(run.path) == "done"
    tiny_study(tmp_path, EVALUATE, study=STUDY)
    folder = draw("new.png")
    with pytest.raises(
        DataError, match=rf"run {run.key} was trained on other data \(\d+ images to train on and \d+ to"
    ):
        run_here(tmp_path)
    assert run.status().state == "done"
    assert run.studies()["tiny"]["evaluations"] == []  # what the study asks for is not written either
    (folder / "new.png").unlink()
    run_here(tmp_path)
    assert (run.status().state, len(run.evaluated_keys())) == ("done", 1)


def test_a_run_that_joins_done_ones_of_other_data_is_told_which_they_are(tmp_path, draw):
    [done] = tiny_study(tmp_path, study=STUDY)
    run_job(write_run(done, tmp_path / "runs").path)
    draw("new.png")
    tiny_study(tmp_path, "replicates: 2\n", study=STUDY)
    submission = submit(plan(tmp_path), cluster="debug", sync=False)
    assert f"1 of the study's runs that are done had other data ({done.run_key})" in submission.notes[0]
    assert len(submission.runs) == 1


def test_a_run_that_has_no_weights_yet_takes_the_data_as_they_are(tmp_path, draw):
    run = first_run(tmp_path, "", "data.num_classes=7")
    assert run_job(run.path) == "failed"
    assert "the spec says num_classes 7, the files have None (12 files seen" in run.status().reason
    assert recorded_data_digest(run) is None


def test_a_continued_run_needs_the_data_of_its_parent(tmp_path, draw):
    parent = first_run(tmp_path)
    run_job(parent.path)
    draw("new.png")
    child = first_run(tmp_path, f"continue_from: '{parent.key}'\n", "train.steps=20")
    assert run_job(child.path) == "failed"
    assert f"run {parent.key} was trained on other data" in child.status().reason


def test_a_run_of_an_earlier_harness_whose_split_was_another_is_told_how_to_go_on(tmp_path, draw):
    run = first_run(tmp_path)
    run_job(run.path)
    environments = run.environments()
    del environments[0]["data_account"]
    environments[0]["data_digest"] = "0" * 64
    run.environment_path.write_text(json.dumps(environments))
    tiny_study(tmp_path, EVALUATE, study=STUDY)
    with pytest.raises(DataError, match="If no file changed: image folders are read and split otherwise since"):
        run_here(tmp_path)


def test_a_run_that_resumes_with_its_own_code_is_left_to_it_with_a_note(tmp_path, draw):
    from harness.launch.inputs import require_inputs, require_same_data

    run = first_run(tmp_path)
    run_job(run.path, stop_after_steps=5)
    draw("new.png")
    runs = plan(tmp_path).to_do
    datasets = require_inputs(runs)
    [note] = require_same_data(runs, datasets, lambda planned: True)
    assert note.startswith(f"run {run.key} resumes with the code of its first start")
    with pytest.raises(DataError, match=run.key):
        require_same_data(runs, datasets, lambda planned: False)


def test_data_that_never_change_are_never_refused(tmp_path, tiny_run):
    run = RunDirectory(tiny_run())
    assert run_job(run.path, stop_after_steps=5) == "interrupted"
    assert run_job(run.path) == "done"
    assert run.environments()[0]["data_account"] == {"train": 1442, "test": 355, "num_classes": 10}
