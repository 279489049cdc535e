"""Messages: what goes in comes out, and whatever is damaged, foreign or hostile is refused with one clear line."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import MAGIC, PREFIX, PROTOCOL, Reply, Request, decode, encode, pack, unpack

REPLY = Reply(
    study="5" * 64,
    round=3,
    exchange=0,
    ask="train",
    base="b" * 64,
    site="north",
    refusal="",
    arrays={"delta": np.array([0.5, -0.25]), "histogram": np.zeros((0, 2, 50)), "train": np.array([10.0, 1.5])},
)
REQUEST = Request("5" * 64, 3, 0, "score", "b" * 64, {"theta": np.array([[1.0, 2.0], [3.0, 4.0]])})
HEADER = {
    "kind": "Reply",
    "study": "s",
    "round": 1,
    "exchange": 0,
    "ask": "train",
    "base": "b",
    "site": "n",
    "refusal": "",
}

fuzzed = settings(database=None, deadline=None)


def raw(header, body=b"", magic=MAGIC, version=PROTOCOL):
    """A message written by hand, right or wrong; a header that is not bytes becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return PREFIX.pack(magic, version, len(text)) + text + body


def listing(*arrays, **fields):
    """A reply's header that lists these arrays."""
    return HEADER | {"arrays": list(arrays)} | fields


def refusal_of(data, kind=Reply, **options):
    """The one line with which `data` is refused."""
    with pytest.raises(UpdateRejected) as caught:
        decode(data, kind, **options)
    text = str(caught.value)
    assert text.startswith("expected ")
    assert "found" in text
    assert text.isprintable()
    assert len(text) < 400
    return text


@pytest.mark.parametrize("message", [REPLY, REQUEST])
def test_a_message_comes_back_as_it_was_bit_for_bit(message):
    back = decode(encode(message), type(message))
    assert {**vars(back), "arrays": None} == {**vars(message), "arrays": None}
    assert list(back.arrays) == list(message.arrays)
    for name, array in message.arrays.items():
        assert back.arrays[name].tobytes() == array.tobytes()
        assert back.arrays[name].shape == array.shape
        assert back.arrays[name].flags.aligned
    assert encode(back) == encode(message)


def test_a_refusal_travels_without_arrays():
    refused = Reply("s", 1, 0, "train", "b", "north", "9 training patients are below the minimum cohort", {})
    assert decode(encode(refused), Reply) == refused


def test_the_bytes_are_those_of_the_written_format():
    assert pack({"a": 1}, {"x": np.array([1.0])}) == (
        b"FEDR" + (1).to_bytes(2, "little") + (38).to_bytes(4, "little")
        + b'{"a":1,"arrays":[["x","<f8",[1]]]}    ' + np.array([1.0]).tobytes()
    )  # fmt: skip


def test_what_is_not_finite_is_never_sent():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UpdateRejected, match="expected finite numbers in 'x', found NaN or infinity"):
            pack({}, {"x": np.array([0.0, bad])})


def test_a_message_cut_short_at_any_length_is_refused():
    whole = encode(REPLY)
    for length in range(len(whole)):
        refusal_of(whole[:length])


def test_trailing_bytes_are_refused():
    whole = encode(REPLY)
    assert f"expected a message of {len(whole)} bytes, found {len(whole) + 1}" in refusal_of(whole + b"\0")


def test_an_oversized_message_is_refused_unread():
    whole = encode(REPLY)
    assert "unread" in refusal_of(whole, largest=len(whole) - 1)
    assert decode(whole, Reply, largest=len(whole)).site == "north"


def test_a_header_longer_than_allowed_is_refused():
    refusal_of(raw(b" " * ((1 << 20) + 1)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (raw(listing(), magic=b"PK\3\4"), "expected a Fedrounds message"),
        (raw(listing(), version=4), "expected message version 1 to 3, found 4: install the same Fedrounds"),
        (raw(listing(), version=2), "expected message version 1 for the types of its arrays, found 2"),
        (raw(listing(), version=3), "expected message version 1 for the types of its arrays, found 3"),
        (raw(listing(["x", "<f2", [1]]), bytes(2), version=2), "expected array 'x' as <f8 or <f4 with a plain shape, found '<f2'"),
        (raw(listing(["x", "<f4", [1]]), b"\0\0\x80\x7f", version=2), "expected finite numbers in array 'x'"),
        (raw(listing(["x", "<f4", [2]]), bytes(4), version=2), "expected 8 bytes for array 'x' (2,), found 4"),
        (raw(listing(["x", "<f4", [1]]), bytes(8), version=2), "found "),
        (raw(b"{"), "not JSON"),
        (raw(b"\xff\xfe"), "not JSON"),
        (raw(b"[" * 100_000), "not JSON"),
        (raw(b'{"arrays":' + b"[" * 100_000), "not JSON"),
        (raw(b"9" * 5000), "not JSON"),
        (raw([]), "expected a JSON object as header"),
        (raw("text"), "expected a JSON object as header"),
        (raw(HEADER), "expected a list of arrays"),
        (raw(HEADER | {"arrays": {}}), "expected a list of arrays"),
        (raw(b'{"kind":"Reply","kind":"Reply","arrays":[]}'), "one twice"),
        (raw(listing("x")), "listed as"),
        (raw(listing(["x", "<f8"])), "listed as"),
        (raw(listing(["x", "<f8", 3], ["y"])), "listed as"),
        (raw(listing([1, "<f8", [1]])), "listed as"),
        (raw(listing(["x", "<f8", [1]], ["x", "<f8", [1]]), bytes(16)), "a name twice"),
        (raw(listing(["x", "<f4", [1]]), bytes(4)), "'<f4'"),
        (raw(listing(["x", "|O", [1]]), bytes(8)), "'|O'"),
        (raw(listing(["x", ">f8", [1]]), bytes(8)), "'>f8'"),
        (raw(listing(["x", "<f8", [-1]])), "plain shape"),
        (raw(listing(["x", "<f8", [-1, -1]]), bytes(8)), "plain shape"),
        (raw(listing(["x", "<f8", [True]]), bytes(8)), "plain shape"),
        (raw(listing(["x", "<f8", [1.0]]), bytes(8)), "plain shape"),
        (raw(listing(["x", "<f8", [1] * 5]), bytes(8)), "plain shape"),
        (raw(listing(["x", "<f8", [2**62]])), "plain shape"),
        (raw(listing(["x", "<f8", [0, 2**30, 2**30, 2**30]])), "plain shape"),
        (raw(listing(["x", "<f8", [2**30]])), "cut short"),
        (raw(listing(["x", "<f8", [3]]), bytes(16)), "expected 24 bytes for array 'x' (3,), found 16"),
        (raw(listing(["x", "<f8", [1]]), bytes(16)), "found"),
        (raw(listing(["x\n\x1b[31m", "<f8", [1]])), "cut short"),
        (raw(listing(["x", "<f8", [1]]), np.array([np.nan]).tobytes()), "NaN or infinity"),
        (raw(listing(["x", "<f8", [1]]), np.array([-np.inf]).tobytes()), "NaN or infinity"),
        (raw(listing(kind="Request")), "expected a Reply"),
        (raw(listing(kind=None)), "expected a Reply"),
        (raw(listing(extra=1)), "header fields"),
        (raw({"kind": "Reply", "arrays": []}), "header fields"),
        (raw(listing(round="1")), "header field 'round' as int, found str"),
        (raw(listing(round=True)), "header field 'round' as int, found bool"),
        (raw(listing(round=-1)), "header field 'round' from 0 to 2^32 - 1"),
        (raw(listing(exchange=1 << 32)), "header field 'exchange' from 0 to 2^32 - 1"),
        (raw(listing(round=10**4000)), "header field 'round' from 0 to 2^32 - 1"),
        (raw(listing(round=1.0)), "header field 'round' as int, found float"),
        (raw(listing(study=None)), "header field 'study' as str, found NoneType"),
        (raw(listing(ask="rows")), "expected to be asked for one of gate, statistics, train, score"),
        (raw(listing(site="\x1b[2J")), "printable"),
        (raw(listing(refusal="\ud800")), "printable"),
        (raw(listing(refusal="x" * 1001)), "at most 1000"),
    ],
)  # fmt: skip
def test_what_is_not_a_whole_and_plain_message_is_refused(data, said):
    assert said in refusal_of(data)


def test_a_stated_shape_reserves_no_memory():
    data = raw(listing(["x", "<f8", [2**30]]), bytes(64))
    tracemalloc.start()
    refusal_of(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def only_ever_refused(data):
    """Fails by any exception but one."""
    for read in (unpack, lambda bytes_: decode(bytes_, Reply), lambda bytes_: decode(bytes_, Request)):
        with suppress(UpdateRejected):
            read(data)


@fuzzed
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_and_nothing_else(data):
    only_ever_refused(data)
    only_ever_refused(PREFIX.pack(MAGIC, PROTOCOL, len(data)) + data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["<f8", "Reply"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@fuzzed
@given(
    st.dictionaries(st.sampled_from([*HEADER, "arrays", "x"]), json_values, max_size=4),
    json_values,
    st.binary(max_size=40),
)
def test_random_headers_are_refused_or_read_and_nothing_else(changed, arrays, body):
    only_ever_refused(raw(HEADER | {"arrays": arrays} | changed, body))


@fuzzed
@given(st.data())
def test_random_mutations_are_refused_or_read_and_nothing_else(data):
    message = bytearray(encode(REPLY))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "delete"])):
            case "flip":
                message[at] ^= 1 << data.draw(st.integers(0, 7))
            case "insert":
                message.insert(at, data.draw(st.integers(0, 255)))
            case _:
                del message[at]
    only_ever_refused(bytes(message))
