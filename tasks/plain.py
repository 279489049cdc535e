"""Settings, records and parameters in the plain forms that MLflow's store takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings as MLflow parameters: `algorithm.local.rate`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else key)
    elif value not in (None, "", []):
        yield name, value


def numbers(site: Mapping[str, Any]) -> dict[str, Any]:
    """A site's row in a table: all that its record holds, flat."""
    return {
        **site.get("metrics", {}),
        **site.get("personal", {}),
        **site.get("training", {}),
        "bytes_out": site["bytes_out"],
        "bytes_in": site["bytes_in"],
    }
