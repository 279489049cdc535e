"""The base of all that a site file says of its source: frozen, nothing unknown, and never shown in an error, since a URL holds a password."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
