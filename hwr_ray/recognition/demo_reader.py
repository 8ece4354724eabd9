"""The demo's reading of image files: texts, confidences and pictures with character positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from hwr_ray.decoding.decoder import placed_characters
from hwr_ray.images.decode import decode
from hwr_ray.images.reader import lines_of
from hwr_ray.recognition.recognizer import Recognizer

NUM_CANDIDATES = 5
FRAME_HEIGHT, LABEL_HEIGHT = 200, 34
"""Minimum height of the framed picture, and height of the strip with the letters below it, in pixels."""
GREEN, AMBER, RED = (40, 140, 60), (200, 130, 0), (190, 60, 40)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result for one image, as in a transcript."""

    name: str
    text: str | None = None
    confidence: float | None = None
    needs_review: bool | None = None
    warning: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Details:
    """Results for one image that its row does not show."""

    alternatives: tuple[tuple[str, float], ...] = ()
    picture: np.ndarray | None = None
    """(H, W, 3) uint8, with a box around each character: green for a high confidence, else amber or red."""


class Reader:
    """Recognizes image files, given as bytes, as `transcribe` does."""

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer = recognizer

    def read(self, files: Sequence[tuple[str, bytes]]) -> list[tuple[Row, Details]]:
        """Returns a row and details for each (name, bytes) in order; the row of an unreadable file has an error."""
        canvas = self.recognizer.canvas
        lines = list(lines_of((data for _, data in files), canvas, invert=self.recognizer.invert))
        number = 1 if self.recognizer.is_greedy else NUM_CANDIDATES
        readings = iter(self.recognizer.read_fitted(lines, num_best=number, characters=True))
        results = []
        for (name, data), line in zip(files, lines, strict=True):
            if line.image is None or line.height is None or line.width is None:
                results.append((Row(name=name, error=f"{line.reason}: {line.detail}", needs_review=True), Details()))
                continue
            reading = next(readings)
            row = Row(
                name=name,
                text=reading.text,
                confidence=reading.confidence,
                needs_review=reading.needs_review,
                warning=reading.warning,
            )
            characters = placed_characters(reading, canvas, line.height, line.width)
            details = Details(alternatives=reading.alternatives, picture=framed(data, characters))
            results.append((row, details))
        return results


def framed(data: bytes, characters: list[dict[str, Any]]) -> np.ndarray:
    """Returns the written part of an image, with a box around each character and the recognized letter below it."""
    picture = decode(data)
    height, width = picture.shape
    right = max((c["right"] for c in characters), default=width)
    picture = picture[:, : min(width, right + height // 2)]
    scale = max(1.0, FRAME_HEIGHT / height)
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    height, width = picture.shape
    page = np.full((height + LABEL_HEIGHT, width, 3), 255, np.uint8)
    page[:height] = picture[:, :, None]
    for c in characters:
        color = GREEN if c["confidence"] >= 0.9 else AMBER if c["confidence"] >= 0.5 else RED
        left, right = round(c["left"] * scale), round(c["right"] * scale)
        cv2.rectangle(page, (left, 1), (max(right, left + 4), height - 2), color, 2)
        if c["character"].isascii():  # OpenCV has no other glyphs
            place = (left, height + LABEL_HEIGHT - 9)
            cv2.putText(page, c["character"], place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, color, 2, cv2.LINE_AA)
    return page
