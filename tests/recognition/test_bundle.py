"""Tests that bundles survive a round trip, and that errors name the damaged file."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.recognition.bundle import load_bundle, save_bundle

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def logits_of(bundle) -> torch.Tensor:
    with torch.inference_mode():
        return bundle.model(torch.rand(2, 1, 16, 64, generator=torch.Generator().manual_seed(1)))[0]


def test_a_bundle_comes_back_with_identical_logits_and_everything_else(tiny_bundle, bundle_path):
    loaded = load_bundle(bundle_path)
    assert torch.equal(logits_of(loaded), logits_of(tiny_bundle))
    assert not loaded.model.training
    for name in ("settings", "codec", "canvas", "training"):
        assert getattr(loaded, name) == getattr(tiny_bundle, name)


def test_a_bundle_comes_back_from_a_uri(tiny_bundle):
    save_bundle(tiny_bundle, "memory://test-bundle/best")
    assert torch.equal(logits_of(load_bundle("memory://test-bundle/best")), logits_of(tiny_bundle))


def test_the_model_id_is_that_of_the_weights(tiny_bundle, bundle_path, tmp_path):
    first = load_bundle(bundle_path).model_id
    assert len(first) == 12 and int(first, 16)
    save_bundle(tiny_bundle, str(tmp_path / "again"))
    assert load_bundle(str(tmp_path / "again")).model_id == first
    with torch.no_grad():
        tiny_bundle.model.classifier.bias.add_(1)
    save_bundle(tiny_bundle, str(tmp_path / "again"))
    assert load_bundle(str(tmp_path / "again")).model_id != first


def test_a_bundle_is_two_files_and_is_loaded_without_unpickling(bundle_path, monkeypatch):
    assert sorted(path.name for path in Path(bundle_path).iterdir()) == [CONFIG, WEIGHTS]
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("unpickled"))
    load_bundle(bundle_path)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(bundle_path, name):
    (Path(bundle_path) / name).unlink()
    with pytest.raises(UserError, match=f"{bundle_path} has no {name}"):
        load_bundle(bundle_path)


def test_a_file_or_nothing_in_the_place_of_a_bundle_is_named(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "nothing"):
        with pytest.raises(UserError, match=f"there is no bundle .*{name}"):
            load_bundle(str(tmp_path / name))


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_weights_are_refused(bundle_path, share):
    weights = Path(bundle_path) / WEIGHTS
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=f"{WEIGHTS} is damaged"):
        load_bundle(bundle_path)


def test_weights_of_another_bundle_are_refused(tiny_bundle, bundle_path, tmp_path):
    with torch.no_grad():
        tiny_bundle.model.classifier.bias.add_(1)
    save_bundle(tiny_bundle, str(tmp_path / "other"))
    storage.write_bytes(f"{bundle_path}/{WEIGHTS}", (tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(UserError, match=WEIGHTS):
        load_bundle(bundle_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"format": 1}'])
def test_a_broken_configuration_is_named(bundle_path, content):
    (Path(bundle_path) / CONFIG).write_bytes(content)
    with pytest.raises(UserError, match=CONFIG):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("key", "value", "culprit"),
    [
        ("charset", "AB", f"{WEIGHTS} does not fit {CONFIG}"),
        ("charset", "", CONFIG),
        ("charset", 5, CONFIG),
        ("canvas", [16], CONFIG),
        ("canvas", [17, 64], CONFIG),
        ("canvas", [32, 64], f"{WEIGHTS} does not fit {CONFIG}"),
        ("architecture", {"name": "crnn", "conv_widths": [4, 4, 8], "gru_size": 8, "dropout": 0.1}, CONFIG),
        ("architecture", {"name": "crnn", "conv_widths": [4, 4, 8, 8], "gru_size": 8, "depth": 3}, CONFIG),
        ("format", 3, "newer version"),
        ("format", 1, "older version"),
        ("decoding", {"name": "transformer"}, "newer version"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(bundle_path, key, value, culprit):
    path = Path(bundle_path) / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=culprit):
        load_bundle(bundle_path)


def test_a_bundle_that_fails_to_be_written_leaves_the_one_before(tiny_bundle, bundle_path, monkeypatch):
    before = load_bundle(bundle_path).model_id
    monkeypatch.setattr(storage, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with torch.no_grad():
        tiny_bundle.model.classifier.bias.add_(1)
    with pytest.raises(OSError, match="disk full"):
        save_bundle(tiny_bundle, bundle_path)
    assert load_bundle(bundle_path).model_id == before
