"""PyTorch modules as a study may name them: some that train, and each way in which one must not."""

from __future__ import annotations

import torch
from torch import nn


class Dropping(nn.Module):
    """It draws at random as it trains."""

    def __init__(self, features: int = 3, outputs: int = 1) -> None:
        super().__init__()
        self.inside, self.last = nn.Linear(features, 6), nn.Linear(6, outputs)

    def forward(self, rows):
        return self.last(nn.functional.dropout(torch.tanh(self.inside(rows)), 0.4, self.training))


class Halved(nn.Linear):
    """Its bias is not trained, and stays what it was made as."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.bias.requires_grad_(False)


class Normed(nn.Module):
    """Batch normalisation."""

    def __init__(self, running: bool = True) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3, track_running_stats=running), nn.Linear(3, 1)

    def forward(self, rows):
        return self.last(self.norm(rows))


class Centred(nn.Linear):
    """It takes the mean of its batch off each row."""

    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, rows):
        return super().forward(rows - rows.mean(0))


class Counting(nn.Linear):
    """It puts another buffer in the place of its own."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, rows):
        self.seen = self.seen + 1
        return super().forward(rows)


class Restless(nn.Linear):
    """It draws as it predicts."""

    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, rows):
        return super().forward(rows) + torch.randn(len(rows), 1)


class Narrow(nn.Linear):
    """It holds a number of its own in float32."""

    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, rows):
        return super().forward(rows.to(torch.float32))


class Infinite(nn.Linear):
    """Its scores are not finite."""

    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, rows):
        return super().forward(rows) / 0.0


def plain(**options):
    """Gives a module, and is no class of one."""
    return nn.Linear(**options)
