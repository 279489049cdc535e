"""`make many-agents`: fifty hospitals' agents against one coordinator. Writes docs/many-agents.md.

    python benchmarks/many_agents.py [--agents 50] [--rounds 5] [--poll 1.0]

Each agent has a folder, a key, a user and a mailbox of its own and speaks HTTPS through nginx to MLflow with basic-auth; they are threads of one
process here, so that what is measured is the coordinator.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from chaos import children
from demo_federated import HOUSE, Demonstration, fedrounds, split, studied

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that living processes have used."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def many(study: Path, count: int) -> None:
    """So many site files and tables, from the toy study's four."""
    tables = sorted((study / "data").glob("*.csv"))
    files = {file.stem: file.read_text() for file in (study / "sites").glob("*.toml")}
    for file in (study / "sites").glob("*.toml"):
        file.unlink()
    for n in range(count):
        table = tables[n % len(tables)]
        name = f"site-{n:02d}"
        (study / "sites" / f"{name}.toml").write_text(files[table.stem])
    operations = study / "operations.toml"
    text = re.sub(r"(?m)^quorum = .*", f"quorum = {count}", operations.read_text())
    operations.write_text(
        re.sub(r"(?m)^suite = .*", "", text)
    )  # fifty gates at once would be measured, not their coordinator


def enrolled(it: Demonstration, poll: float) -> None:
    """Invite and join them all, in this process."""
    from fedrounds.coordinator import roster
    from fedrounds.tasks import inviting, joining

    for site in it.sites:
        invitation, _ = inviting.invite(it.home, site)
        described = it.base / f"{site}.toml"
        described.write_text(
            (it.study / "sites" / f"{site}.toml").read_text() + f'\n[agent]\npoll = {poll}\nprefect = "off"\n'
        )
        scratch = joining.prepared(invitation, it.base / site, it.study, described)
        joining.check(scratch, invitation)
        joining.enrol(scratch, it.base / site, invitation)
    until = time.monotonic() + 120
    while len(roster.active(it.home)) < len(it.sites):
        if time.monotonic() > until:
            raise SystemExit("expected every hospital to be admitted, found one that is not")
        time.sleep(0.5)


def agents(it: Demonstration, stop: threading.Event) -> list[threading.Thread]:
    """Every hospital's agent, at work."""
    from fedrounds.tasks.agent import serve
    from fedrounds.tasks.hospital import Hospital

    started = []
    for site in it.sites:
        hospital = Hospital(it.base / site)
        thread = threading.Thread(target=serve, args=(hospital, hospital.answer, lambda _: None, stop), daemon=True)
        thread.start()
        started.append(thread)
    return started


def requests(it: Demonstration) -> int:
    """How many requests nginx has served."""
    return sum(1 for _ in (it.home / "log" / "nginx-access.log").open())


def idle(it: Demonstration, seconds: float, poll: float) -> str:
    """A line about what polls cost while nothing is asked."""
    servers = children(it.processes["coordinator"].pid, "mlflow_server")
    before, used, began = requests(it), cpu_s(servers), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    rate, cores = (requests(it) - before) / took, (cpu_s(servers) - used) / took
    each = 1000 * cores / rate if rate else 0.0
    return f"| {poll:g} | {rate:.0f} | {cores:.2f} | {each:.1f} |"


def hashing() -> float:
    """Milliseconds of CPU of one password hash, which a request costs when it is not remembered."""
    from werkzeug.security import check_password_hash, generate_password_hash

    known, began = generate_password_hash("a password of some length"), time.process_time()
    for _ in range(5):
        check_password_hash(known, "a password of some length")
    return 1000 * (time.process_time() - began) / 5


def page(agents: int, joined: float, rounds: int, took: float, median: float, rows: list[str]) -> str:
    """docs/many-agents.md."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=HOUSE, capture_output=True, text=True, check=True).stdout.strip()
    hash_ms = hashing()
    return f"""# Many agents

Written by `make many-agents` on {dt.date.today()} at commit {commit}, {os.cpu_count()} cores: {agents} agents without Prefect, each with a
user and a mailbox of its own over HTTPS, threads of one process beside the coordinator. All had joined in {joined:.0f} s.

{rounds} rounds took {took:.1f} s with all that a run does; a training round {median:.2f} s (median).

| poll, s | requests a second | CPU of MLflow's server, cores | ms a request |
|---|---|---|---|
{chr(10).join(rows)}

A password hash takes {hash_ms:.0f} ms of CPU here. It is remembered for 60 s (`auth_cache_ttl_seconds`), so {agents} agents cost about
{agents / 60 * hash_ms / 1000:.2f} cores of authentication, which is in the figures above; without memory every request would cost one hash.

For bigger federations: let agents poll every 10 s or more (rounds of a week do not mind), raise MLflow's workers, or keep mailboxes on SFTP
or an object store, where a poll costs the coordinator nothing. Requests a second are agents / poll, and up to three times that while a round
waits.
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--poll", type=float, default=1.0)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="fedrounds-many-"))
    base.chmod(0o755)
    study, data = studied(base, arguments.rounds, heart=False)
    many(study, arguments.agents)
    it = Demonstration(base, study, data)
    stop = threading.Event()
    try:
        it.init()
        it.serve()
        began = time.monotonic()
        enrolled(it, arguments.poll)
        joined = time.monotonic() - began
        running = agents(it, stop)
        time.sleep(5)
        quiet = idle(it, 20, arguments.poll)
        servers = children(it.processes["coordinator"].pid, "mlflow_server")
        before, used, began = requests(it), cpu_s(servers), time.monotonic()
        found = fedrounds("run", it.home, timeout=1200)
        took = time.monotonic() - began
        asked, cores = requests(it) - before, (cpu_s(servers) - used) / took
        busy = f"| {arguments.poll:g}, rounds under way | {asked / took:.0f} | {cores:.2f} | {1000 * cores * took / max(1, asked):.1f} |"
        parts = split(it)
        median = statistics.median(part["all"] for part in parts)
        stop.set()
        for thread in running:
            thread.join(10)
        told = page(arguments.agents, joined, found["rounds"], took, median, [quiet, busy])
        print(told)
        (HOUSE / "docs" / "many-agents.md").write_text(told)
    finally:
        stop.set()
        it.close()
        shutil.rmtree(base, ignore_errors=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
