"""Everyday operations between two layers, and everyday networks: followed, kept whole with the reason, or refused."""

import copy

import pytest
import torch
from test_channels_following import IMAGE, Net, pooled, silenced
from torch import nn
from torch.nn import functional as F

from prunelab.bench.strangers import compared
from prunelab.channels.filters import keep_largest, l1_scores, uniform_counts
from prunelab.channels.surgery import load, save, shrink
from prunelab.channels.trace import UntraceableError, trace

TOKENS, WIDE = nn.Linear(8, 4), nn.Conv2d(24, 4, 1)
ONE_EACH = torch.linspace(0.5, 1.5, 8)


def net_of(between, reader=None, own=None, **modules):
    """A network of `test_channels_following`, with a parameter of its own."""
    net = Net(between, copy.deepcopy(reader), **copy.deepcopy(modules)).eval()
    if own is not None:
        net.own = nn.Parameter(own.clone())
    return net


FREE = {
    "leaky ReLU as a function": (lambda net, x: F.leaky_relu(x, 0.1), {}),
    "scaled layer, added": (lambda net, x: x + x * net.own, {"own": ONE_EACH.view(8, 1, 1)}),
    "scaled layer, channels last": (lambda net, x: (x.movedim(1, 3) * net.own).movedim(3, 1), {"own": ONE_EACH}),
    "scaled by a sum over indices": (lambda net, x: torch.einsum("nchw,c->nchw", x, net.own), {"own": ONE_EACH}),
    "a share of another": (lambda net, x: torch.add(x, x.relu(), alpha=0.5), {}),
    "between two": (lambda net, x: torch.lerp(x, x.relu(), 0.3), {}),
    "where": (lambda net, x: torch.where(x > 0, x, 0.1 * x).maximum(-x), {}),
    "mirrored and repeated edges": (
        lambda net, x: F.pad(F.pad(x, (1, 1, 2, 1), mode="reflect"), (1,) * 4, "replicate"),
        {},
    ),
    "three in a row": (lambda net, x: torch.cat([x, x.relu(), -x], 1), {"reader": WIDE}),
    "every other row": (lambda net, x: x[:, :, ::2, 1:-1], {}),
    "global pooling, flattened": (lambda net, x: pooled(x).flatten(1), {"reader": TOKENS}),
    "means, counted from the end": (lambda net, x: x.mean([-1, -2]), {"reader": TOKENS}),
    "means and deviations": (
        lambda net, x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1),
        {"reader": nn.Linear(16, 4)},
    ),
    "generalised mean": (lambda net, x: x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3), {"reader": TOKENS}),
    "enlarged by curves": (lambda net, x: F.interpolate(x, size=(5, 7), mode="bilinear"), {}),
    "small squares as channels": (lambda net, x: F.pixel_unshuffle(x, 2), {"reader": nn.Conv2d(32, 4, 1)}),
    "patches by reshaping": (
        lambda net, x: x.reshape(len(x), -1, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
        {"reader": nn.Linear(32, 4)},
    ),
    "patches by sliding": (lambda net, x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)), {}),
    "attention to positions": (lambda net, x: x * net.to_one(x).sigmoid(), {"to_one": nn.Conv2d(8, 1, 1)}),
    "softmax over positions": (lambda net, x: x.flatten(2).softmax(-1).view_as(x), {}),
    "normalised over positions": (lambda net, x: F.normalize(x.flatten(2), dim=2).unflatten(2, (8, 8)), {}),
    "blurred, each by itself": (
        lambda net, x: F.conv2d(x, net.own, groups=x.shape[1]),
        {"own": torch.ones(8, 1, 3, 3)},
    ),
    "a map that is added": (lambda net, x: x + net.own, {"own": torch.rand(1, 8, 8, 8)}),
    "beside coordinates": (
        lambda net, x: torch.cat([x, torch.linspace(0, 1, 8, device=x.device).expand(len(x), 1, 8, 8)], 1),
        {"reader": nn.Conv2d(9, 4, 1)},
    ),
    "the best of each row, with its place": (lambda net, x: x.max(3)[0].max(2).values, {"reader": TOKENS}),
    "apart and together, by rows": (lambda net, x: torch.stack(x.unbind(2)[::-1], 2), {}),
    "apart and together, by channels": (lambda net, x: torch.stack(x.unbind(1), 1), {}),
    "a loop over its own channels": (lambda net, x: torch.stack([x[:, i] for i in range(x.shape[1])], 1), {}),
    "split by columns": (lambda net, x: torch.cat(x.split([3, 5], 3)[::-1], 3), {}),
    "halves of whatever there is": (lambda net, x: torch.cat(torch.tensor_split(x, 2, 1), 1), {}),
    "viewed by the size of a layer": (lambda net, x: x.view(-1, net.conv.out_channels, 64).mean(2), {"reader": TOKENS}),
    "viewed by the size of the reader": (
        lambda net, x: x.view(-1, net.reader.in_features),
        {"reader": nn.Linear(8 * 64, 4)},
    ),
    "in place": (lambda net, x: x.add_(1).mul_(2), {}),
    "each again": (lambda net, x: x.repeat_interleave(2, 1), {"reader": nn.Conv2d(16, 4, 1)}),
    "sequences": (lambda net, x: net.line(x.flatten(2)), {"reader": nn.Conv1d(6, 4, 1), "line": nn.Conv1d(8, 6, 3)}),
    "in three dimensions": (
        lambda net, x: net.volume(x.unsqueeze(2)).squeeze(2),
        {"volume": nn.Conv3d(8, 8, (1, 3, 3))},
    ),
    "unfolded": (lambda net, x: F.unfold(x, 2).transpose(1, 2), {"reader": nn.Linear(32, 4)}),
    "turned": (lambda net, x: torch.rot90(x, 1, (2, 3)), {}),
    "the median": (lambda net, x: x.flatten(2).median(2).values, {"reader": TOKENS}),
    "sorted": (lambda net, x: x.flatten(2).sort(2).values.view_as(x), {}),
    "the best three positions": (lambda net, x: x.topk(3, 3).values, {}),
    "the range": (lambda net, x: torch.aminmax(x.flatten(2), dim=2).max, {"reader": TOKENS}),
    "a random slope": (lambda net, x: F.rrelu(x, training=net.training), {}),
    "blurred by one kernel for all": (
        lambda net, x: F.conv2d(x, net.own.expand(x.shape[1], 1, 3, 3), groups=x.shape[1]),
        {"own": torch.ones(1, 1, 3, 3)},
    ),
    "sampled": (lambda net, x: F.grid_sample(x, x.new_zeros(len(x), 4, 4, 2), align_corners=False), {}),
}


@pytest.mark.parametrize("name", FREE)
def test_channels_stay_apart(name):
    between, parts = FREE[name]
    net, kept, x = net_of(between, **parts), [0, 2, 3, 7], torch.randn(2, 3, 8, 8)
    assert trace(net, **IMAGE).widths["conv"] == 8
    smaller = shrink(net, {"conv": kept}, **IMAGE)
    assert smaller.conv.out_channels == 4
    torch.testing.assert_close(smaller(x), silenced(net, kept)(x))
    smaller.train()(x).sum().backward()


TOGETHER = {  # which channels are one, by the places where they stand
    "gated linear unit by halves": (lambda net, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), [0, 2, 4, 6]),
    "gated linear unit": (lambda net, x: F.glu(x, 1), [0, 2, 4, 6]),
    "heads by reshaping": (lambda net, x: x.view(len(x), 2, -1, 8, 8).flatten(1, 2), [1, 3, 5, 7]),
    "shuffled pixels": (lambda net, x: F.pixel_shuffle(x, 2), [4, 5, 6, 7]),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_channels_that_are_one_go_together_or_not_at_all(name):
    between, kept = TOGETHER[name]
    n_read = {"gated linear unit by halves": 4, "gated linear unit": 4, "shuffled pixels": 2}.get(name, 8)
    net, x = net_of(between, nn.Conv2d(n_read, 4, 1)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(shrink(net, {"conv": kept}, **IMAGE)(x), silenced(net, kept)(x))
    with pytest.raises(ValueError, match="are one, and must both stay or go"):
        shrink(net, {"conv": [0, 1, 2]}, **IMAGE)


@pytest.mark.parametrize(
    "between, reader, layer",
    [
        (lambda net, x: F.conv2d(x, net.own[..., None, None]), nn.Conv2d(6, 4, 1), "conv"),
        (lambda net, x: torch.einsum("nchw,oc->nohw", x, net.own), nn.Conv2d(6, 4, 1), "conv"),
        (lambda net, x: F.linear(x.mean((2, 3)), net.own), nn.Linear(6, 4), "conv"),
    ],
)
def test_weights_that_a_function_is_given_are_cut(between, reader, layer):
    net, kept, x = net_of(between, reader, torch.rand(6, 8)), [0, 2, 3, 7], torch.randn(2, 3, 8, 8)
    smaller = shrink(net, {layer: kept}, **IMAGE)
    net.own.data[:, [1, 4, 5, 6]] = 0.0
    torch.testing.assert_close(smaller(x), net(x))


FIXED = {
    "normalised over channels": (lambda net, x: F.normalize(x), "'linalg_vector_norm' in 'Net' mixes them"),
    "over neighbouring channels": (lambda net, x: F.local_response_norm(x, 3), "'constant_pad_nd' in 'Net' mixes them"),
    "the largest channel": (lambda net, x: x * x.amax(1, keepdim=True), "'amax' in 'Net' mixes them"),
    "the best three channels": (lambda net, x: x.topk(3, 1).values, "'topk' in 'Net' mixes them"),
    "where the best was": (
        lambda net, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        "'max_unpool2d' in 'Net' may mix them",
    ),
    "in another order": (lambda net, x: x[:, [1, 0, 3, 2, 5, 4, 7, 6]], "'index' in 'Net' picks some of them"),
    "uneven parts": (lambda net, x: torch.cat(x.split([3, 5], 1)[::-1], 1), "takes them apart by numbers"),
    "a number for each": (lambda net, x: x - net.numbers.to(x.device), "'sub' in 'Net' sets other numbers beside each"),
    "a loop over eight": (lambda net, x: torch.stack([x[:, i] for i in range(8)], 1), "takes them apart by numbers"),
    "frequencies": (lambda net, x: torch.fft.fft2(x).real, "'fft_c2c' in 'Net' may mix them"),
    "two at once": (lambda net, x: net.two(*[x.mean((2, 3))] * 2), "'trilinear' in 'two' may mix them"),
}


@pytest.mark.parametrize("name", FIXED)
def test_channels_that_cannot_go_say_why(name):
    between, reason = FIXED[name]
    readers = {"the best three channels": nn.Conv2d(3, 4, 1), "two at once": nn.Linear(8, 4)}
    net = net_of(between, readers.get(name), two=nn.Bilinear(8, 8, 8))
    net.numbers = ONE_EACH.view(8, 1, 1)  # no buffer
    assert "conv" not in trace(net, **IMAGE).widths
    with pytest.raises(ValueError, match="the channels of 'conv' cannot go: ") as error:
        shrink(net, {"conv": [0, 2, 3, 7]}, **IMAGE)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "between, reader, at",
    [
        (lambda net, x: x.view(-1, net.width * 64), nn.Linear(512, 4), "'addmm' in 'reader'; .* by 'view' in 'Net'"),
        (lambda net, x: net.apart(x.flatten(1)), None, "the start of 'apart'"),
        (lambda net, x: x + x.new_zeros(8, 1, 1), None, "'add' in 'Net'"),
    ],
)
def test_sizes_that_a_forward_pass_has_written_down_are_named_before_anything_is_returned(between, reader, at):
    net = net_of(between, reader, apart=nn.Unflatten(1, (8, 8, 8)))
    net.width = 8
    with pytest.raises(UntraceableError, match=f"the smaller network could not run: .*at {at}"):
        shrink(net, {"conv": [0, 2, 3, 7]}, **IMAGE)


def test_what_only_runs_in_training_is_tried_too():
    net = net_of(lambda net, x: x + x.new_zeros(8, 1, 1) if net.training else x)
    with pytest.raises(UntraceableError, match="the smaller network could not run in training: "):
        shrink(net, {"conv": [0, 2, 3, 7]}, **IMAGE)


def test_what_is_shared_stays_shared_also_in_a_file(tmp_path):
    def between(net, x):
        return x + net.one(x) + net.other(x) + net.same(x)

    net = net_of(between, one=nn.Conv2d(8, 8, 1), other=nn.Conv2d(8, 8, 1))
    net.other.weight, net.same = net.one.weight, net.one  # a parameter of two layers, a layer of two names
    kept, x = [0, 2, 3, 7], torch.randn(2, 3, 8, 8)
    smaller = shrink(net, {"conv": kept}, **IMAGE)
    save(smaller, tmp_path / "network")
    for each in (smaller, load(net, tmp_path / "network").eval()):
        assert each.other.weight is each.one.weight and each.same is each.one and each.other.bias is not each.one.bias
        assert each.one.weight.shape == (4, 4, 1, 1)
        torch.testing.assert_close(each(x), silenced(net, kept)(x))


class Residual(nn.Module):
    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


GROUPED = {
    "two filters a channel": [
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 8, 1),
    ],
    "groups in a branch": [
        nn.Conv2d(3, 8, 1),
        Residual(nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)),
    ],
    "groups after other groups": [nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(12, 12, 1, groups=3)],
    "groups of the images": [nn.Conv2d(3, 9, 3, groups=3), nn.Conv2d(9, 8, 1)],
    "transposed groups": [nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.Conv2d(8, 8, 1)],
    "each by itself, transposed": [nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2, groups=8), nn.Conv2d(8, 8, 1)],
}


@pytest.mark.parametrize("name", GROUPED)
def test_half_of_the_channels_that_may_go_leave_a_network_with_groups_that_computes_the_same(name):
    torch.manual_seed(0)
    last = nn.Conv2d(12 if name == "groups after other groups" else 8, 6, 1)
    net = nn.Sequential(*copy.deepcopy(GROUPED[name]), nn.ReLU(), last, nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    widths = trace(net, **IMAGE).widths
    smaller = shrink(net, keep_largest(l1_scores(net, widths), uniform_counts(widths, density=0.5)), **IMAGE)
    assert smaller(torch.randn(2, 3, 8, 8).double()).isfinite().all()
    row, _ = compared(net, **IMAGE)
    assert row["left"] < 1 and row["difference"] < 1e-7


@pytest.mark.parametrize(
    "reader, reads",
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), lambda own, x: own(x, x, x)[0]),
        (nn.LSTM(8, 8, batch_first=True), lambda own, x: own(x)[0]),
    ],
)
def test_channels_that_nothing_lets_go_are_not_offered(reader, reads):
    net = net_of(lambda net, x: reads(net.tokens, x.flatten(2).mT), TOKENS, tokens=reader)
    traced = trace(net, **IMAGE)
    shrink(net, {name: range(n // 2) for name, n in traced.widths.items()}, traced=traced, **IMAGE)
    with pytest.raises(ValueError, match=r"'tokens' has sizes of its own|in 'tokens'"):
        shrink(net, {"conv": [0]}, traced=traced, **IMAGE)


def test_what_is_padded_in_circles_stays_whole():
    net = net_of(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="circular"))
    with pytest.raises(ValueError, match="the channels of 'conv' cannot go: 'copy' in 'Net' writes them into a part"):
        shrink(net, {"conv": [0]}, **IMAGE)


@pytest.mark.parametrize(
    "kept",
    [torch.tensor([0, 1, 0, 1], dtype=torch.uint8), [1, 1, 3], None, 2, torch.ones(2, 2, dtype=torch.bool)],
    ids=["a mask of bytes", "one twice", "nothing", "a number", "a table"],
)
def test_kept_channels_that_cannot_be_meant_are_refused_by_name(kept):
    with pytest.raises(ValueError, match="layer '0'"):
        shrink(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), {"0": kept}, **IMAGE)


def test_a_network_without_numbers_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="meta"):
        save(nn.Sequential(nn.Conv2d(3, 4, 1)).to("meta"), tmp_path / "network")


def test_a_scripted_network_is_refused_with_what_to_give():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.script(nn.ReLU()), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match=r"'1' is scripted: give it as it was before torch\.jit\.script"):
        trace(net, **IMAGE)


def test_channels_that_a_parameter_of_ones_own_does_not_let_go_are_not_offered():
    net = net_of(lambda net, x: F.conv2d(x, net.own, groups=8), None, torch.ones(8, 1, 1, 1))
    with pytest.raises(ValueError, match="cannot go: 'convolution' in 'Net' is not the same for any number of them"):
        shrink(net, {"conv": [0, 2, 3, 7]}, **IMAGE)


# Channels that are told apart by their number, and then treated otherwise by something that has no weights.


def first_half(work):
    def between(net, x):
        one, other = x.chunk(2, 1)
        return torch.cat([work(one), other], 1)

    return between


def written_in_part(net, x):
    x = x.clone()
    x[:, :4] = 0
    return x


def scaled_in_part(net, x):
    scales = torch.ones_like(x)
    scales[:, :2].fill_(0.5)
    return x * scales


@pytest.mark.parametrize(
    "between",
    [
        first_half(torch.relu),
        first_half(F.instance_norm),
        first_half(lambda x: x.roll(1, 2)),
        written_in_part,
        scaled_in_part,
        lambda net, x: torch.stack([x[:, i] * (i + 1) for i in range(x.shape[1])], 1),
        lambda net, x: x * x.shape[1] ** -0.5,
        lambda net, x: x if x.shape[1] >= 6 else x.tanh(),
        lambda net, x: torch.cat([x[:, -3:], x[:, :5]], 1),
        lambda net, x: x.roll(1, 1),
        lambda net, x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    ],
)
def test_what_depends_on_the_number_of_channels_is_never_another_network(between):
    for kept in ([7], [0, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [1, 4, 5]):
        net, x = net_of(between), torch.randn(2, 3, 8, 8)
        try:
            smaller = shrink(net, {"conv": kept}, **IMAGE)
        except ValueError:  # the rule
            continue
        traced = trace(net, **IMAGE)
        written = traced.numbered(traced.layers["conv"].writes)
        is_read = torch.isin(traced.numbered(traced.layers["reader"].reads), written[kept])
        net.reader.weight.data[:, ~is_read] = 0.0
        torch.testing.assert_close(smaller(x), net(x))


def test_heads_whose_number_is_counted_with_stay():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.qkv, self.proj = 4, nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            return self.proj(((q @ k.mT * self.num_heads**-0.5).softmax(3) @ v).transpose(1, 2).flatten(2))

    net = net_of(lambda net, x: net.attn(x.flatten(2).mT), TOKENS, attn=Counted())
    assert not trace(net, **IMAGE).heads


class Output:
    """Not a container that torch knows."""

    def __init__(self, logits):
        self.logits = logits


def test_what_an_object_holds_is_the_networks_output():
    net = net_of(lambda net, x: x, nn.Conv2d(8, 4, 1))
    net.register_forward_hook(lambda net, images, logits: Output(logits))
    assert trace(net, **IMAGE).widths == {"conv": 8}


def test_networks_are_followed_where_nothing_is_to_be_learned():
    net = net_of(lambda net, x: x.relu())
    with torch.inference_mode():
        assert shrink(net, {"conv": [0, 1]}, **IMAGE).conv.out_channels == 2


def test_a_layer_that_only_the_smaller_network_runs_is_a_difference():
    net = net_of(lambda net, x: x if x.shape[1] >= 6 else net.other(x), other=nn.Conv2d(4, 4, 1))
    with pytest.raises(UntraceableError, match=r"would not compute the same|could not run"):
        shrink(net, {"conv": [0, 1, 2, 3]}, **IMAGE)


def test_of_one_group_that_is_left_some_channels_may_go():
    net = net_of(lambda net, x: net.grouped(x), own=None, grouped=nn.Conv2d(8, 8, 1, groups=2))
    smaller = shrink(net, {"conv": [0, 1], "grouped": [0, 1]}, **IMAGE)
    assert smaller.grouped.groups == 1 and smaller(torch.randn(2, 3, 8, 8)).isfinite().all()
