"""The truth of a study: everything continues from it; MLflow and Prefect are written from it and never read to decide."""

from fedrounds.ledger.ledger import Ledger
from fedrounds.ledger.rows import Act, Attempt, Decision, Entry, Failure, Head, Lineage, Receipt, Verdict, Visit
from fedrounds.ledger.standing import Standing

__all__ = [
    "Act",
    "Attempt",
    "Decision",
    "Entry",
    "Failure",
    "Head",
    "Ledger",
    "Lineage",
    "Receipt",
    "Standing",
    "Verdict",
    "Visit",
]
