"""skops without PyTorch: its import has scikit-learn look through all of its packages, one of which imports torch wherever that is installed.

That takes a second or more, of a run that may have no use for it.
"""

from __future__ import annotations

import sys
from typing import Any


def skops_io() -> Any:
    """The module `skops.io`. Who imports it so has torch imported only if it was before, and may import it afterwards."""
    sys.meta_path.insert(0, _WITHOUT_TORCH)
    try:
        import skops.io
    finally:
        sys.meta_path.remove(_WITHOUT_TORCH)
    return skops.io


class _WithoutTorch:
    """Says that torch is not there to whoever imports it for the first time."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        del path, target
        if name == "torch":
            raise ModuleNotFoundError("not imported for skops", name=name)


_WITHOUT_TORCH: Any = _WithoutTorch()
