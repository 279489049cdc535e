"""Ending a child that leaves at the end of its standard input. Standard library alone: what starts at second 0 imports it."""

from __future__ import annotations

import subprocess


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Close the child's standard input; kill it if it is still there after `grace_s`. A second call does nothing."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
