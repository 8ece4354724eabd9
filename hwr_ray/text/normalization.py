"""One way to write a text."""

import unicodedata


def normalize(text: str) -> str:
    """The text with composed characters (Unicode NFC), no outer spaces and single inner ones: what a reader can see."""
    return " ".join(unicodedata.normalize("NFC", text).split())
