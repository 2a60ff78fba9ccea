"""The records of trials, read from files that may be damaged."""

import pytest

from harness.errors import RecordError
from harness.search.trials import TrialRecord, read_trials


def test_a_trial_reads_back_as_it_was_written(tmp_path):
    trial = TrialRecord(3, {"optim.lr": 0.1}, ["0123456789abcdef"], state="complete", values={"eval/nll_bpd": 3.5})
    trial.write(tmp_path)
    assert read_trials(tmp_path) == [trial]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"number": "x"}', '{"number": 1, "point": []}', '{"number": 1, "odd": 2}', "[" * 100_000],
)
def test_a_damaged_trial_is_named(tmp_path, content):
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "trial-0001.json").write_text(content)
    with pytest.raises(RecordError, match=r"trial-0001\.json: "):
        read_trials(tmp_path)
