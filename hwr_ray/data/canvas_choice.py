"""The choice of a canvas for a data set from a sample of its lines."""

import logging
from itertools import islice

import numpy as np

from hwr_ray.data.cleaning import CleaningSettings, reason_for
from hwr_ray.data.labels import LabelFile, read_rows
from hwr_ray.data.statistics import FEW_FRAMES, DatasetStatistics
from hwr_ray.errors import UserError
from hwr_ray.images.lines import MAX_STRETCH, Canvas
from hwr_ray.images.reader import lines_of, read_files
from hwr_ray.model.architecture import WIDTH_STRIDE
from hwr_ray.text.normalization import normalize

log = logging.getLogger(__name__)

NUM_SAMPLED, TABLES_SAMPLED = 2000, 50
"""Number of lines that are measured, and maximum number of tables of rows per label file that they are taken from."""
SHARE_SPARED = 0.02
"""Maximum share of the lines that may have fewer than FEW_FRAMES frames a character, or shrink to fit the width."""
MAX_WIDTH, WIDTH_STEP = 1024, 16


def choose_canvas(files: list[LabelFile], cleaning: CleaningSettings) -> Canvas:
    """Returns the canvas of the default height, at which the shipped model can be fine-tuned, with the smallest stretch
    and width that give 98 % of the lines FEW_FRAMES frames a character and room.

    Raises UserError if no line can be measured.
    """
    lines = _measured(files, cleaning)
    if not lines:
        raise UserError(f"no line of {files[0].path} can be measured for --canvas auto: pass --canvas HEIGHT WIDTH")
    heights, widths, characters = np.array(lines).T
    natural = widths * np.minimum(1, Canvas.height / heights)
    wanted = np.quantile(FEW_FRAMES * characters * WIDTH_STRIDE / natural, 1 - SHARE_SPARED)
    stretch = float(np.clip(np.ceil(4 * wanted) / 4, 1, MAX_STRETCH))
    width = np.quantile(natural * stretch, 1 - SHARE_SPARED)
    canvas = Canvas(Canvas.height, int(min(MAX_WIDTH, -(-width // WIDTH_STEP) * WIDTH_STEP)), stretch)
    cost = canvas.width / Canvas.width
    log.info(
        "canvas %s, from %d lines: %.2g times the work of the default canvas %s", canvas, len(lines), cost, Canvas()
    )
    return canvas


def poor_canvas(statistics: DatasetStatistics, canvas: Canvas) -> str | None:
    """Returns a sentence if many prepared lines have few frames a character on the canvas, else None."""
    few, total = statistics.few_frames, sum(n for (_, reason), n in statistics.rows.items() if reason == "prepared")
    if few <= SHARE_SPARED * total:
        return None
    return (
        f"{few} of {total} lines have fewer than {FEW_FRAMES} frames a character on the canvas {canvas}, which costs "
        "accuracy: prepare with --canvas auto"
    )


def _measured(files: list[LabelFile], cleaning: CleaningSettings) -> list[tuple[int, int, int]]:
    """Returns height and width in pixels and the number of characters of a sample of the lines that can be prepared."""
    found = []
    for file in files:
        tables = list(islice(read_rows(file, rows_per_table=1000), TABLES_SAMPLED))
        rows = [row for table in tables for row in table.to_pylist() if row["reason"] is None]
        texts = [normalize(row["text"] or "", keep_joiners=cleaning.keep_joiners) for row in rows]
        kept = [n for n, text in enumerate(texts) if reason_for(text, cleaning, is_training=True) is None]
        kept = np.random.default_rng(0).permutation(kept)[: NUM_SAMPLED // len(files) + 1].tolist()
        if file.images is None:
            data = iter([rows[n]["file"] for n in kept])
        else:
            data = read_files(file.images, [rows[n]["path"].removeprefix(f"{file.images}/") for n in kept])
        for n, line in zip(kept, lines_of(data, Canvas()), strict=True):
            if line.height and line.width:
                found.append((line.height, line.width, len(texts[n])))
    return found
