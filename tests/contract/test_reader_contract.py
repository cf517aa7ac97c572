"""What every reader promises, whatever the format. A new format adds one row."""

import numpy as np
import pytest
from conftest import write_folder, write_nifti, write_stacks

from segpipe.config import settings
from segpipe.data import phantom
from segpipe.data.readers import READERS, all_cases, channel_names, open_reader


def simulated(root):
    root.mkdir()
    phantom.simulate(root, 4, 0)
    return root


ROWS = {
    "folder": (write_folder, {}),
    "nifti": (write_nifti, {}),
    "stacks": (write_stacks, {}),
    "phantom": (simulated, {"data.patients": "4"}),
}


def test_every_format_has_a_row():
    assert set(ROWS) == set(READERS)


@pytest.fixture(scope="module", params=ROWS)
def opened(request, tmp_path_factory):
    write, knobs = ROWS[request.param]
    root = write(tmp_path_factory.mktemp("data") / "with a space")
    config = settings.load(None, {"data.format": request.param, "data.root": str(root), **knobs})
    return config, open_reader(config)


def test_cases_are_sorted_unique_and_below_the_root(opened):
    _, reader = opened
    names = [case.name for case in all_cases(reader)]
    assert names == sorted(set(names))
    assert len(names) >= 3
    for case in all_cases(reader):
        assert case.patient
        assert case.site
        for path in (*case.images, case.mask):
            assert path.is_file()
            assert path.is_relative_to(reader.root)


def test_volumes_have_the_promised_form(opened):
    config, reader = opened
    for case in all_cases(reader):
        volume = reader.load(case)
        assert volume.image.dtype == np.float32
        assert volume.mask.dtype == np.uint8
        assert volume.image.shape == (len(channel_names(config.data)), *volume.mask.shape)
        assert np.isfinite(volume.image).all()
        assert volume.mask.max() <= len(config.data.class_names)
        assert volume.spacing is None or len(volume.spacing) == 3
        assert len(volume.sha256) == 64


def test_loading_twice_gives_the_same(opened):
    _, reader = opened
    case = all_cases(reader)[0]
    one, two = reader.load(case), reader.load(case)
    np.testing.assert_array_equal(one.image, two.image)
    assert one.sha256 == two.sha256


def test_two_cases_differ(opened):
    _, reader = opened
    first, second, *_ = all_cases(reader)
    assert reader.load(first).sha256 != reader.load(second).sha256
