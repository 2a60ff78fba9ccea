import itertools
import math

import pytest

from harness.tracking.arms import Final, MeanRow, mean_rows, state_of, text_of


def latest(rows, key):
    """Return what MLflow shows of a metric: of one step, the newest row."""
    return max((row for row in rows if row.key == key), key=lambda row: (row.time_ms, row.value)).value


NLL = "eval/nll_bpd"
RESULTS = [{NLL: Final(2.0, 100)}, {NLL: Final(4.0, 300)}, {NLL: Final(3.0, 200)}]


def test_the_newest_mean_counts_all_replicates_and_has_a_t_interval_of_three():
    rows = mean_rows(RESULTS)
    assert latest(rows, NLL) == 3.0
    assert latest(rows, f"{NLL}.n") == 3
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # Student's, of two degrees of freedom
    half = quantile / math.sqrt(3)  # the values deviate by 1
    assert latest(rows, f"{NLL}.low") == pytest.approx(3 - half, abs=1e-9)
    assert latest(rows, f"{NLL}.high") == pytest.approx(3 + half, abs=1e-9)


def test_rows_that_were_sent_as_replicates_ended_are_those_of_a_replay():
    by_time = sorted(RESULTS, key=lambda result: result[NLL].time_ms)
    sent = set()
    for number in range(1, 4):
        sent |= set(mean_rows(by_time[:number]))
    assert sent == set(mean_rows(RESULTS))


def test_the_order_of_the_runs_does_not_matter():
    rows = [mean_rows(order) for order in itertools.permutations(RESULTS)]
    assert all(row == rows[0] for row in rows)


def test_a_study_that_asks_for_fewer_replicates_shows_their_mean():
    before = mean_rows(RESULTS)
    after = mean_rows(RESULTS[:1], asked_ms=1000)
    assert latest(before + after, NLL) == 2.0
    assert latest(before + after, f"{NLL}.n") == 1


def test_one_replicate_has_no_interval_and_two_have_their_range():
    assert {row.key for row in mean_rows(RESULTS[:1])} == {NLL, f"{NLL}.n"}
    rows = mean_rows(RESULTS[:2])
    assert (latest(rows, f"{NLL}.low"), latest(rows, f"{NLL}.high")) == (2.0, 4.0)


def test_a_timing_has_its_mean_alone():
    [row] = mean_rows([{"perf/images_per_second": Final(5.0, 1)}])
    assert row == MeanRow("perf/images_per_second", 5.0, 1)


def test_a_diverged_replicate_is_not_in_the_mean_and_is_not_counted():
    rows = mean_rows([*RESULTS[:2], {NLL: Final(math.nan, 400)}])
    assert (latest(rows, NLL), latest(rows, f"{NLL}.n")) == (3.0, 2)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.94061, 1.95400], "1.941 / 1.954 (n = 2)"),
        ([30.123, 31.456, 32.789], "31.46 ± 3.31 (n = 3)"),
        ([0.00001234], "0.00001234 (n = 1)"),
        ([2.0, math.nan], "2.000, 1 NaN (n = 2)"),
    ],
)
def test_a_mean_is_written_with_the_digits_that_it_needs(values, text):
    assert text_of(values) == text


def test_states_are_counted_the_finished_ones_first():
    assert state_of({"failed": 1, "done": 3, "running": 0}) == "3 done, 1 failed"
