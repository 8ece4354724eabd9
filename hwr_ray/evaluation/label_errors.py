"""Labels that look wrong: training lines ranked by what a model that never saw them reads instead."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hwr_ray.cluster.connection import check_shared, connect
from hwr_ray.data.dataset import Prepared
from hwr_ray.errors import UserError
from hwr_ray.evaluation.reports import write_label_errors_report
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.text.metrics import edit_distances
from hwr_ray.transcription.actors import ROWS_PER_BLOCK, ReadingSettings, compare_out_of_fold

log = logging.getLogger(__name__)

LABEL_ERRORS = pa.schema(
    {
        "id": pa.string(),
        "path": pa.string(),
        "text": pa.string(),  # the label
        "prediction": pa.string(),  # what the model reads that was trained without the line
        "score": pa.float64(),  # prediction_log_prob - text_log_prob; 0 where the two texts are the same
        "rank": pa.int64(),  # 1 for the highest score, ties by id
        "text_log_prob": pa.float64(),  # natural logarithm of the label's probability; -inf where it can't be written
        "prediction_log_prob": pa.float64(),  # of the prediction's
        "confidence": pa.float32(),  # the prediction's probability, 0 to 1
        "num_edits": pa.int32(),  # edit distance of the prediction to the text
        "height": pa.int32(),  # of the image file, in pixels
        "width": pa.int32(),
        "fold": pa.int32(),  # which model read it
    }
)
"""Columns of OUT/label_errors.parquet, a row for each training line in the order of `rank`."""

TIMES_LIKELIER = 1000
THRESHOLD = math.log(TIMES_LIKELIER)
"""Score above which a label is counted as looking wrong: the reading is so many times likelier than the label."""
NUM_SHOWN = 200
"""Lines on the sheet."""


def in_fold_order(bundles: Sequence[tuple[str, dict[str, Any]]], prepared: Prepared) -> list[str]:
    """Paths of bundles, given with their `training`, by fold.

    Raises UserError unless they are one for each fold of the prepared training lines.
    """
    by_fold: dict[int, str] = {}
    first, num_folds = bundles[0][0], 0
    for path, training in bundles:
        recipe = training.get("recipe", {})
        fold = recipe.get("fold")
        if fold is None:
            raise UserError(f"{path} was not trained as a fold: train one with jobs/train.py --num-folds 3 --fold 0")
        if training["data"] != prepared.metadata["content_hash"]:
            raise UserError(f"{path} was trained on another data set than {prepared.path}: its content hash differs")
        num_folds = num_folds or recipe["num_folds"]
        if recipe["num_folds"] != num_folds:
            raise UserError(f"{path} is one of {recipe['num_folds']} folds and {first} one of {num_folds}")
        if fold in by_fold:
            raise UserError(f"{by_fold[fold]} and {path} are both of --fold {fold}: give one bundle for each fold")
        by_fold[fold] = path
    missing = [fold for fold in range(num_folds) if fold not in by_fold]
    if missing:
        raise UserError(
            f"no bundle is of --fold {missing[0]}: train it with jobs/train.py --num-folds {num_folds} "
            f"--fold {missing[0]} and give one bundle for each fold"
        )
    return [by_fold[fold] for fold in range(num_folds)]


def find_label_errors(
    prepared: Prepared, bundle_paths: list[str], out: str, reading: ReadingSettings, *, overwrite: bool
) -> str:
    """Writes label_errors.parquet and label_errors.html and returns their folder. Bundles are in the order of folds."""
    num_lines = prepared.num_lines("train")
    with staged(storage.absolute(out), mark="label_errors.parquet", overwrite=overwrite) as partial:
        connect()
        reading = reading.admitted()
        check_shared(partial, prepared.path, *bundle_paths)
        # Ray reads small shards as one block, which would keep all but one worker idle.
        blocks = prepared.read("train").repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
        num_blocks = -(-num_lines // ROWS_PER_BLOCK)
        compared = compare_out_of_fold(blocks, bundle_paths, reading, num_blocks=num_blocks)
        tables = list(compared.iter_batches(batch_size=None, batch_format="pyarrow"))
        if sum(map(len, tables)) != num_lines:
            raise RuntimeError(f"{sum(map(len, tables))} of {num_lines} lines came back: the ranking is not whole")
        ranked = rank(pa.concat_tables(tables))
        filesystem, inner = storage.locate(storage.join(partial, "label_errors.parquet"))
        pq.write_table(ranked, inner, filesystem=filesystem)
        figures = {**measure(ranked), "prepared": prepared.path, "num_folds": len(bundle_paths)}
        images = prepared.images("train", ranked["id"].slice(0, NUM_SHOWN).to_pylist())
        write_label_errors_report(partial, ranked=ranked, figures=figures, images=images)
    log.info("%s", summary(figures))
    return storage.absolute(out)


def rank(compared: pa.Table) -> pa.Table:
    """Compared lines as a table of the schema LABEL_ERRORS, the most suspicious first."""
    scores = pc.subtract(compared["prediction_log_prob"], compared["text_log_prob"])
    edits = edit_distances(compared["text"].to_pylist(), compared["prediction"].to_pylist())
    table = compared.append_column("score", scores).append_column("num_edits", pa.array(edits, pa.int32()))
    table = table.sort_by([("score", "descending"), ("id", "ascending")])
    ranks = pa.array(range(1, len(table) + 1), pa.int64())
    return table.append_column("rank", ranks).select(LABEL_ERRORS.names).cast(LABEL_ERRORS)


def measure(ranked: pa.Table) -> dict[str, Any]:
    """What the report says of all lines."""
    scores = ranked["score"].to_numpy()
    return {
        "num_lines": len(ranked),
        "num_differing": sum(edits > 0 for edits in ranked["num_edits"].to_pylist()),
        "num_label_errors": int((scores > THRESHOLD).sum()),
        "num_unwritable": int((scores == math.inf).sum()),
        "threshold": THRESHOLD,
        "times_likelier": TIMES_LIKELIER,
    }


def summary(figures: dict[str, Any]) -> str:
    """The figures in one sentence."""
    return (
        f"{figures['num_label_errors']} of {figures['num_lines']} training labels look wrong: another reading is more "
        f"than {figures['times_likelier']} times likelier ({figures['num_differing']} lines are read otherwise at all)"
    )
