"""Inference of the network: with OpenVINO on CPUs, with PyTorch on GPUs."""

import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwr_ray.model.crnn import CRNN, has_bfloat16, to_ink
from hwr_ray.recognition.bundle import Bundle


class Network:
    """A bundle's model as a function from line images to log-probabilities.

    It computes in bfloat16 if the hardware does. On a CPU, a line's log-probabilities do not depend on its batch.
    The measurements behind the choice of OpenVINO are in benchmarks/results/runtimes.json.

    `shortcut` selects the shortcut head instead of the classifier behind the GRUs. It is less accurate but shows where
    a letter is, whereas the GRUs can emit a letter in any frame.
    """

    def __init__(
        self, bundle: Bundle, *, device: str | torch.device = "cpu", batch_size: int = 64, shortcut: bool = False
    ) -> None:
        self.device, self.batch_size = torch.device(device), batch_size
        self._head = Head(bundle.model, shortcut=shortcut).to(self.device)
        if self.device.type == "cpu":
            canvas = bundle.canvas.height, bundle.canvas.width
            self._request = compile_for_cpu(self._head, canvas).create_infer_request()
        else:
            self._head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: np.ndarray) -> Tensor:
        """Returns log-probabilities (N, T, C) float32 on the device for images (N, H, W) uint8, 255 paper; N > 0."""
        infer = self._on_cpu if self.device.type == "cpu" else self._on_gpu
        return torch.cat([infer(images[i : i + self.batch_size]) for i in range(0, len(images), self.batch_size)])

    def _on_cpu(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(self._request.infer({0: images}, share_inputs=True)[0].copy())

    @torch.inference_mode()
    def _on_gpu(self, images: np.ndarray) -> Tensor:
        """Does not wait for the result, so that the batches of a call overlap."""
        batch = torch.tensor(images)
        batch = batch.pin_memory() if self.device.type == "cuda" else batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device)):
            return self._head(batch.to(self.device, non_blocking=True))


class Head(nn.Module):
    """Module that maps line images (N, H, W) uint8 to the log-probabilities (N, T, C) of one head of a model."""

    def __init__(self, model: CRNN, *, shortcut: bool = False) -> None:
        super().__init__()
        self.model, self.shortcut = model, shortcut

    def forward(self, images: Tensor) -> Tensor:
        if not self.shortcut:
            return log_probs_of(self.model, images)
        return self.model.shortcut_of(to_ink(images)).float().log_softmax(-1)


def compile_for_cpu(head: nn.Module, canvas: tuple[int, int], **settings: Any) -> Any:
    """Compiles a module that takes line images for this machine's CPU, with as many threads as torch uses.

    `settings` are OpenVINO's; by default it computes in bfloat16 if the processor does. OpenVINO is imported here
    because only inference on a CPU needs it.
    """
    # OpenVINO reports every import to its vendor; without this package it falls back to a stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = (torch.zeros((2, *canvas), dtype=torch.uint8),)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the GRU's checks hold for any batch
        traced = torch.jit.trace(head.eval(), example, check_trace=False)
    # Same as openvino.convert_model, without its telemetry.
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=example)  # must outlive the conversion
    converted = frontend.convert(frontend.load(decoder))
    converted.reshape({converted.inputs[0]: ov.PartialShape([-1, *canvas])})
    # With pinning, the threads of all processes would share the first cores.
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False, **settings}
    return ov.Core().compile_model(converted, "CPU", settings)


def log_probs_of(model: CRNN, images: Tensor) -> Tensor:
    """Returns the log-probabilities (N, T, C) float32 of each frame's classes for images (N, H, W) uint8, 255 paper."""
    logits, _ = model(to_ink(images).contiguous(memory_format=torch.channels_last))
    return logits.float().log_softmax(-1)
