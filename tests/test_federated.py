"""A federation on one machine, really apart: processes, folders, users, TLS, PostgreSQL; and what it survives (`make chaos` has all of it)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from chaos import NAMED, Chaos
from demo_federated import demonstration, fedrounds
from isolation import isolation

NAMES = [what[0] for what in NAMED]
ROUNDS = 4


def beside(name: str):
    """A test file as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


canary = beside("test_canary")


def planted(study: Path) -> None:
    """Canaries in the rows of every hospital; at `west` they fail the gate."""
    for site in ("east", "north", "south", "west"):
        canary.plant(study, site, passes=site != "west")
    file = study / "study.toml"
    more = '  { type = "number", name = "biomarker" },\n  { type = "category", name = "clinic", categories = ["a", "b"] },\n'
    file.write_text(file.read_text().replace("features = [\n", "features = [\n" + more))


@pytest.fixture(scope="module")
def chaos():
    """A study of four rounds at toy hospitals that have joined."""
    with demonstration(ROUNDS, heart=False, plant=planted) as it:
        yield Chaos(it, seed=4)


def test_hospitals_apart_train_the_model_of_one_process(chaos):
    chaos.finish(chaos.run())
    assert chaos.rounds == ROUNDS
    status = fedrounds("status", chaos.it.home)
    assert {site["site"] for site in status["sites"]} >= {"east", "north", "south"}
    for site in chaos.it.sites:
        told = fedrounds("site", "status", chaos.it.base / site)
        # the gate; then two exchanges of round 0, the rounds and the closing visit, unless the gate shut the hospital out
        assert told["outcomes"] == {"answered": 1 if site == "west" else 4 + ROUNDS}
        assert told["bytes_out"] > 0


def test_one_hospitals_credentials_open_its_own_mailbox_and_nothing_else(chaos):
    rows = isolation(chaos.it.home, [chaos.it.base / site for site in chaos.it.sites])
    allowed = [row["tried"] for row in rows if not row["refused"] and row.get("must_refuse", True)]
    assert allowed == [], rows
    assert len(rows) > 40


def test_kills_at_seeded_moments_and_named_instants_change_no_bit(chaos):
    chaos.random(4)
    for name in ("inside the ledger's transaction", "a reply is stored, not sent", "mid-upload"):
        assert chaos.named(*NAMED[NAMES.index(name)])
    assert chaos.examine() == []


def test_a_coordinator_holds_no_canary_after_crashes_and_a_failed_gate(chaos):
    found, size = canary.search(chaos.it.home)
    found += canary.canaries("PostgreSQL", chaos.it.database.dump())
    found += [hit for log in chaos.it.base.glob("*.log") for hit in canary.canaries(log.name, log.read_bytes())]
    assert found == []
    assert size > 1_000_000
    assert any(canary.canaries("east.csv", (chaos.it.study / "data" / "east.csv").read_bytes())), "they are in the rows"
