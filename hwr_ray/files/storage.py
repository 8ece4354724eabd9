"""Files by path or URI: local folders, s3://, gs:// and all other schemes that pyarrow or fsspec supports."""

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
"""Part of the name of an incomplete file or folder, between its final name and eight hexadecimal digits."""


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a path or URI, and the path on it (absolute if local).

    The path of a URI is taken literally, without escapes or a query: files may have names like `a b#1? 50%.png`, and a
    name from a CSV must not select another server. Endpoints and keys come from the environment.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    scheme, _, rest = path.partition("://")
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{quote(rest, safe='/@:')}")  # Arrow decodes it again
    except pa.ArrowInvalid:  # not a scheme of Arrow: fsspec supports more
        return _locate_with_fsspec(path)


def _locate_with_fsspec(path: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"no file system supports {path}: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), inner


def absolute(path: str) -> str:
    """Returns the path as Ray requires it: a URI unchanged, a local path absolute."""
    return path if "://" in path else locate(path)[1]


def is_absolute(path: str) -> bool:
    """Returns whether the path is independent of the working folder."""
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
    """Returns the sorted paths, relative to the folder, of all files below it; none if the folder does not exist."""
    return sorted(walk_files(folder))


def walk_files(folder: str) -> Iterator[str]:
    """Yields the same paths as `list_files` one by one while it lists the folders, in a deterministic order.

    Follows local links, except into a folder that contains the link. Skips pipes and devices. Bytes of a local name
    that are not UTF-8 appear as `\\xff`. Raises UserError if a folder can't be listed.
    """
    filesystem, inner = locate(folder)
    if isinstance(filesystem, fs.LocalFileSystem):  # Arrow's listing fails on names that are not UTF-8
        for path in _walk_local(inner):
            yield os.fsencode(path).decode("utf-8", "backslashreplace")[len(inner.rstrip("/")) + 1 :]
        return
    pending = [inner]
    while pending:
        infos = filesystem.get_file_info(fs.FileSelector(pending.pop(), allow_not_found=True))
        infos = sorted(infos, key=lambda info: info.path)
        yield from (info.path.removeprefix(inner.rstrip("/") + "/") for info in infos if info.is_file)
        pending += [info.path for info in reversed(infos) if info.type == fs.FileType.Directory]


def _walk_local(folder: str, ancestors: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yields the files in a folder, then those below it. `ancestors` has (device, inode) of the folders above it."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in ancestors:
            return
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        folders = {entry.name for entry in entries if entry.is_dir()}
        # A dangling link counts as a file, which is then reported as missing.
        files = [e.path for e in entries if e.is_file() or (e.is_symlink() and not os.path.exists(e.path))]  # noqa: PTH110
    except FileNotFoundError:  # it does not exist or was just deleted
        return
    except OSError as error:
        raise UserError(f"{folder} can't be listed: {error.strerror}") from error
    yield from files
    for name in sorted(folders):
        yield from _walk_local(os.path.join(folder, name), (*ancestors, (status.st_dev, status.st_ino)))  # noqa: PTH118


def path_within(path: str, folder: str) -> str | None:
    """Returns the path relative to a folder, "." for the folder itself, None if it is outside. Follows links."""
    (filesystem, inner), (other, outer) = locate(path), locate(folder)
    if isinstance(filesystem, fs.LocalFileSystem):
        inner, outer = os.path.realpath(inner), os.path.realpath(outer)
    inside = PurePosixPath(inner)
    return str(inside.relative_to(outer)) if filesystem == other and inside.is_relative_to(outer) else None


def list_sizes(folder: str) -> dict[str, int]:
    """Returns the bytes of each file directly in a folder, by sorted name; empty if the folder does not exist."""
    filesystem, inner = locate(folder)
    infos = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return {info.base_name: info.size for info in sorted(infos, key=lambda info: info.path) if info.is_file}


def split_glob(pattern: str) -> tuple[str, re.Pattern[str]]:
    """Returns the folder before a pattern's first wildcard, and the regex that paths relative to it must match.

    `*` and `?` match characters within a name, `[...]` matches one of several, `**` matches folders at any depth.
    """
    parts = pattern.split("/")
    wild = next(i for i, part in enumerate(parts) if has_wildcard(part))
    return "/".join(parts[:wild]) or ("/" if pattern.startswith("/") else "."), re.compile(
        glob_translate("/".join(parts[wild:]))
    )


def has_wildcard(path: str) -> bool:
    return any(character in path for character in "*?[")


def read_bytes(path: str) -> bytes:
    """Returns the bytes of a file. Raises FileNotFoundError, or another OSError if the file can't be read."""
    filesystem, inner = locate(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()


def write_bytes(path: str, data: bytes | pa.Buffer) -> None:
    """Writes a file atomically: a reader sees the previous file or the complete new one.

    Raises UserError if no space is left.
    """
    filesystem, inner = locate(path)
    # Object stores write atomically. Two processes may write the same file, so each has its own partial file.
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
    """Returns the JSON value of a file. Raises UserError if it is not JSON, FileNotFoundError if it does not exist."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def write_json(path: str, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def delete(folder: str) -> None:
    """Deletes a folder and its content, if it exists."""
    if is_folder(folder):
        filesystem, inner = locate(folder)
        filesystem.delete_dir(inner)


def delete_file(path: str) -> None:
    """Deletes a file, if it exists."""
    filesystem, inner = locate(path)
    if filesystem.get_file_info(inner).is_file:
        filesystem.delete_file(inner)
