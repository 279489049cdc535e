"""Where a site's rows come from: `load` turns what the site file declares into a table.

No error of this package shows a cell, a header (a file declared wrongly has a patient there) or a database URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from fedrounds.core.errors import StudyError
from fedrounds.core.table import Table
from fedrounds.sources import bundled, csv_file, fhir, images, keep, omop, parquet, sql
from fedrounds.sources.fhir_options import FhirSource
from fedrounds.sources.omop_options import OmopSource
from fedrounds.sources.options import BundledSource, CsvSource, FoldFile, ImageSource, ParquetSource, Source, SqlSource

__all__ = [
    "BundledSource",
    "CsvSource",
    "FhirSource",
    "FoldFile",
    "ImageSource",
    "OmopSource",
    "ParquetSource",
    "Source",
    "SqlSource",
    "load",
]


def load(source: Source | None, root: Path, site: str) -> Table:
    """The site's rows. Relative paths start at `root`; `site` is for messages only.

    Raises:
        StudyError: the declaration names what is not there: a file, a variable, a column.
        DataContractError: the file or the database holds no usable table.
    """
    match source:
        case None:
            raise StudyError(
                f"expected [source] in the file of site '{site}', found none: say there where its rows are"
            )
        case CsvSource():
            return keep.recipe(csv_file.read(source, root, site), source, root, site)
        case ParquetSource():
            return keep.recipe(parquet.read(source, root, site), source, root, site)
        case SqlSource():
            return sql.read(source, root, site)
        case OmopSource():
            return omop.read(source, root, site)
        case FhirSource():
            return fhir.read(source, root, site)
        case ImageSource():
            return images.read(source, root, site)
        case BundledSource():
            return bundled.read(source, site)
        case _:
            assert_never(source)
