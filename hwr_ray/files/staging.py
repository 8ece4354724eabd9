"""Atomic output folders, which appear complete or not at all."""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from pyarrow import fs

from hwr_ray.errors import UserError
from hwr_ray.files.ownership import OwnershipToken
from hwr_ray.files.storage import PARTIAL, delete, delete_file, is_file, join, list_files, locate


@contextmanager
def staged(out: str, *, mark: str, overwrite: bool) -> Iterator[str]:
    """Yields a folder to write into, which replaces `out` only if the block ends without an exception.

    `mark` is the name of a file that every complete folder of this kind contains. Raises UserError if `out` has
    files but no mark, if it exists and `overwrite` is false, or if another process took over. Deletes staging folders
    that killed runs left behind.
    """
    out = out.rstrip("/")
    _check_free(out, mark, overwrite)
    for stale in _staging_folders(out):
        delete(stale)
    partial = f"{out}{PARTIAL}{uuid4().hex[:8]}"
    filesystem, inner = locate(partial)
    filesystem.create_dir(inner, recursive=True)
    owner = OwnershipToken.take(out, folder=partial)
    try:
        yield partial
        owner.check()
        _check_free(out, mark, overwrite)
        delete_file(owner.path)
        if list_files(out):
            _move(out, f"{out}.replaced", mark)
        _move(partial, out, mark)
    except BaseException:
        delete(partial)
        raise
    delete(f"{out}.replaced")


def _check_free(out: str, mark: str, overwrite: bool) -> None:
    if is_file(out):
        raise UserError(f"{out} is a file: choose another --out")
    recover(out, mark)
    if list_files(out) and not is_file(join(out, mark)):
        raise UserError(f"{out} contains other files (it has no {mark}): choose another --out")
    if list_files(out) and not overwrite:
        raise UserError(f"{out} already exists: choose another --out, or pass --overwrite to replace it")


def _staging_folders(out: str) -> list[str]:
    """Returns the staging folders of `out`."""
    filesystem, inner = locate(out)
    selector = fs.FileSelector(posixpath.dirname(inner), allow_not_found=True)
    names = [info.base_name for info in filesystem.get_file_info(selector) if not info.is_file]
    start = f"{posixpath.basename(inner)}{PARTIAL}"
    return [join(posixpath.dirname(out), name) for name in names if name.startswith(start)]


def recover(out: str, mark: str) -> None:
    """Restores the folder that was being replaced when a process was killed.

    That folder has the mark, and the one in its place has none.
    """
    if is_file(join(f"{out}.replaced", mark)) and not is_file(join(out, mark)):
        _move(f"{out}.replaced", out, mark)


def _move(source: str, destination: str, mark: str) -> None:
    filesystem, old = locate(source)
    _, new = locate(destination)
    delete(destination)
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.move(old, new)
        return
    # Object stores can't rename folders: copy all files, then delete them. The mark is copied last and deleted first.
    names = sorted(list_files(source), key=lambda name: name == mark)
    for name in names:
        filesystem.create_dir(posixpath.dirname(join(new, name)), recursive=True)
        filesystem.copy_file(join(old, name), join(new, name))
    for name in reversed(names):
        filesystem.delete_file(join(old, name))
    delete(source)
