"""`make many-agents`: what fifty hospitals' agents cost one coordinator. Writes docs/many-agents.md.

    python benchmarks/many_agents.py [--agents 50] [--rounds 5] [--poll 2.0] [--window 60]

The agents are threads of this process, each with a folder, a key, a user, a password and a TLS connection of its own: fifty processes
would cost 5 GB and measure the machine. All else is real: nginx, MLflow with basic-auth, PostgreSQL, `fedrounds run`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # as every agent has it
sys.path.insert(0, str(Path(__file__).parent))
from chaos import children
from demo_federated import HOUSE, Demonstration, fedrounds, split
from many_agents_page import PAGE, table

SITE = """simulated = true
name = "{name}"
[source]
kind = "csv"
path = "data/{name}.csv"
"""
GATES = 2  # helper processes of Great Expectations at a time: each hospital has a machine of its own for that, here there is one
SETTLE_S = 10.0  # until every user's password has been checked once
TICKS = os.sysconf("SC_CLK_TCK")


class Window(NamedTuple):
    """What was seen over some seconds while nothing was asked."""

    cached_s: int  # auth_cache_ttl_seconds
    seconds: float
    looks: int  # into mailboxes, by agents
    requests: int  # that nginx passed on
    failed: int  # with a status other than 200
    mlflow: float  # CPU seconds
    nginx: float
    agents: float
    machine: float  # all processes


class Agents:
    """Hospitals' agents at work, a thread each, as `fedrounds site start` runs one."""

    def __init__(self, homes: Sequence[Path]) -> None:
        self.looks, self.said = [0] * len(homes), list[str]()
        self._stop, self._gates = threading.Event(), threading.Semaphore(GATES)
        self._threads = [threading.Thread(target=self._serve, args=it, daemon=True) for it in enumerate(homes)]
        for thread in self._threads:
            thread.start()

    def _serve(self, number: int, home: Path) -> None:
        from fedrounds.tasks.agent import alone, serve
        from fedrounds.tasks.hospital import Answer, Hospital, Letter

        agents = self

        class Counted(Hospital):
            def look(self) -> Letter | None:
                agents.looks[number] += 1
                return super().look()

        hospital = Counted(home)

        def visit(letter: Letter) -> Answer:
            if letter.request.ask != "gate":
                return hospital.answer(letter)
            with self._gates:
                return hospital.answer(letter)

        try:
            with alone(home):
                serve(hospital, visit, self.said.append, self._stop)
        finally:
            hospital.close()

    def end(self) -> None:
        """Let each finish what it is at."""
        self._stop.set()
        until = time.monotonic() + 20
        for thread in self._threads:  # one that waits for a server that is overrun ends with this process
            thread.join(max(0.0, until - time.monotonic()))


@contextmanager
def at_work(homes: Sequence[Path]) -> Iterator[Agents]:
    """Agents that have all knocked and whose passwords have been checked once; they look at their full pace for a minute."""
    agents = Agents(homes)
    try:
        time.sleep(SETTLE_S)
        yield agents
    finally:
        agents.end()


# --- a coordinator and its hospitals ----------------------------------------------------------------------------------


def studied(base: Path, agents: int, rounds: int) -> Path:
    """The study of `fedrounds init`, with many hospitals of made-up patients."""
    from fedrounds.cli.template_data import toy

    study = base / "study"
    fedrounds("init", study)
    for folder in ("sites", "data"):
        shutil.rmtree(study / folder)
        (study / folder).mkdir()
    tables = [text for seed in range(1, agents // 4 + 2) for text in toy(seed).values()]
    for number, text in enumerate(tables[:agents], 1):
        name = f"hospital-{number:02d}"
        (study / "data" / f"{name}.csv").write_text(text)
        (study / "sites" / f"{name}.toml").write_text(SITE.format(name=name))
    operations = study / "operations.toml"
    text = re.sub(r"(?m)^rounds = \d+", f"rounds = {rounds}", operations.read_text())
    text = re.sub(r"(?m)^quorum = \d+", "quorum = 0.9", text)
    text = re.sub(
        r"(?m)^suite = .*", "", text
    )  # what is measured is the coordinator: the dictionary's own checks will do
    operations.write_text(text + '\n[federation]\npoll = 0.2\ndeadline = "20m"\n')
    return study


def join(it: Demonstration, poll: float) -> None:
    """Invite and enrol everybody. Without the gate of `site join`: the run asks for it."""
    from fedrounds.tasks import inviting, joining

    for site in it.sites:
        invited, _ = inviting.invite(it.home, site)
        described = it.base / f"{site}.toml"
        own = f'\n[agent]\npoll = {poll}\nprefect = "off"\n'
        described.write_text((it.study / "sites" / f"{site}.toml").read_text() + own)
        scratch = joining.prepared(invited, it.base / site, it.data, described)
        joining.enrol(scratch, it.base / site, invited)


def cache(it: Demonstration, seconds: int) -> None:
    """Have MLflow remember a checked password for so long. Its server dies and the coordinator starts it again."""
    file = it.home / "mlflow" / "basic_auth.ini"
    file.write_text(re.sub(r"(?m)^(auth_cache_ttl_seconds) = \d+", rf"\1 = {seconds}", file.read_text()))
    (before,) = mlflow(it)
    os.kill(before, signal.SIGKILL)
    until = time.monotonic() + 120
    while mlflow(it) in ([], [before]) or not healthy(it):
        if time.monotonic() > until:
            raise SystemExit("expected MLflow's server to come back within 120 s, found no answer")
        time.sleep(0.5)


def healthy(it: Demonstration) -> bool:
    """Whether MLflow answers."""
    import http.client

    from fedrounds.coordinator.config import read

    connection = http.client.HTTPConnection("127.0.0.1", read(it.home).ports.mlflow, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def mlflow(it: Demonstration) -> list[int]:
    """The process of MLflow's server."""
    return children(it.processes["coordinator"].pid, "fedrounds.tasks.mlflow_server")


# --- measuring --------------------------------------------------------------------------------------------------------


def cpu(pids: Sequence[int]) -> float:
    """CPU seconds of processes so far, of all their threads."""
    found = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found += int(fields[11]) + int(fields[12])
    return found / TICKS


def busy() -> float:
    """CPU seconds of the whole machine so far, those of strangers too."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(interrupts[:2])) / TICKS


def window(it: Demonstration, agents: Agents, cached_s: int, seconds: float) -> Window:
    """Look on for a while."""
    log = it.home / "log" / "nginx-access.log"
    servers, workers = mlflow(it), children(it.processes["coordinator"].pid, "nginx")

    def now() -> tuple[float, ...]:
        return time.monotonic(), sum(agents.looks), cpu(servers), cpu(workers), time.process_time(), busy()

    size, before = log.stat().st_size, now()
    time.sleep(seconds)
    after, whole = now(), log.stat().st_size
    with log.open("rb") as file:
        file.seek(size)
        lines = [line for line in file.read(whole - size).decode().splitlines() if " site-" in line]
    failed = sum('" 200 ' not in line for line in lines)
    spent = [end - start for start, end in zip(before, after, strict=True)]
    return Window(cached_s, spent[0], round(spent[1]), len(lines), failed, *spent[2:])


def request_costs(it: Demonstration, home: Path, looks: int) -> float:
    """CPU seconds that MLflow's server takes for a request while nobody else asks."""
    from fedrounds.tasks.hospital import Hospital

    hospital, servers, log = Hospital(home), mlflow(it), it.home / "log" / "nginx-access.log"
    hospital.look()
    used, size = cpu(servers), log.stat().st_size
    for _ in range(looks):
        hospital.look()
    used = cpu(servers) - used
    hospital.close()
    return used / log.read_bytes()[size:].count(b" site-")


def hash_costs() -> float:
    """CPU seconds of one check of a password, here and now: MLflow keeps them as Werkzeug hashes them."""
    from werkzeug.security import check_password_hash, generate_password_hash

    kept, found = generate_password_hash("password"), list[float]()
    for _ in range(9):
        began = time.thread_time()
        check_password_hash(kept, "password")
        found.append(time.thread_time() - began)
    return statistics.median(found)


class Rounds(NamedTuple):
    """The training rounds of a run, in seconds: medians."""

    number: int
    all: float
    to: float
    work: float
    back: float
    requests: float  # at nginx, a hospital and a round
    mlflow: float  # CPU seconds of its server a second of the run
    run: float  # the whole command


def trained(it: Demonstration) -> Rounds:
    """`fedrounds run`, timed by the ledger's and the hospitals' own lines."""
    from fedrounds.ledger import Ledger
    from fedrounds.tasks.federation import read

    servers, began = mlflow(it), time.monotonic()
    used = cpu(servers)
    it.run(timeout=3600)
    took = time.monotonic() - began
    used = (cpu(servers) - used) / took
    with Ledger.open(read(it.home).place.ledger) as ledger:
        visits = ledger.visits(ask="train")
    first, last = visits[0].started, visits[-1].committed
    lines = (it.home / "log" / "nginx-access.log").read_text().splitlines()
    times = [
        dt.datetime.fromisoformat(line.split("[")[1].split("]")[0]).timestamp() for line in lines if " site-" in line
    ]
    requests = sum(first <= at < last for at in times) / len(it.sites) / len(visits)
    parts = split(it)
    median = {key: statistics.median(part[key] for part in parts) for key in parts[0]}
    return Rounds(
        len(parts), median["all"], median["to the site"], median["at work"], median["back"], requests, used, took
    )


def page(
    agents: int, poll: float, known: Window, unknown: Window, alone: Sequence[float], found: Rounds, joining: float
) -> str:
    """docs/many-agents.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HOUSE, capture_output=True, text=True, check=True
    ).stdout.strip()
    pairs, cores, check = (known, unknown), os.cpu_count() or 1, hash_costs()
    known_auth = agents / known.cached_s * check  # CPU seconds a second
    rest, bare = alone[0], alone[1] - alone[0]  # of a request: all but passwords, passwords without a cache
    rate = known.requests / known.seconds
    return PAGE.format(
        date=dt.date.today(),
        commit=commit,
        python=platform.python_version(),
        cores=cores,
        agents=agents,
        poll=poll,
        others=" and ".join(f"{(it.machine - it.mlflow - it.nginx - it.agents) / it.seconds:.1f}" for it in pairs),
        waiting=table(
            ("`auth_cache_ttl_seconds`", *(f"{it.cached_s}" for it in pairs)),
            ("seconds looked on", *(f"{it.seconds:.0f}" for it in pairs)),
            ("polls (looks into a mailbox) a second", *(f"{it.looks / it.seconds:.1f}" for it in pairs)),
            ("requests a second at nginx", *(f"{it.requests / it.seconds:.1f}" for it in pairs)),
            ("of all, not answered with 200", *(f"{it.failed}" for it in pairs)),
            ("CPU of MLflow's server, s a second", *(f"{it.mlflow / it.seconds:.2f}" for it in pairs)),
            ("CPU of it for one request while nobody else asks, ms", *(f"{1e3 * it:.1f}" for it in alone)),
            ("CPU of nginx, s a second", *(f"{it.nginx / it.seconds:.3f}" for it in pairs)),
            (f"CPU of all {agents} agents, s a second", *(f"{it.agents / it.seconds:.2f}" for it in pairs)),
        ),
        hash=1e3 * check,
        known_auth=known_auth,
        known_share=known_auth * known.seconds / known.mlflow,
        checks=bare / check,
        unknown_share=bare / alone[1],
        wanted=rate * alone[1],
        got=unknown.looks / unknown.seconds / (known.looks / known.seconds),
        round=table(
            ("training rounds, `auth_cache_ttl_seconds = 60`", f"{found.number}"),
            ("a round, s (median)", f"{found.all:.2f}"),
            ("of it until the last hospital had the question", f"{found.to:.2f}"),
            ("at work and sending, the last hospital", f"{found.work:.2f}"),
            ("until all answers were committed", f"{found.back:.2f}"),
            ("requests at nginx, a hospital and a round", f"{found.requests:.1f}"),
            ("CPU of MLflow's server, s a second of the run", f"{found.mlflow:.2f}"),
            ("the whole command, s", f"{found.run:.0f}"),
        ),
        gates=GATES,
        joining=joining,
        core=1 / rest,
        rest=1e3 * rest,
        idle=8 * poll,
        asked=found.requests,
        serving=agents * found.requests * rest,
        few=1 / (rest / poll + check / known.cached_s),
        many=1 / (rest / 30 + check / known.cached_s),
    )


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--poll", type=float, default=2.0)
    parser.add_argument("--window", type=float, default=60.0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    base = Path(tempfile.mkdtemp(prefix="fedrounds-many-"))
    base.chmod(0o755)
    study = studied(base, arguments.agents, arguments.rounds)
    it = Demonstration(base, study, study)
    try:
        it.init()
        it.serve()
        began = time.monotonic()
        join(it, arguments.poll)
        joining_s = time.monotonic() - began
        print(f"{len(it.sites)} hospitals enrolled in {joining_s:.0f} s", flush=True)
        it.admitted()
        homes = [base / site for site in it.sites]
        alone = [request_costs(it, homes[0], 100)]
        with at_work(homes) as agents:
            known = window(it, agents, 60, arguments.window)
            print(known, flush=True)
            found = trained(it)
            print(found, *agents.said[-1:], flush=True)
            wrong = [line for line in agents.said if ": answered" not in line]
        cache(it, 0)
        alone.append(request_costs(it, homes[0], 25))
        print(alone, flush=True)
        with at_work(homes) as agents:
            unknown = window(it, agents, 0, arguments.window / 2)
            print(unknown, flush=True)
        text = page(len(it.sites), arguments.poll, known, unknown, alone, found, joining_s)
    finally:
        it.close()
        shutil.rmtree(base, ignore_errors=True)
    print(text)
    if wrong:
        raise SystemExit("\n".join([f"expected answers alone, found {len(wrong)} other lines:", *wrong[:10]]))
    if arguments.agents >= 50:
        (HOUSE / "docs" / "many-agents.md").write_text(text)


if __name__ == "__main__":
    main()
