"""The rules by which labelled rows leave a data set, each with a name that its rejected rows carry."""

from dataclasses import dataclass
from typing import Literal

from hwr_ray.errors import UserError
from hwr_ray.text.codec import Codec

REASONS = {
    "malformed_row": "the row of the CSV has not as many fields as its header",
    "unsafe_path": "the file name is no plain path below the image folder",
    "duplicate_id": "an earlier row of the CSV has the same file name",
    "missing_text": "the row has no label",
    "unreadable": "the label is UNREADABLE",
    "empty_field": "the label is EMPTY",
    "lowercase": "the label has small letters",
    "too_long": "the label has more characters than --max-length",
    "unknown_character": "the label has a character that --charset lacks (training split only)",
    "missing_image": "there is no such image file",
    "undecodable_image": "the image file holds no whole, single line image",
}
"""Why a row is rejected, in the order in which the rules apply: the first one that holds names the row."""

Optional = Literal["unreadable", "empty_field", "lowercase", "too_long"]


@dataclass(frozen=True, kw_only=True)
class CleaningSettings:
    max_length: int = 20
    """Most characters of a label."""
    keep: tuple[Optional, ...] = ()
    """Reasons for which rows are not rejected."""
    charset: str | None = None
    """Characters to recognize; by default those of the training labels."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"--max-length must be positive, not {self.max_length}")
        if self.charset is not None:
            Codec(self.charset)


def reason_for(text: str, settings: CleaningSettings, *, is_training: bool) -> str | None:
    """Why a row with this (normalized) label is rejected, or None where it stays.

    Unknown characters reject training rows only: an evaluation that dropped them would flatter the model.
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
