"""Files by path or URI: local folders, s3://, gs:// and whatever else pyarrow or fsspec reads."""

import errno
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import fsspec
import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from hwr_ray.errors import UserError

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
