"""Handwriting recognition on Ray: training and batch transcription."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwr_ray.decoding.decoder import Reading
    from hwr_ray.errors import UserError
    from hwr_ray.recognition.bundle import load_bundle
    from hwr_ray.recognition.recognizer import Recognizer

__all__ = ["Reading", "Recognizer", "UserError", "load_bundle"]
_MODULES = {
    "Reading": "decoding.decoder",
    "Recognizer": "recognition.recognizer",
    "UserError": "errors",
    "load_bundle": "recognition.bundle",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used, because importing torch takes seconds."""
    if name == "__version__":
        return version("hwr_ray")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
