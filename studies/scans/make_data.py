"""Stand-in scans for four made-up hospitals: `python studies/scans/make_data.py` writes DICOM files and labels.csv into data/HOSPITAL/.

The pictures are scikit-learn's 1,797 handwritten digits (Alpaydin and Kaynak 1998): real pictures of 8 × 8 pixels that anybody has, and no
patient's. Each hospital's machine stores them in its own way: with a slope, turned round, or larger. Needs `fedrounds[images]`.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# hospital -> how many pictures of a hundred, what a stored number is divided by, whether white is the least, pixels a side of one pixel
HOSPITALS = {
    "coast": (35, 1.0, False, 1),
    "forest": (30, 0.25, False, 1),
    "harbour": (20, 1.0, True, 1),
    "plain": (15, 1.0, False, 2),
}


def scan(pixels: NDArray[np.float64], identity: str, slope: float, turned: bool, times: int, file: Path) -> None:
    """A secondary-capture file; MONOCHROME1 where the picture is turned round."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = SecondaryCaptureImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[identity])
    found = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.PatientID, found.Modality, found.StudyDate = identity, "OT", "20260105"
    stored = np.kron(pixels / slope, np.ones((times, times)))
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME1" if turned else "MONOCHROME2"
    found.RescaleSlope, found.RescaleIntercept = slope, 0
    found.Rows, found.Columns = stored.shape
    found.PixelData = (4095 - stored if turned else stored).astype("<u2").tobytes()
    found.save_as(file, enforce_file_format=True)


def main() -> None:
    """Write every hospital's folder."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(41).permutation(len(digits.target))
    ends = np.cumsum([share for share, *_ in HOSPITALS.values()]) * len(order) // 100
    for (hospital, (_, slope, turned, times)), mine in zip(HOSPITALS.items(), np.split(order, ends[:-1]), strict=True):
        folder = Path(__file__).parent / "data" / hospital
        folder.mkdir(parents=True, exist_ok=True)
        labels = [("file", "finding")]
        for row in mine:
            name = f"{row:04d}.dcm"
            scan(digits.images[row], f"{hospital[:2]}{row:04d}", slope, turned, times, folder / name)
            labels.append((name, str(digits.target[row])))
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(labels)


if __name__ == "__main__":
    main()
