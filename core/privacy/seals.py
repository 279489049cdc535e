"""Seals of secure aggregation: what one member deals to another passes through the coordinator, who must not read it."""

from __future__ import annotations

from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedrounds.core.privacy import masks
from fedrounds.core.privacy.epoch import Epoch


def seal_for(
    private: X25519PrivateKey, public: bytes, epoch: Epoch, index: int, dealer: str, holder: str
) -> ChaCha20Poly1305:
    """The cipher for what one member deals to another for one index: a key that serves this once, so the nonce may be zero."""
    secret = (
        sha256(b"fedrounds self\0" + private.private_bytes_raw()).digest()
        if dealer == holder
        else masks.shared(private, public)
    )
    where = index.to_bytes(4, "little")
    return ChaCha20Poly1305(masks.seed(secret, b"seal", epoch.digest, where, dealer.encode(), holder.encode()))


def unsealed(private: X25519PrivateKey, sealed: bytes, epoch: Epoch, index: int, dealer: str, holder: str) -> bytes:
    """Both shares; nothing where the seal does not open."""
    public = epoch.seal_keys[epoch.members.index(dealer), index].tobytes()
    try:
        return seal_for(private, public, epoch, index, dealer, holder).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        return b""
