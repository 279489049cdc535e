"""A site's vault, or its safe, as bytes, for the site's own disk. They are secret, and never leave it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from fedrounds.core.errors import StateError, UpdateRejected
from fedrounds.core.messages import pack, unpack
from fedrounds.core.params import Array
from fedrounds.core.privacy.epoch import as_bytes, read_epoch
from fedrounds.core.privacy.holder import Safe
from fedrounds.core.privacy.secagg import Secrets, Vault

HISTORY = ("used", "signed", "opened")


def dump(vault: Vault | Safe) -> bytes:
    """The vault as bytes; `load` gives it back."""
    if isinstance(vault, Safe):
        return _dump_safe(vault)
    kept = [one.mask + one.seal + one.own for one in vault.secrets.values()]
    arrays: dict[str, Any] = {"secrets": as_bytes(b"".join(kept)).reshape(-1, 96)}
    if vault.epoch:
        arrays |= {f"epoch/{name}": array for name, array in vault.epoch.fields().items()}
    header: dict[str, Any] = {"number": vault.number, "study": vault.epoch.study if vault.epoch else ""}
    header["indices"] = list(vault.secrets)
    header["told"] = [[subject, survivors.hex()] for subject, survivors in vault.told.items()]  # in the order it was
    for name in HISTORY:
        history = cast(dict[int, bytes], getattr(vault, name))
        header[name] = {str(index): digest.hex() for index, digest in history.items()}
    return pack(header, cast(dict[str, Array], arrays))


def load(data: bytes) -> Vault | Safe:
    """The vault that `dump` wrote. Raises StateError if the bytes are damaged."""
    try:
        header, arrays = unpack(data)
        fields = cast(dict[str, Any], arrays)
        if "safe" in header:
            return _load_safe(header["safe"], fields)
        rows = [row.tobytes() for row in fields["secrets"]]
        secrets = {
            index: Secrets(row[:32], row[32:64], row[64:]) for index, row in zip(header["indices"], rows, strict=True)
        }
        epoch = None
        if header["study"]:
            found = {name.removeprefix("epoch/"): array for name, array in fields.items() if name != "secrets"}
            epoch = read_epoch(header["study"], cast(dict[str, np.ndarray[Any, np.dtype[np.uint8]]], found))
        used, signed, opened = (
            {int(index): bytes.fromhex(digest) for index, digest in header[name].items()} for name in HISTORY
        )
        return Vault(
            header["number"],
            secrets,
            epoch,
            used,
            signed,
            opened,
            {subject: bytes.fromhex(survivors) for subject, survivors in header["told"]},
        )
    except (UpdateRejected, KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"expected this site's keys for masks, found damaged bytes ({error}): remove its book's copy, the next run makes new ones"
        ) from None


def _dump_safe(safe: Safe) -> bytes:
    header = {
        "number": safe.number,
        "private": safe.private.hex(),
        "seed": safe.seed.hex(),
        "members": {one: public.hex() for one, public in safe.members.items()},
        "opened": [announced.hex() for announced in safe.opened],
        "told": [[subject, whose.hex()] for subject, whose in safe.told.items()],  # in the order it was
    }
    return pack({"safe": header}, cast(dict[str, Array], {"secret": as_bytes(safe.secret)}))


def _load_safe(header: dict[str, Any], fields: dict[str, Any]) -> Safe:
    return Safe(
        header["number"],
        bytes.fromhex(header["private"]),
        fields["secret"].tobytes(),
        bytes.fromhex(header["seed"]),
        {one: bytes.fromhex(public) for one, public in header["members"].items()},
        tuple(bytes.fromhex(announced) for announced in header["opened"]),
        {subject: bytes.fromhex(whose) for subject, whose in header["told"]},
    )
