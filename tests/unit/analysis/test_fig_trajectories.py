import numpy as np
import pytest

from harness.analysis.figures import fig_trajectories
from harness.analysis.runs import load_records
from harness.testing import tiny_study, write_finished_run

MOG = ("data=mog", "model={name: mlp, width: 16}")
STUDY = """
arms: {one: {}, other: {optim.lr: 2.0e-3}}
replicates: 2
evaluate: [{trajectories: {num_samples: 12, num_steps: 9, num_frames: 4}}]
"""


@pytest.fixture
def records_of(tmp_path):
    def write(*sets):
        for run in tiny_study(tmp_path, STUDY, sets):
            write_finished_run(run, tmp_path / "runs")
        return load_records(tmp_path / "runs")

    return write


@pytest.mark.parametrize(("sets", "shape"), [((), (4, 2, 1, 8, 8)), (MOG, (4, 5, 2, 1, 1))], ids=["images", "points"])
def test_each_arm_shows_the_first_trajectories_of_its_first_replicate(records_of, sets, shape):
    frame = fig_trajectories.data(records_of(*sets))
    assert list(frame["arm"]) == ["one", "other"] and set(frame["replicate"]) == {0}
    for _, row in frame.iterrows():
        assert row["steps_left"].tolist() == [9, 6, 3, 0]
        assert row["x_t"].shape == row["x_0"].shape == shape
    assert fig_trajectories.caption(frame)


def test_pictures_have_a_column_for_each_frame_and_two_rows_for_each_sample(records_of):
    first, _ = fig_trajectories.draw(fig_trajectories.data(records_of())).axes
    assert [label.get_text() for label in first.get_xticklabels()] == ["9", "6", "3", "0"]
    assert len(first.get_yticklabels()) == 4


def test_paths_have_a_panel_for_x_t_and_one_for_what_is_predicted(records_of):
    frame = fig_trajectories.data(records_of(*MOG))
    panels = [axes for axes in fig_trajectories.draw(frame).axes if axes.lines]
    assert [len(axes.lines) for axes in panels] == [5] * 4
    np.testing.assert_array_equal(panels[0].lines[0].get_xdata(), frame["x_t"][0][:, 0, 0, 0, 0])


def test_a_path_that_diverged_is_drawn_as_far_as_it_goes(records_of):
    frame = fig_trajectories.data(records_of(*MOG))
    frame["x_t"][0][2:] = np.nan
    assert fig_trajectories.draw(frame).axes


def test_without_such_an_evaluation_there_is_no_figure(study_runs):
    assert fig_trajectories.data(load_records(study_runs("", lambda run: {}))).empty
