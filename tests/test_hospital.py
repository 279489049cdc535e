"""A hospital's side: whom it answers, what its policy refuses, what a coordinator can make it do, and what never leaves."""

from __future__ import annotations

import json
import struct
import threading
import time
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from fedrounds.core import identity
from fedrounds.core.errors import ServiceError, StateError, StudyError, UpdateRejected
from fedrounds.core.messages import Finding, Reply, Request, decode, encode, pack
from fedrounds.core.operations import Window
from fedrounds.exchange.name import Name
from fedrounds.sources.site_file import Agent
from fedrounds.tasks import agent, consent
from fedrounds.tasks import hospital as hospitals
from fedrounds.tasks.joined import Joined, join
from fedrounds.tasks.preview import samples

SITE = "north"


@pytest.fixture
def study(apart):
    """A study whose hospitals have passed the gate and agreed on statistics."""
    return apart()


def started(study, run):
    study.gate(run)
    study.visit(run, "statistics")
    return run.open("train")


def put(study, question, /, *, site=SITE, key=None, request=None, place=None, spoil=None, payload=None, **about):
    """Put a request into north's mailbox, as somebody would who can write there; returns its name."""
    said = replace(question.about(site, "request"), **about)
    payload = encode(request or question.request) if payload is None else payload
    signed = identity.sign(key or study.key, said, payload)
    signed = spoil(signed) if spoil else signed
    name = Name.of(signed, *(place or question.folder("request")))
    if shown := question.shown.get(SITE):
        study.mail[SITE].put(Name.of(shown, *question.folder("checkpoint")), shown)
    study.mail[SITE].put(name, signed)
    return name


def memory(study):
    """All that the book holds of replies and states."""
    db = study.hospital(SITE).book._db
    return [db.execute(f"SELECT * FROM {table}").fetchall() for table in ("replies", "states")]


FOREIGN = {
    "of another key": ("found one by key", {"key": identity.new_key()}),
    "to another site": ("expected a request to 'north'", {"site": "south"}),
    "that is a reply": ("expected a request to 'north'", {"direction": "reply"}),
    "of another attempt than its place": ("expected a request to 'north'", {"attempt": 44}),
    "whose envelope says another round": ("about what its envelope says", {"round": 2}),
    "whose envelope says another exchange": ("about what its envelope says", {"exchange": 3}),
    "whose envelope says another model": ("about what its envelope says", {"base": "b" * 64}),
    "whose envelope says another study": ("about what its envelope says", {"study": "5" * 64}),
    "with one bit changed": ("changed on its way", {"spoil": lambda s: s[:-1] + bytes([s[-1] ^ 1])}),
    "with a changed signature": ("forged or damaged", {"spoil": lambda s: s[:-300] + s[-300:]}),
    "cut short": ("cut short", {"spoil": lambda s: s[:-9]}),
    "lengthened": ("lengthened", {"spoil": lambda s: s + b"\0"}),
    "of a few bytes": ("cut short", {"spoil": lambda s: s[:3]}),
    "that is no message": ("expected", {"payload": b"FEDR" + bytes(40)}),
    "that is a message of another kind": ("expected a Request", {"payload": pack({"kind": "Reply"}, {})}),
    "that asks for what there is none of": ("expected to be asked for one of", {"ask": "rows"}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_request_that_is_not_to_be_trusted_is_written_down_once_and_changes_nothing(study, kind):
    words, how = FOREIGN[kind]
    how = dict(how)
    with study.run() as run:
        asking = started(study, run)
        request = replace(asking.request, ask=how.pop("ask")) if "ask" in how else asking.request
        if kind == "with a changed signature":
            size = len(encode(request))
            how["spoil"] = lambda s: s[: -size - 1] + bytes([s[-size - 1] ^ 1]) + s[-size:]
        before, noted = memory(study), len(study.hospital(SITE).book.asked(100))
        name = put(study, run.question(asking), request=request, **how)
        hospital = study.hospital(SITE)
        there = study.objects(SITE)
        assert hospital.look() is None
        assert hospital.look() is None
        assert study.hospital(SITE, anew=True).look() is None
        asked = study.hospital(SITE).book.asked(100)
        assert len(asked) == noted + 1
        assert (asked[0].outcome, asked[0].name, asked[0].bytes_out) == ("rejected", str(name), 0)
        assert words in asked[0].reason
        assert study.objects(SITE) == there
        assert memory(study) == before
        study.visit(run, "train")  # and the next good question is answered
    assert study.seen == study.reference()[:2]


def test_a_request_larger_than_any_may_be_is_refused_unread(study, monkeypatch):
    monkeypatch.setattr(hospitals, "LARGEST_REQUEST", 10_000)
    with study.run() as run:
        asking = started(study, run)
        put(study, run.question(asking), payload=encode(asking.request) + bytes(20_000))
        assert study.hospital(SITE).look() is None
    assert "refused unread" in study.hospital(SITE).book.asked(1)[0].reason


def test_an_old_round_that_is_replayed_is_refused_and_a_round_of_now_gets_its_old_bytes(study):
    with study.run() as run:
        asking = started(study, run)
        study.ask(run, asking, asking.sites)
        old = next((n, study.mail[SITE].get(n)) for n in study.mail[SITE].list() if n.phase == "request-0")
        first = study.hospital(SITE).book.reply(study.hospital(SITE).question(asking.request))
        for _ in range(3):
            study.visit(run, "train")
        before = memory(study)
        replayed = Name.of(old[1], 999_999, old[0].attempt, "request-0")
        study.mail[SITE].put(replayed, old[1])
        there = study.objects(SITE)
        assert study.hospital(SITE).look() is None
        asked = study.hospital(SITE).book.asked(1)[0]
        assert (asked.outcome, asked.name) == ("rejected", str(replayed))
        assert "it is an old one" in asked.reason
        assert (memory(study), study.objects(SITE)) == (before, there)
        assert first is not None


@pytest.mark.parametrize("phase", ["request-x", "request-", "requests", "request-1-2"])
def test_a_folder_with_a_strange_name_does_not_end_the_agent(study, phase):
    with study.run() as run:
        asking = started(study, run)
        question = run.question(asking)
        study.mail[SITE].put(Name.of(b"x", question.visit, question.attempt, phase), b"x")
        put(study, question)
        assert study.agent(SITE).outcome == "answered"


# --- policy ---------------------------------------------------------------------------------------------------------------

REFUSED = {
    'studies = ["000000000000"]': ("is none of those that the site takes part in", {"gate", "statistics", "train"}),
    'families = ["mlp"]': ("its model is logistic: the site trains mlp alone", {"statistics", "train"}),
    'algorithms = ["fedprox"]': ("its algorithm is fedavg: the site trains by fedprox alone", {"statistics", "train"}),
    'columns = ["age", "sex"]': (
        "the study names 6 columns that the site does not open",
        {"gate", "statistics", "train"},
    ),
    "minimum_patients = 10000": ("below the site's minimum cohort of 10000", {"statistics", "train"}),
    "finest_bins = 10": ("finer than the 10 that the site allows", {"train"}),
    'approval = "once"': ("it waits for a person's approval", {"statistics", "train"}),
    'approval = "every_round"': ("it waits for a person's approval", {"statistics", "train"}),
}


@pytest.mark.parametrize("policy", REFUSED)
def test_what_the_policy_refuses_is_answered_with_the_reason(study, policy):
    words, refused = REFUSED[policy]
    study.set_policy(SITE, policy)
    found = {}
    with study.run() as run:
        (message,) = study.ask(run, run.gate(), [SITE])
        found["gate"] = decode(message, Finding).refusal
        study.gate(run)
        for ask in ("statistics", "train"):
            study.hospital(SITE, anew=True)
            closed = study.visit(run, ask)
            found[ask] = closed.refused.get(SITE, "")
    assert {ask for ask, reason in found.items() if reason} == refused
    assert all(words in found[ask] for ask in refused)
    assert {it.outcome for it in study.hospital(SITE).book.asked(100)} <= {"answered", "refused"}


def test_a_site_that_keeps_its_scores_trains_all_the_same_and_its_scores_leave_as_of_no_rows(study):
    study.set_policy(SITE, "local_metrics = false")
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        closed = study.visit(run, "train")
        sums, histogram = closed.scores[SITE]
    assert sums.tolist() == [0.0] * 4
    assert histogram.sum() == 0
    assert study.seen == study.reference()[:2]


def test_rounds_of_a_day_are_counted_and_a_round_that_is_asked_again_is_none_more(study):
    study.set_policy(SITE, "rounds_per_day = 2")
    with study.run() as run:
        started(study, run)
        for _ in range(2):
            assert study.visit(run, "train").refused == {}
        last = run.open("train")
        closed = study.visit(run, "train")
        assert closed.refused == {SITE: "the site trains at most 2 rounds a day"}
        assert last.request.round == 3


@pytest.mark.parametrize("kind", ["once", "every_round"])
def test_what_a_person_approves_is_answered_when_it_is_asked_again(study, kind):
    study.set_policy(SITE, f'approval = "{kind}"')
    book = study.hospital(SITE).book
    with study.run() as run:
        study.gate(run)
        asking = run.open("statistics")
        (message,) = study.ask(run, asking, [SITE])
        assert "`fedrounds site approve`" in decode(message, Reply).refusal
        assert book.fact("waits") == [study.read.study.digest, 0, kind]
        said = consent.approve(book)
        assert said == f"{'round 0 of ' if kind == 'every_round' else ''}study {study.read.study.digest[:12]}"
        assert consent.approve(book) == ""
        assert study.visit(run, "statistics").refused == {}
        closed = study.visit(run, "train")
        assert (SITE in closed.refused) == (kind == "every_round")


def test_a_tightened_policy_holds_for_what_was_answered_before_it(study):
    with study.run() as run:
        asking = started(study, run)
        (before,) = study.ask(run, asking, [SITE])
        study.set_policy(SITE, "local_metrics = false")
        (after,) = study.ask(run, asking, [SITE])
        assert decode(before, Reply).arrays["scores"].sum() > 0
        assert decode(after, Reply).arrays["scores"].sum() == 0
        study.set_policy(SITE, 'studies = ["000000000000"]')
        (withdrawn,) = study.ask(run, asking, [SITE])
        assert decode(withdrawn, Reply).arrays == {}


def test_an_agent_works_in_its_hours_by_the_clock_on_the_wall():
    nights = Agent(windows=(Window(start="22:00", end="06:00"),), timezone="Europe/Zurich")
    at = {hour: datetime(2026, 7, 1, hour, 30, tzinfo=ZoneInfo("UTC")) for hour in (3, 4, 19, 20)}
    assert {hour: consent.may_work(nights, moment) for hour, moment in at.items()} == {
        3: True,
        4: False,
        19: False,
        20: True,
    }
    assert consent.may_work(Agent())


def test_a_time_zone_that_there_is_none_of_is_refused_where_it_is_read(study):
    file = study.home(SITE) / "site.toml"
    file.write_text(file.read_text().replace("[agent]", '[agent]\ntimezone = "Mars/North"'))
    with pytest.raises(StudyError, match="expected a time zone such as Europe/Zurich"):
        hospitals.Hospital(study.home(SITE))


# --- the study that a coordinator sends ---------------------------------------------------------------------------------


def document(study, /, **changes):
    return json.dumps(json.loads(study.package) | changes).encode()


def suite(**expectation):
    return {"name": "x", "expectations": [{"type": "expect_column_values_to_be_between", **expectation}]}


def hostile(study):
    gate, text = json.loads(study.package)["gate"], json.loads(study.package)["study"]
    return {
        "no JSON": b"{",
        "damaged JSON": study.package[:-7],
        "another version": document(study, version=2),
        "true as a version": document(study, version=True),
        "a version with a point": document(study, version=1.0),
        "another key": document(study, more=1),
        "another protocol": document(study, study=text.replace("seed = 0", "seed = 1")),
        "no TOML": document(study, study="= 1"),
        "no text": document(study, study=5),
        "nested beyond reading": document(study, study="a = " + "[" * 50_000),
        "JSON nested beyond reading": b"[" * 200_000,
        "half a character": document(study, study=text + "\n# \ud800"),
        "half a character in the suite": document(study, suite=suite(kwargs={"column": "\ud800"})),
        "too many bytes": document(study, timezone="x" * (5 << 20)),
        "a gate with a word of no gate": document(study, gate=gate | {"policy": 'exclude"\nsuite = "x'}),
        "a gate with another file's suite": document(study, gate=gate | {"suite": "../../site"}),
        "a gate with a rule that takes for ever": document(study, gate=gate | {"rules": ["a" + " " * 100_000]}),
        "a time zone with more in it": document(study, timezone='UTC"\n[gate]\npolicy = "warn'),
        "a time zone that is a path": document(study, timezone="../../../etc/passwd"),
        "a suite that is no list": document(study, suite={"expectations": 5}),
        "a suite without expectations": document(study, suite={"name": "x"}),
        "a suite of texts": document(study, suite={"expectations": ["x"]}),
        "a condition": document(study, suite=suite(kwargs={"column": "age", "row_condition": "__import__('os')"})),
        "a parser": document(study, suite=suite(kwargs={"column": "age", "condition_parser": "pandas"})),
        "a query": document(study, suite=suite(type="expect_query_results_to_match_comparison", kwargs={})),
        "rows by a query": document(study, suite=suite(type="unexpected_rows_expectation", kwargs={"unexpected_rows_query": "SELECT 1"})),
        "another table": document(study, suite=suite(type="expect_table_row_count_to_equal_other_table", kwargs={"other_table_name": "x"})),
        "a schema that may refer to any file": document(
            study, suite=suite(type="expect_column_values_to_match_json_schema", kwargs={"column": "age", "json_schema": {"$ref": "file:///etc/passwd"}})
        ),
        "a parameter": document(study, suite=suite(kwargs={"column": "age", "min_value": {"$PARAMETER": "x"}})),
        "arguments that are none": document(study, suite=suite(kwargs=["column"])),
    }  # fmt: skip


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_package_that_is_none_or_does_more_than_judge_is_refused_and_nothing_is_written(study):
    hospital, digest = study.hospital(SITE), study.read.study.digest
    before = files(study.home(SITE))
    cases = hostile(study)
    for kind, data in cases.items():
        home = study.base / "elsewhere"
        home.mkdir(exist_ok=True)
        (home / "site.toml").write_text("")
        mailbox = SimpleNamespace(list=lambda _: [1], get=lambda *_: 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(identity, "verify", lambda *_, data=data: data)
            found = join(digest, mailbox, hospital.coordinator, hospital.file, home)
        assert isinstance(found, str), kind
        assert found.startswith("the study cannot be used here: expected "), (kind, found)
        assert [path.name for path in home.iterdir()] == ["site.toml"], kind
    assert {path: data for path, data in files(study.home(SITE)).items() if "book.db" not in path} == {
        path: data for path, data in before.items() if "book.db" not in path
    }


def test_a_refused_package_is_a_reply_with_its_reason_and_the_agent_goes_on(study):
    for name in study.mail[SITE].list("000000/000/study"):
        study.mail[SITE].drop(name)
    study.put_study(SITE, hostile(study)["a condition"])
    with study.run() as run:
        (message,) = study.ask(run, run.gate(), [SITE])
        refusal = decode(message, Finding).refusal
        assert "expected a suite that judges columns alone" in refusal
    assert not (study.home(SITE) / "state" / "studies").exists()


def test_a_study_by_another_key_or_of_another_digest_is_not_read(study):
    for name in study.mail[SITE].list("000000/000/study"):
        study.mail[SITE].drop(name)
    study.put_study(SITE, study.package, digest="5" * 64)
    with study.run() as run:
        question = run.question(run.gate())
        run.post(question, [SITE])
        letter = study.hospital(SITE).look()
        with pytest.raises(ServiceError, match="found none that the coordinator signed"):
            study.hospital(SITE).answer(letter)
        assert run.look(SITE, question) is None
        study.put_study(SITE, study.package)
        assert study.agent(SITE).outcome == "answered"  # the same letter: nothing had been noted


def test_a_study_is_kept_until_its_coordinator_leaves_another_and_its_folder_is_the_owners_alone(study):
    with study.run() as run:
        started(study, run)
    place = study.home(SITE) / "state" / "studies" / study.read.study.digest[:12]
    assert (place / "package.signed").read_bytes().endswith(study.package)
    (first,) = study.mail[SITE].list("000000/000/study")
    written = {path.relative_to(study.home(SITE)).parts[0] for path in study.home(SITE).rglob("*") if path.is_file()}
    assert written == {"site.toml", "site.key", "data", "state"}
    assert {path.stat().st_mode & 0o077 for path in (place, place / "sites", study.home(SITE) / "state")} == {0}
    study.put_study(SITE, document(study, timezone="Europe/Zurich"))
    joined = study.hospital(SITE, anew=True).joined(study.read.study.digest)
    assert isinstance(joined, Joined)
    assert joined.folder.operations.schedule.timezone == "UTC"
    study.mail[SITE].drop(first)
    with study.run() as run:
        started(study, run)
    assert study.hospital(SITE).joined(study.read.study.digest).folder.operations.schedule.timezone == "Europe/Zurich"


def test_a_gate_that_never_ends_is_a_refusal_and_not_silence(apart, monkeypatch):
    monkeypatch.setattr(hospitals, "GATE_S", 0.05)
    study = apart(suite=True)
    with study.run() as run:
        (message,) = study.ask(run, run.gate(), [SITE])
    assert decode(message, Finding).refusal == "its gate found nothing within 0.05 s"
    joined = study.hospital(SITE).joined(study.read.study.digest)
    assert all(helper is None or helper.over for helper in joined.gates._helpers)


# --- data that change ---------------------------------------------------------------------------------------------------


def fewer_rows(study, drop=1):
    file = study.home(SITE) / "data" / f"{SITE}.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-drop]) + "\n")


def test_data_that_changed_after_the_gate_are_refused_until_the_next_gate(study):
    with study.run() as run:
        asking = started(study, run)
        fewer_rows(study)
        study.hospital(SITE, anew=True)
        (message,) = study.ask(run, asking, [SITE])
        assert decode(message, Reply).refusal.startswith("its data have changed since its gate let them through")
        study.gate(run)
        (message,) = study.ask(run, asking, [SITE])
        assert decode(message, Reply).refusal == ""


def test_an_agent_that_stays_trains_on_the_rows_that_its_gate_saw(study):
    with study.run() as run:
        started(study, run)
        fewer_rows(study)
        study.visit(run, "train")
    assert study.seen == study.reference()[:2]


def test_statistics_that_were_answered_before_the_data_were_mended_are_not_sent_again(study):
    with study.run() as run:
        study.gate(run)
        asking = run.open("statistics")
        (before,) = study.ask(run, asking, [SITE])
    fewer_rows(study, 40)
    with study.run() as run:
        study.gate(run)
        (after,) = study.ask(run, asking, [SITE])
    assert decode(after, Reply).arrays["observed"][0] < decode(before, Reply).arrays["observed"][0]


def test_a_site_that_was_not_asked_for_its_gate_answers_nothing_about_its_rows(study):
    with study.run() as run:
        (message,) = study.ask(run, run.open("statistics"), [SITE])
    assert decode(message, Reply).refusal.startswith("its gate has not been asked about its data")


def test_data_are_fresh_until_a_profile_took_them(apart):
    study = apart(operations="\n[drift]\n")

    def fresh():
        with study.run() as run:
            (message,) = study.ask(run, run.gate(), [SITE])
            return decode(message, Finding).fresh

    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
    assert [fresh(), fresh()] == [True, True]
    with study.run() as run:
        study.gate(run)
        study.visit(run, "profile")
    assert fresh() is False
    fewer_rows(study)
    study.hospital(SITE, anew=True)
    assert fresh() is True
    (study.home(SITE) / "data" / f"{SITE}.csv").unlink()
    assert fresh() is False  # what cannot be read is nothing new


# --- what leaves --------------------------------------------------------------------------------------------------------


def test_a_previewed_reply_is_byte_for_byte_what_the_agent_sends_and_changes_nothing(study):
    before = study.objects(SITE)
    shown = [(it.ask, it.message) for it in samples(study.hospital(SITE))]
    assert [ask for ask, _ in shown] == ["gate", "statistics", "statistics", "profile", "train", "score"]
    assert study.objects(SITE) == before
    assert memory(study) == [[], []]
    assert study.hospital(SITE).book.asked() == []
    assert study.hospital(SITE).book.fact(f"judged {study.read.study.digest}") is None
    study.hospital(SITE, anew=True)
    sent = []

    def alone(site):
        sent.append(study.agent(site).message)

    with study.run() as run:  # of this hospital alone, as the sample is
        run.wards = {SITE: run.wards[SITE]}
        run.folder = replace(run.folder, operations=run.folder.operations.model_copy(update={"quorum": 1}))
        study.gate(run, alone)
        for ask in ("statistics", "profile"):
            study.visit(run, ask, alone)
        for ask in ("train", "score"):  # about the same model: nothing is committed in between
            study.ask(run, run.open(ask), [SITE], alone)
    assert sent == [message for _, message in shown]


def test_a_preview_shows_every_byte(study):
    for sample in samples(study.hospital(SITE)):
        told = json.loads(json.dumps(sample.document()))
        arrays = {name: np.array(it["values"]).reshape(it["shape"]) for name, it in told["arrays"].items()}
        rebuilt = pack(told["header"], arrays)
        assert (len(rebuilt), rebuilt) == (told["bytes"], sample.message)


def test_a_preview_of_a_table_that_breaks_the_contract_shows_what_its_gate_would_say_and_no_more(study):
    file = study.home(SITE) / "data" / f"{SITE}.csv"
    file.write_text(file.read_text().replace("creatinine", "kreatinin"))
    (only,) = samples(study.hospital(SITE))
    assert only.ask == "gate"
    assert decode(only.message, Finding).verdict["passed"] is False


CANARIES = ("CANARY77", "77777.125", "CANARYLEVEL", "CANARYLABEL")


def planted(study, how):
    """Values that no other row has, in the places that `how` says."""
    file = study.home(SITE) / "data" / f"{SITE}.csv"
    lines = file.read_text().splitlines()
    row = lines[3].split(",")
    row[0] = "CANARY77"
    if how != "good":
        row[4] = "77777.125"
    if how in ("a level", "unreadable"):
        row[5] = "CANARYLEVEL"
    if how == "a label":
        row[7] = "CANARYLABEL"
    lines[3] = ",".join(row) + (',"CANARY77' if how == "unreadable" else "")
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("how", ["good", "a number", "a level", "a label", "unreadable"])
def test_no_planted_value_is_found_in_the_mailbox_the_book_or_the_log(apart, how):
    study = apart(suite=how == "a number")
    planted(study, how)
    said = []
    with study.run() as run:
        study.ask(run, run.gate(), [SITE])
        mail = [study.mail[SITE].get(name) for name in study.mail[SITE].list()]
        for ask in ("statistics", "profile"):
            study.ask(run, run.open(ask), [SITE])
            mail += [study.mail[SITE].get(name) for name in study.mail[SITE].list()]
        said = [it.reason for it in study.hospital(SITE).book.asked(100)]
    study.hospital(SITE).close()
    state = study.home(SITE) / "state"
    held = {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert any("book.db" in name for name in held)
    for canary in CANARIES:
        number = [struct.pack("<d", float(canary))] if canary[0].isdigit() else []
        for sign in (canary.encode(), canary.encode("utf-16-le"), *number):
            assert not [name for name, data in held.items() if sign in data], canary
            assert not any(sign in data for data in mail), canary
        assert not any(canary in reason for reason in said)
    study.hospitals.pop(SITE)


# --- the agent ------------------------------------------------------------------------------------------------------------


class Counted(threading.Event):
    """A stop that is set after so many waits, and remembers how long each would have been."""

    def __init__(self, most):
        super().__init__()
        self.most, self.waits = most, []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        if len(self.waits) >= self.most:
            self.set()
        return self.is_set()


def made_up(*looks):
    """A hospital whose looks fail or find something, in this order, then nothing."""
    todo = list(looks)

    def look():
        found = todo.pop(0) if todo else None
        if isinstance(found, Exception):
            raise found
        return found

    return SimpleNamespace(look=look, file=SimpleNamespace(agent=Agent(poll=0.05, prefect="off")))


def test_an_agent_backs_off_while_something_fails_and_goes_on_after_it():
    letter = SimpleNamespace(request=Request("5" * 64, 1, 0, "train", "b" * 64, {}))
    answer = hospitals.Answer(b"", "refused", "it waits")
    troubles = [
        ServiceError("expected a server, found none"),
        OSError(28, "No space left on device"),
        ValueError("CANARY77"),
    ]
    hospital, lines, stop = made_up(*troubles, letter, *troubles[:1]), [], Counted(5)
    agent.serve(hospital, lambda _: answer, lines.append, stop)
    assert lines[0].startswith("expected a server, found none (tried again in about 0 s)")
    assert "found: No space left on device" in lines[1]
    assert "found ValueError in test_hospital.py" in lines[2]
    assert lines[3] == f"study {'5' * 12} · round 1 · train: refused: it waits"
    assert "CANARY77" not in "".join(lines)
    for wait, about in zip(stop.waits, [0.1, 0.2, 0.4, 0.1, 0.05], strict=True):
        assert 0.75 * about <= wait <= 1.25 * about


def test_an_agent_goes_on_after_thousands_of_failures_and_waits_a_minute_at_most():
    hospital, stop = made_up(*[ServiceError("expected a server, found none")] * 2000), Counted(2001)
    agent.serve(hospital, lambda _: None, lambda _: None, stop)
    assert len(stop.waits) == 2001
    assert max(stop.waits) <= 1.25 * agent.LONGEST_S


def test_an_agent_outside_its_hours_does_not_look(monkeypatch):
    hospital, told, stop = made_up(), [], Counted(3)
    monkeypatch.setattr(hospital, "look", None)
    monkeypatch.setattr(agent, "may_work", lambda _: False)
    agent.serve(hospital, lambda _: None, lambda _: None, stop, told.append)
    assert told == ["closed"]


def test_a_second_agent_of_one_folder_is_refused_in_one_line(study):
    home = study.home(SITE)
    with agent.alone(home), pytest.raises(StateError) as refused, agent.alone(home):
        raise AssertionError("two of them")
    assert str(refused.value) == f"expected no other agent in {home}, found one at work: end it first"
    with agent.alone(home):
        assert (home / "state" / "agent.lock").exists()


def test_a_real_agent_answers_until_it_is_stopped(study):
    stop, lines = threading.Event(), []
    hospital = study.hospital(SITE)
    at_work = threading.Thread(target=agent.serve, args=(hospital, hospital.answer, lines.append, stop))
    with study.run() as run:
        question = run.question(run.gate())
        run.post(question, [SITE])
        at_work.start()
        until = time.monotonic() + 30
        message = None
        while message is None and time.monotonic() < until:
            message = run.look(SITE, question)
            time.sleep(0.05)
        stop.set()
        at_work.join(30)
    assert not at_work.is_alive()
    assert decode(message, Finding).verdict["passed"] is True
    assert len(lines) == 1


def test_the_package_check_raises_and_never_crashes_on_any_document(study):
    from fedrounds.tasks import package

    rng = np.random.default_rng(1)
    whole = bytearray(study.package)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        into = study.base / "fuzz"
        with pytest.raises(UpdateRejected):
            package.unpack(bytes(data), "5" * 64, into, study.home(SITE) / "site.toml", study.hospital(SITE).file)
        assert not into.exists()
