"""Image files of every format, mode, transparency and orientation that Pillow writes, and what it shows of them."""

import io

import numpy as np
from PIL import Image, ImageOps

HEIGHT, WIDTH = 20, 32
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16")
TOLERANCE = {"JPEG": 12, "AVIF": 12}
"""Largest difference of a pixel: two decoders round lossy colours differently."""


def drawn(seed: int = 0) -> Image.Image:
    """Returns an RGB image that no orientation maps to itself, smooth enough for lossy formats."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(drawn().convert("L")).astype(np.uint16) * 257)
    if mode == "P":
        return drawn().quantize(16)
    return (drawn().convert("RGBA") if mode == "PA" else drawn()).convert(mode)


def written(kind: str, mode: str, transparency: str | None, orientation: int) -> bytes | None:
    """Returns an image file, or None if Pillow does not write such a one."""
    image, options = in_mode(mode), {}
    if transparency == "alpha":
        if "A" not in image.getbands():
            return None
        image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)))
    if transparency == "colour":
        if mode not in ("P", "L", "RGB"):
            return None
        options["transparency"] = image.getpixel((0, 0))
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    except (OSError, ValueError, KeyError):
        return None
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    """Returns what Pillow shows of a file over white paper."""
    image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    image = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return np.asarray(paper.convert("L"))
