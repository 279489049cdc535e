"""One question is opened of one set of sites, by whoever opens: also by a site that sent nothing to the first sum.

Seven sites, two of them in league with the coordinator: as many as masks withstand. It calls a and b lost, has them open the sum of the
others, and asks the same again, now with a: the difference of two sums would be what a sent.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrounds.core import masked
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.identity import new_key, public_key
from fedrounds.core.masked import Masking, Opened, Self
from fedrounds.core.messages import Request, answer_to
from fedrounds.core.phases import PHASES
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.privacy.sheet import Sheet

SITES, LIARS = tuple("abcdefg"), tuple("fg")
SHEET = Sheet({"delta": Grid(np.array(8.0), 32, clip=True)}, {"delta": (3,)})
ASKED = Request("study", 4, 0, "train", "base", {})


class World:
    def __init__(self):
        keys = {site: new_key() for site in SITES}
        self.roster = {site: public_key(key) for site, key in keys.items()}
        self.me = {site: Self(site, keys[site], self.roster) for site in SITES}
        self.vaults = dict.fromkeys(SITES, Vault())
        self.sent = {site: np.arange(3.0) + number for number, site in enumerate(SITES)}
        self.refused: dict[str, str] = {}

    def answers(self, asking, sites):
        for site in sites:
            request = replace(asking.request, arrays={**asking.request.arrays, **asking.private(site)})
            vault = replace(self.vaults[site], told={}) if site in LIARS else self.vaults[site]
            try:
                if request.ask in PHASES:
                    self.vaults[site], arrays = masked.answer_phase(request, vault, self.me[site])
                else:
                    sums = {"delta": self.sent[site]}
                    self.vaults[site], arrays = masked.protect(request, sums, SHEET, vault, self.me[site])
            except UpdateRejected as error:
                self.refused[site] = str(error)
            else:
                yield answer_to(request, site, "", arrays)

    def opened(self, senders, openers, keyring=None) -> Opened:
        """The sum of those who send, with the help of those who open."""
        asking = Masking(ASKED, SITES, self.roster, 1, 4, 5)
        asking = replace(asking, phase="masked", keyring=keyring) if keyring else asking
        while not isinstance(asking, Opened):
            who = {"masked": senders, "agree": openers, "open": openers}.get(asking.phase, SITES)
            asking = asking.step(list(self.answers(asking, who)), {})
        return asking


def first(world):
    """The sum without a and b, which they help to open."""
    return world.opened("cdefg", "abcfg")


def again(world, before):
    return world.opened("acdefg", "abdefg", before.keyring)


def test_who_sent_nothing_opens_the_same_question_of_no_other_sites():
    world = World()
    before = first(world)
    with pytest.raises(QuorumError, match="expected signatures over who was heard of at least 5 sites"):
        again(world, before)
    assert sorted(world.refused) == ["a", "b"]
    assert all("their difference would be one site's" in said for said in world.refused.values())


def test_a_build_in_which_only_who_sent_remembers_gives_one_sites_numbers_away():
    world = World()
    before = first(world)
    for site in "ab":
        world.vaults[site] = replace(world.vaults[site], told={})
    after = again(world, before)
    sums = [SHEET.sums(it.words, it.sites)[0]["delta"] for it in (before, after)]
    np.testing.assert_allclose(sums[1] - sums[0], world.sent["a"], atol=1e-6)


def test_a_question_shown_as_another_one_is_not_the_one_that_the_senders_signed():
    """Else the coordinator would tell a and b of another subject than the one that they help to open."""
    world = World()
    asking = Masking(ASKED, SITES, world.roster, 1, 4, 5)
    for who in (SITES, SITES, "cdefg"):
        asking = asking.step(list(world.answers(asking, who)), {})
    subject = np.frombuffer(bytes(32), np.uint8)
    request = replace(asking.request, arrays={**asking.request.arrays, "subject": subject})
    with pytest.raises(UpdateRejected, match="signed for this announcement"):
        masked.answer_phase(request, world.vaults["a"], world.me["a"])
