"""Attacks of a coordinator on encrypted sums. Each is refused, and each succeeds on a build without the check that refuses it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fedrounds.core import encrypting, identity
from fedrounds.core.errors import StateError, StudyError, UpdateRejected
from fedrounds.core.masked import Self
from fedrounds.core.messages import Request
from fedrounds.core.privacy import ckks, holder, tag, vault
from fedrounds.core.privacy.holder import Key, Safe
from fedrounds.core.privacy.settings import Ckks

STUDY, HOLDER, SITES = "ab" * 32, "north", ("east", "north", "south", "west")
ANNOUNCED, SUBJECT, SIZE = bytes(range(32)), "train 1 0", 31


@dataclass
class Party:
    """Four sites after `keys` and `shares`, and a coordinator that holds what it may hold."""

    keys: dict = field(default_factory=lambda: {site: identity.new_key() for site in SITES})
    safes: dict = field(default_factory=dict)
    key: Key | None = None

    def __post_init__(self):
        self.roster = {site: identity.public_key(key) for site, key in self.keys.items()}
        self.epoch(1)

    def epoch(self, number, members=SITES):
        said = {}
        for site in SITES:
            before = self.safes.get(site, Safe())
            self.safes[site], made = holder.make_key(before, self.keys[site], STUDY, site, number, self.roster)
            said[site] = made["public"].tobytes(), made["signature"].tobytes()
        self.said = said
        self.safes[HOLDER], self.key = self.hold({site: said[site] for site in members})

    def hold(self, said, least=3):
        return holder.hold(self.safes[HOLDER], self.keys[HOLDER], STUDY, HOLDER, said, self.roster, least)

    def numbers(self, site):
        return np.random.default_rng(SITES.index(site)).integers(-1000, 1000, SIZE)

    def part(self, site, announced=ANNOUNCED, subject=SUBJECT, key=None):
        key = key or self.key
        holder.verify(key, STUDY, HOLDER, self.roster)
        return holder.protect(
            self.safes[site], self.keys[site], site, key, STUDY, HOLDER, announced, subject, self.numbers(site)
        )

    def parts(self, sites=SITES, **how):
        return {site: self.part(site, **how) for site in sites}

    def open(self, parts, total=None, announced=ANNOUNCED, subject=SUBJECT, least=3):
        if total is None:
            total = np.zeros(ckks.cipher_shape(SIZE), np.uint64)
            for part in parts.values():
                ckks.add(total, part["cipher"])
        said = {
            site: (holder.digest_of(part["cipher"]), part["tag"].tobytes(), part["signature"].tobytes())
            for site, part in parts.items()
        }
        self.safes[HOLDER], digits, signature = holder.disclose(
            self.safes[HOLDER], self.keys[HOLDER], HOLDER, announced, subject, said, total, SIZE, self.roster, least
        )
        return digits, signature


@pytest.fixture
def party():
    return Party()


def test_an_honest_sum_is_opened_and_signed_by_the_holder(party):
    parts = party.parts()
    digits, signature = party.open(parts)
    np.testing.assert_array_equal(digits, sum(party.numbers(site) for site in SITES))
    whose = holder.sha256("\0".join(SITES).encode()).digest()
    words = holder.words_of_sum(ANNOUNCED, HOLDER, whose, digits)
    assert identity.sealed(party.roster[HOLDER], words, signature)


# --- one site's part for a sum ----------------------------------------------------------------------------------------


FORGERIES = {
    "one alone": (1, 0, 0, 0),
    "one left out": (1, 1, 1, 0),
    "one twice": (2, 1, 1, 0),
}  # how often each counts


@pytest.mark.parametrize("how", FORGERIES)
def test_the_holder_opens_only_the_sum_of_what_was_signed(party, how, monkeypatch):
    parts = party.parts()
    total = np.zeros(ckks.cipher_shape(SIZE), np.uint64)
    for site, times in zip(SITES, FORGERIES[how], strict=True):
        for _ in range(times):
            ckks.add(total, parts[site]["cipher"])
    with pytest.raises(UpdateRejected, match="expected the sum of what the sites have signed, found another"):
        party.open(parts, total)
    assert not party.safes[HOLDER].opened
    monkeypatch.setattr(tag, "holds", lambda *_: True)
    digits, _ = party.open(parts, total)
    wanted = sum(times * party.numbers(site) for site, times in zip(SITES, FORGERIES[how], strict=True))
    np.testing.assert_array_equal(digits, wanted)  # of one alone: the victim's own numbers


def test_tags_without_pads_are_combined_into_another_sums(party, monkeypatch):
    """r·(t₂ c₁ - t₁ c₂) = 0: with it, any sum can be led to any tag. Pads that serve once hide what t₁ and t₂ are of."""

    def led(parts):
        (one, t1), (two, t2) = ((parts[s]["cipher"], int(parts[s]["tag"][0])) for s in ("east", "south"))
        prime = ckks.PRIMES[0]
        nothing = [(t2 * int(a) - t1 * int(b)) % prime for a, b in zip(one.flat, two.flat, strict=True)]
        total = np.zeros_like(one)
        for part in parts.values():
            ckks.add(total, part["cipher"])
        ckks.add(total, np.array(nothing, np.uint64).reshape(one.shape))
        return total

    monkeypatch.setattr(tag, "ROWS", 1)
    seed, names = bytes(range(32)), ("east", "south", "west")
    ciphers = {site: ckks.encrypt(party.key.public, party.numbers(site)) for site in names}

    def tagged(pads):
        return {site: {"cipher": cipher, "tag": tag.of(seed, pads[site], cipher)} for site, cipher in ciphers.items()}

    pads = {site: bytes([at]) * 32 for at, site in enumerate(names)}
    parts = tagged(pads)
    tags = [part["tag"] for part in parts.values()]
    assert not tag.holds(seed, pads.values(), tags, led(parts))
    monkeypatch.setattr(tag, "_pads", lambda _: [0])
    parts = tagged(pads)
    tags = [part["tag"] for part in parts.values()]
    assert tag.holds(seed, pads.values(), tags, led(parts))


def test_a_tag_is_another_for_the_same_numbers_sent_again(party):
    one, two = (party.part("east") for _ in range(2))
    assert (one["tag"] != two["tag"]).all()


def test_a_row_catches_every_change_of_one_residue(party):
    cipher = party.part("east")["cipher"]
    seed, pad = bytes(range(32)), bytes(32)
    mark = tag.of(seed, pad, cipher)
    assert tag.holds(seed, [pad], [mark], cipher)
    for at in (0, 1, 8191, 8192, 16383):
        changed = cipher.copy()
        changed.flat[at] = (int(changed.flat[at]) + 1) % ckks.PRIMES[0]
        assert not tag.holds(seed, [pad], [mark], changed)


# --- too few, or others -----------------------------------------------------------------------------------------------


def test_a_sum_of_fewer_than_the_study_wants_stays_closed(party, monkeypatch):
    parts = party.parts(("east", "south", "west"))
    with pytest.raises(UpdateRejected, match="expected a sum of 4 members or more, found one of 3"):
        party.open(parts, least=4)
    one = {"east": parts["east"]}
    with pytest.raises(UpdateRejected, match="expected a sum of 3 members or more, found one of 1"):
        party.open(one, least=0)
    monkeypatch.setattr(holder, "FEWEST", 1)
    digits, _ = party.open(one, least=0)
    np.testing.assert_array_equal(digits, party.numbers("east"))


def test_a_round_is_opened_of_one_set_of_sites_alone(party):
    party.open(party.parts())
    other = bytes(reversed(range(32)))
    three = party.parts(SITES[:3], announced=other)
    with pytest.raises(UpdateRejected, match="their difference would be one site's"):
        party.open(three, announced=other)
    everybody, _ = party.open(party.parts(announced=other), announced=other)  # as after a coordinator's crash
    party.safes[HOLDER] = replace(party.safes[HOLDER], told={}, opened=())  # a build that does not remember
    some, _ = party.open(three, announced=other)
    np.testing.assert_array_equal(everybody - some, party.numbers("west"))


def test_what_was_opened_is_remembered_over_epochs_and_on_the_disk(party):
    party.open(party.parts())
    party.epoch(2)
    party.safes[HOLDER] = vault.load(vault.dump(party.safes[HOLDER]))
    with pytest.raises(UpdateRejected, match="their difference would be one site's"):
        party.open(party.parts(SITES[:3]))


def test_an_announcement_is_opened_once(party):
    parts = party.parts()
    party.open(parts)
    with pytest.raises(UpdateRejected, match="expected a sum that is still closed"):
        party.open(parts)


@pytest.mark.parametrize("what", ["announced", "subject"])
def test_a_part_counts_for_what_it_was_signed_for(party, what, monkeypatch):
    """Else parts of another round would be opened as this one's, and a set of sites could be told twice."""
    other = {"announced": bytes(32)} if what == "announced" else {"subject": "train 2 0"}
    parts = party.parts(**other)
    with pytest.raises(UpdateRejected, match="expected a part that 'east' signed for this announcement"):
        party.open(parts)
    monkeypatch.setattr(holder, "_signed", lambda *_: None)
    if what == "subject":
        party.open(parts)  # a name of another round: what was told of this one is got round
    else:
        with pytest.raises(UpdateRejected, match="the sum of what the sites have signed"):
            party.open(parts)  # the pad is bound to the announcement as well


# --- keys of others ---------------------------------------------------------------------------------------------------


def test_a_key_of_the_coordinators_own_is_refused(party, monkeypatch):
    secret, public = ckks.new_key()
    own = replace(party.key, public=public)
    with pytest.raises(UpdateRejected, match="expected a key of encryption signed by the key holder 'north'"):
        party.part("east", key=own)
    monkeypatch.setattr(holder, "verify", lambda *_: None)
    cipher = party.part("east", key=own)["cipher"]
    np.testing.assert_array_equal(ckks.decrypt(secret, cipher, SIZE), party.numbers("east"))


def test_a_key_is_bound_to_its_parameters_its_roster_and_its_study(party, monkeypatch):
    for study, roster in (("cd" * 32, party.roster), (STUDY, {**party.roster, "new": b"1" * 32})):
        with pytest.raises(UpdateRejected, match="expected a key of encryption signed"):
            holder.verify(party.key, study, HOLDER, roster)
    monkeypatch.setattr(ckks, "PARAMETERS", bytes(32))
    with pytest.raises(UpdateRejected, match="expected a key of encryption signed"):
        holder.verify(party.key, STUDY, HOLDER, party.roster)


def test_members_that_the_coordinator_made_up_are_none(party, monkeypatch):
    """With two friends of its own, a sum of three would be the victim's, less what the coordinator knows."""
    friends = {name: identity.new_key() for name in ("amy", "bob")}
    said = dict(party.said)
    for name, key in friends.items():
        _, made = holder.make_key(Safe(), key, STUDY, name, 1, party.roster)
        said[name] = made["public"].tobytes(), made["signature"].tobytes()
    fresh = replace(party.safes[HOLDER], secret=b"")
    party.safes[HOLDER] = fresh
    with pytest.raises(UpdateRejected, match="expected a key signed by 'amy', found another"):
        party.hold({name: said[name] for name in ("amy", "bob", "east", "north")})
    monkeypatch.setattr(holder, "member", lambda *_: None)
    after, _ = party.hold({name: said[name] for name in ("amy", "bob", "east", "north")})
    assert set(after.members) > set(friends)


def test_a_key_of_encryption_is_made_once_an_epoch_and_of_enough_members(party):
    with pytest.raises(UpdateRejected, match="expected an epoch whose key is to be made"):
        party.hold(party.said)
    with pytest.raises(UpdateRejected, match="expected an epoch after 1, was asked for a key of epoch 1: replayed"):
        holder.make_key(party.safes["east"], party.keys["east"], STUDY, "east", 1, party.roster)
    party.safes[HOLDER] = replace(party.safes[HOLDER], secret=b"")
    two = {site: party.said[site] for site in ("east", "north")}
    with pytest.raises(UpdateRejected, match="expected 3 members or more for encrypted sums, found 2"):
        party.hold(two, least=0)
    twice = {**party.said, "west": party.said["east"]}
    with pytest.raises(UpdateRejected, match="expected a key signed by 'west'"):
        party.hold(twice)


def test_an_old_epochs_key_is_not_encrypted_under(party):
    old = party.key
    party.epoch(2)
    with pytest.raises(UpdateRejected, match="expected the epoch that this site made a key for"):
        party.part("east", key=old)


def test_the_rows_are_sealed_for_each_member_and_open_for_no_other(party):
    seed = party.safes[HOLDER].seed
    assert seed not in party.key.sealed.tobytes()
    swapped = replace(party.key, sealed=party.key.sealed[::-1].copy())
    words = swapped.words(STUDY, HOLDER, party.roster)
    swapped = replace(swapped, signature=identity.seal(party.keys[HOLDER], words))
    with pytest.raises(UpdateRejected, match="expected what the key holder sealed for this site"):
        party.part("east", key=swapped)


def test_the_holder_sees_no_residues_but_the_sums():
    """What it is sent to open: digests, tags and signatures of each site, and one array of residues, of all together."""
    from fedrounds.core.encrypting import TAKES

    assert TAKES["open"] == ("announced", "digests", "members", "signatures", "size", "subject", "sum", "tags")


def test_secrets_of_an_older_epoch_are_gone(party):
    before = party.safes[HOLDER]
    party.epoch(2)
    after = vault.dump(party.safes[HOLDER])
    assert before.secret not in after
    assert before.seed.hex().encode() not in after
    assert before.private.hex().encode() not in after


def test_a_safe_is_the_same_after_it_was_on_the_disk(party):
    party.open(party.parts())
    for safe in (*party.safes.values(), Safe()):
        kept = vault.dump(safe)
        assert vault.load(kept) == safe
        with pytest.raises(StateError, match="found damaged bytes"):
            vault.load(kept[:-1])
    assert repr(party.safes[HOLDER]) == "Safe(epoch 1)"


# --- what else is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", [0, 1, 2**255 - 19, 2**255 - 20])
def test_a_weak_key_and_one_in_another_spelling_are_refused_and_whose_they_are_is_said(party, weak):
    public = weak.to_bytes(32, "little")
    words = holder.words_of_key(STUDY, 1, "east", public, party.roster)
    with pytest.raises(UpdateRejected, match="found a weak one of 'east'"):
        holder.member(STUDY, 1, "east", public, identity.seal(party.keys["east"], words), party.roster)


def test_a_key_is_made_only_with_the_holders_own_key_among_the_members(party):
    party.safes[HOLDER] = replace(party.safes[HOLDER], secret=b"")
    others = {site: said for site, said in party.said.items() if site != HOLDER}
    with pytest.raises(UpdateRejected, match="this site's among them"):
        party.hold(others)


def test_nothing_is_sent_under_a_key_whose_holder_is_no_member(party):
    at = [SITES.index(site) for site in SITES if site != HOLDER]
    left = tuple(SITES[row] for row in at)
    key = replace(party.key, members=left, publics=party.key.publics[at], sealed=party.key.sealed[at])
    key = replace(key, signature=identity.seal(party.keys[HOLDER], key.words(STUDY, HOLDER, party.roster)))
    with pytest.raises(UpdateRejected, match="expected the key holder among the members, found it is none"):
        party.part("east", key=key)


def test_a_site_without_the_key_opens_nothing(party):
    parts = party.parts()
    party.safes[HOLDER] = replace(party.safes[HOLDER], secret=b"")
    with pytest.raises(UpdateRejected, match="expected an epoch whose key is here, found none"):
        party.open(parts)


@pytest.mark.parametrize("ask", ["shares", "open"])
def test_only_the_holder_answers_what_is_the_holders(party, ask):
    names = np.frombuffer(b"east", np.uint8)
    arrays = dict.fromkeys(encrypting.TAKES[ask], names)
    arrays |= {"sum": np.zeros(1, np.uint64), "announced": np.zeros(32, np.uint8), "size": np.zeros(8, np.uint8)}
    request = Request(STUDY, 1, 0, ask, "0" * 64, {name: arrays[name] for name in encrypting.TAKES[ask]})
    me = Self("east", party.keys["east"], party.roster)
    with pytest.raises(UpdateRejected, match="expected the key holder 'north' to be asked, found 'east' was"):
        encrypting.answer_phase(request, party.safes["east"], me, Ckks(kind="ckks", key_holder=HOLDER))


def test_names_that_are_no_text_are_refused(party):
    request = Request(
        STUDY, 1, 0, "shares", "0" * 64, dict.fromkeys(encrypting.TAKES["shares"], np.full(4, 200, np.uint8))
    )
    me = Self(HOLDER, party.keys[HOLDER], party.roster)
    with pytest.raises(UpdateRejected, match="expected names of sites in name order"):
        encrypting.answer_phase(request, party.safes[HOLDER], me, Ckks(kind="ckks", key_holder=HOLDER))


def test_bytes_of_another_release_of_tenseal_are_known_for_that():
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 60], n_threads=1)
    parameters = dict(ckks._fields(context.serialize(False, False, False, False)))[1]  # small, so they are compressed
    for data in (parameters, parameters[:-1], b"", b"\0" * 40):
        with pytest.raises(StudyError, match=r"expected TenSEAL 0\.3\.18's bytes"):
            ckks._raw(data)
