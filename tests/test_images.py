"""A folder of pictures as a table: PNG by Pillow and DICOM by pydicom, written here and read back."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.core.preprocess import clean
from fedrounds.core.study import Study
from fedrounds.sources import ImageSource, load
from fedrounds.sources.site_file import SiteFile

STORED = np.array([[0, 100, 4000], [7, 65, 1]])


def dicom(path, stored=STORED, bits=12, signed=False, pixels=True, **fields):
    """Write a picture as a scanner does: its numbers as they are stored, and what DICOM says of them."""
    kind = np.int16 if signed else np.uint16
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientID, data.PatientAge, data.PatientSex = "P-7", "063Y", "F"
    data.StudyDate, data.Modality, data.Manufacturer = "20240229", "CR", "Röntgen & Co"
    data.Rows, data.Columns = np.shape(stored)[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, bits, bits - 1, int(signed)
    if pixels:
        data.PixelData = np.asarray(stored, kind).tobytes()
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data


def png(path, pixels, kind=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, kind)).save(path)


def table(root, **words):
    return load(ImageSource(**{"path": "scans", "height": 2, "width": 3, **words}), root, "north")


def pixels(found, row=0, name="scan", height=2, width=3):
    return [[found.columns[f"{name}_{i}_{j}"][row] for j in range(width)] for i in range(height)]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_dicoms_numbers_come_back_exactly(tmp_path, signed, packed):
    stored = STORED - 2048 if signed else STORED
    data = dicom(tmp_path / "scans" / "a.dcm", stored, signed=signed)
    if packed:
        data.compress(RLELossless)
        data.save_as(tmp_path / "scans" / "a.dcm", enforce_file_format=True)
    assert pixels(table(tmp_path)) == stored.tolist()


def test_a_dicoms_numbers_are_rescaled_and_the_least_is_black(tmp_path):
    dicom(tmp_path / "scans" / "a.dcm", RescaleSlope="2.5", RescaleIntercept="-1024")
    dicom(tmp_path / "scans" / "b.dcm", PhotometricInterpretation="MONOCHROME1")
    dicom(tmp_path / "scans" / "c.dcm", STORED - 9, 13, True, PhotometricInterpretation="MONOCHROME1", RescaleSlope="2")
    found = table(tmp_path)
    assert pixels(found, 0) == (STORED * 2.5 - 1024).tolist()
    assert pixels(found, 1) == (4095 - STORED).tolist()
    assert pixels(found, 2) == (2 * (-1 - (STORED - 9))).tolist()


def test_what_dicom_says_is_a_column_a_keyword(tmp_path):
    for number, age in enumerate(("063Y", "018M", "007W", "010D", "")):
        dicom(tmp_path / "scans" / str(number), PatientAge=age)
    dicom(tmp_path / "scans" / "deep" / "er", ImageType=["ORIGINAL", "PRIMARY"], KVP="80.5", StudyDate="")
    found = table(tmp_path, fields=["PatientID", "PatientAge", "StudyDate", "ImageType", "KVP", "Rows", "SeriesDate"])
    assert found.columns["file"].tolist() == ["0", "1", "2", "3", "4", "deep/er"]
    assert found.columns["PatientID"].tolist() == ["P-7"] * 6
    np.testing.assert_allclose(found.columns["PatientAge"], [63, 1.5, 49 / 365.25, 10 / 365.25, np.nan, 63], rtol=1e-15)
    assert found.columns["StudyDate"].tolist() == ["2024-02-29"] * 5 + [""]
    assert found.columns["ImageType"].tolist() == [""] * 5 + ["ORIGINAL\\PRIMARY"]
    assert np.isnan(found.columns["KVP"]).tolist() == [True] * 5 + [False]
    assert found.columns["KVP"][5] == 80.5
    assert found.columns["Rows"].tolist() == [2.0] * 6
    assert found.columns["SeriesDate"].tolist() == [""] * 6


def test_without_a_size_only_what_dicom_says_is_read(tmp_path):
    dicom(tmp_path / "scans" / "report.dcm", pixels=False)
    found = load(ImageSource(path="scans"), tmp_path, "north")
    assert list(found.columns) == [
        "file",
        "PatientID",
        "PatientAge",
        "PatientSex",
        "StudyDate",
        "Modality",
        "Manufacturer",
    ]
    assert found.columns["Manufacturer"].tolist() == ["Röntgen & Co"]


def test_pngs_in_grey_come_back_exactly_and_colours_by_their_brightness(tmp_path):
    png(tmp_path / "scans" / "a.png", STORED % 256)
    png(tmp_path / "scans" / "b.png", STORED * 16, np.uint16)
    png(tmp_path / "scans" / "c.png", STORED % 2, bool)
    png(tmp_path / "scans" / "d.png", np.stack([STORED % 256] * 3, axis=2))
    found = table(tmp_path, fields=[])
    assert pixels(found, 0) == (STORED % 256).tolist()
    assert pixels(found, 1) == (STORED * 16).tolist()
    assert pixels(found, 2) == (STORED % 2 * 255).tolist()
    assert pixels(found, 3) == (STORED % 256).tolist()


def test_a_larger_picture_becomes_the_means_of_what_each_pixel_covers(tmp_path):
    dicom(tmp_path / "scans" / "a.dcm", np.arange(24).reshape(4, 6))
    assert pixels(table(tmp_path)) == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]


def test_labels_join_by_the_files_names_in_any_order(tmp_path):
    for name in ("a", "b", "c"):
        dicom(tmp_path / "scans" / f"{name}.dcm")
    (tmp_path / "scans" / "labels.csv").write_text("finding,file\nyes,b.dcm\nno,a.dcm\n maybe,c.dcm\n")
    found = table(tmp_path, labels="scans/labels.csv")
    assert found.columns["finding"].tolist() == ["no", "yes", "maybe"]
    assert found.written["finding"].tolist() == ["no", "yes", " maybe"]
    assert table(tmp_path, labels="scans/labels.csv", where={"finding": "yes"}).columns["file"].tolist() == ["b.dcm"]


def test_a_study_names_a_picture_by_one_word(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        dicom(tmp_path / "scans" / f"{number:02}.dcm", rng.integers(0, 4096, (2, 3)), PatientID=f"P{number}")
    (tmp_path / "labels.csv").write_text("file,ill\n" + "".join(f"{n:02}.dcm,{n % 2}\n" for n in range(12)))
    features = [{"type": "pixels", "name": "scan", "height": 2, "width": 3}, {"type": "number", "name": "PatientAge"}]
    given = {"name": "scans", "patient_id": "PatientID", "features": features, "model": {"kind": "logistic"}}
    target = {"kind": "binary", "column": "ill", "positive": [1], "negative": [0]}
    study = Study.model_validate({**given, "algorithm": "fedavg", "target": target})
    source = {"kind": "images", "path": "scans", "height": 2, "width": 3, "labels": "labels.csv"}
    site = SiteFile.model_validate({"name": "north", "source": source})
    cohort = clean(load(site.source, tmp_path, "north"), study, "north")
    assert cohort.values.shape == (12, 7)
    assert cohort.values[0, :6].tolist() == np.random.default_rng(0).integers(0, 4096, (2, 3)).reshape(-1).tolist()
    assert cohort.values[:, 6].tolist() == [63.0] * 12


# --- what cannot be used: one line, by the picture's place, and never its name or what it says -------------------------


def spoilt(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def unnamed(path, pixels):
    png(path.with_suffix(".png"), pixels)
    path.with_suffix(".png").rename(path)


def frames(path):
    dicom(path, np.stack([STORED, STORED]), NumberOfFrames=2)


MALFORMED = {
    "text": (lambda p: p.write_text("Smith, John"), "expected PNG or DICOM, found another kind of file"),
    "empty": (lambda p: p.touch(), "expected PNG or DICOM, found another kind of file"),
    "half a PNG": (lambda p: (unnamed(p, STORED % 256), spoilt(p)), "expected a whole PNG, found one that cannot be read"),
    "a PNG with transparency": (lambda p: unnamed(p, np.zeros((2, 3, 4))), "in grey or RGB, found mode RGBA"),
    "half a DICOM": (lambda p: (dicom(p), p.write_bytes(p.read_bytes()[:-5])), "expected pixels that can be decoded, found ValueError"),
    "a DICOM's head": (lambda p: (dicom(p), p.write_bytes(p.read_bytes()[:150])), "with pixels, found one without"),
    "three channels": (lambda p: dicom(p, np.stack([STORED] * 3), SamplesPerPixel=3, PlanarConfiguration=1), "one number a pixel, found several"),
    "no pixels": (lambda p: dicom(p, pixels=False), "expected a DICOM file with pixels, found one without"),
    "colours": (lambda p: dicom(p, PhotometricInterpretation="YBR_FULL"), "MONOCHROME1 or MONOCHROME2, found another kind"),
    "several frames": (frames, "expected one frame a file, found several"),
    "no slope": (lambda p: dicom(p, RescaleSlope="0", RescaleIntercept="1"), "expected a rescale slope other than 0"),
    "an odd age": (lambda p: dicom(p, PatientAge="63"), "expected a PatientAge of three digits and Y, M, W or D"),
    "an odd day": (lambda p: dicom(p, StudyDate="20240231"), "expected a date as YYYYMMDD, found another form"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", MALFORMED)
def test_a_picture_that_cannot_be_used_is_told_in_one_line_by_its_place(tmp_path, kind):
    spoil, words = MALFORMED[kind]
    dicom(tmp_path / "scans" / "0.dcm")
    spoil(tmp_path / "scans" / "1 Smith John")
    with pytest.raises(DataContractError) as caught:
        table(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"site 'north', {tmp_path / 'scans'}: picture 2 of 2 in the order of names: ")
    assert words in said
    assert "\n" not in said
    for quoted in ("Smith", "20240231", "P-7"):
        assert quoted not in said
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_pictures_and_labels_are_of_each_other(tmp_path):
    for name in ("a", "b", "c"):
        dicom(tmp_path / "scans" / name)

    def said(labels, error=DataContractError, **words):
        (tmp_path / "labels.csv").write_text(labels)
        with pytest.raises(error) as caught:
            table(tmp_path, labels="labels.csv", **words)
        return str(caught.value).removeprefix(f"site 'north', {tmp_path / 'labels.csv'}: ")

    assert said("name,ill\na,1\n", StudyError) == "expected a column 'file', found 2 others: name the pictures in it"
    assert said("file,ill\na,1\n").startswith("expected a row for each of 3 pictures, found 2 pictures without")
    assert said("file,ill\na,1\nb,1\nc,0\nd,1\n").startswith("expected a picture for each row, found 1 rows without")
    assert said("file,ill\na,1\nb,1\nc,0\nc,1\n").startswith("expected each picture once, found 1 rows that repeat one")
    assert "found 1 that they have too" in said("file,PatientID\na,1\nb,1\nc,0\n", StudyError)


def test_what_the_site_file_says_wrongly_is_told(tmp_path):
    with pytest.raises(StudyError, match="expected a folder of pictures, found nothing"):
        table(tmp_path)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / ".hidden").touch()
    with pytest.raises(DataContractError, match="expected pictures, found none"):
        table(tmp_path)
    dicom(tmp_path / "scans" / "a")
    with pytest.raises(StudyError, match="expected DICOM keywords in `fields`, found 'PatientShoe'"):
        table(tmp_path, fields=["PatientShoe"])
    with pytest.raises(ValueError, match="expected `height` and `width`, or neither"):
        table(tmp_path, width=None)
    with pytest.raises(ValueError, match="every keyword in `fields` once"):
        table(tmp_path, fields=["Modality", "Modality"])


def test_without_pydicom_there_is_one_line(tmp_path, monkeypatch):
    dicom(tmp_path / "scans" / "a")
    monkeypatch.setitem(__import__("sys").modules, "pydicom.datadict", None)
    with pytest.raises(StudyError, match=r"expected pydicom to read pictures, .* pip install 'fedrounds\[images\]'"):
        table(tmp_path)
    shutil.rmtree(tmp_path / "scans")
