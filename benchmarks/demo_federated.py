"""`make demo-federated`: a coordinator and four hospitals on one machine, really apart: processes, folders, users, TLS, PostgreSQL.

    python benchmarks/demo_federated.py [--rounds 10] [--keep] [--prefect own|off] [--masked | --ckks | --trustee]

UCI heart where ../shared/data is there, made-up data else. It ends with the digests of both ways to run, what a round took and on what,
and what one hospital's credentials open at the coordinator.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from postgres import Postgres, free_port

HOUSE = Path(__file__).parents[1]
HEART = HOUSE.parent / "shared" / "data" / "heart_disease_uci"
PROGRAM = Path(sys.executable).with_name("fedrounds")


def fedrounds(
    *words: object, timeout: float = 300, env: Mapping[str, str] | None = None, inside: Sequence[str] = ()
) -> dict[str, Any]:
    """What a command says with --json, started by `inside` where there is one. Ends the demonstration where it fails."""
    done = subprocess.run(
        [*inside, str(PROGRAM), *map(str, words), "--json"],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=dict(env or os.environ),
    )
    if done.returncode:
        raise SystemExit(f"fedrounds {' '.join(map(str, words))[:120]}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Demonstration:
    """A coordinator's folder, its servers, the hospitals' folders and their agents. Everything ends with it.

    Args:
        base: an empty folder that the database's user may enter.
        study: the folder of a study whose site files describe the hospitals; `data` is where their paths start.
    """

    def __init__(
        self, base: Path, study: Path, data: Path, prefect: str = "off", poll: float = 0.2, public: str = ""
    ) -> None:
        self.base, self.study, self.data = base, study, data
        self.home, self.sites = base / "coordinator", sorted(file.stem for file in (study / "sites").glob("*.toml"))
        protect = tomllib.loads((study / "study.toml").read_text()).get("privacy", {}).get("protect", {})
        self.holder: str = protect.get("holder", "")  # a third party that holds the key, without patients
        self.everybody = [*self.sites, *([self.holder] if self.holder else [])]
        self.prefect, self.poll = prefect, poll
        self.database = Postgres(base / "database")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.public = public or f"https://localhost:{free_port()}"
        self.inside: dict[str, Sequence[str]] = {}  # site -> the words that start its commands in another place

    def init(self) -> None:
        """The coordinator's folder."""
        fedrounds(
            "coordinator",
            "init",
            self.home,
            "--study",
            self.study,
            "--public",
            self.public,
            "--postgres",
            self.database.address(),
        )

    def start(self, name: str, *words: object) -> None:
        """A process of its own, whose output goes to a log beside it."""
        with (self.base / f"{name}.log").open("ab") as log:
            command = [*self.inside.get(name, ()), str(PROGRAM), *map(str, words)]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def serve(self, timeout: float = 180) -> None:
        """The coordinator's servers; returns when all answer."""
        self.start("coordinator", "coordinator", "start", self.home)
        until, log = time.monotonic() + timeout, self.base / "coordinator.log"
        while "ready" not in log.read_text():
            if self.processes["coordinator"].poll() is not None or time.monotonic() > until:
                raise SystemExit(f"expected the coordinator's servers to answer, found: {log.read_text()[-3000:]}")
            time.sleep(0.1)

    def join(self, site: str) -> dict[str, Any]:
        """Two commands and one exchange: invite here, join there."""
        token = fedrounds("coordinator", "invite", self.home, site)["token"]
        agent = f'\n[agent]\npoll = {self.poll}\nprefect = "{self.prefect}"\n'
        if site == self.holder:
            found = fedrounds("site", "join", token, self.base / site, "--holder")
            with (self.base / site / "site.toml").open("a") as file:
                file.write(agent)
            return found
        described = self.base / f"{site}.toml"
        described.write_text((self.study / "sites" / f"{site}.toml").read_text() + agent)
        words = ("site", "join", token, self.base / site, "--site-file", described, "--data", self.data)
        found = fedrounds(*words, inside=self.inside.get(site, ()))
        described.unlink()
        return found

    def agent(self, site: str) -> None:
        """The hospital's agent."""
        self.start(site, "site", "start", self.base / site)

    def admitted(self, timeout: float = 60) -> None:
        """Wait until the coordinator has taken note of every enrolment."""
        until = time.monotonic() + timeout
        while {it["status"] for it in fedrounds("coordinator", "sites", self.home)["sites"]} != {"active"}:
            if time.monotonic() > until:
                raise SystemExit("expected every hospital to be admitted, found one that is not")
            time.sleep(0.5)

    def agree(self) -> None:
        """The hospitals' people go by one roster of keys, as masked sums need."""
        file = fedrounds("coordinator", "roster", self.home)["file"]
        digests = {fedrounds("site", "roster", self.base / site, file)["digest"] for site in self.everybody}
        assert len(digests) == 1

    def run(self, *words: object, timeout: float = 900) -> dict[str, Any]:
        """Bring the study to its rounds."""
        return fedrounds("run", self.home, *words, timeout=timeout)

    def kill(self, name: str) -> None:
        """kill -9, with all that it started."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def close(self) -> None:
        """End every process by its own id."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + 20
        for process in self.processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        self.database.stop()


@contextmanager
def demonstration(
    rounds: int,
    prefect: str = "off",
    keep: bool = False,
    heart: bool = True,
    plant: Callable[[Path], None] | None = None,
    public: str = "",
    inside: Mapping[str, Sequence[str]] | None = None,
    poll: float = 0.2,
) -> Iterator[Demonstration]:
    """A demonstration whose hospitals have joined and whose agents are at work.

    Args:
        plant: changes the study's folder first.
        public: the address that hospitals reach; by default a free port of this machine.
        inside: site -> the words that start its commands in another place.
        poll: seconds between two looks, of either side.
    """
    base = Path(tempfile.mkdtemp(prefix="fedrounds-demo-"))
    base.chmod(0o755)
    study, data = studied(base, rounds, heart, poll)
    if plant is not None:
        plant(study)
    it = Demonstration(base, study, data, prefect, poll, public)
    it.inside |= inside or {}
    try:
        it.init()
        it.serve()
        for site in it.everybody:
            it.join(site)
        for site in it.everybody:
            it.agent(site)
        it.admitted()
        yield it
    finally:
        it.close()
        if not keep:
            shutil.rmtree(base, ignore_errors=True)


def encrypt(study: Path) -> None:
    """Have the study encrypt its sums; the first hospital by name holds the key."""
    holder = min(file.stem for file in (study / "sites").glob("*.toml"))
    mask(study, f'{{ kind = "ckks", key_holder = "{holder}" }}')


def entrust(study: Path) -> None:
    """Have the study encrypt its sums under the key of a third party without patients."""
    mask(study, '{ kind = "ckks", holder = "trustee" }')


def mask(study: Path, protect: str = '{ kind = "masked" }') -> None:
    """Have the study hide its sums, and leave out what needs one hospital's numbers."""
    with (study / "study.toml").open("a") as file:
        file.write(f"\n[privacy]\nprotect = {protect}\n")
    operations = study / "operations.toml"
    text = re.sub(r"(?ms)^\[drift\].*?(?=^\[|\Z)", "", operations.read_text())
    operations.write_text(re.sub(r"(?m)^margin.*\n", "", text))


def studied(base: Path, rounds: int, heart: bool = True, poll: float = 0.2) -> tuple[Path, Path]:
    """A study of so many rounds, and the folder of its data."""
    study = base / "study"
    if heart and HEART.is_dir():
        shutil.copytree(HOUSE / "studies" / "heart", study)
        data = HEART
    else:
        fedrounds("init", study)
        data = study
    operations = study / "operations.toml"
    operations.write_text(
        re.sub(r"(?m)^rounds = \d+", f"rounds = {rounds}", operations.read_text())
        + f'\n[federation]\npoll = {poll}\ndeadline = "2m"\n'
    )
    return study, data


def split(it: Demonstration) -> list[dict[str, float]]:
    """Of every training round: seconds in all, until a hospital noticed the question, at work, until the coordinator noticed, the rest."""
    from fedrounds.ledger import Ledger
    from fedrounds.site.book import Book
    from fedrounds.tasks.federation import read

    with Ledger.open(read(it.home).place.ledger) as ledger:
        visits = ledger.visits(ask="train")
    asked = [
        line
        for site in it.sites
        for line in Book(it.base / site / "state" / "book.db").asked(10_000)
        if line.ask == "train"
    ]
    found = []
    for visit in visits:
        lines = [
            line for line in asked if line.round == visit.round and visit.started - 1 < line.at < visit.committed + 1
        ]
        last = max(lines, key=lambda line: line.at)
        noticed, done = last.at - last.seconds - visit.started, visit.committed - last.at
        found.append(
            {"all": visit.committed - visit.started, "to the site": noticed, "at work": last.seconds, "back": done}
        )
    return found


def told(it: Demonstration, found: Mapping[str, Any], alone: Mapping[str, Any], seconds: float) -> list[str]:
    """What came of it, in lines."""
    same = found["model_digest"] == alone["model_digest"]
    parts = split(it)
    median = {key: statistics.median(part[key] for part in parts) for key in parts[0]}
    spent = f"{median['to the site']:.2f} until the last hospital had the question, {median['at work']:.2f} at work"
    return [
        f"study      {found['study']}: {found['rounds']} rounds in {seconds:.1f} s, once all servers answered",
        f"model      {found['model_digest'][:16]}…, in one process {alone['model_digest'][:16]}…: {'the same' if same else 'ANOTHER'}",
        f"a round    {median['all']:.2f} s (median of {len(parts)}): {spent}, {median['back']:.2f} until its answer was committed",
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was tried with one hospital's credentials."""
    wide = max(len(str(row["tried"])) for row in rows)
    return [
        f"{row['tried']:<{wide}}  {row['status']!s:>9}  {'refused' if row['refused'] else 'ALLOWED'}" for row in rows
    ]


def main() -> None:
    """The whole demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="write docs/demo-federated.md")
    parser.add_argument("--keep", action="store_true", help="leave the folder for a look")
    parser.add_argument("--masked", action="store_true", help="the coordinator sees sums over the hospitals alone")
    parser.add_argument("--ckks", action="store_true", help="the same, by encryption under one hospital's key")
    parser.add_argument(
        "--trustee", action="store_true", help="the same, under the key of a third party without patients"
    )
    parser.add_argument("--prefect", choices=("own", "off"), default="off", help="of the hospitals' agents")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and so all that it started
    begun = time.monotonic()
    plant = mask if arguments.masked else encrypt if arguments.ckks else entrust if arguments.trustee else None
    with demonstration(arguments.rounds, arguments.prefect, arguments.keep, plant=plant) as it:
        if plant:
            it.agree()
        lines = [
            f"hospitals  {len(it.sites)} have joined and all servers are up after {time.monotonic() - begun:.0f} s"
        ]
        started = time.monotonic()
        found = it.run()
        seconds = time.monotonic() - started
        alone = fedrounds("run", it.study, "--data", it.data, "--state", it.base / "alone")
        lines += told(it, found, alone, seconds)
        from isolation import isolation
        from transfer import told as carried
        from transfer import transfer

        lines += carried(transfer(it.home, it.base / it.sites[0]))
        rows = isolation(it.home, [it.base / site for site in it.sites])
        lines += ["", "with one hospital's credentials:", *table(rows)]
    print("\n".join(lines))
    if arguments.write:
        intro = f"# A federation on one machine\n\nWritten by `make demo-federated` on {dt.date.today()} at commit {commit()}, {os.cpu_count()} cores"
        text = f'{intro}, agents with `prefect = "{arguments.prefect}"`.\n\n```text\n' + "\n".join(lines) + "\n```\n"
        (HOUSE / "docs" / "demo-federated.md").write_text(text)
    closed = all(row["refused"] for row in rows if row.get("must_refuse", True))
    if found["model_digest"] != alone["model_digest"] or not closed or seconds > 90:
        raise SystemExit("not as it should be")


def commit() -> str:
    """The commit that was measured."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=HOUSE, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
