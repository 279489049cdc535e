"""The state of a study between exchanges: frozen, passed in and returned, and kept in the ledger as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedrounds.core.errors import StateError, UpdateRejected
from fedrounds.core.messages import pack, unpack
from fedrounds.core.params import Array, Vector, digest


@dataclass(frozen=True)
class Champion:
    """The model that a challenger must beat: it is scored beside it, on the same rows at the same visit."""

    round: int
    theta: Vector  # (size,)


@dataclass(frozen=True)
class RunState:
    """Where a study stands.

    `round` counts closed training rounds, so `theta` is the model of that round (0: the initial one). `exchange` is above 0 only inside
    a round that takes several. `work` is what such a round remembers between exchanges.
    """

    study: str  # digest of the protocol
    round: int
    exchange: int
    theta: Vector  # (size,)
    memory: Mapping[str, Vector]  # of the server optimiser, and of a combining rule that has one
    statistics: Mapping[str, Array]  # empty until round 0 has closed
    work: Mapping[str, Array] = field(default_factory=dict[str, Array])
    champion: Champion | None = None

    @property
    def model_digest(self) -> str:
        """SHA-256 of canonical parameters, preprocessing statistics and study digest: the model's name, wherever it is stored."""
        return digest({"theta": self.theta, **self.statistics}, self.study)


def dump(state: RunState) -> bytes:
    """The state as bytes; `load` gives it back bit for bit."""
    arrays = {"theta": state.theta}
    for kind in ("memory", "statistics", "work"):
        arrays |= {f"{kind}/{name}": array for name, array in getattr(state, kind).items()}
    header: dict[str, Any] = {"study": state.study, "round": state.round, "exchange": state.exchange, "champion": None}
    if state.champion:
        arrays["champion"] = state.champion.theta
        header["champion"] = [state.champion.round]
    return pack(header, arrays)


def load(data: bytes) -> RunState:
    """The state that `dump` wrote. Raises StateError if the bytes are damaged."""
    try:
        return _read(*unpack(data))
    except (UpdateRejected, KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"expected a stored state in the ledger, found damaged bytes ({error}): restore the ledger from a copy"
        ) from None


def _read(header: dict[str, Any], arrays: dict[str, Array]) -> RunState:
    kinds: dict[str, dict[str, Array]] = {"memory": {}, "statistics": {}, "work": {}}
    for name, array in arrays.items():
        kind, slash, rest = name.partition("/")
        if slash:
            kinds[kind][rest] = array
    champion: Champion | None = None
    if header["champion"] is not None:
        number, *_ = header["champion"]  # states of 0.1 kept the champion's losses too
        champion = Champion(number, arrays["champion"])
    return RunState(header["study"], header["round"], header["exchange"], arrays["theta"], champion=champion, **kinds)
