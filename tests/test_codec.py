"""The float32 codec: which numbers are rounded, by how much, that everybody rounds alike, and that a float64 study is what it was."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrounds.core.answer import handle
from fedrounds.core.codec import NARROWED, foreign, narrow, widen
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import NARROW, PREFIX, PROTOCOL, Reply, Request, decode, encode, pack, unpack
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows, clean
from fedrounds.core.round import close_exchange, open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table

WORDS = {
    "name": "toy",
    "patient_id": "id",
    "target": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "features": [{"type": "number", "name": f"x{i}"} for i in range(10)],
    "model": {"kind": "logistic", "l2": 0.01},
    "algorithm": {"preset": "fedavg", "local": {"rate": 0.1, "epochs": 2}},
}
FLOAT32 = {"protocol": {"codec": "float32"}}


def plan(**changes):
    return build(Study.model_validate(WORDS | changes))


def cohorts(of, sites=("east", "north", "west"), patients=120):
    """Made-up tables, the same for every plan."""
    found = {}
    for number, site in enumerate(sites):
        rng = np.random.default_rng(number)
        columns = {f"x{i}": rng.normal(size=patients).astype(str).astype(object) for i in range(10)}
        columns["id"] = np.array([f"{site}{i}" for i in range(patients)], object)
        columns["y"] = rng.normal(size=patients).astype(str).astype(object)
        found[site] = clean(Table(columns), of.study, site)
    return found


def test_a_study_that_does_not_name_the_codec_keeps_the_digest_it_had():
    assert Study.model_validate(WORDS).digest == "e51d4f9c790a7080e418aa3532dbe46daddb23b110a95d5ba6aa8cb6083aed1d"
    assert Study.model_validate(WORDS | {"protocol": {}}).digest == Study.model_validate(WORDS).digest
    assert plan(protocol={"codec": "float64"}).digest == plan().digest
    assert plan(**FLOAT32).digest != plan().digest


def test_the_bytes_of_a_float64_study_are_those_of_every_release_before():
    request = Request("5" * 64, 3, 0, "train", "b" * 64, {"theta": np.array([0.1, -2.5]), "scale": np.array([1.0])})
    golden = (
        b'FEDR\x01\x00\x06\x01\x00\x00{"arrays":[["theta","<f8",[2]],["scale","<f8",[1]]],"ask":"train","base":"'
        + b"b" * 64
        + b'","exchange":0,"kind":"Request","round":3,"study":"'
        + b"5" * 64
        + b'"}'
    )
    sent = encode(request)
    length = PREFIX.unpack_from(sent)[2]
    assert sent == golden + b" " * (PREFIX.size + length - len(golden)) + np.array([0.1, -2.5, 1.0]).tobytes()
    arrays = {"delta": np.array([0.1, -0.25]), "histogram": np.zeros((0, 2, 50)), "train": np.array([10.0, 1.5])}
    reply = encode(Reply("5" * 64, 3, 0, "train", "b" * 64, "north", "", arrays))
    assert hashlib.sha256(reply).hexdigest() == "f27775ad19ccf515bbc72f2d48a167159a3233e0214875d9d906adfc3f73c950"


def test_a_narrow_message_is_of_version_2_and_comes_back_as_it_was():
    arrays = {"delta": np.array([0.1, 1e-40, -3.0], np.float32), "train": np.array([2.0**24 + 1, 0.1])}
    sent = pack({"a": 1}, arrays)
    assert PREFIX.unpack_from(sent)[1] == NARROW
    assert sent.endswith(arrays["delta"].tobytes() + arrays["train"].tobytes())
    header, back = unpack(sent)
    assert header == {"a": 1}
    assert [(array.dtype, array.flags.aligned) for array in back.values()] == [(np.float32, True), (np.float64, True)]
    assert all(back[name].tobytes() == array.tobytes() for name, array in arrays.items())
    assert pack(header, back) == sent


@given(st.floats(-3.4e38, 3.4e38))
@settings(database=None, deadline=None)
def test_a_number_moves_by_at_most_2_to_the_minus_24_of_itself(x):
    found = float(widen(narrow({"theta": np.array([x])}, "float32"))["theta"][0])
    assert abs(found - x) <= max(abs(x) * 2.0**-24, 2.0**-150)


def test_what_float32_cannot_hold_is_refused_and_never_sent_as_infinity():
    assert narrow({"delta": np.array([3.4e38])}, "float32")["delta"][0] == np.float32(3.4e38)
    said = r"expected numbers of 'delta' within ±3.4e\+38, found one that float32, the study's codec, cannot hold"
    with pytest.raises(UpdateRejected, match=said):
        narrow({"delta": np.array([0.0, -1e39])}, "float32")
    assert narrow({"delta": np.array([1e39])}, "float64")["delta"][0] == 1e39


def test_a_site_whose_update_float32_cannot_hold_refuses_and_remembers_nothing():
    of = plan(target={"kind": "regression", "column": "y"}, model={"kind": "linear"}, **FLOAT32)
    rows = Rows(np.full((40, 11), 1e19), np.full(40, 1e21), np.full((40, 11), 1.0), np.zeros(40))
    asked = open_round(of.start(of.no_statistics()), of, "train", ["north"]).request
    memory = {"kept": np.ones(1)}
    after, reply = handle(asked, memory, rows, of, OPEN, "north", np.random.default_rng(0))
    assert after is memory
    assert reply.arrays == {}
    assert "float32, the study's codec" in reply.refusal
    assert decode(encode(reply), Reply) == reply


def test_counts_scores_and_statistics_stay_float64():
    of = plan(**FLOAT32)
    seen = {}

    def note(message):
        seen.update({name: array.dtype for name, array in message.arrays.items()})
        return message

    state, rows = of.start(), cohorts(of)
    for ask in ("statistics", "train", "score"):
        asking = open_round(state, of, ask, rows)
        while hasattr(asking, "request"):
            request = note(decode(encode(asking.request), Request))
            replies = [note(decode(encode(handle(request, {}, rows[s], of, OPEN, s, of.rng(1, s))[1]), Reply)) for s in asking.sites]  # fmt: skip
            asking = close_exchange(asking, of, replies)
        state = asking.state
    assert {name for name, kind in seen.items() if kind == np.float32} == {"theta", "delta"} == NARROWED & seen.keys()
    assert {"train", "scores", "histogram", "impute", "center", "scale", "observed", "levels", "square"} <= seen.keys()
    assert state.theta.dtype == np.float64


def test_the_plain_loop_and_the_wire_give_the_same_model_bit_for_bit():
    of = plan(**FLOAT32)
    by_hand, by_wire = (list(simulate(of, cohorts(of), 5, wire=wire))[-1] for wire in (False, True))
    assert by_hand.state.theta.tobytes() == by_wire.state.theta.tobytes()
    assert by_hand.state.model_digest == by_wire.state.model_digest
    assert by_hand.scores["east"][0].tobytes() == by_wire.scores["east"][0].tobytes()


def test_twenty_rounds_of_float32_end_within_a_millionth_of_float64():
    wide, slim = plan(), plan(**FLOAT32)
    rows, start = cohorts(wide), wide.start().theta  # another digest draws other batches: here both draw the same
    ends = [
        list(simulate(of, rows, 20, state=replace(of.start(), theta=start), rng_of=wide.rng))[-1].state.theta
        for of in (wide, slim)
    ]
    assert 0 < np.abs(ends[0] - ends[1]).max() < 1e-6


@pytest.mark.parametrize(("codec", "kind"), [("float64", np.float32), ("float32", np.float64)])
def test_an_array_of_another_width_than_the_study_says_is_refused_at_both_ends(codec, kind):
    of = plan(protocol={"codec": codec})
    rows = cohorts(of)
    state = of.start(of.no_statistics())
    asking = open_round(state, of, "train", ["north"])
    other = {**asking.request.arrays, "theta": asking.request.arrays["theta"].astype(kind)}
    reply = handle(replace(asking.request, arrays=other), {}, rows["north"], of, OPEN, "north", of.rng(1, "north"))[1]  # fmt: skip
    assert reply.refusal == f"expected theta as {codec}, found {np.dtype(kind)}: the study file here is another one"
    fair = handle(asking.request, {}, rows["north"], of, OPEN, "north", of.rng(1, "north"))[1]
    crooked = replace(fair, arrays={**fair.arrays, "delta": fair.arrays["delta"].astype(kind)})
    with pytest.raises(UpdateRejected, match=f"expected delta as {codec}, found {np.dtype(kind)} from site 'north'"):
        close_exchange(asking, of, [crooked])
    counts = replace(fair, arrays={**fair.arrays, "train": fair.arrays["train"].astype(np.float32)})
    with pytest.raises(UpdateRejected, match="expected train as float64, found float32"):
        close_exchange(asking, of, [counts])
    assert foreign(fair.arrays, codec) == ""


@pytest.mark.parametrize(
    ("model", "saved"), [(WORDS["model"], 11), ({"kind": "mlp", "hidden": [64]}, 64 * 11 + 65)], ids=["logistic", "mlp"]
)  # fmt: skip
def test_the_arrays_of_training_take_half_the_bytes(model, saved):
    sizes = []
    for words in ({}, FLOAT32):
        of = plan(model=model, **words)
        asking = open_round(of.start(of.no_statistics()), of, "train", ["north"])
        reply = handle(asking.request, {}, cohorts(of)["north"], of, OPEN, "north", of.rng(1, "north"))[1]
        headers = [PREFIX.size + PREFIX.unpack_from(encode(message))[2] for message in (asking.request, reply)]
        sizes.append([len(encode(message)) - head for message, head in zip((asking.request, reply), headers, strict=True)])  # fmt: skip
    (request, reply), (slim_request, slim_reply) = sizes
    assert of.family.layout.size == saved
    assert (request - slim_request, reply - slim_reply) == (4 * saved, 4 * saved)
    assert PREFIX.unpack_from(encode(asking.request))[1] != PROTOCOL
