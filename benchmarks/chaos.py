"""`make chaos`: a federation that is killed, filled, skewed and cut, and whose model is the same in the end. Writes docs/chaos.md.

    python benchmarks/chaos.py [--kills 100] [--seed 1] [--only random|named|others]

One study goes on through all of it. Victims: the coordinator's run, the hospitals' agents, MLflow's server, PostgreSQL, nginx, Prefect's server:
kill -9 at seeded moments, then at named instants (benchmarks/dying), a hospital's disk that is full, its clock a day off. (Its network cut amid an
upload: tests/test_federated.py.)
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from demo_federated import HOUSE, PROGRAM, Demonstration, demonstration, fedrounds

DYING = Path(__file__).parent / "dying"
SERVERS = {"MLflow": "mlflow", "nginx": "nginx: master", "Prefect": "prefect_server"}  # a word of their command lines
VICTIMS = ("run", "run", "site", "site", "PostgreSQL", *SERVERS)
# Who dies, and where: what it does, whose process, the instant, before/after/amid, the how manyth time.
NAMED = [
    ("no hospital has the question yet", "run", "fedrounds.tasks.desk:Desk.ask", "before", 1),
    ("one hospital has the question", "run", "fedrounds.tasks.desk:Desk.ask", "before", 2),
    ("all but one have the question", "run", "fedrounds.tasks.desk:Desk.ask", "before", 6),
    (
        "a number is in the ledger, nobody was asked",
        "run",
        "fedrounds.tasks.correspondence:Correspondence.question",
        "after",
        1,
    ),
    ("the gates' verdicts came", "run", "fedrounds.tasks.correspondence:Correspondence.found", "after", 1),
    ("a reply was read", "run", "fedrounds.tasks.desk:Desk.received", "after", 3),
    ("the replies are folded, the ledger knows nothing", "run", "fedrounds.ledger.ledger:Ledger.commit", "before", 1),
    ("the same, a round later", "run", "fedrounds.ledger.ledger:Ledger.commit", "before", 2),
    ("inside the ledger's transaction", "run", "fedrounds.core.state:dump", "after", 1),
    ("inside the ledger's transaction, after its first lines", "run", "fedrounds.ledger.lease:renew", "after", 3),
    ("after the ledger, before MLflow", "run", "fedrounds.ledger.ledger:Ledger.commit", "after", 1),
    ("the same, a round later", "run", "fedrounds.ledger.ledger:Ledger.commit", "after", 2),
    (
        "MLflow's projector, a round's run without its parameters",
        "run",
        "fedrounds.tasks.plain:write_parameters",
        "before",
        1,
    ),
    (
        "MLflow's projector, a run made and not filled",
        "run",
        "mlflow.tracking.client:MlflowClient.create_run",
        "after",
        2,
    ),
    (
        "MLflow holds the round, the ledger does not know",
        "run",
        "fedrounds.ledger.ledger:Ledger.mark_projected",
        "before",
        1,
    ),
    ("MLflow's projector, amid the decisions", "run", "fedrounds.tasks.decisions:Decisions.write", "before", 1),
    ("mailboxes half cleared", "run", "fedrounds.tasks.desk:Desk.sweep", "after", 2),
    ("the last report", "run", "fedrounds.tasks.report:publish", "before", 1),
    ("a question lies there, unread", "site", "fedrounds.tasks.hospital:Hospital._opened", "before", 1),
    ("a question was read", "site", "fedrounds.tasks.hospital:Hospital._opened", "after", 1),
    ("mid-download", "site", "fedrounds.exchange.mlflow:Artifacts.read", "amid", 1),
    ("mid-download, a round later", "site", "fedrounds.exchange.mlflow:Artifacts.read", "amid", 2),
    ("trained, nothing stored", "site", "fedrounds.tasks.ward:Ward.reply", "after", 1),
    ("trained, nothing stored, a round later", "site", "fedrounds.tasks.ward:Ward.reply", "after", 2),
    ("a reply is to be stored", "site", "fedrounds.site.book:Book.keep", "before", 1),
    ("a reply is stored, not sent", "site", "fedrounds.site.book:Book.keep", "after", 1),
    ("mid-upload", "site", "fedrounds.exchange.mlflow:Artifacts.write", "amid", 1),
    ("mid-upload, a round later", "site", "fedrounds.exchange.mlflow:Artifacts.write", "amid", 2),
    ("a reply is sent, not written down", "site", "fedrounds.site.book:Book.note", "before", 1),
    ("a reply is sent and written down", "site", "fedrounds.site.book:Book.note", "after", 1),
]


class Chaos:
    """A demonstration that things happen to, and how far its study is."""

    def __init__(self, it: Demonstration, seed: int) -> None:
        self.it, self.dice, self.rounds = it, random.Random(seed), 0
        self.happened: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, env: Mapping[str, str] | None = None, more: int = 2) -> subprocess.Popen[bytes]:
        """`fedrounds run`, in a process group of its own."""
        words = [str(PROGRAM), "run", str(self.it.home), "--json", *(["--more", str(more)] if self.rounds else [])]
        log = (self.it.base / "run.log").open("ab")
        return subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, **(env or {})}, start_new_session=True
        )

    def finish(self, process: subprocess.Popen[bytes], more: int = 2, tries: int = 40) -> None:
        """The same command again until it comes to its end."""
        for _ in range(tries):
            if process.wait(600) == 0:
                self.rounds = fedrounds("status", self.it.home)["rounds"]
                return
            process = self.run(more=more)
        self.failures.append("a run did not come to its end in 40 tries")

    # --- at seeded moments --------------------------------------------------------------------------------------------

    def random(self, kills: int) -> None:
        """So many kill -9, while rounds go on."""
        process = self.run()
        left = kills
        while left:
            time.sleep(self.dice.uniform(0.3, 7.0))
            if process.poll() is not None:
                if process.returncode == 0:
                    self.rounds = fedrounds("status", self.it.home)["rounds"]
                process = self.run()
                continue
            victim = self.dice.choice(VICTIMS)
            self.happened[victim] += 1
            left -= 1
            if victim == "run":
                killed(process)
                process = self.run()
            elif victim == "site":
                site = self.dice.choice(self.it.sites)
                self.it.kill(site)
                self.it.agent(site)
            elif victim in SERVERS:
                for pid in children(self.it.processes["coordinator"].pid, SERVERS[victim]):
                    with suppress(ProcessLookupError):  # it went with the one before, its parent
                        os.kill(pid, signal.SIGKILL)
            else:
                self.it.database.kill()
                time.sleep(self.dice.uniform(0.0, 2.0))
                self.it.database.start()
            print(f"{kills - left:>4} {victim}", flush=True)
        self.finish(process)

    # --- at named instants --------------------------------------------------------------------------------------------

    def named(self, what: str, who: str, instant: str, when: str, nth: int) -> bool:
        """One kill -9 at that instant; whether it came to it."""
        once = self.it.base / "once"
        once.touch()
        env = {"PYTHONPATH": str(DYING), "FEDROUNDS_DIE": f"{instant}:{when}:{nth}", "FEDROUNDS_DIE_FILE": str(once)}
        site = self.it.sites[0]
        if who == "site":
            self.it.kill(site)
            before = dict(os.environ)
            os.environ.update(env)
            self.it.agent(site)
            os.environ.clear()
            os.environ.update(before)
            process = self.run()
            until = time.monotonic() + 120
            while once.exists() and time.monotonic() < until and process.poll() is None:
                time.sleep(0.1)
            self.it.kill(site)
            self.it.agent(site)
        else:
            process = self.run(env)
        self.finish(process)
        died = not once.exists()
        once.unlink(missing_ok=True)
        self.happened[f"{who}: {what}"] += died
        if not died:
            self.failures.append(f"nobody came to `{what}` ({instant})")
        print(f"  {'died' if died else 'NOT REACHED'}  {who}: {what}", flush=True)
        return died

    # --- other mishaps ------------------------------------------------------------------------------------------------

    def full_disk(self) -> None:
        """A hospital's state on a disk without a free byte, for a while; then there is room again."""
        site = self.it.sites[-1]
        state = self.it.base / site / "state"
        self.it.kill(site)
        saved = self.it.base / f"{site}-state"
        state.rename(saved)
        state.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(state)], check=True)
        try:
            subprocess.run(["cp", "-a", f"{saved}/.", str(state)], check=True)
            filler = state / "filler"
            with filler.open("wb") as out:
                try:
                    while True:
                        out.write(bytes(1 << 16))
                        out.flush()
                except OSError:
                    pass
            self.it.agent(site)
            process = self.run()
            time.sleep(12)
            filler.unlink()
            self.finish(process)
            self.it.kill(site)
            subprocess.run(["cp", "-a", f"{state}/.", str(saved)], check=True)
        finally:
            subprocess.run(["umount", "-l", str(state)], check=True)
            state.rmdir()
            saved.rename(state)
        self.it.agent(site)
        self.happened["a full disk at a hospital"] += 1

    def skewed(self) -> None:
        """A hospital whose clock is a day ahead, and one whose clock is a day behind."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        for site, shift in zip(self.it.sites, ("+1d", "-1d"), strict=False):
            self.it.kill(site)
            os.environ |= {"LD_PRELOAD": str(library), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
            self.it.agent(site)
            for name in ("LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"):
                del os.environ[name]
        self.finish(self.run())
        for site in self.it.sites[:2]:
            self.it.kill(site)
            self.it.agent(site)
        self.happened["a clock a day ahead, another a day behind"] += 1

    # --- what came of it ----------------------------------------------------------------------------------------------

    def examine(self) -> list[str]:
        """What is not as it should be: another model than in one process, a doubled run, version, point or visit."""
        found = fedrounds("status", self.it.home)
        operations = self.it.study / "operations.toml"
        operations.write_text(operations.read_text().replace("rounds = 4", f"rounds = {found['rounds']}", 1))
        alone = fedrounds(
            "run",
            self.it.study,
            "--data",
            self.it.data,
            "--state",
            self.it.base / f"alone-{found['rounds']}",
            timeout=1200,
        )
        wrong = list(self.failures)
        if found["model_digest"] != alone["model_digest"]:
            wrong.append(
                f"round {found['rounds']}: model {found['model_digest'][:12]}, in one process {alone['model_digest'][:12]}"
            )
        return wrong + examined(self.it.home, found["rounds"])


def examined(home: Path, rounds: int) -> list[str]:
    """What is lost or doubled in the ledger and in MLflow."""
    from mlflow import MlflowClient

    from fedrounds.ledger import Ledger
    from fedrounds.tasks.federation import read

    place, wrong = read(home).place, list[str]()
    with Ledger.open(place.ledger) as ledger:
        visits, study = ledger.visits(), ledger.study()
        if ledger.unprojected():
            wrong.append(f"visits that MLflow does not hold: {ledger.unprojected()}")
    trained = [visit.round for visit in visits if visit.ask == "train"]
    if trained != list(range(1, rounds + 1)):
        wrong.append(f"rounds in the ledger: {trained}")
    client = MlflowClient(place.tracking_uri)
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    about = Counter(run.data.tags["fedrounds.about"] for run in runs)
    expected = {"lineage", *(f"round {n}" for n in trained)}
    doubled, missing = [name for name, count in about.items() if count > 1], sorted(expected - about.keys())
    if doubled or missing:
        wrong.append(f"runs in MLflow: doubled {doubled}, missing {missing}")
    versions = Counter(
        it.tags["fedrounds.round"] for it in client.search_model_versions(f"name = '{study.name}'", 10_000)
    )
    if versions != Counter(map(str, trained)):
        wrong.append(f"versions: {dict(versions)}")
    for run in runs:
        for key in run.data.metrics:
            steps = Counter(point.step for point in client.get_metric_history(run.info.run_id, key))
            if max(steps.values()) > 1:
                wrong.append(f"{run.data.tags['fedrounds.about']}: {key} has a step twice")
    return wrong


def children(pid: int, word: str) -> list[int]:
    """Living descendants of a process whose command line holds a word."""
    found, todo = list[int](), [pid]
    while todo:
        parent = todo.pop()
        try:
            own = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        todo += map(int, own)
        for child in map(int, own):
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if word in line:
                found.append(child)
    return found


def killed(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process, and of no other: what it had started must end by itself."""
    process.kill()
    process.wait(30)


def page(happened: Mapping[str, int], wrong: Sequence[str], rounds: int, seconds: float, seed: int) -> str:
    """docs/chaos.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HOUSE, capture_output=True, text=True, check=True
    ).stdout.strip()
    written = (
        f"Written by `make chaos` on {dt.date.today()} at commit {commit}, seed {seed}: {rounds} rounds in {seconds / 60:.0f} minutes on "
        f"{os.cpu_count()} cores, with a real PostgreSQL, MLflow, Prefect, nginx and four agents. After each kill the same command was given again."
    )
    lines = [
        "# Chaos",
        "",
        written,
        "",
        "| what happened | times |",
        "|---|---|",
        *(f"| {what} | {count} |" for what, count in sorted(happened.items())),
        "",
        "In the end: "
        + (
            "the model of the same study in one process, bit for bit; nothing lost, nothing doubled."
            if not wrong
            else "**not as it should be**:"
        ),
        *(f"- {line}" for line in wrong),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("random", "named", "others"))
    arguments = parser.parse_args()
    begun = time.monotonic()
    with demonstration(4, heart=False) as it:
        chaos = Chaos(it, arguments.seed)
        chaos.finish(chaos.run())
        if arguments.only in (None, "random"):
            chaos.random(arguments.kills)
        if arguments.only in (None, "named"):
            for what in NAMED:
                chaos.named(*what)
        if arguments.only in (None, "others"):
            chaos.full_disk()
            chaos.skewed()
        wrong = chaos.examine()
        text = page(chaos.happened, wrong, chaos.rounds, time.monotonic() - begun, arguments.seed)
    print(text)
    if arguments.only is None:
        (HOUSE / "docs" / "chaos.md").write_text(text)
    if wrong:
        raise SystemExit(json.dumps(wrong))


if __name__ == "__main__":
    main()
