"""Files of networks that others made sparse, made up here in every form that they come in, and in none that they do."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunelab import data, paths
from prunelab.masks import prunable_weights
from prunelab.methods.soft_threshold import SoftThreshold
from prunelab.models import build_model, pretrained
from prunelab.recipes.recipe import TrainingOptions
from prunelab.recipes.released import read_checkpoint, state_of_checkpoint
from prunelab.recipes.structures import carried_over

NARROW = {"model": "resnet50", "width": 1 / 16}
SPARSE = ("layer1.0.conv2", "layer4.2.conv3", "layer2.0.downsample.0", "fc")


def network(num_classes=7, seed=0):
    torch.manual_seed(seed)
    return build_model("resnet50", num_classes=num_classes, image_size=224, width=1 / 16)


def masks_of(model, layers=SPARSE):
    """Of some layers, every third weight active."""
    weights = prunable_weights(model)
    return {name: (torch.arange(weights[name].numel()) % 3 == 0).view_as(weights[name]) for name in layers}


@pytest.fixture(scope="module")
def sparse():
    """A network of which four layers are sparse, as a state, and their masks."""
    model = network()
    masks = masks_of(model)
    for name, mask in masks.items():
        model.get_submodule(name).weight.data *= mask
    return model.state_dict(), masks


def save(path, content):
    torch.save(content, path)
    return path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Forms that files come in, as functions of a state and its masks


def plain(state, masks):
    return state


def wrapped_by_the_papers_authors(state, masks):
    """Each layer in a wrapper with masks, as ones where it was never pruned; the weights under zeros are not zero."""
    found = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if value.dim() in (2, 4) or name == "fc.bias":
            mask = masks.get(layer, torch.ones_like(value)) if kind == "weight" else torch.ones_like(value)
            found[f"module.{layer}._layer.{kind}"] = value + 5 * (mask == 0)
            found[f"module.{layer}._{kind}_mask"] = mask.float()
        else:
            found[f"module.{name}"] = value
    return {"epoch": 99, "model_config": {"arch": "resnet50", "dataset": "imagenet"}, "model_state_dict": found}


def unwrapped_by_the_papers_authors(state, masks):
    return {"model_config": {"arch": "resnet50", "dataset": "imagenet"}, "model_state_dict": OrderedDict(state)}


def with_masks_of_ones(state, masks):
    """The trap: a mask beside every layer, and none says anything."""
    ones = {
        f"{name.removesuffix('.weight')}._weight_mask": torch.ones_like(state[name]) for name in weight_names(state)
    }
    return {"state_dict": state | ones}


def with_short_names_of_masks(state, masks):
    return {"state_dict": state | {f"{name}_mask": mask for name, mask in masks.items()}}


def by_torchs_own_pruning(state, masks):
    model = network()
    model.load_state_dict(state)
    for name, mask in masks.items():
        prune.custom_from_mask(model.get_submodule(name), "weight", mask)
    return {"state_dict": nn.DataParallel(model).state_dict(), "best_acc1": 76.1}


def of_rigl(state, masks):
    """The names of RigL's network, written down layer by layer."""
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] in ("conv1", "bn1"):
            parts = ["initial_conv", parts[0][:-1], *parts[1:]]
        elif "downsample" in parts:
            parts = [parts[0], "block", parts[1], "shortcut", ("conv", "bn")[int(parts[3])], *parts[4:]]
        elif parts[0] != "fc":
            kind, number = parts[2][:-1], parts[2][-1]
            parts = [parts[0], "block", parts[1], f"conv{number}", kind, *parts[3:]]
        found[".".join(parts)] = value
    return found


def without_counts(state, masks):
    return {name: value for name, value in state.items() if "num_batches" not in name}


def weight_names(state):
    return [name for name, value in state.items() if value.dim() in (2, 4)]


FORMS = [
    plain,
    wrapped_by_the_papers_authors,
    unwrapped_by_the_papers_authors,
    with_masks_of_ones,
    with_short_names_of_masks,
    by_torchs_own_pruning,
    of_rigl,
    without_counts,
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_network(tmp_path, sparse, form):
    state, masks = sparse
    found = read_checkpoint(save(tmp_path / "file.pth", form(*sparse)), **NARROW)
    assert same(found.model, state) and same(found.masks, masks) and found.num_classes == 7
    network().load_state_dict(found.model)


def test_a_newborn_weight_of_zero_stays_active_where_masks_are_stored(tmp_path, sparse):
    state, masks = sparse
    name = "layer1.0.conv2"
    state = state | {f"{name}.weight": torch.zeros_like(state[f"{name}.weight"])}
    stored = state | {f"{name}.weight_mask": masks[name]}
    assert same(read_checkpoint(save(tmp_path / "a.pth", stored), **NARROW).masks, masks)
    assert not read_checkpoint(save(tmp_path / "b.pth", state), **NARROW).masks[name].any()


def test_a_dense_network_has_no_masks(tmp_path):
    found = read_checkpoint(save(tmp_path / "file.pth", network().state_dict()), **NARROW)
    assert found.masks == {}


def test_thresholds_of_str_are_applied_and_its_head_becomes_linear(tmp_path):
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    # The same by this project's own STR: thresholds of sigmoid(-3), about 0.047, in two layers.
    method = SoftThreshold(model, ["layer1.0.conv2", "fc"], start=-3.0, decay=0.0, momentum=0.0, count_every=1)
    nn.init.zeros_(model.fc.bias)
    del state["fc.bias"]
    state["fc.weight"] = state["fc.weight"][:, :, None, None]
    state |= {f"{name}.sparseThreshold": torch.full((1, 1), -3.0) for name in ("layer1.0.conv2", "fc")}
    found = read_checkpoint(save(tmp_path / "str.pth", {"state_dict": state}), **NARROW)
    assert same(found.model, model.state_dict()) and same(found.masks, method.masks) and found.num_classes == 7
    assert 0.1 < found.masks["fc"].float().mean() < 0.9


def test_a_threshold_of_a_hand_sized_layer(tmp_path):
    # sigmoid(0) is a half: 0.7 becomes 0.2, and -0.5 and 0.1 nothing.
    state = network(num_classes=2).state_dict()
    state["fc.weight"][0, :3] = torch.tensor([0.7, -0.5, 0.1])
    found = read_checkpoint(save(tmp_path / "a.pth", state | {"fc.sparseThreshold": torch.tensor(0.0)}), **NARROW)
    torch.testing.assert_close(found.model["fc.weight"][0, :3], torch.tensor([0.2, 0.0, 0.0]))
    assert found.masks["fc"][0, :3].tolist() == [True, False, False]


def test_a_mask_of_a_head_that_is_a_convolution_is_flattened_too(tmp_path, sparse):
    state, masks = sparse
    state = {name: value for name, value in state.items() if name != "fc.bias"}
    state["fc.weight"] = (state["fc.weight"] + 5)[:, :, None, None]
    stored = state | {"fc._weight_mask": masks["fc"].float()[:, :, None, None]}
    found = read_checkpoint(save(tmp_path / "a.pth", stored), **NARROW)
    assert same(found.masks, masks) and torch.equal(found.model["fc.weight"] != 0, masks["fc"])


# Files that cannot be used


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda state: {"fc._weight_mask": torch.zeros(7, 3)},
            r"the mask of fc has shape \(7, 3\), but its weight \(7,",
        ),
        (
            lambda state: {"fc.weight_mask": 0.5 * torch.ones_like(state["fc.weight"])},
            "fc has values other than 0 and 1",
        ),
        (lambda state: {"bn1.weight_mask": torch.zeros(4)}, "masks for what resnet50 has not, or not prunes: bn1"),
        (lambda state: {"fc._bias_mask": torch.zeros(7)}, "not prunes: fc.bias"),
        (lambda state: {"layer9.weight_mask": torch.zeros(4)}, "not prunes: layer9"),
        (lambda state: {"fc.sparseThreshold": torch.zeros(3)}, "it has, of no use here, fc.sparseThreshold"),
        (lambda state: {"bn9.sparseThreshold": torch.zeros(1, 1)}, "it has, of no use here, bn9.sparseThreshold"),
        (
            lambda state: {"module.fc.bias": torch.zeros(7)},
            "several entries that are fc.bias here, one of them module.fc",
        ),
        (lambda state: {"conv1.weight": torch.zeros(4, 3, 3, 3)}, "it has in another shape conv1.weight"),
        (lambda state: {"conv1.weight": "none"}, "it has in another shape conv1.weight"),
        (lambda state: {"fc.weight": 3}, "it has in another shape fc.bias, fc.weight"),
        (lambda state: {"epoch": 3}, "it has, of no use here, epoch"),
    ],
)
def test_masks_and_entries_that_do_not_fit_are_named(tmp_path, sparse, change, said):
    state, _ = sparse
    with pytest.raises(ValueError, match=rf"file\.pth.*{said}"):
        read_checkpoint(save(tmp_path / "file.pth", state | change(state)), **NARROW)


@pytest.mark.parametrize("other", [{"model": "resnet18", "width": 1 / 16}, {"model": "resnet50", "width": 1 / 8}])
def test_another_network_is_refused(tmp_path, sparse, other):
    with pytest.raises(ValueError, match=rf"holds no {other['model']} of width {other['width']:g}: it "):
        read_checkpoint(save(tmp_path / "file.pth", sparse[0]), **other)


@pytest.mark.parametrize("content", [{}, {"optimizer": {"lr": 0.1}}, {"state_dict": {}}])
def test_a_file_without_a_network_lacks_it(tmp_path, content):
    with pytest.raises(ValueError, match=r"holds no resnet50 of width .*: it lacks bn1"):
        read_checkpoint(save(tmp_path / "file.pth", content), **NARROW)


def test_a_damaged_file_is_refused(tmp_path, sparse):
    path = save(tmp_path / "file.pth", {"state_dict": sparse[0]})
    content = path.read_bytes()
    middle = content.index(sparse[0]["layer4.0.conv2.weight"].numpy().tobytes()) + 100
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ValueError, match=r"file.pth is damaged: the checksum of"):
        read_checkpoint(path, **NARROW)
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"file.pth is damaged, or holds more than tensors"):
        read_checkpoint(path, **NARROW)


class Planted:
    """What runs a command where a file is unpickled without care."""

    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, sparse, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "file.pth", {"state_dict": sparse[0], "args": Planted()})
    with pytest.raises(ValueError, match=r"file.pth is damaged, or holds more than tensors \(UnpicklingError\)"):
        read_checkpoint(path, **NARROW)
    assert not (tmp_path / "planted").exists()


def test_a_file_is_held_to_a_sha256_that_is_given(tmp_path, sparse):
    path = save(tmp_path / "file.pth", sparse[0])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_checkpoint(path, **NARROW, sha256=digest[:10].upper()).num_classes == 7
    with pytest.raises(ValueError, match=r"file.pth is not the file expected: its SHA-256 begins"):
        read_checkpoint(path, **NARROW, sha256="0" * 10)


# As a parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path


def test_a_checkpoint_is_the_parent_of_a_run(home, sparse):
    state, masks = sparse
    content = save(home / "acdc_90.pth", wrapped_by_the_papers_authors(*sparse)).read_bytes()
    parent = state_of_checkpoint("acdc_90.pth", **NARROW)
    assert parent.options == NARROW | {"checkpoint": "acdc_90.pth", "sha256": hashlib.sha256(content).hexdigest()}
    assert (parent.num_classes, parent.training_macs, parent.diverged) == (7, 0.0, False)
    assert same(state_of_checkpoint(str(home / "acdc_90.pth"), **NARROW).masks, masks)
    # Whose child has its values and masks, and a dense head for other classes, on images of its size.
    options = TrainingOptions(**NARROW, n_epochs=1, batch_size=2, optimizer="sgd", schedule="cosine", weight_decay=0.0)
    dataset = data.load("digits").map(lambda images: images[:4].repeat(1, 8, 8, 3))
    model, method = carried_over(options, dataset, parent)
    assert method.masks.keys() == masks.keys() - {"fc"} and model.fc.weight.shape[0] == 10
    assert torch.equal(model.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    assert (model.fc.weight != 0).all()


def test_a_released_dense_network_is_a_parent_without_masks(home, monkeypatch):
    state = build_model("resnet18", num_classes=3, image_size=224).state_dict()
    state["layer1.0.conv1.weight"][0] = 0  # a filter that weight decay has emptied
    release = pretrained.Release("resnet18", "https://example.org/r/r18.pth", num_classes=3)
    monkeypatch.setitem(pretrained.RELEASES, "tiny", release)
    save(home / "r18.pth", state)
    parent = state_of_checkpoint("tiny", model="resnet18")
    assert same(parent.model, state) and parent.masks == {} and parent.num_classes == 3
    for other in ({"model": "resnet50"}, {"model": "resnet18", "width": 0.5}):
        with pytest.raises(ValueError, match="tiny is a resnet18 of width 1, not a resnet"):
            state_of_checkpoint("tiny", **other)


def test_a_checkpoint_that_is_nowhere_says_what_there_is(home):
    with pytest.raises(pretrained.WeightsNotFoundError) as caught:
        state_of_checkpoint("acdc_90.pth", model="resnet50")
    for part in (f"no checkpoint {home / 'acdc_90.pth'}", "put the file there", "resnet50_imagenet"):
        assert part in str(caught.value)
