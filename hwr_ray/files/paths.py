"""Paths that come from a user's file: kept below their folder, and found in other spellings."""

import re
import unicodedata

from pyarrow import fs

from hwr_ray.files.storage import join, locate

_PLAIN_NAME = re.compile(r"[^\s./\\:\0]([^/\\:\0]*[^\s/\\:\0])?")


def is_safe(path: str) -> bool:
    """Returns whether a path from a file stays below its folder on every operating system."""
    names = path.split("/")
    return (
        bool(path.strip())
        and "\\" not in path
        and "\0" not in path
        and not re.match(r"[A-Za-z]:|.*://", path)  # a drive or a URI
        and not path.startswith("/")
        and ".." not in names
    )


def relative_to(path: str, folder: str) -> str | None:
    """Returns a path from a file, relative to its folder and with `/`; None if it leaves the folder.

    The path may be absolute or a URI below the folder, start with `./`, use `\\`, and have blanks around it.
    """
    if _PLAIN_NAME.fullmatch(path):
        return path
    plain = path.strip().replace("\\", "/").removeprefix(join(folder, ""))
    if "://" not in plain:
        plain = re.sub("^(\\./)+", "", re.sub("/+", "/", plain))
    return plain if is_safe(plain) else None


def find_spelling(folder: str, path: str, suffixes: tuple[str, ...]) -> str | None:
    """Returns the path of an existing file that `path`, of which there is none, may mean; None if there is none.

    Tries Unicode NFC and NFD, another case of the suffix, and, if it has none of the suffixes, each of them.
    """
    filesystem, inner = locate(folder)
    spellings = list(dict.fromkeys([path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]))
    _, dot, suffix = path.rpartition(".")
    known = {s.removeprefix(".") for s in suffixes}
    tried = spellings[1:]
    for spelling in spellings:
        if dot and suffix.lower() in known:
            base = spelling.rpartition(".")[0]
            tried += [f"{base}.{suffix.lower()}", f"{base}.{suffix.upper()}", f"{base}.{suffix.capitalize()}"]
        else:
            tried += [f"{spelling}{s}" for s in (*suffixes, *map(str.upper, suffixes))]
    infos = filesystem.get_file_info([join(inner, name) for name in tried])
    return next((name for name, info in zip(tried, infos, strict=True) if info.type == fs.FileType.File), None)
