"""The real data set from Kaggle, laid out where `prepare` expects it, and checked."""

import json
import logging
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import requests

from hwr_ray.data.labels import LabelFile, find_label_files, read_rows
from hwr_ray.errors import UserError
from hwr_ray.files.storage import write_json

log = logging.getLogger(__name__)

DATASET = "landlord/handwriting-recognition"
FETCHED = "fetched.json"
"""What was found in the folder when it was fetched."""


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    out: str
    """Folder for the data set: 413,000 small files. The same command again checks it."""
    dataset: str = DATASET
    """OWNER/NAME on Kaggle, or OWNER/NAME/versions/NUMBER."""


def fetch(settings: FetchSettings) -> str:
    """Downloads the data set, unless it is there, and checks it; prints its folder.

    Raises UserError where Kaggle can't be reached or asks who you are, and where what is there is not whole or not what
    was fetched before.
    """
    out = Path(settings.out).expanduser().absolute()
    if not (out / FETCHED).is_file():
        download(settings.dataset, out)
    found = {file.split or "all": measure(file) for file in find_label_files(str(out))}
    for split, figures in found.items():
        log.info("%s: %d rows, %d images; %d rows without an image, %d images without a row", split, *figures.values())
        if not figures["images"]:
            raise UserError(f"{out} holds labels of {split} and no image: delete it and fetch it again")
    check_same(out, {"dataset": settings.dataset, "splits": found, "sha256": digests(out)})
    return str(out)


def download(dataset: str, out: Path) -> None:
    """Fills the folder. Raises UserError with what to do where that does not work."""
    try:
        import kagglehub
        from kagglehub.exceptions import CredentialError, NotFoundError, UnauthenticatedError
    except ImportError as error:
        raise UserError("this needs the package kagglehub: pip install 'hwr_ray[kaggle]'") from error
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds something that was not fetched to its end: delete it, or name another --out")
    remedy = "make a token at https://www.kaggle.com/settings/api and give it in KAGGLE_API_TOKEN"
    try:
        kagglehub.dataset_download(dataset, output_dir=str(out))
    except (CredentialError, UnauthenticatedError) as error:
        raise UserError(f"Kaggle asks who you are: {remedy}") from error
    except NotFoundError as error:
        raise UserError(f"Kaggle has no data set {dataset}") from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        if status in (401, 403):
            raise UserError(f"Kaggle asks who you are, or wants its terms accepted on its page: {remedy}") from error
        raise UserError(f"Kaggle gave {status} for {dataset}: {error}") from error
    except requests.ConnectionError as error:
        raise UserError(f"Kaggle can't be reached: {error}") from error


def measure(file: LabelFile) -> dict[str, int]:
    """Rows of a label CSV and images beside it, and how many of each the other lacks."""
    ids = {name for table in read_rows(file) for name in table["id"].to_pylist()}
    with os.scandir(file.images) as entries:
        names = {entry.name for entry in entries if entry.is_file()}
    num_rows = sum(len(table) for table in read_rows(file))
    return {
        "rows": num_rows,
        "images": len(names),
        "rows_without_image": len(ids - names),
        "images_without_row": len(names - ids),
    }


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of each label CSV, and of the names and sizes of each folder's images."""
    found = {}
    for file in find_label_files(str(out)):
        found[Path(file.csv).name] = sha256(Path(file.csv).read_bytes()).hexdigest()
        with os.scandir(file.images) as entries:
            sizes = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
        found[str(Path(file.images).relative_to(out))] = sha256(json.dumps(sizes).encode()).hexdigest()
    return found


def check_same(out: Path, metadata: dict[str, Any]) -> None:
    """Writes what was found, or raises UserError that names what differs from what was found before."""
    if not (out / FETCHED).is_file():
        write_json(str(out / FETCHED), metadata)
        return
    before = json.loads((out / FETCHED).read_text())
    if before["dataset"] != metadata["dataset"]:
        raise UserError(f"{out} holds {before['dataset']}, not {metadata['dataset']}: name another --out")
    for name, digest in before["sha256"].items():
        if metadata["sha256"].get(name) != digest:
            raise UserError(f"{out / name} is not what was fetched: delete {out} and fetch it again")
