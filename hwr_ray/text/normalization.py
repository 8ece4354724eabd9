"""Text normalization."""

import re
import unicodedata

# Default_Ignorable_Code_Point of Unicode: characters that have no glyph, such as U+200B and U+FEFF.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
INVISIBLE = re.compile(f"[{_IGNORABLE}]")
_INVISIBLE_BUT_JOINERS = re.compile(f"(?![\u200c\u200d])[{_IGNORABLE}]")


def normalize(text: str, *, keep_joiners: bool = False) -> str:
    """Returns the text in Unicode NFC, stripped, with single inner spaces and without invisible characters: texts that
    look the same become equal.

    `keep_joiners` keeps U+200C and U+200D, which change the shape of letters in some scripts.
    """
    if text.isascii():
        return " ".join(text.split())
    pattern = _INVISIBLE_BUT_JOINERS if keep_joiners else INVISIBLE
    return " ".join(unicodedata.normalize("NFC", pattern.sub("", text)).split())
