"""Masked sums with sites lost at every phase: exactly the sum of those who were heard, or nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrounds.core import identity, masked
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.masked import Masking, Opened, Self
from fedrounds.core.messages import Reply, Request, decode, encode
from fedrounds.core.privacy.epoch import COMPLETE, degree, quorum_of_shares, threshold
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.privacy.sheet import Sheet

PHASES = ("keys", "shares", "masked", "agree", "open")
OUTER = Request("ab" * 32, 1, 0, "train", "cd" * 32, {"theta": np.zeros(2)})
KEYS = [identity.new_key() for _ in range(100)]


def exchange(sites, bits, lost, unheard, seed):
    """One exchange.

    Args:
        lost: phase -> sites whose answer does not come.
        unheard: of those, the ones that never got the question either.

    Returns:
        What was opened, and the words that each site would have it add up.
    """
    names = [f"s{number:02d}" for number in range(sites)]
    me = {site: Self(site, key, {}) for site, key in zip(names, KEYS, strict=False)}
    roster = {site: identity.public_key(it.key) for site, it in me.items()}
    me = {site: Self(site, it.key, roster) for site, it in me.items()}
    sheet = Sheet({"delta": Grid(np.array(1.0), bits, True), "n": Grid(np.array(64.0))}, {"delta": (5,), "n": (2,)})
    rng = np.random.default_rng(seed)
    sums = {site: {"delta": rng.uniform(-1.5, 1.5, 5), "n": rng.integers(-60, 60, 2) * 1.0} for site in names}
    vaults, words, stage = dict.fromkeys(names, Vault()), {}, Masking(OUTER, tuple(names), roster, 1, 1, 1)
    while isinstance(stage, Masking):
        request, replies = stage.request, []
        for site in stage.sites:
            if site in lost[stage.phase] and site in unheard:
                continue
            asked = Request(**{**vars(request), "arrays": {**request.arrays, **stage.private(site)}})
            asked = decode(encode(asked), Request)
            if stage.phase == "masked":
                words[site] = sheet.words(sums[site], len(stage.roster))
                vaults[site], arrays = masked.protect(asked, sums[site], sheet, vaults[site], me[site])
            else:
                vaults[site], arrays = masked.answer_phase(asked, vaults[site], me[site])
            reply = Reply(asked.study, 1, 0, asked.ask, asked.base, site, "", arrays)
            if site not in lost[stage.phase]:
                replies.append(decode(encode(reply), Reply))
        stage = stage.step(replies)
    return stage, words


def heard_by(sites, lost):
    """Who is heard in the sum; None if too few answer some phase."""
    there = {f"s{number:02d}" for number in range(sites)}
    needed = max(3, threshold(sites))
    members = there - lost["keys"]
    dealers = members - lost["shares"]
    answered = [members, dealers, *(dealers - lost[phase] for phase in PHASES[2:])]
    return sorted(answered[2]) if all(len(some) >= needed for some in answered) else None


def judged(sites, bits, lost, unheard, seed):
    """Whether the sum opened; it is exact if it did, and nothing came out if not."""
    heard = heard_by(sites, lost)
    if heard is None:
        with pytest.raises(QuorumError, match="nothing was opened"):
            exchange(sites, bits, lost, unheard, seed)
        return False
    opened, words = exchange(sites, bits, lost, unheard, seed)
    assert isinstance(opened, Opened)
    assert opened.heard == tuple(heard)
    for name in opened.words:
        expected = words[heard[0]][name].copy()
        for site in heard[1:]:
            expected += words[site][name]
        np.testing.assert_array_equal(opened.words[name], expected)
    return True


@st.composite
def patterns(draw):
    """A federation, and who is lost where: few enough, just too many, or at random."""
    sites = draw(st.integers(3, 12))
    names = [f"s{number:02d}" for number in range(sites)]
    spare = sites - threshold(sites)
    lost = {}
    for phase in PHASES:
        many = draw(st.sampled_from((0, 0, 0, min(1, spare), spare, spare + 1)))
        lost[phase] = set(draw(st.permutations(names))[:many])
    return (
        sites,
        draw(st.sampled_from((16, 32, 64))),
        lost,
        set(draw(st.sets(st.sampled_from(names)))),
        draw(st.integers(0, 99)),
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(patterns())
def test_whoever_is_lost_at_any_phase_the_sum_is_exact_or_stays_closed(pattern):
    judged(*pattern)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("sites", [3, 4, 5, 7, 10])
def test_as_many_as_may_be_lost_at_one_phase_and_not_one_more(sites, phase):
    spare = sites - threshold(sites)
    for many, opens in ((spare, True), (spare + 1, False)):
        lost = {**{key: set() for key in PHASES}, phase: {f"s{number:02d}" for number in range(many)}}
        assert judged(sites, 16, lost, set(), 0) is opens


@pytest.mark.parametrize("seed", [0, 3])
def test_in_a_large_federation_on_a_ring_any_third_may_be_lost_at_every_phase(seed):
    sites, rng = 67 + seed, np.random.default_rng(seed)
    names, spare = [f"s{number:02d}" for number in range(sites)], sites - threshold(sites)
    gone = [set(rng.permutation(names)[:spare].tolist()) for _ in range(3)]
    lost = dict(zip(PHASES, (set(), set(), *gone), strict=True))
    assert degree(sites, sites) < sites - 1
    assert judged(sites, 32, lost, gone[0], seed)


@given(st.integers(3, 3000), st.data())
def test_the_ring_cannot_be_cut_nor_a_member_surrounded_and_its_secrets_open_to_enough_and_to_no_liars(roster, data):
    members = data.draw(st.integers(max(3, threshold(roster)), roster))
    near, liars, lost = degree(members, roster), -(-roster // 3) - 1, members - threshold(roster)
    quorum = quorum_of_shares(members, roster)
    assert liars < quorum <= near + 1 - lost
    assert members - lost >= threshold(roster)
    assert near > liars + lost or near == members - 1
    assert near // 2 * 2 >= min(members - 1, liars + lost + 1) or members <= COMPLETE
    assert 2 * threshold(roster) - members > liars  # two sets of signers share an honest one


def bent(arrays):
    """Every way in which one array of a request may be none that the site can use."""
    for name, array in arrays.items():
        yield {other: it for other, it in arrays.items() if other != name}
        yield {**arrays, "more": array}
        yield {**arrays, name: array.astype(np.float64)}
        yield {**arrays, name: np.zeros((0,), np.uint8)}
        yield {**arrays, name: np.full(5000, 255, np.uint8)}
        yield {**arrays, name: np.full((3, 3, 3), 255, np.uint8)}
        yield {**arrays, name: array[..., None]}


def test_whatever_a_message_holds_it_is_answered_or_refused_and_a_refusal_changes_nothing():
    names = ["s00", "s01", "s02"]
    roster = {site: identity.public_key(key) for site, key in zip(names, KEYS, strict=False)}
    me = {site: Self(site, key, roster) for site, key in zip(names, KEYS, strict=False)}
    sheet = Sheet({"n": Grid(np.array(64.0))}, {"n": (1,)})
    vaults, stage, refused = dict.fromkeys(names, Vault()), Masking(OUTER, tuple(names), roster, 1, 1, 1), 0
    while isinstance(stage, Masking):
        replies = []
        for site in names:
            arrays = {**stage.request.arrays, **stage.private(site)}
            asked = Request(**{**vars(stage.request), "arrays": arrays})

            def answered(request, vault=vaults[site], site=site, phase=stage.phase):
                if phase == "masked":
                    return masked.protect(request, {"n": np.ones(1)}, sheet, vault, me[site])
                return masked.answer_phase(request, vault, me[site])

            ours = {name: array for name, array in arrays.items() if name != "theta"}
            plain = {name: array for name, array in arrays.items() if name == "theta"}
            for other in bent(ours):
                if stage.phase == "masked" and "more" in other:
                    continue  # what is asked is the plain request's business, and is part of the announcement
                with pytest.raises(UpdateRejected, match="expected"):
                    answered(Request(**{**vars(asked), "arrays": {**plain, **other}}))
                refused += 1
            vaults[site], found = answered(asked)
            replies.append(Reply(asked.study, 1, 0, asked.ask, asked.base, site, "", found))
        stage = stage.step(replies)
    assert refused > 400
    assert stage.heard == tuple(names)
