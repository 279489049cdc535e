"""A hospital in this process: the only place of a run that holds patient rows. Bytes go in, bytes come out, and so do errors of ours alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedrounds.core.answer import below, handle
from fedrounds.core.errors import DataContractError
from fedrounds.core.messages import OF_TABLE, Reply, Request, decode, encode
from fedrounds.core.params import Array
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Cohort, Rows, clean
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.sources import load
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks.withheld import withheld

IN_ONE_PROCESS = 10_000  # bins: nothing leaves the process, so score histograms may be as fine as the study asks


class Ward:
    """One site: its rows, its policy, its answers."""

    def __init__(self, site: SiteFile, plan: Plan, data: Path) -> None:
        self.name, self.site, self.plan, self.data = site.name, site, plan, data
        self.policy = site.policy.model_copy(update={"finest_bins": IN_ONE_PROCESS})
        self.cohort: Cohort | None = None
        self.rows: Rows | None = None
        self.fingerprint = ""
        self.bytes_in = self.bytes_out = 0
        self._memory: Mapping[str, Array] = {}

    def __repr__(self) -> str:
        return f"Ward({self.name})"

    def load(self) -> int:
        """Read the source by the study's dictionary; returns how many patients take part."""
        with withheld(f"to read the rows of site '{self.name}'"):
            table = load(self.site.source, self.data, self.name)
            fingerprint = table.fingerprint()
            if fingerprint != self.fingerprint or self.cohort is None:
                self.cohort = clean(table, self.plan.study, self.name, self.site.absent, self.site.split_key)
                self.rows, self.fingerprint = None, fingerprint
            return self.cohort.patients

    def preprocess(self, statistics: Mapping[str, Array]) -> None:
        """Encode the rows by the study's frozen statistics, once for all rounds."""
        with withheld(f"to encode the rows of site '{self.name}'"):
            self.rows = encode_rows(self._cohort(), self.plan.study, statistics, self.plan.ones)

    def answer(self, request: bytes) -> bytes:
        """Answer one request."""
        with withheld(f"an answer of site '{self.name}'"):
            asked = decode(request, Request)
            data = self._cohort() if asked.ask in OF_TABLE or self.rows is None else self.rows
            rng = self.plan.rng(asked.round, self.name)
            self._memory, reply = handle(asked, self._memory, data, self.plan, self.policy, self.name, rng)
            sent = encode(reply)
            self.bytes_in, self.bytes_out = len(request), len(sent)
            return sent

    def refusal(self) -> str:
        """Why the site cannot take part at all; empty if it can."""
        training = int((~self._cohort().valid).sum())
        return below(self.policy) if training < self.policy.minimum_patients else ""

    def _cohort(self) -> Cohort:
        if self.cohort is None:
            raise DataContractError(f"expected the table of site '{self.name}' to be loaded, found it was not")
        return self.cohort


def read_reply(data: bytes) -> Reply:
    """The reply in these bytes; raises UpdateRejected if they are damaged."""
    return decode(data, Reply)
