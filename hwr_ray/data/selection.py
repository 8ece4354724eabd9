"""Which training lines a run uses, and with which texts: all but a fold, with label errors corrected or left out."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq

from hwr_ray.data.folds import folds_of
from hwr_ray.errors import UserError
from hwr_ray.files import storage

log = logging.getLogger(__name__)

TIMES_LIKELIER = 1000
THRESHOLD = math.log(TIMES_LIKELIER)
"""Score above which a label counts as an error: the prediction is TIMES_LIKELIER times likelier than the label."""
SURE = 0.9
"""Confidence from which on a prediction replaces the label; below it, the line is left out."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The training lines of a run."""

    num_folds: int = 1
    fold: int | None = None
    """Fold to leave out, from 0 to num_folds minus 1."""
    corrections: Mapping[tuple[str, str], str | None] | None = None
    """Texts that replace the label, or None to leave the line out, by id and label."""

    @property
    def is_all(self) -> bool:
        """Whether the run uses all lines with their labels."""
        return self.fold is None and not self.corrections

    def of(self, table: pa.Table) -> pa.Table:
        """Returns the rows of a table with `id` and `text` that the run uses, with corrected texts."""
        ids = table["id"].to_pylist()
        if self.fold is not None:
            table = table.filter(pa.array(folds_of(ids, self.num_folds) != self.fold))
            ids = table["id"].to_pylist()
        if not self.corrections:
            return table
        labels = table["text"].to_pylist()
        texts = [self.corrections.get(line, line[1]) for line in zip(ids, labels, strict=True)]
        corrected = table.set_column(table.column_names.index("text"), "text", pa.array(texts, pa.string()))
        return corrected.filter(corrected["text"].is_valid())

    @property
    def digest(self) -> str | None:
        """SHA-256 of the corrections, which a run's recipe contains; None without any."""
        rows = sorted((*line, text or "") for line, text in (self.corrections or {}).items())
        return sha256(repr(rows).encode()).hexdigest() if rows else None


def read_corrections(path: str) -> dict[tuple[str, str], str | None]:
    """Returns the `corrections` of a Selection from a file label_errors.parquet of `evaluate --label-errors`.

    Lines with a score above THRESHOLD are label errors. Raises UserError if the file is not of this kind.
    """
    if not storage.is_file(path):
        raise UserError(f"there is no file {path}: write it with jobs/evaluate.py --label-errors")
    filesystem, inner = storage.locate(path)
    try:
        table = pq.read_table(inner, filesystem=filesystem, columns=["id", "text", "prediction", "score", "confidence"])
        rows = table.to_pylist()
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"{path} is not a label_errors.parquet of jobs/evaluate.py --label-errors: {error}") from error
    errors = [row for row in rows if row["score"] > THRESHOLD]
    corrections = {
        (row["id"], row["text"]): row["prediction"] if row["confidence"] >= SURE and row["prediction"] else None
        for row in errors
    }
    replaced = sum(text is not None for text in corrections.values())
    log.info("%s: %s labels replaced, %s lines left out", path, replaced, len(corrections) - replaced)
    return corrections
