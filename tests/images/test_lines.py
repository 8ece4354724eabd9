"""Tests of the path from image files to images on the canvas, with good, unusual and damaged files."""

import errno
import gzip
import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from hwr_ray.errors import UserError
from hwr_ray.images import reader
from hwr_ray.images.decode import UndecodableImageError, decode
from hwr_ray.images.lines import SAMPLED_EVERY, Canvas, encode_png, fit, fit_with_levels, resized
from hwr_ray.images.reader import lines_of, read_files


@pytest.fixture
def picture(draw_text) -> np.ndarray:
    return draw_text("ANNA", height=40, width=120)


def encode(picture: np.ndarray, kind: str, mode: str = "L", **options: object) -> bytes:
    """Returns an image file written by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png_with_16_bits(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture.astype(np.uint16) << 8)[1].tobytes()


def png_of_20000_x_20000() -> bytes:
    """Returns a valid PNG of black pixels, one bit each, in 50 kB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(2501)) for _ in range(20_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_with_size(height: int, width: int, **options: object) -> bytes:
    """Returns a JPEG of 40x120 pixels whose header claims another size."""
    data = encode(np.full((40, 120), 230, np.uint8), "JPEG", **options)
    return data.replace(struct.pack(">HH", 40, 120), struct.pack(">HH", height, width), 1)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("BMP", "RGB"), ("TIFF", "L")],
)
def test_a_grey_picture_is_the_same_in_every_lossless_format(picture, kind, mode):
    assert np.array_equal(decode(encode(picture, kind, mode)), picture)


def test_a_picture_of_16_bits_is_that_of_its_upper_8(picture):
    assert np.array_equal(decode(png_with_16_bits(picture)), picture)


@pytest.mark.parametrize("options", [{}, {"mode": "RGB"}, {"mode": "CMYK"}, {"progressive": True}])
def test_a_jpeg_of_any_kind_is_dark_on_white_as_it_was(picture, options):
    decoded = decode(encode(picture, "JPEG", quality=95, **options)).astype(int)
    assert decoded.shape == picture.shape
    assert np.abs(decoded - picture).mean() < 3


def test_a_transparent_black_background_turns_white(picture):
    ink = Image.fromarray(np.zeros_like(picture)).convert("RGBA")
    ink.putalpha(Image.fromarray(255 - picture))
    buffer = io.BytesIO()
    ink.save(buffer, "PNG")
    assert np.abs(decode(buffer.getvalue()).astype(int) - picture).max() <= 1


def two_pictures(picture: np.ndarray, kind: str) -> bytes:
    return encode(picture, kind, save_all=True, append_images=[Image.fromarray(255 - picture)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: b"", "the file is empty"),
        (lambda _: b"name,text\n1,ANNA\n", "not an image"),
        (lambda _: encode(np.zeros((1, 1), np.uint8), "PNG"), "1x1 pixels are too few"),
        (lambda _: encode(np.zeros((500, 7), np.uint8), "PNG"), "7x500 pixels are too few"),
        (lambda picture: encode(picture, "TIFF", "F"), "32 bits"),
        (lambda _: encode(np.zeros((500, 7), np.uint8), "JPEG"), "7x500 pixels are too few"),
        (lambda picture: two_pictures(picture, "GIF"), "2 images"),
    ],
    ids=["empty", "text", "1x1", "narrow", "float", "narrow-jpeg", "animation"],
)
def test_what_is_no_line_image_says_why(picture, make, message):
    with pytest.raises(UndecodableImageError, match=message):
        decode(make(picture))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make",
    [
        png_of_20000_x_20000,
        lambda: encode(np.zeros((9000, 9000), np.uint8), "PNG"),
        lambda: jpeg_with_size(9000, 9000),
        lambda: jpeg_with_size(9000, 9000, progressive=True),
    ],
    ids=["400M", "81M", "jpeg", "progressive"],
)
def test_a_huge_picture_is_refused_before_it_is_decoded(make, monkeypatch):
    data = make()
    assert len(data) < 200_000
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UndecodableImageError, match=r"too large|more than 40 million"):
        decode(data)


@pytest.mark.parametrize("percent", range(0, 100, 10))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {})],
)
def test_a_file_cut_off_anywhere_is_refused(picture, kind, options, percent):
    data = encode(picture, kind, **options)
    # OpenCV 4.10 fills the missing part of a JPEG with grey (5.0 rejects it), so only the end marker reveals it.
    message = "truncated" if kind in ("JPEG", "PNG") and percent >= 50 else "."
    with pytest.raises(UndecodableImageError, match=message):
        decode(data[: len(data) * percent // 100])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_bytes_decode_or_are_undecodable_and_nothing_else(picture, kind):
    whole = encode(picture, kind)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        reach = len(data) if seed % 2 else 64  # headers are small and matter most
        for position in rng.integers(0, reach, rng.integers(1, 6)):
            data[position] = rng.integers(256)
        try:
            decoded = decode(bytes(data))
        except UndecodableImageError:
            continue
        assert decoded.dtype == np.uint8 and decoded.ndim == 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((48, 320), (48, 320)),
        ((20, 100), (20, 100)),  # never enlarged
        ((96, 100), (48, 50)),
        ((24, 640), (12, 320)),
        ((480, 3200), (48, 320)),
    ],
)
def test_a_picture_shrinks_to_the_canvas_with_its_aspect_and_is_never_enlarged(size, expected):
    height, width = expected
    assert Canvas(48, 320).scale_for(*size) == min(1, height / size[0])
    paper = fit(_marked(size), Canvas(48, 320)) == 200
    assert paper.shape == (48, 320)
    rows, columns = np.flatnonzero(~paper.all(axis=1)), np.flatnonzero(~paper.all(axis=0))
    assert (rows[-1] - rows[0] + 1, columns[-1] + 1) == (height, width)
    assert columns[0] == 0 and rows[0] == (48 - height) // 2  # left-aligned, vertically centred


@pytest.mark.parametrize("stretch", [1.25, 2.0])
@pytest.mark.parametrize("size", [(20, 100), (96, 100), (24, 640)])
def test_a_stretched_image_is_wider_by_the_factor_and_fits(size, stretch):
    canvas = Canvas(48, 320, stretch)
    scale = min(1, 48 / size[0], 320 / (stretch * size[1]))
    paper = fit(_marked(size), canvas) == 200
    rows, columns = np.flatnonzero(~paper.all(axis=1)), np.flatnonzero(~paper.all(axis=0))
    assert rows[-1] - rows[0] + 1 == round(size[0] * scale)
    assert columns[0] == 0 and columns[-1] + 1 == pytest.approx(size[1] * scale * stretch, abs=1.5)


def test_a_canvas_is_the_same_from_its_list():
    for canvas in (Canvas(), Canvas(32, 256), Canvas(48, 448, 1.75)):
        assert Canvas(*json.loads(json.dumps(canvas.to_list()))) == canvas
    assert Canvas(48, 320).to_list() == [48, 320]
    for stretch in (0.5, 5.0):
        with pytest.raises(UserError, match="--stretch must be between 1 and 4"):
            Canvas(48, 320, stretch)


def test_a_sliver_keeps_one_pixel():
    fitted = fit(np.zeros((9, 40_000), np.uint8), Canvas(48, 320))
    assert fitted.shape == (48, 320) and not fitted.any()


def _marked(size: tuple[int, int]) -> np.ndarray:
    """Returns paper of grey 200 with a black border, whose width is 1/25 of each side and at least 1 pixel."""
    picture = np.full(size, 200, np.uint8)
    height, width = (max(1, side // 25) for side in size)
    picture[:height] = picture[-height:] = 0
    picture[:, :width] = picture[:, -width:] = 0
    return picture


def test_a_picture_that_fits_keeps_its_pixels_and_the_rest_is_the_papers_grey(picture):
    fitted = fit(picture, Canvas(48, 160))
    assert np.array_equal(fitted[4:44, :120], picture)
    assert (fitted[:4] == 230).all() and (fitted[44:] == 230).all() and (fitted[:, 120:] == 230).all()


@pytest.mark.parametrize(
    ("pixels", "paper"), [([7], 7), ([1, 2], 1), ([1, 3], 2), ([0, 254, 255, 255], 254), ([9, 0, 200], 9)]
)
def test_the_papers_grey_is_the_median_rounded_down(pixels, paper):
    fitted = fit(np.array([pixels], np.uint8), Canvas(8, 8))
    assert (fitted[0] == paper).all() and paper == int(np.median(pixels))


@pytest.mark.parametrize("size", [(4, 32), (5, 33), (40, 64)])
@pytest.mark.parametrize("grey", [0, 80, 160, 255])
def test_the_papers_grey_is_the_median_also_where_the_pixels_that_it_is_guessed_from_are_of_another(size, grey):
    pixels = np.random.default_rng(grey).integers(100, 140, size, dtype=np.uint8)
    pixels.ravel()[::SAMPLED_EVERY] = grey
    assert (fit(pixels, Canvas(48, 160))[0] == int(np.median(pixels))).all()


def test_fitting_does_not_write_into_the_picture(picture):
    picture.setflags(write=False)
    before = picture.copy()
    fit(picture, Canvas(16, 32))
    assert np.array_equal(picture, before)


def test_one_page_stored_grey_and_rgb_gives_one_line(picture):
    grey, rgb = lines_of([encode(picture, "PNG", mode) for mode in ("L", "RGB")], Canvas(32, 96))
    assert np.array_equal(grey.image, rgb.image)


def test_an_encoded_picture_decodes_to_itself(picture):
    assert np.array_equal(decode(encode_png(picture)), picture)


def test_an_image_wider_than_opencv_reads_is_a_row_and_no_crash():
    width, height = 2_000_000, 9
    row = (width * 3 + 3) // 4 * 4
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + row * height, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)
    (line,) = lines_of([header + bytes(row * height)], Canvas())
    assert (line.reason, line.width) == (None, width)


@pytest.mark.parametrize("size", [(7, 320), (48, 0)])
def test_a_canvas_too_small_to_read_is_refused(size):
    with pytest.raises(UserError, match="smaller"):
        Canvas(*size)


def test_lines_come_in_the_order_of_their_paths_each_with_its_picture_or_its_reason(tmp_path, picture):
    (tmp_path / "good é #1.png").write_bytes(encode_png(picture))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "folder.png").mkdir()
    names = ["bad.png", "good é #1.png", "gone.png", "folder.png", "bad.png/inner.png", "x" * 300]
    lines = list(lines_of(read_files(str(tmp_path), names * 30), Canvas(48, 160)))
    assert [line.reason for line in lines] == [
        "undecodable_image",
        None,
        "missing_image",
        "undecodable_image",
        "undecodable_image",
        "undecodable_image",
    ] * 30
    assert (lines[1].height, lines[1].width) == (40, 120)
    assert np.array_equal(lines[1].image, fit(picture, Canvas(48, 160)))
    assert list(read_files(str(tmp_path), [])) == []


def test_file_uris_name_the_same_files_as_paths(tmp_path, picture):
    (tmp_path / "a b%20#1.png").write_bytes(encode_png(picture))
    folders = (str(tmp_path), f"file://{tmp_path}")
    by_path, by_uri = (next(read_files(folder, ["a b%20#1.png"])) for folder in folders)
    assert by_path == by_uri == encode_png(picture)


class Flaky:
    """A file system that fails to open files `number` times."""

    def __init__(self, number: int, error: OSError) -> None:
        self.number, self.error, self.inner = number, error, fs.LocalFileSystem()

    def open_input_file(self, path):
        self.number -= 1
        if self.number >= 0:
            raise self.error
        return self.inner.open_input_file(path)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), OSError(errno.EMFILE, "?"), OSError("SLOW_DOWN")])
def test_a_server_that_is_away_is_waited_for_and_never_taken_for_a_bad_image(tmp_path, picture, error, monkeypatch):
    waited = []
    monkeypatch.setattr(reader.time, "sleep", waited.append)
    monkeypatch.setattr(reader, "locate", lambda _: (flaky, str(tmp_path)))
    (tmp_path / "a.png").write_bytes(encode_png(picture))
    flaky = Flaky(3, error)
    assert list(reader.read_files("in", ["a.png"])) == [encode_png(picture)]
    assert len(waited) == 3
    flaky = Flaky(1000, error)
    with pytest.raises(UserError, match=r"a\.png can't be read: .*run the same command again"):
        list(reader.read_files("in", ["a.png"]))


def test_an_error_of_one_file_alone_is_its_row_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "locate", lambda _: (Flaky(1000, PermissionError(errno.EACCES, "no")), "in"))
    (line,) = reader.read_files("in", ["a.png"])
    assert line.reason == "undecodable_image" and "can't be read" in line.detail


def test_a_file_is_read_as_it_is_and_not_unpacked_by_its_name(tmp_path):
    packed = gzip.compress(bytes(1 << 20))
    (tmp_path / "scan.png.gz").write_bytes(packed)
    assert list(reader.read_files(str(tmp_path), ["scan.png.gz"])) == [packed]


def test_a_file_too_large_to_be_a_line_is_not_read(tmp_path):
    with (tmp_path / "film.png").open("wb") as file:
        file.truncate(reader.MAX_BYTES + 1)
    (line,) = reader.read_files(str(tmp_path), ["film.png"])
    assert line.reason == "undecodable_image" and "larger than 128 MiB" in line.detail


def test_files_go_through_a_step_together_few_where_they_are_large():
    files = [bytes(9 << 20)] * 3 + [b"small"] * 130
    groups = list(reader.in_groups(files))
    assert [len(group) for group in groups] == [2, 64, 64, 3]
    assert [file for group in groups for file in group] == files


def test_few_pictures_are_decoded_before_they_are_fitted(picture, monkeypatch):
    monkeypatch.setattr(reader, "MOST_BYTES_TOGETHER", 3 * picture.nbytes)
    steps = []
    for name, step in {"decode": decode, "fit_with_levels": fit_with_levels}.items():
        monkeypatch.setattr(reader, name, lambda *args, name=name, step=step: steps.append(name) or step(*args))
    data = encode_png(picture)
    assert len(data) * 7 < 3 * picture.nbytes  # one group of files
    assert len(list(lines_of([data] * 7, Canvas(48, 160)))) == 7
    assert steps == [*(["decode"] * 3 + ["fit_with_levels"] * 3) * 2, "decode", "fit_with_levels"]


def test_few_files_are_in_memory_at_once(tmp_path, monkeypatch):
    names = [f"{n:03}" for n in range(600)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    started = []
    read = reader._read
    monkeypatch.setattr(reader, "_read", lambda filesystem, path: started.append(path) or read(filesystem, path))
    files = reader.read_files(str(tmp_path), names)
    for number, name in enumerate(names):
        assert next(files) == name.encode()
        assert len(started) <= number + 1 + reader.FILES_AT_ONCE
    assert len(started) == 600


def test_resized_lines_keep_the_left_edge_the_middle_row_and_the_paper():
    images = np.full((2, 48, 160), 200, np.uint8)
    images[1] = 90
    images[:, 20:28, 40:60] = 10
    for factor in (0.5, 0.92, 1.08, 1.5):
        for image, paper in zip(resized(images, factor), (200, 90), strict=True):
            rows, columns = np.nonzero(image < (10 + paper) / 2)
            assert columns.min() == pytest.approx(40 * factor, abs=1) and columns.max() == pytest.approx(
                60 * factor, abs=1.5
            )
            assert (rows.min() + rows.max()) / 2 == pytest.approx(23.5, abs=1)
            assert rows.max() - rows.min() + 1 == pytest.approx(8 * factor, abs=1)
            assert image[0, 0] == image[-1, -1] == paper
    assert np.array_equal(resized(images, 1.0), images)
