"""Arrays that are kept in the run directory: whole or not at all, and nothing that is damaged is believed."""

import numpy as np
import pytest

from harness.records import disk
from harness.records.directory import RunDirectory
from harness.records.kept import KeptArrays
from harness.records.status import Status
from harness.testing import write_run

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def names(folder):
    return sorted(path.name.rpartition("-")[0] or path.name for path in folder.rglob("*") if path.is_file())


def test_an_array_is_read_as_it_was_written_and_only_under_its_draw(tmp_path):
    kept = KeptArrays(tmp_path / "kept", {"seed": 0})
    kept.write("batch-000000-3-float32", ARRAY)
    kept.write("batch-000001-3-uint8", ARRAY.astype(np.uint8).T)  # which is not contiguous
    stored = kept.read("batch-000000-3-float32")
    assert stored is not None and stored.dtype == np.float32 and np.array_equal(stored, ARRAY)
    assert np.array_equal(kept.read("batch-000001-3-uint8"), ARRAY.T)
    assert KeptArrays(tmp_path / "kept", {"seed": 1}).read("batch-000000-3-float32") is None
    assert kept.read("batch-000000-3") is None


@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_a_damaged_array_counts_as_missing_and_is_removed_with_a_message(tmp_path, caplog, damage):
    kept = KeptArrays(tmp_path, {})
    kept.write("batch", ARRAY)
    [path] = kept.folder.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"a bit": content, "the end": content[:-1], "all": b""}[damage])
    assert kept.read("batch") is None
    assert f"{path} is damaged; it is removed and computed again" in caplog.text
    assert not path.exists()


def test_what_cannot_be_written_is_an_error_that_leaves_nothing(tmp_path):
    (tmp_path / "kept").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        KeptArrays(tmp_path / "kept", {}).write("batch", ARRAY)
    assert names(tmp_path) == ["kept"]


def test_when_batches_are_removed_features_stay_and_an_empty_folder_does_not(tmp_path):
    with_features, without = (KeptArrays(tmp_path / "kept", {"seed": seed}) for seed in (0, 1))
    for kept in (with_features, without):
        kept.write("batch-000000-3-uint8", ARRAY)
    with_features.write("features-digitsnet-0123-3", ARRAY)
    with_features.remove_batches()
    without.remove_batches()
    assert names(tmp_path) == ["draw.json", "features-digitsnet-0123-3"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [with_features.folder.name]
    KeptArrays(tmp_path / "other", {}).remove_batches()  # of which nothing was ever kept
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("keep_samples", [False, True])
def test_samples_of_an_evaluation_that_was_never_finished_can_go_when_the_run_is_done(
    tmp_path, tiny_study, keep_samples
):
    [run] = tiny_study("", *["records.keep_samples=true"][:keep_samples])
    assert ("keep_samples" in run.membership()["records"]) == keep_samples
    directory = write_run(run, tmp_path / "runs")
    kept = KeptArrays(directory.kept_folder, {})
    kept.write("batch-000000-3-uint8", ARRAY)
    kept.write("features-digitsnet-0123-3", ARRAY)
    directory.set_status(Status("interrupted", 12, 12, 1))
    assert disk.removable(directory) == []
    directory.set_status(Status("done", 12, 12, 1))
    removable = [path.path.name for path in disk.removable(RunDirectory(directory.path))]
    assert [name.rpartition("-")[0] for name in removable] == ([] if keep_samples else ["batch-000000-3-uint8"])
    assert disk.usage([directory.path])["kept"] > 2 * ARRAY.nbytes
