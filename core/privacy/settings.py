"""The `[privacy]` part of a study: what is hidden, from whom."""

from __future__ import annotations

from fedrounds.core.frozen import Frozen
from fedrounds.core.privacy.patient import Differential


class Privacy(Frozen):
    """What is hidden, from whom."""

    dp: Differential | None = None
