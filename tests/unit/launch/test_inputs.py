"""What a plan says of its data and feature extractors: accounted for without torch, nothing replaced in silence."""

import pytest

from harness.cli.plan_view import show_plan
from harness.launch import inputs, planning
from harness.launch.inputs import data_notes, extractor_notes, recorded_data_notes
from harness.study.expand import load_study
from harness.testing import TINY_STUDY, write_finished_run

FOLDER = TINY_STUDY.replace("digits", "{name: image_folder, path: pictures, image_size: 8, num_classes: 2}")
FIDELITY = "evaluate: [{fidelity: {num_samples: 16, num_steps: 5}}, {name: eval_raw, weights: raw, nll: {}}]\n"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)

    def make(study, **options):
        (tmp_path / "study.yaml").write_text(study)
        return planning.plan(load_study(tmp_path / "study.yaml", **options), tmp_path / "runs")

    return make


def fill(tmp_path, *names):
    for name in names:
        path = tmp_path / "data" / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_plan_accounts_for_the_files_of_an_image_folder_without_opening_one(tmp_path, plan, capsys, file_accesses):
    fill(tmp_path, *(f"{kind}/{number}.png" for kind in ("cat", "ant") for number in range(20)), "ant/x.npy", ".x.png")
    planned = plan(FOLDER)
    with file_accesses() as accesses:
        [note] = data_notes(planned)
    assert note.startswith("data pictures: 42 files seen, 40 used, 2 ignored (1 .npy, 1 hidden); ")
    assert note.endswith("; 2 classes: 20 ant, 20 cat")
    assert not [access for access in accesses if access[0] == "open"]
    show_plan(planned)
    assert note in capsys.readouterr().out


def test_a_plan_is_made_without_its_data_and_says_that_submit_will_refuse(tmp_path, plan):
    assert "data pictures: submit will refuse it: image_folder: no folder" in next(data_notes(plan(FOLDER)))
    fill(tmp_path, "train/1.png", "val/2.png")
    assert "look like splits, not like classes" in next(data_notes(plan(FOLDER)))


def test_a_plan_does_not_count_a_folder_of_millions(tmp_path, plan, monkeypatch):
    fill(tmp_path, "1.png", "2.png", "3.png")
    monkeypatch.setattr(inputs, "MOST_ENTRIES", 2)
    assert "more than 2 files; `harness doctor" in next(data_notes(plan(FOLDER)))


def test_other_data_sets_and_runs_without_features_need_no_note(plan):
    planned = plan(TINY_STUDY + "evaluate: [{nll: {}}]\n")
    assert list(data_notes(planned)) == list(extractor_notes(planned.runs)) == []


def test_a_plan_names_done_runs_whose_data_differ_and_the_one_digest_where_they_agree(tmp_path, plan):
    fill(tmp_path, *(f"{kind}/{number}.png" for kind in ("cat", "ant") for number in range(20)))
    study = FOLDER + "replicates: 3\n"
    for number, run in enumerate(plan(study).study.runs):
        if number < 2:
            write_finished_run(run, tmp_path / "runs").write_environment(1, {"data_digest": "a" * 64})
    assert list(recorded_data_notes(plan(study))) == ["data pictures: digest aaaaaaaaaaaa in 2 runs that are done"]
    first, second, _ = plan(study).runs
    second.directory.write_environment(1, {"data_digest": "b" * 64})
    assert list(recorded_data_notes(plan(study))) == [
        "data pictures: the runs that are done had different data, so they are not comparable "
        f"(aaaaaaaaaaaa: {first.run_key}; bbbbbbbbbbbb: {second.run_key})"
    ]
    second.directory.environment_path.write_text("[3]")  # somebody else's record
    assert len(list(recorded_data_notes(plan(study)))) == 1


def test_a_classifier_in_the_place_of_inception_is_said_with_the_reason(plan):
    [note] = extractor_notes(plan(TINY_STUDY + FIDELITY).runs)
    assert note == (
        "features of eval: digitsnet, a classifier that is trained on the data's own labels; only inception gives FID "
        "as published, and HARNESS_INCEPTION_WEIGHTS is not set"
    )


def test_inception_itself_needs_no_note(plan):
    planned = plan(TINY_STUDY + FIDELITY.replace("steps: 5", "steps: 5, extractor: inception"), inception=True)
    assert list(extractor_notes(planned.runs)) == []
    assert inputs.extractors_with_weights(planned.runs) == {"inception"}
