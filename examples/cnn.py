"""A small convolutional network for small pictures: the example of docs/torch.md."""

from __future__ import annotations

import torch
from torch import nn


class SmallCnn(nn.Module):
    """Two convolutions, each followed by a halving of the picture, and a linear layer: a picture (channels, height, width) -> scores (outputs,).

    Height and width are multiples of 4. With the default options it has 1,898 parameters.
    """

    def __init__(self, outputs: int = 10, channels: int = 1, height: int = 8, width: int = 8, filters: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, filters, 3, padding=1)
        self.second = nn.Conv2d(filters, 2 * filters, 3, padding=1)
        self.last = nn.Linear(2 * filters * (height // 4) * (width // 4), outputs)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores (n, outputs) of pictures (n, channels, height, width)."""
        rows = nn.functional.max_pool2d(nn.functional.relu(self.first(rows)), 2)
        rows = nn.functional.max_pool2d(nn.functional.relu(self.second(rows)), 2)
        return self.last(rows.flatten(1))
