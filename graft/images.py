"""One picture: bytes of any common format in, upright RGB pixels out.

Training and serving decode and resize here, so that both see the same pixels.
"""

from __future__ import annotations

import io
from pathlib import PurePath

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})

# Above any camera's resolution, far below what fills a machine's memory (3 bytes a pixel).
MAX_PIXELS = 120_000_000
MAX_BYTES = 128 * 2**20


class UnreadableImage(ValueError):  # noqa: N818 - a state of the file, named like Pillow's UnidentifiedImageError
    """The bytes are no picture that can be used; the message says why."""


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is meant to be a picture (by its suffix; hidden files are not)."""
    path = PurePath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a picture to height × width × 3 uint8 RGB, upright as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is laid on white; of an animation
    the first frame is taken.

    Raises:
        UnreadableImage: empty, truncated, not a picture, of a kind not supported, or over `max_pixels`.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImage(f"{width}×{height} pixels, more than {max_pixels} allowed")
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {max_pixels} pixels") from None
    except Exception as error:  # Pillow's decoders raise almost anything on broken bytes
        raise UnreadableImage(f"broken picture ({str(error) or type(error).__name__})") from error


def resize(pixels: Pixels, size: int) -> Pixels:
    """Scale to `size` × `size` × 3 with antialiased bilinear sampling; the aspect ratio is not kept."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Scientific and 16-bit PNG or TIFF: convert() would clip everything above 255.
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnreadableImage("values outside 16 bits")
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, which have no defined white")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")
