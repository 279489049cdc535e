"""Prefect's settings as environment variables, without saying each group of them again for every group around it.

Prefect writes all of its settings out that way when it sets up its logging, and twice more when it makes a server; each time a group's own
groups are written, thrown away and written anew, a twentieth of a second for each. The answer stays the same to the letter.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

_alone: ContextVar[bool] = ContextVar("alone", default=False)  # whether a group is asked for what it says itself


def without_repeats() -> None:
    """Let it be so in this process. Best before `from prefect import …`, which sets up logging."""
    from prefect.settings.base import PrefectBaseSettings as Group

    if "model_dump" in vars(Group):
        return
    all_of, said = Group.to_environment_variables, Group.model_dump

    def to_environment_variables(self: Any, *how: Any, **more: Any) -> dict[str, str]:
        before = _alone.set(True)
        try:
            return all_of(self, *how, **more)
        finally:
            _alone.reset(before)

    def model_dump(self: Any, **how: Any) -> dict[str, Any]:
        if _alone.get() and how.get("exclude") is None and how.get("include") is None:
            how["exclude"] = {name for name in type(self).model_fields if isinstance(getattr(self, name), Group)}
        return said(self, **how)

    Group.to_environment_variables, Group.model_dump = to_environment_variables, model_dump  # type: ignore[method-assign]
