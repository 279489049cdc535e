"""The command line as a user meets it: what it prints, where it goes on, how it stops."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedrounds.cli.main import main
from fedrounds.cli.run import _columns
from fedrounds.cli.status import _last_failure, _print
from fedrounds.ledger import Act, Standing
from fedrounds.reports.summary import Line
from fedrounds.tasks import folder as folders

FEDROUNDS = Path(sys.executable).with_name("fedrounds")
HEAVY = [
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "pydantic",
    "sqlalchemy",
    "prefect",
    "mlflow",
    "great_expectations",
    "matplotlib",
    "rich",
]
FOREIGN = re.compile(
    r"Traceback|Warning|INFO|DEBUG|ERROR|prefect\.|mlflow\.|Error logging|site-packages", re.IGNORECASE
)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def has_run(toy_study, tmp_path_factory):
    """A study that has run; tests here only look at it."""
    return toy_study.copy(tmp_path_factory.mktemp("cli") / "toy")


def said(capfd: pytest.CaptureFixture[str]) -> dict:
    """The one document on standard output; nothing else may be said."""
    out, err = capfd.readouterr()
    assert err == ""
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    return json.loads(out)


def rounds_in(study: Path) -> int:
    with closing(sqlite3.connect(f"file:{study}/mlruns/toy/ledger.db?mode=ro", uri=True)) as ledger:
        return ledger.execute("SELECT max(round) FROM visits").fetchone()[0]


# --- start-up ---------------------------------------------------------------------------------------------------------


def test_help_imports_no_library():
    """`--help` in half a second is a benchmark; what makes it so is this."""
    program = (
        "import sys; from fedrounds.cli.main import _parser; _parser().format_help();"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_without_a_command_it_shows_its_help(capfd):
    assert main([]) == 2
    out, err = capfd.readouterr()
    assert err == ""
    assert all(
        f"\n    {command}  " in out for command in ("init", "check", "run", "status", "promote", "rollback", "ui")
    )


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_prints_our_table_and_nothing_else(toy_study):
    assert toy_study.stderr == ""
    lines = toy_study.stdout.splitlines()
    assert re.fullmatch(r"Will this patient be readmitted within 30 days\? · 3 rounds in [\d.]+ s", lines[0])
    assert lines[1] == "Made-up patients at made-up hospitals, to start from."
    assert lines[2].split("  ")[0] == "site"
    table = {line.split("  ")[0]: line.split()[-3:] for line in lines[3:8]}
    assert list(table) == ["east", "north", "south", "west", "all sites"]
    assert table["all sites"][0] == "–"
    assert all(0.5 < float(value) < 1 for values in table.values() for value in values if value != "–")
    assert [line.split()[0] for line in lines[8:]] == ["AUC", "*", "champion:", "bytes:", "Look"]
    assert all(len(line) <= 80 for line in lines[:10])
    assert not FOREIGN.search(toy_study.stdout)


def test_what_libraries_said_is_in_the_log_and_is_nothing_bad(toy_study):
    assert not re.search("Traceback|Error", (toy_study.state / "run.log").read_text())


def test_a_run_at_its_rounds_says_so_and_leaves_mlflow_alone(has_run, capfd):
    def store():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in (has_run / "mlruns").glob("mlflow.db*")
        }  # fmt: skip

    before = store()
    assert main(["run", str(has_run)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(
        "Nothing to do: operations.toml asks for 3 rounds. `--more N` goes on, `--fresh` starts anew.\n"
    )
    assert "· 3 rounds\n" in out
    assert store() == before


def test_status_before_and_after(new_study, has_run, capfd):
    assert main(["status", str(new_study)]) == 0
    out, err = capfd.readouterr()
    assert (out, err) == (f"toy: no round yet. `fedrounds run {new_study}` starts it.\n", "")
    assert not (new_study / "mlruns" / "toy").exists()
    assert main(["status", str(has_run)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "· 3 rounds\n" in out
    assert f"Look next: fedrounds ui {has_run} " in out


def test_a_reader_that_leaves_is_no_error(has_run):
    ended = subprocess.run(
        f"{FEDROUNDS} status {has_run} | true", shell=True, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_fresh_sets_the_old_state_aside_and_comes_to_the_same_model(
    toy_study, tmp_path, program, prefect_beside, capfd
):
    study = toy_study.copy(tmp_path / "toy")
    assert main(["status", str(study), "--json"]) == 0
    before = said(capfd)
    (study / "mlruns" / "toy" / "mark").write_text("the old one")
    ended = program("run", study, "--fresh", "--json", **prefect_beside)
    assert (ended.returncode, ended.stderr) == (0, "")
    after = json.loads(ended.stdout)
    assert ended.stdout.count("\n") == 1
    assert (after["model_digest"], after["rounds"]) == (before["model_digest"], 3)
    assert after["sites"] == before["sites"]
    assert (study / "mlruns" / "toy.1" / "mark").exists()
    assert not (study / "mlruns" / "toy" / "mark").exists()
    with closing(sqlite3.connect(study / "mlruns" / "mlflow.db")) as store:
        lineages = "SELECT count(*) FROM tags WHERE key = 'fedrounds.about' AND value = 'lineage'"
        assert store.execute(lineages).fetchone() == (2,)


# --- --json -----------------------------------------------------------------------------------------------------------


def test_init_as_a_document(tmp_path, capfd):
    assert main(["init", str(tmp_path / "new study"), "--json"]) == 0
    document = said(capfd)
    assert document["study"] == "new-study"
    assert {
        "study.toml",
        "operations.toml",
        "sites/north.toml",
        "data/north.csv",
        "expectations/readmission.json",
    } < set(document["files"])


@pytest.mark.parametrize("name", ["artifacts", "x" * 80, "_.-", "Ärzte und Patienten"])
def test_init_finds_a_name_that_can_be_one(name, tmp_path, capfd):
    assert main(["init", str(tmp_path / name), "--json"]) == 0
    assert folders.read(tmp_path / name).study.name == said(capfd)["study"]


@pytest.mark.parametrize("gate", [False, True], ids=["check", "check --gate"])
def test_check_as_a_document(gate, new_study, capfd):
    assert main(["check", str(new_study), "--json", *(["--gate"] if gate else [])]) == 0
    document = said(capfd)
    assert {site["site"]: site["patients"] for site in document["sites"]} == {
        "east": 240,
        "north": 300,
        "south": 180,
        "west": 120,
    }
    assert all(site.get("passed", True) for site in document["sites"])
    assert document["failed_gates"] == []
    assert document["needs_fresh"] is False


def test_a_failed_gate_ends_check_with_its_own_code_and_says_what_failed(new_study, capfd):
    file = new_study / "data" / "north.csv"
    head, *rows = (line.split(",") for line in file.read_text().splitlines())
    for row in rows[:12]:
        row[1] = "112"
    file.write_text("".join(",".join(row) + "\n" for row in (head, *rows)))
    assert main(["check", str(new_study), "--gate"]) == 12
    out, err = capfd.readouterr()
    assert err == ""
    assert "  north: 300 patients; failed 1 of 17 checks — expect_column_values_to_be_between · age: 12 of 300\n" in out
    assert "gate failed at north, which would sit out: mend the data there\n" in out
    assert "ready to run" not in out
    assert "112" not in out


def test_check_says_when_the_next_tick_is(new_study, capfd):
    with (new_study / "operations.toml").open("a") as operations:
        operations.write('\n[schedule]\ncron = "0 3 * * 1"\ntimezone = "Europe/Zurich"\n')
    assert main(["check", str(new_study)]) == 0
    assert re.search(
        r"^  next tick of its calendar: Monday 20\d\d-\d\d-\d\d 03:00 Europe/Zurich; ",
        capfd.readouterr().out,
        re.MULTILINE,
    )


def test_check_says_when_only_a_fresh_start_will_do(has_run, tmp_path, toy_study, capfd):
    study = toy_study.copy(tmp_path / "toy")
    (study / "study.toml").write_text((study / "study.toml").read_text().replace("rate = 0.1", "rate = 0.2"))
    assert main(["check", str(study), "--json"]) == 0
    assert said(capfd)["needs_fresh"] is True


def test_status_and_a_run_that_has_nothing_to_do_as_documents(new_study, has_run, capfd):
    assert main(["status", str(new_study), "--json"]) == 0
    assert said(capfd) == {"study": "toy", "rounds": 0, "of": 3}
    documents = []
    for command in ("status", "run"):
        assert main([command, str(has_run), "--json"]) == 0
        documents.append(said(capfd))
    assert documents[0] == documents[1]
    assert documents[0]["rounds"] == 3
    assert re.fullmatch("[0-9a-f]{64}", documents[0]["model_digest"])


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> set[int]:
    """Every process below one, whatever its group."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def still_there(pids: set[int], within_s: float = 10) -> set[int]:
    """Those of the processes that do not leave in time; a zombie has left."""
    until = time.monotonic() + within_s
    while (left := {pid for pid in pids if alive(pid)}) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Terminal:
    """A program on a terminal of 80 columns."""

    def __init__(self, *words: object, env: dict[str, str]) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {**env, "TERM": "xterm-256color"}
        env.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            [FEDROUNDS, *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        self.shown = b""
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours: int) -> None:
        with open(ours, "rb", buffering=0) as screen:
            try:
                while piece := screen.read(65536):
                    self.shown += piece
            except OSError:  # the program has closed its end
                return

    def stop(self, sign: signal.Signals) -> int:
        """Signal the whole group, as a terminal does."""
        os.killpg(self.process.pid, sign)
        code = self.process.wait(30)
        self._reader.join(10)
        return code

    @property
    def lines(self) -> list[str]:
        """Every line that was ever to be seen."""
        return [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", self.shown.decode())) if line.strip()]


def wait_until(what, program: subprocess.Popen, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not what():
        assert program.poll() is None, "the program ended"
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def quiet_environment():
    return {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}


def test_ctrl_c_amid_the_rounds_ends_cleanly_and_the_next_run_goes_on(
    toy_study, tmp_path, quiet_environment, program, prefect_beside
):
    study = toy_study.copy(tmp_path / "toy")
    terminal = Terminal("run", study, "--more", "2000", env=quiet_environment)
    wait_until(lambda: rounds_in(study) >= 6, terminal.process)
    helpers = descendants(terminal.process.pid)
    assert len(helpers) >= 2
    assert terminal.stop(signal.SIGINT) == 130
    assert still_there(helpers) == set()
    *bars, last = terminal.lines
    assert last == "fedrounds: stopped: nothing is lost, `fedrounds run` goes on from the last closed round"
    assert not FOREIGN.search("\n".join(terminal.lines))
    bars = [line for line in bars if "rounds ·" in line]
    assert all(len(line) <= 80 for line in bars)
    assert any(
        re.fullmatch(r"toy [━╸╺]+ +\d+/2003 rounds · 4 sites · log-loss 0\.\d{4} · [\d:-]+ left", line) for line in bars
    )
    closed = rounds_in(study)
    assert 6 <= closed < 2003
    ended = program("run", study, **prefect_beside)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert rounds_in(study) == closed
    assert f" · {closed} rounds in " in ended.stdout
    assert "of 3 rounds" not in ended.stdout


def test_sigterm_at_the_start_ends_as_cleanly(new_study, quiet_environment):
    terminal = Terminal("run", new_study, env=quiet_environment)
    helpers: set[int] = set()
    wait_until(lambda: helpers.update(descendants(terminal.process.pid)) or len(helpers) >= 2, terminal.process)
    assert terminal.stop(signal.SIGTERM) == 130
    assert still_there(helpers) == set()
    assert terminal.lines[-1].startswith("fedrounds: stopped")
    assert not FOREIGN.search("\n".join(terminal.lines))


@pytest.mark.parametrize(
    "amid",
    [
        "class It:\n    def __del__(self): stop()\nit = It()",
        "import weakref\nclass It: pass\nit = It()\nseen = weakref.ref(it, lambda _: stop())",  # as each import does when it is over
    ],
    ids=["an object's end", "a weak reference's callback"],
)
def test_a_signal_where_python_drops_what_is_raised_comes_again(python, amid):
    done = python(
        "import os, signal, time\nfrom fedrounds.cli.stopping import heed\nheed()\n"
        f"def stop(): os.kill(os.getpid(), signal.SIGTERM); return sum(range(9))\n{amid}\n"
        "try:\n    del it\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stopped')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


# --- on the screen ----------------------------------------------------------------------------------------------------

LONG = "failed 2 of 17 checks — expect_column_values_to_be_between · systolic_bp: 12 of 303; expect_column_values_to_be_in_set · sex: 33 of 303"
TABLE = [
    Line("north", 303, "passed", 0.81234, 0.83, 0.84),
    Line("south-of-the-river", None, LONG, None, None, None),
    Line("west", 3, "refused: too few training patients", None, None, None),
    Line("all sites", 303, "", None, 0.83, 0.84),
]


def test_a_table_with_models_of_the_sites_own_fits_too(new_study, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "80")
    own = [replace(line, personal=0.85) for line in TABLE]
    _print(folders.read(new_study), own, {"metrics": {}}, 23, [], None, Standing(None, None, {}))
    lines = capfd.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines[1:8])
    assert lines[2].split()[-2:] == ["AUC", "personal"]
    assert next(line for line in lines if line.startswith("north")).split()[-4:] == ["0.812", "0.830", "0.840", "0.850"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_and_long_reasons_stand_below_it(columns, new_study, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", str(columns))
    standing = Standing((20,), None, {20: ("promoted", "promoted")})
    _print(folders.read(new_study), TABLE, {"metrics": {"auc_error": 0.00003}}, 23, [], 12.34, standing)
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "Will this patient be readmitted within 30 days? · 23 rounds in 12.3 s"
    table = lines[2:7]
    assert all(len(line) <= columns for line in table)
    assert [line.split()[-4:] for line in table[1:]] == [
        ["passed", "0.812", "0.830", "0.840"],
        ["excluded", "–", "–", "–"],
        ["refused", "–", "–", "–"],
        ["303", "–", "0.830", "0.840"],
    ]
    assert lines[7] == f"excluded: south-of-the-river — {LONG}"
    assert lines[8] == "refused: west — too few training patients"
    assert "exact to <0.0001." in lines[9]
    assert "champion: round 20 — promoted" in lines


def test_the_progress_bar_is_one_line_of_80_columns_whatever_the_names():
    from rich.console import Console
    from rich.progress import Progress

    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    with Progress(*_columns(), console=console, auto_refresh=False) as bar:
        task = bar.add_task("a-study-with-a-name-that-no-one-remembers", total=1000, sites=1000, loss="starting")
        for done, loss in ((0, "statistics"), (999, "log-loss 0.6151"), (1000, "log-loss 0.6151")):
            bar.update(task, completed=done, loss=loss, refresh=True)
    shown = {line for line in re.split(r"[\r\n]+", ESCAPE.sub("", screen.getvalue())) if line.strip()}
    assert all("rounds · 1000 sites" in line and line.rstrip().endswith("left") and len(line) <= 80 for line in shown)
    assert len(shown) >= 3


def test_who_waits_for_approval_and_what_a_person_did_last_are_shown(new_study, capfd):
    standing = Standing(
        (20,), 22, {20: ("promoted", "promoted by ada: safe"), 22: ("pending", "waits for approval: better")}
    )
    act = Act(1, 24, 0.0, "promote", 20, "", "safe", "ada")
    _print(folders.read(new_study), TABLE, {}, 23, [], None, standing, [act])
    assert capfd.readouterr().out.splitlines()[-4:-1] == [
        "champion: round 20 — promoted by ada: safe",
        f"challenger: round 22 — waits for approval: better: `fedrounds promote {new_study}`",
        "last act: round 20 promoted by ada: safe (1970-01-01 00:00 UTC)",
    ]


def test_a_last_try_that_failed_is_shown(new_study, capfd):
    failure = SimpleNamespace(failed=2.0, reason="expected at least 3 of 4 sites to pass the gate, found 2")
    said = _last_failure([SimpleNamespace(committed=1.0)], [failure])
    assert _last_failure([SimpleNamespace(committed=3.0)], [failure]) == []
    _print(folders.read(new_study), TABLE, {}, 2, [*said, "the alias was moved by hand"], None, Standing())
    out = capfd.readouterr().out
    assert "· 2 of 3 rounds\n" in out
    assert "last try failed: expected at least 3 of 4 sites to pass the gate, found 2\n" in out
    assert "the alias was moved by hand\n" in out
