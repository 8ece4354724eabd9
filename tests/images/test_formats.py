"""Image files of every format, mode, transparency and orientation, checked pixel by pixel against Pillow."""

import io
import struct
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from hwr_ray.images.lines import UndecodableImageError, decode

HEIGHT, WIDTH = 20, 32
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16")
TOLERANCE = {"JPEG": 12, "AVIF": 12}
"""Largest difference of a pixel: two decoders round lossy colours differently."""


def drawn(seed: int = 0) -> Image.Image:
    """Returns an RGB image that no orientation maps to itself, smooth enough for lossy formats."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(drawn().convert("L")).astype(np.uint16) * 257)
    if mode == "P":
        return drawn().quantize(16)
    return (drawn().convert("RGBA") if mode == "PA" else drawn()).convert(mode)


def written(kind: str, mode: str, transparency: str | None, orientation: int) -> bytes | None:
    """Returns an image file, or None if Pillow does not write such a one."""
    image, options = in_mode(mode), {}
    if transparency == "alpha":
        if "A" not in image.getbands():
            return None
        image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)))
    if transparency == "colour":
        if mode not in ("P", "L", "RGB"):
            return None
        options["transparency"] = image.getpixel((0, 0))
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    except (OSError, ValueError, KeyError):
        return None
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    """Returns what Pillow shows of a file over white paper."""
    image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    image = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return np.asarray(paper.convert("L"))


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


def test_damaged_files_of_every_format_are_read_as_pillow_does_or_not_at_all():
    rng = np.random.default_rng(0)
    for kind in FORMATS:
        for mode in ("L", "RGB", "RGBA"):
            whole = written(kind, mode, None, int(rng.integers(9)))
            if whole is None:
                continue
            for _ in range(40):
                data = bytearray(whole)
                for position in rng.integers(0, len(data), rng.integers(1, 4)):
                    data[position] = rng.integers(256)
                if rng.random() < 0.3:
                    data = data[: rng.integers(1, len(data))]
                try:
                    found = decode(bytes(data))
                except UndecodableImageError:
                    continue
                assert found.dtype == np.uint8 and found.ndim == 2
                if kind in TOLERANCE:
                    continue  # decoders conceal damage in lossy data in their own ways
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        expected = shown(bytes(data))
                except Exception:  # noqa: S112 - Pillow does not show it
                    continue
                assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1, kind
