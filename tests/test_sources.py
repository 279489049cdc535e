"""Where rows come from: every kind loads, and no error shows a patient or a password."""

from __future__ import annotations

import datetime as dt
import sqlite3
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from declared import CANARY, parse, refusal
from flamby_heart import COLUMNS
from postgres import Postgres
from pyarrow import parquet
from pydantic import ValidationError

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table
from fedrounds.sources import BundledSource, CsvSource, ParquetSource, SqlSource, load
from fedrounds.sources.bundled import deal
from fedrounds.sources.site_file import SiteFile

DATA = Path(__file__).parents[2] / "shared" / "data"


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is absent: the product ships no patient data")
    return DATA / name


def text(*cells: str) -> np.ndarray:
    return np.array(cells, dtype=object)


def write(folder: Path, content: str | bytes, name: str = "rows.csv") -> CsvSource:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return CsvSource(path=name)


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_table_shows_counts_and_no_cells() -> None:
    table = Table({"a": text(CANARY), "b": np.array([float(CANARY)])})
    assert repr(table) == "Table(1 rows, 2 columns)"


def test_a_fingerprint_is_of_names_types_and_cells_whatever_the_order_of_columns() -> None:
    a, b = text("1", "23"), np.array([1.0, np.nan])
    same = Table({"a": a, "b": b}).fingerprint()
    assert Table({"b": b.copy(), "a": a.copy()}).fingerprint() == same
    others = [
        Table({"a": text("12", "3"), "b": b}),
        Table({"a": a, "c": b}),
        Table({"a": a, "b": text("1.0", "")}),
        Table({"a": a, "b": np.array([1.0, 0.0])}),
        Table({"a": a, "b": b}).take(np.array([1, 0])),
    ]
    assert len({same, *(other.fingerprint() for other in others)}) == 6


def test_a_row_keeps_its_key_wherever_it_stands() -> None:
    table = Table({"a": text("x", "y", "x", "63"), "b": np.array([1.0, 2.0, 1.0, np.nan])})
    keys = table.row_keys()
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3
    assert list(table.take(np.array([3, 1])).row_keys()) == [keys[3], keys[1]]
    assert Table({"a": text("63.0"), "b": np.array([np.nan])}).row_keys()[0] != keys[3]
    assert Table({"b": table.columns["b"], "a": table.columns["a"]}).row_keys()[1] == keys[1]


def test_cells_that_hold_quotes_and_commas_do_not_run_together() -> None:
    one, two = Table({"a": text("x', 'y"), "b": text("z")}), Table({"a": text("x"), "b": text("y', 'z")})
    assert one.row_keys()[0] != two.row_keys()[0]
    assert one.fingerprint() != two.fingerprint()
    split = [Table({"a": text(*cells)}).fingerprint() for cells in (("x\x1fy", "z"), ("x", "y\x1fz"), ("x", "yz"))]
    assert len(set(split)) == 3


def test_tables_of_text_alone_of_numbers_alone_and_of_nothing_have_keys() -> None:
    assert len(Table({"a": text("x")}).row_keys()[0]) == 32
    assert len(Table({"a": np.array([1.0])}).row_keys()[0]) == 32
    assert len(Table({}).row_keys()) == 0
    assert Table({"a": np.array([-0.0])}).row_keys()[0] == Table({"a": np.array([0.0])}).row_keys()[0]


# ── csv ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_padding_is_kept_beside_the_columns_that_have_it(tmp_path: Path) -> None:
    clean = load(write(tmp_path, "age,sex\n61,f\n7,m\n"), tmp_path, "north")
    padded = load(write(tmp_path, "age,sex\n 61,f\n7,m\n"), tmp_path, "north")
    assert (clean.written, list(padded.written)) == ({}, ["age"])
    assert padded.written["age"].tolist() == [" 61", "7"]
    assert padded.take(np.array([0])).written["age"].tolist() == [" 61"]
    assert padded.fingerprint() == clean.fingerprint()
    assert padded.row_keys().tolist() == clean.row_keys().tolist()


def test_padding_is_kept_from_typed_sources_too(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"sex": ["f ", None], "note": ["a", "b"], "age": [1.5, None]}), tmp_path / "rows.parquet"
    )
    with sqlite3.connect(tmp_path / "rows.db") as store:
        store.execute("CREATE TABLE rows (sex, note, age)")
        store.executemany("INSERT INTO rows VALUES (?, ?, ?)", [("f ", "a", 1.5), (None, "b", None)])
    store.close()
    for source in (
        ParquetSource(path="rows.parquet"),
        SqlSource(url="sqlite:///rows.db", query="SELECT sex, note, age FROM rows ORDER BY note"),
    ):
        table = load(source, tmp_path, "north")
        assert {name: cells.tolist() for name, cells in table.written.items()} == {"sex": ["f ", ""]}
        assert table.columns["sex"].tolist() == ["f", ""]


def test_csv_cells_stay_stripped_text(tmp_path: Path) -> None:
    table = load(write(tmp_path, '\ufeff age , sex,\n63.0,"No ",\n\n28,   ,NA\n'), tmp_path, "north")
    assert {name: list(column) for name, column in table.columns.items()} == {
        "age": ["63.0", "28"],
        "sex": ["No", ""],
        "column_3": ["", "NA"],
    }


def test_csv_without_header_takes_its_names_from_the_site_file(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes("63;ü\n28;b\n".encode("cp1252"))
    source = CsvSource(path="rows.txt", header=False, columns=("age", "name"), separator=";", encoding="cp1252")
    table = load(source, tmp_path, "north")
    assert list(table.columns["name"]) == ["ü", "b"]


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "a\n1\n")
    assert load(CsvSource(path=str(tmp_path / "rows.csv")), Path("/nowhere"), "north").rows == 1


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        ("", DataContractError, "an empty one"),
        ("age,sex\n", DataContractError, "none below the header"),
        ("\n\n", DataContractError, "none below the header"),
        (f"a,b\n1,2\n{CANARY},2,3\n", DataContractError, "expected 2 cells in every row, found 3 in line 3"),
        (f"a,b\n1,2\n{CANARY}\n", DataContractError, "expected 2 cells in every row, found 1 in line 3"),
        (f"{CANARY},1,{CANARY}\n1,2,3\n", DataContractError, "columns 1 and 3 have the same name"),
        (f"a,b\n{CANARY},ü\n".encode("latin-1"), DataContractError, "expected text in utf-8, found other bytes"),
        (f'a,b\n1,2\n"{CANARY}"x,2\n', DataContractError, "broken quotation or an endless cell after line 2"),
        (f'a,b\n1,"{CANARY}\n', DataContractError, "broken quotation or an endless cell"),
    ],
)
def test_a_bad_csv_is_refused_in_one_line(tmp_path: Path, content: str | bytes, kind: Any, says: str) -> None:
    message = refusal(write(tmp_path, content), tmp_path, kind)
    assert says in message
    assert str(tmp_path / "rows.csv") in message


def test_a_path_that_names_no_file_is_refused(tmp_path: Path) -> None:
    assert "found a folder" in refusal(CsvSource(path="."), tmp_path, StudyError)
    assert "found nothing" in refusal(ParquetSource(path="gone.parquet"), tmp_path, StudyError)
    write(tmp_path, "a\n1\n")
    assert "found nothing" in refusal(CsvSource(path="rows.csv/more.csv"), tmp_path, StudyError)


# ── where and fold ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("where", "kept"), [({"n": 63}, "ac"), ({"n": "63.00"}, "ac"), ({"s": " No "}, "ab"), ({"s": "No", "n": 63.0}, "a")]
)
def test_where_compares_text_and_numbers(tmp_path: Path, where: dict[str, Any], kept: str) -> None:
    write(tmp_path, "id,n,s\na,63.0,No\nb,28,No \nc, 63,Yes\n")
    table = load(CsvSource(path="rows.csv", where=where), tmp_path, "north")
    assert "".join(table.columns["id"]) == kept


def test_where_that_fits_no_column_or_no_row_is_refused(tmp_path: Path) -> None:
    write(tmp_path, f"{CANARY}\n{CANARY}\n")
    missing = refusal(CsvSource(path="rows.csv", where={"clinic": "MN"}), tmp_path, StudyError)
    assert "expected a column 'clinic', found 1 others" in missing
    write(tmp_path, f"clinic\n{CANARY}\n")
    assert "(clinic), found none" in refusal(CsvSource(path="rows.csv", where={"clinic": "MN"}), tmp_path, StudyError)


def test_a_published_split_counts_the_files_rows_drops_unlisted_ones_and_comes_before_where(tmp_path: Path) -> None:
    write(tmp_path, "id,n\na,1\nb,2\nc,1\nd,1\n")
    write(tmp_path, "site,row,fold\nx,3,test\nx,1,train\nx,0,train\ny,2,train\n", "split.csv")
    source = parse({"kind": "csv", "path": "rows.csv", "where": {"n": 1}, "fold": {"path": "split.csv", "as": "part"}})
    assert list(load(source, tmp_path, "north").columns["part"]) == ["train", "train", "test"]
    source = parse(
        {"kind": "csv", "path": "rows.csv", "where": {"n": 1}, "fold": {"path": "split.csv", "where": {"site": "x"}}}
    )
    table = load(source, tmp_path, "north")
    assert list(table.columns["id"]) == ["a", "d"]
    assert list(table.columns["fold"]) == ["train", "test"]


@pytest.mark.parametrize(
    ("split", "kind", "says"),
    [
        (f"row,fold\n{CANARY},train\n1.5,train\nx,test\n", DataContractError, "found 3 others"),
        ("row,fold\n0,train\n0,test\n", DataContractError, "found 1 repeated"),
        (f"row,fold\n0,{CANARY}\n", DataContractError, "expected train, valid or test in 'fold', found 1 other cells"),
        (f"line,fold\n0,{CANARY}\n", StudyError, "expected a column 'row'"),
    ],
)
def test_a_bad_split_is_refused_in_one_line(tmp_path: Path, split: str, kind: Any, says: str) -> None:
    write(tmp_path, "id\na\nb\n")
    write(tmp_path, split, "split.csv")
    source = parse({"kind": "csv", "path": "rows.csv", "fold": {"path": "split.csv"}})
    message = refusal(source, tmp_path, kind)
    assert says in message
    assert "split.csv" in message


def test_a_split_does_not_overwrite_a_column(tmp_path: Path) -> None:
    write(tmp_path, "fold\na\n")
    write(tmp_path, "row,fold\n0,train\n", "split.csv")
    source = parse({"kind": "csv", "path": "rows.csv", "fold": {"path": "split.csv"}})
    assert "choose another name with `as`" in refusal(source, tmp_path, StudyError)


# ── parquet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parquet_types_become_numbers_or_text(tmp_path: Path) -> None:
    columns = {
        "whole": pa.array([1, None]),
        "flag": pa.array([True, None]),
        "price": pa.array([Decimal("1.50"), None]),
        "name": pa.array([" x ", None]),
        "kind": pa.array(["u", "v"]).dictionary_encode(),
        "seen": pa.array([dt.datetime(2026, 1, 2, 3, 4), None]),
        "born": pa.array([dt.date(1960, 1, 2), None]),
        "id": pa.array([2**60 + 1, None]),
        "blank": pa.array([None, None], pa.float64()),
        "null": pa.nulls(2),
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    table = load(ParquetSource(path="rows.parquet"), tmp_path, "north")
    for name, first in {"whole": 1.0, "flag": 1.0, "price": 1.5, "blank": np.nan}.items():
        np.testing.assert_array_equal(table.columns[name], np.array([first, np.nan]))
        assert table.columns[name].dtype == np.float64
    found = {name: list(column) for name, column in table.columns.items() if column.dtype == object}
    assert found == {
        "name": ["x", ""],
        "kind": ["u", "v"],
        "seen": ["2026-01-02T03:04:00", ""],
        "born": ["1960-01-02", ""],
        "id": [str(2**60 + 1), ""],
        "null": ["", ""],
    }
    assert load(ParquetSource(path="rows.parquet", where={"whole": "1.0"}), tmp_path, "north").rows == 1
    refusal(ParquetSource(path="rows.parquet", where={"whole": CANARY}), tmp_path, StudyError)


def test_a_bad_parquet_file_is_refused_in_one_line(tmp_path: Path) -> None:
    source = ParquetSource(path="rows.parquet")
    parquet.write_table(pa.table({"a": [CANARY] * 500}), tmp_path / "rows.parquet")
    whole = (tmp_path / "rows.parquet").read_bytes()
    cut, scrambled = whole[:-30], whole[:4] + b"\xff" * 60 + whole[64:]
    for content in (f"a,b\n{CANARY},2\n", f"PAR1{CANARY}PAR1", cut, scrambled):
        write(tmp_path, content, "rows.parquet")
        assert "one that cannot be read" in refusal(source, tmp_path, DataContractError)
    write(tmp_path, "", "rows.parquet")
    assert "found an empty one" in refusal(source, tmp_path, DataContractError)
    parquet.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", " a"]), tmp_path / "rows.parquet")
    assert "columns 1 and 2 have the same name" in refusal(source, tmp_path, DataContractError)
    parquet.write_table(pa.table({"a": pa.array([], pa.float64())}), tmp_path / "rows.parquet")
    assert "expected rows, found none" in refusal(source, tmp_path, DataContractError)


# ── sql ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def database(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "hospital data.db") as connection:
        connection.execute("CREATE TABLE visits (age REAL, sex TEXT, seen TEXT, n INTEGER, mixed)")
        connection.execute(f"INSERT INTO visits VALUES (63.5, ' f ', '12:30', {2**60}, 1), (NULL, NULL, 'a%', 2, 'b')")
    connection.close()
    return tmp_path


def sqlite(query: str) -> SqlSource:
    return SqlSource(url="sqlite:///hospital data.db", query=query)


def test_sql_rows_arrive_with_types_and_the_query_is_taken_literally(database: Path) -> None:
    table = load(
        sqlite("SELECT * FROM visits WHERE seen LIKE '12:%' OR seen LIKE 'a%%' ORDER BY n DESC; "), database, "north"
    )
    np.testing.assert_array_equal(table.columns["age"], [63.5, np.nan])
    assert list(table.columns["sex"]) == ["f", ""]
    assert list(table.columns["n"]) == [str(2**60), "2"]
    assert list(table.columns["mixed"]) == ["1", "b"]
    with_words = (
        "WITH late AS (SELECT age AS \"update\" /* into; */ FROM visits) SELECT 'a;delete' AS d, * FROM late -- ;"
    )
    assert load(sqlite(with_words), database, "north").rows == 2


@pytest.mark.parametrize(
    "query",
    [
        "",
        "DELETE FROM visits",
        "SELECT 1; DROP TABLE visits",
        "WITH gone AS (DELETE FROM visits RETURNING *) SELECT * FROM gone",
        "SELECT * INTO copy FROM visits",
        "SELECT * FROM visits FOR UPDATE",
        "-- SELECT\nPRAGMA user_version = 2",
    ],
)
def test_a_query_that_could_write_is_refused_when_declared(query: str) -> None:
    with pytest.raises(ValidationError, match="one statement that only reads"):
        sqlite(query)


def test_a_sqlite_file_is_opened_read_only_and_never_created(database: Path) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    from fedrounds.sources import sql

    engine = create_engine(sql._address("sqlite:///hospital data.db", database, "north"))
    with engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.exec_driver_sql("DELETE FROM visits")
    engine.dispose()
    gone = SqlSource(url=f"sqlite:///{CANARY}.db", query="SELECT 1")
    assert "expected a SQLite file" in refusal(gone, database, StudyError)
    assert not (database / f"{CANARY}.db").exists()


def test_an_sql_failure_shows_its_type_and_nothing_else(database: Path) -> None:
    assert "found OperationalError" in refusal(sqlite(f"SELECT {CANARY} FROM nowhere"), database, DataContractError)
    assert "expected rows, found none" in refusal(
        sqlite("SELECT * FROM visits WHERE n < 0"), database, DataContractError
    )
    same = refusal(sqlite(f"SELECT age AS '{CANARY}', n AS '{CANARY}' FROM visits"), database, DataContractError)
    assert "columns 1 and 2 have the same name" in same
    for url in (f"nosuchdialect://u:{CANARY}@host/db", f"postgresql+{CANARY}://host/db"):
        assert "expected the database to answer" in refusal(
            SqlSource(url=url, query="SELECT 1"), database, DataContractError
        )
    assert "another form" in refusal(SqlSource(url=CANARY, query="SELECT 1"), database, StudyError)


def test_variables_of_the_environment_fill_the_url(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedrounds.sources import sql

    source = SqlSource(url="sqlite:///${HOSPITAL_DB}", query="SELECT n FROM visits")
    monkeypatch.delenv("HOSPITAL_DB", raising=False)
    assert "the environment variable HOSPITAL_DB" in refusal(source, database, StudyError)
    monkeypatch.setenv("HOSPITAL_DB", "hospital data.db")
    assert load(source, database, "north").rows == 2
    monkeypatch.setenv("HOSPITAL_DB", "p@ss/wörd%40")
    assert sql._address("postgresql://me:${HOSPITAL_DB}@host/db", database, "north").password == "p@ss/wörd%40"


def test_declarations_hide_what_was_written() -> None:
    assert CANARY not in repr(SqlSource(url=f"postgresql://me:{CANARY}@host/db", query="SELECT 1"))
    with pytest.raises(ValidationError) as caught:
        parse({"kind": "sql", "url": f"postgresql://me:{CANARY}@host/db", "query": CANARY, "pasword": CANARY})
    assert CANARY not in str(caught.value)
    assert "pasword" in str(caught.value)


@pytest.fixture(scope="module")
def server(postgres: Postgres) -> str:
    """A database with a table of patients on a real server; gives its address."""
    from sqlalchemy import create_engine

    url = postgres.database("patients")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE visits (id bigint, age numeric(5, 1), sex char(3), smoker boolean, seen timestamptz, born date, note text);"
            "CREATE SEQUENCE counted;"
            "INSERT INTO visits VALUES (1, 63.5, 'f', true, '2025-01-02 03:04+00', '1960-01-02', ' 5%% off '),"
            f"(2, NULL, NULL, NULL, NULL, NULL, NULL), ({2**60}, 28, 'm', false, '2025-06-01 12:00+00', '1997-05-05', '{CANARY}')"
        )
    engine.dispose()
    return url


def test_types_of_postgresql_become_numbers_or_text(server: str, tmp_path: Path) -> None:
    query = "SELECT age, sex, smoker, seen AT TIME ZONE 'UTC' AS seen, born, note, id FROM visits WHERE note LIKE '%' OR id = 2 ORDER BY id"
    table = load(SqlSource(url=server, query=query), tmp_path, "north")
    np.testing.assert_array_equal(table.columns["age"], [63.5, np.nan, 28])
    np.testing.assert_array_equal(table.columns["smoker"], [1, np.nan, 0])
    assert {name: list(cells) for name, cells in table.columns.items() if cells.dtype == object} == {
        "sex": ["f", "", "m"],
        "seen": ["2025-01-02T03:04:00", "", "2025-06-01T12:00:00"],
        "born": ["1960-01-02", "", "1997-05-05"],
        "note": ["5% off", "", CANARY],
        "id": ["1", "2", str(2**60)],
    }


def test_rows_without_an_order_are_the_same_table_wherever_the_server_keeps_them(server: str, tmp_path: Path) -> None:
    from sqlalchemy import create_engine

    loose, fixed = (
        SqlSource(url=server, query=f"SELECT id, note FROM visits{more}") for more in ("", " ORDER BY id DESC")
    )
    before = load(loose, tmp_path, "north").fingerprint()
    order = [load(fixed, tmp_path, "north").columns["id"].tolist()]
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE visits SET note = note WHERE id = 1")  # to the end of the heap
        kept = [str(row[0]) for row in connection.exec_driver_sql("SELECT id FROM visits")]
    engine.dispose()
    assert kept == ["2", str(2**60), "1"]
    assert load(loose, tmp_path, "north").fingerprint() == before
    assert [load(fixed, tmp_path, "north").columns["id"].tolist()] == order == [[str(2**60), "2", "1"]]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (f"SELECT {CANARY} FROM nowhere", "found ProgrammingError"),
        (f"SELECT note::date FROM visits WHERE note = '{CANARY}'", "found DataError"),
        ("SELECT nextval('counted')", "found InternalError"),
        ("SELECT pg_sleep(9) FROM visits", "found OperationalError"),
        ("SELECT id FROM visits WHERE id < 0", "expected rows, found none"),
        (f'SELECT id AS "{CANARY}", age AS "{CANARY}" FROM visits', "columns 1 and 2 have the same name"),
    ],
)
def test_what_postgresql_refuses_is_told_in_one_line(server: str, tmp_path: Path, query: str, says: str) -> None:
    url = f"{server}&options=-cstatement_timeout%3D300"
    assert says in refusal(SqlSource(url=url, query=query), tmp_path, DataContractError)


def test_a_server_that_is_not_there_is_told_without_its_address(tmp_path: Path) -> None:
    gone = SqlSource(url=f"postgresql+psycopg2://me:{CANARY}@127.0.0.1:1/db{CANARY}", query="SELECT 1")
    assert "found OperationalError" in refusal(gone, tmp_path, DataContractError)


# ── bundled ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bundled_patients_are_dealt_once_each_and_hospitals_differ_in_the_tilted_column() -> None:
    shares = (0.4, 0.3, 0.2, 0.1)
    sources = [BundledSource(name="diabetes", hospital=i, shares=shares, tilt="age", seed=7) for i in range(4)]
    tables = [load(source, Path(), "north") for source in sources]
    assert [table.rows for table in tables] == [177, 133, 88, 44]
    assert len({patient for table in tables for patient in table.columns["patient_id"]}) == 442
    assert list(tables[0].columns) == [
        *("patient_id", "age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6", "progression")
    ]
    ages = [table.columns["age"] for table in tables]
    means = sorted(age.mean() for age in ages)
    assert all(np.diff(means) > 3)
    assert max(age.min() for age in ages) < min(age.max() for age in ages)
    assert load(sources[2], Path(), "south").fingerprint() == tables[2].fingerprint()


def test_without_a_tilt_hospitals_are_alike_and_another_seed_deals_anew() -> None:
    tables = [load(BundledSource(name="diabetes", hospital=i, shares=(0.5, 0.5)), Path(), "north") for i in range(2)]
    assert abs(tables[0].columns["age"].mean() - tables[1].columns["age"].mean()) < 2
    assert (deal(442, (0.5, 0.5), None, 0) != deal(442, (0.5, 0.5), None, 1)).any()


@pytest.mark.parametrize(
    ("name", "rows", "target", "column"),
    [
        ("breast_cancer", 569, "benign", "mean_radius"),
        ("iris", 150, "species", "sepal_length_cm"),
        ("wine", 178, "cultivar", "od280_od315_of_diluted_wines"),
    ],
)
def test_every_bundled_set_loads(name: Any, rows: int, target: str, column: str) -> None:
    table = load(BundledSource(name=name, hospital=0, shares=(1.0,)), Path(), "north")
    assert table.rows == rows
    assert {target, column} <= table.columns.keys()
    assert table.columns["patient_id"][42] == f"{name[0]}0042"


def test_bad_deals_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"expected shares that sum to 1, found a sum of 0\.9"):
        BundledSource(name="iris", hospital=0, shares=(0.5, 0.4))
    with pytest.raises(ValidationError, match="expected hospital below 2"):
        BundledSource(name="iris", hospital=2, shares=(0.5, 0.5))
    tilted = BundledSource(name="iris", hospital=0, shares=(1.0,), tilt="age")
    assert "expected `tilt` to be one of sepal_length_cm" in refusal(tilted, Path(), StudyError)
    small = BundledSource(name="iris", hospital=0, shares=(0.001, 0.999))
    assert "at least one of 150 rows" in refusal(small, Path(), StudyError)


@pytest.mark.parametrize(
    "declaration",
    [
        {"kind": "excel", "path": "x"},
        {"kind": "csv", "path": "x", "header": False},
        {"kind": "csv", "path": "x", "columns": ["a"]},
        {"kind": "csv", "path": "x", "header": False, "columns": ["a", "a "]},
        {"kind": "csv", "path": "x", "encoding": "hex"},
        {"kind": "csv", "path": "x", "separator": "||"},
        {"kind": "parquet", "path": "x", "separator": ","},
    ],
)
def test_declarations_that_mean_nothing_are_refused(declaration: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(declaration)


# ── real hospitals ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("hospital", "rows", "train", "test"),
    [("cleveland", 303, 199, 104), ("hungarian", 294, 172, 89), ("switzerland", 123, 30, 16), ("va", 200, 85, 45)],
)
def test_the_heart_hospitals_load_with_their_published_split(hospital: str, rows: int, train: int, test: int) -> None:
    root = real("heart_disease_uci")
    plain = {"kind": "csv", "path": f"processed.{hospital}.data", "header": False, "columns": COLUMNS}
    assert load(parse(plain), root, hospital).rows == rows
    fold = {"path": "flamby_split.csv", "where": {"site": hospital}, "row": "row_in_file_0based"}
    table = load(parse({**plain, "fold": fold}), root, hospital)
    assert [list(table.columns["fold"]).count(part) for part in ("train", "test")] == [train, test]
    assert not any("?" in table.columns[name] for name in COLUMNS if name not in ("slope", "ca", "thal"))


def test_a_clinic_is_picked_out_of_a_shared_file() -> None:
    root = real("opt")
    sites = [load(CsvSource(path="opt.csv", where={"Clinic": clinic}), root, clinic) for clinic in ("MN", "KY")]
    assert set(sites[0].columns["Clinic"]) == {"MN"}
    assert sum(outcome != "" for outcome in sites[0].columns["Preg.ended...37.wk"]) == 247
    assert sum(outcome != "" for outcome in sites[1].columns["Preg.ended...37.wk"]) == 208


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_declaration_in_the_page_is_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sources.md").read_text()
    blocks = [tomllib.loads(block.split("```")[0]) for block in page.split("```toml\n")[1:]]
    files = [SiteFile.model_validate({"name": "north", **block}) for block in blocks]
    assert [file.source.kind for file in files] == ["csv", "parquet", "sql", "omop", "fhir"]
    # As to a worker of Dask.
    sent = [SiteFile.model_validate_json(file.model_dump_json(by_alias=True)) for file in files]
    assert sent == files
