"""Lets a process of ours die by kill -9 at a named instant. Python imports this file at its start where PYTHONPATH leads here.

    FEDROUNDS_DIE="fedrounds.ledger.ledger:Ledger.commit:before:2"  FEDROUNDS_DIE_FILE=/tmp/once

The second time that Ledger.commit is about to run, the process is gone: `before`, `after`, or `amid` (an upload or a download, half of its
bytes on the way). Whoever dies removes the file first, so it happens once, whichever process comes there. The product knows nothing of this.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys


def _die():
    try:
        os.unlink(os.environ["FEDROUNDS_DIE_FILE"])
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _amid(self, path, data=b""):
    """Half an upload, or the first bytes of a download, and gone."""
    url = f"/api/2.0/mlflow-artifacts/artifacts/{self._root}/{path}"
    if data and not isinstance(data, int):

        def half():
            yield data[: len(data) // 2]
            _die()
            yield data[len(data) // 2 :]

        self._http.put(url, content=half(), headers={"Content-Length": str(len(data))})
        return
    with self._http.stream("GET", url) as response:
        for _ in response.iter_raw(16):
            _die()
    return


def _patch(module, dotted, when, nth):
    owner = module
    *parents, name = dotted.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), [0]

    def dying(*given, **more):
        calls[0] += 1
        mine = calls[0] == nth and os.path.exists(os.environ["FEDROUNDS_DIE_FILE"])
        if mine and when == "before":
            _die()
        if mine and when == "amid":
            _amid(*given)
        found = original(*given, **more)
        if mine and when == "after":
            _die()
        return found

    setattr(owner, name, dying)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, target, dotted, when, nth):
        self.target, self.words = target, (dotted, when, nth)

    def find_spec(self, name, path, target=None):  # noqa: ARG002
        if name != self.target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _patch(module, *self.words)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FEDROUNDS_DIE"):
    _target, _dotted, _when, _nth = os.environ["FEDROUNDS_DIE"].split(":")
    sys.meta_path.insert(0, _Finder(_target, _dotted, _when, int(_nth)))
