"""Tests the public API: images of any kind as input, and readings with a threshold as output."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

import hwr_ray
from hwr_ray import Reading, Recognizer, UserError
from hwr_ray.recognition.bundle_config import SHIPPED, read_config


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer()


@pytest.fixture(scope="module")
def line(draw_text) -> np.ndarray:
    """A line image larger than the canvas, with grey ink."""
    return draw_text("LOUISE", height=80, width=420)


@pytest.fixture(scope="module")
def path(line, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("lines") / "é 1.png"
    path.write_bytes(cv2.imencode(".png", line)[1].tobytes())
    return str(path)


def test_it_is_the_shipped_model_which_says_what_needs_review(recognizer, path):
    assert recognizer.model_id == read_config(SHIPPED).model_id
    threshold, _ = read_config(SHIPPED).decoding.review_threshold(0.99)
    (reading,) = recognizer.read_files([path])
    assert reading.text == "LOUISE" and reading.review_threshold == threshold
    assert reading.needs_review == (reading.confidence < threshold)


def forms(line):
    """Yields the same line in every supported form."""
    colors = np.stack([line] * 3, -1)
    paper = np.full_like(line, 255)
    yield from (line, colors, np.concatenate([colors, paper[..., None]], -1), line.astype(np.uint16) * 257)
    yield from (Image.fromarray(line), Image.fromarray(colors), Image.fromarray(line).convert("LA"))
    yield Image.fromarray(line.astype(np.uint16) * 257)


def test_every_form_of_a_line_reads_as_its_file(recognizer, line, path):
    (expected,) = recognizer.read_files([path])
    readings = recognizer.read(forms(line), num_best=1)
    assert len(readings) == 8
    for reading in readings:
        assert reading.text == expected.text
        assert reading.confidence == pytest.approx(expected.confidence, abs=1e-3)  # batches change a logit's last bit
    (one,) = recognizer.read([line], num_best=3, characters=True)
    assert len(one.alternatives) == 2 and "".join(c.character for c in one.characters) == one.text
    assert recognizer.read([]) == []


def test_colors_are_rgb_transparency_is_paper_and_a_turned_photograph_is_turned_back(recognizer, line):
    def confidence(image):
        (reading,) = recognizer.read([image])
        return reading.confidence

    strokes = line < 200
    red = np.full((*line.shape, 3), 255, np.uint8)
    red[strokes] = (255, 0, 0)
    grey = np.where(strokes, 76, 255).astype(np.uint8)  # 0.299 of red; 0.114 of blue would be 29
    assert confidence(red) == pytest.approx(confidence(grey), abs=1e-3)

    black = np.zeros((*line.shape, 4), np.uint8)  # black everywhere, but only strokes are opaque
    black[strokes, 3] = 255
    assert confidence(black) == pytest.approx(confidence(np.where(strokes, 0, 255).astype(np.uint8)), abs=1e-3)

    turned, data = Image.fromarray(line).rotate(90, expand=True), io.BytesIO()
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was rotated: display with a quarter turn clockwise
    turned.save(data, "PNG", exif=exif)
    (reading,) = recognizer.read([Image.open(data)])
    assert reading.text == "LOUISE"


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        (np.zeros((48, 320), np.uint8), ValueError, r"not \(320,\) of uint8; pass several images as a list"),
        ([np.zeros((48, 320))], ValueError, r"of uint8 or uint16, not \(48, 320\) of float64"),
        ([np.zeros((48, 320, 2), np.uint8)], ValueError, r"3, 4 or no channels"),
        ([np.zeros((4, 320), np.uint8)], ValueError, "320x4 pixels are too few"),
        (["line.png"], TypeError, "a numpy array or a Pillow image, not str"),
    ],
)
def test_what_is_no_image_is_told_in_a_sentence(recognizer, images, error, sentence):
    with pytest.raises(error, match=sentence):
        recognizer.read(images)


def test_a_file_that_cannot_be_read_is_named(recognizer, path, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match=r"bad\.png can't be read: the file is not an image"):
        recognizer.read_files([path, tmp_path / "bad.png"])
    with pytest.raises(UserError, match=r"there is no file .*none\.png"):
        recognizer.read_files([tmp_path / "none.png"])


def test_a_reading_prints_its_text_and_whether_to_look_at_it():
    assert str(Reading("LÉA", 0.984, review_threshold=0.97)) == "LÉA (98%)"
    assert str(Reading("LÉA", 0.5, review_threshold=0.97)) == "LÉA (50%, needs review)"
    assert str(Reading("LÉA", 0.5)) == "LÉA (50%)" and Reading("LÉA", 0.5).needs_review is None


def test_the_package_names_what_it_has():
    assert all(getattr(hwr_ray, name) for name in hwr_ray.__all__)
    assert hwr_ray.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'Recogniser'"):
        hwr_ray.Recogniser  # noqa: B018


def test_a_single_path_is_not_taken_for_a_list_of_letters():
    with pytest.raises(TypeError, match=r"read_files takes a list of paths: pass \['line\.png'\]"):
        Recognizer().read_files("line.png")
