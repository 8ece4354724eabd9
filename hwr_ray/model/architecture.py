"""Layer sizes of the network, and the number of frames for a canvas; imports no torch."""

from dataclasses import dataclass

from hwr_ray.errors import UserError

POOLS = ((2, 2), (2, 2), (2, 1), (2, 1))
"""Downsampling factors (height, width) of the convolution layers: the first by its stride, the others by pooling."""
HEIGHT_STRIDE, WIDTH_STRIDE = 16, 4


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    conv_widths: tuple[int, int, int, int] = (24, 32, 64, 128)
    """Output channels of the four convolution layers."""
    gru_size: int = 128
    """Hidden units of each GRU layer, per direction."""
    residual: bool = True
    """Add a separable residual block after each of the second to fourth convolution layers."""
    dropout: float = 0.2
    """Dropout probability before each GRU layer and before the classifier, at least 0 and less than 1."""

    def __post_init__(self) -> None:
        if len(self.conv_widths) != len(POOLS) or min(self.conv_widths) < 1:
            raise UserError(f"--conv-widths needs {len(POOLS)} positive numbers, not {self.conv_widths}")
        if self.gru_size < 1:
            raise UserError(f"--gru-size must be positive, not {self.gru_size}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and below 1, not {self.dropout}")


def num_frames(height: int, width: int) -> int:
    """Returns the number of frames for a canvas in pixels. Raises UserError if the canvas does not fit the model."""
    if height % HEIGHT_STRIDE or width % WIDTH_STRIDE:
        raise UserError(
            f"the canvas {height}x{width} does not fit the model: "
            f"its height must be a multiple of {HEIGHT_STRIDE} and its width a multiple of {WIDTH_STRIDE}"
        )
    return width // WIDTH_STRIDE
