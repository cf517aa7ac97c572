"""Artifact locations of a store in a file: which were moved with it, which are meant, and what corrects them."""

import shutil
import sqlite3

import pytest
from mlflow import MlflowClient

from segpipe.errors import InputError
from segpipe.tracking import locations, run_tags


class Place:
    """A store in a folder of its own, with a run in an experiment beside it and one of another experiment elsewhere."""

    def __init__(self, home):
        self.home = home
        client = self.client()
        beside = client.create_experiment("beside", (home / "mlruns" / "abc").as_uri())
        elsewhere = client.create_experiment("elsewhere", (home.parent / "disk" / "mlruns" / "xyz").as_uri())
        plain = client.create_experiment("plain", str(home / "mlruns" / "plain_%"))
        self.run, self.other, self.third = (self.finished(client, name) for name in (beside, elsewhere, plain))
        self.model = client.create_logged_model(beside, "model").model_id
        client.finalize_logged_model(self.model, "READY")
        (home / "mlruns" / "abc" / "models" / self.model / "artifacts").mkdir(parents=True)
        client.create_registered_model("name")
        client.create_model_version("name", client.get_run(self.run).info.artifact_uri)

    @staticmethod
    def finished(client, experiment):
        run_id = client.create_run(experiment, tags={run_tags.KEY: "key"}).info.run_id
        client.log_text(run_id, "text", "a file.txt")
        client.set_terminated(run_id)
        return run_id

    @property
    def database(self):
        return self.home / "mlflow.db"

    def client(self):
        return MlflowClient(f"sqlite:///{self.database}")

    def move(self, name):
        """The folder under another name, as the store does not know it."""
        self.home = self.home.rename(self.home.parent / name)
        return self

    def check(self):
        with sqlite3.connect(self.database) as database:
            return locations.check(self.database, [uri for (uri,) in database.execute(EXPERIMENTS)])

    def correct(self):
        with pytest.raises(locations.MovedError) as moved:
            self.check()
        return locations.correct(moved.value)


EXPERIMENTS = "SELECT artifact_location FROM experiments"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "old place").mkdir()
    return Place(tmp_path / "old place")


def content(path):
    with sqlite3.connect(path) as database:
        return list(database.iterdump())


def test_a_store_that_was_not_moved_is_left_alone(place):
    place.check()


def test_a_moved_store_names_both_places_and_the_command_in_a_line(place):
    old = place.home
    place.move("new place")
    with pytest.raises(locations.MovedError) as moved:
        place.check()
    said = str(moved.value)
    for part in (str(place.database), str(old / "mlruns"), str(place.home / "mlruns"), "python -m steps.moved"):
        assert part in said
    assert "\n" not in said
    assert not old.exists()


def test_what_moved_is_found_again_and_what_is_elsewhere_stays_there(place):
    before, old = content(place.database), place.home
    said = place.move("new % place").correct()
    client, here = place.client(), place.home / "mlruns"
    assert client.get_run(place.run).info.artifact_uri == f"{(here / 'abc').as_uri()}/{place.run}/artifacts"
    assert client.get_run(place.third).info.artifact_uri == f"{here / 'plain_%'}/{place.third}/artifacts"
    assert "/disk/mlruns/xyz/" in client.get_run(place.other).info.artifact_uri
    assert [item.path for run in (place.run, place.other) for item in client.list_artifacts(run)] == ["a file.txt"] * 2
    assert client.get_logged_model(place.model).artifact_location.startswith((here / "abc" / "models").as_uri())
    assert client.get_model_version_download_uri("name", "1") == client.get_run(place.run).info.artifact_uri
    assert client.get_model_version("name", "1").source == client.get_run(place.run).info.artifact_uri
    assert "(experiments 2, runs 2, logged models 1, model versions 1)" in said
    (saved,) = place.home.glob("mlflow.db.*.bak")
    assert str(saved) in said
    assert content(saved) == before
    place.check()
    assert not old.exists()


def test_what_is_not_there_is_named_and_nothing_is_changed(place):
    old = place.home
    place.move("new place")
    lost = place.home / "mlruns" / "abc" / place.run / "artifacts"
    later = Place.finished(place.client(), "1")  # as versions up to 0.5.0 did: the old place is made again
    before = content(place.database)
    with pytest.raises(InputError, match="1 of 4 finished runs and models have no files") as caught:
        place.correct()
    assert later in str(caught.value)
    assert str(old / "mlruns") in str(caught.value)
    assert content(place.database) == before
    assert list(place.home.glob("*.bak")) == []
    shutil.move(old / "mlruns" / "abc" / later, place.home / "mlruns" / "abc" / later)
    shutil.rmtree(lost)
    with pytest.raises(InputError, match=place.run):
        place.correct()
    place.client().delete_run(place.run)
    place.correct()
    assert [item.path for item in place.client().list_artifacts(later)] == ["a file.txt"]


def test_a_copy_whose_original_is_there_goes_on_with_that(place, tmp_path):
    shutil.copytree(place.home, tmp_path / "copy")
    place.home = tmp_path / "copy"
    place.check()


def test_a_new_store_at_the_old_place_does_not_hide_that_this_one_was_moved(place):
    old = place.home
    place.move("new place")
    (old / "mlruns" / "abc" / "another run").mkdir(parents=True)
    place.correct()
    place.check()


def test_a_store_that_is_locked_or_cannot_be_written_is_left_as_it_was(place, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **how: connect(path, **{**how, "timeout": 0}))
    place.move("new place")
    with connect(place.database, isolation_level=None) as database:
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="database is locked; nothing was changed"):
            place.correct()
    assert list(place.home.glob("*.bak")) == []
