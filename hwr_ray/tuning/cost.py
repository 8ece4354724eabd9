"""The cost of a network: multiply-adds, number of parameters, throughput."""

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
    """Returns the multiply-adds per line of the canvas and the number of parameters of the settings' network."""
    model = new_model(settings, Codec(charset), canvas).eval()
    return multiply_adds(model, torch.zeros(1, 1, canvas.height, canvas.width)), num_parameters(model)


def multiply_adds(model: nn.Module, *inputs: Tensor) -> int:
    """Returns the multiply-adds of convolutions, linear layers and GRUs in one forward pass.

    The pass uses the model's current mode, training or evaluation. On the CPU, torch's counter counts a GRU as its
    matrix products (tests/tuning/test_cost.py compares with sums by hand). cuDNN's GRU is a single operation that the
    counter ignores, hence the ValueError on other devices.
    """
    devices = {tensor.device.type for tensor in (*model.parameters(), *inputs)}
    if devices != {"cpu"}:
        raise ValueError(f"multiply-adds are counted on the CPU, not on {', '.join(sorted(devices))}")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2  # a multiply-add counts as two operations


def num_parameters(model: nn.Module) -> int:
    """Returns the number of parameters of all modules, whether or not a forward pass uses them."""
    return sum(parameter.numel() for parameter in model.parameters())


def throughput(bundle_path: str, images: np.ndarray, *, repeats: int = 3) -> float:
    """Returns the line images per second that a bundle recognizes greedily on one core: median after a warm-up.

    `images` is (N, H, W) uint8. Sets the number of torch's threads in this process to one.
    """
    torch.set_num_threads(1)
    recognizer = Recognizer(bundle_path, greedy=True)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        recognizer.read_lines(images)
        seconds.append(time.perf_counter() - start)
    return len(images) / statistics.median(seconds[1:])
