"""Text normalization."""

import unicodedata


def normalize(text: str) -> str:
    """Returns the text in Unicode NFC, stripped and with single inner spaces: texts that look the same become equal."""
    return " ".join(unicodedata.normalize("NFC", text).split())
