"""The recognizer's network: convolutions, bidirectional GRUs, one distribution over classes a frame."""

from dataclasses import dataclass

from torch import Tensor, nn

from hwr_ray.errors import UserError

POOLS = ((2, 2), (2, 2), (2, 1), (2, 1))
"""(height, width) by which each convolution layer shrinks its input: the first by its stride, the others by pooling."""
HEIGHT_STRIDE, WIDTH_STRIDE = 16, 4


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    conv_widths: tuple[int, int, int, int] = (24, 32, 64, 128)
    """Output channels of the four convolution layers."""
    gru_size: int = 128
    """Units of a GRU layer in each direction."""
    residual: bool = True
    """Deepen the second, third and fourth convolution layer by a separable residual block each."""
    dropout: float = 0.2
    """Share of features dropped before each GRU layer and before the classifier."""

    def __post_init__(self) -> None:
        if len(self.conv_widths) != len(POOLS) or min(self.conv_widths) < 1:
            raise UserError(f"--conv-widths takes {len(POOLS)} positive numbers, not {self.conv_widths}")
        if self.gru_size < 1:
            raise UserError(f"--gru-size must be positive, not {self.gru_size}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must lie in 0 to 1 (excluded), not {self.dropout}")


class SeparableResidual(nn.Module):
    """Adds what a depthwise and a pointwise convolution make of (N, C, H, W): deeper for little work.

    Residual learning (He et al. 2016, arXiv 1512.03385) with separable convolutions (Howard et al. 2017, arXiv
    1704.04861). It starts as the identity.
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

    Shapes: N batch, H and W canvas, T = W / 4 frames, C classes (the blank included).
    """

    def __init__(self, settings: ModelSettings, *, canvas: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        height, width = canvas
        if height % HEIGHT_STRIDE or width % WIDTH_STRIDE:
            raise UserError(
                f"the canvas {height}x{width} does not suit the model: "
                f"its height must be a multiple of {HEIGHT_STRIDE}, its width of {WIDTH_STRIDE}"
            )
        self.frames = width // WIDTH_STRIDE
        widths = settings.conv_widths
        layers = [
            nn.Conv2d(1, widths[0], 5, stride=POOLS[0], padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for c_in, c_out, pool in zip(widths, widths[1:], POOLS[1:], strict=False):
            # Pooled before it is normalized: the same picture for a quarter of the memory traffic.
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
        """Ink (N, 1, H, W), 0 paper to 1 ink, to logits (N, T, C).

        In training the second value holds the logits (N, T, C) of the shortcut, a CTC head on the convolution
        features (Retsinas et al. 2022, arXiv 2404.11339); otherwise None.
        """
        features = self.convolutions(ink).flatten(1, 2)  # (N, channels * rows, T)
        shortcut = self.shortcut(features).transpose(1, 2) if self.training else None
        states, _ = self.gru(self.dropout(features.transpose(1, 2)))
        return self.classifier(self.dropout(states)), shortcut

    def shortcut_of(self, ink: Tensor) -> Tensor:
        """Ink (N, 1, H, W) to the logits (N, T, C) of the shortcut alone."""
        return self.shortcut(self.convolutions(ink).flatten(1, 2)).transpose(1, 2)


def to_ink(images: Tensor) -> Tensor:
    """Line images (N, H, W) uint8, 255 paper, to the model's input (N, 1, H, W) float32, 0 paper to 1 ink."""
    return 1 - images.unsqueeze(1).float() / 255
