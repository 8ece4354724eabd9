"""Inputs of a batch job, checked against os.walk, glob and pandas."""

import glob
import os
from itertools import count
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.reader import Line
from hwr_ray.transcription import inputs as inputs_module
from hwr_ray.transcription.inputs import INPUTS, InputSettings, keys_of, open_inputs
from hwr_ray.transcription.partitions import Partitions, read_inputs
from hwr_ray.transcription.transcripts import fetch_partitions

FILES = ["b.png", "a.png", "a b%20#1.png", "deep/a.png", "deep/er/z é.jpg", "deep/er/.hidden.png", ".hidden", "c.txt"]
FILES += ["deep/er/est/q.png", "[x].png", "zeta/1.png", "deep.png/inner.png"]
NUMBERS = count()


@pytest.fixture
def scans(tmp_path):
    """A folder with files at several depths; each file contains its own path."""
    for name in FILES:
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "scans" / "nothing").mkdir()
    return tmp_path / "scans"


@pytest.fixture(params=[2, 8192])
def rows_per_table(request, monkeypatch):
    """Rows per table, on which the listing must not depend."""
    monkeypatch.setattr(inputs_module, "ROWS_PER_TABLE", request.param)


def listed(images, **settings) -> pa.Table:
    """Returns all rows of the inputs."""
    tables = list(open_inputs(InputSettings(images=str(images), **settings)).tables())
    assert all(table.schema == INPUTS for table in tables)
    return pa.concat_tables(tables) if tables else INPUTS.empty_table()


def fetched(images, **settings) -> dict[str, bytes | str]:
    """Returns the bytes of each row, or the reason why there are none, by key."""
    inputs = open_inputs(InputSettings(images=str(images), **settings))
    table = pa.concat_tables(inputs.tables())
    files = inputs.fetch(table)
    return {k: f.reason if isinstance(f, Line) else f for k, f in zip(keys_of(table), files, strict=True)}


def walked(folder) -> list[str]:
    """Returns the sorted relative paths of the files in a folder that are not hidden."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    return sorted(str(path.relative_to(folder)) for path in paths)


def test_a_folder_is_all_its_files_at_any_depth_but_those_with_a_dot(scans, rows_per_table):
    for images in (scans, f"{scans}/", f"file://{scans}"):
        table = listed(images)
        assert sorted(table["path"].to_pylist()) == walked(scans)
        assert table["id"].null_count == table["source"].null_count == table["row"].null_count == len(table)
    assert fetched(scans) == {path: (scans / path).read_bytes() for path in walked(scans)}


def test_a_folder_in_an_object_store_lists_as_the_same_folder_on_disk(scans, rows_per_table):
    root = f"memory://inputs-{next(NUMBERS)}"
    for path in walked(scans):
        storage.write_bytes(f"{root}/{path}", path.encode())
    assert fetched(root) == {path: path.encode() for path in walked(scans)}
    assert sorted(listed(f"{root}/deep/**/*.png")["path"].to_pylist()) == ["a.png", "er/est/q.png"]


def test_a_listing_is_always_in_the_same_order(scans):
    assert listed(scans).equals(listed(scans))
    reversed_names = scans.parent / "copy"
    for name in reversed(FILES):
        (reversed_names / name).parent.mkdir(parents=True, exist_ok=True)
        (reversed_names / name).touch()
    assert listed(reversed_names)["path"].to_pylist() == listed(scans)["path"].to_pylist()


@pytest.mark.parametrize(
    "pattern",
    [
        "*.png",
        "**/*.png",
        "deep/**/*.png",
        "deep/*/*.jpg",
        "?.png",
        "[ab].png",
        "**/a*",
        "de*/er/*",
        "z*/1.png",
        "*.gif",
    ],
)
def test_a_glob_lists_what_pythons_own_finds(scans, pattern, rows_per_table):
    found = [path for path in glob.glob(f"{scans}/{pattern}", recursive=True) if Path(path).is_file()]  # noqa: PTH207
    table = listed(f"{scans}/{pattern}")
    folder = open_inputs(InputSettings(images=f"{scans}/{pattern}")).folder
    assert sorted(f"{folder}/{path}" for path in table["path"].to_pylist()) == sorted(found)
    if found:
        truth = {os.path.relpath(path, folder): os.path.relpath(path, scans).encode() for path in found}
        assert fetched(f"{scans}/{pattern}") == truth


def test_a_glob_relative_to_the_working_folder_finds_the_same(scans, monkeypatch):
    monkeypatch.chdir(scans.parent)
    assert listed("scans/**/*.png").equals(listed(f"{scans}/**/*.png"))


def test_one_file_is_one_row_even_where_its_name_looks_like_a_glob(scans):
    assert fetched(scans / "deep/er/z é.jpg") == {"z é.jpg": "deep/er/z é.jpg".encode()}
    assert fetched(scans / "[x].png") == {"[x].png": b"[x].png"}


def test_a_file_that_went_away_is_a_row_with_its_reason(scans):
    inputs = open_inputs(InputSettings(images=str(scans)))
    table = pa.concat_tables(inputs.tables())
    (scans / "a.png").unlink()
    files = dict(zip(table["path"].to_pylist(), inputs.fetch(table), strict=True))
    assert files.pop("a.png").reason == "missing_image"
    assert all(files[path] == (scans / path).read_bytes() for path in files)


@pytest.fixture(params=["csv", "parquet"])
def manifest(request, scans):
    """A function that writes a data frame as a manifest into the folder of scans or another one."""

    def write(frame: pd.DataFrame, folder=scans) -> str:
        path = folder / f"manifest.{request.param}"
        frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path, row_group_size=2)
        return str(path)

    return write


def test_a_manifest_lists_its_rows_in_their_order_and_no_other_file(scans, manifest, rows_per_table):
    frame = pd.DataFrame({"age": range(4), "file": ["b.png", "deep/a.png", "gone.png", "a b%20#1.png"], "key": 7})
    path = manifest(frame)
    assert listed(path, path_column="file")["path"].to_pylist() == frame.file.tolist()
    truth = {f: (scans / f).read_bytes() if (scans / f).exists() else "missing_image" for f in frame.file}
    assert fetched(path, path_column="file") == truth


def test_a_manifest_elsewhere_reads_below_its_root(scans, manifest, tmp_path):
    path = manifest(pd.DataFrame({"path": ["a.png", f"{scans}/deep/a.png"]}), folder=tmp_path)
    for root in (str(scans), f"{scans}/"):
        assert fetched(path, root=root) == {"a.png": b"a.png", f"{scans}/deep/a.png": b"deep/a.png"}
    assert fetched(path) == {"a.png": "missing_image", f"{scans}/deep/a.png": b"deep/a.png"}


def test_paths_that_leave_the_root_are_named_and_not_read(scans, manifest, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "scans-2").mkdir()
    (tmp_path / "scans-2" / "secret").write_text("s3cret")
    unsafe = ["../secret", "deep/../../secret", f"{tmp_path}/secret", f"file://{tmp_path}/secret", "/etc/passwd"]
    unsafe += [f"{tmp_path}/scans-2/secret", "..\\secret", f"{scans}/../secret"]
    path = manifest(pd.DataFrame({"path": [*unsafe, "a.png"]}))
    opened = []
    read = inputs_module.read_files
    monkeypatch.setattr(inputs_module, "read_files", lambda root, names: opened.extend(names) or read(root, names))
    assert fetched(path) == {**dict.fromkeys(unsafe, "unsafe_path"), "a.png": b"a.png"}
    assert opened == ["a.png"]


def test_an_id_column_names_the_rows_and_numbers_become_text(manifest, rows_per_table):
    frame = pd.DataFrame({"path": ["a.png", "a.png", "b.png"], "key": [30, 20, 10]})
    table = listed(manifest(frame), id_column="key")
    assert table["id"].to_pylist() == ["30", "20", "10"]
    assert table["path"].to_pylist() == frame.path.tolist()
    assert fetched(manifest(frame), id_column="key") == {"30": b"a.png", "20": b"a.png", "10": b"b.png"}


def test_a_manifest_and_its_images_may_lie_in_an_object_store():
    root = f"memory://inputs-{next(NUMBERS)}"
    for name in ("a", "b"):  # two files: all readers of one file in fsspec's memory share its position
        storage.write_bytes(f"{root}/in/{name}.png", name.encode())
    storage.write_bytes(f"{root}/lists/m.csv", f"path\na.png\n{root}/in/b.png\n../lists/m.csv\n".encode())
    assert fetched(f"{root}/lists/m.csv", root=f"{root}/in") == {
        "a.png": b"a",
        f"{root}/in/b.png": b"b",
        "../lists/m.csv": "unsafe_path",
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("file,age\na.png,1\n", "has no column 'path': its columns are file, age"),
        ("path,age,path\na.png,1,b.png\n", "has two columns 'path'"),
        ("", "is empty"),
        ("path,age\na.png,1\nb.png,2,3\n", "line 3: 3 fields, not 2"),
        ("path,age\na.png,1\nb.png\n", "line 3: 1 fields, not 2"),
        ("path,age\na.png,1\nb.png,2\n,3\n", "row 3 has no path"),
        ("path,age\na.png,\n", "row 1 has no age"),
        ('path,age\na.png,1\nb.png,"2\n', "line 3: a quote opens and is never closed"),
        (
            "path,age\na.png,É\n".encode("latin-1"),
            "is not UTF-8: byte 0xc9 in line 2, which looks like cp1252: save it as UTF-8",
        ),
    ],
)
def test_a_csv_manifest_that_cannot_be_read_whole_is_refused_with_its_row(scans, rows_per_table, content, sentence):
    path = scans / "m.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"m\.csv.*{sentence}"):
        listed(path, id_column="age")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_text("path\na.png\n"), "can't be read as Parquet"),
        (lambda path: path.touch(), "can't be read as Parquet"),
        (lambda path: pd.DataFrame({"file": ["a"], "n": [1]}).to_parquet(path), "has no column path: it has file, n"),
        (lambda path: pd.DataFrame({"path": ["a", None, "c"]}).to_parquet(path), "row 2 has no path"),
    ],
    ids=["text", "empty", "column", "null"],
)
def test_a_parquet_manifest_that_cannot_be_read_whole_is_refused(scans, rows_per_table, write, sentence):
    write(scans / "m.parquet")
    with pytest.raises(UserError, match=rf"m\.parquet.*{sentence}"):
        listed(scans / "m.parquet")


IMAGES = [b"one", None, b"", b"four", b"five", b"six", b"seven"]


@pytest.fixture(params=["bytes", "struct"])
def tables(request, tmp_path):
    """Two Parquet files, one in a subfolder, with images as bytes or as the structs of Hugging Face."""
    images = IMAGES
    if request.param == "struct":
        images = [None if image is None else {"bytes": image, "path": f"{n}.png"} for n, image in enumerate(IMAGES)]
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name, of in (("a.parquet", slice(5)), ("deep/b.parquet", slice(5, 7))):
        table = pa.table({"key": [f"k{n}" for n in range(7)][of], "n": list(range(7))[of], "picture": images[of]})
        pq.write_table(table, tmp_path / "data" / name, row_group_size=2)
    (tmp_path / "data" / "readme.txt").write_text("no table")
    return tmp_path / "data"


def test_images_in_parquet_files_are_named_by_file_and_row(tables, rows_per_table):
    names = [*(f"a.parquet#{n}" for n in range(5)), "deep/b.parquet#0", "deep/b.parquet#1"]
    truth = dict(zip(names, [image or "missing_image" for image in IMAGES], strict=True))
    assert fetched(tables, image_column="picture") == truth
    assert listed(tables, image_column="picture")["path"].null_count == 7
    one = fetched(tables / "deep/b.parquet", image_column="picture")
    assert one == {"b.parquet#0": b"six", "b.parquet#1": b"seven"}


@pytest.mark.parametrize(("column", "keys"), [("key", [f"k{n}" for n in range(7)]), ("n", [str(n) for n in range(7)])])
def test_images_in_parquet_files_are_named_by_their_id_column(tables, rows_per_table, column, keys):
    found = fetched(tables, image_column="picture", id_column=column)
    assert found == dict(zip(keys, [image or "missing_image" for image in IMAGES], strict=True))


@pytest.mark.parametrize("at_once", [1, 2, 64])
@pytest.mark.parametrize("chosen", [[0], [4], [1, 3], [0, 2, 5, 6], [5], [2, 3, 4, 5]])
def test_any_rows_of_parquet_files_are_fetched_in_their_order(tables, chosen, at_once, monkeypatch):
    monkeypatch.setattr(inputs_module, "IMAGES_AT_ONCE", at_once)
    inputs = open_inputs(InputSettings(images=str(tables), image_column="picture"))
    table = pa.concat_tables(inputs.tables()).take(chosen)
    found = [None if isinstance(file, Line) else file for file in inputs.fetch(table)]
    assert found == [IMAGES[n] or None for n in chosen]


def test_a_row_group_without_a_wanted_image_is_not_read(tables, monkeypatch):
    inputs = open_inputs(InputSettings(images=str(tables / "a.parquet"), image_column="picture"))
    rows = pa.concat_tables(inputs.tables()).slice(2, 2)
    read, groups = pq.ParquetFile.iter_batches, []

    def iter_batches(file, *sizes, row_groups, columns):
        for batch in read(file, *sizes, row_groups=row_groups, columns=columns):
            groups.extend(row_groups)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    assert len(list(inputs.fetch(rows))) == 2
    assert groups == [1]


def test_one_pass_over_a_row_group_fetches_all_partitions_that_begin_in_it(tables, tmp_path, monkeypatch):
    """The last of them ends in the next row group."""
    out, inputs = str(tmp_path / "out"), open_inputs(InputSettings(images=str(tables), image_column="picture"))
    pq.write_table(pa.table({"picture": [b"%d" % n for n in range(7000)]}), tables / "a.parquet", row_group_size=3500)
    names = list(Partitions(out, {}).assign(inputs.tables(), most=1000))
    passes = {}
    for name in names:
        passes.setdefault(inputs.pass_of(read_inputs(out, name)), []).append(name)
    assert list(passes) == ["a.parquet#0", "a.parquet#1"]
    opened, read = [], pq.ParquetFile.iter_batches

    def iter_batches(file, *sizes, row_groups, columns):
        opened.extend(row_groups)
        return read(file, *sizes, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    fetched = []
    for one in passes.values():
        for row in fetch_partitions(pa.table({"partition": one}), out=out, inputs=inputs):
            fetched += row["files"].to_pylist()[0]
    assert fetched == [*(b"%d" % n for n in range(7000)), b"six", b"seven"]
    assert opened == [0, 1, 1, 0]  # of a.parquet both, then the second again, and the one of deep/b.parquet


def test_parquet_files_that_lack_images_or_keys_are_refused(tables, tmp_path, rows_per_table):
    with pytest.raises(UserError, match=r"a\.parquet has no column photo: it has key, n, picture"):
        listed(tables, image_column="photo")
    with pytest.raises(UserError, match=r"a\.parquet has no column id"):
        listed(tables, image_column="picture", id_column="id")
    with pytest.raises(UserError, match=r"no Parquet file .*nowhere"):
        listed(tmp_path / "nowhere", image_column="picture")
    with pytest.raises(UserError, match=r"a\.parquet: n holds int64, not bytes"):
        listed(tables, image_column="n")
    (tables / "c.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"c\.parquet can't be read as Parquet"):
        listed(tables, image_column="picture")
    pd.DataFrame({"picture": [b"x", b"y", b"z"], "key": ["a", "b", None]}).to_parquet(tables / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: row 2 has no key"):
        listed(tables, image_column="picture", id_column="key")


NAMES = ("_run.json", "transcripts-00000.parquet", "_work/inputs/a.parquet")


@pytest.mark.parametrize(
    ("images", "column", "out", "expected"),
    [
        ("scans", None, "scans/out", True),
        ("scans", None, "scans", True),
        ("scans", None, "link/out", True),
        ("link", None, "scans/out", True),
        ("file://CWD/scans", None, "scans/out", True),
        ("scans", None, "scans-2", False),
        ("scans", None, ".", False),
        ("scans/**", None, "scans/out", True),
        ("scans/*/*.json", None, "scans/out", True),
        ("scans/*.png", None, "scans/out", False),
        ("scans/b.png", None, "scans/out", False),
        ("scans", "image", "scans/out", True),
        ("scans/a.parquet", "image", "scans/out", False),
        ("scans/m.csv", None, "scans/out", False),
    ],
)
def test_a_job_that_would_read_what_it_writes_is_noticed(scans, monkeypatch, images, column, out, expected):
    monkeypatch.chdir(scans.parent)
    (scans.parent / "link").symlink_to("scans")
    for name in ("m.csv", "a.parquet"):
        (scans / name).touch()
    inputs = open_inputs(InputSettings(images=images.replace("CWD", str(scans.parent)), image_column=column))
    assert inputs.holds(storage.absolute(out), NAMES) == expected


def test_a_manifest_may_lie_in_the_root_of_a_disk(scans, manifest, monkeypatch):
    path = manifest(pd.DataFrame({"path": [f"{scans}/a.png", str(scans / "b.png")[1:]]}))
    monkeypatch.chdir(scans)
    assert list(fetched(path, root="/").values()) == [b"a.png", b"b.png"]


def test_the_same_inputs_are_the_same_for_every_working_folder(scans, monkeypatch):
    (scans / "m.csv").touch()
    monkeypatch.chdir(scans)
    absolute = InputSettings(images=str(scans / "m.csv"), root=str(scans / "deep"))
    assert InputSettings(images="m.csv", root="deep").absolute() == absolute.absolute() == absolute
    assert InputSettings(images="m.csv").absolute() == InputSettings(images="m.csv", root=".").absolute()


def test_inputs_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no image folder .*/nowhere"):
        listed(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest .*/nowhere\.csv"):
        listed(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="no image folder memory://nowhere"):
        listed("memory://nowhere/at-all")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"root": "in"}, "--root requires a manifest"), ({"id_column": "key"}, "--id-column requires a manifest")],
)
def test_options_of_another_kind_of_input_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        InputSettings(images="scans", **settings)
