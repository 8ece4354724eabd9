"""A folder of images to Parquet transcripts: a row for every file, whatever is in it."""

import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import ray.data

from hwr_ray import storage
from hwr_ray.batch_reading import ALTERNATIVES, ROWS_PER_BLOCK, ReadingSettings, read_lines_with
from hwr_ray.bundle import SHIPPED, load_bundle
from hwr_ray.cluster import connect, preflight
from hwr_ray.errors import UserError
from hwr_ray.line_images import Canvas
from hwr_ray.line_reading import read_lines
from hwr_ray.provenance import versions

log = logging.getLogger(__name__)

TRANSCRIPTS = pa.schema(
    {
        "path": pa.string(),  # of the image, from --images on; unique
        "text": pa.string(),  # null where the image could not be read
        "confidence": pa.float32(),  # chance that the text is right, 0 to 1; null without a text
        "alternatives": ALTERNATIVES,  # the --num-best candidates without the text; null without a text
        "error": pa.string(),  # reason and sentence, null where the image was read
        "model_id": pa.string(),  # of the bundle
        "height": pa.int32(),  # of the image, in pixels; null where it could not be decoded
        "width": pa.int32(),
    }
)
"""Columns of OUT/*.parquet."""


@dataclass(frozen=True, kw_only=True)
class TranscribeSettings:
    images: str
    """Folder or URI with images, at any depth. Every file is read, except those with a name that starts with a dot."""
    model: str = SHIPPED
    """A bundle, such as RUN/best (jobs/train.py); by default the one that comes with the package."""
    out: str
    """Folder or URI for *.parquet and _run.json."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    overwrite: bool = False
    """Replace transcripts that are there."""


def transcribe(settings: TranscribeSettings) -> None:
    """Writes the transcripts of the settings. Raises UserError for what its user can mend."""
    start = time.time()
    model_path, images = storage.absolute(settings.model), storage.absolute(settings.images)
    bundle, paths = load_bundle(model_path), list_images(images)
    reading = settings.reading.for_workers(model_path)
    with storage.staged(storage.absolute(settings.out), mark="_run.json", overwrite=settings.overwrite) as out:
        connect()
        preflight(reading.needs())
        table = pa.table({"path": paths})
        blocks = [table.slice(i, ROWS_PER_BLOCK) for i in range(0, len(table), ROWS_PER_BLOCK)]
        pictures = ray.data.from_arrow(blocks).map_batches(
            fit_files,  # type: ignore[arg-type]
            fn_kwargs={"images": images, "canvas": bundle.canvas},
            batch_format="pyarrow",
            num_cpus=0.25,  # other than the actors', or Ray would decode in them
        )
        filesystem, folder = storage.locate(out)
        read_lines_with(pictures, model_path, reading).map_batches(
            to_transcripts,  # type: ignore[arg-type]
            fn_kwargs={"model_id": bundle.model_id},
            batch_format="pyarrow",
            num_cpus=0.25,
        ).write_parquet(folder, filesystem=filesystem)
        written = pa.dataset.dataset(folder, filesystem=filesystem, format="parquet").to_table(columns=["error"])
        if len(written) != len(paths):
            raise RuntimeError(f"{len(written)} of {len(paths)} images came back: the transcripts are not whole")
        by_reason = Counter(error.split(":")[0] for error in written["error"].to_pylist() if error)
        run = {
            "num_images": len(paths),
            "num_read": len(paths) - by_reason.total(),
            "errors": dict(by_reason),
            "seconds": round(time.time() - start, 1),
            "model_id": bundle.model_id,
            "settings": asdict(settings),
            "versions": versions(),
        }
        storage.write_json(storage.join(out, "_run.json"), run)
    errors = ", ".join(f"{reason} {n}" for reason, n in by_reason.items()) or "none"
    log.info("%s of %s images read, errors: %s", run["num_read"], len(paths), errors)
    print(storage.absolute(settings.out))


def list_images(folder: str) -> list[str]:
    """Paths, from the folder on, of all files in it whose name starts with no dot. Raises UserError without one."""
    if not storage.is_folder(folder):
        raise UserError(f"there is no image folder {folder}")
    paths = [path for path in storage.list_files(folder) if not path.rsplit("/", 1)[-1].startswith(".")]
    if not paths:
        raise UserError(f"the folder {folder} holds no file")
    return paths


def fit_files(table: pa.Table, *, images: str, canvas: Canvas) -> pa.Table:
    """The table with `path`, read: adds `image` on the canvas, `height`, `width` and `error`."""
    lines = read_lines(images, table["path"].to_pylist(), canvas)
    added: dict[str, pa.Array] = {
        "image": pa.array([None if line.image is None else line.image.tobytes() for line in lines], pa.binary()),
        "height": pa.array([line.height for line in lines], pa.int32()),
        "width": pa.array([line.width for line in lines], pa.int32()),
        "error": pa.array([f"{line.reason}: {line.detail}" if line.reason else None for line in lines], pa.string()),
    }
    return pa.table({"path": table["path"], **added})


def to_transcripts(table: pa.Table, *, model_id: str) -> pa.Table:
    """Readings as rows of the schema TRANSCRIPTS."""
    columns: dict[str, Any] = {
        name: table[name] for name in ("path", "confidence", "alternatives", "error", "height", "width")
    }
    columns |= {"text": table["prediction"], "model_id": [model_id] * len(table)}
    return pa.table({name: columns[name] for name in TRANSCRIPTS.names}, schema=TRANSCRIPTS)
