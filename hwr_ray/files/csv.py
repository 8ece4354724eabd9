"""Reading of delimited text files (CSV, TSV) row by row, so that a faulty row never swallows another."""

import codecs
import csv
import io
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile, islice
from typing import NamedTuple

from hwr_ray.errors import UserError
from hwr_ray.files.storage import is_file, locate, read_bytes

DELIMITERS = (",", "\t", ";", "|")
SAMPLE_LINES = 50
"""Number of lines from which the delimiter is detected."""
MOST_LINES = 1000
"""Maximum number of lines of a quoted field."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Row(NamedTuple):
    line: int
    """Number of its first line in the file, from 1."""
    fields: list[str]
    error: str | None = None
    """Why the line is no row, or null. The fields are then those between the delimiters."""


@dataclass(frozen=True)
class Table:
    path: str
    header: list[str]
    """Names of the columns, stripped; their numbers from 1 if the file has no header."""
    rows: Iterator[Row]
    """All rows below the header. A row may have more or fewer fields than the header."""

    def columns(self, *names: str) -> Iterator[tuple[str, ...]]:
        """Yields the fields of some columns for each row. Raises UserError at the first faulty row."""
        indices = [self.header.index(name) for name in names]
        for row in self.rows:
            if problem := self.problem(row):
                raise UserError(f"{self.path}, line {row.line}: {problem}")
            yield tuple(row.fields[index] for index in indices)

    def problem(self, row: Row) -> str | None:
        """Returns what is wrong with a row, or None."""
        wrong_number = f"{len(row.fields)} fields, not {len(self.header)}"
        return row.error or (wrong_number if len(row.fields) != len(self.header) else None)


def read_csv(
    path: str,
    *,
    columns: Sequence[str] = (),
    delimiter: str | None = None,
    encoding: str | None = None,
    is_header: Callable[[list[str]], bool] = lambda first: True,
    remedy: str = "save it as UTF-8",
) -> Table:
    """Opens a delimited text file. Blank lines are skipped.

    Detects the delimiter and the encoding (UTF-8, or UTF-16 from its byte order mark) unless they are given. The header
    must have the `columns`. `is_header` decides whether the first row is the header. `remedy` is the advice for a file
    in another encoding. Raises UserError if the file is missing, empty, or not text in its encoding, or if a column is
    missing; the iterator of rows raises it too.
    """
    numbered = read_lines(path, encoding=encoding, remedy=remedy)
    filled = dropwhile(lambda line: not line[1].strip(), numbered)
    sample = list(islice(filled, SAMPLE_LINES))
    if not sample:
        raise UserError(f"{path} is empty")
    delimiter = delimiter or _find_delimiter([line for _, line in sample if line.strip()], columns)
    first = _split(sample[0][1], delimiter)
    if is_header(first):
        sample, header = sample[1:], [name.strip() for name in first]
    else:
        header = [str(number) for number in range(1, len(first) + 1)]
    lines = chain(sample, filled)
    repeated = [name for name, number in Counter(header).items() if number > 1]
    if repeated:
        raise UserError(f"{path} has two columns {repeated[0]!r}: rename one of them")
    for column in columns:
        if column not in header:
            raise UserError(f"{path} has no column {column!r}: its columns are {', '.join(header)}")
    return Table(path, header, _rows(lines, delimiter, len(header)))


def read_lines(path: str, *, encoding: str | None = None, remedy: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file with their numbers, from 1. Raises what `read_csv` does."""
    if not is_file(path):
        raise UserError(f"there is no file {path}")
    filesystem, inner = locate(path)
    with filesystem.open_input_stream(inner) as raw:
        buffered = io.BufferedReader(raw)
        codec = encoding or detect_encoding(buffered.peek(4)[:4])
        if codec.lower() in ("utf-8", "utf8"):
            codec = "utf-8-sig"
        try:
            text = io.TextIOWrapper(buffered, encoding=codec)
        except LookupError as error:
            raise UserError(f"the encoding {codec} is unknown: pass another, such as cp1252") from error
        try:
            for number, line in enumerate(text, start=1):
                yield number, line.rstrip("\n")
        except UnicodeError as error:
            raise UserError(f"{path} {_problem(path, codec)}: {remedy}") from error


def detect_encoding(start: bytes) -> str:
    """Returns the encoding that the first bytes of a text show: UTF-16 or UTF-8."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    if len(start) >= 4 and 0 in start:  # UTF-16 without a mark, of Latin text
        return "utf-16-le" if start[1] == start[3] == 0 else "utf-16-be" if start[0] == start[2] == 0 else "utf-8"
    return "utf-8"


def _problem(path: str, codec: str) -> str:
    """Returns what is wrong with a text, for a sentence. The reader decodes ahead of its line, so this reads again."""
    data = read_bytes(path)
    name = "UTF-8" if codec == "utf-8-sig" else codec
    try:
        data.decode(codec)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        line = error.object[: error.start].count(b"\n") + 1
        # Windows has letters and quotes where Latin-1 has control characters, which no label holds.
        guess = ", which looks like cp1252" if name == "UTF-8" and byte >= 0x80 else ""
        return f"is not {name}: byte 0x{byte:02x} in line {line}{guess}"
    except UnicodeError as error:
        return f"is not {name}: {error}"
    return f"is not {name}"


def _find_delimiter(lines: list[str], columns: Sequence[str]) -> str:
    """Returns the delimiter that gives the wanted columns, or else the same number of fields in most lines."""
    scores = {}
    for delimiter in DELIMITERS:
        numbers = Counter(len(_split(line, delimiter)) for line in lines)
        number, count = max(numbers.items(), key=lambda item: (item[1], item[0]))
        names = {name.strip() for name in _split(lines[0], delimiter)}
        scores[delimiter] = (bool(columns) and names >= set(columns), number > 1, count, number)
    return max(DELIMITERS, key=scores.__getitem__)


def _split(line: str, delimiter: str) -> list[str]:
    """Returns the fields of a line that may be faulty."""
    try:
        return _parse(line, delimiter)
    except csv.Error:
        return line.split(delimiter)


def _parse(text: str, delimiter: str) -> list[str]:
    if '"' not in text:
        return text.split(delimiter)
    # strict: without it, text after a closing quote is taken as if there were none
    (fields,) = csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True)
    return fields


def _rows(lines: Iterator[tuple[int, str]], delimiter: str, num_fields: int) -> Iterator[Row]:
    waiting: deque[tuple[int, str]] = deque()
    while True:
        number, line = waiting.popleft() if waiting else next(lines, (0, ""))
        if not number:
            return
        if not line.strip():
            continue
        if '"' not in line:
            yield Row(number, line.split(delimiter))
            continue
        try:
            yield Row(number, _parse(line, delimiter))
        except csv.Error as error:
            if delimiter == "\t":  # tab-separated files mostly hold quotes as they stand
                yield Row(number, line.split(delimiter))
                continue
            fields = None
            if str(error) == "unexpected end of data":
                error = csv.Error("a quote opens and is never closed")
                fields = _join(line, lines, waiting, delimiter, num_fields)
            yield Row(number, fields) if fields else Row(number, line.split(delimiter), str(error))


def _join(
    line: str, lines: Iterator[tuple[int, str]], waiting: deque[tuple[int, str]], delimiter: str, num_fields: int
) -> list[str] | None:
    """Returns the fields of a row with a quoted field of several lines, and consumes them; or None if the quote is a
    lone one, as in `a.png,"ANNA`: if the text up to the next quote is no row, or if a line of it is one."""
    text = line
    for place in range(MOST_LINES):
        if place == len(waiting):
            following = next(lines, None)
            if following is None:
                return None
            waiting.append(following)
        following_line = waiting[place][1]
        if len(_split(following_line, delimiter)) == num_fields:
            return None
        text += f"\n{following_line}"
        if '"' not in following_line:
            continue
        try:
            (fields,) = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                continue
            return None
        except ValueError:  # more than one row
            return None
        if len(fields) != num_fields:
            return None
        for _ in range(place + 1):
            waiting.popleft()
        return fields
    return None
