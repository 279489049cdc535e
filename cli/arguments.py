"""What a command line's words may mean: each takes a text, and says what was expected where it is another."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A number of rounds."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of rounds above 0, found {text!r}")
    return int(text)


def runner(text: str) -> str:
    """Where the sites' rows are."""
    kind, slashes, place = text.partition("://")
    host, _, number = place.rpartition(":")
    if text != "dask" and not (kind in ("dask", "tcp", "tls") and slashes and host and number.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"expected `dask` or a scheduler's address (dask://HOST:PORT, tls://HOST:PORT), found {text!r}"
        )
    return text


def days(text: str) -> int:
    """How long an invitation holds."""
    if not text.isdecimal() or not 1 <= int(text) <= 365:
        raise argparse.ArgumentTypeError(f"expected a number of days from 1 to 365, found {text!r}")
    return int(text)


def reason(text: str) -> str:
    """Words for the record."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a reason, found an empty text")
    return text


def port(text: str) -> int:
    """Where a server listens; 0 takes a free one."""
    if not text.isdecimal() or int(text) >= 65536:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found {text!r}")
    return int(text)
