"""Staging: a job trains on a copy of the mapped arrays, with the same content."""

import numpy as np
import pytest

from harness.data.base import Concatenation, Dataset, Split
from harness.data.staging import staged


@pytest.fixture
def mapped(tmp_path):
    """A data set of one mapped file, whose last two images are its test split, and a part in memory."""
    images = np.arange(6 * 12, dtype=np.uint8).reshape(6, 3, 2, 2)
    np.save(tmp_path / "images.npy", images)
    whole = np.load(tmp_path / "images.npy", mmap_mode="c")
    more = np.ones((1, 3, 2, 2), np.uint8)
    train = Split(Concatenation([whole[:2], whole[2:4], more]), np.arange(5))
    return Dataset("own", 2, 3, 256, 5, train, Split(whole[4:], np.arange(2)), digest="d")


def test_a_staged_data_set_has_the_same_images_from_one_copy(mapped, tmp_path, monkeypatch):
    before = mapped.train.images[np.arange(5)], np.array(mapped.test.images)
    assert staged(mapped) is mapped  # no job's script has named a folder
    monkeypatch.setenv("HARNESS_STAGE", str(tmp_path / "node" / "job"))
    copy = staged(mapped)
    (name,) = (path.name for path in (tmp_path / "node" / "job").iterdir())
    assert name.endswith("-images.npy")
    (tmp_path / "images.npy").write_bytes(b"")  # the copy does not need it
    np.testing.assert_array_equal(copy.train.images[np.arange(5)], before[0])
    np.testing.assert_array_equal(copy.test.images, before[1])
    assert copy.digest == mapped.digest and len(copy.train) == 5


def test_a_node_without_room_reads_the_data_from_where_they_are(mapped, tmp_path, monkeypatch, caplog):
    (tmp_path / "full").touch()  # a file where the folder should be
    monkeypatch.setenv("HARNESS_STAGE", str(tmp_path / "full" / "job"))
    assert staged(mapped) is mapped
    assert "are not staged on this node" in caplog.text
