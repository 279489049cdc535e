"""A hospital behind a wall: a network namespace that lets out TCP to one port of one address, and lets in nothing but the answers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections import deque
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from chaos import Chaos
from demo_federated import demonstration

SPACE, OUTER, INNER = "fedrounds-wall", "10.213.7.1", "10.213.7.2"
IN_IT = ["ip", "netns", "exec", SPACE]
WALL = f"""
table inet wall {{
  chain input {{ type filter hook input priority 0; policy drop; iifname lo accept; ct state established accept; }}
  chain output {{ type filter hook output priority 0; policy drop; oifname lo accept; ct state established accept;
    ip daddr {OUTER} tcp dport 443 accept; }}
}}
"""
SITE, ROUNDS, CUT_S = "east", 4, 4


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30)


def inside(*words: str) -> None:
    """In the hospital's namespace."""
    subprocess.run([*IN_IT, *words], check=True, timeout=30)


@pytest.fixture(scope="module")
def wall():
    """The namespace, and what ends it."""
    for tool, package in (
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("ss", "iproute2"),
        ("tc", "iproute2"),
        ("nginx", "nginx-light"),
    ):
        assert shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin"), (
            f"expected {tool}, found none: apt-get install {package}"
        )
    subprocess.run(["ip", "netns", "del", SPACE], capture_output=True, timeout=30)
    ip("netns", "add", SPACE)
    try:
        ip("link", "add", "fr-outer", "type", "veth", "peer", "name", "fr-inner", "netns", SPACE)
        ip("addr", "add", f"{OUTER}/30", "dev", "fr-outer")
        ip("link", "set", "fr-outer", "up")
        for words in (
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{INNER}/30", "dev", "fr-inner"],
            ["link", "set", "fr-inner", "up"],
        ):
            inside("ip", *words)
        subprocess.run([*IN_IT, "nft", "-f", "-"], input=WALL, text=True, check=True, timeout=30)
        yield
    finally:
        subprocess.run(["ip", "link", "del", "fr-outer"], capture_output=True, timeout=30)
        ip("netns", "del", SPACE)


def wide(study: Path) -> None:
    """A model whose updates have 80 kB, so that an upload can be met on its way."""
    file = study / "study.toml"
    text = file.read_text()
    assert 'kind = "logistic"' in text
    file.write_text(text.replace('kind = "logistic"', 'kind = "mlp"\nhidden = [96, 96]'))


@pytest.fixture(scope="module")
def chaos(wall):
    """A study whose hospital `east` is behind the wall; the others are not."""
    with demonstration(ROUNDS, heart=False, plant=wide, public=f"https://{OUTER}", inside={SITE: IN_IT}) as it:
        yield Chaos(it, seed=2)


def listening() -> list[str]:
    """Addresses that anything in the hospital's namespace listens on."""
    said = subprocess.run([*IN_IT, "ss", "-Hlntu"], capture_output=True, text=True, check=True, timeout=30).stdout
    return [line.split()[4] for line in said.splitlines()]


def open_to_the_hospital(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((INNER, port)) == 0


@contextmanager
def slowly():
    """A line on which the hospital sends 25 kB a second."""
    shaped = ("dev", "fr-inner", "root", "tbf", "rate", "200kbit", "burst", "16kb", "latency", "400ms")
    inside("tc", "qdisc", "add", *shaped)
    try:
        yield
    finally:
        inside("tc", "qdisc", "del", *shaped[:3])


def uploading(within: float = 90, kilobytes: int = 25, span: float = 1.5) -> bool:
    """Wait until the hospital sends more in a span of seconds than looks into its mailbox do (10 kB); whether it came to that."""
    counter, seen = Path("/sys/class/net/fr-outer/statistics/rx_bytes"), deque[tuple[float, int]]()
    until = time.monotonic() + within
    while time.monotonic() < until:
        seen.append((time.monotonic(), int(counter.read_text())))
        while seen[-1][0] - seen[0][0] > span:
            seen.popleft()
        if seen[-1][1] - seen[0][1] > 1000 * kilobytes:
            return True
        time.sleep(0.05)
    return False


def test_a_hospital_that_reaches_one_port_outwards_joins_and_trains_and_opens_none(chaos):
    run, seen = chaos.run(), []
    while run.poll() is None:
        seen += listening()
        time.sleep(0.5)
    chaos.finish(run)
    assert chaos.rounds == ROUNDS
    assert seen == [], "without a Prefect of its own nothing listens at all"
    assert "train: answered" in (chaos.it.base / f"{SITE}.log").read_text()
    assert not open_to_the_hospital(443)
    assert not open_to_the_hospital(4200)


def test_a_network_that_is_cut_amid_an_upload_changes_no_bit(chaos):
    log = chaos.it.home / "log" / "nginx-access.log"
    before = len(log.read_text().splitlines())
    with slowly():
        run = chaos.run()
        met = uploading()
        inside("ip", "link", "set", "fr-inner", "down")
        time.sleep(CUT_S)
        inside("ip", "link", "set", "fr-inner", "up")
    chaos.finish(run)
    assert met, "a reply takes seconds on so slow a line"
    lines = [line.split() for line in log.read_text().splitlines()[before:]]
    puts = [float(line[-1]) for line in lines if line[1] == f"site-{SITE}" and line[3] == "PUT"]
    assert max(puts) > CUT_S, "an upload was open while there was no network"
    assert chaos.examine() == []


def test_with_a_prefect_of_its_own_a_hospital_listens_on_loopback_alone(chaos):
    file = chaos.it.base / SITE / "site.toml"
    file.write_text(file.read_text().replace('prefect = "off"', 'prefect = "own"'))
    chaos.it.kill(SITE)
    chaos.it.agent(SITE)
    run, seen = chaos.run(), []
    while run.poll() is None:
        seen += listening()
        time.sleep(0.5)
    chaos.finish(run)
    assert seen, "its own Prefect listens"
    assert {address.rpartition(":")[0] for address in seen} <= {"127.0.0.1", "[::1]"}
    assert "score: answered" in (chaos.it.base / f"{SITE}.log").read_text().rpartition("Prefect of")[2]
