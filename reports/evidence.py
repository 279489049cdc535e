"""Everything that a report, a card and a summary are made from: what the ledger holds, read once. No database in here.

`visits` are the ledger's entries in order; other kinds of visits than those that score or train may be among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fedrounds.core.coefficients import Coefficients
from fedrounds.core.evaluate import HEADLINE, LOSS
from fedrounds.core.portrait import Portrait
from fedrounds.core.regression import Regression
from fedrounds.core.study import Study

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """A lineage as its ledger tells it."""

    study: Study
    lineage: str
    created: float
    visits: Sequence[Any] = ()
    decisions: Sequence[Any] = ()
    acts: Sequence[Any] = ()  # what people did about versions
    champion: int | None = None  # the round whose model it is
    failures: Sequence[Any] = ()
    verdicts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    baselines: Mapping[str, Any] = field(default_factory=dict[str, Any])
    matrix: Mapping[str, Any] = field(default_factory=dict[str, Any])  # every model at every site, if asked for
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the registered version that it started from
    explained: Mapping[str, Any] = field(default_factory=dict[str, Any])  # what the model goes by, if asked for
    operations: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checkpoint: str = ""  # the audit log's signed head
    coefficients: Coefficients | None = None  # of the model of round `shown`
    regression: Regression | None = None  # its table, where an exact fit made it
    portrait: Portrait | None = None  # of a model that has no coefficients but groups
    software: Mapping[str, str] = field(default_factory=dict[str, str])

    def with_coefficients(
        self, found: Coefficients | None, fitted: Regression | None = None, groups: Portrait | None = None
    ) -> Evidence:
        """The same, with those of the model shown."""
        return replace(self, coefficients=found, regression=fitted, portrait=groups)

    @property
    def metric(self) -> str:
        """The study's headline metric: auc, r2, or the explained share."""
        return HEADLINE[self.study.target.kind]

    @property
    def loss(self) -> str:
        """The study's loss: log_loss, mse, or a squared distance."""
        return LOSS[self.study.target.kind]

    @cached_property
    def scored(self) -> Mapping[int, Any]:
        """Round -> the first visit that scored its model: the one that decided on it, and that MLflow charts."""
        found: dict[int, Any] = {}
        for visit in self.visits:
            if visit.record.get("scored") is not None:
                found.setdefault(visit.record["scored"], visit)
        return found

    @cached_property
    def trained(self) -> Mapping[int, Any]:
        """Round -> the visit that trained it."""
        return {visit.round: visit for visit in self.visits if visit.ask == "train"}

    @property
    def rounds(self) -> int:
        """Closed training rounds."""
        return max((visit.round for visit in self.visits), default=0)

    @property
    def shown(self) -> int | None:
        """The round whose model a report is about: the champion, else the last that was scored, else the last."""
        if self.champion is not None and self.champion in self.scored:
            return self.champion
        return max(self.scored, default=self.rounds or None)

    @property
    def record(self) -> Record:
        """The scores of the model shown; an empty record if there are none."""
        visit = self.scored.get(self.shown) if self.shown is not None else None
        return visit.record if visit else {"metrics": {}, "sites": {}, "histogram": []}

    @property
    def last(self) -> Record:
        """The record of the last visit that went to the sites' patients."""
        return next((visit.record for visit in reversed(self.visits) if visit.record.get("sites") is not None), {})

    @cached_property
    def training_rows(self) -> Mapping[str, float]:
        """Site -> patients it trained the model shown on, or last trained on at all."""
        found: dict[str, float] = {}
        for number, visit in self.trained.items():
            if self.shown is None or number <= self.shown:
                found |= {
                    site: values["training"]["patients"]
                    for site, values in visit.record["sites"].items()
                    if "training" in values
                }
        return found

    @cached_property
    def sites(self) -> Sequence[str]:
        """Every site that ever took part, was kept out or refused, in name order."""
        names = set(self.verdicts)
        for visit in self.visits:
            for kind in ("sites", "excluded", "refused"):
                names |= set(visit.record.get(kind) or {})
        return sorted(names)

    def of(self, site: str, metric: str) -> float | None:
        """A site's value of a metric for the model shown."""
        return self.record["sites"].get(site, {}).get("metrics", {}).get(metric)

    def gained(self, record: Record, metric: str, site: str = "") -> float | None:
        """How much higher than the model that the lineage started from `record` is: at a site, or over all; None where either is unknown."""
        start = self.scored[0].record if self.origin and 0 in self.scored else {"sites": {}, "metrics": {}}
        both = [
            (of["sites"].get(site, {}).get("metrics", {}) if site else of["metrics"]).get(metric)
            for of in (record, start)
        ]
        return None if None in both else both[0] - both[1]

    def compared(self, kind: str, site: str, metric: str) -> float | None:
        """A site's value of a metric for a model to compare with; `kind` is local or pooled."""
        return self.baselines.get(kind, {}).get(site, {}).get(metric)

    @property
    def alike(self) -> bool:
        """Whether the models to compare with had as many rounds as the one shown, and the same hospitals' rows."""
        return self.same_hospitals and self.baselines.get("rounds", self.rounds) == self.shown

    @property
    def same_hospitals(self) -> bool:
        """Whether the models to compare with are of those hospitals' rows that judge the one shown."""
        return set(self.baselines.get("sites", self.record["sites"])) == set(self.record["sites"])

    def latest(self, key: str) -> Any:
        """The value under `key` in the last record that has one."""
        return next((visit.record[key] for visit in reversed(self.visits) if visit.record.get(key)), None)
