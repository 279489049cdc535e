"""What docs/many-agents.md says; many_agents.py measures and fills it in."""

from __future__ import annotations

from collections.abc import Sequence

PAGE = """# Many agents

Written by `make many-agents` on {date} at commit {commit}, Python {python}, {cores} cores. {agents} agents, each a thread of one process with
a folder, key, user, password and TLS connection of its own, `poll = {poll:g}`, `prefect = "off"`. nginx, one MLflow server with basic-auth,
PostgreSQL and the run are real, on the same machine; everything else there took {others} of its cores in the two windows. That
lengthens a round; CPU seconds it hardly changes.

## Waiting for questions

{waiting}

One check of a password costs {hash:.0f} ms of CPU here (Werkzeug's scrypt, 32 MiB). With the cache each user's is checked once a minute:
{known_auth:.2f} s a second, {known_share:.0%} of MLflow's work. Without it a request costs {checks:.1f} checks: {unknown_share:.0%} of MLflow's work.
{agents} hospitals would want {wanted:.1f} cores for that; here they got {got:.0%} of their looks.

## A round

{round}

A round is {agents} × {asked:.1f} requests, {serving:.1f} s of CPU in MLflow's one process: for that it waits, more than for polls or for work.
The command includes {agents} gates, {gates} at a time on this one machine; hospitals judge their data at once. To invite and enrol all took
{joining:.0f} s: nginx lets one address change 20 passwords at once, then 30 a minute.

## Bigger federations

One MLflow server is one process, about one core: some {core:.0f} requests a second at {rest:.1f} ms each, less what passwords take. A hospital costs
a request in {poll:g} s while a study is at work, one in {idle:g} s after a minute without a question, and about {asked:.0f} a round. In this order:

1. **Poll longer** (`poll` in the hospitals' site.toml). A core is full at some {few:.0f} hospitals that all look every {poll:g} s, and at {many:.0f}
   that look every 30 s; a round takes up to that much longer, which a weekly study does not feel. Leave `auth_cache_ttl_seconds` at 60 or raise it.
   It is safe to: MLflow forgets a user's entry at once when the password changes or the user goes, and a permission is looked up each time.
2. **More MLflow workers.** Mailboxes are files, users are in PostgreSQL: several servers can share both behind nginx. Not built:
   `fedrounds coordinator start` runs one and writes nginx's configuration for one. Each worker has a cache of its own: it checks every password
   itself, and a changed one is out only within the time to live at the workers that did not change it.
3. **Mutual TLS instead of passwords.** nginx can ask for a client certificate and hand its name to an `authorization_function` of MLflow; no
   check costs a hash then. Not built: a hospital would send a certificate request with its enrolment.
4. **An object store as exchange.** `exchange = "s3://…"` in site.toml and `mail` in coordinator.toml take MLflow out of the hospitals' way
   altogether; the store's own policies then keep them apart. No real bucket has been tried yet (docs/exchange.md).

Hospitals behind one gateway share its address. nginx allows an address 100 connections, and every agent keeps one: raise `limit_conn` for more.
"""


def table(head: Sequence[str], *rows: Sequence[str]) -> str:
    """As Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- |", "|---|").replace(" ---: ", "---:")
