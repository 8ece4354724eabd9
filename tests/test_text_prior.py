"""Known names: a mixture by hand, and files that are refused by name and line."""

from math import exp, inf, log

import pytest

from hwr_ray.codec import Codec
from hwr_ray.errors import UserError
from hwr_ray.language_model import fit_language_model
from hwr_ray.text_prior import NameList, TextPrior, read_name_list

CODEC = Codec("ABC")
MODEL = fit_language_model({"AB": 3, "CA": 1}, CODEC, order=2, min_count=1)
NAMES = NameList({"AB": 1, "CCC": 3})


def test_a_text_has_the_mixture_of_both_probabilities():
    prior = TextPrior(MODEL, CODEC, NAMES, names_weight=0.25)
    for text, share in (("AB", 1 / 4), ("CCC", 3 / 4), ("BA", 0)):
        expected = 0.75 * exp(MODEL.log_prob(CODEC.encode(text))) + 0.25 * share
        assert exp(prior.log_prob(text)) == pytest.approx(expected)


def test_a_known_name_is_raised_and_no_other_is_forbidden():
    prior = TextPrior(MODEL, CODEC, NAMES)
    assert prior.log_prob("CCC") > MODEL.log_prob(CODEC.encode("CCC")) + log(10)
    assert -inf < prior.log_prob("BBB") < MODEL.log_prob(CODEC.encode("BBB"))


def test_a_weight_of_0_leaves_the_language_model():
    prior = TextPrior(MODEL, CODEC, NAMES, names_weight=0)
    assert prior.log_prob("CCC") == pytest.approx(MODEL.log_prob(CODEC.encode("CCC")))


@pytest.mark.parametrize("weight", [-0.1, 1.0])
def test_a_weight_that_would_forbid_is_refused(weight):
    with pytest.raises(UserError, match="from 0 to below 1"):
        TextPrior(MODEL, CODEC, NAMES, names_weight=weight)


def test_a_list_holds_names_with_and_without_counts(tmp_path, caplog):
    file = tmp_path / "names.csv"
    file.write_bytes("\ufeffAB,2\nCCC\n\nAB\n  B  C ,4\nÉA\n".encode())
    assert read_name_list(str(file), CODEC).counts == {"AB": 3, "CCC": 1, "B C": 4, "ÉA": 1}
    assert "2 of 4 names" in caplog.text  # the space and the accent are in no charset here


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"AB\nCA,many\n", "line 2.*'many' is no count"),
        (b"AB,0\n", "line 1.*'0' is no count"),
        (b"AB,1,2\n", "line 1.*3 fields"),
        (b"AB\n,3\n", "line 2.*no name"),
        (b"AB\nC\xc9\n", "line 2.*not UTF-8"),
        (b"\n\n", "holds no name"),
    ],
)
def test_a_file_that_is_no_list_is_named_with_its_line(tmp_path, content, culprit):
    file = tmp_path / "names.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"names.csv.*{culprit}"):
        read_name_list(str(file), CODEC)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"no file nowhere\.csv"):
        read_name_list("nowhere.csv", CODEC)
