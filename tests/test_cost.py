"""Costs: counted by hand, against torch's own counter, and against the published and derived numbers of RigL."""

import csv
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.ops import DeformConv2d

from prunelab import cost, paths
from prunelab.methods.static import active_counts
from prunelab.models import MODELS, build_model
from prunelab.shadows import sides

IMAGE = {"in_channels": 3, "image_size": 32}


def test_table_of_a_small_network_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 16, 5))
    conv, linear = cost.layer_table(model, in_channels=3, image_size=8, n_active={"2": 10})
    # 4 x 4 positions, each using all 4 * 3 * 9 = 108 weights; the linear layer uses its 10 active ones once.
    assert conv == {
        "name": "0", "shape": [4, 3, 3, 3], "n_weights": 108, "n_active": 108, "masked": False, "macs": 16 * 108
    }  # fmt: skip
    assert (linear["n_weights"], linear["n_active"], linear["masked"], linear["macs"]) == (320, 10, True, 10)


def test_grouped_convolution_counts_only_its_own_inputs():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    (layer,) = cost.layer_table(model, in_channels=4, image_size=5)
    assert layer["macs"] == 25 * 4 * 9


def flops(model, image_size):
    """What torch's own counter makes of a model, for one image."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, *sides(image_size), device=next(model.parameters()).device))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_dense_macs_are_half_of_torchs_flops(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=10)
    assert cost.total(cost.layer_table(model, **IMAGE), "macs") * 2 == flops(model, 32)


PUBLISHED = [
    *("alexnet", "resnet18", "resnext50_32x4d", "densenet121", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large"),
    *("mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny"),
    *("swin_t", "swin_v2_t", "maxvit_t", "vit_b_16", "googlenet", "inception_v3", "fcn_resnet50", "deeplabv3_resnet50"),
    "lraspp_mobilenet_v3_large",
]


OPTIONS = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "fcn_resnet50": {"weights_backbone": None, "aux_loss": True},
    "deeplabv3_resnet50": {"weights_backbone": None, "aux_loss": True},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_of_torchvisions_networks_are_torchs_and_the_published_ones(name):
    weights = next(iter(models.get_model_weights(name)))
    model = models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    image_size = getattr(weights.transforms(), "crop_size", [520])[0]
    with warnings.catch_warnings(action="error"):
        macs = cost.total(cost.layer_table(model, in_channels=3, image_size=image_size), "macs")
    assert 2 * macs == flops(model.to("meta"), image_size)
    assert round(macs / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize("image_size", [32, 224])
def test_macs_of_torchvisions_transformer_are_the_published_ones(image_size):
    with torch.device("meta"):
        model = models.vit_b_16(image_size=image_size)
    layers = cost.layer_table(model, in_channels=3, image_size=image_size)
    n_tokens = (image_size // 16) ** 2 + 1
    by_weights = 12 * n_tokens * 12 * 768**2 + (n_tokens - 1) * 768 * 3 * 16**2 + 768 * 1000
    by_tokens = 12 * 2 * n_tokens**2 * 768
    assert cost.total(layers, "macs") == by_weights + by_tokens == flops(model, image_size) / 2
    if image_size == 224:
        assert round(by_weights / 1e9, 2) == 16.85 and round((by_weights + by_tokens) / 1e9, 2) == 17.56
    assert cost.total(layers, "n_weights") == 12 * 12 * 768**2 + 768 * 3 * 16**2 + 768 * 1000
    assert len(layers) == 1 + 12 * 4 + 1


class Tokens(nn.Module):
    """A patch embedding of 16 tokens and a classifier, with what is to be counted between them."""

    def __init__(self, between):
        super().__init__()
        self.patch, self.between, self.head = nn.Conv2d(3, 16, 4, stride=4), between, nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.between(self.patch(x).flatten(2).mT).mean(1))


class TorchAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attend = nn.MultiheadAttention(16, batch_first=True, **options)

    def forward(self, x):
        size = self.attend.kdim
        return self.attend(x, x[..., :size], x[..., :size], need_weights=False)[0]


class OwnAttention(nn.Module):
    """Attention out of two linear layers, fused by torch or step by step."""

    def __init__(self, fused):
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(16, 48), nn.Linear(16, 16), fused

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT / 8**0.5).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2))


PRODUCTS = 2 * 16 * 16 * 16  # each of 16 tokens with each, queries by keys and weights by values, of 16 numbers


def between(module):
    """The table of a module of tokens, without the patch embedding and the classifier."""
    first, *rows, last = cost.layer_table(Tokens(module), in_channels=3, image_size=16)
    assert (first["name"], first["macs"], last["macs"]) == ("patch", 16 * 768, 160)
    rows = [
        [row["name"].removeprefix("between."), *(row[key] for key in ("shape", "n_weights", "macs"))] for row in rows
    ]
    assert sum(row[3] for row in rows) == flops(Tokens(module).to("meta"), 16) / 2 - 16 * 768 - 160
    return rows


@pytest.mark.parametrize("num_heads", [1, 2, 8])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_attention_of_torch_has_a_row_for_its_input_projection_and_products(num_heads, is_frozen):
    module = TorchAttention(num_heads=num_heads).requires_grad_(not is_frozen)
    assert between(module) == [
        ["attend", [48, 16], 768, 16 * 768 + PRODUCTS],
        ["attend.out_proj", [16, 16], 256, 16 * 256],
    ]


def test_attention_with_three_input_projections_has_all_their_weights_and_no_shape():
    attend, output = between(TorchAttention(num_heads=2, kdim=8, vdim=8))
    assert attend == ["attend", [], 16 * 16 + 2 * 16 * 8, 16 * (16 * 16 + 2 * 16 * 8) + PRODUCTS]
    assert output == ["attend.out_proj", [16, 16], 256, 16 * 256]


@pytest.mark.parametrize("fused", [False, True])
def test_attention_of_ones_own_has_a_row_without_weights_for_its_products(fused):
    assert between(OwnAttention(fused)) == [
        ["between", [], 0, PRODUCTS],
        ["qkv", [48, 16], 768, 16 * 768],
        ["proj", [16, 16], 256, 16 * 256],
    ]


def test_only_what_a_module_multiplies_itself_is_its_weight():
    class Pool(nn.Module):
        """A learnt query of which a layer makes another, and a learnt matrix beside a learnt vector."""

        def __init__(self):
            super().__init__()
            self.query, self.layer = nn.Parameter(torch.ones(1, 1, 16)), nn.Linear(16, 16)
            self.matrix, self.shift = nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(1, 16, 16))

        def forward(self, x):
            return functional.scaled_dot_product_attention(self.layer(self.query), x, x + self.shift) @ self.matrix

    assert between(Pool()) == [
        ["between", [16, 16], 256, PRODUCTS // 16 + 256],
        ["layer", [16, 16], 256, 256],
    ]


CONVOLUTIONS = {
    # kernel and channels of each position of the output, and how many positions; of a transposed one, of the input
    "two dimensions": (nn.Conv2d(16, 8, (3, 1), dilation=2), 3 * 16 * 8 * 4 * 8),
    "groups": (nn.Conv2d(16, 8, 3, groups=4, padding=1), 9 * 4 * 8 * 8 * 8),
    "each channel by itself": (nn.Conv2d(16, 16, 3, stride=2, groups=16), 9 * 16 * 3 * 3),
    "transposed": (nn.ConvTranspose2d(16, 4, 2, stride=2), 4 * 16 * 4 * 8 * 8),
    "transposed, groups": (nn.ConvTranspose2d(16, 4, 3, groups=2), 9 * 8 * 4 * 8 * 8),
    "one dimension": (nn.Sequential(nn.Flatten(2), nn.Conv1d(16, 4, 5, stride=3)), 5 * 16 * 4 * 20),
    "three dimensions": (nn.Sequential(nn.Unflatten(1, (2, 8)), nn.Conv3d(2, 3, (3, 2, 1))), 6 * 2 * 3 * 6 * 7 * 8),
    "of one's own": (nn.Sequential(nn.Unfold(3, padding=1), nn.Conv1d(144, 2, 1)), 9 * 16 * 2 * 64),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_kind_by_hand(name):
    module, macs = CONVOLUTIONS[name]
    model = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), module)
    first, layer = cost.layer_table(model, in_channels=3, image_size=32)
    assert (first["macs"], layer["macs"]) == (48 * 16 * 64, macs)
    assert layer["n_weights"] == sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)
    assert 2 * (first["macs"] + macs) == flops(model, 32)


def test_oblong_images_cost_their_own_positions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 2, 2, 2), nn.AdaptiveAvgPool2d((2, 3)))
    layers = cost.layer_table(model, in_channels=3, image_size=(6, 10))
    assert [layer["macs"] for layer in layers] == [108 * 60, 32 * 60]
    assert 2 * cost.total(layers, "macs") == flops(model, (6, 10))


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        fine = self.down(x).relu()
        return self.head(torch.cat([self.up(self.middle(fine).relu()), fine], dim=1))


def test_macs_of_a_u_net_by_hand():
    layers = cost.layer_table(Unet(), in_channels=3, image_size=8)
    by_name = {"down": 216 * 64, "middle": 1152 * 16, "up": 512 * 16, "head": 32 * 64}
    assert {layer["name"]: layer["macs"] for layer in layers} == by_name
    assert 2 * sum(by_name.values()) == flops(Unet(), 8)


class Own(nn.Module):
    """Tokens that a function makes something of, with a parameter or modules of its own."""

    def __init__(self, function, own=()):
        super().__init__()
        self.function = function
        if isinstance(own, nn.Module):
            self.own = own
        else:
            self.own = nn.Parameter(torch.ones(own))

    def forward(self, x):
        return self.function(x, self.own)


COUNTED = {  # of 16 tokens of 16 numbers
    "a product": (Own(lambda x, own: x @ own, (16, 16)), [["between", [16, 16], 256, 16 * 256]]),
    "a sum over an index": (
        Own(lambda x, own: torch.einsum("nld,hde->nhle", x, own).sum(1), (2, 16, 16)),
        [["between", [2, 16, 16], 512, 16 * 512]],
    ),
    "a recurrent network": (
        Own(lambda x, own: own(x)[0], nn.LSTM(16, 16, batch_first=True)),
        [["own", [], 2048, 16 * 2048]],
    ),
    "one cell of it": (
        Own(lambda x, own: own(x[0]).unsqueeze(0), nn.GRUCell(16, 16)),
        [["own", [], 1536, 16 * 1536]],
    ),
    "a layer of a transformer": (
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        [
            ["self_attn", [48, 16], 768, 16 * 768 + PRODUCTS],
            ["self_attn.out_proj", [16, 16], 256, 16 * 256],
            ["linear1", [32, 16], 512, 16 * 512],
            ["linear2", [16, 32], 512, 16 * 512],
        ],
    ),
    "no product": (Own(lambda x, own: torch.cat([x * own, x + own, own + 0 * x], 1), (16, 16)), []),
    "an embedding": (Own(lambda x, own: x + own(x[0, :, 0].long()), nn.Embedding(2, 16)), []),
    "a table of positions": (Own(lambda x, own: x + own[x[0, :, 0].long()], (9, 16)), []),
    "normalisation": (nn.Sequential(nn.LayerNorm(16), nn.GroupNorm(2, 16), nn.BatchNorm1d(16), nn.PReLU(16)), []),
}


@pytest.mark.parametrize("name", COUNTED)
def test_products_of_ones_own_are_counted_and_what_is_no_product_costs_nothing(name):
    module, rows = COUNTED[name]
    with warnings.catch_warnings(action="error"):
        assert between(module) == rows


def deformed(x, own):
    return own(x.mT.unflatten(2, (4, 4)), x.new_zeros(1, 2, 4, 4)).flatten(2).mT


@pytest.mark.parametrize(
    "module, message",
    [
        (Own(lambda x, own: own(x, x), nn.Bilinear(16, 16, 16)), "'_trilinear' makes of between.own.weight"),
        (Own(lambda x, own: x * (x @ own).unsqueeze(2), 16), "'mv' makes of between.own"),
        (Own(deformed, DeformConv2d(16, 16, 1, bias=False)), "'deform_conv2d' makes of between.own.weight"),
    ],
)
def test_weights_of_which_it_is_not_known_what_they_cost_are_named(module, message):
    with pytest.warns(UserWarning, match=f"Tokens may cost more MACs than are counted: without what {message}$"):
        cost.layer_table(Tokens(module), in_channels=3, image_size=16)


class Calls(nn.Module):
    """A layer that runs three times, one that never does, and two that share a weight."""

    def __init__(self):
        super().__init__()
        self.step, self.idle, self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.second.weight = self.first.weight

    def forward(self, x):
        for layer in (self.step, self.first, self.step, self.second, self.step):
            x = layer(x).relu()
        return x.mean((2, 3))


@pytest.mark.parametrize("is_inference", [False, True])
def test_repeated_idle_and_sharing_layers_by_hand(is_inference):
    with torch.inference_mode(is_inference):
        layers = cost.layer_table(Calls(), in_channels=3, image_size=5)
    # 81 weights at each of 25 positions, a call.
    assert [(layer["name"], layer["n_weights"], layer["macs"]) for layer in layers] == [
        ("step", 81, 3 * 2025), ("idle", 81, 0), ("first", 81, 2 * 2025)
    ]  # fmt: skip
    masked = cost.layer_table(Calls(), in_channels=3, image_size=5, n_active={"step": 10, "idle": 4, "first": 0})
    assert [(layer["n_active"], layer["macs"]) for layer in masked] == [(10, 750), (4, 0), (0, 0)]


@pytest.mark.parametrize("name", ["second", "nowhere", ""])
def test_masked_layer_without_a_weight_of_its_own_is_named(name):
    with pytest.raises(ValueError, match=f"Calls has no layers {name} with a weight of their own.* step, idle, first$"):
        cost.layer_table(Calls(), in_channels=3, image_size=5, n_active={name: 1, "step": 1})


@pytest.mark.parametrize("n", [-1, 82, 2.5])
def test_more_active_weights_than_there_are_are_refused(n):
    with pytest.raises(ValueError, match=f"layer 'step' of 81 weights cannot have {n} active ones"):
        cost.layer_table(Calls(), in_channels=3, image_size=5, n_active={"step": n})


@pytest.mark.parametrize("image_size", [0, -8, 8.5, "8", None, (8,), (8, 8, 3), (8, 0), {8, 9}])
def test_impossible_sizes_of_images_are_refused(image_size):
    with pytest.raises(
        ValueError, match=r"image_size must be a number of pixels or \(height, width\), all above 0; got"
    ):
        cost.layer_table(Calls(), in_channels=3, image_size=image_size)


def test_sizes_of_images_may_be_of_any_kind_of_whole_number():
    tables = [cost.layer_table(Calls(), in_channels=3, image_size=size) for size in (5, np.int64(5), [5, np.int8(5)])]
    assert tables[0] == tables[1] == tables[2]


def test_weights_that_are_shared_are_counted_once():
    model = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 3, 3, padding=1))
    model[2].weight = model[1].weight
    layers = cost.layer_table(model, in_channels=3, image_size=5)
    assert [(layer["n_weights"], layer["macs"]) for layer in layers] == [(27, 675), (0, 675)]
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    model[0].weight = model[1].weight
    layers = cost.layer_table(model, in_channels=3, image_size=5)
    assert [(layer["n_weights"], layer["macs"]) for layer in layers] == [(9, 450)]  # of the one, for both


def test_a_parametrized_layer_is_counted_as_any_other():
    def table(parametrize):
        model = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(6)))
        for layer in model:
            parametrize(layer)
        return cost.layer_table(model, in_channels=3, image_size=15)

    plain = table(lambda layer: None)
    with warnings.catch_warnings(action="error"):
        assert table(nn.utils.parametrizations.weight_norm) == plain
        assert table(nn.utils.parametrizations.spectral_norm) == plain


def test_counting_leaves_the_model_as_it_was():
    model = build_model("resnet8", num_classes=10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost.layer_table(model, **IMAGE)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def sparse_ratio(model, image_size, density, distribution):
    n_active = active_counts(model, density=density, distribution=distribution)
    image = {"in_channels": 3, "image_size": image_size}
    sparse = cost.total(cost.layer_table(model, n_active=n_active, **image), "macs")
    return sparse / cost.total(cost.layer_table(model, **image), "macs")


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        return build_model("resnet50", num_classes=1000, image_size=224)


@pytest.mark.parametrize(
    "density, distribution, expected",
    [(0.2, "uniform", 0.223), (0.1, "uniform", 0.126), (0.2, "erk", 0.414), (0.1, "erk", 0.242)],
)
def test_resnet50_macs_at_the_papers_sparsities(resnet50, density, distribution, expected):
    assert sparse_ratio(resnet50, 224, density, distribution) == pytest.approx(expected, abs=5e-4)


def derived(**wanted):
    """Rows of the derived cost table, computed with the formulas of RigL's App. H."""
    with open(paths.PAPER / "rigl_flops_crosscheck_derived.csv") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def test_wide_resnet_has_the_derived_size():
    model = build_model("wrn22_2", num_classes=10)
    layers = cost.layer_table(model, **IMAGE)
    (n_weights,) = derived(model="WRN-22-2", metric="conv_fc_weights")
    (flops,) = derived(model="WRN-22-2", metric="test_flops_abs")
    assert cost.total(layers, "n_weights") == int(n_weights["value"])
    assert cost.total(layers, "macs") * 2 == int(flops["value"])


@pytest.mark.parametrize(
    "label, distribution", [("uniform (conv1 dense)", "uniform"), ("ERK (conv1 in the mask set)", "erk")]
)
def test_wide_resnet_ratios_agree_with_the_derived_table(label, distribution):
    model = build_model("wrn22_2", num_classes=10)
    rows = derived(model="WRN-22-2", method=label, metric="test_flops_ratio")
    assert rows
    for row in rows:
        ratio = sparse_ratio(model, 32, 1 - float(row["sparsity"]), distribution)
        assert ratio == pytest.approx(float(row["value"]), abs=1e-4)


def test_training_macs_of_each_kind_by_hand():
    # f_D = 10, f_S = 2. Dense 3 * 10 a sample; static 3 * 2; SNFS 2 * 2 + 10; RigL at an update after every 4 steps
    # (3 * 2 * 4 + 2 * 2 + 10) / 5.
    assert cost.training_macs(10, 10, n_samples=7) == 210
    assert cost.training_macs(10, 2, n_samples=7) == 42
    assert cost.training_macs(10, 2, n_samples=7, n_dense_gradient_samples=7) == 7 * 14
    assert cost.training_macs(10, 2, n_samples=5, n_dense_gradient_samples=1) / 5 == pytest.approx((24 + 4 + 10) / 5)


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
@pytest.mark.parametrize("method, share", [("RigL dT=100", 1 / 101), ("SNFS", 1.0), ("SET/Static/SNIP", 0.0)])
def test_training_ratios_of_resnet50_agree_with_the_derived_table(resnet50, density, method, share):
    sparse = sparse_ratio(resnet50, 224, density, "erk")
    (row,) = [
        row
        for row in derived(method=f"ERK (conv1 sparse) | {method}", metric="train_flops_ratio")
        if float(row["sparsity"]) == pytest.approx(1 - density)
    ]
    ratio = cost.training_macs(1.0, sparse, n_samples=1, n_dense_gradient_samples=share) / 3
    assert ratio == pytest.approx(float(row["value"]), abs=1e-3)


def test_depthwise_convolutions_cost_their_dense_share():
    model = build_model("mobilenet_v1", num_classes=10, width=0.25)
    n_active = active_counts(model, density=0.1, distribution="erk")
    layers = {layer["name"]: layer for layer in cost.layer_table(model, n_active=n_active, **IMAGE)}
    first, pointwise = layers["blocks.0.depthwise"], layers["blocks.0.pointwise"]
    assert first == {
        "name": "blocks.0.depthwise", "shape": [8, 1, 3, 3], "n_weights": 72, "n_active": 72, "masked": False,
        "macs": 72 * 32 * 32,
    }  # fmt: skip
    assert pointwise["masked"] and pointwise["macs"] == n_active["blocks.0.pointwise"] * 32 * 32
    assert len(layers) == 28 and sum(not layer["masked"] for layer in layers.values()) == 13


def test_matching_density_by_hand():
    # 16 positions for each of 108 weights, then 320 weights used once; both at the same density.
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 16, 5))
    layers = cost.layer_table(model, in_channels=3, image_size=8, n_active={"0": 5})

    def first_dense(density):
        return {"2": round(320 * density)}

    def both(density):
        return {"0": round(108 * density), "2": round(320 * density)}

    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 77) == 77 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 77.4) == 77 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 77.6) == 78 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 1) == 1 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 320) == 1.0
    assert cost.matching_density(layers, both, macs=(16 * 108 + 320) / 4) == pytest.approx(1 / 4, abs=0.01)
    for macs in (16 * 108, 16 * 108 + 321):
        with pytest.raises(ValueError, match=f"no density costs {macs:,} MACs: this network takes 1,729 to 2,048"):
            cost.matching_density(layers, first_dense, macs=macs)


def test_densities_of_attention_leave_its_products_as_they_are():
    layers = cost.layer_table(Tokens(OwnAttention(fused=True)), in_channels=3, image_size=16)
    fixed, every = 16 * 768 + PRODUCTS + 160, 16 * (768 + 256)

    def counts(density):
        return {"between.qkv": round(768 * density), "between.proj": round(256 * density)}

    assert cost.matching_density(layers, counts, macs=fixed + every // 4) == 1 / 4
    with pytest.raises(ValueError, match=f"this network takes {fixed + 16 * 2:,} to {fixed + every:,}"):
        cost.matching_density(layers, counts, macs=fixed)
    counts_over_time = [(2, counts(0.5)), (4, {"between.qkv": 0, "between.proj": 1})]
    # Dense for two of ten steps, at half for two, and then all but emptied.
    by_weights = (2 * every + 2 * every / 2 + 6 * 16) / 10
    assert cost.mean_macs(layers, counts_over_time, n_steps=10) == fixed + by_weights


def test_table_in_which_a_layer_is_empty_tells_no_other_costs():
    layers = cost.layer_table(Calls(), in_channels=3, image_size=5, n_active={"first": 0, "idle": 0})
    with pytest.raises(ValueError, match="layer 'idle' is empty in this table; give the table of the dense network"):
        cost.mean_macs(layers, [(1, {"first": 3})], n_steps=2)
    dense = cost.layer_table(Calls(), in_channels=3, image_size=5)
    assert cost.mean_macs(dense, [(0, {"first": 0, "idle": 0})], n_steps=2) == 3 * 2025


@pytest.mark.parametrize(
    "name, image_size, distribution, of",
    [
        ("resnet20", 32, "uniform", "erk"),
        ("resnet20", 32, "erk", "uniform"),
        ("resnet8", 16, "uniform", "erk"),
        ("mobilenet_v1", 16, "uniform", "erk"),
        ("lenet_300_100", 28, "erk", "uniform"),
        ("lenet_300_100", 28, "erdos_renyi", "erk"),
    ],
)
@pytest.mark.parametrize("density", [0.5, 0.1, 0.05])
def test_matching_density_costs_as_much_in_real_networks(name, image_size, distribution, of, density):
    image = {"in_channels": 3, "image_size": image_size}
    with torch.device("meta"):
        model = build_model(name, num_classes=10, image_size=image_size)

    def table(density, distribution):
        n_active = active_counts(model, density=density, distribution=distribution)
        return cost.layer_table(model, n_active=n_active, **image)

    macs = cost.total(table(density, of), "macs")

    def counts(density):
        return active_counts(model, density=density, distribution=distribution)

    matching = cost.matching_density(cost.layer_table(model, **image), counts, macs=macs)
    assert cost.total(table(matching, distribution), "macs") == pytest.approx(macs, rel=1e-3)


def test_no_density_makes_up_for_a_dense_first_layer():
    model = build_model("lenet_300_100", num_classes=10, in_channels=1, image_size=28)
    layers = cost.layer_table(model, in_channels=1, image_size=28)

    def counts(density):
        return active_counts(model, density=density, distribution="uniform")

    with pytest.raises(ValueError, match="this network takes 235,202 to 266,200"):
        cost.matching_density(layers, counts, macs=26_620)
    assert cost.matching_density(layers, counts, macs=235_202) == 2 / 31_000


@pytest.mark.parametrize("wanted, step", [(-5, 1), (1, 1), (5, 2), (6.5, 2), (6.6, 3), (12, 3), (13, 4), (99, 4)])
def test_nearest_step_is_below_or_above_and_of_two_alike_the_lower(wanted, step):
    assert cost.nearest_step(wanted, lambda k: k * k, most=4) == step  # sizes 1, 4, 9, 16


def test_nearest_step_stays_in_its_range():
    assert cost.nearest_step(0, lambda k: k, least=3, most=7) == 3
    assert cost.nearest_step(9, lambda k: k, least=3, most=7) == 7


def test_weights_that_are_made_once_for_all_images_cost_nothing_that_is_not_known(recwarn):
    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.widths = nn.Parameter(torch.randn(12, 2)), [1.0, 0.5]

        def forward(self, x):
            widths = torch.tensor(self.widths, device=self.table.device)
            return functional.conv2d(x, torch.mv(self.table, widths).view(4, 3, 1, 1))

    assert cost.total(cost.layer_table(Made(), in_channels=3, image_size=4), "macs") == 16 * 12
    assert not recwarn
