"""What of a ledger MLflow holds already."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select

from fedrounds.ledger import schema
from fedrounds.ledger.database import put

if TYPE_CHECKING:
    from fedrounds.ledger.database import Database
    from fedrounds.ledger.rows import Act

ACTS_HELD = "acts in MLflow"  # the note of the last act that MLflow holds


class Projected(ABC):
    """The part of a ledger that is about its projection."""

    _database: Database

    @abstractmethod
    def acts(self) -> list[Act]:
        """What people did, in order."""

    @abstractmethod
    def note(self, key: str, value: Any) -> None:
        """Keep a small JSON value under `key`, in place of the last one."""

    @abstractmethod
    def noted(self, key: str) -> Any:
        """The value under `key`, None if there is none."""

    def unprojected(self) -> list[int]:
        """The visits that MLflow does not hold yet, in order."""
        done = select(schema.projected.c.visit)
        with self._database.read() as connection:
            waiting = select(schema.visits.c.visit).where(schema.visits.c.visit.not_in(done))
            return list(connection.scalars(waiting.order_by(schema.visits.c.visit)))

    def mark_projected(self, visit: int) -> None:
        """Say that MLflow holds a visit; saying it again changes nothing."""
        with self._database.write() as connection:
            put(connection, schema.projected, {"visit": visit}, {"at": time.time()})

    def projected(self) -> int:
        """How many visits MLflow was written to hold."""
        with self._database.read() as connection:
            return connection.scalar(select(func.count()).select_from(schema.projected)) or 0

    def forget_projected(self) -> None:
        """MLflow lost what it held: every visit and act is to be written again."""
        with self._database.write() as connection:
            connection.execute(delete(schema.projected))
            put(connection, schema.notes, {"key": ACTS_HELD}, {"value": 0})

    def unprojected_acts(self) -> list[Act]:
        """People's acts that MLflow does not hold yet, in order."""
        held = self.noted(ACTS_HELD) or 0
        return [act for act in self.acts() if act.number > held]

    def mark_acts_projected(self, number: int) -> None:
        """Say that MLflow holds the acts up to this one; saying it again changes nothing."""
        self.note(ACTS_HELD, number)
