"""The model bundle: a folder with everything that inference needs, saved and loaded without pickle."""

from dataclasses import asdict, dataclass, fields
from hashlib import sha256

import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.model.crnn import CRNN
from hwr_ray.recognition.bundle_config import CONFIG, LANGUAGE_MODEL, WEIGHTS, BundleConfig, read_files
from hwr_ray.text.codec import Codec


@dataclass(frozen=True, kw_only=True)
class Bundle(BundleConfig):
    """A model with its configuration."""

    model: CRNN


def new_model(settings: ModelSettings, codec: Codec, canvas: Canvas) -> CRNN:
    """Returns a model with fresh weights. Raises UserError if the canvas does not fit it."""
    return CRNN(settings, canvas=(canvas.height, canvas.width), num_classes=codec.num_classes)


def save_bundle(bundle: Bundle, path: str) -> None:
    """Writes the bundle atomically, replacing an existing one."""
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
        "canvas": bundle.canvas.to_list(),
        "decoding": {
            "name": "beam" if language_model else "greedy",
            "lm_weight": decoding.lm_weight,
            "length_bonus": decoding.length_bonus,
        },
        "calibration": {
            name: asdict(calibration) if calibration else None
            for name, calibration in (("greedy", decoding.greedy_calibration), ("beam", decoding.beam_calibration))
        },
        "training": bundle.training,
        "sha256": {name: sha256(data).hexdigest() for name, data in files.items()},
    }
    with staged(path, mark=CONFIG, overwrite=True) as partial:
        for name, data in files.items():
            storage.write_bytes(storage.join(partial, name), data)
        storage.write_json(storage.join(partial, CONFIG), config)


def load_bundle(path: str) -> Bundle:
    """Returns the bundle in a folder or at a URI, with its model in evaluation mode.

    Raises UserError if a file is missing or damaged, or if the files do not match.
    """
    config, weights = read_files(path)
    model = new_model(config.settings, config.codec, config.canvas)
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{storage.join(path, WEIGHTS)} does not fit {CONFIG}: {error}") from error
    return Bundle(model=model.eval(), **{field.name: getattr(config, field.name) for field in fields(config)})
