import math

import pandas as pd
import pytest

from harness.analysis.statistics.intervals import (
    describe_bands,
    format_values,
    summarise,
    summarise_by,
    t_interval,
)


def test_the_t_interval_is_the_textbooks():
    # t_{2, 0.975} = 4.302653, s = 1, n = 3
    low, high = t_interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_an_interval_is_given_from_three_replicates_on_and_not_before():
    assert summarise([]).n == 0
    assert summarise([4.0]) == (1, 4.0, 4.0, 4.0, "value")
    assert summarise([4.0, 2.0]) == (2, 3.0, 2.0, 4.0, "range")
    assert summarise([1.0, 2.0, 3.0]).kind == "interval"


def test_a_replicate_that_diverged_is_no_replicate_but_is_said():
    assert summarise([4.0, math.nan]) == (1, 4.0, 4.0, 4.0, "value")
    assert format_values([4.0, math.nan], 2) == "4.00, 1 NaN"
    assert format_values([math.nan], 2) == "1 NaN"


def test_tables_spell_an_interval_both_values_or_the_value():
    assert format_values([1.0, 2.0, 3.0], 2) == "2.00 ± 2.48"
    assert format_values([3.15, 3.19], 2) == "3.15 / 3.19"
    assert format_values([3.1], 1) == "3.1"
    assert format_values([], 1) == "–"


def test_groups_keep_their_order_of_appearance():
    frame = pd.DataFrame({"arm": ["b", "a", "b"], "value": [1.0, 5.0, 3.0]})
    found = summarise_by(frame, ["arm"], "value")
    assert found["arm"].tolist() == ["b", "a"]
    assert found["mean"].tolist() == [2.0, 5.0]
    assert list(summarise_by(frame[:0], ["arm"], "value").columns) == ["arm", "n", "mean", "low", "high", "kind"]


def test_a_caption_says_what_the_bars_are():
    assert describe_bands(["interval", "interval"]) == "mean and 95 % t-interval over replicates"
    assert describe_bands(["value"]) == "one replicate"
    assert "range of two" in describe_bands(["range", "value"])
