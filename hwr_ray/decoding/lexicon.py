"""A lexicon of known texts, mixed into the language model."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwr_ray.decoding.ngram import LanguageModel
from hwr_ray.errors import UserError
from hwr_ray.files.csv import read_csv
from hwr_ray.text.codec import Codec
from hwr_ray.text.normalization import normalize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lexicon:
    """Known texts, such as names, with their counts."""

    counts: Mapping[str, int]

    @cached_property
    def total(self) -> int:
        """Sum of the counts."""
        return sum(self.counts.values())

    def log_prob(self, text: str) -> float:
        """Returns the natural logarithm of the text's share of the total; -inf if the lexicon does not contain it."""
        count = self.counts.get(text, 0)
        return math.log(count / self.total) if count else -math.inf


@dataclass(frozen=True)
class LexiconMixture:
    """P(text) = (P_ngram(text) + P_lexicon(text)) / 2, a distribution because both parts are.

    Texts in the lexicon become more probable; other texts remain possible.
    """

    language_model: LanguageModel
    codec: Codec
    lexicon: Lexicon

    def log_prob(self, text: str) -> float:
        """Returns the natural logarithm of the text's probability. Raises UserError for unknown characters."""
        spelled, known = self.language_model.log_prob(self.codec.encode(text)), self.lexicon.log_prob(text)
        return float(np.logaddexp(spelled, known)) - math.log(2)


def read_lexicon(path: str, codec: Codec) -> Lexicon:
    """Returns the lexicon in a UTF-8 file with one `name` or `name,count` per line.

    The count is 1 by default. Counts of repeated names add up, and empty lines are ignored. A warning gives the number
    of names that contain characters outside the charset and therefore can't be recognized. Raises UserError that names
    the file and the line.
    """
    counts: Counter[str] = Counter()
    for row in read_csv(path, delimiter=",", is_header=lambda first: False).rows:
        where = f"{path}, line {row.line}"
        if row.error:
            raise UserError(f"{where}: {row.error}")
        if any(map(str.strip, row.fields)):
            name, count = _name(row.fields, where)
            counts[name] += count
    if not counts:
        raise UserError(f"{path} contains no names")
    unreadable = sum(bool(codec.unknown(name)) for name in counts)
    if unreadable:
        log.warning(f"{path}: {unreadable} of {len(counts)} names contain characters outside the charset")
    return Lexicon(counts)


def _name(fields: list[str], where: str) -> tuple[str, int]:
    name, count = normalize(fields[0]), fields[1].strip() if len(fields) > 1 else "1"
    if len(fields) > 2:
        raise UserError(f"{where}: expected a name and a count, not {len(fields)} fields")
    if not name:
        raise UserError(f"{where}: the name is missing")
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        raise UserError(f"{where}: {count!r} is not a count: expected a positive integer")
    return name, int(count)
