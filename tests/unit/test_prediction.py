"""What is found to segment, how it streams, and what a folder of results promises."""

import csv
import hashlib
import io
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from conftest import disc, write_folder, write_nifti, write_volume
from PIL import Image, ImageColor

from segpipe.config import settings
from segpipe.data import codecs, dataset_writer
from segpipe.data.readers import READERS, channel_names, open_reader
from segpipe.errors import ConflictError, InputError
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures
from segpipe.plots.colours import CLASSES
from segpipe.prediction import batch, comparisons, results, summary
from segpipe.prediction.inputs import Item, find

TINY = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}
ONE = ("foreground",)
ORIGIN = {"model": "models:/x/1"}


def config_of(kind, **knobs):
    return settings.load(None, {"data.format": kind, **TINY, **knobs})


def spec_of(kind, **knobs):
    config = config_of(kind, **knobs)
    return ModelSpec(
        model=config.model,
        preprocess=config.preprocess,
        kind=READERS[kind].kind,
        channels=channel_names(config.data),
        classes=config.data.class_names,
    )


@pytest.fixture(scope="module")
def predictors():
    """A network with random weights for pictures, and one for two volumes."""
    found = {}
    for kind in ("folder", "nifti"):
        spec = spec_of(kind)
        found[kind] = Predictor(spec, architectures.build(spec.model, len(spec.channels), 1, seed=3))
    return found


def request_of(source, **knobs):
    values = {
        "input": str(source),
        "weights_sha256": "00",
        "spec_sha256": "00",
        "threshold": 0.5,
        "tta": False,
        "largest_component": False,
        "min_area": 0,
        "comparisons": True,
        "ignore_label": -1,
    }
    return results.Request(**(values | knobs))


def run(predictor, source, output, **knobs):
    items = find(source, predictor.spec, config_of("folder" if predictor.spec.kind == "picture" else "nifti"))
    return batch.run(predictor, items, request_of(source, **knobs), output, ORIGIN, lambda *_: None)


def names(items, root):
    return {item.case: tuple(path.relative_to(root).as_posix() for path in item.files) for item in items}


def table(folder):
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def everything(folder):
    """Each file's bytes; of what tells the time, all but that."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
        elif name == "predictions.csv":
            found[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in table(folder).values()]
        else:
            found[name] = path.read_bytes()
    return found


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_folder_of_images_and_masks_gives_cases_with_references(folder):
    items = find(folder, spec_of("folder"), config_of("folder"))
    assert [item.case for item in items] == [f"case{n}" for n in range(8)]
    assert items[3].files == (folder / "images" / "case3.png",)
    assert items[3].reference == folder / "masks" / "case3.png"


def test_any_other_folder_gives_every_known_file_below_it_but_masks_and_hidden_ones(tmp_path):
    root = tmp_path / "in"
    touch(root / "b.PNG", root / "a/x.dcm", root / "a/v.nii.gz", root / "notes.txt", root / ".hidden/c.png")
    touch(root / "a/.d.png", root / "a/masks/x.png", root / "a/v_msk.nii.gz")
    found = names(find(root, spec_of("folder"), config_of("folder")), root)
    assert found == {"a/v": ("a/v.nii.gz",), "a/x": ("a/x.dcm",), "b": ("b.PNG",)}


def test_two_files_of_one_name_are_refused_because_their_results_would_be_one(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"two cases 'a' \(.*a\.jpg and .*a\.png\)"):
        find(tmp_path, spec_of("folder"), config_of("folder"))


def test_channels_of_one_stem_belong_together_wherever_they_lie(tmp_path):
    root = write_nifti(tmp_path / "bids", cases=2)
    touch(root / "sub-case0/ses-0001/anat/sub-case0_ses-0001_flair.nii.gz")
    stem = "sub-case1/ses-0001/dwi/sub-case1_ses-0001"
    items = find(root, spec_of("nifti"), config_of("nifti"))
    assert names(items, root)[stem] == (f"{stem}_dwi.nii.gz", f"{stem}_adc.nii.gz")
    assert len(items) == 2
    assert items[1].reference == root / "derivatives/sub-case1/ses-0001/sub-case1_ses-0001_msk.nii.gz"
    assert items[1].patient == "sub-case1"
    three = spec_of("nifti", **{"data.channels": "dwi,adc,flair"})
    first, second = find(root, three, config_of("nifti"))
    assert [path.name.split("_")[-1] for path in first.files] == ["dwi.nii.gz", "adc.nii.gz", "flair.nii.gz"]
    assert "no file sub-case1_ses-0001_flair.nii.gz" in second.fault


def test_equal_stems_in_several_folders_are_several_cases(tmp_path):
    for patient in ("p1", "p2"):
        touch(*(tmp_path / patient / f"scan_{end}.nii.gz" for end in ("dwi", "adc", "msk")))
    items = find(tmp_path, spec_of("nifti"), config_of("nifti"))
    assert [item.case for item in items] == ["p1/scan", "p2/scan"]
    assert [item.reference.parent.name for item in items] == ["p1", "p2"]


def test_volumes_without_a_channel_in_their_name_hold_all_channels(tmp_path):
    touch(tmp_path / "a.nii.gz", tmp_path / "b.nii", tmp_path / "a_msk.nii.gz", tmp_path / "picture.png")
    assert names(find(tmp_path, spec_of("nifti"), config_of("nifti")), tmp_path) == {
        "a": ("a.nii.gz",),
        "b": ("b.nii",),
    }


def test_a_list_names_files_relative_to_itself_or_to_what_they_share(tmp_path):
    source = tmp_path / "list.txt"
    source.write_text("b/x.png\n\na/y\n")
    items = find(source, spec_of("folder"), config_of("folder"))
    assert [item.case for item in items] == ["b/x", "a/y"]
    assert items[1].files == (tmp_path / "a" / "y",)
    source.write_text("../elsewhere/p/x.png\n../elsewhere/q/x.png\n")
    assert [item.case for item in find(source, spec_of("folder"), config_of("folder"))] == ["p/x", "q/x"]


def test_a_table_names_cases_channels_and_masks(tmp_path):
    source = tmp_path / "cases.csv"
    source.write_text("case,dwi,adc,mask\np/1,a.nii,b.nii,m.nii\np/2,c.nii,,\n")
    first, second = find(source, spec_of("nifti"), config_of("nifti"))
    assert first[:3] == ("p/1", (tmp_path / "a.nii", tmp_path / "b.nii"), tmp_path / "m.nii")
    assert second.fault.endswith("cases.csv: row 2 has no 'adc'")
    source.write_text("image\nx/1.png\n")
    assert find(source, spec_of("folder"), config_of("folder"))[0].case == "x/1"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.csv", "image, mask\nx/1.png, m/1.png\n"),
        ("list.csv", "\ufeffImage;Reference\nx/1.png;m/1.png\n"),
        ("list.tsv", "File Name\tlabel\tnotes\nx/1.png\tm/1.png\n\t\t\n"),
    ],
)
def test_a_table_is_read_as_people_write_it(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    (item,) = find(tmp_path / name, spec_of("folder"), config_of("folder"))
    assert item == Item("x/1", (tmp_path / "x" / "1.png",), tmp_path / "m" / "1.png")


def test_references_may_all_end_alike_but_have_to_be_named_like_images(tmp_path):
    touch(*(tmp_path / "images" / f"{n}.png" for n in range(3)))
    touch(*(tmp_path / "masks" / f"{n}_vessel-mask.png" for n in range(2)))
    items = find(tmp_path, spec_of("folder"), config_of("folder"))
    assert [item.reference and item.reference.name for item in items] == [
        "0_vessel-mask.png",
        "1_vessel-mask.png",
        None,
    ]
    for mask in (tmp_path / "masks").iterdir():
        mask.rename(mask.with_stem(f"m{mask.stem[0]}"))
    with pytest.raises(InputError, match="masks: no mask is named like an image; rename them, list both"):
        find(tmp_path, spec_of("folder"), config_of("folder"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("case,dwi\np,a.nii\n", "no column 'adc'; there are case, dwi"),
        ("case,image\n../p,a.nii\n", "case '../p' can't name a file"),
        ("case,image\n/p,a.nii\n", "case '/p' can't name a file"),
        ("case,image\np,a.nii\np,b.nii\n", "two cases 'p'"),
        ("case,image\n", "nothing to segment; the model takes *_dwi.nii.gz, *_adc.nii.gz"),
        ("", "cases.csv: empty; fill it in, or remove it"),
        ("Case, case id, dwi, adc\n", "columns Case and case id both mean case; keep one"),
    ],
)
def test_a_table_that_cannot_be_followed_is_one_line(content, told, tmp_path):
    source = tmp_path / "cases.csv"
    source.write_text(content)
    with pytest.raises(InputError) as caught:
        find(source, spec_of("nifti"), config_of("nifti"))
    assert told in str(caught.value)


def test_a_manifest_gives_its_cases_with_the_references_of_its_reader(nifti, tmp_path):
    config = config_of("nifti", **{"data.root": str(nifti)})
    dataset_writer.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    for source in (tmp_path / "dataset", tmp_path / "dataset" / "manifest.json"):
        items = find(source, spec_of("nifti"), config_of("nifti"))
        assert sorted(item.case for item in items) == [f"sub-case{n}_ses-0001" for n in range(4)]
        assert all(item.reference.name == f"{item.case}_msk.nii.gz" for item in items)
        assert {item.patient for item in items} == {f"patient{n}" for n in range(4)}


def test_what_streams_keeps_its_order_and_only_so_much_is_on_the_way():
    begun, most = [], []
    lock = threading.Lock()

    def work(number):
        with lock:
            begun.append(number)
        time.sleep(0.01 if number % 3 else 0.03)
        return number

    with ThreadPoolExecutor(4) as pool:
        for taken, number in enumerate(batch.in_order(pool, work, range(40), 5)):
            assert number == taken
            most.append(len(begun) - taken)
    assert max(most) <= 5


def test_a_picture_and_its_mask_are_what_evaluation_would_have(predictors, folder, tmp_path):
    predictor = predictors["folder"]
    colour = np.stack([disc(30, 50, 90 + n)[0] for n in range(3)], axis=2)
    Image.fromarray(colour).save(folder / "images" / "colour.jpg", quality=95)
    outcome = run(predictor, folder, tmp_path / "out", threshold=0.47)
    assert (outcome.files, outcome.failures, len(outcome.dice)) == (9, [], 8)
    for path in sorted((folder / "images").iterdir()):
        decoded = codecs.decode(path.read_bytes(), "x")
        found = predictor.segment(codecs.as_channels(decoded.array, 1, "x"), 0.47)
        written = tmp_path / "out" / "outputs" / f"{path.stem}.png"
        assert written.read_bytes() == codecs.encode_mask(found.mask, decoded, 1)
        row = table(tmp_path / "out")[path.stem]
        assert int(row["foreground_voxels"]) == np.count_nonzero(found.mask)
        assert float(row["max_probability"]) == float(found.foreground.max())
        assert (tmp_path / "out" / "inputs" / path.name).samefile(path)
    described = json.loads((tmp_path / "out/metadata/colour.json").read_text())
    assert described["warnings"][0].endswith("colour.jpg: colour turned to grey")
    assert described["model"] == "models:/x/1"


def test_cases_that_the_model_was_trained_on_are_told_apart(predictors, folder, tmp_path):
    manifest = dataset_writer.build(
        config_of("folder", **{"data.root": str(folder)}),
        open_reader(config_of("folder", **{"data.root": str(folder)})),
        tmp_path / "dataset",
        lambda *_: None,
    )
    seen = {case.sha256: case.split for case in manifest.cases}
    alone = tmp_path / "alone"
    (alone / "images").mkdir(parents=True)
    picture = (folder / "images" / "case0.png").read_bytes()
    (alone / "images" / "case0.png").write_bytes(picture)
    by_file = {hashlib.sha256(picture).hexdigest(): "train"}
    items = find(folder, predictors["folder"].spec, config_of("folder"))
    outcome = batch.run(
        predictors["folder"], items, request_of(folder), tmp_path / "out", ORIGIN, lambda *_: None, seen
    )
    rows = table(tmp_path / "out")
    assert {name: row["split"] for name, row in rows.items()} == {case.case: case.split for case in manifest.cases}
    learnt = [case for case in manifest.cases if case.split != "test"]
    assert outcome.trained_on == len(learnt)
    told = summary.headline(outcome)
    assert told.endswith(f", the model was trained on {len(learnt)} of them")
    items = find(alone, predictors["folder"].spec, config_of("folder"))
    out = tmp_path / "without references"
    outcome = batch.run(predictors["folder"], items, request_of(alone), out, ORIGIN, lambda *_: None, by_file)
    assert (outcome.trained_on, summary.agreement(outcome)) == (1, "")


@pytest.mark.parametrize(
    ("dice", "seen", "told"),
    [
        ([], [], ""),
        ([float("nan")], [True], ""),
        ([0.5, 0.7], [False, False], "Dice 0.600 over 2 cases"),
        ([0.9, 0.5, 0.7], [True, False, False], "Dice 0.700 over 3 cases, 1 of them trained on; 0.600 over the others"),
        ([0.9, float("nan")], [True, False], "Dice 0.900 over 1 cases, 1 of them trained on; there is no other"),
    ],
)
def test_the_dice_of_cases_that_were_trained_on_is_told_apart(dice, seen, told):
    outcome = summary.Outcome(files=len(dice), dice=dice, seen=seen, patients=["p"] * len(dice))
    assert summary.agreement(outcome) == told


def test_a_volume_keeps_its_affine_shape_and_orientation(predictors, nifti, tmp_path):
    predictor = predictors["nifti"]
    outcome = run(predictor, nifti, tmp_path / "out")
    assert (outcome.files, outcome.failures) == (4, [])
    stem = "sub-case2/ses-0001/dwi/sub-case2_ses-0001"
    parts = [codecs.decode((nifti / f"{stem}_{end}.nii.gz").read_bytes(), "x") for end in ("dwi", "adc")]
    found = predictor.segment(np.concatenate([part.array for part in parts]), 0.5)
    written = tmp_path / "out" / "outputs" / f"{stem}.nii.gz"
    assert written.read_bytes() == codecs.encode_mask(found.mask, parts[0], 1)
    mask, image = nib.load(written), nib.load(nifti / f"{stem}_dwi.nii.gz")
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, image.affine)
    assert (tmp_path / "out" / "inputs" / f"{stem}_adc.nii.gz").is_file()
    row = table(tmp_path / "out")[stem]
    assert float(row["foreground_ml"]) == pytest.approx(np.count_nonzero(found.mask) * 0.02)
    reference = np.asarray(nib.load(nifti / "derivatives/sub-case2/ses-0001/sub-case2_ses-0001_msk.nii.gz").dataobj)
    values = np.asarray(mask.dataobj)
    dice = 2 * np.sum(values * reference) / (values.sum() + reference.sum())
    assert float(row["dice"]) == pytest.approx(dice)


def test_parameters_reach_the_masks(predictors, folder, tmp_path):
    predictor, path = predictors["folder"], folder / "images" / "case1.png"
    decoded = codecs.decode(path.read_bytes(), "x")
    found = predictor.segment(decoded.array, 0.5, tta=True)
    area = int(np.count_nonzero(found.mask)) + 1
    run(predictor, folder, tmp_path / "tta", tta=True, comparisons=False)
    run(predictor, folder, tmp_path / "none", tta=True, min_area=area, comparisons=False)
    written = (tmp_path / "tta" / "outputs" / "case1.png").read_bytes()
    assert written == codecs.encode_mask(found.mask, decoded, 1)
    assert float(table(tmp_path / "tta")["case1"]["uncertainty"]) > 0
    assert table(tmp_path / "none")["case1"]["foreground_voxels"] == "0"
    assert not (tmp_path / "tta" / "comparisons").exists()


def damage(folder):
    """Cases that can't be segmented, with their reasons."""
    images, masks = folder / "images", folder / "masks"
    (images / "case1.png").write_bytes((images / "case1.png").read_bytes()[:200])
    (images / "case2.png").write_bytes(b"")
    Image.fromarray(np.full((40, 36), np.nan, dtype=np.float32)).save(images / "case3.tif")
    (images / "case3.png").unlink()
    Image.new("L", (9, 9)).save(masks / "case4.png")
    (images / "case5.png").unlink()
    (images / "case5.png").symlink_to("nowhere.png")
    return {
        "case1": "case1.png: damaged or cut short",
        "case2": "case2.png: empty file",
        "case3": "NaN or infinite voxels",
        "case4": "case4.png: 9x9 pixels, its image 40x36",
        "case5": "case5.png: No such file",
    }


def test_bad_files_are_listed_with_their_reasons_and_the_others_are_segmented(predictors, folder, tmp_path):
    bad = damage(folder)
    outcome = run(predictors["folder"], folder, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert list(rows) == [f"case{n}" for n in range(8)]
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(bad)
    for name, told in bad.items():
        assert told in rows[name]["error"]
        assert not list((tmp_path / "out").glob(f"*/{name}.*"))
    assert [name for name, _ in outcome.failures] == sorted(bad)
    assert outcome.metrics()["files_failed"] == 5


def test_the_same_again_does_nothing_and_a_changed_file_is_done_anew(predictors, folder, tmp_path):
    out = tmp_path / "out"
    run(predictors["folder"], folder, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "metadata").iterdir()}
    kept, text = everything(out), (out / "predictions.csv").read_bytes()
    assert run(predictors["folder"], folder, out).skipped == 8
    assert (out / "predictions.csv").read_bytes() == text
    assert everything(out) == kept
    (out / "outputs" / "case0.png").unlink()
    (out / "metadata" / "case1.json").unlink()
    (folder / "images" / "case2.png").unlink()
    Image.fromarray(disc(40, 36, 77)[0]).save(folder / "images" / "case2.png")
    Image.fromarray(disc(40, 36, 78)[1]).save(folder / "masks" / "case3.png")
    assert run(predictors["folder"], folder, out).skipped == 4
    redone = {path.stem for path, moment in before.items() if path.stat().st_mtime_ns != moment}
    assert redone == {"case0", "case1", "case2", "case3"}
    run(predictors["folder"], folder, tmp_path / "fresh")
    assert everything(out) == everything(tmp_path / "fresh")


def test_a_file_that_went_bad_leaves_no_earlier_result(predictors, folder, tmp_path):
    out = tmp_path / "out"
    run(predictors["folder"], folder, out)
    (folder / "images" / "case6.png").unlink()
    (folder / "images" / "case6.png").write_bytes(b"now it is something else")
    outcome = run(predictors["folder"], folder, out)
    assert (outcome.skipped, [case for case, _ in outcome.failures]) == (7, ["case6"])
    assert not list(out.glob("*/case6.*"))


def test_a_folder_of_results_belongs_to_one_request(predictors, folder, tmp_path):
    run(predictors["folder"], folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"another request \(threshold 0\.5 -> 0\.6\)"):
        run(predictors["folder"], folder, tmp_path / "out", threshold=0.6)
    with pytest.raises(InputError, match="not empty, and no results of predict"):
        run(predictors["folder"], folder, folder)
    with (
        results.holding(tmp_path / "out", request_of(folder)),
        pytest.raises(ConflictError, match="another predict is at work"),
    ):
        run(predictors["folder"], folder, tmp_path / "out")
    assert request_of(folder).key == request_of(folder).key != request_of(folder, tta=True).key


def test_a_mask_on_another_grid_or_a_channel_too_few_is_told(predictors, nifti, tmp_path):
    stem = "sub-case0/ses-0001/sub-case0_ses-0001"
    write_volume(nifti / "derivatives" / f"{stem}_msk.nii.gz", np.zeros((36, 40, 3), dtype=np.uint8), np.eye(4))
    (nifti / "sub-case1/ses-0001/dwi/sub-case1_ses-0001_adc.nii.gz").unlink()
    shifted = np.diag([2.0, 2.0, 5.0, 1.0])
    write_volume(nifti / "sub-case2/ses-0001/dwi/sub-case2_ses-0001_adc.nii.gz", np.ones((36, 40, 3)), shifted)
    outcome = run(predictors["nifti"], nifti, tmp_path / "out")
    told = dict(outcome.failures)
    assert len(told) == 2
    assert "shape or affine disagrees" in told["sub-case0/ses-0001/dwi/sub-case0_ses-0001"]
    assert "no file sub-case1_ses-0001_adc" in told["sub-case1/ses-0001/dwi/sub-case1_ses-0001"]
    resampled = json.loads((tmp_path / "out/metadata/sub-case2/ses-0001/dwi/sub-case2_ses-0001.json").read_text())
    assert "resampled, it lies on another grid than" in resampled["warnings"][0]


def test_a_comparison_shows_agreement_in_the_reports_colours():
    volume = np.linspace(0, 1, 3 * 40 * 30, dtype=np.float32).reshape(3, 40, 30)
    mask, reference = (np.zeros((3, 40, 30), dtype=np.uint8) for _ in range(2))
    mask[1, 5:15, 5:15], reference[1, 10:20, 5:15] = 1, 1
    data = comparisons.draw(volume[None], mask, reference, "case", "found: 100 px", "Dice 0.500", False, ONE)
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert picture.shape == (comparisons.CAPTION + 40 * 8, 3 * 240 + 2 * comparisons.GAP, 3)
    left = 2 * (240 + comparisons.GAP)
    agreed, missed, false = (picture[comparisons.CAPTION + 8 * row, left + 8 * 10] for row in (12, 17, 7))
    assert (agreed.argmax(), missed.argmax(), false.argmax()) == (1, 2, 0)
    alone = comparisons.draw(volume[None], mask, None, "a name that is much too long " * 4, "found", "", True, ONE)
    assert Image.open(io.BytesIO(alone)).width == 2 * 240 + comparisons.GAP


def test_several_classes_have_their_colours_in_a_comparison_and_their_amounts_in_the_table(folder, tmp_path):
    config = config_of("folder", **{"data.classes": "wall,lumen", "data.channels": "red,green,blue"})
    spec = ModelSpec(
        model=config.model, preprocess=config.preprocess, kind="picture",
        channels=config.data.channels, classes=config.data.classes,
    )  # fmt: skip
    predictor = Predictor(spec, architectures.build(spec.model, 3, 2, seed=3))
    outcome = run(predictor, folder / "images", tmp_path / "out")
    assert outcome.failures == []
    for row in table(tmp_path / "out").values():
        parts = [int(row[f"voxels_{name}"]) for name in ("wall", "lumen")]
        assert sum(parts) == int(row["foreground_voxels"])
        assert row["mm2_wall"] == row["ml_lumen"] == ""
        described = json.loads((tmp_path / "out" / "metadata" / f"{row['case']}.json").read_text())
        assert [described["by_class"][name]["voxels"] for name in ("wall", "lumen")] == parts
    image = np.zeros((3, 1, 40, 40), np.float32)
    image[0] = 1
    image[:, :, :4] = np.arange(3)[:, None, None, None] / 2
    mask = np.zeros((1, 40, 40), np.uint8)
    mask[0, 10:20, 10:20], mask[0, 25:35, 25:35] = 1, 2
    data = comparisons.draw(image, mask, None, "case", "found: 200 px", "", False, ("wall", "lumen"))
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == "RGB"
    shown, panel = np.asarray(picture).astype(int), 320 + comparisons.GAP
    assert shown[comparisons.CAPTION + 100, 100].argmax() == 0
    for place, colour in ((15, CLASSES[0]), (30, CLASSES[1])):
        found = shown[comparisons.CAPTION + 8 * place, panel + 8 * place]
        near = [np.abs(found - 0.6 * np.array(ImageColor.getrgb(one)) - [102, 0, 0]).sum() for one in CLASSES]
        assert CLASSES[int(np.argmin(near))] == colour


def test_a_summary_has_the_interval_the_failures_and_the_warning(tmp_path):
    outcome = summary.Outcome(
        5, 1, [("b|d", "x.png: empty file")], [0.5, 0.7, float("nan")], ["p", "q", "r"], [False] * 3, 0, 1, 2.0
    )
    knobs = settings.load(None, {"evaluate.bootstrap_samples": "100"}).evaluate
    summary.summarise(outcome, tmp_path, request_of("in"), {"model": "models:/x/1"}, "cpu", knobs, 0)
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["dice"] == {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 3, "n_valid": 2}
    assert (told["files"], told["files_skipped"], told["files_per_second"]) == (5, 1, 2.0)
    assert told["failures"] == [{"case": "b|d", "error": "x.png: empty file"}]
    text = (tmp_path / "summary.md").read_text()
    assert "not for clinical use" in text
    assert "| b\\|d | x.png: empty file |" in text
    assert "0.600 [0.500, 0.700]" in text
    assert summary.headline(outcome) == (
        "4 of 5 segmented, 1 of them before, 2.0 files/s, 1 unlike its training data "
        "(see the warnings in predictions.csv)"
    )


def test_many_small_files_are_found_in_the_order_of_their_names(tmp_path):
    root = write_folder(tmp_path / "in", cases=12)
    assert [i.case for i in find(root, spec_of("folder"), config_of("folder"))] == sorted(f"case{n}" for n in range(12))


def test_a_name_that_is_not_utf_8_is_one_bad_case(predictors, tmp_path):
    root = write_folder(tmp_path / "in", cases=3) / "images"
    (root / "case1.png").rename(os.fsdecode(os.fsencode(root) + b"/bad\xff.png"))
    outcome = run(predictors["folder"], root, tmp_path / "out")
    ((case, error),) = outcome.failures
    assert case == "bad\\xff"
    assert error.endswith("bad\\xff.png: a name that is not UTF-8; rename the file")
    lines = (tmp_path / "out/predictions.csv").read_text(encoding="utf-8").splitlines()
    assert [row["status"] for row in csv.DictReader(lines)] == ["failed", "ok", "ok"]
