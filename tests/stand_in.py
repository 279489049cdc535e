"""To whoever started it, a program that is forked (tests/warmed.py): its process id, its outputs, its signals, its exit code.

`python -I -S tests/stand_in.py ADDRESS MODULE WORDS` imports next to nothing, so that it costs 20 ms.
"""

import _socket
import json
import os
import signal
import sys


def main() -> None:
    """Have it forked with what this process was given, pass on what it is told, and end as it ends."""
    address, module, *words = sys.argv[1:]
    keep = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _inherited(fd)]
    how = ["code"] if module == "-c" else ["helper", module]
    asked = {"module": "warmed", "words": [*how, *words], "keep": keep}
    asked |= {"env": dict(os.environ), "cwd": os.getcwd()}
    text = json.dumps(asked).encode()
    said = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    said.connect(address)
    fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2, *keep))
    said.sendmsg([b"%10d" % len(text)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
    said.sendall(text)
    pid = int(_line(said))
    with open("/proc/self/comm", "w") as name:  # for whoever looks for the program itself
        name.write(f"for {pid}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2, *keep):  # they end with the program
        os.dup2(nothing, fd)
    code = int(_line(said))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 255)


def _inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the one that listed them
        return False


def _line(said: _socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        got = said.recv(1)
        if not got:
            os._exit(70)  # the process that forks is gone
        line += got
    return line


main()
