"""Tests that the demo agrees with `transcribe`, works in a browser and keeps no uploads."""

import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import packages_distributions, requires

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import PAGES, ROOT, WIDTHS, blocks, documented, free_port, opened, screenshot, wait_for
from gradio_client import Client, handle_file
from job_runs import mistake, run, run_apart
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from playwright.sync_api import expect

from hwr_ray.decoding.decoder import Decoding
from hwr_ray.errors import UserError
from hwr_ray.images.decode import decode
from hwr_ray.images.lines import encode_png
from hwr_ray.recognition.demo import draw_sample, ink_of, to_csv
from hwr_ray.recognition.demo_reader import Reader, framed
from hwr_ray.recognition.recognizer import Recognizer


@pytest.fixture(scope="module")
def reader():
    return Reader(Recognizer())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six drawn names, one of them light on dark, and a file that is not an image."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(4)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(draw_sample(rng)[1])
    (folder / "5.png").write_bytes(encode_png(255 - decode((folder / "5.png").read_bytes())))
    (folder / "no image.png").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def transcripts(images, tmp_path_factory, ray_cluster):
    """The rows that `transcribe` writes for the same images, by name."""
    out = tmp_path_factory.mktemp("transcripts") / "out"
    run("transcribe", "--images", images, "--out", out)
    return pd.concat(pd.read_parquet(path) for path in out.glob("*.parquet")).set_index("path")


def test_the_reader_says_what_transcribe_says(reader, images, transcripts):
    names = sorted(transcripts.index)
    results = dict(zip(names, reader.read([(name, (images / name).read_bytes()) for name in names]), strict=True))
    for name, (row, details) in results.items():
        expected = transcripts.loc[name]
        assert row.needs_review == expected.needs_review
        assert row.warning == ("light_on_dark" if name == "5.png" else None)
        assert (row.warning or "") == (expected.warning if isinstance(expected.warning, str) else "")
        if name == "no image.png":
            assert row.text is None and row.error == expected.error and details.picture is None
        else:
            assert (row.text, row.error) == (expected.text, None)
            assert row.confidence == pytest.approx(expected.confidence, abs=1e-5)
            assert len(details.alternatives) == 4 and details.picture.shape[2] == 3


def test_frames_stand_where_the_characters_are_on_the_enlarged_picture():
    picture = np.full((50, 300), 230, np.uint8)
    _, png = cv2.imencode(".png", picture)
    characters = [{"character": "A", "confidence": 0.95, "left": 20, "right": 30}]
    characters += [{"character": "É", "confidence": 0.2, "left": 60, "right": 70}]
    page = framed(png.tobytes(), characters).astype(int)
    assert page.shape[:2] == (200 + 34, 4 * (70 + 25))
    colored = np.abs(page - page.mean(-1, keepdims=True)).max(-1) > 20
    columns = np.flatnonzero(colored[:190].mean(0) > 0.9)  # vertical edges
    assert columns.min() in range(78, 82) and columns.max() in range(278, 283)
    assert not colored[:, 125:235].any()
    greenest = page[100, columns[columns < 130]]
    assert (greenest[:, 1] > greenest[:, 0]).all()  # high confidence; the other box is red
    reddest = page[100, columns[columns > 200]]
    assert (reddest[:, 0] > reddest[:, 1]).all()


def test_a_drawing_becomes_dark_strokes_on_white_and_an_empty_one_is_told():
    layer = np.zeros((240, 1000, 4), np.uint8)  # transparent
    with pytest.raises(UserError, match="nothing is drawn"):
        ink_of({"composite": layer})
    with pytest.raises(UserError, match="nothing is drawn"):
        ink_of(None)
    cv2.line(layer, (300, 100), (400, 140), (0, 0, 0, 255), 6)
    picture = decode(ink_of({"composite": layer}))
    height, width = picture.shape
    assert 40 < height < 90 and 100 < width < 160
    assert picture[0, 0] == 255 and picture.min() == 0


def test_a_model_without_a_calibration_leaves_review_unknown(bundle_path, tmp_path):
    assert Decoding().review_threshold(0.9)[0] is None
    ((row, details),) = Reader(Recognizer(bundle_path)).read([("a.png", draw_sample(np.random.default_rng())[1])])
    assert row.needs_review is None and not details.alternatives
    table = pd.read_csv(to_csv([row], str(tmp_path)), keep_default_na=False)
    assert table.columns.tolist() == ["name", "text", "confidence", "needs_review", "warning", "error"]


@pytest.mark.slow
def test_mistakes_are_sentences(tmp_path):
    assert "there is no bundle" in mistake("demo", "--model", tmp_path / "none", run=run_apart)
    assert "--precision must be between 0 and 1" in mistake("demo", "--precision", "2")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """URL of a demo in a separate process, which must delete all uploads when it ends."""
    temporary = tmp_path_factory.mktemp("tmp")
    job, *_ = documented("jobs/demo.py")
    command = [sys.executable, ROOT / f"jobs/{job}.py", "--port", str(free_port())]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(temporary), "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=temporary, env=environment
    )
    yield process.stdout.readline().strip()
    assert list(temporary.rglob("*.png"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err, err
    assert not list(temporary.rglob("*.png")) and not list(temporary.rglob("*.csv"))


@pytest.fixture(params=WIDTHS)
def page(request, browser, url):
    with opened(browser, url, WIDTHS[request.param]) as page:
        page.get_by_role("tab", name="Images").wait_for()
        yield page
        page.wait_for_timeout(500)  # until everything has faded in
        assert not page.get_by_text("Runs", exact=True).count()  # the browser keeps no results
        screenshot(page, f"demo-{request.node.originalname}-{request.param}", whole=True)


def value_of(page, name, other_than=""):
    """Returns the value of a field of the page, once it is neither empty nor `other_than`."""
    field = page.locator(f"#{name} textarea")
    page.wait_for_function(
        "([name, before]) => ![before, ''].includes(document.querySelector(`#${name} textarea`)?.value ?? '')",
        arg=[name, other_than],
    )
    return field.input_value()


def test_images_that_are_dropped_are_read_shown_and_listed(page, images, transcripts):
    names = sorted(transcripts.index)
    page.locator("input[type=file]").first.set_input_files([images / name for name in names])
    assert value_of(page, "text") == transcripts.loc[names[0]].text
    assert value_of(page, "confidence") == f"{transcripts.loc[names[0]].confidence:.1%}"
    assert value_of(page, "review") == ("yes" if transcripts.loc[names[0]].needs_review else "no")
    cells = page.locator("#table").filter(visible=True)
    cells.get_by_text(names[1], exact=True).filter(visible=True).first.wait_for()
    with page.expect_download() as download:
        page.locator("#download").click()
    table = pd.read_csv(download.value.path(), keep_default_na=False)
    assert table.text.tolist() == transcripts.loc[names].text.fillna("").tolist()
    assert table.needs_review.tolist() == transcripts.loc[names].needs_review.tolist()
    cells.get_by_text(names[1], exact=True).filter(visible=True).first.click()
    assert value_of(page, "text", other_than=transcripts.loc[names[0]].text) == transcripts.loc[names[1]].text


def test_a_program_is_told_what_the_page_shows(url, images, transcripts):
    """Runs the program in the documentation."""
    _, (_, program) = blocks(PAGES["docs/transcription.md"], "python")
    variables = {}
    program = program.replace("http://127.0.0.1:7860", url).replace("line.png", str(images / "0.png"))
    exec(program, variables)  # noqa: S102
    assert variables["text"] == transcripts.text["0.png"]
    assert variables["confidence"] == f"{transcripts.confidence['0.png']:.1%}"


def test_the_page_can_be_used_with_the_keyboard_alone(page):
    def press(*keys):
        for key in keys:
            page.keyboard.press(key)

    def focused():
        return page.evaluate("document.activeElement.innerText.trim()")

    def go_to(name):
        for _ in range(20):
            if focused() == name:
                break
            press("Tab")
        press("Enter")

    field = page.locator("#text textarea")
    for _ in range(5):  # keys have no effect before the page is ready
        page.get_by_role("tab", name="Images").focus()
        go_to("Sample")
        go_to("Recognize a generated name")
        with suppress(AssertionError):
            expect(field).not_to_have_value("", timeout=6000)
            break
    assert field.input_value().isupper()


def draw_an_l(page):
    box = page.locator("canvas").first.bounding_box()
    # near the middle, which the paper covers on a phone as well
    x, y, size = box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.45, box["height"] * 0.1
    for (x0, y0), (x1, y1) in [((0, 0), (0, 1)), ((0, 1), (0.6, 1))]:
        page.mouse.move(x + x0 * size, y + y0 * size)
        page.mouse.down()
        page.mouse.move(x + x1 * size, y + y1 * size, steps=10)
        page.mouse.up()


def test_a_drawing_is_read_and_so_is_a_sample(page):
    page.get_by_role("tab", name="Sample").click()
    page.get_by_role("button", name="Recognize a generated name").click()
    assert value_of(page, "text").isupper()
    page.get_by_role("tab", name="Draw").click()
    page.get_by_role("button", name="Brush").click()
    field = page.locator("#text textarea")
    before = field.input_value()
    for _ in range(20):  # the canvas accepts strokes only some time after it appears
        draw_an_l(page)
        page.get_by_role("button", name="Recognize the drawing").click()
        with suppress(AssertionError):
            expect(field).not_to_have_value(before, timeout=1500)
            break
    assert len(field.input_value()) == 1  # any single letter
    page.get_by_role("button", name="Clear canvas").click()
    page.get_by_role("button", name="Recognize the drawing").click()
    page.get_by_text("nothing is drawn yet").wait_for()


WITHOUT_PACKAGES = """
import sys
sys.modules.update(dict.fromkeys({names!r}))  # makes their import fail
"""


@pytest.mark.slow
def test_a_space_needs_what_it_lists_and_reads_as_the_demo_does(tmp_path, reader):
    needed = [Requirement(line) for line in requires("hwr_ray")]
    lines = (ROOT / "deploy/space/requirements.txt").read_text().splitlines()
    listed = [Requirement(line) for line in lines if line and not line.startswith(("#", "--"))]
    assert set(listed) < set(needed)
    card = yaml.safe_load((ROOT / "deploy/space/README.md").read_text().split("---")[1])
    (gradio,) = (requirement for requirement in needed if requirement.name == card["sdk"])
    assert card["sdk_version"] in gradio.specifier

    shutil.copytree(ROOT / "deploy/space", tmp_path / "space")
    shutil.copytree(ROOT / "hwr_ray", tmp_path / "space/hwr_ray", ignore=shutil.ignore_patterns("__pycache__"))
    missing = {canonicalize_name(r.name) for r in needed if not r.marker} - installed_with([gradio, *listed])
    owners = packages_distributions()
    names = [name for name in owners if missing & set(map(canonicalize_name, owners[name]))]
    assert "ray" in names
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PACKAGES.format(names=names))
    port = free_port()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "space", env=environment)
    try:
        wait_for(lambda: is_listening(port), process)
        name, data = draw_sample(np.random.default_rng(2))
        (tmp_path / "a.png").write_bytes(data)
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        text, *_ = client.predict([handle_file(tmp_path / "a.png")], api_name="/read")
    finally:
        process.terminate()
        process.wait(timeout=60)
    ((row, _),) = reader.read([(name, data)])
    assert text == row.text


def installed_with(requirements):
    """Returns the names of all packages that installing `requirements` installs."""
    installed, waiting = set(), [canonicalize_name(r.name) for r in requirements]
    while waiting:
        if (name := waiting.pop()) in installed:
            continue
        installed.add(name)
        others = map(Requirement, requires(name) or [])
        waiting += [canonicalize_name(r.name) for r in others if not r.marker or r.marker.evaluate({"extra": ""})]
    return installed


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
