"""Prefect's settings say the same, letter by letter, when their groups are not said over and over."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import json, sys
if sys.argv[1] == "once":
    from fedrounds.tasks.quick_settings import without_repeats
    without_repeats()
    without_repeats()
from prefect.settings import get_current_settings
settings, ways = get_current_settings(), ({}, {"include_aliases": True}, {"exclude_unset": True}, {"include_secrets": False})
print(json.dumps([list(settings.to_environment_variables(**how).items()) for how in ways]))
print(settings.hash_key())
print(settings.model_dump_json())
"""
SAID = {  # of several groups, secrets and lists among them
    "PREFECT_API_AUTH_STRING": "name:word",
    "PREFECT_CLIENT_CUSTOM_HEADERS": '{"a": "b"}',
    "PREFECT_LOGGING_EXTRA_LOGGERS": "one,two",
    "PREFECT_SERVER_API_AUTH_STRING": "other:word",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://user:word@host/name",
    "PYTHONHASHSEED": "0",
}


def said(how: str, home: str) -> list[str]:
    env = {**os.environ, **SAID, "PREFECT_HOME": home}
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env=env)
    return done.stdout.splitlines()


def test_prefects_settings_are_the_same_environment_said_once_or_over_and_over(tmp_path):
    once, over_and_over = said("once", str(tmp_path)), said("as ever", str(tmp_path))
    assert once == over_and_over
    assert '["PREFECT_API_AUTH_STRING", "name:word"]' in once[0]
    assert '["PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://user:word@host/name"]' in once[0]
