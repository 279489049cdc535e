"""The codec of 8 bits a number: its bytes, its error, that it is right in the mean, and that everybody computes the same with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedrounds.core import rotation
from fedrounds.core.answer import handle
from fedrounds.core.codec import CODED, SCALE, foreign
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import PREFIX, Reply, decode, encode
from fedrounds.core.messages import WORDS as VERSION
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.round import check, close_exchange, expected, open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study

WORDS = {
    "name": "turned",
    "target": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "features": [{"type": "number", "name": f"x{i}", "range": [-9, 9]} for i in range(10)],
    "model": {"kind": "mlp", "hidden": [16]},
    "algorithm": {"preset": "fedavg", "local": {"rate": 0.5}},
}
ROTATED = {"protocol": {"codec": "rotated8"}}


def plan(**changes):
    return build(Study.model_validate(WORDS | changes))


def rows(sites=("east", "north", "west"), patients=200):
    found = {}
    for number, site in enumerate(sites):
        rng = np.random.default_rng(number)
        X = np.column_stack([rng.normal(size=(patients, 10)), np.ones(patients)])
        y = (X[:, 0] - X[:, 1] + rng.normal(size=patients) > 0).astype(float)
        found[site] = Rows(X[:150], y[:150], X[150:], y[150:])
    return found


def both_ways(numbers, signs=1, chance=2):
    codes, scale = rotation.code(numbers, np.random.default_rng(signs), np.random.default_rng(chance))
    return rotation.decode(codes, scale, np.random.default_rng(signs))


UPDATES = {
    "normal": lambda rng, d: rng.normal(size=d),
    "heavy-tailed": lambda rng, d: rng.standard_t(2, d),
    "over many magnitudes": lambda rng, d: rng.normal(size=d) * np.exp(2 * rng.normal(size=d)),
    "a few spikes": lambda rng, d: np.where(rng.random(d) < 0.01, rng.normal(size=d) * 100, rng.normal(size=d) * 1e-3),
}


@pytest.mark.parametrize("kind", UPDATES)
def test_an_update_moves_by_less_than_a_hundredth_of_itself_at_little_more_than_a_byte_a_number(kind):
    size = 1 << 16
    update = UPDATES[kind](np.random.default_rng(0), size)
    codes, scale = rotation.code(update, np.random.default_rng(1), np.random.default_rng(2))
    assert (codes.nbytes + scale.nbytes) / size == 1.03125
    error = np.linalg.norm(both_ways(update) - update) / np.linalg.norm(update)
    assert 0.001 < error < 0.01
    mean = np.mean([both_ways(update, chance=site) for site in range(10)], axis=0)
    assert np.linalg.norm(mean - update) / np.linalg.norm(update) < 0.0035


def test_from_32_numbers_on_one_takes_at_most_a_byte_and_a_half():
    assert max((size + 4 * rotation.scales(size)) / size for size in range(32, 3000)) == pytest.approx(1.5, abs=0.1)
    assert all(2 * (size + 4 * rotation.scales(size)) <= 3 * size for size in range(32, 3000))
    assert [rotation.scales(size) for size in (0, 1, 11, 127, 128, 300)] == [0, 1, 3, 7, 1, 5]


def test_rounding_is_right_in_the_mean():
    update = UPDATES["heavy-tailed"](np.random.default_rng(0), 300)
    times = 4000
    found = np.array([both_ways(update, chance=k) for k in range(times)])
    spread = found.std(0)
    off = (found.mean(0) - update) / (spread / np.sqrt(times))  # standard errors, of 300 numbers
    assert (spread > 0).all()
    assert np.abs(off).max() < 4.5
    assert off @ off / len(off) == pytest.approx(1.0, abs=0.35)


@given(st.lists(st.floats(-1e30, 1e30), max_size=300), st.integers(0, 9))
@settings(database=None, deadline=None, max_examples=60)
def test_no_block_moves_by_more_than_a_step_a_number_whatever_it_holds(numbers, seed):
    update = np.array(numbers)
    codes, scale = rotation.code(update, np.random.default_rng(seed), np.random.default_rng(seed + 1))
    back = rotation.decode(codes, scale, np.random.default_rng(seed))
    start = block = 0
    for count, width in rotation.blocks(len(update)):
        for _ in range(count):
            part = slice(start, start + width)
            most = float(scale[block]) * np.sqrt(width)
            norm = np.linalg.norm(update[part])
            assert np.linalg.norm(back[part] - update[part]) <= most + 1e-12 * norm
            assert most <= 0.0891 * norm * (1 + 2.0**-22) + 2.0**-144
            start, block = start + width, block + 1


def test_turning_back_undoes_the_rotation_and_keeps_the_norm():
    update = np.random.default_rng(0).normal(size=1000)
    turned = rotation.rotate(update, np.random.default_rng(7))
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(update), rel=1e-12)
    assert np.abs(turned - update).max() > 0.1
    np.testing.assert_allclose(rotation.turn_back(turned, np.random.default_rng(7)), update, atol=1e-12)
    spike = np.zeros(128)
    spike[5] = 1.0
    np.testing.assert_allclose(np.abs(rotation.rotate(spike, np.random.default_rng(7))), 128**-0.5, rtol=1e-15)


def test_nothing_stays_nothing_and_what_float32_cannot_hold_is_refused():
    assert not both_ways(np.zeros(200)).any()
    assert both_ways(np.zeros(0)).shape == (0,)
    with pytest.raises(UpdateRejected, match="expected an update within what the study's codec can hold"):
        rotation.code(np.full(128, 1e300), np.random.default_rng(1), np.random.default_rng(2))


@pytest.mark.parametrize(("codes", "scale"), [([128] * 4, [1.0]), ([1] * 4, [-1.0])])
def test_bytes_that_stand_for_no_update_are_refused(codes, scale):
    with pytest.raises(UpdateRejected, match="expected an update in steps of -127 to 127"):
        rotation.decode(np.array(codes, np.uint8), np.array(scale, np.float32), np.random.default_rng(1))


def answered(of):
    state = of.start(of.no_statistics())
    asking = open_round(state, of, "train", ["north"])
    reply = handle(asking.request, {}, rows()["north"], of, OPEN, "north", of.rng(1, "north"))[1]
    return asking, reply


def test_only_updates_are_coded_and_a_reply_comes_back_as_it_was():
    of = plan(**ROTATED)
    asking, reply = answered(of)
    kinds = {name: array.dtype for name, array in reply.arrays.items()}
    assert kinds.pop(CODED) == np.uint8
    assert kinds.pop(SCALE) == np.float32
    assert set(kinds.values()) == {np.dtype(np.float64)}
    assert {name for name, array in asking.request.arrays.items() if array.dtype == np.float32} == {"theta"}
    sent = encode(reply)
    assert PREFIX.unpack_from(sent)[1] == VERSION
    back = decode(sent, Reply)
    assert encode(back) == sent
    assert foreign(back.arrays, "rotated8") == ""
    check(back, asking.request, ("north",), expected(asking.request, of))
    _, again = answered(of)
    assert encode(again) == sent  # an answer that is worked out again has the same bytes


def test_a_reply_without_scales_or_in_another_width_is_refused():
    of = plan(**ROTATED)
    asking, reply = answered(of)
    bare = {name: array for name, array in reply.arrays.items() if name != SCALE}
    with pytest.raises(UpdateRejected, match="expected arrays"):
        close_exchange(asking, of, [replace(reply, arrays=bare)])
    wide = {**reply.arrays, CODED: reply.arrays[CODED].astype(float)}
    with pytest.raises(UpdateRejected, match="expected delta as uint8, found float64 from site 'north'"):
        close_exchange(asking, of, [replace(reply, arrays=wide)])
    few = {**reply.arrays, SCALE: reply.arrays[SCALE][:1]}
    with pytest.raises(UpdateRejected, match=r"expected delta.scale of shape \(3,\), found \(1,\)"):
        close_exchange(asking, of, [replace(reply, arrays=few)])


def test_the_plain_loop_and_the_wire_give_the_same_model_bit_for_bit():
    of = plan(**ROTATED)
    by_hand, by_wire = (list(simulate(of, rows(), 5, wire=wire))[-1] for wire in (False, True))
    assert by_hand.state.theta.tobytes() == by_wire.state.theta.tobytes()
    assert by_hand.scores["east"][0].tobytes() == by_wire.scores["east"][0].tobytes()


def test_thirty_rounds_end_beside_those_of_float64():
    wide, slim = plan(), plan(**ROTATED)
    start = wide.start(wide.no_statistics())
    ends = [
        list(simulate(of, rows(), 30, state=replace(start, study=of.digest), rng_of=wide.rng))[-1]
        for of in (wide, slim)
    ]
    losses = [sum(sums[1] for sums, _ in end.scores.values()) / 150 for end in ends]
    apart = np.linalg.norm(ends[0].state.theta - ends[1].state.theta) / np.linalg.norm(ends[0].state.theta)
    assert losses[0] < 0.5
    assert abs(losses[1] - losses[0]) < 0.002
    assert 0 < apart < 0.01


def test_hospitals_apart_train_the_model_of_one_process(apart):
    study = apart(protocol={"\n[preprocess]": '\n[protocol]\ncodec = "rotated8"\n\n[preprocess]'})
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
    assert [it.outcome for it in study.replies()] == ["taken"] * len(study.replies())


def test_masked_sums_have_words_of_their_own_and_refuse_it():
    masked = {"privacy": {"protect": {"kind": "masked"}}}
    with pytest.raises(ValidationError, match="masked sums travel as whole words"):
        Study.model_validate(WORDS | ROTATED | masked)
    with pytest.raises(ValidationError, match="'float64', 'float32' or 'rotated8'"):
        Study.model_validate(WORDS | {"protocol": {"codec": "rotated4"}})
