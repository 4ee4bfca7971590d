"""How one run of any recipe is executed: set up as the recipe says, trained, and accounted for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from prunelab import cost
from prunelab.data import LabelledImages
from prunelab.forecast import Workload
from prunelab.methods.hooks import Hooks
from prunelab.precision import best_precision
from prunelab.recipes.common import copy_of, dataset_of, foreseen, generator_of, image_of, layers_of, source_of
from prunelab.recipes.recipe import Recipe, Setup, State, TrainingOptions
from prunelab.runs import Run
from prunelab.training import Result, training
from prunelab.turns import Turns, exhaust

# Options that `training` takes by the same name.
_TRAINING = (
    *("batch_size", "optimizer", "learning_rate", "schedule", "momentum", "weight_decay"),
    *("augment", "eval_every"),
)

# What a record has where no network was trained.
_UNTRAINED = {"status": "finished", "layers": [], "moves": {}, "precision": "fp32", "state": None}


def execute(recipe: Recipe, run: Run, **arguments: object) -> dict:
    """Executes a run to its end; arguments, result and errors as for `executing`."""
    return exhaust(executing(recipe, run, **arguments))


def executing(
    recipe: Recipe,
    run: Run,
    *,
    device: str,
    parents: Sequence[State] = (),
    checkpoint: Path | None = None,
    report: Callable[[float], None] = lambda share: None,
    **own: object,
) -> Turns[dict]:
    """Executes a run step by step, so that several may take turns in one thread.

    Args:
        recipe: That of the run.
        run: One of a plan's.
        device: Where to train, "cpu" or "cuda".
        parents: What each of the run's parents hands on.
        checkpoint: File for the state of the unfinished run.
        report: Called now and then with the share of training done.
        own: What the recipe's `setup` takes besides, such as a reader's `grow_score`.
    Returns:
        The record's `status`, `metrics`, `curves`, `layers`, `moves` and what the recipe adds; its `seconds`,
        `precision` and `dataset`; and `state`, a `State`, or None where no network was trained.
    Raises:
        ValueError: An option that names nothing, options that do not go together, or a parent that does not fit.
    """
    options = recipe.options_of(run)
    recipe.check(options, n_parents=len(parents))
    for name in ("n_epochs", "batch_size", "eval_every"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    dataset = dataset_of(options, device)
    setup = recipe.setup(options, dataset, parents, seed=run.seed, **own)
    if isinstance(setup, dict):
        return _UNTRAINED | setup | {"dataset": source_of(dataset)}
    dataset = setup.dataset or dataset
    arguments = {name: getattr(options, name) for name in _TRAINING}
    arguments |= {"precision": best_precision(device, options.model), **setup.training}
    result = yield from training(
        setup.model,
        dataset,
        method=setup.method,
        n_epochs=setup.n_epochs,
        generator=generator_of("images", run.seed),
        checkpoint=checkpoint,
        report=report,
        **arguments,
    )
    if options.n_validation is not None:  # what was not tested must not look as if it were
        result.curves = {name.replace("test_", "validation_"): curve for name, curve in result.curves.items()}
    fields = setup.finish(result)
    method, trained = setup.method or Hooks(), setup.trained() if setup.trained else setup.model
    n_active = {name: int(mask.sum()) for name, mask in method.masks.items()}
    layers = cost.layer_table(trained, n_active=n_active, **image_of(dataset))
    metrics = _account(options, dataset, setup, result, layers)
    metrics["total_training_macs"] = metrics["training_macs"] + sum(parent.training_macs for parent in parents)
    state = {
        "model": copy_of(trained.state_dict()),
        "num_classes": dataset.num_classes,
        "options": asdict(options),
        "training_macs": metrics["total_training_macs"],
        "masks": dict(method.masks),
        "diverged": result.diverged,
    }
    return {
        "status": "diverged" if result.diverged else "finished",
        "metrics": metrics | fields.pop("metrics", {}),
        "curves": result.curves,
        "layers": layers,
        "moves": dict(method.moves),
        **fields,
        "seconds": result.seconds,
        "precision": arguments["precision"],
        "dataset": source_of(dataset),
        "state": State(**state | setup.state | fields.get("state", {})),
    }


def _account(
    options: TrainingOptions, dataset: LabelledImages, setup: Setup, result: Result, layers: list[dict]
) -> dict:
    """Metrics that every run has, measured on the final network."""
    macs, reference_macs = (cost.total(table, "macs") for table in (layers, setup.reference))
    n_active, n_reference = cost.total(layers, "n_active"), cost.total(setup.reference, "n_weights")
    dense, method = cost.layer_table(setup.model, **image_of(dataset)), setup.method or Hooks()
    counts = method.active_counts_over_time()
    forward_macs = cost.mean_macs(dense, counts, n_steps=result.n_steps) if counts else macs
    training_macs = cost.training_macs(
        cost.total(dense, "macs"),
        setup.forward_macs() if setup.forward_macs else forward_macs,
        n_samples=result.n_batches * options.batch_size + method.n_extra_images,
        n_dense_gradient_samples=method.n_dense_gradients * options.batch_size,
    )
    # Longer training is measured against the reference's training of ordinary length.
    n_ordinary = setup.ordinary_epochs * (dataset.n_train // options.batch_size) * options.batch_size
    ordinary_macs = cost.training_macs(reference_macs, reference_macs, n_samples=n_ordinary)
    return {
        **{name: curve[-1] for name, curve in result.curves.items() if name != "epoch"},
        "n_stored_weights": cost.total(layers, "n_weights"),
        "n_reference_weights": n_reference,
        "n_active": n_active,
        "measured_density": n_active / n_reference,
        "macs": macs,
        "macs_ratio": macs / reference_macs,
        "training_macs": training_macs,
        "training_macs_ratio": training_macs / ordinary_macs,
        "n_steps": result.n_steps,
        "n_batches": result.n_batches,
    }


def forecast(recipe: Recipe, run: Run) -> Workload:
    """Says what a machine will do for a run, by the recipe's outline."""
    options = recipe.options_of(run)
    dataset = foreseen(options)
    outline = recipe.outline(options, dataset)
    layers = layers_of(options, dataset, outline.width)
    n_tested = dataset.n_test * math.ceil(outline.n_epochs / options.eval_every)
    return Workload(
        model=options.model,
        width=outline.width,
        num_classes=dataset.num_classes,
        optimizer=options.optimizer,
        batch_size=options.batch_size,
        macs=cost.total(layers, "macs"),
        n_weights=cost.total(layers, "n_weights"),
        n_steps=outline.n_epochs * (dataset.n_train // options.batch_size),
        n_evaluated=n_tested if outline.n_evaluated is None else outline.n_evaluated,
        **image_of(dataset),
    )
