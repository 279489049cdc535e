"""Differential privacy where hospitals are apart: real agents' folders, ledgers and mailboxes, and an agent that dies at the worst moment."""

from __future__ import annotations

import os

import pytest

from fedrounds.core.answer import handle
from fedrounds.core.privacy import private
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.privacy.forecast import forecast
from fedrounds.tasks import ward as wards
from fedrounds.tasks.preview import samples

PRIVATE = {
    'weights = "patients"': 'weights = "uniform"',
    ", epochs = 2, batch = 32": "",
    "[preprocess]": '[privacy]\ndp = { unit = "patient", epsilon = 4.0, patients = 200, rounds = 10 }\n\n[preprocess]',
}


@pytest.fixture
def study(apart):
    return apart(protocol=PRIVATE)


def spent(study, site="north"):
    return study.hospital(site).budgets.spent(site).get(study.plan.digest, [])


def test_what_the_ledgers_hold_after_a_run_is_what_was_forecast(study):
    with study.run() as run:
        study.drive(run)
        rounds = run.state.round
        told = run.ledger.visits()[-1].record
    foreseen = forecast(study.plan, 3, rounds)
    for site in study.SITES:
        assert epsilon(spent(study, site), study.plan.study.privacy.dp.budget.delta) == pytest.approx(
            foreseen.epsilons[-1]
        )
        assert study.hospital(site).budgets.broken() == 0
    assert told["privacy"]["epsilon"] == pytest.approx(foreseen.epsilons[-1])
    assert (told["metrics"], told["histogram"], told["training"]) == ({}, [], {})
    assert all("training" not in site and "metrics" not in site for site in told["sites"].values())


def test_an_agent_that_dies_while_it_works_has_spent_and_one_that_dies_before_it_sends_has_spent_once(
    study, monkeypatch
):
    def dies(*_):
        raise KeyboardInterrupt

    with study.run() as run:
        study.gate(run)
        asking = run.open("statistics")
        monkeypatch.setattr(wards, "handle", dies)
        with pytest.raises(KeyboardInterrupt):
            study.ask(run, asking, ["north"])
        one = private.events(study.plan.study, "statistics")
        study.hospital("north", anew=True)
        assert spent(study) == [*one], "nothing left, and it counts all the same"
        monkeypatch.setattr(wards, "handle", handle)
        monkeypatch.setattr(study.hospital("north").book, "keep", dies)
        with pytest.raises(KeyboardInterrupt):
            study.agent("north")
        study.hospital("north", anew=True)
        assert spent(study) == [*one, *one]
        answer = study.agent("north")
        assert spent(study) == [*one, *one], "the bytes of the second time are sent"
        assert answer.message == study.hospital("north").budgets.reply(
            study.hospital("north").budgets._db.execute("SELECT question FROM replies").fetchone()[0]
        )


def test_a_hospitals_own_budget_over_all_studies_is_heeded_and_the_refusal_is_told_with_its_numbers(study):
    study.set_policy("north", "epsilon = 1.6\ndelta = 1e-4\n")
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        closed = study.visit(run, "train")
    assert list(closed.refused) == ["north"]
    assert closed.refused["north"].startswith(
        "its privacy budget would be exceeded: the site may spend ε = 1.6 (δ = 0.0001) on its rows"
    )
    assert len(spent(study)) == 1
    assert len(spent(study, "east")) == 2


def test_a_sample_shows_no_rows_since_it_would_cost_as_an_answer_does(study):
    assert [sample.ask for sample in samples(study.hospital("north"))] == ["gate"]
    assert spent(study) == []
    assert os.stat(study.home("north") / "state" / "budget.db").st_mode & 0o777 == 0o600
