import numpy as np
import pytest
from PIL import Image

from harness.data import load_dataset
from harness.errors import DataError


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
    assert (len(first.train), len(first.test)) == (18, 2)
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
