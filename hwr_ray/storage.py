"""Files by path or URI: local folders, s3://, gs:// and whatever else pyarrow or fsspec reads."""

import json
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa
from pyarrow import fs

from hwr_ray.errors import UserError


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path on it (absolute where it is local).

    The path of a URI is read as it stands, as fsspec does: files are named `a b#1 50%.png`, and joined to a folder.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    scheme, _, rest = path.partition("://")
    host, slash, inner = rest.partition("/")
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{host}{slash}{quote(inner, safe='/?=&')}")  # Arrow decodes it again
    except pa.ArrowInvalid:
        pass  # Not one of Arrow's own schemes: fsspec knows more.
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"no file system is known for {path}: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), inner


def absolute(path: str) -> str:
    """The path as Ray wants it: URIs as they are, local paths absolute."""
    return path if "://" in path else locate(path)[1]


def join(folder: str, *names: str) -> str:
    return posixpath.join(folder, *names)


def is_file(path: str) -> bool:
    filesystem, inner = locate(path)
    return filesystem.get_file_info(inner).is_file


def is_folder(path: str) -> bool:
    filesystem, inner = locate(path)
    return filesystem.get_file_info(inner).type == fs.FileType.Directory


def list_files(folder: str) -> list[fs.FileInfo]:
    """All files below a folder, at any depth, sorted by path. A folder that is not there holds none."""
    filesystem, inner = locate(folder)
    found = filesystem.get_file_info(fs.FileSelector(inner, recursive=True, allow_not_found=True))
    return sorted((info for info in found if info.is_file), key=lambda info: info.path)


def read_bytes(path: str) -> bytes:
    """The file's bytes. Raises FileNotFoundError, or another OSError where it can't be read."""
    filesystem, inner = locate(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()


def write_bytes(path: str, data: bytes) -> None:
    """Writes the whole file or leaves the one before: a reader never meets a half-written one."""
    filesystem, inner = locate(path)
    filesystem.create_dir(posixpath.dirname(inner), recursive=True)
    partial = f"{inner}.partial" if isinstance(filesystem, fs.LocalFileSystem) else inner  # object stores put at once
    try:
        with filesystem.open_output_stream(partial) as stream:
            stream.write(data)
        if partial != inner:
            filesystem.move(partial, inner)
    except BaseException:
        if partial != inner and filesystem.get_file_info(partial).is_file:
            filesystem.delete_file(partial)
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

    `mark` names the file that every folder of this kind holds. Raises UserError where `out` holds something that has
    no such file, or that may not be overwritten. What an earlier run that was killed left in the staging folder is
    deleted.
    """
    out = out.rstrip("/")
    if is_file(out):
        raise UserError(f"{out} is a file: name another --out")
    recover(out)
    if list_files(out) and not is_file(join(out, mark)):
        raise UserError(f"{out} holds something else (it has no {mark}): name another --out")
    if list_files(out) and not overwrite:
        raise UserError(f"{out} exists already: name another --out, or pass --overwrite to replace it")
    partial = f"{out}.partial"
    filesystem, inner = locate(partial)
    _delete(partial)
    filesystem.create_dir(inner, recursive=True)
    try:
        yield partial
    except BaseException:
        _delete(partial)
        raise
    if list_files(out):
        _move(out, f"{out}.replaced")
    _move(partial, out)
    _delete(f"{out}.replaced")


def recover(out: str) -> None:
    """Puts back the folder that a staged one was about to replace when the process was killed between two moves."""
    if not list_files(out) and list_files(f"{out}.replaced"):
        _move(f"{out}.replaced", out)


def _delete(folder: str) -> None:
    if is_folder(folder):
        filesystem, inner = locate(folder)
        filesystem.delete_dir(inner)


def _move(source: str, destination: str) -> None:
    filesystem, old = locate(source)
    _, new = locate(destination)
    _delete(destination)
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.move(old, new)
        return
    for info in list_files(source):  # object stores have no folders to rename
        target = new + info.path.removeprefix(old)
        filesystem.create_dir(posixpath.dirname(target), recursive=True)
        filesystem.copy_file(info.path, target)
    _delete(source)
