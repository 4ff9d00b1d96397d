"""Picture files: whatever people bring, read as a viewer would show it."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from emo_cli.errors import EmoError

SMALLEST, LARGEST = 64, 10_000  # px, either side of a picture
# Only formats that Pillow decodes by itself: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
TOO_LARGE = f"Save it with at most {LARGEST:,} px on each side."
BACKDROP = 128  # grey behind transparent pixels, as a studio's wall
# What Pillow's decoders raise on damaged files.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
)


def read_picture(path: Path) -> np.ndarray:
    """A picture file as a viewer shows it: uint8 RGB [H, W, 3], sRGB, transparency over grey.

    Raises: EmoError when it is missing, empty, damaged, no picture, or its sides are not in
    64..10,000 px.
    """
    _check_file(path)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # builds of Pillow differ
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on; our own limit is checked before decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                _check_size(image, path.name)
                image.load()
                return _as_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError as error:
        raise EmoError(
            f"{path.name} is not a picture that emo can read",
            "Save it as JPEG, PNG or WebP.",
        ) from error
    except Image.DecompressionBombError as error:
        raise EmoError(f"{path.name} unpacks to too many pixels", TOO_LARGE) from error
    except MemoryError as error:
        raise EmoError(
            f"{path.name} needs more memory than there is", "Save it smaller: 2,000 px will do."
        ) from error
    except UNREADABLE as error:
        raise EmoError(
            f"{path.name} cannot be read as a picture: {error}",
            "It seems damaged or cut short: save or copy it again.",
        ) from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise EmoError(f"portrait {path} does not exist", "Check the path.")
    if not path.is_file():
        raise EmoError(f"portrait {path} is not a file", "Give one picture file.")
    if path.stat().st_size == 0:
        raise EmoError(f"portrait {path} is empty", "Save or copy the picture again.")


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise EmoError(
            f"{name} is {width}x{height} px: too small", f"It needs {SMALLEST} px on each side."
        )
    if max(width, height) > LARGEST:
        raise EmoError(f"{name} is {width}x{height} px: too large", TOO_LARGE)


def _as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(np.asarray(image))
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (BACKDROP, BACKDROP, BACKDROP, 255))
        image = Image.alpha_composite(backdrop, image).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _to_srgb(image, profile)
    return np.array(image.convert("RGB"))


def _from_deep_grey(grey: np.ndarray) -> np.ndarray:
    """16-bit grey [H, W] as RGB; Pillow itself reads 16-bit colour as 8-bit."""
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise EmoError(
            "the picture has more than 16 bits a pixel", "Save it as an 8- or 16-bit PNG."
        )
    scaled = (grey.astype(np.float32) / 257.0).round().astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=2)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    # Phones save in Display P3, printers' CMYK differs by press: without the profile skin shifts.
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image  # as viewers do: a broken or foreign profile is ignored
    return converted or image
