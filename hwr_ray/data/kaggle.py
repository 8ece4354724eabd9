"""Download and verification of the Kaggle data set in the layout that `prepare` expects."""

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
"""File with the counts and SHA-256 digests of the data set as it was downloaded."""


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    out: str
    """Output folder for 413,000 small files. Running the same command again verifies them."""
    dataset: str = DATASET
    """Kaggle data set: OWNER/NAME or OWNER/NAME/versions/NUMBER."""


def fetch(settings: FetchSettings) -> str:
    """Downloads the data set if it is missing, verifies it and returns its folder.

    Raises UserError if Kaggle can't be reached or requires authentication, and if the folder is incomplete or differs
    from the download.
    """
    out = Path(settings.out).expanduser().absolute()
    if not (out / FETCHED).is_file():
        download(settings.dataset, out)
    splits = {file.split or "all": measure(file) for file in find_label_files(str(out))}
    for split, figures in splits.items():
        log.info("%s: %d rows, %d images; %d rows without an image, %d images without a row", split, *figures.values())
        if not figures["images"]:
            raise UserError(f"{out} has {split} labels but no images: delete it and run this job again")
    check_same(out, {"dataset": settings.dataset, "splits": splits, "sha256": digests(out)})
    return str(out)


def download(dataset: str, out: Path) -> None:
    """Downloads the data set into the folder. Raises UserError with a remedy if that fails."""
    try:
        import kagglehub
        from kagglehub.exceptions import CredentialError, NotFoundError, UnauthenticatedError
    except ImportError as error:
        raise UserError("the package kagglehub is missing: pip install 'hwr_ray[kaggle]'") from error
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} contains an incomplete download or other files: delete it or choose another --out")
    remedy = "create a token at https://www.kaggle.com/settings/api and set KAGGLE_API_TOKEN to it"
    try:
        kagglehub.dataset_download(dataset, output_dir=str(out))
    except (CredentialError, UnauthenticatedError) as error:
        raise UserError(f"Kaggle requires authentication: {remedy}") from error
    except NotFoundError as error:
        raise UserError(f"Kaggle has no data set {dataset}: check --dataset") from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        if status in (401, 403):
            raise UserError(
                f"Kaggle requires authentication, or acceptance of the terms on the data set's page: {remedy}"
            ) from error
        raise UserError(f"Kaggle returned {status} for {dataset}: {error}") from error
    except requests.ConnectionError as error:
        raise UserError(f"Kaggle can't be reached: {error}") from error


def measure(file: LabelFile) -> dict[str, int]:
    """Returns the number of rows of a label CSV and of images in its folder, and of those without a counterpart."""
    ids = {name for table in read_rows(file) for name in table["id"].to_pylist()}
    with os.scandir(str(file.images)) as entries:
        names = {entry.name for entry in entries if entry.is_file()}
    num_rows = sum(len(table) for table in read_rows(file))
    return {
        "rows": num_rows,
        "images": len(names),
        "rows_without_image": len(ids - names),
        "images_without_row": len(names - ids),
    }


def digests(out: Path) -> dict[str, str]:
    """Returns the SHA-256 of each label CSV, and of the names and sizes of the images in each folder."""
    hashes = {}
    for file in find_label_files(str(out)):
        hashes[Path(file.path).name] = sha256(Path(file.path).read_bytes()).hexdigest()
        with os.scandir(str(file.images)) as entries:
            sizes = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
        hashes[str(Path(str(file.images)).relative_to(out))] = sha256(json.dumps(sizes).encode()).hexdigest()
    return hashes


def check_same(out: Path, metadata: dict[str, Any]) -> None:
    """Records the metadata after the download. Raises UserError if they differ from an existing record."""
    if not (out / FETCHED).is_file():
        write_json(str(out / FETCHED), metadata)
        return
    recorded = json.loads((out / FETCHED).read_text())
    if recorded["dataset"] != metadata["dataset"]:
        raise UserError(f"{out} contains {recorded['dataset']}, not {metadata['dataset']}: choose another --out")
    for name, digest in recorded["sha256"].items():
        if metadata["sha256"].get(name) != digest:
            raise UserError(f"{out / name} has changed since the download: delete {out} and run this job again")
