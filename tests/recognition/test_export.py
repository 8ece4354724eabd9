"""Tests that exported networks agree with the original, also in a program without this package."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, documented
from job_runs import mistake, run, run_apart

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.decode import decode
from hwr_ray.images.lines import fit
from hwr_ray.recognition import export
from hwr_ray.recognition.bundle import save_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.recognition.export import compare, drawn_lines, to_onnx, to_torchscript
from hwr_ray.recognition.recognizer import read_log_probs
from hwr_ray.recognition.runtime import log_probs_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped model, exported as ONNX by the job."""
    folder = tmp_path_factory.mktemp("export")
    command = documented("jobs/export.py --model run/best --out exported", **{"run/best": "shipped"})
    stdout, _ = run_apart(*command, cwd=folder)
    assert stdout.strip() == str(folder / "exported")
    return folder / "exported"


def test_torchscript_is_written_by_the_job_and_read_by_torch_alone(tmp_path):
    command = "jobs/export.py --model run/best --out exported-torch --format torchscript"
    run(*documented(command, **{"run/best": "shipped"}), cwd=tmp_path)
    network = export.torch.jit.load(tmp_path / "exported-torch/model.pt")
    metadata = storage.read_json(str(tmp_path / "exported-torch/reading.json"))
    log_probs = network(export.torch.full((3, *metadata["canvas"]), 255, dtype=export.torch.uint8))
    assert log_probs.shape == (3, metadata["canvas"][1] // 4, len(metadata["charset"]) + 1)
    np.testing.assert_allclose(log_probs.exp().sum(-1).detach(), 1, atol=1e-4)


@pytest.mark.parametrize("export_to", [to_onnx, to_torchscript])
def test_any_number_of_lines_has_the_originals_probabilities(tiny_bundle, export_to):
    _, read = export_to(tiny_bundle)
    lines = np.random.default_rng(1).integers(0, 256, (5, 16, 64), dtype=np.uint8)
    expected = export.Head(tiny_bundle.model)(export.torch.from_numpy(lines)).detach().numpy()
    for number in (1, 2, 5):
        np.testing.assert_allclose(np.exp(read(lines[:number])), np.exp(expected[:number]), atol=1e-4)


def test_an_export_that_reads_differently_is_refused(tiny_bundle):
    _, read = to_torchscript(tiny_bundle)
    lines = drawn_lines(tiny_bundle)
    assert lines.std() > 10 and compare(tiny_bundle, read, lines)["confidence"] < 1e-5
    with pytest.raises(RuntimeError, match="drawn lines differently"):
        compare(tiny_bundle, lambda images: np.roll(read(images), 1, axis=-1), lines)
    with pytest.raises(RuntimeError, match="recognizes 0 of 65 drawn lines differently"):
        compare(tiny_bundle, lambda images: 0.9 * read(images), lines)


def test_a_program_with_onnx_runtime_alone_reads_images_as_the_package_does(exported, tmp_path, draw_text):
    bundle = export.load_bundle(SHIPPED)
    metadata = storage.read_json(f"{exported}/reading.json")
    assert (metadata["charset"], metadata["model_id"]) == (bundle.codec.charset, bundle.model_id)
    pictures = [draw_text("MARTIN", height=40, width=200), draw_text("ANNE-SOPHIE", height=90, width=900)]
    for number, picture in enumerate(pictures):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), picture)
        line = fit(decode(path.read_bytes()), bundle.canvas)
        with torch.inference_mode():
            log_probs = log_probs_of(bundle.model, torch.from_numpy(line[None]))
        (expected,) = read_log_probs(log_probs, bundle.codec)
        replaced = {"exported": exported, "line.png": path}
        _, *arguments = documented("examples/read_onnx.py exported line.png", **replaced)
        command = [sys.executable, "-c", _WITHOUT_THE_PACKAGE, *arguments]
        stdout = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert stdout.strip("\n") == expected.text != ""


_WITHOUT_THE_PACKAGE = f"""
import runpy, sys
sys.modules.update(hwr_ray=None, torch=None)  # makes their import fail
runpy.run_path({str(ROOT / "examples/read_onnx.py")!r})
"""


def test_what_is_there_or_lacking_is_said(exported, tmp_path, monkeypatch, bundle_path):
    assert "already exists" in mistake("export", "--out", exported)
    assert "there is no bundle" in mistake("export", "--model", tmp_path / "none", "--out", tmp_path / "x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'hwr_ray\[export\]'"):
        to_onnx(export.load_bundle(bundle_path))


def test_a_charset_without_drawn_letters_is_checked_on_noise(tiny_bundle, tmp_path):
    bundle = export.Bundle(**{**vars(tiny_bundle), "codec": type(tiny_bundle.codec)("漢字仮")})
    save_bundle(bundle, str(tmp_path / "b"))
    assert compare(bundle, to_torchscript(bundle)[1], drawn_lines(bundle))["confidence"] < 1e-5
