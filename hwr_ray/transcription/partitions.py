"""Exactly-once bookkeeping for a batch job: immutable input partitions, atomic outputs, a resumable merge.

OUT/_work holds inputs/ATTEMPT-PARTITION.parquet, which never change, and outputs/ with the same names, each written
atomically. Each run of the job is an attempt. It accepts the partitions of earlier attempts, assigns inputs that are
in none of them to new partitions, and reads the partitions that have no output. At the end it merges the outputs in
order into OUT/transcripts-NUMBER.parquet. It writes the plan of the merge first, so that another attempt can resume it.

Not ray.data.checkpoint: it wants the inputs as one Parquet file, commits per write task, and takes half a minute to
resume a million rows (benchmarks/results/checkpointing.json).
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import chain
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.ownership import OWNER, OwnershipToken, difference
from hwr_ray.transcription.inputs import Inputs, keys_of

SUMMARY, WORK, FILE = "_run.json", "_work", "transcripts"
INPUTS, OUTPUTS, STATE, PLAN = f"{WORK}/inputs", f"{WORK}/outputs", f"{WORK}/state.json", f"{WORK}/merge.json"
WRITTEN = (SUMMARY, f"{FILE}-00000.parquet", STATE, f"{INPUTS}/0-0.parquet", f"{OUTPUTS}/0-0.parquet")
"""One file name of each kind that a job writes."""
OWN = re.compile(rf"{WORK}/.*|({re.escape(SUMMARY)}|{FILE}-\d+\.parquet)({re.escape(storage.PARTIAL)}.*)?")
DIGEST = np.dtype("S16")
FIRST_PARTITION_ROWS, PARTITIONS_PER_SIZE = 256, 4
"""Initial partition size in rows, and the number of partitions after which it doubles, up to the maximum. Small
partitions keep all workers busy in small jobs, and at the end of large ones, where they are processed last."""
BYTES_PER_FILE = 128 << 20
"""Target size of a merged file. Only the last one may be smaller; none is more than half as much larger."""
ROWS_PER_GROUP = 65_536


def check_out(out: str, fingerprint: dict[str, Any], *, overwrite: bool = False) -> dict[str, Any] | None:
    """Returns the fingerprint of the job in `out`, None if there is no job.

    Raises UserError if `out` contains other files, or a job with another fingerprint and `overwrite` is not set.
    """
    if storage.is_file(out):
        raise UserError(f"{out} is a file: choose another --out")
    known = _read(out, SUMMARY) or _read(out, STATE)
    if known is None:
        # A job that is killed at its start leaves its token, or a partial file of the token or the state.
        leftover = re.compile(rf"{WORK}/{re.escape(OWNER)}.*|{re.escape(STATE + storage.PARTIAL)}.*")
        if not all(map(leftover.fullmatch, storage.walk_files(out))):
            raise UserError(f"{out} contains other files (it has no {SUMMARY}): choose another --out")
        return None
    existing = _fingerprint_of(known)
    if not overwrite and (changed := difference(existing, fingerprint)):
        name, old, new = changed
        raise UserError(
            f"{out} was started with {name} = {old}, not {new}: choose another --out, or pass --overwrite to start over"
        )
    return existing


class Partitions:
    """The partitions of the job that writes `out`. Takes ownership of `out`; raises what `check_out` raises.

    `schema` has the columns of the outputs. Those that an earlier version of the job wrote may lack some.
    """

    def __init__(
        self, out: str, fingerprint: dict[str, Any], *, overwrite: bool = False, schema: pa.Schema | None = None
    ) -> None:
        self.out, self.fingerprint, self.schema = out.rstrip("/"), fingerprint, schema
        existing = check_out(self.out, fingerprint, overwrite=overwrite)
        # Take the token first, then read the plan, then the state. A run that is still merging checks its token after
        # it writes its plan, and resets the state before it deletes the plan: it stops, or this run sees its plan.
        self.owner = OwnershipToken.take(self.out, folder=self._path(WORK))
        if overwrite and existing is not None:
            self._clear(existing)
        plan = _read(self.out, PLAN)
        accepted = (_read(self.out, STATE) or {"accepted": []})["accepted"]
        if accepted:
            accepted[-1][1] = len([name for name in self._names(INPUTS) if name.startswith(f"{accepted[-1][0]}-")])
        self.attempt, self.num_own = uuid4().hex[:8], 0  # unique: no later run accepts what a replaced run writes late
        self._accept(accepted)
        if plan and set(_partitions_of(plan)) <= set(self.names):
            self._merge(plan)
            self._accept([])
        self._seen = np.unique(np.concatenate([np.empty(0, DIGEST), *map(_digests, self._keys())]))
        self.num_rows = len(self._seen)
        """Number of rows so far, in the merged files and in all partitions."""

    def _accept(self, accepted: list[list[Any]]) -> None:
        """Accepts the partitions of earlier attempts, each given by its name and its number of partitions."""
        self.names = [_name(attempt, partition) for attempt, number in accepted for partition in range(number)]
        """Names of all partitions so far, in order."""
        accepted = [*accepted, [self.attempt, 0]]
        storage.write_json(self._path(STATE), {"fingerprint": self.fingerprint, "accepted": accepted})

    def _clear(self, fingerprint: dict[str, Any]) -> None:
        """Deletes the files of earlier jobs except the state, which still identifies them if this is interrupted."""
        storage.write_json(self._path(STATE), {"fingerprint": fingerprint, "accepted": []})
        for name in storage.list_files(self.out):
            if name not in (STATE, f"{WORK}/{OWNER}") and OWN.fullmatch(name):
                storage.delete_file(self._path(name))

    def assign(self, tables: Iterable[pa.Table], *, most: int) -> Iterator[str]:
        """Assigns the rows of new inputs to partitions of at most `most` rows; yields the partitions' names."""
        rest = pa.table({})
        for table in tables:
            new = table.filter(pa.array(~_contains(self._seen, _digests(table)))) if len(self._seen) else table
            rest = pa.concat_tables([rest, new]) if len(rest) else new
            while len(rest) >= (size := min(most, FIRST_PARTITION_ROWS << self.num_own // PARTITIONS_PER_SIZE)):
                yield self._add(rest.slice(0, size))
                rest = rest.slice(size)
        if len(rest):
            yield self._add(rest)

    def _add(self, table: pa.Table) -> str:
        name = _name(self.attempt, self.num_own)
        storage.write_bytes(self._path(f"{INPUTS}/{name}"), _to_parquet([table]))
        self.names.append(name)
        self.num_own += 1
        self.num_rows += len(table)
        return name

    def pending(self) -> list[str]:
        """Returns the names of the partitions without output, in order."""
        done = set(self._names(OUTPUTS))
        return [name for name in self.names if name not in done]

    def finish(self) -> None:
        """Merges the outputs of all partitions into the files of the job. Raises RuntimeError if one is missing."""
        self.owner.check()
        sizes = storage.list_sizes(self._path(OUTPUTS))
        groups: list[list[str]] = [[]]
        for name in self.names:
            if name not in sizes:
                raise RuntimeError(f"the partition {name} of {self.out} has no output")
            if sum(sizes[n] for n in groups[-1]) >= BYTES_PER_FILE:
                groups.append([])
            groups[-1].append(name)
        if len(groups) > 1 and sum(sizes[n] for n in groups[-1]) < BYTES_PER_FILE // 2:
            groups[-2:] = [groups[-2] + groups[-1]]
        numbers = [int(path.removesuffix(".parquet").rpartition("-")[2]) for path in self.files()]
        first = max(numbers, default=-1) + 1  # not the number of files: the user may have deleted one
        files = {f"{FILE}-{first + i:05}.parquet": group for i, group in enumerate(groups) if group}
        plan = {"files": files}
        storage.write_json(self._path(PLAN), plan)
        self.owner.check()
        self._merge(plan)

    def _merge(self, plan: dict[str, Any]) -> None:
        """Executes the plan or what is left of it. Another run may do so at the same time; it writes the same files."""
        for file, names in plan["files"].items():
            if not storage.is_file(self._path(file)):
                tables = (read_parquet(self._path(f"{OUTPUTS}/{name}"), schema=self.schema) for name in names)
                try:
                    merged = _to_parquet(tables)
                except FileNotFoundError:
                    self.owner.check()  # raises if the run that took over merged the outputs and deleted them
                    raise
                storage.write_bytes(self._path(file), merged)
        self.owner.check()
        storage.write_json(self._path(STATE), {"fingerprint": self.fingerprint, "accepted": []})
        for name in _partitions_of(plan):  # no others: a run that takes over now adds its own
            for folder in (INPUTS, OUTPUTS):
                storage.delete_file(self._path(f"{folder}/{name}"))
        storage.delete_file(self._path(PLAN))

    def close(self, summary: dict[str, Any]) -> None:
        """Writes the summary, which marks the files as complete, and deletes the commit log and partial files."""
        self.owner.check()
        storage.write_json(self._path(SUMMARY), {**summary, "fingerprint": self.fingerprint})
        storage.delete(self._path(WORK))
        for name in storage.list_sizes(self.out):
            if storage.PARTIAL in name and OWN.fullmatch(name):
                storage.delete_file(self._path(name))

    def files(self) -> list[str]:
        """Returns the paths of the merged files, in order."""
        names = [name for name in storage.list_sizes(self.out) if re.fullmatch(rf"{FILE}-\d+\.parquet", name)]
        return [self._path(name) for name in names]

    def _keys(self) -> Iterator[pa.Table]:
        """Yields `id` and `path` of the rows so far."""
        for path in (*self.files(), *(self._path(f"{INPUTS}/{name}") for name in self.names)):
            yield read_parquet(path, columns=["id", "path"])

    def _names(self, folder: str) -> list[str]:
        return [name for name in storage.list_sizes(self._path(folder)) if name.endswith(".parquet")]

    def _path(self, name: str) -> str:
        return storage.join(self.out, name)


def read_inputs(out: str, name: str) -> pa.Table:
    """Returns the rows of a partition, of the schema hwr_ray.transcription.inputs.INPUTS."""
    return read_parquet(storage.join(out, INPUTS, name))


def write_output(out: str, name: str, table: pa.Table) -> None:
    """Writes the output of a partition atomically. A retry replaces it."""
    storage.write_bytes(storage.join(out, OUTPUTS, name), _to_parquet([table]))


def read_parquet(path: str, columns: list[str] | None = None, *, schema: pa.Schema | None = None) -> pa.Table:
    """Returns columns of a Parquet file; those of the schema that the file lacks are null."""
    filesystem, inner = storage.locate(path)
    return pq.read_table(inner, filesystem=filesystem, columns=columns, schema=schema)


def repeated_key(inputs: Inputs) -> str | None:
    """Returns a key that two inputs share, or None if all are unique. Keeps 16 bytes per input in memory."""
    digests = np.sort(np.concatenate([np.empty(0, DIGEST), *map(_digests, inputs.tables())]))
    repeated = digests[1:][digests[1:] == digests[:-1]]
    if not len(repeated):
        return None
    keys = (dict(zip(_digests(table).tolist(), keys_of(table), strict=True)) for table in inputs.tables())
    return next(by_digest[repeated[0]] for by_digest in keys if repeated[0] in by_digest)


def _fingerprint_of(known: dict[str, Any]) -> dict[str, Any]:
    """Returns the fingerprint in a summary or state. Version 0.1 called it `facts`, and the lexicon `names`."""
    if "facts" not in known:
        return known.get("fingerprint", {})
    return {"lexicon" if name == "names" else name: value for name, value in known["facts"].items()}


def _read(out: str, name: str) -> dict[str, Any] | None:
    try:
        return storage.read_json(storage.join(out, name))
    except FileNotFoundError:
        return None


def _partitions_of(plan: dict[str, Any]) -> Iterator[str]:
    return chain.from_iterable(plan["files"].values())


def _name(attempt: str, partition: int) -> str:
    return f"{attempt}-{partition:06}.parquet"


def _to_parquet(tables: Iterable[pa.Table]) -> pa.Buffer:
    """Returns the bytes of a Parquet file with the rows of one or more tables, in large row groups."""
    sink, waiting = pa.BufferOutputStream(), list[pa.Table]()
    tables = iter(tables)
    waiting.append(next(tables))
    with pq.ParquetWriter(sink, waiting[0].schema, compression="zstd") as writer:
        for table in tables:
            if sum(map(len, waiting)) + len(table) > ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
            waiting.append(table)
        writer.write_table(pa.concat_tables(waiting))
    return sink.getvalue()


def _digests(table: pa.Table) -> np.ndarray:
    """Returns a 128-bit digest of each row's key (N)."""
    return np.array([blake2b(key.encode(), digest_size=DIGEST.itemsize).digest() for key in keys_of(table)], DIGEST)


def _contains(digests: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns which of the wanted digests (N) are among the sorted `digests` (M > 0), as booleans (N)."""
    indices = np.searchsorted(digests, wanted)
    return digests[np.minimum(indices, len(digests) - 1)] == wanted
