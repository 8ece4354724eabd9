"""The `evaluate` job: recognizes a prepared split with a bundle and writes predictions, metrics and a report."""

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from hwr_ray.cluster.connection import check_shared, connect
from hwr_ray.data.dataset import Prepared
from hwr_ray.data.labels import Split
from hwr_ray.data.prepare import prepare_command
from hwr_ray.decoding.calibration import calibration_error, fit_calibration
from hwr_ray.errors import UserError
from hwr_ray.evaluation.comparison import compare, verdict
from hwr_ray.evaluation.label_errors import find_label_errors, in_fold_order
from hwr_ray.evaluation.reports import lines_to_show, write_evaluation_report
from hwr_ray.evaluation.subgroups import subgroup_figures, weak_groups
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.recognition.bundle_config import (
    CONFIG,
    SHIPPED_WORD,
    BundleConfig,
    bundle_path,
    read_config,
)
from hwr_ray.text.metrics import confusion_table, edit_distances, figures
from hwr_ray.transcription.actors import ROWS_PER_BLOCK, read_lines_with
from hwr_ray.transcription.settings import ReadingSettings
from hwr_ray.versions import versions

log = logging.getLogger(__name__)

FEW_LINES = 200
"""Number of lines below which a calibration is a guess."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    data: str
    """Prepared data set (output of jobs/prepare.py)."""
    model: str = SHIPPED_WORD
    """Path or URI of a bundle, such as RUN/best (jobs/train.py), or `shipped` for the bundle in the package."""
    out: str
    """Output folder or URI for metrics.json, predictions/ and report.html, or label_errors.parquet and .html."""
    split: Split = "validation"
    """Split to evaluate."""
    label_errors: tuple[str, ...] = ()
    """Search for label errors instead of evaluating, with these bundles, one for each fold (jobs/train.py --num-folds
    --fold). Each training line is scored by the bundle trained without it. --model and --split are ignored."""
    compare: str | None = None
    """Folder or URI of another evaluation of the same lines to compare with; includes a significance test."""
    recalibrate: str | None = None
    """Folder or URI in which to save the model with confidences that are calibrated on these lines; a few hundred are
    needed. It calibrates the decoder that is used: --greedy or not."""
    seed: int = 0
    """Random seed of the bootstrap."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    overwrite: bool = False
    """Replace an existing evaluation in --out."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, not {self.seed}")


def evaluate(settings: EvaluateSettings) -> str:
    """Writes the evaluation and returns its path. Raises UserError for errors that the user can fix."""
    prepared = Prepared(settings.data)
    if settings.label_errors:
        return rank_label_errors(settings, prepared)
    model_path = bundle_path(settings.model)
    bundle = read_config(model_path)
    check_canvas(prepared, bundle, model_path)
    num_lines = prepared.require_lines(settings.split)
    other = read_other(settings.compare, prepared, settings.split) if settings.compare else None
    reading = settings.reading.for_workers(model_path, bundle)
    if settings.recalibrate and storage.is_file(storage.join(settings.recalibrate, CONFIG)) and not settings.overwrite:
        raise UserError(f"{settings.recalibrate} is a bundle: choose another --recalibrate, or pass --overwrite")
    with staged(storage.absolute(settings.out), mark="metrics.json", overwrite=settings.overwrite) as out:
        connect()
        reading = reading.admitted()
        check_shared(out, prepared.path, model_path, *reading.voters)
        filesystem, folder = storage.locate(storage.join(out, "predictions"))
        # Ray reads small shards as one block, which would leave all models but one idle.
        blocks = prepared.read(settings.split).repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
        lines = read_lines_with(blocks, model_path, reading, num_blocks=-(-num_lines // ROWS_PER_BLOCK))
        lines.map_batches(
            add_edits,
            batch_format="pyarrow",
            num_cpus=0.25,
        ).write_parquet(folder, filesystem=filesystem)
        predictions = pa.dataset.dataset(folder, filesystem=filesystem, format="parquet").to_table()
        if len(predictions) != num_lines:
            raise RuntimeError(f"the evaluation is incomplete: {len(predictions)} predictions for {num_lines} lines")
        known_texts = training_texts(prepared) if settings.split != "train" else None
        label_noise = bundle.decoding.label_noise(greedy=settings.reading.greedy)
        metrics = measure(predictions, bundle, seed=settings.seed, training_texts=known_texts, label_noise=label_noise)
        metrics |= {
            "split": settings.split,
            "prepared": prepared.path,
            "content_hash": prepared.metadata["content_hash"],
            "model_id": reading.model_id(bundle),
            "settings": asdict(settings),
            "versions": versions(),
        }
        if other:
            other_metrics, baseline = other
            comparison = compare(predictions, baseline, seed=settings.seed)
            figures_of_other = {name: other_metrics[name] for name in ("model_id", "cer", "exact_match")}
            metrics["comparison"] = {"with": settings.compare, **figures_of_other, "difference": comparison}
        storage.write_json(storage.join(out, "metrics.json"), metrics)
        images = prepared.images(settings.split, lines_to_show(predictions))
        write_evaluation_report(out, metrics=metrics, predictions=predictions, images=images)
    log.info("%s", summary(metrics))
    if other:
        log.info("compared with %s: %s", settings.compare, verdict(comparison))
    if settings.recalibrate:
        origin = {"data": prepared.metadata["content_hash"], "split": settings.split, "num_lines": num_lines}
        origin |= {"votes": reading.votes()}
        greedy = settings.reading.greedy
        save_recalibrated(model_path, settings.recalibrate, predictions, lines=origin, greedy=greedy)
    return storage.absolute(settings.out)


def save_recalibrated(
    model_path: str, path: str, predictions: pa.Table, *, lines: dict[str, Any], greedy: bool
) -> None:
    """Saves a bundle with its calibration fitted to predictions, and with `lines`, which describes them.

    Raises UserError if they are too few or too alike.
    """
    from hwr_ray.recognition.bundle import load_bundle, save_bundle  # imports torch, which other evaluations don't need

    bundle = load_bundle(model_path)
    decoding, is_exact = bundle.decoding, predictions["num_edits"].to_numpy() == 0
    fitted = fit_calibration(predictions["confidence"].to_numpy(), is_exact)
    if fitted is None:
        raise UserError(
            f"{len(is_exact)} lines, {is_exact.sum()} of them right, do not show how far confidences can be trusted: "
            "evaluate more lines or omit --recalibrate"
        )
    if before := decoding.calibration(greedy=greedy):
        fitted = fitted.after(before)
    is_greedy = greedy or decoding.language_model is None
    changed = replace(decoding, greedy_calibration=fitted) if is_greedy else replace(decoding, beam_calibration=fitted)
    origin = {"model_id": bundle.model_id, **lines, "label_noise": fitted.label_noise}
    training = {**bundle.training, "recalibration": origin}
    save_bundle(replace(bundle, decoding=changed, training=training), path)
    if len(is_exact) < FEW_LINES:
        log.warning("%s lines are few for a calibration: its confidences may be far off", len(is_exact))
    message = "%s: calibrated on %s lines, of whose labels an estimated %.1f %% are wrong"
    log.info(message, path, len(is_exact), 100 * fitted.label_noise)


def read_other(path: str, prepared: Prepared, split: Split) -> tuple[dict[str, Any], pa.Table]:
    """Returns the metrics and predictions of another evaluation. Raises UserError if it is not of the same lines."""
    if not storage.is_file(storage.join(path, "metrics.json")):
        raise UserError(f"{path} is not an evaluation (no metrics.json): choose another --compare")
    metrics = storage.read_json(storage.join(path, "metrics.json"))
    if (metrics["content_hash"], metrics["split"]) != (prepared.metadata["content_hash"], split):
        raise UserError(
            f"{path} is of other lines, the {metrics['split']} split of {metrics['prepared']}: choose another --compare"
        )
    filesystem, folder = storage.locate(storage.join(path, "predictions"))
    return metrics, pa.dataset.dataset(folder, filesystem=filesystem, format="parquet").to_table()


def rank_label_errors(settings: EvaluateSettings, prepared: Prepared) -> str:
    """Writes the ranking of the training lines and returns its path; see `evaluate`."""
    reading = settings.reading
    if (
        reading.lexicon
        or reading.num_best > 1
        or reading.characters
        or reading.voters
        or reading.test_time_augmentation
    ):
        raise UserError(
            "--label-errors uses greedy decoding: omit --lexicon, --num-best, --characters, --voters and "
            "--test-time-augmentation"
        )
    bundles = [(path, read_config(path)) for path in map(bundle_path, settings.label_errors)]
    for path, bundle in bundles:
        check_canvas(prepared, bundle, path)
    paths = in_fold_order([(path, bundle.training) for path, bundle in bundles], prepared)
    return find_label_errors(prepared, paths, settings.out, reading, overwrite=settings.overwrite)


def check_canvas(prepared: Prepared, bundle: BundleConfig, model_path: str) -> None:
    """Raises UserError with the `prepare` command to run if the lines do not have the canvas of the bundle."""
    if prepared.canvas != bundle.canvas:
        canvas = bundle.canvas
        overrides = {"out": "NEW_FOLDER", "canvas": [canvas.height, canvas.width], "overwrite": None}
        stretch = {"stretch": canvas.stretch if canvas.stretch != 1 else None}
        raise UserError(
            f"{prepared.path} has the canvas {prepared.canvas}, but {model_path} needs {bundle.canvas}; prepare with: "
            f"{prepare_command({**prepared.metadata['settings'], **overrides, **stretch})}"
        )


def add_edits(table: pa.Table) -> pa.Table:
    """Returns the table with `num_edits`, the edit distance of each prediction to its text."""
    edits = edit_distances(table["text"].to_pylist(), table["prediction"].to_pylist())
    return table.append_column("num_edits", pa.array(edits, pa.int32()))


def training_texts(prepared: Prepared) -> set[str] | None:
    """Returns the texts of the training split, or None if the data set has none."""
    if "train" not in prepared.num_lines:
        return None
    return set(prepared.table("train", ["text"])["text"].to_pylist())


def measure(
    predictions: pa.Table,
    bundle: BundleConfig,
    *,
    seed: int,
    training_texts: Collection[str] | None,
    label_noise: float = 0.0,
) -> dict[str, Any]:
    """Returns metrics of all predictions and of subgroups, with a table of confused characters.

    `label_noise` is the share of wrong labels that the calibration of the bundle assumes.
    """
    agreement = (1 - label_noise) * predictions["confidence"].to_numpy()
    texts, edits = predictions["text"].to_pylist(), predictions["num_edits"].to_pylist()
    return {
        **figures(texts, edits, seed=seed),
        "calibration_error": calibration_error(agreement, np.array(edits) == 0),
        "label_noise": label_noise,
        # Each of them counts as an error, because the model cannot output it.
        "num_unknown_characters": sum(c not in bundle.codec.charset for text in texts for c in text),
        "confusions": confusion_table(texts, predictions["prediction"].to_pylist()),
        "subgroups": subgroup_figures(predictions, seed=seed, training_texts=training_texts),
    }


def summary(metrics: dict[str, Any]) -> str:
    """Returns the metrics in one sentence, with the weakest subgroup if one stands out."""
    (cer_low, cer_high), (exact_low, exact_high) = metrics["cer_ci"], metrics["exact_match_ci"]
    sentence = (
        f"CER {metrics['cer']:.2%} ({cer_low:.2%} to {cer_high:.2%}), "
        f"exact match {metrics['exact_match']:.2%} ({exact_low:.2%} to {exact_high:.2%}) "
        f"on {metrics['num_lines']} {metrics['split']} lines"
    )
    for row in weak_groups(metrics["subgroups"], cer=metrics["cer"])[:1]:
        group = f"{row['attribute']} {row['group']}"
        sentence += f"; weakest subgroup: {group} with CER {row['cer']:.2%} on {row['num_lines']} lines"
    return sentence
