"""The `train` job: runs Ray Train on a prepared data set, in a folder from which the run can be resumed."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import ray
import ray.data

from hwr_ray.cluster.connection import check_shared, configure_data, connect
from hwr_ray.cluster.resources import preflight, working_nodes
from hwr_ray.cluster.tracking import check_key
from hwr_ray.command import command
from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.label_list import language_model_texts
from hwr_ray.data.selection import Selection, read_selection
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.ownership import OwnershipToken, difference
from hwr_ray.files.staging import recover
from hwr_ray.model.architecture import num_frames
from hwr_ray.recognition.bundle_config import CONFIG, architecture_from, bundle_path, read_config, weights_digest
from hwr_ray.training.checkpoints import CHECKPOINTS, Checkpoints, check_fresh, read_history
from hwr_ray.training.driver_channel import follow, new_channel
from hwr_ray.training.settings import KEPT_SHARE, TrainSettings

log = logging.getLogger(__name__)

INGEST_CPUS = 1
"""Logical CPUs reserved for reading the prepared lines: Ray Data needs a whole one to list Parquet files."""
REPORT_SECONDS = "0.5"
"""Seconds between Ray Train's polls of its workers for reports and for their end; Ray's default is 2."""


def train(settings: TrainSettings) -> str:
    """Starts or resumes the run of the settings and returns the path of its best bundle."""
    prepared = PreparedSets(settings.data)
    selection = read_selection(
        prepared,
        num_folds=settings.num_folds,
        fold=settings.fold,
        label_errors=settings.label_errors,
        teacher=settings.teacher,
        teacher_weight=settings.teacher_weight,
    )
    num_lines = count_train_lines(prepared, selection)
    origin: dict[str, Any] = selection.digests()
    if settings.init_from:
        settings = replace(settings, init_from=bundle_path(settings.init_from))
        bundle = read_config(str(settings.init_from))
        settings = replace(settings, model=architecture_from(bundle, settings.model, prepared.canvas))
        origin |= {"init_from": weights_digest(str(settings.init_from))}
    check_feasible(prepared, settings, num_lines)
    texts = language_model_texts(prepared, settings.label_list, settings.label_column, selection=selection)
    check_key(settings.wandb_project)
    connect()
    preflight(
        settings.workers.needs(settings.worker_range[0], other_cpus=INGEST_CPUS),
        wait_minutes=settings.workers.wait_minutes,
    )
    out = storage.absolute(settings.out)
    data: dict[str, Any] = {
        "content_hash": prepared.content_hash,
        "canvas": prepared.canvas.to_list(),
        "charset": prepared.charset,
        "lines": {**prepared.num_lines, "train": num_lines},
        **({"sets": prepared.names} if len(prepared.paths) > 1 else {}),  # by which metrics.jsonl calls them
    }
    run_id = open_run(out, {**settings.recipe(), **origin, "data": data})
    if not last_step(out):
        check_fresh(out)
    owner = OwnershipToken.take(out)
    init_paths = [settings.init_from] if settings.init_from else []
    check_shared(storage.join(out, "recipe.json"), *prepared.paths, *init_paths)
    channel = new_channel()
    lines_per_epoch = num_lines // settings.batch_size * settings.batch_size
    try:
        metrics = follow(
            channel,
            lambda: fit(
                settings,
                prepared,
                out,
                run_id,
                num_lines=num_lines,
                selection=selection,
                channel=channel,
                origin=origin,
                owner=owner,
            ),
            total=settings.epochs * lines_per_epoch,
            done=last_step(out) * settings.batch_size,
        )
    except FloatingPointError as error:
        raise UserError(f"{error}: lower --learning-rate and choose another --out") from error
    except SystemExit:
        show_curves(out)
        log.info("stopped after %d epochs; to resume: %s", len(read_history(out)), command())
        raise
    show_curves(out)
    for name, figures in {f"best epoch {metrics['epoch']}": metrics, **metrics.get("sets", {})}.items():
        log.info("%s: CER %.2f %%, exact match %.2f %%", name, 100 * figures["cer"], 100 * figures["exact_match"])
    best = storage.join(out, "best")
    log.info("decoder fitted: %s", fit_decoder_remotely(best, prepared, texts, settings))
    return best


def last_step(out: str) -> int:
    """Returns the steps done at the newest checkpoint of a run."""
    return Checkpoints(storage.join(out, CHECKPOINTS)).last_step()


def show_curves(out: str) -> None:
    if history := read_history(out):
        from hwr_ray.reporting.curves import write_curves  # imports matplotlib, which workers do not need

        write_curves(out, history)


def fit_decoder_remotely(best: str, prepared: PreparedSets, texts: Counter[str], settings: TrainSettings) -> str:
    """Fits the decoder of a bundle on a node, with the resources of a training worker; returns a summary."""
    fit_remotely: Any = ray.remote(_fit_decoder)
    fit_remotely = fit_remotely.options(**settings.workers.options)
    return ray.get(fit_remotely.remote(best, prepared, texts, device=settings.workers.device))


def _fit_decoder(*args: Any, **settings: Any) -> str:
    from hwr_ray.training.decoder_fitting import (
        fit_decoder,  # imported in the worker only, so that the driver loads neither torch nor numba
    )

    return fit_decoder(*args, **settings)


def count_train_lines(prepared: PreparedSets, selection: Selection) -> int:
    """Returns the number of training lines that a run uses. Raises UserError if the set has none."""
    lines = prepared.require_lines("train")
    return lines if selection.is_all else len(selection.of(prepared.table("train", ["id", "text"])))


def check_feasible(prepared: PreparedSets, settings: TrainSettings, num_lines: int) -> None:
    """Raises UserError if there are too few lines, or if a label needs more frames than the network has."""
    prepared.require_lines("validation")
    if num_lines < settings.batch_size:
        raise UserError(
            f"{num_lines} training lines are fewer than one batch: lower --batch-size {settings.batch_size}"
        )
    frames = num_frames(prepared.canvas.height, prepared.canvas.width)
    for one in prepared.with_lines("train"):
        needed = one.metadata["splits"]["train"]["most_frames_needed"]
        if needed > frames:
            raise UserError(
                f"a training label of {one.path} needs {needed} frames, but the canvas {prepared.canvas} gives "
                f"{frames}: prepare the lines with a wider --canvas or a lower --max-length"
            )


def open_run(out: str, recipe: dict[str, Any]) -> str:
    """Writes the run's recipe with a new id, or compares it with that of the existing run; returns the run's id.

    Raises UserError that names the first field in which the existing run differs.
    """
    path = storage.join(out, "recipe.json")
    recover(storage.join(out, "best"), CONFIG)
    if not storage.is_file(path):
        if storage.list_files(out):
            raise UserError(f"{out} contains other files: choose another --out")
        run_id = uuid4().hex[:12]
        storage.write_json(path, {"run_id": run_id, **recipe})
        return run_id
    existing = storage.read_json(path)
    run_id = existing.pop("run_id")
    if differs := difference(existing, recipe):
        name, old, new = differs
        raise UserError(f"{out} is a run with {name} = {old}, not {new}: choose another --out")
    return run_id


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, str]:
    """Calls `train_loop_per_worker` of `hwr_ray.training.loop`, which only the workers import."""
    from hwr_ray.training import loop as train_loop

    return train_loop.train_loop_per_worker(config)


def fit(
    settings: TrainSettings,
    prepared: PreparedSets,
    out: str,
    run_id: str,
    *,
    num_lines: int,
    selection: Selection | None = None,
    callbacks: Sequence[Any] = (),
    runs_at_once: int = 1,
    channel: Any = None,
    origin: dict[str, Any] | None = None,
    owner: OwnershipToken | None = None,
    visibility_marker: str = "recipe.json",
    has_cleaner: bool = False,
) -> dict[str, Any]:
    """Runs or resumes Ray Train on `num_lines` training lines, those of the `selection`, by default all. Returns the
    metrics of the best epoch, which are empty if the run was stopped during the first one.

    `callbacks` are Ray Train's. `runs_at_once` is the number of runs that share the cluster. `channel` is a
    DriverChannel. `origin` describes the weights that the run starts from. `owner` is the token of the run's folder.
    `visibility_marker` is a file in the folder by which a worker checks that it sees the folder. `has_cleaner` keeps
    Ray Train's PlacementGroupCleaner. Raises ray.train.TrainingFailedError if workers fail repeatedly,
    FloatingPointError if the loss is not finite, and UserError if another process took over the folder.
    """
    # Imported here, so that a job with invalid settings does not import it.
    import ray.train

    from hwr_ray.training.trainer import Trainer

    selection = selection or Selection()

    def train_lines() -> ray.data.Dataset:
        """Returns the training lines for a new group of workers, in another order for each."""
        configure_data()
        lines = read_train_lines(prepared, selection, seed=settings.seed + last_step(out))
        lines.context.enable_progress_bars = False  # the run shows its own
        return lines

    streaming = may_stream(prepared, settings, num_lines, runs_at_once)
    if not has_cleaner:  # not in a sweep, whose trials share the driver's cores
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", REPORT_SECONDS)
    trainer = Trainer(
        train_loop_per_worker,
        has_cleaner=has_cleaner,
        train_loop_config={
            "settings": settings,
            "data": prepared.paths,
            "out": out,
            "run_id": run_id,
            "num_train_lines": num_lines,
            "selection": selection,
            "runs_at_once": runs_at_once,
            "channel": channel,
            "origin": origin or {},
            "owner": owner,
            "visibility_marker": storage.join(out, visibility_marker),
            "may_stream": streaming,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,  # type: ignore[arg-type]
            use_gpu=settings.workers.use_gpu,
            resources_per_worker={
                "CPU": settings.workers.cpus_per_worker,
                **({"GPU": 1} if settings.workers.use_gpu else {}),
            },
            # Ray restarts the workers to change their number, which loses the work since the last checkpoint.
            elastic_resize_monitor_interval_s=max(60, 2 * 60 * settings.checkpoint_minutes),  # type: ignore[call-arg]
        ),
        run_config=ray.train.RunConfig(
            name="state",
            storage_path=out,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            # Ray Train's patched print shows every line twice.
            worker_runtime_env={"env_vars": {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}},  # type: ignore[call-arg]
            # Otherwise Ray Train would try forever to start a worker group that can't start.
            failure_config=ray.train.FailureConfig(
                max_failures=settings.max_failures,
                controller_failure_limit=3,  # type: ignore[call-arg]
            ),
            callbacks=list(callbacks),
        ),
        datasets={"train": train_lines} if streaming else {},  # a streamed data set takes a process
    )
    ended = trainer.fit().return_value  # type: ignore[attr-defined]
    if ended["ended"] in ("diverged", "refused"):
        raise (FloatingPointError if ended["ended"] == "diverged" else UserError)(ended["reason"])
    return min(read_history(out), key=lambda row: row["cer"], default={})


def may_stream(prepared: PreparedSets, settings: TrainSettings, num_lines: int, runs_at_once: int) -> bool:
    """Returns whether to prepare for streaming: if the settings request it, or if the lines of all runs might not fit
    into the memory of a node."""
    memory = min(node["Resources"].get("memory", 0) for node in working_nodes())
    return settings.stream or runs_at_once * num_lines * prepared.bytes_per_line > KEPT_SHARE * memory


def read_train_lines(prepared: PreparedSets, selection: Selection, *, seed: int) -> ray.data.Dataset:
    """Returns the training lines of the run, in blocks of at least one shard, with the shards in random order."""
    lines = prepared.read_shuffled("train", seed=seed)
    if selection.is_all:
        return lines
    return lines.map_batches(
        replace(selection, teacher=None).of, batch_format="pyarrow", batch_size=None, num_cpus=0.25
    )
