"""Which versions made a result."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide its results."""
    names = ("hwr_ray", "ray", "torch", "pyarrow", "opencv-python-headless", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
