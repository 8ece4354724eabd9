"""Tests of the synthetic data set, based on its files alone."""

import csv
import hashlib
import json
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from hwr_ray.errors import UserError
from hwr_ray.synthetic.forms import Form, draw_line
from hwr_ray.synthetic.glyphs import BORROWED, CAPITALS, DRAWABLE, SMALL_LETTERS, parse_glyph
from hwr_ray.synthetic.mixed_case import MixedTexts, draw_writer, write_freely
from hwr_ray.synthetic.synthesize import Names, SynthesisSettings, draw_row, synthesize

SPLITS = ("train", "validation", "test")
LINES = 600


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "names"
    synthesize(SynthesisSettings(out=str(folder), lines=LINES, seed=3))
    return folder


def rows_of(folder: Path, split: str) -> list[tuple[str, str, Path]]:
    """Returns the file name, label and image path of each row."""
    with (folder / f"written_name_{split}_v2.csv").open(encoding="utf-8", newline="") as file:
        return [
            (row["FILENAME"], row["IDENTITY"], folder / f"{split}_v2" / split / row["FILENAME"])
            for row in csv.DictReader(file)
        ]


def is_damaged(image: Path) -> bool:
    data = image.read_bytes()
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None or not data.endswith(b"\xff\xd9")


def digest(folder: Path) -> str:
    tree = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        tree.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return tree.hexdigest()


def test_the_same_seed_draws_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(SynthesisSettings(out=str(tmp_path / name), lines=70, seed=seed))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    images = [(tmp_path / name / "train_v2/train/TRAIN_00001.jpg").read_bytes() for name in "ac"]
    assert images[0] != images[1]


def test_the_faults_told_in_the_json_are_those_in_the_files(drawn):
    reported = json.loads((drawn / "synthesis.json").read_text())["splits"]
    for split in SPLITS:
        rows = rows_of(drawn, split)
        labels = [label for _, label, _ in rows]
        present = [image for _, _, image in rows if image.exists()]
        assert reported[split] == {
            "rows": len(rows),
            "missing_text": labels.count(""),
            "unreadable": labels.count("UNREADABLE"),
            "empty_field": labels.count("EMPTY"),
            "lowercase": sum(label != label.upper() for label in labels),
            "too_long": sum(len(label) > 20 for label in labels),
            "missing_image": len(rows) - len(present),
            "undecodable_image": sum(map(is_damaged, present)),
        }
        assert all(reported[split].values())


def test_the_splits_share_the_lines_80_10_10_and_number_their_files_as_kaggle_does(drawn):
    assert [len(rows_of(drawn, split)) for split in SPLITS] == [480, 60, 60]
    names = [rows_of(drawn, split)[0][0] for split in SPLITS]
    assert names == ["TRAIN_00001.jpg", "VALIDATION_0001.jpg", "TEST_0001.jpg"]


def test_every_image_on_disk_has_its_row(drawn):
    for split in SPLITS:
        images = {path.name for path in (drawn / f"{split}_v2" / split).iterdir()}
        assert images <= {name for name, _, _ in rows_of(drawn, split)}


def test_every_whole_image_has_three_equal_channels_and_the_size_of_a_form(drawn):
    for _, _, image in rows_of(drawn, "train"):
        if image.exists() and not is_damaged(image):
            pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
            assert pixels.shape[1] in (284, 324, 388) and 14 <= pixels.shape[0] <= 72 and pixels.shape[2] == 3
            assert (pixels == pixels[:, :, :1]).all()


def test_labels_are_plain_capitals_with_space_hyphen_and_apostrophe(drawn):
    labels = [label for split in SPLITS for _, label, _ in rows_of(drawn, split) if label == label.upper()]
    assert set("".join(labels)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ -'")


def test_names_hold_every_letter_and_compound_ones_too():
    names = Names.draw(0)
    labels = [draw_row(names, "missing_image", np.random.default_rng(i))[0] for i in range(5000)]
    assert set("".join(labels)) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ -'")
    assert max(map(len, labels)) <= 20


@pytest.mark.parametrize("seed", range(40))
def test_the_ink_of_20_wide_letters_stays_off_the_left_and_right_edge(seed):
    rng = np.random.default_rng(seed)
    form = Form(height=60, width=(284, 324, 388)[seed % 3], left=(16, 7, 83)[seed % 3], baseline=40, pitch=17.7)
    picture = draw_line("WMWMWMWMWMWMWMWMWMWM", rng, form=form)
    ink = np.flatnonzero((picture < 128).sum(axis=0) > 1)  # more than a speck
    assert ink.min() > 0
    assert 0.9 * form.width < ink.max() < form.width - 1


def test_a_longer_text_leaves_more_ink():
    form = Form(height=44, width=324, left=7, baseline=29, pitch=17.7)
    ink = [(255 - draw_line("N" * n, np.random.default_rng(0), form=form).astype(int)).sum() for n in (0, 2, 8)]
    assert 3 * ink[1] < ink[2] and ink[0] < ink[1]


def test_two_texts_drawn_with_the_same_randomness_differ():
    form = Form(height=44, width=324, left=7, baseline=29, pitch=17.7)
    anna, emma = (draw_line(text, np.random.default_rng(5), form=form) for text in ("ANNA", "EMMA"))
    assert (anna != emma).any()


def test_every_letter_has_a_glyph_that_stays_near_its_box():
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ-'0123456789") == set(CAPITALS)
    assert set("abcdefghijklmnopqrstuvwxyz") == set(SMALL_LETTERS)
    assert {letter.lower() for letter in BORROWED} <= set(SMALL_LETTERS)
    for variants in (*CAPITALS.values(), *SMALL_LETTERS.values()):
        for code in variants:
            points = parse_glyph(code).basis @ parse_glyph(code).control
            assert np.abs(points[:, 0]).max() <= 0.6, code
            assert points[:, 1].min() >= -1.15 and points[:, 1].max() <= 0.4, code


def test_a_smooth_stroke_passes_through_its_points():
    glyph = parse_glyph("~00 26 68")
    assert np.allclose(glyph.basis[::4] @ glyph.control, glyph.control)


def test_a_character_without_a_glyph_is_named():
    assert "Ж" not in DRAWABLE
    with pytest.raises(ValueError, match="Ж"):
        draw_line("AЖ", np.random.default_rng(0))


def test_an_existing_folder_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="contains other files"):
        synthesize(SynthesisSettings(out=str(tmp_path), lines=10))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hwr_ray.synthetic.synthesize.draw_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesize(SynthesisSettings(out=str(tmp_path / "names"), lines=10))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"lines": 0}, {"lines": 9}, {"seed": -1}])
def test_settings_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SynthesisSettings(out="names", **wrong)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "mixed"
    synthesize(SynthesisSettings(out=str(folder), lines=300, style="mixed", seed=2))
    return folder


def test_mixed_lines_have_known_faults_and_as_much_room_as_their_text_needs(mixed):
    reported = json.loads((mixed / "synthesis.json").read_text())
    assert reported["settings"]["style"] == "mixed"
    rows = rows_of(mixed, "train")
    labels = [label for _, label, _ in rows]
    assert reported["splits"]["train"] == {
        "rows": len(rows),
        "missing_text": labels.count(""),
        "unreadable": labels.count("UNREADABLE"),
        "empty_field": labels.count("EMPTY"),
        "lowercase": 0,
        "too_long": 0,
        "missing_image": sum(not image.exists() for *_, image in rows),
        "undecodable_image": sum(is_damaged(image) for *_, image in rows if image.exists()),
    }
    whole = [(label, image) for _, label, image in rows if len(label) > 2 and image.exists() and not is_damaged(image)]
    widths = {label: cv2.imread(str(image)).shape[1] for label, image in whole if label not in ("UNREADABLE", "EMPTY")}
    lengths = np.array([len(label) for label in widths])
    assert np.corrcoef(lengths, list(widths.values()))[0, 1] > 0.7


def test_mixed_texts_have_letters_of_both_cases_accents_digits_and_signs():
    texts = MixedTexts.draw(0).texts
    found = set("".join(texts))
    expected = set("ABCDEFGHIJKLMNOPRSTUVWZabcdefghijklmnopqrstuvwyz0123456789 .,-/'()%€@+:!?äöüßéèçñåøłőČž")
    assert expected <= found
    assert max(map(len, texts)) <= 28
    assert all(unicodedata.normalize("NFC", text) == text and text == " ".join(text.split()) for text in texts)


@pytest.mark.parametrize(("marked", "plain"), [("é", "e"), ("Å", "A"), ("ñ", "n"), ("č", "c"), ("ü", "u"), ("ő", "o")])
def test_a_mark_adds_ink_above_its_letter_and_leaves_the_letter_as_it_is(marked, plain):
    strokes = {}
    for text in (marked, plain):
        rng = np.random.default_rng(5)
        strokes[text] = write_freely(text, draw_writer(rng), rng, left=0, baseline=100)
    number = len(strokes[marked]) - len(strokes[plain])
    marks, letter = strokes[marked][:number], strokes[marked][number:]
    for own, other in zip(letter, strokes[plain], strict=True):
        assert np.allclose(own, other)
    top = min(stroke[:, 1].min() for stroke in letter)
    assert marks and all(stroke[:, 1].mean() < top for stroke in marks)


@pytest.mark.parametrize("character", ["ж", "→", "\u0323"])
def test_a_character_that_mixed_lines_lack_is_named(character):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=f"no glyph for {character!r}"):
        write_freely(f"a {character}", draw_writer(rng), rng, left=0, baseline=20)
