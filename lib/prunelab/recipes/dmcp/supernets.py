"""What recipes do with slimmable networks: build one, and judge it at some widths, with statistics taken anew."""

import copy

import torch
from torch import Tensor, nn

from prunelab.channels.costs import Cost, check_budget
from prunelab.channels.groups import Grid, Widths
from prunelab.channels.latency_table import LatencyTable
from prunelab.channels.slimmable import Slimmable, calibrate
from prunelab.cost import layer_table, total
from prunelab.data import LabelledImages
from prunelab.recipes.common import generator_of, image_of, network_of
from prunelab.recipes.dmcp.plan import DmcpOptions
from prunelab.training import evaluate

N_BATCHES, BATCH_SIZE = 4, 125  # of training images, from which statistics of batch normalisation are taken


def slimmable_of(options: DmcpOptions, dataset: LabelledImages) -> tuple[Slimmable, Cost, float]:
    """Builds the full network of a run with fresh values, slimmable, on the data set's device.

    Returns:
        The network; what its widths cost; and the run's budget, in the unit of that.
    Raises:
        ValueError: A network that cannot be slimmed, or a budget that cannot be kept.
    """
    model = network_of(options, dataset, width=options.width).to(dataset.device, memory_format=torch.channels_last)
    slimmable = Slimmable(model, **image_of(dataset))
    cost = slimmable.macs if options.cost == "macs" else LatencyTable.shipped(options.cost, slimmable.groups)
    budget = options.budget * cost.of(slimmable.full)
    grid = Grid(slimmable.groups)
    check_budget(budget, cost, grid)
    widths = grid.at(0)
    with torch.device("meta"):
        least = network_of(options, dataset, width=options.width, widths=widths)
    if total(layer_table(least, **image_of(dataset)), "macs") != slimmable.macs.of(widths):
        raise ValueError(
            f"{options.model} cannot be built with these widths: its builder ties layers of several groups"
        )
    return slimmable, cost, budget


class Judge:
    """Tests a slimmable network at any widths.

    Attributes:
        n_images: That pass forward for each of them.
    """

    def __init__(self, model: nn.Module, slimmable: Slimmable, dataset: LabelledImages, *, seed: int) -> None:
        """Args:
        model: The slimmable network, or one that contains it; its statistics are lost.
        slimmable: Whose widths are set.
        dataset: With the images that it is tested on; those for the statistics are of the training set.
        seed: Of their choice.
        """
        self.model, self.slimmable, self.dataset = model, slimmable, dataset
        size = min(BATCH_SIZE, dataset.n_train)
        batches = dataset.train_batches(batch_size=size, augment=False, generator=generator_of("calibration", seed))
        self.batches: list[Tensor] = [next(batches)[0].clone() for _ in range(N_BATCHES)]
        self.n_images = dataset.n_test + N_BATCHES * size

    def __call__(self, widths: Widths) -> tuple[float, float]:
        """Returns the mean loss and the accuracy."""
        self.slimmable.set(widths)
        calibrate(self.model, self.batches)
        return evaluate(self.model, self.dataset)


def cut_accuracies(model: nn.Module, slimmable: Slimmable | None, dataset: LabelledImages, *, seed: int) -> list[float]:
    """Returns the accuracy when every group keeps its first tenth, two tenths … of channels, up to all of them.

    Args: as for `Judge`, which tests a copy; an ordinary network is made slimmable.
    """
    model, slimmable = copy.deepcopy((model, slimmable))
    slimmable = slimmable or Slimmable(model, **image_of(dataset))
    judge, grid = Judge(model, slimmable, dataset, seed=seed), Grid(slimmable.groups)
    return [judge(grid.at(choice))[1] for choice in range(grid.choices.shape[1])]
