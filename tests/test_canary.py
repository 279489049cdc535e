"""What is planted in the rows is found nowhere else: not in MLflow, Prefect, the ledger, logs, messages or on the terminal."""

from __future__ import annotations

import io
import json
import sqlite3
import struct
import traceback
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from fedrounds.cli.init import init
from fedrounds.core.errors import DataContractError, ServiceError
from fedrounds.core.messages import encode
from fedrounds.core.plan import build
from fedrounds.core.round import Asking, close_exchange, open_round
from fedrounds.tasks import folder as folders
from fedrounds.tasks import ward as wards
from fedrounds.tasks.child import Child
from fedrounds.tasks.ward import Ward
from fedrounds.tasks.withheld import trace, withheld

NUMBERS = {"biomarker": 7391846.25, "systolic_bp": 8264193.75}  # the first passes the gate, the second fails it
TEXTS = {
    "clinic": "Zebrafish-4471",
    "smoker": "Quetzal-9923",
    "patient_id": "MRN-7788123-K",
    "remark": "Mrs Ottoline Vexley",
}
BROKEN = "Quokka-31337"  # text where a number should be
RAISED = "Narwhal-60613"  # in the text of an exception that is not ours
FLOAT32 = {".npz", ".npy", ".skops", ".db"}  # where arrays are; elsewhere four bytes may turn up by chance


# --- the search -------------------------------------------------------------------------------------------------------


def forms(name: str = "x.npy") -> dict[str, bytes]:
    """Every canary in every form in which it might be in a file of that name."""
    found = {text: text.encode() for text in [*TEXTS.values(), BROKEN, RAISED]}
    for value in NUMBERS.values():
        digits = repr(value)
        mantissa = f"{value:e}".replace(".", "")[:7]
        found |= {digits: digits.split(".")[0].encode(), f"{digits} e": f"{mantissa[0]}.{mantissa[1:]}".encode()}
        found |= {f"{digits} {order}d": struct.pack(f"{order}d", value) for order in "<>"}
        if Path(name).suffix in FLOAT32:
            found |= {f"{digits} {order}f": struct.pack(f"{order}f", value) for order in "<>"}
    return found


def canaries(name: str, content: bytes) -> list[str]:
    """Where canaries are in a file: in its bytes, in what it has packed, in each cell of a database."""
    found = [f"{name}: {form}" for form, what in forms(name).items() if what in content]
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for member in packed.namelist():
                found += canaries(f"{name}/{member}", packed.read(member))
    if content.startswith(b"\x89PNG"):
        found += canaries(f"{name}/text", repr(Image.open(io.BytesIO(content)).info).encode())
    return found


def search(folder: Path) -> tuple[list[str], int]:
    """Canaries in all files below a folder, and how many bytes were looked at."""
    found, size = [], 0
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            size += len(content)
            found += canaries(str(file.relative_to(folder)), content)
            if content.startswith(b"SQLite format 3"):  # a cell may be spread over pages
                found += [hit for cell in cells(file) for hit in canaries(f"{file.name} cell", cell)]
    return found, size


def cells(database: Path):
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        for (table,) in store.execute("select name from sqlite_master where type = 'table'").fetchall():
            for row in store.execute(f'select * from "{table}"'):
                yield b"\0".join(cell if isinstance(cell, bytes) else str(cell).encode() for cell in row)


def test_the_search_finds_what_is_there(tmp_path):
    for value in NUMBERS.values():
        (tmp_path / "a.npy").write_bytes(b"xx" + struct.pack("<d", value))
        (tmp_path / "b.json").write_text(json.dumps({"value": value}))
        with zipfile.ZipFile(tmp_path / "c.skops", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("d.npy", struct.pack("<f", value))
        names = {hit.split(":")[0] for hit in search(tmp_path)[0]}
        assert names == {"a.npy", "b.json", "c.skops/d.npy"}
    with closing(sqlite3.connect(tmp_path / "e.db")) as store:
        store.execute("create table t (x, y)")
        store.execute("insert into t values (?, ?)", ("-" * 6000 + TEXTS["clinic"], NUMBERS["biomarker"]))
        store.commit()
    assert any(hit == f"e.db cell: {TEXTS['clinic']}" for hit in search(tmp_path)[0])
    assert any(hit.startswith("e.db cell: 7391846.25") for hit in search(tmp_path)[0])


# --- a study with canaries --------------------------------------------------------------------------------------------


def plant(folder: Path, site: str, passes: bool) -> None:
    """Canaries in three rows of a site's file; two features and an unused column are added to it."""
    file = folder / "data" / f"{site}.csv"
    head, *lines = file.read_text().splitlines()
    names = [*head.split(","), "biomarker", "clinic", "remark"]
    rows = [[*line.split(","), f"{i % 7}.5", "abc"[i % 3], "none"] for i, line in enumerate(lines)]
    for n, i in enumerate((3, 11, 17)):
        row = dict(zip(names, rows[i], strict=True))
        row |= {"biomarker": str(NUMBERS["biomarker"]), "clinic": TEXTS["clinic"], "remark": TEXTS["remark"]}
        row |= {"patient_id": f"{TEXTS['patient_id']}{n}"}
        if not passes:
            row |= {"systolic_bp": str(NUMBERS["systolic_bp"]), "smoker": TEXTS["smoker"]}
        rows[i] = list(row.values())
    file.write_text("\n".join(",".join(row) for row in [names, *rows]) + "\n")


@pytest.fixture(scope="module")
def planted(tmp_path_factory, warm):
    """A toy study with canaries at every site; at `west` they fail the gate."""
    folder = tmp_path_factory.mktemp("planted") / "toy"
    init(folder, as_json=True)
    warm(folder / "mlruns")
    for site in ("east", "north", "south", "west"):
        plant(folder, site, passes=site != "west")
    study = folder / "study.toml"
    more = '  { type = "number", name = "biomarker" },\n  { type = "category", name = "clinic", categories = ["a", "b"] },\n'
    study.write_text(study.read_text().replace("features = [\n", "features = [\n" + more))
    operate(folder, "rounds = 10 ", "rounds = 2 ")
    operate(folder, "# [drift] ", "[drift] ")
    return folder


def operate(folder: Path, before: str, after: str) -> None:
    file = folder / "operations.toml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))


MAIN = "import sys; from fedrounds.cli.main import main; sys.exit(main(sys.argv[1:]))"
RAISES = f"""
import fedrounds.tasks.ward as ward
answer, cell = ward.handle, "-".join({RAISED.split("-")})  # a traceback may show this line
def handle(request, *others):
    if request.ask == "train":
        try:
            return float(cell)
        except ValueError:
            raise KeyError(cell)
    return answer(request, *others)
ward.handle = handle
"""


@pytest.fixture
def run(python):
    """Runs a command; gives all that it printed."""

    def ran(*words: object, code: int = 0, program: str = MAIN) -> str:
        done = python(program, *words, timeout=120)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return ran


def test_canaries_are_found_in_the_rows_and_nowhere_else(planted, run):
    said = [run("run", planted)]
    assert "systolic_bp: fewer than 10 of 120" in " ".join(said[0].split())
    operate(planted, 'policy = "exclude"', 'policy = "warn"')
    said += [run("run", planted, "--more", 1, "--json"), run("status", planted)]
    assert json.loads(said[1].splitlines()[0])["rounds"] == 3
    said += [run("baselines", planted), run("explain", planted)]
    failed = run("run", planted, "--more", 1, code=16, program=RAISES + MAIN)
    assert "found KeyError in <string>, line" in failed
    said.append(failed)

    found, size = search(planted / "mlruns")
    assert size > 2_000_000
    assert found == []
    assert canaries("terminal", "".join(said).encode()) == []
    here = {hit.split(":")[0] for hit in search(planted / "data")[0]}
    assert here == {"east.csv", "north.csv", "south.csv", "west.csv"}
    unseen = set(forms("x.csv")) - {BROKEN, RAISED}
    assert {hit.split(": ")[1] for hit in search(planted / "data")[0]} == {
        form for form in unseen if form[-1] not in "de"
    }


def test_a_message_holds_no_canary(planted):
    read = folders.read(planted)
    plan = build(read.study)
    state, sites = plan.start(), {name: Ward(site, plan, read.data) for name, site in read.sites.items()}
    for ward in sites.values():
        ward.load()
    for ask in ("statistics", "profile", "train", "score", "explain"):
        asking = open_round(state, plan, ask, sites)
        while isinstance(asking, Asking):
            messages = [sites[name].answer(encode(asking.request)) for name in asking.sites]
            assert [hit for message in messages for hit in canaries("message.npy", message)] == []
            asking = close_exchange(asking, plan, map(wards.read_reply, messages))
        state = asking.state


def test_a_contract_that_is_broken_is_told_without_the_cell(planted, run):
    file = planted / "data" / "north.csv"
    kept = file.read_text()
    try:
        file.write_text(kept.replace(str(NUMBERS["biomarker"]), BROKEN))
        said = run("run", planted, "--fresh", code=11) + run("check", planted, "--gate", "--json", code=11)
    finally:
        file.write_text(kept)
    assert "found 3 of 300 cells that are none" in said or "fewer than 10 of 300 cells" in said
    assert canaries("terminal", said.encode()) == []


# --- exceptions that are not ours -------------------------------------------------------------------------------------


def test_a_foreign_exception_at_a_ward_leaves_as_its_type_and_place(planted, monkeypatch):
    def load(*_):
        raise KeyError(RAISED)

    monkeypatch.setattr(wards, "load", load)
    read = folders.read(planted)
    with pytest.raises(ServiceError) as caught:
        Ward(read.sites["north"], build(read.study), read.data).load()
    assert str(caught.value).startswith(
        "expected to read the rows of site 'north', found KeyError in test_canary.py, line"
    )
    assert RAISED not in "".join(traceback.format_exception(caught.value))
    assert "in load" in "".join(traceback.format_exception(caught.value))


def test_an_error_of_ours_passes_as_it_is():
    with pytest.raises(DataContractError, match="a column is missing"), withheld("to read"):
        raise DataContractError("a column is missing")


HELPER = """
from fedrounds.core.errors import DataContractError
from fedrounds.tasks.child import serve

def handle(request):
    try:
        float(request["cell"])
    except ValueError as error:
        if request["ours"]:
            raise DataContractError("expected numbers, found text") from error
        raise KeyError(request["cell"]) from error

serve(handle)
"""


@pytest.mark.parametrize("ours", [True, False])
def test_a_helpers_log_and_answer_hold_frames_and_types_alone(tmp_path, monkeypatch, ours):
    (tmp_path / "canary_helper.py").write_text(HELPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child("canary_helper", tmp_path / "log")
    with pytest.raises(DataContractError if ours else ServiceError) as caught:
        child.call({"ours": ours, "cell": RAISED}).result(20)
    child.close()
    log = (tmp_path / "log").read_text()
    assert "in handle" in log
    assert ("DataContractError: expected numbers" if ours else "KeyError") in log
    assert RAISED not in log + str(caught.value)


def test_a_trace_names_an_exception_without_its_text():
    with pytest.raises(ValueError, match=RAISED) as caught:
        float(RAISED)
    assert trace(caught.value).splitlines()[-1] == "ValueError"
    assert "Narwhal" not in trace(caught.value)
