"""Who runs: one process at a time has the lease of a study.

A lease is one row. Every function works inside the caller's transaction, so that nobody comes between what it reads and what it writes.

Whether a process of this machine is alive can be asked. Of one elsewhere only time tells: it renews its lease while it lives. It may be merely
slow, and wake up after another took over; then its owner, a random word that each ledger object draws, is no longer in the row, and every
write of a runner looks for it there in its own transaction. So the owner is the fence: what it guards needs no clock to be right.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
import uuid
from pathlib import Path

from sqlalchemy import Connection, delete, select, update

from fedrounds.core.errors import StateError, StudyBusy
from fedrounds.ledger import schema
from fedrounds.ledger.database import put

LEASE_S = 900  # how long a runner on another host is believed to live without a sign


def take(connection: Connection, owner: str, lease_s: float, where: str, now: float, shared: bool = False) -> None:
    """Give the lease to `owner`. Raises StudyBusy if another one has it and lives: here by its process, elsewhere by its lease.

    Args:
        shared: whether other machines may have it, and be called as this one is.
    """
    held, here_is = connection.execute(select(schema.lease)).first(), host(shared)
    if held and held.owner != owner:
        here = held.host == here_is
        if (here and born(held.pid) == held.born) or (not here and held.expires > now):
            until = "" if here else f", its lease ends {_utc(held.expires)}"
            raise StudyBusy(
                f"expected no other runner on this study, found one at work (pid {held.pid} on {held.host.partition(' ')[0]}, since "
                f"{_utc(held.taken)}{until}) in {where}: wait until it ends, or end it"
            )
    mine = {"owner": owner, "pid": os.getpid(), "host": here_is, "born": born(os.getpid())}
    put(connection, schema.lease, {"id": schema.ONLY}, mine | {"taken": now, "expires": now + lease_s})


def renew(connection: Connection, owner: str, lease_s: float, where: str, now: float) -> None:
    """Start the lease of `owner` afresh. Raises StateError if it has none."""
    mine = update(schema.lease).where(schema.lease.c.owner == owner)
    if not connection.execute(mine.values(expires=now + lease_s)).rowcount:
        raise StateError(
            f"expected this process to have the lease of {where}, found that another runner took it: nothing was written, "
            "end one of them"
        )


def drop(connection: Connection, owner: str) -> None:
    """Let the next one in; does nothing if another has the lease."""
    connection.execute(delete(schema.lease).where(schema.lease.c.owner == owner))


def host(shared: bool) -> str:
    """This machine's name. Where others may have the same one, which two containers easily do: with what no other kernel or container shares."""
    if not shared:
        return platform.node()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: each process counts as elsewhere, and time decides
        return f"{platform.node()} {uuid.uuid4()}"


def born(pid: int) -> str:
    """When a living process started, in words that no other process of this host shares; empty if there is no such process.

    A killed process that nobody waited for (a zombie) is not living.
    """
    try:
        if Path("/proc/self/stat").exists():  # ticks since boot: unlike a time of day, they never shift
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {rest[18]}"
        ps = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        state, _, started = subprocess.run(ps, capture_output=True, text=True).stdout.strip().partition(" ")
        return "" if state.startswith("Z") else started.strip()
    except OSError:
        return ""


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
