"""The flow computes what the plain loop computes, bit for bit; and whoever is left out is shown everywhere, with the reason."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedrounds.cli.init import init
from fedrounds.core.plan import build
from fedrounds.core.round import Asking
from fedrounds.core.simulate import simulate
from fedrounds.core.strategy import PRESETS
from fedrounds.ledger import Ledger
from fedrounds.tasks import folder as folders
from fedrounds.tasks.prefect_server import PrefectServer
from fedrounds.tasks.run import opened
from fedrounds.tasks.ward import Ward

ROOT = Path(__file__).parent.parent
SHARED = ROOT / "../shared/data"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder of studies that share MLflow's store."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "mlruns").mkdir()
    return folder


@pytest.fixture(scope="module")
def shell(workspace, templates, program):
    """Runs a command beside a Prefect server that is there already, gives its exit code, output and JSON."""
    home = workspace / "prefect"
    server = PrefectServer(home, home / "log", templates=templates)
    server.wait()

    def run(*words, code=0):
        done = program(*words, PREFECT_API_URL=server.api_url)
        assert done.returncode == code, done.stderr
        document = json.loads(done.stdout) if "--json" in words else None
        return SimpleNamespace(out=done.stdout, err=done.stderr, json=document)

    run.prefect = home / "prefect.db"
    yield run
    server.stop()


def toy(folder: Path, **lines: str) -> Path:
    """`fedrounds init`, with lines of operations.toml in place of its own."""
    init(folder, as_json=True)
    shutil.rmtree(folder / "mlruns")
    return operate(folder, **lines)


def operate(folder: Path, **lines: str) -> Path:
    file = folder / "operations.toml"
    text = file.read_text().splitlines()
    for key, value in lines.items():
        text = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text]
    file.write_text("\n".join(text) + "\n")
    return folder


def copied(name: str, data: str, to: Path, **lines: str) -> tuple[Path, Path]:
    """A study of the repository, to be changed, and its real data."""
    if not (SHARED / data).is_dir():
        pytest.skip(f"{SHARED / data} is not here: the product ships no patient file")
    shutil.copytree(ROOT / "studies" / name, to / name)
    return operate(to / name, **lines), SHARED / data


def place_of(folder: Path):
    read = folders.read(folder)
    return folders.state_of(folder, read.study.name)


def loop(folder: Path, data: Path | None = None, wire: bool = False):
    """The last state of the plain loop on the same cohorts, under the same policy."""
    read = folders.read(folder, data)
    plan = build(read.study)
    wards = {name: Ward(site, plan, read.data) for name, site in read.sites.items()}
    for ward in wards.values():
        ward.load()
    cohorts = {name: ward.cohort for name, ward in wards.items() if not ward.refusal()}
    policy = next(iter(wards.values())).policy
    return list(simulate(plan, cohorts, read.operations.rounds, policy=policy, wire=wire))[-1].state


def bits(state):
    """All that later rounds depend on."""
    arrays = {"theta": state.theta, **{f"m/{k}": v for k, v in state.memory.items()}, **state.statistics}
    return state.round, {name: array.tobytes() for name, array in sorted(arrays.items())}


def rows(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def ledger_of(folder: Path):
    return Ledger.open(place_of(folder).ledger)


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_a_run_computes_what_the_plain_loop_computes_and_a_second_run_does_so_again(toy_study, shell, workspace):
    with ledger_of(toy_study.folder) as ledger:  # on a Prefect server of its own
        found = ledger.head().state
    by_hand = loop(toy_study.folder)
    assert bits(found) == bits(by_hand) == bits(loop(toy_study.folder, wire=True))
    assert found.model_digest == by_hand.model_digest
    again = toy(workspace / "toy", rounds="3")  # on another
    assert shell("run", again, "--fresh", "--json").json["model_digest"] == by_hand.model_digest
    with ledger_of(again) as ledger:
        assert bits(ledger.head().state) == bits(by_hand)


TARGETS = {
    "regression": '{ kind = "regression", column = "y" }',
    "binary": '{ kind = "binary", column = "y", positive_above = 0.0 }',
    "multiclass": '{ kind = "multiclass", column = "label", classes = ["a", "b", "c"] }',
}
MODELS = {
    "linear": ("regression", '{ kind = "linear", l2 = 0.01 }'),
    "linear without intercept": ("regression", '{ kind = "linear", intercept = false }'),
    "logistic": ("binary", '{ kind = "logistic" }'),
    "multinomial": ("multiclass", '{ kind = "multinomial", l2 = 0.01 }'),
    **{f"mlp {target}": (target, '{ kind = "mlp", hidden = [4, 3] }') for target in TARGETS},
}
SITE = '[source]\nkind = "csv"\npath = "{}.csv"\n'


@pytest.fixture(scope="module")
def three_hospitals(tmp_path_factory):
    """Tables with gaps, codes and an unforeseen level, as CSV files."""
    folder = tmp_path_factory.mktemp("three")
    rng = np.random.default_rng(4)
    (folder / "sites").mkdir()
    for site, n in {"east": 40, "north": 60, "west": 30}.items():
        age, y = rng.normal(50, 10, n), rng.normal(size=n)
        ward, label = rng.choice(["red", "blue", "green", "?"], n), rng.choice(["a", "b", "c"], n)
        lines = [
            f"{site}{i},{'?' if i % 9 == 0 else format(age[i], '.2f')},{ward[i]},{y[i]:.4f},{label[i]}"
            for i in range(n)
        ]
        (folder / f"{site}.csv").write_text("id,age,ward,y,label\n" + "\n".join(lines) + "\n")
        (folder / "sites" / f"{site}.toml").write_text(SITE.format(site))
    (folder / "operations.toml").write_text("rounds = 2\n")
    return folder


def carried(folder: Path, state: Path):
    """What `flows.study` does, without Prefect and without the processes beside it."""
    place = folders.state_of(folder, "mixed", state)
    folders.prepare(place, fresh=False)
    with opened(folders.read(folder), place) as run:
        for ward in run.wards.values():
            ward.load()
        run.admit({name: run.remembered(ward) for name, ward in run.wards.items()})
        for ask in ("statistics", "train", "train", "score"):
            asking = run.open(ask)
            while isinstance(asking, Asking):
                requests = asking.requests
                answers = [
                    ward.answer(requests[ward.name]) for group in run.groups(asking.sites) for ward in group.wards
                ]
                asking = run.aggregate(asking, answers)
            if ask == "statistics":
                for ward in run.wards.values():
                    ward.preprocess(run.state.statistics)
        return run.ledger.head().state


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", MODELS)
def test_every_preset_and_model_gives_the_same_bits_in_a_run_and_in_the_loop(three_hospitals, tmp_path, preset, model):
    target, words = MODELS[model]
    (three_hospitals / "study.toml").write_text(
        f'name = "mixed"\npatient_id = "id"\ntarget = {TARGETS[target]}\nmodel = {words}\nalgorithm = "{preset}"\n'
        'features = [{ type = "number", name = "age", missing = ["?"] },\n'
        '  { type = "category", name = "ward", categories = ["red", "blue"], missing = ["?"] }]\n'
    )
    found = carried(three_hospitals, tmp_path)
    assert found.round == 2
    assert bits(found) == bits(loop(three_hospitals)) == bits(loop(three_hospitals, wire=True))


@pytest.mark.parametrize("preset", ["fedmedian", "fedtrimmedavg", "rfa", "qfedavg", "afl"])
def test_what_combines_otherwise_gives_the_same_bits_in_a_run_and_in_the_loop(three_hospitals, tmp_path, preset):
    (three_hospitals / "study.toml").write_text(
        f'name = "mixed"\npatient_id = "id"\ntarget = {TARGETS["binary"]}\nmodel = {{ kind = "logistic" }}\nalgorithm = "{preset}"\n'
        'weights = "uniform"\nfeatures = [{ type = "number", name = "age", missing = ["?"] }]\n'
    )
    found = carried(three_hospitals, tmp_path)
    assert found.round == 2
    assert sorted(found.memory) == (["lambda.east", "lambda.north", "lambda.west"] if preset == "afl" else [])
    assert bits(found) == bits(loop(three_hospitals)) == bits(loop(three_hospitals, wire=True))


# --- real hospitals ---------------------------------------------------------------------------------------------------


def sites_of(document) -> dict[str, dict]:
    return {line["site"]: line for line in document["sites"]}


def test_heart_runs_on_four_real_hospitals_and_one_class_switzerland_takes_part(shell, workspace):
    folder, data = copied("heart", "heart_disease_uci", workspace, rounds="2")
    document = shell("run", folder, "--data", data, "--json").json
    sites = sites_of(document)
    assert {site: sites[site]["patients"] for site in sites} == {
        "cleveland": 303,
        "hungary": 294,
        "long-beach": 200,
        "switzerland": 123,
        "all sites": 920,
    }
    assert all(line["gate"].startswith("passed") for site, line in sites.items() if site != "all sites")
    assert document["model_digest"] == loop(folder, data).model_digest
    with ledger_of(folder) as ledger:
        training = ledger.progress().record["sites"]["switzerland"]
        assert training["metrics"]["n"] > 10
        assert not any(entry.record["refused"] or entry.record["excluded"] for entry in ledger.visits())


def test_flambys_heart_is_judged_on_the_published_test_rows(shell, workspace):
    folder, data = copied("heart-flamby", "heart_disease_uci", workspace)
    document = shell("run", folder, "--data", data, "--json").json
    assert (document["rounds"], document["metrics"]["n"]) == (20, 254)
    assert document["metrics"]["auc"] >= 0.87
    query = f"""select m.value {OF_STUDY.format("heart-flamby")} join latest_metrics m using (run_uuid)
                where m.key = 'auc' and t.key = 'fedrounds.about' and t.value = 'lineage'"""
    assert rows(workspace / "mlruns" / "mlflow.db", query) == [(document["metrics"]["auc"],)]


def test_opt_runs_on_the_trials_own_file(shell, workspace):
    folder, data = copied("opt", "opt", workspace, rounds="2")
    document = shell("run", folder, "--data", data, "--json").json
    assert len(document["sites"]) == 5
    assert document["model_digest"] == loop(folder, data).model_digest


def test_a_hospital_of_three_patients_is_refused_on_record_and_takes_part_when_its_own_file_allows_it(shell, workspace):
    folder, data = copied("indo_rct", "indo_rct", workspace, rounds="2")
    shell("run", folder, "--data", data, "--json")
    shown = sites_of(shell("status", folder, "--json").json)
    few, case = shown["kentucky"], shown["case-western"]
    assert few["gate"] == "passed"
    assert (few["local"], few["federated"], few["pooled"]) == (None, None, None)  # under ten patients judge there
    assert case["federated"] is None
    assert "minimum cohort of 10" in case["gate"]
    assert "minimum cohort of 10" in " ".join(shell("status", folder).out.split())
    with ledger_of(folder) as ledger:
        assert all("minimum cohort of 10" in entry.record["refused"]["case-western"] for entry in ledger.visits())
    assert "minimum cohort of 10" in tags(folder, "fedrounds.refused")["round 2"]
    with (folder / "sites" / "case-western.toml").open("a") as site:
        site.write("\n[policy]\nminimum_patients = 1\n")
    shell("run", folder, "--data", data, "--more", 1, "--json")
    with ledger_of(folder) as ledger:
        last = [entry for entry in ledger.visits() if entry.ask == "train"][-1].record
        assert last["refused"] == {}
        assert "case-western" in last["sites"]
    assert "round 3" not in tags(folder, "fedrounds.refused")


OF_STUDY = (
    "from tags t join runs r using (run_uuid) join experiments e on e.experiment_id = r.experiment_id and e.name = '{}'"
)


def tags(folder: Path, key: str) -> dict[str, str]:
    """What MLflow shows under a tag of a study's runs: run -> value."""
    query = f"select r.name, t.value {OF_STUDY.format(folder.name)} where t.key = '{key}'"
    return dict(rows(place_of(folder).mlruns / "mlflow.db", query))


# --- the gate ---------------------------------------------------------------------------------------------------------

REASON = "expect_column_values_to_be_between · systolic_bp: 12 of 120"


@pytest.fixture(scope="module")
def broken(shell, workspace):
    """A study whose hospital `west` wrote twelve blood pressures in another unit, run for a round."""
    folder = toy(workspace / "broken", rounds="1")
    file = folder / "data" / "west.csv"
    head, *lines = file.read_text().splitlines()
    at = head.split(",").index("systolic_bp")
    for i in range(12):
        cells = lines[i].split(",")
        lines[i] = ",".join([*cells[:at], "16.4", *cells[at + 1 :]])
    file.write_text("\n".join([head, *lines]) + "\n")
    table = shell("run", folder)
    return SimpleNamespace(folder=folder, table=table)


def test_a_site_that_fails_its_gate_sits_out_and_is_shown_everywhere(shell, broken):
    folder = broken.folder
    assert REASON in " ".join(broken.table.out.split())
    assert broken.table.err.count("Traceback") == 0
    status = sites_of(shell("status", folder, "--json").json)
    assert REASON in status["west"]["gate"]
    with ledger_of(folder) as ledger:
        assert all(REASON in entry.record["excluded"]["west"] for entry in ledger.visits())
        assert all("west" not in entry.record["sites"] for entry in ledger.visits())
        kept = ledger.verdicts()["west"]
        assert not kept.passed
        failure = kept.verdict["failures"][0]
        assert (failure["column"], failure["unexpected_count"], failure["element_count"]) == ("systolic_bp", 12, 120)
    assert REASON in json.loads(tags(folder, "fedrounds.excluded")["round 1"])["west"]
    artifacts = rows(shell.prefect, "select key, type, data from artifact where data like '%12 of 120%'")
    assert {(key.partition("-")[0], kind) for key, kind, _ in artifacts} == {
        ("gate", "markdown"),
        ("round", "markdown"),
        ("result", "markdown"),
    }
    gate = next(json.loads(data) for key, _, data in artifacts if key.startswith("gate-"))
    assert (
        "| west | FAILED, excluded (17 checks) | expect_column_values_to_be_between | systolic_bp | 12 of 120 |" in gate
    )


def test_the_policy_warn_lets_it_take_part_halt_and_quorum_stop_the_round_on_record(shell, broken):
    folder = operate(broken.folder, policy='"warn"')
    shell("run", folder, "--more", 1, "--json")
    with ledger_of(folder) as ledger:
        last = [entry for entry in ledger.visits() if entry.ask == "train"][-1]
        assert last.round == 2
        assert "west" in last.record["sites"]
        assert last.record["excluded"] == {}
        assert not ledger.verdicts()["west"].passed
        before = ledger.head()
    assert "round 2" not in tags(folder, "fedrounds.excluded")
    assert REASON in json.loads(tags(folder, "fedrounds.warned")["round 2"])["west"]
    shown = shell("status", folder, "--json").json
    assert REASON in sites_of(shown)["west"]["gate"]
    assert sites_of(shown)["west"]["gate"].startswith("warned: ")

    operate(folder, policy='"halt"')
    halted = shell("run", folder, "--more", 1, "--json", code=12)
    assert halted.json["error"]["kind"] == "GateHalt"
    assert REASON in halted.err
    assert len(halted.err.splitlines()) == 1

    operate(folder, policy='"exclude"', quorum="4")
    lost = shell("run", folder, "--more", 1, "--json", code=13)
    assert "expected at least 4 of 4 sites" in lost.json["error"]["message"]
    with ledger_of(folder) as ledger:
        first, second = ledger.failures()
        assert REASON in first.reason
        assert "expected at least 4 of 4 sites to pass the gate, found 3" in second.reason
        assert {failure.round for failure in (first, second)} == {3}
        assert ledger.head().visit == before.visit
        assert ledger.head().state.model_digest == before.state.model_digest
    assert "found 3" in shell("status", folder, "--json").json["last_failure"]["reason"]
    states = rows(shell.prefect, "select state_type, count(*) from flow_run where name = 'broken' group by 1")
    assert dict(states)["FAILED"] == 2
    assert "RUNNING" not in dict(states)
