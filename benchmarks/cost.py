"""What a network costs: its multiply-adds for an input, and its parameters."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of the convolutions, linear layers and GRUs in one forward pass, in the mode the model is in.

    On the CPU, torch's own counter sees a GRU as the matrix products that it is made of (tests/test_cost.py compares
    with sums by hand). cuDNN's GRU is a single operation that it passes over, hence the ValueError elsewhere.
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
