"""Everything that one run of a study holds: its files, its ledger, its wards and its helper processes. No Prefect in here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from fedrounds.core.champion import judged
from fedrounds.core.encrypted import Encrypting, third_party
from fedrounds.core.errors import GateHalt, QuorumError, StudyError
from fedrounds.core.groups import Grouped
from fedrounds.core.identity import public_key
from fedrounds.core.masked import Masking
from fedrounds.core.messages import Ask
from fedrounds.core.plan import build
from fedrounds.core.round import Asking, Closed, Keys, Roll, close_exchange, open_round
from fedrounds.core.state import RunState
from fedrounds.ledger import Ledger, Visit
from fedrounds.ledger import Verdict as Kept
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import drift, participation, privacy
from fedrounds.tasks.acts import present, ungated
from fedrounds.tasks.audit import signing_key
from fedrounds.tasks.baselines import compare
from fedrounds.tasks.child import Child
from fedrounds.tasks.clock import Clock
from fedrounds.tasks.folder import Folder, State
from fedrounds.tasks.forked import Forked
from fedrounds.tasks.gates import GATE, Gates
from fedrounds.tasks.memory import remembering
from fedrounds.tasks.origin import beginning
from fedrounds.tasks.record import as_row, record
from fedrounds.tasks.remembered import Remembered
from fedrounds.tasks.verdict import Verdict, line, to_json
from fedrounds.tasks.ward import Ward, read_reply

if TYPE_CHECKING:
    from fedrounds.tasks.dask import Crew

ALONE = 32  # sites up to which each has tasks of its own
BATCHES = 8  # tasks that carry the sites between them where there are more, at most ALONE each: a task costs more than a small site's training
TRACK = "fedrounds.tasks.track"
QUIET = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

Listener = Callable[["Run"], None]
Requests = Mapping[str, bytes]  # site -> the request as it gets it


def batch(sites: int) -> int:
    """How many of so many sites one task visits."""
    return 1 if sites <= ALONE else min(ALONE, -(-sites // BATCHES))


class Group:
    """Wards that one task visits."""

    def __init__(self, wards: Sequence[Ward], clock: Clock) -> None:
        self.wards, self._clock = tuple(wards), clock
        self.label = wards[0].name if len(wards) == 1 else f"{len(wards)} sites from {wards[0].name}"

    def __repr__(self) -> str:
        return f"Group({self.label})"

    def answer(self, requests: Requests) -> list[bytes]:
        """Each one's answer to its request."""
        with self._clock("training"):
            return [ward.answer(requests[ward.name]) for ward in self.wards]


class Run:
    """A study being run. One at a time works on a study: the ledger's lease sees to it."""

    carrier: Literal["process", "dask", "mail"] = "process"  # how requests reach the sites' rows

    def __init__(
        self,
        folder: Folder,
        state: State,
        ledger: Ledger,
        on_visit: Listener | None,
        wards: Mapping[str, Ward] | None,
        clock: Clock | None,
        crew: Crew | None = None,
    ) -> None:
        self.folder, self.place, self.ledger = folder, state, ledger
        self.on_visit = on_visit or (lambda _: None)
        self.clock = clock or Clock()
        self.plan = build(folder.study)
        head = ledger.head()
        self.state: RunState = present(ledger, head) if head else beginning(self.plan, state, ledger)
        self.lineage = ledger.begin(folder.study)
        self.visit = head.visit if head else 0
        self.wards = dict(wards if wards is not None else self._wards())
        self.holder = self._third_party()
        self.verdicts: dict[str, Verdict] = {}
        self.new_verdicts: dict[str, Verdict] = {}
        self.excluded: list[str] = []
        self.factors: dict[str, float] = {}  # sites that count for less, and how much
        self.last: dict[str, Any] = {}
        self.profiles: dict[int, Mapping[str, Any]] = {}  # visit -> profiles, as far as they were read from the ledger
        self.started = time.time()
        self.operations_version = ledger.note_operations(folder.operations, self.state.round + 1)
        self.target = folder.operations.rounds  # rounds that this run goes to
        self.flow_run, self.tasks = "", 0  # Prefect's id of this run, and how many tasks it made
        self.progress = ""  # Prefect's id of the artifact of how far this run is
        self.shown = 0.0  # and when it last moved
        self.memory = Remembered(folder, state.verdicts)  # what the sites remember of their gates
        self._asked: dict[str, Any] = {}  # site -> what its gate was asked ahead of time
        self._keyring: Keys | None = None  # of masks, if the study has them
        if crew and folder.study.masked:
            raise StudyError(
                "expected a study that masks its sums to run in one process or federated, found a cluster: leave --runner out"
            )
        self._crew, self.carrier = crew, "dask" if crew else self.carrier  # a Dask cluster, where the rows are there
        remembering(self)
        privacy.ledgers(self)
        self.forked: dict[str, Forked] = {}  # helpers that were forked ahead of the run, by module
        self._gates = crew or Gates(folder, state.log, QUIET, self.forked)
        self._track: Child | None = None
        self._tracking: Any = None

    def _wards(self) -> Mapping[str, Ward]:
        return {name: Ward(site, self.plan, self.folder.data) for name, site in self.folder.sites.items()}

    def _third_party(self) -> Ward | None:
        """Who holds the key of a study's sums and has no patients, None where nobody is so: asked for nothing but its part."""
        name = third_party(self.folder.study)
        if not name:
            return None
        return self.wards.pop(name, None) or Ward(SiteFile(name=name), self.plan, self.folder.data)

    @property
    def everybody(self) -> Mapping[str, Ward]:
        """Whoever may be asked: the sites, and a key holder that is none."""
        return self.wards | ({self.holder.name: self.holder} if self.holder else {})

    @property
    def on_dask(self) -> bool:
        """Whether the sites' rows are at a Dask cluster."""
        return self._crew is not None

    # --- helper processes ---------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Start the helper processes whose imports take seconds, so that they are ready when they are needed."""
        if self._track is None:
            self._track = Child(TRACK, self.place.log, QUIET, self.forked.pop(TRACK, None))
            self.track()  # opens MLflow's database, which takes its time too
        for name, ward in self.wards.items():
            if ward.fingerprint and name not in self._asked and self.remembered(ward) is None:
                self._asked[name] = self._gates.ask(name, ward.problem)

    def close(self) -> None:
        self._gates.kill()
        if self._track is not None:
            self._track.kill()

    # --- sites --------------------------------------------------------------------------------------------------------

    def groups(self, sites: Sequence[str]) -> list[Group]:
        """The sites in tasks: one each, or in batches when there are many."""
        everybody = self.everybody
        wards = [everybody[name] for name in sites]
        size, group = batch(len(wards)), self._crew.group if self._crew else Group
        return [group(wards[start : start + size], self.clock) for start in range(0, len(wards), size)]

    def send(self, groups: Sequence[Group], request: Requests) -> None:
        """Let sites begin with a request where they are in other processes; here a group begins when it is asked to answer."""
        if self._crew:
            self._crew.send(groups, next(iter(request.values())))

    @property
    def taking_part(self) -> list[str]:
        return [name for name in sorted(self.wards) if name not in self.excluded]

    # --- the gate -----------------------------------------------------------------------------------------------------

    def remembered(self, ward: Ward) -> Verdict | None:
        """The site's verdict on these very data by this very suite, if it has one: a gate is run again only when either changed."""
        return self.memory.verdict(ward)

    def ask_gate(self, ward: Ward) -> Any:
        """A future of the gate helper's answer for a site, which `warm_up` may have asked for already."""
        return self._asked.pop(ward.name, None) or self._gates.ask(ward.name, ward.problem)

    def judge(self, ward: Ward, answer: dict[str, Any]) -> Verdict:
        """Remember what the gate found, at the site."""
        return self.memory.keep(ward, answer)

    def admit(self, verdicts: dict[str, Verdict]) -> None:
        """Apply the gate's policy. Raises GateHalt or QuorumError; both are recorded in the ledger first."""
        self.memory.save()
        before = {site: kept.verdict for site, kept in self.ledger.verdicts().items()}
        self.verdicts = verdicts
        self.new_verdicts = {
            site: verdict for site, verdict in verdicts.items() if before.get(site) != to_json(verdict)
        }
        acting = {
            action: [s for s, v in verdicts.items() if v.action == action]
            for action in ("halt", "exclude", "down-weight")
        }
        operations = self.folder.operations
        if acting["halt"]:
            site = acting["halt"][0]
            self.failed(
                GateHalt(f"expected every site to pass the gate (policy halt), found '{site}': {line(verdicts[site])}")
            )
        self.excluded = acting["exclude"]
        self.factors = dict.fromkeys(acting["down-weight"], operations.gate.down_weight)
        left, quorum = len(self.taking_part), operations.quorum_of(len(self.wards))
        if left < quorum:
            reasons = "; ".join(f"{site}: {line(verdicts[site])}" for site in self.excluded)
            self.failed(
                QuorumError(
                    f"expected at least {quorum} of {len(self.wards)} sites to pass the gate, found {left} ({reasons})"
                )
            )

    def failed(self, error: Exception) -> None:
        """Record that a visit did not close, and raise: nothing else has changed."""
        ask = "train" if self.state.statistics else "statistics"
        self.ledger.fail(self.state.round + 1, str(error), self.started, ask)
        raise error

    # --- visits -------------------------------------------------------------------------------------------------------

    def aim(self, more: int) -> None:
        """Set the round to go to: the study's, or `more` further; the same `more` that died on its way is taken up, not begun anew."""
        if not more:
            return
        start, asked = self.ledger.noted("aim") or (0, 0)
        last = self.ledger.progress(besides="profile")
        unclosed = last is not None and (self.ledger.noted("finished") or 0) < last.visit
        end = start + more + unclosed  # all trained, but not closed: only the closing is left
        if asked != more or not start <= self.state.round < end:
            start = self.state.round
            self.ledger.note("aim", [start, more])
        self.target = start + more

    def open(self, ask: Ask) -> Asking:
        self.started = time.time()
        for ward in self.everybody.values():
            ward.begin()
        quorum = self.folder.operations.quorum_of(len(self.wards))
        roll = self.roll() if self.folder.study.masked else None
        return open_round(self.state, self.plan, ask, self.taking_part, quorum, self.factors, roll)

    def roll(self) -> Roll:
        """The keys of a masked round. Those of a round that does not close are not used again."""
        everybody = self.everybody
        roster = {name: public_key(ward.key) for name, ward in everybody.items()}
        for ward in everybody.values():
            ward.roster = roster
        keyring, self._keyring = self._keyring, None
        return Roll(roster, 1 + max(ward.vault.number for ward in everybody.values()), keyring)

    def opening(self, masking: Masking | Grouped | Encrypting) -> None:
        """A masked sum is about to be opened. Sites of this process forget with it whose sums they opened."""

    def aggregate(self, asking: Asking, replies: Sequence[bytes]) -> Asking | Closed:
        """Close an exchange; a closed round is in the ledger when this returns."""
        try:
            closed = close_exchange(asking, self.plan, map(read_reply, replies))
        except QuorumError as error:
            self.failed(error)
            raise
        if isinstance(closed, Asking):
            if closed.masking and closed.masking.phase == "open":
                self.opening(closed.masking)
            return closed
        self._keyring = closed.keyring
        known = any(decision.round == closed.scored for decision in self.ledger.promotions())
        rule = self.folder.operations.promotion
        failed = ungated(self.ledger, closed.scored) if rule.gates == "passed" and not known else []
        state, decision = judged(asking.state, closed, rule, known, failed)
        closed = replace(closed, state=state)
        self.last = record(self.plan, closed, self.wards, self.verdicts, self.excluded, decision, self.factors)
        self.last |= drift.noted(self, closed) | participation.noted(self, closed) | {"carrier": self.carrier}
        self.last |= {"privacy": spent} if (spent := privacy.spent(self, state.round)) else {}
        digest = asking.state.model_digest
        decisions = [as_row(decision, closed.scored, digest)] if decision else []
        verdicts = {site: Kept(verdict.passed, to_json(verdict)) for site, verdict in self.new_verdicts.items()}
        visit = Visit(
            state.round,
            closed.ask,
            digest,
            state,
            self.last,
            self.folder.suite.hash if self.folder.suite else "",
            self.operations_version,
            self.started,
            verdicts,
            decisions,
        )
        self.visit = self.ledger.commit(self.visit, visit)
        self.state, self.new_verdicts = state, {}
        self.on_visit(self)
        return closed

    def unprofiled(self) -> bool:
        """Whether a site that takes part has data that no profile has seen."""
        return drift.unprofiled(self)

    def profiled(self, sites: Iterable[str], visit: int) -> None:
        """Remember that sites were profiled on a visit, which counts once it is in the ledger."""
        drift.remember(self, sites, visit)

    @property
    def scored(self) -> bool:
        """Whether the present model was scored by the last visit."""
        last = self.ledger.progress(besides="profile")  # which scores nothing and changes no model
        return last is not None and last.ask == "score" and last.round == self.state.round

    # --- baselines ----------------------------------------------------------------------------------------------------

    def baselines(self) -> None:
        """What each site would have alone, and what one pool of all rows would give; under differential privacy nobody is told."""
        if self.plan.study.privacy.dp is None:
            compare(self)

    # --- tracking -----------------------------------------------------------------------------------------------------

    def track(self) -> None:
        """Let MLflow catch up with the ledger, without waiting; while it writes, visits gather and are written together."""
        self.warm_up()
        if self._tracking is not None and self._tracking.done():
            self._tracking.result()
            self._tracking = None
        if self._tracking is None:
            self._tracking = self._ask_track()

    def finish_tracking(self) -> Any:
        """A future: everything is in MLflow, plots and note included. The plots are drawn here, while MLflow catches up and is told the rest."""
        from fedrounds.reports.summary import plots

        self.warm_up()
        self.track()
        told = self._ask_track("tell")
        folder = self.place.own / "plots"
        folder.mkdir(exist_ok=True)
        visits, baselines = self.ledger.visits(), self.ledger.noted("baselines") or {}
        for name, png in plots(self.folder.study, visits, baselines, self.ledger.standing().champion).items():
            (folder / f"{name}.png").write_bytes(png)
        told.result()  # what went wrong there would be wrong again
        return self._ask_track("end")

    def _ask_track(self, *more: Literal["tell", "end"]) -> Any:
        assert self._track is not None
        return self._track.call(self.place.told | dict.fromkeys(more, True))


def ahead(folder: Folder, state: State, wards: Mapping[str, Ward]) -> dict[str, Forked]:
    """The helpers that a run will want, forked before its ledger is open; a gate only where no verdict is remembered."""
    memory = Remembered(folder, state.verdicts)
    asked = any(ward.fingerprint and memory.verdict(ward) is None for ward in wards.values())
    env = {**os.environ, **QUIET}
    return {module: Forked(module, (), state.log, env) for module in (TRACK, *([GATE] if asked else ()))}


@contextmanager
def opened(
    folder: Folder,
    state: State,
    on_visit: Listener | None = None,
    wards: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    kind: type[Run] | None = None,
    crew: Crew | None = None,
) -> Iterator[Run]:
    """A run that holds the study's lease, and lets go of everything at the end, whatever happens.

    Args:
        kind: of a run: one whose sites are in this process by default.
    """
    os.environ.update(QUIET)
    ledger = Ledger.open(state.ledger, signing_key(state))
    try:
        ledger.acquire()
        try:
            run = (kind or Run)(folder, state, ledger, on_visit, wards, clock, crew)
            try:
                yield run
            finally:
                run.close()
        finally:
            ledger.release()
    finally:
        ledger.close()
