"""Noise in whole numbers: each guarantee of `core/privacy/noise.py`, and that a weaker build would be seen."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
from scipy.stats import chisquare

from fedrounds.core.privacy import noise
from fedrounds.core.privacy.noise import Bits, Gaussian, discrete_gaussian

DRAWS = 400_000


def probabilities(sigma, reach):
    k = np.arange(-60 * int(sigma) - 60, 60 * int(sigma) + 61)
    mass = np.exp(-(k**2) / (2 * sigma**2))
    mass /= mass.sum()
    inside = np.abs(k) <= reach
    return k[inside], mass[inside]


def p_value(drawn, sigma):
    """Of a chi-square test over cells that expect at least 50 draws, the tails together."""
    k, mass = probabilities(sigma, int(3 * sigma))
    width = max(1, int(sigma) // 8)
    cells = (k - k[0]) // width
    expected = np.bincount(cells, mass) * len(drawn)
    inside = drawn[np.abs(drawn) <= k[-1]]
    found = np.bincount((inside - k[0]) // width, minlength=len(expected))
    rest = len(drawn) - expected.sum()
    return chisquare(np.append(found, len(drawn) - len(inside)), np.append(expected, rest)).pvalue


@pytest.fixture
def one_key(monkeypatch):
    """The same key in every run, so that a test of chance says the same thing every time."""
    monkeypatch.setattr(noise.secrets, "token_bytes", lambda n: b"k" * n)


@pytest.mark.usefixtures("one_key")
@pytest.mark.parametrize("sigma", [1.0, 4.0, 64.5, 1024.0])
def test_draws_are_whole_numbers_from_the_discrete_gaussian(sigma):
    drawn = discrete_gaussian(sigma, DRAWS, Bits())
    assert drawn.dtype == np.int64
    assert p_value(drawn, sigma) > 0.001
    wider = discrete_gaussian(sigma * 1.05, DRAWS, Bits())
    assert p_value(wider, sigma) < 0.001, "5 % more would be seen"
    k, mass = probabilities(sigma, 60 * int(sigma))
    assert drawn.std() == pytest.approx(sqrt(float(mass @ k**2)), rel=0.005)


def test_the_table_holds_the_probabilities_to_the_last_digit_of_a_float():
    *_, entries = noise._table(4.0)
    k, mass = probabilities(4.0, 40)
    below = np.array([mass[np.abs(k) <= reach].sum() for reach in range(20)])
    assert np.array([entry / 2**noise.DEEP for entry in entries[:20]]) == pytest.approx(below, abs=1e-15)
    assert entries[-1] == 2**noise.DEEP
    assert all(a <= b for a, b in pairwise(entries))


class Fixed(Bits):
    """Bits that are given."""

    def __init__(self, *words):
        self.given = list(words)

    def words(self, count):
        taken, self.given = self.given[:count], self.given[count:]
        return np.array(taken, np.uint64)


@pytest.mark.parametrize(("more", "magnitude"), [(-1, 2), (0, 3), (1, 3)])
def test_a_tie_in_63_bits_is_decided_by_128_more(more, magnitude):
    entry = noise._table(4.0)[2][2]  # 2^191 P(|X| <= 2): from it on, the magnitude is 3
    high, low = (entry + more) >> 128, (entry + more) % 2**128
    assert high == entry >> 128
    bits = Fixed(high << 1, low % 2**64, low >> 64)
    assert discrete_gaussian(4.0, 1, bits).tolist() == [magnitude]
    assert bits.given == [], "the 128 bits were used"


def test_the_lowest_bit_is_the_sign():
    assert discrete_gaussian(4.0, 2, Fixed((2**62 - 1) << 1, (2**62 - 1) << 1 | 1)).tolist() == [3, -3]


def test_two_streams_never_share_a_key():
    assert not np.intersect1d(Bits().words(1000), Bits().words(1000)).size


def test_patients_are_chosen_each_by_itself_at_the_rate():
    chosen = Bits().chosen(0.25, (2000, 100))
    assert chosen.mean() == pytest.approx(0.25, abs=0.005)
    assert chosen.sum(1).var() == pytest.approx(100 * 0.25 * 0.75, rel=0.2), "a batch's size is binomial, not fixed"
    assert Bits().chosen(1.0, (10,)).all()


@pytest.mark.parametrize("size", [1, 31, 5000])
@pytest.mark.parametrize("multiplier", [0.5, 8.0])
def test_the_noise_is_z_times_what_a_patient_moves_on_the_grid(size, multiplier):
    mechanism = Gaussian(2.0, multiplier, size)
    moved = 2.0 / mechanism.step + sqrt(size)  # in steps, rounding at its worst
    assert mechanism.sigma >= multiplier * moved
    assert mechanism.deviation / (2.0 * multiplier) == pytest.approx(1.0, abs=0.04)


def test_rounding_at_its_worst_stays_within_what_is_accounted():
    mechanism = Gaussian(1.0, 1.0, 100)
    zero, none = np.full(100, 0.499999 * mechanism.step), np.zeros((100,), np.int64)
    moved = zero + 1.0 / 10  # a norm of 1 away, and each number just over the next half
    there, here = (mechanism.grid(vector, none) / mechanism.step for vector in (moved, zero))
    assert np.linalg.norm(there - here) <= mechanism.sigma / mechanism.multiplier


def test_what_is_released_is_a_whole_number_of_steps():
    mechanism = Gaussian(1.0, 1.0, 1000)
    released = mechanism.release(np.linspace(-1, 1, 1000), Bits()) / mechanism.step
    assert np.abs(released - np.rint(released)).max() < 1e-9


def test_the_noise_of_a_release_has_the_variance_that_is_claimed_and_half_of_it_would_be_seen():
    mechanism = Gaussian(1.0, 2.0, 200_000)
    released = mechanism.release(np.zeros(200_000), Bits())
    assert released.std() == pytest.approx(mechanism.deviation, rel=0.01)
    assert not 0.99 < (released / 2).std() / mechanism.deviation < 1.01


def test_a_vector_too_long_for_its_noise_is_refused():
    with pytest.raises(ValueError, match="expected at most"):
        _ = Gaussian(1.0, 100.0, 10_000_000).step
