"""Tests of the image column of prepared lines."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data.dataset import Prepared
from hwr_ray.files.storage import write_json
from hwr_ray.images.arrow import column_of, images_of
from hwr_ray.images.lines import Canvas

CANVAS = Canvas(8, 16)


@pytest.fixture
def images() -> list[np.ndarray | None]:
    noise = np.random.default_rng(0).integers(0, 256, (19, 8, 16), dtype=np.uint8)
    return [None if i in (3, 18) else image for i, image in enumerate(noise)]


@pytest.mark.parametrize("kind", [pa.binary(8 * 16), pa.binary()], ids=["fixed", "any"])
@pytest.mark.parametrize(("start", "end"), [(0, 19), (4, 14), (2, 19), (7, 7)])
def test_images_come_back_from_any_part_of_a_column_and_missing_ones_are_white(images, kind, start, end):
    column = column_of(images, CANVAS)
    column.validate(full=True)
    assert column.is_valid().to_pylist() == [image is not None for image in images]
    table = pa.table({"image": column.cast(kind)})
    white = np.full((8, 16), 255, np.uint8)
    expected = np.stack([white if image is None else image for image in images])
    assert np.array_equal(images_of(table.slice(start, end - start), CANVAS), expected[start:end])
    chunks = pa.concat_tables([table.slice(0, 5), table.slice(5)])
    assert np.array_equal(images_of(chunks, CANVAS), expected)


def test_no_images_make_an_empty_column():
    assert images_of(pa.table({"image": column_of([], CANVAS)}), CANVAS).shape == (0, 8, 16)
    assert images_of(pa.schema({"image": pa.binary(8 * 16)}).empty_table(), CANVAS).shape == (0, 8, 16)


def test_images_are_found_by_their_ids_and_none_by_no_id(images, tmp_path):
    (tmp_path / "validation").mkdir()
    lines = pa.table({"id": [f"{i}.png" for i in range(19)], "image": column_of(images, CANVAS)})
    pq.write_table(lines, tmp_path / "validation/0.parquet")
    write_json(str(tmp_path / "dataset.json"), {"canvas": [8, 16]})
    found = Prepared(str(tmp_path)).images("validation", ["7.png", "2.png"])
    assert found.keys() == {"7.png", "2.png"} and np.array_equal(found["7.png"], images[7])
    assert Prepared(str(tmp_path)).images("validation", []) == {}  # a report without an error shows no line
