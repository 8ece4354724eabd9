"""Starting from a bundle's weights instead of from random ones."""

from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from hwr_ray.bundle import Bundle
from hwr_ray.codec import BLANK, Codec
from hwr_ray.errors import UserError
from hwr_ray.line_images import Canvas
from hwr_ray.model import CRNN, ModelSettings


def architecture_from(bundle: Bundle, settings: ModelSettings, canvas: Canvas) -> ModelSettings:
    """The bundle's architecture with the dropout of the settings.

    Raises UserError where the settings ask for an architecture that is neither this nor the default, or the canvas has
    another height.
    """
    asked, default, there = asdict(settings), asdict(ModelSettings()), asdict(bundle.settings)
    for name in sorted(asked.keys() - {"dropout"}):
        if asked[name] not in (default[name], there[name]):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {asked[name]} is not the architecture of --init-from, which has {there[name]}")
    if canvas.height != bundle.canvas.height:
        raise UserError(
            f"--init-from reads lines of {bundle.canvas.height} pixels of height and the prepared ones have "
            f"{canvas.height}: prepare them with --canvas {bundle.canvas.height} {canvas.width}"
        )
    return replace(bundle.settings, dropout=settings.dropout)


@torch.no_grad()
def start_from(model: CRNN, codec: Codec, bundle: Bundle) -> None:
    """Gives a model the bundle's weights: all, but of the classes only those that its own codec knows.

    Rows of characters that the bundle's charset lacks keep their fresh weights.
    """
    fresh, known = model.state_dict(), bundle.model.state_dict()
    pairs = [(BLANK, BLANK)]
    pairs += [
        (new, bundle.codec.charset.index(c) + 1) for new, c in enumerate(codec.charset, 1) if c in bundle.codec.charset
    ]
    new, old = (torch.tensor(side) for side in zip(*pairs, strict=True))
    for name, weight in known.items():
        if name.split(".")[0] in ("classifier", "shortcut"):
            fresh[name][new] = weight[old]
        else:
            fresh[name].copy_(weight)


def freeze_convolutions(model: CRNN) -> None:
    """Keeps the convolution layers out of learning; `model.train()` would move their batch statistics again."""
    model.convolutions.requires_grad_(False)
    model.convolutions.eval()


def parameters_to_learn(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
