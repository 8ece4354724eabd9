"""What the README, the documentation and the Makefile say is so. Other tests run their commands."""

import ast
import json
import re
import runpy
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import pytest
import tyro
from conftest import PAGES, ROOT, WIDTHS, blocks, check_width, commands, documented, opened, screenshot

from hwr_ray.data.cleaning import REASONS
from hwr_ray.data.kaggle import FetchSettings
from hwr_ray.data.prepare import PrepareSettings
from hwr_ray.evaluation.evaluate import EvaluateSettings
from hwr_ray.evaluation.label_errors import LABEL_ERRORS
from hwr_ray.evaluation.subgroups import SEPARATORS, SUBGROUPS
from hwr_ray.recognition.demo import DemoSettings
from hwr_ray.recognition.export import ExportSettings
from hwr_ray.synthetic.synthesize import SynthesisSettings
from hwr_ray.training.settings import TrainSettings
from hwr_ray.transcription.recombine import RecombineSettings
from hwr_ray.transcription.settings import TranscribeSettings
from hwr_ray.transcription.transcripts import TRANSCRIPTS
from hwr_ray.tuning.search_space import space_of
from hwr_ray.tuning.tune import TuneSettings

SETTINGS = {
    "synthesize": SynthesisSettings,
    "prepare": PrepareSettings,
    "recombine": RecombineSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "transcribe": TranscribeSettings,
    "tune": TuneSettings,
    "export": ExportSettings,
    "demo": DemoSettings,
    "fetch_kaggle": FetchSettings,
}


def quickstart_recipe():
    listing = subprocess.run(["make", "-n", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "examples/quickstart.py --out quickstart" in listing.stdout
    program = runpy.run_path(str(ROOT / "examples/quickstart.py"))
    return "".join(f"python {command}\n" for command in program["commands"]("quickstart", lines=1200, epochs=4))


def job_commands(text):
    """(job, arguments) of each command line that runs a job."""
    found = re.findall(r"python jobs/(\w+)\.py ([^#…\n`]+)", text.replace("$fold", "0").replace("\\\n", ""))
    return [(job, arguments.split()) for job, arguments in found]


@pytest.mark.parametrize(
    ("text", "jobs"),
    [
        (PAGES["README.md"], {"prepare", "train", "evaluate", "transcribe"}),
        (quickstart_recipe(), {"synthesize", "prepare", "train", "evaluate", "transcribe"}),
        ("\n".join(PAGES.values()), SETTINGS.keys() - {"demo"}),
    ],
    ids=["README", "make quickstart", "all pages"],
)
def test_every_command_is_one_that_its_job_understands(text, jobs):
    found = [(job, arguments) for job, arguments in job_commands(text) if len(arguments) > 1]
    assert {job for job, _ in found} == jobs
    for job, arguments in found:
        settings = tyro.cli(SETTINGS[job], args=arguments, config=(tyro.conf.OmitArgPrefixes,))
        if job == "tune":
            space_of(settings.space)


def test_every_command_is_run_by_a_test_or_marked_why_not():
    """A test that runs one gives it to `documented`, which looks for it in the pages."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    run = {
        command
        for text in PAGES.values()
        for reason, block in blocks(text, "sh")
        if not reason
        for command in commands(block)
    }
    assert len(run) > 12
    for command in sorted(run):
        script = command.removeprefix("python ")
        assert script in texts, f"no test runs: {command}"
    with pytest.raises(AssertionError, match="no page has"):
        documented("jobs/train.py --data elsewhere")


def test_a_block_is_marked_by_the_comment_right_above_it_and_loops_are_no_commands():
    marked = "<!-- not run: why -->\n```sh\nrm  # all\n```\n"
    page = f"{marked}\n```sh\nfor a in 1; do\n  ls \\\n    $a\ndone\n```\n\n{marked}"
    found = [(reason, commands(block)) for reason, block in blocks(page, "sh")]
    assert found == [("why", ["rm"]), (None, ["ls $a"]), ("why", ["rm"])]


@pytest.mark.slow
def test_the_program_of_the_api_page_reads_an_image(tmp_path, draw_text):
    cv2.imwrite(str(tmp_path / "line.png"), draw_text("ANNA", height=40, width=200))
    ((_, program),) = blocks(PAGES["docs/api.md"], "python")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    text, confidence, needs_review = done.stdout.split()
    assert text == "ANNA" and 0 <= float(confidence) <= 1 and needs_review in ("True", "False")


def test_every_make_target_that_is_named_is_there():
    targets = {target for text in PAGES.values() for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)}
    assert targets >= {"quickstart", "test", "check", "bench", "docs"}
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_packages_have_the_order_of_their_contract_and_their_own_sentences_on_both_pages():
    layers = re.search(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)[1]
    order = [name for name in re.findall(r'"(\w+)"', layers) if (ROOT / "hwr_ray" / name).is_dir()][::-1]
    sentences = [ast.get_docstring(ast.parse((ROOT / f"hwr_ray/{name}/__init__.py").read_text())) for name in order]
    told = [(name, f"{said[0].lower()}{said[1:].rstrip('.')}") for name, said in zip(order, sentences, strict=True)]
    tree = PAGES["README.md"].partition("hwr_ray/          ")[2].partition("\njobs/")[0]
    assert re.findall(r"^  (\w+)/ +(.+)$", tree, flags=re.MULTILINE) == told
    table = PAGES["docs/architecture.md"].partition("## Packages")[2]
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", table, flags=re.MULTILINE) == told


def test_the_picture_of_the_packages_shows_their_imports():
    drawing = runpy.run_path(str(ROOT / "docs/draw_packages.py"))
    assert drawing["PICTURE"].read_text() == drawing["draw"](drawing["imports"]())


def test_the_reasons_the_subgroups_and_the_columns_of_transcripts_and_label_errors_are_all_told():
    pages = "\n".join(PAGES[f"docs/{name}.md"] for name in ("data", "files", "labels"))
    for name in [*REASONS, *SUBGROUPS, *SEPARATORS, *TRANSCRIPTS.names, *LABEL_ERRORS.names]:
        assert f"`{name}`" in pages


def test_every_file_that_is_named_is_there():
    links = {
        (Path(page).parent, link)
        for page, text in PAGES.items()
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)
    }
    assert len(links) > 20
    for folder, link in links:
        assert (ROOT / folder / link).exists(), f"{folder}: {link}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as a site, built without a warning and served."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_site_is_built_without_a_warning_and_asks_no_other_server(browser, site, width):
    with opened(browser, site, WIDTHS[width], is_dark=width == "phone") as page:
        for name in sorted(PAGES.keys() - {"README.md"}):
            page.goto(f"{site}{Path(name).stem}/" if name != "docs/index.md" else site)
            assert page.locator("h1").count() == 1
            pictures = page.locator("article img")
            assert all(pictures.evaluate_all("all => all.map(image => image.naturalWidth)"))
            check_width(page)
            screenshot(page, f"{name.removesuffix('.md').replace('/', '-')}-{width}")
        assert "hwr_ray.recognition.recognizer.Recognizer" in page.request.get(f"{site}api/").text()
        answer = page.request.get(f"{site}benchmarks/results/listing.json")
        assert answer.json() == json.loads((ROOT / "benchmarks/results/listing.json").read_text())
