"""A folder of pictures, PNG or DICOM, as a table: pixels as numbers, DICOM's fields and the columns of a labels file beside them.

A file's name, and what DICOM says, may name a patient: a message tells a file by its place in the order of names, and quotes neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.table import Table
from fedrounds.sources import cells, csv_file, keep
from fedrounds.sources.options import CsvSource, ImageSource

Pixels = NDArray[np.float64]
FILE = "file"  # the column that says which file a row is of
PNG = b"\x89PNG\r\n\x1a\n"
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # of DICOM's units of age
GREY = {"1": 255, "L": 1, "I;16": 1, "I": 1}  # Pillow's modes of one channel, and what their numbers are multiplied by
SMOOTH = 4  # Pillow's Resampling.BOX: a pixel is the mean of what it covers


class Unusable(Exception):
    """What was expected of a picture and what was found, in words of ours."""


class Scan(NamedTuple):
    """A picture: its pixels (height, width), None where nobody asked for them, and DICOM's fields in the order asked for."""

    pixels: Pixels | None
    fields: tuple[Any, ...]


def read(source: ImageSource, root: Path, site: str) -> Table:
    """A row a picture: `file`, the pixels row by row, DICOM's fields, then the labels.

    Stored numbers of a DICOM are rescaled by its slope and intercept, and MONOCHROME1, where the least is white, is turned round. A picture
    of another size is brought to the one asked for by means of the pixels that a new one covers, one of this size is left as it is.

    Raises:
        StudyError: the declaration names what is not there.
        DataContractError: a picture cannot be used, or pictures and labels are not of each other.
    """
    folder = root / source.path
    place = f"site '{site}', {folder}"
    files = _files(folder, place)
    _known(source, place)
    scans: list[Scan] = []
    for number, file in enumerate(files, 1):
        failure = ""
        try:
            scans.append(_scan(file, source))
        except Unusable as error:
            failure = str(error)
        if failure:  # raised out here, because the exceptions above carry what they stumbled over
            raise DataContractError(f"{place}: picture {number} of {len(files)} in the order of names: {failure}")
    columns: dict[str, NDArray[Any]] = {FILE: cells.text(file.relative_to(folder).as_posix() for file in files)}
    if source.height is not None:
        pixels = np.stack([scan.pixels for scan in scans if scan.pixels is not None])
        _, rows, across = pixels.shape
        columns |= {f"{source.name}_{i}_{j}": pixels[:, i, j].copy() for i in range(rows) for j in range(across)}
    for j, keyword in enumerate(source.fields):
        columns[keyword] = cells.column([scan.fields[j] for scan in scans])
    written: dict[str, NDArray[Any]] = {}
    if source.labels is not None:
        labels = _labels(source.labels, columns, root, site)
        columns, written = {**columns, **labels.columns}, dict(labels.written)
    return keep.matching(Table(columns, written), source.where or {}, place)


def _files(folder: Path, place: str) -> list[Path]:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise StudyError(f"{place}: expected a folder of pictures, found {found}: correct `path` in the site file")
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    files = sorted(
        (file for file in files if file.suffix.lower() != ".csv"), key=lambda one: one.relative_to(folder).as_posix()
    )
    if not files:
        raise DataContractError(f"{place}: expected pictures, found none: check the export that writes them")
    return files


def _known(source: ImageSource, place: str) -> None:
    """Raise StudyError where what reads pictures is not installed, or DICOM has no such field."""
    missing = ""
    try:
        import PIL.Image  # noqa: F401
        from pydicom.datadict import tag_for_keyword
    except ImportError as error:
        missing = error.name or "pydicom"
    if missing:
        raise StudyError(
            f"{place}: expected {missing.split('.')[0]} to read pictures, found it is not installed: pip install 'fedrounds[images]'"
        )
    unknown = [keyword for keyword in source.fields if tag_for_keyword(keyword) is None]
    if unknown:
        raise StudyError(
            f"{place}: expected DICOM keywords in `fields`, found '{unknown[0]}', which is none: correct the site file"
        )


# --- one picture ------------------------------------------------------------------------------------------------------


def _scan(file: Path, source: ImageSource) -> Scan:
    try:
        with file.open("rb") as stream:
            start = stream.read(132)
    except OSError as error:
        raise Unusable(f"expected a file that can be opened, found {type(error).__name__}: check permissions") from None
    if start.startswith(PNG):
        return Scan(_sized(_png(file), source), (None,) * len(source.fields))
    if start[128:] == b"DICM":
        return _dicom(file, source)
    raise Unusable("expected PNG or DICOM, found another kind of file: move it out of the folder, or export it anew")


def _png(file: Path) -> Pixels:
    import PIL.Image

    failure, mode, found = "", "", np.empty(0)
    try:
        with PIL.Image.open(file) as picture:
            picture.load()
            mode = "RGB" if picture.mode == "RGB" else picture.mode
            found = np.asarray(picture.convert("L") if mode == "RGB" else picture, np.float64)
    except Exception as error:  # whatever Pillow raises of broken bytes: its text may quote them
        failure = type(error).__name__
    if failure:
        raise Unusable(f"expected a whole PNG, found one that cannot be read ({failure}): export it anew")
    if mode != "RGB" and mode not in GREY:
        raise Unusable(f"expected a PNG in grey or RGB, found mode {mode}: export it without palette and transparency")
    return found * GREY.get(mode, 1)


def _dicom(file: Path, source: ImageSource) -> Scan:
    import pydicom

    failure, data = "", None
    try:
        data = pydicom.dcmread(file, stop_before_pixels=source.height is None)
        fields = tuple(_field(data, keyword) for keyword in source.fields)
    except Unusable:
        raise
    except Exception as error:
        failure, fields = type(error).__name__, ()
    if failure or data is None:
        raise Unusable(f"expected a whole DICOM file, found one that cannot be read ({failure}): export it anew")
    return Scan(None if source.height is None else _sized(_values(data), source), fields)


def _values(data: Any) -> Pixels:
    """The numbers of a picture in DICOM (rows, columns): rescaled, the least one black.

    Source: DICOM PS3.3 C.11.1 (rescale slope and intercept) and C.7.6.3.1.2 (MONOCHROME1). Turned round about the least and the largest
    number that could be stored, so that what a pixel becomes hangs on no other.
    """
    found = str(data.get("PhotometricInterpretation", ""))
    if "PixelData" not in data:
        raise Unusable("expected a DICOM file with pixels, found one without: leave such files out of the folder")
    if found not in ("MONOCHROME1", "MONOCHROME2"):
        raise Unusable("expected one channel, MONOCHROME1 or MONOCHROME2, found another kind of colour: convert it")
    if "ModalityLUTSequence" in data:
        raise Unusable(
            "expected numbers rescaled by slope and intercept, found a table in their place: convert the file"
        )
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise Unusable("expected one frame a file, found several: export one file a frame")
    failure, stored = "", np.empty(0)
    try:
        stored = np.asarray(data.pixel_array, np.float64)
        bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
        slope, shift = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    except Exception as error:
        failure, bits, signed, slope, shift = type(error).__name__, 0, False, 1.0, 0.0
    if failure:
        raise Unusable(
            f"expected pixels that can be decoded, found {failure}: export them uncompressed, or mend the file"
        )
    if stored.ndim != 2:
        raise Unusable("expected one number a pixel, found several: convert the file")
    if not (math.isfinite(slope) and math.isfinite(shift) and slope):
        raise Unusable("expected a rescale slope other than 0 and a finite intercept, found others: mend the file")
    if found == "MONOCHROME1":
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        stored = least + most - stored
    return stored * slope + shift


def _sized(pixels: Pixels, source: ImageSource) -> Pixels | None:
    if source.height is None or source.width is None:
        return None
    if pixels.shape == (source.height, source.width):
        return pixels
    import PIL.Image

    picture = PIL.Image.fromarray(pixels.astype(np.float32))
    return np.asarray(picture.resize((source.width, source.height), SMOOTH), np.float64)


def _field(data: Any, keyword: str) -> str | float | None:
    """What DICOM says of a field: an age in years, a date as ISO 8601, a number as one; several values with a backslash between."""
    from pydicom.datadict import dictionary_VR

    value = data.get(keyword)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    kind = dictionary_VR(keyword)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(map(str, value)) or None
    if kind == "AS":
        return _years(str(value))
    if kind == "DA":
        return _day(str(value))
    if kind in ("DS", "FD", "FL", "IS", "SL", "SS", "UL", "US"):
        return float(value)
    return str(value)


def _years(text: str) -> float:
    """An age such as 063Y, 018M, 002W or 010D in years."""
    digits, unit = text.strip()[:-1], text.strip()[-1:]
    if len(digits) != 3 or not digits.isdecimal() or unit not in YEARS:
        raise Unusable("expected a PatientAge of three digits and Y, M, W or D, found another form: mend the file")
    return int(digits) * YEARS[unit]


def _day(text: str) -> str:
    plain = text.strip()
    failure = len(plain) != 8 or not plain.isdecimal()
    day = None
    try:
        day = None if failure else date(int(plain[:4]), int(plain[4:6]), int(plain[6:]))
    except ValueError:
        day = None
    if day is None:
        raise Unusable("expected a date as YYYYMMDD, found another form: mend the file, or leave it out of `fields`")
    return day.isoformat()


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels(path: str, columns: dict[str, NDArray[Any]], root: Path, site: str) -> Table:
    """The columns of the labels file in the order of the pictures."""
    found = csv_file.read(CsvSource(path=path), root, site)
    place = f"site '{site}', {root / path}"
    if FILE not in found.columns:
        raise StudyError(
            f"{place}: expected a column '{FILE}', found {len(found.columns)} others: name the pictures in it"
        )
    twice = sorted((set(found.columns) & set(columns)) - {FILE})
    if twice:
        raise StudyError(
            f"{place}: expected columns that pictures do not have, found {len(twice)} that they have too: rename them, or mend `fields`"
        )
    row = {name: i for i, name in enumerate(found.columns[FILE].tolist())}
    pictures = columns[FILE].tolist()
    if len(row) < found.rows:
        raise DataContractError(
            f"{place}: expected each picture once, found {found.rows - len(row)} rows that repeat one"
        )
    if lacking := sum(name not in row for name in pictures):
        raise DataContractError(
            f"{place}: expected a row for each of {len(pictures)} pictures, found {lacking} pictures without: add them, or move them out"
        )
    if extra := len(row) - len(pictures):
        raise DataContractError(
            f"{place}: expected a picture for each row, found {extra} rows without: correct `{FILE}`, or leave them out"
        )
    kept = found.take(np.array([row[name] for name in pictures], np.intp))
    return Table({name: column for name, column in kept.columns.items() if name != FILE}, kept.written)
