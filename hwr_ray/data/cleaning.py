"""Cleaning rules that reject labelled rows, each for a named reason."""

import re
from dataclasses import dataclass
from typing import Literal

from hwr_ray.errors import UserError
from hwr_ray.text.codec import Codec, frames_needed

REASONS = {
    "malformed_row": "the row can't be split into a file name and a label",
    "unsafe_path": "the file name is not a path inside the image folder",
    "duplicate_id": "an earlier row of the label file has the same file name",
    "missing_text": "the row has no label",
    "control_character": "the label has a control character: is it in another encoding, such as cp1252?",
    "unreadable": "the label is UNREADABLE",
    "empty_field": "the label is EMPTY",
    "lowercase": "the label has lowercase letters",
    "too_long": "the label has more characters than --max-length",
    "unknown_character": "the label has a character that is not in --charset (training split only)",
    "too_many_frames": "the label needs more frames than the canvas has (training split only)",
    "missing_image": "the image file does not exist",
    "undecodable_image": "the file is damaged, not a single image, or too small or too large",
}
"""Reasons to reject a row, in the order in which the rules apply; a row gets the first reason that matches."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")

Optional = Literal["unreadable", "empty_field", "lowercase", "too_long"]


@dataclass(frozen=True, kw_only=True)
class CleaningSettings:
    max_length: int = 20
    """Maximum number of characters in a label."""
    keep: tuple[Optional, ...] = ()
    """Cleaning rules to disable; rows that match them are kept."""
    charset: str | None = None
    """Characters to recognize; by default all characters of the training labels."""
    keep_joiners: bool = False
    """Keep the invisible characters U+200C and U+200D in labels; other invisible characters are always removed."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"--max-length must be positive, not {self.max_length}")
        if self.charset is not None:
            Codec(self.charset)


def reason_for(
    text: str, settings: CleaningSettings, *, is_training: bool, num_frames: int | None = None
) -> str | None:
    """Returns the reason to reject a row with this normalized label, or None to keep the row.

    `num_frames` is the number of frames of the canvas. Unknown characters and too many frames reject training rows
    only: an evaluation without such rows would underestimate the error.
    """
    checks = {
        "missing_text": not text,
        "control_character": not text.isprintable() and CONTROL.search(text) is not None,
        "unreadable": text == "UNREADABLE",
        "empty_field": text == "EMPTY",
        "lowercase": any(c.islower() for c in text),
        "too_long": len(text) > settings.max_length,
        "unknown_character": is_training
        and settings.charset is not None
        and any(c not in settings.charset for c in text),
        "too_many_frames": is_training
        and num_frames is not None
        and 2 * len(text) > num_frames  # a label needs fewer frames than that
        and frames_needed(text) > num_frames,
    }
    return next((reason for reason, holds in checks.items() if holds and reason not in settings.keep), None)
