"""Vision Transformers: against plain formulas; images of other sizes; what training and scores ask of them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunelab.cost import layer_table, total
from prunelab.models import build_model
from prunelab.models.layers import Widths
from prunelab.models.vit import VisionTransformer, attend, load_backbone, resize_positions
from prunelab.precision import PRECISIONS, autocast


def tiny(image_size=8, *, num_classes=3, seed=0, widths=None):
    """Two blocks of two heads on patches of 4 pixels, with values that make everything matter."""
    torch.manual_seed(seed)
    kind = {"dim": 8, "depth": 2, "n_heads": 2, "patch": 4, "in_channels": 3, "width": 1.0}
    model = VisionTransformer(**kind, num_classes=num_classes, image_size=image_size, widths=Widths(widths or {}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def normalised(x, norm):
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True, correction=0) + 1e-6
    ).sqrt() * norm.weight + norm.bias


def test_one_token_after_the_other_gives_the_same_outputs():
    model = tiny().double()
    image = torch.randn(3, 8, 8, dtype=torch.double)
    patches = [image[:, row : row + 4, column : column + 4] for row in (0, 4) for column in (0, 4)]
    projection = model.patch_embed.proj
    tokens = [
        model.cls_token[0, 0],
        *((projection.weight * patch).sum((1, 2, 3)) + projection.bias for patch in patches),
    ]
    tokens = [token + position for token, position in zip(tokens, model.pos_embed[0], strict=True)]
    for block in model.blocks:
        # Queries, keys and values are eight channels each, the first four of the first head.
        mapped = [block.attn.qkv(normalised(token, block.norm1)).view(3, 2, 4) for token in tokens]
        for i, (queries, _, _) in enumerate(mapped):
            heads = []
            for head in range(2):
                matches = torch.stack([queries[head] @ keys[head] / math.sqrt(4) for _, keys, _ in mapped]).exp()
                shares = matches / matches.sum()
                heads.append(sum(share * values[head] for share, (_, _, values) in zip(shares, mapped, strict=True)))
            tokens[i] = tokens[i] + block.attn.proj(torch.cat(heads))
        for i, token in enumerate(tokens):
            hidden = block.mlp.fc1(normalised(token, block.norm2))
            tokens[i] = token + block.mlp.fc2(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)
    expected = normalised(tokens[0], model.norm)
    torch.testing.assert_close(model.features(image[None]), expected[None])
    torch.testing.assert_close(model(image[None]), model.head(expected)[None])


def test_blocks_put_out_tokens_with_the_class_token_first():
    model, found = tiny(), {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda block, inputs, out, i=i: found.update({f"blocks.{i}": out}))
    features = model.features(torch.randn(5, 3, 8, 8))
    assert {name: out.shape for name, out in found.items()} == {f"blocks.{i}": (5, 5, 8) for i in (0, 1)}
    torch.testing.assert_close(model.norm(found["blocks.1"])[:, 0], features)
    assert features.shape == (5, 8)


@pytest.mark.parametrize(
    "name, dim, depth, n_heads, patch",
    [("vit_micro4", 96, 4, 3, 4), ("vit_s4", 384, 12, 6, 4), ("vit_s16", 384, 12, 6, 16), ("vit_b16", 768, 12, 12, 16)],
)
def test_registered_networks_have_the_sizes_agreed(name, dim, depth, n_heads, patch):
    with torch.device("meta"):
        model = build_model(name, num_classes=10, image_size=32)
    assert model.patch_embed.proj.weight.shape == (dim, 3, patch, patch)
    assert model.pos_embed.shape == (1, 1 + (32 // patch) ** 2, dim) and model.cls_token.shape == (1, 1, dim)
    assert len(model.blocks) == depth and {block.attn.n_heads for block in model.blocks} == {n_heads}
    assert {block.mlp.fc1.weight.shape for block in model.blocks} == {(4 * dim, dim)}
    assert model.norm.eps == 1e-6 and model.head.weight.shape == (10, dim)


@pytest.mark.parametrize("width, dim", [(0.1, 9), (0.25, 24), (0.5, 48), (1.02, 99), (2.0, 192), (0.001, 3)])
def test_width_scales_the_channels_of_each_head(width, dim):
    # 3 heads of 32 channels: 3.2, 8, 16, 32.64 and 64 are rounded; at least one is left.
    model = build_model("vit_micro4", num_classes=10, image_size=8, width=width)
    assert model.norm.weight.shape == (dim,) and model.blocks[0].mlp.fc1.out_features == 4 * dim
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_hidden_units_of_one_block_may_be_given():
    model = build_model("vit_micro4", num_classes=10, width=0.25, widths={"blocks.2.mlp.fc1": 7})
    assert [block.mlp.fc2.in_features for block in model.blocks] == [96, 96, 7, 96]


@pytest.mark.parametrize(
    "layer", ["blocks.0.attn.qkv", "blocks.0.mlp.fc2", "patch_embed.proj", "head", "blocks.4.mlp.fc1"]
)
def test_no_other_layer_may_be_given_a_width(layer):
    with pytest.raises(
        ValueError, match=f"vit_micro4 has no layers {layer} that can be given a width; there are blocks.0"
    ):
        build_model("vit_micro4", num_classes=10, widths={layer: 96})


@pytest.mark.parametrize("name, image_size, patch", [("vit_micro4", 18, 4), ("vit_b16", 40, 16), ("vit_s16", 8, 16)])
def test_images_that_no_whole_patches_cover_are_refused(name, image_size, patch):
    said = f"the sides of images must be multiples of the patch, {patch} pixels; got {image_size}"
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        build_model(name, num_classes=10, image_size=image_size)
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        build_model(name, num_classes=10, image_size=32)(torch.empty(1, 3, 32, image_size))


def test_initial_values_are_those_of_dino():
    torch.manual_seed(0)
    model = build_model("vit_micro4", num_classes=100, image_size=64)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            constant = 1.0 if name.endswith("weight") else 0.0
            assert name == "patch_embed.proj.bias" or (parameter == constant).all(), name
        elif name != "patch_embed.proj.weight":
            sigmas = 3.5 / math.sqrt(2 * parameter.numel())  # of an estimated standard deviation
            assert parameter.std().item() == pytest.approx(0.02, rel=sigmas), name
    bound = 1 / math.sqrt(3 * 4 * 4)  # torch's, of a convolution that reads 48 values
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)


# Images of other sizes.


@pytest.mark.parametrize("side", [1, 2, 4, 7])
def test_positions_of_the_same_size_are_the_very_same(side):
    positions = torch.randn(1, 1 + side**2, 5)
    assert resize_positions(positions, side, side) is positions


@pytest.mark.parametrize("side, rows, columns", [(4, 8, 8), (7, 3, 3), (14, 6, 6), (4, 2, 5), (1, 3, 3)])
def test_constant_positions_stay_constant_and_the_class_tokens_is_kept(side, rows, columns):
    positions = torch.full((1, 1 + side**2, 3), 2.5)
    positions[:, 0] = torch.tensor([7.0, -1.0, 0.5])
    resized = resize_positions(positions, rows, columns)
    assert resized.shape == (1, 1 + rows * columns, 3) and torch.equal(resized[:, 0], positions[:, 0])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, rows * columns, 3), 2.5))


def test_rows_of_positions_stay_rows_and_lie_where_pixels_do():
    # Of a grid in which channel 0 counts rows and channel 1 columns. Centre i of n lies at 8 (i + 1/2) / n - 1/2: two
    # rows at 1.5 and 5.5, four columns at 0.5, 2.5, 4.5 and 6.5, and halfway between two the cubic is their mean.
    count = torch.arange(8.0)
    grid = torch.stack(torch.meshgrid(count, count, indexing="ij"), dim=-1)
    positions = torch.cat([torch.zeros(1, 1, 2), grid.view(1, 64, 2)], dim=1)
    resized = resize_positions(positions, 2, 4)[0, 1:].view(2, 4, 2)
    torch.testing.assert_close(resized[:, :, 0], torch.tensor([[1.5], [5.5]]).expand(2, 4))
    torch.testing.assert_close(resized[:, 1:3, 1], torch.tensor([[2.5, 4.5]]).expand(2, 2))


@pytest.mark.parametrize("n_tokens", [4, 198])
def test_positions_of_no_square_grid_are_refused(n_tokens):
    with pytest.raises(ValueError, match=f"of a class token and a square grid, got {n_tokens}"):
        resize_positions(torch.zeros(1, n_tokens, 3), 14, 14)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (12, 12), (8, 16)])
def test_network_takes_images_of_other_sizes_as_one_with_resized_positions_does(size):
    model, images = tiny(8), torch.randn(2, 3, *size)
    outputs = model(images)
    outputs.square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())
    if size[0] == size[1]:
        other = tiny(size[0], seed=1)
        load_backbone(other, model.state_dict())
        other.head.load_state_dict(model.head.state_dict())
        torch.testing.assert_close(other(images), outputs)


def test_backbone_is_loaded_beside_another_head():
    trained, model = tiny(8), tiny(8, num_classes=7, seed=1)
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    load_backbone(model, trained.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.features(images), trained.features(images))
    assert all(torch.equal(head[name], value) for name, value in model.head.state_dict().items())


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda state: without(state, "blocks.1.attn.qkv.bias"), "it lacks blocks.1.attn.qkv.bias"),
        (lambda state: without(state, "pos_embed"), "it lacks pos_embed"),
        (lambda state: state | {"dist_token": torch.zeros(1)}, "it has, of no use here, dist_token"),
        (lambda state: state | {"norm.bias": torch.zeros(9)}, "it has in another shape norm.bias"),
        (
            lambda state: {},
            "it lacks blocks.0.attn.proj.bias, blocks.0.attn.proj.weight, blocks.0.attn.qkv.bias and 27 more",
        ),
    ],
)
def test_backbone_of_another_network_is_refused_and_nothing_loaded(change, said):
    model = tiny(8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"the state is another network's: {said}"):
        load_backbone(model, change(tiny(8, seed=1).state_dict()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# What training and scores ask of it.


def test_multiply_accumulates_are_torchvisions():
    with torch.device("meta"):
        model = build_model("vit_b16", num_classes=1000, image_size=224)
        macs = total(layer_table(model, in_channels=3, image_size=224), "macs")
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    # Patches, once; qkv, proj, fc1 and fc2 have 12 * 768 * 768 weights; 197 tokens of 768 channels meet each other
    # twice in each of 12 blocks; the head reads one token.
    assert macs == 196 * 768**2 + 12 * (197 * 12 * 768**2 + 2 * 197**2 * 768) + 768 * 1000
    assert counter.get_total_flops() == 2 * macs
    assert counter.get_total_flops() / 2e9 == pytest.approx(17.564, abs=1e-3)  # torchvision's documentation


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layout_and_precision_hardly_change_the_outputs(precision):
    model, images = tiny(), torch.randn(4, 3, 8, 8)
    expected = model(images)
    model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    with autocast(torch.device("cpu"), precision):
        outputs = model(images)
    torch.testing.assert_close(
        outputs.float(), expected, rtol=0, atol={"fp32": 1e-5, "fp16": 2e-2, "bf16": 2e-1}[precision]
    )
    outputs.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_attention_in_bfloat16_is_that_of_torch():
    queries, keys, values = torch.randn(3, 2, 3, 17, 32).bfloat16()
    expected = F.scaled_dot_product_attention(queries.float(), keys.float(), values.float())
    torch.testing.assert_close(attend(queries, keys, values).float(), expected, rtol=0, atol=2e-2)


def test_gradients_have_gradients_where_attention_is_plain_products():
    model = tiny().double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.double)
    weights = [block.attn.qkv.weight for block in model.blocks]

    def gradient():
        with sdpa_kernel(SDPBackend.MATH):
            loss = model(images).square().sum()
        return torch.autograd.grad(loss, weights, create_graph=True)

    direction = [torch.randn_like(weight) for weight in weights]
    product = sum((one * other).sum() for one, other in zip(gradient(), direction, strict=True))
    curvature = torch.autograd.grad(product, weights)
    shifted = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            torch._foreach_add_(weights, direction, alpha=step)
        shifted.append([part.detach() for part in gradient()])
        with torch.no_grad():
            torch._foreach_sub_(weights, direction, alpha=step)
    for found, up, down in zip(curvature, *shifted, strict=True):
        torch.testing.assert_close(found, (up - down) / 2e-5, rtol=1e-4, atol=1e-4)
