"""Compares readings and their probabilities with sums over all paths of a short lattice."""

from dataclasses import replace
from itertools import groupby, product
from math import inf, log, prod

import cv2
import numpy as np
import pytest
import torch

from hwr_ray.decoding.ctc import ctc_losses, greedy_texts
from hwr_ray.errors import UserError
from hwr_ray.images.lines import fit, resized
from hwr_ray.recognition.bundle import load_bundle, save_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.recognition.recognizer import Recognizer, compare_log_probs, read_log_probs, text_log_probs
from hwr_ray.synthetic.forms import draw_line
from hwr_ray.synthetic.glyphs import Writer, write
from hwr_ray.synthetic.synthesize import Names, without_accents
from hwr_ray.text.codec import Codec

FRAMES, CLASSES = 4, 3
PROBABILITIES = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]])


def text_of(path: tuple[int, ...]) -> str:
    return "".join("-AB"[label] for label, _ in groupby(path)).replace("-", "")


def probability_of(text: str, probabilities: list[list[float]]) -> float:
    """Returns the sum over those of the 81 paths that spell the text."""
    paths = (path for path in product(range(CLASSES), repeat=FRAMES) if text_of(path) == text)
    return sum(prod(frame[label] for frame, label in zip(probabilities, path, strict=True)) for path in paths)


TEXTS = ["".join(letters) for length in range(5) for letters in product("AB", repeat=length)]


@pytest.mark.parametrize("text", TEXTS)
def test_the_ctc_loss_is_the_sum_over_all_paths_that_spell_the_text(text):
    labels = Codec("AB").encode(text)
    (loss,) = ctc_losses(PROBABILITIES.log()[None], [labels]).tolist()
    probability = probability_of(text, PROBABILITIES.tolist())
    assert loss == pytest.approx(-log(probability) if probability else inf, rel=1e-5)


def test_the_probabilities_of_all_texts_sum_to_1():
    assert sum(probability_of(text, PROBABILITIES.tolist()) for text in TEXTS) == pytest.approx(1)
    labels = [Codec("AB").encode(text) for text in TEXTS]
    losses = ctc_losses(PROBABILITIES.log().expand(len(TEXTS), -1, -1), labels)
    assert (-losses).exp().sum() == pytest.approx(1, rel=1e-5)


def test_a_reading_is_the_likeliest_path_with_the_probability_of_its_text():
    lines = torch.stack([PROBABILITIES, PROBABILITIES.flip(0), torch.eye(3)[[0, 0, 0, 0]]])
    readings = read_log_probs(lines.log(), Codec("AB"))
    assert [reading.text for reading in readings] == greedy_texts(lines.log(), Codec("AB")) == ["AB", "BA", ""]
    for reading, frames in zip(readings, lines.tolist(), strict=True):
        assert reading.confidence == pytest.approx(probability_of(reading.text, frames), rel=1e-5)


def test_texts_weigh_as_the_sums_over_their_paths_and_those_that_cannot_be_written_nothing():
    texts = [*TEXTS, "ABABA", "AAA", "AAX", "X"]  # too long, too many blanks needed, not in the charset
    log_probs = text_log_probs(PROBABILITIES.log().expand(len(texts), -1, -1), Codec("AB"), texts)
    for text, log_prob in zip(texts, log_probs, strict=True):
        probability = probability_of(text, PROBABILITIES.tolist())
        assert log_prob == pytest.approx(log(probability) if probability else -inf, rel=1e-5)
    assert log_probs[-4:] == [-inf] * 4


def test_a_comparison_weighs_the_reading_and_the_text():
    lines = torch.stack([PROBABILITIES, PROBABILITIES, PROBABILITIES.flip(0), PROBABILITIES])
    texts = ["AB", "BA", "B", "ÄB"]
    comparisons = compare_log_probs(lines.log(), Codec("AB"), texts)
    assert [c.reading.text for c in comparisons] == ["AB", "AB", "BA", "AB"]
    for comparison, text, frames in zip(comparisons[:3], texts, lines.tolist(), strict=False):
        assert comparison.text_log_prob == pytest.approx(log(probability_of(text, frames)), rel=1e-5)
        expected = probability_of(comparison.reading.text, frames)
        assert comparison.prediction_log_prob == pytest.approx(log(expected), rel=1e-5)
        assert comparison.reading.confidence == pytest.approx(expected, rel=1e-5)
    assert comparisons[0].text_log_prob == comparisons[0].prediction_log_prob
    assert comparisons[3].text_log_prob == -inf


@pytest.fixture
def images(draw_text) -> np.ndarray:
    return np.stack([draw_text(text) for text in ("ANNA", "BOB", "", "CLOE", "MWMWMW", "I")])


def test_lines_read_alone_and_together_give_the_same_texts_and_confidences(bundle_path, images):
    recognizer = Recognizer(bundle_path)
    together = recognizer.read_lines(images)
    assert len({reading.text for reading in together}) > 1
    for n, reading in enumerate(together):
        (alone,) = recognizer.read_lines(images[n : n + 1])
        assert alone.text == reading.text
        assert alone.confidence == pytest.approx(reading.confidence, abs=1e-4)
        assert 0 <= alone.confidence <= 1


def test_read_only_images_are_read_and_no_images_give_no_readings(bundle_path, images):
    recognizer = Recognizer(bundle_path)
    images.setflags(write=False)
    assert len(recognizer.read_lines(images)) == 6
    assert recognizer.read_lines(images[:0]) == []
    assert recognizer.compare(images[:0], []) == []


@pytest.mark.parametrize("left", [4, 60, 120])
def test_characters_stand_where_they_are_drawn(left):
    """Draws each letter in its own box; the GRUs would emit the first one at the left edge."""
    recognizer, rng, num_checked = Recognizer(SHIPPED), np.random.default_rng(7), 0
    for name in ("MARTIN", "ELODIE", "CAMILLE", "HUGO", "LEA", "NATHAN"):
        picture = np.full((recognizer.canvas.height, recognizer.canvas.width), 255, np.uint8)
        boxes = []
        writer = Writer.draw(rng)
        for place, letter in enumerate(name):
            strokes = write(letter, writer, rng, left=left + 18 * place, baseline=32, pitch=18)
            cv2.polylines(
                picture, [np.rint(s).astype(np.int32) for s in strokes], isClosed=False, color=30, thickness=2
            )
            points = np.concatenate(strokes)[:, 0]
            boxes.append((points.min(), points.max()))
        (reading,) = recognizer.read_lines(picture[None], characters=True)
        if reading.text == name:
            num_checked += 1
            for character, (low, high) in zip(reading.characters, boxes, strict=True):
                first, end = (4 * frame for frame in character.frames)
                assert low - 8 < (first + end) / 2 < high + 8, (name, character)
    assert num_checked >= 3


def test_lines_that_are_upside_down_are_said_to_be_and_upright_ones_not():
    rng, names = np.random.default_rng(2), Names.draw(2)
    lines = [draw_line(without_accents(names.draw_one(rng)), rng) for _ in range(60)]
    recognizer = Recognizer()
    assert [reading.warning for reading in recognizer.read(lines)] == [None] * 60
    turned = [reading.warning for reading in recognizer.read([line[::-1, ::-1].copy() for line in lines])]
    assert set(turned) == {None, "upside_down"} and turned.count("upside_down") >= 30
    blank = np.full((40, 300), 230, np.uint8)
    assert [reading.warning for reading in recognizer.read([blank, lines[0]])] == ["blank", None]


def test_a_warning_that_training_lines_often_had_is_not_given(tiny_bundle, tmp_path):
    line = np.full((40, 300), 20, np.uint8)
    cv2.putText(line, "ANNA", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 1, 240, 2)
    for share, expected in ((0.005, "light_on_dark"), (0.006, None)):
        path = str(tmp_path / f"{share}")
        save_bundle(replace(tiny_bundle, training={"warnings": {"light_on_dark": share, "blank": 1 - share}}), path)
        assert [reading.warning for reading in Recognizer(path).read([line])] == [expected]
        (reading,) = Recognizer(path, invert=True).read([line])
        assert reading.warning == "inverted" and "inverted" in str(reading)
    save_bundle(replace(tiny_bundle, training={"invert": True}), path)
    assert [reading.warning for reading in Recognizer(path).read([line, 255 - line])] == ["inverted", None]
    assert [reading.warning for reading in Recognizer(path, invert=False).read([line])] == ["light_on_dark"]
    stacked = np.stack([fit(line, tiny_bundle.canvas)])
    assert [reading.warning for reading in Recognizer(path).read_lines(stacked)] == [None]


@pytest.fixture(scope="module")
def two_bundles(tmp_path_factory):
    """Returns the shipped bundle, and one with the same settings but noise on its weights."""
    bundle, folder = load_bundle(SHIPPED), tmp_path_factory.mktemp("voters")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    save_bundle(bundle, str(folder / "noisy"))
    return SHIPPED, str(folder / "noisy")


def test_bundles_and_resized_views_vote_with_the_log_probabilities_of_each(two_bundles):
    rng = np.random.default_rng(4)
    canvas = Recognizer().canvas
    images = np.stack([fit(draw_line(name, rng), canvas) for name in ("MATHILDE", "DE AMORIM", "LOUIS")])
    first, second = (Recognizer(path) for path in two_bundles)
    for voters, augmentation in (((two_bundles[1],), False), ((), True), ((two_bundles[1],), True)):
        joint = Recognizer(two_bundles[0], voters=voters, test_time_augmentation=augmentation)
        networks = [first.network, *([second.network] if voters else [])]
        views = [images, *((resized(images, 0.92), resized(images, 1.08)) if augmentation else ())]
        own, *votes = [network(view).numpy() for view in views for network in networks]
        expected = first.decoding.search(own, first.codec, voters=votes, num_best=3)
        for reading, other in zip(joint.read_lines(images, num_best=3), expected, strict=True):
            assert reading.text == other.text and reading.confidence == pytest.approx(other.confidence, rel=1e-4)
            assert dict(reading.alternatives) == pytest.approx(dict(other.alternatives), rel=1e-4)
    assert joint.model_id == f"{first.model_id}+{second.model_id}+views"
    assert [r.confidence for r in first.read_lines(images)] != [r.confidence for r in joint.read_lines(images)]


def test_what_cannot_vote_is_refused(two_bundles, bundle_path):
    with pytest.raises(UserError, match=f"{bundle_path} can't vote: its canvas is .*, but that of the first bundle is"):
        Recognizer(voters=[bundle_path])
    for settings in ({"voters": [two_bundles[1]]}, {"test_time_augmentation": True}):
        with pytest.raises(UserError, match=r"votes need a language model, but .* is decoded greedily"):
            Recognizer(greedy=True, **settings)
