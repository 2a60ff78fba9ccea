import dataclasses

import numpy as np
import pytest
import torch

from harness.data import Split, load_dataset, to_uint8
from harness.data.base import Concatenation, build, content_digest
from harness.data.cache import publish
from harness.data.facts import DatasetFacts
from harness.errors import DataError

FACTS = DatasetFacts(image_size=2, channels=1, levels=256, num_classes=3)


def a_split(count=4, seed=0):
    draw = np.random.default_rng(seed).integers
    return Split(draw(256, size=(count, 1, 2, 2), dtype=np.uint8), np.arange(count) % 3)


def test_an_unknown_data_set_is_refused_with_the_choices():
    with pytest.raises(DataError, match=r"no data set 'cifar'; the choices are digits, mnist"):
        load_dataset("cifar")


def test_units_are_those_of_improved_diffusion_to_the_bit():
    dataset = build("x", FACTS, a_split(), a_split())
    stored = np.arange(256, dtype=np.uint8)
    expected = stored.astype(np.float32) / 127.5 - 1
    assert torch.equal(dataset.to_unit(stored), torch.from_numpy(expected))
    assert torch.equal(dataset.to_unit(torch.from_numpy(stored)), torch.from_numpy(expected))


def test_seventeen_levels_become_seventeen_equal_steps_from_minus_one_to_one():
    dataset = dataclasses.replace(build("x", FACTS, a_split(), a_split()), levels=17)
    assert torch.equal(dataset.to_unit(np.arange(17, dtype=np.uint8)), torch.linspace(-1, 1, 17))


def test_pictures_are_truncated_and_clamped_as_improved_diffusion_does():
    x = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 7.0])
    assert to_uint8(x).tolist() == [0, 0, 127, 254, 255, 255]
    assert to_uint8(x).dtype == torch.uint8


@pytest.mark.parametrize("levels", [17, 256])
def test_real_pictures_span_0_to_255_and_differ_by_rounding_at_most_from_the_way_of_samples(levels):
    dataset = dataclasses.replace(build("x", FACTS, a_split(), a_split()), levels=levels)
    stored = np.arange(levels, dtype=np.uint8)
    pictures = dataset.to_images(stored)
    assert pictures.dtype == np.uint8
    assert (pictures[0], pictures[-1]) == (0, 255)
    by_samples = to_uint8(dataset.to_unit(stored)).numpy()
    assert np.abs(pictures.astype(int) - by_samples).max() <= (0 if levels == 17 else 1)
    if levels == 256:
        assert np.array_equal(pictures, stored)


def test_the_digest_changes_with_a_pixel_a_label_the_order_and_the_split():
    train, test = a_split(), a_split(seed=1)
    pixel = train.images.copy()
    pixel[0, 0, 0, 0] ^= 1
    label = train.labels.copy()
    label[0] ^= 1
    digests = {
        content_digest(256, train, test),
        content_digest(256, Split(pixel, train.labels), test),
        content_digest(256, Split(train.images, label), test),
        content_digest(256, Split(train.images[::-1], train.labels), test),
        content_digest(256, test, train),
        content_digest(17, train, test),
        content_digest(256, Split(train.images, None), test),
    }
    assert len(digests) == 7


def test_the_digest_does_not_depend_on_how_the_images_are_kept():
    train, test = a_split(6), a_split(seed=1)
    parts = Concatenation([train.images[:1], train.images[1:4], train.images[4:]])
    assert content_digest(256, Split(parts, train.labels), test) == content_digest(256, train, test)


def test_a_concatenation_indexes_like_the_one_array():
    whole = np.arange(7 * 4).reshape(7, 1, 2, 2)
    parts = Concatenation([whole[:3], whole[3:4], whole[4:]])
    assert (parts.shape, parts.dtype, len(parts)) == (whole.shape, whole.dtype, 7)
    for index in (
        0,
        3,
        -1,
        slice(2, 6),
        slice(None, None, 3),
        np.array([6, 0, 3, 3]),
        np.array([-1, 2]),
        np.array([], np.int64),
        np.array([[1, 5]]),
        whole[:, 0, 0, 0] > 9,
    ):
        assert np.array_equal(parts[index], whole[index])
    for index in (7, np.array([0, 7])):
        with pytest.raises(IndexError):
            parts[index]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Split(np.zeros((2, 3, 2, 2), np.uint8), None), "train images are 3x2x2, declared are 1x2x2"),
        (Split(np.zeros((2, 1, 2, 2)), None), "train images are float64, declared are uint8"),
        (Split(np.zeros((2, 1, 2, 2), np.uint8), np.arange(3)), "2 train images but 3 labels"),
        (Split(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 3])), r"train labels are not all in 0 \.\. 2"),
    ],
)
def test_images_other_than_declared_are_refused(train, message):
    with pytest.raises(DataError, match=message):
        build("x", FACTS, train, a_split())


def test_the_first_of_two_writers_of_a_cached_file_wins_and_leaves_nothing_behind(tmp_path):
    final = tmp_path / "weights"
    with publish(final) as late:
        late.write_text("second")
        final.write_text("first")  # another process was faster
    assert final.read_text() == "first"
    assert list(tmp_path.iterdir()) == [final]


def test_a_writer_that_fails_publishes_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "weights") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
