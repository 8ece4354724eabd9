"""Cleaning rules that reject labelled rows, each for a named reason."""

from dataclasses import dataclass
from typing import Literal

from hwr_ray.errors import UserError
from hwr_ray.text.codec import Codec

REASONS = {
    "malformed_row": "the row has more or fewer fields than the CSV header",
    "unsafe_path": "the file name is not a relative path inside the image folder",
    "duplicate_id": "an earlier row of the CSV has the same file name",
    "missing_text": "the row has no label",
    "unreadable": "the label is UNREADABLE",
    "empty_field": "the label is EMPTY",
    "lowercase": "the label has lowercase letters",
    "too_long": "the label has more characters than --max-length",
    "unknown_character": "the label has a character that is not in --charset (training split only)",
    "missing_image": "the image file does not exist",
    "undecodable_image": "the file is damaged, not a single image, or too small or too large",
}
"""Reasons to reject a row, in the order in which the rules apply; a row gets the first reason that matches."""

Optional = Literal["unreadable", "empty_field", "lowercase", "too_long"]


@dataclass(frozen=True, kw_only=True)
class CleaningSettings:
    max_length: int = 20
    """Maximum number of characters in a label."""
    keep: tuple[Optional, ...] = ()
    """Cleaning rules to switch off: rows that match them are kept."""
    charset: str | None = None
    """Characters to recognize; by default all characters of the training labels."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"--max-length must be positive, not {self.max_length}")
        if self.charset is not None:
            Codec(self.charset)


def reason_for(text: str, settings: CleaningSettings, *, is_training: bool) -> str | None:
    """Returns the reason to reject a row with this normalized label, or None to keep the row.

    Unknown characters reject training rows only: an evaluation without such rows would underestimate the error.
    """
    checks = {
        "missing_text": not text,
        "unreadable": text == "UNREADABLE",
        "empty_field": text == "EMPTY",
        "lowercase": any(c.islower() for c in text),
        "too_long": len(text) > settings.max_length,
        "unknown_character": is_training
        and settings.charset is not None
        and any(c not in settings.charset for c in text),
    }
    return next((reason for reason, holds in checks.items() if holds and reason not in settings.keep), None)
