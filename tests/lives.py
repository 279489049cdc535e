"""A run that dies, and lives on: for tests of what outlives it."""

from __future__ import annotations

from fedrounds.core.round import Asking
from fedrounds.tasks.run import opened
from fedrounds.tasks.verdict import Verdict


class Killed(Exception):
    """The process is gone."""


def live(read, place, visits, answers, mortal=("train",), folds=True, heard=None):
    """Run until so many more answers were given, then die: between two answers, or before they are folded.

    Args:
        visits: what is asked, in order; those that have closed are not asked again.
        mortal: in which visits it may die, and whose answers count.
        folds: whether it may die once all have answered.
        heard: where each exchange's (round, ask, sites) is noted.

    Returns:
        The state that it ended with.
    """
    with opened(read, place) as run:
        for ward in run.wards.values():
            ward.load()
            if run.state.statistics:
                ward.preprocess(run.state.statistics)
        run.admit({site: Verdict(site, True, 0, (), "") for site in run.wards})
        for ask in visits[run.visit :]:
            asking = run.open(ask)
            while isinstance(asking, Asking):
                if heard is not None:
                    heard.append((asking.request.round, ask, asking.sites))
                replies = []
                for site in asking.sites:
                    if ask in mortal and not answers:
                        raise Killed
                    answers -= ask in mortal
                    replies.append(run.wards[site].answer(asking.requests[site]))
                if folds and ask in mortal and not answers:
                    raise Killed
                asking = run.aggregate(asking, replies)
            if ask == "statistics":
                for ward in run.wards.values():
                    ward.preprocess(run.state.statistics)
        return run.state
