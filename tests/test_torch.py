"""PyTorch modules as a family: what a ten-line loop computes, nothing imported that a site has not named, and models that predict without us."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import fedrounds

from fedrounds import sources
from fedrounds.cli.main import main
from fedrounds.core import identity
from fedrounds.core.answer import Policy
from fedrounds.core.errors import QuorumError, StudyError
from fedrounds.core.evaluate import metrics, total
from fedrounds.core.local import Local
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Cohort, Rows, clean
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.fsspec import Folder
from fedrounds.exchange.name import Name
from fedrounds.ledger import Ledger
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import folder as folders
from fedrounds.tasks import joined, package

STUDY = Path(__file__).parents[1] / "studies" / "digits-cnn"
TARGETS = {
    "regression": {"kind": "regression", "column": "y"},
    "binary": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "multiclass": {"kind": "multiclass", "column": "y", "classes": [0, 1, 2]},
}
LINEAR = {
    "kind": "module",
    "name": "torch.nn:Linear",
    "parameters": 4,
    "options": {"in_features": 3, "out_features": 1},
}


def study(model=LINEAR, target="binary", **changes):
    features = [{"type": "number", "name": name} for name in ("a", "b", "c")]
    given = {"name": "odd", "target": TARGETS[target], "features": features, "model": model, "algorithm": "fedavg"}
    return Study.model_validate(given | changes)


def odd(name, parameters, **options):
    return {"kind": "module", "name": f"odd_modules:{name}", "parameters": parameters, "options": options}


def rows(n=40, seed=0, outcomes=2):
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(size=(n, 3)), np.ones(n)])
    return Rows(X, rng.integers(0, outcomes, n).astype(float), X[: n // 2], np.arange(n // 2) % outcomes * 1.0)


@pytest.fixture(scope="module")
def digits() -> tuple[Study, dict[str, Cohort]]:
    """The ready study and its three hospitals' pictures."""
    read = folders.read(STUDY)
    return read.study, {
        site: clean(sources.load(file.source, STUDY, site), read.study, site) for site, file in read.sites.items()
    }


@pytest.fixture(scope="module")
def torch():
    """PyTorch, which takes a worker of the tests a second to import."""
    import torch

    return torch


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_a_local_epoch_is_that_of_a_ten_line_loop(digits, torch):
    from fedrounds.examples.cnn import SmallCnn

    protocol, data = digits
    plan = build(protocol)
    start = next(simulate(plan, {"west": data["west"]}, 0)).state
    hospital = encode_rows(data["west"], protocol, start.statistics, plan.ones)
    closed = next(simulate(plan, {"west": hospital}, 1, state=start, rng_of=lambda *_: np.random.default_rng(3)))

    net, rng = SmallCnn().double(), np.random.default_rng(3)
    torch.nn.utils.vector_to_parameters(torch.tensor(start.theta), net.parameters())
    weights = [one for one in net.parameters() if one.dim() > 1]
    descent = torch.optim.SGD(
        [{"params": weights, "weight_decay": 1e-4}, {"params": [p for p in net.parameters() if p.dim() == 1]}], lr=0.2
    )
    X = torch.tensor(hospital.X[:, :-1]).reshape(-1, 1, 8, 8)
    y = torch.tensor(hospital.y).long()
    for batch in np.array_split(rng.permutation(len(y)), range(16, len(y), 16)):
        descent.zero_grad()
        torch.nn.functional.cross_entropy(net(X[batch]), y[batch]).backward()
        descent.step()
    theirs = torch.nn.utils.parameters_to_vector(net.parameters()).detach().numpy()
    assert (protocol.averaging.local.rate, protocol.averaging.local.batch) == (0.2, 16)
    assert np.abs(theirs - start.theta).max() > 0.01
    np.testing.assert_allclose(closed.state.theta, theirs, rtol=0, atol=1e-10)


def test_federated_pictures_are_read_as_well_as_pooled_ones(digits):
    protocol, data = digits
    values, y, valid = zip(*((part.values, part.y, part.valid) for part in data.values()), strict=True)
    pool = {"all": Cohort("all", np.vstack(values), np.concatenate(y), np.concatenate(valid), {})}
    found = {}
    for name, parts in (("federated", data), ("pooled", pool)):
        *_, last = simulate(build(protocol), parts, folders.read(STUDY).operations.rounds)
        found[name] = metrics("multiclass", *total(last.scores))["accuracy"]
    assert found["federated"] > 0.94
    assert found["federated"] > found["pooled"] - 0.02


def seeded(number, site):
    return np.random.default_rng([number, len(site)])


def test_a_linear_module_is_the_logistic_regression_that_it_says_and_every_local_rule_trains_it():
    data = {"north": rows(40, 1), "south": rows(24, 2)}
    for kind in (one.model_fields["kind"].annotation.__args__[0] for one in Local.__args__[0].__args__):
        algorithm = {"preset": "fedavg", "local": {"kind": kind, "batch": 8}}
        ours = build(study({"kind": "logistic", "l2": 0.1}, algorithm=algorithm))
        theirs = build(study({**LINEAR, "l2": 0.1}, algorithm=algorithm))
        start = ours.start(ours.no_statistics())
        states = []
        for plan in (ours, theirs):
            closed = simulate(plan, data, 2, state=replace(start, study=plan.digest), rng_of=seeded)
            states.append([one.state.theta for one in closed])
        np.testing.assert_allclose(*states, rtol=0, atol=1e-12, err_msg=kind)
        assert np.abs(states[0][-1]).max() > 1e-3, kind


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_module_drops_as_it_trains_hangs_on_parameters_and_batch_alone(target, torch):
    outputs = 3 if target == "multiclass" else 1
    family = build(study(odd("Dropping", 6 * 4 + outputs * 7, outputs=outputs), target)).family
    data, theta = rows(outcomes=3 if outputs == 3 else 2), family.init(np.random.default_rng(4))
    state = torch.get_rng_state()
    slope = family.gradient(theta, data.X, data.y)
    assert slope.tobytes() == family.gradient(theta, data.X, data.y).tobytes()
    assert slope.tobytes() != family.gradient(theta, data.X[::-1], data.y[::-1]).tobytes()
    assert torch.equal(state, torch.get_rng_state()), "nobody else's draws are moved"


@pytest.mark.parametrize("target", TARGETS)
def test_a_gradient_is_the_slope_of_the_loss_that_is_reported(target):
    outputs = 3 if target == "multiclass" else 1
    options = {"in_features": 3, "out_features": outputs}
    family = build(study({**LINEAR, "parameters": 4 * outputs, "options": options}, target)).family
    data, theta = rows(outcomes=max(outputs, 2)), family.init(np.random.default_rng(4))
    assert family.predict(theta, data.X).shape == ((40, 3) if outputs == 3 else (40,))

    def loss(at):
        return family.losses(family.predict(at, data.X), data.y).mean() * (0.5 if target == "regression" else 1.0)

    steps = 1e-6 * np.eye(len(theta))
    slope = [(loss(theta + step) - loss(theta - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(family.gradient(theta, data.X, data.y), slope, rtol=0, atol=1e-8)


@pytest.mark.parametrize("target", TARGETS)
def test_of_no_rows_nothing_is_predicted(target):
    outputs = 3 if target == "multiclass" else 1
    options = {"in_features": 3, "out_features": outputs}
    family = build(study({**LINEAR, "parameters": 4 * outputs, "options": options}, target)).family
    found = family.predict(np.zeros(4 * outputs), np.empty((0, 4)))
    assert found.shape == ((0, 3) if outputs == 3 else (0,))
    assert family.losses(found, np.empty(0)).shape == (0,)


def test_the_same_request_gives_the_same_bits_whatever_was_drawn_before_and_however_many_threads_there_were(
    digits, torch
):
    protocol, data = digits
    found = set()
    for threads in (2, 1):
        torch.manual_seed(threads)
        torch.set_num_threads(threads)
        torch.rand(threads)
        plan = build(protocol)
        *_, last = simulate(plan, {"west": data["west"]}, 1)
        found.add((last.state.theta.tobytes(), last.scores["west"][0].tobytes()))
    assert len(found) == 1
    assert torch.get_num_threads() == 1


def test_a_parameter_that_asks_for_no_gradient_stays_as_it_is_and_a_penalty_is_of_weights_alone():
    family = build(study({**odd("Halved", 4), "l2": 0.5})).family
    theta, data = np.array([1.0, -1.0, 2.0, 0.25]), rows()
    plain = build(study(odd("Halved", 4))).family.gradient(theta, data.X, data.y)
    np.testing.assert_allclose(
        family.gradient(theta, data.X, data.y) - plain, [0.5, -0.5, 1.0, 0.0], rtol=0, atol=1e-15
    )
    assert plain[3] == 0.0
    named = family.named(theta)
    assert {name: part.shape for name, part in named.items()} == {"weight": (1, 3), "bias": (1,)}


# --- nothing runs that a site has not named ---------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A package that leaves a mark where it is imported; returns the model that names it, and whether it was."""
    place = tmp_path / "packages"
    place.mkdir()
    mark = tmp_path / "imported"
    (place / "marked_module.py").write_text(
        f"import pathlib\nfrom torch.nn import Linear\npathlib.Path({str(mark)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "marked_module", raising=False)
    yield {**LINEAR, "name": "marked_module:Linear"}, mark
    sys.modules.pop("marked_module", None)


def test_a_site_that_does_not_name_a_module_refuses_it_by_name_and_never_imports_it(foreign):
    model, mark = foreign
    plan, data = build(study(model)), {"north": rows(), "south": rows()}
    start = replace(build(study()).start(plan.no_statistics()), study=plan.digest)
    said = "its model is the module marked_module:Linear, which the site's own file does not name in `modules`"
    for named in ((), ("torch.nn:Linear", "marked_module:linear")):
        policy = Policy(minimum_patients=1, finest_bins=100, modules=named)
        with pytest.raises(QuorumError, match=said):
            next(simulate(plan, data, 1, state=start, policy=policy))
        assert not mark.exists()
    allowed = OPEN.model_copy(update={"modules": ("marked_module:Linear",)})
    closed = next(simulate(plan, data, 1, policy={"north": allowed, "south": Policy(minimum_patients=1)}))
    assert list(closed.refused) == ["south"]
    assert mark.exists()


def test_a_run_in_one_process_imports_nothing_that_no_site_names(foreign, tmp_path):
    model, mark = foreign
    place = tmp_path / "study"
    (place / "sites").mkdir(parents=True)
    text = (STUDY / "study.toml").read_text().replace("fedrounds.examples.cnn:SmallCnn", model["name"])
    (place / "study.toml").write_text(text)
    (place / "operations.toml").write_text("rounds = 1\n")
    for site in ("east", "north", "west"):
        (place / "sites" / f"{site}.toml").write_text((STUDY / "sites" / f"{site}.toml").read_text())
    with pytest.raises(
        StudyError, match="expected a site that trains this study, found none: its model is the module marked_module"
    ):
        folders.read(place)
    assert not mark.exists()


def test_a_hospital_apart_takes_no_part_in_a_study_whose_module_it_does_not_name(foreign, tmp_path):
    model, mark = foreign
    place, home, key = tmp_path / "study", tmp_path / "home", identity.new_key()
    place.mkdir()
    home.mkdir()
    text = (STUDY / "study.toml").read_text().replace("fedrounds.examples.cnn:SmallCnn", model["name"])
    (place / "study.toml").write_text(text)
    (place / "operations.toml").write_text("rounds = 1\n")
    (home / "site.toml").write_text("source = { kind = 'csv', path = 'a.csv' }\n")
    mail, data, digest = (
        Exchange(Folder(str(tmp_path / "mail"))),
        package.pack(place),
        folders.read_protocol(place).study.digest,
    )
    signed = identity.sign(key, joined._about(digest, "north"), data)
    mail.put(Name.of(signed, *joined.STUDY), signed)
    site = SiteFile.model_validate({"name": "north", "source": {"kind": "csv", "path": "a.csv"}})
    said = joined.join(digest, mail, identity.public_key(key), site, home)
    assert said == (
        "its model is the module marked_module:Linear, which the site's own file does not name in `modules` under [policy]"
    )
    assert not mark.exists()


WRONG = {
    "of another size": ({**LINEAR, "parameters": 5}, "with parameters = 5, as study.toml says, found one with 4 as installed"),
    "that is not installed": ({**LINEAR, "name": "nobody_has.this:Net"}, "can be imported from nobody_has.this, found ModuleNotFound"),
    "that is no module": ({**LINEAR, "name": "json:JSONDecoder"}, "a class of torch.nn.Module, found none"),
    "that is a function": ({**LINEAR, "name": "odd_modules:plain"}, "a class of torch.nn.Module, found none"),
    "that its package lacks": ({**LINEAR, "name": "torch.nn:Lines"}, "a class of torch.nn.Module, found none"),
    "of other options": ({**LINEAR, "options": {"units": 3}}, "takes the options of study.toml and then knows its parameters, found Type"),
    "that does not know its size": (
        {**LINEAR, "name": "torch.nn:LazyLinear", "options": {"out_features": 1}},
        "then knows its parameters, found ValueError",
    ),
    "of other rows": ({**LINEAR, "options": {"in_features": 1, "out_features": 2}}, "takes rows of shape [3] in float64 and has a gradient"),
    "of too many outputs": (
        {**LINEAR, "parameters": 8, "options": {"in_features": 3, "out_features": 2}},
        "with 1 outputs a row, found 2",
    ),
    "with batch normalisation": (odd("Normed", 10), "its buffer norm.num_batches_tracked changes as it trains"),
    "with normalisation by the batch": (odd("Normed", 10, running=False), "takes rows of shape [3] in float64"),
    "that looks at its neighbours": (odd("Centred", 4), "found that it looks at the other rows of the batch"),
    "that keeps count": (odd("Counting", 4), "its buffer seen changes as it trains"),
    "that draws": (odd("Restless", 4), "predicts the same twice, found that it draws at random as it predicts"),
    "in float32": (odd("Narrow", 4), "in float64 and has a gradient, found RuntimeError"),
    "that is not finite": (odd("Infinite", 4), "with finite scores and gradient at its start, found others"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_module_that_cannot_be_trained_rightly_is_refused_in_one_line(kind):
    model, words = WRONG[kind]
    said = build(study(model)).family.unready([model["name"]])
    assert words in said
    assert "\n" not in said
    assert len(said) < 300


def test_a_module_is_tried_before_a_site_answers_and_the_reply_says_why():
    plan, fine = build(study(odd("Normed", 10))), build(study(odd("Halved", 4)))
    start = fine.start(fine.no_statistics())
    with pytest.raises(QuorumError, match=r"its buffer norm[.]num_batches_tracked changes as it trains"):
        next(simulate(plan, {"north": rows()}, 1, state=replace(start, study=plan.digest)))


def test_without_pytorch_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    plan = build(study())
    with pytest.raises(
        StudyError, match=r"none that can be imported here \(ModuleNotFoundError\): pip install 'fedrounds\[torch\]'"
    ):
        plan.start()
    assert "pip install" in plan.family.unready(["torch.nn:Linear"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "os.system"}, "string_pattern_mismatch"),
        ({"name": "a b:C"}, "string_pattern_mismatch"),
        ({"name": "a:b.c"}, "string_pattern_mismatch"),
        ({"options": {"in_features": [[1]]}}, "in_features"),
        ({"parameters": 0}, "greater_than_equal"),
    ],
)
def test_a_study_names_a_module_in_one_form_alone(changes, words):
    with pytest.raises(ValueError, match="validation error") as caught:
        study({**LINEAR, **changes})
    assert words in str(caught.value.errors())


def test_a_shape_holds_the_columns():
    with pytest.raises(StudyError, match=r"to hold its 3 columns, found \[2, 2\], which holds 4"):
        build(study({**LINEAR, "shape": [2, 2]}))


# --- pictures in the dictionary ---------------------------------------------------------------------------------------


def test_a_picture_is_its_pixels_and_written_out_it_is_the_same_protocol():
    short = [
        {"type": "number", "name": "age"},
        {"type": "pixels", "name": "scan", "height": 2, "width": 3, "range": [0, 9]},
    ]
    long = [short[0], *({"type": "number", "name": f"scan_{i}_{j}", "range": [0, 9]} for i in (0, 1) for j in range(3))]
    assert (
        study(features=short, model={"kind": "logistic"}).digest
        == study(features=long, model={"kind": "logistic"}).digest
    )
    for wrong in ({"height": 0}, {"height": 200, "width": 200}, {"wide": 3}):
        with pytest.raises(ValueError, match="a feature of type pixels: "):
            study(features=[{**short[1], **wrong}], model={"kind": "logistic"})


# --- registered versions ----------------------------------------------------------------------------------------------


def test_what_predicts_from_a_registered_version_imports_nothing_of_ours():
    tree = ast.parse((Path(folders.__file__).parent / "predictor.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert sorted(names) == ["mlflow", "numpy", "skops.io", "torch", "torch"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_exported_predicts_what_the_core_predicts(target, torch):
    outputs = 3 if target == "multiclass" else 1
    family = build(study(odd("Dropping", 6 * 4 + outputs * 7, outputs=outputs), target)).family
    X, theta = rows().X, 30 * family.init(np.random.default_rng(4))
    found = family.estimator(theta)(torch.tensor(X[:, :3])).detach().numpy()
    ours = family.predict(theta, X)
    np.testing.assert_allclose(
        found, np.column_stack([1 - ours, ours]) if target == "binary" else ours, rtol=0, atol=1e-12
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, warm, prefect_beside):
    """A study that has run whole: wines of three estates, one of which does not name the module."""
    place = tmp_path_factory.mktemp("wine")
    warm(place / "mlruns")
    (place / "sites").mkdir()
    (place / "study.toml").write_text(
        """name = "wine"
features = [{ type = "number", name = "alcohol" }, { type = "number", name = "hue" }, { type = "number", name = "flavanoids" }]
target = { kind = "multiclass", column = "cultivar", classes = [0, 1, 2] }
model = { kind = "module", name = "torch.nn:Linear", parameters = 12, options = { in_features = 3, out_features = 3 } }
algorithm = { preset = "fedavg", local = { rate = 0.2, batch = 8 } }
"""
    )
    (place / "operations.toml").write_text("rounds = 2\nquorum = 2\n")
    for number, site in enumerate(("east", "north", "west")):
        source = f'source = {{ kind = "bundled", name = "wine", hospital = {number}, shares = [0.4, 0.3, 0.3] }}\n'
        named = '[policy]\nmodules = ["torch.nn:Linear"]\n' if site != "west" else ""
        (place / "sites" / f"{site}.toml").write_text(source + named)
    ended = fedrounds("run", place, **prefect_beside)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return place, ended


def test_a_study_runs_whole_and_a_site_that_does_not_name_the_module_sits_it_out(run):
    place, ended = run
    assert ended.stderr == ""
    with Ledger.open(place / "mlruns" / "wine" / "ledger.db") as ledger:
        visits = ledger.visits()
        assert [visit.ask for visit in visits] == ["statistics", "train", "train", "score"]
        said = "its model is the module torch.nn:Linear, which the site's own file does not name in `modules` under [policy]"
        assert [visit.record["refused"] for visit in visits] == [{"west": said}] * 4
        assert ledger.standing().champion is not None


def test_a_check_says_who_takes_no_part_and_how_many_parameters_there_are(run, tmp_path, capfd):
    place = tmp_path / "wine"
    shutil.copytree(run[0], place, ignore=shutil.ignore_patterns("mlruns"))
    assert main(["check", str(place)]) == 0
    said = capfd.readouterr().out
    assert "wine: 3 features, module torch.nn:Linear, fedavg" in said
    assert "west: 53 patients; takes no part: its model is the module torch.nn:Linear" in said
    (place / "study.toml").write_text((place / "study.toml").read_text().replace("parameters = 12", "parameters = 15"))
    assert main(["check", str(place)]) == 10
    assert "with parameters = 15, as study.toml says, found one with 12 as installed here" in capfd.readouterr().err


def test_every_rounds_version_gives_the_cores_numbers_by_mlflow_alone(run, monkeypatch):
    import mlflow
    import pandas as pd

    place, _ = run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlruns' / 'mlflow.db'}")
    frame = pd.DataFrame({"alcohol": [12.0, 14.1, np.nan], "hue": [1.0, 0.7, 1.2], "flavanoids": [0.6, 3.1, 2.0]})
    written = {  # before a version is loaded: Python then leaves what it compiled beside
        file: file.read_bytes() for file in (place / "mlruns" / "artifacts").rglob("model/**/*") if file.is_file()
    }
    client, found = mlflow.MlflowClient(), {}
    with Ledger.open(place / "mlruns" / "wine" / "ledger.db") as ledger:
        plan, states = build(ledger.study()), [ledger.state(visit) for visit in (2, 3)]
    for version in client.search_model_versions("name = 'wine'"):
        found[int(version.tags["fedrounds.round"])] = mlflow.pyfunc.load_model(version.source).predict(frame)
        kept = np.load(Path(version.source.removeprefix("file://")).parent / "parameters.npz")
        assert {name: kept[name].shape for name in kept} == {"weight": (3, 3), "bias": (3,)}
    assert sorted(found) == [1, 2]
    for state in states:
        raw = frame.fillna(dict(zip(frame.columns, state.statistics["impute"], strict=True))).to_numpy()
        X = np.column_stack([(raw - state.statistics["center"]) / state.statistics["scale"], np.ones(3)])
        np.testing.assert_allclose(found[state.round], plan.family.predict(state.theta, X), rtol=0, atol=1e-12)
    assert [file.name for file in written].count("program.pt2") == 2
    house = [str(path).encode() for path in (STUDY.parents[1], place)]
    assert not [file.name for file, content in written.items() if any(path in content for path in house)]


def test_a_repair_finds_nothing_to_write_and_serving_says_what_answers_for_a_module(run, tmp_path):
    place, _ = run
    folders = sorted((place / "mlruns" / "artifacts").rglob("program.pt2"))
    assert len(folders) == 2
    assert all((file.parents[1] / "dictionary.json").is_file() for file in folders)
    done = fedrounds("repair", place, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 0
    rows = tmp_path / "rows.csv"
    rows.write_text("alcohol,hue,flavanoids\n12,1,0.6\n")
    done = fedrounds("score", place, rows, tmp_path / "out.csv")
    assert done.returncode != 0
    assert "found a PyTorch module's program: `mlflow models serve` answers for it" in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_run_that_has_no_use_for_torch_does_not_import_it_and_one_that_has_can(python):
    done = python(
        "import sys; from fedrounds.tasks.lean import skops_io; assert callable(skops_io().dumps); assert 'torch' not in sys.modules;"
        " import torch; print(torch.ones(2).sum().item())"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2.0\n", "")
