"""A collapse is never hidden: what is written of it, and where it is shown."""

import pytest

from harness.analysis.runs import count_states, load_records
from harness.cli import status_view, timeline
from harness.job.writer import record_evaluation
from harness.records.collapse import SIGNS, collapses, describe
from harness.records.directory import RunDirectory
from harness.testing import fake_result, write_finished_run

MOG = ("data=mog", "model={name: mlp, width: 16}")
MODES = "evaluate: [{modes: {num_samples: 250, num_steps: [5]}}]\n"
FIDELITY = "evaluate: [{fidelity: {num_samples: 64, num_steps: 5}}]\n"


def signs(directory):
    return [event.fields["sign"] for event in directory.events("collapse")]


@pytest.mark.parametrize(
    ("measured", "written"), [({"modes_covered": 24.0}, ["modes_lost"]), ({"modes_covered": 25.0}, [])]
)
def test_modes_that_are_not_covered_are_an_event_with_numbers(tiny_study, tmp_path, measured, written):
    directory = write_finished_run(tiny_study(MODES, *MOG)[0], tmp_path, measured)
    assert signs(directory) == written
    for event in directory.events("collapse"):
        assert event.fields["metrics"] == {"eval/modes_covered_250_ancestral5": 24.0}
        assert (event.fields["of"], event.fields["step"], event.fields["evaluation"]) == (25, 12, "eval")


def test_too_few_samples_to_hit_every_mode_are_no_collapse(tiny_study, tmp_path):
    few = MODES.replace("250", "249")
    assert signs(write_finished_run(tiny_study(few, *MOG)[0], tmp_path, {"modes_covered": 20.0})) == []


@pytest.mark.parametrize(("recall", "written"), [(0.0, ["recall_zero"]), (0.01, []), (float("nan"), [])])
def test_a_recall_of_zero_is_an_event(tiny_study, tmp_path, recall, written):
    assert signs(write_finished_run(tiny_study(FIDELITY)[0], tmp_path, {"recall": recall})) == written


def test_untrained_weights_cannot_collapse(tiny_study, tmp_path):
    untrained = FIDELITY.replace("{fidelity", "{weights: untrained, fidelity")
    assert signs(write_finished_run(tiny_study(untrained)[0], tmp_path, {"recall": 0.0})) == []


def test_an_evaluation_that_is_repeated_writes_its_sign_once(tiny_study, tmp_path):
    run = tiny_study(FIDELITY)[0]
    directory = write_finished_run(run, tmp_path, {"recall": 0.0})
    (evaluation,) = run.evaluations
    with directory.lock(), directory.open_journal(resumed_from_step=12) as journal:
        result = fake_result(evaluation, run.spec, {"recall": 0.0})
        record_evaluation(directory, journal, evaluation, "eval", result, 12)
    assert signs(directory) == ["recall_zero"] and len(directory.events("evaluation")) == 2


def test_status_why_and_captions_tell_it(tiny_study, tmp_path):
    directory = write_finished_run(tiny_study(MODES, *MOG)[0], tmp_path, {"modes_covered": 7.0})
    [row] = status_view.status_rows([directory])
    assert row.collapse == ("modes_lost",) and row.note == "collapse: modes_lost"
    [line] = [line for line in timeline.timeline(directory) if "collapse" in line]
    assert line.endswith(
        "collapse at step 12, eval: the samples cover fewer modes than the data have: "
        "eval/modes_covered_250_ancestral5 7 of 25"
    )
    records = load_records(tmp_path)
    assert count_states(records) == "1 run, all done, 1 with signs of a collapse"
    assert records[0].collapses == (describe(directory.events("collapse")[0]),)


def test_what_a_method_writes_is_told_like_what_a_job_writes(tiny_study, tmp_path):
    directory = write_finished_run(tiny_study(FIDELITY)[0], tmp_path)
    with directory.lock(), directory.open_journal(resumed_from_step=6) as journal:
        journal.event("collapse", step=9, sign="discriminator_saturated", accuracy_real=1.0, accuracy_fake=0.9987)
        journal.event("collapse", step=10, sign="sign_of_a_plugin")
    [row] = status_view.status_rows([directory])
    assert row.collapse == ("discriminator_saturated", "sign_of_a_plugin")
    first, second = map(describe, collapses(directory))
    assert first == f"{SIGNS['discriminator_saturated'].meaning}: accuracy_real 1, accuracy_fake 0.9987"
    assert second == "sign_of_a_plugin"


def test_a_sign_of_steps_that_are_trained_again_no_longer_counts(tiny_study, tmp_path):
    directory = write_finished_run(tiny_study(FIDELITY)[0], tmp_path, {"recall": 0.0})
    with directory.lock(), directory.open_journal(resumed_from_step=6):
        pass
    [row] = status_view.status_rows([RunDirectory(directory.path)])
    assert row.collapse == ()
