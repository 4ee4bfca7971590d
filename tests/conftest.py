"""What all tests share."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunelab import data
from prunelab.channels.trace import NORMS
from prunelab.methods import METHODS
from prunelab.methods.dynamic import Dynamic, SparseMomentum
from prunelab.methods.gradual import GradualPruning
from prunelab.methods.lottery import Ticket
from prunelab.methods.snip import Snip
from prunelab.methods.static import active_counts, initial_masks
from prunelab.models import build_model
from prunelab.steps import Stepper

torch.set_num_threads(1)  # small networks are fastest so, and two threads beside a busy process crawl


def pytest_configure(config):
    config.pluginmanager.register(IgnoreStderr())


class IgnoreStderr:
    """nbval compares stderr too, where other machines' warnings and progress bars go."""

    def pytest_collectstart(self, collector):
        if collector.path.suffix == ".ipynb" and hasattr(collector, "skip_compare"):
            collector.skip_compare += ("stderr",)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits", n_train=256)


def small_resnet(seed=0):
    """The smallest residual network, for digits."""
    torch.manual_seed(seed)
    return build_model("resnet8", num_classes=10, in_channels=1, image_size=8, width=0.25)


def build_method(name, model, *, density, generator, update_every, stop_step):
    """A method of any name, with ERK masks or counts; None for those without a mask."""
    kind = METHODS[name]
    if kind is None:
        return None
    if kind in (Snip, GradualPruning):
        steps = {"begin_step": 1, "end_step": stop_step, "update_every": update_every} if kind is GradualPruning else {}
        return kind(model, active_counts(model, density=density, distribution="erk"), **steps)
    masks = initial_masks(model, density=density, distribution="erk", generator=generator)
    options = {"rewind_steps": 3} if kind is Ticket else {}
    if issubclass(kind, Dynamic):
        options = {"initial_drop_fraction": 0.3, "decay": "cosine", "generator": generator}
        options |= {"update_every": update_every, "stop_update_step": stop_step}
    if kind is SparseMomentum:
        options["gradient_momentum"] = 0.9
    return kind(model, masks, **options)


def with_statistics(model):
    """The model in evaluation mode, its batch normalisations filled with numbers, as if they had seen some."""
    for module in model.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def train_step(model, optimizer, images, labels, step, **options):
    """One step on a batch in hand: its loss, and whether the optimizer stepped. Options as for `Stepper`."""
    batches = SimpleNamespace(advance=lambda: None, current=lambda: (images, labels))
    stepper = Stepper(model, optimizer, batches, **options)
    stepped = stepper.step(step)
    return stepper.loss_sum, stepped


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
