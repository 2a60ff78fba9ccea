import os

import numpy as np
import pytest

from harness.data import load_dataset
from harness.data.imagenet64 import TEST, TRAIN
from harness.errors import DataError

COUNT = 3


@pytest.fixture
def batches():
    draw = np.random.default_rng(0).integers
    return {
        name: {"data": draw(256, size=(COUNT, 12288), dtype=np.uint8), "labels": draw(1, 1001, size=COUNT)}
        for name in (*TRAIN, TEST)
    }


def write(root, batches, save):
    (root / "imagenet64").mkdir(parents=True)
    for name, arrays in batches.items():
        save(root / "imagenet64" / name, **arrays)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_batches_are_mapped_in_order_with_labels_from_zero(tmp_path, batches, save):
    write(tmp_path, batches, save)
    dataset = load_dataset("imagenet64", data_root=tmp_path, counts=(10 * COUNT, COUNT))
    assert all(isinstance(part, np.memmap) for part in dataset.train.images.parts)
    expected = np.concatenate([batches[name]["data"] for name in TRAIN]).reshape(-1, 3, 64, 64)
    shuffled = np.random.default_rng(1).permutation(10 * COUNT)
    assert np.array_equal(dataset.train.images[shuffled], expected[shuffled])
    assert np.array_equal(dataset.train.labels, np.concatenate([batches[name]["labels"] for name in TRAIN]) - 1)
    assert np.array_equal(dataset.test.images[:].reshape(COUNT, -1), batches[TEST]["data"])


def test_stored_arrays_are_mapped_in_place_and_packed_ones_unpacked_once(tmp_path, batches):
    unpacked = tmp_path / "cache" / "imagenet64"
    write(tmp_path / "stored", batches, np.savez)
    load_dataset("imagenet64", data_root=tmp_path / "stored", counts=(10 * COUNT, COUNT))
    assert not unpacked.exists()
    write(tmp_path / "packed", batches, np.savez_compressed)
    stored = {}
    for _ in range(2):
        load_dataset("imagenet64", data_root=tmp_path / "packed", counts=(10 * COUNT, COUNT))
        stored = stored or {path: path.stat().st_mtime_ns for path in unpacked.iterdir()}
        assert stored == {path: path.stat().st_mtime_ns for path in unpacked.iterdir()}
    assert len(stored) == 2 * 11  # data and labels


def test_the_remembered_digest_is_that_of_the_content_and_follows_a_changed_file(tmp_path, batches):
    write(tmp_path / "a", batches, np.savez)
    write(tmp_path / "b", batches, np.savez_compressed)
    digests = {
        load_dataset("imagenet64", data_root=tmp_path / folder, counts=(10 * COUNT, COUNT)).digest for folder in "aabb"
    }
    assert len(digests) == 1
    path = tmp_path / "a" / "imagenet64" / TRAIN[4]
    batches[TRAIN[4]]["data"][0, 0] ^= 1
    np.savez(path, **batches[TRAIN[4]])
    os.utime(path, ns=(1, 1))
    assert load_dataset("imagenet64", data_root=tmp_path / "a", counts=(10 * COUNT, COUNT)).digest not in digests


def test_a_damaged_cache_is_made_again(tmp_path, batches):
    write(tmp_path, batches, np.savez_compressed)
    options = {"data_root": tmp_path, "counts": (10 * COUNT, COUNT)}
    digest = load_dataset("imagenet64", **options).digest
    unpacked, digests = (tmp_path / "cache" / kind for kind in ("imagenet64", "digests"))
    for path in unpacked.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    for path in digests.iterdir():
        path.write_text("")
    assert load_dataset("imagenet64", **options).digest == digest
    assert {path.read_text() for path in digests.iterdir()} == {digest}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_batch_that_is_damaged_inside_is_refused_by_name_and_leaves_nothing_in_the_cache(tmp_path, batches, save):
    write(tmp_path, {TRAIN[0]: batches[TRAIN[0]] | {"data": batches[TRAIN[0]]["data"] * 0}} | batches, save)
    path = tmp_path / "imagenet64" / TRAIN[0]
    content = bytearray(path.read_bytes())
    content[40:90] = b"\xff" * 50  # within the first member: its name, its header, its pixels
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train_data_batch_1\.npz: "):
        load_dataset("imagenet64", data_root=tmp_path, counts=(10 * COUNT, COUNT))
    assert [*tmp_path.glob("cache/imagenet64/.*")] == []


def test_incomplete_batches_are_refused(tmp_path, batches):
    write(tmp_path, batches, np.savez)
    with pytest.raises(DataError, match=r"expected \(1281167, 50000\) training and test images, found \(30, 3\)"):
        load_dataset("imagenet64", data_root=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.zeros((COUNT, 3072), np.uint8), "labels": np.ones(COUNT)}, r"data are uint8 \(3, 3072\)"),
        ({"images": np.zeros((COUNT, 12288), np.uint8)}, "not an npz batch with arrays 'data' and 'labels'"),
        ({"data": np.array([{}]), "labels": np.ones(1)}, "not an npz batch .* an array of object"),
    ],
)
def test_batches_of_something_else_are_refused(tmp_path, batches, arrays, message):
    write(tmp_path, {**batches, TRAIN[2]: arrays}, np.savez)
    with pytest.raises(DataError, match=f"train_data_batch_3.npz: {message}"):
        load_dataset("imagenet64", data_root=tmp_path, counts=(10 * COUNT, COUNT))


def test_missing_batches_are_named(tmp_path, batches):
    del batches[TRAIN[9]], batches[TEST]
    write(tmp_path, batches, np.savez)
    with pytest.raises(
        DataError, match=r"missing train_data_batch_10\.npz, val_data\.npz\.\n  from: https://image-net"
    ):
        load_dataset("imagenet64", data_root=tmp_path)
