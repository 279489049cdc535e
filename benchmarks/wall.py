"""A wall around a hospital: a network namespace that lets out TCP to one port of one address, and lets in nothing but the answers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

SPACE, OUTER, INNER = "fedrounds-wall", "10.213.7.1", "10.213.7.2"
IN_IT = ["ip", "netns", "exec", SPACE]
WALL = f"""
table inet wall {{
  chain input {{ type filter hook input priority 0; policy drop; iifname lo accept; ct state established accept; }}
  chain output {{ type filter hook output priority 0; policy drop; oifname lo accept; ct state established accept;
    ip daddr {OUTER} tcp dport 443 accept; }}
}}
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30)


def inside(*words: str) -> None:
    """In the hospital's namespace."""
    subprocess.run([*IN_IT, *words], check=True, timeout=30)


@contextmanager
def wall() -> Iterator[None]:
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


def listening() -> list[str]:
    """Addresses that anything in the hospital's namespace listens on."""
    said = subprocess.run([*IN_IT, "ss", "-Hlntu"], capture_output=True, text=True, check=True, timeout=30).stdout
    return [line.split()[4] for line in said.splitlines()]


def open_to_the_hospital(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((INNER, port)) == 0


@contextmanager
def slowly() -> Iterator[None]:
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
