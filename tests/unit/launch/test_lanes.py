"""The jobs of all arrays of a study together keep the limit on what runs at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.launch.lanes import Lanes, earlier_arrays, lanes_of
from harness.records.layout import SubmissionLayout


def place_all(limit: int, sizes: list[int]) -> list[tuple[int, str]]:
    """Return share and predecessor of arrays that are submitted in turn; their numbers are 1, 2, ..."""
    lanes, placed, rest = Lanes(limit), [], sum(sizes)
    for number, size in enumerate(sizes, start=1):
        lane = lanes.place(size, rest)
        placed.append((lane.share, lane.last))
        lanes.add(lane, str(number), size)
        rest -= size
    return placed


@pytest.mark.parametrize(
    ("limit", "sizes", "placed"),
    [
        (64, [5], [(5, "")]),
        (64, [1000], [(64, "")]),
        (64, [1000, 1000, 1000], [(21, ""), (21, ""), (22, "")]),
        (2, [10, 10, 10], [(1, ""), (1, ""), (1, "1")]),
        (1, [3, 2, 1], [(1, ""), (1, "1"), (1, "2")]),
        (3, [4, 2, 2], [(1, ""), (1, ""), (1, "")]),
    ],
)
def test_the_limit_is_divided_among_arrays_and_what_is_left_over_comes_after_another(limit, sizes, placed):
    assert place_all(limit, sizes) == placed


@given(st.integers(1, 70), st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_what_can_run_at_a_time_is_never_more_than_the_limit(limit, sizes):
    placed = place_all(limit, sizes)
    assert sum(share for share, before in placed if not before) <= limit
    assert all(share == placed[int(before) - 1][0] for share, before in placed if before)
    befores = [before for _, before in placed if before]
    assert len(befores) == len(set(befores))  # no two arrays come after the same one


def test_arrays_of_earlier_submissions_have_their_share_until_they_have_ended():
    arrays = {"7": (4, ""), "9": (4, "7"), "12": (6, "")}
    lanes = lanes_of(arrays, {"7": 1, "9": 30, "12": 2, "50": 8}, limit=10)
    assert [(lane.share, lane.last, lane.jobs) for lane in lanes.lanes] == [(4, "9", 31), (2, "12", 2)]
    assert lanes.place(100, 100).share == 4
    assert lanes_of(arrays, {}, limit=10).lanes == []
    assert lanes_of(arrays, {"9": 30}, limit=4).place(5, 5).last == "9"


def test_a_submission_says_which_arrays_it_has(tmp_path: Path):
    folder = tmp_path / "runs" / ".jobs" / "tiny" / "20260101"
    SubmissionLayout(folder).claims_folder.mkdir(parents=True)
    SubmissionLayout(folder).submission_path.write_text(json.dumps({"cluster": "slurm", "arrays": {"7": [3, "5"]}}))
    present = folder.with_name("20260102")
    SubmissionLayout(present).claims_folder.mkdir(parents=True)
    SubmissionLayout(present).submission_path.write_text(json.dumps({"cluster": "slurm"}))
    assert earlier_arrays(tmp_path / "runs", "tiny", present) == {"7": (3, "5")}
    assert earlier_arrays(tmp_path / "runs", "other", present) == {}
    SubmissionLayout(present).submission_path.write_text(json.dumps({"cluster": "slurm", "arrays": {"9": [1, ""]}}))
    assert earlier_arrays(tmp_path / "runs", "tiny", folder) == {"9": (1, "")}  # it was not read before it was complete
