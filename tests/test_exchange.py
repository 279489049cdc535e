"""The exchange: one contract, held on every store, against real servers that the tests start and end.

OpenSSH, PostgreSQL (Debian's) and MLflow with basic-auth listen on loopback or a socket file, in folders of their own.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import httpx
import pytest

from fedrounds.core.errors import FedroundsError, ServiceError, StudyError, UpdateRejected
from fedrounds.exchange.exchange import PIECE, Exchange
from fedrounds.exchange.fsspec import Folder
from fedrounds.exchange.memory import Memory
from fedrounds.exchange.mlflow import API, Artifacts
from fedrounds.exchange.name import Name, folder

ADMIN, NORTH, SOUTH = ("admin", "admin-of-the-test"), ("north", "north-of-the-test"), ("south", "south-of-the-test")
BACKENDS = ["memory", "folder", "object store", "sftp", "mlflow"]
FAR = ["folder", "sftp", "mlflow"]  # what another process can reach
rounds = itertools.count(1)


@dataclass
class Place:
    """Somewhere an exchange is: as a site and as the coordinator see it, and the disk that it ends on."""

    another: Callable[..., Exchange]  # a connection of its own
    coordinators: Callable[[], Exchange]
    disk: Path | None = None
    child: tuple[str, dict] = field(default=("", {}))  # how another process opens it

    def site(self) -> Exchange:
        """The site's connection, made once."""
        return self._site

    def coordinator(self) -> Exchange:
        """The coordinator's."""
        return self._coordinator

    @cached_property
    def _site(self) -> Exchange:
        return self.another()

    @cached_property
    def _coordinator(self) -> Exchange:
        return self.coordinators()

    def plant(self, path: str, data: bytes) -> None:
        """Write past the exchange, as a broken disk or an intruder would."""
        if self.disk is None:
            self.site().store.write(path, data)
        else:
            (self.disk / path).parent.mkdir(parents=True, exist_ok=True)
            (self.disk / path).write_bytes(data)


# --- servers ----------------------------------------------------------------------------------------------------------


def tool(name: str, package: str, *places: str) -> Path:
    """A program of the system. Fails, not skips: a store that was not tried must not pass."""
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ["PATH"]]))
    assert found, f"expected {name} on this machine, found none: apt-get install {package}"
    return Path(found)


def free_port() -> int:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait_for(ready: Callable[[], bool], process: subprocess.Popen, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, f"no answer in {seconds} s: {log.read_text()[-2000:]}"
        time.sleep(0.05)


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def scratch():
    """A folder that the database's user may enter, unlike pytest's."""
    place = Path(tempfile.mkdtemp(prefix="fedrounds-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def database(postgres):
    """The addresses of the two databases of MLflow."""
    return {name: postgres.database(name) for name in ("mlflow", "auth")}.__getitem__


@pytest.fixture(scope="module")
def mlflow_starting(scratch, database):
    """MLflow's server, started but not yet up: the other stores are tried meanwhile."""
    ini, log, port = scratch / "basic_auth.ini", scratch / "mlflow.log", free_port()
    ini.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database('auth')}\nadmin_username = {ADMIN[0]}\n"
        f"admin_password = {ADMIN[1]}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    words = [
        "--app-name",
        "basic-auth",
        "--backend-store-uri",
        database("mlflow"),
        "--serve-artifacts",
        "--workers",
        "1",
    ]
    words += ["--artifacts-destination", str(scratch / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    more = {
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runners are half a dozen more processes, of no use here
    }
    env = (
        {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        | more
        | {"DO_NOT_TRACK": "1"}
    )
    with log.open("wb") as said:
        command = [sys.executable, "-m", "mlflow", "server", *words]
        server = subprocess.Popen(command, env=env, cwd=scratch, stdout=said, stderr=said, start_new_session=True)
    try:
        yield server, log, port
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it holds nothing of value, and takes its time to stop
        server.wait(10)


@pytest.fixture(scope="module")
def mlflow(scratch, mlflow_starting):
    """Its URL, and an experiment each for north and south, who may edit their own."""
    server, log, port = mlflow_starting
    wait_for(lambda: listens(port), server, log, 180)
    url, experiments = f"http://127.0.0.1:{port}", {}
    with httpx.Client(base_url=url, auth=ADMIN, timeout=60, trust_env=False) as admin:
        for user, password in (NORTH, SOUTH):
            made = admin.post("/api/2.0/mlflow/experiments/create", json={"name": user})
            experiments[user] = made.raise_for_status().json()["experiment_id"]
            admin.post("/api/2.0/mlflow/users/create", json={"username": user, "password": password}).raise_for_status()
            grant = {
                "username": user,
                "resource_type": "experiment",
                "resource_id": experiments[user],
                "permission": "EDIT",
            }
            admin.post("/api/3.0/mlflow/users/permissions/grant", json=grant).raise_for_status()
    return url, experiments, scratch / "artifacts"


@pytest.fixture(scope="module")
def sshd(scratch):
    """OpenSSH's server: its own host key, one user key, SFTP and nothing else."""
    server, keygen = tool("sshd", "openssh-server", "/usr/sbin"), tool("ssh-keygen", "openssh-client")
    home, log, port = scratch / "ssh", scratch / "sshd.log", free_port()
    (home / "mail").mkdir(parents=True)
    for key in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", home / key], check=True, timeout=30)
    shutil.copy(home / "user.pub", home / "authorized")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    user = pwd.getpwuid(os.geteuid()).pw_name
    (home / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nAuthorizedKeysFile {home}/authorized\nPidFile none\nUsePAM no\n"
        f"StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowUsers {user}\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\nForceCommand internal-sftp\nMaxStartups 50\n"
    )
    with log.open("wb") as said:
        process = subprocess.Popen([server, "-D", "-e", "-f", home / "config"], stdout=said, stderr=said)
    try:
        wait_for(lambda: listens(port), process, log, 30)
        host_key = " ".join((home / "host.pub").read_text().split()[:2])
        yield user, port, host_key, home, process
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def places(request, scratch, mlflow_starting):
    """Backend → its place, made when first asked for."""
    made = {}

    def place(backend: str) -> Place:
        if backend not in made:
            made[backend] = make(backend)
        return made[backend]

    def folder_at(words: dict, disk: Path | None) -> Place:
        def opened(**more):
            return Exchange(Folder(**{**words, **more}))

        return Place(opened, opened, disk, ("Folder", words))

    def make(backend: str) -> Place:
        match backend:
            case "memory":
                store = Memory()
                return Place(lambda: Exchange(store), lambda: Exchange(store))
            case "folder":
                root = scratch / "folder"
                root.mkdir()
                return folder_at({"url": str(root)}, root)
            case "object store":
                return folder_at({"url": "memory://bucket/mail"}, None)
            case "sftp":
                user, port, host_key, home, _ = request.getfixturevalue("sshd")
                words = {"host_key": host_key, "key_filename": str(home / "user")}
                return folder_at({"url": f"sftp://{user}@127.0.0.1:{port}{home}/mail", **words}, home / "mail")
            case _:
                url, experiments, artifacts = request.getfixturevalue("mlflow")
                number = experiments["north"]
                return Place(
                    lambda url=url, **more: Exchange(Artifacts(url, number, *NORTH, **more), at_once=2),
                    lambda: Exchange(Artifacts(url, number, *ADMIN)),
                    artifacts / number / "mail",
                    ("Artifacts", {"url": url, "experiment": number, "user": NORTH[0], "password": NORTH[1]}),
                )

    return place


@pytest.fixture(scope="module", params=BACKENDS)
def place(request, places) -> Place:
    """Each place in turn, all its tests together: MLflow, whose server starts meanwhile, is last."""
    return places(request.param)


@pytest.fixture(scope="module", params=FAR)
def far(request, places) -> Place:
    """Each place that other processes reach."""
    return places(request.param)


def big(pieces: float, byte: bytes = b"x") -> bytes:
    """So many pieces of bytes, no two pieces alike."""
    return b"".join(bytes([number]) + byte * (PIECE - 1) for number in range(int(pieces))) + byte * int(
        PIECE * (pieces % 1)
    )


# --- names ------------------------------------------------------------------------------------------------------------

A = "a" * 64
NONE = [
    "", "/", ".", "..", "../x", "/etc/passwd", f"/000001/001/reply/{A}", f"000001/001/reply/../../{A}", f"000001/001/reply/{A}/",
    f"000001/001/reply/{A}\n", f"000001/001/reply/{A}\0", f"000001/001/reply/{A[1:]}", f"000001/001/reply/{A.upper()}", f"1/1/reply/{A}",
    f"000001/001/Reply/{A}", f"000001/001/%2e%2e/{A}", f"000001/001/../{A}", f"000001//reply/{A}", f"000001/001/re ply/{A}", "a" * 300,
    f"000001/001/{'r' * 33}/{A}", f"٠٠٠٠٠١/001/reply/{A}", f"000001\\001\\reply\\{A}", f"000001/001/reply/{A}.0000", "file:///etc/passwd",
    f"000001/001/reply#/{A}",
]  # fmt: skip


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(UpdateRejected, match="expected a name as round/attempt/phase/digest, found") as caught:
        Name.parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "parts",
    [
        (-1, 0, "a"),
        (10**6, 0, "a"),
        (0, 1000, "a"),
        (0, -1, "a"),
        (0, 0, ""),
        (0, 0, ".."),
        (0, 0, "a/b"),
        (0, 0, "a\0"),
    ],
)
def test_a_name_cannot_be_made_of_parts_that_are_none(parts):
    with pytest.raises(UpdateRejected):
        Name(*parts, "a" * 64)


def test_a_name_is_the_text_that_it_was_read_from():
    name = Name.of(b"", round=12, attempt=1, phase="reply-0")
    assert str(name) == "000012/001/reply-0/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert Name.parse(str(name)) == name
    assert name.folder == folder(12, 1, "reply-0") == "000012/001/reply-0"


@pytest.mark.parametrize(
    "text",
    ["..", "/", "/etc", "000001/..", "000001/001/%2e%2e", "000001\0", "a" * 300, "000001/001/reply/x", "1", "000001/"],
)
def test_no_store_is_asked_for_what_is_no_folder(place, text):
    with pytest.raises(UpdateRejected, match="expected a folder as round/attempt/phase"):
        place.site().list(text)


# --- the contract -----------------------------------------------------------------------------------------------------


def test_what_was_put_is_there_and_comes_back(place):
    for data in (b"", b"\0", b"sums over patients" * 1000, big(1), big(1) + b"y", big(2), big(2.5)):
        name = Name.of(data, next(rounds), 1, "reply")
        assert place.site().get(name) is None
        place.site().put(name, data)
        assert place.site().get(name) == data
        assert place.site().list(name.folder) == [name]


def test_the_same_bytes_again_are_fine_and_are_not_sent_again(place):
    data = big(1.25)
    name, sent = Name.of(data, next(rounds), 1, "reply"), []
    place.site().put(name, data)
    again = place.site()
    write = again.store.write
    object.__setattr__(again.store, "write", lambda path, piece: sent.append(path) or write(path, piece))
    again.put(name, data)
    del again.store.write
    assert sent == []
    assert again.get(name) == data


def test_other_bytes_are_an_error_and_change_nothing(place):
    name = Name.of(b"the first", next(rounds), 1, "reply")
    with pytest.raises(UpdateRejected, match=r"expected the bytes named .*, found others: nothing was sent"):
        place.site().put(name, b"a second")
    assert place.site().list(name.folder) == []
    place.site().put(name, b"the first")
    with pytest.raises(UpdateRejected, match="nothing was sent"):
        place.site().put(name, b"a second")
    assert place.site().get(name) == b"the first"


def test_names_are_listed_in_order_and_of_one_folder_alone(place):
    here, later = next(rounds), next(rounds)
    names = [
        Name.of(b"%d" % k, number, attempt, phase)
        for k, (number, attempt, phase) in enumerate(
            [
                (later, 1, "ask"),
                (here, 10, "ask"),
                (here, 2, "reply"),
                (here, 2, "ask"),
                (here, 2, "ask-1"),
                (here, 2, "ask"),
            ]
        )
    ]
    exchange = place.site()
    for k, name in enumerate(names):
        exchange.put(name, b"%d" % k)
    assert exchange.list(folder(here)) == sorted(name for name in names if name.round == here)
    assert [(n.attempt, n.phase) for n in exchange.list(folder(here))] == [
        (2, "ask"),
        (2, "ask"),
        (2, "ask-1"),
        (2, "reply"),
        (10, "ask"),
    ]
    assert exchange.list(folder(here, 2, "ask")) == sorted([names[3], names[5]])
    assert (
        exchange.list(folder(here, 1)) == exchange.list(folder(999_999)) == exchange.list(folder(here, 2, "as")) == []
    )
    everything = exchange.list()
    assert everything == sorted(everything)
    assert set(names) <= set(everything)


def test_a_folder_is_listed_without_a_look_at_others(place):
    number, looked = next(rounds), []
    exchange = place.site()
    exchange.put(Name.of(b"old", next(rounds), 1, "ask"), b"old")
    exchange.put(Name.of(b"new", number, 1, "ask"), b"new")
    scan = exchange.store.scan
    object.__setattr__(exchange.store, "scan", lambda path: looked.append(path) or scan(path))
    assert len(exchange.list(folder(number, 1, "ask"))) == 1
    del exchange.store.scan
    assert looked == [folder(number, 1, "ask")]


def test_an_object_without_its_last_piece_reads_as_absent_and_put_goes_on(place):
    data = big(2.5)
    name, sent = Name.of(data, next(rounds), 1, "reply"), []
    place.plant(f"{name}.0000", data[:PIECE])
    place.plant(f"{name}.0001", data[PIECE : PIECE + 1000])  # a store that is no file system of ours
    exchange = place.site()
    assert exchange.get(name) is None
    assert exchange.list(name.folder) == []
    write = exchange.store.write
    object.__setattr__(exchange.store, "write", lambda path, piece: sent.append(path) or write(path, piece))
    exchange.put(name, data)
    del exchange.store.write
    assert sent == [f"{name}.0001", str(name)]
    assert exchange.get(name) == data


def test_what_was_dropped_is_absent_and_may_come_again(place):
    data = big(1.5)
    name = Name.of(data, next(rounds), 1, "reply")
    place.coordinator().drop(name)
    place.site().put(name, data)
    other = Name.of(b"other", name.round, 1, "reply")
    place.site().put(other, b"other")
    place.coordinator().drop(name)
    place.coordinator().drop(name)
    assert place.site().get(name) is None
    assert place.site().list(name.folder) == [other]
    assert place.site().store.scan(name.folder) == {other.digest: 5}
    place.site().put(name, data)
    assert place.site().get(name) == data


@pytest.mark.parametrize("where", ["its only piece", "a first piece", "its last piece", "a piece too few"])
def test_a_damaged_object_is_refused_and_mended_by_drop_and_put(place, where):
    data = b"sums" * 100 if where == "its only piece" else big(2.5)
    name = Name.of(data, next(rounds), 1, "reply")
    place.site().put(name, data)
    match where:
        case "a first piece":
            place.plant(f"{name}.0000", b"X" + data[1:PIECE])
        case "a piece too few":
            place.coordinator().store.remove(f"{name}.0001")
        case _:
            place.plant(str(name), data[-(len(data) % PIECE) : -1] + b"X")
    for _ in range(2):
        with pytest.raises(UpdateRejected, match=r"expected the bytes named .*, found others: the object was damaged"):
            place.site().get(name)
    place.coordinator().drop(name)
    place.site().put(name, data)
    assert place.site().get(name) == data


def test_an_object_larger_than_allowed_is_refused_unread(place):
    data = big(1.25)
    name = Name.of(data, next(rounds), 1, "reply")
    place.site().put(name, data)
    with pytest.raises(UpdateRejected, match="unread"):
        place.site().get(name, largest=len(data) - 1)
    assert place.site().get(name, largest=len(data)) == data
    place.plant(str(name), bytes(PIECE + 1))
    with pytest.raises(UpdateRejected, match="unread"):
        place.site().get(name)


def test_what_is_no_object_is_not_listed(place):
    number = next(rounds)
    name = Name.of(b"here", number, 1, "reply")
    place.site().put(name, b"here")
    for stray in ("notes.txt", ".hidden", "a" * 64 + ".0000", "A" * 64, f".{'b' * 64}.0123456789abcdef"):
        place.plant(f"{name.folder}/{stray}", b"x")
    place.plant(f"{folder(number)}/stray", b"x")
    assert place.site().list(folder(number)) == [name]


def test_puts_of_the_same_name_at_once_leave_one_whole_object(place):
    data = big(1.5)
    name = Name.of(data, next(rounds), 1, "reply")
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(lambda: place.another().put(name, data)) for _ in range(4)]:
            done.result(60)
    assert place.site().list(name.folder) == [name]
    assert place.site().get(name) == data
    assert place.site().store.scan(name.folder) == {f"{name.digest}.0000": PIECE, name.digest: PIECE // 2}


def test_20_megabytes_stream_through_a_few_pieces_of_memory(far, tmp_path):
    source, to = tmp_path / "source", tmp_path / "to"
    source.write_bytes(os.urandom(20 << 20))
    name = Name.of(source.read_bytes(), next(rounds), 1, "reply")
    exchange = far.site()
    exchange.list(name.folder)  # connections and imports are no part of it
    peaks = []
    with source.open("rb") as data, to.open("w+b") as into:
        for act in (lambda: exchange.put(name, data), lambda: exchange.fetch(name, into)):
            tracemalloc.start()
            act()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert to.read_bytes() == source.read_bytes()
    assert max(peaks) < 4 * PIECE


# --- broken off -------------------------------------------------------------------------------------------------------

CHILD = """
import io, json, sys, time
from fedrounds.exchange.exchange import Exchange, PIECE
from fedrounds.exchange.fsspec import Folder
from fedrounds.exchange.mlflow import Artifacts
from fedrounds.exchange.name import Name

kind, words, number, stop = json.loads(sys.argv[1])
data = b"".join(bytes([k]) + b"x" * (PIECE - 1) for k in range(2)) + b"x" * (PIECE // 2)

class Slow(io.BytesIO):
    reads = 0
    def read(self, size=-1):
        self.reads += 1
        if stop and self.reads == 6:  # four to check the bytes; then a piece is sent, and another about to be
            print("half", flush=True)
            time.sleep(600)
        return super().read(size)

Exchange({"Folder": Folder, "Artifacts": Artifacts}[kind](**words)).put(Name.of(data, number, 1, "reply"), Slow(data))
print("whole", flush=True)
"""


def another_process(place: Place, number: int, stop: bool) -> subprocess.Popen:
    words = json.dumps([*place.child, number, stop])
    return subprocess.Popen([sys.executable, "-c", CHILD, words], stdout=subprocess.PIPE, text=True)


def test_an_object_of_a_process_killed_in_mid_upload_reads_as_absent_and_goes_on(far):
    data = big(2.5)
    name = Name.of(data, next(rounds), 1, "reply")
    with another_process(far, name.round, stop=True) as child:
        assert child.stdout.readline() == "half\n"
        child.kill()
    exchange = far.site()
    assert exchange.store.scan(name.folder) == {f"{name.digest}.0000": PIECE}
    assert exchange.get(name) is None
    assert exchange.list(name.folder) == []
    exchange.put(name, data)
    assert exchange.get(name) == data


def test_two_processes_that_put_the_same_name_at_once_leave_one_whole_object(far):
    data = big(2.5)
    name = Name.of(data, next(rounds), 1, "reply")
    children = [another_process(far, name.round, stop=False) for _ in range(2)]
    for child in children:
        assert child.communicate(timeout=90)[0] == "whole\n"
    assert far.site().get(name) == data
    assert len(far.site().store.scan(name.folder)) == 3


def test_a_piece_of_which_half_has_come_is_not_there_on_mlflow(places):
    """A process killed in the middle of one HTTP request."""
    place = places("mlflow")
    data = os.urandom(1 << 20)
    name = Name.of(data, next(rounds), 1, "reply")
    words = place.child[1]
    user = base64.b64encode(":".join(NORTH).encode()).decode()
    head = f"PUT {API}/{words['experiment']}/mail/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {user}\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    code = """
import socket, sys, time
server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
server.sendall(sys.stdin.buffer.read())
print("half", flush=True)
time.sleep(600)
"""
    port = words["url"].rpartition(":")[2]
    with subprocess.Popen([sys.executable, "-c", code, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdin.write(head.encode() + data[: len(data) // 2])
        child.stdin.close()
        assert child.stdout.readline() == b"half\n"
        end = time.monotonic() + 20
        while not list((place.disk / name.folder).glob(".*")):  # the server has begun to write
            assert time.monotonic() < end
            time.sleep(0.02)
        assert place.site().get(name) is None
        child.kill()
    time.sleep(0.3)
    assert place.site().list(name.folder) == []
    assert place.site().get(name) is None
    place.site().put(name, data)
    assert place.site().get(name) == data


def test_what_a_killed_write_has_left_in_a_folder_goes_with_the_object(places):
    place = places("folder")
    name = Name.of(b"whole", next(rounds), 1, "reply")
    place.plant(f"{name.folder}/.{name.digest}.0123456789abcdef", b"wh")
    assert place.site().get(name) is None
    place.site().put(name, b"whole")
    place.coordinator().drop(name)
    assert not (place.disk / name.folder).exists(), "nor a folder that holds nothing"


@pytest.mark.parametrize("backend", ["folder", "sftp"])
def test_a_full_disk_leaves_nothing_and_says_so(places, sshd, backend):
    """A limit on the size of a file stands for the disk: the process that writes gets an error in mid-piece."""
    place, data = places(backend), big(0.5)
    name = Name.of(data, next(rounds), 1, "reply")
    process = os.getpid() if backend == "folder" else sshd[-1].pid
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(ServiceError, match=r"expected \w+ to hold the exchange, found \w+ 2 times"):
            place.another(tries=2).put(name, data)
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)
    assert place.site().get(name) is None
    place.site().put(name, data)
    assert place.site().get(name) == data


class Broken:
    """A store that stops serving after so many reads."""

    def __init__(self, store, reads):
        self.store, self.left = store, reads

    def __getattr__(self, verb):
        return getattr(self.store, verb)

    def read(self, path, largest):
        self.left -= 1
        if self.left < 0:
            raise ServiceError("expected an answer, found none")
        return self.store.read(path, largest)


def test_a_broken_fetch_goes_on_after_the_last_whole_piece(tmp_path):
    store, data = Memory(), big(4.5)
    name = Name.of(data, 1, 1, "reply")
    Exchange(store).put(name, data)
    with (tmp_path / "to").open("w+b") as into:
        with pytest.raises(ServiceError):
            Exchange(Broken(store, 3)).fetch(name, into)  # the last piece and two more
        assert into.seek(0, io.SEEK_END) == 2 * PIECE
        assert Exchange(Broken(store, 3)).fetch(name, into)  # the last piece and the two that are missing
        assert (tmp_path / "to").read_bytes() == data


def test_a_fetch_into_a_file_of_something_else_begins_anew(tmp_path):
    store, data = Memory(), big(2.5)
    name = Name.of(data, 1, 1, "reply")
    Exchange(store).put(name, data)
    for left in (b"other" * PIECE, b"short", data + b"y"):
        with (tmp_path / "to").open("w+b") as into:
            into.write(left)
            assert Exchange(store).fetch(name, into)
            into.flush()
            assert (tmp_path / "to").read_bytes() == data


def test_a_refused_fetch_leaves_an_empty_file(tmp_path):
    store, data = Memory(), big(1.5)
    name = Name.of(data, 1, 1, "reply")
    Exchange(store).put(name, data)
    store.write(str(name), b"X")
    with (tmp_path / "to").open("w+b") as into:
        with pytest.raises(UpdateRejected):
            Exchange(store).fetch(name, into)
        assert into.seek(0, io.SEEK_END) == 0


class Wire:
    """A TCP connection to a port that is cut, the first few times, after so many bytes have come back."""

    def __init__(self, port: int, cuts: int, after: int) -> None:
        self.to, self.cuts, self.after, self.connections = port, cuts, after, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            allowed = self.after if self.connections <= self.cuts else 1 << 40
            far = socket.create_connection(("127.0.0.1", self.to))
            threading.Thread(target=self._pass, args=(near, far, 1 << 40), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, allowed), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, allowed: int) -> None:
        with suppress(OSError):
            while allowed > 0 and (data := source.recv(min(allowed, 1 << 16))):
                to.sendall(data)
                allowed -= len(data)
        for end in (source, to):
            with closing(end), suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()


@pytest.mark.parametrize("backend", ["sftp", "mlflow"])
def test_a_connection_that_breaks_is_made_anew(places, backend):
    place, data = places(backend), big(1.5)
    name = Name.of(data, next(rounds), 1, "reply")
    place.site().put(name, data)
    port = int(place.child[1]["url"].rpartition("127.0.0.1:")[2].partition("/")[0])
    with closing(Wire(port, cuts=2, after=1 << 20)) as wire:
        through = place.another(url=place.child[1]["url"].replace(str(port), str(wire.port)))
        assert through.get(name) == data
        assert wire.connections >= 3


@pytest.mark.parametrize("backend", ["sftp", "mlflow"])
def test_a_server_that_stays_away_is_a_service_error(places, backend):
    place = places(backend)
    port = place.child[1]["url"].rpartition("127.0.0.1:")[2].partition("/")[0]
    with pytest.raises(ServiceError, match=r"expected .*, found \w+ 2 times: check the address"):
        place.another(url=place.child[1]["url"].replace(port, str(free_port())), tries=2).list()


# --- who may, and where ------------------------------------------------------------------------------------------------


def test_mlflow_keeps_sites_apart_and_dropping_is_the_coordinators(places, mlflow):
    url, experiments, _ = mlflow
    place = places("mlflow")
    name = Name.of(b"mine", next(rounds), 1, "reply")
    place.site().put(name, b"mine")
    south = Exchange(Artifacts(url, experiments["north"], *SOUTH))
    for act in (
        lambda: south.get(name),
        lambda: south.list(name.folder),
        lambda: south.put(name, b"mine"),
        lambda: south.drop(name),
    ):
        with pytest.raises(
            ServiceError, match=r"expected user 'south' in experiment .* to be let in, found status 403"
        ):
            act()
    with pytest.raises(ServiceError, match="found status 403"):
        place.site().drop(name)
    with pytest.raises(ServiceError, match="found status 401"):
        Exchange(Artifacts(url, experiments["north"], "north", "wrong")).list()
    assert place.site().get(name) == b"mine"


def test_an_address_that_is_none_is_refused():
    for url, experiment in (("ftp://x", "1"), ("https://x", "../2"), ("https://x", ""), ("https://x", "１")):
        with pytest.raises(StudyError, match="expected an exchange at https://"):
            Artifacts(url, experiment, *NORTH)


def test_sftp_trusts_one_host_key_alone(places):
    words = places("sftp").child[1]
    stranger = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    with pytest.raises(ServiceError, match="pinned host key, found another"):
        Folder(**{**words, "host_key": stranger})
    with pytest.raises(StudyError, match="expected `host_key`"):
        Folder(words["url"], key_filename=words["key_filename"])


def test_a_key_that_is_not_let_in_is_a_service_error_at_once(places, sshd, tmp_path):
    words = places("sftp").child[1]
    subprocess.run(
        [tool("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "k"],
        check=True,
        timeout=30,
    )
    with pytest.raises(ServiceError, match="found AuthenticationException: check"):
        Folder(**{**words, "key_filename": str(tmp_path / "k")})


@pytest.mark.parametrize("url", ["https://example.org/x", "zip::file:///x.zip", "data:x", "nothing://x"])
def test_a_place_where_a_file_does_not_appear_whole_is_refused(url):
    with pytest.raises(
        FedroundsError,
        match=r"expected (a place where a file appears whole|the URL of one place|a URL that fsspec knows)",
    ):
        Folder(url)


def test_links_and_pipes_in_a_folder_are_not_followed(places, tmp_path):
    place = places("folder")
    name = Name.of(b"secret", next(rounds), 1, "reply")
    (place.disk / name.folder).mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"secret")
    (place.disk / str(name)).symlink_to(tmp_path / "elsewhere")
    pipe = Name.of(b"pipe", name.round, 1, "reply")
    os.mkfifo(place.disk / str(pipe))
    assert place.site().list(name.folder) == []
    assert place.site().get(name) is None
    assert place.site().get(pipe) is None
