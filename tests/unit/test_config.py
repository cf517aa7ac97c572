import pytest
import yaml

from segpipe.config import settings
from segpipe.errors import InputError
from segpipe.files.project import PROJECT


def test_order_is_defaults_then_recipe_then_command_line(tmp_path):
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("train: {epochs: 3, lr: 0.5}\n", encoding="utf-8")
    config = settings.load(recipe, {"train.lr": "0.25"})
    assert (config.train.epochs, config.train.lr) == (3, 0.25)
    assert config.train.batch_size == settings.Config().train.batch_size


def test_every_knob_is_described_and_settable_as_text():
    for name, knob in settings.knobs().items():
        assert knob.description, name
        values = {} if not knob.default else {name: knob.default}
        assert settings.load(None, values) == settings.load(None, {}), name


def test_dump_reads_back_equal(tmp_path):
    config = settings.load(None, {"data.channels": "dwi", "preprocess.size": "64", "augment.enabled": "false"})
    assert config.preprocess.size == (64, 64)
    assert config.augment.enabled is False
    path = tmp_path / "resolved.yaml"
    path.write_text(settings.dump(config), encoding="utf-8")
    assert settings.load(path, {}) == config


@pytest.mark.parametrize(
    ("knob", "value", "told"),
    [
        ("train.epoch", "3", ["unknown knob 'train.epoch'", "train.epochs"]),
        ("trian.epochs", "3", ["trian.epochs", "train.epochs"]),
        ("train.epochs", "0", ["train.epochs=0", ">=1"]),
        ("train.epochs", "many", ["train.epochs=many", "int"]),
        ("model.arch", "unett", ["model.arch=unett", "unet|unetplusplus"]),
        ("train.warmup_epochs", "inf", ["train.warmup_epochs=inf", "finite"]),
        ("train.device", "tpu", ["train.device=tpu", "auto|cpu|cuda"]),
        ("augment.enabled", "perhaps", ["augment.enabled=perhaps", "true|false"]),
        ("split.test", "0.9", ["split.val + split.test"]),
        ("data.channels", "red,red", ["data.channels"]),
        ("preprocess.size", "8", ["preprocess.size"]),
        ("evaluate.threshold", "1.5", ["evaluate.threshold=1.5", "<1"]),
    ],
)
def test_a_wrong_knob_is_named_with_what_is_allowed(knob, value, told):
    with pytest.raises(InputError) as caught:
        settings.load(None, {knob: value})
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part in message


@pytest.mark.parametrize("name", ["", "exp", "Lauf \"1\"; $HOME für '日本'", ".hidden", "v1.0 (x) [2]", "ü" * 100])
def test_a_runs_name_may_be_any_that_a_folder_can_have(name):
    assert settings.load(None, {"tracking.run_name": name}).tracking.run_name == name


@pytest.mark.parametrize(
    "name", ["../..", "a/b", "a\\b", ".", "..", "...", " ", " . ", "a\nb", "a\0", "\x1b[31m", "\udce9", "ü" * 101]
)
def test_what_is_no_name_is_refused_in_a_short_line(name):
    with pytest.raises(InputError) as caught:
        settings.load(None, {"tracking.run_name": name})
    message = str(caught.value)
    assert message.startswith("tracking.run_name=")
    assert "expected a name, of at most 200 bytes" in message
    assert message.isprintable()
    assert len(message) < 300


def test_the_config_of_a_run_of_any_name_is_read_back(tmp_path):
    recipe = tmp_path / "resolved.yaml"
    recipe.write_text("seed: 3\ntracking: {run_name: study/1}\n", encoding="utf-8")
    assert settings.recorded(recipe, {"train.lr": "0.5"}) == settings.load(None, {"seed": "3", "train.lr": "0.5"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {epoks: 3}", "unknown knob 'train.epoks'"),
        ("trian: {epochs: 3}", "unknown knob 'trian'"),
        ("train: [", "not valid YAML"),
        ("- 1", "expected sections"),
        ("train: 3", "train"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, text, told):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told) as caught:
        settings.load(recipe, {})
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        settings.load(tmp_path / "nowhere.yaml", {})


def test_data_root_comes_from_the_environment_unless_given(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGPIPE_DATA", str(tmp_path))
    real = {"data.format": "folder"}
    assert settings.load(None, real).data.root == str(tmp_path)
    assert settings.load(None, {**real, "data.root": str(tmp_path / "x")}).data.root == str(tmp_path / "x")
    assert settings.load(None, {}).data.root == ""


@pytest.mark.parametrize("recipe", sorted(p.name for p in (PROJECT / "configs").glob("*.yaml")))
def test_recipes_hold_only_what_differs_from_the_defaults(recipe):
    path = PROJECT / "configs" / recipe
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    default, config = settings.Config(), settings.load(path, {})
    for section, knobs in values.items():
        for knob in knobs if isinstance(knobs, dict) else ():
            assert getattr(getattr(config, section), knob) != getattr(getattr(default, section), knob), knob
    assert path.read_text(encoding="utf-8").startswith("#")
