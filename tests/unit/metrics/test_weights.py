"""Files of weights from elsewhere: seen for what they are before torch reads them, and refused in our own words."""

import gzip
import os
import zipfile

import pytest
import torch

from harness.errors import DataError
from harness.metrics.weights import check_weights_file, read_state_dict, weights_file

INCEPTION_VARIABLE = "HARNESS_INCEPTION_WEIGHTS"
SHAPES = {"conv.weight": (4, 3), "conv.bias": (4,), "norm.num_batches_tracked": ()}


def state(**changes):
    entries = {
        "conv.weight": torch.ones(4, 3),
        "conv.bias": torch.zeros(4),
        "norm.num_batches_tracked": torch.tensor(3),
    }
    return entries | changes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("new_format", [True, False])
def test_the_weights_of_the_network_are_read(path, new_format):
    save(state(), path, _use_new_zipfile_serialization=new_format)
    assert {name: tuple(value.shape) for name, value in read_state_dict(path, SHAPES).items()} == SHAPES


def test_the_prefix_of_distributed_training_is_removed_however_often_it_stands(path):
    for prefix in ("module.", "module.module."):
        save({prefix + name: value for name, value in state().items()}, path)
        assert list(read_state_dict(path, SHAPES)) == list(SHAPES)


def test_a_name_that_only_some_entries_carry_as_a_prefix_stays(path):
    save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert list(read_state_dict(path)) == ["module.a", "b"]


def test_counters_that_old_files_lack_are_not_missed(path):
    entries = state()
    del entries["norm.num_batches_tracked"]
    assert len(read_state_dict(save(entries, path), SHAPES)) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\0" * 2000, "nothing but zeros"),
        (b"<!DOCTYPE html>\n<title>Not found</title>", "a web page, perhaps of a failed download"),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", "a web page, perhaps of a failed download"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an answer of a server in XML"),
        (b'{"message": "Not Found", "error": 404}', "an answer of a server in JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 95\n", "a git-lfs pointer"),
        (gzip.compress(b"x", mtime=0), "packed: unpack it first"),
        (b'\x80\0\0\0\0\0\0\0{"a"', None),  # a pickle as far as one sees
        (b'\x40\0\0\0\0\0\0\0{"a": {}}', "it looks like safetensors"),
        (b"Not Found", "it starts with 4e6f7420"),
        (b"PK\x03\x04" + b"x" * 500, "cut short or damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_refused_with_what_it_is(path, content, words):
    path.write_bytes(content)
    if words is None:
        check_weights_file(path)
        words = "damaged, or it holds more than tensors"
    else:
        with pytest.raises(DataError, match=rf"^{path}: not a file of weights: {words}"):
            check_weights_file(path)
    with pytest.raises(DataError, match=rf"^{path}: not a file of weights: {words}"):
        read_state_dict(path, SHAPES)


def test_a_file_that_is_cut_short_an_archive_of_something_else_and_a_folder_are_refused(path, tmp_path):
    save(state(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cut short or damaged: copy or download it again"):
        check_weights_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inception/readme.txt", "hello")
    with pytest.raises(DataError, match="an archive that torch did not write: unpack it first"):
        check_weights_file(path)
    with pytest.raises(DataError, match=f"{tmp_path}: a folder, not a file of weights"):
        check_weights_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(DataError, match="no regular file"):
        check_weights_file(tmp_path / "pipe")


def test_a_bit_that_flipped_within_a_tensor_is_found(path):
    save(state(), path)
    content = bytearray(path.read_bytes())
    content[content.find(torch.ones(4, 3).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["conv.weight"].isfinite().all()  # torch notices nothing
    with pytest.raises(DataError, match="damaged, its content does not have its checksum"):
        read_state_dict(path, SHAPES)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_carries_code_is_refused_in_our_own_words(path, tmp_path, monkeypatch, new_format):
    monkeypatch.chdir(tmp_path)
    save({"conv.weight": Attack()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(DataError) as caught:
        read_state_dict(path, SHAPES)
    assert "weights_only" not in str(caught.value) and "torch.load" not in str(caught.value)
    assert "it holds more than tensors; what else a file holds could run code" in str(caught.value)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_their_entry_and_number(path, value):
    weight = torch.ones(4, 3)
    weight[1, 1] = weight[2, 0] = value
    with pytest.raises(DataError, match=r"2 of the 12 values of conv\.weight are not finite numbers"):
        read_state_dict(save(state(**{"conv.weight": weight}), path), SHAPES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (state(extra=torch.ones(1)), "extra is unknown"),
        ({"conv.weight": torch.ones(4, 3)}, "conv.bias is missing"),
        (state(**{"conv.bias": torch.ones(5)}), r"conv\.bias is \[5\] instead of \[4\]"),
        ({}, r"conv\.weight is missing; conv\.bias is missing"),
    ],
)
def test_the_weights_of_another_network_are_refused_with_the_first_differences(path, content, words):
    with pytest.raises(DataError, match=f"the weights of another network: {words}"):
        read_state_dict(save(content, path), SHAPES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds a list, not tensors by name"),
        ({"state_dict": {}, "epoch": 3}, "its entries are state_dict, epoch"),
        ({1: torch.ones(1)}, "holds not only tensors by name"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is not a plain tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is not a plain tensor"),
    ],
)
def test_what_holds_no_named_tensors_is_refused_with_what_it_holds(path, content, words):
    with pytest.raises(DataError, match=words):
        read_state_dict(save(content, path))


def test_the_variable_of_inceptions_weights_names_a_file_none_or_a_mistake(path, monkeypatch):
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)
    assert weights_file("inception") is None
    monkeypatch.setenv(INCEPTION_VARIABLE, "")
    assert weights_file("inception") is None
    monkeypatch.setenv(INCEPTION_VARIABLE, str(path))
    with pytest.raises(DataError, match=rf"{INCEPTION_VARIABLE}: {path}: there is no such file; correct or unset it"):
        weights_file("inception")
    save(state(), path)
    assert weights_file("inception") == path
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv(INCEPTION_VARIABLE, "~/weights.pth")
    assert weights_file("inception") == path
    monkeypatch.setenv(INCEPTION_VARIABLE, "~no-such-user/weights.pth")
    with pytest.raises(DataError, match=f"{INCEPTION_VARIABLE}: ~no-such-user"):
        weights_file("inception")
