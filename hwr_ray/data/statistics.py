"""Statistics of a data set, counted for parts of it and added up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any

from hwr_ray.data.labels import Split
from hwr_ray.text.codec import frames_needed
from hwr_ray.text.normalization import INVISIBLE

FEW_FRAMES = 3
"""Frames a character below which lines are recognized noticeably worse."""


@dataclass
class DatasetStatistics:
    """Counts over rows of a data set; those of disjoint sets of rows add up to those of their union."""

    rows: Counter[tuple[Split, str]] = field(default_factory=Counter)
    """Rows by split and reason; the reason of a kept row is 'prepared'."""
    normalized: Counter[Split] = field(default_factory=Counter)
    """Prepared rows whose label was changed by normalization, by split."""
    invisible: Counter[Split] = field(default_factory=Counter)
    """Those of them from whose label invisible characters were removed, by split."""
    frames: Counter[tuple[Split, int]] = field(default_factory=Counter)
    """Prepared rows by split and number of frames that their label needs."""
    few_frames: int = 0
    """Prepared rows with fewer than FEW_FRAMES frames a character."""
    warnings: Counter[tuple[Split, str]] = field(default_factory=Counter)
    """Prepared rows by split and warning."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Decoded images by (height, width) in pixels."""
    lengths_before: Counter[int] = field(default_factory=Counter)
    """Labelled rows by label length, before cleaning."""
    lengths_after: Counter[int] = field(default_factory=Counter)
    characters_before: Counter[str] = field(default_factory=Counter)
    characters_after: Counter[tuple[Split, str]] = field(default_factory=Counter)
    digest: int = 0
    """Sum modulo 2**256 of a hash of each row and its image, which does not depend on the order of rows (AdHash,
    Bellare and Micciancio 1997)."""

    def add_row(
        self,
        *,
        split: Split,
        text: str,
        kept_text: str | None,
        reason: str | None,
        size: tuple[int, int] | None,
        content: Iterable[bytes],
        num_frames: float = math.inf,
        warning: str | None = None,
    ) -> None:
        """Counts one row. `kept_text` is its normalized label, or None for a rejected row. `num_frames` is the
        number of frames that its image covers on the canvas."""
        self.rows[split, reason or "prepared"] += 1
        if size:
            self.sizes[size] += 1
        if text:
            self.lengths_before[len(text)] += 1
            self.characters_before.update(text)
        if kept_text is not None:
            self.normalized[split] += kept_text != text
            if kept_text != text and not text.isascii():
                self.invisible[split] += INVISIBLE.search(text) is not None
            self.frames[split, frames_needed(kept_text)] += 1
            if warning:
                self.warnings[split, warning] += 1
            self.few_frames += num_frames < FEW_FRAMES * len(kept_text)
            self.lengths_after[len(kept_text)] += 1
            self.characters_after.update((split, c) for c in kept_text)
        hashed = sha256(b"".join(sha256(part).digest() for part in content))
        self.digest = (self.digest + int.from_bytes(hashed.digest(), "big")) % 2**256

    def __add__(self, other: DatasetStatistics) -> DatasetStatistics:
        return DatasetStatistics(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "digest"},
            digest=(self.digest + other.digest) % 2**256,
        )

    def warning_counts(self) -> dict[str, int]:
        """Returns the number of prepared rows with each warning."""
        counts: Counter[str] = Counter()
        for (_, warning), number in self.warnings.items():
            counts[warning] += number
        return dict(counts.most_common())

    def charset(self) -> str:
        """Returns the characters of the prepared training labels, sorted."""
        return "".join(sorted({c for split, c in self.characters_after if split == "train"}))

    def splits(self) -> dict[str, dict[str, Any]]:
        """Returns the figures of dataset.json by split."""
        names = dict.fromkeys(split for split, _ in self.rows)
        return {name: self._split(name) for name in names}

    def _split(self, name: Split) -> dict[str, Any]:
        rows = {reason: n for (split, reason), n in self.rows.items() if split == name}
        return {
            "rows": sum(rows.values()),
            "prepared": rows.pop("prepared", 0),
            "rejected": dict(sorted(rows.items())),
            "normalized": self.normalized[name],
            "invisible_removed": self.invisible[name],
            "warnings": dict(sorted((warning, n) for (split, warning), n in self.warnings.items() if split == name)),
            "most_frames_needed": max((frames for split, frames in self.frames if split == name), default=0),
        }
