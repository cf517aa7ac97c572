import dataclasses
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from example_evidence import NASTY, by_group, evidence, nothing, of_classes, summarised, table, volume
from PIL import Image

from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.evaluation.report import embedding, page, tables
from segpipe.metrics.catalogue import METRICS
from segpipe.plots.colours import class_colours

SECTIONS = (
    *("result", "decision", "cases", "look-first", "failures", "distributions", "subgroups", "lesions", "threshold"),
    *("pixels", "embedding", "training", "lineage", "convention"),
)
CHARTS = (
    *("distributions", "sweep", "roc_pr", "reliability", "confusion", "lesion_sizes", "embedding", "curves", "lineage"),
)
CSVS = ("sweep", "roc", "pr", "reliability", "embeddings", "subgroups", "failures", "labels")
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The text, the tags and the images of a page; fails where tags do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.ids, self.links, self.text = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "srcset")]
        self.images += [values] if tag == "img" else []
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(" ".join(data.split()))

    @property
    def words(self):
        return " ".join(word for word in self.text if word)


def written(given, folder):
    page.write(given, folder)
    return (folder / page.FILE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, written(evidence(), folder)


def test_the_page_has_every_section_and_leads_to_each(whole):
    page = Page(whole[1])
    sections = [name for name in page.ids if not name.startswith("case-")]
    assert tuple(sections) == SECTIONS
    assert {f"#{name}" for name in SECTIONS} <= set(page.links)
    assert all(f'class="chart {name}"' in whole[1] for name in CHARTS)


def test_the_page_stands_alone(whole):
    page = Page(whole[1])
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "default-src 'none'; img-src data:;" in whole[1]
    assert "http:" not in whole[1]
    assert "https:" not in whole[1]
    assert all(image["alt"] for image in page.images)


def test_the_headline_has_its_interval_and_its_counts(whole):
    words, dice = Page(whole[1]).words, evidence().summary.metrics["dice"]
    assert f"{dice.mean:.3f} 95 % interval {dice.low:.3f} to {dice.high:.3f}, 7 of 8 cases" in words
    assert "3 / 4 lesions found; 2 of 5 predicted are false" in words
    assert "5 found, 1 missed, 1 false alarm, 1 both empty" in words
    assert "With 4 patients they are too narrow" in words


def test_the_convention_is_printed_with_the_rule_of_every_metric(whole):
    words = Page(whole[1]).words
    assert evidence().summary.convention in words
    assert all(f"{metric.title}" in words and metric.one_empty in words for metric in METRICS.values())


def test_every_chart_is_a_file_too_and_wide_enough_to_read(whole):
    names = {path.stem for path in (whole[0] / "plots").iterdir()}
    assert names == {*CHARTS, *page.RANKS}
    for name in names:
        with Image.open(whole[0] / "plots" / f"{name}.png") as picture:
            width, height = picture.size
        assert 500 <= width <= 2000, name
        assert 200 <= height <= 2000, name


def test_the_tables_read_back(whole):
    read = {name: pd.read_csv(whole[0] / f"{name}.csv") for name in CSVS}
    given = evidence()
    pd.testing.assert_frame_equal(read["sweep"], given.sweep)
    pd.testing.assert_frame_equal(read["subgroups"], given.subgroups, check_dtype=False)
    assert len(read["roc"]) == len(read["pr"]) == given.band.shape[1] + 1
    assert read["roc"]["recall"].is_monotonic_increasing
    assert set(read["reliability"]["region"]) == {"band", "whole image"}
    assert read["reliability"]["voxels"].sum() == 4 * given.band.sum()
    assert list(read["embeddings"]["case"]) == list(given.cases["case"])
    assert read["embeddings"][["pca_1", "tsne_2"]].notna().all(axis=None)


def test_failures_are_the_missed_the_false_alarms_and_those_far_below_the_others_apart_from_the_lowest():
    cases = table(30)
    ranked = cases["dice"][3:].sort_values()
    poor = int((ranked < ranked.median() / 2).sum())
    cases.loc[ranked.index[-1], "dice"] = ranked.median() / 2.1
    found = tables.failures(cases)
    failed = ["missed", "false alarm", *["below half the median"] * (poor + 1)]
    assert list(found["why"]) == [*failed, *["lowest"] * 10]
    assert list(found["case"][:2]) == ["case0", "case1"]
    others = cases["dice"][3:].sort_values()[poor + 1 :]
    assert list(found["dice"][len(failed) :]) == list(others)[:10]


@pytest.mark.parametrize("count", [2, 11, 30])
def test_several_classes_have_a_table_a_confusion_and_their_colours(tmp_path, count):
    names = tuple(f"class <{k}>" for k in range(count))
    text = written(evidence(**of_classes(names)), tmp_path)
    section = text.partition('<section id="classes">')[2].partition("</section>")[0]
    assert section.count('<span class="key"') == count
    for name, colour in zip(names, class_colours(names), strict=True):
        assert f'<span class="key" style="background:{colour}"></span>{escape(name)}</td>' in section
    assert "0.700" in section
    assert "0 of 8" in section
    assert 'alt="confusion between classes"' in section
    assert (tmp_path / "classes.csv").is_file()
    counts = pd.read_csv(tmp_path / "labels.csv")
    assert list(counts.columns) == ["reference", "background", *names]


def test_a_single_class_has_no_section_of_classes(tmp_path):
    assert 'id="classes"' not in written(evidence(), tmp_path)


def test_lesions_are_binned_by_tertiles_and_equal_sizes_stay_together():
    lesions = evidence().lesions
    assert tables.lesion_bins(lesions) == [("0.1 to 0.4 ml", 2, 3), ("9 ml", 1, 1)]
    assert tables.lesion_bins(lesions.assign(ml=np.nan))[0] == ("3 to 20 voxels", 2, 3)
    assert tables.lesion_bins(lesions[:2]) == [("0.1 to 0.4 ml", 1, 2)]
    assert tables.lesion_bins(lesions[:0]) == []


def test_subgroups_keep_sizes_in_their_order():
    groups = pd.DataFrame({"column": "size", "group": ["large", "none", "small"], "metric": "dice", "mean": 0.5})
    assert list(tables.pivot(groups, ["dice"])["size"]) == ["small", "large", "none"]


def test_names_from_data_are_shown_and_never_obeyed(tmp_path):
    cases = table()
    cases[["case", "patient", "site"]] = NASTY
    text = written(
        evidence(
            title=NASTY,
            cases=cases,
            subgroups=by_group(cases),
            shown={"worst": volume(3)._replace(case=NASTY)},
            suspects=[page.Suspect(volume(3)._replace(case=NASTY), 0.1, 0.2)],
            lineage=[(NASTY, "<!-- decision: end --></section>")],
            facts=[(NASTY, NASTY)],
            tree=[{"id": "a", "lines": [NASTY, NASTY * 5], "parents": []}],
        ),
        tmp_path,
    )
    read = Page(text)
    assert "a<b>" not in text
    assert read.words.count(NASTY) > 20
    assert tuple(name for name in read.ids if not name.startswith("case-")) == SECTIONS
    decided = page.with_decision(text, {"promote": True, "reasons": [NASTY]}, [(NASTY, NASTY)], TREE)
    assert "a<b>" not in decided
    assert tuple(name for name in Page(decided).ids if not name.startswith("case-")) == SECTIONS


def test_a_report_of_nothing_says_so_in_sentences(tmp_path):
    text = written(nothing(), tmp_path)
    read = Page(text)
    assert not read.images
    assert not list((tmp_path / "plots").iterdir())
    for sentence in (
        "no test case has any foreground",
        "No metric has a value in any test case.",
        "No test case has a Dice",
        "No case was missed",
        "Nothing to tell the cases apart by.",
        "No test case has a lesion in its reference.",
        "The threshold was given and not swept",
        "The band has no foreground or no background",
        "There are no probabilities to calibrate.",
        "The band is empty",
        "Fewer than five cases",
        "No history of the training was recorded.",
        "No lineage was recorded.",
    ):
        assert sentence in read.words
    assert "nan" not in read.words.lower().split()


def test_pictures_without_a_spacing_are_told_in_pixels(tmp_path):
    cases = table()
    cases[["reference_ml", "predicted_ml", "volume_error_ml"]] = np.nan
    text = written(evidence(cases=cases, summary=summarised(cases), subgroups=by_group(cases)), tmp_path)
    words = Page(text).words
    assert "pixels" in words
    assert re.search(r"\d px", words)
    assert not re.search(r"\d ml", words)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_few_cases_are_enough_for_a_page(rows, tmp_path):
    cases, given = table(rows), evidence()
    few = evidence(
        cases=cases, summary=summarised(cases), subgroups=by_group(cases), embeddings=given.embeddings[:rows]
    )
    assert "Fewer than five cases" in written(few, tmp_path)
    assert pd.read_csv(tmp_path / "embeddings.csv")["pca_1"].isna().all()


def test_a_band_of_one_label_has_no_curves_but_is_calibrated(tmp_path):
    band = evidence().band.copy()
    band[1] = 0
    text = written(dataclasses.replace(nothing(), band=band, whole=band), tmp_path)
    assert "chart roc_pr" not in text
    assert "chart reliability" in text


def test_a_volume_has_a_slider_that_begins_at_its_busiest_slice(whole):
    text = whole[1]
    assert text.count('type="range"') == 2
    assert "slice 2 of 5" in text
    assert "slice 3 of 6" in text


def test_masks_to_look_at_first_are_shown_at_the_slice_where_the_model_disagrees_most(tmp_path):
    one, other = evidence().suspects
    one.shown.predicted[:] = one.shown.reference
    one.shown.predicted[2, 5:9, 5:9] = 1
    text = written(evidence(suspects=[one, other]), tmp_path)
    section = Page(text.partition('<section id="look-first">')[2].partition("</section>")[0])
    assert "case6 · score 0.012 · Dice 0.250 · slice 3 of 4 image reference prediction agreement" in section.words
    assert "case7 · score 0.500 · Dice \N{EN DASH} image" in section.words
    assert "a wrong mask, or a hard case" in section.words
    assert "look_first.csv" in section.words
    assert len(section.images) == 2 * 4
    assert len({image["src"] for image in section.images}) == 2
    assert '"#look-first"' in text


def test_a_report_without_masks_to_look_at_does_not_speak_of_them(tmp_path):
    assert "look-first" not in written(evidence(suspects=[]), tmp_path)


def test_what_is_ignored_is_told(tmp_path):
    case = volume(3)
    case.reference[:, :5] = IGNORE
    assert "grey: ignored" in written(dataclasses.replace(nothing(), shown={"worst": case}), tmp_path)


def test_equal_evidence_makes_equal_pages_and_stays_as_it_is(whole, tmp_path):
    given, kept = evidence(), evidence()
    assert written(given, tmp_path) == whole[1]
    for field in dataclasses.fields(given):
        assert repr(getattr(kept, field.name)) == repr(getattr(given, field.name)), field.name


# --- the decision

DECISION = {
    "promote": False,
    "rule": "superiority",
    "reasons": ["Dice is worse by 0.021."],
    "comparisons": [
        {"name": "dice", "value": -0.021, "required": 0.0, "passed": False, "low": -0.05, "high": 0.01, "p": 0.91,
         "n": 8, "detail": "4 patients"},
        {"name": "latency", "value": 12.5, "required": None, "passed": True, "low": None, "high": None, "p": None,
         "n": 0, "detail": ""},
    ],
    "who": "anna", "when": "2026-01-02", "version": "7",
}  # fmt: skip


TREE = [{"id": "a", "lines": ["version 7"], "parents": []}]


def test_the_decision_is_filled_in_and_can_be_filled_in_again(whole):
    assert "Not decided yet: run register." in Page(whole[1]).words
    once = page.with_decision(whole[1], DECISION, [("decision", "version 7")], TREE)
    words = Page(once).words
    assert "Not decided yet" not in words
    assert "Not promoted · version 7 · decided by: superiority By anna, 2026-01-02. Dice is worse by 0.021." in words
    assert "failed dice -0.021 0 -0.050 to 0.010 0.9100 8 4 patients" in words
    assert "decision version 7" in words
    assert "run 12ab" not in words
    assert once.count('class="chart lineage"') == whole[1].count('class="chart lineage"') == 1
    twice = page.with_decision(once, {**DECISION, "promote": True}, [], TREE)
    assert "Promoted · version 7" in Page(twice).words
    assert "No lineage was recorded." in Page(twice).words
    assert page.with_decision(twice, DECISION, [("decision", "version 7")], TREE) == once


def test_a_decision_needs_little(whole):
    assert "Promoted" in Page(page.with_decision(whole[1], {"promote": True}, [], TREE)).words
    waiting = {"promote": False, "verdict": "waiting for approval"}
    assert "Waiting for approval" in Page(page.with_decision(whole[1], waiting, [], TREE)).words


def test_a_page_without_a_place_for_the_decision_is_refused():
    with pytest.raises(InputError, match="no place for the decision"):
        page.with_decision("<html></html>", DECISION, [], TREE)


# --- embedding


def test_the_first_principal_component_is_the_direction_of_most_variance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 1)) * [[3.0, 4.0, 0.0]] + rng.normal(0, 0.01, (30, 3))
    pca, tsne = embedding.planes(values)
    wanted = (values - values.mean(axis=0)) @ [0.6, 0.8, 0.0]
    assert abs(np.corrcoef(pca[:, 0], wanted)[0, 1]) > 0.9999
    assert pca[np.abs(pca[:, 0]).argmax(), 0] > 0
    assert np.isfinite(tsne).all()


def test_clusters_stay_apart_in_both_planes():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 20)) + 10 * (np.arange(40) % 2)[:, None]
    for plane in embedding.planes(values):
        centres = [plane[k::2].mean(axis=0) for k in (0, 1)]
        distance = np.linalg.norm(plane[:, None] - centres, axis=2)
        assert (distance.argmin(axis=1) == np.arange(40) % 2).all()


@pytest.mark.parametrize("values", [np.zeros((9, 4)), np.ones((4, 4)), np.full((9, 4), np.nan), np.zeros((0, 0))])
def test_what_has_no_spread_has_no_plane(values):
    assert embedding.planes(values) is None
