"""`fedrounds models` and `fedrounds strategies` print the words that a study may use: all of them, each with what it is."""

from __future__ import annotations

import json

import pytest

from fedrounds.cli.main import main
from fedrounds.core import catalogue
from fedrounds.core.combine import Combine
from fedrounds.core.local import Local
from fedrounds.core.models import Model
from fedrounds.core.personal import Personal
from fedrounds.core.server import Server
from fedrounds.core.strategy import COMBINES, PRESETS


def test_models_lists_every_kind_of_model_with_targets_and_paper(capfd):
    assert main(["models", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert len(found) == len(catalogue.words(Model))
    assert {word["name"] for word in found} >= {"linear", "logistic", "multinomial", "mlp", "poisson", "gamma"}
    for word in found:
        assert word["says"], word["name"]
        assert word["paper"], word["name"]
        assert "averaging" in word["goes"] or "exact" in word["goes"], word["name"]


def test_strategies_lists_presets_parts_and_the_exact_fit(capfd):
    assert main(["strategies", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    by_part = {
        part: [word["name"] for word in found if word["part"] == part]
        for part in ("preset", "exact", "local", "combine", "server", "personal")
    }
    assert by_part["preset"] == [*PRESETS, *COMBINES]
    assert by_part["exact"] == ["exact"]
    for part, union in (("local", Local), ("combine", Combine), ("server", Server), ("personal", Personal)):
        assert len(by_part[part]) == len(catalogue.words(union)), part
    assert all(word["says"] for word in found)


@pytest.mark.parametrize(
    ("command", "line"),
    [("models", "  logistic           Logistic regression of yes or no"), ("strategies", "  fedprox  ")],
)
def test_people_read_a_line_a_word(command: str, line: str, capfd):
    assert main([command]) == 0
    assert line in capfd.readouterr().out
