"""What a recipe is: the options of its runs, the plan of each profile, and how a run is set up. It executes nothing."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

import pandas as pd
from torch import Tensor, nn

from prunelab.data import LabelledImages
from prunelab.methods.hooks import Hooks
from prunelab.runs import PROFILES, Option, Options, Run, build_options, check_choice, make_run, option
from prunelab.training import Result


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """What every run is given: its images, its network and its training. A recipe adds its own, and its defaults."""

    model: str = option("network, a key of models.MODELS")
    width: float = option("factor on the channels of every layer but the output", 1.0)
    dataset: str = option("images, a name that data.load knows", "cifar10")
    image_size: int | None = option("side in pixels to which images are shrunk; None leaves them as they are", None)
    n_train: int | None = option("training images, as many of each class; None takes all", None)
    n_validation: int | None = option("other training images, tested on in place of the test set; None has none", None)
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
    density_of: str | None = option(
        "network whose weights density is a share of, a key of models.MODELS; None is model", None
    )
    distribution: str = option("of the density over layers: erk, erdos_renyi or uniform", "erk")
    first_layer: str = option("dense, or by_distribution as all others", "by_distribution")
    equal: str = option("what an ERK network of the same density has as many of: weights or macs", "weights")
    drop_fraction: float = option("share of active weights that move at step 0", 0.3)
    update_every: int = option("steps between two changes of the masks", 100)
    stop_update: float = option("share of training after which masks stay", 0.75)
    decay: str = option("of the drop fraction, a key of schedules.DECAYS", "cosine")
    gradient_momentum: float = option("of SNFS: share of the mean gradient that each batch leaves", 0.9)
    begin_pruning: float = option("of GMP and WoodFisher: share of training before it; it ends at stop_update", 0.2)
    fisher_gradients: int = option("of WoodFisher: gradients from which each pruning estimates the Fisher matrix", 1000)
    fisher_images: int = option("images that each of these gradients is averaged over", 1)
    fisher_block: int = option("weights in a block of that matrix", 100)
    fisher_damping: float = option("added to its diagonal", 1e-5)
    fisher_joint: bool = option("whether its weights make up for all pruned ones jointly, not for each alone", False)
    phases: str = option("of AC/DC: when it compresses and decompresses, a key of acdc.PHASES", "imagenet")
    threshold_start: float = option("of STR: s at first; a layer's threshold is sigmoid(s)", -5.0)
    threshold_decay: float | None = option("of STR: weight decay of s; None is that of the weights", None)
    start: str = option("what a run takes from its parent, a key of masking.STARTS", "fresh")
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


def check_choices(options: Options, choices: Mapping[str, Iterable[Option]]) -> None:
    """Raises ValueError unless each named option is one of its choices."""
    for name, allowed in choices.items():
        check_choice(name, getattr(options, name), allowed)


@dataclass
class State:
    """What a run hands on to its children, whatever recipe they are of: any run's may be any other's parent.

    Attributes:
        model: State dict of the trained network.
        start: The values that a ticket rewinds to: those before training, or early in it; empty where none were kept.
        masks: Bool, True where a weight is active, by layer name; empty where nothing is masked.
        widths: Channels of the layers that have others than `options` says; empty where none has.
        removed: Names of the blocks that are gone.
        found: Widths of groups of layers that a search has found, by the name of the way they were chosen.
        factors: Of Sparse Structure Selection, by layer name; empty elsewhere.
        num_classes: Outputs of the network.
        options: All of the run's, by name; `width` is that of this network.
        training_macs: Spent on the run and on all its ancestors.
        diverged: Whether the loss stopped being finite.
    """

    model: dict[str, Tensor]
    num_classes: int
    options: dict[str, Option]
    training_macs: float
    start: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    found: dict[str, dict[str, int]] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    diverged: bool = False

    @property
    def lost(self) -> dict[str, dict | list]:
        """What the network has lost, `widths` and `removed`: to build one like it."""
        return {"widths": self.widths, "removed": self.removed}


@dataclass
class Setup:
    """What a recipe decides about a run before it is trained.

    Attributes:
        model: With the values to start from, on the data set's device.
        reference: Layer table of the network that costs are relative to.
        n_epochs: Length of the training.
        ordinary_epochs: Length of the reference's training, whose MACs are the unit of `training_macs_ratio`.
        training: Arguments of `training.training` besides the options of the same name, and in place of them.
        dataset: What is trained on, where the setup has made it of the run's images; None where it is those.
        method: Hooks of the training; None has none.
        state: Fields of `State` that training does not decide: what the network has lost, options that are others.
        forward_macs: Gives the MACs of a step's forward passes for one image, on average over the training; None where
            a step has one pass, of the whole network.
        trained: Gives the network that is left after training; None where it is `model`.
        finish: Called with what training gave; returns the fields that only this recipe records. Its `metrics` join the
            others, and its `state`, such as a `start` that training remembered, the one above.
    """

    model: nn.Module
    reference: list[dict]
    n_epochs: int
    ordinary_epochs: int
    training: Mapping[str, object] = field(default_factory=dict)
    dataset: LabelledImages | None = None
    method: Hooks | None = None
    state: Mapping[str, object] = field(default_factory=dict)
    forward_macs: Callable[[], float] | None = None
    trained: Callable[[], nn.Module] | None = None
    finish: Callable[[Result], dict] = lambda result: {}


@dataclass(frozen=True)
class Outline:
    """How large a run's network is and how long it trains, as far as can be told before its parents are trained.

    Attributes:
        width: Factor on the channels of every layer.
        n_epochs: Passes over the training images.
        n_evaluated: Images passed forward only, where that is not the test set after every `eval_every` epochs.
    """

    width: float
    n_epochs: int
    n_evaluated: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """A notebook's runs, of one recipe or of several.

    Attributes:
        name: As claims have it, and records where the runs are its own.
        notebook: Stem of the notebook that shows its findings.
        seeds: Those of each profile.
        experiments_of: Lists, by name, the runs of each experiment of a profile with given seeds.
        extended: Adds to `records.frame` and `records.planned` the rows that its claims compare besides single runs.
    """

    name: str
    notebook: str
    seeds: Mapping[str, tuple[int, ...]]
    experiments_of: Callable[[str, tuple[int, ...]], dict[str, list[Run]]]
    extended: Callable[[pd.DataFrame, pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]] = lambda *tables: tables

    def experiments(self, profile: str, *, seeds: Iterable[int] | None = None) -> dict[str, list[Run]]:
        """Lists the runs of each experiment of the notebook, by its name; some runs belong to several.

        Args:
            profile: One of `PROFILES`.
            seeds: Instead of the profile's own.
        Raises:
            ValueError: Unknown profile, no seed, or a seed twice.
        """
        check_choice("profile", profile, PROFILES)
        seeds = self.seeds[profile] if seeds is None else tuple(seeds)
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be one or more different numbers, got {list(seeds)}")
        return self.experiments_of(profile, seeds)

    def plan(self, profile: str, *, seeds: Iterable[int] | None = None) -> list[Run]:
        """Lists the runs behind the notebook's figures, each once; arguments and errors as for `experiments`."""
        experiments = self.experiments(profile, seeds=seeds)
        return list({run.id: run for runs in experiments.values() for run in runs}.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe(Study):
    """A paper's runs, and how each is made.

    Attributes:
        options: Class of its runs' options.
        check: Raises ValueError where options, or a number of parents, do not go together.
        outline: Foretells the cost of a run with given options on a data set.
        setup: Sets a run up from options, images and the states of its parents; or, where no network is to be trained,
            gives the fields of its record at once, and its `state` where it hands one on.
    """

    options: type[TrainingOptions]
    check: Callable[..., None]
    outline: Callable[[TrainingOptions, LabelledImages], Outline]
    setup: Callable[..., Setup | dict]

    @functools.cached_property  # asked for with every record that is read
    def defaults(self) -> dict[str, Option]:
        """Of all options, by name."""
        return asdict(self.options())

    def options_of(self, run: Run) -> TrainingOptions:
        """Returns all options of a run.

        Raises:
            ValueError: One that the recipe does not have, or of another type.
        """
        return build_options(self.name, self.options, run.options)

    def run(self, *, seed: int, parents: tuple[Run, ...] = (), n_gpus: int = 1, **options: Option) -> Run:
        """Makes a run whose options are checked, and stripped of those that are the defaults.

        Raises:
            ValueError: An option that the recipe does not have, one of another type, a seed below 0, or no GPU.
        """
        return make_run(self.name, self.options, seed=seed, parents=parents, n_gpus=n_gpus, **options)
