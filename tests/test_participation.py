"""Who is asked in a round, whose reply counts, how far each walks: drawn, kept in the ledger, and the same after a crash."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from lives import Killed, live
from pydantic import ValidationError

from fedrounds.cli.init import init
from fedrounds.cli.main import main
from fedrounds.core import catalogue
from fedrounds.core.answer import handle
from fedrounds.core.asking import dump, load
from fedrounds.core.errors import QuorumError, StudyError
from fedrounds.core.participation import Participation, Uneven, chosen, draw, order
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.round import close_exchange, open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.state import Champion
from fedrounds.core.study import Study
from fedrounds.ledger import Ledger, Receipt
from fedrounds.reports.round_words import markdown
from fedrounds.reports.summary import lines
from fedrounds.tasks import folder as folders
from fedrounds.tasks.preview import samples
from fedrounds.tasks.record import record
from fedrounds.tasks.ward import Ward

RATE, EPOCHS = 0.1, 5
NAMES = tuple("abcdefghij")
SAMPLED = "participation = { fraction = 0.5, over_selection = 1.5 }\nlocal = {"  # of toy's three or four hospitals: 2 count, 3 are asked


def study(algorithm, **words):
    """Plain numbers as they are, every row in training."""
    return Study.model_validate(
        {
            "name": "toy",
            "target": {"kind": "regression", "column": "y"},
            "features": [{"type": "number", "name": f"x{j}", "range": [-9, 9]} for j in range(3)],
            "preprocess": {"standardise": "none"},
            "validation": {"fraction": 0.0},
            "model": {"kind": "linear", "intercept": False},
            "algorithm": algorithm,
        }
        | words
    )


def algorithm(preset="fedavg", participation=None, **local):
    """Full-batch steps."""
    words = {"preset": preset, "local": {"rate": RATE, "epochs": EPOCHS, "batch": "all", **local}}
    return words | ({"participation": participation} if participation is not None else {})


def sites(names=NAMES, seed=0):
    """Hospitals of 10, 13, 16, … patients, each with coefficients of its own."""
    rng = np.random.default_rng(seed)
    data = {}
    for number, name in enumerate(names):
        X = rng.normal(size=(10 + 3 * number, 3)) * rng.uniform(0.8, 1.5, 3)
        y = X @ rng.normal(scale=2.0, size=3) + rng.normal(scale=0.1, size=len(X))
        data[name] = Rows(X, y, X[:0], y[:0])
    return data


def descended(rows, w, epochs=EPOCHS):
    """Full-batch descent of half the mean squared error."""
    for _ in range(epochs):
        w = w - RATE * rows.X.T @ (rows.X @ w - rows.y) / len(rows.y)
    return w


# --- who is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "there", "goal", "asked"),
    [
        ({}, 7, 7, 7),
        ({"fraction": 0.3}, 10, 3, 3),
        ({"fraction": 0.31}, 10, 4, 4),
        ({"fraction": 0.1}, 4, 1, 1),
        ({"fraction": 0.1, "minimum": 3}, 10, 3, 3),
        ({"fraction": 0.1, "minimum": 3}, 2, 2, 2),
        ({"fraction": 0.5, "over_selection": 1.3}, 20, 10, 13),
        ({"fraction": 0.5, "over_selection": 1.3}, 5, 3, 4),
        ({"fraction": 0.9, "over_selection": 1.3}, 10, 9, 10),
    ],
)
def test_a_round_wants_a_share_of_the_sites_and_asks_more(words, there, goal, asked):
    of = Participation(**words)
    assert (of.goal(there), of.asked(there)) == (goal, asked)


def test_the_draw_is_of_study_round_and_names_alone():
    of = Participation(fraction=0.3)
    assert draw(of, "d1", 1, NAMES, 2) == (("c", "g", "i"), 3, 2)
    assert draw(of, "d1", 1, reversed(NAMES), 2) == draw(of, "d1", 1, NAMES, 2)
    assert draw(of, "d1", 2, NAMES, 2) != draw(of, "d1", 1, NAMES, 2) != draw(of, "d2", 1, NAMES, 2)
    assert draw(Participation(), "d1", 1, NAMES, 2) == (NAMES, 0, 2)


def test_each_set_of_sites_is_drawn_as_often_as_any_other_and_each_site_once():
    drawn = Counter(order("d1", number, "abcde")[:2] for number in range(10_000))
    assert len(drawn) == 20, "every ordered pair of two different sites"
    assert max(abs(count - 500) for count in drawn.values()) < 4.5 * (10_000 * 0.05 * 0.95) ** 0.5
    pairs = Counter(frozenset(pair) for pair in drawn.elements())
    assert set(pairs) == {frozenset(pair) for pair in combinations("abcde", 2)}


def test_a_site_that_leaves_moves_no_other_past_another():
    for number in range(50):
        everybody = order("d1", number, NAMES)
        assert order("d1", number, set(NAMES) - {"d"}) == tuple(site for site in everybody if site != "d")


def test_a_quorum_above_what_a_round_wants_is_refused():
    with pytest.raises(
        QuorumError, match="expected a quorum of at most 3 sites, as many as a round of 10 wants, found 4: lower"
    ):
        draw(Participation(fraction=0.3), "d1", 1, NAMES, 4)
    assert draw(Participation(minimum=5), "d1", 1, NAMES, 2).quorum == 5


# --- what a round makes of them ---------------------------------------------------------------------------------------


def test_sampled_averaging_is_algorithm_1_of_mcmahan():
    of, data = study(algorithm(participation={"fraction": 0.3})), sites()
    *_, closed = simulate(build(of), data, 6)
    w = np.zeros(3)
    for number in range(1, 7):
        drawn = order(of.digest, number, data)[:3]
        n = sum(len(data[k].y) for k in drawn)
        w = sum(len(data[k].y) / n * descended(data[k], w) for k in sorted(drawn))
    np.testing.assert_allclose(closed.state.theta, w, rtol=1e-13)


def test_of_more_replies_than_wanted_the_first_of_the_draw_count_and_who_is_away_is_stood_in_for():
    of, data = study(algorithm(participation={"fraction": 0.4, "over_selection": 1.5})), sites()
    away = order(of.digest, 1, data)[1]
    first, *_ = simulate(build(of), data, 1, lost=lambda _, site: site == away)
    drawn = order(of.digest, 1, data)
    assert (set(first.asked), first.goal) == (set(drawn[:6]), 4)
    assert set(first.training) == {drawn[0], *drawn[2:5]}


def test_without_scores_too_it_is_known_who_counted():
    """Under differential privacy; a reply that does not count has cost its site as much as one that does."""
    words = {"preset": "fedavg", "local": {"rate": RATE}, "participation": {"fraction": 0.3, "over_selection": 2.0}}
    dp = {"unit": "patient", "epsilon": 8.0, "patients": 10, "rounds": 2}
    of, data = study(words, weights="uniform", privacy={"dp": dp}), sites()
    first, second, last = simulate(build(of), data, 2)
    for number, closed in ((1, first), (2, second)):
        drawn = order(of.digest, number, data)
        assert (closed.asked, closed.counted) == (tuple(sorted(drawn[:6])), tuple(sorted(drawn[:3])))
        assert closed.training == closed.scores == {}
    assert last.counted == ()
    wards = dict.fromkeys(NAMES, SimpleNamespace(bytes_in=0, bytes_out=0))
    found = record(build(of), first, wards, {}, [], None, {})
    assert tuple(found["sites"]) == first.counted


def test_fewer_replies_than_the_minimum_close_no_round():
    of = study(algorithm(participation={"fraction": 0.4, "minimum": 3}))
    lost = set(order(of.digest, 1, NAMES)[:2])
    with pytest.raises(QuorumError, match="expected answers of at least 3 sites, found 2 of 4"):
        list(simulate(build(of), sites(), 1, lost=lambda _, site: site in lost))


@pytest.mark.parametrize("preset", ["scaffold", "feddyn"])
def test_rules_that_remember_end_at_the_pooled_optimum_though_each_round_asks_half(preset):
    more = {"alpha": 0.5} if preset == "feddyn" else {}
    of, data = study(algorithm(preset, {"fraction": 0.5, "over_selection": 1.5}, **more)), sites("abcd")
    *_, closed = simulate(build(of), data, 700)
    X, y = (np.concatenate([getattr(rows, part) for rows in data.values()]) for part in ("X", "y"))
    np.testing.assert_allclose(closed.state.theta, np.linalg.lstsq(X, y, rcond=None)[0], atol=1e-6)


def test_only_training_draws_and_neither_bytes_nor_order_change_a_bit():
    of = study(algorithm(participation={"fraction": 0.3, "over_selection": 2.0}))
    plain, wired, turned = (
        list(simulate(build(of), data, 4, wire=wire))
        for data, wire in ((sites(), False), (sites(), True), (dict(reversed(sites().items())), False))
    )
    assert [it.state.model_digest for it in plain] == [it.state.model_digest for it in wired]
    assert [it.state.model_digest for it in plain] == [it.state.model_digest for it in turned]
    assert plain[-1].ask == "score"
    assert set(plain[-1].scores) == set(NAMES)
    assert [len(it.scores) for it in plain[:-1]] == [3] * 4


def test_a_champion_is_scored_beside_the_model_only_where_all_are_asked():
    plan = build(study(algorithm(participation={"fraction": 0.3})))
    state = replace(plan.start(plan.no_statistics()), round=3, champion=Champion(1, np.ones(3)))
    asked = {ask: set(open_round(state, plan, ask, NAMES).request.arrays) for ask in ("train", "score")}
    assert asked["score"] - asked["train"] == {"champion"}
    everybody = build(study(algorithm()))
    assert "champion" in open_round(replace(state, study=everybody.digest), everybody, "train", NAMES).request.arrays


# --- how far each walks -----------------------------------------------------------------------------------------------


def test_epochs_by_speed_take_each_site_about_as_long_as_the_median():
    speeds = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0, "e": 0.2}
    assert chosen(Uneven(least=1, most=20), 6, speeds) == {"a": 12, "b": 6, "c": 4, "d": 1, "e": 20}
    assert chosen(Uneven(least=2, most=8), 6, speeds) == {"a": 8, "b": 6, "c": 4, "d": 2, "e": 8}
    assert chosen(Uneven(least=1, most=8), 6, {}) == {}


def asked_for(plan, state, data, epochs):
    """A round whose sites are asked for so many epochs."""
    asking = replace(open_round(state, plan, "train", data), epochs=epochs)
    again = load(dump(asking))
    assert (dump(again), again.epochs, again.goal) == (dump(asking), epochs, asking.goal)
    replies = [handle(asking.request_to(k), {}, data[k], plan, OPEN, k, plan.rng(1, k))[1] for k in asking.sites]
    return close_exchange(asking, plan, replies)


def test_uneven_epochs_are_normalised_by_fednova():
    of, data = study(algorithm("fednova", {"pace": {"most": 9}})), sites("abc")
    plan, epochs = build(of), {"a": 1, "b": 9}  # the speed of c is not known: it walks the study's
    closed = asked_for(plan, plan.start(plan.no_statistics()), data, epochs)
    tau, n = {**epochs, "c": EPOCHS}, sum(len(rows.y) for rows in data.values())
    p = {k: len(rows.y) / n for k, rows in data.items()}
    d = {k: descended(rows, np.zeros(3), tau[k]) / tau[k] for k, rows in data.items()}
    expected = sum(p[k] * tau[k] for k in data) * sum(p[k] * d[k] for k in data)
    np.testing.assert_allclose(closed.state.theta, expected, rtol=1e-13)
    assert closed.epochs == epochs


def test_uneven_epochs_end_at_the_optimum_of_all_by_fednova_and_not_by_a_plain_mean():
    data, epochs, rate = sites("ab", seed=5), {"a": 1, "b": 8}, 0.01
    of = study(algorithm("fednova", {"pace": {"most": 8}}, rate=rate), weights="uniform")
    *_, closed = simulate(build(of), data, 1500, epochs=lambda _: epochs)
    hessian = {k: rows.X.T @ rows.X / len(rows.y) for k, rows in data.items()}
    slope = {k: rows.X.T @ rows.y / len(rows.y) for k, rows in data.items()}

    def optimum(weights):
        return np.linalg.solve(
            sum(w * hessian[k] for k, w in weights.items()), sum(w * slope[k] for k, w in weights.items())
        )

    mean = np.zeros(3)
    for _ in range(1500):
        walked = dict.fromkeys(data, mean)
        for k, steps in epochs.items():
            for _ in range(steps):
                walked[k] = walked[k] - rate * (hessian[k] @ walked[k] - slope[k])
        mean = sum(walked.values()) / 2
    of_all, of_the_quick = optimum({"a": 0.5, "b": 0.5}), optimum({k: steps / 9 for k, steps in epochs.items()})
    apart = np.linalg.norm(of_all - of_the_quick)
    assert np.linalg.norm(closed.state.theta - of_all) < 0.05 * apart
    assert np.linalg.norm(mean - of_the_quick) < 0.05 * apart


@pytest.mark.parametrize("epochs", [0, 10])
def test_a_site_refuses_more_or_fewer_epochs_than_the_study_allows(epochs):
    plan, data = build(study(algorithm("fednova", {"pace": {"most": 9}}))), sites("abc")
    closed = asked_for(plan, plan.start(plan.no_statistics()), data, {"b": epochs})
    assert closed.refused == {"b": f"expected to be asked for 1 to 9 epochs, as the study says, was asked for {epochs}"}
    assert set(closed.training) == {"a", "c"}


def test_where_no_speed_is_known_pace_changes_no_bit():
    even, uneven = (
        list(
            simulate(
                build(study(algorithm("fednova", words))), sites("abc"), 3, rng_of=lambda *_: np.random.default_rng(1)
            )
        )
        for words in (None, {"pace": {"most": 9}})
    )
    assert even[-1].state.theta.tobytes() == uneven[-1].state.theta.tobytes()


# --- the study's words ------------------------------------------------------------------------------------------------


def test_a_study_without_the_word_keeps_its_digest_and_so_does_one_that_writes_the_defaults_out():
    without = study(algorithm())
    assert "participation" not in without.model_dump(mode="json")["algorithm"]
    assert study(algorithm(participation={"fraction": 1.0, "minimum": 1})).digest == without.digest
    masked = {"privacy": {"protect": {"kind": "masked"}}}
    assert study(algorithm(participation={}), **masked).digest == study(algorithm(), **masked).digest
    digests = {study(algorithm(participation=words)).digest for words in ({"minimum": 2}, {"fraction": 0.5})}
    assert without.digest not in digests
    assert len(digests) == 2
    again = Study.model_validate(study(algorithm(participation={"fraction": 0.5})).model_dump(mode="json"))
    assert again.digest in digests


@pytest.mark.parametrize(
    ("given", "words", "said"),
    [
        (algorithm(participation={"fraction": 0.5}), {"privacy": {"protect": {"kind": "masked"}}}, "masks open no sum of few"),
        ({"preset": "exact", "participation": {"fraction": 0.5}}, {}, "no round of it asks some"),
        (algorithm("krum", {"fraction": 0.5}), {"weights": "uniform"}, "minimum to 5 or more"),
        (algorithm("afl", {"fraction": 0.5}), {"weights": "uniform"}, "weighs sites by the losses of all"),
        (algorithm(participation={"over_selection": 1.3}), {}, "this one wants all"),
        (algorithm(participation={"pace": {"most": 9}}), {}, "'sgd' does not undo it"),
        (algorithm("scaffold", {"pace": {"most": 9}}), {}, "'scaffold' does not undo it"),
        (algorithm("fednova", {"pace": {"most": 4}}), {}, "expected algorithm.local.epochs from 1 to 4"),
        (algorithm("fednova", {"pace": {"most": 4}}, epochs=1, steps=3), {}, "pace chooses epochs"),
        (algorithm(participation={"pace": {"least": 3, "most": 2}}), {}, "expected `least` of at most `most`"),
        (algorithm(participation={"fraction": 0.0}), {}, "greater than 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_reason(given, words, said):
    with pytest.raises(ValidationError, match=said):
        study(given, **words)


# --- one process, killed and run again --------------------------------------------------------------------------------


def test_a_run_that_dies_in_its_rounds_asks_the_same_sites_again_and_only_the_closing_visit_promotes(tmp_path, capfd):
    init(tmp_path / "toy", as_json=True)
    words = tmp_path / "toy" / "study.toml"
    words.write_text(words.read_text().replace("local = {", SAMPLED))
    file = tmp_path / "toy" / "operations.toml"
    file.write_text(file.read_text().replace("quorum = 3 ", "quorum = 2 "))
    read = folders.read(tmp_path / "toy")
    place = folders.state_of(tmp_path / "toy", "toy", tmp_path / "state")
    folders.prepare(place, fresh=False)
    visits, heard = ["statistics", *["train"] * 4, "score"], []
    for answers in (2, 4, 5):
        with pytest.raises(Killed):
            live(read, place, visits, answers, folds=False, heard=heard)
    found, plan = live(read, place, visits, 100, folds=False, heard=heard), build(read.study)
    wards = {site: Ward(file, plan, read.data) for site, file in read.sites.items()}
    *_, closed = simulate(plan, {site: ward.cohort for site, ward in wards.items() if ward.load()}, 4, quorum=2)
    assert found.theta.tobytes() == closed.state.theta.tobytes()
    assert len(set(heard)) == len({(number, ask) for number, ask, _ in heard}), "asked again, a round asks the same"
    with Ledger.open(place.ledger) as ledger:
        trained, decided = ledger.visits(ask="train"), ledger.promotions()
        noted = [(entry.record["participation"]["goal"], entry.record["participation"]["asked"]) for entry in trained]
        assert [(it.round, it.promoted, it.visit) for it in decided] == [(4, True, 6)]
    assert noted == [(2, sorted(order(plan.digest, number, list(read.sites))[:3])) for number in (1, 2, 3, 4)]
    assert all(len(entry.record["sites"]) == 2 for entry in trained)


# --- hospitals apart --------------------------------------------------------------------------------------------------


def sampled(apart, **more):
    """Three hospitals, of which a round asks all and closes with the first two."""
    return apart(protocol={"local = {": SAMPLED}, **more)


def kept(study):
    with Ledger.open(study.place.ledger) as ledger:
        return [(entry.round, sorted(entry.record["sites"])) for entry in ledger.visits(ask="train")]


def replayed(study, rounds, **more):
    """Digests of the same study in one process, where nobody but those whom the ledger names is heard in its rounds."""
    counted = dict(kept(study))
    wards = [Ward(site, study.plan, study.read.data) for site in study.read.sites.values()]
    cohorts = {ward.name: ward.cohort for ward in wards if ward.load()}
    lost = lambda request, site: request.ask == "train" and site not in counted[request.round]  # noqa: E731
    return [(it.state.round, it.state.model_digest) for it in simulate(study.plan, cohorts, rounds, lost=lost, **more)]


def test_a_round_closes_when_its_goal_has_answered_and_what_comes_later_is_recorded_and_in_no_model(apart):
    study = sampled(apart)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        assert (asking.sites, asking.goal) == (("east", "north", "south"), 2)
        question = run.question(asking)
        run.post(question, asking.sites)
        replies = {}
        for site in ("south", "east", "north"):  # in this order they answer
            assert run.enough(question) == (site == "north")
            study.agent(site)
            replies[site] = run.look(site, question)
        assert replies.pop("north") is None
        assert run.enough(question)
        closed = run.aggregate(asking, [replies[site] for site in sorted(replies)])
        assert sorted(closed.training) == ["east", "south"]
        study.visit(run, "score")
    assert [(row.site, row.reason) for row in study.replies("late")] == [
        ("north", "it came after as many as the round wants")
    ]
    assert study.seen == replayed(study, 1)


def test_a_straggler_keeps_nobody_waiting_and_its_late_reply_is_in_no_later_model(apart):
    """`south` answers each question when it has closed: at its goal of three, and the second, which `west` leaves out too, at its deadline."""
    from fedrounds.flows import by_mail

    words = {"local = {": "participation = { fraction = 0.75, minimum = 2, over_selection = 1.3 }\nlocal = {"}
    more = '\n[federation]\ndeadline = "1s"\nattempts = 1\npoll = 0.01\n'
    study = apart(protocol=words, operations=more, sites=("east", "north", "south", "west"))
    prompt = [("east", "north", "west"), ("east", "north")]

    async def plainly(run, what, *arguments):
        found = await what.fn(*arguments)
        for site in prompt.pop(0) if what.name == "ask" else ():
            study.agent(site)
        return found

    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        straggler = study.hospital("south")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(by_mail, "do", plainly)
            while prompt:
                asking = run.open("train")
                assert (len(asking.sites), asking.goal, asking.quorum) == (4, 3, 2)
                run.aggregate(asking, asyncio.run(by_mail.carried(run, asking)))
                letter = straggler.look()
                assert letter.request.round == run.state.round, "it is of a question that has closed"
                straggler.answer(letter)
        study.visit(run, "score")
    assert kept(study) == [(1, ["east", "north", "west"]), (2, ["east", "north"])]
    late = [(row.site, row.reason) for row in study.replies("late")]
    assert late == [("south", "it came after its question had closed")] * 2
    assert study.seen == replayed(study, 2)


def test_who_had_answered_before_a_crash_counts_after_it_however_they_come_again(apart):
    study = sampled(apart)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        study.ask(run, asking, ("south", "north"))  # both have a place, and the coordinator dies
    with study.run() as run:
        study.gate(run)
        asking = run.open("train")
        question = run.question(asking)
        run.post(question, asking.sites)
        for site in ("east", "north"):
            study.agent(site)
            assert (run.look(site, question) is None) == (site == "east")
        assert not run.enough(question), "the round waits for whom it had heard"
        study.agent("south")
        assert run.look("south", question) is not None
        assert run.enough(question)
    assert [row.site for row in study.replies("late")] == ["east"]


def test_a_preview_shows_a_reply_to_a_round_that_one_hospital_alone_would_not_close(apart):
    study = apart(protocol={"local = {": "participation = { fraction = 0.5, minimum = 3 }\nlocal = {"})
    asked = [it.ask for it in samples(study.hospital("north"))]
    assert asked == ["gate", "statistics", "statistics", "profile", "train", "score"]


def test_a_question_that_failed_gives_its_places_back(apart):
    study = sampled(apart)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        with pytest.raises(QuorumError, match="found 1 of 3"):
            run.aggregate(asking, study.ask(run, asking, ("south",)))
        closed = run.aggregate(asking, study.ask(run, asking, ("east", "north", "south")))
        assert sorted(closed.training) == ["east", "north"]


def test_epochs_follow_the_speed_that_the_ledger_has_and_a_replay_of_the_ledger_gives_the_same_bits(apart):
    words = {
        'preset = "fedavg"': 'preset = "fednova"',
        "local = {": "participation = { pace = { most = 6 } }\nlocal = {",
    }
    study = apart(protocol=words)

    def one_by_one(run):
        """`south` answers while the others wait behind it: what each took is the ledger's to say."""
        asking = run.open("train")
        question = run.question(asking)
        run.post(question, asking.sites)
        replies = {}
        for site in ("south", "east", "north"):
            study.agent(site)
            replies[site] = run.look(site, question)
        run.aggregate(asking, [replies[site] for site in sorted(replies)])
        return asking.epochs, run.ledger.visits(ask="train")[-1].record

    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        usual, pace = run.plan.study.averaging.local.epochs, run.plan.study.participation.pace
        epochs, record = one_by_one(run)
        its = record["participation"]
        assert (epochs, its["epochs"]) == ({}, dict.fromkeys(study.SITES, usual))
        assert its["seconds"]["south"] < its["seconds"]["east"] < its["seconds"]["north"]
        assert its["per_epoch"] == {site: seconds / usual for site, seconds in its["seconds"].items()}
        epochs = run.open("train").epochs
        assert epochs == chosen(pace, usual, its["per_epoch"])
        assert epochs["east"] == usual, "the median site walks the study's"
        study.ask(run, run.open("train"), ("north",))  # the run dies
    with study.run() as run:
        study.gate(run)
        again, record = one_by_one(run)
        assert again == epochs, "after a crash the same are asked for"
        assert {site: found["training"]["epochs"] for site, found in record["sites"].items()} == epochs
        assert record["participation"]["seconds"] == {}, "who is asked again answers from memory, which says nothing"
        assert record["participation"]["per_epoch"] == its["per_epoch"]
        study.visit(run, "score")
        asked = {entry.round: entry.record["participation"]["epochs"] for entry in run.ledger.visits(ask="train")}
    assert study.seen == replayed(study, 2, epochs=asked.__getitem__)


# --- the ledger, the folder, the page ---------------------------------------------------------------------------------


def test_the_ledger_knows_who_answered_first_over_the_tries_of_a_round(ledger_at):
    of = study(algorithm(participation={"fraction": 0.5}))
    state = build(of).start(build(of).no_statistics())
    asked = dump(open_round(state, build(of), "train", NAMES))
    with Ledger.open(ledger_at) as ledger:
        ledger.begin(of)

        def came(attempt, at, **outcomes):
            for site, outcome in outcomes.items():
                ledger.note_reply(Receipt(attempt, 0, site, f"{site}{attempt}", outcome, received=at))
                at += 1.0

        first = ledger.open_attempt(0, asked, 1e12)
        came(first.number, 50.0, a="taken")
        ledger.fail(1, "too few", 1.0)
        second = ledger.open_attempt(0, asked, 1e12)
        came(second.number, 60.0, d="taken", c="refused", b="taken")
        ledger.drop_attempt()
        third = ledger.open_attempt(0, asked, 1e12)
        came(third.number, 40.0, b="taken", e="late", c="taken")
        assert ledger.first_to_answer(1, 1) == ["d", "b", "c"]
        assert ledger.first_to_answer(1, 0) == ledger.first_to_answer(2, 1) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "{ fraction = 0.5 }",
            "expected a quorum of at most 2 sites, as many as a round of 4 wants, found 3: lower `quorum`",
        ),
        (
            "{ minimum = 5 }",
            "expected algorithm.participation.minimum of at most 4 sites in study.toml, found 5: lower it",
        ),
    ],
)
def test_a_folder_whose_rounds_cannot_close_is_refused_before_it_runs(tmp_path, capfd, words, said):
    init(tmp_path / "toy", as_json=True)
    file = tmp_path / "toy" / "study.toml"
    file.write_text(file.read_text().replace("local = {", f"participation = {words}\nlocal = {{"))
    with pytest.raises(StudyError, match=said):
        folders.read(tmp_path / "toy")


def test_strategies_lists_the_word_with_its_papers_and_defaults():
    (word,) = [word for word in catalogue.strategies() if word.part == "participation"]
    assert word.paper == "McMahan et al. 2017; Bonawitz et al. 2019"
    assert word.options == ("fraction = 1.0", "minimum = 1", "over_selection = 1.0", "pace = none")


def test_people_read_whose_scores_a_rounds_are(tmp_path, capfd):
    init(tmp_path / "toy", as_json=True)
    file = tmp_path / "toy" / "study.toml"
    file.write_text(
        file.read_text().replace("local = {", SAMPLED.replace("fraction = 0.5", "fraction = 0.5, minimum = 3"))
    )
    assert main(["check", str(tmp_path / "toy")]) == 0
    line = "a round asks 4 of 4 sites and closes with 3: 50 % of the hospitals a round, the first of 1.5 times as many"
    assert line in capfd.readouterr().out
    of, site = folders.read(tmp_path / "toy").study, {"bytes_in": 1, "bytes_out": 1, "training": {"patients": 40.0}}
    record = {
        "scored": 1,
        "metrics": {"auc": 0.7, "n": 20.0},
        "training": {"patients": 80.0},
        "decision": None,
        "champion": None,
    }
    record |= {"sites": {"east": site, "west": site}, "excluded": {}, "refused": {}, "warned": {}}
    sampled = record | {"participation": {"asked": ["east", "north", "west"], "goal": 2}}
    assert "3 hospitals asked; the first 2 to answer count." in markdown(of, sampled, 2, 9)
    assert "asked" not in markdown(of, record, 2, 9)
    said = [lines(of, [SimpleNamespace(record=it)], {})[-1].site for it in (sampled, record)]
    assert said == ["sites asked", "all sites"]
