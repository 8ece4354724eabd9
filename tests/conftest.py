"""What the tests share: small pictures, a small model."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hwr_ray.bundle import Bundle, new_model, save_bundle
from hwr_ray.codec import Codec
from hwr_ray.line_images import Canvas
from hwr_ray.model import ModelSettings

TINY_MODEL = ModelSettings(conv_widths=(4, 4, 8, 8), gru_size=8, dropout=0.1)
TINY_CANVAS = Canvas(16, 64)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch's threads wait for one another where cores are busy, and tiny models gain nothing from them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def draw_text() -> Callable[..., np.ndarray]:
    """A function that draws a text as a grey picture (height, width) uint8, dark on 230."""

    def draw(text: str, *, height: int = 16, width: int = 64) -> np.ndarray:
        picture = np.full((height, width), 230, np.uint8)
        return cv2.putText(picture, text, (2, height - 4), cv2.FONT_HERSHEY_SIMPLEX, height / 40, 20, 1)

    return draw


@pytest.fixture
def tiny_bundle() -> Bundle:
    """A bundle of random weights, in evaluation mode, that reads different nonsense in different pictures."""
    torch.manual_seed(5)
    codec = Codec("ABC")
    model = new_model(TINY_MODEL, codec, TINY_CANVAS)
    noise = (torch.rand(8, 1, TINY_CANVAS.height, TINY_CANVAS.width) > 0.8).float()
    with torch.no_grad():
        for _ in range(20):  # gives the batch statistics their size
            model(noise)
        for weight in (*model.gru.parameters(), model.classifier.weight, model.classifier.weight):
            weight.mul_(3)
        model.classifier.bias.sub_(model.eval()(noise)[0].mean((0, 1)))  # else one class wins everywhere
    return Bundle(
        model=model.eval(), settings=TINY_MODEL, codec=codec, canvas=TINY_CANVAS, training={"figures": [1, 2.5]}
    )


@pytest.fixture
def bundle_path(tiny_bundle: Bundle, tmp_path: Path) -> str:
    path = str(tmp_path / "bundle")
    save_bundle(tiny_bundle, path)
    return path


class SmallDisk:
    """A disk of some kilobytes that can be given more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int, *, is_new: bool = False) -> None:
        options = f"{'' if is_new else 'remount,'}size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 64 kB. Skips where this process may not mount one."""
    disk = SmallDisk(tmp_path / "disk")
    disk.path.mkdir()
    try:
        disk.resize(64, is_new=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no right to mount a small disk: {error}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.path)], check=True)
