"""A hostile coordinator: whatever it asks, a hospital answers with sums of the stated shapes or refuses with a documented reason."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrounds.core.answer import Policy, handle
from fedrounds.core.messages import Reply, decode, encode

HOUSE = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def fuzz():
    """benchmarks/fuzz.py, which holds the victims, the attacks and the documented reasons."""
    spec = importlib.util.spec_from_file_location("fuzz", HOUSE / "benchmarks" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


def refusal_of(fuzz, request):
    """Why the hospital refuses; its state stays as it was, and no array leaves."""
    memory = {"kept": np.ones(2)}
    after, reply = handle(request, memory, fuzz.VICTIMS[1][1], fuzz.PLAN, Policy(), "north", np.random.default_rng(0))
    assert after is memory
    assert reply.arrays == {}
    assert decode(encode(reply), Reply) == reply
    fuzz.reason(reply.refusal)
    return reply.refusal


def test_an_honest_request_is_answered(fuzz):
    reply = handle(fuzz.REQUEST, {}, fuzz.VICTIMS[1][1], fuzz.PLAN, Policy(), "north", np.random.default_rng(0))[1]
    assert reply.refusal == ""


@pytest.mark.parametrize("name", ["theta", "impute", "center", "scale"])
def test_a_request_without_an_array_is_refused(fuzz, name):
    arrays = {other: array for other, array in fuzz.REQUEST.arrays.items() if other != name}
    expected = "expected arrays ['center', 'champion', 'impute', 'scale', 'theta'], was asked with 3 others"
    assert refusal_of(fuzz, replace(fuzz.REQUEST, arrays=arrays)) == expected


def test_a_request_with_an_array_more_is_refused(fuzz):
    more = {**fuzz.REQUEST.arrays, "about": np.zeros(4)}
    assert "was asked with 5 others" in refusal_of(fuzz, replace(fuzz.REQUEST, arrays=more))
    alone = replace(fuzz.REQUEST, ask="statistics", arrays={"about": np.zeros(4)})
    assert "was asked with 1 others" in refusal_of(fuzz, alone)


@pytest.mark.parametrize("name", ["theta", "champion", "impute", "center", "scale"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (4, 1), (99,)])
def test_an_array_of_another_shape_is_refused(fuzz, name, shape):
    refusal = refusal_of(fuzz, replace(fuzz.REQUEST, arrays={**fuzz.REQUEST.arrays, name: np.ones(shape)}))
    assert refusal.startswith(f"expected {name} of shape (")
    assert f"was asked with {shape}: the study file here is another one" in refusal


@pytest.mark.parametrize("scale", [0.0, 5e-324])
def test_numbers_that_overflow_are_refused_and_nothing_is_learned(fuzz, scale):
    arrays = {**fuzz.REQUEST.arrays, "scale": np.full(4, scale)}
    assert refusal_of(fuzz, replace(fuzz.REQUEST, arrays=arrays)).startswith("its numbers are no longer finite")


@pytest.mark.parametrize("target", ["core.messages.decode", "core.identity.verify", "core.answer.handle"])
def test_hostile_bytes_are_answered_or_refused_for_a_documented_reason(fuzz, target):
    seen, slowest = fuzz.attack(target, 700)
    assert seen.total() >= 700
    assert len(seen) >= 6
    assert slowest < fuzz.LONGEST_S


def test_a_refusal_that_is_not_documented_fails_the_run(fuzz):
    with pytest.raises(AssertionError, match="not documented"):
        fuzz.reason("because")
