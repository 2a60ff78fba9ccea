"""Images, folders of images and files of weights, damaged or odd by a seed: used rightly, or refused by their name.

No file is lost without a word (seen = used + ignored, else the whole folder is refused), nothing is executed, nothing
is written elsewhere, no message is somebody else's advice. HARNESS_FUZZ_CASES sets the number of cases of each kind.
"""

import io
import os
import pickle
import random
import shutil
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.folder import SUFFIXES, SYSTEM_FOLDERS, contents, describe, shown
from harness.data.image_folder import image_folder
from harness.data.pixels import read_image
from harness.errors import DataError
from harness.metrics.weights import read_state_dict

CASES = int(os.environ.get("HARNESS_FUZZ_CASES", "1000"))
SIZE = 8


def refusal(error, path):
    """Hold a refusal to its form: each line names a path, is printable and short, and is in our own words."""
    lines = str(error).split("\n")
    for line in lines:
        assert shown(path) in line, line
        assert line.isprintable() and len(line) < 1000, repr(line)
        assert not any(word in line for word in ("weights_only", "torch.load", "Traceback", "LOAD_TRUNCATED")), line
    return lines


# -------------------------------------------------------------------------------------------------------------- images


def encoded_images():
    """Return files of every kind that a folder may hold: (suffix, content)."""
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(256, size=(20, 14, 3), dtype=np.uint8))
    sixteen = Image.fromarray(draw.integers(65536, size=(9, 9), dtype=np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    transparent = colour.convert("RGBA")
    transparent.putalpha(100)
    kinds = [
        *((suffix, colour, {}) for suffix in ("png", "jpg", "bmp", "gif", "tif", "webp", "ppm")),
        ("jpg", colour, {"exif": exif}),
        ("jpg", colour.convert("CMYK"), {}),
        ("jpg", colour.convert("L"), {"progressive": True}),
        ("png", sixteen, {}),
        ("tif", sixteen, {"compression": "tiff_lzw"}),
        ("png", transparent, {}),
        ("png", colour.quantize(7), {"transparency": 2}),
        ("png", colour.convert("1"), {}),
        ("png", colour.convert("LA"), {"exif": exif}),
        ("tif", colour.convert("F"), {}),
        ("tif", colour.convert("LAB"), {}),
        ("gif", colour, {"save_all": True, "append_images": [colour.rotate(90)]}),
        ("png", colour, {"save_all": True, "append_images": [colour.rotate(90)]}),
        ("png", Image.new("RGB", (1, 1)), {}),
        ("bmp", Image.new("L", (300, 2)), {}),
    ]
    files = []
    for suffix, image, options in kinds:
        content = io.BytesIO()
        image.save(content, {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}.get(suffix, suffix.upper()), **options)
        files.append((suffix, content.getvalue()))
    return [*files, ("png", b""), ("jpg", b"<html>404</html>"), ("gif", b"version https://git-lfs.github.com/spec/v1")]


def damaged(rng, content):
    """Return content with up to three damages; sometimes none."""
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        data = bytearray(content)
        at, length = rng.randrange(len(data) + 1), rng.randrange(1, 40)
        match rng.randrange(8):
            case 0:
                data = data[:at]
            case 1:
                data[at : at + length] = rng.randbytes(length)
            case 2:
                for _ in range(rng.randrange(1, 6)):
                    if data:
                        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = bytes(length)
            case 5:
                data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x01\x00\x00", b"\x00\x00\x00\x00"))
            case 6:
                data += rng.randbytes(length)
            case 7:
                data = _with_right_checksums(data, rng)
        content = bytes(data)
    return content


def _with_right_checksums(data, rng):
    """Change a byte within a chunk of a PNG and mend the chunk's checksum, so that the reader goes on."""
    if not data.startswith(b"\x89PNG"):
        return data
    at, chunks = 8, []
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((at, length))
        at += 12 + length
    start, length = rng.choice(chunks) if chunks else (0, 0)
    if not length or start + 12 + length > len(data):
        return data
    data[start + 8 + rng.randrange(length)] = rng.randrange(256)
    data[start + 8 + length : start + 12 + length] = zlib.crc32(data[start + 4 : start + 8 + length]).to_bytes(4, "big")
    return data


def fuzz_images(folder, cases):
    """Read that many images; return how many were used and how many refused."""
    files, counts = encoded_images(), {"used": 0, "refused": 0}
    for case in range(cases):
        rng = random.Random(case)
        suffix, content = rng.choice(files)
        path = folder / f"image.{rng.choice((suffix, suffix, 'png', 'tif'))}"
        path.write_bytes(damaged(rng, content))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                pixels = read_image(path, SIZE)
            except DataError as error:
                refusal(error, path)
                counts["refused"] += 1
            else:
                assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == np.uint8, case
                counts["used"] += 1
        assert warned == [], (case, [str(warning.message) for warning in warned])
        path.unlink()
    return counts


# ------------------------------------------------------------------------------------------------------------- folders

NAMES = (
    "cat",
    "ant",
    "Cat",
    "train",
    "val",
    "test",
    ".git",
    "@eaDir",
    "x.png",
    "caf\u00e9",
    "cafe\u0301",
    "a b",
    "%20",
)
FILES = (
    *("1.png", "2.jpg", "cat_1.png", "ant_2.PNG", "3.webp", "4.tif", "5.bmp", "6.gif", "7.jpeg", "8.ppm"),
    *("notes.txt", "x.npy", "noext", ".hidden.png", "._1.png", "Thumbs.db", "-rf.png", "*.png", "a\nb.png", "~.png"),
    os.fsdecode(b"\xff\xfe.png"),
)


def grow_tidily(rng, folder):
    """Make a flat folder, or class folders, with files of all kinds in them."""
    places = [folder] if rng.random() < 0.5 else [folder / name for name in ("cat", "x.png", "a b", "%20", "caf\u00e9")]
    for place in places:
        place.mkdir(exist_ok=True)
        for name in rng.sample(FILES, rng.randrange(1, 12)):
            (place / name).touch()
    if len(places) > 1:
        (folder / "notes.txt").touch()
        elsewhere = folder.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / "1.png").touch()
        (folder / "linked").symlink_to(elsewhere)


def grow_wildly(rng, folder, depth=0):
    """Make a random tree of empty files, folders and links."""
    for _ in range(rng.choice((0, 2, 5, 9) if depth else (3, 6, 12))):
        kind = rng.random()
        if kind < 0.3 and depth < 3:
            below = folder / rng.choice(NAMES)
            if not below.exists():
                below.mkdir()
                grow_wildly(rng, below, depth + 1)
        elif kind < 0.36:
            link = folder / f"link{rng.choice(('', '.png', '_1.jpg'))}"
            if not os.path.lexists(link):
                link.symlink_to(
                    rng.choice(("..", ".", "cat", "nothing", "1.png", "/nowhere", folder.anchor + "dev/null"))
                )
        elif kind < 0.38 and not os.path.lexists(folder / "pipe.png"):
            os.mkfifo(folder / "pipe.png")
        elif not os.path.lexists(path := folder / rng.choice(FILES)):
            path.touch()


def expected(folder, seen=()):
    """Return (images, other entries) below a folder, by another walk than the harness's own."""
    images, others = [], 0
    for entry in sorted(folder.iterdir()):
        hidden = entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS
        if hidden and entry.is_dir() and not entry.is_symlink():
            others += sum(len(files) for _, _, files in os.walk(entry))
        elif entry.is_dir() and not hidden:
            assert entry.resolve() not in seen, "a folder that is reached twice must be refused"
            below = expected(entry, (*seen, folder.resolve()))
            images, others = images + below[0], others + below[1]
        elif entry.is_file() and not hidden and entry.suffix.lower() in SUFFIXES:
            images.append(entry)
        else:
            others += 1
    return images, others


def fuzz_folders(root, cases):
    """Account for that many folders; return how many were used and how many refused."""
    counts = {"used": 0, "refused": 0}
    for case in range(cases):
        rng, folder = random.Random(case), root / "pictures"
        folder.mkdir()
        rng.choice((grow_tidily, grow_wildly))(rng, folder)
        options = {"test_fraction": rng.choice((0.1, 0.5, 0.9)), "seed": rng.randrange(3)}
        try:
            found = contents(root, "pictures", **options)
        except DataError as error:
            refusal(error, folder)
            counts["refused"] += 1
        else:
            images, others = expected(folder)
            account = found.account()
            assert sorted([*found.train, *found.test]) == sorted(images), case
            assert account["used"] == len(images) and account["num_ignored"] == others, case
            assert account["seen"] == account["used"] + account["num_ignored"], case
            assert sum(account["classes"].values()) in (0, len(images)), case
            assert describe(account).isprintable(), case
            _require_stable(root, found, options, case)
            counts["used"] += 1
        shutil.rmtree(folder)
    return counts


def _require_stable(root, found, options, case):
    """Add an image beside another, and assert that no other moves."""
    if found.note:
        return
    new = found.train[0].with_name("zz_new.png")
    new.touch()
    later = contents(root, "pictures", **options)
    new.unlink()  # also where it lies in a linked folder, which stays
    assert {*later.train} - {new} == {*found.train} and {*later.test} - {new} == {*found.test}, case


# ------------------------------------------------------------------------------------------------------------- weights

SHAPES = {"conv.weight": (4, 3), "conv.bias": (4,), "norm.num_batches_tracked": ()}


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def weight_files(marker):
    """Return (content, whether it is a good file, whether it has checksums) of files of weights and of other things."""
    state = {
        "conv.weight": torch.arange(12.0).view(4, 3),
        "conv.bias": torch.ones(4),
        "norm.num_batches_tracked": torch.tensor(3),
    }
    contents_ = [
        (state, True),
        ({f"module.{name}": value for name, value in state.items()}, True),
        (state | {"conv.bias": torch.tensor([1.0, torch.nan, 2.0, torch.inf])}, False),
        (state | {"conv.bias": torch.ones(5)}, False),
        ({"conv.weight": state["conv.weight"]}, False),
        ({"state_dict": state, "epoch": 3}, False),
        ([1, 2, 3], False),
        (None, False),
        (state | {"conv.bias": Attack(marker)}, False),
    ]
    files = []
    for content, good in contents_:
        for new_format in (True, False):
            packed = io.BytesIO()
            torch.save(content, packed, _use_new_zipfile_serialization=new_format)
            files.append((packed.getvalue(), good, new_format))
    others = (b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04", b"\x80\x02}.")
    return [*files, *((content, False, False) for content in (*others, pickle.dumps(Attack(marker))))]


def fuzz_weights(folder, cases):
    """Read that many files of weights; return how many were used and how many refused."""
    marker, counts = folder.parent / "attacked", {"used": 0, "refused": 0}
    files, path = weight_files(str(marker)), folder / "weights.pth"
    reference = torch.arange(12.0).view(4, 3)
    for case in range(cases):
        rng = random.Random(case)
        content, good, has_checksums = rng.choice((*files, *files[:4] * 3))
        path.write_bytes(damaged(rng, content))
        intact = path.read_bytes() == content
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                state = read_state_dict(path, SHAPES)
            except DataError as error:
                refusal(error, path)
                assert not (good and intact), case
                counts["refused"] += 1
            else:
                assert all(tuple(value.shape) == SHAPES[name] for name, value in state.items()), case
                assert all(value.isfinite().all() for value in state.values()), case
                if has_checksums:
                    assert torch.equal(state["conv.weight"].float(), reference), case
                counts["used"] += 1
        assert warned == [], (case, [str(warning.message) for warning in warned])
        assert not marker.exists(), case
    return counts


FUZZERS = {"images": fuzz_images, "folders": fuzz_folders, "weights": fuzz_weights}


def fuzz(kind, tmp_path, cases, writes_only_below):
    home = tmp_path / "home"
    home.mkdir()
    with writes_only_below(home):
        counts = FUZZERS[kind](home, cases)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert sum(counts.values()) == cases
    print(f"{cases} {kind}: {counts['used']} used, {counts['refused']} refused", file=sys.stderr)
    return counts


@pytest.mark.parametrize("kind", FUZZERS)
def test_some_damaged_or_odd_files_are_used_rightly_or_refused_by_their_name(kind, tmp_path, writes_only_below):
    counts = fuzz(kind, tmp_path, 60, writes_only_below)
    assert min(counts.values()) > 5  # the damage is neither harmless nor total


@pytest.mark.slow
@pytest.mark.parametrize("kind", FUZZERS)
def test_thousands_of_damaged_or_odd_files_are_used_rightly_or_refused_by_their_name(kind, tmp_path, writes_only_below):
    counts = fuzz(kind, tmp_path, CASES, writes_only_below)
    assert min(counts.values()) > CASES // 20


def test_a_folder_of_damaged_images_is_refused_whole_with_each_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    files, bad = encoded_images(), []
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (suffix, content) in enumerate(files):
        path = folder / f"{number:02}.{suffix}"
        path.write_bytes(content)
        try:
            read_image(path, SIZE)
        except DataError:
            bad.append(path)
    assert 5 < len(bad) < 10
    with pytest.raises(DataError) as caught:
        image_folder(str(tmp_path), path="pictures", image_size=SIZE)
    lines = refusal(caught.value, folder)
    assert sorted(line.partition(": ")[0] for line in lines) == [str(path) for path in bad]
    for path in bad:
        path.unlink()
    dataset = image_folder(str(tmp_path), path="pictures", image_size=SIZE)
    assert len(dataset.train) + len(dataset.test) == len(files) - len(bad) == dataset.account["used"]
    assert not list((tmp_path / "cache" / "image_folder").glob(".*"))
