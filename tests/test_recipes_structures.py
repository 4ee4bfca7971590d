"""Networks carried over to other images: the parent's values and masks under a new dense head, trained as they are."""

import pytest
import torch
from conftest import with_statistics

from prunelab.masks import prunable_weights, random_mask
from prunelab.models import build_model
from prunelab.recipes.recipe import MaskingOptions, State
from prunelab.recipes.structures import carried_over
from prunelab.training import train

N_CLASSES = 7  # of the parent's images; digits have ten
SETTINGS = {"n_epochs": 1, "batch_size": 32, "learning_rate": 0.1, "schedule": "constant", "momentum": 0.9}
SETTINGS |= {"optimizer": "sgd", "weight_decay": 5e-4, "augment": True, "eval_every": 1}


def options(**changes):
    return MaskingOptions(**SETTINGS | {"model": "resnet8", "width": 0.25} | changes)


def parent(name="resnet8", *, density=0.5, num_classes=N_CLASSES, widths=None, in_channels=1):
    """A state as of a trained and masked network, its head masked too."""
    torch.manual_seed(0)
    shape = {"in_channels": in_channels, "image_size": 8, "width": 0.25, "widths": widths}
    model, generator = with_statistics(build_model(name, num_classes=num_classes, **shape)), torch.Generator()
    masks = {}
    for layer, weight in prunable_weights(model).items() if density < 1 else ():
        masks[layer] = random_mask(weight.shape, round(density * weight.numel()), generator=generator)
        weight.data.mul_(masks[layer])
    own = {"num_classes": num_classes, "options": {}, "training_macs": 0.0, "widths": widths or {}}
    return State(model=model.state_dict(), masks=masks, **own)


@pytest.mark.parametrize("name", ["resnet8", "preresnet20", "vgg11", "densenet22", "mobilenet_v1", "lenet_300_100"])
@pytest.mark.parametrize("num_classes", [N_CLASSES, 10])
def test_trunk_is_the_parents_and_the_head_is_new_and_dense(name, num_classes, digits):
    state = parent(name, num_classes=num_classes)
    torch.manual_seed(1)
    model, method = carried_over(options(model=name), digits, state)
    *trunk, head = prunable_weights(model)
    assert method.masks.keys() == set(trunk) and head in state.masks
    assert all(torch.equal(method.masks[layer], state.masks[layer]) for layer in trunk)
    for key, value in model.state_dict().items():
        if not key.startswith(f"{head}."):
            assert torch.equal(value, state.model[key])
    weight = model.get_submodule(head).weight
    assert (
        len(weight) == 10
        and weight.all()
        and not torch.equal(weight[:N_CLASSES], state.model[f"{head}.weight"][:N_CLASSES])
    )


def test_full_finetuning_moves_active_weights_and_the_head_and_takes_statistics_of_the_new_images(digits):
    state = parent()
    model, method = carried_over(options(), digits, state)
    head = model.fc.weight.detach().clone()
    train(model, digits, method=method, generator=torch.Generator(), **SETTINGS)
    for layer, mask in method.masks.items():
        weight, before = model.get_submodule(layer).weight.detach(), state.model[f"{layer}.weight"]
        assert torch.equal(mask, state.masks[layer]) and not weight[~mask].any()
        assert (weight != before)[mask].float().mean() > 0.9
    assert not torch.equal(model.fc.weight, head)
    assert not torch.equal(model.bn.running_mean, state.model["bn.running_mean"])


def test_dense_parent_needs_no_method_and_a_slim_one_keeps_its_widths(digits):
    state = parent("vgg11", density=1, widths={"blocks.0.conv": 5})
    model, method = carried_over(options(model="vgg11"), digits, state)
    assert method is None and model.blocks[0].conv.out_channels == 5
    assert torch.equal(model.blocks[1].conv.weight, state.model["blocks.1.conv.weight"])


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"width": 0.5},
            "the parent is no resnet8 of width 0.5; give the run its model and width: the state is another",
        ),
        ({"model": "resnet20"}, "the parent is no resnet20 of width 0.25; .* it lacks blocks.3.bn1.bias"),
    ],
)
def test_parent_of_another_network_is_refused(changes, said, digits):
    with pytest.raises(ValueError, match=said):
        carried_over(options(**changes), digits, parent())


@pytest.mark.parametrize("layer, shape", [("conv", (4, 3, 3, 3)), ("blocks.9.conv1", (4, 4, 3, 3)), ("bn", (4,))])
def test_mask_that_fits_no_layer_is_refused(layer, shape, digits):
    state = parent()
    state.masks[layer] = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"mask '{layer}' of shape .* fits no layer of ResNet"):
        carried_over(options(), digits, state)


def test_parent_of_coloured_images_is_refused_for_grey_ones(digits):
    with pytest.raises(ValueError, match=r"it has in another shape conv.weight"):
        carried_over(options(), digits, parent(in_channels=3))
