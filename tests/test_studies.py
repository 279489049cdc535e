"""The ready study folders: they read, they train, and what federation gains is what their files say."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedrounds import sources
from fedrounds.cli.template_data import HOSPITALS, toy
from fedrounds.core.answer import Policy
from fedrounds.core.evaluate import metrics, total, training_loss
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Cohort, clean
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.tasks import folder as folders

ROOT = Path(__file__).parent.parent
SHARED = ROOT / "../shared/data"


def read(name: str, data: str | None = None):
    if data and not (SHARED / data).is_dir():
        pytest.skip(f"{SHARED / data} is not here: the product ships no patient file")
    return folders.read(ROOT / "studies" / name, SHARED / data if data else None)


def cohorts(study) -> dict[str, Cohort]:
    return {
        site: clean(sources.load(file.source, study.data, site), study.study, site, file.absent, file.split_key)
        for site, file in study.sites.items()
    }


def pooled(parts: dict[str, Cohort]) -> dict[str, Cohort]:
    values, y, valid = zip(*((part.values, part.y, part.valid) for part in parts.values()), strict=True)
    return {"all": Cohort("all", np.vstack(values), np.concatenate(y), np.concatenate(valid), {})}


def train(study, data: dict[str, Cohort], policy: Policy = OPEN):
    """The closed rounds, and the AUC and log-loss of the last model on all validation rows."""
    rounds = list(simulate(build(study.study), data, study.operations.rounds, policy=policy))
    scored = metrics("binary", *total(rounds[-1].scores))
    return rounds, scored["auc"], scored["log_loss"]


def test_diabetes_trains_to_what_pooling_the_patients_gives():
    study = read("diabetes")
    data = cohorts(study)
    assert {site: part.patients for site, part in data.items()} == {"north": 177, "east": 133, "south": 88, "west": 44}
    rounds, auc, _ = train(study, data)
    losses = [training_loss(closed.training)[1] for closed in rounds[1:-1]]
    assert all(after < before + 1e-3 for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.75 * losses[0]
    assert auc > 0.79
    assert auc > train(study, pooled(data))[1] - 0.01
    alone = {site: train(study, {site: part})[0][-1] for site, part in data.items()}
    gains = [
        metrics("binary", *rounds[-1].scores[site])["auc"] > metrics("binary", *closed.scores[site])["auc"]
        for site, closed in alone.items()
    ]
    assert sum(gains) >= 3
    assert all(file.simulated for file in study.sites.values())
    assert "simulated hospitals" in study.study.note


def test_flambys_heart_recipe_reaches_the_reference():
    study = read("heart-flamby", "heart_disease_uci")
    data = cohorts(study)
    sizes = {site: (int((~part.valid).sum()), int(part.valid.sum())) for site, part in data.items()}
    assert sizes == {"cleveland": (199, 104), "hungary": (172, 89), "switzerland": (30, 16), "long-beach": (85, 45)}
    assert build(study.study).columns[-5:] == ("cp=2", "cp=3", "cp=4", "restecg=1", "restecg=2")
    rounds, auc, _ = train(study, data, Policy(merge_scores=False))
    assert not any(closed.refused for closed in rounds)
    assert auc > 0.87


def test_heart_trains_on_all_920_patients_though_switzerland_measures_no_cholesterol():
    study = read("heart", "heart_disease_uci")
    data = cohorts(study)
    assert sum(part.patients for part in data.values()) == 920
    _, auc, _ = train(study, data)
    assert auc > 0.87
    assert auc > train(study, pooled(data))[1] - 0.015


def test_opt_trains_on_every_labelled_pregnancy_and_beats_chance():
    study = read("opt", "opt")
    data = cohorts(study)
    assert sum(part.patients for part in data.values()) == 814
    _, auc, loss = train(study, data)
    assert auc > 0.58
    assert loss < 0.42


def test_a_hospital_of_three_patients_is_refused_and_the_others_go_on():
    study = read("indo_rct", "indo_rct")
    policy = study.sites["case-western"].policy.model_copy(update={"merge_scores": False})
    rounds, _, loss = train(study, cohorts(study), policy)
    assert {tuple(closed.refused) for closed in rounds} == {("case-western",)}
    assert "below the site's minimum cohort of 10" in rounds[-1].refused["case-western"]
    assert loss < 0.36


# --- what `fedrounds init` copies -------------------------------------------------------------------------------------


def test_made_up_patients_are_the_same_for_the_same_seed():
    assert toy(7) == toy(7)
    assert toy(7)["north"] != toy(8)["north"]
    lines = {site: text.splitlines() for site, text in toy().items()}
    assert {site: len(rows) - 1 for site, rows in lines.items()} == {site: mix[0] for site, mix in HOSPITALS.items()}
    assert all("-9" in text and ",NA," in text and ",unknown," in text for text in toy().values())


def test_the_template_is_a_study_that_learns(tmp_path):
    shutil.copytree(ROOT / "cli" / "template", tmp_path, dirs_exist_ok=True)
    (tmp_path / "data").mkdir()
    for site, text in toy().items():
        (tmp_path / "data" / f"{site}.csv").write_text(text)
    study = folders.read(tmp_path)
    assert set(study.sites) == set(HOSPITALS)
    assert (tmp_path / "study.toml").read_text().count('name = "readmission"') == 1
    data = cohorts(study)
    _, auc, _ = train(study, data)
    assert auc > 0.65
    assert auc > train(study, pooled(data))[1] - 0.02


@pytest.mark.parametrize("file", sorted((ROOT / "expectations").glob("*.json")), ids=lambda file: file.stem)
def test_a_suite_goes_by_its_files_name(file):
    assert json.loads(file.read_text())["name"] == file.stem
