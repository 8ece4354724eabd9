"""End-to-end tests of the documented commands on a real Ray cluster, from drawn lines to transcripts.

Each job runs once in its own process, to check exit status, stdout and stderr (training in test_train_kills.py), and
otherwise in this process.
"""

import json
import math
import re
import shutil
import signal

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import PAGES, blocks, check_report, documented, draw_easy_lines, draw_lines, wait_for
from job_runs import mistake, run, run_apart, run_here, start
from latches import Latch

from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.labels import SPLITS, split_of
from hwr_ray.data.selection import Selection, fold_of
from hwr_ray.evaluation.comparison import verdict
from hwr_ray.images.decode import decode
from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.recognition.recognizer import Recognizer
from hwr_ray.text.metrics import count
from hwr_ray.training.train import read_train_lines

RECIPE = ["--epochs", "5", "--batch-size", "16", "--learning-rate", "1e-2", "--no-augmentation", "--dropout", "0"]
RECIPE += ["--conv-widths", "8", "8", "16", "32", "--gru-size", "32", "--ema-decay", "0.9"]
TRAIN = "jobs/train.py --data prepared --out run --num-workers 2"
EVALUATE = "jobs/evaluate.py --data prepared --model run/best --out evaluation"


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def drawn(folder):
    stdout, _ = run_apart("synthesize", "--out", folder / "drawn", "--lines", "600", "--seed", "3")
    assert stdout == f"{folder / 'drawn'}\n"
    return folder / "drawn"


@pytest.fixture(scope="module")
def prepared_names(folder, drawn, ray_cluster):
    replaced = {"KAGGLE_FOLDER": drawn, "prepared": "prepared-names"}
    command = documented("jobs/prepare.py --data KAGGLE_FOLDER --out prepared", **replaced)
    stdout, _ = run_apart(*command, "--canvas", "32", "128", cwd=folder)
    assert stdout == f"{folder / 'prepared-names'}\n"
    return folder / "prepared-names"


@pytest.fixture(scope="module")
def easy(folder, draw_text):
    return draw_easy_lines(folder / "easy", draw_text, train=240, validation=60)


@pytest.fixture(scope="module")
def prepared(folder, easy, ray_cluster):
    run_here("prepare", "--data", easy, "--out", folder / "prepared", "--canvas", "16", "64")
    return folder / "prepared"


@pytest.fixture(scope="module")
def trained(folder, prepared):
    run_here(*documented(TRAIN), *RECIPE, "--num-workers", "1", cwd=folder)
    return folder / "run"


def test_every_row_is_prepared_or_rejected_for_the_reason_that_the_csv_gives(drawn, prepared_names, browser):
    prepared = prepared_names
    metadata = json.loads((prepared / "dataset.json").read_text())
    truth = json.loads((drawn / "synthesis.json").read_text())["splits"]
    for split in ("train", "validation", "test"):
        labels = pd.read_csv(drawn / f"written_name_{split}_v2.csv", keep_default_na=False)
        rejected = ds.dataset(prepared / "rejected").to_table().to_pandas().query("split == @split")
        kept = ds.dataset(prepared / split).to_table(columns=["id"]).to_pandas()
        assert sorted([*kept.id, *rejected.id]) == sorted(labels.FILENAME)
        figures = metadata["splits"][split]
        assert figures["rejected"] == rejected.reason.value_counts().to_dict()
        assert figures["rejected"] == {name: n for name, n in truth[split].items() if n and name != "rows"}
        texts = labels.IDENTITY
        assert figures["rejected"].get("missing_text", 0) == (texts == "").sum()
        assert figures["rejected"].get("too_long", 0) == (texts.str.len() > 20).sum()
    check_report(browser, prepared / "report.html", "prepare")


def test_training_lowers_the_error_and_counts_every_validation_line(prepared, trained):
    epochs = history(trained)
    lines = json.loads((prepared / "dataset.json").read_text())["splits"]["validation"]["prepared"]
    assert [row["epoch"] for row in epochs] == list(range(1, len(epochs) + 1))
    assert {row["num_lines"] for row in epochs} == {lines}
    assert min(row["cer"] for row in epochs) < 0.8 < epochs[0]["cer"]
    config = json.loads((trained / "best/config.json").read_text())
    assert sorted(p.name for p in (trained / "best").iterdir()) == sorted(["config.json", *config["sha256"]])
    decoder = config["training"]["decoder"]
    assert decoder["num_lines"] == lines
    assert all(0 <= decoder[name] <= 1 for name in ("calibration_error", "uncalibrated_error"))
    assert decoder["greedy_cer"] == pytest.approx(min(row["cer"] for row in epochs), abs=0.03)
    if config["decoding"]["name"] == "beam":  # kept only if it lowers the CER
        assert decoder["cer"] < decoder["greedy_cer"]


@pytest.fixture(scope="module")
def evaluated(folder, trained):
    stdout, _ = run_apart(*documented(EVALUATE), cwd=folder)
    assert stdout == f"{folder / 'evaluation'}\n"
    return folder / "evaluation"


def test_evaluate_confirms_the_error_that_the_end_of_training_reported(evaluated, trained, browser):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    decoder = json.loads((trained / "best/config.json").read_text())["training"]["decoder"]
    cer = decoder.get("cer", decoder["greedy_cer"])
    # The last bit of a logit may differ.
    assert metrics["num_edits"] == pytest.approx(cer * metrics["num_characters"], abs=2)
    assert metrics["num_lines"] == decoder["num_lines"]
    assert metrics["cer_ci"][0] < metrics["cer"] < metrics["cer_ci"][1]
    check_report(browser, evaluated / "report.html", "evaluate")


def test_a_model_is_calibrated_on_other_lines(folder, prepared, trained):
    command = "jobs/evaluate.py --data own --model run/best --out evaluation --split test --recalibrate calibrated"
    command = documented(command, own=prepared, evaluation="read-train", test="train")
    _, err = run_here(*command, cwd=folder)
    assert "calibrated: calibrated on 240 lines, of whose labels an estimated" in err
    again = [*command, "--out", "read-again"]
    assert mistake(*again, cwd=folder).endswith(
        "calibrated is a bundle: choose another --recalibrate, or pass --overwrite"
    )
    before, after = (load_bundle(str(folder / name)) for name in ("run/best", "calibrated"))
    predictions = pd.read_parquet(folder / "read-train/predictions")
    noise = after.decoding.label_noise()
    first, second = before.decoding.calibration(), after.decoding.calibration()
    raw = predictions.confidence.to_numpy(float)
    if first:  # undone
        raw = 1 / (1 + np.exp(-(np.log(raw / (1 - raw)) - first.intercept) / first.slope))
    expected = (1 - noise) * second.apply(raw)
    assert expected.mean() == pytest.approx((predictions.num_edits == 0).mean(), abs=0.02)
    assert after.training["recalibration"]["num_lines"] == len(predictions)


def test_transcribe_and_evaluate_read_the_same_text_in_the_same_image(folder, easy, evaluated):
    images = folder / "new_lines"
    shutil.copytree(easy / "validation_v2", images)
    (images / "notes.txt").write_text("no image")
    (images / "empty.jpg").touch()
    (images / ".hidden").write_text("not a row")
    run(*documented("jobs/transcribe.py --images new_lines/ --model run/best --out transcripts"), cwd=folder)
    transcripts = pd.read_parquet(folder / "transcripts").set_index("path")
    files = [str(p.relative_to(images)) for p in images.rglob("*") if p.is_file() and p.name != ".hidden"]
    assert sorted(transcripts.index) == sorted(files)
    assert "not an image" in transcripts.error["notes.txt"]
    assert "empty" in transcripts.error["empty.jpg"]
    predictions = pd.read_parquet(evaluated / "predictions")
    assert len(predictions)
    for line in predictions.itertuples():
        transcript = transcripts.loc[f"validation/{line.id}"]
        assert transcript.text == line.prediction
        assert transcript.confidence == pytest.approx(line.confidence, abs=1e-3)
    counts = json.loads((folder / "transcripts/_run.json").read_text())
    assert counts["num_images"] == len(files)
    assert counts["num_read"] == transcripts.error.isna().sum()
    start_up, wall = (counts["speed"][f"{name}_seconds"] for name in ("start_up", "wall"))
    assert start_up > 0.3  # importing torch and compiling with OpenVINO alone take longer
    assert 0 <= wall <= counts["seconds"] - start_up + 0.2  # all are rounded


@pytest.fixture(scope="module")
def scans(folder, drawn):
    """Writes 60 images of drawn names, a manifest and a lexicon of the names; returns the names by file."""
    labels = pd.read_csv(drawn / "written_name_validation_v2.csv", keep_default_na=False)
    shutil.copytree(drawn / "validation_v2/validation", folder / "scans")
    labels.assign(file=labels.FILENAME, key=labels.index + 1000).to_csv(folder / "manifest.csv", index=False)
    (folder / "names.txt").write_text("\n".join(name for name in labels.IDENTITY if name))
    return labels.set_index("FILENAME").IDENTITY


def test_a_fresh_installation_reads_drawn_names_without_training(folder, scans):
    command = documented("jobs/transcribe.py --images new_lines/ --out transcripts", **{"new_lines/": "scans"})
    stdout, _ = run_apart(*command, "--out", "shipped", cwd=folder)
    assert stdout == f"{folder / 'shipped'}\n"
    transcripts = pd.read_parquet(folder / "shipped")
    read = transcripts[transcripts.error.isna()]
    assert len(read) > 40 and read.confidence.between(0, 1).all()
    # the model was not trained on drawn names, and chance would recognize none of them
    assert (scans[read.path].to_numpy() == read.text.to_numpy()).mean() > 0.3
    (_, snippet), *_ = blocks(PAGES["docs/transcription.md"], "python")
    variables = {}
    exec(snippet.replace('"transcripts"', repr(str(folder / "shipped"))), variables)  # noqa: S102 - our own page
    threshold = json.loads((folder / "shipped/_run.json").read_text())["review_threshold"]
    unsure = transcripts[~(transcripts.confidence >= threshold)]
    assert 0 < len(unsure) < len(transcripts) and variables["unsure"].path.tolist() == unsure.path.tolist()


def test_candidates_and_characters_are_told_where_they_are_asked_for(folder, scans):
    command = "jobs/transcribe.py --images new_lines/ --out detailed --num-best 3 --characters --precision 0.95"
    run_here(*documented(command, **{"new_lines/": "scans"}), cwd=folder)
    transcripts = pd.read_parquet(folder / "detailed")
    read = transcripts[transcripts.error.isna()]
    assert len(read) > 40
    for text, others in zip(read.text, read.alternatives, strict=True):
        assert len(others) <= 2
        assert text not in [other["text"] for other in others]
    for line in read.itertuples():
        assert "".join(c["character"] for c in line.characters) == line.text
        edges = [edge for c in line.characters for edge in (c["left"], c["right"])]
        assert edges == sorted(edges) and all(0 <= edge <= line.width for edge in edges)


def test_known_names_are_read_more_often_and_a_manifest_gives_its_keys(folder, scans):
    command = "jobs/transcribe.py --images new_lines/ --out with-names --lexicon names.txt"
    run(*documented(command, **{"new_lines/": "scans"}), cwd=folder)
    command = "jobs/transcribe.py --images manifest.csv --path-column file --id-column key --root scans/ --out by-key"
    run_here(*documented(command), cwd=folder)
    named, keyed = (pd.read_parquet(folder / out).set_index("path") for out in ("with-names", "by-key"))
    assert keyed.id.tolist() == [str(1000 + row) for row in range(len(scans))]
    assert sorted(named.index) == sorted(path for path in keyed.index if (folder / "scans" / path).exists())
    truth = scans[named.index]
    assert (named.text == truth).sum() > (keyed.text[named.index] == truth).sum()


def test_a_vote_reads_what_the_recognizer_reads_with_the_same_settings(folder, scans):
    command = "jobs/transcribe.py --images new_lines/ --out voted --test-time-augmentation"
    run_here(*documented(command, **{"new_lines/": "scans"}), cwd=folder)
    transcripts = pd.read_parquet(folder / "voted")
    read = transcripts[transcripts.error.isna()]
    paths = [folder / "scans" / path for path in read.path]
    readings = Recognizer(test_time_augmentation=True).read_files(paths)
    assert read.text.tolist() == [reading.text for reading in readings]
    assert read.confidence.to_numpy() == pytest.approx([reading.confidence for reading in readings], abs=1e-3)
    assert read.text.tolist() != [reading.text for reading in Recognizer().read_files(paths)]


def test_two_evaluations_are_compared_line_by_line(folder, evaluated, browser):
    command = "jobs/evaluate.py --data prepared --model sweep/best --out other --compare evaluation"
    _, stderr = run_here(*documented(command, **{"sweep/best": "run/best"}), "--greedy", cwd=folder)
    edits, baseline = (
        pd.read_parquet(folder / out / "predictions").set_index("id").num_edits for out in ("other", "evaluation")
    )
    comparison = json.loads((folder / "other/metrics.json").read_text())["comparison"]
    assert comparison["difference"]["num_better"] == (edits < baseline[edits.index]).sum()
    assert comparison["difference"]["num_worse"] == (edits > baseline[edits.index]).sum()
    assert verdict(comparison["difference"]) in stderr
    check_report(browser, folder / "other/report.html", "compare")


HELD = "import hwr_ray.data.shards, latches, pathlib; latch = latches.Latch(pathlib.Path({folder!r}))\n"
HELD += "hwr_ray.data.shards.count_lines = lambda *_: latch.hold()"
"""Prelude that makes `prepare` wait once a shard is written."""


def test_prepare_killed_half_way_leaves_no_half_data_set(folder, drawn, ray_cluster):
    out = folder / "half"
    command = ["prepare", "--data", drawn, "--out", out]
    for kill_signal in (signal.SIGKILL, signal.SIGTERM):
        latch = Latch(folder / f"latch-{kill_signal.name}")
        process = start(*command, prelude=HELD.format(folder=str(latch.folder)))
        wait_for(latch.is_reached, process)
        assert len({path.parts[-3] for path in folder.glob("half.partial-*/*/*.parquet")}) == 1
        process.send_signal(kill_signal)
        process.communicate()
        assert process.returncode != 0
        assert not out.exists()
    run(*command)
    assert [p.name for p in folder.glob("half*")] == ["half"]
    assert (out / "dataset.json").exists()


def test_a_csv_of_ones_own_is_dealt_out_to_the_three_splits(folder, drawn, ray_cluster):
    labels = pd.read_csv(drawn / "written_name_train_v2.csv", keep_default_na=False)
    labels.columns = ["file", "text"]
    labels.to_csv(folder / "labels.csv", index=False)
    command = "jobs/prepare.py --labels labels.csv --images lines/ --columns file text --out prepared"
    run_here(*documented(command, prepared="dealt", **{"lines/": drawn / "train_v2/train"}), cwd=folder)
    metadata = json.loads((folder / "dealt/dataset.json").read_text())["splits"]
    assert sum(split["rows"] for split in metadata.values()) == len(labels)
    assert metadata["train"]["rows"] / len(labels) == pytest.approx(0.8, abs=0.05)


def test_parquet_files_of_train_and_test_get_validation_lines(folder, drawn, ray_cluster):
    data = folder / "hub/data"
    data.mkdir(parents=True)
    names = sorted(path for path in (drawn / "train_v2/train").iterdir() if path.suffix == ".jpg")[:90]
    rows = [{"image": {"bytes": path.read_bytes(), "path": path.name}, "text": "ANNA"} for path in names]
    for name, part in (("train-00000-of-00002", rows[:40]), ("train-00001-of-00002", rows[40:80]), ("test", rows[80:])):
        pq.write_table(pa.Table.from_pylist(part), data / f"{name}.parquet", row_group_size=16)
    _, err = run_here("prepare", "--data", folder / "hub", "--out", folder / "from-hub")
    assert "there are no validation lines: 10 % of the training lines are taken" in err
    found = {split: sorted(pd.read_parquet(folder / "from-hub" / split).id) for split in SPLITS}
    splits = {row["image"]["path"]: split_of(row["image"]["path"], "train", 0.1) for row in rows[:80]}
    splits |= {row["image"]["path"]: "test" for row in rows[80:]}
    rejected = pd.read_parquet(folder / "from-hub/rejected").id if (folder / "from-hub/rejected").exists() else []
    for split in SPLITS:
        assert found[split] == sorted(name for name, of in splits.items() if of == split and name not in set(rejected))
    assert len(found["validation"]) > 1


def test_unusual_images_are_told_and_light_writing_is_inverted_on_request(folder, draw_text, ray_cluster):
    csv, images = draw_lines(folder / "unusual", draw_text, ["ANNA"] * 20)
    prepare = ["prepare", "--labels", csv, "--images", images, "--canvas", "48", "320"]
    run_here(*prepare, "--out", folder / "unusual/usual")
    for number in range(4):
        path = str(images / f"{number}.png")
        cv2.imwrite(path, 255 - cv2.imread(path, cv2.IMREAD_GRAYSCALE))
    cv2.imwrite(str(images / "4.png"), np.full((40, 200), 230, np.uint8))
    expected = {**{f"{n}.png": "light_on_dark" for n in range(4)}, "4.png": "blank"}
    found = {}
    for name, settings in (("plain", []), ("inverted", ["--invert", "auto"])):
        _, err = run_here(*prepare, "--out", folder / "unusual" / name, *settings)
        kept = [split for split in SPLITS if (folder / "unusual" / name / split).exists()]
        found[name] = pd.concat(pd.read_parquet(folder / "unusual" / name / split) for split in kept).set_index("id")
        assert found[name].warning.dropna().to_dict() == {
            line: "inverted" if settings and warning == "light_on_dark" else warning
            for line, warning in expected.items()
        }
        metadata = json.loads((folder / "unusual" / name / "dataset.json").read_text())
        assert sum(sum(split["warnings"].values()) for split in metadata["splits"].values()) == 5
        assert "warning blank for 1 image: the image has no writing" in err
        assert f"warning {'inverted' if settings else 'light_on_dark'} for 4 images" in err
        assert "Lines with a warning" in (folder / "unusual" / name / "report.html").read_text()
    run_here("transcribe", "--images", images, "--out", folder / "unusual/read", "--invert", "auto")
    warnings = pd.concat(map(pd.read_parquet, (folder / "unusual/read").glob("*.parquet"))).set_index("path").warning
    assert warnings.dropna().to_dict() == found["inverted"].warning.dropna().to_dict()
    assert json.loads((folder / "unusual/read/_run.json").read_text())["warnings"] == {"inverted": 4, "blank": 1}
    kept = [split for split in SPLITS if (folder / "unusual/usual" / split).exists()]
    before = pd.concat(pd.read_parquet(folder / "unusual/usual" / split) for split in kept).set_index("id")
    for line in before.index.drop("4.png"):
        assert found["inverted"].image[line] == before.image[line]
        assert (found["plain"].image[line] == before.image[line]) == (line not in expected)


def test_another_alphabet_takes_settings_only(folder, draw_text, ray_cluster):
    words = ["Straße 12", "äöü ÄÖÜ", "Grüße aus München, Hauptstr. 345", "quer 67890"]
    assert max(map(len, words)) == 32
    texts = [*words * 12, "Grüße aus München, Hauptstr. 3456"]
    csv, images = draw_lines(folder / "german", lambda text: draw_text(text, width=200), texts)
    out, canvas = folder / "german", ["--canvas", "16", "320", "--stretch", "1.5"]
    command = "jobs/prepare.py --labels labels.csv --images lines/ --columns file text --out own --keep lowercase --max-length 32"  # noqa: E501
    replaced = {"labels.csv": csv, "file": "FILENAME", "text": "IDENTITY", "lines/": images, "own": out / "prepared"}
    run_here(*documented(command, **replaced), *canvas)
    metadata = json.loads((out / "prepared/dataset.json").read_text())
    assert set(metadata["charset"]) == set("".join(words))
    rejected = [split["rejected"] for split in metadata["splits"].values() if split["rejected"]]
    assert rejected == [{"too_long": 1}]
    run_here("train", "--data", out / "prepared", "--out", out / "run", *RECIPE, "--epochs", 1)
    run_here("evaluate", "--data", out / "prepared", "--model", out / "run/best", "--out", out / "evaluation")
    run_here("transcribe", "--images", images, "--model", out / "run/best", "--out", out / "transcripts")
    config = json.loads((out / "run/best/config.json").read_text())
    assert config["charset"] == metadata["charset"] and config["canvas"] == [16, 320, 1.5]
    predictions = pd.read_parquet(out / "evaluation/predictions")
    assert set(predictions.text) <= set(words)
    transcripts = pd.read_parquet(out / "transcripts")
    assert len(transcripts) == len(texts) and transcripts.error.isna().all()


def test_drawn_lines_of_mixed_case_keep_their_letters(folder, ray_cluster):
    command = documented("jobs/synthesize.py --style mixed --lines 20000 --out drawn", drawn="mixed", **{"20000": 150})
    run_here(*command, cwd=folder)
    command = "jobs/prepare.py --data drawn --out prepared-drawn --keep lowercase --max-length 28"
    run_here(*documented(command, drawn="mixed"), cwd=folder)
    splits = json.loads((folder / "prepared-drawn/dataset.json").read_text())["splits"]
    faults = json.loads((folder / "mixed/synthesis.json").read_text())["splits"]
    for split, figures in splits.items():
        assert figures["rejected"] == {name: n for name, n in faults[split].items() if n and name != "rows"}
    texts = "".join(pd.read_parquet(folder / "prepared-drawn/train").text)
    assert any(c.islower() for c in texts) and any(c.isdigit() for c in texts) and not texts.isascii()


def test_data_sets_are_trained_on_together_and_validated_each_and_all(folder, prepared, draw_text):
    texts = ["straße", "12.30", "Ärger", "übel"] * 12
    csv, images = draw_lines(folder / "others", draw_text, texts)  # 0.png, 1.png, ... are ids of both sets
    command = ["prepare", "--labels", csv, "--images", images, "--out", folder / "others/prepared"]
    run_here(*command, "--keep", "lowercase", "--canvas", "16", "64")
    sets = [prepared, folder / "others/prepared"]
    warned = json.loads((folder / "others/prepared/dataset.json").read_text())
    warned["splits"]["train"]["warnings"], warned["settings"]["invert"] = {"page": 2}, "auto"
    (folder / "others/prepared/dataset.json").write_text(json.dumps(warned))
    both = json.loads((folder / "others/prepared/dataset.json").read_text())
    command = documented("jobs/train.py --data old new --out joint", old=sets[0], new=sets[1])
    _, err = run_here(*command, *RECIPE, "--epochs", 2, cwd=folder)
    config = json.loads((folder / "joint/best/config.json").read_text())
    first = json.loads((prepared / "dataset.json").read_text())
    assert sorted(config["charset"]) == sorted({*first["charset"], *both["charset"]})
    row, recipe = config["training"]["metrics"], json.loads((folder / "joint/recipe.json").read_text())
    for split in ("train", "validation"):
        numbers = [metadata["splits"][split]["prepared"] for metadata in (first, both)]
        assert recipe["data"]["lines"][split] == sum(numbers)
    assert config["training"]["warnings"] == {"page": 2 / recipe["data"]["lines"]["train"]}
    assert config["training"]["invert"] is True
    assert (
        recipe["data"]["sets"] == list(row["sets"]) == [str(path) for path in sets]
    )  # both folders are called `prepared`
    reader = Recognizer(str(folder / "joint/best"), greedy=True)
    for path, figures in row["sets"].items():
        lines = pd.read_parquet(f"{path}/validation")
        pixels = np.stack([np.frombuffer(image, np.uint8).reshape(16, 64) for image in lines.image])
        counts = count(lines.text.tolist(), [reading.text for reading in reader.read_lines(pixels)])
        assert figures["num_lines"] == counts.num_lines and figures["num_characters"] == counts.num_characters
        assert figures["num_edits"] == pytest.approx(counts.num_edits, abs=2)  # the last bit of a logit may differ
        assert f"{path}: CER {100 * figures['cer']:.2f} %" in err
    for name in ("num_lines", "num_edits", "num_characters", "num_exact"):
        assert row[name] == sum(figures[name] for figures in row["sets"].values())

    streamed = PreparedSets(tuple(map(str, sets))).read_shuffled("train", seed=0).to_pandas()
    expected = pd.concat([pd.read_parquet(path / "train") for path in sets])
    assert sorted(zip(streamed.id, streamed.text, strict=True)) == sorted(zip(expected.id, expected.text, strict=True))


def test_every_training_line_is_compared_by_the_model_of_the_fold_that_left_it_out(
    folder, drawn, browser, ray_cluster, monkeypatch
):
    labels = pd.read_csv(drawn / "written_name_train_v2.csv", keep_default_na=False).head(150)
    labels.loc[[3, 4], "IDENTITY"] = labels.loc[[4, 3], "IDENTITY"].to_numpy()
    labels.to_csv(folder / "swapped.csv", index=False)
    images, data = drawn / "train_v2/train", folder / "swapped"
    run_here("prepare", "--labels", folder / "swapped.csv", "--images", images, "--out", data, "--canvas", "32", "128")
    lines = pd.read_parquet(data / "train").set_index("id")
    command = "jobs/train.py --data prepared --out fold-$fold --num-folds 3 --fold $fold"
    replacements = [{"prepared": "swapped", "fold-$fold": f"fold-{n}", "$fold": n, "3": 2} for n in (0, 1)]
    for words in replacements:
        run_here(*documented(command, **words), *RECIPE, "--epochs", 1, cwd=folder)
    monkeypatch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")  # as in jobs
    for fold in (0, 1):
        selection = Selection(num_folds=2, fold=fold)
        streamed = read_train_lines(PreparedSets((str(data),)), selection, seed=0)
        others = sorted(line for line in lines.index if fold_of(line, 2) != fold)
        assert sorted(row["id"] for row in streamed.take_all()) == others
        recipe = json.loads((folder / f"fold-{fold}/recipe.json").read_text())
        assert recipe["data"]["lines"]["train"] == len(others)
    command = "jobs/evaluate.py --data prepared --out label-errors --label-errors fold-0/best fold-1/best fold-2/best"
    run(*documented(command, prepared="swapped")[:-1], cwd=folder)

    ranked = pd.read_parquet(folder / "label-errors/label_errors.parquet")
    assert sorted(ranked.id) == sorted(lines.index)
    assert ranked["rank"].tolist() == list(range(1, len(lines) + 1))
    assert ranked.score.is_monotonic_decreasing
    assert (ranked.text == lines.text[ranked.id].to_numpy()).all()
    readers = [Recognizer(str(folder / f"fold-{fold}/best")) for fold in (0, 1)]
    for line in ranked.itertuples():
        image = np.frombuffer(lines.image[line.id], np.uint8).reshape(1, 32, 128)
        (expected,) = readers[fold_of(line.id, 2)].compare(image, [line.text])
        assert line.text_log_prob == pytest.approx(expected.text_log_prob, abs=0.01)
        if line.prediction == expected.reading.text:  # otherwise the last bit of a logit differs
            assert line.prediction_log_prob == pytest.approx(expected.prediction_log_prob, abs=0.01)
    sheet = (folder / "label-errors/label_errors.html").read_text()
    assert all(line in sheet for line in ranked.id[ranked.score > 0].head(200))
    check_report(browser, folder / "label-errors/label_errors.html", "label-errors")


def test_a_finished_data_set_is_replaced_only_on_request(drawn, prepared_names):
    prepared = prepared_names
    before = (prepared / "dataset.json").read_bytes()
    assert "already exists" in mistake("prepare", "--data", drawn, "--out", prepared)
    assert (prepared / "dataset.json").read_bytes() == before


def test_mistakes_get_one_sentence_that_names_the_culprit(folder, drawn, prepared, trained):
    bad, elsewhere, damaged = folder / "bad.csv", folder / "elsewhere", folder / "damaged"
    bad.write_text("FILE,NAME\na.jpg,ANNA\n")
    elsewhere.mkdir()
    good = drawn / "written_name_test_v2.csv"
    shutil.copytree(trained / "best", damaged)
    (damaged / "config.json").unlink()
    outs = [folder / f"none-{n}" for n in range(4)]
    messages = [
        mistake("prepare", "--labels", bad, "--images", drawn, "--out", outs[0]),
        mistake("prepare", "--labels", good, "--images", elsewhere, "--out", outs[1], run=run_here),
        mistake("evaluate", "--data", prepared, "--model", damaged, "--out", outs[2]),
        mistake(
            "train",
            *["--data", prepared, "--out", outs[3], "--num-workers", "8", "--cpus-per-worker", "1"],
            run=run_apart,
        ),
    ]
    assert f"{bad}: which column holds the text? Pass --columns IMAGE TEXT, two of FILE, NAME" in messages[0]
    assert re.search(r"all 60 rows were rejected \(\d+ as missing_image, .*\), such as row \d+", messages[1])
    assert f"there is no {elsewhere}/" in messages[1] and f"see {outs[1]}.rejected" in messages[1]
    assert pd.read_parquet(f"{outs[1]}.rejected").reason.value_counts().sum() == 60
    assert f"the bundle {damaged} has no config.json" in messages[2]
    assert "needs 9 CPUs and the cluster has 2" in messages[3]
    assert not list(folder.glob("none-?"))


def test_evaluate_names_the_command_that_prepares_for_the_bundles_canvas(folder, drawn, trained, ray_cluster):
    other = folder / "other-canvas"
    run_here("prepare", "--data", drawn, "--out", other, "--canvas", "48", "256")
    message = mistake("evaluate", "--data", other, "--model", trained / "best", "--out", folder / "none")
    command = re.search(r"python jobs/prepare.py (.*)", message)[1].replace("NEW_FOLDER", "fitting").split()
    run_here("prepare", *command, cwd=folder)
    assert json.loads((folder / "fitting/dataset.json").read_text())["canvas"] == [16, 64]


def test_the_quick_start_ends_with_what_was_read_before_and_after_learning(folder, ray_cluster):
    """All jobs of the quick start run in this process."""
    shown, _ = run_here(
        "quickstart", *["--out", "quick", "--lines", "80", "--epochs", "1"], cwd=folder, folder="examples"
    )
    metrics = {
        name: json.loads((folder / f"quick/{place}/metrics.json").read_text())
        for name, place in (("shipped", "before"), ("fine-tuned", "evaluation"))
    }
    for name, figures in metrics.items():
        pattern = (
            rf"^{name} +{100 * figures['cer']:.1f}% +{100 * figures['exact_match']:.1f}%   of {figures['num_lines']}$"
        )
        assert re.search(pattern, shown, re.MULTILINE), shown
    assert metrics["fine-tuned"]["comparison"]["model_id"] == metrics["shipped"]["model_id"]
    named = re.findall(r"^  (\S+): ", shown.partition("Open:\n")[2], re.MULTILINE)
    assert len(named) == 3 and all((folder / path).stat().st_size for path in named)


@pytest.fixture(scope="module")
def names(folder, drawn, ray_cluster):
    """Drawn names on the canvas of the shipped model, all of them training lines but for a tenth."""
    labels = pd.read_csv(drawn / "written_name_train_v2.csv", keep_default_na=False).head(160)
    labels.to_csv(folder / "names.csv", index=False)
    images = drawn / "train_v2/train"
    run_here("prepare", "--labels", folder / "names.csv", "--images", images, "--out", folder / "names")
    return folder / "names"


def test_composed_lines_spell_texts_of_the_labels_in_letters_that_a_model_reads(folder, names):
    replaced = {"prepared": names, "run/best": "shipped"}
    command = documented("jobs/recombine.py --data prepared --model run/best --out recombined", **replaced)
    run_here(*command, "--lines", 60, "--spaces", "0.3", cwd=folder)
    composed = pd.read_parquet(folder / "recombined/train.parquet")
    assert set(composed.text) <= set(pd.read_parquet(names / "train").text)
    assert 45 <= len(composed) <= 60
    files = [image["bytes"] for image in composed.image]
    readings = Recognizer(greedy=True).read([decode(data) for data in files])
    right = np.mean([reading.text == text for reading, text in zip(readings, composed.text, strict=True)])
    assert right > 0.6  # of the drawn lines themselves, it reads fewer
    run_here(*command[:-1], "again", "--lines", 60, "--spaces", "0.3", cwd=folder)
    assert pd.read_parquet(folder / "again/train.parquet").equals(composed)
    taken = documented("jobs/prepare.py --labels recombined/train.parquet --split train --out composed")
    run_here(*taken, cwd=folder)
    lines = pd.read_parquet(folder / "composed/train")
    assert sorted(lines.text) == sorted(composed.text) and len(set(lines.id)) == len(lines)
    train = documented("jobs/train.py --data prepared composed --out joint", prepared=names, joint="both")
    run_here(*train, *RECIPE[2:], "--epochs", 1, cwd=folder)
    recipe = json.loads((folder / "both/recipe.json").read_text())
    assert recipe["data"]["lines"]["train"] == len(composed) + len(pd.read_parquet(names / "train"))


def test_a_student_learns_from_the_candidates_of_a_vote_and_from_corrected_labels(folder, names):
    replaced = {"prepared": names, "run/best": "shipped", "other/best": "shipped"}
    command = "jobs/evaluate.py --data prepared --split train --model other/best --num-best 8 --out readings"
    run_here(
        *documented(command, **replaced),
        "--test-time-augmentation",
        "--voters",
        "shipped",
        cwd=folder,
    )
    readings = pd.read_parquet(folder / "readings/predictions").set_index("id")
    metrics = json.loads((folder / "readings/metrics.json").read_text())
    shipped = Recognizer(voters=["shipped"], test_time_augmentation=True)
    assert metrics["model_id"] == shipped.model_id == "+".join([load_bundle(SHIPPED).model_id] * 2 + ["views"])
    lines = pd.read_parquet(names / "train").head(20)
    pixels = np.stack([np.frombuffer(image, np.uint8).reshape(48, 320) for image in lines.image])
    for line, reading in zip(lines.id, shipped.read_lines(pixels), strict=True):
        assert readings.prediction[line] == reading.text
    command = "jobs/evaluate.py --data prepared --out label-errors --label-errors run/best"
    _, log = run_here(*documented(command, **{**replaced, "label-errors": "errors"}), cwd=folder)
    assert "it may have learned some of their label errors" in log
    ranked = pd.read_parquet(folder / "errors/label_errors.parquet")
    assert sorted(ranked.id) == sorted(pd.read_parquet(names / "train").id)

    recipe = ("--init-from", "shipped", "--epochs", 1, "--batch-size", 16)
    train = documented("jobs/train.py --data prepared --out student --teacher readings", prepared=names)
    correct = documented(
        "jobs/train.py --data prepared --out cleaned --label-errors label-errors/label_errors.parquet",
        **{"prepared": names, "label-errors/label_errors.parquet": "errors/label_errors.parquet"},
    )
    run_here(*train, *recipe, cwd=folder)
    run_here(*correct, *recipe, cwd=folder)
    student, cleaned = (json.loads((folder / name / "recipe.json").read_text()) for name in ("student", "cleaned"))
    assert len(student["teacher"]) == len(cleaned["label_errors"]) == 64 and "teacher_weight" not in cleaned
    errors = ranked[ranked.score > math.log(1000)]
    left_out = sum(errors.confidence < 0.9)
    assert cleaned["data"]["lines"]["train"] == len(ranked) - left_out and len(errors) > 0
    assert student["data"]["lines"]["train"] == len(ranked)
    run_here("train", "--data", names, "--out", folder / "alone", *recipe)
    losses = [json.loads((folder / name / "metrics.jsonl").read_text())["loss"] for name in ("student", "alone")]
    assert losses[0] != losses[1]  # of the same lines with the same distortions
    told = mistake(*train, *recipe, "--teacher-weight", "0.2", cwd=folder)
    assert "student is a run with teacher_weight = 0.5, not 0.2: choose another --out" in told
