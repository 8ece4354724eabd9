"""Files by path or URI: local folders, s3://, gs:// and whatever else pyarrow or fsspec reads."""

import errno
import json
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import fsspec
import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from hwr_ray.errors import UserError

OWNED = ".owned"
"""In a staging folder for as long as its own run goes on."""
PARTIAL = ".partial-"
"""Between the name of a file or folder and eight hexadecimal digits, for as long as it is not whole."""


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path on it (absolute where it is local).

    The path of a URI is read as it stands, without escapes or a query: files are named `a b#1? 50%.png`, and a name
    that comes from a CSV must not choose another server. Endpoints and keys come from the environment.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    scheme, _, rest = path.partition("://")
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{quote(rest, safe='/@:')}")  # Arrow decodes it again
    except pa.ArrowInvalid:  # not one of Arrow's own schemes: fsspec knows more
        return _locate_with_fsspec(path)


def _locate_with_fsspec(path: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"no file system is known for {path}: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), inner


def absolute(path: str) -> str:
    """The path as Ray wants it: URIs as they are, local paths absolute."""
    return path if "://" in path else locate(path)[1]


def is_absolute(path: str) -> bool:
    """Whether it names the same place in every working folder."""
    return "://" in path or os.path.isabs(os.path.expanduser(path))  # noqa: PTH111, PTH117


def join(folder: str, *names: str) -> str:
    return posixpath.join(folder, *names)


def is_file(path: str) -> bool:
    filesystem, inner = locate(path)
    return filesystem.get_file_info(inner).is_file


def is_folder(path: str) -> bool:
    filesystem, inner = locate(path)
    return filesystem.get_file_info(inner).type == fs.FileType.Directory


def list_files(folder: str) -> list[str]:
    """Paths, from the folder on, of all files below it at any depth, sorted. A folder that is not there holds none."""
    return sorted(walk_files(folder))


def walk_files(folder: str) -> Iterator[str]:
    """The same paths one by one, as the folders are listed: always in the same order.

    Local links are followed, but not into a folder that holds them; what is no file (a pipe, a device) is left out.
    Bytes of a local name that are not UTF-8 are shown as `\\xff`. Raises UserError where a folder can't be listed.
    """
    filesystem, inner = locate(folder)
    if isinstance(filesystem, fs.LocalFileSystem):  # not Arrow's listing: it fails on names that are not UTF-8
        for path in _walk_local(inner):
            yield os.fsencode(path).decode("utf-8", "backslashreplace")[len(inner.rstrip("/")) + 1 :]
        return
    waiting = [inner]
    while waiting:
        infos = filesystem.get_file_info(fs.FileSelector(waiting.pop(), allow_not_found=True))
        infos = sorted(infos, key=lambda info: info.path)
        yield from (info.path.removeprefix(inner.rstrip("/") + "/") for info in infos if info.is_file)
        waiting += [info.path for info in reversed(infos) if info.type == fs.FileType.Directory]


def _walk_local(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Paths of the files of a folder, then of those below it; `above` holds device and inode of the folders over it."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in above:
            return
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        folders = {entry.name for entry in entries if entry.is_dir()}
        # A link to nothing is a file that is missing, and told as such.
        files = [e.path for e in entries if e.is_file() or (e.is_symlink() and not os.path.exists(e.path))]  # noqa: PTH110
    except FileNotFoundError:  # there is none, or it was deleted just now
        return
    except OSError as error:
        raise UserError(f"{folder} can't be listed: {error.strerror}") from error
    yield from files
    for name in sorted(folders):
        yield from _walk_local(os.path.join(folder, name), (*above, (status.st_dev, status.st_ino)))  # noqa: PTH118


def path_within(path: str, folder: str) -> str | None:
    """The path from a folder on, "." for the folder itself; None where it does not lie there. Links are followed."""
    (filesystem, inner), (other, outer) = locate(path), locate(folder)
    if isinstance(filesystem, fs.LocalFileSystem):
        inner, outer = os.path.realpath(inner), os.path.realpath(outer)
    inside = PurePosixPath(inner)
    return str(inside.relative_to(outer)) if filesystem == other and inside.is_relative_to(outer) else None


def list_sizes(folder: str) -> dict[str, int]:
    """Bytes of the files that lie in a folder itself, by name, sorted. A folder that is not there holds none."""
    filesystem, inner = locate(folder)
    infos = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return {info.base_name: info.size for info in sorted(infos, key=lambda info: info.path) if info.is_file}


def split_glob(pattern: str) -> tuple[str, re.Pattern[str]]:
    """The folder before a pattern's first wildcard, and what paths from there on must match.

    `*` and `?` stand for characters of one name, `[...]` for one of them, `**` for folders at any depth.
    """
    parts = pattern.split("/")
    wild = next(i for i, part in enumerate(parts) if has_wildcard(part))
    return "/".join(parts[:wild]) or ("/" if pattern.startswith("/") else "."), re.compile(
        glob_translate("/".join(parts[wild:]))
    )


def has_wildcard(path: str) -> bool:
    return any(character in path for character in "*?[")


def read_bytes(path: str) -> bytes:
    """The file's bytes. Raises FileNotFoundError, or another OSError where it can't be read."""
    filesystem, inner = locate(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()


def write_bytes(path: str, data: bytes | pa.Buffer) -> None:
    """Writes the whole file or leaves the one before: a reader never meets a half-written one.

    Raises UserError where no space is left.
    """
    filesystem, inner = locate(path)
    # Object stores put at once. Two processes may write the same file: each has a partial one of its own.
    partial = f"{inner}{PARTIAL}{uuid4().hex[:8]}" if isinstance(filesystem, fs.LocalFileSystem) else inner
    try:
        filesystem.create_dir(posixpath.dirname(inner), recursive=True)
        with filesystem.open_output_stream(partial) as stream:
            stream.write(data)
        if partial != inner:
            filesystem.move(partial, inner)
    except BaseException as error:
        if partial != inner and filesystem.get_file_info(partial).is_file:
            filesystem.delete_file(partial)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space is left to write {path}") from error
        raise


def read_json(path: str) -> Any:
    """The file's JSON. Raises UserError where it is no JSON, FileNotFoundError where it is not there."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def write_json(path: str, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def staged(out: str, *, mark: str, overwrite: bool) -> Iterator[str]:
    """Yields a folder to write into, which takes the place of `out` only if the block ends well.

    `mark` names the file that every folder of this kind holds and that tells that it is whole. Raises UserError where
    `out` holds something that has no such file, or that may not be overwritten, and where another run took over. What
    an earlier run that was killed left behind is deleted.
    """
    out = out.rstrip("/")
    _check_free(out, mark, overwrite)
    for stale in _siblings(out):
        delete(stale)
    partial = f"{out}{PARTIAL}{uuid4().hex[:8]}"
    filesystem, inner = locate(partial)
    filesystem.create_dir(inner, recursive=True)
    write_bytes(join(partial, OWNED), b"")
    try:
        yield partial
        if not is_file(join(partial, OWNED)):
            raise UserError(f"another run began to write {out} and took over")
        _check_free(out, mark, overwrite)
        filesystem.delete_file(locate(join(partial, OWNED))[1])
        if list_files(out):
            _move(out, f"{out}.replaced", mark)
        _move(partial, out, mark)
    except BaseException:
        delete(partial)
        raise
    delete(f"{out}.replaced")


def _check_free(out: str, mark: str, overwrite: bool) -> None:
    if is_file(out):
        raise UserError(f"{out} is a file: name another --out")
    recover(out, mark)
    if list_files(out) and not is_file(join(out, mark)):
        raise UserError(f"{out} holds something else (it has no {mark}): name another --out")
    if list_files(out) and not overwrite:
        raise UserError(f"{out} exists already: name another --out, or pass --overwrite to replace it")


def _siblings(out: str) -> list[str]:
    """Staging folders of `out`."""
    filesystem, inner = locate(out)
    selector = fs.FileSelector(posixpath.dirname(inner), allow_not_found=True)
    names = [info.base_name for info in filesystem.get_file_info(selector) if not info.is_file]
    start = f"{posixpath.basename(inner)}{PARTIAL}"
    return [join(posixpath.dirname(out), name) for name in names if name.startswith(start)]


def recover(out: str, mark: str) -> None:
    """Puts back the folder that a staged one was about to replace when the process was killed on the way: it has the
    mark, and what stands in its place has none."""
    if is_file(join(f"{out}.replaced", mark)) and not is_file(join(out, mark)):
        _move(f"{out}.replaced", out, mark)


def delete(folder: str) -> None:
    """Deletes a folder with all that is in it, if it is there."""
    if is_folder(folder):
        filesystem, inner = locate(folder)
        filesystem.delete_dir(inner)


def delete_file(path: str) -> None:
    """Deletes a file, if it is there."""
    filesystem, inner = locate(path)
    if filesystem.get_file_info(inner).is_file:
        filesystem.delete_file(inner)


def _move(source: str, destination: str, mark: str) -> None:
    filesystem, old = locate(source)
    _, new = locate(destination)
    delete(destination)
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.move(old, new)
        return
    # Object stores have no folders to rename: file by file, the mark first to leave and last to arrive.
    names = sorted(list_files(source), key=lambda name: name == mark)
    for name in names:
        filesystem.create_dir(posixpath.dirname(join(new, name)), recursive=True)
        filesystem.copy_file(join(old, name), join(new, name))
    for name in reversed(names):
        filesystem.delete_file(join(old, name))
    delete(source)
