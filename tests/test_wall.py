"""A hospital behind a wall: a network namespace that lets out TCP to one port of one address, and lets in nothing but the answers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import closing

import pytest
from chaos import Chaos
from demo_federated import demonstration, split

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


@pytest.fixture(scope="module")
def wall():
    """The namespace, and what ends it."""
    for tool, package in (("ip", "iproute2"), ("nft", "nftables"), ("ss", "iproute2"), ("nginx", "nginx-light")):
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
            subprocess.run([*IN_IT, "ip", *words], check=True, timeout=30)
        subprocess.run([*IN_IT, "nft", "-f", "-"], input=WALL, text=True, check=True, timeout=30)
        yield
    finally:
        subprocess.run(["ip", "link", "del", "fr-outer"], capture_output=True, timeout=30)
        ip("netns", "del", SPACE)


@pytest.fixture(scope="module")
def chaos(wall):
    """A study whose hospital `east` is behind the wall; the others are not."""
    with demonstration(ROUNDS, heart=False, public=f"https://{OUTER}", inside={SITE: IN_IT}) as it:
        yield Chaos(it, seed=2)


def listening() -> list[str]:
    """Addresses that anything in the hospital's namespace listens on."""
    said = subprocess.run([*IN_IT, "ss", "-Hlntu"], capture_output=True, text=True, check=True, timeout=30).stdout
    return [line.split()[4] for line in said.splitlines()]


def open_to_the_hospital(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((INNER, port)) == 0


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


def test_a_network_that_is_cut_for_seconds_changes_no_bit(chaos):
    log = chaos.it.base / f"{SITE}.log"
    run, before = chaos.run(), len(log.read_text())
    until = time.monotonic() + 90
    while "train: answered" not in log.read_text()[before:] and time.monotonic() < until:
        time.sleep(0.02)
    ip("link", "set", "fr-outer", "down")
    time.sleep(CUT_S)
    ip("link", "set", "fr-outer", "up")
    chaos.finish(run)
    assert max(part["all"] for part in split(chaos.it)) > CUT_S - 1, "a round was under way, and waited"
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
