"""Image files of every format, mode, transparency and orientation, checked pixel by pixel against Pillow."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from image_files import FORMATS, HEIGHT, MODES, TOLERANCE, WIDTH, drawn, shown, written
from PIL import Image, TiffImagePlugin

from hwr_ray.images.decode import UndecodableImageError, decode


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_every_file_is_what_pillow_shows_upright_over_white(kind, mode):
    made = 0
    for transparency in (None, "alpha", "colour"):
        for orientation in range(9):
            data = written(kind, mode, transparency, orientation)
            if data is None:
                continue
            made += 1
            expected, found = shown(data), decode(data)
            assert found.shape == expected.shape, (transparency, orientation)
            difference = np.abs(found.astype(int) - expected).max()
            assert difference <= TOLERANCE.get(kind, 1), (transparency, orientation)
    if mode in ("L", "RGB"):
        assert made >= 9


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK")]
)
@pytest.mark.parametrize("tail", ["film", "another", "zeros", "markers"])
def test_what_follows_the_end_of_an_image_is_not_its_concern(kind, mode, tail):
    data = written(kind, mode, None, 0)
    rng = np.random.default_rng(0)
    tails = {"film": b"\0\0\0\x18ftypmp42" + rng.bytes(50_000), "another": data, "zeros": bytes(5000)}
    tails["markers"] = b"\xff\xda\xff\xd8\xff\xc0" * 100
    assert np.array_equal(decode(data + tails[tail]), decode(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_cut_off_in_front_of_a_film_is_truncated(progressive):
    buffer = io.BytesIO()
    drawn().resize((320, 48)).save(buffer, "JPEG", progressive=progressive, quality=95)
    data = buffer.getvalue()
    for percent in (30, 60, 90, 99):
        with pytest.raises(UndecodableImageError, match=r"truncated|damaged|not an image"):
            decode(data[: len(data) * percent // 100])


def test_the_main_image_of_several_is_read(tmp_path):
    main, other = drawn(0), drawn(1)
    for kind, options in (("MPO", {}), ("TIFF", {"reduced": True})):
        path = tmp_path / f"a.{kind}"
        if options:
            small = other.resize((WIDTH // 2, HEIGHT // 2))
            info = TiffImagePlugin.ImageFileDirectory_v2()
            info[254] = 1
            small.encoderinfo = {"tiffinfo": info}
            main.copy().save(path, "TIFF", save_all=True, append_images=[small])
        else:
            main.copy().save(path, "MPO", save_all=True, append_images=[other], quality=95)
        found = decode(path.read_bytes())
        assert np.abs(found.astype(int) - np.asarray(main.convert("L"))).max() <= 12
    for kind in ("TIFF", "GIF", "PNG", "WEBP"):
        path = tmp_path / f"b.{kind}"
        main.copy().save(path, kind, save_all=True, append_images=[other.copy()])
        with pytest.raises(UndecodableImageError, match="contains 2 images"):
            decode(path.read_bytes())


def test_a_bmp_whose_fourth_byte_is_unused_has_no_transparency():
    pixels = np.asarray(drawn())[::-1, :, ::-1]  # bottom up, BGR
    body = np.dstack([pixels, np.zeros((HEIGHT, WIDTH), np.uint8)]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, WIDTH, HEIGHT, 1, 32, 3, len(body), 0, 0, 0, 0) + masks + bytes(52)
    data = struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    assert np.abs(decode(data).astype(int) - np.asarray(drawn().convert("L"))).max() <= 1


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_12_bits_in_16_are_stretched(kind):
    grey = np.asarray(drawn().convert("L"))
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 16).save(buffer, kind)
    assert np.array_equal(decode(buffer.getvalue()), grey)


def test_a_tiff_of_16_bits_whose_white_is_zero_is_turned():
    grey = np.asarray(drawn().convert("L"))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    buffer = io.BytesIO()
    Image.fromarray(65_535 - grey.astype(np.uint16) * 257).save(buffer, "TIFF", tiffinfo=info)
    assert Image.open(io.BytesIO(buffer.getvalue())).tag_v2[262] == 0
    assert np.array_equal(decode(buffer.getvalue()), grey)


def test_a_heic_file_is_named_with_its_remedy():
    with pytest.raises(UndecodableImageError, match="HEIC file: convert it to JPEG or PNG"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


def test_a_format_that_starts_a_program_is_not_opened():
    buffer = io.BytesIO()
    drawn().save(buffer, "EPS")
    with pytest.raises(UndecodableImageError, match="not an image"):
        decode(buffer.getvalue())


def test_a_png_whose_header_lies_about_its_size_is_damaged():
    data = bytearray(written("PNG", "L", None, 0))
    data[16:24] = struct.pack(">II", WIDTH // 2, HEIGHT)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with suppress(UndecodableImageError):
        assert decode(bytes(data)).shape == (HEIGHT, WIDTH // 2)
