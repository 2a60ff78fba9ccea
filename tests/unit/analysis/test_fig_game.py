import numpy as np
import pytest

from harness.analysis.figures import fig_game, fig_learning_curves
from harness.analysis.runs import load_records
from harness.records.directory import RunDirectory
from harness.spec.metrics import METRIC_KINDS, OF_THE_GAME


@pytest.fixture
def record_of(study_runs):
    """Return a function: curves -> the record of a run that logged them ten times, counting up from 1."""

    def write(*curves):
        folder = study_runs("", lambda run: {})
        directory = RunDirectory(next(folder.glob("[!.]*")))
        with directory.lock(), directory.open_journal(resumed_from_step=100) as journal:
            for step in range(10, 101, 10):
                journal.metrics(step, {f"train/{curve}": float(step // 10) for curve in curves})
        return load_records(folder)

    return write


def test_every_curve_of_the_game_has_a_panel_and_a_kind():
    assert sorted(curve for panel in fig_game.PANELS for curve in panel.curves) == sorted(OF_THE_GAME)
    assert set(OF_THE_GAME) <= set(METRIC_KINDS)


def test_curves_are_means_over_bins_and_only_what_was_recorded_has_a_panel(record_of):
    frame = fig_game.data(record_of("accuracy_real", "accuracy_fake", "afd"))
    accuracy = frame[frame["curve"] == "accuracy_real"]
    np.testing.assert_allclose(accuracy["mean"], np.arange(1, 11))
    assert [axes.get_title(loc="left") for axes in fig_game.draw(frame).axes if axes.lines] == [
        "Discriminator",
        "Forward diffusion",
    ]


def test_everything_together_is_drawn(record_of):
    frame = fig_game.data(record_of(*OF_THE_GAME))
    assert sum(bool(axes.lines) for axes in fig_game.draw(frame).axes) == len(fig_game.PANELS)


def test_without_a_discriminator_there_is_no_figure(record_of):
    assert fig_game.data(record_of()).empty


def test_the_learning_curves_leave_the_game_to_its_own_figure(record_of):
    assert not set(fig_learning_curves.data(record_of(*OF_THE_GAME))["curve"]) & set(OF_THE_GAME)
