"""A hospital in this process: the only place of a run that holds patient rows. Bytes go in, bytes come out, and so do errors of ours alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedrounds.core.algorithm import SiteState
from fedrounds.core.answer import Policy, below, empty, handle, handle_masked
from fedrounds.core.errors import DataContractError, StateError
from fedrounds.core.identity import new_key
from fedrounds.core.masked import Self
from fedrounds.core.messages import OF_TABLE, Reply, Request, answer_to, decode, encode
from fedrounds.core.params import Array
from fedrounds.core.phases import PHASES, step_of
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Cohort, Rows, clean
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.privacy.holder import Safe
from fedrounds.core.privacy.private import events
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.table import Table
from fedrounds.site.budget import Budgets
from fedrounds.sources import load
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import privacy
from fedrounds.tasks.memory import Memory, begins
from fedrounds.tasks.traffic import Traffic
from fedrounds.tasks.withheld import withheld

IN_ONE_PROCESS = 10_000  # bins: nothing leaves the process, so score histograms may be as fine as the study asks


class Ward(Traffic):
    """One site: its rows, its policy, its answers."""

    def __init__(self, site: SiteFile, plan: Plan, data: Path, policy: Policy | None = None) -> None:
        """Args:
        policy: what binds it; by default the site file's, with score histograms as fine as the study asks, and explanations.
        """
        super().__init__()
        self.name, self.site, self.plan, self.data = site.name, site, plan, data
        lifted = {"finest_bins": IN_ONE_PROCESS, "merge_scores": False, "explanations": True}
        self.policy = policy or site.policy.model_copy(update=lifted)
        self.cohort: Cohort | None = None
        self.rows: Rows | None = None
        self.fingerprint = ""
        self.problem = ""  # how the table breaks the contract; such a ward takes part in nothing
        self.aside: tuple[int, ...] = ()  # rows of the table that the gate set aside, by number
        self.budgets: Budgets | None = (
            None  # of its privacy: under differential privacy nothing is answered without one
        )
        self._memory = Memory()
        self.key = (
            new_key() if plan.study.masked else b""
        )  # of a site of this process; a hospital that is apart has its own
        self.vault = empty(plan)
        self.roster: Mapping[str, bytes] = {}  # site -> public key, under masks

    def __repr__(self) -> str:
        return f"Ward({self.name})"

    def load(self, strict: bool = True) -> int:
        """Read the source by the study's dictionary; returns how many patients take part.

        Args:
            strict: raise what breaks the contract; else hold it as `problem`, and have no patients.
        """
        try:
            table, fingerprint = self._table()
        except DataContractError:
            if strict:
                raise
            self._hold(
                f"expected a table at site '{self.name}', found one that cannot be read: `fedrounds check` there says why"
            )
            self.fingerprint = ""  # nothing is known of these data
            return 0
        if fingerprint != self.fingerprint or self.cohort is None:
            self.fingerprint, self.aside = fingerprint, ()
            self._clean(table, strict)
        return self.cohort.patients if self.cohort else 0

    def leave_out(self, rows: Sequence[int]) -> None:
        """Set rows of the table aside, by number: they neither train nor judge. Without them the table may keep to the contract."""
        if tuple(rows) == self.aside:
            return
        table, fingerprint = self._table()
        if fingerprint != self.fingerprint:
            raise changed(self.name)
        self.aside = tuple(rows)
        self._clean(table.take(np.delete(np.arange(table.rows), list(rows))), strict=False)

    def _table(self) -> tuple[Table, str]:
        with withheld(f"to read the rows of site '{self.name}'"):
            table = load(self.site.source, self.data, self.name)
            return table, table.fingerprint()

    def _clean(self, table: Table, strict: bool) -> None:
        try:
            with withheld(f"to read the rows of site '{self.name}'"):
                self.cohort = clean(table, self.plan.study, self.name, self.site.absent, self.site.split_key)
            self.rows, self.problem = None, ""
        except DataContractError as error:
            if strict:
                raise
            self._hold(str(error))

    def _hold(self, problem: str) -> None:
        self.problem, self.cohort, self.rows = problem, None, None

    def preprocess(self, statistics: Mapping[str, Array]) -> None:
        """Encode the rows by the study's frozen statistics, once for all rounds."""
        with withheld(f"to encode the rows of site '{self.name}'"):
            self.rows = encode_rows(self._cohort(), self.plan.study, statistics, self.plan.ones)

    def answer(self, request: bytes) -> bytes:
        """Answer one request."""
        with withheld(f"an answer of site '{self.name}'"):
            asked = decode(request, Request)
            memory = self._memory.before(begins(asked))
            if self.plan.study.masked:
                me = Self(self.name, self.key, self.roster)
                self.vault, left, reply = self.masked(asked, self.vault, me, memory)
            else:
                left, reply = self.reply(asked, memory)
            if asked.ask == "train" and not reply.refusal:
                self._memory.keep(asked.round, left)
            sent = encode(reply)
            self.crossed(step_of(asked), len(request), len(sent))
            return sent

    def reply(self, asked: Request, memory: SiteState) -> tuple[SiteState, Reply]:
        """Answer one request out of a memory; returns the one that it leaves."""
        with withheld(f"an answer of site '{self.name}'"):
            if events(self.plan.study, asked.ask, "champion" in asked.arrays):
                return self._charged(asked, memory)
            return self._answered(asked, memory)

    def masked(
        self, asked: Request, vault: Vault | Safe, me: Self, memory: SiteState
    ) -> tuple[Vault | Safe, SiteState, Reply]:
        """Answer one request of a study that hides its sums; returns the secrets and the memory that it leaves."""
        with withheld(f"an answer of site '{self.name}'"):
            charged = bool(events(self.plan.study, asked.ask, "champion" in asked.arrays))
            number = self._reserve(asked) if charged else 0
            if isinstance(number, str):
                return vault, memory, answer_to(asked, self.name, number)
            data = None if asked.ask in PHASES else self._data(asked)
            rng = self.plan.rng(asked.round, self.name)
            vault, memory, reply = handle_masked(asked, vault, me, memory, data, self.plan, self.policy, rng)
            if charged:  # whoever carries it keeps the bytes, together with the secrets that they used up
                self._settle(number, reply, keep=False)
            return vault, memory, reply

    def _data(self, asked: Request) -> Cohort | Rows:
        return self._cohort() if asked.ask in OF_TABLE or self.rows is None else self.rows

    def _answered(self, asked: Request, memory: SiteState) -> tuple[SiteState, Reply]:
        rng = self.plan.rng(asked.round, self.name)
        return handle(asked, memory, self._data(asked), self.plan, self.policy, self.name, rng)

    def _charged(self, asked: Request, memory: SiteState) -> tuple[SiteState, Reply]:
        """An answer that costs privacy: written down before a row is touched, and given again as the same bytes for nothing."""
        before = self._ledger.reply(privacy.question(asked, self.fingerprint, self.name))
        if before is not None:
            return memory, decode(before, Reply)
        number = self._reserve(asked)
        if isinstance(number, str):
            return memory, answer_to(asked, self.name, number)
        after, reply = self._answered(asked, memory)
        self._settle(number, reply, keep=True)
        return after, reply

    def _reserve(self, asked: Request) -> int | str:
        """Write down what an answer will cost; the line's number, or why the budget does not allow it."""
        if refusal := privacy.uncounted(self.plan.study, self.policy):
            return refusal
        study, question = self.plan.study, privacy.question(asked, self.fingerprint, self.name)
        limits = privacy.limits(study, self.policy)
        costs = events(study, asked.ask, "champion" in asked.arrays)
        return self._ledger.reserve(self.name, self.plan.digest, asked.round, question, costs, *limits)

    def _settle(self, number: int, reply: Reply, keep: bool) -> None:
        if reply.refusal:
            self._ledger.void(number)
        else:
            self._ledger.spend(number, encode(reply), keep)

    @property
    def _ledger(self) -> Budgets:
        if self.budgets is None:
            raise StateError(
                f"expected a privacy budget for site '{self.name}', found none: this way of running it keeps no ledger"
            )
        return self.budgets

    def remember(self, folder: Path) -> None:
        """Keep what it remembers between rounds in a file in there, and go on from what is there already."""
        self._memory = Memory(folder / f"{self.name}.memory")

    @property
    def remembers(self) -> bool:
        """Whether it keeps state between rounds."""
        return bool(self._memory)

    def refusal(self) -> str:
        """Why the site cannot take part at all; empty if it can."""
        training = int((~self._cohort().valid).sum())
        barred = self.plan.study.model.barred(self.policy.modules)
        return below(self.policy) if training < self.policy.minimum_patients else barred

    def _cohort(self) -> Cohort:
        if self.cohort is None:
            raise DataContractError(f"expected the table of site '{self.name}' to be loaded, found it was not")
        return self.cohort


def changed(site: str) -> DataContractError:
    """What to raise where a site's data are others than a moment ago."""
    return DataContractError(
        f"expected the data of site '{site}' to hold still, found them changed during the gate: run again"
    )


def read_reply(data: bytes) -> Reply:
    """The reply in these bytes; raises UpdateRejected if they are damaged."""
    return decode(data, Reply)
