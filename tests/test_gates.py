"""Many sites are judged by two helpers, few by one; each answer is its own site's."""

from __future__ import annotations

import pytest

from fedrounds.tasks import folder as folders
from fedrounds.tasks import gates as module
from fedrounds.tasks.gates import Gates
from fedrounds.tasks.run import QUIET

SITES = ("north", "south", "east", "west")


@pytest.mark.parametrize("many", [4, 5])
def test_from_many_sites_on_two_helpers_take_turns_and_find_the_same(toy_study, tmp_path, monkeypatch, many):
    monkeypatch.setattr(module, "MANY", many)
    gates = Gates(folders.read(toy_study.folder), tmp_path / "log", QUIET)
    try:
        answers = {site: gates.ask(site) for site in SITES}
        found = {site: answer.result(60) for site, answer in answers.items()}
        pids = {helper.pid for helper in gates._helpers if helper is not None}
    finally:
        gates.kill()
    assert len(pids) == (2 if many == 4 else 1)
    assert {site: one["verdict"]["site"] for site, one in found.items()} == dict(zip(SITES, SITES, strict=True))
    assert all(one["verdict"]["passed"] for one in found.values())
    assert len({one["fingerprint"] for one in found.values()}) == len(SITES)


def test_a_helper_that_died_is_replaced(toy_study, tmp_path):
    read = folders.read(toy_study.folder)
    gates = Gates(read, tmp_path / "log", QUIET)
    try:
        assert gates.ask("north").result(60)["verdict"]["passed"]
        gates.kill()
        assert gates.ask("south").result(60)["verdict"]["site"] == "south"
    finally:
        gates.kill()
