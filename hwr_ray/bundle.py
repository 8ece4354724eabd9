"""The checkpoint bundle: a folder with all that reading needs, loaded without unpickling anything."""

import json
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError

from hwr_ray import storage
from hwr_ray.calibration import Calibration
from hwr_ray.codec import Codec
from hwr_ray.decoding import Decoding
from hwr_ray.errors import UserError
from hwr_ray.language_model import from_tensors
from hwr_ray.line_images import Canvas
from hwr_ray.model import CRNN, ModelSettings

WEIGHTS, CONFIG, LANGUAGE_MODEL = "model.safetensors", "config.json", "language_model.safetensors"
SHIPPED = str(Path(__file__).parent / "pretrained")
"""The bundle that comes with the package."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model and what its numbers mean."""

    model: CRNN
    settings: ModelSettings
    codec: Codec
    canvas: Canvas
    decoding: Decoding = field(default_factory=Decoding)
    training: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: settings, data, figures, versions."""
    model_id: str = ""
    """12 hex digits that change with the weights and with the decoding; empty before it is saved."""


def new_model(settings: ModelSettings, codec: Codec, canvas: Canvas) -> CRNN:
    """A model with fresh weights. Raises UserError where the canvas does not suit it."""
    return CRNN(settings, canvas=(canvas.height, canvas.width), num_classes=codec.num_classes)


def save_bundle(bundle: Bundle, path: str) -> None:
    """Writes the bundle, whole or not at all, in place of the one that may be there."""
    weights = safetensors.torch.save(
        {name: t.detach().cpu().contiguous() for name, t in bundle.model.state_dict().items()}
    )
    decoding, language_model = bundle.decoding, bundle.decoding.language_model
    files = {WEIGHTS: weights}
    if language_model:
        files[LANGUAGE_MODEL] = safetensors.numpy.save(language_model.to_tensors())
    config = {
        "format": 2,
        "architecture": {"name": "crnn", **asdict(bundle.settings)},
        "charset": bundle.codec.charset,
        "canvas": [bundle.canvas.height, bundle.canvas.width],
        "decoding": {
            "name": "beam" if language_model else "greedy",
            "lm_weight": decoding.lm_weight,
            "length_bonus": decoding.length_bonus,
        },
        "calibration": {
            name: asdict(found) if found else None
            for name, found in (("greedy", decoding.greedy_calibration), ("beam", decoding.beam_calibration))
        },
        "training": bundle.training,
        "sha256": {name: sha256(data).hexdigest() for name, data in files.items()},
    }
    with storage.staged(path, mark=CONFIG, overwrite=True) as partial:
        for name, data in files.items():
            storage.write_bytes(storage.join(partial, name), data)
        storage.write_json(storage.join(partial, CONFIG), config)


def load_bundle(path: str) -> Bundle:
    """The bundle in a folder or at a URI, its model in evaluation mode.

    Raises UserError where a file is missing or damaged, or the two do not belong together.
    """
    if not storage.is_folder(path):
        raise UserError(f"there is no bundle {path}: jobs/train.py writes RUN/best")
    config = storage.read_json(storage.join(path, CONFIG)) if _read(path, CONFIG) else {}
    try:
        architecture = dict(config["architecture"])
        if config["format"] == 1:
            raise UserError("it was made by an older version of hwr_ray: train it again")
        decoder = config["decoding"]["name"]
        if config["format"] != 2 or architecture.pop("name") != "crnn" or decoder not in ("greedy", "beam"):
            raise UserError("it was made by a newer version of hwr_ray")
        architecture["conv_widths"] = tuple(architecture["conv_widths"])
        height, width = config["canvas"]
        codec, canvas = Codec(config["charset"]), Canvas(height, width)
        settings, model_id = ModelSettings(**architecture), _model_id(config)
        model = new_model(settings, codec, canvas)
        decoding = _decoding_of(config)
        digests = {name: config["sha256"][name] for name in (WEIGHTS, *([LANGUAGE_MODEL] if decoder == "beam" else []))}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{storage.join(path, CONFIG)} is no bundle's configuration: {error!r}") from error
    except UserError as error:
        raise UserError(f"{storage.join(path, CONFIG)} can't be used: {error}") from error
    files = {name: _read(path, name) for name in digests}
    for name, data in files.items():
        if sha256(data).hexdigest() != digests[name]:
            raise UserError(f"{storage.join(path, name)} is damaged: its SHA-256 is not the one in {CONFIG}")
    name = WEIGHTS
    try:
        model.load_state_dict(safetensors.torch.load(files[WEIGHTS]))
        if decoder == "beam":
            name = LANGUAGE_MODEL
            language_model = from_tensors(safetensors.numpy.load(files[LANGUAGE_MODEL]))
            if language_model.next_state.shape[1] != codec.num_classes:
                raise ValueError("its characters are not those of the charset")
            decoding = replace(decoding, language_model=language_model)
    except (RuntimeError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{storage.join(path, name)} does not fit {CONFIG}: {error}") from error
    return Bundle(
        model=model.eval(),
        settings=settings,
        codec=codec,
        canvas=canvas,
        decoding=decoding,
        training=config.get("training", {}),
        model_id=model_id,
    )


def weights_digest(path: str) -> str:
    """12 hex digits of the SHA-256 of a bundle's weights, whatever its decoding."""
    return storage.read_json(storage.join(path, CONFIG))["sha256"][WEIGHTS][:12]


def _decoding_of(config: dict[str, Any]) -> Decoding:
    """The decoding of a configuration, still without its language model."""
    calibration = {name: Calibration(**found) if found else None for name, found in config["calibration"].items()}
    return Decoding(
        lm_weight=float(config["decoding"]["lm_weight"]),
        length_bonus=float(config["decoding"]["length_bonus"]),
        greedy_calibration=calibration["greedy"],
        beam_calibration=calibration["beam"],
    )


def _model_id(config: dict[str, Any]) -> str:
    """Of a bundle with this configuration: what decides its readings, hashed."""
    deciding = {
        name: config[name] for name in ("architecture", "charset", "canvas", "decoding", "calibration", "sha256")
    }
    return sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def _read(path: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(path, name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"the bundle {path} has no {name}") from error
