"""What a command line's words may mean: each takes a text, and says what was expected where it is another."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


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


def number(text: str) -> int:
    """A version's number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a version's number, 1 or above, found {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """How long to wait."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds from 0.1 to 86400, found {text!r}")
    return found


def serving(command: Callable[..., argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """The commands `serve` and `score`."""
    serve = command("serve", "answer with the champion's predictions, in MLflow's scoring protocol, until Ctrl-C")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="HOST",
        help="default 127.0.0.1, this machine alone; there is no password",
    )
    serve.add_argument("--port", type=port, default=5001, metavar="PORT", help="default 5001; 0 takes a free one")
    serve.add_argument(
        "--every",
        type=seconds,
        default=30.0,
        metavar="S",
        help="look for a new champion so often (default 30; or SIGHUP)",
    )
    serve.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="S", help="within which a request must have come (default 10)"
    )
    score = command("score", "write the champion's predictions for the patients of a CSV file into another")
    score.add_argument("file", type=Path, metavar="IN.csv", help="a column for each feature; others are left alone")
    score.add_argument("out", type=Path, metavar="OUT.csv", help="a row for each row: prediction, or why there is none")
    for made in (serve, score):
        made.add_argument(
            "--version", type=positive, metavar="N", help="this version of the registry, not the champion"
        )
    return [serve, score]
