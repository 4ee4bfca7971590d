"""What slimmable training and the search for widths take, and what a found network gains."""

from collections.abc import Callable
from functools import partial

import torch

from prunelab import cost, data, latency, recipes, records, workers
from prunelab.bench.steps import N_WARM_UP, as_in_training
from prunelab.channels.dmcp import Markov
from prunelab.channels.groups import Grid, Widths
from prunelab.channels.slimmable import Sandwich, Slimmable, sandwich
from prunelab.models import build_model
from prunelab.recipes.common import image_of
from prunelab.steps import Stepper, build_optimizer, cross_entropy

N_STEPS, BATCH_SIZE = 8, 128


@as_in_training()
def sandwich_ratio(images: dict) -> float:
    """Divides a sandwich step of ResNet-20 by the sum of four plain steps of networks of its widths, taking turns."""
    device = workers.resolve_device("auto")
    dataset = data.load(images["dataset"], n_train=images["n_train"], device=device)
    build = partial(build_model, "resnet20", num_classes=dataset.num_classes, **image_of(dataset))
    slimmable = Slimmable(build().to(device, memory_format=torch.channels_last), **image_of(dataset))
    drawn: list[Widths] = sandwich(Grid(slimmable.groups))(torch.Generator().manual_seed(0))
    method = Sandwich(slimmable, lambda random: drawn, generator=torch.Generator())
    sides = {"sandwich": _step(dataset, slimmable.model, method)}
    for i, widths in enumerate(drawn):
        sides[f"plain {i}"] = _step(dataset, build(widths=widths).to(device, memory_format=torch.channels_last), None)
    spent = latency.in_turn(sides, n_rounds=N_STEPS, n_warm_up=N_WARM_UP)
    first, *others = (sorted(seconds)[N_STEPS // 2] for seconds in spent.values())
    return first / sum(others)


def _step(dataset: data.LabelledImages, model: torch.nn.Module, method: Sandwich | None) -> Callable[[int], None]:
    batches = dataset.train_batches(batch_size=BATCH_SIZE, augment=True, generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model.train(), momentum=0.9, weight_decay=1e-4)
    objective = method.objective if method else cross_entropy
    stepper = Stepper(model, optimizer, batches, method=method, objective=objective, is_static=method is None)

    def take_step(step: int) -> None:
        stepper.step(step)
        float(stepper.loss_sum)  # waits for a GPU

    return take_step


@as_in_training()
def gradient_milliseconds() -> float:
    """Times the gradient of ResNet-50's expected MACs at 224 pixels."""
    image = {"in_channels": 3, "image_size": 224}
    with torch.device("meta"):
        model = build_model("resnet50", num_classes=1000, **image)
    slimmable = Slimmable(model, **image)
    markov = Markov(Grid(slimmable.groups))

    def gradient(step: int) -> None:
        expected = slimmable.macs(markov.expected(), markov.variances())
        torch.autograd.grad(expected, [markov.alphas])

    return 1e3 * sorted(latency.in_turn({"gradient": gradient}, n_rounds=100, n_warm_up=10)["gradient"])[50]


def found_gains(*, batch_size: int, n_rounds: int) -> list[float]:
    """Returns the speed-up over the ratio of MACs of the network that DMCP found in the first of the main runs."""
    device, found = workers.resolve_device("auto"), {record["id"]: record for record in records.load("02_dmcp")}
    main = recipes.get("dmcp").experiments("small")["main_long"]
    record = next(found[run.id] for run in main if run.options.get("design") == "expected")
    build = partial(build_model, record["options"]["model"], width=record["options"]["width"], **record["image"])
    networks = {"large": build().to(device), "small": build(widths=record["widths"]).to(device)}
    image = {name: record["image"][name] for name in ("in_channels", "image_size")}
    large, small = (cost.total(cost.layer_table(network, **image), "macs") for network in networks.values())
    spent = latency.compare(networks, batch_size=batch_size, n_rounds=n_rounds, **image)
    rounds = zip(spent["large"].seconds, spent["small"].seconds, strict=True)
    return [before / after / (large / small) for before, after in rounds]
