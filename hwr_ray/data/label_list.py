"""Training texts for the language model of a run."""

import logging
from collections import Counter

from hwr_ray.data.cleaning import CleaningSettings, reason_for
from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.selection import Selection
from hwr_ray.errors import UserError
from hwr_ray.files.csv import read_csv
from hwr_ray.text.normalization import normalize

log = logging.getLogger(__name__)


def language_model_texts(
    prepared: PreparedSets,
    label_list: str | None = None,
    column: str = "IDENTITY",
    *,
    selection: Selection | None = None,
) -> Counter[str]:
    """Returns the texts for the language model of a run, with their counts.

    These are the texts of the training lines that the run uses or, with a label list, the texts of the list that the
    cleaning rules of a data set keep. Raises UserError if the list or its column is missing, or if no text is left.
    """
    if label_list is None:
        table = prepared.table("train", ["id", "text"])
        return Counter((selection or Selection()).of(table)["text"].to_pylist())
    settings = [one.metadata["settings"]["cleaning"] for one in prepared.sets]
    rules = [CleaningSettings(**{**cleaning, "keep": tuple(cleaning["keep"])}) for cleaning in settings]
    raw = Counter(read_column(label_list, column))
    texts: Counter[str] = Counter()
    for text, number in raw.items():
        for cleaning in rules:
            normalized = normalize(text, keep_joiners=cleaning.keep_joiners)
            if reason_for(normalized, cleaning, is_training=True) is None:
                texts[normalized] += number
                break
    if not texts:
        raise UserError(f"{label_list} has no text that the cleaning rules of {', '.join(prepared.paths)} keep")
    log.info("%s: %s of %s texts for the language model", label_list, texts.total(), raw.total())
    return texts


def read_column(path: str, column: str) -> list[str]:
    """Returns a column of a CSV file, gzipped (.gz) or not. Raises UserError if the file or the column is missing, or a
    row is faulty."""
    return [text for (text,) in read_csv(path, columns=[column]).columns(column)]
