"""The versions of software that produced a result."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and the libraries that determine its results."""
    names = ("hwr_ray", "ray", "torch", "pyarrow", "opencv-python-headless", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
