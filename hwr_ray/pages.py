"""What HTML reports are made of: plots and pictures inlined, templates filled."""

import base64
import io
import unicodedata
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from hwr_ray.line_images import Canvas, encode_png, fit

LARGEST_PICTURE = Canvas(64, 640)
"""Larger pictures are shrunk to it: 80 of them stay below 5 MB even if they hold noise."""
GOOD, BAD, PALE = "#2f6db3", "#c8502f", "#b9c6d6"


def new_figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def data_uri(content: Figure | np.ndarray) -> str:
    """A plot (as SVG) or a grey picture (as PNG), inlined."""
    if isinstance(content, Figure):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "hwr_ray"}):  # without it the ids in the file are random
            content.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    if LARGEST_PICTURE.scale_for(*content.shape) < 1:
        content = fit(content, LARGEST_PICTURE)
    return f"data:image/png;base64,{base64.b64encode(encode_png(content)).decode()}"


def visible(character: str) -> str:
    """The character, or a stand-in where it would not be seen on its own."""
    if character == " ":
        return "␣"
    if unicodedata.combining(character):
        return f"◌{character}"
    return character if character.isprintable() else f"U+{ord(character):04X}"


def render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("hwr_ray"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": "{:,}".format,
        "percent": "{:.1%}".format,
        "exact_percent": "{:.2%}".format,
        "data_uri": data_uri,
        "visible": visible,
    }
    return environment.get_template(template).render(**values)
