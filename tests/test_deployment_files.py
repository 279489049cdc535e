"""The files that `coordinator init` writes for systemd and for containers, read by systemd itself and by the compose format's own words.

Docker is not on the machines that run these tests, so no container is started: what is held here is that every word of the file is one of
the format, that its parts refer to each other, and that what it starts is a command of ours.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from fedrounds.cli.init import init
from fedrounds.cli.main import _parser, main
from fedrounds.coordinator.deployment import SERVERS

# The compose format's words for what we use of it, written down here from its specification; it is not the specification's own schema.
WORDS = {"type": "array", "items": {"type": "string"}}
SERVICE = {
    "type": "object",
    "additionalProperties": False,
    "anyOf": [{"required": ["image"]}, {"required": ["build"]}],
    "properties": {
        "image": {"type": "string"},
        "build": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"context": {"type": "string"}, "dockerfile_inline": {"type": "string"}},
        },
        "command": {"anyOf": [{"type": "string"}, WORDS]},
        "depends_on": WORDS,
        "environment": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
        "network_mode": {"type": "string"},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "secrets": WORDS,
        "stop_grace_period": {"type": "string", "pattern": r"^\d+(s|m)$"},
        "volumes": WORDS,
    },
}
COMPOSE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["services"],
    "properties": {
        "services": {"type": "object", "additionalProperties": SERVICE},
        "secrets": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {"file": {"type": "string"}},
            },
        },
        "volumes": {"type": "object", "additionalProperties": {"type": "object"}},
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A coordinator's folder."""
    base = tmp_path_factory.mktemp("deployed")
    init(base / "study", as_json=True)
    assert main(["coordinator", "init", str(base / "c"), "--study", str(base / "study"), "--json"]) == 0
    return base / "c"


def test_systemd_finds_nothing_wrong_with_the_units(home, tmp_path):
    analyze = shutil.which("systemd-analyze")
    assert analyze, "expected systemd-analyze on this machine, found none: apt-get install systemd"
    units = [home / "deploy" / f"fedrounds-{server}.service" for server in SERVERS]
    said = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=120, check=False)
    assert (said.returncode, [line for line in said.stderr.splitlines() if "fedrounds-" in line]) == (0, [])
    wrong = tmp_path / "fedrounds-wrong.service"
    wrong.write_text(units[0].read_text().replace("Restart=always", "Restart=sometimes"))
    said = subprocess.run([analyze, "verify", wrong], capture_output=True, text=True, timeout=120, check=False)
    assert "fedrounds-wrong.service" in said.stderr, "it would say so"


def test_a_unit_starts_the_installed_program_with_words_that_it_knows(home):
    for server in SERVERS:
        lines = (home / "deploy" / f"fedrounds-{server}.service").read_text().splitlines()
        (started,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
        program, *words = shlex.split(started)
        assert Path(program) == Path(sys.executable).with_name("fedrounds")
        said = _parser().parse_args(words)
        assert (said.command, said.action, said.dir, said.only) == ("coordinator", "start", home, [server])


def test_the_compose_file_has_words_of_its_format_alone_and_parts_that_are_there(home):
    document = yaml.safe_load((home / "deploy" / "compose.yaml").read_text())
    jsonschema.validate(document, COMPOSE)
    assert document["services"].keys() == {"database", "coordinator"}
    for service in document["services"].values():
        assert set(service.get("depends_on", [])) <= document["services"].keys()
        assert set(service.get("secrets", [])) <= document["secrets"].keys()
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in document["volumes"] or Path(source) == home
    coordinator = document["services"]["coordinator"]
    assert _parser().parse_args(coordinator["command"]).dir == home
    assert 'ENTRYPOINT ["fedrounds"]' in coordinator["build"]["dockerfile_inline"].splitlines()
    misspelt = {**document, "services": {"coordinator": {**coordinator, "comand": []}}}
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(misspelt, COMPOSE)
