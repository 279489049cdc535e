"""An invitation: one line of text by which a hospital joins a study, once, before it expires.

    fedrounds1.<base64url of: canonical JSON | signature, 64 bytes>

The JSON names the coordinator's key, and that key signs it (Ed25519, over the words `fedrounds invitation`, NUL, and the JSON). So a text
that was changed is refused; who the coordinator is, people compare by the key's fingerprint. It holds a one-time password: it is a secret
until the hospital has joined, and opens nothing afterwards. To change the format, raise the number in PREFIX.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedrounds.core import identity
from fedrounds.core.errors import StateError, UpdateRejected
from fedrounds.core.identity import SIGNATURE

PREFIX = "fedrounds1."
WORDS = b"fedrounds invitation\0"
LARGEST = 1 << 16  # letters; a certificate of usual size is a thousand
LAST = 253402300799  # the last second of the year 9999

Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class Invitation(BaseModel):
    """What a hospital needs to know to join: whom it will answer, where, as whom, for which study."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    coordinator: Hex32  # its public key
    url: Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9.\[\]:-]{1,253}$")]
    ca: Annotated[
        str,
        StringConstraints(
            pattern=r"^(-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{1,16384}-----END CERTIFICATE-----\n)?$"
        ),
    ]
    site: Word
    experiment: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}$")]
    user: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]
    password: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,128}$")] = Field(
        repr=False
    )  # good for joining, once
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] = Field(repr=False)
    expires: Annotated[int, Field(gt=0, le=LAST)]  # Unix seconds
    study: Word
    digest: Hex32  # of the protocol


def dump(invitation: Invitation, key: bytes) -> str:
    """The invitation as text, signed by the private key whose public half it names. The same gives the same.

    Raises:
        StateError: the key is none, or another than the invitation names.
    """
    if identity.public_key(key).hex() != invitation.coordinator:
        raise StateError(
            "expected an invitation that names the key it is signed by, found another: use the coordinator's"
        )
    words = _canonical(invitation)
    return PREFIX + base64.urlsafe_b64encode(words + identity.seal(key, WORDS + words)).rstrip(b"=").decode()


def load(text: str, now: float) -> Invitation:
    """The invitation that a text holds. White space in it, as mail programs leave it, does not matter.

    Args:
        now: Unix seconds.

    Raises:
        UpdateRejected: it is damaged, of another version, signed by another key than it names, or over. No message shows what it holds.
    """
    text = "".join(text[: 2 * LARGEST].split())
    if len(text) > LARGEST:
        raise UpdateRejected(f"expected an invitation of at most {LARGEST} letters, found more: it was refused unread")
    if not text.startswith(PREFIX):
        raise UpdateRejected(
            f"expected an invitation that begins with {PREFIX}, found another text: copy all of it, and install the coordinator's Fedrounds"
        )
    data = _bytes(text.removeprefix(PREFIX))
    words, signature = data[:-SIGNATURE], data[-SIGNATURE:]
    try:
        invitation = Invitation.model_validate_json(words)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False, include_url=False)[0]["loc"])[:40]
        named = f" at '{where}'" if where in Invitation.model_fields else ""
        raise UpdateRejected(f"expected an invitation, found a damaged text{named}: copy all of it again") from None
    if _canonical(invitation) != words:
        raise UpdateRejected(
            "expected an invitation as a coordinator writes it, found it written otherwise: ask for another"
        )
    try:
        signed = identity.sealed(bytes.fromhex(invitation.coordinator), WORDS + words, signature)
    except StateError as error:
        raise UpdateRejected(str(error)) from None
    if not signed:
        raise UpdateRejected(
            "expected an invitation signed by the key that it names, found another signature: it was forged or damaged, ask for another"
        )
    if now >= invitation.expires:
        over = datetime.fromtimestamp(invitation.expires, UTC)
        raise UpdateRejected(
            f"expected an invitation that still holds, found one that ended {over:%Y-%m-%d %H:%M} UTC: ask for another"
        )
    return invitation


def nonce_hash(nonce: str) -> str:
    """What the coordinator keeps of an invitation's nonce: enough to know it again, not enough to show it."""
    return sha256(nonce.encode()).hexdigest()


def _canonical(invitation: Invitation) -> bytes:
    return json.dumps(invitation.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _bytes(text: str) -> bytes:
    """What base64url says; only the one way to write it is read."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    if len(data) <= SIGNATURE or base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise UpdateRejected("expected an invitation, found a text that was cut short or damaged: copy all of it again")
    return data
