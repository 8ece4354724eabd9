"""The commit log of a batch job: each row is in one partition, each partition once in the files, however jobs end."""

from itertools import count
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.transcription import partitions as partitions_module
from hwr_ray.transcription.inputs import INPUTS, ImageFiles, Manifest
from hwr_ray.transcription.partitions import Partitions, read_inputs, repeated_key, write_output

FINGERPRINT = {"inputs": {"images": "in", "canvas": [16, 64]}, "num_best": 1}
NUMBERS = count()


@pytest.fixture(params=["local", "memory://"])
def out(request, tmp_path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"memory://partitions-{next(NUMBERS)}/out"


def paths_of(numbers: range) -> list[str]:
    return [f"{n:06}.png" for n in numbers]


def table(paths: list[str]) -> pa.Table:
    empty = [None] * len(paths)
    return pa.table({"id": empty, "path": paths, "source": empty, "row": empty}, schema=INPUTS)


def assign(partitions: Partitions, numbers: range, *, most: int = 1000) -> list[str]:
    return list(partitions.assign([table(paths_of(numbers))], most=most))


def read(partitions: Partitions, names: list[str] | None = None) -> None:
    """Writes the output of partitions in place of a model; the text of each row is its path."""
    for name in partitions.pending() if names is None else names:
        paths = read_inputs(partitions.out, name)["path"].to_pylist()
        write_output(
            partitions.out, name, pa.table({"id": pa.nulls(len(paths), pa.string()), "path": paths, "text": paths})
        )


def job(out: str, numbers: range, **settings) -> None:
    """Runs a whole job."""
    partitions = Partitions(out, FINGERPRINT, **settings)
    assign(partitions, numbers, most=300)
    read(partitions)
    partitions.finish()
    partitions.close({"num_images": partitions.num_rows})


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files_in(out: str) -> list[str]:
    """Returns the names of the merged files, in order, as another program would list them."""
    return sorted(name for name in storage.list_files(out) if "/" not in name and name.endswith(".parquet"))


def merged(out: str) -> list[str]:
    """Returns the paths in all merged files, in order, and checks that each row kept its text."""
    frames = [pq.read_table(pa.BufferReader(storage.read_bytes(f"{out}/{name}"))).to_pandas() for name in files_in(out)]
    frame = pd.concat(frames)
    assert (frame.path == frame.text).all()
    return frame.path.tolist()


@pytest.mark.parametrize("sizes", [[5000], [1] * 300, [0, 255, 0, 1, 1, 3000, 0], [256, 256, 256], [700, 1, 9000]])
def test_every_row_is_in_one_part_in_order_and_parts_grow_to_the_most(tmp_path, sizes):
    paths = paths_of(range(sum(sizes)))
    ends = pd.Series(sizes).cumsum()
    tables = [table(paths[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    partitions = Partitions(str(tmp_path), FINGERPRINT)
    names = list(partitions.assign(tables, most=1000))
    assigned = [pd.read_parquet(tmp_path / "_work/inputs" / name).path.tolist() for name in names]
    assert [path for partition in assigned for path in partition] == paths
    assert names == partitions.names == sorted(names) == names_in(tmp_path / "_work/inputs")
    assert partitions.num_rows == len(paths)
    full = [256] * 4 + [512] * 4 + [1000] * 20
    assert [len(partition) for partition in assigned[:-1]] == full[: len(assigned) - 1]
    assert 0 < len(assigned[-1]) <= full[len(assigned) - 1]


def test_no_part_is_larger_than_a_most_below_the_first_size(tmp_path):
    partitions = Partitions(str(tmp_path), FINGERPRINT)
    names = assign(partitions, range(25), most=10)
    assert [len(read_inputs(str(tmp_path), name)) for name in names] == [10, 10, 5]


def test_another_attempt_accepts_the_parts_before_and_deals_out_only_what_is_new(out):
    first = Partitions(out, FINGERPRINT)
    names = assign(first, range(1000), most=300)
    read(first, names[1::2])
    second = Partitions(out, FINGERPRINT)
    assert second.names == names
    assert second.pending() == names[::2]
    assert second.num_rows == 1000
    new = assign(second, range(-50, 1100), most=300)
    assigned = [path for name in new for path in read_inputs(out, name)["path"].to_pylist()]
    assert assigned == paths_of(range(-50, 0)) + paths_of(range(1000, 1100))
    assert second.pending() == names[::2] + new
    third = Partitions(out, FINGERPRINT)
    assert third.names == names + new
    read(third)
    third.finish()
    assert merged(out) == paths_of(range(1000)) + assigned


def test_a_part_that_an_earlier_attempt_writes_too_late_is_not_counted(out):
    first = Partitions(out, FINGERPRINT)
    assigning = first.assign([table(paths_of(range(600)))], most=300)
    next(assigning)
    second = Partitions(out, FINGERPRINT)
    late = next(assigning)
    assert late not in second.names
    read(second, [late])
    assign(second, range(600))
    third = Partitions(out, FINGERPRINT)  # keeps the second run's count of the first run's partitions
    assert late not in third.names
    read(third)
    third.finish()
    assert merged(out) == paths_of(range(600))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_notices_that_another_one_took_over_and_changes_nothing(out, overwrite):
    first = Partitions(out, FINGERPRINT)
    names = assign(first, range(600), most=300)
    first.owner.check()
    second = Partitions(out, FINGERPRINT, overwrite=overwrite)
    second.owner.check()
    assign(second, range(600), most=300)
    read(second)
    for action in (first.owner.check, first.finish):
        with pytest.raises(UserError, match="another process took over"):
            action()
    write_output(out, names[0], pa.table({"id": ["stale"], "path": ["stale"], "text": ["stale"]}))
    if overwrite:  # else the partition belongs to the second run, too, and the first one writes the same
        second.finish()
        assert merged(out) == paths_of(range(600))


@pytest.mark.parametrize("moment", ["before the plan", "after the plan"])
def test_a_run_that_begins_while_another_one_ends_leaves_each_row_once(out, moment, monkeypatch):
    first = Partitions(out, FINGERPRINT)
    read(first, assign(first, range(600), most=300))
    write, others = storage.write_json, []

    def write_json(path, value):
        is_first = path.endswith("merge.json") and not others
        if is_first and moment == "before the plan":
            others.append(Partitions(out, FINGERPRINT))
        write(path, value)
        if is_first and moment == "after the plan":
            others.append(Partitions(out, FINGERPRINT))

    monkeypatch.setattr(storage, "write_json", write_json)
    with pytest.raises(UserError, match="took over"):
        first.finish()
    second = others[-1]
    read(second, assign(second, range(900), most=300))
    read(second)
    second.finish()
    second.close({})
    assert sorted(merged(out)) == paths_of(range(900))
    assert Partitions(out, FINGERPRINT).num_rows == 900


def test_rows_that_are_there_twice_are_never_taken_for_whole(out):
    job(out, range(300))
    storage.write_bytes(f"{out}/transcripts-00001.parquet", storage.read_bytes(f"{out}/transcripts-00000.parquet"))
    assert Partitions(out, FINGERPRINT).num_rows == 300  # the job compares this with the rows in its files


def test_what_a_run_writes_after_another_one_has_finished_is_taken_for_nothing(out):
    first = Partitions(out, FINGERPRINT)
    names = assign(first, range(600), most=300)
    job(out, range(600))
    stale = pa.table({"id": ["stale"], "path": ["stale"], "text": ["stale"]})
    for name in names:
        write_output(out, name, stale)
    third = Partitions(out, FINGERPRINT)
    with pytest.raises(UserError, match="took over"):
        first.owner.check()
    read(third, assign(third, range(900), most=300))
    third.finish()
    assert merged(out) == paths_of(range(900))


def test_a_part_without_output_is_named_and_nothing_is_merged(out):
    partitions = Partitions(out, FINGERPRINT)
    names = assign(partitions, range(900), most=300)
    read(partitions, [names[0], names[2]])
    with pytest.raises(RuntimeError, match=names[1]):
        partitions.finish()
    assert files_in(out) == []
    read(partitions)
    partitions.finish()
    assert merged(out) == paths_of(range(900))


def test_a_finished_job_leaves_files_and_a_summary_and_nothing_else(tmp_path):
    job(str(tmp_path / "out"), range(700))
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["out", "_run.json", "transcripts-00000.parquet"]
    summary = pd.read_json(tmp_path / "out/_run.json", typ="series")
    assert summary.num_images == 700 and summary.fingerprint == FINGERPRINT
    assert pd.read_parquet(tmp_path / "out").path.tolist() == paths_of(range(700))
    assert pq.ParquetFile(tmp_path / "out/transcripts-00000.parquet").num_row_groups == 1


def test_a_second_job_adds_files_with_the_new_rows_and_leaves_those_before_alone(out):
    job(out, range(0, 1000, 2))
    before = {name: storage.read_bytes(f"{out}/{name}") for name in files_in(out)}
    job(out, range(1000))
    assert files_in(out) == ["transcripts-00000.parquet", "transcripts-00001.parquet"]
    assert {name: storage.read_bytes(f"{out}/{name}") for name in before} == before
    assert merged(out) == paths_of(range(0, 1000, 2)) + paths_of(range(1, 1000, 2))
    job(out, range(1000))
    assert len(files_in(out)) == 2


def test_the_rows_of_a_file_that_was_taken_away_are_read_again_and_no_file_is_written_over(tmp_path):
    out = str(tmp_path)
    for end in (300, 600, 900):
        job(out, range(end))
    (tmp_path / "transcripts-00001.parquet").unlink()
    job(out, range(900))
    assert sorted(merged(out)) == paths_of(range(900))
    assert files_in(out) == [f"transcripts-0000{n}.parquet" for n in (0, 2, 3)]


@pytest.mark.parametrize("partitions_per_file", [1, 2.5, 4, 7, 100])
def test_merged_files_hold_the_bytes_that_they_should_or_the_job_is_small(tmp_path, monkeypatch, partitions_per_file):
    partitions = Partitions(str(tmp_path), FINGERPRINT)
    names = assign(partitions, range(3000), most=300)
    read(partitions)
    sizes = [(tmp_path / "_work/outputs" / name).stat().st_size for name in names]
    rows = [len(read_inputs(str(tmp_path), name)) for name in names]
    least = int(partitions_per_file * max(sizes))
    monkeypatch.setattr(partitions_module, "BYTES_PER_FILE", least)
    partitions.finish()
    assert merged(str(tmp_path)) == paths_of(range(3000))
    ends = pd.Series(rows).cumsum().tolist()
    filled, start = [], 0
    for name in files_in(str(tmp_path)):
        end = ends.index(sum(rows[:start]) + len(pd.read_parquet(tmp_path / name))) + 1  # files hold whole partitions
        filled.append(sum(sizes[start:end]))
        start = end
    assert all(least <= size for size in filled[:-1])
    assert all(size < 1.5 * least + max(sizes) for size in filled)
    assert filled[-1] >= least / 2 or len(filled) == 1


class KilledError(BaseException):
    """Simulates a kill: nothing catches it."""


class Killer:
    """Simulates a kill at the n-th write or deletion."""

    def __init__(self, monkeypatch, number: int, *, leaves: str) -> None:
        self.calls, self.number, self.leaves = 0, number, leaves
        for name in ("write_bytes", "delete", "delete_file"):
            monkeypatch.setattr(storage, name, self._wrap(getattr(storage, name), getattr(self, f"half_{name}", None)))

    def _wrap(self, function, half):
        def call(path, *arguments):
            self.calls += 1
            if self.calls == self.number:
                if half and self.leaves != "nothing":
                    half(path, *arguments)
                raise KilledError
            return function(path, *arguments)

        return call

    def half_write_bytes(self, path, data) -> None:
        file = Path(f"{path}{storage.PARTIAL}01234567")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(data)[: len(data) // 2])

    def half_delete(self, folder) -> None:
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        for file in files[: len(files) // 2 + 1] if self.leaves == "the last" else files[len(files) // 2 :]:
            file.unlink()


@pytest.mark.parametrize("leaves", ["nothing", "the first", "the last"])
@pytest.mark.parametrize("kind", ["new", "added to", "written over"])
def test_a_job_killed_at_any_write_and_begun_again_has_each_row_once(tmp_path, monkeypatch, kind, leaves):
    """A killed deletion may leave either half of a folder; a killed write may leave half a file under another name."""
    monkeypatch.setattr(partitions_module, "BYTES_PER_FILE", 2000)  # two partitions per file
    settings = {"overwrite": kind == "written over"}
    for number in count(1):
        out = str(tmp_path / f"{number}")
        if kind != "new":
            job(out, range(0, 900, 3))
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, number, leaves=leaves)
            try:
                job(out, range(900), **settings)
                break
            except KilledError:
                pass
        job(out, range(900), **settings)
        assert sorted(merged(out)) == paths_of(range(900)), f"killed at {number}"
        assert names_in(Path(out)) == sorted(["_run.json", *files_in(out)])
    assert killer.calls == number - 1 > 12
    assert len(files_in(out)) > 1


@pytest.mark.parametrize("second", [1, 2, 3, 5, 8])
def test_a_job_killed_twice_has_each_row_once(tmp_path, monkeypatch, second):
    monkeypatch.setattr(partitions_module, "BYTES_PER_FILE", 2000)
    for first in range(2, 16):
        out = str(tmp_path / f"{first}")
        for number in (first, second):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
                Killer(patch, number, leaves="the first")
                job(out, range(900))
                raise KilledError  # the job finished before that write
        job(out, range(900))
        assert merged(out) == paths_of(range(900)), f"killed at {first}"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_best": 3}, "num_best = 1, not 3"),
        ({"inputs": {**FINGERPRINT["inputs"], "images": "other"}}, "inputs.images = in, not other"),
        ({"lexicon": "abc"}, "lexicon = None, not abc"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_job_that_was_begun_otherwise_is_refused_by_the_name_of_what_differs(out, changed, named, is_finished):
    if is_finished:
        job(out, range(300))
    else:
        assign(Partitions(out, FINGERPRINT), range(300))
    before = storage.list_files(out)
    with pytest.raises(UserError, match=named):
        Partitions(out, {**FINGERPRINT, **changed})
    assert storage.list_files(out) == before
    partitions = Partitions(out, {**FINGERPRINT, **changed}, overwrite=True)
    assert partitions.num_rows == 0
    assert storage.list_files(out) == ["_work/.owner", "_work/state.json"]


def test_a_fingerprint_of_tuples_is_the_one_that_json_gives_back(out):
    Partitions(out, {"canvas": (16, 64)})
    Partitions(out, {"canvas": (16, 64)})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "deep/thesis.tex"])
def test_a_folder_with_other_things_is_refused_and_left_alone(out, overwrite, name):
    storage.write_bytes(f"{out}/{name}", b"years of work")
    with pytest.raises(UserError, match="contains other files"):
        Partitions(out, FINGERPRINT, overwrite=overwrite)
    assert storage.list_files(out) == [name]


def test_overwriting_deletes_transcripts_and_nothing_else(out):
    job(out, range(300))
    for name in ("corrections/mine.csv", "notes.parquet", "transcripts-old.parquet"):
        storage.write_bytes(f"{out}/{name}", b"years of work")
    Partitions(out, FINGERPRINT, overwrite=True)
    left = ["_work/.owner", "_work/state.json", "corrections/mine.csv", "notes.parquet", "transcripts-old.parquet"]
    assert storage.list_files(out) == left


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        Partitions(str(tmp_path / "out"), FINGERPRINT, overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_job_of_version_0_1_is_resumed(tmp_path, is_finished):
    """Version 0.1 called the fingerprint `facts`, and the lexicon `names`."""
    out, fingerprint = str(tmp_path), {**FINGERPRINT, "lexicon": "abc"}
    partitions = Partitions(out, fingerprint)
    names = assign(partitions, range(600), most=300)
    read(partitions, names[:1])
    if is_finished:
        read(partitions)
        partitions.finish()
        partitions.close({})
    path = f"{out}/{'_run.json' if is_finished else '_work/state.json'}"
    written = storage.read_json(path)
    old = {"names" if name == "lexicon" else name: value for name, value in written.pop("fingerprint").items()}
    storage.write_json(path, {**written, "facts": old})
    with pytest.raises(UserError, match="lexicon = abc, not None"):
        Partitions(out, {**fingerprint, "lexicon": None})
    again = Partitions(out, fingerprint)
    assert (again.num_rows, len(again.pending())) == (600, 0 if is_finished else len(names) - 1)


def test_transcripts_of_a_version_before_0_1_are_refused_with_a_sentence(tmp_path):
    (tmp_path / "_run.json").write_text('{"num_images": 1}')
    with pytest.raises(UserError, match="--overwrite"):
        Partitions(str(tmp_path), FINGERPRINT)


def test_a_key_that_two_rows_have_is_found_even_in_tables_far_apart(tmp_path, monkeypatch):
    lines = [f"{n}.png,k{n}" for n in range(9000)]
    file = tmp_path / "manifest.csv"

    def repeated(id_column):
        return repeated_key(Manifest(str(file), str(tmp_path), "path", id_column))

    file.write_text("\n".join(["path,key", *lines]))
    assert repeated(None) is None and repeated("key") is None
    file.write_text("\n".join(["path,key", *lines, "9001.png,k17"]))
    assert repeated(None) is None
    assert repeated("key") == "k17"
    file.write_text("\n".join(["path,key", *lines, "23.png,k9001"]))
    assert repeated(None) == "23.png"
    assert repeated("key") is None


def test_no_input_has_no_repeated_key(tmp_path):
    assert repeated_key(ImageFiles(str(tmp_path))) is None


def test_outputs_of_an_older_version_get_the_columns_that_they_lack(tmp_path):
    out, schema = str(tmp_path), pa.schema({name: pa.string() for name in ("id", "path", "text", "warning")})
    partitions = Partitions(out, FINGERPRINT, schema=schema)
    older, newer = assign(partitions, range(600), most=300)[:2]
    read(partitions, [older])
    paths = read_inputs(out, newer)["path"]
    rest = [pa.nulls(len(paths), pa.string()), paths, paths, pa.array(["page"] * len(paths))]
    write_output(out, newer, pa.table(rest, schema=schema))
    read(partitions)
    partitions.finish()
    table = pa.concat_tables([pq.read_table(tmp_path / name) for name in files_in(out)])
    assert table.schema.names == schema.names and len(table) == 600
    assert table["warning"].null_count == 600 - len(paths)
