"""Snapshots of averages are planned, counted, kept and exported with the checkpoints that they belong to."""

from pathlib import Path

from harness.launch.planning import plan
from harness.records import throughput
from harness.records.archive import _files_of
from harness.records.archived_run import is_record
from harness.records.directory import RunDirectory
from harness.records.disk import usage
from harness.records.throughput import Throughput
from harness.study.expand import load_study
from harness.testing import TINY_STUDY

SNAPSHOT, CHECKPOINT = f"checkpoints/averages-00000003-{'0' * 64}.pt", f"checkpoints/step-00000012-{'1' * 64}.pt"


def test_the_plan_counts_a_snapshot_as_a_fifth_of_a_checkpoint(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY_STUDY.replace("ema_rate: 0.8", "ema: {every: 3}"))
    planned = plan(load_study(file), tmp_path / "runs")
    (run,) = planned.runs
    cost = Throughput(run.run.spec.cost_key, 1.0, "cpu", "a CPU", 1, kernels="fused", checkpoint_bytes=1000)
    throughput.record(tmp_path / "runs", cost)
    assert plan(load_study(file), tmp_path / "runs").checkpoint_bytes(run) == 2 * 1000 + 4 * 200


def test_an_archive_has_them_if_it_has_checkpoints(tmp_path: Path):
    directory = RunDirectory(tmp_path / "0123456789abcdef")
    directory.checkpoints_folder.mkdir(parents=True)
    for name in (SNAPSHOT, CHECKPOINT):
        (directory.path / name).write_bytes(b"some")
    assert is_record(SNAPSHOT)
    assert set(_files_of(directory, "none")) == set()
    assert set(_files_of(directory, "newest")) == {SNAPSHOT, CHECKPOINT}
    assert usage([directory.path]) == {"checkpoints": 8}
