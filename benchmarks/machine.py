"""The commit and the hardware of a measurement."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def commit() -> str:
    """Returns the commit of the checkout, marked as dirty if files differ from it."""
    command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def hardware() -> dict[str, Any]:
    """Returns the processor, the number of cores and the GPUs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "gpus": gpus}
