"""Bytes by round and by hospital, each way: the ledger's, in the report, beside it and in `status`."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from typing import Any

from fedrounds.core.messages import encode
from fedrounds.core.plan import build
from fedrounds.core.round import close_exchange, open_round
from fedrounds.ledger import Ledger
from fedrounds.reports import traffic
from fedrounds.reports.evidence import Evidence
from fedrounds.tasks import folder as folders
from fedrounds.tasks.report import evidence
from fedrounds.tasks.ward import Ward, read_reply


@dataclass(frozen=True)
class Visited:
    visit: int
    round: int
    ask: str
    record: dict[str, Any] = field(default_factory=dict)


def made_up(sites: int, rounds: int) -> Evidence:
    """Site i is sent 100 bytes a visit and sends 1000 + i + 10 times the visit."""
    asks = [(0, "statistics"), *((r, "train") for r in range(1, rounds + 1)), (rounds, "score")]
    visits = [
        Visited(n, r, ask, {"sites": {f"s{i:02d}": {"bytes_in": 100, "bytes_out": 1000 + i + 10 * n} for i in range(sites)}})
        for n, (r, ask) in enumerate(asks, 1)
    ]  # fmt: skip
    return Evidence(None, "e" * 32, 0.0, visits, [], [])  # type: ignore[arg-type]


def test_a_visit_of_two_exchanges_counts_both_and_a_repeat_once(new_study):
    read = folders.read(new_study)
    plan = build(read.study)
    ward = Ward(read.sites["north"], plan, read.data)
    ward.load()
    asking = open_round(plan.start(), plan, "statistics", ["north"])
    first = encode(asking.request)
    reply = ward.answer(first)
    second = encode(close_exchange(asking, plan, [read_reply(reply)]).request)
    again = ward.answer(second)
    assert ward.answer(second) == again
    assert (ward.bytes_in, ward.bytes_out) == (len(first) + len(second), len(reply) + len(again))
    assert ward.answer(first) == reply
    assert (ward.bytes_in, ward.bytes_out) == (len(first), len(reply))


def test_the_file_has_every_visit_and_hospital(toy_study):
    file = toy_study.state / "ledger.db"
    with Ledger.open(file) as ledger:
        found, visits = evidence(ledger), ledger.visits()
    rows = list(csv.DictReader(traffic.as_csv(found).splitlines()))
    assert [row["visit"] for row in rows] == [str(visit.visit) for visit in visits for _ in visit.record["sites"]]
    assert {row["asked"] for row in rows} == {"statistics", "train", "score"}
    for row in rows:
        its = visits[int(row["visit"]) - 1].record["sites"][row["site"]]
        assert (int(row["bytes_to_site"]), int(row["bytes_from_site"])) == (its["bytes_in"], its["bytes_out"])
        assert its["bytes_in"] > 0 < its["bytes_out"]


def test_it_lies_beside_the_report_here_and_in_mlflow(toy_study, program, tmp_path):
    place = toy_study.copy(tmp_path / "toy")
    assert program("report", place).returncode == 0
    assert program("report", place, "--out", tmp_path / "mine.html").returncode == 0
    here = (place / "mlruns" / "toy" / "bytes.csv").read_bytes()
    assert (tmp_path / "mine.bytes.csv").read_bytes() == here
    (in_mlflow,) = (place / "mlruns" / "artifacts").rglob("bytes.csv")
    assert in_mlflow.read_bytes() == here
    assert in_mlflow.with_name("report.html").exists()


def test_the_page_shows_the_newest_visits_each_way():
    few = traffic.grid(made_up(2, 3))
    assert few.count("<table") == 2
    assert '<td class="n">100 B</td>' in few
    assert '<th scope="row">s01</th><td class="n">1.0 kB</td>' in few
    assert all(f">{head}</th>" in few for head in ("statistics", "round 1", "round 3", "score of 3"))
    assert ">200 B</td>" in few  # all hospitals
    assert "bytes.csv" not in few
    many = traffic.grid(made_up(60, 20))
    assert "the newest 10 of 22 visits, 50 of 60 hospitals; bytes.csv beside this page has all" in many
    assert ">round 12</th>" in many
    assert ">round 11</th>" not in many
    assert "s49" in many
    assert "s50" not in many
    assert ">6.0 kB</td>" in many  # all sixty, sent 100 bytes each
    assert traffic.grid(made_up(0, 2)) is None


def test_status_says_the_last_round_and_gives_a_machine_every_site(toy_study, program):
    told = json.loads(program("status", toy_study.folder, "--json").stdout)["bytes"]
    with Ledger.open(toy_study.state / "ledger.db") as ledger:
        visits = ledger.visits()
    sites = [site for visit in visits for site in visit.record["sites"].values()]
    assert told["to_sites"] == sum(site["bytes_in"] for site in sites)
    assert told["from_sites"] == sum(site["bytes_out"] for site in sites)
    last = {name: [site["bytes_in"], site["bytes_out"]] for name, site in visits[-1].record["sites"].items()}
    assert told["last_visit"] == last
    assert "bytes: round 3 took" in program("status", toy_study.folder).stdout.replace("\n", " ")
    assert traffic.line([]) == ""
    assert (
        traffic.line(made_up(2, 1).visits)
        == "round 1 took 200 B to 2 hospitals and 2.0 kB from them (at most 100 B and 1.0 kB at one)"
    )
