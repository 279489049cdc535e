"""Envelopes: what was signed comes back, and everything else is refused in its own words."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrounds.core import identity
from fedrounds.core.errors import StateError, UpdateRejected
from fedrounds.core.identity import ENVELOPE, SIGNATURE, About, fingerprint, new_key, public_key, sign, verify

KEY = bytes(range(32))
PUBLIC = public_key(KEY)
ABOUT = About("5" * 64, 3, 1, 0, "north", "reply", "b" * 64)
PAYLOAD = b"sums over patients"
SIGNED = sign(KEY, ABOUT, PAYLOAD)
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the curve's large subgroup (RFC 8032, 5.1)
OTHERS = {
    "study": "6" * 64,
    "round": 4,
    "attempt": 2,
    "exchange": 1,
    "site": "south",
    "direction": "request",
    "base": "c" * 64,
}

fuzzed = settings(database=None, deadline=None, max_examples=700)


def refusal_of(signed, about=ABOUT, public=PUBLIC, **options):
    """The one line with which an envelope is refused."""
    with pytest.raises(UpdateRejected) as caught:
        verify(public, about, signed, **options)
    text = str(caught.value)
    assert text.startswith("expected ")
    assert "found" in text
    assert text.isprintable()
    assert len(text) < 300
    return text


def test_what_was_signed_comes_back():
    assert verify(PUBLIC, ABOUT, SIGNED) == PAYLOAD
    for payload in (b"", bytes(100_000)):
        assert verify(PUBLIC, ABOUT, sign(KEY, ABOUT, payload)) == payload


def test_the_same_words_give_the_same_bytes_and_these_are_they():
    assert sign(KEY, ABOUT, PAYLOAD) == SIGNED
    statement = (
        bytes.fromhex("5" * 64 + "b" * 64)
        + identity.sha256(PAYLOAD).digest()
        + PUBLIC
        + (18).to_bytes(8, "little")
        + b"\3\0\0\0" + b"\1\0\0\0" + bytes(4) + b"\1"
        + b"north"
    )  # fmt: skip
    assert SIGNED[:8] == b"FEDS" + b"\1\0" + len(statement).to_bytes(2, "little")
    assert SIGNED[8 : 8 + len(statement)] == statement
    assert SIGNED[8 + len(statement) + SIGNATURE :] == PAYLOAD
    assert len(SIGNED) <= ENVELOPE + len(PAYLOAD)


def test_the_signature_is_that_of_rfc_8032_over_the_stated_words():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    statement, signature = SIGNED[8:-82], SIGNED[-82:-18]
    signed = b"fedrounds envelope\0\1\0" + statement
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(signature, signed)


def test_a_payload_that_was_changed_is_refused():
    assert "it was changed on its way" in refusal_of(SIGNED[:-1] + b"S")


def test_a_payload_that_was_cut_short_or_lengthened_is_refused():
    assert "expected a payload of 18 bytes, found 17" in refusal_of(SIGNED[:-1])
    assert "expected a payload of 18 bytes, found 19" in refusal_of(SIGNED + b"\0")


@pytest.mark.parametrize("word", OTHERS)
def test_an_envelope_about_another(word):
    other = replace(ABOUT, **{word: OTHERS[word]})
    text = refusal_of(SIGNED, other)
    assert f"expected a message about {word} {str(OTHERS[word])[:12]}" in text
    assert f"found one about {str(getattr(ABOUT, word))[:12]}" in text
    assert verify(PUBLIC, other, sign(KEY, other, PAYLOAD)) == PAYLOAD


def test_an_envelope_by_another_key_is_refused():
    stranger = new_key()
    text = refusal_of(sign(stranger, ABOUT, PAYLOAD))
    assert fingerprint(PUBLIC) in text
    assert fingerprint(public_key(stranger)) in text


def test_a_stranger_who_writes_our_key_into_an_envelope_is_refused():
    stranger = new_key()
    forged = sign(stranger, ABOUT, PAYLOAD).replace(public_key(stranger), PUBLIC)
    assert "forged or damaged" in refusal_of(forged)


def test_a_signature_moved_to_another_payload_is_refused():
    other = sign(KEY, ABOUT, b"sums over nobody..")
    assert len(other) == len(SIGNED)
    assert "it was changed" in refusal_of(SIGNED[:-18] + other[-18:])
    assert "forged or damaged" in refusal_of(SIGNED[:-82] + other[-82:])


def test_nobody_but_its_signer_makes_a_second_envelope_out_of_one():
    s = int.from_bytes(SIGNED[-50:-18], "little")
    assert s < ORDER
    assert "forged or damaged" in refusal_of(SIGNED[:-50] + (s + ORDER).to_bytes(32, "little") + SIGNED[-18:])


@pytest.mark.parametrize(
    "y", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, identity.OCTIC, identity.PRIME - identity.OCTIC]
)
@pytest.mark.parametrize("sign_bit", [0, 1])
def test_a_public_key_that_anybody_can_sign_for_is_no_key(y, sign_bit):
    weak = (y | sign_bit << 255).to_bytes(32, "little")
    statement = identity._statement(ABOUT, weak, PAYLOAD)
    prefix = identity.PREFIX.pack(identity.MAGIC, identity.VERSION, len(statement))
    forged = prefix + statement + b"\1" + bytes(63) + PAYLOAD  # fits the neutral element without any private key
    with pytest.raises(StateError, match="anybody can sign for"):
        verify(weak, ABOUT, forged)


def test_what_is_larger_than_allowed_is_refused_unread():
    signed = sign(KEY, ABOUT, bytes(10 << 20))
    tracemalloc.start()
    assert "unread" in refusal_of(signed, largest=(10 << 20) - 1)
    assert "unread" in refusal_of(signed, largest=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert len(verify(PUBLIC, ABOUT, signed, largest=10 << 20)) == 10 << 20


def test_an_envelope_cut_short_at_any_length_is_refused():
    for length in range(len(SIGNED)):
        refusal_of(SIGNED[:length])


def test_one_flipped_bit_anywhere_is_refused():
    for at in range(8 * len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[at // 8] ^= 1 << at % 8
        refusal_of(bytes(changed))


def test_another_version_says_what_to_do():
    assert "install the same Fedrounds" in refusal_of(SIGNED[:4] + b"\2" + SIGNED[5:])
    assert "signed message of Fedrounds" in refusal_of(b"PK\3\4" + SIGNED[4:])


@pytest.mark.parametrize(
    ("word", "value"),
    [("study", "5" * 63), ("study", "G" * 64), ("study", "5" * 64 + "\n"), ("base", ""), ("round", -1), ("attempt", 1 << 32), ("exchange", -5),
     ("site", ""), ("site", "../north"), ("site", "n" * 64), ("site", "north\n"), ("site", "nörth"), ("direction", "sideways")],
)  # fmt: skip
def test_words_that_are_none_are_refused(word, value):
    with pytest.raises(UpdateRejected, match=f"expected (a )?{word if word != 'site' else 'site.s name'}"):
        replace(ABOUT, **{word: value})


def test_the_longest_site_name_and_the_largest_numbers_travel():
    about = About("0" * 64, 2**32 - 1, 2**32 - 1, 2**32 - 1, "n" * 63, "request", "f" * 64)
    signed = sign(KEY, about, b"")
    assert len(signed) == ENVELOPE
    assert verify(PUBLIC, about, signed) == b""


def test_keys_are_32_bytes_of_which_no_two_are_the_same():
    assert len({new_key() for _ in range(20)}) == 20
    assert len(new_key()) == len(public_key(new_key())) == 32
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(StateError, match="private key of 32 bytes"):
            sign(wrong, ABOUT, b"")
        with pytest.raises(StateError, match="public key of 32 bytes"):
            verify(wrong, ABOUT, SIGNED)


def only_ever_refused(signed):
    """Fails by any exception but one, and by anything that is accepted."""
    with pytest.raises(UpdateRejected):
        verify(PUBLIC, ABOUT, signed)


@fuzzed
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_and_nothing_else(data):
    only_ever_refused(data)
    only_ever_refused(SIGNED[:8] + data)


@fuzzed
@given(st.binary(min_size=149, max_size=240), st.binary(max_size=100))
def test_random_statements_are_refused_and_nothing_else(statement, rest):
    prefix = identity.PREFIX.pack(identity.MAGIC, identity.VERSION, len(statement))
    only_ever_refused(prefix + statement + rest)
    only_ever_refused(prefix + statement[:96] + PUBLIC + statement[128:] + rest)


@fuzzed
@given(st.data())
def test_random_mutations_are_refused_and_nothing_else(data):
    message = bytearray(SIGNED)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete"])):
            case "set":
                message[at] = data.draw(st.integers(0, 255))
            case "insert":
                message.insert(at, data.draw(st.integers(0, 255)))
            case _:
                del message[at]
    if message != SIGNED:
        only_ever_refused(bytes(message))
