"""What a folder of images holds: each file is used, ignored and counted, or refused by name; splits do not move."""

import os
import random
import tempfile
from pathlib import Path

import pytest

from harness.data.folder import TooManyFiles, contents, describe, scan, shown, split
from harness.errors import DataError


def make(root, *names):
    """Make files, empty since nothing is opened here; a name that ends in / makes a folder."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()


def find(root, path="pictures", **options):
    return contents(root, path, **options)


# ----------------------------------------------------------------------------------------------------------- the split


def test_adding_and_removing_images_moves_no_other_image_between_train_and_test():
    random_ = random.Random(0)
    for case in range(200):
        names = [("pictures", f"{random_.getrandbits(64):x}_{number}.png") for number in range(random_.randint(30, 90))]
        train, test, note = split(names, 0.3, case)
        assert note == "" and len(train) + len(test) == len(names)
        kept = random_.sample(names, len(names) - random_.randint(1, 9))
        added = [("pictures", f"new{number}.png") for number in range(random_.randint(1, 9))]
        train_later, test_later, _ = split(sorted([*kept, *added]), 0.3, case)
        assert set(train_later) & set(test) == set() == set(test_later) & set(train)


def test_the_share_of_test_images_is_the_fraction_and_the_seed_chooses_which():
    names = [(f"{number}.png",) for number in range(20_000)]
    for fraction in (0.1, 0.5, 0.9):
        _, test, _ = split(names, fraction, 0)
        assert abs(len(test) / len(names) - fraction) < 0.01
    assert set(split(names, 0.1, 0)[1]) != set(split(names, 0.1, 1)[1])


def test_the_split_is_frozen():
    # If it fails, test images of runs that exist would be trained on.
    names = [(f"c_{number}.png",) for number in range(40)]
    assert [name for (name,) in split(names, 0.1, 0)[1]] == ["c_7.png", "c_12.png"]


def test_a_tiny_folder_has_an_image_in_each_split_and_the_account_says_that_it_may_move():
    for fraction in (0.001, 0.999):
        train, test, note = split([("a.png",), ("b.png",)], fraction, 0)
        assert len(train) == len(test) == 1
        assert "too few images for test_fraction" in note and "may leave it when the folder grows" in note


def test_a_name_in_decomposed_letters_is_in_the_same_split_as_the_composed_one():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for number in range(100):
        names = [[(f"{name}{number}.png",), ("other.png",)] for name in (composed, decomposed)]
        (train, *_), (train_copied, *_) = (split(pair, 0.5, 0) for pair in names)
        assert len(train) == len(train_copied) == 1
        assert (train[0] == ("other.png",)) == (train_copied[0] == ("other.png",))


def test_a_test_folder_of_its_own_gives_all_of_the_other_to_training(tmp_path):
    make(tmp_path, "x/train/cat/1.png", "x/train/ant/2.png", "x/val/cat/3.png", "x/val/ant/4.png", "x/val/ant/5.png")
    found = find(tmp_path, "x/train", test_path="x/val")
    assert [path.name for path in found.train] == ["2.png", "1.png"]
    assert [path.name for path in found.test] == ["4.png", "5.png", "3.png"]
    assert found.classes == {"ant": 3, "cat": 2}
    make(tmp_path, "x/val/bee/6.png")
    found = find(tmp_path, "x/train", test_path="x/val")
    assert found.classes == {} and found.train_names is None
    assert describe(found.account()).endswith("no labels, because x/val has the class bee and x/train has not")


@pytest.mark.parametrize("test_path", ["x", "x/train", "x/train/cat", "link"])
def test_a_test_folder_that_overlaps_the_other_is_refused(tmp_path, test_path):
    make(tmp_path, "x/train/cat/1.png", "x/train/cat/2.png")
    (tmp_path / "link").symlink_to(tmp_path / "x" / "train")
    with pytest.raises(DataError, match="lie within each other: test images would be trained on"):
        find(tmp_path, "x/train", test_path=test_path)


# --------------------------------------------------------------------------------------------------------- the account


def test_every_file_is_used_or_ignored_for_a_reason_that_is_counted(tmp_path):
    make(tmp_path / "pictures", *(f"cat/{number}.png" for number in range(3)), "ant/4.WEBP", "ant/5.bmp", "ant/6.tif")
    make(tmp_path / "pictures", "cat/readme.txt", "cat/labels.csv", "cat/Makefile", "ant/x.npy", "ant/y.npy")
    make(
        tmp_path / "pictures", ".DS_Store", "cat/._0.png", ".ipynb_checkpoints/0.png", "@eaDir/a/0.jpg", "@eaDir/b.jpg"
    )
    os.mkfifo(tmp_path / "pictures" / "cat" / "pipe.png")
    account = find(tmp_path).account()
    assert account["ignored"] == {
        "hidden": 5,
        ".npy": 2,
        ".txt": 1,
        ".csv": 1,
        "without suffix": 1,
        "special (pipe, socket or device)": 1,
    }
    assert account["classes"] == {"ant": 3, "cat": 3}
    assert (account["seen"], account["used"], account["num_ignored"]) == (17, 6, 11)
    text = describe(account)
    assert "17 files seen, 6 used, 11 ignored (5 hidden, 2 .npy, 1 .csv, " in text
    assert "2 classes: 3 ant, 3 cat" in text


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    make(tmp_path, "pictures/x.png/1.png", "pictures/y.png/2.png")
    assert find(tmp_path).classes == {"x.png": 1, "y.png": 1}


def test_linked_class_folders_are_entered(tmp_path):
    make(tmp_path, "elsewhere/1.png", "elsewhere/deep/2.png", "pictures/ant/3.png")
    (tmp_path / "pictures" / "cat").symlink_to(tmp_path / "elsewhere")
    assert find(tmp_path).classes == {"ant": 1, "cat": 2}


def test_a_folder_that_is_reached_twice_by_a_link_is_refused_by_both_names(tmp_path):
    make(tmp_path, "pictures/cat/1.png", "pictures/ant/2.png")
    (tmp_path / "pictures" / "felines").symlink_to("cat")
    with pytest.raises(
        DataError, match=r"pictures/(cat|felines) and .*pictures/(cat|felines) are one folder, by a link"
    ):
        find(tmp_path)


def test_a_link_to_a_folder_above_is_refused_rather_than_followed_for_ever(tmp_path):
    make(tmp_path, "pictures/cat/1.png", "pictures/ant/2.png")
    (tmp_path / "pictures" / "cat" / "up").symlink_to("..")
    with pytest.raises(DataError, match="are one folder, by a link"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["cat", "x.png", "itself"])
def test_a_link_to_nothing_is_refused_by_name(tmp_path, name):
    make(tmp_path, "pictures/ant/1.png", "pictures/ant/2.png")
    (tmp_path / "pictures" / name).symlink_to(name if name == "itself" else "/nowhere/cats")
    with pytest.raises(DataError, match=f"pictures/{name}.*(cannot be reached|symbolic links)"):
        find(tmp_path)


def test_an_account_is_given_up_beyond_a_limit(tmp_path):
    make(tmp_path / "pictures", *(f"{number}.png" for number in range(12)))
    assert len(scan(tmp_path / "pictures", limit=12).images) == 12
    with pytest.raises(TooManyFiles):
        scan(tmp_path / "pictures", limit=11)


@pytest.fixture
def as_nobody():
    """Return a folder that the present user may enter; root, whom no mode stops, becomes another user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        changed = os.geteuid() == 0

        def become():
            if changed:
                os.seteuid(65534)

        yield folder, become
        if changed:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o755)


def test_a_class_folder_that_may_not_be_read_is_refused_by_name(as_nobody):
    root, become = as_nobody
    make(root, "pictures/ant/1.png", "pictures/cat/2.png")
    (root / "pictures" / "cat").chmod(0o000)
    become()
    with pytest.raises(DataError, match="pictures/cat: cannot be read: Permission denied"):
        find(root)


def test_a_folder_below_one_that_may_not_be_entered_is_refused_by_name(as_nobody):
    root, become = as_nobody
    make(root, "closed/pictures/ant/1.png")
    (root / "closed").chmod(0o000)
    become()
    with pytest.raises(DataError, match="closed/pictures: cannot be read: Permission denied"):
        find(root, "closed/pictures")


def test_a_name_that_is_no_text_is_shown_escaped_in_one_line(tmp_path):
    make(tmp_path / "pictures", *(os.fsdecode(b"a\xff\n\x1b[2J/" + name) for name in (b"1.png", b"2.png")))
    text = describe(find(tmp_path).account())
    assert text.isprintable() and r"a\udcff\n\x1b[2J" in text
    assert shown(Path("plain/é.png")) == "plain/é.png"


# ---------------------------------------------------------------------------------------------------------- the layout


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        (("train", "val"), "path: pictures/train and test_path: pictures/val"),
        (("train", "validation", "test"), "path: pictures/train and test_path: pictures/"),
        (("Train2017", "val2017"), "path: pictures/Train2017 and test_path: pictures/val2017"),
        (("ILSVRC2012_img_train", "ILSVRC2012_img_val"), "path: pictures/ILSVRC2012_img_train"),
        (("training_set", "test_set"), "path: pictures/training_set and test_path: pictures/test_set"),
        (("train",), "path: pictures/train; or"),
        (("train", "val", "extra"), "path: pictures/train and test_path: pictures/val"),
        (("cat/train", "cat/test"), "path: pictures/cat/train and test_path: pictures/cat/test"),
    ],
)
def test_folders_that_look_like_splits_are_refused_with_what_to_write(tmp_path, folders, advice):
    make(tmp_path / "pictures", *(f"{folder}/{name}" for folder in folders for name in ("1.png", "2.png")))
    with pytest.raises(DataError, match="look like splits, not like classes") as caught:
        find(tmp_path)
    assert advice in str(caught.value)


@pytest.mark.parametrize("folders", [("train", "bus", "car"), ("test", "control"), ("training dogs", "testers")])
def test_a_class_may_be_called_like_a_split_beside_others(tmp_path, folders):
    make(tmp_path / "pictures", *(f"{folder}/1.png" for folder in folders))
    assert list(find(tmp_path).classes) == sorted(folders)


def test_images_both_at_the_top_and_in_folders_are_refused_with_what_to_do(tmp_path):
    make(tmp_path / "pictures", "cat/1.png", "ant/2.png", "preview.png")
    with pytest.raises(
        DataError, match=r"1 images at its top \(preview\.png, \.\.\.\) and 2 in folders.*move them all"
    ):
        find(tmp_path)


@pytest.mark.parametrize("names", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_class_folders_that_a_copy_to_another_disk_would_merge_are_refused(tmp_path, names):
    make(tmp_path / "pictures", *(f"{name}/1.png" for name in names))
    with pytest.raises(DataError, match="differ only in case or in the form of a letter"):
        find(tmp_path)


def test_hidden_folders_are_no_classes(tmp_path):
    make(tmp_path / "pictures", "cat/1.png", "ant/2.png", ".thumbnails/1.png", "__MACOSX/cat/1.png", "lost+found/x.png")
    assert list(find(tmp_path).classes) == ["ant", "cat"]


def test_too_few_images_are_said_with_what_was_ignored(tmp_path):
    make(tmp_path / "pictures", "1.png", "2.avif", "3.avif", "4.heic")
    with pytest.raises(DataError, match=r"has 1 images, needs 2 \(.*\); ignored: 2 \.avif, 1 \.heic"):
        find(tmp_path)
