"""Random distortions of training lines, drawn from the seed, the epoch and the line's id alone.

A line's distortion therefore does not depend on its neighbours, the batch size or the number of workers. Everything
runs on the tensor's own device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hwr_ray.images.line_uniforms import line_uniforms

MAX_SCALE = 0.15
"""Maximum relative change of width and height."""
MAX_SHEAR = 0.35
"""Maximum horizontal shift in pixels per pixel of height."""
MAX_ROTATION = 0.03
"""Maximum rotation in radians."""
MAX_SHIFT = 4.0
"""Maximum vertical shift in pixels, up or down."""
SIDE_SHIFT = (-4.0, 14.0)
"""Range of the horizontal shift in pixels, positive to the right. Lines begin near the left edge, where a larger shift
to the left would cut letters off."""
MAX_WARP = (2.0, 3.0)
"""Maximum vertical and horizontal displacement, in pixels, of the points of the elastic grid."""
WARP_GRID = (3, 12)
"""Number of points of the elastic grid, vertically and horizontally."""
MAX_PEN = 0.7
"""Maximum weight of the 3x3 dilated or eroded image in the mix."""
MAX_BLUR = 0.6
"""Maximum weight of the 3x3 mean in the mix."""
INK_RANGE = (0.6, 1.3)
"""Range of the factor that multiplies the ink's darkness."""
ERASE_SHARE, MAX_ERASED = 0.3, 8
"""Fraction of lines from which a full-height strip is erased, and the strip's maximum width in pixels."""

NUM_SCALARS = 12


def augment(ink: Tensor, ids: Sequence[str], *, seed: int, epoch: int) -> Tensor:
    """Returns distorted ink of the same shape and range as `ink`: (N, 1, H, W), from 0 (paper) to 1 (ink)."""
    num_warps = 2 * WARP_GRID[0] * WARP_GRID[1]
    uniforms = torch.from_numpy(line_uniforms(ids, NUM_SCALARS + num_warps, seed=seed, epoch=epoch)).to(ink.device)
    scalars, warps = uniforms[:, :NUM_SCALARS], uniforms[:, NUM_SCALARS:]
    signed = 2 * scalars - 1
    ink = F.grid_sample(ink, _sampling_grid(ink, signed[:, :6], 2 * warps - 1), align_corners=False)
    ink = _change_pen(ink, signed[:, 6])
    ink = torch.lerp(ink, F.avg_pool2d(ink, 3, 1, 1), _column(MAX_BLUR * scalars[:, 7]))
    low, high = INK_RANGE
    ink = (ink * _column(low + (high - low) * scalars[:, 8])).clamp(0, 1)
    return _erase(ink, scalars[:, 9:12])


def _sampling_grid(ink: Tensor, signed: Tensor, warps: Tensor) -> Tensor:
    """Returns where each pixel samples `ink`, (N, H, W, 2) in grid_sample's units of -1..1.

    The position is an affine map plus an elastic displacement.
    """
    height, width = ink.shape[-2:]
    scale_x, scale_y = (1 + MAX_SCALE * signed[:, i] for i in (0, 1))
    slant, turn = MAX_SHEAR * signed[:, 2], MAX_ROTATION * signed[:, 3]
    right = sum(SIDE_SHIFT) / 2 + (SIDE_SHIFT[1] - SIDE_SHIFT[0]) / 2 * signed[:, 4]
    # A unit is half the width or half the height, hence the ratios. Widths scale about the left edge, which is at -1.
    shift_x, shift_y = scale_x - 1 - right * 2 / width, MAX_SHIFT * 2 / height * signed[:, 5]
    theta = torch.stack(
        [
            torch.stack([scale_x, (slant + turn) * height / width, shift_x], 1),
            torch.stack([-turn * width / height, scale_y, shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    warp = warps.view(-1, 2, *WARP_GRID)
    warp = F.interpolate(warp, size=(height, width), mode="bilinear", align_corners=True)
    reach = warp.new_tensor([MAX_WARP[1] * 2 / width, MAX_WARP[0] * 2 / height])
    return grid + warp.permute(0, 2, 3, 1) * reach


def _change_pen(ink: Tensor, signed: Tensor) -> Tensor:
    """Returns the ink with thicker strokes if `signed` (N) is positive, with thinner ones if it is negative."""
    sign = _column(signed.sign())
    return torch.lerp(ink, sign * _largest_neighbours(sign * ink), _column(MAX_PEN * signed.abs()))


def _largest_neighbours(pixels: Tensor) -> Tensor:
    """Returns the maximum over 3x3 pixels, like max_pool2d, in a twentieth of its time on a CPU."""
    for axis in (2, 3):
        size = pixels.shape[axis]
        before, after = pixels.narrow(axis, 0, size - 1), pixels.narrow(axis, 1, size - 1)
        pairs = torch.maximum(before, after)  # of i and i + 1
        middle = torch.maximum(pairs.narrow(axis, 0, size - 2), pairs.narrow(axis, 1, size - 2))
        pixels = torch.cat([pairs.narrow(axis, 0, 1), middle, pairs.narrow(axis, size - 2, 1)], axis)
    return pixels


def _erase(ink: Tensor, scalars: Tensor) -> Tensor:
    width = ink.shape[-1]
    columns = torch.arange(width, device=ink.device)
    start = scalars[:, 1:2] * width
    erased = (columns >= start) & (columns < start + MAX_ERASED * scalars[:, 2:3]) & (scalars[:, :1] < ERASE_SHARE)
    return ink.masked_fill(erased[:, None, None, :], 0)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
