"""What the sites remember of their gates, in a file of theirs that never leaves: fingerprints, verdicts, rows set aside."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrounds.tasks.folder import Folder
from fedrounds.tasks.frame import today
from fedrounds.tasks.json_file import read_json, write_json
from fedrounds.tasks.verdict import NO_SUITE, Verdict, broken, from_json
from fedrounds.tasks.ward import Ward, changed


class Remembered:
    """Every site's last verdict, what it was about, and the numbers of the rows that it set aside."""

    def __init__(self, folder: Folder, file: Path) -> None:
        self._folder, self._file = folder, file
        self._rules = folder.operations.gate.model_dump(mode="json", exclude={"suite", "rules"})
        self._kept = read_json(file)
        self._saved, self._new = 0.0, False

    def verdict(self, ward: Ward) -> Verdict | None:
        """The verdict on these very data by this very suite and these rules, if there is one, and today where the suite counts days."""
        gate, suite = self._folder.operations.gate, self._folder.suite
        if ward.problem and (suite is None or not ward.fingerprint):
            return broken(ward.name, ward.problem, gate.policy)
        if suite is None:
            return Verdict(ward.name, True, 0, (), NO_SUITE)
        kept = self._kept.get(ward.name, {})
        same = all(kept.get(key) == value for key, value in self._about(ward).items())
        holds = same and kept["day"] in ("", today(self._folder.operations).isoformat())
        return from_json(kept["verdict"]) if holds else None

    def keep(self, ward: Ward, answer: dict[str, Any]) -> Verdict:
        """Remember what the gate's process answered. Raises DataContractError where it saw other data than the run did."""
        if answer["fingerprint"] != ward.fingerprint:
            raise changed(ward.name)
        found = {key: answer[key] for key in ("verdict", "aside", "day")}
        self._kept[ward.name] = {**self._kept.get(ward.name, {}), **self._about(ward), **found}
        self._new = True
        if time.monotonic() > self._saved + 1:  # a file of all sites is not written for each of a thousand
            self.save()
        return from_json(answer["verdict"])

    def trained(self, site: str) -> str | None:
        """What `keep_trained` was last given for a site."""
        return self._kept.get(site, {}).get("trained")

    def keep_trained(self, seen: Mapping[str, str]) -> None:
        """Remember what the sites' last trained visit saw, at once."""
        for site, digest in seen.items():
            self._kept[site] = {**self._kept.get(site, {}), "trained": digest}
        self._new = True
        self.save()

    def save(self) -> None:
        """Write down what is new; what a dying process had not yet written is judged again."""
        if self._new:
            write_json(self._file, self._kept)
            self._saved, self._new = time.monotonic(), False

    def set_aside(self, ward: Ward) -> None:
        """Leave out the rows that the site's verdict sets aside. Their numbers are the site's own and go nowhere."""
        ward.leave_out(self._kept.get(ward.name, {}).get("aside", ()) if self._folder.suite else ())

    def _about(self, ward: Ward) -> dict[str, Any]:
        """What a verdict depends on."""
        assert self._folder.suite is not None
        return {"fingerprint": ward.fingerprint, "suite": self._folder.suite.hash, "gate": self._rules}
