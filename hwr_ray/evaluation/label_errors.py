"""Search for label errors: ranks training lines by the predictions of models that were trained without them."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hwr_ray.cluster.connection import check_shared, connect
from hwr_ray.data.dataset import Prepared
from hwr_ray.data.selection import THRESHOLD, TIMES_LIKELIER
from hwr_ray.errors import UserError
from hwr_ray.evaluation.reports import write_label_errors_report
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.text.metrics import edit_distances
from hwr_ray.transcription.actors import ROWS_PER_BLOCK, compare_out_of_fold
from hwr_ray.transcription.settings import ReadingSettings

log = logging.getLogger(__name__)

LABEL_ERRORS = pa.schema(
    {
        "id": pa.string(),
        "path": pa.string(),
        "text": pa.string(),  # the label
        "prediction": pa.string(),  # text recognized by the model that was trained without the line
        "score": pa.float64(),  # prediction_log_prob - text_log_prob; 0 if the two texts are equal
        "rank": pa.int64(),  # 1 for the highest score; ties by id
        "text_log_prob": pa.float64(),  # natural logarithm of the label's probability; -inf if impossible
        "prediction_log_prob": pa.float64(),  # natural logarithm of the prediction's probability
        "confidence": pa.float32(),  # probability of the prediction, 0 to 1
        "num_edits": pa.int32(),  # edit distance between prediction and label
        "height": pa.int32(),  # height of the image file in pixels
        "width": pa.int32(),  # width of the image file in pixels
        "fold": pa.int32(),  # fold of the line, and of the model that recognized it
    }
)
"""Columns of OUT/label_errors.parquet, which has a row for each training line, sorted by `rank`."""

NUM_SHOWN = 200
"""Number of lines shown in the report."""


def in_fold_order(bundles: Sequence[tuple[str, dict[str, Any]]], prepared: Prepared) -> list[str]:
    """Returns the paths of bundles, given as (path, `training` of the bundle), sorted by fold.

    A single bundle that was trained without folds is accepted, too, with a warning.
    Raises UserError otherwise, unless there is exactly one bundle for each fold of the prepared training lines.
    """
    (path, training), *others = bundles
    if not others and training.get("recipe", {}).get("fold") is None:
        log.warning("if %s was trained on these lines, it may have learned some of their label errors", path)
        return [path]
    by_fold: dict[int, str] = {}
    first, num_folds = bundles[0][0], 0
    for path, training in bundles:
        recipe = training.get("recipe", {})
        fold = recipe.get("fold")
        if fold is None:
            raise UserError(f"{path} was trained without --fold: train it with jobs/train.py --num-folds 3 --fold 0")
        if training["data"] != prepared.metadata["content_hash"]:
            raise UserError(f"{path} was trained on another data set than {prepared.path}: their content hashes differ")
        num_folds = num_folds or recipe["num_folds"]
        if recipe["num_folds"] != num_folds:
            raise UserError(
                f"{path} was trained with --num-folds {recipe['num_folds']}, but {first} with --num-folds {num_folds}: "
                "pass bundles with the same --num-folds"
            )
        if fold in by_fold:
            raise UserError(f"{by_fold[fold]} and {path} both have --fold {fold}: pass one bundle for each fold")
        by_fold[fold] = path
    missing = [fold for fold in range(num_folds) if fold not in by_fold]
    if missing:
        raise UserError(
            f"the bundle of --fold {missing[0]} is missing: train it with jobs/train.py --num-folds {num_folds} "
            f"--fold {missing[0]} and pass one bundle for each fold"
        )
    return [by_fold[fold] for fold in range(num_folds)]


def find_label_errors(
    prepared: Prepared, bundle_paths: list[str], out: str, reading: ReadingSettings, *, overwrite: bool
) -> str:
    """Writes label_errors.parquet and label_errors.html and returns their folder. Bundles are sorted by fold."""
    num_lines = prepared.require_lines("train")
    with staged(storage.absolute(out), mark="label_errors.parquet", overwrite=overwrite) as partial:
        connect()
        reading = reading.admitted()
        check_shared(partial, prepared.path, *bundle_paths)
        # Ray reads small shards as one block, which would leave all workers but one idle.
        blocks = prepared.read("train").repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
        num_blocks = -(-num_lines // ROWS_PER_BLOCK)
        compared = compare_out_of_fold(blocks, bundle_paths, reading, num_blocks=num_blocks)
        tables = list(compared.iter_batches(batch_size=None, batch_format="pyarrow"))
        if sum(map(len, tables)) != num_lines:
            raise RuntimeError(f"the ranking is incomplete: it has {sum(map(len, tables))} of {num_lines} lines")
        ranked = rank(pa.concat_tables(tables))
        filesystem, inner = storage.locate(storage.join(partial, "label_errors.parquet"))
        pq.write_table(ranked, inner, filesystem=filesystem)
        figures = {**measure(ranked), "prepared": prepared.path, "num_folds": len(bundle_paths)}
        images = prepared.images("train", ranked["id"].slice(0, NUM_SHOWN).to_pylist())
        write_label_errors_report(partial, ranked=ranked, figures=figures, images=images)
    log.info("%s", summary(figures))
    return storage.absolute(out)


def rank(compared: pa.Table) -> pa.Table:
    """Returns compared lines as a table of the schema LABEL_ERRORS, the most suspicious first."""
    scores = pc.subtract(compared["prediction_log_prob"], compared["text_log_prob"])
    edits = edit_distances(compared["text"].to_pylist(), compared["prediction"].to_pylist())
    table = compared.append_column("score", scores).append_column("num_edits", pa.array(edits, pa.int32()))
    table = table.sort_by([("score", "descending"), ("id", "ascending")])
    ranks = pa.array(range(1, len(table) + 1), pa.int64())
    return table.append_column("rank", ranks).select(LABEL_ERRORS.names).cast(LABEL_ERRORS)


def measure(ranked: pa.Table) -> dict[str, Any]:
    """Returns the figures of the report over all lines."""
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
    """Returns the figures in one sentence."""
    return (
        f"{figures['num_label_errors']} of {figures['num_lines']} training labels look wrong: the prediction is more "
        f"than {figures['times_likelier']} times likelier ({figures['num_differing']} predictions differ from labels)"
    )
