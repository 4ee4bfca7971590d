"""DMCP: what a run is made of. A large network that learns to be any of its smaller ones, or one of these."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from prunelab.channels import designs
from prunelab.channels.autoslim import greedy
from prunelab.channels.dmcp import Search
from prunelab.channels.groups import Grid, Widths, leading_state
from prunelab.channels.metapruning import MetaNetwork, evolve
from prunelab.channels.slimmable import Sandwich, sandwich
from prunelab.channels.slimming import gamma_scores
from prunelab.data import LabelledImages
from prunelab.latency import n_bytes
from prunelab.methods.hooks import Hooks
from prunelab.precision import best_precision
from prunelab.recipes.common import generator_of, image_of, layers_of, network_of, stream_seed
from prunelab.recipes.dmcp.plan import DESIGNS, FINAL, FOUND, LOOKED_FOR, TRAININGS, DmcpOptions
from prunelab.recipes.dmcp.supernets import Judge, cut_accuracies, slimmable_of
from prunelab.recipes.prunings import PREPARATIONS
from prunelab.recipes.recipe import Outline, Setup, State, check_choices
from prunelab.recipes.structures import original_of
from prunelab.training import Result

N_GENERATIONS, N_CANDIDATES = 8, 24  # of evolution
_PASSES = {"slimmable": 2.4, "dmcp": 2.8, "distilled": 1.6}  # of the full network in a step, about


def check(options: DmcpOptions, *, n_parents: int) -> None:
    """Raises ValueError unless the options of a run go together."""
    is_final, looks = options.training in FINAL, options.training == "none"
    check_choices(options, {"training": TRAININGS, "design": DESIGNS if is_final else LOOKED_FOR if looks else (None,)})
    if not 0 < options.budget <= 1:
        raise ValueError(f"budget is a share of what the full network costs, in (0, 1]; got {options.budget}")
    if not 0 <= options.warm_up < 1:
        raise ValueError(f"warm_up is a share of the training, in [0, 1); got {options.warm_up}")
    wanted = int(looks or options.design in (*FOUND, "slimming"))
    if n_parents != wanted:
        raise ValueError(f"training={options.training} design={options.design} needs {wanted} parents, got {n_parents}")


def outline(options: DmcpOptions, dataset: LabelledImages) -> Outline:
    """Foretells the width of a network and the length of its training; several passes a step are as much longer."""
    if options.training == "none":
        return Outline(options.width, 0, n_evaluated=N_GENERATIONS * N_CANDIDATES * 2 * dataset.n_test)
    width = options.width * (options.budget**0.5 if options.training == "scratch" else 1.0)
    return Outline(width, round(_PASSES.get(options.training, 1.0) * options.n_epochs))


def setup(options: DmcpOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> Setup | dict:
    """Sets up a large network, a search, or a network of given or found widths with fresh values.

    Args:
        options: All of the run's.
        dataset: On the device where to train.
        parents: What found the widths, or what is searched.
        seed: Of every random stream.
    Raises:
        ValueError: A parent that does not fit or has diverged, or a budget that cannot be kept.
    """
    if any(parent.diverged for parent in parents):
        raise ValueError("the parent has diverged; no widths can be found in it")
    torch.manual_seed(seed)
    if options.training == "none":
        return _look(options, dataset, parents[0], seed=seed)
    return (_final if options.training in FINAL else _large)(options, dataset, parents, seed=seed)


def _large(options: DmcpOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> Setup:
    """The full network, to be trained as it is, at several widths, by a search, or by a network that makes weights."""
    slimmable, method = None, None
    if options.training == "dense":
        original = original_of(options, dataset, parents, seed=seed)
        model = original.model
        slimmable_of(options, dataset)  # what cannot be cut afterwards is refused now
        if options.penalty:
            method = PREPARATIONS["slimming"](original, 0)
    else:
        slimmable, cost, budget = slimmable_of(options, dataset)
        model = slimmable.model
        grid = Grid(slimmable.groups)
        shared = {"label_smoothing": options.label_smoothing, "generator": generator_of("widths", seed)}
        if options.training == "dmcp":
            method = Search(
                slimmable,
                cost,
                budget=budget,
                n_batches=options.n_epochs * (dataset.n_train // options.batch_size),
                warm_up=options.warm_up,
                penalty=options.budget_penalty,
                rate=options.alpha_rate,
                plain=not options.sandwich,
                **shared,
            )
        elif options.training == "slimmable":
            method = Sandwich(slimmable, sandwich(grid, independent=options.independent), **shared)
        else:
            model = MetaNetwork(slimmable).to(dataset.device)
            method = Sandwich(slimmable, lambda random: [grid.at(grid.drawn(random)[0])], **shared)

    def fields(result: Result) -> dict:
        if result.diverged:
            return {"metrics": {}}
        cut = cut_accuracies(model, slimmable, dataset, seed=seed)
        found = method.found(generator_of("direct", seed)) if isinstance(method, Search) else {}
        own = {"half_width_accuracy": cut[len(cut) // 2 - 1]}
        if options.training == "metapruning":  # its full width is trained as seldom as any other
            own["test_accuracy"] = cut[-1]
        history = getattr(method, "history", [])
        return {"cut": cut, "found": found, "history": history, "metrics": own, "state": {"found": found}}

    return _setup(options, dataset, model, method, fields)


def _look(options: DmcpOptions, dataset: LabelledImages, parent: State, *, seed: int) -> dict:
    """Looks for widths in a trained network, by its loss on the images that it is tested on; trains nothing."""
    started, losses, forward_macs = time.monotonic(), [], []
    slimmable, cost, budget = slimmable_of(options, dataset)
    model = MetaNetwork(slimmable).to(dataset.device) if options.design == "evolved" else slimmable.model
    try:
        model.load_state_dict(parent.model)
    except RuntimeError as error:
        raise ValueError(f"the parent is no {type(model).__name__} of {options.model}: {error}") from error
    judge = Judge(model, slimmable, dataset, seed=seed)

    def loss(widths: Widths) -> float:
        losses.append(judge(widths)[0])
        forward_macs.append(slimmable.macs.of(widths))
        return losses[-1]

    grid, generator = Grid(slimmable.groups), generator_of("evolution", seed)
    size = {"n_generations": N_GENERATIONS, "n_candidates": N_CANDIDATES}
    if options.design == "greedy":
        widths = greedy(grid, cost, budget=budget, loss=loss)
    else:
        widths = evolve(grid, cost, budget=budget, loss=loss, generator=generator, **size)
    found, own = {options.design: widths}, {"validation_loss": loss(widths)}
    own["total_training_macs"] = parent.training_macs + judge.n_images * sum(forward_macs)
    return {
        "metrics": own | {"macs_ratio": cost.of(widths) / cost.of(slimmable.full)},
        "curves": {"validation_loss": losses},
        "found": found,
        "seconds": time.monotonic() - started,
        "state": replace(parent, found=found, training_macs=own["total_training_macs"]),
    }


def _final(options: DmcpOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> Setup:
    """A network of given or found widths, with fresh values; trained by itself, or along with the full one."""
    large, cost, budget = slimmable_of(options, dataset)
    if options.design == "random":
        widths = designs.random(Grid(large.groups), cost, budget=budget, generator=generator_of("design", seed))
    elif options.design == "uniform":
        widths = designs.uniform(large.full, cost, budget=budget)
    elif options.design == "slimming":
        original = original_of(options, dataset, parents, seed=seed)
        norms = {name: original.traced.norm(name) for name in original.widths}
        gammas = gamma_scores(original.model, norms.values())
        widths = designs.slimmed(large.full, {name: gammas[norms[name]] for name in norms}, cost, budget=budget)
    elif options.design in parents[0].found and parents[0].options["width"] == options.width:
        widths = parents[0].found[options.design]
    else:
        has = ", ".join(parents[0].found) or "none: it is no search, or it diverged"
        raise ValueError(f"the parent has found no widths {options.design!r} for this network; it has found {has}")

    torch.manual_seed(stream_seed("scratch", seed))  # the same values, however the widths were found
    small = network_of(options, dataset, width=options.width, widths=widths)
    model, method = small.to(dataset.device, memory_format=torch.channels_last), None
    if options.training == "distilled":
        shared = {"label_smoothing": options.label_smoothing, "generator": generator_of("widths", seed)}
        model, method = large.model, Sandwich(large, lambda random: [large.full, widths], judged=widths, **shared)

    def trained() -> nn.Module:
        if method:
            small.load_state_dict(leading_state(small, large.model.state_dict()))
        return small

    own = {"depth_tilt": designs.depth_tilt(widths, large.full), "n_bytes": n_bytes(small)}

    def fields(result: Result) -> dict:
        return {"widths": widths, "metrics": own, "state": {"widths": widths}}

    return _setup(options, dataset, model, method, fields, trained=trained)


def _setup(
    options: DmcpOptions,
    dataset: LabelledImages,
    model: nn.Module,
    method: Hooks | None,
    fields: Callable[[Result], dict],
    **other: object,
) -> Setup:
    """What all trainings share; one at several widths a step has an objective of its own."""
    training: dict[str, object] = {"warmup_epochs": options.warmup_epochs, "label_smoothing": options.label_smoothing}
    if isinstance(method, Sandwich):
        training |= {"objective": method.objective, "is_static": False, "label_smoothing": 0.0}
        if best_precision(dataset.device.type, options.model) == "fp16":
            training["precision"] = "fp32"  # the gradient of alpha is not scaled
        other["forward_macs"] = lambda: method.macs / max(1, method.n_batches)

    def finish(result: Result) -> dict:
        shared = {"removed": [], "image": image_of(dataset) | {"num_classes": dataset.num_classes}}
        own = fields(result)
        return shared | own | {"metrics": {"n_epochs_trained": options.n_epochs} | own["metrics"]}

    return Setup(
        model,
        reference=layers_of(options, dataset, options.width),
        n_epochs=options.n_epochs,
        ordinary_epochs=options.n_epochs,
        training=training,
        method=method,
        finish=finish,
        **other,
    )
