"""Starting from a bundle's weights instead of from random ones."""

import torch
from torch import Tensor, nn

from hwr_ray.model.crnn import CRNN
from hwr_ray.recognition.bundle import Bundle
from hwr_ray.text.codec import BLANK, Codec


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
