"""The checkpoint bundle: a folder with all that reading needs, loaded without unpickling anything."""

from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from hwr_ray import storage
from hwr_ray.codec import Codec
from hwr_ray.errors import UserError
from hwr_ray.line_images import Canvas
from hwr_ray.model import CRNN, ModelSettings

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model and what its numbers mean."""

    model: CRNN
    settings: ModelSettings
    codec: Codec
    canvas: Canvas
    training: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: settings, data, figures, versions."""
    model_id: str = ""
    """First 12 hex digits of the SHA-256 of the weights; empty before it is saved."""


def new_model(settings: ModelSettings, codec: Codec, canvas: Canvas) -> CRNN:
    """A model with fresh weights. Raises UserError where the canvas does not suit it."""
    return CRNN(settings, canvas=(canvas.height, canvas.width), num_classes=codec.num_classes)


def save_bundle(bundle: Bundle, path: str) -> None:
    """Writes the bundle, whole or not at all, in place of the one that may be there."""
    weights = safetensors.torch.save(
        {name: t.detach().cpu().contiguous() for name, t in bundle.model.state_dict().items()}
    )
    config = {
        "format": 1,
        "architecture": {"name": "crnn", **asdict(bundle.settings)},
        "charset": bundle.codec.charset,
        "canvas": [bundle.canvas.height, bundle.canvas.width],
        "decoding": "greedy",
        "calibration": None,
        "training": bundle.training,
        "weights_sha256": sha256(weights).hexdigest(),
    }
    with storage.staged(path, mark=CONFIG, overwrite=True) as partial:
        storage.write_bytes(storage.join(partial, WEIGHTS), weights)
        storage.write_json(storage.join(partial, CONFIG), config)


def load_bundle(path: str) -> Bundle:
    """The bundle in a folder or at a URI, its model in evaluation mode.

    Raises UserError where a file is missing or damaged, or the two do not belong together.
    """
    if not storage.is_folder(path):
        raise UserError(f"there is no bundle {path}: jobs/train.py writes RUN/best")
    weights, config = _read(path, WEIGHTS), storage.read_json(storage.join(path, CONFIG)) if _read(path, CONFIG) else {}
    try:
        architecture = dict(config["architecture"])
        if config["format"] != 1 or architecture.pop("name") != "crnn" or config["decoding"] != "greedy":
            raise UserError("it was made by a newer version of hwr_ray")
        architecture["conv_widths"] = tuple(architecture["conv_widths"])
        height, width = config["canvas"]
        codec, canvas = Codec(config["charset"]), Canvas(height, width)
        settings, expected = ModelSettings(**architecture), config["weights_sha256"]
        model = new_model(settings, codec, canvas)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{storage.join(path, CONFIG)} is no bundle's configuration: {error!r}") from error
    except UserError as error:
        raise UserError(f"{storage.join(path, CONFIG)} can't be used: {error}") from error
    found = sha256(weights).hexdigest()
    if found != expected:
        raise UserError(f"{storage.join(path, WEIGHTS)} is damaged: its SHA-256 is not the one in {CONFIG}")
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{storage.join(path, WEIGHTS)} does not fit {CONFIG}: {error}") from error
    return Bundle(
        model=model.eval(),
        settings=settings,
        codec=codec,
        canvas=canvas,
        training=config.get("training", {}),
        model_id=found[:12],
    )


def _read(path: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(path, name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"the bundle {path} has no {name}") from error
