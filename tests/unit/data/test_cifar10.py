import os

import numpy as np
import pytest

from harness.data import load_dataset
from harness.errors import DataError


def test_rows_are_planes_of_red_green_and_blue(tmp_path, write_cifar, cifar_batches):
    checksums = write_cifar(tmp_path, cifar_batches)
    dataset = load_dataset("cifar10", data_root=tmp_path, checksums=checksums)
    assert (len(dataset.train), len(dataset.test)) == (20, 4)
    third = cifar_batches["data_batch_3"]
    assert np.array_equal(dataset.train.images[8, 1].ravel(), third[b"data"][0, 1024:2048])
    assert dataset.train.labels[8:12].tolist() == third[b"labels"]
    assert np.array_equal(dataset.test.images.reshape(4, -1), cifar_batches["test_batch"][b"data"])


def test_a_subset_of_the_batches_needs_only_its_files_and_has_its_own_digest(tmp_path, write_cifar, cifar_batches):
    needed = {name: cifar_batches[name] for name in ("data_batch_1", "data_batch_4", "test_batch")}
    checksums = write_cifar(tmp_path, needed)

    def load(*batches):
        return load_dataset("cifar10", data_root=tmp_path, batches=batches, checksums=checksums)

    assert len(load(1, 4).train) == 8
    assert len({load(1).digest, load(4).digest, load(1, 4).digest, load(4, 1).digest}) == 4
    with pytest.raises(DataError, match=r"cifar10: missing data_batch_2\.\n.*cifar-10-python.tar.gz"):
        load(1, 2)


@pytest.mark.parametrize("batches", [(), (0,), (6,), (1, 1)])
def test_batches_that_do_not_exist_are_refused(batches):
    with pytest.raises(DataError, match="batches are some of 1, 2, 3, 4, 5"):
        load_dataset("cifar10", batches=batches)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_pickle_that_asks_for_code_is_refused_even_with_the_right_checksum(
    tmp_path, write_cifar, cifar_batches, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cifar_batches["data_batch_1"] = {b"data": Attack(), b"labels": []}
    checksums = write_cifar(tmp_path, cifar_batches)
    with pytest.raises(DataError, match=r"data_batch_1: refused: the pickle asks for posix\.mkdir"):
        load_dataset("cifar10", data_root=tmp_path, checksums=checksums)
    assert not (tmp_path / "attacked").exists()


def test_a_wrong_checksum_is_found_before_the_pickle_is_opened(tmp_path, write_cifar, cifar_batches):
    write_cifar(tmp_path, {**cifar_batches, "data_batch_1": {b"data": Attack()}})
    with pytest.raises(DataError, match=r"data_batch_1: .*md5 expected c99cafc152244af753f735de768cd75f, found"):
        load_dataset("cifar10", data_root=tmp_path)


@pytest.mark.parametrize("batch", [{}, [], {b"data": np.zeros((2, 7), np.uint8), b"labels": [0, 1]}])
def test_a_pickle_of_something_else_is_a_data_error(tmp_path, write_cifar, cifar_batches, batch):
    checksums = write_cifar(tmp_path, {**cifar_batches, "data_batch_1": batch})
    with pytest.raises(DataError, match="data_batch_1: not a CIFAR-10 batch"):
        load_dataset("cifar10", data_root=tmp_path, checksums=checksums)


@pytest.mark.skipif("HARNESS_DATA" not in os.environ, reason="needs the real files (HARNESS_DATA)")
def test_the_first_real_batch_is_what_it_was():
    dataset = load_dataset("cifar10", batches=(1,))
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert dataset.digest == "69b0441d4d50b0ffd839e84720b9de04c56123d53bbb428edf49dc3421f4a373"
