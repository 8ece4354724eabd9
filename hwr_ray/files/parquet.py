"""Parquet files of a user, read in batches, with one sentence for what is wrong with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hwr_ray.errors import UserError
from hwr_ray.files.storage import locate

BUFFER_BYTES = 1 << 20
"""Bytes that are read at a time: row groups with images may be large."""


@dataclass(frozen=True)
class ParquetFile:
    path: str
    file: pq.ParquetFile

    @classmethod
    def open(cls, path: str, columns: Sequence[str] = ()) -> "ParquetFile":
        """Opens a file that has the columns. Raises UserError if it can't be read or has not."""
        filesystem, inner = locate(path)
        try:
            file = pq.ParquetFile(inner, filesystem=filesystem, buffer_size=BUFFER_BYTES)
            names = file.schema_arrow.names
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{path} can't be read as Parquet: {error}") from error
        for column in columns:
            if column not in names:
                raise UserError(f"{path} has no column {column}: it has {', '.join(names)}")
        return cls(path, file)

    def batches(self, rows: int, **choice: Any) -> Iterator[pa.RecordBatch]:
        """Yields batches of at most `rows` rows, with the arguments of pyarrow's `iter_batches`. Raises UserError where
        the file is damaged."""
        try:
            yield from self.file.iter_batches(rows, **choice)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.path} can't be read as Parquet: {error}") from error
