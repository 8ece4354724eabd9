"""Tests valid and invalid lexicon files, and their effect on a text's probability."""

import logging
import math

import pytest

from hwr_ray.decoding.lexicon import Lexicon, LexiconMixture, read_lexicon
from hwr_ray.decoding.ngram import fit_language_model
from hwr_ray.errors import UserError
from hwr_ray.text.codec import Codec

CODEC = Codec(" -ABEHNOT")
MODEL = fit_language_model({"ANNA": 40, "HANNA": 20, "BETH": 30}, CODEC)


def read(folder, content):
    (folder / "names.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_lexicon(str(folder / "names.csv"), CODEC)


def test_the_mixture_is_worked_out_by_hand():
    prior = LexiconMixture(MODEL, CODEC, Lexicon({"BETH": 1, "ANNA": 3}))
    for text, share in {"ANNA": 0.75, "BETH": 0.25, "HANNA": 0.0, "NOTABEE": 0.0}.items():
        spelled = math.exp(MODEL.log_prob(CODEC.encode(text)))
        assert prior.log_prob(text) == pytest.approx(math.log(0.5 * spelled + 0.5 * share))


def test_a_known_name_gains_and_an_unknown_one_is_never_forbidden():
    known, unknown = (
        LexiconMixture(MODEL, CODEC, Lexicon({"NOAH": 1})),
        LexiconMixture(MODEL, CODEC, Lexicon({"BETH": 1})),
    )
    assert known.log_prob("NOAH") > unknown.log_prob("NOAH") + 3
    assert unknown.log_prob("NOAH") == pytest.approx(MODEL.log_prob(CODEC.encode("NOAH")) + math.log(0.5))


def test_a_text_that_is_no_name_has_no_share():
    assert Lexicon({"ANNA": 1}).log_prob("BETH") == Lexicon({}).log_prob("BETH") == -math.inf


def test_names_are_read_with_and_without_counts(tmp_path):
    names = read(tmp_path, '\ufeffANNA,3\r\n\r\n  BETH \nANNA\n"NOAH",2\nANNA-BETH, 4\n')
    assert names.counts == {"ANNA": 4, "BETH": 1, "NOAH": 2, "ANNA-BETH": 4}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("ANNA\nBETH,many\n", "line 2: 'many' is not a count"),
        ("ANNA,0\n", "line 1: '0' is not a count"),
        ("ANNA,-1\n", "line 1: '-1' is not a count"),
        ("ANNA,1.5\n", "line 1: '1.5' is not a count"),
        ("ANNA,\n", "line 1: '' is not a count"),
        ("\nANNA,BETH,3\n", "line 2: expected a name and a count, not 3 fields"),
        (",3\n", "line 1: the name is missing"),
        (b"ANNA\nBETH\nNO\xcb\n", "is not UTF-8: byte 0xcb in line 3"),
        ("\n \n", "is empty"),
        ("", "is empty"),
    ],
)
def test_a_bad_list_is_refused_with_its_file_and_line(tmp_path, content, sentence):
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    assert str(tmp_path / "names.csv") in str(error.value)
    assert sentence in str(error.value)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.csv"):
        read_lexicon(str(tmp_path / "nowhere.csv"), CODEC)


def test_names_that_can_not_be_read_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read(tmp_path, "Anna\nBETH\nZOË\n")
    assert "2 of 3 names" in caplog.text


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfAB\n\xc9\n", b'AB\n"CA\nBB\n'])
def test_a_broken_line_after_a_mark_and_an_open_quote_are_named(tmp_path, content):
    file = tmp_path / "names.csv"
    file.write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"names\.csv, line 2: a quote opens and is never closed|names\.csv is not UTF-8: byte 0xc9 in line 2",
    ):
        read_lexicon(str(file), Codec("ABC"))
