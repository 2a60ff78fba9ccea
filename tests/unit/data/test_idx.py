import os

import numpy as np
import pytest

from harness.data import load_dataset
from harness.data.base import read_file
from harness.errors import DataError


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("fashion_mnist", "FashionMNIST/raw")])
def test_idx_files_are_read_and_padded_with_two_pixels_a_side(tmp_path, write_idx, idx_arrays, packed, name, folder):
    checksums = write_idx(tmp_path / folder, idx_arrays, packed)
    dataset = load_dataset(name, data_root=tmp_path, checksums=checksums)
    for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        images = idx_arrays[f"{prefix}-images-idx3-ubyte"]
        assert np.array_equal(split.images[:, 0, 2:30, 2:30], images)
        assert split.images.astype(int).sum() == images.sum()  # nothing but zeros around them
        assert np.array_equal(split.labels, idx_arrays[f"{prefix}-labels-idx1-ubyte"])
    assert dataset.padded_share == 0.234375
    assert dataset.files == {file: f"md5:{md5}" for file, md5 in checksums.items()}


def test_packed_and_plain_files_give_the_same_digest(tmp_path, write_idx, idx_arrays):
    digests = set()
    for packed in (True, False):
        checksums = write_idx(tmp_path / str(packed) / "mnist", idx_arrays, packed)
        digests.add(load_dataset("mnist", data_root=tmp_path / str(packed), checksums=checksums).digest)
    assert len(digests) == 1


def test_a_web_page_in_the_place_of_a_file_is_called_that(tmp_path, write_idx, idx_arrays):
    checksums = write_idx(tmp_path / "mnist", idx_arrays, False)
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"<html><title>403 Forbidden</title></html>")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: damaged or not the official file.*\(a web page"):
        load_dataset("mnist", data_root=tmp_path, checksums=checksums)


def test_a_file_that_cannot_be_read_and_a_home_that_is_not_there_are_said(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}: cannot be read: Is a directory"):
        read_file(tmp_path)
    with pytest.raises(DataError, match=r"data_root or HARNESS_DATA: .*home.*write the whole path"):
        load_dataset("mnist", data_root="~no-such-user/data")
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        load_dataset("mnist", data_root="x" * 300)


def test_missing_files_are_named_with_their_source_their_place_and_what_was_looked_at(tmp_path, write_idx, idx_arrays):
    checksums = write_idx(tmp_path / "MNIST" / "raw", idx_arrays, True)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", data_root=tmp_path, checksums=checksums)
    assert str(caught.value).splitlines() == [
        "mnist: missing t10k-labels-idx1-ubyte (plain or .gz).",
        "  from: https://ossci-datasets.s3.amazonaws.com/mnist/",
        f"  put into: {tmp_path / 'mnist'} (another root: data_root in the spec, or HARNESS_DATA)",
        f"  looked in: {tmp_path / 'mnist'}, {tmp_path / 'MNIST' / 'raw'}",
    ]


def test_the_data_root_is_as_given_then_harness_data_then_the_folder_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "environment"))
    with pytest.raises(DataError, match=f"looked in: {tmp_path / 'given'}"):
        load_dataset("mnist", data_root=tmp_path / "given")
    with pytest.raises(DataError, match=f"looked in: {tmp_path / 'environment'}"):
        load_dataset("mnist")
    monkeypatch.delenv("HARNESS_DATA")
    with pytest.raises(DataError, match=f"looked in: {tmp_path / 'data'}"):
        load_dataset("mnist")


def test_a_wrong_checksum_names_file_expected_and_found(tmp_path, write_idx, idx_arrays):
    checksums = write_idx(tmp_path / "mnist", idx_arrays, False)
    found = checksums["t10k-images-idx3-ubyte"]
    checksums["t10k-images-idx3-ubyte"] = "0" * 32
    with pytest.raises(DataError, match=rf"mnist/t10k-images-idx3-ubyte: .*md5 expected {'0' * 32}, found {found}"):
        load_dataset("mnist", data_root=tmp_path, checksums=checksums)


def test_the_official_checksums_are_in_force_unless_others_are_given(tmp_path, write_idx, idx_arrays):
    write_idx(tmp_path / "fashion-mnist", idx_arrays, True)
    with pytest.raises(DataError, match="md5 expected f4a8712d7a061bf5bd6d2ca38dc4d50a"):
        load_dataset("fashion_mnist", data_root=tmp_path)


def test_a_cut_gz_file_is_a_data_error(tmp_path, write_idx, idx_arrays):
    checksums = write_idx(tmp_path / "mnist", idx_arrays, True)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged gz file"):
        load_dataset("mnist", data_root=tmp_path, checksums=checksums)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\0", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "cut short within its header"),
        (b"\0\0\x08\x01\0\0\0\x05ab", r"the header says \(5,\), the file holds 2 values"),
    ],
)
def test_a_file_that_is_not_idx_or_cut_short_is_a_data_error(tmp_path, content, message):
    from harness.data.idx import read_idx

    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "file", content)


@pytest.mark.skipif("HARNESS_DATA" not in os.environ, reason="needs the real files (HARNESS_DATA)")
def test_the_real_fashion_mnist_is_what_it_was():
    dataset = load_dataset("fashion_mnist")
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert dataset.digest == "e5a5d65298a6f47cefd5831b8cd49a860d3abd6fd5817974735de23b55eeebfd"
