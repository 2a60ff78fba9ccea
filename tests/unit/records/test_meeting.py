"""Processes of a run that srun has started find the first one by a file, or learn that there is nothing to do."""

import pytest

from harness.errors import RecordError
from harness.records.meeting import Meeting, meeting_name

JOB = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


def test_others_learn_where_the_first_process_listens_and_then_that_it_is_gone(tmp_path):
    first, other = Meeting(tmp_path / "lock", meeting_name(JOB)), Meeting(tmp_path / "lock", meeting_name(JOB))
    first.announce("n1", 23456)
    assert other.wait(0) == ("n1", 23456)
    first.close()
    assert other.wait(0) is None


def test_who_comes_first_waits_and_a_file_of_an_earlier_life_counts_for_nothing(tmp_path):
    Meeting(tmp_path, meeting_name(JOB)).close()
    again = meeting_name(JOB | {"SLURM_RESTART_COUNT": "1"})
    with pytest.raises(TimeoutError):
        Meeting(tmp_path, again).wait(0)
    Meeting(tmp_path, again).announce("n2", 1)
    assert [path.name for path in tmp_path.iterdir()] == [again]


def test_a_damaged_file_is_no_address(tmp_path):
    (tmp_path / meeting_name(JOB)).write_text("{")
    with pytest.raises(RecordError):
        Meeting(tmp_path, meeting_name(JOB)).wait(0)
