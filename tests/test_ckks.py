"""Encrypted sums: the numbers of masked ones bit for bit, and each check with what happens where it is missing."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hidden_study import MODELS, SITES, close, cohorts, study
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedrounds.core import encrypted, encrypting, identity
from fedrounds.core.answer import handle_masked
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.masked import Self
from fedrounds.core.messages import Request
from fedrounds.core.operations import Drift, Gate, Operations, Promotion
from fedrounds.core.plan import build
from fedrounds.core.privacy import ckks, digits
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.holder import Safe
from fedrounds.core.privacy.settings import Privacy
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study
from fedrounds.reports.account import limits_of
from fedrounds.tasks import masks

STUDY = "ab" * 32
ANNOUNCED = bytes(range(32))
HOLDER = "north"


def under_encryption(of, **protect):
    """The same study, its sums encrypted instead of masked."""
    how = {"kind": "ckks", "key_holder": HOLDER, **protect}
    return Study.model_validate({**of.model_dump(mode="json"), "privacy": {"protect": how}})


def three(of, rounds=1, **protect):
    """The closed rounds of one study: encrypted, masked, plain."""
    hidden = build(under_encryption(of, bits=of.masked.bits, clip=of.masked.clip, **protect))
    data, start = cohorts(of), hidden.start(None)
    found = [list(simulate(hidden, data, rounds, wire=True))]
    for plan in (build(of), build(of.model_copy(update={"privacy": Privacy()}))):
        begin = replace(plan.start(None), theta=start.theta)
        found.append(list(simulate(plan, data, rounds, state=begin, rng_of=hidden.rng)))
    return found


# --- one study, three ways --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("model", MODELS)
def test_encrypted_sums_are_masked_sums_bit_for_bit_and_plain_ones_to_half_a_step_a_site(model, bits):
    hidden, masked, plain = three(study(model, bits=bits, clip=4.0))
    for one, other in zip(hidden, masked, strict=True):
        np.testing.assert_array_equal(one.state.theta, other.state.theta)
        assert {name: array.tolist() for name, array in one.state.statistics.items()} == {
            name: array.tolist() for name, array in other.state.statistics.items()
        }
        for site, (sums, cells) in other.scores.items():
            np.testing.assert_array_equal(one.scores[site][0], sums)
            np.testing.assert_array_equal(one.scores[site][1], cells)
        assert (one.heard, one.clipped) == (other.heard, other.clipped)
    half = float(Grid(np.array(4.0), bits).step(len(SITES))) / 2
    close(hidden, plain, len(SITES) * half + 1e-9)


def test_keys_are_made_anew_after_a_batch_and_change_no_bit():
    plan, data = build(under_encryption(study())), cohorts(study())
    few, many = (
        list(simulate(build(under_encryption(study(), batch=batch)), data, 3, rng_of=plan.rng)) for batch in (1, 32)
    )
    np.testing.assert_array_equal(few[-1].state.theta, many[-1].state.theta)
    assert few[-1].keyring.key.number == 6  # two exchanges of round 0, three rounds, the closing one
    assert many[-1].keyring.key.number == 1


@pytest.mark.parametrize("ask", ["keys", "train"])
def test_a_site_lost_on_the_way_leaves_the_sum_of_the_others(ask):
    of, asked = under_encryption(study(), batch=1, bits=64), []

    def lost(request, site):
        asked.append(request.ask)
        return site == "south" and request.ask == ask and request.round == 1

    closed = list(simulate(build(of), cohorts(of), 1, lost=lost))
    assert closed[1].heard == ("east", "north", "west")
    without = {site: rows for site, rows in cohorts(of).items() if site != "south"}
    open_ = build(of.model_copy(update={"privacy": Privacy()}))
    agreed = {name: array for name, array in closed[0].state.statistics.items() if name != "rows"}
    state = replace(open_.start(None), statistics=agreed, theta=closed[0].state.theta)
    alone = next(simulate(open_, without, 1, state=state, rng_of=build(of).rng))
    np.testing.assert_allclose(closed[1].state.theta, alone.state.theta, atol=1e-9)


@pytest.mark.parametrize(("ask", "said"), [("keys", "it is away"), ("shares", "it is away"), ("open", "it is away")])
def test_without_the_key_holder_nothing_is_opened(ask, said):
    of = under_encryption(study())
    with pytest.raises(QuorumError, match=f"expected the key holder 'north' to answer.*{said}"):
        list(simulate(build(of), cohorts(of), 1, lost=lambda request, site: site == HOLDER and request.ask == ask))


def test_a_sum_that_the_holder_did_not_sign_is_not_folded(monkeypatch):
    """Whoever changes the numbers on their way changes no model."""
    of = under_encryption(study())

    def changed(request, vault, me, *rest):
        after, state, reply = handle_masked(request, vault, me, *rest)
        if request.ask == "open":
            arrays = {**reply.arrays, "digits": reply.arrays["digits"] + np.uint64(1)}
            reply = replace(reply, arrays=arrays)
        return after, state, reply

    monkeypatch.setattr("fedrounds.core.simulate.handle_masked", changed)
    with pytest.raises(QuorumError, match="expected a sum signed by 'north', found another"):
        list(simulate(build(of), cohorts(of), 1))


def test_two_of_four_lost_close_nothing():
    of = under_encryption(study())
    with pytest.raises(QuorumError, match="encrypted sums of at least 3 sites, found those of 2: nothing was opened"):
        list(
            simulate(
                build(of),
                cohorts(of),
                1,
                lost=lambda request, site: site in ("south", "west") and request.ask == "train",
            )
        )


# --- what a study may say ---------------------------------------------------------------------------------------------


def test_the_key_holder_is_one_of_the_sites_and_the_sites_are_enough():
    of = under_encryption(study())
    masks.enough(of, SITES)
    with pytest.raises(StudyError, match="expected the key holder 'north' among the sites, found east, south, west"):
        masks.enough(of, ("east", "south", "west"))
    with pytest.raises(StudyError, match="expected at least 4 sites for encrypted sums, found 3"):
        masks.enough(under_encryption(study(), least=4), ("east", "north", "south"))
    with pytest.raises(StudyError, match="expected at least 3 sites"):
        masks.enough(of, ("east", "north"))


def test_a_study_whose_sums_could_come_out_wrong_does_not_begin():
    assert ckks.most_sites() == 255
    assert 255 * ckks.NOISE < ckks.CLOSE
    ckks.require(255)
    with pytest.raises(StudyError, match="expected at most 255 sites for encrypted sums, found 256"):
        masks.enough(under_encryption(study()), [HOLDER, *(f"s{at}" for at in range(255))])


def test_a_model_of_more_than_two_million_parameters_is_refused():
    of = under_encryption(study())
    encrypted.require(of, 2_000_000)
    with pytest.raises(StudyError, match="at most 2,000,000 parameters for encrypted sums, found 2,000,001"):
        encrypted.require(of, 2_000_001)
    large = {"kind": "mlp", "hidden": [2000, 1000]}
    with pytest.raises(StudyError, match="parameters for encrypted sums"):
        build(Study.model_validate({**of.model_dump(mode="json"), "model": large}))


def test_a_report_says_what_was_encrypted_that_sums_were_rounded_and_whom_it_does_not_keep_out():
    said = limits_of(under_encryption(study()))[0]
    for words in (
        "Sums were encrypted",
        "in league with the hospital that holds the key",
        "rounded to whole steps",
        "awaits outside review",
    ):
        assert words in said
    assert "Sums were masked" in limits_of(study())[0]


def test_without_tenseal_a_run_does_not_begin_and_a_hospital_refuses(monkeypatch):
    of = under_encryption(study())
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(StudyError, match=r"found it is not installed: pip install 'fedrounds\[ckks\]'"):
        masks.enough(of, SITES)
    me = Self("east", identity.new_key(), {})
    request = Request(build(of).digest, 0, 0, "keys", "0" * 64, {"epoch": np.zeros(8, np.uint8)})
    safe, _, reply = handle_masked(request, Safe(), me, {}, None, build(of), OPEN, np.random.default_rng(0))
    assert "TenSEAL" in reply.refusal
    assert safe == Safe()


def hostile():
    """Requests that no honest coordinator sends."""
    number, one = np.ones(8, np.uint8), np.zeros(1, np.uint8)
    opening = dict.fromkeys(encrypting.TAKES["open"], one)
    yield "keys", {}
    yield "keys", {"epoch": np.zeros(3, np.uint8)}
    yield "keys", {"epoch": np.ones((8, 1), np.uint8)}
    yield "keys", {"epoch": np.full(8, 255, np.uint8)}  # all numbers used up at once
    yield "keys", {"epoch": number, "batch": number}
    yield "agree", {}
    yield "shares", {}
    yield "shares", {"members": one, "publics": one, "signatures": one}
    yield "shares", {"members": np.frombuffer(b"b\na", np.uint8), "publics": one, "signatures": one}
    yield (
        "shares",
        {"members": np.frombuffer(b"north", np.uint8), "publics": one, "signatures": np.zeros((1, 64), np.uint8)},
    )
    yield "open", opening
    yield "open", opening | {"sum": np.zeros(1, np.uint64)}
    yield "open", opening | {"sum": np.zeros((1, 2, 8192)), "announced": np.zeros(32, np.uint8), "size": number}


@pytest.mark.parametrize(("ask", "arrays"), hostile())
def test_requests_that_no_honest_coordinator_sends_are_refused_and_change_nothing(ask, arrays):
    plan, key = build(under_encryption(study())), identity.new_key()
    me = Self(HOLDER, key, {HOLDER: identity.public_key(key)})
    request = Request(plan.digest, 1, 0, ask, "0" * 64, arrays)
    safe, _, reply = handle_masked(request, Safe(), me, {}, None, plan, OPEN, np.random.default_rng(0))
    assert reply.refusal.startswith("expected ")
    assert safe == Safe()


@pytest.mark.parametrize("name", encrypting.ANNOUNCED)
def test_a_question_whose_words_on_keys_are_others_is_refused(name):
    of = under_encryption(study())
    plan, data = build(of), cohorts(of)
    refused = {}

    def changed(request, vault, me, *rest):
        if request.ask == "statistics" and name in request.arrays and me.site == "east":
            array = request.arrays[name]
            for broken in (None, array.astype(np.float64), array.reshape(-1)[1:], array ^ array.dtype.type(1)):
                arrays = {key: value for key, value in request.arrays.items() if key != name}
                arrays |= {} if broken is None else {name: broken}
                _, _, reply = handle_masked(replace(request, arrays=arrays), vault, me, *rest)
                refused[str(None if broken is None else (broken.dtype, broken.shape))] = reply.refusal
        return handle_masked(request, vault, me, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedrounds.core.simulate.handle_masked", changed)
        next(simulate(plan, data, 0))
    wrong = [said for said in refused.values() if said]
    assert len(wrong) == len(refused) - (
        2 if name == "ckks.index" else 0
    )  # which is there to tell exchanges apart, whatever it is


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protect": {"kind": "ckks"}}, "key_holder"),
        ({"protect": {"kind": "ckks", "key_holder": "north", "least": 2}}, "greater than or equal to 3"),
        (
            {
                "protect": {"kind": "ckks", "key_holder": "north"},
                "dp": {"unit": "patient", "epsilon": 1.0, "patients": 100, "rounds": 2},
            },
            "do not go together",
        ),
    ],
)
def test_what_does_not_go_with_encrypted_sums_is_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        Study.model_validate({**study().model_dump(mode="json"), "privacy": change})


@pytest.mark.parametrize(
    "operations",
    [
        Operations(rounds=1, promotion=Promotion(margin=0.1)),
        Operations(rounds=1, drift=Drift()),
        Operations(rounds=1, gate=Gate(policy="down-weight")),
    ],
)
def test_what_needs_the_numbers_of_one_site_is_refused(operations):
    with pytest.raises(StudyError, match="where sums are hidden"):
        masks.require(under_encryption(study()), operations)


def test_plain_and_masked_studies_keep_their_digests():
    of = study()
    assert of.digest != under_encryption(of).digest
    assert of.model_copy(update={"privacy": Privacy()}).digest == (
        Study.model_validate({**of.model_dump(mode="json", exclude={"privacy"})}).digest
    )


# --- numbers under encryption -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    return ckks.new_key()


def summed(public, rows):
    total = ckks.encrypt(public, rows[0])
    for row in rows[1:]:
        ckks.add(total, ckks.encrypt(public, row))
    return total


def test_a_sum_at_its_largest_comes_out_exactly(pair):
    secret, public = pair
    rows = [np.array([2**29, -(2**29), 2**29 - 1, 0, 1] * 900, np.int64)] * 4
    np.testing.assert_array_equal(ckks.decrypt(secret, summed(public, rows), 4500), 4 * rows[0])


def test_the_noise_of_an_encryption_is_far_below_its_bound(pair, monkeypatch):
    secret, public = pair
    rng = np.random.default_rng(0)
    numbers = rng.integers(-(2**31), 2**31, ckks.SLOTS)
    found = []
    monkeypatch.setattr(ckks.np, "rint", lambda array: found.append(array) or np.round(array))
    ckks.decrypt(secret, ckks.encrypt(public, numbers), ckks.SLOTS)
    assert 0 < np.abs(found[0] - numbers).max() < ckks.NOISE / 8


def test_the_same_numbers_never_give_the_same_residues_and_the_public_key_opens_nothing(pair):
    secret, public = pair
    numbers = np.arange(10)
    one, two = (ckks.encrypt(public, numbers) for _ in range(2))
    assert (one != two).mean() > 0.99
    assert secret not in public.tobytes()
    assert public.tobytes()[:4096] not in secret
    with pytest.raises(UpdateRejected, match="expected a sum of whole numbers"):
        ckks.decrypt(ckks.new_key()[0], one, 10)


def test_residues_look_like_nothing(pair):
    _, public = pair
    words = ckks.encrypt(public, np.full(4096, 12345)).reshape(-1) / ckks.PRIMES[0]
    assert np.abs(np.sort(words) - np.linspace(0, 1, words.size)).max() < 1.95 / np.sqrt(words.size)  # Kolmogorov


@pytest.mark.parametrize(
    "broken",
    [
        lambda cipher: cipher[:0],
        lambda cipher: np.concatenate([cipher, cipher]),
        lambda cipher: cipher[:, :, :-1],
        lambda cipher: cipher.astype(np.float64),
        lambda cipher: cipher | np.uint64(1 << 63),
        lambda cipher: np.full_like(cipher, ckks.PRIMES[0]),
    ],
)
def test_another_count_shape_type_or_word_is_refused_before_any_of_it_is_used(pair, broken, monkeypatch):
    secret, public = pair
    cipher = ckks.encrypt(public, np.arange(9))
    monkeypatch.setattr(ckks, "_tenseal", lambda: pytest.fail("it came to a native parser"))
    with pytest.raises(UpdateRejected, match="under encryption"):
        ckks.decrypt(secret, broken(cipher), 9)


def test_a_public_key_that_is_none_is_refused_before_any_of_it_is_used(pair, monkeypatch):
    _, public = pair
    monkeypatch.setattr(ckks, "_tenseal", lambda: pytest.fail("it came to a native parser"))
    for broken in (public[:1], public.astype(np.float64), public | np.uint64(1 << 62)):
        with pytest.raises(UpdateRejected, match="expected a public key for encrypted sums"):
            ckks.encrypt(broken, np.arange(9))


def test_a_sum_that_is_not_whole_or_too_large_or_has_something_where_no_numbers_are_says_nothing(pair, monkeypatch):
    secret, public = pair
    with pytest.raises(UpdateRejected, match="expected a sum of whole numbers"):
        ckks.decrypt(secret, ckks.encrypt(public, np.array([1000])), 1, most=999)
    with pytest.raises(UpdateRejected, match="expected nothing beyond the numbers"):
        ckks.decrypt(secret, ckks.encrypt(public, np.arange(10)), 9)
    monkeypatch.setattr(ckks, "SCALE", 26)
    odd = ckks.encrypt(public, np.array([3]))  # half of it at the scale of the others
    monkeypatch.undo()
    with pytest.raises(UpdateRejected, match="expected a sum of whole numbers"):
        ckks.decrypt(secret, odd, 1)


@given(st.lists(st.tuples(*[st.integers(-(2**53), 2**53)] * 3), min_size=3, max_size=5), st.sampled_from([16, 32, 64]))
def test_the_words_of_a_sum_of_numbers_are_the_sum_of_the_words(rows, bits):
    kind = np.dtype(f"<u{bits // 8}")
    words = [
        {
            "words.delta": np.array(row).astype(np.int64).view(np.uint64).astype(kind),
            "words.sums": np.array(row).astype(np.int64).view(np.uint64),
        }
        for row in rows
    ]
    layout = {"words.delta": (3, kind.str), "words.sums": (3, "<u8")}
    parts = [digits.split(one) for one in words]
    assert {part.size for part in parts} == {digits.size(layout)}
    assert all(np.abs(part[-9:]).max() <= 2**21 for part in parts)  # of 64 bits: 255 sites' stay within 2^31
    total = digits.join(np.sum(parts, axis=0), layout)
    for name in layout:
        wanted = np.sum([one[name] for one in words], axis=0, dtype=words[0][name].dtype)
        np.testing.assert_array_equal(total[name], wanted)
