"""CSV files, row by row, with a sentence for whatever is wrong with them."""

import csv
import io
from collections.abc import Iterator, Sequence

from hwr_ray.errors import UserError
from hwr_ray.files.storage import is_file, locate, read_bytes


def rows(path: str, *, encoding: str = "utf-8") -> Iterator[list[str]]:
    """The fields of each row, the header's first; blank lines are no rows.

    Raises UserError where the file is missing, is not text in its encoding, or has a quote that is never closed.
    """
    if not is_file(path):
        raise UserError(f"there is no file {path}")
    filesystem, inner = locate(path)
    known = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    with filesystem.open_input_stream(inner) as raw:
        try:
            text = io.TextIOWrapper(io.BufferedReader(raw), encoding=known, newline="")
        except LookupError as error:
            raise UserError(f"--encoding {encoding} is not known") from error
        reader = csv.reader(text, strict=True)  # else a quote that is never closed swallows the rows after it
        try:
            yield from filter(None, reader)
        except UnicodeDecodeError as error:
            line = _first_bad_line(read_bytes(path), known)
            raise UserError(
                f"{path} is not {encoding}: byte 0x{error.object[error.start]:02x} in line {line}; "
                f"save it as UTF-8, or name its --encoding (latin-1, say)"
            ) from error
        except UnicodeError as error:  # UTF-16 without its mark
            raise UserError(f"{path} is not {encoding}: {error}") from error
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def header(path: str, rows: Iterator[list[str]], columns: Sequence[str]) -> list[str]:
    """The names of the columns, taken off the rows. Raises UserError where there are none or one of `columns` lacks."""
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
    """Number of the first line that is not text in the encoding; the reader itself decodes ahead of its line."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return data[: error.start].count(b"\n") + 1
    raise ValueError(f"all of the text is {encoding}")
