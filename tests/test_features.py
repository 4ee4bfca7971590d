"""Features of images: what the head reads, in evaluation mode, of every image."""

import pytest
import torch
from conftest import small_resnet, with_statistics
from torch import nn

from prunelab import data
from prunelab.features import augmented_features, features_of, features_of_sets
from prunelab.models import MODELS, build_model
from prunelab.models.trunk import head_of

HEADS = {"lenet_300_100": "5", "mobilenet_v2": "classifier.1", "vgg11_bn": "classifier.6", "vgg16_bn": "classifier.6"}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_a_head_of_its_classes(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=7)
    assert head_of(model) == HEADS.get(name, "head" if name.startswith("vit") else "fc")
    assert model.get_submodule(head_of(model)).out_features == 7


@pytest.mark.parametrize(
    "name",
    [
        *("lenet_300_100", "resnet8", "preresnet20", "vgg11", "vgg16", "densenet22", "wrn22_2", "mobilenet_v1"),
        *("mobilenet_v2", "resnet18", "vit_micro4"),
    ],
)
def test_features_are_what_the_head_turns_into_outputs_image_by_image(name):
    torch.manual_seed(0)
    model = with_statistics(build_model(name, num_classes=3, image_size=16, width=0.25)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = torch.randn(5, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1])
    features, found = features_of(model, zip(images.split(2), labels.split(2), strict=True))
    assert model.training and not features.requires_grad and torch.equal(found, labels)
    head = model.get_submodule(head_of(model))
    assert features.shape == (5, head.in_features) and not head._forward_hooks
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(head(features), model.eval()(images), rtol=1e-4, atol=1e-4)


def test_features_of_a_convolutional_network_are_its_maps_averaged():
    model, images = with_statistics(small_resnet()), torch.randn(4, 1, 8, 8)
    maps = []
    model.blocks.register_forward_hook(lambda module, inputs, output: maps.append(output))
    features, _ = features_of(model, [(images, torch.zeros(4))])
    torch.testing.assert_close(features, maps[0].mean(dim=(2, 3)))


class Ends(nn.Module):
    """A linear layer after which the network goes on."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, images):
        return self.fc(images.flatten(1)).log_softmax(dim=1)


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Conv2d(1, 3, 2), "Conv2d has no linear layer, so it has no head"),
        (Ends(), "the outputs of Ends are not those of 'fc', its last linear layer"),
    ],
)
def test_network_that_does_not_end_with_a_linear_layer_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        features_of(model, [(torch.zeros(1, 1, 2, 2), torch.zeros(1))])
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_features_of_sets_are_those_of_all_images_in_order(digits):
    model = with_statistics(small_resnet())
    (train, train_labels), (test, test_labels) = features_of_sets(model, digits)
    assert torch.equal(train_labels, digits.train_labels) and torch.equal(test_labels, digits.test_labels)
    assert len(train) == digits.n_train and len(test) == digits.n_test
    whole, _ = next(iter(digits.test_batches(batch_size=1000)))
    torch.testing.assert_close(test, features_of(model, [(whole, digits.test_labels)])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_train, n_left", [(200, 200), (300, 300), (515, 513)])
def test_augmented_passes_have_all_images_but_those_of_no_full_batch_each_pass_otherwise(n_train, n_left):
    dataset = data.load("digits", n_train=n_train // 10 * 10)
    dataset = dataset.take(torch.arange(len(dataset.train_labels)).repeat(2)[:n_train])
    model = with_statistics(small_resnet())

    def passes(seed):
        generator = torch.Generator().manual_seed(seed)
        return augmented_features(model, dataset, n_passes=2, generator=generator)

    features, labels = passes(0)
    assert features.shape == (2, n_left, model.fc.in_features) and labels.shape == (2, n_left)
    assert not torch.equal(labels[0], labels[1])  # another order
    plain = set(map(tuple, features_of_sets(model, dataset)[0][0].tolist()))
    assert sum(tuple(own) in plain for own in features[0].tolist()) < n_left / 4  # one crop in nine is the whole image
    again, _ = passes(0)
    assert torch.equal(again, features) and not torch.equal(passes(1)[0], features)
    with pytest.raises(ValueError, match="n_passes must be at least 1, got 0"):
        augmented_features(model, dataset, n_passes=0, generator=torch.Generator())
