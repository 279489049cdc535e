"""The `[protocol]` part of a study: how its messages are written."""

from __future__ import annotations

from typing import Literal

from fedrounds.core.frozen import Frozen

Codec = Literal["float64", "float32", "rotated8"]


class Wire(Frozen):
    """How messages are written: `float32` halves the bytes of training and rounds parameters and updates to a relative 2^-24; `rotated8`
    sends parameters so, and updates in a quarter of that, to a hundredth (`core/rotation.py`)."""

    codec: Codec = "float64"
