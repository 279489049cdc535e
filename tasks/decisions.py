"""Decisions and people's acts as MLflow shows them: the aliases `champion` and `challenger`, tags, descriptions, `decision.json`.

A part of the projector (`tasks.track`): written from the ledger, every word of it may be written twice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrounds.core.study import Study
from fedrounds.ledger import Act, Decision, Ledger, Standing
from fedrounds.ledger.standing import in_order, said, standings
from fedrounds.reports.model_card import card, summary
from fedrounds.tasks.report import put

CHAMPION, CHALLENGER = "champion", "challenger"
MOST = 5000  # characters that MLflow keeps of a tag


class Decisions:
    """Where aliases point and what is said of versions.

    Args:
        versions: round -> registered version; the projector adds to it.
        lineage: the lineage's id.
        runs: what a run is about -> its id; the projector adds to it.
        artifacts: the folder of the runs' artifacts.
    """

    def __init__(
        self,
        client: Any,
        ledger: Ledger,
        study: Study,
        lineage: str,
        versions: Mapping[int, str],
        runs: Mapping[str, str],
        artifacts: Path,
    ) -> None:
        self.client, self.ledger, self.study, self.artifacts = client, ledger, study, artifacts
        # What `MlflowClient` calls, without its question whether the model is a prompt, which reads all versions for each word about one.
        self.registry = client._get_registry_client()
        self.lineage, self.versions, self.runs = lineage, versions, runs
        self.tags: dict[str, dict[str, str]] = {}  # what a run is about -> tags that the projector has still to write
        self.reports: list[str] = []  # what was put right that somebody else had changed
        self.restored = False
        self.pointed: dict[str, str] = {}  # alias -> version, as MLflow has it
        self.moved = 0  # how often an alias was set or taken away

    def restore(self) -> None:
        """Once a run, before anything is written: put the aliases back, and report it, where they are not as we left them.

        A projection that was killed may have moved one on, to where a decision or an act that is still to be written puts it.
        What is still to be written is asked last: visits go on being committed meanwhile.
        """
        if self.restored:
            return
        self.restored = True
        self.pointed = dict(self.client.get_registered_model(self.study.name).aliases)
        events = self._events()
        visits, acts = self.ledger.unprojected(), self.ledger.unprojected_acts()
        new = [event.visit in visits if isinstance(event, Decision) else event in acts for event in events]
        stood = [(now.champion, now.challenger) for now in standings(events)]
        stood = stood[new.index(True) if True in new else len(events) :]
        if stood[0] == (None, None):  # the aliases may be an earlier lineage's
            return
        for alias, rounds in zip((CHAMPION, CHALLENGER), zip(*stood, strict=True), strict=True):
            ours = [None if round is None else self.versions.get(round) for round in rounds]
            found, wanted = self.pointed.get(alias), ours[0]
            if found in ours or (wanted is None and found not in self.versions.values()):
                continue
            self._point(alias, wanted)
            was = f"on version {found}" if found else "on no version"
            put = f"put back on version {wanted}" if wanted else "taken away"
            self.reports.append(
                f"the alias '{alias}' of '{self.study.name}' was moved by hand: found {was}, {put}, as the ledger says"
            )

    def forget(self, version: str) -> None:
        """A version is gone, and MLflow dropped its aliases with it."""
        self.pointed = {alias: held for alias, held in self.pointed.items() if held != version}

    def write(self, visit: int, about: Mapping[int, Mapping[str, Any]], acts: Sequence[Act]) -> None:
        """Tags, descriptions and `decision.json` of every round that was decided on or acted on.

        Args:
            visit: MLflow holds the visits up to this one.
            about: round -> the record of the visit that decided on it, of those that are new.
            acts: people's acts that are new.
        """
        now, touched = Standing(), set(about)
        said: dict[int, tuple[str, str]] = {}
        done: defaultdict[int, list[Act]] = defaultdict(list)
        crowned: set[int] = set()  # what was champion once keeps its card, whether it was told of then or is only now
        for event in self._until(visit):
            words = now.words(event)
            said |= words
            crowned |= {round for round, (word, _) in words.items() if word == "promoted"}
            if isinstance(event, Act):
                touched |= words.keys() if event in acts else set()
                for round in words:
                    done[round].append(event)
            now = now.after(event)
        for round in sorted(touched):
            self._tell(
                round,
                about.get(round) or self.ledger.deciding(round).record,
                said[round],
                done[round],
                round in crowned,
            )

    def point(self, visit: int) -> None:
        """The aliases go where the ledger has them after this visit, and what people did then; a later one may be there."""
        *_, now = standings(self._until(visit))
        for alias, round in ((CHAMPION, now.champion), (CHALLENGER, now.challenger)):
            if round is not None or alias == CHALLENGER:
                self._point(alias, None if round is None else self.versions[round])

    def _events(self) -> list[Decision | Act]:
        return in_order(self.ledger.promotions(), self.ledger.acts())

    def _until(self, visit: int) -> list[Decision | Act]:
        return [event for event in self._events() if event.visit <= visit]

    def _tell(
        self, round: int, record: Mapping[str, Any], last: tuple[str, str], acts: Sequence[Act], crowned: bool
    ) -> None:
        """What a version's page and its round's run say: how its model scored, whether it became champion and why, and what people did."""
        version, run = self.versions[round], self.runs[f"round {round}"]
        tags = {"fedrounds.decision": last[0], "fedrounds.reason": last[1][:MOST]}
        self.tags[f"round {round}"] = tags
        for key, value in tags.items():
            self.registry.set_model_version_tag(self.study.name, version, key, value)
        trained = self.ledger.visits(after=self.ledger.closed(round) - 1, limit=1)[0]
        words = summary(self.study, record, trained.record, [said(act) for act in acts])
        self.registry.update_model_version(self.study.name, version, words)
        document = {
            "round": round,
            **record["decision"],
            "now": last[0],
            "acts": [{"act": a.act, "round": a.round, "reason": a.reason, "by": a.by, "at": a.at} for a in acts],
        }
        folder = self.artifacts / run / "artifacts"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "decision.json").write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
        if crowned:
            logged = self.ledger.logged("visit", trained.visit)
            told = card(self.study, record, trained.record, lineage=self.lineage, model=trained.model, logged=logged)
            put(folder / "model_card.md", told)

    def _point(self, alias: str, version: str | None) -> None:
        if self.pointed.get(alias) == version:
            return
        self.moved += 1
        if version is None:
            self.client.delete_registered_model_alias(self.study.name, alias)
            self.pointed.pop(alias)
        else:
            self.client.set_registered_model_alias(self.study.name, alias, version)
            self.pointed[alias] = version
