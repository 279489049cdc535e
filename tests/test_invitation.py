"""An invitation is read as it was written, or refused in one line that shows nothing of it."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedrounds.core import identity, invitation
from fedrounds.core.errors import FedroundsError, StateError, UpdateRejected
from fedrounds.core.invitation import LARGEST, PREFIX, WORDS, Invitation

KEY = bytes(range(32))
NOW = 1_700_000_000
CA = "-----BEGIN CERTIFICATE-----\nMIIB+/==\n-----END CERTIFICATE-----\n"
GOOD = Invitation(
    coordinator=identity.public_key(KEY).hex(), url="https://fedrounds.example.org:8443", ca=CA, site="north", experiment="7",
    user="site-north", password="once-and-never-again", nonce="0123456789abcdef" * 2, expires=NOW + 60, study="heart", digest="ab" * 32,
)  # fmt: skip
TEXT = invitation.dump(GOOD, KEY)


def written(fields: dict, key: bytes = KEY, **how) -> str:
    """A text that says whatever it is told to, well signed."""
    words = json.dumps(fields, sort_keys=True, separators=(",", ":"), **how).encode()
    return PREFIX + base64.urlsafe_b64encode(words + identity.seal(key, WORDS + words)).rstrip(b"=").decode()


def test_an_invitation_is_the_text_that_it_was_written_as():
    assert invitation.load(TEXT, NOW) == GOOD
    assert invitation.dump(invitation.load(TEXT, NOW), KEY) == TEXT == written(GOOD.model_dump())
    assert TEXT.startswith("fedrounds1.eyJjYSI6")
    assert len(TEXT) < 1000


def test_white_space_of_mail_programs_does_not_matter():
    broken = "\n ".join(TEXT[start : start + 60] for start in range(0, len(TEXT), 60))
    assert invitation.load(f"  {broken}\r\n", NOW) == GOOD


def test_it_holds_until_the_second_that_it_names():
    assert invitation.load(TEXT, NOW + 59.9) == GOOD
    for late in (60, 61, 10**12):
        with pytest.raises(UpdateRejected, match=r"found one that ended 2023-11-14 22:14 UTC: ask for another"):
            invitation.load(TEXT, NOW + late)


def test_every_letter_counts():
    for place in range(len(TEXT)):
        other = "A" if TEXT[place] != "A" else "B"
        with pytest.raises(UpdateRejected):
            invitation.load(TEXT[:place] + other + TEXT[place + 1 :], NOW)


@pytest.mark.parametrize("length", [0, 1, 10, 11, 12, 90, 500, -1])
def test_a_text_that_was_cut_short_is_refused(length):
    with pytest.raises(UpdateRejected, match="expected an invitation"):
        invitation.load(TEXT[:length], NOW)


def test_a_signature_by_another_key_than_it_names_is_refused():
    with pytest.raises(UpdateRejected, match="signed by the key that it names"):
        invitation.load(written(GOOD.model_dump(), key=bytes(32)), NOW)
    with pytest.raises(StateError, match="names the key it is signed by"):
        invitation.dump(GOOD, bytes(32))


def test_a_key_that_anybody_can_sign_for_is_refused():
    weak = GOOD.model_dump() | {"coordinator": "01" + "00" * 31}
    with pytest.raises(UpdateRejected, match="one that anybody can sign for"):
        invitation.load(written(weak), NOW)


WRONG = {
    "coordinator": ["", "AB" * 32, "ab" * 31, "ab" * 32 + "\n", 7, None, ["ab" * 32]],
    "url": [
        "",
        "http://fedrounds.example.org",
        "https://",
        "https://u:p@host",
        "https://host/path",
        "https://host?x",
        "https://h\n",
        7,
        None,
    ],
    "ca": [
        CA + CA,
        CA.strip(),
        "-----BEGIN PRIVATE KEY-----\nMII=\n-----END PRIVATE KEY-----\n",
        "/etc/passwd",
        CA + "x",
        7,
        None,
    ],
    "site": ["", "../north", "a/b", "-north", "n" * 64, "n\0", "nörth", 7, None, "north\n"],
    "experiment": ["", "seven", "7/../8", "7" * 21, "-7", "٧", 7, None, "7\n"],
    "user": ["", "a:b", "a b", "u" * 81, 7, None],
    "password": ["", "short", "x" * 129, "with space in it..", "colon:colon:colon:", 7, None],
    "nonce": ["", "0" * 31, "0" * 33, "G" * 32, 7, None],
    "expires": [0, -1, 1.5, 10**12, "1700000060", True, None, float("inf")],
    "study": ["", "s" * 64, "a/b", 7, None],
    "digest": ["", "ab" * 31, "AB" * 32, 7, None],
}


def test_the_table_below_knows_every_field():
    assert set(WRONG) == set(Invitation.model_fields) == set(GOOD.model_dump())


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_field_of_another_type_or_beyond_its_bounds_is_refused_and_not_shown(field, value):
    with pytest.raises(UpdateRejected) as caught:
        invitation.load(written(GOOD.model_dump() | {field: value}), NOW)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 250
    assert not any(secret in said for secret in (GOOD.password, GOOD.nonce, "Traceback"))


@pytest.mark.parametrize("field", sorted(WRONG))
def test_a_missing_field_is_refused(field):
    fields = GOOD.model_dump()
    del fields[field]
    with pytest.raises(UpdateRejected, match=f"damaged text at '{field}'"):
        invitation.load(written(fields), NOW)


def test_nothing_more_than_its_fields_is_read():
    with pytest.raises(UpdateRejected, match="damaged"):
        invitation.load(written(GOOD.model_dump() | {"command": "rm"}), NOW)


def test_only_the_one_way_of_writing_is_read():
    words = json.dumps(GOOD.model_dump()).encode()  # with spaces, in another order
    text = PREFIX + base64.urlsafe_b64encode(words + identity.seal(KEY, WORDS + words)).rstrip(b"=").decode()
    with pytest.raises(UpdateRejected, match="written otherwise"):
        invitation.load(text, NOW)
    for other in (TEXT + "=", TEXT + "==", TEXT.replace("fedrounds1", "fedrounds2"), TEXT + "A" * LARGEST):
        with pytest.raises(UpdateRejected):
            invitation.load(other, NOW)


def test_it_does_not_show_its_secrets_where_it_is_printed():
    assert GOOD.password not in repr(GOOD)
    assert GOOD.nonce not in repr(GOOD)
    assert invitation.nonce_hash(GOOD.nonce) == "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9"


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=2000), st.booleans(), st.booleans())
@example(b"", True, True)
def test_any_bytes_give_an_invitation_or_an_error_of_ours(data, encoded, sealed):
    if sealed:
        data += identity.seal(KEY, WORDS + data)
    text = base64.urlsafe_b64encode(data).rstrip(b"=").decode() if encoded else data.decode("latin-1")
    for start in ("", PREFIX):
        try:
            assert isinstance(invitation.load(start + text, NOW), Invitation)
        except FedroundsError as error:
            assert str(error).isprintable()  # noqa: PT017
