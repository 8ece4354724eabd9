"""Lines of letters that are solid blocks, so that each pixel of a composed line shows which letter it came from."""

from itertools import pairwise

import numpy as np
import pytest

from hwr_ray.synthetic.splicing import GAP_RANGE, CutWord, Piece, Pieces, compose, cut

HEIGHT, WIDTH, PITCH, LEFT = 16, 160, 16, 24
PAPER = 250


def drawn(text: str) -> np.ndarray:
    """Returns an image with a mark at its left edge and, from LEFT on, 10 columns in the grey of each letter."""
    image = np.full((HEIGHT, WIDTH), PAPER, np.uint8)
    image[:, 2:8] = 1
    for n, character in enumerate(text):
        if character != " ":
            image[4:12, LEFT + n * PITCH + 3 : LEFT + n * PITCH + 13] = ord(character)
    return image


def frames_of(text: str) -> np.ndarray:
    """Returns log-probabilities (T, C) of a head that sees each character in the frame at the middle of its box."""
    log_probs = np.full((WIDTH // 4, 128), -20.0, np.float32)
    log_probs[:, 0] = -0.01
    for n, character in enumerate(text):
        log_probs[(LEFT + n * PITCH) // 4 + 1, ord(character)] = 0.0
        log_probs[(LEFT + n * PITCH) // 4 + 2, ord(character)] = 0.0
    return log_probs


def cut_words(text: str) -> list[CutWord]:
    return cut(drawn(text), text, frames_of(text), list(map(ord, text)))


def letters_in(image: np.ndarray) -> str:
    """Returns the letters from left to right, a space for a gap of a pitch more than between two letters."""
    row = image[8, LEFT:]
    starts = [x for x in range(1, len(row)) if row[x] != PAPER and row[x - 1] == PAPER]
    gaps = ["", *(" " if after - before > 1.3 * PITCH else "" for before, after in pairwise(starts))]
    return "".join(gap + chr(row[start]) for gap, start in zip(gaps, starts, strict=True))


@pytest.mark.parametrize("text", ["AB", "ANNA", "DE LA U", "LE ROUX"])
def test_words_are_cut_in_the_gaps_between_their_letters(text):
    words = cut_words(text)
    assert [word.letters for word in words] == text.split(" ")
    for word in words:
        assert word.pitch == PITCH and word.margin == words[0].cuts[0]
        for n, letter in enumerate(word.letters):
            box = word.image[:, word.cuts[n] : word.cuts[n + 1]]
            assert set(np.unique(box)) == {ord(letter), PAPER}
            assert (box == ord(letter)).sum() == 80  # the whole letter, and none of another
            assert box.shape[1] < 1.6 * PITCH  # without the space beside it


@pytest.mark.parametrize("text", ["A", "A B"])
def test_letters_without_a_neighbour_have_no_pitch_and_are_not_cut(text):
    assert cut_words(text) == []


def test_a_word_of_which_a_letter_would_be_cut_away_is_left_out():
    text, frames = "ABCD LIO", frames_of("ABCD LIO")
    for letter, frame in (("L", 27), ("I", 28), ("O", 29)):
        frames[:, ord(letter)] = -20.0
        frames[frame, ord(letter)] = 0.0
    image = drawn("ABCD")
    image[4:12, 100:130] = 30
    assert [word.letters for word in cut(image, text, frames, list(map(ord, text)))] == ["ABCD", "LIO"]
    image[4:12, 114] = PAPER  # the only gap, both before and after the I
    assert [word.letters for word in cut(image, text, frames, list(map(ord, text)))] == ["ABCD"]


@pytest.mark.parametrize("text", ["LE ROUX", "LEROUX", "ROULE", "LE ROU X", "XUOR", "L E"])
def test_pieces_of_one_word_spell_other_texts(text):
    (word,) = cut_words("LEROUX")
    pieces = Pieces([word]).cover(text.replace(" ", ""), np.random.default_rng(0))
    image = compose(text, pieces, np.random.default_rng(0))
    assert letters_in(image) == text
    assert image.shape == word.image.shape
    assert (image[:, : word.margin] == word.image[:, : word.margin]).all()  # what is printed before the first letter


def test_a_space_in_a_line_is_in_no_piece():
    pieces = Pieces(cut_words("LE ROUX"))
    for text in ("LEROUX", "EROU", "ROUX LE", "OUX"):
        found = pieces.cover(text.replace(" ", ""), np.random.default_rng(0))
        assert letters_in(compose(text, found, np.random.default_rng(0))) == text


def test_a_space_is_as_wide_as_the_range_says():
    (word,) = cut_words("LEROUX")
    widths = []
    for seed in range(200):
        image = compose("LE ROUX", [Piece(word, 0, 6)], np.random.default_rng(seed))
        ink = np.flatnonzero((image[8] != PAPER) & (np.arange(WIDTH) >= LEFT))
        widths.append(np.diff(ink).max() - 1 - 6)  # 6 columns lie between two letters
    assert min(widths) >= GAP_RANGE[0] * PITCH - 1 and max(widths) <= GAP_RANGE[1] * PITCH + 1
    assert max(widths) - min(widths) > 0.7 * (GAP_RANGE[1] - GAP_RANGE[0]) * PITCH


def test_pieces_are_as_long_as_possible_and_from_all_words_that_have_them():
    pieces = Pieces([word for text in ("MARTIN", "MARIE", "TINA") for word in cut_words(text)])
    found = pieces.cover("MARTINA", np.random.default_rng(0))
    assert [piece.word.letters[piece.start : piece.stop] for piece in found] == ["MARTIN", "A"]
    sources = {pieces.cover("MAR", np.random.default_rng(seed))[0].word.letters for seed in range(30)}
    assert sources == {"MARTIN", "MARIE"}
    assert pieces.cover("MARTINE-X", np.random.default_rng(0)) is None


def test_a_line_that_is_a_little_too_wide_is_squeezed_and_a_much_wider_one_is_none():
    (word,) = cut_words("LEROUX")  # its letters end at column 120 of 160
    rng = np.random.default_rng(0)
    squeezed = compose("LEROUXLER", [Piece(word, 0, 6), Piece(word, 0, 3)], rng)
    assert squeezed.shape == (HEIGHT, WIDTH)
    ink = np.flatnonzero(squeezed[8] < 200)
    assert 130 < ink.max() < WIDTH and ink.min() < 8
    assert compose("LEROUXLEROUX", [Piece(word, 0, 6)] * 2, rng) is None
