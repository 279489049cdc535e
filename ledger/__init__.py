"""The truth of a study: everything continues from it; MLflow and Prefect are written from it and never read to decide."""

from fedrounds.ledger.ledger import Ledger
from fedrounds.ledger.rows import Decision, Entry, Failure, Head, Lineage, Verdict, Visit

__all__ = ["Decision", "Entry", "Failure", "Head", "Ledger", "Lineage", "Verdict", "Visit"]
