"""Secure aggregation: a test for every guarantee, and a coordinator that does what it likes with fewer than a third of the roster.

Where an attack is refused, the same attack succeeds once the check that refuses it is taken out: so it is an attack.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrounds.core import identity
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.privacy import epoch as epochs
from fedrounds.core.privacy import excess, masks, secagg, shamir, unmask
from fedrounds.core.privacy.epoch import as_bytes
from fedrounds.core.privacy.seals import unsealed
from fedrounds.core.privacy.secagg import Vault

A, B = b"A" * 32, b"B" * 32  # two announcements


class World:
    """A roster of sites that have dealt, and a coordinator that holds what they sent."""

    def __init__(self, sites=4, batch=2, roster=None):
        self.names = [f"s{number}" for number in range(sites)]
        self.keys = {
            site: identity.new_key() for site in [*self.names, *(f"t{n}" for n in range((roster or sites) - sites))]
        }
        self.roster = {site: identity.public_key(key) for site, key in self.keys.items()}
        self.vaults, made = {}, {}
        for site in self.names:
            self.vaults[site], made[site] = secagg.make_keys(
                Vault(), self.keys[site], "study", site, 1, batch, self.roster
            )
        self.epoch = self.gathered(made)
        self.dealt = {}
        for site in self.names:
            self.vaults[site], self.dealt[site] = secagg.deal(
                self.vaults[site], self.keys[site], site, self.epoch, self.roster
            )
        self.uploads, self.words, self.true = {}, {}, {}

    def gathered(self, made):
        return epochs.epoch_of("study", 1, made.items(), self.roster)

    def protect(self, site, announced=A, index=0, asked=None, words=None):
        self.true[site] = np.arange(64, dtype=np.uint32) + len(self.true) if words is None else words
        self.vaults[site], sent = secagg.protect(
            self.vaults[site],
            self.keys[site],
            site,
            {"w": self.true[site].copy()},
            announced,
            index,
            asked or self.names,
        )
        signature = sent.pop("signature").tobytes()
        self.words[site] = sent
        self.uploads[site] = unmask.heard(self.epoch, announced, site, sent, signature, self.roster)

    def agree(self, site, alive, announced=A, index=0, uploads=None):
        self.vaults[site], said = secagg.agree(
            self.vaults[site], self.keys[site], site, announced, index, alive, uploads or self.uploads, self.roster
        )
        return said["signature"].tobytes()

    def forged(self, site, alive, announced=A):
        """What a member that is with the coordinator signs."""
        words = secagg.words_of_survivors(announced, secagg.digest_of(alive))
        return identity.seal(self.keys[site], words)

    def disclose(self, site, alive, signatures, announced=A, index=0, asked=None):
        sealed = {one: self.sealed_by(one, site, index) for one in self.names}
        self.vaults[site], said = secagg.disclose(
            self.vaults[site], site, announced, index, asked or self.names, alive, signatures, sealed, self.roster
        )
        return said["shares"]

    def told(self, site, alive, signatures):
        """The link of its noise that a site tells as it opens."""
        sealed = {one: self.sealed_by(one, site) for one in self.names}
        asked = (site, A, 0, self.names, alive, signatures, sealed, self.roster)
        self.vaults[site], said = secagg.disclose(self.vaults[site], *asked)
        return said["spare"].tobytes()

    def sealed_by(self, dealer, holder, index=0):
        return self.dealt[dealer]["sealed"][index, self.epoch.holders()[dealer].index(holder)].tobytes()

    def half(self, dealer, holder, secrets, kind, index=0):
        """A share as a holder that is with the coordinator gives it away: whatever it was asked."""
        seal = masks.opened(secrets.seal)
        both = unsealed(seal, self.sealed_by(dealer, holder, index), self.epoch, index, dealer, holder)
        return both[: shamir.SHARE] if kind == "own" else both[shamir.SHARE :]

    def signed(self, alive, announced=A, index=0, by=None):
        return {site: self.agree(site, alive, announced, index) for site in by or self.names}

    def run(self, alive, by=None):
        """An honest exchange over `alive`; returns the sum."""
        for site in alive:
            self.protect(site)
        signatures = self.signed(alive)
        opened = {site: self.disclose(site, alive, signatures) for site in by or self.names}
        return self.sum(alive, opened)

    def sum(self, alive, opened):
        total = {"w": sum((self.words[site]["w"] for site in alive[1:]), self.words[alive[0]]["w"].copy())}
        unmask.unmask(self.epoch, total, A, 0, self.names, alive, self.dealt, opened)
        return total["w"]


def refused(said, call, *args, **kwargs):
    with pytest.raises(UpdateRejected, match=said):
        call(*args, **kwargs)


# --- guarantees -------------------------------------------------------------------------------------------------------


def test_the_sum_is_exact_whoever_is_lost():
    world = World(4)
    got = world.run(["s0", "s1", "s3"], by=["s0", "s1", "s2"])
    np.testing.assert_array_equal(got, world.true["s0"] + world.true["s1"] + world.true["s3"])


def test_noise_that_a_sum_can_do_without_is_told_once_for_the_survivors_that_enough_have_signed_for():
    world = World(4)
    everybody, three = world.names, world.names[:3]
    for site in everybody:
        world.protect(site)
    links = {site: secagg.link_of(world.vaults[site], site, A, 0) for site in everybody}
    assert len(set(links.values())) == 4
    signed = world.signed(everybody)
    refused("expected the survivors that were signed for, found others", world.told, "s0", three, signed)
    refused(
        "expected 3 signatures over the survivors, found 2", world.told, "s0", everybody, dict(list(signed.items())[:2])
    )
    for site in everybody:
        assert world.told(site, everybody, signed) == excess.spare(links[site], 4, 4) != excess.NOTHING
        refused("expected index 0 still closed, was asked to open it again", world.told, site, everybody, signed)
        refused("expected an index that was not used", secagg.link_of, world.vaults[site], site, A, 0)


def test_where_the_fewest_survive_no_noise_is_told_and_by_who_was_lost_none_ever():
    world = World(4)
    three = world.names[:3]
    for site in world.names:
        world.protect(site)
    signed = world.signed(three)
    assert {world.told(site, three, signed) for site in world.names} == {excess.NOTHING}


def test_an_index_serves_one_announcement():
    world = World()
    world.protect("s0")
    for announced in (A, B):
        refused("index that was not used", world.protect, "s0", announced)
    world.protect("s0", B, index=1)
    refused("index that was not used, found 2", world.protect, "s0", A, index=2)


def test_a_site_that_has_signed_that_others_were_heard_sends_nothing_more():
    world = World()
    for site in ("s0", "s1", "s2"):
        world.protect(site)
    world.agree("s3", ["s0", "s1", "s2"])
    refused("index that was not used", world.protect, "s3")


def test_an_epoch_number_is_answered_once_and_cannot_be_used_up():
    world = World()
    make = lambda number, batch=2: secagg.make_keys(  # noqa: E731
        world.vaults["s0"], world.keys["s0"], "study", "s0", number, batch, world.roster
    )
    for number in (0, 1):
        refused("replayed", make, number)
    for number in (2 + secagg.FURTHEST, 2**64 - 1):
        refused("further", make, number)
    for batch in (0, 257, 2**63):
        refused("1 to 256 exchanges", make, 2, batch)
    after, _ = make(1 + secagg.FURTHEST)
    assert (after.number, after.epoch, after.used, len(after.secrets)) == (1 + secagg.FURTHEST, None, {}, 2)
    assert repr(after) == f"Vault(epoch {after.number}, 2 unused)"


def test_a_site_deals_once_in_an_epoch_and_to_its_own_fresh_keys_alone():
    world = World()
    deal = lambda vault, epoch: secagg.deal(vault, world.keys["s0"], "s0", epoch, world.roster)  # noqa: E731
    refused("to deal once", deal, world.vaults["s0"], world.epoch)
    other = World()
    fresh = replace(world.vaults["s0"], epoch=None)
    refused("expected the roster's key", deal, fresh, other.epoch)
    refused("with the keys made here", deal, fresh, replace(world.epoch, number=2))
    newer, _ = secagg.make_keys(Vault(), world.keys["s0"], "study", "s0", 1, 2, world.roster)
    refused("older ones", deal, newer, world.epoch)
    wider, _ = secagg.make_keys(Vault(), world.keys["s0"], "study", "s0", 1, 3, world.roster)
    refused("keys for 3 exchanges, found 2", deal, wider, world.epoch)


@pytest.mark.parametrize("part", ["mask_keys", "seal_keys", "signatures", "identities"])
def test_keys_that_a_member_did_not_sign_for_this_epoch_are_refused(part):
    world = World()
    array = getattr(world.epoch, part).copy()
    array[1] = array[1] + 1
    said = "expected the roster's key of 's1'" if part == "identities" else "expected keys signed by 's1'"
    refused(said, epochs.verify, replace(world.epoch, **{part: array}), world.roster)
    refused("signed by", epochs.verify, replace(world.epoch, number=2), world.roster)
    refused("signed by", epochs.verify, replace(world.epoch, study="other"), world.roster)


def test_members_that_go_by_another_roster_are_refused():
    world = World()
    more = {**world.roster, "new": identity.public_key(identity.new_key())}
    refused("of the 5 sites", epochs.verify, world.epoch, more)
    refused("signed by 's0'", epochs.verify, replace(world.epoch, roster=5), more)


def forged_keys(world, site, key):
    """Keys that a member signs for itself, one of them put there by hand."""
    vault, made = secagg.make_keys(Vault(), world.keys[site], "study", site, 1, 2, world.roster)
    mask_keys = made["mask_keys"].copy()
    mask_keys[0] = as_bytes(key)
    words = epochs.words_of_keys("study", 1, site, mask_keys, made["seal_keys"], epochs.roster_digest(world.roster))
    signature = as_bytes(identity.seal(world.keys[site], words))
    return vault, {**made, "mask_keys": mask_keys, "signature": signature}


@pytest.mark.parametrize("weak", sorted(epochs.WEAK))
@pytest.mark.parametrize("times", [0, 1])
def test_weak_keys_are_refused_and_whose_they_are_is_said(weak, times):
    world = World(batch=2)
    made = {
        site: secagg.make_keys(Vault(), world.keys[site], "study", site, 1, 2, world.roster)[1] for site in world.names
    }
    number = weak + times * 2**255
    with pytest.raises(UpdateRejected, match="weak one"):
        masks.shared(masks.opened(masks.key_pair()[0]), number.to_bytes(32, "little"))
    _, made["s2"] = forged_keys(world, "s2", number.to_bytes(32, "little"))
    refused("weak one of 's2'", world.gathered, made)


def test_two_members_with_one_key_in_whatever_words_are_refused(monkeypatch):
    world = World(batch=2)
    made = {
        site: secagg.make_keys(Vault(), world.keys[site], "study", site, 1, 2, world.roster)[1] for site in world.names
    }
    copied = made["s1"]["mask_keys"][0].tobytes()
    other = bytes([*copied[:31], copied[31] | 128])  # the same point to X25519
    mine = masks.opened(masks.key_pair()[0])
    assert masks.shared(mine, copied) == masks.shared(mine, other)
    for key, said in ((copied, "found one twice"), (other, "weak one of 's2'")):
        _, made["s2"] = forged_keys(world, "s2", key)
        refused(said, world.gathered, made)
    monkeypatch.setattr(epochs, "PRIME", 2**256)
    assert world.gathered(made).members == tuple(world.names)  # a build without the check takes it
    seeds = {masks.seed(b"s", b"pair", A), secagg.pair_seed(b"s", A, "s0", "s1"), secagg.pair_seed(b"s", A, "s0", "s2")}
    assert len(seeds) == 3  # and even then their masks are two
    assert secagg.pair_seed(b"s", A, "s1", "s0") == secagg.pair_seed(b"s", A, "s0", "s1")


def test_a_coordinator_cannot_choose_an_epoch_of_its_friends():
    refused("at least 7 of the 10 sites of the roster", World, 6, roster=10)
    assert World(7, roster=10).epoch.threshold == 7
    refused("at least 3 of the 2", World, 2)


def test_of_each_member_a_site_opens_its_own_mask_or_its_key_never_both_and_once():
    world = World()
    alive = ["s0", "s1", "s2"]
    for site in world.names:
        world.protect(site)
    signatures = world.signed(alive)
    rows = world.disclose("s0", alive, signatures)
    for dealer, share in zip(world.names, map(bytes, rows), strict=True):
        marks = world.dealt[dealer]["marks"][0, world.epoch.holders()[dealer].index("s0")]
        known = [secagg.mark(share) == mark.tobytes() for mark in marks]
        assert known == ([True, False] if dealer in alive else [False, True])
    refused("still closed", world.disclose, "s0", alive, signatures)
    refused("index that is still closed", world.agree, "s0", ["s0", "s1", "s2", "s3"])
    assert 0 not in world.vaults["s0"].secrets


def test_nothing_is_opened_without_enough_signatures_over_the_very_same_survivors():
    world = World(7)
    alive = world.names[:6]
    for site in alive:
        world.protect(site)
    signatures = world.signed(alive)
    few = dict(list(signatures.items())[:4])
    other = {site: world.forged(site, world.names[:5]) for site in ("s4", "s5", "s6")}
    for some in (few, {**few, **other}, {**few, "s6": signatures["s5"], "nobody": signatures["s6"]}):
        refused("5 signatures over the survivors, found 4", world.disclose, "s0", alive, some)
    refused("5 survivors of 7, found 4", world.disclose, "s0", alive[:4], signatures)
    refused("survivors among those who were asked", world.disclose, "s0", alive, signatures, asked=alive[:5])
    refused("announcement that was answered", world.disclose, "s0", alive, signatures, announced=B)
    refused("in name order", world.disclose, "s0", [*alive[1:], "s0"], signatures)
    refused("survivors that were signed for", world.disclose, "s0", world.names[:5], signatures)
    assert world.disclose("s0", alive, signatures).any()


def test_one_set_of_survivors_an_index_ever():
    world = World(7)
    for site in world.names:
        world.protect(site)
    first = world.agree("s0", world.names[:6])
    assert world.agree("s0", world.names[:6]) == first  # again: the same
    refused("survivors that were signed for, found others", world.agree, "s0", world.names)


# --- a coordinator that does what it likes ----------------------------------------------------------------------------


def isolated(world, victim, liars, alive, announced, shown, opened):
    """What the coordinator and its friends make of the victim's words with all that was opened; its true words if the attack worked."""
    kept = {site: world.held[site] for site in liars}
    words, needed = {"w": world.words[victim]["w"].copy()}, epochs.quorum_of_shares(len(world.names), len(world.roster))

    def secret(of, kind):
        holders, shares = world.epoch.holders()[of], {}
        for site, rows in opened.items():
            if (of in alive) == (kind == "own"):
                shares[holders.index(site) + 1] = rows[world.names.index(of)].tobytes()
        for site in liars:
            shares[holders.index(site) + 1] = world.half(of, site, kept[site], kind)
        return shamir.combine(shares, needed)

    seeds = [(secagg.own_seed(secret(victim, "own"), announced), -1)]
    for other in shown:
        if other != victim:
            key = kept[other].mask if other in liars else secret(other, "key")
            mine = world.epoch.mask_keys[world.names.index(victim), 0].tobytes()
            seed = secagg.pair_seed(masks.shared(masks.opened(key), mine), announced, victim, other)
            seeds.append((seed, -1 if victim < other else 1))
    masks.mask(words, seeds)
    return words["w"]


def two_announcements(world):
    """The victim is told of others than the rest is; those who open believe that it was with them."""
    world.held = {"s0": world.vaults["s0"].secrets[0]}  # s0 is with the coordinator
    world.protect("s3", A)
    world.protect("s2", A)
    world.protect("s1", B, asked=["s0", "s1", "s3"])
    alive = ["s0", "s1", "s2"]
    digest = b"x" * 32
    world.uploads["s0"] = digest, identity.seal(world.keys["s0"], secagg.words_of_upload(A, "s0", digest))
    signatures = {"s0": world.forged("s0", alive), **{site: world.agree(site, alive) for site in ("s2", "s3")}}
    opened = {site: world.disclose(site, alive, signatures) for site in ("s2", "s3")}
    return isolated(world, "s1", ["s0"], alive, B, ["s0", "s1", "s3"], opened)


def test_a_victim_that_is_told_another_announcement_is_no_survivor(monkeypatch):
    refused("'s1' who did not: nothing was signed", two_announcements, World())
    real = identity.sealed
    monkeypatch.setattr(
        identity, "sealed", lambda key, words, s: words.startswith(b"fedrounds words") or real(key, words, s)
    )
    world = World()
    np.testing.assert_array_equal(two_announcements(world), world.true["s1"])


def among_friends():
    """An epoch of one victim and three of the coordinator's friends, on a roster of ten."""
    world = World(4, roster=10)
    friends = ["s0", "s2", "s3"]
    world.held = {site: world.vaults[site].secrets[0] for site in friends}
    world.protect("s1")
    return isolated(world, "s1", friends, world.names, A, world.names, {}), world.true["s1"]


def test_a_coordinator_cannot_hide_a_victim_among_its_friends_alone(monkeypatch):
    refused("at least 7 of the 10 sites of the roster", among_friends)
    monkeypatch.setattr(epochs, "threshold", lambda _roster: 3)  # as if the epoch's four members set it
    np.testing.assert_array_equal(*among_friends())


def split_view(world):
    """To one half the victim survived, to the other it was lost: its own mask and its key, both opened."""
    world.held = {}
    for site in world.names:
        world.protect(site)
    views = (["s0", "s1", "s2"], ["s0", "s2", "s3"])
    secrets = {}
    for alive in views:
        signatures = {site: world.agree(site, alive) for site in world.names}
        before = dict(world.vaults)
        opened = {site: world.disclose(site, alive, signatures) for site in world.names}
        world.vaults = before
        shares = {world.epoch.holders()["s1"].index(site) + 1: rows[1].tobytes() for site, rows in opened.items()}
        secrets["s1" in alive] = shamir.combine(shares, 3)
    own, key = secrets[True], secrets[False]
    words, seeds = {"w": world.words["s1"]["w"].copy()}, [(secagg.own_seed(own, A), -1)]
    for other in ("s0", "s2", "s3"):
        theirs = world.epoch.mask_keys[world.names.index(other), 0].tobytes()
        seed = secagg.pair_seed(masks.shared(masks.opened(key), theirs), A, "s1", other)
        seeds.append((seed, -1 if other > "s1" else 1))
    masks.mask(words, seeds)
    return words["w"]


def test_two_sets_of_survivors_are_never_both_opened(monkeypatch):
    refused("survivors that were signed for, found others", split_view, World())
    real = secagg.agree
    monkeypatch.setattr(secagg, "agree", lambda vault, *rest: real(replace(vault, signed={}), *rest))
    real_open = secagg.disclose
    monkeypatch.setattr(secagg, "disclose", lambda vault, *rest: real_open(replace(vault, signed={}, opened={}), *rest))
    world = World()
    np.testing.assert_array_equal(split_view(world), world.true["s1"])


def replayed(world):
    """The same index twice: the difference of two vectors is in clear."""
    world.protect("s0", words=np.arange(64, dtype=np.uint32))
    first = world.words["s0"]["w"]
    world.protect("s0", words=np.arange(64, dtype=np.uint32) * 3)
    return world.words["s0"]["w"] - first


def test_no_two_vectors_get_the_same_masks(monkeypatch):
    refused("index that was not used", replayed, World())
    real = secagg.protect
    monkeypatch.setattr(secagg, "protect", lambda vault, *rest: real(replace(vault, used={}), *rest))
    np.testing.assert_array_equal(replayed(World()), np.arange(64, dtype=np.uint32) * 2)


def too_few(world):
    """A sum of one, and of the coordinator's friends."""
    for site in world.names:
        world.protect(site)
    alive = ["s1"]
    signatures = {site: world.agree(site, alive) for site in world.names}
    opened = {site: world.disclose(site, alive, signatures) for site in world.names}
    return world.sum(alive, opened)


def test_a_sum_of_one_is_not_opened(monkeypatch):
    refused("found 1: nothing was opened", too_few, World())
    monkeypatch.setattr(secagg, "_survived", lambda *_: None)
    world = World()
    np.testing.assert_array_equal(too_few(world), world.true["s1"])


def late(world):
    """Words that come after their site was said to be lost, with its key opened."""
    alive = ["s0", "s1", "s2"]
    for site in world.names:
        world.protect(site)
    signatures = world.signed(alive)
    opened = {site: world.disclose(site, alive, signatures) for site in world.names}
    holders = world.epoch.holders()["s3"]
    key = shamir.combine({holders.index(site) + 1: rows[3].tobytes() for site, rows in opened.items()}, 3)
    seeds = []
    for other in alive:
        theirs = world.epoch.mask_keys[world.names.index(other), 0].tobytes()
        seeds.append(
            (secagg.pair_seed(masks.shared(masks.opened(key), theirs), A, "s3", other), 1)
        )  # s3 took them away
    words = {"w": world.words["s3"]["w"].copy()}
    masks.mask(words, seeds)
    return words["w"]


def test_words_that_come_late_stay_under_the_sites_own_mask(monkeypatch):
    world = World()
    assert np.count_nonzero(late(world) == world.true["s3"]) <= 1
    real = masks.mask
    zeros = bytes(32)
    monkeypatch.setattr(secagg, "own_seed", lambda *_: zeros)
    monkeypatch.setattr(masks, "mask", lambda words, seeds: real(words, [s for s in seeds if s[0] != zeros]))
    world = World()
    np.testing.assert_array_equal(late(world), world.true["s3"])


# --- wrong shares -----------------------------------------------------------------------------------------------------


def test_a_wrong_share_of_a_holder_is_left_out_and_its_holder_named_where_too_few_are_left():
    world = World(5)
    alive = world.names[:4]
    for site in alive:
        world.protect(site)
    signatures = world.signed(alive)
    opened = {site: world.disclose(site, alive, signatures) for site in world.names}
    opened["s2"] = opened["s2"][::-1].copy()
    expected = sum(world.true[site] for site in alive)
    np.testing.assert_array_equal(world.sum(alive, opened), expected)
    opened["s4"] = opened["s4"] + 1
    refused("4 right shares of the secret of 's0', found 3; wrong ones came of s2, s4", world.sum, alive, opened)


@pytest.mark.parametrize("kind", ["no secret", "another key"])
def test_wrong_shares_of_a_dealer_are_its_own_fault(kind, monkeypatch):
    real = shamir.split
    if kind == "no secret":
        dealt = lambda secret, t, n: [bytes(share[:40]) + secrets_of(26) for share in real(secret, t, n)]  # noqa: E731
    else:
        dealt = lambda secret, t, n: real(bytes(32), t, n)  # noqa: E731
    secrets_of = lambda n: bytes(range(n))  # noqa: E731
    world = World(4)
    monkeypatch.setattr(shamir, "split", dealt)
    _, world.dealt["s3"] = secagg.deal(
        replace(world.vaults["s3"], epoch=None), world.keys["s3"], "s3", world.epoch, world.roster
    )
    said = "one secret, found others of 's3'" if kind == "no secret" else "the key of 's3', found others"
    refused(f"{said}: it dealt wrong ones", world.run, ["s0", "s1", "s2"])


def test_shares_for_another_or_for_another_dealer_do_not_open():
    world = World()
    for site in world.names:
        world.protect(site)
    signatures = world.signed(world.names)
    real = world.sealed_by
    world.sealed_by = lambda dealer, holder, index=0: real("s1" if dealer == "s2" else dealer, holder, index)
    rows = world.disclose("s0", world.names, signatures)
    assert [bool(row.any()) for row in rows] == [True, True, False, True]


def test_words_and_shares_that_a_site_did_not_sign_are_refused_by_the_coordinator():
    world = World()
    world.protect("s0")
    words, (_, signature) = world.words["s0"], world.uploads["s0"]
    for changed, announced, site in (
        ({"w": words["w"] + 1}, A, "s0"),
        ({"v": words["w"]}, A, "s0"),
        ({"w": words["w"].view(np.uint16)}, A, "s0"),
        (words, B, "s0"),
        (words, A, "s1"),
        (words, A, "nobody"),
    ):
        refused("masked words signed by", unmask.heard, world.epoch, announced, site, changed, signature, world.roster)
    for name in ("sealed", "marks"):
        fields = {**world.dealt["s0"], name: world.dealt["s0"][name] + 1}
        refused("shares signed by 's0'", unmask.dealt_by, world.epoch, "s0", fields, world.roster)
    refused("shares signed by 's1'", unmask.dealt_by, world.epoch, "s1", world.dealt["s0"], world.roster)


def test_an_index_that_a_site_never_masked_opens_only_with_itself_among_the_lost():
    world = World()
    for site in ("s0", "s1", "s2"):
        world.protect(site)
    refused("this site among the lost", world.agree, "s3", world.names)
    signatures = world.signed(["s0", "s1", "s2"])
    refused("index that is still closed, found 7", world.agree, "s3", ["s0", "s1", "s2"], index=7)
    assert world.disclose("s3", ["s0", "s1", "s2"], signatures).any()
