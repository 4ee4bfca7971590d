"""Options that several recipes share: those of every training, and those of masks on weights."""

from dataclasses import dataclass

from prunelab.runs import Options, option


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """What every run is given: its images, its network and its training. A recipe adds its own, and its defaults."""

    model: str = option("network, a key of models.MODELS")
    width: float = option("factor on the channels of every layer but the output", 1.0)
    dataset: str = option("images, a name that data.load knows", "cifar10")
    image_size: int | None = option("side in pixels to which images are shrunk; None leaves them as they are", None)
    n_train: int | None = option("training images, as many of each class; None takes all", None)
    in_colour: bool = option("whether grey images get three equal channels", False)
    n_epochs: int = option("passes over the training images")
    batch_size: int = option("images a step")
    optimizer: str = option("a key of steps.OPTIMIZERS")
    learning_rate: float = option("peak of the learning rate", 0.1)
    schedule: str = option("of the learning rate, a key of schedules.LEARNING_RATES")
    momentum: float = option("of the optimizer; beta_1 of Adam", 0.9)
    weight_decay: float = option("added to the gradient, times the weight")
    augment: bool = option("random crops, and flips where the images allow them", True)
    eval_every: int = option("epochs between two evaluations", 1)


@dataclass(frozen=True, kw_only=True)
class MaskingOptions(TrainingOptions):
    """Which weights are active, and when that changes."""

    method: str = option("how connections are chosen, a key of methods.METHODS", "rigl")
    density: float = option("share of weights that are active", 0.1)
    distribution: str = option("of the density over layers: erk, erdos_renyi or uniform", "erk")
    first_layer: str = option("dense, or by_distribution as all others", "by_distribution")
    equal: str = option("what an ERK network of the same density has as many of: weights or macs", "weights")
    drop_fraction: float = option("share of active weights that move at step 0", 0.3)
    update_every: int = option("steps between two changes of the masks", 100)
    stop_update: float = option("share of training after which masks stay", 0.75)
    decay: str = option("of the drop fraction, a key of schedules.DECAYS", "cosine")
    gradient_momentum: float = option("of SNFS: share of the mean gradient that each batch leaves", 0.9)
    begin_pruning: float = option("of GMP: share of training before it; it ends at stop_update", 0.2)
    start: str = option("what a run takes from its parent, a key of starts.STARTS", "fresh")
    rewind_epochs: float = option("of a lottery: epochs whose end tickets rewind to; 0 is initialisation", 0.0)


@dataclass(frozen=True, kw_only=True)
class PruningOptions(TrainingOptions):
    """How a trained network is pruned."""

    pruning: str | None = option("how the structure is found, a key of prunings.PRUNINGS, or prepared for", None)
    target: str | None = option("the paper's predefined structure, a key of channels.filters.TARGETS", None)
    density: float = option("share of channels, or of single weights, that stays where there is no target", 1.0)
    penalty: float = option("of slimming's gammas and selection's factors, while the original network trains", 0.0)
    start: str = option(
        "values of a scratch training: reinitialised; ticket, the original's first ones", "reinitialised"
    )
