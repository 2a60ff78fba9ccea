"""What each kind of image file becomes, against values computed here; what is not known is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from harness.data.pixels import read_image, scale_and_crop, to_rgb
from harness.errors import DataError

SIZE = 8


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    def write(image, name="x.png", **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return write


def as_read_before(path, image_size):
    """Scale first and convert last, as for RGB and grey it was always done."""
    image = Image.open(path)
    while min(image.size) >= 2 * image_size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.BOX)
    scale = image_size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), resample=Image.BICUBIC).convert("RGB"))
    top, left = (height - image_size) // 2, (width - image_size) // 2
    return pixels[top : top + image_size, left : left + image_size].transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (20, 12), (70, 36), (5, 31)])
def test_colour_and_grey_images_keep_the_bits_that_they_always_had(save, draw, channels, size):
    pixels = draw.integers(256, size=(size[1], size[0], channels), dtype=np.uint8)
    path = save(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels))
    assert np.array_equal(read_image(path, SIZE), as_read_before(path, SIZE))


@pytest.mark.parametrize(("name", "dtype"), [("x.png", "<u2"), ("x.tif", "<u2"), ("x.tif", ">u2"), ("x.pgm", "<u2")])
def test_sixteen_bit_greys_are_scaled_not_clipped(save, draw, name, dtype):
    values = draw.integers(65536, size=(SIZE, SIZE), dtype=np.uint16)
    values[0, :3] = (0, 255, 65535)
    path = save(Image.fromarray(values.astype(dtype)), name)
    assert Image.open(path).mode in ("I;16", "I;16B", "I")
    grey = read_image(path, SIZE)[0]
    assert np.array_equal(grey, np.round(values / 257))
    assert grey[0, :3].tolist() == [0, 1, 255]


def test_a_tiff_whose_white_is_zero_is_turned_round_in_eight_and_in_sixteen_bits(save, draw):
    values = draw.integers(256, size=(SIZE, SIZE), dtype=np.uint8)
    eight = read_image(save(Image.fromarray(255 - values), "8.tif", tiffinfo={262: 0}), SIZE)
    sixteen = read_image(save(Image.fromarray(values.astype(np.uint16) * 257), "16.tif", tiffinfo={262: 0}), SIZE)
    assert np.array_equal(sixteen[0], 255 - values)
    assert np.array_equal(eight[0], 255 - values) or np.array_equal(eight[0], values)  # as Pillow wrote the eight


def test_twelve_bits_are_scaled_by_twelve_bits(tmp_path):
    pixels = bytes([0xFF, 0xF0, 0x00]) * (SIZE * SIZE // 2)  # 4095 and 0 in turn, packed
    tags = {256: SIZE, 257: SIZE, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: SIZE, 279: len(pixels)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4  # where the pixels start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + pixels)
    assert Image.open(path).mode == "I;16"
    assert read_image(path, SIZE)[0, 0].tolist() == [255, 0] * (SIZE // 2)


def test_palettes_and_black_and_white_are_scaled_as_colours_not_by_the_nearest_entry(save, draw):
    colours = Image.fromarray(draw.integers(256, size=(32, 32, 3), dtype=np.uint8)).quantize(16)
    black_and_white = Image.fromarray(draw.integers(2, size=(32, 32)).astype(bool))
    for image in (colours, black_and_white):
        path = save(image)
        assert Image.open(path).mode in ("P", "1")
        assert np.array_equal(read_image(path, SIZE), scale_and_crop(image.convert("RGB"), SIZE))
    assert len(np.unique(read_image(path, SIZE))) > 2  # averages of black and white are greys


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white_at_any_size_not_what_is_hidden_under_them(save, draw, mode):
    for size in (SIZE, 4 * SIZE):
        noise = draw.integers(256, size=(size, size, 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert("L" if mode == "LA" else "RGB")
        image.putalpha(0)
        path = save(image)
        assert Image.open(path).mode == mode
        assert np.unique(read_image(path, SIZE)).tolist() == [255]
        image.putalpha(255)
        plain = scale_and_crop(image.convert("RGB"), SIZE)
        assert np.array_equal(read_image(save(image), SIZE), plain)


def test_half_transparent_black_is_grey(save):
    path = save(Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 128)))
    assert np.unique(read_image(path, SIZE)).tolist() == [127]


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (1, 2, 3)), ("1", 1), ("I;16", 700), ("P", 5)])
def test_a_colour_that_is_marked_transparent_shows_white(save, mode, colour):
    image = Image.new(mode, (SIZE, SIZE), colour)
    if mode == "P":
        image.putpalette([number // 3 for number in range(768)])
    path = save(image, transparency=colour)
    assert "transparency" in Image.open(path).info
    assert np.unique(read_image(path, SIZE)).tolist() == [255]


def test_print_and_video_colours_become_rgb(save, draw):
    pixels = np.kron(draw.integers(256, size=(2, 2, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    image = Image.fromarray(pixels)
    for mode in ("CMYK", "YCbCr"):
        read = read_image(save(image.convert(mode), "x.tif"), SIZE)
        assert np.abs(read.astype(int) - pixels.transpose(2, 0, 1)).max() <= 2


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_of_unknown_range_are_refused_by_name(save, mode):
    path = save(Image.new(mode, (SIZE, SIZE)), "odd.tif")
    with pytest.raises(DataError, match=rf"{path}: its pixels are of Pillow's mode {mode}, whose range is not known"):
        read_image(path, SIZE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_orientation_of_exif_is_applied(save, orientation, suffix):
    upright = np.full((16, 24, 3), 255, np.uint8)
    upright[:8, :8] = 0  # a black corner, top left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = save(Image.fromarray(np.ascontiguousarray(stored)), f"x.{suffix}", exif=exif, quality=95)
    with Image.open(path) as image:
        turned = np.asarray(to_rgb(image))
    assert turned.shape == upright.shape
    assert np.abs(turned.astype(int) - upright).max() < 60  # what JPEG and WebP lose


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.tif", "x.webp"])
def test_a_file_of_several_frames_is_refused_by_name(save, draw, name):
    frames = [Image.fromarray(draw.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(3)]
    path = save(frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"{path}: holds 3 frames, and which one is meant is not known"):
        read_image(path, SIZE)
    assert read_image(save(frames[0], name), SIZE).shape == (3, SIZE, SIZE)


def test_a_phones_photo_with_a_preview_is_its_first_frame(save):
    photo, preview = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    path = save(photo, "x.jpg", format="MPO", save_all=True, append_images=[preview])
    assert Image.open(path).n_frames == 2
    assert read_image(path, SIZE)[0].min() > 240


def png_of(width, height):
    """Return a PNG that says it has so many pixels, with hardly any content."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"0")]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def truncated(path):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(data, "PNG")
    path.write_bytes(data.getvalue()[:3000])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable image: the file is empty"),
        (b"\0" * 100, "not a readable image: nothing but zeros"),
        (b"hello", "not a readable image: of no format that Pillow knows"),
        (b"\n<!DOCTYPE html><title>404</title>", "not a readable image: a web page, perhaps of a failed download"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a readable image: a git-lfs pointer"),
        (png_of(60_000, 60_000), "not a readable image: more than .* pixels, which may be an attack"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "not a readable image: "),
        (png_of(0, 5), "not a readable image: "),
    ],
)
def test_what_is_no_image_is_refused_by_name_with_what_it_is(tmp_path, content, words):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path}: {words}"):
        read_image(path, SIZE)


def test_a_truncated_image_and_one_that_may_not_be_read_are_refused_by_name(tmp_path):
    path = tmp_path / "bad.png"
    truncated(path)
    with pytest.raises(DataError, match=rf"^{path}: not a readable image: .*truncated"):
        read_image(path, SIZE)
    with pytest.raises(DataError, match=rf"^{tmp_path}: not a readable image: Is a directory"):
        read_image(tmp_path, SIZE)


@pytest.mark.parametrize("size", [(4000, 3), (1, 101)])
def test_a_strip_whose_scaled_copy_would_fill_the_memory_is_refused(save, size):
    with pytest.raises(DataError, match=rf"{size[0]}x{size[1]} pixels: no picture, or a strip"):
        read_image(save(Image.new("L", size)), SIZE)
