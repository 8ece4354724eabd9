"""A CSV reader that reports each defect of a file in one sentence."""

import csv
import io
from collections.abc import Iterator, Sequence

from hwr_ray.errors import UserError
from hwr_ray.files.storage import is_file, locate, read_bytes


def rows(path: str, *, encoding: str = "utf-8") -> Iterator[list[str]]:
    """Yields the fields of each row, the header first. Skips blank lines.

    Raises UserError if the file is missing, is not text in the encoding, or has an unclosed quote.
    """
    if not is_file(path):
        raise UserError(f"there is no file {path}")
    filesystem, inner = locate(path)
    codec = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    with filesystem.open_input_stream(inner) as raw:
        try:
            text = io.TextIOWrapper(io.BufferedReader(raw), encoding=codec, newline="")
        except LookupError as error:
            raise UserError(f"--encoding {encoding} is unknown: pass another, such as latin-1") from error
        reader = csv.reader(text, strict=True)  # otherwise an unclosed quote swallows the rows after it
        try:
            yield from filter(None, reader)
        except UnicodeDecodeError as error:
            line = _first_bad_line(read_bytes(path), codec)
            raise UserError(
                f"{path} is not {encoding}: byte 0x{error.object[error.start]:02x} in line {line}; "
                "save it as UTF-8 or, for prepare, pass its --encoding, such as latin-1"
            ) from error
        except UnicodeError as error:  # UTF-16 without a byte order mark
            raise UserError(f"{path} is not {encoding}: {error}") from error
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def header(path: str, rows: Iterator[list[str]], columns: Sequence[str]) -> list[str]:
    """Returns the column names and consumes their row. Raises UserError if it or one of `columns` is missing."""
    names = [name.strip() for name in next(rows, [])]
    if not names:
        raise UserError(f"{path} is empty")
    for column in columns:
        if column not in names:
            other = next((c for c in ";\t|" if len(names) == 1 and c in names[0]), None)
            hint = f" (its columns seem to be separated by {other!r}, not by commas)" if other else ""
            raise UserError(f"{path} has no column {column}: its header reads {', '.join(names)}{hint}")
    return names


def _first_bad_line(data: bytes, encoding: str) -> int:
    """Returns the number of the first line that can't be decoded; the CSV reader itself decodes ahead of its line."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return data[: error.start].count(b"\n") + 1
    raise ValueError(f"the data has no byte that is not {encoding}")
