"""Thousands of damaged files and requests for a real server: $SEGPIPE_FUZZ of them, 3000 unless told."""

import gzip
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scoring import AFFINE, JSON, Server, dicom, logged, picture, spec, text

from segpipe.data import codecs

INPUTS = int(os.environ.get("SEGPIPE_FUZZ", "3000"))
WARM_UP, THREADS, LARGEST_GROWTH_MB = 400, 4, 100
TYPES = ("application/json", "application/json; charset=utf-8", "text/csv", "text/xml", "", "application/json; x=y")
KEYS = ("dataframe_records", "dataframe_split", "instances", "inputs", "params", "messages", "x")
NAMES = ("image", "spacing", "dwi", "columns", "data", "index", "")
VALUES = (
    None,
    True,
    0,
    -1,
    1e300,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "a",
    "iVBORw0KGgo=",
    "/a.png",
    [],
    {},
    [[[1.5]]],
)
PARAMS = {
    "threshold": (0.3, 0, 1, -1, 2, "x", None, True, float("nan"), [0.5], 10**400),
    "output": ("auto", "png", "nifti", "rle", "polygons", "none", "x" * 99, 3, None),
    "tta": (True, False, 1, "true", None),
    "return_probabilities": (True, 0),
    "largest_component": (True, False),
    "min_area": (0, 3, -1, 10**30, 1.5, "3"),
    "unknown": (1,),
}


def files():
    """A valid file of each codec."""
    rng = np.random.default_rng(0)
    grey, deep = rng.integers(0, 256, (24, 30), dtype=np.uint8), rng.integers(0, 65536, (20, 24), dtype=np.uint16)
    colour, brain = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8), rng.random((9, 10, 4), dtype=np.float32)
    packed = codecs.encode_nifti(brain, AFFINE)
    pictures = [picture(a, k) for a in (grey, colour) for k in ("PNG", "JPEG", "TIFF", "BMP")]
    return [
        *pictures,
        picture(deep),
        picture(deep, "TIFF"),
        dicom(deep, PixelSpacing=[0.5, 0.25]),
        packed,
        gzip.decompress(packed),
    ]


def damaged(data, rng):
    """A file with bytes flipped, cut, doubled, inserted or zeroed, once to four times."""
    for _ in range(rng.integers(1, 5)):
        start, length = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 64))
        start = start % 400 if rng.random() < 0.5 else start  # headers are where it hurts
        before, middle, after = data[:start], data[start : start + length], data[start + length :]
        noise = rng.bytes(length)
        flipped = bytes(b ^ (1 << int(rng.integers(8))) for b in middle[:4]) + middle[4:]
        changed = (
            before,
            before + flipped + after,
            before + middle + middle + after,
            before + noise + middle + after,
            before + noise[: len(middle)] + after,
            before + bytes(len(middle)) + after,
        )
        data = changed[rng.integers(len(changed))]
        if not data:
            return b""
    return data


def any_value(rng, depth=0):
    """A JSON value of any shape."""
    kind = rng.integers(4) if depth < 4 else 0
    if kind == 1:
        return [any_value(rng, depth + 1) for _ in range(rng.integers(4))]
    if kind == 2:
        return {NAMES[rng.integers(len(NAMES))]: any_value(rng, depth + 1) for _ in range(rng.integers(4))}
    return VALUES[rng.integers(len(VALUES))]


def request(index, valid):
    """Body and headers of an input: files, parameters, JSON of any shape, or anything at all."""
    rng = np.random.default_rng([5, index])
    kind, data = rng.random(), valid[rng.integers(len(valid))]
    if kind < 0.6:
        rows = [{"image": text(damaged(data, rng))} for _ in range(rng.integers(1, 3))]
        return json.dumps({"dataframe_records": rows}).encode(), JSON
    if kind < 0.75:
        names = rng.choice(list(PARAMS), rng.integers(1, 4), replace=False)
        params = {str(name): PARAMS[name][rng.integers(len(PARAMS[name]))] for name in names}
        return json.dumps({"dataframe_records": [{"image": text(data)}], "params": params}).encode(), JSON
    if kind < 0.9:
        keys = rng.choice(KEYS, rng.integers(1, 3), replace=False)
        return json.dumps({str(key): any_value(rng) for key in keys}).encode(), JSON
    whole = json.dumps({"dataframe_records": [{"image": text(data)}]}).encode()
    return damaged(whole, rng), {"Content-Type": TYPES[rng.integers(len(TYPES))]}


def kind_of(status, answer):
    """A line for the table of answers; what the model itself says is checked."""
    try:
        told = json.loads(answer, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))
    except json.JSONDecodeError:
        return f"{status} not JSON: {answer[:60]}"
    if "sqlstate" in told:
        return f"{status} by MLflow{', with a traceback' if 'stack_trace' in told else ''}"
    assert "Traceback" not in answer
    assert 'File "' not in answer
    assert "internal error" not in answer
    if status == 200:
        return f"200, {'a bad row' if any(row['error'] for row in told['predictions']) else 'all rows'}"
    assert set(told) <= {"error_code", "message", "row", "reason"}
    assert "\n" not in told["message"]
    return f"{status} by the model"


@pytest.mark.slow
def test_nothing_that_is_sent_kills_a_server_or_lets_it_swell(store, tmp_path, capsys):
    uri, valid = logged(spec(), tmp_path / "segpipe"), files()
    server = Server(uri, tmp_path, SERVING_MODEL_CONFIG=json.dumps({"max_pixels": 1 << 22}))
    try:
        server.wait()
        good = [{"image": text(data)} for data in valid]
        expected = server.ask(good, tta=True)
        with ThreadPoolExecutor(THREADS) as pool:
            kinds = Counter(pool.map(lambda n: kind_of(*server.send(*request(n, valid))), range(WARM_UP)))
            before = server.rss_mb()
            kinds += Counter(pool.map(lambda n: kind_of(*server.send(*request(n, valid))), range(WARM_UP, INPUTS)))
        after = server.rss_mb()
        assert server.ask(good, tta=True) == expected
        table = [f"{count:6} {kind}" for kind, count in sorted(kinds.items())]
        with capsys.disabled():
            sys.stdout.write(f"\n{INPUTS} inputs, {before:.0f} MB after {WARM_UP}, {after:.0f} MB at the end\n")
            sys.stdout.write("\n".join(table) + "\n")
        assert {int(kind[:3]) for kind in kinds} <= {200, 400, 413, 415, 422, 500}
        assert after - before < LARGEST_GROWTH_MB
        assert server.process.poll() is None
    finally:
        server.close()
