"""Networks by name, with weights from files, of which none is downloaded here."""

import re

import pytest
import torch
from torchvision import models

from prunelab import paths
from prunelab.models import pretrained
from prunelab.models.named import named_network, names

FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "maxvit_t", "mnasnet0_5", "mobilenet_v3_small"),
    *("resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
    *("wide_resnet50_2", "resnet8", "wrn22_2", "vit_micro4", "mobilenet_v1", "preresnet20", "lenet_300_100"),
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path


def build(name, *, num_classes=7, image_size=224, weights="none"):
    return named_network(name, num_classes=num_classes, image_size=image_size, weights=weights)


def written(path, name, *, num_classes=1000):
    """A file of weights as torchvision's are, of a network with other values than `build` gives; its state."""
    torch.manual_seed(1)
    state = models.get_model(name, num_classes=num_classes).state_dict()
    torch.save(state, path)
    return state


def test_every_family_has_its_head_where_weights_of_other_classes_are_left_aside():
    assert set(FAMILIES) <= set(names()) and not {"googlenet", "inception_v3"} & set(names())
    for name in FAMILIES:
        with torch.device("meta"):
            state = build(name).state_dict()
        head = [*state][-1].rpartition(".")[0]
        assert len(state[f"{head}.weight"]) == 7, name


def test_unknown_name_is_told_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown model 'mobilenetv2'; there are alexnet, .*Did you mean 'mobilenet_v2'"
    ):
        build("mobilenetv2")


def test_stem_is_that_of_this_library_for_small_images():
    assert build("resnet18", image_size=32).conv1.stride == (1, 1)
    assert build("resnet18", image_size=64).conv1.stride == (2, 2)


@pytest.mark.parametrize("name, head", [("squeezenet1_1", "classifier.1"), ("shufflenet_v2_x0_5", "fc")])
@pytest.mark.parametrize("place", ["", "data"])
def test_weights_of_other_classes_are_taken_but_for_the_head(home, monkeypatch, name, head, place):
    state = written(home / "weights.pth", name)
    monkeypatch.chdir("/" if place else home)  # found by its name here, and in the folder for data
    torch.manual_seed(0)
    network = build(name, weights="weights.pth")
    torch.manual_seed(0)
    new = build(name).state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(value, new[key] if key.startswith(f"{head}.") else state[key]), key


def test_head_of_other_classes_is_refused_where_it_may_not_be_replaced(home):
    written(home / "weights.pth", "squeezenet1_1", num_classes=8)
    options = {"image_size": 224, "weights": "weights.pth", "may_replace_head": False}
    with pytest.raises(ValueError, match=r"weights.pth has no head for 7 classes"):
        named_network("squeezenet1_1", num_classes=7, **options)
    named_network("squeezenet1_1", num_classes=8, **options)


def test_weights_of_as_many_classes_are_taken_whole(home):
    state = written(home / "weights.pth", "squeezenet1_1", num_classes=7)
    network = build("squeezenet1_1", weights=str(home / "weights.pth"))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_weights_of_imagenet_are_found_beside_the_archives_and_checked(home, monkeypatch):
    release = pretrained.Release("squeezenet1_1", "SqueezeNet1_1_Weights.IMAGENET1K_V1")
    state = written(home / release.file_name, "squeezenet1_1")
    with pytest.raises(ValueError, match=f"is not the file expected: .* not {release.sha256}"):
        build("squeezenet1_1", weights="imagenet")
    monkeypatch.setattr(pretrained.Release, "sha256", "")
    network = build("squeezenet1_1", weights="imagenet")
    assert torch.equal(network.features[0].weight, state["features.0.weight"])


def test_names_of_old_files_are_todays(home):
    torch.manual_seed(1)
    state = models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save({key: value for key, value in old.items() if not key.endswith("num_batches_tracked")}, home / "old.pth")
    network = build("densenet121", weights="old.pth")
    key = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(network.state_dict()[key], state[key])


def test_weights_that_cannot_be_had_are_told_with_what_to_do(home, monkeypatch):
    def fail(*arguments):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(pretrained.WeightsNotFoundError) as caught:
        build("resnet18", weights="imagenet")
    for helpful in (
        "weights of resnet18",
        "no network",
        "resnet18-f37072fd.pth",
        str(home),
        "choose the weights 'none'",
    ):
        assert helpful in str(caught.value)
    with pytest.raises(pretrained.WeightsNotFoundError, match=r"there is no file my\.pth, nor in .*choose the weights"):
        build("resnet18", weights="my.pth")
    with pytest.raises(ValueError, match="torchvision has no weights of resnet20; choose the weights 'none'"):
        build("resnet20", weights="imagenet")


def test_weights_of_another_network_or_of_larger_images_are_refused(home):
    written(home / "weights.pth", "resnet18")
    with pytest.raises(ValueError, match=r"does not hold the weights of squeezenet1_1 for images of 224 .*Missing key"):
        build("squeezenet1_1", weights="weights.pth")
    with pytest.raises(ValueError, match=r"of resnet18 for images of 32 pixels: .*size mismatch for conv1\.weight"):
        build("resnet18", image_size=32, weights="weights.pth")
    torch.save({"model": models.squeezenet1_1().state_dict(), "epoch": 3}, home / "weights.pth")
    with pytest.raises(ValueError, match="the state may be what it holds as model: save that alone"):
        build("squeezenet1_1", weights="weights.pth")
    (home / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
        build("resnet18", weights="weights.pth")
