"""The helper processes that judge sites' rows: one, and a second where many sites wait."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fedrounds.tasks.child import Child
from fedrounds.tasks.folder import Folder
from fedrounds.tasks.forked import Forked

GATE = "fedrounds.tasks.gate"
MANY = 200  # sites from which a second helper pays: below, its import takes longer than it spares


class Gates:
    """Helpers that start when they are first asked, and are asked in turn.

    Args:
        log: where they say what goes wrong.
        forked: helpers that were forked already, by module; one for a gate is taken out and is the first.
    """

    def __init__(
        self, folder: Folder, log: Path, env: Mapping[str, str], forked: dict[str, Forked] | None = None
    ) -> None:
        self._folder, self._log, self._env, self._forked = folder, log, env, {} if forked is None else forked
        self._helpers: list[Child | None] = [None] * (2 if len(folder.sites) >= MANY else 1)
        self._turns = itertools.cycle(range(len(self._helpers)))

    def ask(self, site: str, problem: str = "") -> Future[dict[str, Any]]:
        """A future of what the gate finds at a site. A helper that died is replaced by a new one.

        Args:
            problem: how the site's table breaks the contract, where a ward has found that out already.
        """
        turn = next(self._turns)
        helper = self._helpers[turn]
        if helper is None or helper.over:
            self._helpers[turn] = helper = Child(GATE, self._log, self._env, self._forked.pop(GATE, None))
        data = None if self._folder.data == self._folder.path else str(self._folder.data)
        request = {"folder": str(self._folder.path), "data": data, "site": site, "problem": problem}
        return helper.call(request)

    def kill(self) -> None:
        for helper in self._helpers:
            if helper is not None:
                helper.kill()
