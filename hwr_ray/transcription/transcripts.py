"""Rows of a batch transcription: the images of a partition, its transcripts and their counts.

Neither this module nor its imports load torch, which would delay the start of the loaders for GPUs by seconds.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hwr_ray.files import storage
from hwr_ray.images.arrow import column_of
from hwr_ray.images.lines import Canvas
from hwr_ray.images.reader import Line, in_groups, lines_of
from hwr_ray.transcription.inputs import NO_IMAGE, Inputs
from hwr_ray.transcription.partitions import OUTPUTS, Partitions, read_inputs, read_parquet, write_output

ALTERNATIVES = pa.list_(pa.struct({"text": pa.string(), "share": pa.float32()}))
"""Type of `alternatives`: the next best candidates, each with its share, 0 to 1, of the candidates' probability."""
CHARACTERS = pa.list_(
    pa.struct({"character": pa.string(), "confidence": pa.float32(), "left": pa.int32(), "right": pa.int32()})
)
"""Type of `characters`: each character's own probability, 0 to 1, and its position in pixels of the image file."""
TRANSCRIPTS = pa.schema(
    {
        "id": pa.string(),  # unique key of the row, if the inputs have one; else null
        "path": pa.string(),  # path of the image, relative to --images or as in the manifest; unique if there is no id
        "text": pa.string(),  # null if the image could not be read
        "confidence": pa.float32(),  # probability that the text is correct, 0 to 1; null without a text
        "needs_review": pa.bool_(),  # whether the confidence is too low for --precision; true without a text
        "alternatives": ALTERNATIVES,  # the --num-best candidates other than the text; null without a text
        "characters": CHARACTERS,  # characters of the text, with --characters; else null
        "error": pa.string(),  # `reason: sentence`; null if the image was transcribed
        "warning": pa.string(),  # one of hwr_ray.images.line_warnings.WARNINGS, or null
        "model_id": pa.string(),  # id of the bundle
        "height": pa.int32(),  # height of the image file in pixels; null if it could not be decoded
        "width": pa.int32(),  # width, likewise
    }
)
"""Columns of OUT/*.parquet."""
FILES = pa.list_(pa.binary())
STAGES = ("read", "decode", "model", "write")
"""Stages of a partition: files to bytes, bytes to images, images to texts, rows to a file."""
MODEL_BOUND = 0.8
"""Model utilization above which the model counts as the bottleneck."""


def fetch_partitions(table: pa.Table, *, out: str, inputs: Inputs) -> Iterator[pa.Table]:
    """Yields a row for each partition named in a table, with the bytes of its images, `files`, from one pass.

    Raises UserError if the storage fails.
    """
    names = table["partition"].to_pylist()
    rows = [read_inputs(out, name) for name in names]
    files = inputs.fetch(pa.concat_tables(rows))
    for name, part in zip(names, rows, strict=True):
        start = time.monotonic()
        found = [None if isinstance(file, Line) else file for file in islice(files, len(part))]
        seconds = time.monotonic() - start
        yield pa.table({"partition": [name], "read_seconds": [seconds], "files": pa.array([found], FILES)})


def load_partition(table: pa.Table, *, out: str, inputs: Inputs, canvas: Canvas, invert: bool = False) -> pa.Table:
    """Returns the rows of the partition named in a table of one row, with `image` on the canvas, `height`, `width`,
    `warning`, `error`, `read_seconds` (wall clock) and `decode_seconds` (CPU time).

    Fetches the images unless `fetch_partitions` did. Raises UserError if the storage fails; a single unreadable file is
    no error.
    """
    (given,) = table.to_pylist()
    name = given["partition"]
    rows = read_inputs(out, name)
    files = inputs.fetch(rows)
    if "files" in given:
        files = (file or NO_IMAGE for file in given["files"])
    lines = list[Line]()
    read_seconds, decode_seconds = given.get("read_seconds", 0.0), 0.0
    start = time.monotonic()
    for group in in_groups(files):  # as in lines_of; to time each file would cost a twelfth of both stages
        read_seconds += time.monotonic() - start
        cpu_start = time.thread_time()
        lines += lines_of(group, canvas, invert=invert)
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
        "warning": pa.array([line.warning for line in lines], pa.string()),
        "error": pa.array(errors, pa.string()),
    }
    return pa.table(columns)


def load_packed(table: pa.Table, *, load: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Returns a loaded partition as one row, which Ray Data neither splits nor joins with others."""
    loaded, sink = load(table), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, loaded.schema) as stream:
        stream.write_table(loaded)
    return pa.table({"packed": [sink.getvalue().to_pybytes()]})


def unpack(table: pa.Table) -> pa.Table:
    """Returns the partition that `load_packed` loaded."""
    return pa.ipc.open_stream(table["packed"][0].as_buffer()).read_all()


def store_partition(table: pa.Table, *, out: str, model_id: str, threshold: float | None) -> pa.Table:
    """Writes the transcripts of a partition to `out`; returns one row with its timings and error counts.

    Raises RuntimeError if rows of the partition are missing, UserError if no space is left.
    """
    first = table.select(["partition", "num_rows", *(f"{s}_seconds" for s in STAGES[:-1])]).slice(0, 1).to_pylist()[0]
    if len(table) != first["num_rows"] or pc.count_distinct(table["partition"]).as_py() != 1:
        raise RuntimeError(f"the partition {first['partition']} has {len(table)} of its {first['num_rows']} rows")
    start = time.monotonic()
    write_output(out, first["partition"], to_transcripts(table, model_id=model_id, threshold=threshold))
    row = {name: [value] for name, value in first.items()} | {"write_seconds": [time.monotonic() - start]}
    errors = pa.array([list(_reasons(table["error"]).items())], pa.map_(pa.string(), pa.int64()))
    return pa.table({**row, "errors": errors})


def to_transcripts(table: pa.Table, *, model_id: str, threshold: float | None) -> pa.Table:
    """Returns predictions as rows of the schema TRANSCRIPTS."""
    columns = {name: table[name] for name in TRANSCRIPTS.names if name in table.column_names}
    columns |= {"text": table["prediction"], "model_id": [model_id] * len(table)}
    passes = pc.fill_null(pc.greater_equal(table["confidence"], threshold or 0.0), False)
    columns["needs_review"] = pa.nulls(len(table), pa.bool_()) if threshold is None else pc.invert(passes)
    return pa.table({name: columns[name] for name in TRANSCRIPTS.names}, schema=TRANSCRIPTS)


def summarize(partitions: Partitions) -> dict[str, Any]:
    """Returns counts over all transcripts."""
    errors, warnings, num_images, num_review, num_judged = Counter[str](), Counter[str](), 0, 0, 0
    for path in partitions.files():
        table = read_parquet(path, columns=["error", "warning", "needs_review"], schema=TRANSCRIPTS)
        num_images += len(table)
        num_review += pc.sum(table["needs_review"]).as_py() or 0
        num_judged += len(table) - table["needs_review"].null_count
        errors += _reasons(table["error"])
        warnings.update(table["warning"].drop_null().to_pylist())
    return {
        "num_images": num_images,
        "num_read": num_images - errors.total(),
        "num_review": num_review if num_judged else None,
        "errors": dict(errors),
        "warnings": dict(warnings),
    }


def errors_of(partitions: Partitions) -> tuple[int, Counter[str]]:
    """Returns the number of rows in all finished partitions, and how many of them failed for each reason."""
    pending, num_rows, errors = set(partitions.pending()), 0, Counter[str]()
    for name in partitions.names:
        if name not in pending:
            column = read_parquet(storage.join(partitions.out, OUTPUTS, name), columns=["error"])["error"]
            num_rows += len(column)
            errors += _reasons(column)
    return num_rows, errors


def _reasons(errors: pa.ChunkedArray) -> Counter[str]:
    """Returns how many rows failed for each reason; null means no error."""
    return Counter(error.split(":")[0] for error in errors.drop_null().to_pylist())


def describe_errors(errors: Counter[str]) -> str:
    """Returns the reasons with their counts, the most frequent first."""
    return ", ".join(f"{reason} {number}" for reason, number in errors.most_common()) or "none"


def describe_review(
    counts: dict[str, Any], threshold: float | None, share: float, precision: float, label_noise: float = 0.0
) -> str:
    """Returns a sentence on how many texts need no review."""
    if threshold is None:
        return "the bundle has no calibration: `needs_review` is null"
    if not np.isfinite(threshold):
        return f"no confidence threshold reaches a precision of {precision:g}: every image needs review"
    passed = counts["num_images"] - counts["num_review"]
    noise = f", of whose labels an estimated {label_noise:.1%} are wrong" if label_noise else ""
    return (
        f"{passed} of {counts['num_images']} images ({passed / counts['num_images']:.1%}) need no review at a "
        f"precision of {precision:g}: their confidence is at least {threshold:.3f} (reached by {share:.1%} of the "
        f"validation lines{noise})"
    )


def slowest(seconds: dict[str, float], whole: float, *, use_gpu: bool) -> str:
    """Returns the bottleneck, from the busy `seconds` of each stage and those of all models, busy or idle (`whole`).

    On CPUs all stages share the models' CPUs: the busiest stage is the bottleneck. With GPUs the other stages run in
    other processes: the busiest of them is the bottleneck if the models wait, else the model is.
    """
    if use_gpu and seconds["model"] > MODEL_BOUND * whole:
        return "model"
    return max((stage for stage in STAGES if not (use_gpu and stage == "model")), key=seconds.__getitem__)
