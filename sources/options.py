"""What a site file may say about where its rows come from.

A mistake is pydantic's ValidationError. Whether it shows what was written is decided by the OUTERMOST model alone:
one that holds a Source must hide its input too (inherit from Options), since a URL holds a password.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedrounds.sources.fhir_options import FhirSource
from fedrounds.sources.frozen import Options
from fedrounds.sources.omop_options import OmopSource
from fedrounds.sources.reading import reads

Where = dict[str, str | int | float]
"""Column -> the value a row must have to be kept; `63`, `63.0` and ` 63` are the same number."""


class FoldFile(Options):
    """A published split: a CSV file with rows of a source file and the fold of each. Unlisted rows are dropped."""

    path: str
    where: Where | None = None
    row: str = "row"
    """Its column of row numbers in the source file: 0 is the first below the header, blank lines do not count."""
    fold: str = "fold"
    """Its column of folds: train, valid or test."""
    as_: str = Field("fold", alias="as")
    """What the column is called in the table."""


class CsvSource(Options):
    """A delimited text file. Every cell stays text."""

    kind: Literal["csv"] = "csv"
    path: str
    header: bool = True
    columns: tuple[str, ...] | None = None
    """The names, when the file has no header."""
    separator: str = Field(",", min_length=1, max_length=1)
    encoding: str = "utf-8"
    where: Where | None = None
    fold: FoldFile | None = None

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError("expected a text encoding that Python knows, such as utf-8, cp1252 or latin-1") from None
        return encoding

    @model_validator(mode="after")
    def _named(self) -> CsvSource:
        if self.header == (self.columns is not None):
            raise ValueError("expected `columns` exactly when header = false")
        if self.columns is not None and len({name.strip() for name in self.columns} - {""}) < len(self.columns):
            raise ValueError("expected every name in `columns` once, and none empty")
        return self


class ParquetSource(Options):
    """A Parquet file. Numbers and booleans arrive as float64, the rest as text."""

    kind: Literal["parquet"] = "parquet"
    path: str
    where: Where | None = None
    fold: FoldFile | None = None


class SqlSource(Options):
    """One reading query on a database that SQLAlchemy can reach."""

    kind: Literal["sql"] = "sql"
    url: str = Field(repr=False)
    """A SQLAlchemy URL; `${NAME}` is read from the environment. Variables left of the `@` are quoted for you."""
    query: str

    @field_validator("query")
    @classmethod
    def _reads(cls, query: str) -> str:
        return reads(query)


class ImageSource(Options):
    """A folder of pictures, PNG or DICOM: one row a file, by the files' names in order."""

    kind: Literal["images"] = "images"
    path: str
    """The folder; folders in it are looked through too, hidden files are not."""
    name: str = Field("scan", min_length=1)
    """Pixels are the columns `NAME_row_column`, counted from 0."""
    height: int | None = Field(None, ge=1, le=4096)
    width: int | None = Field(None, ge=1, le=4096)
    """The size that every picture is brought to; neither: no pixels, DICOM's fields alone."""
    fields: tuple[str, ...] = ("PatientID", "PatientAge", "PatientSex", "StudyDate", "Modality", "Manufacturer")
    """DICOM's keywords, each a column; empty in a PNG."""
    labels: str | None = None
    """A CSV file with a row a picture: a column `file` (the path below the folder, with slashes), and others that join the table."""
    where: Where | None = None

    @model_validator(mode="after")
    def _whole(self) -> ImageSource:
        if (self.height is None) != (self.width is None):
            raise ValueError("expected `height` and `width`, or neither for DICOM's fields alone")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError("expected every keyword in `fields` once")
        return self


class BundledSource(Options):
    """A data set that comes with scikit-learn: REAL patients (or flowers, wines, handwritten digits), dealt to SIMULATED hospitals."""

    kind: Literal["bundled"] = "bundled"
    name: Literal["diabetes", "breast_cancer", "iris", "wine", "digits"]
    hospital: int = Field(ge=0)
    """Which of the simulated hospitals this site is: 0 is the first of `shares`."""
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...]
    """Each hospital's share of the rows. All sites of a study state the same shares, tilt and seed."""
    tilt: str | None = None
    """A column in which the hospitals shall differ: their distributions are shifted and still overlap."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _shared_out(self) -> BundledSource:
        if not math.isclose(sum(self.shares), 1.0, abs_tol=1e-9):
            raise ValueError(f"expected shares that sum to 1, found a sum of {sum(self.shares):.6g}")
        if self.hospital >= len(self.shares):
            raise ValueError(
                f"expected hospital below {len(self.shares)}, as there are so many shares, found {self.hospital}"
            )
        return self


Source = Annotated[
    CsvSource | ParquetSource | SqlSource | OmopSource | FhirSource | ImageSource | BundledSource,
    Field(discriminator="kind"),
]
