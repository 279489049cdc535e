"""What explains a model, asked of hospitals that are apart: the same note as of one process, who does not tell, kills, and a coordinator's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time

import pytest
from conftest import ROUNDS
from test_baselines import Page

from fedrounds.cli.main import main
from fedrounds.coordinator import config, roster
from fedrounds.coordinator.roster import Site
from fedrounds.core import identity
from fedrounds.core.errors import QuorumError, StateError, StudyError
from fedrounds.core.round import Asking
from fedrounds.ledger import Ledger
from fedrounds.reports import explained as drawn
from fedrounds.tasks import audit, federation, founding, updates
from fedrounds.tasks.brought import UNKEPT
from fedrounds.tasks.explain import HIDDEN, NOTE, _found
from fedrounds.tasks.explain_apart import EXCLUDED, WITHOUT, _asked, _standing, _token, explain
from fedrounds.tasks.matrix import Ready
from fedrounds.tasks.ward import Ward

WILLING = "explanations = true\nmerge_scores = false\n"  # as a hospital in one process: whole histograms
FOUR = ("east", "north", "south", "west")
SHORT = '[federation]\ndeadline = "1s"\nattempts = 1\npoll = 0.02\n'
KEEPING = "[federation]\npoll = 0.02\nkeep_updates = true\n"
MAY_NOT = "it answers nothing that explains a model, unless `explanations = true` under [policy] allows it"
AWAY = "no answer before the deadline"


class Killed(BaseException):
    """What no code of ours catches: as if the process had ended there."""


@contextlib.contextmanager
def at_hand(study, agent=None):
    """A run by mail whose hospitals look as soon as they are asked."""
    with study.run() as run:
        post = run.post

        def posted(question, sites):
            post(question, sites)
            for site in sites:
                (agent or study.agent)(site)

        run.post = posted
        yield run


def driven(study):
    """The study, at its end."""
    with study.run() as run:
        study.drive(run)
    return study


def asked_of(study, agent=None, killed=""):
    """The note, and what was said meanwhile; or it is killed when it has done what `killed` names."""
    said = []
    with at_hand(study, agent) as run:
        if killed:
            setattr(run, killed, dying(getattr(run, killed)))
        return _asked(run, _standing(run.ledger, study.read.study, study.place), said.append), said


def dying(call):
    def done(*arguments):
        call(*arguments)
        raise Killed

    return done


def in_one_process(study, sites=()):
    """The note of the same study with these hospitals in one process; only its contribution is known there alone."""
    with Ledger.open(study.place.ledger) as ledger:
        state = _standing(ledger, study.read.study, study.place)
    wards = {site: Ward(study.read.sites[site], study.plan, study.read.data) for site in sites or study.SITES}
    for ward in wards.values():
        ward.load()
    return _found(Ready(study.plan, wards, state, "lineage", "token", {}))


def replace_federation(read, federation):
    return dataclasses.replace(read, operations=read.operations.model_copy(update={"federation": federation}))


def newest(study):
    with Ledger.open(study.place.ledger) as ledger:
        return ledger.newest_attempt()


# --- the same note ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masked", "holder"),
    [
        ("", ""),
        ('{ kind = "masked" }', ""),
        ('{ kind = "ckks", key_holder = "east" }', ""),
        ('{ kind = "ckks", holder = "trustee" }', "trustee"),
    ],
    ids=["plain", "masked", "encrypted", "third party"],
)
def test_the_note_of_hospitals_apart_is_that_of_one_process_to_the_last_bit(apart, masked, holder):
    study = driven(apart(policy=WILLING, masked=masked, holder=holder, operations=KEEPING if masked else ""))
    assert not (study.place.own / updates.FOLDER).exists()  # of hidden sums there are none to keep
    with study.run() as run:  # a champion of long ago, when hospitals have answered later rounds since
        run.ledger.act("promote", 1, "it serves well", "a person")
    note, said = asked_of(study)
    assert note["round"] == 1
    assert note == in_one_process(study) | {"contribution": {"none": HIDDEN if masked else UNKEPT}}
    assert note["masked"] == (3 if masked else 0)
    assert sorted(note["sites"]) == ([] if masked else ["east", "north", "south"])
    assert note["features"]
    assert said == ["asks east, north, south by mail: waits up to 10m for each answer"]
    assert [study.objects(site) for site in study.SITES] == [[], [], []]
    assert asked_of(study)[0] == note  # under masks: by other keys, of the same hospitals
    with study.run() as run:  # and the study goes on
        assert study.drive(run, rounds=ROUNDS + 1) == study.reference(ROUNDS + 1)[-2][1]


def test_by_default_a_hospital_keeps_the_histograms_of_groups_and_all_else_is_the_same(apart):
    study = driven(apart(policy="explanations = true\n"))
    note, alone = asked_of(study)[0], in_one_process(study)
    assert note["features"] == alone["features"]
    assert note["dependence"] == alone["dependence"]
    binned = {
        "auc",
        "auc_error",
        "average_precision",
        "calibration_slope",
        "calibration_intercept",
        "calibration_in_the_large",
    }
    for ours, theirs in zip(note["subgroups"], alone["subgroups"], strict=True):
        for mine, other in zip(ours["groups"], theirs["groups"], strict=True):
            assert mine["group"] == other["group"]
            assert "auc" not in mine["everywhere"]
            kept = {name: value for name, value in other["everywhere"].items() if name not in binned}
            assert {name: mine["everywhere"][name] for name in kept} == kept
    for error, sentence in ((0.5, "Which hospital is worst in AUC cannot be told"), (0.0, "The worst hospital, ")):
        blurred = {site: found | {"auc_error": error} for site, found in note["sites"].items()}
        page = "".join(
            Page(
                drawn.page(note | {"sites": blurred, "everywhere": note["everywhere"] | {"auc_error": error}}, "toy")
            ).text
        )
        assert sentence in page
        assert ("± 0.500" in page) == (error > 0)


# --- what each brought ------------------------------------------------------------------------------------------------


def test_where_updates_are_kept_what_each_hospital_brought_is_that_of_one_process(apart):
    study = apart(policy=WILLING, operations=KEEPING)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        study.visit(run, "train")
        asking = run.open("train")
        replies = study.ask(run, asking)
        run.ledger.commit = dying(
            lambda *_: None
        )  # the round is combined, and its updates are kept, but not in the ledger
        with pytest.raises(Killed):
            run.aggregate(asking, replies)
    driven(study)
    files = [file.name for file in sorted((study.place.own / updates.FOLDER).iterdir())]
    assert files == [f"{number:06}-000000.update" for number in range(1, ROUNDS + 1)]
    before = {name: (study.place.own / updates.FOLDER / name).read_bytes() for name in files}
    (note, said), alone = asked_of(study), in_one_process(study)
    found, wanted = note.pop("contribution"), alone.pop("contribution")
    assert note == alone
    assert said[1:] == ["asks them what the models of 7 sets of hospitals are worth, one by one"]
    assert (found["same"], found["orders"]) == (wanted["same"], wanted["orders"]) == (True, 0)
    assert found["whole"] == pytest.approx(wanted["whole"], rel=0, abs=1e-12)
    for site, share in wanted["shares"].items():
        assert found["shares"][site] == pytest.approx(share, rel=0, abs=1e-12)
    assert {name: (study.place.own / updates.FOLDER / name).read_bytes() for name in files} == before
    assert [study.objects(site) for site in study.SITES] == [[], [], []]

    def mute(site):
        letter = study.hospital(site).look()
        if (site, letter.request.ask) != ("north", "score"):
            study.hospital(site).answer(letter)

    short = study.read.operations.federation.model_copy(update={"deadline": "1s", "attempts": 1})
    kept, study.read = study.read, replace_federation(study.read, short)
    note, _ = asked_of(study, mute)
    assert note["contribution"]["again"] is True
    assert f"at least 3 of 3 hospitals to tell, found 2 (north: {AWAY})" in note["contribution"]["none"]
    study.read = kept
    (study.place.own / updates.FOLDER / files[1]).write_bytes(before[files[1]][:-1])
    assert asked_of(study)[0]["contribution"] == {"none": "the updates of round 2 cannot be read any more"}
    (study.place.own / updates.FOLDER / files[1]).unlink()
    assert asked_of(study)[0]["contribution"] == {"none": "the updates of round 2 were not kept"}


# --- who does not tell ------------------------------------------------------------------------------------------------


def test_who_may_not_and_who_is_away_are_named_and_the_figures_are_of_the_others(apart):
    study = driven(apart(policy=WILLING, sites=FOUR, operations=SHORT))
    study.set_policy("north", "")
    note, _ = asked_of(study, lambda site: None if site == "west" else study.agent(site))
    assert note["refused"] == {"north": MAY_NOT, "west": AWAY}
    assert note["asked"] == list(FOUR)
    others = in_one_process(study, ("east", "south"))
    assert note == others | {key: note[key] for key in ("asked", "refused", "contribution")}
    page = Page(drawn.page(note, "toy"))
    assert "These figures are of 2 of 4 hospitals: east, south." in "".join(page.text)
    assert f"Did not tell: north ({MAY_NOT}); west ({AWAY})." in "".join(page.text)
    file = study.home("north") / "data" / "north.csv"  # its people allow it, west is back, and north has other data
    before = file.read_text()
    file.write_text("\n".join(before.splitlines()[:-1]) + "\n")
    study.set_policy("north", WILLING)
    refused = asked_of(study)[0]["refused"]
    assert list(refused) == ["north"]
    assert "its data have changed since its gate let them through" in refused["north"]
    file.write_text(before)
    study.hospital("north", anew=True)
    assert asked_of(study)[0] == in_one_process(study) | {"contribution": {"none": UNKEPT}}


def test_a_hospital_that_its_gate_shut_out_is_not_asked_and_is_named(apart):
    study = apart(policy=WILLING, sites=FOUR)
    (study.home("west") / "data" / "west.csv").write_text("no,table\n1,2\n")
    driven(study)
    asked = []
    note, said = asked_of(study, lambda site: asked.append(site) or study.agent(site))
    assert note["refused"] == {"west": EXCLUDED}
    assert asked == ["east", "north", "south"]
    assert said[0].startswith("asks east, north, south by mail")


def test_too_few_who_tell_end_it_with_their_reasons_and_leave_nothing(apart):
    study = driven(apart(operations=SHORT))
    before = newest(study)
    with pytest.raises(
        QuorumError,
        match=r"at least 2 of 3 hospitals to tell, found 0 \(east: it answers nothing that explains .*; south: it",
    ):
        asked_of(study)
    assert newest(study) == before + 1  # all have said what they say: it is not asked twice
    with Ledger.open(study.place.ledger) as ledger:
        assert ledger.attempt() is None
        assert ledger.noted(NOTE) is None
        assert ledger.failures() == []
    assert [study.objects(site) for site in study.SITES] == [[], [], []]


def test_of_a_sum_that_was_opened_before_a_hospital_that_comes_later_is_left_out(apart):
    study = driven(apart(policy=WILLING, sites=FOUR, masked='{ kind = "masked" }', operations=SHORT))
    note, _ = asked_of(study, lambda site: None if site == "west" else study.agent(site))
    assert (note["masked"], note["refused"]) == (3, {"west": AWAY})
    assert asked_of(study)[0] == note | {"refused": {"west": WITHOUT}}


# --- kills ------------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_and_asked_again_it_is_the_same_note_and_nobody_works_twice(apart):
    study = driven(apart(policy=WILLING))
    wanted = in_one_process(study) | {"contribution": {"none": UNKEPT}}

    for where in ("question", "post", "look", "clear"):
        with pytest.raises(Killed):
            asked_of(study, killed=where)
        if where == "look":  # the agents are started again too
            for site in study.SITES:
                study.hospital(site, anew=True)
    assert asked_of(study)[0] == wanted
    for site in study.SITES:
        found = [it.outcome for it in study.hospital(site).book.asked(100) if it.ask == "explain"]
        assert found == ["again", "again", "again", "answered"]  # of the first question it never heard
    taken = [it for it in study.replies("taken") if it.site == "north"][-3:]
    assert len({it.attempt for it in taken}) == 3
    with Ledger.open(study.place.ledger) as ledger:
        assert [it.outcome for it in ledger.attempts()][-5:] == ["dropped"] * 5
        audit.verify(ledger, identity.public_key(study.key))


# --- a coordinator's folder -------------------------------------------------------------------------------------------


@pytest.fixture
def coordinator(apart, tmp_path, warm):
    """A coordinator's true folder whose study has run with these hospitals, and its hospitals."""
    study, home = apart(policy=WILLING), tmp_path / "coordinator"
    made = founding.found(home, study.study, "https://127.0.0.1:8443", "")
    (home / "keys" / "coordinator.key").write_text(study.key.hex() + "\n")
    for number, (name, key) in enumerate(study.keys.items(), 1):
        site = Site(
            name=name,
            experiment=str(number),
            user=f"site-{name}",
            status="active",
            key=identity.public_key(key).hex(),
            joined=1,
        )
        roster.write(home, site, None)
        mailbox = config.mail(home, made, str(number))
        (home / "mlflow" / "artifacts" / str(number)).mkdir(parents=True, exist_ok=True)
        (study.base / "mail" / name).rename(mailbox)
        (study.base / "mail" / name).symlink_to(mailbox)
    found = federation.read(home)
    warm(found.place.mlruns)
    found.place.own.mkdir(parents=True, exist_ok=True)
    study.read, study.place = dataclasses.replace(study.read, operations=found.folder.operations), found.place
    with found.opened(None, None) as run:
        study.drive(run)
    return home, study


@contextlib.contextmanager
def agents(study):
    """The hospitals' agents, at work."""
    over = threading.Event()

    def work():
        while not over.is_set():
            if not any(study.agent(site) for site in study.SITES):
                time.sleep(0.02)

    at_work = threading.Thread(target=work, daemon=True)
    at_work.start()
    try:
        yield
    finally:
        over.set()
        at_work.join(30)


def test_a_coordinators_folder_is_explained_by_its_hospitals_though_the_first_try_was_killed(coordinator, begun, capfd):
    home, study = coordinator
    before, first = newest(study), begun("explain", home)
    until = time.monotonic() + 60
    while not all(study.objects(site) for site in study.SITES):
        assert time.monotonic() < until, "no question came"
        time.sleep(0.02)
    first.kill()
    first.wait(30)
    assert newest(study) == before + 1
    for site in study.SITES:  # they answer nobody
        study.agent(site)
    capfd.readouterr()
    with agents(study):
        assert main(["explain", str(home), "--json"]) == 0
    said, err = capfd.readouterr()
    assert err == "fedrounds: asks east, north, south by mail: waits up to 10m for each answer\n"
    note = json.loads(said)
    wanted = in_one_process(study) | {"contribution": {"none": UNKEPT}}
    assert note == {"study": study.read.study.name, **json.loads(json.dumps(wanted))}
    (place,) = (study.place.mlruns / "artifacts").glob("*/artifacts/explain")
    files = {file.name: file.read_bytes() for file in place.iterdir()}
    assert files.keys() == {
        "contribution.csv", "dependence.csv", "explained.html", "features.csv", "groups.csv", "importance.svg",
    }  # fmt: skip
    page = Page(files["explained.html"].decode())
    assert "These figures are of 3 of 3 hospitals: east, north, south." in "".join(page.text)
    assert UNKEPT in "".join(page.text)
    asked = newest(study)
    assert main(["explain", str(home)]) == 0  # nobody is at work: nobody is asked
    out, err = capfd.readouterr()
    assert (out.startswith("for whom"), err) == (True, "")
    assert newest(study) == asked == before + 2
    assert {file.name: file.read_bytes() for file in place.iterdir()} == files
    with Ledger.open(study.place.ledger) as ledger:
        assert ledger.noted(NOTE)["token"] == _token(
            ledger, _standing(ledger, study.read.study, study.place), study.SITES
        )
        audit.verify(ledger, identity.public_key(study.key))


def test_while_another_runner_is_at_work_nobody_is_asked(apart):
    study = driven(apart(policy=WILLING))
    before = newest(study)
    with study.run(), pytest.raises(StateError, match="found one at work"):
        explain(study.read, study.place, study.SITES, study.run)
    assert newest(study) == before


def test_a_study_that_has_not_run_to_its_end_by_mail_is_refused_in_one_line(apart):
    study = apart(policy=WILLING)

    def ask(read=study.read):
        explain(read, study.place, study.SITES, study.run)

    with pytest.raises(StateError, match="found no closed round: `fedrounds run` starts it"):
        ask()
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        study.visit(run, "train")
    with pytest.raises(StateError, match="found round 1 not scored yet"):
        ask()
    with study.run() as run:
        study.gate(run)
        study.visit(run, "score")
    other = study.read.study.model_copy(update={"seed": study.read.study.seed + 1})
    with pytest.raises(StateError, match="expected the protocol"):
        ask(dataclasses.replace(study.read, study=type(other).model_validate(other.model_dump())))
    with study.run() as run:
        run.carrier = "process"
        asking = run.open("score")
        assert isinstance(asking, Asking)
        run.aggregate(asking, study.ask(run, asking))
    with pytest.raises(StudyError, match=r"found one that ran otherwise \(process\)"):
        ask()
