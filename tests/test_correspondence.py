"""A study by mail: the same models as in one process, whatever a hospital, a network or a clock does."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrounds.core import identity
from fedrounds.core.errors import QuorumError
from fedrounds.core.messages import Finding, Reply, decode, encode
from fedrounds.exchange.name import Name
from fedrounds.ledger import Ledger


def failures(study):
    with Ledger.open(study.place.ledger) as ledger:
        return [(it.round, it.ask, it.reason) for it in ledger.failures()]


@pytest.mark.parametrize("preset", ["fedavg", "fedadam"])
def test_by_mail_every_round_has_the_model_of_the_same_run_in_one_process(apart, preset):
    other = {'preset = "fedavg" ': f'preset = "{preset}" ', "server = { rate = 1.0 }": ""}
    study = apart(protocol={} if preset == "fedavg" else other)
    with study.run() as run:
        assert run.plan.study.algorithm.preset == preset
        study.drive(run)
    assert study.seen == study.reference()
    assert all(study.objects(site) == [] for site in study.SITES)
    assert {row.outcome for row in study.replies()} == {"taken"}


def test_weights_that_the_protocol_states_hold_by_mail_too(apart):
    study = apart(protocol={'weights = "patients"': "weights = { north = 1, east = 2, south = 5 }"})
    with study.run() as run:
        study.drive(run)
    assert study.seen == study.reference()


BY_FLOW = """
import asyncio, importlib.util, json, os, sys, threading, time
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]).parents[1] / "benchmarks"))  # as the tests' own configuration has it
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = sys.modules["shared"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
from fedrounds.cli.run import quiet, surroundings
from fedrounds.tasks.forked import alone
from fedrounds.tasks.prefect_server import PrefectServer, settings

study = shared.Apart(Path(sys.argv[2]), operations='[federation]\\ndeadline = "100s"\\npoll = 0.05\\n')
home, log = study.base / "prefect", study.base / "log"


def stored(api_url):
    import httpx

    def ask(what):
        return httpx.post(f"{api_url}/{what}/filter", json={}, timeout=30).json()

    return [[run["name"], run["state_type"]] for run in ask("flow_runs")], [run["name"] for run in ask("task_runs")]


def settled(api_url, tasks):
    until = time.monotonic() + 60
    while len(stored(api_url)[1]) < tasks and time.monotonic() < until:
        time.sleep(0.2)
    return stored(api_url)


def coordinator():
    from fedrounds.flows.study import carry

    stop = threading.Event()

    def agents():
        while not stop.is_set():
            if not any(study.agent(site) for site in study.SITES):
                time.sleep(0.05)

    at_work = threading.Thread(target=agents, daemon=True)
    at_work.start()
    with study.run() as run:
        asyncio.run(carry(run))
    stop.set()
    at_work.join(60)
    return settled(server.api_url, run.tasks)


def hospital():
    from fedrounds.flows.hospital import visit

    north = study.hospital("north")

    def by_flow(site):
        return asyncio.run(visit(north, north.look())) if site == "north" else study.agent(site)

    with study.run() as run:
        study.gate(run, by_flow)
        study.visit(run, "statistics", by_flow)
        study.visit(run, "train", by_flow)
    return settled(server.api_url, 8)


server = PrefectServer(home, log, templates=Path(sys.argv[4]), begin=False)
try:
    server.begin(fork=alone())
    with surroundings(settings(home, server.api_url)), quiet(log):
        server.wait()
        flows, tasks = {"coordinator": coordinator, "hospital": hospital}[sys.argv[3]]()
finally:
    server.stop()
left = [name for site in study.SITES for name in study.objects(site)]
said = {"seen": study.seen, "wanted": study.reference(), "flows": flows, "tasks": tasks, "left": left, "study": study.read.study.digest}
print(json.dumps(said), flush=True)
os._exit(0)
"""


@pytest.fixture
def by_flow(tmp_path, templates, python):
    """The study with one side's real flow on a real Prefect server, in a process of its own: what was stored, what came of it."""

    def found(who):
        done = python(BY_FLOW, Path(__file__).with_name("conftest.py"), tmp_path / "apart", who, templates)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return found


def test_the_flow_of_a_study_carries_it_by_mail_on_a_real_prefect_server(by_flow):
    found = by_flow("coordinator")
    assert found["seen"] == found["wanted"]
    assert found["flows"] == [["study", "COMPLETED"]]
    wanted = {
        "ask gate · round 0",
        "ask train · round 3",
        "fit · north · round 3",
        "gate · south",
        "clear the mailboxes",
    }
    assert wanted <= set(found["tasks"])
    assert found["left"] == []


def test_a_hospitals_visit_is_a_flow_run_on_its_own_prefect_server(by_flow):
    found = by_flow("hospital")
    assert found["seen"] == found["wanted"][:2]
    names = [f"{found['study'][:12]} · gate · round 0", "study · fit · round 1", *["study · statistics · round 0"] * 2]
    assert sorted(found["flows"]) == sorted([name, "COMPLETED"] for name in names)
    work = [f"{words} · north" for words in ("gate · round 0", *["statistics · round 0"] * 2, "fit · round 1")]
    assert sorted(found["tasks"]) == sorted([*["send · north"] * 4, *work])


# --- what a site, or whoever else can write into its mailbox, may put there ---------------------------------------------


def forged(study, site, question, /, reply=None, key=None, payload=None, **about):
    """Put a reply into a site's mailbox, signed by a key, about something."""
    said = replace(question.about(site, "reply"), **about)
    payload = encode(reply) if payload is None else payload
    signed = identity.sign(key or study.keys[site], said, payload)
    name = Name.of(signed, *question.folder("reply"))
    study.mail[site].put(name, signed)
    return name


BAD = {
    "by another key": ("found one by key", lambda r: {"key": identity.new_key()}),
    "about another round": ("about round", lambda r: {"round": r.round + 1}),
    "about another attempt": ("about attempt", lambda r: {"attempt": 77}),
    "about another study": ("about study", lambda r: {"study": "5" * 64}),
    "about another exchange": ("about exchange", lambda r: {"exchange": 1}),
    "about another model": ("about base", lambda r: {"base": "b" * 64}),
    "a request": ("about direction", lambda r: {"direction": "request"}),
    "of another site": ("about site", lambda r: {"site": "west"}),
    "no message": ("expected a message of at least", lambda r: {"payload": b"x"}),
    "a message of another site": ("expected a reply of north", lambda r: {"reply": replace(r, site="south")}),
    "a message about another round": ("expected round", lambda r: {"reply": replace(r, round=r.round + 1)}),
    "a message about another study": ("expected study", lambda r: {"reply": replace(r, study="5" * 64)}),
    "without an array": ("expected arrays", lambda r: {"reply": replace(r, arrays={})}),
    "with one too many": ("expected arrays", lambda r: {"reply": replace(r, arrays={**r.arrays, "more": np.zeros(1)})}),
    "of another shape": ("of shape", lambda r: {"reply": replace(r, arrays={**r.arrays, "delta": np.zeros(3)})}),
    "larger than an answer can be": ("unread", lambda r: {"payload": encode(r) + bytes(2 << 20)}),
    "of numbers that are none": ("expected finite numbers", lambda r: {"payload": with_nan(r)}),
}


def with_nan(reply):
    """The reply's bytes, its last number NaN: `encode` refuses to write one."""
    return encode(reply)[:-8] + np.array([np.nan]).tobytes()


@pytest.mark.parametrize("kind", BAD)
def test_a_reply_that_is_none_is_refused_and_recorded_and_the_good_one_is_taken(apart, kind):
    words, spoil = BAD[kind]
    study = apart()
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        question = run.question(asking)
        run.post(question, asking.sites)
        reply = decode(study.hospital("north").answer(study.hospital("north").look()).message, Reply)
        name_of_good = next(name for name in study.mail["north"].list() if name.phase == "reply-0")
        signed = study.mail["north"].get(name_of_good)
        study.mail["north"].drop(name_of_good)
        bad = forged(study, "north", question, **({"reply": reply} | spoil(reply)))
        assert run.look("north", question) is None
        assert run.look("north", question) is None  # looked at once
        assert [(row.site, row.digest, row.outcome) for row in study.replies("refused")] == [
            ("north", bad.digest, "refused")
        ]
        assert words in study.replies("refused")[0].reason
        study.mail["north"].put(name_of_good, signed)
        for site in ("east", "south"):
            study.agent(site)
        replies = [run.look(site, question) for site in asking.sites]
        run.aggregate(asking, replies)
    assert study.seen == study.reference()[:2]


def test_a_changed_payload_is_refused_and_the_round_closes_without_the_site(apart):
    study = apart()
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")

        def changed_on_its_way(site):
            study.agent(site)
            if site == "north":
                name = next(name for name in study.mail[site].list() if name.phase == "reply-0")
                signed = bytearray(study.mail[site].get(name))
                study.mail[site].drop(name)
                signed[-1] ^= 1
                again = Name.of(bytes(signed), name.round, name.attempt, name.phase)
                study.mail[site].put(again, bytes(signed))

        closed = study.visit(run, "train", changed_on_its_way)
    assert sorted(closed.training) == ["east", "south"]
    assert ["it was changed on its way" in row.reason for row in study.replies("refused")] == [True]


def test_no_more_than_a_few_objects_of_a_site_are_read(apart):
    study = apart()
    with study.run() as run:
        study.gate(run)
        asking = run.open("statistics")
        question = run.question(asking)
        run.post(question, asking.sites)
        for n in range(30):
            junk = b"junk %d" % n
            study.mail["north"].put(Name.of(junk, *question.folder("reply")), junk)
        for _ in range(3):
            assert run.look("north", question) is None
        assert len(study.replies("refused")) == 8
        run.clear()
        assert study.objects("north") == []


VERDICTS = {
    "no verdict": {},
    "of another site": {"site": "south"},
    "an action that there is none of": {"action": "explode"},
    "an action that is a list": {"action": ["exclude"]},
    "no number of checks": {"checks": None},
    "a negative count": {"checks": -1},
    "true as a number": {"quarantined": True},
    "a text that is not printable": {"note": "a\nb"},
    "a long text": {"note": "a" * 1001},
    "another key": {"more": 1},
    "failures that are no list": {"failures": {}},
    "a failure that is none": {"failures": [{"expectation": "x"}]},
    "a column that is an object": {
        "failures": [{"expectation": "x", "column": {}, "element_count": None, "unexpected_count": None}]
    },
    "too many failures": {
        "failures": [{"expectation": "x", "column": None, "element_count": None, "unexpected_count": None}] * 501
    },
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_a_verdict_with_words_that_no_gate_says_is_refused_and_the_study_goes_on(apart, kind):
    study = apart()

    def lying(site):
        if site != "north":
            return study.agent(site)
        hospital = study.hospital(site)
        letter = hospital.look()
        found = decode(hospital.given(letter) or hospital.work(letter).message, Finding)
        verdict = {**found.verdict, **VERDICTS[kind]} if VERDICTS[kind] else {}
        forged(study, site, study.question, replace(found, verdict=verdict))
        return None

    with study.run() as run:
        assert sorted(study.gate(run, lying)) == ["east", "south"]
    assert [row.site for row in study.replies("refused")] == ["north"]
    assert "expected a gate's verdict" in study.replies("refused")[0].reason


def test_what_a_site_puts_elsewhere_in_its_mailbox_never_stops_the_coordinator(apart):
    study = apart()
    with study.run() as run:
        study.gate(run)
        for place in [
            (9, 9, "reply-x"),
            (9, 9, "reply-"),
            (999999, 999, "reply-0"),
            (1, 5, "reply-99999999999999999999"),
            (3, 3, "junk"),
        ]:
            study.mail["north"].put(Name.of(b"x", *place), b"x")
        study.visit(run, "statistics")
        assert study.seen == study.reference()[:1]
    assert study.replies("late") == []


# --- time ---------------------------------------------------------------------------------------------------------------


def test_a_late_reply_is_recorded_and_never_mixed_in(apart):
    study = apart()
    absent = {"south"}

    def agent(site):
        return None if site in absent else study.agent(site)

    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        closed = study.visit(run, "train", agent)
        assert sorted(closed.training) == ["east", "north"]
        without = run.state.model_digest
        study.agent("south")  # its question has closed
        assert run.state.model_digest == without
        absent.clear()
        closed = study.visit(run, "train", agent)
        assert sorted(closed.training) == ["east", "north", "south"]
        assert closed.scored == 1
    late = study.replies("late")
    assert [(row.site, row.outcome, row.reason) for row in late] == [
        ("south", "late", "it came after its question had closed")
    ]
    taken = [row for row in study.replies("taken") if row.attempt == late[0].attempt]
    assert sorted(row.site for row in taken) == ["east", "north"]


def test_a_question_without_quorum_is_asked_again_then_fails_and_the_next_run_goes_on_to_the_same_model(apart):
    from fedrounds.flows import by_mail

    study = apart(operations='\n[federation]\ndeadline = "60s"\nattempts = 2\n')
    asked = []

    async def answers(run, question, sites):
        asked.append(question.attempt)
        run.post(question, sites)
        study.agent("north")
        return [it for site in sites if (it := run.look(site, question))]

    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        before = run.state.model_digest
        asking = run.open("train")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(by_mail, "answers", answers)
            replies = asyncio.run(by_mail.carried(run, asking))
        assert len(replies) == 1
        with pytest.raises(QuorumError, match="expected answers of at least 2 sites, found 1 of 3"):
            run.aggregate(asking, replies)
        assert run.state.model_digest == before
    assert len(asked) == 2
    assert asked[1] == asked[0] + 1
    assert [(round, ask) for round, ask, _ in failures(study)] == [(1, "train"), (1, "train")]
    assert "asked again" in failures(study)[0][2]
    with study.run() as run:
        study.drive(run)
    assert study.seen == study.reference()


def test_a_run_whose_gates_are_silent_ends_as_a_recorded_failure(apart):
    study = apart(operations='\n[federation]\ndeadline = "1s"\nattempts = 2\npoll = 0.05\n')
    from fedrounds.flows import by_mail

    async def plainly(run, what, *arguments):
        return await what.fn(*arguments)

    with study.run() as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_mail, "do", plainly)
        with pytest.raises(
            QuorumError, match=r"expected the gates of at least 2 of 3 sites to answer, found 0 .*north: no answer"
        ):
            asyncio.run(by_mail.verdicts(run))
    assert len(failures(study)) == 2


def test_a_coordinator_that_dies_amid_a_round_asks_again_and_has_the_same_models(apart):
    study = apart()
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        study.ask(run, asking, asking.sites)  # all have answered, and nothing was committed
    with study.run() as run:
        study.drive(run)
    assert study.seen == study.reference()
    for site in study.SITES:
        totals = study.hospital(site).book.totals()["outcomes"]
        assert totals == {"again": 1, "answered": 8}


# --- drift ----------------------------------------------------------------------------------------------------------------

DRIFT = "\n[drift]\nwarn = 0.1\nhold = 1000\n"


def profiles(study):
    with Ledger.open(study.place.ledger) as ledger:
        return [(entry.visit, sorted(entry.record["profile"])) for entry in ledger.visits(ask="profile")]


def other_data(study, site, drop=1):
    file = study.home(site) / "data" / f"{site}.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-drop]) + "\n")


def test_each_change_of_data_is_profiled_exactly_once(apart):
    study = apart(operations=DRIFT)
    with study.run() as run:
        study.drive(run)
    assert [visit for visit, _ in profiles(study)] == [2]
    with study.run() as run:
        study.drive(run)
    assert [visit for visit, _ in profiles(study)] == [2]
    other_data(study, "north")
    with study.run() as run:
        study.drive(run)
        study.drive(run)
    assert len(profiles(study)) == 2
    other_data(study, "north", drop=20)  # the model is the same one, and so is the question: the answer must not be
    with study.run() as run:
        study.drive(run)
    assert len(profiles(study)) == 3
    with Ledger.open(study.place.ledger) as ledger:
        told = [entry.record["profile"]["north"] for entry in ledger.visits(ask="profile")]
    rows = [sum(count for cells in profile.values() for count in cells if count > 0) for profile in told]
    assert rows[0] > rows[1] > rows[2]
    with study.run() as run:
        study.drive(run)
    assert len(profiles(study)) == 3
