"""Serving: the numbers of the core for every kind of model, MLflow's own numbers from the real server, and what it refuses."""

from __future__ import annotations

import asyncio
import csv
import http.client
import json
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import test_export as export
import warmed
from conftest import alone
from mlflow import MlflowClient
from test_heart_exact import HEART

from fedrounds.cli.serve import Registry
from fedrounds.core.dictionary import DICTIONARY, described
from fedrounds.core.errors import StateError
from fedrounds.core.export import pipeline
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.tasks import folder as folders
from fedrounds.tasks import scoring
from fedrounds.tasks.lean import skops_io
from fedrounds.tasks.scoring import Served, Version, app

# --- every kind of model ----------------------------------------------------------------------------------------------

PLAIN = [  # what an exact fit can tell apart: no column follows from others
    {"type": "number", "name": "age", "range": [0, 130]},
    {"type": "number", "name": "pressure", "missing": [0, -9, "?"]},
    {"type": "category", "name": "smoker", "categories": ["never", "now"], "encode": "drop_first", "missing": ["?"]},
    {"type": "category", "name": "sex", "categories": [0, 1, 2], "encode": "drop_first", "missing": [7]},
]
TARGETS = {
    **export.TARGETS,
    "count": {"kind": "regression", "column": "count"},
    "survival": {"kind": "survival", "time": "time", "event": "event", "grid": [2, 4, 8]},
    "none": {"kind": "none"},
}
STARTS = np.eye(2, 5).tolist()  # PLAIN is five columns wide
MODELS = {
    "linear": "regression",
    "huber": "regression",
    "logistic": "binary",
    "svm": "binary",
    "poisson": "count",
    "gamma": "count",
    "negative_binomial": "count",
    "multinomial": "multiclass",
    "ordinal": "multiclass",
    "cox": "survival",
    "kmeans": "none",
    "pca": "none",
}
CASES = [
    *MODELS.items(),
    *(("naive_bayes", target) for target in ("binary", "multiclass")),
    *((kind, target) for kind in ("mlp", "boosting") for target in ("regression", "binary", "multiclass")),
]
AVERAGED = ("huber", "svm", "multinomial", "mlp", "linear", "logistic")
OPTIONS = {"kmeans": {"starts": STARTS}, "mlp": {"hidden": [4]}, "boosting": {"trees": 2}}


def table(frame: pd.DataFrame, seed: int) -> Table:
    """Rows with every kind of target."""
    rng, n = np.random.default_rng(seed), len(frame)
    more = {
        "count": rng.negative_binomial(2, 0.4, n) + 1.0,
        "time": rng.gamma(2.0, 2.0, n),
        "event": rng.integers(0, 2, n).astype(float),
    }
    return Table({**export.table(frame).columns, **more})


def registered(plan, state, folder: Path) -> Version:
    """The state's model as a version's folder holds it, and loaded from there."""
    folder.mkdir(exist_ok=True)
    (folder / "model.skops").write_bytes(skops_io().dumps(pipeline(plan, state)))
    (folder / DICTIONARY).write_text(described(plan.study))
    return Version.load(folder, "1", {})


def trained(of: Study, tables: dict[str, Table]):
    plan = build(of)
    cohorts = {site: clean(rows, of, site) for site, rows in tables.items()}
    return plan, [closed.state for closed in simulate(plan, cohorts, 1) if closed.state.round][-1]


def answered(version: Version, frame: pd.DataFrame) -> np.ndarray:
    """What it answers to rows as JSON."""
    asked = frame.astype(object).where(frame.notna(), None)
    body = json.dumps({"dataframe_split": asked.to_dict("split")})
    return np.array(version.answer(body.encode())["predictions"])


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_what_is_answered_is_what_the_core_predicts(kind, target, tmp_path):
    averaged = kind in AVERAGED
    of = Study.model_validate(
        {
            "name": "kinds",
            "features": export.FEATURES if averaged else PLAIN,
            "target": TARGETS[target],
            "model": {"kind": kind, **OPTIONS.get(kind, {})},
            "algorithm": "fedavg" if averaged else "exact",
        }
    )
    frames = {site: export.raw(220, seed) for seed, site in enumerate(("east", "west"))}
    for frame in frames.values():
        frame["pressure"] += frame["age"].fillna(60).round(2) * 0.1 * (frame["pressure"] > 0)
    plan, state = trained(of, {site: table(frame, i) for i, (site, frame) in enumerate(frames.items())})
    version = registered(plan, state, tmp_path / "model")
    asked = export.raw(60, seed=9)
    dense = clean(table(asked, 9), of, "asked")
    everyone = type(dense)(dense.site, dense.values, dense.y, np.zeros(60, bool), {})
    expected = plan.family.predict(state.theta, encode_rows(everyone, of, state.statistics, plan.ones).X)
    found = answered(version, asked[list(version.dictionary.names)])
    X = encode_rows(everyone, of, state.statistics, ones=False).X
    if kind == "kmeans":
        found = np.square(X - plan.family.layout.split(state.theta)["center"][found]).sum(1)
        expected = expected[:, 0]
    elif kind == "pca":
        inverse = version.pipeline.named_steps["model"]["components"].inverse_transform
        found, expected = np.square(X - inverse(found)).sum(1), expected[:, 0]
    elif kind == "cox":
        expected = expected[:, 0]
    elif found.ndim == 2 and expected.ndim == 1:
        found = found[:, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not HEART.is_dir(), reason=f"the real heart-disease data are not here ({HEART})")
def test_real_patients_of_four_hospitals_get_the_cores_probabilities(tmp_path):
    from fedrounds import sources

    read = folders.read(Path(__file__).parents[1] / "studies" / "heart", HEART)
    tables = {name: sources.load(site.source, read.data, name) for name, site in read.sites.items()}
    plan = build(read.study)
    cohorts = {name: clean(rows, read.study, name, read.sites[name].absent) for name, rows in tables.items()}
    state = list(simulate(plan, cohorts, 2))[-1].state
    version = registered(plan, state, tmp_path / "model")
    seen = 0
    for name, rows in tables.items():
        cells = {feature: rows.columns[feature].tolist() for feature in version.dictionary.names}
        cells |= {feature: [""] * rows.rows for feature in read.sites[name].absent}
        scored = version.scored(cells)
        cohort = cohorts[name]
        encoded = encode_rows(cohort, read.study, state.statistics, plan.ones)
        expected = np.empty(cohort.patients)
        expected[~cohort.valid] = plan.family.predict(state.theta, encoded.X)
        expected[cohort.valid] = plan.family.predict(state.theta, encoded.X_valid)
        assert not [words for *_, words, _ in scored.rows if words]
        np.testing.assert_allclose([float(row[0]) for row in scored.rows], expected, rtol=0, atol=1e-12)
        seen += cohort.patients
    assert seen == 920


def test_a_folder_that_is_not_as_we_write_it_is_told_of_in_one_line(tmp_path):
    plan, state = trained(export.study(), {"east": table(export.raw(), 0)})
    registered(plan, state, tmp_path)
    model = (tmp_path / "model.skops").read_bytes()
    for damage in (model[:-40], b"", skops_io().dumps({"run": os.system})):
        (tmp_path / "model.skops").write_bytes(damage)
        with pytest.raises(StateError, match="found one that is damaged or of other types"):
            Version.load(tmp_path, "1", {})
    (tmp_path / DICTIONARY).write_text('{"format": 2}')
    with pytest.raises(StateError, match=r"expected a dictionary\.json of this release at version 1"):
        Version.load(tmp_path, "1", {})
    (tmp_path / DICTIONARY).unlink()
    with pytest.raises(StateError, match="as an earlier release wrote it: `fedrounds repair` adds it"):
        Version.load(tmp_path, "1", {})


# --- the real server --------------------------------------------------------------------------------------------------

ROW = {"age": 64, "sex": "f", "systolic_bp": 142, "creatinine": 0.84, "smoker": "never", "diabetes": "yes"}
PATIENCE_S = 1


class Server:
    """`fedrounds serve` on a copy of the toy study, which tests may change."""

    def __init__(self, folder: Path, *more: object) -> None:
        self.folder = folder
        self.client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
        words = ["serve", folder, "--port", 0, "--json", "--timeout", PATIENCE_S, "--every", 3600, *more]
        ours, theirs = os.pipe()
        self.process = warmed.Started(
            os.environ[warmed.ADDRESS],
            "fedrounds.cli.main",
            words,
            alone(),
            folder.parent,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.said = os.fdopen(ours)
        self.about = json.loads(self.said.readline())
        self.port = int(self.about["url"].rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str):
        """Status, document, headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.strip() else None, dict(answer.getheaders())
        finally:
            connection.close()

    def score(self, document: object):
        return self.ask("POST", "/invocations", document if isinstance(document, bytes) else json.dumps(document))

    def raw(self, *parts: bytes, wait_s: float = 0.0) -> bytes:
        """Bytes on the wire; what comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as wire:
            for part in parts:
                wire.sendall(part)
                time.sleep(wait_s)
            found = b""
            while more := wire.recv(65536):
                found += more
        return found

    def until(self, what, wanted) -> None:
        """Wait until it says so."""
        limit = time.monotonic() + 30
        while what() != wanted:
            assert time.monotonic() < limit, f"expected {wanted}, found {what()}"
            time.sleep(0.05)

    def version(self) -> str:
        return self.ask("GET", "/version")[1]["version"]

    def registry(self) -> str:
        return self.ask("GET", "/health")[1]["registry"]


@pytest.fixture(scope="module")
def server(toy_study, tmp_path_factory):
    made = Server(toy_study.copy(tmp_path_factory.mktemp("served") / "toy"))
    try:
        yield made
    finally:
        os.kill(made.process.pid, signal.SIGTERM)
        code = made.process.wait(20)
        left = made.said.read()
        made.said.close()
    assert (code, left) == (0, "")  # nothing but its first line was said, whatever was asked


def test_it_answers_mlflows_numbers_with_the_version_that_gave_them(server):
    import mlflow

    wanted = server.client.get_model_version_by_alias("toy", "champion")
    rows = pd.DataFrame([ROW, ROW | {"age": 20, "smoker": None}, ROW | {"systolic_bp": -9, "sex": "m"}])
    numbers = rows.select_dtypes("number").columns
    rows[numbers] = rows[numbers].astype(float)
    expected = mlflow.pyfunc.load_model(wanted.source).predict(rows)
    asked = {"instances": [ROW, ROW | {"age": 20, "smoker": None}, ROW | {"systolic_bp": -9, "sex": "m"}]}
    status, told, headers = server.score(asked)
    assert (status, headers["x-model-version"]) == (200, str(wanted.version))
    assert told.keys() == {"predictions"}
    np.testing.assert_allclose(told["predictions"], expected, rtol=0, atol=1e-15)


def test_a_level_that_nobody_listed_is_scored_and_named(server):
    status, told, _ = server.score({"instances": [ROW, ROW | {"smoker": "nevr"}, ROW | {"sex": "F"}]})
    assert (status, told["unknown"]) == (200, {"sex": [3], "smoker": [2]})


def test_it_says_which_model_it_is_and_that_it_is_well(server):
    assert server.ask("GET", "/ping")[0] == 200
    assert server.ask("GET", "/health")[:2] == (
        200,
        {"status": "ok", "version": server.about["version"], "registry": "ok"},
    )
    told = server.ask("GET", "/version")[1]
    champion = server.client.get_model_version_by_alias("toy", "champion")
    assert (told["study"], told["version"], told["round"]) == (
        "toy",
        str(champion.version),
        champion.tags["fedrounds.round"],
    )
    assert told["model_digest"] == champion.tags["fedrounds.model_digest"]


def row(**cells: object) -> dict[str, object]:
    return {"instances": [ROW | cells]}


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in ROW.items() if key != name}


def raw(cell: str) -> bytes:
    """A row whose age is written so."""
    return json.dumps(row(age="AGE")).replace('"AGE"', cell).encode()


SPLIT = {"columns": list(ROW), "data": [list(ROW.values())]}
SECRET = "Jane Doe"
MALFORMED = {
    "nothing": (b"", 400, "expected JSON, found none at line 1, column 1"),
    "half of it": (b'{"instances": [{"age":', 400, "expected JSON"),
    "something after it": (json.dumps(row()).encode() + b"}", 400, "expected JSON"),
    "no UTF-8": (b'{"instances": "\xff"}', 400, "expected JSON in UTF-8, found byte 16"),
    "UTF-16": (json.dumps(row()).encode("utf-16"), 400, "UTF-8"),
    "an escape that is none": (b'{"instances": "\\q"}', 400, "expected JSON, found none at line 1"),
    "a number alone": (b"1", 400, "expected an object with one key of dataframe_split"),
    "no form": ({"rows": []}, 400, "expected an object with one key of dataframe_split"),
    "two forms": (row() | {"dataframe_split": SPLIT}, 400, "expected an object with one key of dataframe_split"),
    "a name twice": (b'{"instances": [{"age": 1, "age": 2}]}', 400, "expected each name once"),
    "no row": ({"instances": []}, 400, "expected at least one row"),
    "no row of a split": ({"dataframe_split": SPLIT | {"data": []}}, 400, "expected at least one row"),
    "a row that is none": ({"instances": [ROW, 7]}, 400, "found otherwise in row 2"),
    "records in a record": ({"dataframe_records": {"age": 1}}, 400, "expected dataframe_records to be a list"),
    "a split without columns": ({"dataframe_split": {"data": [[1]]}}, 400, "expected dataframe_split to be"),
    "columns that are numbers": ({"dataframe_split": {"columns": [1], "data": [[1]]}}, 400, "to be names"),
    "a short row": ({"dataframe_split": SPLIT | {"data": [[1, 2]]}}, 400, "expected 6 cells in every row"),
    "columns of two lengths": ({"inputs": {"age": [1], "sex": []}}, 400, "all of one length"),
    "a column that is no list": ({"inputs": dict(ROW)}, 400, "each column as a list"),
    "NaN": (raw("NaN"), 400, "found NaN, which it has no word for"),
    "Infinity": (raw("-Infinity"), 400, "found -Infinity, which it has no word for"),
    "five thousand digits": (raw("9" * 5000), 400, "thousands of digits"),
    "a deep nest": (b'{"instances": ' + b"[" * 100_000, 400, "nested deeper than any table"),
    "a column twice": (
        {"dataframe_split": {"columns": [*ROW, "age"], "data": [[*ROW.values(), 3]]}},
        422,
        "'age' twice",
    ),
    "a column missing": ({"instances": [without("age")]}, 422, "found none called 'age'"),
    "a column too many": (row(**{SECRET: 1}), 422, "found others as column 7: leave them out"),
    "a column missing in one row": ({"instances": [ROW, without("sex")]}, 422, "found no 'sex' in row 2"),
    "a text for a number": (
        row(age="64"),
        422,
        "expected a number from 18 to 110 years in 'age', found otherwise in row 1",
    ),
    "a truth for a number": (row(age=True), 422, "'age'"),
    "a truth for a level": (row(sex=True), 422, "expected one of its 2 levels"),
    "a list for a cell": (row(age=[64]), 422, "'age'"),
    "an object for a cell": (row(sex={"f": 1}), 422, "'sex'"),
    "out of its range": ({"instances": [ROW, ROW | {"age": 640}]}, 422, "found otherwise in row 2"),
    "beyond 64 bits": (raw("1" + "0" * 400), 422, "'age'"),
    "an exponent too far": (raw("1e999"), 422, "'age'"),
    "two faults": (
        row(age=SECRET, creatinine=-1),
        422,
        "'age', found otherwise in row 1; expected a number from 0.1 to 20",
    ),
    "too many rows": ({"inputs": {name: [cell] * 10_001 for name, cell in ROW.items()}}, 413, "at most 10000 rows"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_with_one_clear_line(server, name):
    body, wanted, says = MALFORMED[name]
    status, told, _ = server.score(body)
    assert (status, told.keys()) == (wanted, {"error"})
    assert says in told["error"]
    assert "\n" not in told["error"]
    assert SECRET not in told["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "wanted"),
    [
        ("POST", "/invocations", {"Content-Type": "text/csv"}, 415),
        ("POST", "/invocations", {"Content-Type": "application/json; charset=latin-1"}, 415),
        ("POST", "/invocations", {"Content-Encoding": "gzip"}, 415),
        ("POST", "/invocations", {"Content-Type": ""}, 415),
        ("GET", "/invocations", {}, 405),
        ("POST", "/version", {}, 405),
        ("POST", "/elsewhere", {}, 404),
    ],
)
def test_so_are_wrong_types_methods_and_paths(server, method, path, headers, wanted):
    status, told, _ = server.ask(method, path, json.dumps(row()), **headers)
    assert (status, told.keys()) == (wanted, {"error"})
    assert told["error"].startswith("expected ")


HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("parts", "wanted", "says"),
    [
        ([b"Content-Length: 900\r\n\r\n", b'{"instances": '], b"408", b"is Content-Length right?"),
        ([b"Transfer-Encoding: chunked\r\n\r\n", b'5\r\n{"ins\r\n'], b"408", b"expected the whole body within 1 s"),
        ([b"Content-Length: 5\r\n\r\n", b'{"instances": []}'], b"400", b"expected JSON, found none"),
        ([b"Expect: 100-continue\r\nContent-Length: 10000001\r\n\r\n"], b"413", b"at most 10000000 bytes"),
        ([b"Content-Length: 10000001\r\n\r\n"], b"413", b"at most 10000000 bytes"),
        (
            [b"Transfer-Encoding: chunked\r\n\r\n", b"a00000\r\n" + b" " * 10_485_760 + b"\r\n"],
            b"413",
            b"at most 10000000",
        ),
    ],
)
def test_bodies_that_lie_stall_or_never_end_are_refused_and_the_connection_closes(server, parts, wanted, says):
    found = server.raw(HEAD + parts[0], *parts[1:])
    assert found.startswith(b"HTTP/1.1 " + wanted)
    assert b'{"error":' in found
    assert says in found
    assert found.count(b"HTTP/1.1") == 1
    assert server.score(row())[0] == 200


def test_it_follows_the_alias_and_keeps_what_it_has_while_the_registry_is_lost(server):
    before, store = server.version(), server.folder / "mlruns" / "mlflow.db"
    other = "1" if before != "1" else "2"
    store.rename(store.with_suffix(".away"))
    os.kill(server.process.pid, signal.SIGHUP)
    server.until(lambda: server.registry().partition(" ")[0], "failing")
    assert server.registry().endswith(f"expected MLflow's store at {store}, found none")
    assert server.score(row())[2]["x-model-version"] == before
    assert not store.exists()
    store.with_suffix(".away").rename(store)
    server.client.set_registered_model_alias("toy", "champion", other)
    os.kill(server.process.pid, signal.SIGHUP)
    server.until(server.version, other)
    assert server.registry() == "ok"
    assert server.score(row())[2]["x-model-version"] == other
    server.client.delete_registered_model_alias("toy", "champion")
    os.kill(server.process.pid, signal.SIGHUP)
    server.until(lambda: "found none: `fedrounds status`" in server.registry(), True)
    assert server.version() == other
    server.client.set_registered_model_alias("toy", "champion", before)
    os.kill(server.process.pid, signal.SIGHUP)
    server.until(server.version, before)


def test_a_look_that_finds_the_same_champion_loads_nothing_and_an_earlier_releases_version_is_told_of(server, program):
    registry = Registry.of(server.folder, None, None)
    now = registry.version()
    assert registry.newer(now) is None
    wanted = registry.wanted()
    (Path(wanted.source.removeprefix("file://")) / DICTIONARY).rename(server.folder / DICTIONARY)
    with pytest.raises(StateError, match="`fedrounds repair` adds it"):
        registry.version()
    assert program("repair", server.folder).returncode == 0
    assert registry.version().dictionary == now.dictionary


def test_a_folder_without_a_store_goes_by_mlflows_own_variable(server, program, new_study, tmp_path):
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(ROW), list(ROW.values())])
    store = f"sqlite:///{server.folder / 'mlruns' / 'mlflow.db'}"
    words = "score", new_study, tmp_path / "in.csv", tmp_path / "out.csv", "--json"
    done = program(*words, MLFLOW_TRACKING_URI=store)
    assert json.loads(done.stdout)["version"] == server.version()
    done = program(*words, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 16
    assert "expected MLflow's registry to tell of 'toy'" in done.stderr


def test_the_registry_is_asked_again_and_again_and_only_so_many_may_wait(server, monkeypatch):
    now = Registry.of(server.folder, None, None).version()
    later, asked = replace(now, number="9"), []

    def look(current):
        asked.append(current.number)
        return later if len(asked) == 2 else None

    async def ask(served, **more):
        transport = httpx.ASGITransport(app(served, 5.0, **more))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.post("/invocations", json=row())
        return answer.status_code, answer.json().get("error", "")

    async def both():
        served = Served(now, look, 0.01)
        following = asyncio.create_task(served.follow())
        while len(asked) < 4:
            await asyncio.sleep(0.01)
        following.cancel()
        assert (served.current, asked[:4]) == (later, [now.number, now.number, "9", "9"])
        assert (await ask(served, most_bytes=30))[0] == 413
        assert (await ask(served))[0] == 200
        monkeypatch.setattr(scoring, "WAITING", 0)
        assert await ask(served) == (503, "expected fewer than 0 requests at once, found more: try again soon")

    asyncio.run(both())


# --- files ------------------------------------------------------------------------------------------------------------


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_file_is_scored_as_the_server_scores_and_tells_what_it_refuses(server, program, tmp_path):
    given = [ROW, ROW | {"age": 640}, ROW | {"smoker": "nevr"}, ROW | {"creatinine": "", "systolic_bp": SECRET}]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", *reversed(ROW)])
        writer.writeheader()
        writer.writerows([{"id": i, **cells} for i, cells in enumerate(given)] * 2000)
    done = program("score", server.folder, tmp_path / "in.csv", tmp_path / "out.csv", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told, found = json.loads(done.stdout), rows_of(tmp_path / "out.csv")
    expected = server.score({"instances": [ROW, ROW | {"smoker": "nevr"}]})[1]["predictions"]
    assert (told["rows"], told["scored"], told["refused_rows"][:3]) == (8000, 4000, [2, 4, 6])
    assert told["unknown_rows"][:2] == [3, 7]
    assert [int(row["row"]) for row in found] == list(range(1, 8001))
    for start in range(0, 8000, 4):
        first, second, third, fourth = found[start : start + 4]
        assert [float(first["probability"]), float(third["probability"])] == [expected[0][1], expected[1][1]]
        assert (first["refused"], first["unknown"], third["unknown"]) == ("", "", "smoker")
        assert (second["probability"], second["refused"]) == ("", "expected a number from 18 to 110 years in 'age'")
        assert fourth["refused"] == "expected a number from 50 to 300 mmHg in 'systolic_bp'"
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "found none called 'age'"),
        (f"{SECRET},64\n", "found none called 'age'"),
        (",".join(ROW) + "\n", "expected rows below the header, found none"),
        (",".join(ROW) + "\n1,2\n", "expected 6 cells in every row, as in the header, found 2 in line 2"),
        (",".join(ROW) + ',age\n"', "found 'age' twice"),
        (",".join(ROW) + '\n"64,f', "found a broken quotation"),
        (",".join(ROW) + "\n\udcff", "expected text in UTF-8, found other bytes"),
    ],
)
def test_a_file_that_is_none_is_one_line_and_leaves_nothing(server, program, tmp_path, text, says):
    (tmp_path / "in.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "out.csv").write_text("what was there\n")
    done = program("score", server.folder, tmp_path / "in.csv", tmp_path / "out.csv")
    assert (done.returncode, done.stdout) == (11, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr
    assert (tmp_path / "out.csv").read_text() == "what was there\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pinned_version_is_served_whoever_is_champion_and_one_that_is_not_there_is_told(server, program, tmp_path):
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(ROW), list(ROW.values())])
    words = "score", server.folder, tmp_path / "in.csv", tmp_path / "out.csv", "--json", "--version"
    assert json.loads(program(*words, 1).stdout)["version"] == "1"
    done = program(*words, 99)
    assert (done.returncode, json.loads(done.stdout)["error"]["kind"]) == (15, "StateError")
    assert "expected a version 99 of 'toy' in MLflow's registry, found none" in done.stderr


def test_a_study_that_has_not_run_and_a_port_that_is_taken_are_told(server, program, new_study):
    done = program("serve", new_study, "--port", 0)
    assert done.returncode == 15
    assert "found no MLflow store at" in done.stderr
    done = program("serve", server.folder, "--port", server.port)
    assert done.returncode == 16
    assert f"expected port {server.port} of 127.0.0.1 to be free" in done.stderr
