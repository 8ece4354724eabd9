"""Images by the million to Parquet transcripts: a row for each of them, whatever is in it, whatever is killed."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from itertools import takewhile
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from hwr_ray.cluster.connection import check_shared, connect, rows_of
from hwr_ray.cluster.monitoring import count_lines
from hwr_ray.cluster.progress import Progress
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.recognition.bundle_config import SHIPPED_WORD, BundleConfig, bundle_path, read_config
from hwr_ray.transcription.actors import ReadingSettings, read_partitions_with
from hwr_ray.transcription.inputs import Inputs, InputSettings, open_inputs
from hwr_ray.transcription.partitions import STATE, WORK, WRITTEN, Partitions, check_out, read_inputs, repeated_key
from hwr_ray.transcription.transcripts import (
    STAGES,
    describe_errors,
    describe_review,
    errors_of,
    load_partition,
    summarize,
)
from hwr_ray.versions import versions

log = logging.getLogger(__name__)

MOST_ROWS, PARTITION_BYTES = 2048, 32 << 20
"""Of a partition: what is read again after a kill is a few of them. Ray splits blocks from 128 MiB on."""
LISTING_SECONDS = 10
"""For which the first round waits for more inputs."""
PARTITIONS_AT_ONCE = 2
"""In each process with a model, where something is waited for: see `partitions_at_once`."""
LOADER_CPUS = 0.5
"""Ray's logical CPUs of a process that reads and decodes for models on GPUs: a node with one CPU has both."""
PARTITIONS_IN_STORE = 4
"""Of each such process and model, at most: what is ahead of the models must not grow with the job."""
NO_PROGRESS_SECONDS = 3600
"""Without a partition before Ray gives up: one of huge images takes long."""
MODEL_BOUND = 0.8
"""Share of the time in which the models read, from which on they bound the speed."""
FEWEST_ROWS = 1000
"""Rows after which --max-error-rate may stop the job; at its end it always may."""


@dataclass(frozen=True, kw_only=True)
class TranscribeSettings:
    inputs: InputSettings
    model: str = SHIPPED_WORD
    """A bundle, such as RUN/best (jobs/train.py), or `shipped`: the one that comes with the package."""
    out: str
    """Folder or URI for *.parquet and _run.json. The same command again goes on, and adds images that are new."""
    precision: float = 0.99
    """Share of right texts, 0 to 1, among those that need no review."""
    max_error_rate: float = 1.0
    """Share of images, 0 to 1, that may fail before the job stops."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    overwrite: bool = False
    """Delete the transcripts that are there and start over; without it the same command goes on."""

    def __post_init__(self) -> None:
        for name in ("precision", "max_error_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must lie in 0 to 1, not {getattr(self, name)}")


def transcribe(settings: TranscribeSettings) -> str:
    """Writes the transcripts of the settings. Raises UserError for what its user can mend."""
    start = time.time()
    model_path, out = bundle_path(settings.model), storage.absolute(settings.out)
    bundle, inputs = read_config(model_path), open_inputs(settings.inputs)
    reading = settings.reading.for_workers(model_path, bundle)
    if inputs.holds(out, WRITTEN):
        raise UserError(f"--out {out} lies in --images {settings.inputs.images}: name one outside of it")
    if settings.inputs.has_keys and (repeated := repeated_key(inputs)):
        raise UserError(f"{settings.inputs.images} has {repeated} twice: name a unique --id-column")
    threshold, share = bundle.decoding.review_threshold(settings.precision, greedy=reading.greedy)
    fingerprint = fingerprint_of(settings, bundle, reading)
    check_out(out, fingerprint, overwrite=settings.overwrite)
    connect()
    feed_cpus = LOADER_CPUS if reading.workers.use_gpu else 0
    reading = reading.admitted(feed_cpus)
    check_shared(model_path, settings.inputs.folder, *([reading.lexicon] if reading.lexicon else []))
    partitions = Partitions(out, fingerprint, overwrite=settings.overwrite)
    check_shared(storage.join(out, STATE))
    run = TranscriptionRun(settings, inputs, bundle, reading, partitions, threshold)
    run.run()
    if not partitions.num_rows:
        is_new = all(name.startswith(f"{WORK}/") for name in storage.list_files(out))
        storage.delete(out if is_new else storage.join(out, WORK))
        raise UserError(f"{settings.inputs.images} holds no image")
    partitions.finish()
    counts = summarize(partitions)
    if counts["num_images"] != partitions.num_rows:
        raise RuntimeError(f"{counts['num_images']} of {partitions.num_rows} images came back: {out} is not whole")
    partitions.close(
        {
            **counts,
            "review_threshold": threshold if threshold is not None and np.isfinite(threshold) else None,
            "seconds": round(time.time() - start, 1),
            "speed": run.speed(),
            "model_id": bundle.model_id,
            "settings": asdict(settings),
            "versions": versions(),
        }
    )
    errors = describe_errors(Counter(counts["errors"]))
    log.info("%s of %s images read, errors: %s", counts["num_read"], counts["num_images"], errors)
    log.info("%s", describe_review(counts, threshold, share, settings.precision))
    return out


class TranscriptionRun:
    """Reads the inputs partition by partition."""

    def __init__(
        self,
        settings: TranscribeSettings,
        inputs: Inputs,
        bundle: BundleConfig,
        reading: ReadingSettings,
        partitions: Partitions,
        threshold: float | None,
    ) -> None:
        self.settings, self.inputs, self.bundle, self.reading = settings, inputs, bundle, reading
        self.partitions, self.threshold = partitions, threshold
        self.waiting = SimpleQueue[str]()
        """Names of partitions to read."""
        self.is_stopped = False
        self.num_rows = 0
        """Read by this run."""
        self.num_seen, self.errors = errors_of(partitions)
        """Rows of all partitions that are read, also by earlier attempts, and how many failed for each reason."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.wall = self.start_up = 0.0

    def run(self) -> None:
        """Lists the inputs and reads them as they come, in rounds: what one round leaves unlisted is in the next.

        Raises UserError where too many images fail, or another run took over.
        """
        pending = self.partitions.pending()
        done = self.partitions.num_rows - sum(len(read_inputs(self.partitions.out, name)) for name in pending)
        if self.partitions.num_rows:
            log.info("going on: %s images are done already", f"{done:,}")
        for name in pending:
            self.waiting.put(name)
        with ThreadPoolExecutor(1) as pool:
            listing, is_last = pool.submit(self._list), False
            total = lambda: self.partitions.num_rows if listing.done() else None  # noqa: E731
            try:
                with Progress("images", total, done=done) as progress:
                    while not is_last:
                        wait([listing], LISTING_SECONDS)
                        is_last = listing.done()  # read before the queue is emptied: nothing comes after
                        names = [self.waiting.get() for _ in range(self.waiting.qsize())]
                        for result in self._read(names[::-1]):  # the small partitions come first and fill the last gaps
                            progress.advance(result["num_rows"])
                            self._count(result)
                listing.result()
            finally:
                self.is_stopped = True
        self._check_errors(at_end=True)

    def speed(self) -> dict[str, Any]:
        """Images a second of this run since its first model was ready, the seconds that each stage was busy in all
        processes, and what bounded it."""
        whole, seconds = max(self.wall * (self.reading.num_workers or 1), 1e-9), dict(self.seconds)
        if (
            not self.reading.workers.use_gpu
        ):  # a model's time by the clock holds what the next partition's loading took of its CPU
            seconds["model"] = min(seconds["model"], max(0.0, whole - seconds["decode"]))
        bound = slowest(seconds, whole, use_gpu=self.reading.workers.use_gpu)
        return {
            "num_images": self.num_rows,
            "images_per_second": round(self.num_rows / self.wall, 1) if self.wall else None,
            "start_up_seconds": round(self.start_up, 1),
            "wall_seconds": round(self.wall, 1),
            "busy_seconds": {stage: round(value, 1) for stage, value in seconds.items()},
            "model_busy": round(seconds["model"] / whole, 3),
            "bound_by": "start-up" if self.start_up > self.wall else bound,
        }

    def _list(self) -> None:
        canvas = self.bundle.canvas
        most = min(MOST_ROWS, max(1, PARTITION_BYTES // (canvas.height * canvas.width)))
        tables = takewhile(lambda _: not self.is_stopped, self.inputs.tables())
        for name in self.partitions.assign(tables, most=most):
            self.waiting.put(name)

    def _read(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """What came of each partition, as they are done."""
        if not names:
            return
        partitions: ray.data.Dataset = ray.data.from_arrow([pa.table({"partition": [name]}) for name in names])
        load = partial(load_partition, out=self.partitions.out, inputs=self.inputs, canvas=self.bundle.canvas)
        if (
            self.reading.workers.use_gpu
        ):  # other processes load ahead of the models; on CPUs no picture leaves its process
            partitions = partitions.map_batches(load, batch_format="pyarrow", batch_size=None, num_cpus=LOADER_CPUS)
        stored = read_partitions_with(
            partitions,
            bundle_path(self.settings.model),
            self.reading,
            load=None if self.reading.workers.use_gpu else load,
            out=self.partitions.out,
            threshold=self.threshold,
            num_blocks=len(names),
            calls_at_once=partitions_at_once(
                self.settings.inputs.folder, self.partitions.out, use_gpu=self.reading.workers.use_gpu
            ),
        )
        stored.context.enable_progress_bars = False
        stored.context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
        if self.reading.workers.use_gpu:
            processes = ray.cluster_resources()["CPU"] / LOADER_CPUS + (self.reading.num_workers or 1)
            limits = ray.data.ExecutionResources.for_limits(
                object_store_memory=PARTITIONS_IN_STORE * PARTITION_BYTES * processes
            )
            stored.context.execution_options.resource_limits = limits
        start, ready = time.monotonic(), np.inf
        for result in rows_of(stored):
            ready = min(ready, time.monotonic() - result["ready_seconds"])
            yield result
        self.start_up += ready - start
        self.wall += time.monotonic() - ready

    def _count(self, result: dict[str, Any]) -> None:
        self.num_rows += result["num_rows"]
        self.num_seen += result["num_rows"]
        errors = Counter(dict(result["errors"]))
        count_lines("transcribe", [("read", result["num_rows"] - errors.total()), *errors.items()])
        self.errors += errors
        for stage in STAGES:
            self.seconds[stage] += result[f"{stage}_seconds"]
        self.partitions.owner.check()
        self._check_errors(at_end=False)

    def _check_errors(self, *, at_end: bool) -> None:
        most, num_failed = self.settings.max_error_rate, self.errors.total()
        if (at_end or self.num_seen >= FEWEST_ROWS) and num_failed > most * self.num_seen:
            raise UserError(
                f"{num_failed} of {self.num_seen} images failed ({describe_errors(self.errors)}), more than "
                f"--max-error-rate {most:g}: see `error` in {self.partitions.out}/_work/outputs; the same command with "
                "a higher rate resumes"
            )


def slowest(seconds: dict[str, float], whole: float, *, use_gpu: bool) -> str:
    """The stage that bounds the speed, from the seconds that each was busy and those of all models, busy or not.

    On CPUs all stages share the models' CPUs. For models on GPUs others work, however many: these bound it where the
    models wait.
    """
    if use_gpu and seconds["model"] > MODEL_BOUND * whole:
        return "model"
    return max((stage for stage in STAGES if not (use_gpu and stage == "model")), key=seconds.__getitem__)


def partitions_at_once(images: str, out: str, *, use_gpu: bool) -> int:
    """How many partitions an actor works on: while one is read, the next is fetched and the last is stored.

    With files on disks there is little to wait for, and two threads on one CPU get in each other's way
    (benchmarks/results/processes.md).
    """
    return PARTITIONS_AT_ONCE if use_gpu or "://" in images + out else 1


def fingerprint_of(settings: TranscribeSettings, bundle: BundleConfig, reading: ReadingSettings) -> dict[str, Any]:
    """What decides the rows of a job: another attempt must have the same."""
    lexicon = sha256(storage.read_bytes(reading.lexicon)).hexdigest() if reading.lexicon else None
    return {
        "inputs": asdict(settings.inputs.absolute()),
        "model_id": bundle.model_id,
        "greedy": reading.greedy,
        "lexicon": lexicon,
        "num_best": reading.num_best,
        "characters": reading.characters,
        "precision": settings.precision,
    }
