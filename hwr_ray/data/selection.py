"""Which training lines a run uses, and with which texts.

A fold may be left out, label errors are corrected or left out, and a teacher may propose texts besides the labels.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from hwr_ray.data.dataset import PreparedSets
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.line_uniforms import line_uniforms
from hwr_ray.model.architecture import num_frames
from hwr_ray.text.codec import Codec, frames_needed

log = logging.getLogger(__name__)

TIMES_LIKELIER = 1000
THRESHOLD = math.log(TIMES_LIKELIER)
"""Score above which a label counts as an error: the prediction is TIMES_LIKELIER times likelier than the label."""
SURE = 0.9
"""Confidence from which on a prediction replaces the label; below it, the line is left out."""
MOST_CANDIDATES = 8
"""Maximum number of candidates that an evaluation can have for a line; only then their shares sum to 1."""
Labelled = tuple[str, str]
"""The id of a training line and its label. Lines of two data sets may have the same id."""
Candidates = tuple[tuple[str, ...], tuple[float, ...]]
"""Texts of a line, and the running sums of their probabilities."""


def fold_of(line: str, num_folds: int) -> int:
    """Returns the fold of a line, 0 to num_folds - 1, from the hash of its id.

    The fold is the same in every run and does not depend on other lines. It is not the hash that assigns the lines of a
    CSV to splits: the training lines cover only the lower four fifths of the range of that hash.
    """
    digest = blake2b(f"fold of {line}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_folds


def folds_of(lines: Iterable[str], num_folds: int) -> np.ndarray:
    """Returns the fold of each line, (N) int64."""
    return np.array([fold_of(line, num_folds) for line in lines], np.int64)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Candidate texts of the training lines, from which a run draws.

    This is sequence-level distillation with an n-best list (Kim & Rush 2016, arXiv 1606.07947; for CTC: Takashima, Li,
    Kawai 2018). In expectation over epochs, the loss of a line is (1 - weight) times the CTC loss of its label, plus
    weight times those of the candidates, each times its probability. Unlike a loss on the frames, it needs no agreement
    on the frames of a letter, and the lines may be distorted.
    """

    candidates: Mapping[Labelled, Candidates]
    """Texts and the running sums of their probabilities, which end with 1."""
    weight: float
    """Probability, 0 to 1, that a line's text in an epoch is a candidate instead of its label."""

    def draw(self, ids: Sequence[str], labels: Sequence[str], *, seed: int, epoch: int) -> list[str]:
        """Returns the texts of lines in an epoch; they depend on the seed, the epoch and the line alone."""
        uniforms = line_uniforms([f"teacher {line}" for line in ids], 2, seed=seed, epoch=epoch).tolist()
        texts = []
        for line, (choice, position) in zip(zip(ids, labels, strict=True), uniforms, strict=True):
            candidates = self.candidates.get(line) if choice < self.weight else None
            if candidates is None:
                texts.append(line[1])
            else:
                texts.append(next(text for text, total in zip(*candidates, strict=True) if position < total))
        return texts


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The training lines of a run."""

    num_folds: int = 1
    fold: int | None = None
    """Fold to leave out, from 0 to num_folds minus 1."""
    corrections: Mapping[Labelled, str | None] = field(default_factory=dict)
    """Texts that replace the label, or None to leave the line out."""
    teacher: Teacher | None = None

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

    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of the corrections and of the teacher's candidates, which a run's recipe contains."""
        contents = {"label_errors": self.corrections, "teacher": self.teacher.candidates if self.teacher else {}}
        return {
            name: sha256(repr(sorted(content.items())).encode()).hexdigest()
            for name, content in contents.items()
            if content
        }


class Writable:
    """The texts that a network can output on the canvas and with the charset of data sets."""

    def __init__(self, prepared: PreparedSets) -> None:
        self.codec, self.frames = Codec(prepared.charset), num_frames(prepared.canvas.height, prepared.canvas.width)

    def __contains__(self, text: str) -> bool:
        return not self.codec.unknown(text) and frames_needed(text) <= self.frames


def read_selection(
    prepared: PreparedSets,
    *,
    num_folds: int = 1,
    fold: int | None = None,
    label_errors: str | None = None,
    teacher: Sequence[str] = (),
    teacher_weight: float = 0.0,
) -> Selection:
    """Returns the selection of training lines for the settings of a run.

    Raises UserError if a file is not of the kind that it should be, or is of other lines.
    """
    corrections = read_corrections(label_errors, prepared) if label_errors else {}
    if corrections:
        prepared.require_lines("train")
        table = prepared.table("train", ["id", "text"])
        if corrections.keys().isdisjoint(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)):
            raise UserError(f"{label_errors} is of other lines than {', '.join(prepared.paths)}: omit --label-errors")
    candidates = read_candidates(teacher, prepared)
    for (line, label), text in corrections.items():
        if text is not None and (line, label) in candidates:  # the run knows the line by its corrected text
            candidates[line, text] = candidates.pop((line, label))
    return Selection(
        num_folds=num_folds,
        fold=fold,
        corrections=corrections,
        teacher=Teacher(candidates=candidates, weight=teacher_weight) if teacher else None,
    )


def read_corrections(path: str, prepared: PreparedSets) -> dict[Labelled, str | None]:
    """Returns the `corrections` of a Selection from a file label_errors.parquet of `evaluate --label-errors`.

    Lines with a score above THRESHOLD are label errors, except those whose label the bundle can't output, about which
    it knows nothing. Raises UserError if the file is not of this kind.
    """
    if not storage.is_file(path):
        raise UserError(f"there is no file {path}: write it with jobs/evaluate.py --label-errors")
    filesystem, inner = storage.locate(path)
    try:
        table = pq.read_table(inner, filesystem=filesystem, columns=["id", "text", "prediction", "score", "confidence"])
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"{path} is not a label_errors.parquet of jobs/evaluate.py --label-errors: {error}") from error
    writable, corrections = Writable(prepared), dict[Labelled, str | None]()
    for row in table.to_pylist():
        if THRESHOLD < row["score"] < math.inf:
            is_sure = row["confidence"] >= SURE and row["prediction"] and row["prediction"] in writable
            corrections[row["id"], row["text"]] = row["prediction"] if is_sure else None
    replaced = sum(text is not None for text in corrections.values())
    log.info("%s: %s labels replaced, %s lines left out", path, replaced, len(corrections) - replaced)
    return corrections


def read_candidates(paths: Sequence[str], prepared: PreparedSets) -> dict[Labelled, Candidates]:
    """Returns the candidates of a teacher from evaluations of training lines with MOST_CANDIDATES candidates a line.

    It omits candidates with characters outside the charset of the lines, and those that need more frames than the
    network has on their canvas. Raises UserError if a folder is not such an evaluation, is of other lines than the
    data sets, or of the same lines as another one.
    """
    writable, candidates = Writable(prepared), dict[Labelled, Candidates]()
    contents = {one.metadata["content_hash"]: one.path for one in prepared.with_lines("train")}
    for path in paths:
        metrics = storage.join(path, "metrics.json")
        known = storage.read_json(metrics) if storage.is_file(metrics) else {}
        if known.get("split") != "train" or known["settings"]["reading"]["num_best"] != MOST_CANDIDATES:
            raise UserError(
                f"{path} is no evaluation of training lines with {MOST_CANDIDATES} candidates: write one with "
                f"jobs/evaluate.py --split train --num-best {MOST_CANDIDATES}"
            )
        if known["content_hash"] not in contents:
            raise UserError(f"{path} is of other lines than {', '.join(prepared.paths)}, or another one is of the same")
        del contents[known["content_hash"]]
        filesystem, folder = storage.locate(storage.join(path, "predictions"))
        table = ds.dataset(folder, filesystem=filesystem, format="parquet").to_table(
            columns=["id", "text", "prediction", "alternatives"]
        )
        for row in table.to_pylist():
            others = {one["text"]: one["share"] for one in row["alternatives"]}
            shares = {row["prediction"]: max(0.0, 1 - sum(others.values())), **others}
            shares = {text: share for text, share in shares.items() if share > 0 and text in writable}
            if shares:
                total = sum(shares.values())
                sums = [share / total for share in accumulate(shares.values())]
                candidates[row["id"], row["text"]] = tuple(shares), (*sums[:-1], 1.0)
    if paths:
        log.info("the teacher has candidates for %s lines", len(candidates))
    return candidates
