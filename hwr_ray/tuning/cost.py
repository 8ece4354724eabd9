"""What a network costs: its multiply-adds for an input, its parameters, its speed."""

import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.recognition.bundle import new_model
from hwr_ray.recognition.recognizer import Recognizer
from hwr_ray.text.codec import Codec


def size_of(settings: ModelSettings, charset: str, canvas: Canvas) -> tuple[int, int]:
    """Multiply-adds for a line of the canvas, and parameters, of the network that the settings describe."""
    model = new_model(settings, Codec(charset), canvas).eval()
    return multiply_adds(model, torch.zeros(1, 1, canvas.height, canvas.width)), num_parameters(model)


def multiply_adds(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of the convolutions, linear layers and GRUs in one forward pass, in the mode the model is in.

    On the CPU, torch's own counter sees a GRU as the matrix products that it is made of (tests/tuning/test_cost.py
    compares with sums by hand). cuDNN's GRU is a single operation that it passes over, hence the ValueError elsewhere.
    """
    devices = {tensor.device.type for tensor in (*model.parameters(), *inputs)}
    if devices != {"cpu"}:
        raise ValueError(f"multiply-adds are counted on the CPU, not on {', '.join(sorted(devices))}")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2  # it counts the multiplication and the addition


def num_parameters(model: nn.Module) -> int:
    """Trained numbers of all of the model's modules, whether or not a forward pass uses them."""
    return sum(parameter.numel() for parameter in model.parameters())


def throughput(bundle_path: str, images: np.ndarray, *, repeats: int = 3) -> float:
    """Line images (N, H, W) uint8 that a bundle reads greedily a second on one core: median after a warm-up.

    Sets torch's threads of this process to one.
    """
    torch.set_num_threads(1)
    recognizer = Recognizer(bundle_path, greedy=True)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        recognizer.read_lines(images)
        seconds.append(time.perf_counter() - start)
    return len(images) / statistics.median(seconds[1:])
