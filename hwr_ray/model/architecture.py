"""The recognizer's architecture as numbers: layer sizes, and the frames that a canvas gives; needs no torch."""

from dataclasses import dataclass

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


def num_frames(height: int, width: int) -> int:
    """Frames of a canvas of that many pixels. Raises UserError where the canvas does not suit the model."""
    if height % HEIGHT_STRIDE or width % WIDTH_STRIDE:
        raise UserError(
            f"the canvas {height}x{width} does not suit the model: "
            f"its height must be a multiple of {HEIGHT_STRIDE}, its width of {WIDTH_STRIDE}"
        )
    return width // WIDTH_STRIDE
