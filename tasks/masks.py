"""What a study that masks its sums asks of the rest of its folder: what needs one site's numbers is refused before anything runs."""

from __future__ import annotations

from collections.abc import Collection

from fedrounds.core import encrypted
from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Operations
from fedrounds.core.privacy.epoch import FEWEST
from fedrounds.core.study import Study


def enough(study: Study, sites: Collection[str]) -> None:
    """Raise StudyError where a study that hides its sums has too few sites to hide among, or its key holder is none of them."""
    if study.masked and len(sites) < FEWEST:
        raise StudyError(
            f"expected at least {FEWEST} sites for masked sums, found {len(sites)}: with two, each would know the other's part"
        )
    if ckks := encrypted.protecting(study):
        encrypted.among(ckks, sites)


def require(study: Study, operations: Operations) -> None:
    """Raise StudyError where operations.toml asks for what masked sums hide."""
    if study.masked is None:
        return
    gate = operations.gate
    hidden = {
        "`margin` under [promotion]: no site's own loss is known": "margin" in operations.promotion.model_fields_set,
        "[drift]: no site's own histogram is known": operations.drift is not None,
        "`down-weight` under [gate]: no site's own update is known": "down-weight"
        in (gate.policy, gate.warning, gate.info),
    }
    for what, asked in hidden.items():
        if asked:
            raise StudyError(
                f"expected nothing in operations.toml that needs the numbers of one site, found {what} where sums are hidden: leave it out, or"
                " set privacy.protect to plain"
            )
