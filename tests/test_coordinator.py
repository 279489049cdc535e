"""A coordinator: its folder, its certificates, its roster, and its servers, which are real: MLflow with basic-auth behind nginx with TLS.

On PostgreSQL, with agents, and with what one hospital's credentials open: tests/test_federated.py.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import warmed
from cryptography import x509
from postgres import free_port

from fedrounds.cli.init import init
from fedrounds.coordinator import certificates, config, deployment, files, roster
from fedrounds.coordinator.roster import Site
from fedrounds.core import identity, invitation
from fedrounds.core.errors import ServiceError, StateError, StudyError
from fedrounds.core.identity import About
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.memory import Memory
from fedrounds.exchange.mlflow import Artifacts
from fedrounds.exchange.name import Name, folder
from fedrounds.tasks import founding, inviting

PROGRAM = Path(sys.executable).with_name("fedrounds")
STUDY, OTHER = "ab" * 32, "cd" * 32
NONCE, NOW = "0123456789abcdef" * 2, 1_700_000_000
KEY, FOREIGN = bytes(range(32)), bytes(range(1, 33))
INVITED = Site(
    name="north", experiment="7", user="site-north", status="invited", nonce_hash=invitation.nonce_hash(NONCE), expires=NOW + 60
)  # fmt: skip


def enrolment(key=KEY, site="north", study=STUDY, said=None, **more) -> bytes:
    """What a site sends to join."""
    about = About(study, more.get("round", 0), 0, 0, more.get("signed_for", site), "reply", study)
    fields = {"site": site, "key": identity.public_key(key).hex(), "nonce": NONCE} | more.get("fields", {})
    return identity.sign(key, about, json.dumps(fields).encode() if said is None else said)


def put(box: Exchange, signed: bytes) -> None:
    box.put(Name.of(signed, *roster.JOIN), signed)


def admit(home: Path, box: Exchange, now: float = NOW) -> list[tuple[bool, str]]:
    return [(it.admitted, it.said) for it in roster.admit(home, lambda _: box, STUDY, now)]


# --- the roster -------------------------------------------------------------------------------------------------------


@pytest.fixture
def invited(tmp_path):
    """A roster with one invited site, and its mailbox."""
    roster.write(tmp_path, INVITED, None)
    return tmp_path, Exchange(Memory())


def test_a_site_is_read_from_the_roster_as_it_was_written(tmp_path):
    roster.write(tmp_path, INVITED, None)
    roster.write(tmp_path, INVITED.but(name="east", status="removed"), None)
    assert roster.read(tmp_path) == {"east": INVITED.but(name="east", status="removed"), "north": INVITED}
    assert roster.find(tmp_path, "north") == INVITED
    assert roster.active(tmp_path) == {}
    with pytest.raises(StateError, match=r"found 'west' \(it has: east, north\)"):
        roster.find(tmp_path, "west")


def test_a_change_that_another_command_overtook_is_not_written(tmp_path):
    roster.write(tmp_path, INVITED, None)
    with pytest.raises(StateError, match="changed by another command"):
        roster.write(tmp_path, INVITED.but(status="removed"), INVITED.but(expires=1))
    with pytest.raises(StateError, match="changed by another command"):
        roster.write(tmp_path, INVITED.but(status="removed"), None)
    assert roster.find(tmp_path, "north") == INVITED


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('status = "boss"', "another `status`"),
        ('key = "AB"', "another `key`"),
        ('experiment = "7/../8"', "another `experiment`"),
        ('command = "rm"', "another `command`"),
        ('name = "south"', "is named after its site"),
        ("name = ", "found a mistake"),
    ],
)
def test_a_roster_that_says_what_it_cannot_mean_is_refused_in_one_line(invited, line, said):
    home, _ = invited
    file = home / "sites" / "north.toml"
    kept = [old for old in file.read_text().splitlines() if old.split()[0] != line.split()[0]]
    file.write_text("\n".join([*kept, line]))
    with pytest.raises(StudyError, match=said):
        roster.read(home)


def test_the_first_enrolment_that_holds_is_taken_and_none_after_it(invited):
    home, box = invited
    put(box, enrolment())
    assert admit(home, box) == [(True, identity.fingerprint(identity.public_key(KEY)))]
    joined = INVITED.but(key=identity.public_key(KEY).hex(), status="active", joined=NOW, nonce_hash="", expires=0)
    assert roster.active(home) == {"north": joined}
    assert box.list() == []
    put(box, enrolment(FOREIGN))
    assert admit(home, box) == []
    assert roster.active(home) == {"north": joined}
    assert box.list() == []


WRONG = {
    "by a key that it does not name": (enrolment(fields={"key": identity.public_key(FOREIGN).hex()}), "by its own key"),
    "of another site": (enrolment(fields={"site": "south"}), "by its own key"),
    "signed for another site": (enrolment(signed_for="south"), "about site north"),
    "with another nonce": (enrolment(fields={"nonce": "0" * 32}), "the nonce of the invitation that is out"),
    "of another study": (enrolment(study=OTHER), "about study abababababab"),
    "of another round": (enrolment(round=1), "about round 0"),
    "that says more": (enrolment(fields={"status": "active"}), "with site, key and nonce"),
    "that is no object": (enrolment(said=b"[1]"), "with site, key and nonce"),
    "that is no JSON": (enrolment(said=b"\xff"), "with site, key and nonce"),
    "that is deep": (enrolment(said=b"[" * 3000), "with site, key and nonce"),
    "that is large": (enrolment(said=b" " * 5000), "at most"),
    "that is not signed": (b"hello", "cut short"),
    "that was changed": (enrolment()[:-1] + b"!", "changed on its way"),
}


@pytest.mark.parametrize(("signed", "said"), WRONG.values(), ids=WRONG)
def test_an_enrolment_that_does_not_hold_is_dropped_and_told_and_changes_nothing(invited, signed, said):
    home, box = invited
    put(box, signed)
    [(admitted, why)] = admit(home, box)
    assert not admitted
    assert said in why
    assert NONCE not in why
    assert roster.read(home) == {"north": INVITED}
    assert box.list() == []


def test_an_enrolment_after_the_invitation_ended_is_refused(invited):
    home, box = invited
    put(box, enrolment())
    [(admitted, why)] = admit(home, box, NOW + 60)
    assert (admitted, "found it over" in why) == (False, True)
    assert roster.read(home) == {"north": INVITED}


def test_a_wrong_enrolment_beside_the_right_one_stops_nothing(invited):
    home, box = invited
    for signed in (enrolment(FOREIGN, fields={"nonce": "0" * 32}), b"hello", enrolment()):
        put(box, signed)
    said = admit(home, box)
    assert [admitted for admitted, _ in said].count(True) == 1
    assert roster.active(home)["north"].key == identity.public_key(KEY).hex()
    assert box.list() == []


def test_killed_after_the_roster_was_written_the_next_look_drops_what_is_left(invited):
    home, box = invited
    put(box, enrolment())
    drop = box.store.remove

    def killed(_):
        raise KeyboardInterrupt

    box.store.remove = killed
    with pytest.raises(KeyboardInterrupt):
        admit(home, box)
    box.store.remove = drop
    active = roster.active(home)
    assert set(active) == {"north"}
    assert len(box.list()) == 1
    assert admit(home, box) == []
    assert (roster.active(home), box.list()) == (active, [])


@pytest.mark.parametrize("status", ["active", "suspended", "removed"])
def test_only_an_invited_site_can_enrol(invited, status):
    home, box = invited
    other = INVITED.but(status=status)
    roster.write(home, other, INVITED)
    put(box, enrolment())
    assert admit(home, box) == []
    assert roster.read(home) == {"north": other}


# --- certificates -----------------------------------------------------------------------------------------------------


def test_a_certificate_is_for_the_host_and_loopback_and_by_the_own_authority(tmp_path):
    assert certificates.renew(tmp_path, "fedrounds.example.org")
    ca, tls = (x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("ca.pem", "tls.pem"))
    tls.verify_directly_issued_by(ca)
    names = tls.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fedrounds.example.org", "localhost"}
    assert {str(it) for it in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    assert 364 < (tls.not_valid_after_utc - datetime.now(UTC)).days + 1 <= 365
    for secret in ("ca.key", "tls.key"):
        assert stat.S_IMODE((tmp_path / secret).stat().st_mode) == 0o600
    assert not certificates.renew(tmp_path, "fedrounds.example.org")


def test_a_certificate_is_renewed_before_it_ends_and_for_another_host_by_the_same_authority(tmp_path):
    certificates.renew(tmp_path, "10.1.2.3")
    first, ca = certificates.ends(tmp_path), (tmp_path / "ca.pem").read_bytes()
    assert not certificates.renew(tmp_path, "10.1.2.3", first - timedelta(days=61))
    assert certificates.renew(tmp_path, "10.1.2.3", first - timedelta(days=59))
    assert certificates.ends(tmp_path) == first - timedelta(days=59) + timedelta(days=365)
    assert certificates.renew(tmp_path, "other.example.org")
    assert (tmp_path / "ca.pem").read_bytes() == ca


def test_an_operators_own_certificate_is_left_alone_and_told_when_it_is_over(tmp_path):
    certificates.renew(tmp_path, "localhost")
    (tmp_path / "ca.key").unlink()
    before, ends = (tmp_path / "tls.pem").read_bytes(), certificates.ends(tmp_path)
    assert not certificates.renew(tmp_path, "another.example.org")
    with pytest.raises(StateError, match="a certificate that still holds"):
        certificates.renew(tmp_path, "localhost", ends + timedelta(seconds=1))
    assert (tmp_path / "tls.pem").read_bytes() == before


def test_a_key_that_others_may_read_or_of_another_authority_is_refused(tmp_path):
    certificates.renew(tmp_path, "localhost")
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        certificates.renew(tmp_path, "other.example.org")
    (tmp_path / "ca.key").chmod(0o600)
    (tmp_path / "other").mkdir()
    certificates.renew(tmp_path / "other", "localhost")
    shutil.copy(tmp_path / "other" / "ca.key", tmp_path / "ca.key")
    with pytest.raises(StateError, match="found another: restore both"):
        certificates.renew(tmp_path, "other.example.org")


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of four toy hospitals."""
    made = tmp_path_factory.mktemp("study") / "toy"
    init(made, as_json=True)
    return made


def test_a_folder_is_made_whole_without_site_files_and_secrets_are_for_their_owner(study, tmp_path):
    made = founding.found(tmp_path / "c", study, "https://fedrounds.example.org", "")
    home = tmp_path / "c"
    assert config.read(home) == made
    assert (made.ports.public, made.host) == (443, "fedrounds.example.org")
    assert len({*made.ports.model_dump().values()}) == 4
    assert sorted(path.name for path in home.iterdir()) == sorted([*deployment.OWN, "coordinator.toml", "secrets.toml"])
    assert not (home / "study" / "sites").exists()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for secret in ("secrets.toml", "keys/coordinator.key", "keys/ca.key", "keys/tls.key", "mlflow/basic_auth.ini"):
        assert stat.S_IMODE((home / secret).stat().st_mode) == 0o600, secret
    secrets = config.read_secrets(home)
    hidden = [secrets.admin_password, secrets.flask_secret, secrets.prefect_password]
    assert len(set(hidden)) == 3
    for file in home.rglob("*"):
        if file.is_file() and file.name != "secrets.toml":
            assert not any(word in file.read_text() for word in hidden), file
    for file in (home / "deploy").iterdir():
        assert "@" not in file.read_text().replace("fedrounds@127", ""), file


@pytest.mark.parametrize(("port", "usual"), [(443, True), (8443, True), (9001, False)])
def test_only_a_coordinator_at_the_usual_port_takes_the_usual_one_for_people(study, tmp_path, port, usual):
    made = founding.found(tmp_path / "c", study, f"https://localhost:{port}", "")
    assert (8444 <= made.ports.staff < 8500) == usual  # the next free one where another coordinator has it
    assert (
        20000 <= made.ports.mlflow < made.ports.prefect < 32768
    )  # no port that the system gives to outgoing connections


def test_systemds_units_run_one_server_each(study, tmp_path):
    founding.found(tmp_path / "c", study, "https://localhost:8443", "")
    for name in deployment.SERVERS:
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str
        unit.read(tmp_path / "c" / "deploy" / f"fedrounds-{name}.service")
        program, *words = unit["Service"]["ExecStart"].split()
        assert Path(program).exists()
        assert words == ["coordinator", "start", str(tmp_path / "c"), "--only", name]


def test_a_folder_in_use_is_refused_and_nothing_is_half_written(study, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.toml").write_text("name = 7")
    for error, home, of, public, postgres in (
        (StateError, "c", study, "https://localhost", ""),
        (StudyError, "d", study, "http://localhost", ""),
        (StudyError, "d", study, "https://user:word@localhost", ""),
        (StudyError, "d", study, "https://localhost/path", ""),
        (StudyError, "d", tmp_path / "broken", "https://localhost", ""),
        (StudyError, "d", study, "https://localhost", "mysql://localhost/x"),
        (ServiceError, "d", study, "https://localhost", f"postgresql://u:pass-word@127.0.0.1:{free_port()}/x"),
        (StudyError, "a b", study, "https://localhost", ""),
    ):
        with pytest.raises(error) as caught:
            founding.found(tmp_path / home, of, public, postgres)
        assert "word" not in str(caught.value).replace("password", "").replace("words", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "c"]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine"]


def test_a_database_that_holds_something_is_refused_and_those_made_for_it_are_taken_away(study, tmp_path, postgres):
    from sqlalchemy import create_engine, text

    server = postgres.address("postgres")
    engine = create_engine(server, isolation_level="AUTOCOMMIT")

    def there():
        with engine.connect() as connection:
            return {name for name in connection.scalars(text("SELECT datname FROM pg_database")) if "clinic" in name}

    url = server.replace("/postgres?", "/clinic?")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE clinic_auth"))
    other = create_engine(postgres.address("clinic_auth"))
    with other.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (id int)"))
    with pytest.raises(StateError, match="an empty database 'clinic_auth', found 1 tables"):
        founding.found(tmp_path / "c", study, "https://localhost", url)
    assert there() == {"clinic_auth"}
    with other.begin() as connection:
        connection.execute(text("DROP TABLE theirs"))
    other.dispose()
    made = founding.found(tmp_path / "c", study, "https://localhost", url)
    engine.dispose()
    assert made.prefect_database.startswith("postgresql+asyncpg://fedrounds@/clinic_prefect?host=")
    assert config.database(tmp_path, made.ledger, "p@ss").startswith("postgresql+psycopg2://fedrounds:p%40ss@/clinic?")


def test_an_address_with_a_password_has_no_place_in_coordinator_toml(study, tmp_path):
    founding.found(tmp_path / "c", study, "https://localhost:8443", "")
    file = tmp_path / "c" / "coordinator.toml"
    file.write_text(file.read_text().replace('ledger = "ledger.db"', 'ledger = "postgresql://u:hush@h/d"'))
    with pytest.raises(StudyError, match=r"`ledger`.*without a password") as caught:
        config.read(tmp_path / "c")
    assert "hush" not in str(caught.value)
    (tmp_path / "c" / "secrets.toml").chmod(0o640)
    with pytest.raises(StateError, match="chmod 600"):
        config.read_secrets(tmp_path / "c")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    files.write(tmp_path / "a", "first", files.SECRET)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        files.write(tmp_path / "a", "second", files.SECRET)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "first")]


# --- the servers ------------------------------------------------------------------------------------------------------


class Running:
    """A coordinator whose MLflow and nginx run, and who lets in."""

    def __init__(self, base: Path, study: Path) -> None:
        self.home, self.log, self.secrets = base / "c", base / "start.log", set[str]()
        self.say("init", self.home, "--study", study, "--public", f"https://localhost:{free_port()}")
        only = [word for name in ("mlflow", "nginx", "admit") for word in ("--only", name)]
        with self.log.open("wb") as said:
            words = [PROGRAM, "coordinator", "start", self.home, *only, "--json"]
            self.process = subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True)
        self.wait(lambda: '"ready"' in self.log.read_text(), 180)
        self.url = config.read(self.home).public

    def wait(self, ready, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.1)

    def tried(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, "coordinator", *map(str, words), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def say(self, *words: object) -> dict:
        done = self.tried(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def pids(self) -> dict[str, int]:
        """Of the servers, by what the system says of this coordinator's children."""
        own = warmed.itself(self.process.pid)
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        words = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return {
            name: pid for pid, said in words.items() for name in ("mlflow_server", "nginx") if name.encode() in said
        }

    def invite(self, site: str) -> invitation.Invitation:
        """The coordinator's part of joining."""
        invited, token = inviting.invite(self.home, site)
        self.secrets |= {token, invited.password, invited.nonce}
        assert invitation.load(token, time.time()) == invited
        return invited

    def enter(self, site: str) -> tuple[Artifacts, invitation.Invitation]:
        """The site's part of joining."""
        invited = self.invite(site)
        ca = self.home.parent / f"{site}.pem"
        ca.write_text(invited.ca)
        door = Artifacts(invited.url, invited.experiment, invited.user, invited.password, str(ca), tries=3)
        door.change_password(f"{site}-has-chosen-another-one")
        self.secrets.add(f"{site}-has-chosen-another-one")
        about = About(invited.digest, 0, 0, 0, site, "reply", invited.digest)
        said = {"site": site, "key": identity.public_key(KEY).hex(), "nonce": invited.nonce}
        signed = identity.sign(KEY, about, json.dumps(said).encode())
        Exchange(door).put(Name.of(signed, *roster.JOIN), signed)
        self.wait(lambda: roster.read(self.home)[site].status == "active", 20)
        return door, invited

    def health(self, seconds: float = 60) -> int:
        context = ssl.create_default_context(cafile=str(self.home / "keys" / "ca.pem"))
        with urllib.request.urlopen(f"{self.url}/health", timeout=seconds, context=context) as answer:
            return answer.status


@pytest.fixture(scope="module")
def running(study):
    base = Path(tempfile.mkdtemp(prefix="fedrounds-"))
    base.chmod(0o755)
    it = Running(base, study)
    try:
        yield it
    finally:
        with suppress(ProcessLookupError):
            os.killpg(it.process.pid, signal.SIGTERM)
        it.process.wait(30)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def hospitals(running):
    """Two that have joined."""
    return {site: running.enter(site) for site in ("north", "south")}


def folders(door: Artifacts) -> list[str]:
    return Exchange(door).folders()


def test_a_hospital_joins_by_one_invitation_and_that_opens_nothing_afterwards(running, hospitals):
    door, invited = hospitals["north"]
    sites = {site["site"]: site for site in running.say("sites", running.home)["sites"]}
    assert {name: site["status"] for name, site in sites.items()} == {"north": "active", "south": "active"}
    assert sites["north"]["fingerprint"] == identity.fingerprint(identity.public_key(KEY))
    assert [name.phase for name in Exchange(door).list()] == ["study"]
    late = Artifacts(invited.url, invited.experiment, invited.user, invited.password, str(running.home / "keys/ca.pem"))
    with pytest.raises(ServiceError, match="status 401"):
        folders(late)
    again = running.tried("invite", running.home, "north")
    assert (again.returncode, "found 'north' active" in again.stdout) == (15, True)


def test_the_study_in_the_mailbox_is_signed_by_the_coordinator_for_this_hospital(running, hospitals):
    door, invited = hospitals["north"]
    [name] = Exchange(door).list(folder(0, 0, "study"))
    about = About(invited.digest, 0, 0, 0, "north", "request", invited.digest)
    packed = identity.verify(bytes.fromhex(invited.coordinator), about, Exchange(door).get(name))
    assert json.loads(packed)["study"] == (running.home / "study" / "study.toml").read_text()


def test_a_message_of_several_pieces_goes_and_comes_through_nginx(hospitals):
    box, data = Exchange(hospitals["north"][0]), os.urandom(9 << 20)
    name = Name.of(data, 999999, 0, "reply")
    box.put(name, data)
    assert box.get(name) == data


def test_an_invitation_that_is_asked_for_again_replaces_the_first(running):
    first = invitation.load(running.say("invite", running.home, "west", "--days", 2)["token"], time.time())
    assert 0 <= first.expires - time.time() - 2 * 86400 + 60 <= 60
    second = running.invite("west")
    assert (first.experiment, first.user) == (second.experiment, second.user)
    assert first.nonce != second.nonce
    ca = str(running.home / "keys/ca.pem")
    with pytest.raises(ServiceError, match="status 401"):
        folders(Artifacts(first.url, first.experiment, first.user, first.password, ca))
    assert folders(Artifacts(second.url, second.experiment, second.user, second.password, ca)) == ["000000"]
    running.secrets |= {first.password, first.nonce}


@pytest.mark.parametrize("name", ["../x", "", "a/b", "-x", "n" * 64, "n\n"])
def test_a_name_that_is_none_invites_nobody(running, name):
    before = roster.read(running.home)
    with pytest.raises(StudyError, match="expected a site's name"):
        inviting.invite(running.home, name)
    assert roster.read(running.home) == before


def test_a_name_that_differs_in_case_alone_is_refused(running, hospitals):
    with pytest.raises(StudyError, match="'North' beside 'north'"):
        inviting.invite(running.home, "North")


def test_a_suspended_hospital_is_shut_out_and_others_notice_nothing(running, hospitals):
    north, south = hospitals["north"][0], hospitals["south"][0]
    before = {site.name: site for site in roster.read(running.home).values()}
    assert running.say("suspend", running.home, "north")["status"] == "suspended"
    with pytest.raises(ServiceError, match="status 403"):
        folders(north)
    assert folders(south) == ["000000"]
    assert set(roster.active(running.home)) == {"south"}
    assert inviting.resume(running.home, "north").status == "active"
    assert "000000" in folders(north)
    assert roster.read(running.home) == before


def test_a_removed_hospital_is_out_for_good_and_may_be_invited_anew(running):
    east, invited = running.enter("east")
    assert running.say("remove", running.home, "east")["status"] == "removed"
    with pytest.raises(ServiceError, match=r"status 40[13]"):
        folders(east)
    assert roster.find(running.home, "east").key == ""
    with pytest.raises(StateError, match="found 'east' removed"):
        inviting.resume(running.home, "east")
    assert running.invite("east").experiment == invited.experiment
    with pytest.raises(ServiceError, match="status 401"):
        folders(east)


def test_who_asks_while_mlflow_is_killed_waits_and_is_answered(running, hospitals):
    before = running.pids()
    os.kill(before["mlflow_server"], signal.SIGKILL)
    assert "000000" in folders(
        hospitals["north"][0]
    )  # three tries within a second: the last waits in the socket's queue
    assert running.health() == 200
    after = running.pids()
    assert after["mlflow_server"] != before["mlflow_server"]
    assert after["nginx"] == before["nginx"]
    assert "mlflow ended with exit code -9" in running.log.read_text()


def test_nginx_comes_back_after_its_master_was_killed(running, hospitals):
    before = running.pids()["nginx"]
    os.kill(before, signal.SIGKILL)
    running.wait(lambda: running.pids().get("nginx", before) != before, 30)
    assert "000000" in folders(hospitals["south"][0])


def test_a_second_start_is_refused(running):
    second = running.tried("start", running.home, "--only", "nginx")
    assert (second.returncode, "found another process that does" in second.stdout) == (15, True)
    assert running.health() == 200


def test_no_log_and_no_public_file_holds_a_password_a_nonce_or_a_token(running, hospitals):
    hidden = {word for word in config.read_secrets(running.home).model_dump().values() if word} | running.secrets
    assert len(hidden) > 8
    names = ("log", "sites", "nginx", "deploy", "study", "coordinator.toml")
    held = [
        file for name in names for file in [running.home / name, *(running.home / name).rglob("*")] if file.is_file()
    ]
    for file in [*held, running.log]:
        text = file.read_bytes()
        assert not any(word.encode() in text for word in hidden), file
    assert (running.home / "log" / "nginx-access.log").stat().st_size > 1000


def test_killed_itself_it_leaves_no_server_behind_and_a_new_one_ends_in_order(running, hospitals):
    left, before = running.pids(), roster.read(running.home)
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait(10)
    end = time.monotonic() + 20
    while any(_lives(pid) for pid in left.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    with running.log.open("wb") as said:
        words = [PROGRAM, "coordinator", "start", running.home, "--only", "nginx", "--json"]
        running.process = subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True)
    running.wait(lambda: '"ready"' in running.log.read_text(), 60)
    left = running.pids()
    assert set(left) == {"nginx"}
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
    assert not any(_lives(pid) for pid in left.values())
    assert roster.read(running.home) == before


def _lives(pid: int) -> bool:
    """Whether a process is there and not just waited for."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
