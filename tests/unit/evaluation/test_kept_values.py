"""What a part computes batch by batch is kept, so that a kill costs one batch."""

import numpy as np
import pytest

from harness.evaluation.keeping import KeptValues
from harness.records.kept import KeptArrays


class Killed(Exception):
    """Stands for what ends a process in the midst of an evaluation."""


def cubes(calls, kill_after=None):
    """Return a function of rows that notes the length of each call."""

    def evaluate(image, t):
        if len(calls) == kill_after:
            raise Killed
        calls.append(len(image))
        return np.stack([image / 3, t**3], 1)

    return evaluate


def run(values, evaluate):
    kept = values.of_calls(evaluate, 4)
    return [kept(np.arange(n), np.arange(n, dtype=np.float64)) for n in (3, 10, 4)]


@pytest.mark.parametrize("kill_after", [0, 1, 3, 4])
def test_calls_go_on_where_they_were_killed_and_return_the_same_bits(tmp_path, kill_after):
    expected, before, after = run(KeptValues(None), cubes([])), [], []
    with pytest.raises(Killed):
        run(KeptValues(KeptArrays(tmp_path, {})), cubes(before, kill_after))
    resumed = KeptValues(KeptArrays(tmp_path, {}))
    for result, once in zip(run(resumed, cubes(after)), expected, strict=True):
        assert np.array_equal(result, once) and result.dtype == once.dtype
    assert before + after == [3, 4, 4, 2, 4]
    resumed.release()
    assert not list(tmp_path.rglob("batch-*"))


def test_a_damaged_batch_is_computed_again(tmp_path, caplog):
    expected = run(KeptValues(KeptArrays(tmp_path, {})), cubes([]))
    [path] = tmp_path.rglob("batch-000002-*")
    path.write_bytes(path.read_bytes()[:-1])
    calls = []
    again = run(KeptValues(KeptArrays(tmp_path, {})), cubes(calls))
    assert all(map(np.array_equal, again, expected)) and calls == [4] and "is damaged" in caplog.text


def test_where_nothing_can_be_kept_the_values_are_the_same_and_it_is_said_once(tmp_path, caplog):
    (tmp_path / "full").write_text("a file where the folder should be")
    values = KeptValues(KeptArrays(tmp_path / "full", {}))
    assert all(map(np.array_equal, run(values, cubes([])), run(KeptValues(None), cubes([]))))
    assert caplog.text.count("a kill would start it anew") == 1
