"""A federation on one machine, really apart: processes, folders, users, TLS, PostgreSQL; and what it survives (`make chaos` has all of it).

One hospital is behind a wall besides: a network namespace with one port outwards and none inwards. The tests tell one story, in order: their
servers and hospitals are the same, and what each adds to the study is judged once, at the end.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

import pytest
from chaos import NAMED, Chaos
from demo_federated import demonstration, fedrounds
from isolation import isolation
from wall import IN_IT, OUTER, inside, listening, open_to_the_hospital, slowly, uploading, wall

NAMES = [what[0] for what in NAMED]
BEHIND, ROUNDS, CUT_S = "east", 4, 4
POLL_S = 0.5  # each look is a request that MLflow's server has to let in: five a second of everybody are most of what it does


def beside(name: str):
    """A test file as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


canary = beside("test_canary")


def prepared(study: Path) -> None:
    """Canaries in the rows of every hospital, at `west` they fail the gate; and a model whose updates have 80 kB, to be met on their way."""
    for site in ("east", "north", "south", "west"):
        canary.plant(study, site, passes=site != "west")
    file = study / "study.toml"
    more = '  { type = "number", name = "biomarker" },\n  { type = "category", name = "clinic", categories = ["a", "b"] },\n'
    text = file.read_text().replace("features = [\n", "features = [\n" + more)
    assert 'kind = "logistic"' in text
    file.write_text(text.replace('kind = "logistic"', 'kind = "mlp"\nhidden = [96, 96]'))


@pytest.fixture(scope="module")
def chaos():
    """A study of four rounds at toy hospitals that have joined; `east` is behind the wall."""
    about = {"public": f"https://{OUTER}", "inside": {BEHIND: IN_IT}, "poll": POLL_S}
    with wall(), demonstration(ROUNDS, heart=False, plant=prepared, **about) as it:
        yield Chaos(it, seed=837)  # whose first three victims are three servers, within eight seconds


def watched(chaos, run) -> list[str]:
    """A run to its end, and every address that was listened on behind the wall meanwhile."""
    seen = list[str]()
    while run.poll() is None:
        seen += listening()
        time.sleep(0.5)
    chaos.finish(run, more=1)
    return seen


@pytest.fixture(scope="module")
def first(chaos):
    """The first run, and what listened at the hospital behind the wall."""
    return watched(chaos, chaos.run(more=1))


def test_hospitals_apart_train_the_model_of_one_process(chaos, first):
    assert chaos.rounds == ROUNDS
    status = fedrounds("status", chaos.it.home)
    assert {site["site"] for site in status["sites"]} >= {"east", "north", "south"}
    for site in chaos.it.sites:
        told = fedrounds("site", "status", chaos.it.base / site)
        # the gate; then two exchanges of round 0, the rounds and the closing visit, unless the gate shut the hospital out
        assert told["outcomes"] == {"answered": 1 if site == "west" else 4 + ROUNDS}
        assert told["bytes_out"] > 0


def test_a_hospital_that_reaches_one_port_outwards_joins_and_trains_and_opens_none(chaos, first):
    assert first == [], "without a Prefect of its own nothing listens at all"
    assert "train: answered" in (chaos.it.base / f"{BEHIND}.log").read_text()
    assert not open_to_the_hospital(443)
    assert not open_to_the_hospital(4200)


def test_one_hospitals_credentials_open_its_own_mailbox_and_nothing_else(chaos, first):
    rows = isolation(chaos.it.home, [chaos.it.base / site for site in chaos.it.sites])
    allowed = [row["tried"] for row in rows if not row["refused"] and row.get("must_refuse", True)]
    assert allowed == [], rows
    assert len(rows) > 40


def test_kills_of_servers_at_seeded_moments_and_of_a_run_and_an_agent_at_named_instants(chaos, first):
    chaos.random(3)
    assert set(chaos.happened) == {"PostgreSQL", "nginx", "Prefect"}
    for name in ("inside the ledger's transaction", "mid-upload"):
        assert chaos.named(*NAMED[NAMES.index(name)])


@pytest.fixture(scope="module")
def cut(chaos, first, templates):
    """A round behind a slow line that is cut amid an upload, at a hospital with a Prefect of its own: the log's lines, and what listened there."""
    file, state = chaos.it.base / BEHIND / "site.toml", chaos.it.base / BEHIND / "state"
    file.write_text(file.read_text().replace('prefect = "off"', 'prefect = "own"'))
    for empty in templates.glob("prefect-*.db"):  # as if a Prefect had run there before
        shutil.copy(empty, state)
    chaos.it.kill(BEHIND)
    chaos.it.agent(BEHIND)
    log = chaos.it.home / "log" / "nginx-access.log"
    before = len(log.read_text().splitlines())
    with slowly():
        run = chaos.run(more=1)
        met = uploading()
        inside("ip", "link", "set", "fr-inner", "down")
        time.sleep(CUT_S)
        inside("ip", "link", "set", "fr-inner", "up")
        seen = listening()
    seen += watched(chaos, run)
    assert met, "a reply takes seconds on so slow a line"
    return log.read_text().splitlines()[before:], seen


def test_a_network_that_is_cut_amid_an_upload(cut):
    lines = [line.split() for line in cut[0]]
    puts = [float(line[-1]) for line in lines if line[1] == f"site-{BEHIND}" and line[3] == "PUT"]
    assert max(puts) > CUT_S, "an upload was open while there was no network"


def test_with_a_prefect_of_its_own_a_hospital_listens_on_loopback_alone(chaos, cut):
    seen = cut[1]
    assert seen, "its own Prefect listens"
    assert {address.rpartition(":")[0] for address in seen} <= {"127.0.0.1", "[::1]"}
    assert "score: answered" in (chaos.it.base / f"{BEHIND}.log").read_text().rpartition("Prefect of")[2]


def test_after_kills_and_cuts_it_is_the_model_of_one_process_bit_for_bit_and_nothing_is_lost_or_doubled(
    chaos, first, warm
):
    assert chaos.rounds >= 10
    warm(chaos.it.base / f"alone-{chaos.rounds}")  # where the one process runs
    assert chaos.examine() == []


def test_a_coordinator_holds_no_canary_after_ten_rounds_with_crashes_and_a_failing_gate(chaos, first):
    assert chaos.rounds >= 10
    assert {"PostgreSQL", "nginx", "Prefect"} <= set(chaos.happened)
    found, size = canary.search(chaos.it.home)
    found += canary.canaries("PostgreSQL", chaos.it.database.dump())
    found += [hit for log in chaos.it.base.glob("*.log") for hit in canary.canaries(log.name, log.read_bytes())]
    assert found == []
    assert size > 1_000_000
    assert any(canary.canaries("east.csv", (chaos.it.study / "data" / "east.csv").read_bytes())), "they are in the rows"
