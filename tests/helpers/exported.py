"""Models that are exported."""

import torch

# Two of three blocks in use, positions of another size.
SMALL = {"image_size": 40, "out_indices": [1, 2]}


def build(model_class, config):
    """A model whose every parameter matters: fresh box heads are zero and would hide errors."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
