"""Differential privacy, measured: rows 5 to 7 of the acceptance goals, and what privacy costs in AUC. Writes docs/privacy-dp.md.

    python benchmarks/privacy_dp.py [SEEDS] [--only TITLE]

`--only` measures one section again, and leaves the rest of the page as it is.

opacus is an oracle alone: it is run, turn about, where `benchmarks/.opacus-venv` holds it (`pip install opacus==1.6.0` there), else left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedrounds.core.models.logistic import Logistic, logistic
from fedrounds.core.models.mlp import Mlp, mlp
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Cohort, clean, encode
from fedrounds.core.privacy.accounting import Event, epsilon, reported
from fedrounds.core.privacy.dpsgd import Descent, clipping, descend
from fedrounds.core.privacy.noise import Bits, Gaussian, discrete_gaussian
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table

HERE = Path(__file__).parent
ORACLE = HERE / ".opacus-venv" / "bin" / "python"
OPACUS = """
import json, sys, time, warnings, logging
warnings.filterwarnings("ignore"); logging.disable(logging.CRITICAL)
import numpy as np, torch
from opacus import PrivacyEngine
from opacus.accountants import RDPAccountant, PRVAccountant
torch.set_num_threads(1)
kind = sys.argv[1]
if kind == "epsilon":
    found = []
    for z, q, steps in json.loads(sys.argv[2]):
        rdp, prv = RDPAccountant(), PRVAccountant()
        for account in (rdp, prv): account.history = [(z, q, steps)]
        found.append([rdp.get_epsilon(1e-5), prv.get_epsilon(1e-5)])
    print(json.dumps(found)); sys.exit()
rng = np.random.default_rng(0)
X = torch.tensor(rng.normal(size=(455, 30)), dtype=torch.float32); y = torch.tensor(rng.random((455, 1)) < .4, dtype=torch.float32)
model = torch.nn.Linear(30, 1) if kind == "lr" else torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
optimiser = torch.optim.SGD(model.parameters(), lr=.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=45)
model, optimiser, data = PrivacyEngine().make_private(module=model, optimizer=optimiser, data_loader=data, noise_multiplier=1.0, max_grad_norm=1.0)
loss, steps, start = torch.nn.BCEWithLogitsLoss(), 0, 0.0
while True:
    for a, b in data:
        if steps == 20: start = time.perf_counter()
        if steps == 320: print(json.dumps(300 / (time.perf_counter() - start))); sys.exit()
        optimiser.zero_grad(); loss(model(a), b).backward(); optimiser.step(); steps += 1
"""
CASES = [(1.0, 0.01, 1000), (1.1, 256 / 60000, 14063), (2.0, 0.1, 300)]
KNOWN = [(2.1014, 1.8384), (2.5967, 2.3918), (4.5643, 4.1935)]  # opacus 1.6.0, as measured before


def oracle(*words: str) -> Any:
    """What opacus says; None where it is not there."""
    if not ORACLE.exists():
        return None
    done = subprocess.run([ORACLE, "-c", OPACUS, *words], capture_output=True, text=True, timeout=300, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def best(work: Callable[[], Any], times: int = 5) -> float:
    """Least seconds of a few runs."""
    return min(_timed(work) for _ in range(times))


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- rows 5 to 7 ------------------------------------------------------------------------------------------------------


def accounting() -> Iterator[str]:
    """Row 5."""
    found = oracle("epsilon", json.dumps(CASES))
    whose = "opacus 1.6.0, run now" if found else "opacus 1.6.0, figures of an earlier run"
    yield f"| z, q, steps (δ = 1e-5) | ε by RDP | {whose} | ε by PLD | its PRV |"
    yield "|---|---|---|---|---|"
    for case, (rdp, prv) in zip(CASES, found or KNOWN, strict=True):
        ours, tight = epsilon([Event(*case)], 1e-5), reported([Event(*case)], 1e-5)
        what = f"{case[0]:g}, {case[1]:.4g}, {case[2]}"
        yield f"| {what} | {ours:.4f} | {rdp:.4f} ({ours / rdp - 1:+.1e}) | {tight:.4f} | {prv:.4f} ({tight / prv - 1:+.2%}) |"
    year = [Event(2.0 + day % 6 / 10, 0.1, 10) for day in range(180)]
    epsilon(year, 1e-5)
    yield ""
    took = 1000 * best(lambda: epsilon(year, 1e-5))
    yield f"A ledger of 180 rounds is queried in {took:.2f} ms (goal: 100 ms), once each kind of event was worked out."


def speed() -> Iterator[str]:
    """Row 6, first half."""
    rng = np.random.default_rng(0)
    X, y = np.hstack([rng.normal(size=(455, 30)), np.ones((455, 1))]), (rng.random(455) < 0.4) * 1.0
    yield "| model (455 rows, batch 45) | steps/s | opacus | ratio |"
    yield "|---|---|---|---|"
    for name, model, family in (
        ("logistic", Logistic(kind="logistic"), logistic(30)),
        ("MLP 30-64-1", Mlp(kind="mlp", hidden=(64,)), mlp(30, (64,), "binary")),
    ):
        size = family.layout.size
        clipped, how = (
            clipping(model, family.layout, "binary", 1.0),
            Descent(0.1, 300, 0.1, 45.5, Gaussian(1.0, 1.0, size)),
        )
        work = partial(descend, clipped, np.zeros(size), how, family.init(np.random.default_rng(0)), X, y)
        turns = [(300 / best(work, 1), oracle("lr" if name == "logistic" else "mlp")) for _ in range(3)]
        ours, theirs = max(a for a, _ in turns), max((b for _, b in turns if b), default=None)
        yield f"| {name} | {ours:,.0f} | {f'{theirs:,.0f}' if theirs else 'not installed'} | {f'{ours / theirs:.1f}' if theirs else '–'} |"


def sampler() -> Iterator[str]:
    """Row 7."""
    from scipy.stats import chisquare

    yield "| σ in steps | million draws/s | chi-square p | σ found |"
    yield "|---|---|---|---|"
    for sigma in (4.0, 64.0, 1024.0, 16384.0):
        bits = Bits()
        drawn = discrete_gaussian(sigma, 2_000_000, bits)
        second = best(partial(discrete_gaussian, sigma, 1_000_000, bits))
        reach, width = int(3 * sigma), max(1, int(sigma) // 8)
        k = np.arange(-12 * int(sigma), 12 * int(sigma) + 1)
        mass = np.exp(-(k**2) / (2 * sigma**2))
        mass /= mass.sum()
        inside = np.abs(k) <= reach
        expected = np.bincount((k[inside] + reach) // width, mass[inside]) * len(drawn)
        kept = drawn[np.abs(drawn) <= reach]
        found = np.bincount((kept + reach) // width, minlength=len(expected))
        p = chisquare(np.append(found, len(drawn) - len(kept)), np.append(expected, len(drawn) - expected.sum())).pvalue
        yield f"| {sigma:g} | {1 / second:.1f} | {p:.3f} | {drawn.std() / sigma - 1:+.3%} |"


# --- what it costs ----------------------------------------------------------------------------------------------------


def auc(plan: Plan, state: Any, cohorts: list[Cohort]) -> float:
    """Of the last model on all held-out rows together."""
    from sklearn.metrics import roc_auc_score

    rows = [encode(cohort, plan.study, state.statistics, plan.ones) for cohort in cohorts]
    X, y = np.vstack([it.X_valid for it in rows]), np.concatenate([it.y_valid for it in rows])
    return float(roc_auc_score(y, plan.family.predict(state.theta, X)))


def wdbc() -> tuple[Table, list[dict[str, Any]]]:
    """569 patients, and a dictionary whose ranges come from the data set's published description, 0 to its stated maximum."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    stated = [
        float(row[1])
        for row in re.findall(
            r"^\s*[a-z ]+ \((?:mean|standard error|worst)\):\s+([\d.]+)\s+([\d.]+)", found.DESCR, re.MULTILINE
        )
    ]
    assert len(stated) == 30
    names = [name.replace(" ", "_") for name in found.feature_names]
    columns: dict[str, Any] = {name: found.data[:, j] for j, name in enumerate(names)}
    columns["ill"] = np.where(found.target == 0, "yes", "no").astype(object)
    features = [
        {"type": "number", "name": name, "range": [0, high * 1.01]} for name, high in zip(names, stated, strict=True)
    ]
    return Table(columns, {}), features


def study(name: str, features: Any, target: Any, eps: float | None, patients: int) -> Study:
    """Logistic regression: under privacy `ROUNDS` full steps with momentum, else 20 rounds."""
    words: dict[str, Any] = {
        "name": name,
        "weights": "uniform",
        "features": features,
        "target": target,
        "model": {"kind": "logistic", "l2": 0.001},
    }
    words |= {"validation": {"fold": "fold"}}
    if eps is None:
        words["algorithm"] = {"preset": "fedavg", "local": {"rate": 0.1, "epochs": 5}}
        return Study.model_validate(words)
    dp = {
        "unit": "patient",
        "epsilon": eps,
        "patients": patients,
        "rounds": ROUNDS,
        "steps": 1,
        "sample_rate": 1.0,
        "statistics": 0.5,
    }
    server = {"kind": "momentum", "rate": 0.2, "beta": 0.8}
    words["algorithm"] = {"preset": "fedavgm", "local": {"rate": 2.0 if eps > 4 else 1.0}, "server": server}
    return Study.model_validate(words | {"privacy": {"dp": dp}})


ROUNDS = 60
DRAWS = 5  # of noise, a split
SHARE = 0.3  # of ε for statistics, of the small study
HEART = HERE.parents[1] / "shared" / "data" / "heart_disease_uci"


TUNED = (
    "All patients are in every step (`sample_rate` 1, 60 rounds of one step, half of ε for the statistics), and the server steps with momentum "
    "(0.2, 0.8); the local rate is 2.0 at ε = 8, else 1.0. These were chosen out of some hundreds of combinations on splits of seeds 100 to 119"
    " alone, and then fixed; the table is of seeds 0 to 9. Both are splits of the same 569 patients, and what the choice tells of them is not "
    "counted in ε. Before, 20 rounds of 5 steps with a quarter of the patients in each gave 0.9869, 0.9900 and 0.9913 (one draw of noise a "
    "split). Each split is trained on five times."
)


def _split(seed: int | None, table: Table) -> tuple[Any, Any]:
    """Training and held-out rows: by a seed, or scikit-learn's stratified fifth of random_state 0."""
    from sklearn.model_selection import train_test_split

    if seed is None:
        return tuple(
            train_test_split(np.arange(table.rows), test_size=0.2, random_state=0, stratify=table.columns["ill"])
        )  # type: ignore[return-value]
    order = np.random.default_rng(seed).permutation(table.rows)
    return order[:455], order[455:]


def _one_run(plan: Plan, table: Table, train: Any, test: Any, seed: int, rounds: int) -> float:
    """AUC of one study: the patients dealt to four sites by the seed, the noise by nobody."""
    deal = np.random.default_rng(seed).permutation
    fold = np.full(table.rows, "train", object)
    fold[test] = "test"
    folded = Table({**table.columns, "fold": fold}, {})
    parts = zip(np.array_split(deal(train), 4), np.array_split(deal(test), 4), strict=True)
    cohorts = [clean(folded.take(np.concatenate(pair)), plan.study, f"s{k}") for k, pair in enumerate(parts)]
    *_, last = simulate(plan, {cohort.site: cohort for cohort in cohorts}, rounds)
    return auc(plan, last.state, cohorts)


PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)


def _pooled(table: Table, names: list[str], splits: list[tuple[Any, Any]]) -> np.ndarray:
    """AUC of scikit-learn's logistic regression on one pool of all rows, by split and penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = np.column_stack([table.columns[name] for name in names]), table.columns["ill"] == "yes"
    found = np.zeros((len(splits), len(PENALTIES)))
    for at, (train, test) in enumerate(splits):
        for column, inverse in enumerate(PENALTIES):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse, max_iter=5000))
            found[at, column] = roc_auc_score(y[test], model.fit(X[train], y[train]).decision_function(X[test]))
    return found


def wdbc_auc(seeds: int) -> Iterator[str]:
    """Row 6, second half."""
    table, features = wdbc()
    target = {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]}
    yield "| WDBC, 4 sites of 114 training patients, δ = 1/1140 | AUC, a split a seed | AUC, one split | goal |"
    yield "|---|---|---|---|"
    whole = _split(None, table)
    names = [feature["name"] for feature in features]
    pools = [_pooled(table, names, splits) for splits in ([_split(seed, table) for seed in range(seeds)], [whole])]
    each, one = (f"{pool.mean(0).max():.4f} ± {pool[:, pool.mean(0).argmax()].std():.4f}" for pool in pools)
    yield f"| one pool, without privacy, the best of six penalties by these very held-out patients | {each} | {one} | |"
    for eps, goal in ((None, ""), (1.0, ".98"), (3.0, ".99"), (8.0, ".993")):
        plan, found = build(study("wdbc", features, target, eps, 114)), {"each": list[float](), "one": list[float]()}
        for seed in [*range(seeds)] * (1 if eps is None else DRAWS):
            for which, (train, test) in (("each", _split(seed, table)), ("one", whole)):
                found[which].append(_one_run(plan, table, train, test, seed, 20 if eps is None else ROUNDS))
        each, one = (f"{np.mean(these):.4f} ± {np.std(these):.4f}" for these in found.values())
        yield f"| {'without privacy' if eps is None else f'ε = {eps:g}, statistics included'} | {each} | {one} | {goal} |"
    yield ""
    yield f"{TUNED} {HONEST}"


def heart_auc(seeds: int) -> Iterator[str]:
    """UCI heart at its four hospitals, as the study `heart` has it, by its own split."""
    from fedrounds.sources import load
    from fedrounds.tasks.folder import read

    folder = read(HERE.parent / "studies" / "heart", HEART)
    given = folder.study.model_dump(mode="json", exclude={"title", "note", "digest"})
    yield "| UCI heart, its hospitals, logistic, 20 rounds | AUC on held-out patients (mean ± s.d.) |"
    yield "|---|---|"
    for eps in (None, 3.0):
        words = {**given, "weights": "uniform", "privacy": {}}
        words["algorithm"] = {"preset": "fedavg", "local": {"rate": 0.1 if eps is None else 1.0}}
        if eps:
            words["privacy"] = {
                "dp": {"unit": "patient", "epsilon": eps, "patients": 200, "rounds": 20, "statistics": SHARE}
            }
        plan, found = build(Study.model_validate(words)), list[float]()
        cohorts = [
            clean(load(site.source, folder.data, name), plan.study, name, site.absent, site.split_key)
            for name, site in folder.sites.items()
        ]
        for _ in range(seeds if eps else 1):
            *_, last = simulate(plan, {cohort.site: cohort for cohort in cohorts}, 20)
            found.append(auc(plan, last.state, cohorts))
        yield f"| {'without privacy' if eps is None else f'ε = {eps:g}, δ = 1/2000'} | {np.mean(found):.4f} ± {np.std(found):.4f} |"
    yield ""
    yield UNEQUAL


UNEQUAL = (
    "The two were trained at different learning rates (0.1 in mini-batches, 1.0 under privacy): that the private one is not below says that 920"
    " patients and this model leave the choice open, not that noise helps."
)
HONEST = (
    "A goal is held against the column of splits by seed. Where it is missed it is missed; without privacy these rounds reach what the first row"
    " says, and no ε can be expected to pass that."
)


def main() -> None:
    """Print the page, and write it."""
    from privacy_exact import rows as squares
    from privacy_together import hospitals, rows

    words = sys.argv[1:]
    only = words[words.index("--only") + 1] if "--only" in words else ""
    seeds = int(words[0]) if words and words[0].isdigit() else 10
    page = HERE.parent / "docs" / "privacy-dp.md"
    before = (
        dict(re.findall(r"(?ms)^## ([^\n]+)\n\n(.*?)\n*(?=^## |\Z)", page.read_text(encoding="utf-8"))) if only else {}
    )
    lines = [
        "# Differential privacy, measured",
        "",
        f"By `python benchmarks/privacy_dp.py {seeds}`. What it means: privacy.md.",
        "",
    ]
    for title, part in (
        ("Accounting", accounting), ("Noise", sampler), ("Training speed", speed),
        ("What privacy costs", lambda: wdbc_auc(seeds)), ("What it costs where noise is made together", lambda: rows(seeds)),
        ("Where a hospital is protected", lambda: hospitals(seeds)), ("Least squares by one release", lambda: squares(seeds)),
        ("A small, hard study", lambda: heart_auc(seeds)),
    ):  # fmt: skip
        if only and title != only:
            lines += [f"## {title}", "", before[title], ""] if title in before else []
            continue
        lines += [f"## {title}", ""]
        try:
            for line in part():
                print(line, flush=True)
                lines.append(line)
        except Exception as error:
            if title != "A small, hard study":
                raise
            lines.append(f"Not measured: {type(error).__name__}: {error}")
            print(lines[-1])
        lines.append("")
    page.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
