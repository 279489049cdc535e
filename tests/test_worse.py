"""How many sites a version is worse for, counted under masks: the plain rule's own test, and nobody's answer but the sum of all."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrounds.core.answer import handle_masked
from fedrounds.core.champion import judged
from fedrounds.core.errors import StudyError, UpdateRejected
from fedrounds.core.identity import new_key, public_key
from fedrounds.core.masked import TOGETHER, Self
from fedrounds.core.messages import Request
from fedrounds.core.operations import Promotion
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.privacy.settings import Masked, Privacy
from fedrounds.core.promotion import Check, judge
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.state import Champion
from fedrounds.core.study import Study
from fedrounds.core.worse import Worse, answered, counted
from fedrounds.ledger import Ledger
from fedrounds.tasks import folder as folders
from fedrounds.tasks import masks
from fedrounds.tasks.preview import samples
from fedrounds.tasks.record import decided

SITES = ("a", "b", "c", "d", "e")
SCORES = {TOGETHER: (np.array([50.0, 20.0, 0.0, 0.0]), np.zeros((1, 2, 2)))}
FALL = {TOGETHER: np.array([50.0, -5.0, 0.6])}


def study(margin: float | None = 0.05, **protect):
    return Study.model_validate(
        {
            "name": "counted",
            "target": {"kind": "binary", "column": "y", "positive_above": 0.0},
            "features": [{"type": "number", "name": name, "range": [-9, 9]} for name in ("p", "q")],
            "model": {"kind": "logistic"},
            "algorithm": {"preset": "fedavg", "local": {"rate": 0.5, "epochs": 5}},
            "privacy": {"protect": {"kind": "masked", "margin": margin, **protect}},
        }
    )


def rows(site: int, n: int, slope: float) -> Rows:
    rng = np.random.default_rng(site)
    X = np.column_stack([rng.normal(size=(n, 2)), np.ones(n)])
    y = (slope * X[:, 0] + rng.normal(size=n) > 0).astype(float)
    return Rows(X, y, X, y)


DATA = {site: rows(k, 30 + k, slope) for k, (site, slope) in enumerate(zip(SITES, (2, 2, -2, 2, 2), strict=True))}
DATA["e"] = replace(
    DATA["e"], X_valid=DATA["e"].X_valid[:0], y_valid=DATA["e"].y_valid[:0]
)  # it has nothing to compare on


def visited(of: Study, **how):
    """The last visit of a study whose champion knows nothing, and the state that it was asked about."""
    plan = build(of)
    before = list(simulate(plan, DATA, 2, rng_of=build(study()).rng, **how))[-1].state
    before = replace(before, champion=Champion(1, np.zeros(3)))
    return before, list(simulate(plan, DATA, 0, state=before, **how))[-1]


@pytest.mark.parametrize("wire", [False, True])
def test_the_count_under_masks_is_that_of_the_plain_rules_own_test(wire):
    before, closed = visited(study(), wire=wire)
    plain = study().model_copy(update={"privacy": Privacy()})
    _, shown = visited(plain)
    compared = {site: sums[1] / sums[0] for site, sums in shown.paired.items() if sums[0]}
    assert sorted(compared) == ["a", "b", "c", "d"]
    assert closed.worse == Worse(sum(mean > 0.05 for mean in compared.values()), 4, 0.05)
    assert closed.worse.sites == 1
    _, decision = judged(before, closed, Promotion(confidence=0), known=False)
    assert decision.outcome == "kept"
    assert decision.reason.startswith(
        "kept the champion: the loss rose by more than 0.05 at 1 of 4 sites (pooled 0.693"
    )
    assert not any(f"'{site}'" in decision.reason for site in SITES)
    assert judge(Promotion(confidence=0), shown.scores, shown.paired).outcome == "kept"


def test_without_a_margin_nothing_is_counted_and_the_protocol_is_that_of_before():
    _, closed = visited(study(None))
    assert closed.worse is None
    assert "margin" not in Masked(kind="masked").model_dump()
    assert study(None).digest == Study.model_validate(study(None).model_dump(mode="json")).digest != study().digest
    assert Study.model_validate_json(study().model_dump_json()) == study()


def test_none_worse_is_promoted_and_told_and_one_is_enough_to_keep_the_champion():
    found = judge(Promotion(), SCORES, FALL, worse=Worse(0, 5, 0.05))
    assert found.promote
    assert found.reason.endswith("over all sites together; the loss rose by more than 0.05 at 0 of 5 sites")
    assert found.checks[1] == Check("worse", True, 0.0, 0.0)
    kept = judge(Promotion(), SCORES, FALL, worse=Worse(1, 5, 0.05))
    assert (kept.outcome, kept.checks[1]) == ("kept", Check("worse", False, 1.0, 0.0))
    assert decided(kept)["worse"] == {"sites": 1, "compared": 5, "margin": 0.05}
    assert "worse" not in decided(judge(Promotion(), SCORES, FALL))
    no_better = judge(Promotion(), SCORES, {TOGETHER: np.array([50.0, 0.0, 0.6])}, worse=Worse(0, 5, 0.05))
    assert no_better.reason.endswith("had to be below 0; the loss rose by more than 0.05 at 0 of 5 sites")


@pytest.mark.parametrize(
    ("paired", "said"), [((10, 0.51, 1), (1, 1)), ((10, 0.5, 1), (0, 1)), ((10, -3, 1), (0, 1)), ((0, 0, 0), (0, 0))]
)
def test_a_site_says_yes_beyond_the_margin_alone_and_nothing_of_what_is_withheld(paired, said):
    assert tuple(answered({"paired": np.array(paired, float)}, 0.05)) == said


@pytest.mark.parametrize("sums", [(-1.0, 5.0), (3.0, 2.0), (0.0, 6.0), (0.5, 5.0)])
def test_a_count_that_yeses_and_noes_cannot_add_up_to_is_refused(sums):
    with pytest.raises(UpdateRejected, match="expected how many of 5 sites got worse, found no such count"):
        counted(np.array(sums), 0.05, 5)


def test_fewer_than_five_sites_are_refused_before_anything_runs_and_by_each_site():
    masks.enough(study(), SITES)
    masks.enough(study(None), SITES[:4])
    with pytest.raises(
        StudyError, match="expected at least 5 sites to count those that got worse, found 4: among so few"
    ):
        masks.enough(study(), SITES[:4])
    keys = {site: new_key() for site in SITES[:4]}
    me = Self("a", keys["a"], {site: public_key(key) for site, key in keys.items()})
    plan = build(study())
    request = Request(plan.digest, 0, 0, "keys", "", {})
    _, _, reply = handle_masked(request, Vault(), me, {}, None, plan, OPEN, plan.rng(0, "a"))
    assert reply.refusal == "its study counts who got worse, which takes 5 sites on the roster"


def test_a_run_tells_the_count_in_its_decision_and_its_report(tmp_path, program, warm, prefect_beside):
    folder = tmp_path / "study"
    program("init", folder)
    warm(folder / "mlruns")
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(text + '\n[privacy]\nprotect = { kind = "masked", margin = 0.02 }\n')
    operations = (folder / "operations.toml").read_text().replace("rounds = 10 ", "rounds = 2 ")
    (folder / "operations.toml").write_text(operations)
    with pytest.raises(StudyError, match=re.escape("(from five sites on privacy.protect.margin counts")):
        folders.read(folder)
    (folder / "operations.toml").write_text(re.sub(r"(?m)^margin.*\n", "", operations))
    with pytest.raises(StudyError, match="expected at least 5 sites to count"):
        folders.read(folder)
    fifth = (folder / "sites" / "west.toml").read_text().replace("west", "fifth")
    (folder / "sites" / "fifth.toml").write_text(fifth)
    (folder / "data" / "fifth.csv").write_text((folder / "data" / "west.csv").read_text())
    told = json.loads(program("run", folder, "--json", **prefect_beside).stdout)
    assert told
    [report] = Path(folder).rglob("report.html")
    page = report.read_text()
    assert "the loss rose by more than 0.02 at 0 of 5 sites" in page
    assert "about all patients together, at 5 of 5 hospitals." in page
    assert "the loss rose by more than 0.02 at 0 of 5 hospitals that compared the two" in page


def test_hospitals_apart_count_as_in_one_process_and_show_their_officers_what_leaves(apart):
    hospitals = ("east", "fifth", "north", "south", "west")
    study = apart(masked='{ kind = "masked", margin = 0.02 }', sites=hospitals)
    sampled = [sample.document() for sample in samples(study.hospital("west"))]
    assert not any(it["header"]["refusal"] for it in sampled)
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
    with Ledger.open(study.place.ledger) as ledger:
        reasons = [it.reason for it in ledger.promotions()]
    assert reasons[0] == "promoted: it is the first model"
    assert len(reasons) > 1
    assert all("the loss rose by more than 0.02 at 0 of 5 sites" in reason for reason in reasons[1:])
