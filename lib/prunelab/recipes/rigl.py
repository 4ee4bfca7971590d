"""RigL and its rivals: how one run of `01_rigl` is executed. What is run stands in `rigl_plan`."""

import bisect
import functools
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunelab import cost, data, landscape, units
from prunelab.density import check_density
from prunelab.masks import prunable_weights
from prunelab.methods import METHODS, check_method, lottery
from prunelab.methods.dynamic import CustomGrowth, Dynamic, SparseMomentum
from prunelab.methods.gradual import GradualPruning
from prunelab.methods.lottery import Ticket
from prunelab.methods.snip import Snip
from prunelab.methods.static import Static, active_counts, initial_masks
from prunelab.models import build_model
from prunelab.recipes.rigl_plan import NOTEBOOK, OPTIONS, PROFILES, experiments, plan
from prunelab.runs import Option, Run
from prunelab.training import Result, train

__all__ = ["NOTEBOOK", "OPTIONS", "PROFILES", "execute", "experiments", "forecast", "plan"]

Masks = dict[str, Tensor]
Options = dict[str, Option]


def execute(
    run: Run,
    *,
    device: str,
    parents: Sequence[dict] = (),
    checkpoint: Path | None = None,
    report: Callable[[float], None] = lambda share: None,
    grow_score: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict:
    """Trains one run.

    Args:
        run: One of a plan's.
        device: Where to train, "cpu" or "cuda".
        parents: The `state` of each of the run's parents.
        checkpoint: File for the state of the unfinished run.
        report: Called now and then with the share of training done.
        grow_score: The reader's own criterion in place of RigL's; see `methods.dynamic.CustomGrowth`.
    Returns:
        The record's `status`, `metrics`, `curves`, `layers` and `moves`; `units` of a multi-layer perceptron; `seconds`
        and `dataset`; and `state`, from which children start: `model`, `masks`, and `start`, the values before training
        (or after `rewind_epochs` of it).
    Raises:
        ValueError: An option that names nothing, a density outside (0, 1], or a parent that does not fit.
    """
    options = OPTIONS | dict(run.options)
    _check(options, n_parents=len(parents))
    dataset = _dataset(options, device)
    if options["path"]:
        return _follow_path(options, dataset, parents, seed=run.seed)

    # Initialisation, and dropout where there is any.
    torch.manual_seed(run.seed if options["start"] != "reinitialised" else _stream("reinitialised", run.seed))
    model = build(options, dataset)
    masks = STARTS[options["start"]](options, model, parents, run.seed)
    model = model.to(device)
    start = _copy(model.state_dict())
    method = _build_method(options, model, masks, dataset, seed=run.seed, grow_score=grow_score)
    result = train(
        model,
        dataset,
        method=method,
        n_epochs=_n_epochs(options),
        generator=_generator("images", run.seed),
        checkpoint=checkpoint,
        report=report,
        **{name: options[name] for name in _TRAINING_OPTIONS},
    )

    if isinstance(method, Ticket):
        start = method.start
    layers, metrics = _account(options, dataset, model, method, result)
    if parents:
        metrics["total_training_macs_ratio"] = metrics["training_macs_ratio"] + sum(
            parent["total_training_macs_ratio"] for parent in parents
        )
    final = method.masks if method else None
    of_units = _units(model, final) if options["model"] == "lenet_300_100" else {}
    if of_units:
        metrics |= units.input_shares(of_units["input_connections"], image_size=dataset.image_size)
    return {
        "status": "diverged" if result.diverged else "finished",
        "metrics": metrics,
        "curves": result.curves,
        "layers": layers,
        "moves": method.moves if isinstance(method, Dynamic | GradualPruning) else {},
        **({"units": of_units} if of_units else {}),
        "seconds": result.seconds,
        "dataset": {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
        "state": {
            "model": _copy(model.state_dict()),
            "masks": final,
            "start": start,
            "total_training_macs_ratio": metrics.get("total_training_macs_ratio", metrics["training_macs_ratio"]),
        },
    }


def forecast(run: Run) -> float:
    """MACs that a machine performs to train a run. Masks save none of them: zeros are multiplied as well."""
    options = OPTIONS | dict(run.options)
    dataset = _dataset(options, "cpu")
    with torch.device("meta"):
        macs = cost.total(cost.layer_table(build(options, dataset), **_image(dataset)), "macs")
    return cost.training_macs(macs, macs, n_samples=_n_steps(options, dataset) * options["batch_size"])


def _check(options: Options, *, n_parents: int) -> None:
    check_method(options["method"])
    check_density(options["density"])
    for name, allowed in (("start", tuple(STARTS)), ("equal", ("weights", "macs")), ("path", (None, *_CONTROL_POINTS))):
        if options[name] not in allowed:
            raise ValueError(f"unknown {name} {options[name]!r}; there are {', '.join(map(str, allowed))}")
    wanted = 2 if options["path"] else int(options["start"] != "fresh")
    if n_parents != wanted:
        raise ValueError(f"start={options['start']} path={options['path']} needs {wanted} parents, got {n_parents}")
    if options["start"] != "fresh" and METHODS[options["method"]] in (None, Snip, GradualPruning):
        raise ValueError(f"{options['method']} chooses its own mask and takes none from a parent; use start='fresh'")
    if options["method"] == "lottery" and options["start"] == "fresh" and options["density"] < 1.0:
        raise ValueError("the first round of a lottery is dense: density 1.0; later rounds have a parent")


# The runs of a plan share their images, and a worker trains many of them.
def _dataset(options: Options, device: str) -> data.Dataset:
    return _load(*(options[name] for name in ("dataset", "image_size", "n_train", "in_colour")), device)


@functools.lru_cache(maxsize=4)
def _load(name: str, image_size: int | None, n_train: int | None, in_colour: bool, device: str) -> data.Dataset:
    return data.load(name, image_size=image_size, n_train=n_train, in_colour=in_colour, device=device)


def _n_epochs(options: Options) -> int:
    return round(options["n_epochs"] * options["train_multiplier"])


def _n_steps(options: Options, dataset: data.Dataset) -> int:
    return _n_epochs(options) * (len(dataset.train_labels) // options["batch_size"])


_TRAINING_OPTIONS = (
    "batch_size",
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "augment",
    "eval_every",
)


def _stream(name: str, seed: int) -> int:
    # Streams of one seed must not be the same numbers, and hash() differs between processes.
    return zlib.crc32(f"{name} {seed}".encode())


def _generator(stream: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(_stream(stream, seed))


def _image(dataset: data.Dataset) -> dict[str, int]:
    return {"in_channels": dataset.channels, "image_size": dataset.image_size}


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def _from_ticket(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """Mask and start values of the parent; in a lottery the mask is what pruning leaves of the parent's."""
    lottery.load_values(model, parents[0]["start"])
    return _parent_masks(options, model, parents[0])


def _reinitialised(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """The ticket's mask alone; the model has new random values."""
    return _parent_masks(options, model, parents[0])


def _shuffled(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """The ticket's values under a random mask with as many active weights in each layer."""
    masks = _from_ticket(options, model, parents, seed)
    return lottery.shuffled(masks, generator=_generator("shuffled", seed))


def _solution(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """Mask and trained values of the parent."""
    lottery.load_values(model, parents[0]["model"])
    return _parent_masks(options, model, parents[0])


# What a run takes from its parent. Each puts values into the model and returns the masks to begin with, or None.
STARTS: dict[str, Callable[[Options, nn.Module, Sequence[dict], int], Masks | None]] = {
    "fresh": lambda options, model, parents, seed: None,
    "ticket": _from_ticket,
    "reinitialised": _reinitialised,
    "shuffled": _shuffled,
    "solution": _solution,
}


def _parent_masks(options: Options, model: nn.Module, parent: dict) -> Masks:
    if parent["masks"] is None:
        raise ValueError("the parent was trained dense: it has no mask to start from")
    if options["method"] != "lottery":
        return parent["masks"]
    trained = {name: parent["model"][f"{name}.weight"] for name in parent["masks"]}
    return lottery.keep_largest(trained, parent["masks"], density=options["density"])


def _build_method(
    options: Options,
    model: nn.Module,
    masks: Masks | None,
    dataset: data.Dataset,
    *,
    seed: int,
    grow_score: Callable[[Tensor, Tensor], Tensor] | None,
) -> Static | None:
    method = METHODS[options["method"]]
    if method is None:
        return None
    n_steps = _n_steps(options, dataset)
    stop_step = round(options["stop_update"] * n_steps)
    if method is Ticket:
        if not 0 <= options["rewind_epochs"] <= _n_epochs(options):
            raise ValueError(
                f"cannot rewind to epoch {options['rewind_epochs']:g}: training has {_n_epochs(options)};"
                " rewind_epochs must lie between 0 and that"
            )
        is_first = masks is None
        if is_first:
            masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in lottery.ticket_layers(model).items()}
        rewind_steps = round(options["rewind_epochs"] * n_steps / _n_epochs(options)) if is_first else 0
        return Ticket(model, masks, rewind_steps=rewind_steps)
    if masks is None:
        allocation = {"density": _density(options, model, dataset)}
        allocation |= {name: options[name] for name in ("distribution", "first_layer")}
        counts = active_counts(model, **allocation)
        if method is Snip:
            return Snip(model, counts)
        if method is GradualPruning:
            begin_step = round(options["begin_pruning"] * n_steps)
            update_every = options["update_every"]
            return GradualPruning(model, counts, begin_step=begin_step, end_step=stop_step, update_every=update_every)
        masks = initial_masks(model, generator=_generator("masks", seed), **allocation)
    if method is Static:
        return Static(model, masks)
    more = {"gradient_momentum": options["gradient_momentum"]} if method is SparseMomentum else {}
    if grow_score is not None:
        method, more = CustomGrowth, {"score": grow_score}
    return method(
        model,
        masks,
        initial_drop_fraction=options["drop_fraction"],
        update_every=options["update_every"],
        stop_update_step=stop_step,
        decay=options["decay"],
        generator=_generator("moves", seed),
        **more,
    )


def _density(options: Options, model: nn.Module, dataset: data.Dataset) -> float:
    """The density to allocate: that of the options, or the one at which MACs are those of ERK at that density."""
    if options["equal"] == "weights":
        return options["density"]
    layers = cost.layer_table(model, **_image(dataset))
    erk = active_counts(model, density=options["density"], distribution="erk", first_layer=options["first_layer"])
    n_active = {name: options[name] for name in ("distribution", "first_layer")}
    return cost.matching_density(
        layers,
        lambda density: active_counts(model, density=density, **n_active),
        macs=cost.total(cost.layer_table(model, n_active=erk, **_image(dataset)), "macs"),
    )


def _account(
    options: Options, dataset: data.Dataset, model: nn.Module, method: Static | None, result: Result
) -> tuple[list[dict], dict]:
    """Layer table and metrics, measured on the final network."""
    reference = cost.layer_table(_model(options, dataset, options["width"]), **_image(dataset))
    own = cost.layer_table(model, **_image(dataset))
    n_active = {name: int(mask.sum()) for name, mask in method.masks.items()} if method else {}
    layers = cost.layer_table(model, n_active=n_active, **_image(dataset))
    n_weights, macs, dense_macs = (
        cost.total(table, key) for table, key in ((reference, "n_weights"), (layers, "macs"), (reference, "macs"))
    )
    training_macs = cost.training_macs(
        cost.total(own, "macs"),
        _mean_macs(own, method, result.n_steps) if isinstance(method, GradualPruning) else macs,
        n_samples=result.n_batches * options["batch_size"],
        n_dense_gradient_samples=method.n_dense_gradients * options["batch_size"] if method else 0,
    )
    # Longer training is measured against dense training of ordinary length.
    n_steps = _n_steps(options | {"train_multiplier": 1.0}, dataset)
    dense_training_macs = cost.training_macs(dense_macs, dense_macs, n_samples=n_steps * options["batch_size"])
    return layers, {
        "test_accuracy": result.curves["test_accuracy"][-1],
        "test_loss": result.curves["test_loss"][-1],
        "train_loss": result.curves["train_loss"][-1],
        "n_weights": n_weights,
        "n_active": cost.total(layers, "n_active"),
        "measured_density": cost.total(layers, "n_active") / n_weights,
        "macs": macs,
        "macs_ratio": macs / dense_macs,
        "training_macs": training_macs,
        "training_macs_ratio": training_macs / dense_training_macs,
        "n_steps": result.n_steps,
        "n_batches": result.n_batches,
    }


def _mean_macs(dense: list[dict], method: GradualPruning, n_steps: int) -> float:
    """MACs of a forward pass, averaged over a training in which layers lose weights now and then."""
    per_weight = {layer["name"]: layer["macs"] / layer["n_weights"] for layer in dense}
    dense_macs = cost.total(dense, "macs")
    stops = [*method.moves["step"], n_steps]
    total = dense_macs * stops[0]
    for counts, step, stop in zip(method.moves["n_active"], stops[:-1], stops[1:], strict=True):
        lost = sum(
            (weight.numel() - n) * per_weight[name]
            for (name, weight), n in zip(method.weights.items(), counts, strict=True)
        )
        total += (dense_macs - lost) * (stop - step)
    return total / n_steps


def _units(model: nn.Module, masks: Masks | None) -> dict:
    """Of a perceptron: units that survive, what it takes without the others, and connections of each input."""
    weights = prunable_weights(model)
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    layers = [mask.cpu() for mask in (full | (masks or {})).values()]
    return {
        "surviving": [int(alive.sum()) for alive in units.surviving(layers)],
        "input_connections": layers[0].sum(dim=0).tolist(),
        **units.compact_table(layers),
    }


# Control points of the curve between two solutions, and whether they are free to leave the sparse subspace.
_CONTROL_POINTS = {
    "line": (0, False),
    "quadratic_sparse": (1, False),
    "cubic_sparse": (2, False),
    "quadratic_dense": (1, True),
}


def _follow_path(options: Options, dataset: data.Dataset, parents: Sequence[dict], *, seed: int) -> dict:
    """The training loss between two solutions, along a curve that is optimised first; the line needs no training."""
    started = time.monotonic()
    n_control_points, is_dense = _CONTROL_POINTS[options["path"]]
    device = dataset.train_labels.device
    model = build(options, dataset).to(device)
    ends = [parent["model"] for parent in parents]
    union = landscape.union_masks(*(parent["masks"] or {} for parent in parents))  # a dense one masks nothing
    control_points = []
    if n_control_points:
        control_points = landscape.fit_curve(
            model,
            *ends,
            dataset,
            n_control_points=n_control_points,
            masks=None if is_dense else {name: mask.to(device) for name, mask in union.items()},
            n_steps=_n_steps(options, dataset),
            generator=_generator("path", seed),
            **{name: options[name] for name in ("batch_size", "learning_rate", "momentum")},
        )
    positions, losses = landscape.loss_along(model, *ends, dataset, control_points=control_points)
    return {
        "status": "finished",
        "metrics": {"loss_barrier": landscape.barrier(losses), "train_loss": max(losses)},
        "curves": {"position": positions, "train_loss": losses},
        "layers": [],
        "moves": {},
        "seconds": time.monotonic() - started,
        "dataset": {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
        "state": {},
    }


# A small dense network's width is found to this fraction of the full one's.
_WIDTH_STEPS = 256
_MATCHED = {"small_dense": "n_active", "small_dense_macs": "macs"}


def build(options: Options, dataset: data.Dataset) -> nn.Module:
    """The network of a run at its initialisation, on the CPU; a small dense one as wide as its rival's size allows."""
    share = 1.0
    if options["method"] in _MATCHED:
        share = _matching_share(options, dataset, key=_MATCHED[options["method"]])
    return _model(options, dataset, options["width"] * share)


def _model(options: Options, dataset: data.Dataset, width: float) -> nn.Module:
    return build_model(
        options["model"],
        num_classes=dataset.num_classes,
        in_channels=dataset.channels,
        image_size=dataset.image_size,
        width=width,
    )


def _matching_share(options: Options, dataset: data.Dataset, *, key: str) -> float:
    """Share of the width at which a dense network has as many weights, or MACs, as the sparse one."""

    with torch.device("meta"):  # shapes without numbers, and no random number drawn
        reference = _model(options, dataset, options["width"])
    allocation = {name: options[name] for name in ("density", "distribution", "first_layer")}
    n_active = active_counts(reference, **allocation)
    target = cost.total(cost.layer_table(reference, n_active=n_active, **_image(dataset)), key)

    def size(k: int) -> int:
        with torch.device("meta"):
            model = _model(options, dataset, options["width"] * k / _WIDTH_STEPS)
        return cost.total(cost.layer_table(model, **_image(dataset)), key)

    k = bisect.bisect_left(range(_WIDTH_STEPS + 1), target, lo=1, key=size)  # the first that reaches the target
    return min((max(k - 1, 1), k), key=lambda k: abs(size(k) - target)) / _WIDTH_STEPS
