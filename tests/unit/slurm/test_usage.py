"""What SLURM's accounting says of the use of jobs. The lines are those of SLURM 22.05."""

from __future__ import annotations

import math

import pytest

from harness.slurm.usage import JobUsage, parse_cpu_seconds, parse_memory, parse_usage

TABLE = """\
5|5|FAILED|2|00:20:00|00:00.113|1|100M||billing=1,cpu=1,mem=100M,node=1|1|
5.batch|5.batch|FAILED|2||00:00.015|1||12160K|cpu=1,mem=100M,node=1|1|1
5.0|5.0|OUT_OF_MEMORY|2||00:00.097|1||106356K|cpu=1,mem=100M,node=1|1|1
8_0|9|COMPLETED|15|1-00:00:00|00:01.592|4|1000M||billing=4,cpu=4,gres/gpu=1,mem=1000M,node=1|1|
8_0.batch|9.batch|COMPLETED|15||00:00.013|4||12072K|cpu=4,gres/gpu=1,mem=1000M,node=1|1|1
8_0.0|9.0|COMPLETED|15||00:01.579|4||524288K|cpu=4,gres/gpu=1,mem=1000M,node=1|1|1
8_[1-3]|8|PENDING|0|1-00:00:00|00:00:00|4|1000M||billing=4,cpu=4,gres/gpu=1,mem=1000M,node=1|1|
10|10|REQUEUED|6|Partition_Limit|00:00.929|1|4Gn||billing=1,cpu=1,node=1|1|
10|10|COMPLETED|14|Partition_Limit|00:02.480|1|4Gn||billing=1,cpu=1,node=1|1|
sacct: warning: something
11|11|CANCELLED by 0|4|00:20:00|00:00.020|8|200M||billing=8,cpu=8,mem=200M,node=2|2|
11.0|11.0|COMPLETED|4||00:00.007|8||51200K|cpu=8,mem=200M,node=2|2|4
"""


def test_each_execution_has_what_it_asked_for_and_the_most_that_its_steps_took_on_a_node():
    memory = 106356 / 2**20
    assert parse_usage(TABLE) == [
        JobUsage("5", "FAILED", 2, 1200, 0.113, 1, 0, 1, 100 / 1024, memory, out_of_memory=True),
        JobUsage("8_0", "COMPLETED", 15, 86400, 1.592, 4, 1, 1, 1000 / 1024, 0.5),
        JobUsage("10", "REQUEUED", 6, math.inf, 0.929, 1, 0, 1, 4.0),
        JobUsage("10", "COMPLETED", 14, math.inf, 2.48, 1, 0, 1, 4.0),
        JobUsage("11", "CANCELLED", 4, 1200, 0.02, 8, 0, 2, 100 / 1024, 100 / 1024),
    ]


@pytest.mark.parametrize(("text", "seconds"), [("00:00.113", 0.113), ("01:02:03", 3723), ("1-00:00:01", 86401)])
def test_processor_time_has_days_hours_and_fractions(text, seconds):
    assert parse_cpu_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "gib"), [("524288K", 0.5), ("512M", 0.5), ("4G", 4), ("4Gn", 4), ("1T", 1024), ("", None), ("0", None)]
)
def test_memory_has_units_of_1024(text, gib):
    assert parse_memory(text) == gib
