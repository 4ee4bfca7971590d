"""What all tests share."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunelab import data, records, training
from prunelab.channels.trace import NORMS
from prunelab.masks import layer_weights
from prunelab.methods import METHODS
from prunelab.methods.static import active_counts
from prunelab.models import build_model
from prunelab.recipes.recipe import MaskingOptions
from prunelab.steps import Stepper

torch.set_num_threads(1)  # small networks are fastest so, and two threads beside a busy process crawl


def pytest_configure(config):
    config.pluginmanager.register(IgnoreStderr())


class IgnoreStderr:
    """nbval compares stderr too, where other machines' warnings and progress bars go."""

    def pytest_collectstart(self, collector):
        if collector.path.suffix == ".ipynb" and hasattr(collector, "skip_compare"):
            collector.skip_compare += ("stderr",)


def find_record(run_id, store=None):
    """This machine's record of one run, or None."""
    return next(iter(records.local(store, [run_id])), None)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits", n_train=256)


@pytest.fixture
def saved_each_step(monkeypatch):
    """Trainings save their state after each step, and report it."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))


def small_resnet(seed=0):
    """The smallest residual network, for digits."""
    torch.manual_seed(seed)
    return build_model("resnet8", num_classes=10, in_channels=1, image_size=8, width=0.25)


def build_method(name, model, *, density, generator, update_every, stop_step):
    """A method of any name, with ERK counts; None for those without a mask. A lottery begins with a dense round."""
    kind = METHODS[name]
    options = MaskingOptions(
        **{"model": "", "n_epochs": stop_step, "batch_size": 1, "optimizer": "", "schedule": "", "weight_decay": 0.0},
        density=1.0 if name == "lottery" else density,
        update_every=update_every,
        stop_update=1.0,
        begin_pruning=1 / stop_step,
        rewind_epochs=3.0,
        fisher_gradients=40,
    )

    def batches(**size):
        first = next(iter(layer_weights(model).values()))
        images = data.load("digits", n_train=256, in_colour=first.shape[1] == 3).to(first.device)
        return images.train_batches(augment=True, generator=torch.Generator().manual_seed(2), **size)

    return kind.build(
        model,
        options,
        masks=None,
        n_active=lambda: active_counts(model, density=density, distribution="erk"),
        n_epochs=stop_step,
        n_steps=stop_step,
        generator=lambda stream: generator,
        batches=batches,
    )


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
