"""Whole heads of attentions: found, scored, and taken out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunelab.channels.constants import without_constants
from prunelab.channels.filters import head_scores, keep_largest, uniform_counts
from prunelab.channels.surgery import load, save, shrink
from prunelab.channels.trace import trace
from prunelab.models.vit import Attention, VisionTransformer

IMAGE = {"in_channels": 3, "image_size": 8}
N_HEADS, HEAD, DIM = 3, 2, 6  # as many heads as there are of queries, keys and values


class Tokens(nn.Module):
    """An attention between two linear layers, on the positions of an image."""

    def __init__(self, attention):
        super().__init__()
        self.embed, self.attn, self.head = nn.Conv2d(3, DIM, 4, stride=4), attention, nn.Linear(DIM, 5)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head((tokens + self.attn(tokens)).mean(dim=1))


class Separate(nn.Module):
    """Queries, keys and values by layers of their own, multiplied by hand, and a bias for each head."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.all_head_size = N_HEADS, DIM
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))
        self.bias, self.out = nn.Parameter(torch.randn(N_HEADS, 1, 1)), nn.Linear(DIM, DIM)

    def apart(self, x):
        return x.view(*x.shape[:2], self.num_heads, HEAD).transpose(1, 2)

    def forward(self, x):
        queries, keys, values = (self.apart(layer(x)) for layer in (self.query, self.key, self.value))
        weights = (queries @ keys.transpose(2, 3) + self.bias).softmax(dim=3)
        return self.out((weights @ values).transpose(1, 2).reshape(*x.shape[:2], self.all_head_size))


class HeadsFirst(nn.Module):
    """Queries, keys and values of a head lie beside each other, and heads are folded into the batch."""

    def __init__(self):
        super().__init__()
        self.heads = N_HEADS - 1
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * self.heads * HEAD, bias=False), nn.Linear(self.heads * HEAD, DIM)

    def forward(self, x):
        n, length, _ = x.shape
        folded = self.to_qkv(x).view(n, length, self.heads, 3 * HEAD).transpose(1, 2).flatten(0, 1)
        queries, keys, values = folded.chunk(3, dim=2)
        mixed = torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(dim=2), values)
        return self.to_out(mixed.view(n, self.heads, length, HEAD).transpose(1, 2).flatten(2))


class OfTokens(nn.Module):
    """Computes the channels of a head from those of a token, so that fewer heads would be larger ones."""

    def __init__(self):
        super().__init__()
        self.num_heads = N_HEADS
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        n, length, dim = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(n, length, dim))


class Packaged(nn.Module):
    """PyTorch's own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(DIM, N_HEADS, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


OUT, HEADS_OF = {Attention: "proj", Separate: "out", HeadsFirst: "to_out"}, {HeadsFirst: 2}


def network(attention):
    torch.manual_seed(0)
    return Tokens(Attention(DIM, n_heads=N_HEADS) if attention is Attention else attention()).eval().double()


@pytest.mark.parametrize("attention", OUT)
def test_a_head_that_goes_is_one_that_nobody_reads(attention, tmp_path):
    model = network(attention)
    assert trace(model, **IMAGE).heads == {"attn": HEADS_OF.get(attention, N_HEADS)}
    smaller = shrink(model, {"attn": [0]}, **IMAGE)
    expected = network(attention)
    expected.attn.get_submodule(OUT[attention]).weight.data[:, HEAD:] = 0.0
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(smaller(images), expected(images), rtol=0, atol=1e-12)
    assert sum(p.numel() for p in smaller.attn.parameters()) < sum(p.numel() for p in model.attn.parameters())
    save(smaller, tmp_path / "network")
    assert torch.equal(load(model, tmp_path / "network").eval()(images), smaller(images))
    smaller(images).sum().backward()


def test_rows_of_queries_keys_and_values_go_and_what_reads_them():
    model = network(Attention)
    smaller = shrink(model, {"attn": [False, True, False]}, **IMAGE).attn
    rows = [2, 3, 8, 9, 14, 15]  # of three heads of two channels the second, in each of three parts
    assert torch.equal(smaller.qkv.weight, model.attn.qkv.weight[rows])
    assert torch.equal(smaller.qkv.bias, model.attn.qkv.bias[rows])
    assert torch.equal(smaller.proj.weight, model.attn.proj.weight[:, 2:4])
    assert torch.equal(smaller.proj.bias, model.attn.proj.bias) and smaller.n_heads == 1


@pytest.mark.parametrize("attention", [OfTokens, Packaged])
def test_heads_that_are_a_share_of_a_token_stay(attention):
    model = network(attention)
    traced = trace(model, **IMAGE)
    assert not traced.heads
    with pytest.raises(ValueError, match=r"cannot go: .*'attn|no layer 'attn' makes channels"):
        shrink(model, {"attn": [0]}, **IMAGE)


def test_magnitudes_are_summed_over_a_head():
    model = network(Attention)
    model.attn.qkv.weight.data = torch.arange(18.0).double()[:, None].expand(18, DIM) - 4.0
    traced = trace(model, **IMAGE)
    scores = head_scores(model, traced)
    # Rows 0, 1, 6, 7, 12, 13 of values -4, -3, 2, 3, 8, 9, each in six columns; the next head's are two more.
    assert scores["attn"].tolist() == [6 * 29.0, 6 * (2 + 1 + 4 + 5 + 10 + 11), 6 * (0 + 1 + 6 + 7 + 12 + 13)]
    kept = keep_largest(scores, uniform_counts(traced.heads, density=0.5))
    assert kept["attn"].tolist() == [1, 2]


def test_of_all_heads_one_stays():
    with pytest.warns(UserWarning, match="qkv.*one stays"):
        assert shrink(network(Attention), {"attn": []}, **IMAGE).attn.n_heads == 1


def test_heads_and_hidden_units_of_a_vision_transformer(tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(
        dim=12, depth=2, n_heads=3, patch=4, num_classes=5, in_channels=3, image_size=8, width=1.0, widths={}
    ).eval()
    traced = trace(model, **IMAGE)
    assert traced.heads == {"blocks.0.attn": 3, "blocks.1.attn": 3}
    assert traced.widths == {"blocks.0.mlp.fc1": 48, "blocks.1.mlp.fc1": 48}
    smaller = shrink(model, {"blocks.0.attn": [0, 2], "blocks.1.mlp.fc1": range(7)}, traced=traced, **IMAGE)
    assert (smaller.blocks[0].attn.n_heads, smaller.blocks[1].attn.n_heads) == (2, 3)
    model.blocks[0].attn.proj.weight.data[:, 4:8] = 0.0
    model.blocks[1].mlp.fc2.weight.data[:, 7:] = 0.0
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(smaller(images), model(images), rtol=1e-5, atol=1e-6)
    again = without_constants(model, **IMAGE)  # a mask that leaves a head unread
    assert again.blocks[0].attn.n_heads == 2 and again.blocks[1].mlp.fc1.out_features == 7
    torch.testing.assert_close(again(images), model(images), rtol=1e-5, atol=1e-6)
