"""A hospital's gate: its table, in the dictionary's terms, against the study's suite. The only importer of Great Expectations.

    python -m fedrounds.tasks.gate      answers {"folder", "data", "site"} with {"verdict", "fingerprint", "rows"}

Great Expectations takes seconds to import, so a run asks a helper process (`tasks.child`); tests and `fedrounds check --gate` call `check`
in their own.

Guarantees:
    * of Great Expectations' result only counts are read, and only from those of rows: no cell, observed value or exception text goes further;
    * its logger is silenced and its warnings are dropped, so that the helper's log holds none either.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrounds import sources
from fedrounds.core.errors import StudyError
from fedrounds.core.preprocess import clean
from fedrounds.core.study import Binary, Category, Label, Number, Regression, Study, canonical
from fedrounds.core.table import Table
from fedrounds.tasks import folder as folders
from fedrounds.tasks.folder import Folder, Suite
from fedrounds.tasks.verdict import Failure, Verdict, counted, to_json

if TYPE_CHECKING:
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.expectations.expectation import Expectation
    from pandas import DataFrame

NO_VALUES = {"result_format": "BASIC", "exclude_unexpected_values": True}
# The keys of an exported expectation.
KEYS = {"type", "kwargs", "meta", "severity", "notes", "description", "id", "rendered_content"}


def check(folder: Folder, site: str, table: Table | None = None) -> Verdict:
    """The verdict on a site's table, which is loaded unless it is given.

    An expectation about a column that the hospital does not record is skipped, and the note says so. One of severity "warning" or "info"
    is listed when it fails, and fails nothing. A check that Great Expectations cannot compute has failed.

    Raises:
        DataContractError: the table does not keep to the dictionary, so that there is nothing to judge.
        StudyError: the suite says something it cannot mean.
    """
    file = folder.sites[site]
    if table is None:
        table = sources.load(file.source, folder.data, site)
    clean(table, folder.study, site, file.absent, file.split_key)  # the contract comes first
    if folder.suite is None:
        return Verdict(site, True, 0, note="no suite: the contract alone was checked")
    expectations = validate_suite(folder.suite, folder.study)
    skipped = [e for e in expectations if not set(file.absent).isdisjoint(_columns(e.configuration.kwargs))]
    tried = [e for e in expectations if e not in skipped]
    results = _validated(frame(table, folder.study, file.absent), folder.suite.name, tried)
    failures = tuple(_failure(result, table.rows) for result in results if not result.success)
    passed = not any(failure.severity == "critical" for failure in failures)
    return Verdict(site, passed, len(tried), failures, _note(skipped, file.absent, sum(map(_raised, results))))


def validate_suite(suite: Suite, study: Study) -> list[Expectation]:
    """The suite's expectations as Great Expectations knows them.

    A `value_set` on a category is written in the dictionary's way, so 1, "1" and "1.0" are one level.

    Raises:
        StudyError: an expectation is unknown, has options it does not take, or asks about a column that the study does not read.
    """
    known = {feature.name for feature in study.features} | {study.target.column} | {study.patient_id}
    levels = {feature.name for feature in study.features if isinstance(feature, Category)}
    if not _numeric_target(study):
        levels.add(study.target.column)
    built = []
    for n, written in enumerate(suite.document["expectations"]):
        if not (isinstance(written, dict) and isinstance(written.get("type"), str) and written.keys() <= KEYS):
            raise StudyError(
                f"suite '{suite.name}', expectation {n + 1}: expected an object with `type` and `kwargs`, and of other keys only"
                f" `severity`, `notes` and `meta`, found another"
            )
        kwargs = written.get("kwargs") or {}
        place = f"suite '{suite.name}', expectation {n + 1} ({written['type']})"
        expectation = _built({"type": written["type"], "kwargs": kwargs, "meta": {"position": n}}, written, place)
        unknown = [column for column in _columns(kwargs) if column not in known]
        if unknown:
            raise StudyError(
                f"{place}: expected a column that the study reads, found '{unknown[0]}': correct it, or add it to study.toml"
            )
        if kwargs.get("column") in levels and isinstance(kwargs.get("value_set"), list):
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


def _columns(kwargs: Mapping[str, Any]) -> list[str]:
    """The columns that an expectation is about, in its order."""
    one = [kwargs[key] for key in ("column", "column_A", "column_B") if kwargs.get(key)]
    return one + list(kwargs.get("column_list") or [])


def _note(skipped: Sequence[Expectation], absent: Sequence[str], raised: int) -> str:
    asked = {column for expectation in skipped for column in _columns(expectation.configuration.kwargs)}
    named = ", ".join(column for column in absent if column in asked)
    notes = [
        f"{len(skipped)} skipped: {named} not recorded here" if skipped else "",
        f"{raised} could not be computed" if raised else "",
    ]
    return "; ".join(filter(None, notes))


# --- the table in the dictionary's terms ------------------------------------------------------------------------------


def frame(table: Table, study: Study, absent: Sequence[str] = ()) -> DataFrame:
    """What the suite sees, a row a row of the table: numbers as float64, levels and labels in their one way of writing, missing as null.

    It holds the features, the target and the patient's id where the study names one; `clean` must have accepted the table.
    """
    import pandas as pd

    columns: dict[str, Any] = {}
    if study.patient_id is not None:
        columns[study.patient_id] = _texts(table.columns[study.patient_id], ())
    for feature in study.features:
        if feature.name not in absent:
            read = _numbers if isinstance(feature, Number) else _texts
            columns[feature.name] = read(table.columns[feature.name], feature.missing)
    read = _numbers if _numeric_target(study) else _texts
    columns[study.target.column] = read(table.columns[study.target.column], study.target.missing)
    return pd.DataFrame(
        {
            name: column if column.dtype == np.float64 else pd.array(column, dtype="str")
            for name, column in columns.items()
        }
    )


def _numeric_target(study: Study) -> bool:
    target = study.target
    return isinstance(target, Regression) or (isinstance(target, Binary) and target.positive_above is not None)


def _numbers(column: NDArray[Any], missing: Sequence[Label]) -> NDArray[np.float64]:
    return _mapped(column, missing, float, np.nan).astype(np.float64)


def _texts(column: NDArray[Any], missing: Sequence[Label]) -> NDArray[np.object_]:
    return _mapped(column, missing, canonical, None)


def _mapped(
    column: NDArray[Any], missing: Sequence[Label], read: Callable[[Any], Any], null: Any
) -> NDArray[np.object_]:
    """Each cell read, or null where it is empty or a code for missing; every distinct cell is looked at once."""
    codes = {canonical(code) for code in missing} | {"", "nan"}
    cells = column.tolist()
    meaning = {cell: null if canonical(cell) in codes else read(cell) for cell in set(cells)}
    result = np.empty(len(cells), object)
    result[:] = [meaning[cell] if cell == cell else null for cell in cells]
    return result


# --- Great Expectations -----------------------------------------------------------------------------------------------


def _validated(rows: DataFrame, name: str, expectations: list[Expectation]) -> list[Any]:
    """Great Expectations' results, in the suite's order."""
    if not expectations:
        return []
    from great_expectations import ExpectationSuite

    batch = _batches().get_batch({"dataframe": rows})
    with warnings.catch_warnings(), _configured_once():
        warnings.simplefilter("ignore")
        found = batch.validate(ExpectationSuite(name=name, expectations=expectations), result_format=NO_VALUES)
    return sorted(found.results, key=lambda result: result.expectation_config.meta["position"])


@contextmanager
def _configured_once() -> Iterator[None]:
    """Inside, an expectation builds its configuration once and not a hundred times over, which is nearly half of a validation."""
    from great_expectations.expectations.expectation import Expectation

    build: Any = Expectation.configuration
    built: dict[int, tuple[Expectation, Any]] = {}  # it holds the expectation too, so that no id comes twice

    def configuration(self: Expectation) -> Any:
        if id(self) not in built:
            built[id(self)] = self, build.fget(self)
        return built[id(self)][1]

    Expectation.configuration = property(configuration)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Expectation.configuration = build  # type: ignore[method-assign]


def _failure(result: Any, rows: int) -> Failure:
    """Of a result: its name, its columns and its counts."""
    configuration, counts = result.expectation_config, result.result
    per_row = "unexpected_count" in counts and not _raised(result)
    return Failure(
        expectation=configuration.type,
        column=", ".join(_columns(configuration.kwargs)) or None,
        element_count=counted(counts.get("element_count", rows)),
        unexpected_count=counted(counts["unexpected_count"]) if per_row else None,
        per_row=per_row,
        severity=configuration.severity.value,
    )


def _raised(result: Any) -> bool:
    """Whether computing it ended in an exception; its text may quote a cell and is not read."""
    about = result.exception_info
    return any(one.get("raised_exception") for one in (about, *about.values()) if isinstance(one, dict))


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
    """Great Expectations, silent. Collecting garbage amid its thousands of classes would cost a quarter of the time."""
    import gc

    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    collects = gc.isenabled()
    gc.disable()
    try:
        import great_expectations as gx
        import great_expectations.expectations.core
    finally:
        if collects:
            gc.enable()
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL + 1)  # its loggers inherit the level
    return gx


# --- the helper process -----------------------------------------------------------------------------------------------


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """One site's gate: the verdict may leave the hospital, the fingerprint must not."""
    folder = _folder(request["folder"], request["data"], _stamp(Path(request["folder"])))
    site = request["site"]
    if site not in folder.sites:
        raise StudyError(f"expected a site of the study, found '{site}': it has {', '.join(folder.sites)}")
    table = sources.load(folder.sites[site].source, folder.data, site)
    return {"verdict": to_json(check(folder, site, table)), "fingerprint": table.fingerprint(), "rows": table.rows}


def warm() -> None:
    """What would make the first answer slow."""
    import gc

    from fedrounds.tasks.later import later

    later("scipy.stats", "altair")  # a third of its import, for the metrics and the pictures of distributions
    _batches()
    gc.freeze()


@functools.lru_cache(maxsize=1)
def _folder(path: str, data: str | None, stamp: tuple[Any, ...]) -> Folder:  # noqa: ARG001  the stamp tells a changed folder
    return folders.read(Path(path), Path(data) if data else None)


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
