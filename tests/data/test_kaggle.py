"""Tests of the Kaggle download with a fake kagglehub, which needs neither network nor account."""

import json
import shutil
import sys
from types import ModuleType

import pytest
import requests
from conftest import draw_easy_lines

from hwr_ray.data.kaggle import FetchSettings, fetch
from hwr_ray.data.labels import find_label_files, read_rows
from hwr_ray.errors import UserError


class Kaggle(ModuleType):
    """A fake kagglehub that copies a local folder, or raises `error` if it is set."""

    def __init__(self, source):
        super().__init__("kagglehub")
        self.source, self.error, self.requested = source, None, []

    def dataset_download(self, handle, *, output_dir):
        self.requested.append(handle)
        if self.error:
            raise self.error
        shutil.copytree(self.source, output_dir, dirs_exist_ok=True)
        return output_dir


@pytest.fixture
def kaggle(tmp_path, draw_text, monkeypatch):
    hub = Kaggle(draw_easy_lines(tmp_path / "source", draw_text, train=6, validation=3))
    (tmp_path / "source/train_v2/train/0.png").unlink()
    (tmp_path / "source/validation_v2/validation/more.png").write_bytes(b"x")
    errors = ModuleType("kagglehub.exceptions")
    for name in ("CredentialError", "NotFoundError", "UnauthenticatedError"):
        setattr(errors, name, type(name, (Exception,), {}))
    hub.exceptions = errors
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    monkeypatch.setitem(sys.modules, "kagglehub.exceptions", errors)
    return hub


def test_the_set_is_laid_out_where_prepare_reads_it_and_counted(kaggle, tmp_path):
    out = tmp_path / "names"
    assert fetch(FetchSettings(out=str(out))) == str(out)
    assert kaggle.requested == ["landlord/handwriting-recognition"]
    assert [sum(map(len, read_rows(file))) for file in find_label_files(str(out))] == [6, 3]
    splits = json.loads((out / "fetched.json").read_text())["splits"]
    assert splits["train"] == {"rows": 6, "images": 5, "rows_without_image": 1, "images_without_row": 0}
    assert splits["validation"] == {"rows": 3, "images": 4, "rows_without_image": 0, "images_without_row": 1}


def test_what_is_there_is_checked_and_not_fetched_again(kaggle, tmp_path):
    settings = FetchSettings(out=str(tmp_path / "names"))
    fetch(settings)
    fetch(settings)
    assert len(kaggle.requested) == 1
    with pytest.raises(UserError, match="contains landlord/handwriting-recognition, not a/b"):
        fetch(FetchSettings(out=settings.out, dataset="a/b"))
    with (tmp_path / "names/train_v2/train/1.png").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="names/train_v2/train has changed since the download"):
        fetch(settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CredentialError", "requires authentication: create a token at .* KAGGLE_API_TOKEN"),
        ("UnauthenticatedError", "requires authentication"),
        ("NotFoundError", "no data set landlord/handwriting-recognition"),
        (401, "requires authentication, or acceptance of the terms"),
        (500, "Kaggle returned 500"),
        (None, "can't be reached"),
    ],
)
def test_what_goes_wrong_is_told_with_what_to_do(kaggle, tmp_path, name, message):
    if isinstance(name, str):
        kaggle.error = getattr(kaggle.exceptions, name)("no")
    elif name:
        response = requests.Response()
        response.status_code = name
        kaggle.error = requests.HTTPError("no", response=response)
    else:
        kaggle.error = requests.ConnectionError("no route")
    with pytest.raises(UserError, match=message):
        fetch(FetchSettings(out=str(tmp_path / "names")))


def test_a_folder_that_is_not_whole_and_a_package_that_lacks_are_told(kaggle, tmp_path, monkeypatch):
    (tmp_path / "half").mkdir()
    (tmp_path / "half/written_name_train_v2.csv").touch()
    with pytest.raises(UserError, match="incomplete download"):
        fetch(FetchSettings(out=str(tmp_path / "half")))
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UserError, match=r"pip install 'hwr_ray\[kaggle\]'"):
        fetch(FetchSettings(out=str(tmp_path / "none")))
