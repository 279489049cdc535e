"""100 MB through a running coordinator: the exchange, checked and in pieces, beside one plain PUT of the same file to the same nginx.

    python benchmarks/transfer.py DIR SITE_FOLDER [MEGABYTES] [TIMES]      (DIR with its servers running, a hospital that has joined)

The plain PUT goes to the staff's port of that nginx, by the administrator: a hospital's port takes pieces alone. Medians, turn about; memory
is each client's whole process at its most, and how much the servers' processes have grown while it ran.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from contextlib import closing
from hashlib import file_digest
from pathlib import Path
from typing import Any

MB = 1 << 20


def client(what: str, home: Path, site: Path, file: Path) -> dict[str, float]:
    """One transfer, in a process of its own: seconds, MB at rest and at most."""
    from fedrounds.exchange.name import Name
    from fedrounds.tasks.folder import read_site
    from fedrounds.tasks.mailboxes import mailbox_of

    coordinator = read_site(site / "site.toml").coordinator
    with file.open("rb") as data:
        name = Name(999999, 0, "transfer", file_digest(data, "sha256").hexdigest())
    box = mailbox_of(coordinator, site)
    box.list("999998")  # the connection is there, and the password checked
    rest = resident("VmRSS")
    started = time.perf_counter()
    if what == "put":
        with file.open("rb") as data:
            box.put(name, data)
    elif what == "get":
        with tempfile.TemporaryFile() as into:
            assert box.fetch(name, into)
            assert into.tell() == file.stat().st_size
    else:
        plain(home, coordinator.experiment, file, str(site / coordinator.ca))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rest": rest, "most": resident("VmHWM")}


def plain(home: Path, experiment: str, file: Path, ca: str) -> None:
    """One PUT, and nothing else."""
    from fedrounds.coordinator import config as configs

    config, secrets = configs.read(home), configs.read_secrets(home)
    who = b64encode(f"admin:{secrets.admin_password}".encode()).decode()
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(
        "127.0.0.1", config.ports.staff, timeout=300, context=context, blocksize=1 << 16
    )
    with closing(connection), file.open("rb") as data:
        path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/plain/{file.name}"
        connection.request(
            "PUT", path, data, {"Authorization": f"Basic {who}", "Content-Length": str(file.stat().st_size)}
        )
        assert connection.getresponse().status == 200


def resident(which: str, pid: int | str = "self") -> float:
    """MB that a process has in memory: VmRSS now, VmHWM at most."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def servers(home: Path) -> dict[str, list[int]]:
    """Process ids of MLflow and nginx with its workers, by the ports that they have."""
    from fedrounds.coordinator import config as configs

    ports = configs.read(home).ports
    found: dict[str, list[int]] = {"mlflow": [], "nginx": []}
    sockets = {name: _inodes(port) for name, port in (("mlflow", ports.mlflow), ("nginx", ports.public))}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = {os.readlink(link) for link in (process / "fd").iterdir()}
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        for name, inodes in sockets.items():
            if held & inodes and (b"mlflow_server" in words if name == "mlflow" else b"nginx" in words):
                found[name].append(int(process.name))
    return found


def _inodes(port: int) -> set[str]:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{line[9]}]" for line in lines if line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port}


def transfer(home: Path, site: Path, megabytes: int = 100, times: int = 4) -> dict[str, Any]:
    """Measure; everything that was sent is removed again."""
    from fedrounds.coordinator import config as configs
    from fedrounds.exchange.exchange import Exchange
    from fedrounds.exchange.fsspec import Folder
    from fedrounds.tasks.folder import read_site

    experiment = read_site(site / "site.toml").coordinator.experiment
    config = configs.read(home)
    place = Path(configs.mail(home, config, experiment))
    ids = [pid for pids in servers(home).values() for pid in pids]
    found: dict[str, list[dict[str, float]]] = {"plain": [], "put": [], "get": []}
    grown = dict.fromkeys(ids, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(times):
            file = Path(scratch) / f"{turn}.bin"
            file.write_bytes(os.urandom(megabytes * MB))
            for what in found:
                before = {pid: _forget_most(pid) for pid in ids}
                words = [sys.executable, __file__, "--client", what, str(home), str(site), str(file)]
                said = subprocess.run(words, check=True, capture_output=True, timeout=600, text=True).stdout
                found[what].append(json.loads(said))
                grown = {pid: max(grown[pid], resident("VmHWM", pid) - before[pid]) for pid in ids}
            box = Exchange(Folder(str(place)))
            for name in box.list("999999"):
                box.drop(name)
            (place.parent / "plain" / file.name).unlink()
            file.unlink()
    median = {what: statistics.median(it["seconds"] for it in took) for what, took in found.items()}
    most = {what: max(it["most"] for it in took) for what, took in found.items()}
    names = {pid: name for name, pids in servers(home).items() for pid in pids}
    return {
        "megabytes": megabytes,
        "seconds": median,
        "ratio": median["plain"] / median["put"],
        "client_mb": most,
        "client_grown_mb": max(it["most"] - it["rest"] for what in ("put", "get") for it in found[what]),
        "server_mb": {
            name: max(resident("VmHWM", pid) for pid in ids if names[pid] == name) for name in ("mlflow", "nginx")
        },
        "server_grown_mb": {name: max(grown[pid] for pid in ids if names[pid] == name) for name in ("mlflow", "nginx")},
    }


def told(it: dict[str, Any]) -> list[str]:
    """What was measured, in lines."""
    seconds, most = it["seconds"], it["client_mb"]
    servers = ", ".join(
        f"{name} {it['server_mb'][name]:.0f} MB (grown by {by:.0f})" for name, by in it["server_grown_mb"].items()
    )
    return [
        f"{it['megabytes']} MB, medians: a plain PUT {seconds['plain']:.2f} s, the exchange's put {seconds['put']:.2f}, get {seconds['get']:.2f}",
        f"the exchange's put at {100 * it['ratio']:.0f} % of the plain PUT's rate (at least 60 % is asked)",
        f"memory at most: the client {max(most['put'], most['get']):.0f} MB, of which the transfer {it['client_grown_mb']:.0f}; {servers}",
    ]


def _forget_most(pid: int) -> float:
    """Have the system forget how large a process once was; returns what it is now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return resident("VmRSS", pid)


def main() -> None:
    """Print the measurement."""
    if sys.argv[1] == "--client":
        print(json.dumps(client(sys.argv[2], *map(Path, sys.argv[3:6]))))
        return
    it = transfer(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5]))
    print("\n".join(told(it)))


if __name__ == "__main__":
    main()
