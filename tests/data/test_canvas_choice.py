"""The canvas that is chosen for lines of known sizes, against the frames that they get on it."""

from pathlib import Path

import numpy as np
import pytest

from hwr_ray.data.canvas_choice import choose_canvas, poor_canvas
from hwr_ray.data.cleaning import CleaningSettings
from hwr_ray.data.labels import label_file, read_rows
from hwr_ray.data.prepare import PrepareSettings
from hwr_ray.data.shards import count_row, prepare_rows
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.errors import UserError
from hwr_ray.images.lines import Canvas, encode_png

CLEANING = CleaningSettings(max_length=60)


def lines(folder: Path, sizes: list[tuple[int, int, int]]):
    """Writes blank images with these heights, widths and numbers of characters; returns their label file."""
    rows = ["file_name,text"]
    for n, (height, width, characters) in enumerate(sizes):
        (folder / f"{n}.png").write_bytes(encode_png(np.full((height, width), 200, np.uint8)))
        rows.append(f"{n}.png,{'AB' * (characters // 2)}{'A' * (characters % 2)}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return label_file(str(folder / "labels.csv"), None, "train")


def statistics(file, canvas: Canvas) -> DatasetStatistics:
    found = DatasetStatistics()
    for table in read_rows(file):
        for row in prepare_rows(table, cleaning=CLEANING, canvas=canvas):
            count_row(row, found, canvas)
    return found


def test_short_images_with_long_texts_are_widened_until_they_have_three_frames_a_character(tmp_path):
    rng = np.random.default_rng(0)
    file = lines(tmp_path, [(64, 256, int(n)) for n in rng.integers(5, 38, 300)])
    canvas = choose_canvas([file], CLEANING)
    assert canvas.height == 48
    default, chosen = statistics(file, Canvas()), statistics(file, canvas)
    assert default.rows["train", "prepared"] + default.rows["train", "too_many_frames"] == 300
    assert default.few_frames > 0.3 * 300 and "prepare with --canvas auto" in poor_canvas(default, Canvas())
    assert chosen.rows["train", "prepared"] == 300
    assert chosen.few_frames <= 6 and poor_canvas(chosen, canvas) is None
    # A quarter less would not do.
    less = Canvas(48, canvas.width, canvas.stretch - 0.25)
    assert statistics(file, less).few_frames > 6


def test_roomy_lines_are_not_widened_and_the_canvas_is_as_wide_as_98_percent_need(tmp_path):
    widths = [*range(100, 400), 3000, 3100, 3200]
    file = lines(tmp_path, [(24, width, 5) for width in widths])
    canvas = choose_canvas([file], CLEANING)
    assert canvas.stretch == 1 and canvas.width % 16 == 0
    assert np.mean(np.array(widths) <= canvas.width) >= 0.98 > np.mean(np.array(widths) <= canvas.width - 32)


def test_without_a_line_that_can_be_measured_the_canvas_is_asked_for(tmp_path):
    (tmp_path / "labels.csv").write_text("file_name,text\ngone.png,ANNA\n")
    with pytest.raises(UserError, match=r"no line of .* can be measured for --canvas auto: pass --canvas HEIGHT WIDTH"):
        choose_canvas([label_file(str(tmp_path / "labels.csv"), None, "train")], CLEANING)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"canvas": (50, 322)}, "the canvas 50x322 does not fit the model"),
        ({"canvas": "auto", "stretch": 2.0}, "--canvas auto chooses the --stretch itself"),
        ({"stretch": 9.0}, "--stretch must be between 1 and 4"),
    ],
)
def test_a_canvas_that_no_network_takes_is_refused_at_once(settings, said):
    with pytest.raises(UserError, match=said):
        PrepareSettings(out="out", data="data", **settings)
