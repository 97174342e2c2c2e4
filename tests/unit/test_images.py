"""Every kind of picture becomes upright RGB, and everything else is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from graft import images

RED = (250, 10, 20)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_grey_becomes_three_equal_channels() -> None:
    pixels = images.decode(encode(Image.new("L", (4, 3), 77)))
    assert pixels.shape == (3, 4, 3)
    assert (pixels == 77).all()


def test_palette_keeps_its_colours() -> None:
    palette = Image.new("RGB", (4, 4), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (images.decode(encode(palette)) == RED).all()


def test_transparency_is_laid_on_white() -> None:
    pixels = images.decode(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 0))))
    assert (pixels == 255).all()


def test_cmyk_becomes_rgb() -> None:
    pixels = images.decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert pixels[4, 4, 0] > 200
    assert pixels[4, 4, 1] < 60


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 256, 32768, 65535]], np.uint16)
    pixels = images.decode(encode(Image.fromarray(ramp)))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_turns_the_picture_upright() -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 0))
    image.paste(RED, (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left when shown as stored
    pixels = images.decode(encode(image, "PNG", exif=exif))
    assert pixels.shape == (8, 4, 3)
    assert pixels[0, 0].tolist() == list(RED)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (images.decode(data) == RED).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am no picture", "not a picture"),
        (encode(Image.new("RGB", (64, 64), RED), "JPEG")[:200], "broken picture"),
        (encode(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(images.UnreadableImage, match=reason):
        images.decode(data)


def test_a_decompression_bomb_is_refused_before_its_pixels_are_made() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # A PNG (RFC 2083) that promises 20,000 × 20,000 grey pixels and holds none of them.
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(images.UnreadableImage, match="pixels"):
        images.decode(bomb)


def test_resizing_to_the_same_size_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert images.resize(pixels, 32) is pixels
    assert images.resize(pixels, 16).shape == (16, 16, 3)
