"""Fine-tuning: initializes a model with a bundle's weights and freezes convolutions."""

import torch
from torch import Tensor, nn

from hwr_ray.model.crnn import CRNN
from hwr_ray.recognition.bundle import Bundle
from hwr_ray.text.codec import BLANK, Codec


@torch.no_grad()
def start_from(model: CRNN, codec: Codec, bundle: Bundle) -> None:
    """Copies the bundle's weights into a model, whose charset may differ.

    The class rows are matched by character. Rows of characters that are missing from the bundle's charset keep their
    initial weights.
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
    """Excludes the convolution layers and their batch statistics from training. Call it after `model.train()`, which
    would update the batch statistics again."""
    model.convolutions.requires_grad_(False)
    model.convolutions.eval()


def parameters_to_learn(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
