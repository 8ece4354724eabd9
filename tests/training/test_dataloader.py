"""Tests that each training line comes once per epoch, in batches that do not depend on the number of workers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hwr_ray.cluster.shared_file import SharedFile
from hwr_ray.data.dataset import PreparedSets, schema
from hwr_ray.data.selection import Selection, fold_of
from hwr_ray.errors import UserError
from hwr_ray.files.storage import write_json
from hwr_ray.images.arrow import column_of
from hwr_ray.images.lines import Canvas
from hwr_ray.training.dataloader import KeptLines, WorkerShard, ahead
from hwr_ray.training.settings import TrainSettings

CANVAS, CPU, ALONE = Canvas(16, 32), torch.device("cpu"), WorkerShard(0, 1)
ALL = Selection()
NUM_LINES = 53


def write_lines(folder, *, files=3, backwards=False, offset=0):
    """Writes a prepared data set whose line i has the id f"{i}.png", the text "A" * i and the gray value
    i + offset."""
    numbers = list(range(NUM_LINES))[:: -1 if backwards else 1]
    (folder / "train").mkdir(parents=True)
    for part in range(files):
        rows = numbers[part::files]
        images = [np.full((CANVAS.height, CANVAS.width), i + offset, np.uint8) for i in rows]
        columns = {"id": [f"{i}.png" for i in rows], "path": ["p"] * len(rows), "text": ["A" * i for i in rows]}
        columns |= {
            "height": [1] * len(rows),
            "width": [1] * len(rows),
            "warning": pa.nulls(len(rows), pa.string()),
            "image": column_of(images, CANVAS),
        }
        pq.write_table(pa.table(columns, schema=schema(CANVAS)), folder / f"train/{part}.parquet")
    splits = {"train": {"prepared": NUM_LINES}}
    write_json(
        str(folder / "dataset.json"),
        {"canvas": [CANVAS.height, CANVAS.width], "charset": "A", "splits": splits, "content_hash": f"{offset:064x}"},
    )
    return PreparedSets((str(folder),))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("lines") / "prepared")


def lines_of(prepared, shard=ALONE, *, batch_size=8, num_lines=NUM_LINES, selection=ALL, **settings):
    settings = TrainSettings(data=(), out="", batch_size=batch_size, **settings)
    return KeptLines(prepared, settings, shard, CPU, kept_on=CPU, num_lines=num_lines, selection=selection)


def ids_of(lines, epoch, start=0):
    return [batch.ids for batch in lines.batches(epoch, start)]


def test_every_line_comes_at_most_once_an_epoch_in_full_batches_with_its_own_picture_and_text(prepared):
    seen = []
    for batch in lines_of(prepared).batches(1, 0):
        assert len(batch.ids) == 8
        for image, line, text in zip(batch.images, batch.ids, batch.texts, strict=True):
            number = int(line.removesuffix(".png"))
            assert (image == number).all() and text == "A" * number
            seen.append(line)
    assert len(seen) == len(set(seen)) == NUM_LINES // 8 * 8


def test_epochs_differ_and_are_the_same_again_for_the_same_seed(prepared):
    first = ids_of(lines_of(prepared, seed=1), 1)
    assert first == ids_of(lines_of(prepared, seed=1), 1)
    assert first != ids_of(lines_of(prepared, seed=1), 2)
    assert first != ids_of(lines_of(prepared, seed=2), 1)


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
def test_the_workers_share_each_batch_that_one_would_have(prepared, workers):
    shards = [ids_of(lines_of(prepared, WorkerShard(rank, workers)), 3) for rank in range(workers)]
    joined = [list(chain(*parts)) for parts in zip(*shards, strict=True)]
    assert joined == ids_of(lines_of(prepared), 3)
    assert {len(part) for shard in shards for part in shard} <= {8 // workers, -(-8 // workers)}


def test_an_epoch_goes_on_at_any_step(prepared):
    lines = lines_of(prepared)
    whole = ids_of(lines, 1)
    for start in range(len(whole) + 1):
        assert ids_of(lines, 1, start) == whole[start:]


def test_the_order_does_not_depend_on_how_the_lines_lie_in_files(prepared, tmp_path):
    other = write_lines(tmp_path / "other", files=5, backwards=True)
    assert ids_of(lines_of(prepared), 1) == ids_of(lines_of(other), 1)


def test_lines_of_two_data_sets_with_the_same_ids_keep_their_own_pictures(prepared, tmp_path):
    other = write_lines(tmp_path / "other", files=5, backwards=True, offset=100)
    again = write_lines(tmp_path / "again", offset=100)

    def epoch_of(second):
        lines = lines_of(PreparedSets((*prepared.paths, *second.paths)), batch_size=1, num_lines=2 * NUM_LINES)
        return [(batch.ids[0], len(batch.texts[0]), int(batch.images[0, 0, 0])) for batch in lines.batches(1, 0)]

    assert sorted(epoch_of(other)) == sorted((f"{i}.png", i, i + by) for i in range(NUM_LINES) for by in (0, 100))
    assert epoch_of(other) == epoch_of(again)  # the order does not depend on how the lines lie in files


def test_a_fold_is_left_out(prepared):
    others = {f"{i}.png" for i in range(NUM_LINES) if fold_of(f"{i}.png", 3) != 1}
    selection = Selection(num_folds=3, fold=1)
    lines = lines_of(prepared, batch_size=1, num_lines=len(others), selection=selection)
    assert {line for (line,) in ids_of(lines, 1)} == others


def test_a_corrected_line_keeps_its_picture_and_one_left_out_takes_its_own_away(prepared):
    whole = {
        line: (batch.images[0], batch.texts)
        for batch in lines_of(prepared, batch_size=1).batches(1, 0)
        for line in batch.ids
    }
    labels = {line: texts[0] for line, (_, texts) in whole.items()}
    corrections = {("3.png", labels["3.png"]): "AA", ("5.png", labels["5.png"]): None}
    lines = lines_of(prepared, batch_size=1, num_lines=NUM_LINES - 1, selection=Selection(corrections=corrections))
    batches = {line: batch for batch in lines.batches(1, 0) for line in batch.ids}
    assert batches.keys() == whole.keys() - {"5.png"}
    for line, batch in batches.items():
        assert torch.equal(batch.images[0], whole[line][0])
        assert batch.texts == (["AA"] if line == "3.png" else whole[line][1])


def test_lines_that_are_missing_are_told(prepared):
    with pytest.raises(RuntimeError, match="read 53 of 54 training lines"):
        lines_of(prepared, num_lines=54)


@pytest.mark.parametrize("selection", [ALL, Selection(num_folds=3, fold=1)])
def test_the_workers_of_a_node_share_one_copy_of_the_lines(prepared, tmp_path, monkeypatch, selection):
    num_lines = NUM_LINES
    if not selection.is_all:
        num_lines = sum(fold_of(f"{i}.png", 3) != 1 for i in range(NUM_LINES))
    barrier, read, has_read_images = Barrier(3), PreparedSets.tables, []

    def tables(self, split, columns, *, rows):
        has_read_images.append("image" in columns)
        return read(self, split, columns, rows=rows)

    monkeypatch.setattr(PreparedSets, "tables", tables)

    def keep(rank):
        shared = SharedFile(tmp_path / "shared", rank == 0, barrier.wait)
        run = TrainSettings(data=(), out="", batch_size=8)
        return KeptLines(
            prepared,
            run,
            WorkerShard(rank, 3),
            CPU,
            kept_on=CPU,
            num_lines=num_lines,
            selection=selection,
            shared=shared,
        )

    with ThreadPoolExecutor(3) as pool:
        workers = list(pool.map(keep, range(3)))
    assert sum(has_read_images) == 1
    for rank, lines in enumerate(workers):
        alone = lines_of(prepared, WorkerShard(rank, 3), num_lines=num_lines, selection=selection)
        for found, expected in zip(lines.batches(2, 0), alone.batches(2, 0), strict=True):
            assert found.ids == expected.ids and torch.equal(found.images, expected.images)
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(f"{tmp_path}/shared (deleted)") == 3  # mapped, and gone from the folder
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_leaves_no_half_file(small_disk):
    shared = SharedFile(small_disk.path / "shared", True, lambda: None)
    with pytest.raises(UserError, match=r"no space is left for the training lines in .*: free some, or pass --stream"):
        shared.exchange([np.zeros(1 << 20, np.uint8)] * 100, (100, 1 << 20))
    assert not [path for path in small_disk.path.rglob("*") if path.is_file()]


def test_items_fetched_ahead_come_in_order_and_few_of_them_wait():
    fetched = []

    def items():
        for i in range(20):
            fetched.append(i)
            yield i

    iterator = ahead(items(), 3)
    assert next(iterator) == 0
    deadline = time.monotonic() + 5
    while len(fetched) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(fetched) == 5  # one was consumed, three are queued, and the thread holds one
    assert list(iterator) == list(range(1, 20))


def test_an_error_ahead_is_raised_where_the_items_are_used_and_an_early_end_leaves_no_thread():
    def items():
        yield 1
        raise OSError("lost")

    iterator = ahead(items(), 3)
    assert next(iterator) == 1
    with pytest.raises(OSError, match="lost"):
        next(iterator)
    before = threading.active_count()
    endless = ahead(iter(int, 1), 3)
    next(endless)
    endless.close()
    assert threading.active_count() <= before
