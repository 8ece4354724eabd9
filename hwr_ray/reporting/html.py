"""Rendering of self-contained HTML reports from templates, with inlined plots and images."""

import base64
import io
import unicodedata
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from hwr_ray.images.lines import Canvas, encode_png, fit

LARGEST_PICTURE = Canvas(64, 640)
"""Size to which larger images are shrunk: 80 of them stay below 5 MB even if they contain noise."""
COLORS = {
    "paper": ("#fbfbfa", "#15181c"),
    "card": ("#ffffff", "#1e2227"),
    "ink": ("#000000", "#e6e9ed"),
    "soft": ("#5b6570", "#9da7b3"),
    "line": ("#dfe3e8", "#343b44"),
    "good": ("#2f6db3", "#6ea8e8"),
    "bad": ("#b8441f", "#ef8a66"),
    "pale": ("#b9c6d6", "#4a5766"),
}
"""Colors of pages and plots in light and in dark mode; plots are drawn with the light ones."""
GOOD, BAD, PALE, SOFT, CARD = (COLORS[name][0] for name in ("good", "bad", "pale", "soft", "card"))


def new_figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def data_uri(content: Figure | np.ndarray) -> str:
    """Returns a data URI of a plot (SVG in the color scheme of the page) or of a grayscale image (PNG)."""
    if isinstance(content, Figure):
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "hwr_ray"}):  # makes ids in the file deterministic
            content.savefig(buffer, format="svg", dpi=200, metadata={"Date": None}, transparent=True)
        return f"data:image/svg+xml;base64,{base64.b64encode(_themed(buffer.getvalue()).encode()).decode()}"
    if LARGEST_PICTURE.scale_for(*content.shape) < 1:
        content = fit(content, LARGEST_PICTURE)
    return f"data:image/png;base64,{base64.b64encode(encode_png(content)).decode()}"


def _themed(svg: str) -> str:
    """Returns the plot with its colors replaced by the CSS variables of the page that shows it."""
    for name, (light, _) in COLORS.items():
        svg = svg.replace(light, f"var(--{name})")
    style = f"<style>{color_variables('svg')} svg {{ fill: var(--ink) }}</style>"  # text has no color attribute
    return svg.replace("<defs>", f"<defs>{style}", 1)


def color_variables(selector: str) -> str:
    """Returns CSS that sets a variable for each of COLORS, in light and in dark mode."""
    light, dark = ("; ".join(f"--{name}: {pair[i]}" for name, pair in COLORS.items()) for i in (0, 1))
    return f"{selector} {{ {light} }} @media (prefers-color-scheme: dark) {{ {selector} {{ {dark} }} }}"


def visible(character: str) -> str:
    """Returns the character, or a replacement if it is invisible on its own."""
    if character == " ":
        return "␣"
    if unicodedata.combining(character):
        return f"◌{character}"
    return character if character.isprintable() else f"U+{ord(character):04X}"


def render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("hwr_ray.reporting"),
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
    environment.globals["color_variables"] = color_variables
    return environment.get_template(template).render(**values)
