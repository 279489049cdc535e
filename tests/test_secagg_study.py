"""Masked studies in the plain loop: the numbers of plain ones to the width of a step, and uploads that say nothing of a site."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hidden_study import MODELS, SITES, close, cohorts, study
from hypothesis import given
from hypothesis import strategies as st

from fedrounds.core import masked
from fedrounds.core.answer import handle
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy import masks, shamir
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.settings import Privacy
from fedrounds.core.round import open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.strategy import PRESETS


def both(of, rounds=1, positive=(), **how):
    """The closed rounds under masks, and of the same study without."""
    plan, open_ = build(of), build(of.model_copy(update={"privacy": Privacy()}))
    data = cohorts(of, positive)
    start = replace(open_.start(None), theta=plan.start(None).theta)
    shown = simulate(open_, data, rounds, state=start, rng_of=plan.rng, **how)
    return list(simulate(plan, data, rounds, **how)), list(shown)


# --- the numbers of plain sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("model", MODELS)
def test_masked_sums_are_the_plain_ones_to_half_a_step_a_site(model, bits):
    of = study(model, bits=bits, clip=4.0)
    hidden, plain = both(of)
    assert hidden[1].clipped == 0
    half = float(Grid(np.array(4.0), bits).step(len(SITES))) / 2
    close(hidden, plain, len(SITES) * half + 1e-9)


SHOWN = ("scaffold", "feddyn")  # their sites' controls are needed one by one: `test_local.py` has the refusal


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in SHOWN])
def test_every_preset_trains_the_same_model_under_masks(preset):
    hidden, plain = both(study(algorithm=preset, bits=64), rounds=2)
    close(hidden, plain, 1e-5)


def test_messages_carried_as_bytes_open_the_same_sums():
    of = study(bits=32)
    plan, data = build(of), cohorts(of)
    by_hand, wired = (list(simulate(plan, data, 5, wire=wire)) for wire in (False, True))
    np.testing.assert_array_equal(by_hand[-1].state.theta, wired[-1].state.theta)
    assert [closed.heard for closed in wired] == [SITES] * 7  # of more exchanges than an epoch serves


def test_a_site_with_one_class_alone_counts_like_the_others():
    hidden, plain = both(study(bits=64), rounds=2, positive=("west",))
    close(hidden, plain, 1e-7)


@pytest.mark.parametrize("phase", ["train", "shares", "agree", "open"])
def test_a_site_lost_in_training_leaves_the_sum_of_the_others(phase):
    of = study(bits=64)
    gone = ("train", phase) if phase == "shares" else (phase,)
    hidden, plain = both(of, lost=lambda request, site: site == "south" and request.ask in gone and request.round == 1)
    left = tuple(site for site in SITES if site != "south")
    assert hidden[1].heard == (left if phase in ("train", "shares") else SITES)
    np.testing.assert_allclose(hidden[1].state.theta, plain[1].state.theta, atol=1e-7)


def test_two_of_four_lost_close_nothing():
    with pytest.raises(QuorumError, match="at least 3 sites, found those of 2: nothing was opened"):
        both(study(), lost=lambda request, site: site in ("south", "west") and request.ask == "train")


def test_what_is_beyond_the_clip_is_clipped_and_counted(monkeypatch):
    of = study(clip=1e-9)
    found, (_, closed, _) = uploads(of, cohorts(of), 1, monkeypatch)
    assert closed.clipped == sum(int((np.abs(true) > 1e-9).sum()) for true, _ in found) > 20
    assert np.abs(closed.state.theta).max() <= 4e-9 * (1 + 1e-9)


# --- what cannot overflow ---------------------------------------------------------------------------------------------


@given(
    st.sampled_from((16, 32, 64)),
    st.integers(3, 300),
    st.floats(1e-6, 1e9),
    st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20),
)
def test_a_sum_cannot_overflow_whatever_the_sites_send(bits, sites, bound, numbers):
    grid, values = Grid(np.array(bound), bits, clip=True), np.array([*numbers, bound, -bound])
    words, clipped = grid.words("x", values, sites)
    steps = [int(step) for step in words.view(f"<i{bits // 8}")]
    assert max(map(abs, steps)) == grid.levels(sites)
    assert all(abs(step) * sites < 2 ** (bits - 1) for step in steps)
    total = np.zeros_like(words)
    for _ in range(sites):
        total += words
    assert [int(step) for step in total.view(f"<i{bits // 8}")] == [step * sites for step in steps]
    assert clipped == int((np.abs(values) > bound).sum())
    inside, step = np.clip(values, -bound, bound), float(grid.step(sites))
    np.testing.assert_allclose(grid.numbers(total, sites) / sites, inside, rtol=1e-12, atol=step * 0.5001)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_never_sent(value):
    with pytest.raises(UpdateRejected, match="expected finite numbers in 'x'"):
        Grid(np.array(1.0), 32, clip=True).words("x", np.array([0.0] * 40_000 + [value]), 3)


def test_a_sum_beyond_a_bound_that_does_not_clip_is_refused():
    with pytest.raises(UpdateRejected, match="expected sums of 'n' within what masked sums can carry"):
        Grid(np.array([1.0, 2.0])).words("n", np.array([1.0, 2.1]), 3)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 6), st.randoms())
def test_any_so_many_shares_give_the_secret_and_fewer_do_not(secret, threshold, more, random):
    shares = dict(enumerate(shamir.split(secret, threshold, threshold + more), 1))
    some = random.sample(sorted(shares), threshold)
    assert shamir.combine({x: shares[x] for x in some}, threshold) == secret
    with pytest.raises(UpdateRejected, match=f"shares of {threshold} holders, found {threshold - 1}"):
        shamir.combine({x: shares[x] for x in some[1:]}, threshold)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_masks_come_off_exactly_and_no_two_words_share_a_part_of_the_stream(kind):
    words = {"a": np.zeros(200_000, kind), "b": np.zeros(7, kind)}
    masks.mask(words, [(b"s" * 32, 1)])
    stream = np.concatenate([words["a"], words["b"]]).tobytes()
    assert len({stream[at : at + 16] for at in range(0, len(stream) - 16, 16)}) == len(stream) // 16 - (
        len(stream) % 16 == 0
    )
    masks.mask(words, [(b"s" * 32, -1)])
    assert not any(array.any() for array in words.values())


# --- attacks on an upload ---------------------------------------------------------------------------------------------


def uploads(of, data, rounds, monkeypatch):
    """What each site would have added, and what it sent, update by update."""
    found, real = [], masked.protect

    def spied(request, sums, sheet, vault, me):
        after, arrays = real(request, sums, sheet, vault, me)
        if "delta" in sums:
            numbers = sheet.grids["delta"].numbers(arrays["words.delta"], 1)
            found.append((sums["delta"].reshape(-1).copy(), numbers))
        return after, arrays

    monkeypatch.setattr(masked, "protect", spied)
    return found, list(simulate(build(of), data, rounds))


def test_nothing_in_200_masked_uploads_goes_with_what_was_sent(monkeypatch):
    of = study("mlp")
    found, closed = uploads(of, cohorts(of), 50, monkeypatch)
    assert (len(found), len(closed)) == (200, 52)
    size = found[0][0].size
    alike = [float(np.corrcoef(true, sent)[0, 1]) for true, sent in found]
    chance = 1 / np.sqrt(size - 1)
    assert abs(np.mean(alike)) < 4 * chance / np.sqrt(200)
    assert np.std(alike) == pytest.approx(chance, rel=0.25)
    every = np.concatenate([sent for _, sent in found])
    fraction = (every - every.min()) / np.ptp(every)
    assert np.abs(np.sort(fraction) - np.linspace(0, 1, fraction.size)).max() < 1.95 / np.sqrt(
        fraction.size
    )  # Kolmogorov


def rows_of(plan, n, positives, seed=0):
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(size=(n, len(plan.columns))), np.ones(n)])
    y = np.array([1.0] * positives + [0.0] * (n - positives))
    return Rows(X, y, X[:1], y[:1])


ONE_STEP = {"preset": "fedavg", "local": {"rate": 0.1, "epochs": 1, "batch": "all"}}


def plain_delta(of, rows):
    plan = build(of.model_copy(update={"privacy": Privacy()}))
    asking = open_round(plan.start(plan.no_statistics()), plan, "train", ["a", "b", "c"])
    _, reply = handle(asking.request, {}, rows, plan, OPEN, "a", plan.rng(1, "a"))
    return reply.arrays["delta"].reshape(-1)


def test_one_patients_record_is_read_from_a_plain_update_and_not_from_a_masked_one(monkeypatch):
    of = study(algorithm=ONE_STEP)
    plan = build(of)
    rows = {site: rows_of(plan, 1, 1, seed) for seed, site in enumerate(SITES)}
    record = rows["east"].X[0, :-1]
    delta = plain_delta(of, rows["east"])
    np.testing.assert_allclose(delta[:-1] / delta[-1], record, atol=1e-12)
    found, _ = uploads(of, rows, 1, monkeypatch)
    sent = found[0][1]
    assert np.abs(sent[:-1] / sent[-1] - record).max() > 1e-2


def test_the_number_of_cases_is_read_from_a_plain_update_and_not_from_a_masked_one(monkeypatch):
    of = study(algorithm=ONE_STEP)
    plan = build(of)
    rows = {site: rows_of(plan, 64, 16, seed) for seed, site in enumerate(SITES)}

    def cases(numbers):
        return 64 * (0.5 + numbers[-1] / 0.1)

    assert cases(plain_delta(of, rows["east"])) == pytest.approx(16 if plain_delta(of, rows["east"])[-1] < 0 else 48)
    found, _ = uploads(of, rows, 1, monkeypatch)
    assert all(abs(cases(sent) - 16) > 1e-3 for _, sent in found)
