"""The rows of a batch transcription: pictures of a partition in, transcripts of it out, and counts over all of them.

Nothing here or below imports torch, which would take the processes that load for GPUs seconds to start.
"""

import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hwr_ray.files import storage
from hwr_ray.images.arrow import column_of
from hwr_ray.images.lines import Canvas
from hwr_ray.images.reader import Line, in_groups, lines_of
from hwr_ray.transcription.inputs import Inputs
from hwr_ray.transcription.partitions import OUTPUTS, Partitions, read_inputs, read_parquet, write_output

ALTERNATIVES = pa.list_(pa.struct({"text": pa.string(), "share": pa.float32()}))
"""The next best candidates with their shares, 0 to 1, of the candidates' probability."""
CHARACTERS = pa.list_(
    pa.struct({"character": pa.string(), "confidence": pa.float32(), "left": pa.int32(), "right": pa.int32()})
)
"""The letters of a text: each one's own probability, 0 to 1, and where it stands, in pixels of the image file."""
TRANSCRIPTS = pa.schema(
    {
        "id": pa.string(),  # key of the row, where the inputs have one; unique
        "path": pa.string(),  # of the image, from --images on or as the manifest has it; unique where there is no id
        "text": pa.string(),  # null where the image could not be read
        "confidence": pa.float32(),  # chance that the text is right, 0 to 1; null without a text
        "needs_review": pa.bool_(),  # whether the confidence is too low for --precision; true without a text
        "alternatives": ALTERNATIVES,  # the --num-best candidates without the text; null without a text
        "characters": CHARACTERS,  # of the text, with --characters; else null
        "error": pa.string(),  # reason and sentence, null where the image was read
        "model_id": pa.string(),  # of the bundle
        "height": pa.int32(),  # of the image, in pixels; null where it could not be decoded
        "width": pa.int32(),
    }
)
"""Columns of OUT/*.parquet."""
STAGES = ("read", "decode", "model", "write")
"""Of a partition: bytes from files, pictures from bytes, texts from pictures, rows to a file."""


def load_partition(table: pa.Table, *, out: str, inputs: Inputs, canvas: Canvas) -> pa.Table:
    """Returns the rows of the partition that a table of one row names, with `image` on the canvas, `height`, `width`,
    `error`, and seconds: those of reading by the clock, those of decoding on the CPU.

    Raises UserError where a file can't be read for a reason that is not its own.
    """
    (name,) = table["partition"].to_pylist()
    rows = read_inputs(out, name)
    found, lines = inputs.fetch(rows), list[Line]()
    read_seconds = decode_seconds = 0.0
    start = time.monotonic()
    for files in in_groups(found):  # as lines_of takes them; a look at the clock for each would cost a twelfth of both
        read_seconds += time.monotonic() - start
        cpu_start = time.thread_time()
        lines += lines_of(files, canvas)
        decode_seconds += time.thread_time() - cpu_start
        start = time.monotonic()
    errors = [f"{line.reason}: {line.detail}" if line.reason else None for line in lines]
    columns = {
        "partition": [name] * len(rows),
        "num_rows": [len(rows)] * len(rows),
        "read_seconds": [read_seconds] * len(rows),
        "decode_seconds": [decode_seconds] * len(rows),
        "id": rows["id"],
        "path": rows["path"],
        "image": column_of([line.image for line in lines], canvas),
        "height": pa.array([line.height for line in lines], pa.int32()),
        "width": pa.array([line.width for line in lines], pa.int32()),
        "error": pa.array(errors, pa.string()),
    }
    return pa.table(columns)


def store_partition(table: pa.Table, *, out: str, model_id: str, threshold: float | None) -> pa.Table:
    """Writes the readings of a partition of `out` as transcripts; returns a row of what it cost and of its errors.

    Raises RuntimeError where rows of the partition are missing, UserError where no space is left.
    """
    first = table.select(["partition", "num_rows", *(f"{s}_seconds" for s in STAGES[:-1])]).slice(0, 1).to_pylist()[0]
    if len(table) != first["num_rows"] or pc.count_distinct(table["partition"]).as_py() != 1:
        raise RuntimeError(f"{len(table)} of {first['num_rows']} rows of the partition {first['partition']} came back")
    start = time.monotonic()
    write_output(out, first["partition"], to_transcripts(table, model_id=model_id, threshold=threshold))
    told = {name: [value] for name, value in first.items()} | {"write_seconds": [time.monotonic() - start]}
    errors = pa.array([list(_reasons(table["error"]).items())], pa.map_(pa.string(), pa.int64()))
    return pa.table({**told, "errors": errors})


def to_transcripts(table: pa.Table, *, model_id: str, threshold: float | None) -> pa.Table:
    """Readings as rows of the schema TRANSCRIPTS."""
    columns = {name: table[name] for name in TRANSCRIPTS.names if name in table.column_names}
    columns |= {"text": table["prediction"], "model_id": [model_id] * len(table)}
    passes = pc.fill_null(pc.greater_equal(table["confidence"], threshold or 0.0), False)
    columns["needs_review"] = pa.nulls(len(table), pa.bool_()) if threshold is None else pc.invert(passes)
    return pa.table({name: columns[name] for name in TRANSCRIPTS.names}, schema=TRANSCRIPTS)


def summarize(partitions: Partitions) -> dict[str, Any]:
    """Counts over all transcripts."""
    errors, num_images, num_review, num_judged = Counter[str](), 0, 0, 0
    for path in partitions.files():
        table = read_parquet(path, columns=["error", "needs_review"])
        num_images += len(table)
        num_review += pc.sum(table["needs_review"]).as_py() or 0
        num_judged += len(table) - table["needs_review"].null_count
        errors += _reasons(table["error"])
    return {
        "num_images": num_images,
        "num_read": num_images - errors.total(),
        "num_review": num_review if num_judged else None,
        "errors": dict(errors),
    }


def errors_of(partitions: Partitions) -> tuple[int, Counter[str]]:
    """How many rows the partitions have that are read, and for which reasons how many of them failed."""
    pending, num_rows, errors = set(partitions.pending()), 0, Counter[str]()
    for name in partitions.names:
        if name not in pending:
            column = read_parquet(storage.join(partitions.out, OUTPUTS, name), columns=["error"])["error"]
            num_rows += len(column)
            errors += _reasons(column)
    return num_rows, errors


def _reasons(errors: pa.ChunkedArray) -> Counter[str]:
    """How many rows failed for each reason; null is none."""
    return Counter(error.split(":")[0] for error in errors.drop_null().to_pylist())


def describe_errors(errors: Counter[str]) -> str:
    """Reasons with their numbers, the most frequent first."""
    return ", ".join(f"{reason} {number}" for reason, number in errors.most_common()) or "none"


def describe_review(counts: dict[str, Any], threshold: float | None, share: float, precision: float) -> str:
    """One sentence on how many texts need no review."""
    if threshold is None:
        return "the bundle holds no calibration: `needs_review` is null"
    if not np.isfinite(threshold):
        return f"no confidence promises a precision of {precision:g}: every image needs review"
    passed = counts["num_images"] - counts["num_review"]
    return (
        f"{passed} of {counts['num_images']} images ({passed / counts['num_images']:.1%}) need no review at a "
        f"precision of {precision:g}: their confidence is {threshold:.3f} or more (of the validation lines {share:.1%})"
    )
