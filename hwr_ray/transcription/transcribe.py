"""Batch transcription: a Parquet row for each image, even if the image is damaged or the job is killed."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
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
from hwr_ray.images.line_warnings import warning_messages
from hwr_ray.recognition.bundle_config import BundleConfig, bundle_path, read_config
from hwr_ray.transcription.actors import Loader, partitions_at_once, read_partitions_with
from hwr_ray.transcription.inputs import ImageTables, Inputs, open_inputs
from hwr_ray.transcription.partitions import STATE, WORK, WRITTEN, Partitions, check_out, read_inputs, repeated_key
from hwr_ray.transcription.settings import ReadingSettings, TranscribeSettings
from hwr_ray.transcription.transcripts import (
    STAGES,
    TRANSCRIPTS,
    describe_errors,
    describe_review,
    errors_of,
    fetch_partitions,
    load_packed,
    load_partition,
    slowest,
    summarize,
    unpack,
)
from hwr_ray.versions import versions

log = logging.getLogger(__name__)

MOST_ROWS, PARTITION_BYTES = 2048, 32 << 20
"""Maximum rows and image bytes of a partition. A kill costs a few partitions at most. Ray splits blocks of 128 MiB or
more."""
LISTING_SECONDS = 10
"""Seconds that a round waits for the listing to end."""
LOADER_CPUS = 0.5
"""Ray's logical CPUs of a loader, which reads and decodes for models on GPUs. A node with one CPU fits both."""
PARTITIONS_IN_STORE = 4
"""Maximum number of partitions in the object store per loader and model, so that memory does not grow with the job."""
NO_PROGRESS_SECONDS = 3600
"""Seconds without a finished partition before Ray gives up. A partition of huge images takes long."""
FEWEST_ROWS = 1000
"""Number of rows from which --max-error-rate may stop the job early. At the end of the job it always applies."""


def transcribe(settings: TranscribeSettings) -> str:
    """Transcribes the inputs of the settings; returns the absolute path or URI of the output.

    Raises UserError if an input or setting is invalid, the cluster is too small, or too many images fail.
    """
    start = time.time()
    model_path, out = bundle_path(settings.model), storage.absolute(settings.out)
    bundle, inputs = read_config(model_path), open_inputs(settings.inputs)
    reading = settings.reading.for_workers(model_path, bundle)
    if inputs.holds(out, WRITTEN):
        raise UserError(f"--out {out} is inside --images {settings.inputs.images}: choose a folder outside it")
    if settings.inputs.has_keys and (repeated := repeated_key(inputs)):
        raise UserError(f"{settings.inputs.images} has {repeated} more than once: choose a unique --id-column")
    threshold, share = bundle.decoding.review_threshold(settings.precision, greedy=reading.greedy)
    model_id = reading.model_id(bundle)
    fingerprint = fingerprint_of(settings, model_id, reading)
    check_out(out, fingerprint, overwrite=settings.overwrite)
    connect()
    feed_cpus = LOADER_CPUS if reading.workers.use_gpu or isinstance(inputs, ImageTables) else 0
    reading = reading.admitted(feed_cpus)
    check_shared(model_path, *reading.voters, settings.inputs.folder, *([reading.lexicon] if reading.lexicon else []))
    partitions = Partitions(out, fingerprint, overwrite=settings.overwrite, schema=TRANSCRIPTS)
    check_shared(storage.join(out, STATE))
    run = TranscriptionRun(settings, inputs, bundle, reading, partitions, threshold)
    run.run()
    if not partitions.num_rows:
        is_new = all(name.startswith(f"{WORK}/") for name in storage.list_files(out))
        storage.delete(out if is_new else storage.join(out, WORK))
        raise UserError(f"{settings.inputs.images} contains no images: check --images")
    partitions.finish()
    counts = summarize(partitions)
    if counts["num_images"] != partitions.num_rows:
        raise RuntimeError(f"{out} is incomplete: it has {counts['num_images']} of {partitions.num_rows} images")
    partitions.close(
        {
            **counts,
            "review_threshold": threshold if threshold is not None and np.isfinite(threshold) else None,
            "seconds": round(time.time() - start, 1),
            "speed": run.speed(),
            "model_id": model_id,
            "settings": asdict(settings),
            "versions": versions(),
        }
    )
    errors = describe_errors(Counter(counts["errors"]))
    log.info("%s of %s images transcribed, errors: %s", counts["num_read"], counts["num_images"], errors)
    for sentence in warning_messages(counts["warnings"]):
        log.warning("%s", sentence)
    label_noise = bundle.decoding.label_noise(greedy=reading.greedy)
    log.info("%s", describe_review(counts, threshold, share, settings.precision, label_noise))
    return out


class TranscriptionRun:
    """Transcribes the inputs partition by partition."""

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
        """Names of the partitions to transcribe."""
        self.is_stopped = False
        self.num_rows = 0
        """Number of rows that this run transcribed."""
        self.num_seen, self.errors = errors_of(partitions)
        """Number of rows in all finished partitions, of earlier attempts too, and number of errors by reason."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.wall = self.start_up = 0.0

    def run(self) -> None:
        """Lists the inputs and transcribes them in rounds; each round takes the partitions listed since the last one.

        Raises UserError if too many images fail or another run takes over.
        """
        pending = self.partitions.pending()
        done = self.partitions.num_rows - sum(len(read_inputs(self.partitions.out, name)) for name in pending)
        if self.partitions.num_rows:
            log.info("resuming: %s images are already done", f"{done:,}")
        for name in pending:
            self.waiting.put(name)
        with ThreadPoolExecutor(1) as pool:
            listing, is_last = pool.submit(self._list), False
            total = lambda: self.partitions.num_rows if listing.done() else None  # noqa: E731
            try:
                with Progress("images", total, done=done) as progress:
                    while not is_last:
                        wait([listing], LISTING_SECONDS)
                        is_last = listing.done()  # before the queue is emptied, so that nothing is missed
                        names = [self.waiting.get() for _ in range(self.waiting.qsize())]
                        for result in self._read(names):
                            progress.advance(result["num_rows"])
                            self._count(result)
                listing.result()
            finally:
                self.is_stopped = True
        self._check_errors(at_end=True)

    def speed(self) -> dict[str, Any]:
        """Returns the throughput of this run in images a second since its first model was ready, the busy seconds of
        each stage over all processes, and the bottleneck."""
        whole, seconds = max(self.wall * (self.reading.num_workers or 1), 1e-9), dict(self.seconds)
        if not self.reading.workers.use_gpu:
            # The wall-clock time of a model includes the CPU time it lost to loading the next partition.
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
        """Yields the row of `read_partitions_with` for each partition as it finishes."""
        if not names:
            return
        out, on_gpu = self.partitions.out, self.reading.workers.use_gpu
        passes = self._passes(names)
        partitions: ray.data.Dataset = ray.data.from_arrow([pa.table({"partition": names}) for names in passes])
        loaders: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "num_cpus": LOADER_CPUS}
        if isinstance(self.inputs, ImageTables):
            fetch = partial(fetch_partitions, out=out, inputs=self.inputs)
            partitions = partitions.map_batches(fetch, **loaders)
        load: Loader = partial(
            load_partition,
            out=out,
            inputs=self.inputs,
            canvas=self.bundle.canvas,
            invert=self.settings.inputs.invert is not None or self.bundle.invert,
        )
        if on_gpu:
            # Other processes load ahead of the models. On CPUs no decoded image leaves its process.
            partitions, load = partitions.map_batches(partial(load_packed, load=load), **loaders), unpack
        stored = read_partitions_with(
            partitions,
            bundle_path(self.settings.model),
            self.reading,
            load=load,
            out=out,
            threshold=self.threshold,
            num_blocks=len(names),
            calls_at_once=partitions_at_once(self.settings.inputs.folder, out, use_gpu=on_gpu),
        )
        stored.context.target_max_block_size = 1  # byte: each row, which is a partition, becomes a block
        stored.context.enable_progress_bars = False
        stored.context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
        if on_gpu or isinstance(self.inputs, ImageTables):
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

    def _passes(self, names: list[str]) -> list[list[str]]:
        """Returns the partitions by the pass that fetches their images."""
        if not isinstance(self.inputs, ImageTables):
            return [[name] for name in names[::-1]]  # small partitions last, to fill gaps
        passes: dict[str, list[str]] = {}
        for name in names:
            key = self.inputs.pass_of(read_inputs(self.partitions.out, name))
            passes.setdefault(key, []).append(name)
        return list(passes.values())

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
                f"--max-error-rate {most:g}: see `error` in {self.partitions.out}/_work/outputs; to resume, run the "
                "same command with a higher rate"
            )


def fingerprint_of(settings: TranscribeSettings, model_id: str, reading: ReadingSettings) -> dict[str, Any]:
    """Returns what determines the rows of a job; every attempt must have the same."""
    lexicon = sha256(storage.read_bytes(reading.lexicon)).hexdigest() if reading.lexicon else None
    return {
        "inputs": asdict(settings.inputs.absolute()),
        "model_id": model_id,
        "greedy": reading.greedy,
        "lexicon": lexicon,
        "num_best": reading.num_best,
        "characters": reading.characters,
        "precision": settings.precision,
    }
