"""Read one image file as square uint8 RGB, each of Pillow's modes converted on purpose and the others refused.

| mode | becomes RGB by |
|---|---|
| RGB, L | the same values |
| 1, P | their colours, before anything is scaled |
| LA, PA, RGBA, La, RGBa, and a colour marked transparent | composition over white |
| CMYK, YCbCr, HSV, RGBX | Pillow's conversion; colour profiles are not applied |
| I;16 (any byte order), I of a 16-bit PNG or PGM | values / 257, rounded; by the bits that a TIFF says it has |
| I otherwise, F, LAB, all others | refused: their range is not known |

The orientation that EXIF names is applied. Of a file with several frames none is chosen: it is refused, except a photo
of a phone (MPO), whose further frames are previews of the first.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.base import foreign_content
from harness.data.folder import shown
from harness.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

CONVERSIONS_VERSION = 2  # part of the key of cached images: raise it with any change to what an image becomes
BACKGROUND = (255, 255, 255, 255)
MOST_ELONGATED = 100  # longer side by shorter: beyond it a picture is a strip whose scaled copy would fill the memory

_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # tags of TIFF, the last of EXIF as well
_TURNS = {  # EXIF's orientation -> the name of Pillow's transposition that undoes it
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read_image(file: Path, image_size: int) -> np.ndarray:
    """Read an image file, scaled and cropped: uint8 [3, image_size, image_size].

    Raises:
        DataError: the file cannot be read, is damaged, or of a kind that is refused.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns of large images and of odd metadata without naming the file; what matters here is an error.
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            _require_proportions(image)
            _require_one_frame(image)
            return scale_and_crop(to_rgb(image), image_size)
    except DataError as error:
        raise DataError(f"{shown(file)}: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{shown(file)}: not a readable image: {_explain_content(file)}") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{shown(file)}: not a readable image: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which may "
            "be an attack; scale it down first"
        ) from error
    except OSError as error:
        problem = error.strerror or str(error)
        raise DataError(f"{shown(file)}: not a readable image: {shown(problem)}") from error
    except Exception as error:  # Pillow's readers fail on damaged files in every way there is
        raise DataError(
            f"{shown(file)}: not a readable image: damaged ({type(error).__name__}: {shown(error)})"
        ) from error


def _explain_content(file: Path) -> str:
    with file.open("rb") as opened:
        head = opened.read(512)
    return foreign_content(head) or "of no format that Pillow knows"


def _require_proportions(image: Image.Image) -> None:
    if min(image.size) < 1 or max(image.size) > MOST_ELONGATED * min(image.size):
        raise DataError(f"{image.size[0]}x{image.size[1]} pixels: no picture, or a strip; crop it first")


def _require_one_frame(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(f"holds {frames} frames, and which one is meant is not known: save that one as its own file")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB by the table above, upright.

    Raises:
        DataError: a mode that is not in the table.
    """
    from PIL import Image

    image.load()
    orientation = image.getexif().get(_ORIENTATION)
    converted = _to_rgb(image)
    if orientation in _TURNS:
        return converted.transpose(Image.Transpose[_TURNS[orientation]])
    return converted


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_sixteen_bits(image)
    if image.mode in _TRANSPARENT or (image.mode in _PLAIN and "transparency" in image.info):
        return _over_background(image)
    if image.mode in _PLAIN:
        return image if image.mode == "RGB" else image.convert("RGB")
    raise DataError(
        f"its pixels are of Pillow's mode {image.mode}, whose range is not known: convert it to 8-bit RGB or grey"
    )


def _over_background(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "La":  # alpha already multiplied in: Pillow converts it in two steps only
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, BACKGROUND), rgba).convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    from PIL import Image

    tags: Any = getattr(image, "tag_v2", {})
    bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    highest = 2**bits - 1
    values = np.asarray(image).astype(np.int64)
    if not 0 <= values.min() <= values.max() <= highest:
        raise DataError(f"its grey values are {values.min()} .. {values.max()}, but {bits} bits hold 0 .. {highest}")
    grey = (values * 255 + highest // 2) // highest
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        grey = 255 - grey
    if (transparent := image.info.get("transparency")) is not None:
        grey = np.where(values == transparent, BACKGROUND[0], grey)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def scale_and_crop(image: Image.Image, image_size: int) -> np.ndarray:
    """Halve by box averages while twice too large, scale the short side bicubically, crop the centre: uint8 [3, H, W].

    The steps are those of improved-diffusion's image_datasets.py.

    Args:
        image: in RGB.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * image_size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), resample=Resampling.BOX)
    scale = image_size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), resample=Resampling.BICUBIC))  # [H, W, 3]
    top, left = (height - image_size) // 2, (width - image_size) // 2
    return pixels[top : top + image_size, left : left + image_size].transpose(2, 0, 1)
