"""A federation on one machine, really apart: processes, folders, users, TLS, PostgreSQL; and what it survives (`make chaos` has all of it)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from chaos import NAMED, Chaos
from demo_federated import demonstration, fedrounds
from isolation import isolation

NAMES = [what[0] for what in NAMED]


@pytest.fixture(scope="module")
def chaos():
    """A study of four rounds at toy hospitals that have joined."""
    with demonstration(4, heart=False) as it:
        yield Chaos(it, seed=4)


def test_hospitals_apart_train_the_model_of_one_process(chaos):
    chaos.finish(chaos.run())
    assert chaos.rounds == 4
    assert chaos.examine() == []
    status = fedrounds("status", chaos.it.home)
    assert status["champion"] is not None
    assert set(chaos.it.sites) == {site["site"] for site in status["sites"]} - {"all sites"}
    for site in chaos.it.sites:
        told = fedrounds("site", "status", chaos.it.base / site)
        assert told["outcomes"] == {"answered": 8}, "gate, two exchanges of round 0, four rounds, the closing visit"
        assert told["bytes_out"] > 0


def test_one_hospitals_credentials_open_its_own_mailbox_and_nothing_else(chaos):
    rows = isolation(chaos.it.home, [chaos.it.base / site for site in chaos.it.sites])
    allowed = [row["tried"] for row in rows if not row["refused"] and row.get("must_refuse", True)]
    assert allowed == [], rows
    assert len(rows) > 40


def test_kills_at_seeded_moments_and_named_instants_change_no_bit(chaos):
    chaos.random(5)
    for name in ("inside the ledger's transaction", "a reply is stored, not sent", "mid-upload"):
        assert chaos.named(*NAMED[NAMES.index(name)])
    assert chaos.examine() == []
