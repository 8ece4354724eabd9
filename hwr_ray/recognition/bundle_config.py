"""The configuration of a bundle, without its network; imports no torch, which a job's driver does not need."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from hwr_ray.decoding.calibration import Calibration
from hwr_ray.decoding.decoder import Decoding
from hwr_ray.decoding.ngram import from_tensors
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import ModelSettings, num_frames
from hwr_ray.text.codec import Codec

WEIGHTS, CONFIG, LANGUAGE_MODEL = "model.safetensors", "config.json", "language_model.safetensors"
SHIPPED = str(Path(__file__).parents[1] / "pretrained")
"""Path of the bundle that comes with the package."""
USUAL_SHARE = 0.005
"""Share of the training lines with a warning above which the warning is usual for a bundle."""
SHIPPED_WORD = "shipped"
"""Name by which settings refer to that bundle."""


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """The configuration of a bundle."""

    settings: ModelSettings
    codec: Codec
    canvas: Canvas
    decoding: Decoding = field(default_factory=Decoding)
    training: dict[str, Any] = field(default_factory=dict)
    """Origin of the weights: settings, data, metrics, versions."""
    model_id: str = ""
    """12 hex digits that change with the weights and the decoding; empty if the bundle was not loaded."""

    @property
    def invert(self) -> bool:
        """Whether light writing on dark was inverted in the training lines, and has to be in new ones."""
        return self.training.get("invert", False)

    @property
    def usual_warnings(self) -> set[str]:
        """Warnings that the training lines often had, so that they tell nothing about a new line."""
        return {warning for warning, share in self.training.get("warnings", {}).items() if share > USUAL_SHARE}


def bundle_path(name: str) -> str:
    """Returns the absolute path or URI of a bundle, given as a folder, a URI or `shipped`."""
    return SHIPPED if name == SHIPPED_WORD else storage.absolute(name)


def read_config(path: str) -> BundleConfig:
    """Returns the configuration of the bundle in a folder or at a URI.

    Raises UserError if a file is missing or damaged, or if the files do not match.
    """
    return read_files(path)[0]


def read_files(path: str) -> tuple[BundleConfig, bytes]:
    """Returns the configuration and the bytes of the weights. Raises UserError as `read_config` does."""
    if not storage.is_folder(path):
        raise UserError(f"there is no bundle {path}: jobs/train.py writes one to RUN/best")
    config = storage.read_json(storage.join(path, CONFIG)) if _read(path, CONFIG) else {}
    try:
        architecture = dict(config["architecture"])
        if config["format"] == 1:
            raise UserError("it was made by an older version of hwr_ray: train it again")
        decoder = config["decoding"]["name"]
        if config["format"] != 2 or architecture.pop("name") != "crnn" or decoder not in ("greedy", "beam"):
            raise UserError("it was made by a newer version of hwr_ray")
        architecture["conv_widths"] = tuple(architecture["conv_widths"])
        height, width, *stretch = config["canvas"]
        codec, canvas = Codec(config["charset"]), Canvas(height, width, *stretch)
        settings, model_id = ModelSettings(**architecture), _model_id(config)
        num_frames(canvas.height, canvas.width)
        decoding = _decoding_of(config)
        digests = {name: config["sha256"][name] for name in (WEIGHTS, *([LANGUAGE_MODEL] if decoder == "beam" else []))}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{storage.join(path, CONFIG)} is not a bundle's configuration: {error!r}") from error
    except UserError as error:
        raise UserError(f"{storage.join(path, CONFIG)} can't be used: {error}") from error
    files = {name: _read(path, name) for name in digests}
    for name, data in files.items():
        if sha256(data).hexdigest() != digests[name]:
            raise UserError(f"{storage.join(path, name)} is damaged: its SHA-256 differs from the one in {CONFIG}")
    if decoder == "beam":
        try:
            language_model = from_tensors(safetensors.numpy.load(files[LANGUAGE_MODEL]))
            if language_model.next_state.shape[1] != codec.num_classes:
                raise ValueError("its labels do not match the charset")
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{storage.join(path, LANGUAGE_MODEL)} does not fit {CONFIG}: {error}") from error
        decoding = replace(decoding, language_model=language_model)
    bundle = BundleConfig(
        settings=settings,
        codec=codec,
        canvas=canvas,
        decoding=decoding,
        training=config.get("training", {}),
        model_id=model_id,
    )
    return bundle, files[WEIGHTS]


def check_voters(bundle: BundleConfig, voters: Mapping[str, BundleConfig]) -> None:
    """Raises UserError, with its path, for a voter whose canvas or charset differs from the bundle's."""
    for path, voter in voters.items():
        for name, own, other in (
            ("canvas", bundle.canvas, voter.canvas),
            ("charset", bundle.codec.charset, voter.codec.charset),
        ):
            if own != other:
                raise UserError(f"{path} can't vote: its {name} is {other}, but that of the first bundle is {own}")


def votes_of(voters: Iterable[BundleConfig], *, test_time_augmentation: bool) -> list[str]:
    """Returns what votes beside a bundle: the ids of the voters, and `views` for test-time augmentation."""
    return [voter.model_id for voter in voters] + ["views"] * test_time_augmentation


def architecture_from(bundle: BundleConfig, settings: ModelSettings, canvas: Canvas) -> ModelSettings:
    """Returns the bundle's architecture with the dropout of the settings.

    Raises UserError if the settings request an architecture that is neither the bundle's nor the default, or if the
    heights of the canvases differ.
    """
    requested, default, existing = asdict(settings), asdict(ModelSettings()), asdict(bundle.settings)
    for name in sorted(requested.keys() - {"dropout"}):
        if requested[name] not in (default[name], existing[name]):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {requested[name]} does not match the bundle of --init-from, which has {existing[name]}: "
                f"omit {flag}"
            )
    if canvas.height != bundle.canvas.height:
        raise UserError(
            f"the bundle of --init-from needs lines {bundle.canvas.height} pixels high, but the prepared ones have "
            f"{canvas.height}: prepare them with --canvas {bundle.canvas.height} {canvas.width}"
        )
    return replace(bundle.settings, dropout=settings.dropout)


def weights_digest(path: str) -> str:
    """Returns the first 12 hex digits of the SHA-256 of a bundle's weights, which do not depend on its decoding."""
    return storage.read_json(storage.join(path, CONFIG))["sha256"][WEIGHTS][:12]


def _decoding_of(config: dict[str, Any]) -> Decoding:
    """Returns the decoding of a configuration, without its language model."""
    calibration = {name: Calibration(**values) if values else None for name, values in config["calibration"].items()}
    return Decoding(
        lm_weight=float(config["decoding"]["lm_weight"]),
        length_bonus=float(config["decoding"]["length_bonus"]),
        greedy_calibration=calibration["greedy"],
        beam_calibration=calibration["beam"],
    )


def _model_id(config: dict[str, Any]) -> str:
    """Returns a hash of the entries of a configuration that affect predictions."""
    relevant = {
        name: config[name] for name in ("architecture", "charset", "canvas", "decoding", "calibration", "sha256")
    }
    return sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]


def _read(path: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(path, name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"the bundle {path} has no {name}") from error
