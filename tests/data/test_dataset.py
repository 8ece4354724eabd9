"""Tests of prepared data sets: the image column, and several sets together."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data.dataset import Prepared, PreparedSets
from hwr_ray.errors import UserError
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


def write_metadata(folder, charset="AB", canvas=(8, 16), content=2**256 - 1, warnings=None, settings=None, **numbers):
    folder.mkdir(parents=True)
    splits = {split: {"prepared": number, **(warnings or {})} for split, number in numbers.items()}
    metadata = {"canvas": list(canvas), "charset": charset, "splits": splits, "content_hash": f"{content:064x}"}
    write_json(str(folder / "dataset.json"), {**metadata, "settings": settings or {}})
    return str(folder)


def test_data_sets_add_up(tmp_path):
    one = write_metadata(tmp_path / "a/lines", train=3, validation=2)
    two = write_metadata(tmp_path / "b/lines", charset="bBaA", content=4, train=4, test=1)
    three = write_metadata(tmp_path / "c", content=5, train=1)
    both = PreparedSets((one, two))
    assert both.num_lines == {"train": 7, "validation": 2, "test": 1} and both.charset == "ABba"
    assert both.names == [one, two] and PreparedSets((one, three)).names == ["lines", "c"]
    assert both.content_hash == f"{3:064x}" and PreparedSets((one,)).content_hash == f"{2**256 - 1:064x}"
    assert PreparedSets((two, one)).content_hash == both.content_hash
    with pytest.raises(
        UserError, match=r"there are no validation lines in .*c and .*lines: prepare the lines again without"
    ):
        PreparedSets((three, two)).require_lines("validation")


def test_warnings_are_counted_among_the_lines_of_the_sets_that_have_them(tmp_path):
    old = write_metadata(tmp_path / "old", content=1, train=1000)  # of version 0.1
    new = write_metadata(tmp_path / "new", content=2, train=100, warnings={"warnings": {"page": 3, "blank": 1}})
    third = write_metadata(tmp_path / "third", content=3, train=300, warnings={"warnings": {"page": 1}})
    assert PreparedSets((old,)).warning_shares == {} and not PreparedSets((old,)).invert
    assert PreparedSets((old, new, third)).warning_shares == {"page": 0.01, "blank": 0.0025}
    inverted = write_metadata(tmp_path / "inverted", content=4, train=1, settings={"invert": "auto"})
    assert PreparedSets((old, inverted)).invert


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([{"canvas": (16, 16)}], "one has the canvas 8x16, but .*other0 has 16x16: prepare one of them again"),
        ([{"canvas": (8, 16, 1.5)}], "but .*other0 has 8x16 stretched by 1.5"),
        ([{}, {"train": 0, "test": 5}], "other1 has neither training nor validation lines: omit it"),
    ],
)
def test_data_sets_that_do_not_go_together_are_refused(others, message, tmp_path):
    paths = [write_metadata(tmp_path / "one", train=1)]
    for number, other in enumerate(others):
        paths.append(write_metadata(tmp_path / f"other{number}", **{"train": 1, "content": number, **other}))
    with pytest.raises(UserError, match=message):
        PreparedSets(tuple(paths))


def test_no_data_set_and_the_same_one_twice_are_refused(tmp_path):
    path = write_metadata(tmp_path / "one", train=1)
    other = write_metadata(tmp_path / "copy", train=1)
    for again in (other, path):
        with pytest.raises(UserError, match=r"--data names the same lines twice, in .*/one and .*: omit one"):
            PreparedSets((path, again))
    write_json("memory://bucket/dataset.json", json.loads((tmp_path / "one/dataset.json").read_text()))
    with pytest.raises(UserError, match=r"/one and memory://bucket are on different storage: copy one"):
        PreparedSets((path, "memory://bucket"))
    with pytest.raises(UserError, match="--data names no data set: pass at least one"):
        PreparedSets(())
