"""The same seed gives the same bytes, and the logged model answers as evaluation measures."""

import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import TIMES, TINY, write_folder
from PIL import Image

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
    from segpipe import tracking

    tracking.connect()
    first, second = tracking.finished("train")
    return first, second


def test_same_seed_same_model_bytes_and_same_history(trained):
    from segpipe import logged_models

    files = []
    for run in trained:
        folder = logged_models.folder(f"models:/{run.data.tags['segpipe.model_id']}")
        files.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {"spec.json", "weights.safetensors"}
    same = [{k: v for k, v in run.data.metrics.items() if k not in TIMES} for run in trained]
    assert same[0] == same[1]


def pictures():
    rng = np.random.default_rng(0)
    grey, deep = rng.integers(0, 256, (50, 41), dtype=np.uint8), rng.integers(0, 65536, (33, 64), dtype=np.uint16)
    colour = rng.integers(0, 256, (29, 70, 3), dtype=np.uint8)
    for kind, array in (("PNG", grey), ("JPEG", grey), ("BMP", grey), ("PNG", deep), ("TIFF", deep), ("JPEG", colour)):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format=kind)
        yield buffer.getvalue()


def test_the_logged_model_answers_as_evaluation_measures_from_anywhere(trained, tmp_path):
    from segpipe import logged_models
    from segpipe.data import codecs
    from segpipe.inference import Predictor

    uri = f"models:/{trained[0].data.tags['segpipe.model_id']}"
    request = json.dumps([base64.b64encode(data).decode() for data in pictures()])
    program = [sys.executable, "-c", CLIENT, uri]
    done = subprocess.run(
        program, cwd=tmp_path, input=request, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "artifacts/code/segpipe" in answer["code"]

    predictor = Predictor.load(logged_models.folder(uri))
    for data, row in zip(pictures(), answer["rows"], strict=True):
        decoded = codecs.decode(data, "x")
        segmentation = predictor.segment(codecs.as_channels(decoded.array, 1, "x"), 0.4)
        assert base64.b64decode(row["mask"]) == codecs.encode_mask(segmentation.mask, decoded, 1)
        assert Image.open(io.BytesIO(base64.b64decode(row["mask"]))).size == decoded.array.shape[:1:-1]
        assert row["foreground_voxels"] == int(segmentation.mask.sum())
        assert row["max_probability"] == float(segmentation.foreground.max())
