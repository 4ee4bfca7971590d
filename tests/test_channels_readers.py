"""What a reader's filters see at sampled positions, against whole convolutions, and what all prune by readers do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunelab.channels import reconstruction, thinet
from prunelab.channels.readers import check_readers, filters_by_channel, least_squares, sample_patches, visit_readers


def test_patches_by_hand():
    # A 3x3 image and a 2x2 kernel: the output is 2x2. Shares 0.0 and 0.49 are position 0, 0.5 and 0.99 position 1.
    image = torch.arange(9.0).view(1, 1, 3, 3)
    positions = torch.tensor([[[0.0, 0.99], [0.5, 0.49]]])
    patches = sample_patches(nn.Conv2d(1, 1, 2), image, positions=positions)
    assert patches.tolist() == [[[1, 2, 4, 5]], [[3, 4, 6, 7]]]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 2), "padding": (2, 0), "stride": (1, 3), "dilation": (2, 1)},
        {"kernel_size": 2, "padding": 1, "dilation": 3},
    ],
)
def test_patches_times_filters_are_the_outputs_of_a_convolution(options):
    torch.manual_seed(0)
    reader, inputs = nn.Conv2d(5, 4, bias=False, **options), torch.randn(3, 5, 9, 7)
    positions = torch.rand(3, 20, 2)
    patches = sample_patches(reader, inputs, positions=positions)
    sampled = torch.einsum("mck,ock->mo", patches, filters_by_channel(reader))
    outputs = reader(inputs)
    height, width = outputs.shape[2:]
    expected = [
        outputs[i, :, int(row * height), int(column * width)] for i in range(3) for row, column in positions[i].tolist()
    ]
    torch.testing.assert_close(sampled, torch.stack(expected))


def test_every_position_is_sampled_and_none_outside():
    reader, inputs = nn.Conv2d(1, 1, 1), torch.arange(49.0).view(1, 1, 7, 7)
    largest_share = 1 - 2.0**-24
    corner = sample_patches(reader, inputs, positions=torch.full((1, 1, 2), largest_share))
    assert corner.item() == 48
    generator = torch.Generator().manual_seed(0)
    patches = sample_patches(reader, inputs, positions=torch.rand(1, 1000, 2, generator=generator))
    assert len(patches.unique()) == 49


def test_linear_layer_reads_channels_of_pooled_maps():
    reader, inputs = nn.Linear(3, 2, bias=False), torch.randn(4, 3)
    patches = sample_patches(reader, inputs, positions=torch.rand(4, 2, 2))
    assert torch.equal(patches, inputs.repeat_interleave(2, 0).view(8, 3, 1))
    assert torch.equal(filters_by_channel(reader), reader.weight.view(2, 3, 1))


def test_layers_behind_a_reader_see_what_a_visit_changed_and_no_hook_stays():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    seen = {}

    def visit(name, reader, patches):
        seen[name] = patches
        reader.weight.zero_()

    for _ in range(2):
        visit_readers(
            model,
            torch.ones(3, 2),
            readers={"1": "2", "0": "1"},  # in any order: the network runs "1" first
            positions=torch.rand(3, 1, 2),
            visit=visit,
        )
        assert list(seen) == ["0", "1"]
        assert seen["0"].any() and not seen["1"].any()
        seen.clear()
    model(torch.ones(3, 2))
    assert not seen


@pytest.mark.parametrize("n_samples, rank", [(20, 6), (20, 3), (4, 6)])
def test_least_squares_match_those_of_a_singular_value_decomposition(n_samples, rank):
    torch.manual_seed(0)
    inputs = torch.randn(n_samples, rank, dtype=torch.float64) @ torch.randn(rank, 6, dtype=torch.float64)
    outputs = torch.randn(n_samples, 2, dtype=torch.float64)
    expected = torch.linalg.lstsq(inputs, outputs, rcond=1e-10, driver="gelsd").solution
    torch.testing.assert_close(least_squares(inputs.T @ inputs, inputs.T @ outputs), expected)


def test_least_squares_do_without_an_eigensolver_that_does_not_converge(monkeypatch):
    def gives_up(*_, **__):  # as MKL's does on some processors, on a finite Gram matrix of rank 4
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    inputs, outputs = torch.randn(4, 64, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    expected = torch.linalg.lstsq(inputs, outputs, driver="gelsd").solution
    monkeypatch.setattr(torch.linalg, "pinv", gives_up)
    torch.testing.assert_close(least_squares(inputs.T @ inputs, inputs.T @ outputs), expected)


def check(reader, *, count=2):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), reader)
    check_readers(model, readers={"0": "2"}, counts={"0": count})


@pytest.mark.parametrize("reader", [nn.Conv2d(4, 2, 3, padding=1, stride=2), nn.Linear(4, 2)])
@pytest.mark.parametrize("count", [1, 4])
def test_plain_readers_pass(reader, count):
    check(reader, count=count)


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
    ],
)
def test_other_convolutions_are_refused(reader):
    with pytest.raises(ValueError, match="'2', which reads '0', must be a convolution of one group that pads"):
        check(reader)


def test_reader_of_flattened_maps_is_refused():
    with pytest.raises(ValueError, match="'2' reads 16 channels, but '0' has 4; a linear layer must read globally"):
        check(nn.Linear(16, 2))


@pytest.mark.parametrize("count", [0, 5])
def test_impossible_count_is_refused_with_its_layer(count):
    with pytest.raises(ValueError, match=f"layer '0' can keep 1 to 4 channels, got {count}"):
        check(nn.Linear(4, 2), count=count)


def test_missing_count_and_missing_layers_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer '0' can keep 1 to 2 channels, got None"):
        check_readers(model, readers={"0": "1"}, counts={"1": 1})
    for readers in ({"0": "2"}, {"2": "1"}):
        with pytest.raises(ValueError, match="no convolution or linear layer '2'; there are 0, 1"):
            check_readers(model, readers=readers, counts={"0": 1, "2": 1})


def test_patches_feel_the_padding():
    reader, inputs = nn.Conv2d(1, 1, 3, padding=1), torch.ones(1, 1, 2, 2)
    patches = sample_patches(reader, inputs, positions=torch.zeros(1, 1, 2))
    assert torch.equal(patches.view(3, 3), F.pad(torch.ones(2, 2), (1, 0, 1, 0)))


READERS = {"0": "3", "3": "6", "6": "11"}
PRUNES = pytest.mark.parametrize("prune", [thinet.prune, reconstruction.prune], ids=["thinet", "reconstruction"])


def three_convolutions():
    """A network of which every convolution has a reader."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True)),
        *(nn.Conv2d(12, 10, 3, stride=2), nn.BatchNorm2d(10), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5)),
    )
    model(torch.randn(64, 3, 8, 8))  # for the running statistics of BatchNorm
    return model


def prune_three(prune, model, counts, *, seed=0):
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return prune(model, images, readers=READERS, counts=counts, generator=torch.Generator().manual_seed(seed))


@PRUNES
@pytest.mark.parametrize("counts", [{"0": 1, "3": 1, "6": 1}, {"0": 3, "3": 7, "6": 10}])
def test_removed_channels_are_read_with_zero_weights_only(prune, counts):
    model = three_convolutions()
    before = copy.deepcopy(model)
    pruned, kept = prune_three(prune, model, counts)
    for name, reader in READERS.items():
        assert len(kept[name]) == counts[name] and kept[name].dtype == torch.int64
        read = pruned.get_submodule(reader).weight.transpose(0, 1).flatten(1).any(dim=1)
        assert read.nonzero().flatten().tolist() == kept[name].tolist()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert model.training and not pruned.training


@PRUNES
def test_generator_alone_decides(prune):
    model, counts = three_convolutions(), {"0": 3, "3": 7, "6": 5}
    first, second, other = (prune_three(prune, model, counts, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["3.weight"], other["3.weight"])


@PRUNES
def test_readers_are_checked_before_anything_is_pruned(prune):
    with pytest.raises(ValueError, match="layer '3' can keep 1 to 12 channels, got 13"):
        prune_three(prune, three_convolutions(), {"0": 3, "3": 13, "6": 5})
