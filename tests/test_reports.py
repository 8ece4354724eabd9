import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import editdistance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data import dataset as prepared
from hwr_ray.data.report import rejected_samples, shrinking, write_preparation_report
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.evaluation.reports import lines_to_show, write_evaluation_report
from hwr_ray.evaluation.subgroups import subgroup_figures
from hwr_ray.images.lines import Canvas, encode_png
from hwr_ray.text.metrics import confusion_table

CANVAS = Canvas(16, 64)
MALICIOUS = '<script>alert(1)</script>"><img src=x>'

ROWS = [  # split, label, reason
    ("train", "ANNA", None),
    ("train", "BOB", None),
    ("train", "anna", "lowercase"),
    ("train", MALICIOUS, "lowercase"),
    ("train", "", "missing_text"),
    ("train", "GONE", "missing_image"),
    ("validation", "EVE", None),
    ("validation", "DAMAGED", "undecodable_image"),
    ("validation", "ANNA", "unsafe_path"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared folder of ROWS with random images; GONE has no file and DAMAGED is not an image."""
    rng = np.random.default_rng(0)
    lines, rejected = [], []
    for number, (split, text, reason) in enumerate(ROWS, start=1):
        path = tmp_path / f"{number}.png"
        if text == "DAMAGED":
            path.write_bytes(b"not an image")
        elif text != "GONE":
            path.write_bytes(encode_png(rng.integers(0, 256, (12, 40), np.uint8)))
        row = {"split": split, "row": number, "id": path.name, "path": str(path), "text": text, "reason": reason}
        if reason is None:
            lines.append({**row, "height": 12, "width": 40, "image": rng.bytes(16 * 64)})
        else:
            rejected.append(row | ({"path": None} if reason == "unsafe_path" else {}))
    for split in ("train", "validation"):
        rows = [row for row in lines if row["split"] == split]
        _write(tmp_path / split / "0.parquet", pa.Table.from_pylist(rows, schema=prepared.schema(CANVAS)))
    _write(tmp_path / "rejected" / "0.parquet", pa.Table.from_pylist(rejected[3:], schema=prepared.REJECTED))
    _write(tmp_path / "rejected" / "1.parquet", pa.Table.from_pylist(rejected[:3], schema=prepared.REJECTED))
    return tmp_path


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)


def _statistics() -> DatasetStatistics:
    statistics = DatasetStatistics()
    for split, text, reason in ROWS:
        size = (12, 40) if reason is None else None
        statistics.add_row(
            split=split, text=text, kept_text=None if reason else text, reason=reason, size=size, content=[]
        )
    return statistics


def _preparation_page(folder: Path, statistics: DatasetStatistics) -> str:
    metadata = {
        "canvas": [CANVAS.height, CANVAS.width],
        "charset": statistics.charset(),
        "splits": statistics.splits(),
        "content_hash": "0" * 64,
        "settings": {"data": MALICIOUS},
        "versions": {"python": "3"},
    }
    write_preparation_report(str(folder), metadata=metadata, statistics=statistics)
    return (folder / "report.html").read_text()


def _predictions(*lines: tuple[str, str, float]) -> pa.Table:
    """Returns a table of lines given as (text, prediction, confidence), with the ids a, b, c, ..."""
    schema = pa.schema(
        {
            "id": pa.string(),
            "text": pa.string(),
            "prediction": pa.string(),
            "confidence": pa.float32(),
            "num_edits": pa.int64(),
            "width": pa.int32(),
        }
    )
    rows = [
        {
            "id": id,
            "text": text,
            "prediction": read,
            "confidence": c,
            "num_edits": editdistance.eval(text, read),
            "width": 284,
        }
        for id, (text, read, c) in zip("abcdefgh", lines, strict=False)
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _evaluation_page(folder: Path, predictions: pa.Table, images: dict[str, np.ndarray], *, cer: float = 0.0321) -> str:
    metrics = {
        "cer": cer,
        "cer_ci": [0.03, 0.0345],
        "exact_match": 0.875,
        "exact_match_ci": [0.86, 0.89],
        "num_lines": 1234,
        "num_characters": 5678,
        "num_edits": 182,
        "split": "validation",
        "label_noise": 0.05,
        "model_id": "model",
        "prepared": MALICIOUS,
        "content_hash": "0" * 64,
        "versions": {"torch": "2.99"},
        "confusions": confusion_table(predictions["text"].to_pylist(), predictions["prediction"].to_pylist()),
        "subgroups": subgroup_figures(predictions, seed=0, training_texts={"ANNA"}),
    }
    write_evaluation_report(str(folder), metrics=metrics, predictions=predictions, images=images)
    return (folder / "report.html").read_text()


def _table(page: str, name: str) -> list[list[str]]:
    """Returns the first word of each cell in the body of a table of the page."""
    (table,) = re.findall(rf'<table id="{name}">.*?</table>', page, flags=re.DOTALL)
    rows = ElementTree.fromstring(table).iterfind("tbody/tr")  # noqa: S314 - a page of this project
    return [[next(iter(" ".join(cell.itertext()).split()), "") for cell in row] for row in rows]


class _Links(HTMLParser):
    """Collects the references of the elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def _assert_asks_for_nothing_outside(page: str) -> None:
    links = _Links(page).found
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert "@import" not in page
    assert "url(" not in page
    for svg in re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page):
        references = re.findall(rb'href="([^"]*)"', base64.b64decode(svg))
        assert all(reference.startswith((b"#", b"data:")) for reference in references)


def _assert_is_escaped(page: str) -> None:
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<img src=x" not in page


def test_counts_of_all_reasons_add_up_to_the_rows_in(folder):
    *reasons, rows_in = _table(_preparation_page(folder, _statistics()), "reasons")
    counts = {reason: [int(n) for n in numbers] for reason, *numbers in reasons}
    assert counts["lowercase"] == [2, 0, 2]  # train, validation, all
    assert counts["prepared"] == [2, 1, 3]
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == [6, 3, len(ROWS)]
    assert rows_in[-3:] == ["6", "3", "9"]


def test_html_in_a_label_is_shown_and_not_run(folder):
    _assert_is_escaped(_preparation_page(folder, _statistics()))
    predictions = _predictions((MALICIOUS, "<script>", 0.5))
    _assert_is_escaped(_evaluation_page(folder, predictions, {"a": np.zeros((16, 64), np.uint8)}))


def test_pages_ask_for_nothing_outside_themselves(folder):
    _assert_asks_for_nothing_outside(_preparation_page(folder, _statistics()))
    predictions = _predictions(("A", "B", 0.5), ("A", "A", 0.9))
    _assert_asks_for_nothing_outside(_evaluation_page(folder, predictions, {"a": np.zeros((16, 64), np.uint8)}))


def test_plots_have_the_colors_of_the_page_around_them_in_the_light_and_in_the_dark(folder):
    pages = [_preparation_page(folder, _statistics()), _evaluation_page(folder, _predictions(("A", "B", 0.5)), {})]
    plots = [base64.b64decode(svg).decode() for page in pages for svg in re.findall(r"svg\+xml;base64,([^\"]*)", page)]
    assert len(plots) == 5
    for plot in plots:
        style, rest = re.search(r"<style>(.*?)</style>(.*)", plot, re.DOTALL).groups()
        assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r"<image.*?/>", "", rest, flags=re.DOTALL))
        light, dark = style.split("@media (prefers-color-scheme: dark)")
        for name in re.findall(r"var\(--(\w+)\)", rest):
            values = [re.search(rf"--{name}: (#\w+)", part)[1] for part in (light, dark)]
            assert values[0] != values[1]


def test_missing_and_damaged_files_are_rows_without_a_picture(folder):
    samples = rejected_samples(str(folder))
    has_picture = {reason: [row["picture"] is not None for row in rows] for reason, rows in samples.items()}
    assert has_picture == {
        "unsafe_path": [False],
        "missing_text": [True],
        "lowercase": [True, True],
        "missing_image": [False],
        "undecodable_image": [False],
    }
    assert _preparation_page(folder, _statistics()).count("no image") == 3


def test_samples_are_the_first_rows_by_number_whatever_their_shard(folder):
    rows = [
        {"split": split, "row": row, "id": f"{split}{row}", "text": "x", "reason": "lowercase"}
        for row in range(100, 0, -1)
        for split in ("validation", "train")
    ]
    for shard in range(4):
        table = pa.Table.from_pylist(rows[shard::4], schema=prepared.REJECTED)
        _write(folder / "rejected" / f"{shard}.parquet", table)
    samples = rejected_samples(str(folder), count=3)["lowercase"]
    assert [row["id"] for row in samples] == ["train1", "validation1", "train2"]


def test_the_same_data_set_gives_the_same_report(folder):
    assert _preparation_page(folder, _statistics()) == _preparation_page(folder, _statistics())


def test_a_data_set_without_one_prepared_row_has_a_report(tmp_path):
    statistics = DatasetStatistics()
    statistics.add_row(split="test", text="", kept_text=None, reason="missing_text", size=None, content=[])
    assert _table(_preparation_page(tmp_path, statistics), "reasons")[-1][-1] == "1"


def test_huge_noise_pictures_leave_the_report_below_5_mb(folder):
    noise = np.random.default_rng(0).integers(0, 256, (600, 4000), np.uint8)
    predictions = pa.concat_tables([_predictions(("A", "B", 0.5))] * 80)
    ids = [str(n) for n in range(80)]
    predictions = predictions.set_column(0, "id", pa.array(ids))
    assert len(_evaluation_page(folder, predictions, dict.fromkeys(ids, noise))) < 5_000_000


def test_shrinking_counts_images_not_sizes():
    sizes = Counter({(16, 64): 6, (8, 10): 1, (32, 64): 2, (16, 640): 1})
    assert shrinking(sizes, CANVAS) == {"share": 0.3, "median": 0.5, "smallest": 0.1}
    assert shrinking(Counter({(16, 64): 6}), CANVAS)["share"] == 0


def test_worst_lines_are_those_with_most_edits_by_length_then_the_surest(tmp_path):
    predictions = _predictions(
        ("ABCD", "ABCX", 0.9),  # a: a quarter is wrong
        ("ABCD", "ABCD", 0.1),  # b: right
        ("AB", "AX", 0.3),  # c: half
        ("AB", "XB", 0.8),  # d: half, more confident
        ("", "X", 0.2),  # e: more edits than characters
    )
    assert lines_to_show(predictions) == ["e", "d", "c", "a"]
    page = _evaluation_page(tmp_path, predictions, dict.fromkeys("abcde", np.full((8, 8), 255, np.uint8)))
    worst, confident = (re.findall(r"<bdi>(\w)</bdi>", part) for part in page.split("<h2>Worst lines")[1].split("<h2>"))
    assert worst == ["e", "d", "c", "a"]
    assert confident == ["a", "d", "c", "e"]


def test_a_group_that_is_worse_for_sure_stands_out_and_small_ones_are_pale(tmp_path):
    lines = [
        *[_predictions(("ABCD", "ABCD", 0.5))] * 200,
        *[_predictions(("ABCDE", "VWXYZ", 0.5))] * 40,
        _predictions(("A", "X", 0.5)),
    ]
    page = _evaluation_page(tmp_path, pa.concat_tables(lines), {}, cer=201 / 1001)
    rows = dict(re.findall(r'<tr class="(weak|few)">\s*<th scope="row">([^<]*)</th>', page))
    assert rows == {"weak": "5", "few": "1"}


def test_slices_are_shown_with_their_counts(tmp_path):
    page = _evaluation_page(tmp_path, _predictions(("ANNA", "ANMA", 0.5), ("B-C", "B-C", 0.5), ("EVE", "X", 0.5)), {})
    rows = {row[0]: row[1:5] for row in _table(page, "subgroups") if len(row) > 1}
    assert rows["seen"] == ["1", "4", "1", "25.0%"]
    assert rows["unseen"] == ["2", "6", "3", "50.0%"]
    assert rows["hyphen"] == ["1", "3", "0", "0.0%"]


def test_a_group_without_a_character_is_shown_without_a_cer(tmp_path):
    rows = _table(_evaluation_page(tmp_path, _predictions(("", "X", 0.5), ("AB", "AB", 0.5)), {}), "subgroups")
    assert ["0", "1", "0", "1", "–", "", "", "0.0%", "0.0%"] in rows


@pytest.mark.parametrize(("read", "missing"), [("ANNA", "no wrong lines"), ("X", "no correct lines")])
def test_a_confidence_plot_says_which_lines_there_are_none_of(tmp_path, read, missing):
    page = _evaluation_page(tmp_path, _predictions(("ANNA", read, 0.9)), {})
    svg, *_ = re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page)
    assert re.findall(rb"<!-- (no \w+ lines) -->", base64.b64decode(svg)) == [missing.encode()]


@pytest.mark.parametrize("lines", [[], [("ANNA", "ANNA", 0.9)]])
def test_an_evaluation_without_an_error_has_a_report(tmp_path, lines):
    page = _evaluation_page(tmp_path, _predictions(*lines), {})
    assert "every line was recognized without an error" in page


def test_evaluation_shows_figures_confusions_and_the_lines_it_was_given(tmp_path):
    predictions = _predictions(("ANNA", "ANMA", 0.5), ("NO", "MO", 0.9), ("A B", "AB", 0.2))
    page = _evaluation_page(tmp_path, predictions, {"b": np.zeros((16, 64), np.uint8)})
    for figure in ("3.21%", "3.00%", "3.45%", "87.50%", "1,234", "torch 2.99"):
        assert figure in page
    assert _table(page, "confusions") == [
        ["N", "M", "substitution", "2", "66.7%"],
        ["␣", "", "deletion", "1", "33.3%"],
    ]
    assert page.count("data:image/png") == 2  # among the worst lines and among the most confident errors
