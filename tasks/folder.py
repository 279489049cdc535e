"""A study's folder: study.toml, operations.toml, sites/*.toml and the suite, read and checked; and where its state lives."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedrounds.core import encrypted
from fedrounds.core.errors import StateError, StudyError
from fedrounds.core.operations import Operations
from fedrounds.core.participation import unreachable
from fedrounds.core.study import Study
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import masks, privacy
from fedrounds.tasks.calendar import check_calendar

T = TypeVar("T", bound=BaseModel)

RESERVED = ("artifacts", "mlflow.db")  # names in the state folder that are MLflow's


@dataclass(frozen=True)
class Suite:
    """A GX suite as it is written: its name, its JSON and the hash that binds verdicts and versions to it."""

    name: str
    document: Mapping[str, Any]
    hash: str


@dataclass(frozen=True)
class Folder:
    """Everything that a study's folder says. `data` is where the relative paths of sources start."""

    path: Path
    data: Path
    study: Study
    operations: Operations
    sites: Mapping[str, SiteFile]
    suite: Suite | None


def read(path: Path, data: Path | None = None, with_suite: bool = True, alone: bool = False) -> Folder:
    """Read a study's folder, its suite too unless that is still to be drafted.

    Args:
        alone: it is one hospital's, which does not know who else takes part.

    Raises StudyError with one line: which file, which key, what was expected, what was found.
    """
    if path.exists() and not path.is_dir():
        raise StudyError(f"expected a study folder, found a file at {path}: name the folder that holds study.toml")
    if not path.is_dir():
        raise StudyError(f"expected a study folder, found no folder at {path}: `fedrounds init {path}` makes one")
    if data is not None and not data.is_dir():
        raise StudyError(f"expected a folder of data, found none at {data}: mend --data")
    study = _typed(path / "study.toml", Study)
    operations = _typed(path / "operations.toml", Operations)
    sites = _sites(path / "sites", operations)
    _agree(study, operations, sites)
    if not alone:
        _runnable(study, sites.values())
        masks.enough(study, sites)
        if said := unreachable(study.participation, len(sites), operations.quorum_of(len(sites))):
            raise StudyError(said)
        without = [name for name, site in sites.items() if site.source is None]
        if without:
            raise StudyError(
                f"expected [source] in {path / 'sites' / f'{without[0]}.toml'}, found none: say there where its rows are"
            )
    return Folder(path, data or path, study, operations, sites, _suite(path, operations) if with_suite else None)


def read_protocol(path: Path, sites: Iterable[str] = ()) -> Folder:
    """What a coordinator has of a study: no site file, since those are the hospitals' own.

    Args:
        sites: the roster that the operations must agree with, if it is known yet.

    Raises StudyError with one line.
    """
    if not path.is_dir():
        raise StudyError(f"expected a study folder, found none at {path}: name the folder that holds study.toml")
    study, operations = _typed(path / "study.toml", Study), _typed(path / "operations.toml", Operations)
    masks.require(study, operations)
    roster = tuple(sites)
    if roster:
        _agree(study, operations, roster)
    return Folder(path, path, study, operations, {}, _suite(path, operations))


def _sites(folder: Path, operations: Operations) -> dict[str, SiteFile]:
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise StudyError(f"expected a file a hospital in {folder}, found none: add sites/NAME.toml")
    sites: dict[str, SiteFile] = {}
    for file in files:
        site = _typed(file, SiteFile, name=file.stem)
        if site.name in sites:
            raise StudyError(f"expected each site once, found '{site.name}' again in {file}: give it a name of its own")
        sites[site.name] = site
    roster = operations.sites
    if roster is None:
        return sites
    unknown = sorted(set(roster) - sites.keys())
    if unknown:
        raise StudyError(
            f"expected a site file for '{unknown[0]}' of operations.toml, found {', '.join(sites)} in {folder}: add {unknown[0]}.toml"
        )
    if len(set(roster)) < len(roster):
        raise StudyError("expected each site once in `sites` of operations.toml, found one twice: drop it")
    return {name: sites[name] for name in sorted(roster)}


def _agree(study: Study, operations: Operations, everybody: Collection[str]) -> None:
    """What no single file can see."""
    sites = encrypted.patients(study, everybody)
    masks.require(study, operations)
    if study.name.lower() in RESERVED:
        raise StudyError(
            f"expected a study's own name, found '{study.name}' in study.toml, which MLflow's files have: choose another `name`"
        )
    if sites and operations.quorum_of(len(sites)) > len(sites):
        raise StudyError(
            f"expected a quorum of at most {len(sites)} sites, found {operations.quorum} in operations.toml: lower it, or add sites"
        )
    names = {feature.name for feature in study.features}
    unknown = sorted(set((operations.drift and operations.drift.features) or ()) - names)
    if unknown:
        raise StudyError(
            f"expected `features` under [drift] in operations.toml to be of study.toml, found '{unknown[0]}': correct it, or drop it"
        )
    privacy.agrees(study, operations)
    if operations.schedule is not None:
        check_calendar(operations.schedule)
    stated = set(study.weights) if isinstance(study.weights, dict) else set(sites)
    if sites and not (stated == set(sites) or (operations.sites is not None and stated > set(sites))):
        raise StudyError(
            f"expected `weights` in study.toml for {', '.join(sites)}, found {', '.join(sorted(stated))}: state one a site"
        )


def _runnable(study: Study, sites: Collection[SiteFile]) -> None:
    """Raise StudyError where no site allows the code that the study's model is: it is imported here, where the first model is made."""
    barred = [study.model.barred(site.policy.modules) for site in sites]
    if all(barred):
        raise StudyError(f"expected a site that trains this study, found none: {barred[0]}")


def _suite(path: Path, operations: Operations) -> Suite | None:
    name = operations.gate.suite
    if name is None:
        return None
    places = [path / "expectations" / f"{name}.json", Path(__file__).parent.parent / "expectations" / f"{name}.json"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise StudyError(
            f"expected the suite '{name}' of operations.toml, found no {places[0]}: add it, or leave `suite` out"
        )
    return suite_in(file, name)


def suite_in(file: Path, name: str) -> Suite:
    """The suite that a file holds. Raises StudyError where it is none."""
    try:
        document = json.loads(file.read_text())
        assert isinstance(document["expectations"], list)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise StudyError(
            f"expected a GX suite as JSON with `expectations` in {file}, found something else: export it with to_json_dict"
        ) from None
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return Suite(name, document, hashlib.sha256(canonical.encode()).hexdigest())


def read_site(file: Path) -> SiteFile:
    """A hospital's own file. Raises StudyError with one line, which shows nothing of what it holds."""
    return _typed(file, SiteFile, name=file.stem)


def _typed(file: Path, kind: type[T], **defaults: str) -> T:
    """The TOML file as that type, or one line on what is wrong with it."""
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"expected {file.name} in {file.parent}, found no such file: `fedrounds init` writes one to start from"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"expected TOML in {file}, found: {error}: correct it there") from None
    except UnicodeDecodeError:
        raise StudyError(f"expected text in utf-8 in {file}, found other bytes: save it as utf-8") from None
    except OSError as error:
        raise StudyError(
            f"expected a file that can be read at {file}, found: {error.strerror}: check its rights"
        ) from None
    try:
        return kind.model_validate(defaults | given)
    except ValidationError as error:
        raise StudyError(f"{file}: {explain(error, public=kind is not SiteFile)}") from None


def explain(error: ValidationError, public: bool = False) -> str:
    """The first fault of a validation in one line, and how many more there are. What was found is shown of a public file only:
    a site file holds secrets.
    """
    first, *more = error.errors(include_url=False)
    kind, about, where = first["type"], first.get("ctx", {}), [str(part) for part in first["loc"]]
    if where[:1] == ["algorithm"] and where[1:2] in (["averaging"], ["exact"]):  # what no file says
        del where[1]
    found = f", found {first['input']!r}" if public and isinstance(first["input"], str | int | float) else ""
    match kind:
        case "extra_forbidden":
            said = f"expected a key that the file knows, found '{where.pop()}': correct it, or drop it"
        case "missing":
            said = f"expected the key '{where.pop()}', found none: add it"
        case "union_tag_invalid":
            other = f"'{about['tag']}'" if public else "another"
            said = (
                f"expected {about['discriminator']} to be {about['expected_tags']}, found {other}: choose one of those"
            )
        case "union_tag_not_found":
            said = f"expected the key {about['discriminator']}, which says what it is, found none: add it"
        case "value_error" | "assertion_error":
            said = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        case _:
            said = first["msg"].replace("Input should", "expected it to", 1) + f"{found}: correct it"
    place = f"{'.'.join(where)} — " if where else ""
    rest = f" (and {len(more)} more)" if more else ""
    return f"{place}{said}{rest}"


# --- state ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Where a study's state lives: MLflow's store is shared by the studies of a workspace, the rest is the study's own.

    A coordinator keeps its ledger and MLflow's tables in databases elsewhere; these URLs may hold a password and are never shown.
    """

    mlruns: Path
    own: Path
    database: str = field(default="", repr=False)
    tracking: str = field(default="", repr=False)
    signing: Path | None = None  # the file of the key that signs the audit log, if it is not the study's own

    @property
    def ledger(self) -> Path | str:
        """What `Ledger.open` takes."""
        return self.database or self.own / "ledger.db"

    @property
    def begun(self) -> bool:
        """Whether there may be a ledger to open, so that looking makes none."""
        return isinstance(self.ledger, str) or self.ledger.exists()

    @property
    def told(self) -> dict[str, Any]:
        """What MLflow's projector, in a process of its own, must know."""
        places = {"ledger": str(self.ledger), "mlruns": str(self.mlruns), "own": str(self.own)}
        return places | ({"tracking": self.tracking} if self.tracking else {})

    @property
    def prefect_home(self) -> Path:
        return self.own / "prefect"

    @property
    def log(self) -> Path:
        return self.own / "run.log"

    @property
    def verdicts(self) -> Path:
        """What the sites remember of their gates; it holds fingerprints and never leaves."""
        return self.own / "sites.json"

    @property
    def profiles(self) -> Path:
        """What the sites remember of their profiles; it holds fingerprints and never leaves."""
        return self.own / "profiles.json"

    @property
    def memories(self) -> Path:
        """What the sites of a run in one process remember between rounds; it never leaves."""
        return self.own / "memories"

    @property
    def log_key(self) -> Path:
        """The private key that signs the audit log."""
        return self.signing or self.own / "log.key"

    @property
    def tracking_uri(self) -> str:
        return self.tracking or f"sqlite:///{self.mlruns / 'mlflow.db'}"


def state_of(folder: Path, study: str, chosen: Path | None = None) -> State:
    """The state folder: `mlruns/` in the nearest folder at or above the study that has one, else beside the study's files."""
    folder = folder.resolve()
    nearest = next(
        (place / "mlruns" for place in (folder, *folder.parents) if (place / "mlruns").is_dir()), folder / "mlruns"
    )
    mlruns = chosen.resolve() if chosen else nearest
    return State(mlruns, mlruns / study)


def prepare(state: State, fresh: bool) -> None:
    """Make the state folder; with `fresh` it starts empty, and an earlier one is set aside, not deleted."""
    try:
        if fresh and state.own.exists():
            number = next(n for n in range(1, 100_000) if not state.own.with_name(f"{state.own.name}.{n}").exists())
            aside = state.own.rename(state.own.with_name(f"{state.own.name}.{number}"))
            state.own.mkdir()
            privacy.carried_over(aside, state.own)
        state.own.mkdir(parents=True, exist_ok=True)
        usable = os.access(state.own, os.W_OK) and os.access(state.mlruns, os.W_OK)
        found = "one that cannot be written"
    except (FileExistsError, NotADirectoryError):
        usable, found = False, "a file in its place"
    except OSError as error:
        usable, found = False, error.strerror
    if not usable:
        raise StateError(
            f"expected a state folder that can be written at {state.own}, found: {found}: choose another with --state"
        )
