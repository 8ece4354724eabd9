"""Tests of the warnings on drawn names that were inverted, emptied, turned or pasted into pages."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.line_warnings import page_of, photographed
from hwr_ray.images.line_warnings import WARNINGS, _num_text_lines, warning_messages
from hwr_ray.images.lines import Canvas, fit
from hwr_ray.images.reader import line_of
from hwr_ray.synthetic.forms import draw_line
from hwr_ray.synthetic.synthesize import Names, without_accents

CANVAS = Canvas()


@pytest.fixture(scope="module")
def lines() -> list[np.ndarray]:
    rng, names = np.random.default_rng(8), Names.draw(8)
    return [draw_line(without_accents(names.draw_one(rng)), rng) for _ in range(150)]


def warnings_of(images: list[np.ndarray]) -> Counter[str | None]:
    return Counter(line_of(image, CANVAS).warning for image in images)


def test_lines_of_dark_text_on_light_paper_have_no_warning(lines):
    rng = np.random.default_rng(0)
    assert warnings_of(lines) == {None: 150}
    assert warnings_of([photographed(line, rng) for line in lines])[None] >= 149
    assert warnings_of([np.repeat(np.repeat(line, 4, 0), 4, 1) for line in lines[:20]]) == {None: 20}
    pads = [tuple(map(tuple, rng.integers(20, 120, (2, 2)))) for _ in lines]
    assert warnings_of([np.pad(i, p, constant_values=255) for i, p in zip(lines, pads, strict=True)])[None] >= 149


def test_writing_that_is_lighter_than_its_background_is_found_also_under_a_shadow(lines):
    rng = np.random.default_rng(0)
    assert warnings_of([255 - line for line in lines])["light_on_dark"] >= 149
    assert warnings_of([255 - photographed(line, rng) for line in lines])["light_on_dark"] >= 142


def test_blank_paper_is_found_whatever_its_grey_its_noise_and_its_shadow():
    rng = np.random.default_rng(0)
    sheets = [np.full((44, 324), grey, np.uint8) for grey in range(0, 256, 5)]
    assert warnings_of(sheets) == {"blank": len(sheets)}
    assert warnings_of([photographed(sheet, rng) for sheet in sheets])["blank"] >= len(sheets) - 3
    dust = np.full((44, 324), 255, np.uint8)
    dust[20:22, 50:52] = 0
    assert warnings_of([dust]) == {"blank": 1}
    dust[10:40, 50:54] = 0  # as large as an I
    assert warnings_of([dust]) == {None: 1}


def test_turned_lines_and_pages_are_found_and_single_lines_are_no_page(lines):
    assert warnings_of([np.rot90(line) for line in lines]) == {"vertical": 150}
    for number, least in ((6, 16), (12, 18), (30, 20)):
        pages = [page_of([lines[(n * 7 + k) % 150] for k in range(number)]) for n in range(20)]
        assert warnings_of(pages)["page"] >= least
    words = [line[:, : line.shape[0] + n % 60] for n, line in enumerate(lines)]  # of one to three letters
    assert warnings_of(words)["page"] == 0


def test_an_inverted_line_is_the_line_itself_and_others_stay_as_they_are(lines):
    for line in lines[:20]:
        turned, kept = line_of(255 - line, CANVAS, invert=True), line_of(line, CANVAS, invert=True)
        assert (turned.warning, kept.warning) == ("inverted", None)
        assert np.array_equal(turned.image, fit(line, CANVAS)) and np.array_equal(kept.image, fit(line, CANVAS))
        assert np.array_equal(line_of(255 - line, CANVAS).image, fit(255 - line, CANVAS))
    page = page_of(lines[:12])
    assert line_of(255 - page, CANVAS, invert=True).warning == "page"


def test_any_image_can_be_looked_at():
    rng = np.random.default_rng(1)
    for height, width in ((8, 8), (8, 9), (1, 40), (40, 8), (300, 8), (9, 4000), (500, 700)):
        noise = rng.integers(0, 256, (height, width), dtype=np.uint8)
        assert line_of(noise, CANVAS).warning in (None, *WARNINGS)
    # Stripes that only the smaller surroundings show, since the larger ones hold as much of both greys.
    for period in range(10, 120, 2):
        stripes = np.where(np.arange(300) % period < period // 2, 225, 200).astype(np.uint8)
        for image in (np.tile(stripes, (300, 1)), np.tile(stripes[:, None], (1, 300))):
            assert line_of(image, CANVAS).warning in (None, *WARNINGS)
    assert _num_text_lines(np.zeros((120, 200), np.uint8)) == 0


def test_each_warning_is_explained_with_its_number():
    dark, blank = warning_messages({"light_on_dark": 3, "blank": 1})
    assert dark.startswith("warning light_on_dark for 3 images: ") and "--invert auto" in dark
    assert blank == "warning blank for 1 image: the image has no writing, or hardly any"
