"""The same seed gives the same bytes, and the logged model answers as evaluation measures."""

import base64
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import TIMES, TINY, write_folder
from PIL import Image

from segpipe.data import codecs

CLIENT = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
import segpipe
answer = model.predict(pandas.DataFrame({"image": json.load(sys.stdin)}), params={"threshold": 0.4})
print(json.dumps({"rows": answer.to_dict(orient="records"), "code": segpipe.__file__}))
"""


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """The IDs of two models logged by two runs of the same training."""
    from conftest import PROJECT

    root = write_folder(tmp_path_factory.mktemp("data") / "raw")
    for _ in range(2):
        program = [sys.executable, "-m", "steps.train", "--data.format=folder", f"--data.root={root}", *TINY]
        subprocess.run(program, cwd=PROJECT, check=True, capture_output=True, timeout=180)
    from segpipe.tracking import connection, runs

    connection.connect()
    first, second = runs.finished("train")
    return first, second


def test_same_seed_same_model_bytes_and_same_history(trained):
    from segpipe.recording import logged_models

    files = []
    for run in trained:
        folder = logged_models.folder(f"models:/{run.data.tags['segpipe.model_id']}")
        files.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {"spec.json", "weights.safetensors", "inventory.json"}
    same = [{k: v for k, v in run.data.metrics.items() if k not in TIMES} for run in trained]
    assert same[0] == same[1]


def dicom(pixels):
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    file = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME1", 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelSpacing = 16, 12, 11, [0.5, 0.25]
    file.PixelData = (pixels >> 4).astype("<u2").tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def files():
    """A file of each codec, of different sizes."""
    rng = np.random.default_rng(0)
    grey, deep = rng.integers(0, 256, (50, 41), dtype=np.uint8), rng.integers(0, 65536, (33, 64), dtype=np.uint16)
    colour = rng.integers(0, 256, (29, 70, 3), dtype=np.uint8)
    kinds = [("PNG", grey), ("JPEG", grey), ("BMP", grey), ("TIFF", grey), ("PNG", deep), ("TIFF", deep)]
    for kind, array in [*kinds, ("PNG", colour), ("JPEG", colour), ("TIFF", colour), ("BMP", colour)]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format=kind)
        yield buffer.getvalue()
    yield dicom(deep)
    oblique = np.array(
        [[-1.997, -0.116, 0.003, 118], [-0.114, 1.953, -0.417, -79], [-0.021, 0.417, 1.956, -57], [0, 0, 0, 1]]
    )
    packed = codecs.encode_nifti(rng.random((20, 31, 5), dtype=np.float32), oblique)
    yield packed
    yield gzip.decompress(packed)
    yield codecs.encode_nifti(rng.integers(0, 4096, (9, 33, 40), dtype=np.int16), oblique[[2, 0, 1, 3]])


def test_the_logged_model_answers_as_evaluation_measures_from_anywhere(trained, tmp_path):
    from segpipe.inference.predictor import Predictor
    from segpipe.recording import logged_models

    uri = f"models:/{trained[0].data.tags['segpipe.model_id']}"
    request = json.dumps([base64.b64encode(data).decode() for data in files()])
    program = [sys.executable, "-c", CLIENT, uri]
    done = subprocess.run(
        program, cwd=tmp_path, input=request, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "artifacts/code/segpipe" in answer["code"]

    predictor = Predictor.load(logged_models.folder(uri))
    for data, row in zip(files(), answer["rows"], strict=True):
        decoded = codecs.decode(data, "x")
        image = decoded.array if decoded.geometry.volume else codecs.as_channels(decoded.array, 1, "x")
        segmentation = predictor.segment(image, 0.4)
        assert base64.b64decode(row["mask"]) == codecs.encode_mask(segmentation.mask, decoded, 1)
        assert codecs.decode(base64.b64decode(row["mask"]), "x").array.shape[1:] == decoded.array.shape[1:]
        assert row["foreground_voxels"] == int(segmentation.mask.sum())
        assert row["max_probability"] == float(segmentation.foreground.max())


def test_a_logged_model_holds_nothing_that_would_be_unpickled(trained):
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{trained[0].data.tags['segpipe.model_id']}"))
    left = {path for path in folder.rglob("*") if path.is_file()}
    named = {path for path in left if path.name in ("MLmodel", "registered_model_meta")}
    assert {path.suffix for path in left - named} <= {".py", ".json", ".safetensors", ".yaml", ".txt"}
    assert "python_model" not in (folder / "MLmodel").read_text()
