"""Selections of a data set's cases, and batches of them."""

import numpy as np
import pytest
import torch
from conftest import training_set

from segpipe.config.sections import AugmentConfig
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.errors import InputError


@pytest.fixture
def made(tmp_path):
    config, _, folder = training_set(tmp_path)
    return config.train, Dataset.open(folder)


def test_cases_are_selected_by_split_site_and_patient_in_the_order_of_the_arrays(made):
    _, dataset = made
    every = dataset.where()
    assert every.cases == dataset.manifest.cases
    train = dataset.where(split="train")
    assert list(train.cases) == dataset.manifest.of("train")
    assert [case.start for case in train.cases] == sorted(case.start for case in train.cases)
    last, first = train.cases[-1], train.cases[0]
    assert dataset.where(split="train", patient=[last.patient, first.patient]).cases == (first, last)
    assert dataset.where(split="train", patient=last.patient).cases == (last,)
    assert dataset.where(site="site").cases == every.cases
    assert dataset.where(site=("elsewhere",)).cases == ()


def test_batches_of_some_cases_are_their_slices_and_no_other(made):
    config, dataset = made
    whole = dataset.where(split="train").cases
    chosen = [whole[n] for n in (1, 4, 5)]
    selected = dataset.where(split="train", patient=[case.patient for case in chosen])
    batches = Batches(selected, config, torch.device("cpu"), training=True)
    rows = [case.start for case in chosen]
    given = list(batches.in_order())
    np.testing.assert_array_equal(torch.cat([b.images for b in given]), dataset.array("train_images")[rows])
    np.testing.assert_array_equal(torch.cat([b.labels for b in given]), dataset.array("train_masks")[rows])
    assert torch.cat([b.cases for b in given]).tolist() == [0, 1, 2]
    for batch in batches.shuffled(0, 0, AugmentConfig(enabled=False)):
        where = [batches.cases[n].start for n in batch.cases.tolist()]
        np.testing.assert_array_equal(batch.images, dataset.array("train_images")[where].astype(np.float32))
    shown, cases = batches.examples(2)
    assert cases == chosen[:2]
    np.testing.assert_array_equal(shown.labels, dataset.array("train_masks")[rows[:2]])


def test_a_selection_without_a_case_has_no_batches(made):
    config, dataset = made
    with pytest.raises(InputError, match="the train split has no case"):
        Batches(dataset.where(split="train", site="elsewhere"), config, torch.device("cpu"), training=True)
