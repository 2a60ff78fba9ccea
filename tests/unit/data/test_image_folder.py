import numpy as np
import pytest
from PIL import Image

from harness.data import load_dataset
from harness.data.base import stamp
from harness.data.folder import describe
from harness.datasets import make_dataset
from harness.errors import DataError
from harness.spec.run import ImageFolder


def write_images(folder, names, size=(20, 12)):
    draw = np.random.default_rng(0).integers
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(256, size=(size[1], size[0], 3), dtype=np.uint8)).save(path)


def load(root, **options):
    return load_dataset("image_folder", data_root=root, **{"path": "pictures", "image_size": 8, **options})


def test_an_image_is_halved_by_box_scaled_bicubically_and_cropped_as_improved_diffusion_does(tmp_path):
    write_images(tmp_path / "pictures", ["a.png", "b.png"], size=(70, 36))
    image = Image.open(tmp_path / "pictures" / "a.png")
    # 70x36 -> 35x18 -> (18 >= 16) 17x9 -> scaled by 8/9 to 15x8, of which columns 3 to 10 are the centre.
    scaled = image.resize((35, 18), Image.BOX).resize((17, 9), Image.BOX).resize((15, 8), Image.BICUBIC)
    expected = np.asarray(scaled)[:, 3:11].transpose(2, 0, 1)
    dataset = load(tmp_path)
    both = np.concatenate([dataset.train.images, dataset.test.images])
    assert any(np.array_equal(image, expected) for image in both)


def test_folders_are_classes(tmp_path):
    write_images(tmp_path / "pictures", ["cat/x_1.png", "cat/deep/2.jpg", "ant/3.PNG", "ant/note.jpeg"])
    (tmp_path / "pictures" / "cat" / "readme.txt").write_text("no image")
    dataset = load(tmp_path)
    assert (dataset.num_classes, len(dataset.train) + len(dataset.test)) == (2, 4)
    assert sorted(np.concatenate([dataset.train.labels, dataset.test.labels])) == [0, 0, 1, 1]


def test_in_a_flat_folder_classes_are_the_prefixes_of_the_names(tmp_path):
    write_images(tmp_path / "pictures", ["cat_1.png", "ant_2.png", "bee_3.png"])
    dataset = load(tmp_path)
    assert dataset.num_classes == 3
    assert {*dataset.train.labels, *dataset.test.labels} == {0, 1, 2}


def test_names_without_a_prefix_mean_no_labels(tmp_path):
    write_images(tmp_path / "pictures", ["cat_1.png", "2.png", "3.png"])
    dataset = load(tmp_path)
    assert (dataset.num_classes, dataset.train.labels, dataset.test.labels) == (None, None, None)


def test_the_split_is_seeded_complete_and_read_once(tmp_path):
    write_images(tmp_path / "pictures", [f"c_{number}.png" for number in range(20)])
    first, again, other = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    assert len(first.train) + len(first.test) == 20
    assert first.digest == again.digest != other.digest
    assert isinstance(first.train.images, np.memmap)

    def content(dataset):
        return sorted(image.tobytes() for split in (dataset.train, dataset.test) for image in split.images)

    assert content(first) == content(other)
    assert len(set(content(first))) == 20


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(DataError, match=f"no folder {tmp_path / 'pictures'}"):
        load(tmp_path)
    write_images(tmp_path / "pictures", ["a.png"])
    with pytest.raises(DataError, match="has 1 images, needs 2"):
        load(tmp_path)
    write_images(tmp_path / "pictures", ["b.png"])
    with pytest.raises(DataError, match="test_fraction must be between 0 and 1, got 1"):
        load(tmp_path, test_fraction=1.0)
    (tmp_path / "pictures" / "b.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"b\.png: not a readable image"):
        load(tmp_path)


def pixels(split):
    return {image.tobytes() for image in split.images}


def test_an_image_more_leaves_every_other_in_its_split(tmp_path):
    names = [f"c_{number}.png" for number in range(40)]
    write_images(tmp_path / "pictures", names)
    before = load(tmp_path, test_fraction=0.3)
    write_images(tmp_path / "more", ["new.png"], size=(9, 9))
    (tmp_path / "more" / "new.png").rename(tmp_path / "pictures" / "b_0.png")
    after = load(tmp_path, test_fraction=0.3)
    assert len(after.train) + len(after.test) == 41
    assert pixels(before.train) <= pixels(after.train) and pixels(before.test) <= pixels(after.test)
    assert after.digest != before.digest


def test_a_test_folder_of_its_own_is_the_test_split_with_the_same_labels(tmp_path):
    write_images(tmp_path / "pictures", ["train/cat/1.png", "train/ant/2.png", "val/cat/3.png"])
    dataset = load(tmp_path, path="pictures/train", test_path="pictures/val")
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([0, 1], [1])
    assert dataset.num_classes == 2


def test_every_refused_image_is_named_at_once_and_nothing_is_left_in_the_cache(tmp_path):
    write_images(tmp_path / "pictures", ["a.png", "b.png"])
    for name in ("c.png", "d.gif"):
        (tmp_path / "pictures" / name).write_bytes(b"<html>")
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert sorted(line.partition(": ")[0][-5:] for line in str(caught.value).split("\n")) == ["c.png", "d.gif"]
    assert list((tmp_path / "cache" / "image_folder").iterdir()) == []


def test_test_images_that_are_also_trained_on_are_counted_each_time(tmp_path):
    write_images(tmp_path / "pictures", ["train/1.png", "train/2.png", "val/3.png"])
    copy = (tmp_path / "pictures" / "train" / "1.png").read_bytes()
    (tmp_path / "pictures" / "val" / "4.png").write_bytes(copy)
    for _ in range(2):  # the second time from the cache
        account = load(tmp_path, path="pictures/train", test_path="pictures/val").account
        assert "1 test images are equal to one that is trained on" in describe(account)


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"", lambda content: b"x" * 200])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    write_images(tmp_path / "pictures", [f"c_{number}.png" for number in range(20)])
    before = load(tmp_path)
    (cached,) = (tmp_path / "cache" / "image_folder").glob("*.npy")
    cached.write_bytes(damage(cached.read_bytes()))
    assert load(tmp_path).digest == before.digest


def test_images_that_an_earlier_version_cached_by_other_conversions_are_not_used(tmp_path):
    write_images(tmp_path / "pictures", ["a_1.png", "b_2.png"])
    files = sorted((tmp_path / "pictures").iterdir())
    cache = tmp_path / "cache" / "image_folder"
    cache.mkdir(parents=True)
    for order in (files, files[::-1]):
        np.save(cache / f"{stamp(order, 8)}.npy", np.zeros((2, 3, 8, 8), np.uint8))
    dataset = load(tmp_path)
    assert dataset.train.images.any() and dataset.test.images.any()


def test_labels_that_the_spec_expects_and_the_names_do_not_give_are_refused_with_the_account(tmp_path):
    write_images(tmp_path / "pictures", ["a.png", "b.png"])
    (tmp_path / "pictures" / "notes.txt").touch()
    data = ImageFolder(path="pictures", image_size=8, num_classes=2)
    with pytest.raises(
        DataError, match=r"the spec says num_classes 2, the files have None \(3 files seen, 2 used, 1 ig"
    ):
        make_dataset(data, str(tmp_path))
