"""A study that masks its sums: in one process and with hospitals apart the same model, and nothing of one site anywhere at the coordinator."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import time
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fedrounds.core import identity
from fedrounds.core import roster as rosters
from fedrounds.core.errors import QuorumError, StateError, StudyError
from fedrounds.core.masked import TOGETHER
from fedrounds.core.messages import Reply, decode
from fedrounds.core.plan import build
from fedrounds.core.privacy import vault as vaults
from fedrounds.core.privacy.settings import Privacy
from fedrounds.core.round import Asking
from fedrounds.core.simulate import simulate
from fedrounds.ledger import Ledger
from fedrounds.tasks.agreed import agree
from fedrounds.tasks.preview import samples
from fedrounds.tasks.ward import Ward

MASKED = '{ kind = "masked" }'
FOUR = ("east", "north", "south", "west")


def cohorts(study):
    wards = [Ward(site, study.plan, study.read.data) for site in study.read.sites.values()]
    return {ward.name: ward.cohort for ward in wards if ward.load()}


def deaf(study, *lost):
    """An agent of which some sites never hear some questions: `lost` is pairs of (site, ask)."""

    def agent(site):
        letter = study.hospital(site).look()
        if letter is not None and (site, letter.request.ask) not in lost:
            study.hospital(site).answer(letter)

    return agent


def everything(folder):
    """The bytes of every file under a folder, the members of archives and the blobs of databases by themselves too."""
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        yield file, file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield from ((file, archive.read(name)) for name in archive.namelist())


def test_hospitals_apart_train_the_model_of_one_process(apart):
    study = apart(masked=MASKED)
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
    assert [it.outcome for it in study.replies()] == ["taken"] * len(study.replies())


def test_the_model_is_that_of_plain_sums_to_the_width_of_a_step(apart):
    study = apart(masked='{ kind = "masked", bits = 64 }')
    masked = list(simulate(study.plan, cohorts(study), 3))
    plain = build(study.read.study.model_copy(update={"privacy": Privacy()}))
    open_ = list(simulate(plain, cohorts(study), 3, rng_of=study.plan.rng))
    assert np.abs(masked[-1].state.theta - open_[-1].state.theta).max() < 1e-8
    assert masked[-1].scores.keys() == {TOGETHER}
    together = np.sum([sums for sums, _ in open_[-1].scores.values()], axis=0)
    np.testing.assert_allclose(masked[-1].scores[TOGETHER][0], together, rtol=1e-6)


def test_an_agent_that_is_started_anew_before_every_look_changes_no_bit(apart):
    study = apart(masked=MASKED)

    def agent(site):
        hospital = study.hospital(site, anew=True)
        letter = hospital.look()
        if letter is not None:
            hospital.answer(letter)

    with study.run() as run:
        assert study.drive(run, agent=agent) == study.reference()[-1][1]


def test_an_agent_killed_after_it_stored_and_before_it_sent_sends_the_same_bytes(apart):
    study = apart(masked=MASKED)
    told = {}

    def agent(site):
        letter = study.hospital(site).look()
        if letter is None:
            return
        answer = study.hospital(site).given(letter) or study.hospital(site).work(letter)  # stored; then it dies
        again = study.hospital(site, anew=True)
        letter = again.look()
        once_more = again.answer(letter)
        told.setdefault(letter.request.ask, []).append(answer.message == once_more.message)

    with study.run() as run:
        assert study.drive(run, agent=agent) == study.reference()[-1][1]
    assert set(told) == {"gate", "keys", "shares", "statistics", "train", "score", "agree", "open"}
    assert all(same for asked in told.values() for same in asked)


def test_a_coordinator_that_starts_again_takes_new_keys_and_comes_to_the_same_model(apart):
    study = apart(masked=MASKED)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        study.visit(run, "train")
        study.ask(run, run.open("train"))  # asked and answered, and then it dies
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
    asked = [it.ask for it in study.hospital("east").book.asked(200)]
    assert asked.count("keys") == 2


@pytest.mark.parametrize("ask", ["keys", "shares", "statistics", "train", "agree", "open"])
def test_one_site_of_four_is_lost_at_any_phase_and_the_sum_of_the_others_is_opened(apart, ask):
    study = apart(masked=MASKED, sites=FOUR)
    agent = deaf(study, ("west", ask))
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics", agent)
        closed = study.visit(run, "train", agent)
        last = study.visit(run, "score", agent)
    assert closed.heard == (FOUR[:3] if ask in ("keys", "shares", "train") else FOUR)
    assert last.scores.keys() == {TOGETHER}


def test_two_of_four_lost_leave_the_sum_closed_and_the_study_goes_on_later(apart):
    study = apart(masked=MASKED, sites=FOUR)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        with pytest.raises(
            QuorumError, match="expected masked sums of at least 3 sites, found those of 2: nothing was opened"
        ):
            study.visit(run, "train", deaf(study, ("west", "train"), ("north", "train")))
        assert study.visit(run, "train").heard == FOUR


@pytest.mark.parametrize(
    ("agreed", "said"),
    [
        ("none", "have not agreed on the hospitals' keys"),
        ("another", "asked under another roster than the one that its people agreed on"),
        ("another, unread", "expected keys signed by 'west', found others"),
    ],
)
def test_a_hospital_whose_people_go_by_no_roster_or_by_another_is_left_out_by_all_others(
    apart, monkeypatch, agreed, said
):
    if agreed == "another, unread":  # a hospital that does not read in the log what it was asked under
        monkeypatch.setattr("fedrounds.core.privacy.witness.rosters_in", lambda *_: None)
    study = apart(masked=MASKED, sites=FOUR)
    other = {**study.roster, "stranger": identity.public_key(identity.new_key())}
    kept = None if agreed == "none" else {name: key.hex() for name, key in other.items()}
    study.hospital("west").book.learn("roster", kept)
    with study.run() as run:
        study.gate(run)
        closed = study.visit(run, "statistics")
    assert closed.heard == FOUR[:3]
    assert said in closed.refused["west"]


def test_a_coordinator_killed_after_it_opened_a_sum_opens_it_of_the_same_sites_again(apart):
    study = apart(masked=MASKED, sites=FOUR)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        while asking.request.ask != "open":  # the west is away
            asking = run.aggregate(asking, study.ask(run, asking, agent=deaf(study, ("west", "train"))))
        study.ask(run, asking)  # opened, and then it dies; when it is back, so is the west
    with study.run() as run:
        study.gate(run)
        assert study.visit(run, "train").heard == FOUR[:3]
        assert study.visit(run, "train").heard == FOUR
    lost = lambda request, site: (request.ask, request.round, site) == ("train", 1, "west")  # noqa: E731
    assert list(simulate(study.plan, cohorts(study), 2, lost=lost))[-2].state.model_digest == run.state.model_digest


def test_a_round_that_was_opened_is_opened_of_no_other_sites_so_no_difference_tells_of_one(apart):
    study = apart(masked=MASKED, sites=FOUR)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        while asking.request.ask != "open":
            asking = run.aggregate(asking, study.ask(run, asking))
        study.ask(run, asking)
        run.ledger.note("opened", {})  # a coordinator that forgets on purpose, and says that the west did not answer
        asking = run.open("train")
        while asking.request.ask != "agree":
            asking = run.aggregate(asking, study.ask(run, asking, agent=deaf(study, ("west", "train"))))
        with pytest.raises(
            QuorumError, match="expected signatures over who was heard of at least 3 sites, found those of"
        ):
            run.aggregate(asking, study.ask(run, asking))
    assert "their difference would be one site's" in study.hospital("east").book.asked(1)[0].reason


def test_the_coordinator_keeps_nothing_of_one_site(apart):
    study = apart(masked=MASKED, sites=FOUR)
    rows, passed = cohorts(study), []

    def agent(site):
        study.agent(site)
        passed.extend(everything(study.base / "mail"))  # what is dropped later too

    with study.run() as run:
        study.drive(run, agent)
    plain = build(study.read.study.model_copy(update={"privacy": Privacy()}))
    seen = {}
    for closed in simulate(plain, rows, 3, rng_of=study.plan.rng):
        for site, (count, loss, _) in closed.training.items():
            seen[f"{site} {closed.state.round} loss"] = loss
            seen[f"{site} rows"] = count
        for site, (sums, _) in closed.scores.items():
            seen |= {
                f"{site} {closed.state.round} score {at}": value
                for at, value in enumerate(sums)
                if value > 100 or value % 1
            }
    fine = {name: value for name, value in seen.items() if value % 1}
    assert len(fine) > 20
    places = [study.place.own, study.base / "mail"]
    held = [(file, data) for place in places for file, data in everything(place)] + passed
    assert len(passed) > 200
    for file, data in held:
        for name, value in fine.items():
            assert struct.pack("<d", value) not in data, f"{name} in {file}"
            assert f"{value:.6g}".encode() not in data, f"{name} in {file}"
    with sqlite3.connect(study.place.ledger) as ledger:
        records = [json.loads(text) for (text,) in ledger.execute("SELECT record FROM visits")]
    assert all(
        site.keys() <= {"bytes_in", "bytes_out", "masked"} for record in records for site in record["sites"].values()
    )


def test_masked_words_look_like_nothing(apart):
    """Hundreds of words over many rounds: their highest bit is a fair coin, and they follow the update by chance alone."""
    study = apart(masked='{ kind = "masked", bits = 16, batch = 64 }')
    words, updates = [], []
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        while len(words) < 50:
            before = run.state.theta
            asking = run.open("train")
            while isinstance(asking, Asking):
                messages = study.ask(run, asking)
                if asking.request.ask == "train":
                    words += [decode(message, Reply).arrays["words.delta"].view(np.int16) for message in messages]
                asking = run.aggregate(asking, messages)
            updates += [asking.state.theta - before] * 3
    told, truth = np.concatenate(words).astype(float), np.concatenate(updates)
    bound = 4 / np.sqrt(len(told))  # four standard deviations
    assert abs((told < 0).mean() - 0.5) < bound / 2
    assert abs(np.corrcoef(told, truth)[0, 1]) < bound
    assert len(told) > 400


def test_a_vault_is_the_same_after_it_was_on_the_disk(apart):
    study = apart(masked=MASKED)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
    kept = bytes.fromhex(study.hospital("east").book.fact(f"vault {study.plan.digest}"))
    vault = vaults.load(kept)
    assert vaults.dump(vault) == kept
    assert set(vault.used) == {0, 1} == set(vault.opened)
    assert set(vault.secrets) == set(range(2, 32))  # what was opened is erased
    with pytest.raises(StateError, match="found damaged bytes"):
        vaults.load(kept[:-1])


def test_secrets_that_were_used_are_gone_from_the_hospitals_file(apart):
    study = apart(masked=MASKED)
    with study.run() as run:
        study.gate(run)
        study.ask(run, run.open("statistics"))
        key = f"vault {study.plan.digest}"
        used = vaults.load(bytes.fromhex(study.hospital("east").book.fact(key))).secrets[0]
        study.drive(run)
    study.hospital("east").close()
    study.hospitals.pop("east")
    files = list((study.home("east") / "state").glob("book.db*"))
    assert files
    for file in files:
        assert used.own.hex().encode() not in file.read_bytes(), file.name


def test_a_roster_gives_this_hospital_its_own_key_or_is_not_gone_by(apart, tmp_path):
    study = apart(masked=MASKED)
    hospital, file = study.hospital("east"), tmp_path / "roster.json"
    file.write_text(rosters.dump(study.roster))
    assert agree(hospital, file) == study.roster == hospital.roster()
    forged = {**study.roster, "east": identity.public_key(identity.new_key())}
    file.write_text(rosters.dump(forged))
    with pytest.raises(StateError, match="expected this hospital's own key for 'east'"):
        agree(hospital, file)
    for text in ("{}", "[1]", '{"a": "00"}', rosters.dump({"a": b"1" * 32, "b": b"1" * 32, "c": b"2" * 32})):
        file.write_text(text)
        with pytest.raises(StateError, match="expected a"):
            agree(hospital, file)
    assert hospital.roster() == study.roster


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("operations.toml", "\n[promotion]", "\n[promotion]\nmargin = 0.1", "`margin` under [promotion]"),
        ("operations.toml", "[gate]", "[drift]\n[gate]", "[drift]: no site's own histogram is known"),
        ("operations.toml", 'policy = "exclude"', 'policy = "down-weight"', "`down-weight` under [gate]"),
        (
            "study.toml",
            '\nprotect = { kind = "masked"',
            '\nprotect = { kind = "masked", margin = 0.1',
            "expected at least 5 sites to count those that got worse, found 3",
        ),
        ("study.toml", ", range = [50, 300]", "", "masked sums need the range of every number"),
        (
            "study.toml",
            "\n[privacy]\n",
            '\n[protocol]\ncodec = "float32"\n[privacy]\n',
            "masked sums travel as whole words",
        ),
        ("study.toml", '\nprotect = { kind = "masked"', '\nprotect = { kind = "masked", bits = 24', "privacy.protect"),
    ],
)
def test_what_needs_one_sites_numbers_is_refused_before_anything_runs(apart, file, old, new, said):
    from fedrounds.tasks import folder

    study = apart(masked=MASKED)
    text = (study.study / file).read_text()
    assert old in text
    (study.study / file).write_text(text.replace(old, new, 1))
    with pytest.raises(StudyError, match=re.escape(said)):
        folder.read(study.study)


def test_two_sites_are_too_few_to_hide_among(apart):
    with pytest.raises(StudyError, match="expected at least 3 sites for masked sums, found 2"):
        apart(masked=MASKED, sites=("east", "north"))


def test_promotion_goes_by_the_sum_of_all_and_names_no_site(apart):
    study = apart(masked=MASKED, sites=FOUR)
    with study.run() as run:
        study.drive(run)
    with Ledger.open(study.place.ledger) as ledger:
        reasons = [it.reason for it in ledger.promotions()]
    assert reasons[0] == "promoted: it is the first model"
    assert not any(site in reason for reason in reasons for site in (*FOUR, TOGETHER))


def test_a_run_with_everything_on_shows_who_took_part_and_no_more(tmp_path, program, warm, prefect_beside):
    folder = tmp_path / "study"
    program("init", folder)
    warm(folder / "mlruns")
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(text + f"\n[privacy]\nprotect = {MASKED}\n")
    operations = (folder / "operations.toml").read_text().replace("rounds = 10 ", "rounds = 3 ")
    (folder / "operations.toml").write_text(re.sub(r"(?m)^margin.*\n", "", operations))
    told = json.loads(program("run", folder, "--json", **prefect_beside).stdout)
    assert {site["site"] for site in told["sites"]} >= set(FOUR)
    assert all(site["federated"] is None and site["local"] is None for site in told["sites"] if site["site"] in FOUR)
    [database] = folder.rglob("mlflow.db")
    with sqlite3.connect(database) as store:
        named = store.execute(
            "SELECT DISTINCT t.value, m.key FROM tags t JOIN metrics m USING (run_uuid) WHERE t.key = 'fedrounds.site'"
        ).fetchall()
    assert {site for site, _ in named} == set(FOUR)
    assert {key for _, key in named} == {"took_part", "traffic_bytes_out", "traffic_bytes_in"}
    [report] = Path(folder).rglob("report.html")
    page = report.read_text()
    assert "This study masks its sums" in page
    assert "Sums were masked: whoever runs the study sees sums over the hospitals that were heard" in page
    assert "What left a hospital was masked" in page
    assert "no secure aggregation" not in page


def test_a_privacy_officer_sees_the_random_words_that_would_leave_and_nothing_changes(apart):
    study = apart(masked=MASKED)
    before = study.hospital("east").book.fact(f"vault {study.plan.digest}")
    found = [sample.document() for sample in samples(study.hospital("east"))]
    keys = ["keys", "shares"]
    assert [it["ask"] for it in found] == ["gate", *keys, "statistics", *keys, "train", *keys, "score"]
    train = next(it for it in found if it["ask"] == "train")
    assert train["arrays"].keys() == {"words.delta", "words.sums", "signature"}
    again = next(it for it in (sample.document() for sample in samples(study.hospital("east"))) if it["ask"] == "train")
    assert train["arrays"]["words.delta"] != again["arrays"]["words.delta"]  # fresh keys, other masks
    assert study.hospital("east").book.fact(f"vault {study.plan.digest}") == before


class Agents:
    """The hospitals' agents as processes of their own, one of which may be dead."""

    def __init__(self, study, begun):
        self.study, self.begun, self.processes = study, begun, {}

    def start(self, site):
        self.processes[site] = self.begun("site", "start", self.study.home(site))

    def kill(self, site):
        process = self.processes.pop(site)
        process.kill()
        process.wait(30)

    def ask(self, run, asking):
        """What those who live answer, in site order."""
        question, found, until = run.question(asking), {}, time.monotonic() + 60
        run.post(question, asking.sites)
        while len(found) < len(self.processes.keys() & set(asking.sites)):
            assert time.monotonic() < until, f"{asking.request.ask}: only {sorted(found)} answered"
            for site in set(asking.sites) - found.keys():
                message = run.look(site, question)
                if message is not None:
                    found[site] = message
            time.sleep(0.01)
        return [found[site] for site in sorted(found)]

    def close(self):
        for site in list(self.processes):
            self.kill(site)


def test_real_agents_killed_at_every_phase_leave_the_sum_of_those_who_were_heard(apart, begun):
    """20 rounds, in each another of four agents is dead at another of five phases: the model is the plain loop's that loses the same."""
    study = apart(masked='{ kind = "masked", batch = 4 }', sites=FOUR, poll=0.05)
    dead = {
        step: (ask, site)
        for step, (ask, site) in enumerate(product(("keys", "shares", "train", "agree", "open"), FOUR), 1)
    }

    def lost(request, site):
        """Whose words are not in the sum: who was dead while words were asked for, or before."""
        return request.ask == "train" and dead[request.round] in {(ask, site) for ask in ("keys", "shares", "train")}

    for hospital in study.hospitals.values():
        hospital.close()
    study.hospitals.clear()
    agents, heard = Agents(study, begun), []
    try:
        for site in FOUR:
            agents.start(site)
        with study.run() as run:
            run.admit(run.found(agents.ask(run, run.gate())))
            asking = run.open("statistics")
            while isinstance(asking, Asking):
                asking = run.aggregate(asking, agents.ask(run, asking))
            for step, (ask, site) in dead.items():
                run._keyring = None  # each round begins with fresh keys, so that every phase is there to die in
                asking = run.open("train")
                while isinstance(asking, Asking):
                    if asking.request.ask == ask:
                        agents.kill(site)
                    replies = agents.ask(run, asking)
                    if asking.request.ask == ask:
                        agents.start(site)
                    asking = run.aggregate(asking, replies)
                heard.append(asking.heard)
                assert run.state.round == step
            digest = run.state.model_digest
    finally:
        agents.close()
    left = [tuple(name for name in FOUR if name != site or ask in ("agree", "open")) for ask, site in dead.values()]
    assert heard == left
    assert digest == list(simulate(study.plan, cohorts(study), 20, lost=lost))[-2].state.model_digest
