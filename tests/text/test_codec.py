"""Tests of the codec against all paths of a short CTC lattice."""

from itertools import groupby, product

import pytest

from hwr_ray.errors import UserError
from hwr_ray.text.codec import BLANK, Codec, collapse, frames_needed

CODEC = Codec("AB É")


@pytest.mark.parametrize("text", ["", "A", "ABBA", "É A", "  "])
def test_decoding_gives_back_what_was_encoded(text):
    assert CODEC.decode(CODEC.encode(text)) == text


def test_characters_take_the_ids_after_the_blank_in_the_charsets_order():
    assert BLANK == 0
    assert CODEC.encode("AB É") == [1, 2, 3, 4]
    assert CODEC.num_classes == 5


def test_every_unknown_character_is_named_once_in_the_texts_order():
    with pytest.raises(UserError) as error:
        CODEC.encode("ßAXßA")
    assert str(error.value) == "not in charset: 'ß', 'X' in 'ßAXßA'"


def test_a_letter_with_a_combining_accent_is_not_the_composed_letter():
    with pytest.raises(UserError, match="not in charset"):
        CODEC.encode("E\u0301")


@pytest.mark.parametrize(("charset", "culprit"), [("", "empty"), ("ABA", "'A'")])
def test_a_charset_that_cannot_be_encoded_with_is_refused(charset, culprit):
    with pytest.raises(UserError, match=culprit):
        Codec(charset)


@pytest.mark.parametrize(
    ("path", "labels"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 1, 2], [1, 2]),
        ([1, 0, 1], [1, 1]),
        ([0, 1, 1, 0, 0, 1, 2, 2, 0], [1, 1, 2]),
    ],
)
def test_a_path_merges_repeats_before_it_drops_blanks(path, labels):
    assert collapse(path) == labels


def test_repeated_letters_need_a_blank_between_them():
    assert collapse([1, 1]) == [1]
    assert (frames_needed("AA"), frames_needed("AB"), frames_needed("AABAA")) == (3, 2, 7)


@pytest.mark.parametrize("text", ["".join(letters) for n in range(4) for letters in product("AB", repeat=n)])
def test_frames_needed_is_the_length_of_the_shortest_path_that_spells_the_text(text):
    def spells(path: tuple[str, ...]) -> bool:
        return "".join(letter for letter, _ in groupby(path) if letter != "-") == text

    shortest = next(n for n in range(9) if any(map(spells, product("-AB", repeat=n))))
    assert frames_needed(text) == shortest
