"""The truth of a study: everything continues from it; MLflow and Prefect are written from it and never read to decide."""

from fedrounds.ledger.ledger import Ledger
from fedrounds.ledger.rows import Act, Decision, Entry, Failure, Head, Lineage, Verdict, Visit
from fedrounds.ledger.standing import Standing

__all__ = ["Act", "Decision", "Entry", "Failure", "Head", "Ledger", "Lineage", "Standing", "Verdict", "Visit"]
