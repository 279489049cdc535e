"""Encrypted sums whose key a third party holds: it has no patients, is asked for none and counts for none; the model is that of a site as holder."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import FEDROUNDS, alone, fedrounds, initiated
from hidden_study import SITES, cohorts, study
from pydantic import ValidationError

from fedrounds.coordinator import roster
from fedrounds.coordinator.roster import Site
from fedrounds.core import encrypted, encrypting, identity
from fedrounds.core.answer import NO_ROWS, handle_masked
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.invitation import Invitation
from fedrounds.core.masked import Self
from fedrounds.core.messages import Request
from fedrounds.core.plan import build
from fedrounds.core.privacy import vault as vaults
from fedrounds.core.privacy.holder import Safe
from fedrounds.core.privacy.settings import Ckks, Privacy
from fedrounds.core.round import Asking, Roll, open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study
from fedrounds.ledger import Ledger
from fedrounds.reports.account import limits_of
from fedrounds.tasks import agreed, audit, federation, founding, joining, masks
from fedrounds.tasks import folder as folders
from fedrounds.tasks.hospital import NOT_ITS, OFF_RECORD
from fedrounds.tasks.run import opened
from fedrounds.tasks.ward import Ward

KEEPER = "trustee"
THIRD, SITE = '{ kind = "ckks", holder = "trustee" }', '{ kind = "ckks", key_holder = "north" }'
FOUR = ("east", "north", "south", "west")


def held_by(of, **who):
    return Study.model_validate({**of.model_dump(mode="json"), "privacy": {"protect": {"kind": "ckks", **who}}})


def rounds_of(of, data, **more):
    return list(simulate(build(of), data, 2, rng_of=build(study()).rng, wire=True, **more))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_model_is_that_of_a_site_as_holder_bit_for_bit_and_nobody_is_heard_who_has_no_patients():
    data, asked = cohorts(study()), []
    third = rounds_of(held_by(study(), holder=KEEPER), data, lost=lambda it, site: asked.append((site, it.ask)))
    site = rounds_of(held_by(study(), key_holder="north"), data)
    for one, other in zip(third, site, strict=True):
        np.testing.assert_array_equal(one.state.theta, other.state.theta)
        assert {name: array.tobytes() for name, array in one.state.statistics.items()} == {
            name: array.tobytes() for name, array in other.state.statistics.items()
        }
        assert (one.heard, one.clipped) == (other.heard, other.clipped) == (SITES, 0)
    assert {ask for one, ask in asked if one == KEEPER} == {"keys", "shares", "open"}
    assert {ask for one, ask in asked if one == "north"} == {"keys", "statistics", "train", "score"}


@pytest.mark.parametrize("ask", ["keys", "shares", "open"])
def test_without_the_third_party_nothing_is_opened(ask):
    of = held_by(study(), holder=KEEPER)
    lost = lambda request, site: site == KEEPER and request.ask == ask  # noqa: E731
    with pytest.raises(QuorumError, match="expected the key holder 'trustee' to answer"):
        list(simulate(build(of), cohorts(of), 1, lost=lost))


def test_it_does_not_count_among_those_without_whom_no_sum_is_made_or_opened():
    of = held_by(study(), holder=KEEPER, least=4)
    assert len(list(simulate(build(of), cohorts(of), 1))) == 3
    for ask, said in (
        ("keys", "expected keys of at least 5 sites, found those of 4"),
        ("statistics", "found those of 3"),
    ):
        lost = lambda request, site, ask=ask: site == "south" and request.ask == ask  # noqa: E731
        with pytest.raises(QuorumError, match=said):
            list(simulate(build(of), cohorts(of), 1, lost=lost))
    three = {site: rows for site, rows in cohorts(of).items() if site != "west"}
    with pytest.raises(StudyError, match="expected at least 4 sites for encrypted sums, found 3"):
        list(simulate(build(of), three, 1))


def asked_of(of, ask, arrays):
    """What the third party answers."""
    plan, key = build(of), identity.new_key()
    me = Self(KEEPER, key, {KEEPER: identity.public_key(key)})
    request = Request(plan.digest, 1, 0, ask, "0" * 64, arrays)
    return handle_masked(request, Safe(), me, {}, None, plan, OPEN, np.random.default_rng(0))


@pytest.mark.parametrize("ask", ["statistics", "train", "score", "profile"])
def test_it_answers_nothing_that_concerns_rows(ask):
    safe, _, reply = asked_of(held_by(study(), holder=KEEPER), ask, {})
    assert (reply.refusal, reply.arrays, safe) == (NO_ROWS, {}, Safe())


def test_it_opens_no_sum_that_it_is_said_to_be_in():
    protect = Ckks(kind="ckks", holder=KEEPER)
    arrays = dict.fromkeys(encrypting.TAKES["open"], np.zeros(8, np.uint8)) | {
        "sum": np.zeros((1, 2, 8192), np.uint64),
        "announced": np.zeros(32, np.uint8),
        "members": np.frombuffer(b"east\nnorth\ntrustee", np.uint8),
        "signatures": np.zeros((3, 64), np.uint8),
    }
    me = Self(KEEPER, identity.new_key(), {})
    with pytest.raises(UpdateRejected, match="found the key holder among them"):
        encrypting.answer_phase(Request("ab" * 32, 1, 0, "open", "0" * 64, arrays), Safe(), me, protect)


def test_it_makes_no_key_for_fewer_hospitals_than_three_though_it_is_a_member_itself():
    of = held_by(study(), holder=KEEPER)
    plan, keys = build(of), {name: identity.new_key() for name in (*SITES[:3], KEEPER)}
    known = {name: identity.public_key(key) for name, key in keys.items()}
    asking = open_round(plan.start(), plan, "statistics", SITES[:3], roll=Roll(known, 1))
    safes, replies = {}, []
    for name in asking.sites:
        me = Self(name, keys[name], known)
        safes[name], _, reply = handle_masked(
            asking.request_to(name), Safe(), me, {}, None, plan, OPEN, np.random.default_rng(0)
        )
        replies.append(reply)
    after = asking.masking.step(replies)
    few = replace(after, keys={name: after.keys[name] for name in ("east", "north", KEEPER)})
    for asked, refusal in ((few, "expected 4 members or more for encrypted sums, found 3"), (after, "")):
        me = Self(KEEPER, keys[KEEPER], known)
        _, _, reply = handle_masked(asked.request, safes[KEEPER], me, {}, None, plan, OPEN, np.random.default_rng(0))
        assert reply.refusal.startswith(refusal)
        assert bool(reply.refusal) == bool(refusal)


# --- what a study may say ---------------------------------------------------------------------------------------------


def test_a_study_names_one_who_holds_the_key_and_a_third_party_is_no_site():
    for who in ({}, {"key_holder": "north", "holder": KEEPER}):
        with pytest.raises(ValidationError, match="expected either `key_holder`, a site of the study, or `holder`"):
            held_by(study(), **who)
    of = held_by(study(), holder=KEEPER)
    masks.enough(of, SITES)
    with pytest.raises(StudyError, match="expected the key holder 'north' outside the sites"):
        masks.enough(held_by(study(), holder="north"), SITES)
    assert encrypted.third_party(of) == KEEPER
    assert encrypted.patients(of, [*SITES, KEEPER]) == list(SITES)
    assert encrypted.third_party(held_by(study(), key_holder="north")) == encrypted.third_party(study()) == ""
    assert "in league with the third party that holds the key" in limits_of(of)[0]


def test_a_roster_without_the_third_party_opens_no_round():
    plan = build(held_by(study(), holder=KEEPER))
    known = {name: identity.public_key(identity.new_key()) for name in SITES}
    with pytest.raises(StudyError, match="expected the key holder 'trustee' on the roster"):
        open_round(plan.start(), plan, "statistics", SITES, roll=Roll(known, 1))


def test_who_has_a_site_as_holder_keeps_the_digest_of_the_study():
    of = held_by(study(), key_holder="north")
    assert "holder" not in of.model_dump(mode="json")["privacy"]["protect"]
    assert set(of.model_dump(mode="json")["privacy"]["protect"]) == {
        "kind",
        "key_holder",
        "least",
        "clip",
        "bits",
        "batch",
    }


# --- in one process ---------------------------------------------------------------------------------------------------


def encrypted_toy(base, protect):
    folder = initiated(base)
    with (folder / "study.toml").open("a") as file:
        file.write(f"\n[privacy]\nprotect = {protect}\n")
    operations = folder / "operations.toml"
    operations.write_text(re.sub(r"(?m)^margin.*\n", "", operations.read_text()))
    return folder


def test_a_run_in_one_process_has_the_third_party_beside_its_sites(tmp_path, program, warm, prefect_beside):
    folder = encrypted_toy(tmp_path / "toy", THIRD)
    warm(folder / "mlruns")
    assert program("run", folder, "--json", **prefect_beside).returncode == 0
    read = folders.read(folder)
    with Ledger.open(folders.state_of(folder, "toy").ledger) as ledger:
        entry = ledger.visits()[-1]
        assert sorted(entry.record["sites"]) == sorted(read.sites)
        assert KEEPER not in str(entry.record)
    with opened(read, folders.state_of(folder, "toy")) as run:
        assert run.holder.name == KEEPER
        assert KEEPER not in run.wards
        assert KEEPER not in run.taking_part


def test_a_site_file_of_the_third_party_and_one_without_rows_are_refused(tmp_path, capfd):
    folder = encrypted_toy(tmp_path / "toy", THIRD)
    (folder / "sites" / f"{KEEPER}.toml").write_text("")
    with pytest.raises(StudyError, match="drop its site file, or name it by `key_holder`"):
        folders.read(folder)
    (folder / "sites" / f"{KEEPER}.toml").rename(folder / "sites" / "east.toml")
    with pytest.raises(StudyError, match=r"expected \[source\] in .*east\.toml, found none"):
        folders.read(folder)


# --- apart ------------------------------------------------------------------------------------------------------------


def test_hospitals_apart_and_a_third_party_train_the_model_of_one_process_and_it_is_asked_for_its_part_alone(apart):
    study = apart(masked=THIRD, holder=KEEPER, sites=FOUR)
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
        assert sorted(run.wards) == sorted(FOUR)
        found = audit.verify(run.ledger, identity.public_key(study.key))
    asked = {it.ask for it in study.hospital(KEEPER).book.asked(500)}
    assert asked == {"keys", "shares", "open"}
    assert {it.outcome for it in study.replies()} == {"taken"}
    assert len(found.rosters) == 1
    secret = {
        site: vaults.load(bytes.fromhex(study.hospital(site).book.fact(f"vault {study.plan.digest}"))).secret
        for site in study.keys
    }
    assert [site for site, key in secret.items() if key] == [KEEPER]
    assert study.objects(KEEPER) == []


def test_a_third_party_apart_gives_the_model_that_a_site_as_holder_gives(apart):
    study = apart(masked=THIRD, holder=KEEPER)
    with study.run() as run:
        study.drive(run)
    wards = [Ward(site, study.plan, study.read.data) for site in study.read.sites.values()]
    data = {ward.name: ward.cohort for ward in wards if ward.load()}
    site = build(
        study.read.study.model_copy(update={"privacy": Privacy(protect=Ckks(kind="ckks", key_holder="north"))})
    )
    found = list(simulate(site, data, 3, rng_of=study.plan.rng))
    np.testing.assert_array_equal(run.state.theta, found[-1].state.theta)


@pytest.mark.parametrize("ask", ["gate", "statistics", "train", "score"])
def test_its_agent_refuses_what_concerns_rows_whoever_asks(apart, ask):
    study = apart(masked=THIRD, holder=KEEPER)
    with study.run() as run:
        study.gate(run)
        request = Request(study.plan.digest, 0, 0, ask, run.state.model_digest, {})
        asking = Asking(run.state, request, (KEEPER,), 1)
        question = run.question(asking)
        run.post(question, [KEEPER])
        answer = study.agent(KEEPER)
    assert (answer.outcome, answer.reason) == ("refused", NO_ROWS)


def test_a_sum_that_no_log_bears_out_stays_closed_at_a_third_party_too(apart, monkeypatch):
    study = apart(masked=THIRD, holder=KEEPER)
    monkeypatch.setattr("fedrounds.tasks.witness.shown", lambda *_: {})
    with study.run() as run:
        study.gate(run)
        with pytest.raises(QuorumError, match=OFF_RECORD[:40]):
            study.visit(run, "statistics")


def test_who_has_no_patients_takes_no_part_in_a_study_that_does_not_name_it(apart):
    study = apart(masked=SITE, holder=KEEPER)
    with study.run() as run:
        study.gate(run)
        study.ask(run, run.open("statistics"))
        (refused,) = (it for it in study.replies() if it.site == KEEPER and it.exchange == 0 and it.reason == NOT_ITS)
    assert refused.outcome == "declined"


def test_an_agent_that_is_started_anew_before_every_look_changes_no_bit(apart):
    study = apart(masked=THIRD, holder=KEEPER)

    def agent(site):
        hospital = study.hospital(site, anew=True)
        letter = hospital.look()
        if letter is not None:
            hospital.answer(letter)

    with study.run() as run:
        assert study.drive(run, agent=agent) == study.reference()[-1][1]


def test_its_real_agent_without_a_source_answers_what_is_asked_of_it(apart):
    study = apart(masked=THIRD, holder=KEEPER, poll=0.05)
    study.hospitals.pop(KEEPER).close()
    home = study.home(KEEPER)
    assert "[source]" not in (home / "site.toml").read_text()
    command = [FEDROUNDS, "site", "start", home, "--json"]
    with (home / "said").open("w") as said, subprocess.Popen(command, stdout=said, stderr=said, env=alone()) as process:
        try:

            def agent(site):
                if site != KEEPER:
                    study.agent(site)
                    return
                until = time.monotonic() + 60
                while run.look(KEEPER, study.question) is None and time.monotonic() < until:
                    time.sleep(0.05)
                run._looked_at[KEEPER].clear()

            with study.run() as run:
                assert study.drive(run, agent=agent, rounds=1) == study.reference(1)[-1][1]
        finally:
            process.terminate()
    assert "keys: answered" in (home / "said").read_text()
    assert fedrounds("site", "preview", home).stderr.count("holds a key alone: nothing of a row leaves") == 1


def invited(study, name=KEEPER):
    url = str(study.base / "mail" / name)
    study.put_study(name, study.package)
    key = identity.public_key(study.key).hex()
    made = {"site": name, "study": "toy", "digest": study.plan.digest, "coordinator": key, "url": url}
    rest = {"experiment": "", "user": "", "password": "", "nonce": "ab" * 16, "expires": 2**31, "ca": ""}
    return Invitation.model_construct(**made, **rest)  # by a folder, where a coordinator's is by https


def test_it_joins_without_rows_and_a_hospital_with_rows_does_not_join_in_its_place(apart, tmp_path):
    study = apart(masked=THIRD, holder=KEEPER)
    invitation, home, table = invited(study), tmp_path / "joined", study.home("east") / "data" / "east.csv"
    with pytest.raises(StudyError, match="expected --holder without rows"):
        joining.prepared(invitation, home, table, None, holder=True)
    scratch = joining.prepared(invitation, home, table, None)
    with pytest.raises(StudyError, match="expected --holder of the third party"):
        joining.check(scratch, invitation)
    east = invited(study, "east")
    with pytest.raises(StudyError, match="found 'trustee' as `holder` in the study and 'east' without rows"):
        joining.check(joining.prepared(east, tmp_path / "east", None, None, holder=True), east)
    scratch = joining.prepared(invitation, home, None, None, holder=True)
    found = joining.check(scratch, invitation)
    assert (found.patients, found.columns, found.verdict, found.document()["gate"]) == (0, [], None, "")
    joining.enrol(scratch, home, invitation)
    assert folders.read_site(home / "site.toml").source is None


def test_a_coordinator_asks_its_hospitals_and_the_third_party_once_all_have_joined(tmp_path):
    study, home = encrypted_toy(tmp_path / "toy", THIRD), tmp_path / "coordinator"
    founding.found(home, study, "https://127.0.0.1:8443", "")
    keys = {name: identity.new_key() for name in (*FOUR, KEEPER)}
    joined = {}
    for number, (name, key) in enumerate(keys.items()):
        public = identity.public_key(key).hex()
        joined[name] = Site(
            name=name, experiment=str(number), user=f"site-{name}", status="active", key=public, joined=1
        )
    for name in FOUR:
        roster.write(home, joined[name], None)
    agreed.publish(home)
    with pytest.raises(QuorumError, match=r"expected the key holder 'trustee' among those in .* that have joined"):
        federation.read(home).desks()
    roster.write(home, joined[KEEPER], None)
    with pytest.raises(QuorumError, match="and whose key is on the roster"):
        federation.read(home).desks()
    agreed.publish(home)
    desks = federation.read(home).desks()
    assert sorted(desks) == sorted(keys)
    assert all(len(desk.roster) == 5 for desk in desks.values())
    for name in FOUR[2:]:
        roster.write(home, joined[name].but(status="suspended"), joined[name])
    with pytest.raises(StudyError, match="expected a quorum of at most 2 sites, found 3"):  # of whom it is none
        federation.read(home)
