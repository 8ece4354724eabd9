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
"""A file of each kind that a job writes."""
OWN = re.compile(rf"{WORK}/.*|({re.escape(SUMMARY)}|{FILE}-\d+\.parquet)({re.escape(storage.PARTIAL)}.*)?")
DIGEST = np.dtype("S16")
FIRST_PARTITION_ROWS, PARTITIONS_PER_SIZE = 256, 4
"""Rows of the first partitions, and after how many they double, up to the most: small jobs, too, keep all workers busy,
above all where the small partitions are read last."""
BYTES_PER_FILE = 128 << 20
"""Of a merged file, at least; less than half as many again."""
ROWS_PER_GROUP = 65_536


def check_out(out: str, fingerprint: dict[str, Any], *, overwrite: bool = False) -> dict[str, Any] | None:
    """Returns the fingerprint of the job that `out` holds, None if it holds none.

    Raises UserError if it holds something else, or a job with another fingerprint that is not to be overwritten.
    """
    if storage.is_file(out):
        raise UserError(f"{out} is a file: name another --out")
    known = _read(out, SUMMARY) or _read(out, STATE)
    if known is None:
        # A job that is killed at its start leaves its token, or half of it or of its state.
        begun = re.compile(rf"{WORK}/{re.escape(OWNER)}.*|{re.escape(STATE + storage.PARTIAL)}.*")
        if not all(map(begun.fullmatch, storage.walk_files(out))):
            raise UserError(f"{out} holds something else (it has no {SUMMARY}): name another --out")
        return None
    there = _fingerprint_of(known)
    if not overwrite and (found := difference(there, fingerprint)):
        name, old, new = found
        raise UserError(
            f"{out} was begun with {name} = {old}, not {new}: name another --out, or --overwrite to start over"
        )
    return there


class Partitions:
    """The partitions of the job that writes `out`, which it takes over from any other. Raises what `check_out` does."""

    def __init__(self, out: str, fingerprint: dict[str, Any], *, overwrite: bool = False) -> None:
        self.out, self.fingerprint = out.rstrip("/"), fingerprint
        there = check_out(self.out, fingerprint, overwrite=overwrite)
        # The token first, then the plan, then the state. A run that still merges its outputs checks its token after it
        # has written its plan, and resets the state before it deletes the plan: either it stops, or this run sees it.
        self.owner = OwnershipToken.take(self.out, folder=self._path(WORK))
        if overwrite and there is not None:
            self._clear(there)
        plan = _read(self.out, PLAN)
        accepted = (_read(self.out, STATE) or {"accepted": []})["accepted"]
        if accepted:
            accepted[-1][1] = len([name for name in self._names(INPUTS) if name.startswith(f"{accepted[-1][0]}-")])
        self.attempt, self.num_own = uuid4().hex[:8], 0  # its own: what a run that lost writes late is never taken up
        self._accept(accepted)
        if plan and set(_partitions_of(plan)) <= set(self.names):
            self._merge(plan)
            self._accept([])
        self._seen = np.unique(np.concatenate([np.empty(0, DIGEST), *map(_digests, self._keys())]))
        self.num_rows = len(self._seen)
        """Rows so far: of the merged files, and of all partitions."""

    def _accept(self, accepted: list[list[Any]]) -> None:
        """Takes up the partitions of earlier attempts, each a name and the number of its partitions."""
        self.names = [_name(attempt, partition) for attempt, number in accepted for partition in range(number)]
        """Of all partitions so far, in order."""
        accepted = [*accepted, [self.attempt, 0]]
        storage.write_json(self._path(STATE), {"fingerprint": self.fingerprint, "accepted": accepted})

    def _clear(self, fingerprint: dict[str, Any]) -> None:
        """Deletes what jobs wrote, all but the state, so that what is left can be told where this is cut off."""
        storage.write_json(self._path(STATE), {"fingerprint": fingerprint, "accepted": []})
        for name in storage.list_files(self.out):
            if name not in (STATE, f"{WORK}/{OWNER}") and OWN.fullmatch(name):
                storage.delete_file(self._path(name))

    def assign(self, tables: Iterable[pa.Table], *, most: int) -> Iterator[str]:
        """Deals the rows of new inputs out to partitions of at most `most` rows; yields their names."""
        kept = pa.table({})
        for table in tables:
            new = table.filter(pa.array(~_contains(self._seen, _digests(table)))) if len(self._seen) else table
            kept = pa.concat_tables([kept, new]) if len(kept) else new
            while len(kept) >= (size := min(most, FIRST_PARTITION_ROWS << self.num_own // PARTITIONS_PER_SIZE)):
                yield self._add(kept.slice(0, size))
                kept = kept.slice(size)
        if len(kept):
            yield self._add(kept)

    def _add(self, table: pa.Table) -> str:
        name = _name(self.attempt, self.num_own)
        storage.write_bytes(self._path(f"{INPUTS}/{name}"), _to_parquet([table]))
        self.names.append(name)
        self.num_own += 1
        self.num_rows += len(table)
        return name

    def pending(self) -> list[str]:
        """The partitions so far that have no output, in order."""
        done = set(self._names(OUTPUTS))
        return [name for name in self.names if name not in done]

    def finish(self) -> None:
        """Merges the outputs of all partitions into the files of the job. Raises RuntimeError where one is missing."""
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
        first = max(numbers, default=-1) + 1  # not how many there are: one may have been taken away
        files = {f"{FILE}-{first + i:05}.parquet": group for i, group in enumerate(groups) if group}
        plan = {"files": files}
        storage.write_json(self._path(PLAN), plan)
        self.owner.check()
        self._merge(plan)

    def _merge(self, plan: dict[str, Any]) -> None:
        """Does what the plan says, or what is left of it. Another run may be doing the same, and writes the same."""
        for file, names in plan["files"].items():
            if not storage.is_file(self._path(file)):
                tables = (read_parquet(self._path(f"{OUTPUTS}/{name}")) for name in names)
                try:
                    merged = _to_parquet(tables)
                except FileNotFoundError:
                    self.owner.check()  # the run that took over has merged it and deleted the outputs
                    raise
                storage.write_bytes(self._path(file), merged)
        self.owner.check()
        storage.write_json(self._path(STATE), {"fingerprint": self.fingerprint, "accepted": []})
        for name in _partitions_of(plan):  # and no others: a run that takes over now writes its own beside them
            for folder in (INPUTS, OUTPUTS):
                storage.delete_file(self._path(f"{folder}/{name}"))
        storage.delete_file(self._path(PLAN))

    def close(self, summary: dict[str, Any]) -> None:
        """Writes the summary, which tells that the files are whole, and deletes the books and what a kill left."""
        storage.write_json(self._path(SUMMARY), {**summary, "fingerprint": self.fingerprint})
        storage.delete(self._path(WORK))
        for name in storage.list_sizes(self.out):
            if storage.PARTIAL in name and OWN.fullmatch(name):
                storage.delete_file(self._path(name))

    def files(self) -> list[str]:
        """Paths of the merged files, in order."""
        names = [name for name in storage.list_sizes(self.out) if re.fullmatch(rf"{FILE}-\d+\.parquet", name)]
        return [self._path(name) for name in names]

    def _keys(self) -> Iterator[pa.Table]:
        """`id` and `path` of the rows so far."""
        for path in (*self.files(), *(self._path(f"{INPUTS}/{name}") for name in self.names)):
            yield read_parquet(path, columns=["id", "path"])

    def _names(self, folder: str) -> list[str]:
        return [name for name in storage.list_sizes(self._path(folder)) if name.endswith(".parquet")]

    def _path(self, name: str) -> str:
        return storage.join(self.out, name)


def read_inputs(out: str, name: str) -> pa.Table:
    """The rows of a partition, of the schema hwr_ray.transcription.inputs.INPUTS."""
    return read_parquet(storage.join(out, INPUTS, name))


def write_output(out: str, name: str, table: pa.Table) -> None:
    """Writes what came of a partition, at once. Writing it again changes nothing: its inputs are the same."""
    storage.write_bytes(storage.join(out, OUTPUTS, name), _to_parquet([table]))


def read_parquet(path: str, columns: list[str] | None = None) -> pa.Table:
    filesystem, inner = storage.locate(path)
    return pq.read_table(inner, filesystem=filesystem, columns=columns)


def repeated_key(inputs: Inputs) -> str | None:
    """A key that two inputs have, or None where each has its own. Holds 16 bytes for each."""
    digests = np.sort(np.concatenate([np.empty(0, DIGEST), *map(_digests, inputs.tables())]))
    repeated = digests[1:][digests[1:] == digests[:-1]]
    if not len(repeated):
        return None
    keys = (dict(zip(_digests(table).tolist(), keys_of(table), strict=True)) for table in inputs.tables())
    return next(found[repeated[0]] for found in keys if repeated[0] in found)


def _fingerprint_of(known: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint in a job's summary or state. Version 0.1 called it `facts`, and the lexicon `names`."""
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
    """The bytes of a Parquet file with the rows of some tables, at least one, in large row groups."""
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
    """128 bits (N) for the key of each row."""
    return np.array([blake2b(key.encode(), digest_size=DIGEST.itemsize).digest() for key in keys_of(table)], DIGEST)


def _contains(digests: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of the wanted (N) are among sorted digests (M > 0)."""
    places = np.searchsorted(digests, wanted)
    return digests[np.minimum(places, len(digests) - 1)] == wanted
