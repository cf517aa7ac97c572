import math

import numpy as np
import pytest
from conftest import with_knobs
from example_evidence import NASTY, by_group, nothing, summarised, table

from segpipe.config.sections import Config, PreprocessConfig
from segpipe.data.manifest import CaseRecord, Manifest
from segpipe.evaluation import card
from segpipe.metrics.catalogue import METRICS

FACTS = {
    "model.parameters": "14328209", "hardware.device": "cuda", "hardware.gpu": "H100", "hardware.processes": "2",
    "hardware.precision": "bf16", "version.python": "3.11.9", "version.torch": "2.15.0", "version.timm": "none",
    "best_epoch": "41",
}  # fmt: skip


def record(number, split, name="", spacing=(5.0, 2.0, 2.0)):
    voxels = {"foreground": 9}
    return CaseRecord(
        case=f"case{number}{name}", patient=f"p{number}", site=f"site{number % 2}{name}", split=split, shape=(9, 8, 8),
        spacing=spacing, voxels=voxels, volume_ml=1.0, sha256="0" * 64, files=("a",), start=0,
    )  # fmt: skip


def manifest(name="", **changes):
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    values = {
        "kind": "volume", "reader": "nifti", "root": "",
        "channels": ("dwi", f"extra{name}"), "classes": (f"lesion{name}",),
        "preprocess": PreprocessConfig(), "arrays": {},
        "cases": tuple(record(n, split, name) for n, split in enumerate(splits)),
    }  # fmt: skip
    return Manifest(**{**values, **changes})


def made(config=None, data=None, summary=None, subgroups=None, facts=FACTS):
    cases = table()
    groups = by_group(cases) if subgroups is None else subgroups
    return card.card(config or Config(), data or manifest(), summary or summarised(cases), groups, facts)


def test_a_card_has_every_section_and_the_runs_own_figures():
    text, dice = made(), summarised(table()).metrics["dice"]
    assert text.startswith("# segpipe\n")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Model", "Data", "Training", "Evaluation", "Limits", "Requirements"]
    for told in (
        "segmentation, slice by slice, of lesion",
        "dwi (diffusion-weighted MRI), extra; 96 x 96 px",
        "unet, encoder resnet18 (depth 5, random weights, batch norm); 14,328,209 parameters",
        "not a medical device",
        "Authors and copyright: not given",
        "volumes, format nifti; spacing 5 x 2 x 2 mm (depth, height, width)",
        "clipped at its percentiles 0.5 and 99.5, scaled to mean 0 and standard deviation 1; each slice resized",
        "| train | 6 | 6 | site0, site1 |",
        "| test | 4 | 4 | site0, site1 |",
        "Loss dice_bce; adamw, learning rate 0.001, cosine",
        "50 epochs, best epoch 41; seed 0; augmentation on; averaged weights no",
        "cuda (H100), 2 process(es), precision bf16",
        "Threshold 0.42, chosen on the validation set",
        "Convention: Per case",
        f"| Dice | {dice.mean:.3f} | {dice.low:.3f} to {dice.high:.3f} | 7/8 |",
        "| HD95, mm |",
        "| site: site0 | 4 |",
        "python 3.11.9, torch 2.15.0",
    ):
        assert told in text, told
    assert "timm" not in text


def test_a_card_says_what_the_user_knows():
    knobs = {
        "intended_use": "Research on [stroke](https://example.org)\nonly.", "limits": "Adults only.",
        "authors": "A. B.", "data_source": "A registry.", "licence": "CC BY 4.0", "references": "A. B. 2026.",
    }  # fmt: skip
    text = made(with_knobs(Config(), card=knobs, preprocess={"clahe": True, "fit": "crop", "normalise": "minmax"}))
    assert "Intended use: Research on [stroke](https://example.org) only." in text
    assert "- Adults only.\n" in text
    for told in (
        "Authors and copyright: A. B.",
        "Source: A registry.",
        "Licence: CC BY 4.0",
        "References: A. B. 2026.",
    ):
        assert told in text


def test_limits_are_what_the_data_and_the_results_show():
    text = made()
    for told in (
        "few test patients: 4",
        "missed 1 of 4 reference lesions",
        "missed everything in 1 test case(s)",
        "false alarm in 1 empty test case(s)",
    ):
        assert f"- {told}" in text
    assert "one site only" not in text
    assert "no spacing" not in text
    flat = manifest(cases=tuple(record(2 * n, "test", spacing=None) for n in range(3)))
    text = made(data=flat)
    assert "- one site only (site0): nothing is known about any other" in text
    assert "- no spacing: distances are in pixels" in text
    assert "| HD95, pixels |" in text


def test_a_model_without_known_limits_says_so():
    cases, summary = table(), summarised(table())
    fine = {"patients": 50, "outcomes": {"found": 60}, "lesions": {"lesions": 4, "found": 4}}
    assert "## Limits\n- none known\n" in made(summary=summary.model_copy(update=fine), subgroups=by_group(cases)[:0])


def test_a_subgroup_is_clearly_worse_where_its_interval_lies_below_the_mean():
    groups = by_group(table())
    row = (groups["metric"] == "dice") & (groups["group"] == "site1")
    dice = summarised(table()).metrics["dice"].mean
    assert "clearly worse" not in made(subgroups=groups)
    groups.loc[row, ["mean", "low", "high"]] = [0.2, 0.1, dice - 0.01]
    assert f"- clearly worse for site site1: Dice 0.200, {dice:.3f} over all" in made(subgroups=groups)
    groups.loc[row, "patients"] = 2
    assert "clearly worse" not in made(subgroups=groups)


def test_a_card_of_nothing_is_still_a_card():
    empty = nothing()
    text = made(summary=empty.summary, subgroups=empty.subgroups, facts={})
    assert "No metric has a value." in text
    assert "no test case has a Dice" in text
    assert "unknown parameters" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize("length", [0, 40, 400, 5000])
def test_a_card_fits_whatever_things_are_called(length):
    long = "x" * length
    cases = table(60)
    cases["site"] = [f"site{n}{long}" for n in range(60)]
    knobs = dict.fromkeys(("intended_use", "limits", "data_source", "authors", "licence", "references"), long)
    channels = tuple(f"channel{n}{long}" for n in range(30))
    data = manifest(long, channels=channels, classes=tuple(f"class{n}{long}" for n in range(30)))
    facts = {**FACTS, **{f"version.{n}{long}": long or "1" for n in range(3)}}
    text = made(with_knobs(Config(), card=knobs), data, summarised(cases), by_group(cases), facts)
    assert 1500 < len(text) <= card.LARGEST
    assert "| Dice |" in text
    assert "The tables are cut" in text
    assert "## Requirements" in text


def test_a_full_card_of_a_usual_model_is_not_cut():
    text = made()
    assert "The tables are cut" not in text
    assert all(f"| {metric.title}" in text for metric in METRICS.values())


def test_names_from_data_mean_nothing_to_markdown():
    cases = table().assign(site=NASTY)
    text = made(data=manifest(NASTY), summary=summarised(cases), subgroups=by_group(cases))
    assert "<b>" not in text.replace("\\<b\\>", "")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def test_the_range_of_the_spacings_is_told():
    cases = tuple(record(n, "test", spacing=(5.0, 1.0 + n / 2, 1.0)) for n in range(2))
    assert "spacing 5 x 1 to 1.5 x 1 mm" in made(data=manifest(cases=cases))


def test_figures_without_a_value_are_dashes():
    assert card._number(math.nan) == card._number(None) == "\N{EN DASH}"
    assert card._number(np.float64(0.12345)) == "0.123"
