"""The recognition network: convolutions, bidirectional GRUs and a classifier for each frame."""

from typing import Any

import torch
from torch import Tensor, nn

from hwr_ray.model.architecture import HEIGHT_STRIDE, POOLS, ModelSettings, num_frames


class SeparableResidual(nn.Module):
    """Residual block of a depthwise and a pointwise convolution on (N, C, H, W): more depth at little cost.

    Residual learning (He et al. 2016, arXiv 1512.03385) with separable convolutions (Howard et al. 2017, arXiv
    1704.04861). The block is initialized as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        return (features + self.change(features)).relu()


class CRNN(nn.Module):
    """Convolutional recurrent network (Shi, Bai, Yao 2015, arXiv 1507.05717): 4 convolution and 2 BiGRU layers, CTC.

    Shapes: N batch size, H and W canvas height and width, T = W / 4 frames, C classes including the blank.
    """

    def __init__(self, settings: ModelSettings, *, canvas: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        height, width = canvas
        self.frames = num_frames(height, width)
        widths = settings.conv_widths
        layers = [
            nn.Conv2d(1, widths[0], 5, stride=POOLS[0], padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for c_in, c_out, pool in zip(widths, widths[1:], POOLS[1:], strict=False):
            # Pooling before normalization takes a quarter of the memory traffic. The result is the same while the
            # normalization's scale is positive, as at initialization. With a negative scale, pooling selects the
            # minimum of the normalized values instead of the maximum.
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.MaxPool2d(pool), nn.BatchNorm2d(c_out)]
            layers += [nn.ReLU()]
            layers += [SeparableResidual(c_out)] if settings.residual else []
        self.convolutions = nn.Sequential(*layers)
        features = settings.conv_widths[-1] * (height // HEIGHT_STRIDE)
        self.dropout = nn.Dropout(settings.dropout)
        self.gru = nn.GRU(
            features, settings.gru_size, num_layers=2, bidirectional=True, batch_first=True, dropout=settings.dropout
        )
        self.classifier = nn.Linear(2 * settings.gru_size, num_classes)
        self.shortcut = nn.Conv1d(features, num_classes, 3, padding=1)

    def forward(self, ink: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the logits (N, T, C) of the classifier and of the shortcut for ink (N, 1, H, W), 0 paper to 1 ink.

        The shortcut is a CTC head on the convolution features (Retsinas et al. 2022, arXiv 2404.11339). Its logits
        are None in evaluation mode.
        """
        features = self.convolutions(ink).flatten(1, 2)  # (N, channels * rows, T)
        shortcut = self.shortcut(features).transpose(1, 2) if self.training else None
        states, _ = self.gru(self.dropout(features.transpose(1, 2)))
        return self.classifier(self.dropout(states)), shortcut

    def shortcut_of(self, ink: Tensor) -> Tensor:
        """Returns only the logits (N, T, C) of the shortcut for ink (N, 1, H, W)."""
        return self.shortcut(self.convolutions(ink).flatten(1, 2)).transpose(1, 2)


def to_ink(images: Tensor) -> Tensor:
    """Converts line images (N, H, W) uint8, 255 paper, to the model's input (N, 1, H, W) float32, 0 paper to 1 ink."""
    return 1 - images.unsqueeze(1).float() / 255


def has_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 in hardware, so that autocast saves time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
