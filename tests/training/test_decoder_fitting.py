"""Tests which texts train the language model and what the summary of the decoder fit reports."""

import gzip
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data import dataset as prepared_module
from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.label_list import language_model_texts
from hwr_ray.data.selection import Selection, folds_of
from hwr_ray.decoding.calibration import errors_before_and_after
from hwr_ray.errors import UserError
from hwr_ray.images.arrow import column_of
from hwr_ray.images.lines import Canvas, fit
from hwr_ray.recognition.bundle import load_bundle, save_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.recognition.recognizer import Recognizer, read_log_probs
from hwr_ray.recognition.runtime import Network
from hwr_ray.synthetic.forms import draw_line
from hwr_ray.synthetic.synthesize import Names, without_accents
from hwr_ray.text.metrics import count
from hwr_ray.training.decoder_fitting import fit_decoder, sample

TEXTS = ["ANNA", "BOB", "ANNA", "CLOE", "EVE", "ANNA", "BOB", "DAN"]
CANVAS = Canvas()


def write_prepared(folder, lines: dict[str, list[str]], images: list[np.ndarray] | None = None) -> PreparedSets:
    """Writes a prepared data set of texts by split, with the given or blank images."""
    blank = np.full((CANVAS.height, CANVAS.width), 255, np.uint8)
    for split, texts in lines.items():
        names = [f"{split}-{n}.jpg" for n in range(len(texts))]
        sizes = pa.array([40] * len(texts), pa.int32())
        column = column_of(images or [blank] * len(texts), CANVAS)
        none = pa.nulls(len(texts), pa.string())
        table = pa.table([names, names, texts, sizes, sizes, none, column], schema=prepared_module.schema(CANVAS))
        (folder / split).mkdir(parents=True)
        pq.write_table(table, folder / split / "0.parquet")
    metadata = {
        "canvas": [CANVAS.height, CANVAS.width],
        "charset": load_bundle(SHIPPED).codec.charset,
        "content_hash": "0" * 64,
        "settings": {"cleaning": {"max_length": 8, "keep": [], "charset": None}},
        "splits": {split: {"prepared": len(texts)} for split, texts in lines.items()},
    }
    (folder / "dataset.json").write_text(json.dumps(metadata))
    return PreparedSets((str(folder),))


@pytest.fixture
def prepared(tmp_path):
    return write_prepared(tmp_path / "prepared", {"train": TEXTS})


def test_without_a_list_the_training_texts_teach_it_and_a_fold_leaves_its_own_out(prepared):
    assert language_model_texts(prepared) == Counter(TEXTS)
    folds = folds_of([f"train-{n}.jpg" for n in range(len(TEXTS))], 3)
    for fold in range(3):
        kept = [text for text, other in zip(TEXTS, folds, strict=True) if other != fold]
        assert language_model_texts(prepared, selection=Selection(num_folds=3, fold=fold)) == Counter(kept)


@pytest.mark.parametrize("packed", [False, True])
def test_a_label_list_teaches_what_the_cleaning_rules_keep(prepared, tmp_path, packed):
    labels = ["LEA", " LEA ", "", "UNREADABLE", "EMPTY", "lea", "TOO LONG A NAME", "NA", "JEAN  LUC"]
    content = "IDENTITY,other\n" + "".join(f"{label},1\n" for label in labels)
    path = tmp_path / ("list.csv.gz" if packed else "list.csv")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert language_model_texts(prepared, str(path)) == {"LEA": 2, "NA": 1, "JEAN LUC": 1}
    with pytest.raises(UserError, match=r"list\.csv.* column 'NAME'"):
        language_model_texts(prepared, str(path), "NAME")


def test_a_label_list_that_is_missing_or_holds_nothing_is_named(prepared, tmp_path):
    with pytest.raises(UserError, match=r"no file .*nothing\.csv"):
        language_model_texts(prepared, str(tmp_path / "nothing.csv"))
    (tmp_path / "list.csv").write_text("IDENTITY\nsmall\n")
    with pytest.raises(UserError, match=r"list\.csv has no text"):
        language_model_texts(prepared, str(tmp_path / "list.csv"))


@pytest.mark.slow
def test_what_is_told_of_the_fit_is_what_the_fitted_bundle_reads(tmp_path):
    """Fits a decoder to drawn lines and the shipped model, whose own decoder is removed."""
    rng, names = np.random.default_rng(3), Names.draw(3)
    texts, known = ([without_accents(names.draw_one(rng)) for _ in range(n)] for n in (200, 5000))
    images = [fit(draw_line(text, rng), CANVAS) for text in texts]
    prepared = write_prepared(tmp_path / "prepared", {"validation": texts}, images)
    bundle = load_bundle(SHIPPED)
    path = str(tmp_path / "bundle")
    save_bundle(replace(bundle, decoding=type(bundle.decoding)()), path)
    summary = fit_decoder(path, prepared, Counter(known), device="cpu")
    fitted = load_bundle(path)
    figures, recognizer = fitted.training["decoder"], Recognizer(path)
    log_probs = Network(bundle)(np.stack(images))
    greedy = read_log_probs(log_probs, bundle.codec)
    assert figures["greedy_cer"] == pytest.approx(count(texts, [reading.text for reading in greedy]).cer)
    readings = recognizer.read_lines(np.stack(images))
    assert figures["cer"] == pytest.approx(count(texts, [reading.text for reading in readings]).cer)
    assert figures["cer"] < figures["greedy_cer"] and f"{figures['cer']:.2%} with beam search" in summary
    assert (figures["num_lines"], figures["num_language_model_texts"]) == (200, 5000)
    uncalibrated = replace(fitted.decoding, beam_calibration=None).search(log_probs.cpu().numpy(), bundle.codec)
    by_id = sorted(range(len(texts)), key=str)  # every other line belongs to the half that calibrates the other half
    confidences = np.array([uncalibrated[n].confidence for n in by_id])
    is_exact = np.array([uncalibrated[n].text == texts[n] for n in by_id])
    before, after = errors_before_and_after(confidences, is_exact)
    assert (figures["uncalibrated_error"], figures["calibration_error"]) == pytest.approx((before, after), abs=1e-4)
    other = write_prepared(tmp_path / "other", {"validation": texts[:60]}, images[:60])
    fit_decoder(path, other, Counter(known[1:]), device="cpu")
    assert load_bundle(path).training["decoder"]["language_model_texts"] != figures["language_model_texts"]


def test_a_sample_has_of_each_source_its_share_whatever_the_order():
    ids = [f"{source}/{n:05}.png" for source in ("archive", "census") for n in range(2000)]
    chosen = sample(ids, 400)
    assert len(set(chosen)) == 400 and set(sample(ids[::-1], 400)) == set(chosen)
    assert 150 < sum(line.startswith("archive") for line in chosen) < 250  # 5 standard deviations
    assert set(sample(ids, 5000)) == set(ids)
