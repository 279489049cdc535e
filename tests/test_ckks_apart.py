"""A study that encrypts its sums, with hospitals that are apart: the model of one process, and only sums, and those on record, are opened."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest

from fedrounds.core import identity
from fedrounds.core.errors import QuorumError
from fedrounds.core.masked import TOGETHER
from fedrounds.core.messages import Reply, decode, encode
from fedrounds.core.plan import build
from fedrounds.core.privacy import ckks
from fedrounds.core.privacy import vault as vaults
from fedrounds.core.privacy.log import opened
from fedrounds.core.privacy.settings import Masked, Privacy
from fedrounds.core.round import Asking
from fedrounds.core.simulate import simulate
from fedrounds.tasks import witness
from fedrounds.tasks.preview import samples
from fedrounds.tasks.ward import Ward

CKKS = '{ kind = "ckks", key_holder = "north" }'
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


def up_to(study, run, ask, agent=None):
    """A training round as it stands before it asks for something."""
    asking = run.open("train")
    while asking.request.ask != ask:
        asking = run.aggregate(asking, study.ask(run, asking, agent=agent))
    return asking


def safe(study, site="north"):
    return vaults.load(bytes.fromhex(study.hospital(site).book.fact(f"vault {study.plan.digest}")))


def test_hospitals_apart_train_the_model_of_one_process_which_is_that_of_masks(apart):
    study = apart(masked=CKKS)
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
    assert [it.outcome for it in study.replies()] == ["taken"] * len(study.replies())
    masks = build(study.read.study.model_copy(update={"privacy": Privacy(protect=Masked(kind="masked"))}))
    data, start = cohorts(study), study.plan.start(None)
    hidden = list(simulate(masks, data, 3, rng_of=study.plan.rng))
    assert not np.any(start.theta)  # of a logistic model: it starts from nothing, whatever the seed
    np.testing.assert_array_equal(hidden[-1].state.theta, run.state.theta)
    plain = build(study.read.study.model_copy(update={"privacy": Privacy()}))
    open_ = list(simulate(plain, data, 3, rng_of=study.plan.rng))
    assert np.abs(run.state.theta - open_[-1].state.theta).max() < 1e-6


def test_each_step_waits_for_whom_it_needs(apart):
    study = apart(masked=CKKS)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking, waited = run.open("train"), {}
        while isinstance(asking, Asking):
            question = run.question(asking)
            waited[asking.request.ask] = run.enough(question)
            asking = run.aggregate(asking, study.ask(run, asking))
    assert waited == {"train": False, "open": False}  # nobody has answered yet


def test_an_agent_that_is_started_anew_before_every_look_changes_no_bit(apart):
    study = apart(masked=CKKS)

    def agent(site):
        hospital = study.hospital(site, anew=True)
        letter = hospital.look()
        if letter is not None:
            hospital.answer(letter)

    with study.run() as run:
        assert study.drive(run, agent=agent) == study.reference()[-1][1]


def test_an_agent_killed_after_it_stored_and_before_it_sent_sends_the_same_bytes(apart):
    study = apart(masked=CKKS)
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
    assert set(told) == {"gate", "keys", "shares", "statistics", "train", "score", "open"}
    assert all(same for asked in told.values() for same in asked)
    assert len(told["shares"]) == 1  # of the key holder alone


def test_a_coordinator_that_starts_again_takes_new_keys_and_comes_to_the_same_model(apart):
    study = apart(masked=CKKS)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        study.ask(run, up_to(study, run, "open"))  # opened, and then it dies
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
    asked = [it.ask for it in study.hospital("north").book.asked(200)]
    assert asked.count("keys") == asked.count("shares") == 2


@pytest.mark.parametrize("ask", ["keys", "train"])
def test_one_site_of_four_is_lost_at_any_phase_and_the_sum_of_the_others_is_opened(apart, ask):
    study = apart(masked=CKKS, sites=FOUR)
    agent = deaf(study, ("west", ask))
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics", agent)
        closed = study.visit(run, "train", agent)
    assert closed.heard == FOUR[:3]
    assert closed.scores.keys() == {TOGETHER}


def test_a_key_holder_that_is_away_leaves_the_sum_closed_and_the_study_goes_on_when_it_is_back(apart):
    study = apart(masked=CKKS, sites=FOUR)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        with pytest.raises(QuorumError, match=r"expected the key holder 'north' to answer.*it is away"):
            study.visit(run, "train", deaf(study, ("north", "open")))
        assert study.visit(run, "train").heard == FOUR


def test_a_sum_that_no_log_bears_out_stays_closed(apart, monkeypatch):
    study = apart(masked=CKKS)
    monkeypatch.setattr(witness, "shown", lambda *_: {})  # a coordinator that shows nobody its log
    with study.run() as run:
        study.gate(run)
        with pytest.raises(QuorumError, match="the coordinator shows no log, and the key holder opens a sum only when"):
            study.visit(run, "statistics")
        assert safe(study).told == {}
        monkeypatch.setattr("fedrounds.tasks.hospital.opens", lambda _: False)  # a build without the check
        run.roll()
        study.visit(run, "statistics")
    assert len(safe(study).told) == 2


def test_what_is_opened_stands_in_the_log_with_whose_it_is(apart):
    study = apart(masked=CKKS)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = up_to(study, run, "open")
        study.ask(run, asking)
        lines, _ = run.ledger.log(0, len(run.ledger.log_tree()))
    said = [one for line in lines for one in opened(line, identity.public_key(study.key))["subject"]]
    assert {"name": "north", "digest": {"sha256": sha256(encode(asking.request)).hexdigest()}} in said


def test_a_round_that_was_opened_is_opened_of_no_other_sites_so_no_difference_tells_of_one(apart):
    study = apart(masked=CKKS, sites=FOUR)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        study.ask(run, up_to(study, run, "open"))
        run.ledger.note("opened", {})  # a coordinator that forgets on purpose, and says that the west did not answer
        asking = up_to(study, run, "open", deaf(study, ("west", "train")))
        with pytest.raises(QuorumError, match="their difference would be one site's"):
            run.aggregate(asking, study.ask(run, asking))


def test_the_coordinator_opens_nothing_of_what_passes_its_hands_and_the_holder_gets_sums_alone(apart):
    study = apart(masked=CKKS, sites=FOUR)
    got, ciphers = [], {}

    def agent(site):
        letter = study.hospital(site).look()
        if letter is None:
            return
        answer = study.hospital(site).answer(letter)
        if letter.request.ask == "train":
            ciphers[site] = decode(answer.message, Reply).arrays["cipher"]
        if site == "north":
            got.append(letter.request)

    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics", agent)
        ciphers.clear()
        study.visit(run, "train", agent)
    secret = safe(study).secret
    own = {site: ckks.decrypt(secret, cipher, cipher.shape[0] * ckks.SLOTS) for site, cipher in ciphers.items()}
    assert len({bytes(numbers) for numbers in own.values()}) == 4
    asked = [request for request in got if request.ask == "open"][-1]
    total = ckks.decrypt(secret, asked.arrays["sum"], int(own["east"].size))
    np.testing.assert_array_equal(total, sum(own.values()))
    sent = [array.tobytes() for request in got for array in request.arrays.values()]
    assert not any(cipher.tobytes() in data for cipher in ciphers.values() for data in sent)
    for site in ("east", "south", "west"):
        assert safe(study, site).secret == b""


def test_a_preview_shows_what_would_leave_under_encryption(apart):
    study = apart(masked=CKKS)
    hospital = study.hospital("east")
    with study.run() as run:
        study.gate(run)
    shown = {sample.ask: decode(sample.message, Reply) for sample in samples(hospital) if sample.ask != "gate"}
    assert set(shown) == {"keys", "statistics", "train", "score"}
    assert not any(reply.refusal for reply in shown.values())
    assert set(shown["train"].arrays) == {"cipher", "tag", "signature"}
