"""Export of a bundle's network for programs without this package: ONNX or TorchScript, checked on drawn lines."""

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.images.lines import fit
from hwr_ray.recognition.bundle import Bundle, load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED_WORD, bundle_path
from hwr_ray.recognition.recognizer import read_log_probs
from hwr_ray.recognition.runtime import Head
from hwr_ray.synthetic.forms import draw_line
from hwr_ray.synthetic.glyphs import DRAWABLE
from hwr_ray.text.codec import BLANK
from hwr_ray.versions import versions

log = logging.getLogger(__name__)

FILES = {"onnx": "model.onnx", "torchscript": "model.pt"}
NUM_CHECKED = 64
"""Number of drawn lines on which the export must agree with the original."""
MOST_LETTERS = 8
TOLERANCE = 1e-3
"""Maximum difference in a confidence, or in the probability of a class in a frame."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    out: str
    """Folder or URI for the network and reading.json, which describes its input and output."""
    model: str = SHIPPED_WORD
    """Path or URI of a bundle, such as RUN/best (jobs/train.py), or `shipped` for the bundle in the package."""
    format: Literal["onnx", "torchscript"] = "onnx"
    """Format of the network; `onnx` needs `pip install 'hwr_ray[export]'`."""
    overwrite: bool = False
    """Replace an existing export in --out."""


def export(settings: ExportSettings) -> str:
    """Writes the export and returns its path. Raises UserError for mistakes of the user."""
    bundle = load_bundle(bundle_path(settings.model))
    data, read = (to_onnx if settings.format == "onnx" else to_torchscript)(bundle)
    parity = compare(bundle, read, drawn_lines(bundle))
    with staged(storage.absolute(settings.out), mark="reading.json", overwrite=settings.overwrite) as out:
        storage.write_bytes(storage.join(out, FILES[settings.format]), data)
        metadata = {
            "model_id": bundle.model_id,
            "canvas": [bundle.canvas.height, bundle.canvas.width],
            "stretch": bundle.canvas.stretch,
            "charset": bundle.codec.charset,
            "blank": BLANK,
            "input": "images (lines, height, width) uint8, dark on light",
            "output": "log_probs (lines, frames, classes) float32: the blank, then the charset",
            "parity": parity,
            "versions": versions(),
        }
        storage.write_json(storage.join(out, "reading.json"), metadata)
    log.info(
        "the export agrees on %d drawn lines; largest difference in a confidence %.1e, in a frame's probability %.1e",
        parity["lines"],
        parity["confidence"],
        parity["probability"],
    )
    return storage.absolute(settings.out)


Read = Callable[[np.ndarray], np.ndarray]
"""Function that maps line images (N, H, W) uint8 to log-probabilities (N, T, C) float32."""


def to_onnx(bundle: Bundle) -> tuple[bytes, Read]:
    """Returns the network as an ONNX file for any batch size, and a function that runs it in ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "--format onnx needs the packages onnx and onnxruntime: pip install 'hwr_ray[export]'"
        ) from error
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The older exporter warns that it is deprecated, but the newer one fixes the batch size of GRUs.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Head(bundle.model).eval(),
            (_example(bundle),),
            file,  # type: ignore[arg-type]
            input_names=["images"],
            output_names=["log_probs"],
            dynamic_axes={"images": {0: "lines"}, "log_probs": {0: "lines"}},
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return file.getvalue(), lambda images: session.run(None, {"images": images})[0]


def to_torchscript(bundle: Bundle) -> tuple[bytes, Read]:
    """Returns the network as a TorchScript file for any batch size, and a function that runs it."""
    file = io.BytesIO()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about checks of the GRU, which hold for any batch
        torch.jit.save(torch.jit.trace(Head(bundle.model).eval(), (_example(bundle),), check_trace=False), file)
    file.seek(0)
    script = torch.jit.load(file)

    @torch.inference_mode()
    def read(images: np.ndarray) -> np.ndarray:
        return script(torch.from_numpy(images)).numpy()

    return file.getvalue(), read


def _example(bundle: Bundle) -> torch.Tensor:
    return torch.zeros((2, bundle.canvas.height, bundle.canvas.width), dtype=torch.uint8)


def drawn_lines(bundle: Bundle, *, seed: int = 0) -> np.ndarray:
    """Returns NUM_CHECKED images (N, H, W) uint8 of words in the charset's letters, or noise if none can be drawn."""
    rng, canvas = np.random.default_rng(seed), bundle.canvas
    letters = [character for character in bundle.codec.charset if character in DRAWABLE and character != " "]
    if not letters:
        return rng.integers(0, 256, (NUM_CHECKED, canvas.height, canvas.width), dtype=np.uint8)
    words = ["".join(rng.choice(letters, rng.integers(1, MOST_LETTERS + 1))) for _ in range(NUM_CHECKED)]
    return np.stack([fit(draw_line(word, rng), canvas) for word in words])


def compare(bundle: Bundle, read: Read, images: np.ndarray) -> dict[str, float]:
    """Returns the largest differences from the original in float32, over a batch of all lines and a single line.

    Raises RuntimeError if a text differs, or if a confidence or probability differs by more than TOLERANCE.
    """
    with torch.inference_mode():
        expected = Head(bundle.model).eval()(torch.from_numpy(images))
    together, alone = torch.tensor(read(images)), torch.tensor(read(images[:1]))
    readings, truth = (read_log_probs(probs, bundle.codec) for probs in (torch.cat([together, alone]), expected))
    pairs = list(zip(readings, [*truth, truth[0]], strict=True))
    parity = {
        "lines": len(images),
        "confidence": max(abs(ours.confidence - theirs.confidence) for ours, theirs in pairs),
        "probability": float((together.exp() - expected.exp()).abs().max()),
    }
    differing = sum(ours.text != theirs.text for ours, theirs in pairs)
    if differing or max(parity["confidence"], parity["probability"]) > TOLERANCE:
        raise RuntimeError(f"the export recognizes {differing} of {len(pairs)} drawn lines differently: {parity}")
    return parity
