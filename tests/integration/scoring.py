"""Tiny models behind the real `mlflow models serve`, files to send them, and requests over HTTP."""

import base64
import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

JSON = {"Content-Type": "application/json"}
AFFINE = np.array([[-2.0, 0, 0, 50], [0, 1.5, 0, -40], [0, 0, 5.0, 10], [0, 0, 0, 1]])


def text(data):
    return base64.b64encode(data).decode()


def picture(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind)
    return buffer.getvalue()


def dicom(pixels, **elements):
    """A secondary capture of H,W uint16 with further elements by keyword."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID, file.PatientID = SecondaryCaptureImageStorage, "1.2.3", "nobody"
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelData = pixels.astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def spec(kind="picture", channels=("grey",), classes=("thing",)):
    from segpipe.config.sections import ModelConfig, PreprocessConfig
    from segpipe.inference.spec import ModelSpec

    tiny = ModelConfig(encoder="tu-test_resnet", encoder_depth=3)
    plane = PreprocessConfig(size=(32, 32))
    return ModelSpec(model=tiny, preprocess=plane, kind=kind, channels=channels, classes=classes, threshold=0.5)


def logged(made, folder):
    """The URI of a model with random weights."""
    import mlflow

    from segpipe.inference.predictor import Predictor
    from segpipe.models import architectures
    from segpipe.recording import logged_models

    Predictor(made, architectures.build(made.model, len(made.channels), len(made.classes), seed=0)).save(folder)
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow compares the columns of an example with a range
        return f"models:/{logged_models.log(folder)}"


class Server:
    """`mlflow models serve`, started where the project is not."""

    def __init__(self, uri, home, **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = Path(home) / "log"
        program = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(self.port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                program, cwd=home, stdout=log, stderr=log, start_new_session=True, env=os.environ | environment
            )

    def wait(self):
        """Until it answers."""
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=1).read()
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.2)

    def close(self):
        os.killpg(self.process.pid, 15)
        self.process.wait(30)

    def send(self, body, headers=JSON):
        """The status and text of the answer to a body of bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/invocations", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def ask(self, rows, **params):
        """The rows of the answer to a request that has to be good."""
        status, answer = self.send(json.dumps({"dataframe_records": rows, "params": params}).encode())
        assert status == 200, answer
        return json.loads(answer, parse_constant=lambda name: 1 / 0)["predictions"]

    def rss_mb(self):
        """Anonymous memory of the largest of its processes, MB."""
        group = subprocess.run(["pgrep", "-g", str(self.process.pid)], capture_output=True, text=True, check=True)
        sizes = []
        for pid in group.stdout.split():
            lines = (Path("/proc") / pid / "status").read_text().splitlines()
            sizes += [int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")]
        return max(sizes)
