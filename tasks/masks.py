"""What a study that masks its sums asks of the rest of its folder: what needs one site's numbers is refused before anything runs."""

from __future__ import annotations

from collections.abc import Collection

from fedrounds.core import encrypted
from fedrounds.core.errors import StudyError, UpdateRejected
from fedrounds.core.operations import Operations
from fedrounds.core.privacy.epoch import FEWEST
from fedrounds.core.privacy.noised import honest
from fedrounds.core.strategy import Exact
from fedrounds.core.study import Study
from fedrounds.core.worse import FEWEST as FEWEST_COUNTED


def enough(study: Study, sites: Collection[str]) -> None:
    """Raise StudyError where a study that hides its sums has too few sites to hide among, or its key holder is none of them."""
    if study.masked and len(sites) < FEWEST:
        raise StudyError(
            f"expected at least {FEWEST} sites for masked sums, found {len(sites)}: with two, each would know the other's part"
        )
    groups = study.masked.groups if study.masked else 1
    if groups > 1 and len(sites) < FEWEST * groups:
        raise StudyError(
            f"expected at least {FEWEST * groups} sites for {groups} groups of {FEWEST} or more under masks, found {len(sites)}: with two in"
            " a group, each would know the other's part"
        )
    if (combine := study.combine) and len(sites) < combine.fewest:
        raise StudyError(
            f"expected at least {combine.fewest} sites for {combine.title}, found {len(sites)}: among so few it holds against nobody"
        )
    if study.masked and study.masked.margin is not None and len(sites) < FEWEST_COUNTED:
        raise StudyError(
            f"expected at least {FEWEST_COUNTED} sites to count those that got worse, found {len(sites)}: among so few the count says too"
            " much of each; leave out privacy.protect.margin"
        )
    if study.masked and study.privacy.dp:
        try:
            honest(len(sites), study.privacy.dp.colluders)
        except UpdateRejected as error:
            raise StudyError(str(error)) from None
    if ckks := encrypted.protecting(study):
        encrypted.among(ckks, sites)


def require(study: Study, operations: Operations) -> None:
    """Raise StudyError where operations.toml asks for what masked sums hide, or for weights of a rule that has none."""
    gate = operations.gate
    weighs = "down-weight" in (gate.policy, gate.warning, gate.info)
    if weighs and isinstance(study.algorithm, Exact):
        raise StudyError(
            "expected nothing in operations.toml that weighs a site, found `down-weight` under [gate] with an exact fit, which counts every"
            " patient alike: set it to exclude or warn"
        )
    if (combine := study.combine) and combine.alike and weighs:
        raise StudyError(
            f"expected nothing in operations.toml that weighs a site, found `down-weight` under [gate] with {combine.what}, which counts every"
            " site alike: set it to exclude or warn"
        )
    if study.masked is None:
        return
    hidden = {
        "`margin` under [promotion]: no site's own loss is known (from five sites on privacy.protect.margin counts under masks those that got"
        " worse)": "margin" in operations.promotion.model_fields_set,
        "[drift]: no site's own histogram is known": operations.drift is not None,
        "`down-weight` under [gate]: no site's own update is known": weighs,
    }
    for what, asked in hidden.items():
        if asked:
            raise StudyError(
                f"expected nothing in operations.toml that needs the numbers of one site, found {what} where sums are hidden: leave it out, or"
                " set privacy.protect to plain"
            )
