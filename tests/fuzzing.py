"""Random label files and images, damaged at random: each is read as an independent reader does, or refused."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from image_files import FORMATS, MODES, TOLERANCE, shown, written

from hwr_ray.data.labels import LabelFile, label_file, read_rows
from hwr_ray.errors import UserError
from hwr_ray.images.decode import UndecodableImageError, decode

PIECES = ['"', ",", "\t", ";", "|", "\n", "\r\n", "\r", "a", "É", " ", "\x00", "b.png", '""', "\ufeff", "{", "}", "\\"]
KINDS = ("csv", "tsv", "jsonl", "pairs", "parquet")


def damaged(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Returns the bytes flipped, cut, or joined with others."""
    found = bytearray(data)
    for _ in range(rng.integers(0, 4)):
        if found:
            found[rng.integers(len(found))] = int(rng.integers(256))
    if found and rng.random() < 0.2:
        found = found[: rng.integers(len(found))]
    if rng.random() < 0.1:
        found += other
    return bytes(found)


def random_labels(rng: np.random.Generator, kind: str) -> bytes:
    """Returns a label file with a header and a few rows, some with pieces that forms use."""
    texts = ["".join(rng.choice(PIECES, rng.integers(0, 8))) if rng.random() < 0.5 else "ANNA" for _ in range(5)]
    if kind == "jsonl":
        lines = [json.dumps({"file_name": f"{n}.png", "text": text}) for n, text in enumerate(texts)]
        return "\n".join(lines).encode()
    delimiter = "\t" if kind == "tsv" else ","
    lines = [f"{n}.png{delimiter}{text}" for n, text in enumerate(texts)]
    encoding = str(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    return "\n".join([f"file_name{delimiter}text", *lines]).encode(encoding)


def check_labels(rng: np.random.Generator, folder: Path) -> None:
    """Reads one random label file. Raises AssertionError if a row of it is neither read nor rejected."""
    kind = str(rng.choice(KINDS))
    if kind == "pairs":
        for path in folder.glob("*.gt.txt"):
            path.unlink()
        number = int(rng.integers(1, 4))
        for n in range(number):
            (folder / f"{n}.gt.txt").write_bytes(damaged(rng, "ZOÉ\n".encode(), b"\xff"))
        file, lines = LabelFile(path=str(folder), form="pairs", images=str(folder), split="train"), None
    elif kind == "parquet":
        number = int(rng.integers(1, 5))
        buffer = io.BytesIO()
        pq.write_table(pa.table({"image": [b"x"] * number, "text": ["A"] * number}), buffer)
        path = folder / "a.parquet"
        path.write_bytes(damaged(rng, buffer.getvalue(), b"PAR1") if rng.random() < 0.7 else buffer.getvalue())
        file, lines = label_file(str(path), None, "train"), None
    else:
        path = folder / f"a.{kind}"
        path.write_bytes(damaged(rng, random_labels(rng, kind), random_labels(rng, kind)))
        file, number = label_file(str(path), None, "train"), None
        lines = path.read_bytes()
    try:
        rows = [row for table in read_rows(file) for row in table.to_pylist()]
    except UserError as error:
        assert str(folder) in str(error)  # the culprit is named
        return
    assert [row["row"] for row in rows] == list(range(1, len(rows) + 1))
    if lines is None:
        assert kind == "parquet" or len(rows) == number
        return
    encoding = "utf-16" if lines[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = lines.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    filled = sum(bool(line.strip()) for line in text.split("\n"))
    # A row of several lines is a quoted field; all other lines are rows, the first perhaps the header.
    several = sum((row["text"] or "").count("\n") + row["id"].count("\n") for row in rows)
    assert filled - 1 - several <= len(rows) <= filled


def check_image(rng: np.random.Generator) -> bool:
    """Decodes a random image file; returns whether it was read. Raises AssertionError if Pillow shows another image."""
    kind, mode = str(rng.choice(FORMATS)), str(rng.choice(MODES))
    data = written(kind, mode, None, int(rng.integers(9)))
    if data is None:
        return False
    data = damaged(rng, data, data)
    try:
        found = decode(data)
    except UndecodableImageError:
        return False
    assert found.dtype == np.uint8 and found.ndim == 2
    if kind in TOLERANCE:
        return True  # decoders conceal damage in lossy data in their own ways
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = shown(data)
    except Exception:
        return True  # Pillow shows nothing
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1, (kind, mode)
    return True
