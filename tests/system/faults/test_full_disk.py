"""A disk that fills up under a real training: the run ends with a clear error, and goes on when there is room again."""

import shutil
import subprocess
import sys

import pytest
from PIL import Image

from harness.data.image_folder import image_folder
from harness.errors import DataError, RecordError
from harness.job.job import run_job
from harness.job.verify import digests, results
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.training.checkpoints import Checkpoints


@pytest.fixture
def disk(tmp_path):
    """A real file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, num_bytes_left):
    """Write a file until only so many bytes are free."""
    (folder / "filler").write_bytes(b"x" * (shutil.disk_usage(folder).free - num_bytes_left))


def test_a_status_that_does_not_fit_leaves_the_old_one(disk):
    run = RunDirectory(disk / "run").create({"seed": 0}, schema_version=1)
    run.set_status(Status("done", step=7))
    fill(disk, 0)
    with pytest.raises(RecordError, match=r"status\.json: cannot be written: No space left on device"):
        run.set_status(Status("failed", step=8))
    assert (run.status().state, run.status().step) == ("done", 7)


@pytest.mark.parametrize("num_images", [4, 40])
def test_scaled_images_that_do_not_fit_are_refused_before_one_is_read_and_leave_nothing(
    disk, tmp_path, monkeypatch, num_images
):
    monkeypatch.setenv("HARNESS_CACHE", str(disk / "cache"))
    (tmp_path / "pictures").mkdir()
    for number in range(num_images):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    fill(disk, 2_000_000)
    options = {"path": "pictures", "image_size": 512}  # 786 KB each
    with pytest.raises(DataError, match=r"the cache .*image_folder cannot be written: the disk or your quota is full"):
        image_folder(str(tmp_path), **options)
    assert list((disk / "cache" / "image_folder").iterdir()) == []
    assert shutil.disk_usage(disk).free > 1_900_000
    (disk / "filler").unlink()
    if num_images == 4:
        assert len(image_folder(str(tmp_path), **options).train) == 3


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes_left", [0, 20_000, 300_000])
def test_a_training_on_a_disk_that_fills_up_ends_with_a_clear_error_and_goes_on_later(
    tiny_run, disk, monkeypatch, caplog, num_bytes_left
):
    sets = ("train.steps=60", "records.log_every=1")
    unbroken, run = tiny_run("", *sets), tiny_run("", *sets, "records.checkpoint_every_seconds=0", folder="disk")
    assert run_job(unbroken, sync=False, show_progress=False) == "done"

    def at_step_20(job, training, data, step):
        if step == 20:
            fill(disk, num_bytes_left)

    with monkeypatch.context() as patch:
        patch.setattr("harness.job.job._Job._evaluate_during", at_step_20)
        state = run_job(run, sync=False, show_progress=False)
    assert state == "failed"
    steps = Checkpoints(run / "checkpoints").steps()
    (disk / "filler").unlink()
    directory = RunDirectory(run)
    reason = directory.status().reason if directory.status().state == "failed" else caplog.text
    assert "the disk or your quota is full" in reason or "No space left on device" in reason
    assert run_job(run, sync=False, show_progress=False) == "done"
    resumed = directory.events("started")[-1].fields["resumed_from_step"]
    assert resumed == steps[-1] >= 19
    assert directory.problems() == []
    assert results(directory) == results(RunDirectory(unbroken))
    assert digests(Checkpoints(run / "checkpoints").latest()[1]) == digests(
        Checkpoints(unbroken / "checkpoints").latest()[1]
    )
    print(f"\n{num_bytes_left} bytes left at step 20: went on from step {resumed}, equal at the end", file=sys.stderr)
