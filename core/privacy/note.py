"""A log's head as others can keep it: a C2SP checkpoint, which is a signed note, and the lines of those who witnessed it.

    origin ⏎ number of leaves ⏎ root, base64 ⏎ ⏎ — origin base64(key id, 4 bytes | Ed25519 signature) ⏎

A witness's line (C2SP cosignature/v1) is `— name base64(key id | Unix seconds, 8 bytes | signature)`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256

from fedrounds.core import identity
from fedrounds.core.errors import LogBroken, StateError
from fedrounds.core.privacy.merkle import HASH

NOTE, COSIGNATURE = b"\1", b"\4"  # kinds of a key in a note
DASH = "\N{EM DASH} "
SPKI = bytes.fromhex("302a300506032b6570032100")  # what stands before an Ed25519 key in PEM (RFC 8410)


@dataclass(frozen=True)
class Checkpoint:
    """A log's head: so many leaves, and the hash that stands for them."""

    origin: str
    size: int
    root: bytes

    @property
    def body(self) -> bytes:
        """What is signed (C2SP tlog-checkpoint)."""
        return f"{self.origin}\n{self.size}\n{b64(self.root)}\n".encode()


def key_id(name: str, public: bytes, kind: bytes) -> bytes:
    """Four bytes by which a note's signature names its key (C2SP signed-note)."""
    return sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def read_note(note: str) -> tuple[Checkpoint, list[tuple[str, bytes, bytes]]]:
    """A note's checkpoint and its signatures: name, key id, signature. Nothing is verified. Raises LogBroken if it is no checkpoint."""
    try:
        body, gap, rest = note.partition("\n\n")
        origin, size, root = body.split("\n")
        found = Checkpoint(origin, int(size), unb64(root))
        if not origin or not gap or str(found.size) != size or found.size < 0 or len(found.root) != HASH:
            raise ValueError
        lines = list[tuple[str, bytes, bytes]]()
        for line in rest.removesuffix("\n").split("\n"):
            name, _, signed = line.removeprefix(DASH).partition(" ")
            raw = unb64(signed)
            if not line.startswith(DASH) or not name or len(raw) <= 4:
                raise ValueError
            lines.append((name, raw[:4], raw[4:]))
        if not rest.endswith("\n"):
            raise ValueError
    except ValueError:
        raise LogBroken(
            "expected a signed checkpoint, found another text: a byte of it was changed, or it was cut short"
        ) from None
    return found, lines


def checkpoint_of(note: str, public: bytes) -> Checkpoint:
    """The checkpoint in a note, if the log's own key signed it, whoever else did. Raises LogBroken if it did not."""
    found, signatures = read_note(note)
    wanted = key_id(found.origin, public, NOTE)
    for name, named, signature in signatures:
        if (name, named) == (found.origin, wanted):
            if identity.sealed(public, found.body, signature):
                return found
            raise LogBroken(
                "expected a checkpoint as it was signed, found one whose signature does not fit: it was changed"
            )
    raise LogBroken(
        "expected a checkpoint signed by the log's key, found another key: the key or the checkpoint was changed"
    )


def cosign(key: bytes, name: str, checkpoint: Checkpoint, at: int) -> str:
    """A witness's line below a checkpoint (C2SP tlog-cosignature v1).

    Args:
        at: Unix seconds.
    """
    signature = identity.seal(key, _cosigned(checkpoint, at))
    return (
        f"{DASH}{name} {b64(key_id(name, identity.public_key(key), COSIGNATURE) + at.to_bytes(8, 'big') + signature)}"
    )


def cosigned(line: str, name: str, public: bytes, checkpoint: Checkpoint) -> int | None:
    """When a witness saw this checkpoint, Unix seconds; None if the line is not its line about it."""
    try:
        raw = unb64(line.removeprefix(f"{DASH}{name} "))
    except ValueError:
        return None
    named, stamp, signature = raw[:4], raw[4:12], raw[12:]
    if named != key_id(name, public, COSIGNATURE) or len(signature) != identity.SIGNATURE:
        return None
    at = int.from_bytes(stamp, "big")
    return at if identity.sealed(public, _cosigned(checkpoint, at), signature) else None


def _cosigned(checkpoint: Checkpoint, at: int) -> bytes:
    return b"cosignature/v1\ntime %d\n" % at + checkpoint.body


def public_from_pem(pem: str) -> bytes:
    """A public key as OpenSSL writes one, 32 bytes. Raises StateError where it is none."""
    lines = pem.strip().splitlines()
    try:
        raw = unb64("".join(lines[1:-1]))
    except ValueError:
        raw = b""
    if pem != pem_of(raw[len(SPKI) :]) or not raw.startswith(SPKI) or len(raw) != len(SPKI) + identity.KEY:
        raise StateError("expected an Ed25519 public key in PEM, found another text: a byte of it was changed")
    return raw[len(SPKI) :]


def pem_of(public: bytes) -> str:
    """A public key as OpenSSL reads one."""
    raw = SPKI + public
    return f"-----BEGIN PUBLIC KEY-----\n{b64(raw)}\n-----END PUBLIC KEY-----\n"


def b64(raw: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(raw).decode()


def unb64(text: str) -> bytes:
    """The bytes in base64. Raises ValueError where it is not in its one form."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise ValueError("no base64") from None
    if b64(raw) != text:
        raise ValueError("no base64 in its one form")
    return raw
