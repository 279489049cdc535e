"""A hospital's gate: its table, in the dictionary's terms, against the study's suite. The only importer of Great Expectations.

    python -m fedrounds.tasks.gate      answers {"folder", "data", "site"} with {"verdict", "fingerprint", "rows", "aside", "day"}

Great Expectations takes seconds to import, so a run asks a helper process (`tasks.child`); tests and `fedrounds check --gate` call `check`
in their own.

Guarantees:
    * of Great Expectations' result only counts are read, and only from those of rows: no cell, observed value or exception text goes further;
    * its logger is silenced and its warnings are dropped, so that the helper's log holds none either.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from fedrounds import sources
from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.operations import Action, Gate
from fedrounds.core.preprocess import clean
from fedrounds.core.study import Study, canonical
from fedrounds.core.table import Table
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import folder as folders
from fedrounds.tasks.docs import counts_alone, page
from fedrounds.tasks.folder import Folder, Suite
from fedrounds.tasks.frame import SINCE, frame, levels, origin, today, zone_of
from fedrounds.tasks.results import (
    Tried,
    asks_for_all,
    columns_about,
    failure_of,
    failure_untried,
    note_on,
    raised,
    verdict_of,
)
from fedrounds.tasks.verdict import NO_SUITE, Failure, Verdict, acts, broken, line, to_json

if TYPE_CHECKING:
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.expectations.expectation import Expectation
    from pandas import DataFrame

NO_VALUES = {"result_format": "BASIC", "exclude_unexpected_values": True}
COLUMNS, MANY = 6, 10_000  # of a data frame that is validated at once, where it has so many rows
# The keys of an exported expectation.
KEYS = {"type", "kwargs", "meta", "severity", "notes", "description", "id", "rendered_content"}


@dataclass(frozen=True)
class Judged:
    """A verdict, which may leave the hospital, and what must not: the numbers of the rows set aside (from 0, in the table's order).

    `day` is the calendar day that the verdict holds for, "" where the suite counts no days.
    """

    verdict: Verdict
    aside: tuple[int, ...] = ()
    day: str = ""


def check(folder: Folder, site: str, table: Table | None = None, now: dt.datetime | None = None) -> Verdict:
    """The verdict on a site's table, which is loaded unless it is given."""
    return judge(folder, site, table, now).verdict


def judge(
    folder: Folder,
    site: str,
    table: Table | None = None,
    now: dt.datetime | None = None,
    problem: str | None = None,
) -> Judged:
    """Judge a site's table by the contract and the suite.

    An expectation about a column that the hospital does not record is skipped, and the note says so. One of severity "warning" or "info"
    is listed when it fails, and fails nothing unless operations.toml says so. A check that Great Expectations cannot compute has failed.
    Where only checks of rows fail, and on no more rows than the study sets aside, those rows are set aside and the site passes.

    Args:
        now: the moment that freshness is judged at; by default the present one.
        problem: how the table breaks the contract, "" if it keeps to it; None finds out.

    Raises:
        StudyError: the suite says something it cannot mean.
    """
    file, study, rules = folder.sites[site], folder.study, folder.operations.gate
    if table is None:
        table = sources.load(file.source, folder.data, site)
    if problem is None:
        problem = contract(table, study, file)
    if folder.suite is None:
        return Judged(broken(site, problem, rules.policy) if problem else Verdict(site, True, 0, note=NO_SUITE))
    day = today(folder.operations, now)
    suite = Tried(validate_suite(folder.suite, study), study, file.absent, table)
    rows = frame(table, study, file.absent, suite.asked, day, zone_of(folder.operations))
    results = _validated(rows, folder.suite.name, suite.tried)
    failed = [(e, result) for e, result in zip(suite.tried, results, strict=True) if not result.success]
    failures = [failure_of(result, table.rows, rules) for _, result in failed]
    aside = _rows_aside(rows, folder.suite.name, [e for e, _ in failed], failures, rules)
    if aside and problem:
        rest = np.delete(np.arange(table.rows), aside)
        problem = contract(table.take(rest), study, file) if len(rest) else problem
        aside = () if problem else aside
    if aside:
        failures = [replace(f, action="quarantine") if acts(f.action) else f for f in failures]
    failures = [*(failure_untried(expectation, rules) for expectation in suite.missing), *failures]
    note = note_on(suite, file.absent, sum(map(raised, results)))
    used = day.isoformat() if any(name.startswith(SINCE) for name in suite.asked) else ""
    return Judged(verdict_of(site, suite.checks, tuple(failures), note, problem, rules, len(aside)), aside, used)


def contract(table: Table, study: Study, file: SiteFile) -> str:
    """How a table breaks the contract, in one line that shows no value; "" if it keeps to it."""
    try:
        clean(table, study, file.name, file.absent, file.split_key)
    except DataContractError as error:
        return str(error)
    return ""


def validate_suite(suite: Suite, study: Study) -> list[Expectation]:
    """The suite's expectations as Great Expectations knows them.

    A `value_set` on a category is written in the dictionary's way, so 1, "1" and "1.0" are one level.

    Raises:
        StudyError: an expectation is unknown, has options it does not take, or asks about a column that the study does not read.
    """
    known = levels(study)
    built = []
    for n, written in enumerate(suite.document["expectations"]):
        if not (isinstance(written, dict) and isinstance(written.get("type"), str) and written.keys() <= KEYS):
            raise StudyError(
                f"suite '{suite.name}', expectation {n + 1}: expected an object with `type` and `kwargs`, and of other keys only"
                f" `severity`, `notes` and `meta`, found another"
            )
        kwargs = written.get("kwargs") or {}
        place = f"suite '{suite.name}', expectation {n + 1} ({written['type']})"
        action = (written.get("meta") or {}).get("action", "")
        if action not in ("", *get_args(Action)):
            raise StudyError(f"{place}: expected action to be {', '.join(get_args(Action))}, found another: correct it")
        meta = {"position": n, "action": action}
        expectation = _built({"type": written["type"], "kwargs": kwargs, "meta": meta}, written, place)
        unknown = [column for column in columns_about(kwargs) if origin(column, study) is None]
        if unknown:
            raise StudyError(
                f"{place}: expected a column that the study reads, found '{unknown[0]}': correct it, or add it to study.toml"
            )
        if kwargs.get("column") in known and isinstance(kwargs.get("value_set"), list):
            expectation.value_set = [canonical(value) for value in kwargs["value_set"]]  # type: ignore[attr-defined]
        built.append(expectation)
    return built


def _built(configuration: dict[str, Any], written: Mapping[str, Any], place: str) -> Expectation:
    _import()
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from pydantic.v1 import ValidationError

    severity = {"severity": written["severity"]} if "severity" in written else {}
    try:
        return ExpectationConfiguration(**configuration, **severity).to_domain_obj()
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])).replace('__root__', 'kwargs')} — {first['msg']}"
    except (GreatExpectationsError, TypeError, ValueError) as error:
        problem = str(error)
    raise StudyError(f"{place}: expected what Great Expectations can check, found: {problem}")


# --- Great Expectations -----------------------------------------------------------------------------------------------


def _validated(
    rows: DataFrame, name: str, expectations: list[Expectation], result_format: Mapping[str, Any] = NO_VALUES
) -> list[Any]:
    """Great Expectations' results, in the suite's order."""
    groups = _grouped(expectations, rows)
    found = [_validation(few, name, group, result_format).results for few, group in groups]
    return sorted(itertools.chain(*found), key=lambda result: result.expectation_config.meta["position"])


def _grouped(expectations: list[Expectation], rows: DataFrame) -> list[tuple[DataFrame, list[Expectation]]]:
    """The expectations with the columns that they ask for: a few columns at a time, numbers apart from text.

    Great Expectations copies the whole of a data frame for each column in which a cell is missing, and text is slow to copy. A small data
    frame is cheaper whole.
    """
    if len(rows) < MANY:
        return [(rows, expectations)] if expectations else []
    open_groups: dict[bool, tuple[dict[str, None], list[Expectation]]] = {}
    groups: list[tuple[dict[str, None], list[Expectation]]] = []
    for expectation in expectations:
        about = expectation.configuration
        named = list(rows.columns) if asks_for_all(about) else columns_about(about.kwargs)
        named = [name for name in named if name in rows.columns]
        numbers = all(rows[name].dtype == np.float64 for name in named)
        group = open_groups.get(numbers)
        if group is None or len({*group[0], *named}) > max(COLUMNS, len(named)):
            group = open_groups[numbers] = ({}, [])
            groups.append(group)
        group[0].update(dict.fromkeys(named))
        group[1].append(expectation)
    return [(rows[list(columns)], group) for columns, group in groups]


def _validation(
    rows: DataFrame, name: str, expectations: list[Expectation], result_format: Mapping[str, Any] = NO_VALUES
) -> Any:
    from great_expectations import ExpectationSuite

    suite = ExpectationSuite(name=name, expectations=expectations)
    with warnings.catch_warnings(), _lean():
        warnings.simplefilter("ignore")
        batch = _batches().get_batch({"dataframe": rows})
        found = batch.validate(suite, result_format=dict(result_format))
    found.results.sort(key=lambda result: result.expectation_config.meta["position"])
    return found


@contextmanager
def _lean() -> Iterator[None]:
    """Inside, Great Expectations leaves out work that decides nothing, which is three quarters of a validation.

    An expectation builds its configuration once and not a hundred times over; a batch is not hashed to mark when it was made; a column
    of float64 is not searched, cell by cell, for decimals.
    """
    from great_expectations import util
    from great_expectations.execution_engine import pandas_execution_engine as engine
    from great_expectations.expectations.expectation import Expectation

    build: Any = Expectation.configuration
    hashes, decimals = engine.hash_pandas_dataframe, util.does_ndarray_contain_decimal_dtype
    built: dict[int, tuple[Expectation, Any]] = {}  # it holds the expectation too, so that no id comes twice

    def configuration(self: Expectation) -> Any:
        if id(self) not in built:
            built[id(self)] = self, build.fget(self)
        return built[id(self)][1]

    Expectation.configuration = property(configuration)  # type: ignore[method-assign]
    engine.hash_pandas_dataframe = lambda _: ""
    util.does_ndarray_contain_decimal_dtype = lambda data: data.dtype == object and decimals(data)
    try:
        yield
    finally:
        Expectation.configuration = build  # type: ignore[method-assign]
        engine.hash_pandas_dataframe, util.does_ndarray_contain_decimal_dtype = hashes, decimals


def _rows_aside(
    rows: DataFrame, name: str, failed: list[Expectation], failures: list[Failure], rules: Gate
) -> tuple[int, ...]:
    """The numbers of the rows that the failed expectations are about, if those may be set aside; else none."""
    acting = [e for e, failure in zip(failed, failures, strict=True) if acts(failure.action)]
    if not rules.quarantine or not acting or not all(f.per_row for f in failures if acts(f.action)):
        return ()
    results = _validated(rows, name, acting, {"result_format": "COMPLETE", "exclude_unexpected_values": True})
    found = sorted({int(row) for result in results for row in result.result.get("unexpected_index_list") or ()})
    return tuple(found) if len(found) <= rules.quarantine * len(rows) else ()


@functools.cache
def _batches() -> BatchDefinition:
    """Where data frames are handed over; one context serves the whole process."""
    gx = _import()
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.enable_analytics(enable=False)
    return (
        context.data_sources.add_pandas("site").add_dataframe_asset("table").add_batch_definition_whole_dataframe("all")
    )


@functools.cache
def _import() -> Any:
    """Great Expectations, silent."""
    from fedrounds.tasks.staying import staying

    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with staying():
        import great_expectations as gx
        import great_expectations.expectations.core
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL + 1)  # its loggers inherit the level
    return gx


# --- Data Docs ---------------------------------------------------------------------------------------------------------


def docs(folder: Folder, site: str) -> str:
    """A page of the site's own: a fresh validation as Great Expectations renders it, without a value, and without what it loads from afar."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaSectionView

    file, study = folder.sites[site], folder.study
    table = sources.load(file.source, folder.data, site)
    verdict = judge(folder, site, table).verdict
    sections: list[str] = []
    if folder.suite is not None:
        suite = Tried(validate_suite(folder.suite, study), study, file.absent, table)
        rows = frame(table, study, file.absent, suite.asked, today(folder.operations), zone_of(folder.operations))
        found = _validation(rows, folder.suite.name, suite.tried)
        for result in found.results:
            result.result = counts_alone(result.result)
            result.exception_info = {
                "raised_exception": raised(result),
                "exception_message": "",
                "exception_traceback": "",
            }
        found.meta = {"run_id": {"run_name": today(folder.operations).isoformat(), "run_time": ""}}
        content = ValidationResultsPageRenderer(run_info_at_end=True).render(found)
        view = DefaultJinjaSectionView()
        sections = [
            view.render({"section": section.to_json_dict(), "section_loop": {"index": n}})
            for n, section in enumerate(content.sections, 1)
        ]
    return page(site, study.name, line(verdict), sections)


# --- the helper process -----------------------------------------------------------------------------------------------


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """One site's gate: the verdict may leave the hospital; fingerprint, row numbers and day must not."""
    folder = _folder(request["folder"], request["data"], _stamp(Path(request["folder"])))
    site = request["site"]
    if site not in folder.sites:
        raise StudyError(f"expected a site of the study, found '{site}': it has {', '.join(folder.sites)}")
    return answer(folder, site, request.get("problem"))


def answer(folder: Folder, site: str, problem: str | None) -> dict[str, Any]:
    """What the gate finds at a site, as a helper process says it."""
    table = sources.load(folder.sites[site].source, folder.data, site)
    judged = judge(folder, site, table, problem=problem)
    return {
        "verdict": to_json(judged.verdict),
        "fingerprint": table.fingerprint(),
        "rows": table.rows,
        "aside": judged.aside,
        "day": judged.day,
    }


def warm() -> None:
    """What would make the first answer slow."""
    from fedrounds.tasks.later import later

    later("scipy.stats", "altair")  # a third of its import, for the metrics and the pictures of distributions
    _batches()


@functools.lru_cache(maxsize=1)
def _folder(path: str, data: str | None, stamp: tuple[Any, ...]) -> Folder:  # noqa: ARG001  the stamp tells a changed folder
    return folders.read(Path(path), Path(data) if data else None, alone=True)  # it may be a hospital's own


def _stamp(path: Path) -> tuple[Any, ...]:
    """What changes when a file of the study does; with a thousand sites it is looked at a thousand times, so without a `Path` a file."""
    found: list[tuple[str, int, int]] = []
    for folder, ending in (("", ".toml"), ("sites", ".toml"), ("expectations", ".json")):
        with suppress(FileNotFoundError), os.scandir(path / folder) as files:
            for file in files:
                if file.name.endswith(ending):
                    about = file.stat()
                    found.append((file.path, about.st_mtime_ns, about.st_size))
    return tuple(sorted(found))


if __name__ == "__main__":
    from fedrounds.tasks.child import serve

    serve(handle, warm)
