"""The recipe of 03_rethinking: what it compares differs in what it says, and in nothing else."""

import functools
import itertools
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from prunelab import data, paths, records
from prunelab.channels.trace import NORMS
from prunelab.engine import with_parents
from prunelab.masks import layer_weights
from prunelab.methods.magnitude import conv_weights
from prunelab.models import build_model
from prunelab.recipes import PROFILES, RETHINKING, runner
from prunelab.recipes.prunings import PREPARATIONS, PRUNINGS, WEIGHT_PRUNINGS
from prunelab.recipes.recipe import State
from prunelab.recipes.rethinking.plan import PROFILES as PLANS
from prunelab.recipes.rethinking.plan import SCRATCH, TRAININGS, RethinkingOptions
from prunelab.recipes.structures import from_scratch, original_of
from prunelab.training import evaluate

TINY = {"dataset": "digits", "n_train": 128, "n_epochs": 2, "fine_tune_epochs": 1}
VGG = {"model": "vgg11", "width": 0.125}
RESNET = {"model": "resnet8", "width": 0.5}
PRERESNET = {"model": "preresnet20", "width": 0.25}
DENSENET = {"model": "densenet22", "width": 0.25}
RESNEXT = {"model": "resnext20"}  # at half its width its first groups would be of one channel, which is no group
STILL = {"learning_rate": 1e-30, "fine_tune_rate": 1e-30}  # moves nothing that is not zero
WIDTHS = [8, 16, 32, 32, 64, 64, 64, 64]  # of the blocks of VGG
STAGES = {"64": [0], "16": [1], "4": [2, 3], "1": [4, 5, 6, 7]}  # blocks of vgg11 by positions of maps, at 8 pixels
N_STEPS = 256  # to which a uniform or guided design is found


def execute(*parents, seed=0, **options):
    run = RETHINKING.run(seed=seed, **TINY | options)
    return runner.execute(RETHINKING, run, device="cpu", parents=[parent["state"] for parent in parents])


@functools.cache
def large(**options):
    """A trained large network, to be left as it is."""
    return execute(**options)


def digits():
    return data.load("digits", n_train=TINY["n_train"])


def build(*, model, width=1.0, widths=None):
    return build_model(model, num_classes=10, in_channels=1, image_size=8, width=width, widths=widths)


def lively(seed=0, **options):
    """The state of a network in which every channel matters, as though it had been trained."""
    torch.manual_seed(seed)
    model = build(**options)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, NORMS):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5)
    return State(
        model=model.state_dict(),
        start=start,
        num_classes=10,
        options=asdict(RethinkingOptions(**TINY | options)),
        training_macs=0.0,
    )


def to_prune(*states, seed=0, **options):
    """What a way of pruning looks at."""
    return original_of(RethinkingOptions(**TINY | options), digits(), states, seed=seed)


def prune(*states, seed=0, **options):
    """A network, and what one way of pruning leaves of it."""
    source = to_prune(*states, seed=seed, **options)
    return source, PRUNINGS[options["pruning"]](source)


def outputs(model):
    """Of the test images, in double precision, so that equal networks agree to the last digits."""
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model.double().eval()(images).detach()


def silence(model, source, kept):
    """Holds what normalisation makes of the channels that are not kept at zero."""
    for name, indices in kept.items():
        active = torch.zeros(source.widths[name])
        active[indices] = 1.0
        norm = model.get_submodule(source.traced.norm(name))
        norm.register_forward_hook(lambda norm, inputs, output, active=active: output * active.view(1, -1, 1, 1))
    return model


def is_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def shapes(state):
    return {name: value.shape for name, value in state.items()}


def selected(state):
    return {name: value.tolist() for name, value in state.items() if name.endswith("select.indices")}


def ids(runs):
    return [run.id for run in runs]


def options_of(run):
    return asdict(RETHINKING.options_of(run))


def planned(key, *, profiles=PROFILES):
    """Values of options that occur together in the plans."""
    runs = (run for profile in profiles for run in with_parents(RETHINKING.plan(profile, seeds=[0])))
    return sorted({tuple(options_of(run)[name] for name in key) for run in runs}, key=str)


def parents_for(pruning, **network):
    """Large networks such as the plans prune this way."""
    design = pruning in ("uniform", "guided")
    preparation = "slimming" if design else pruning if pruning in PREPARATIONS else None
    options = {"pruning": preparation, "penalty": 0.03} if preparation else {}
    if preparation == "soft":
        options = {"pruning": "soft", "density": 0.5}
    return [large(**network, **options)] * (0 if pruning == "predefined" else 1 + pruning.startswith("guided"))


# Executing runs.


def test_every_way_of_pruning_and_preparing_is_planned():
    found = planned(("training", "pruning"))
    assert {pruning for training, pruning in found if training == "dense"} == {None, *PREPARATIONS}
    assert {pruning for training, pruning in found if training != "dense"} == set(PRUNINGS)
    assert {training for training, _ in found} == set(TRAININGS)


@pytest.mark.parametrize("training, pruning, start", planned(("training", "pruning", "start")))
def test_costs_are_measured_on_the_final_network(training, pruning, start):
    is_large = training == "dense"
    density = {"selection": 1.0, None: 1.0}.get(pruning, 0.5)
    parents = [] if is_large else parents_for(pruning, **VGG)
    options = {"training": training, "pruning": pruning, "start": start, "density": density, "max_epochs": 5}
    result = execute(*parents, **VGG, **options, penalty=0.03 if is_large else 0.0)
    metrics, layers, dense = result["metrics"], result["layers"], large(**VGG)["metrics"]
    assert result["status"] == "finished" and all(math.isfinite(value) for value in metrics.values())
    assert ("inherited_accuracy" in metrics) == (training == "fine_tune")
    weights = [value for name, value in result["state"].model.items() if name.endswith(("conv.weight", "fc.weight"))]
    assert metrics["n_stored_weights"] == sum(weight.numel() for weight in weights)
    for metric, column in (("n_active", "n_active"), ("n_stored_weights", "n_weights"), ("macs", "macs")):
        assert metrics[metric] == sum(layer[column] for layer in layers)
    n_zero = sum(int((~mask).sum()) for mask in result["state"].masks.values())
    assert metrics["n_active"] == metrics["n_stored_weights"] - n_zero
    assert metrics["measured_density"] == metrics["n_active"] / dense["n_stored_weights"]
    assert metrics["macs_ratio"] == metrics["macs"] / dense["macs"]
    state = result["state"].model
    n_bytes = sum(value.numel() * value.element_size() for value in state.values())
    assert 0 < metrics["n_bytes"] - n_bytes < 1000 * len(state)  # the file's own tables
    assert metrics["n_steps"] == 2 * metrics["n_epochs_trained"] == 2 * result["curves"]["epoch"][-1]
    # 128 images an epoch, three passes each: what 2 epochs of the large network cost is the unit.
    assert metrics["training_macs"] == metrics["n_steps"] * 64 * 3 * metrics["macs"]
    assert metrics["training_macs_ratio"] == pytest.approx(metrics["n_steps"] / 4 * metrics["macs_ratio"])
    spent_before = sum(parent["state"].training_macs for parent in parents)
    assert metrics["total_training_macs"] == metrics["training_macs"] + spent_before == result["state"].training_macs
    is_masked = pruning in WEIGHT_PRUNINGS
    assert bool(result["state"].masks) == bool(result["patterns"]) == is_masked
    if is_large or is_masked:
        assert result["widths"] == large(**VGG)["widths"]
    elif pruning != "selection":
        assert metrics["n_stored_weights"] < dense["n_stored_weights"] and result["widths"] != large(**VGG)["widths"]
    for name, mask in result["state"].masks.items():
        assert not result["state"].model[f"{name}.weight"][~mask].any()


def test_record_says_the_density_of_each_position_of_a_stages_kernels():
    result = execute(large(**VGG), **VGG, training="fine_tune", pruning="magnitude", density=0.2)
    masks = result["state"].masks
    assert list(result["patterns"]) == list(STAGES)
    for stage, blocks in STAGES.items():
        shares = sum(masks[f"blocks.{i}.conv"].double().mean(dim=(0, 1)) for i in blocks) / len(blocks)
        assert torch.allclose(torch.tensor(result["patterns"][stage], dtype=torch.float64), shares)


@pytest.mark.parametrize("pruning", ["predefined", "magnitude"])
def test_scratch_b_trains_for_as_many_macs_and_no_longer_than_allowed(pruning):
    options = {"pruning": pruning, "density": 0.5, "n_epochs": 3} | VGG
    parents = parents_for(pruning, **VGG)
    epochs = {}
    for training, max_epochs in (("scratch_e", None), ("scratch_b", None), ("scratch_b", 4)):
        metrics = execute(*parents, **options, training=training, max_epochs=max_epochs)["metrics"]
        epochs[training, max_epochs] = metrics["n_epochs_trained"]
        ratio = metrics["macs_ratio"]
    unbound = int(3 / ratio)
    assert list(epochs.values()) == [3, unbound, min(4, unbound)] and unbound > 4


def test_fine_tuning_takes_its_own_epochs_at_its_own_constant_rate():
    parent = large(**RESNET)
    fine_tune = functools.partial(execute, parent, **RESNET, training="fine_tune", pruning="l1", density=0.5)
    result = fine_tune(fine_tune_epochs=4)
    assert result["metrics"]["n_epochs_trained"] == 4 and result["metrics"]["n_steps"] == 8
    assert fine_tune(fine_tune_epochs=4, learning_rate=0.5, schedule="thirds")["curves"] == result["curves"]
    assert fine_tune(fine_tune_epochs=4, fine_tune_rate=0.1)["curves"] != result["curves"]


def test_fine_tuning_that_does_not_move_keeps_what_it_inherits():
    options = {"pruning": "l1", "density": 0.5} | RESNET
    _, pruned = prune(large(**RESNET)["state"], **options)
    inherited = pruned.shrunken(pruned.model, digits())
    state = execute(large(**RESNET), **options, **STILL, training="fine_tune")["state"].model
    for name, value in inherited.named_parameters():
        assert torch.equal(state[name], value)
    # The statistics of normalisation are no parameters: they follow the images.
    assert not torch.equal(state["bn.running_mean"], inherited.bn.running_mean)


def test_training_that_goes_on_after_fine_tuning_counts_what_was_spent_before():
    chain = [large(**VGG)]
    for density in (0.5, 0.25):
        options = {"training": "fine_tune", "pruning": "magnitude", "density": density}
        chain.append(execute(chain[-1], **VGG, **options))
    spent = [result["metrics"]["training_macs"] for result in chain]
    for result, total in zip(chain, itertools.accumulate(spent), strict=True):
        assert result["metrics"]["total_training_macs"] == total


def test_what_is_tuned_never_sees_the_test_images():
    parent = large(**RESNET)
    tuned = execute(parent, training="fine_tune", pruning="l1", density=0.5, n_validation=60, **RESNET)
    ordinary = execute(parent, training="fine_tune", pruning="l1", density=0.5, **RESNET)
    assert set(tuned["metrics"]) ^ set(ordinary["metrics"]) == {
        *("test_accuracy", "test_loss"),
        *("validation_accuracy", "validation_loss"),
    }
    assert tuned["metrics"]["validation_accuracy"] * 60 == pytest.approx(
        round(tuned["metrics"]["validation_accuracy"] * 60)
    )
    assert tuned["curves"]["train_loss"] == ordinary["curves"]["train_loss"]  # on the same images
    assert torch.equal(*(run["state"].model["fc.weight"] for run in (tuned, ordinary)))


@pytest.mark.parametrize("profile", PROFILES)
def test_rate_of_fine_tuning_is_the_best_on_held_out_images(profile):
    recorded = {record["id"]: record["metrics"] for record in records.load("03_rethinking")}
    found = {}
    for name, runs in RETHINKING.experiments(profile).items():
        if name.startswith("rates_"):
            for run in filter(lambda run: run.id in recorded, runs):
                rate = RETHINKING.options_of(run).fine_tune_rate
                found.setdefault(rate, []).append(recorded[run.id]["validation_accuracy"])
    best = max(found, key=lambda rate: sum(found[rate]) / len(found[rate]), default=None)
    assert best in (None, PLANS[profile].main.rate)
    assert len({len(accuracies) for accuracies in found.values()}) <= 1, "some rates are recorded more often"


def test_runs_of_a_seed_are_repeatable_and_those_of_two_seeds_differ():
    first, again, other = (execute(**RESNET, seed=seed) for seed in (0, 0, 1))
    assert first["curves"] == again["curves"] != other["curves"]
    assert is_equal(first["state"].model, again["state"].model)
    scratch = functools.partial(execute, **RESNET, training="scratch_e", pruning="predefined", density=0.5)
    assert scratch(seed=0)["curves"] == scratch(seed=0)["curves"] != scratch(seed=1)["curves"]


# What is inherited, and what starts anew.

CHANNELS = [
    *((VGG, pruning) for pruning in ("l1", "thinet", "regression", "random", "soft", "slimming", "uniform", "guided")),
    *((RESNET, pruning) for pruning in ("l1", "thinet", "regression")),
    *((network, "slimming") for network in (PRERESNET, DENSENET)),
]


@pytest.mark.filterwarnings("ignore:density .* leaves no channel")
@pytest.mark.parametrize("network, pruning", CHANNELS)
def test_pruned_network_computes_what_the_large_one_with_silenced_channels_does(network, pruning):
    states = [lively(**network)] * (1 + pruning.startswith("guided"))
    source, pruned = prune(*states, **network, pruning=pruning, density=0.5)
    smaller = outputs(pruned.shrunken(pruned.model, source.dataset))
    large = outputs(pruned.model)
    assert torch.allclose(outputs(silence(pruned.model, source, pruned.kept)), smaller, rtol=0, atol=1e-12)
    is_rebuilt = pruning in ("thinet", "regression")  # whose readers already ignore what goes
    assert torch.allclose(large, smaller, rtol=0, atol=1e-12) == is_rebuilt


def test_inherited_accuracy_is_that_of_the_large_network_with_silenced_channels():
    parent = large(**RESNET, n_epochs=20)
    options = {"pruning": "l1", "density": 0.7} | RESNET
    source, pruned = prune(parent["state"], **options)
    _, accuracy = evaluate(silence(pruned.model, source, pruned.kept), source.dataset)
    found = execute(parent, **options, training="fine_tune")["metrics"]["inherited_accuracy"]
    assert found == pytest.approx(accuracy, abs=0.01)  # near ties may flip
    assert 0.2 < found < parent["metrics"]["test_accuracy"]


STRUCTURES = [(VGG, "slimming", 0.4), (PRERESNET, "slimming", 0.4), (DENSENET, "slimming", 0.4), (VGG, "l1", 0.5)]
STRUCTURES += [(PRERESNET, "selection", 1.0), (VGG, "selection", 1.0), (RESNEXT, "selection", 1.0)]
STRUCTURES += [(network, "magnitude", 0.2) for network in (VGG, PRERESNET, DENSENET)]


def selective(**network):
    """`lively`, where some factors of selection are zero; of one layer of a VGG all are, and of a ResNet's two blocks.

    The layers are those that selection scales: each BatchNorm of a VGG, the last convolution of a ResNet's unprojected
    blocks, the BatchNorm after each grouped convolution of a ResNeXt.
    """
    state = lively(**network)
    name = network["model"]
    if name == "vgg11":
        factors = {f"blocks.{i}.bn": torch.arange(n) % 3 for i, n in enumerate(WIDTHS)}
        factors["blocks.4.bn"][:] = 0
    elif name == "preresnet20":
        factors = {f"blocks.{i}.conv3": torch.tensor([i == 3]) for i in (1, 3, 5)}
    else:
        factors = {f"blocks.{i}.bn3": torch.arange(8) % (i + 2) for i in range(6)}
    state.factors = {key: value.float() for key, value in factors.items()}
    for key, value in state.factors.items():
        for part in (f"{key}.weight", f"{key}.bias"):
            if part in state.model:
                parameter = state.model[part]
                along = value.repeat_interleave(len(parameter) // len(value))
                parameter.mul_(along.view(-1, *[1] * (parameter.dim() - 1)))
    return state


@pytest.mark.filterwarnings("ignore:density .* leaves no channel")
@pytest.mark.parametrize("network, pruning, density", STRUCTURES)
def test_scratch_networks_have_the_structure_of_the_fine_tuned_one_and_values_of_their_own(network, pruning, density):
    parent = {"state": (selective if pruning == "selection" else lively)(**network)}
    options = {"pruning": pruning, "density": density, "n_epochs": 1, "max_epochs": 2} | network | STILL
    tuned, short, long = (
        execute(parent, **options, training=training) for training in ("fine_tune", "scratch_e", "scratch_b")
    )
    other = execute(parent, **options, training="scratch_e", seed=1)
    model = tuned["state"].model
    for scratch in (short, long, other):
        assert shapes(scratch["state"].model) == shapes(model)
        assert selected(scratch["state"].model) == selected(model)
        assert is_equal(scratch["state"].masks, tuned["state"].masks)
        assert (scratch["widths"], scratch["removed"]) == (tuned["widths"], tuned["removed"])
        assert scratch["layers"] == tuned["layers"]
    assert is_equal(short["state"].start, long["state"].start)
    for name in (layer["name"] for layer in short["layers"]):
        values = [result["state"].start[f"{name}.weight"] for result in (tuned, short, other)]
        active = values[1] != 0
        assert active.any()
        assert all((a[active] != b[active]).any() for a, b in itertools.combinations(values, 2))


def test_structure_that_is_given_beforehand_starts_from_what_a_pruned_one_would():
    scratch = functools.partial(execute, **VGG, training="scratch_e", density=0.5)
    given, found = scratch(pruning="predefined"), scratch(large(**VGG), pruning="l1")
    assert is_equal(given["state"].model, found["state"].model)


def test_ticket_starts_from_the_first_values_of_the_channels_that_stay():
    state, options = lively(**VGG), {"training": "scratch_e", "pruning": "l1", "density": 0.5} | VGG
    source, pruned = prune(state, **options, start="ticket")
    ticket = from_scratch(pruned, source).state_dict()
    random = from_scratch(pruned, to_prune(state, **options)).state_dict()
    kept = torch.arange(1)  # of the images' channels
    for i in range(8):
        reads, kept = kept, pruned.kept[f"blocks.{i}.conv"]
        start = state.start[f"blocks.{i}.conv.weight"][kept][:, reads]
        assert torch.equal(ticket[f"blocks.{i}.conv.weight"], start)
        assert torch.equal(ticket[f"blocks.{i}.bn.weight"], state.start[f"blocks.{i}.bn.weight"][kept])
        assert (random[f"blocks.{i}.conv.weight"] != start).all()
    assert torch.equal(ticket["fc.weight"], state.start["fc.weight"][:, kept])


def test_ticket_that_does_not_move_ends_where_the_large_network_started():
    parent = large(**VGG)
    options = {"training": "scratch_e", "pruning": "magnitude", "density": 0.2, "start": "ticket"} | VGG | STILL
    state = execute(parent, **options)["state"]
    for name, mask in state.masks.items():
        wanted = parent["state"].start[f"{name}.weight"] * mask
        assert torch.allclose(state.model[f"{name}.weight"], wanted, rtol=0, atol=1e-20)
    assert is_equal(state.start, parent["state"].start)


def test_rounds_nest_their_masks_and_return_to_the_start_of_the_first_network():
    scratch = functools.partial(execute, **VGG, training="scratch_e", pruning="magnitude")
    rounds, densities = [large(**VGG)], (0.5, 0.25, 0.125)
    for density in densities:
        rounds.append(scratch(rounds[-1], density=density, start="ticket"))
    control = scratch(rounds[-2], density=densities[-1], start="reinitialised")
    for before, after, density in zip(rounds[:-1], rounds[1:], densities, strict=True):
        masks, values = after["state"].masks, before["state"].model
        earlier = before["state"].masks or {name: torch.ones_like(mask) for name, mask in masks.items()}
        n_left = round(density * sum(mask.numel() for mask in masks.values()))
        assert sum(int(mask.sum()) for mask in masks.values()) == n_left
        ranked = torch.cat([(values[f"{name}.weight"].abs() * earlier[name]).flatten() for name in masks])
        threshold = ranked.sort(descending=True).values[n_left - 1]
        for name, mask in masks.items():
            assert not (mask & ~earlier[name]).any()
            assert torch.equal(mask, (values[f"{name}.weight"].abs() >= threshold) & earlier[name])
        assert is_equal(after["state"].start, rounds[0]["state"].start)
    assert is_equal(control["state"].masks, rounds[-1]["state"].masks)
    assert not is_equal(control["state"].start, rounds[-1]["state"].start)


# Designs.


def vgg_widths(counts):
    """Weights of a vgg11 of these widths: 3x3 convolutions, and a linear layer of ten outputs."""
    return 9 * sum(n_in * n_out for n_in, n_out in itertools.pairwise([1, *counts])) + 10 * counts[-1]


def graded(gammas):
    """A VGG whose gammas, distinct, are near those given, one a stage."""
    state = lively(**VGG)
    for gamma, blocks in zip(gammas, STAGES.values(), strict=True):
        for i in blocks:
            state.model[f"blocks.{i}.bn.weight"].uniform_(0.5 * gamma, 1.5 * gamma)
    return state


def slimmed_counts(state, density):
    """How many channels of each block have one of the largest gammas of all."""
    gammas = [state.model[f"blocks.{i}.bn.weight"] for i in range(8)]
    n_left = round(density * sum(len(gamma) for gamma in gammas))
    threshold = torch.cat(gammas).sort(descending=True).values[n_left - 1]
    return [int((gamma >= threshold).sum()) for gamma in gammas]


FRONT, BACK = (4.0, 3.0, 2.0, 1.0), (1.0, 1.0, 1.2, 1.5)  # which end of the network matters


@pytest.mark.parametrize("pruning, source", [("uniform", None), ("guided", FRONT), ("guided", BACK)])
def test_design_has_as_many_weights_as_slimming_leaves_and_no_step_is_nearer(pruning, source):
    state, widths = graded((1.0, 1.0, 1.0, 1.0)), WIDTHS
    wanted = vgg_widths(slimmed_counts(state, 0.6))
    shares = [1.0] * 8
    if source:
        left = slimmed_counts(graded(source), 0.6)
        for blocks in STAGES.values():
            share = sum(left[i] for i in blocks) / sum(widths[i] for i in blocks)
            shares = [share if i in blocks else other for i, other in enumerate(shares)]
    steps = range(1, math.ceil(N_STEPS / min(shares)) + 1)
    designs = [
        [min(n, max(1, round(share * n * k / N_STEPS))) for n, share in zip(widths, shares, strict=True)] for k in steps
    ]
    states = [state, graded(source)] if source else [state]
    _, pruned = prune(*states, **VGG, pruning=pruning, density=0.6)
    found = [len(pruned.kept[f"blocks.{i}.conv"]) for i in range(8)]
    assert found in designs
    assert abs(vgg_widths(found) - wanted) == min(abs(vgg_widths(design) - wanted) for design in designs)


def test_guided_designs_are_as_wide_in_front_or_behind_as_their_sources():
    shares = {}
    for source in (FRONT, BACK):
        _, pruned = prune(lively(**VGG), graded(source), **VGG, pruning="guided", density=0.5)
        shares[source] = [len(pruned.kept[f"blocks.{i}.conv"]) / n for i, n in ((0, 8), (7, 64))]
    assert shares[FRONT][0] > 2 * shares[FRONT][1] and shares[BACK][1] > 2 * shares[BACK][0]


def n_weights(model):
    return sum(weight.numel() for weight in layer_weights(model).values())


@pytest.mark.filterwarnings("ignore:density .* leaves no channel")
@pytest.mark.parametrize("network", [PRERESNET, DENSENET])
def test_uniform_design_of_selected_channels_is_nearer_to_what_slimming_leaves_than_the_next_ones(network):
    source, slim = prune(lively(**network), **network, pruning="slimming", density=0.5)
    _, uniform = prune(lively(**network), **network, pruning="uniform", density=0.5)
    wanted = n_weights(slim.shrunken(source.model, source.dataset))
    designs = [
        {name: max(1, round(n * k / N_STEPS)) for name, n in source.widths.items()} for k in range(1, N_STEPS + 1)
    ]
    designs = [design for design, _ in itertools.groupby(designs)]
    place = designs.index({name: len(kept) for name, kept in uniform.kept.items()})
    below, found, above = (n_weights(build(**network, widths=design)) for design in designs[place - 1 : place + 2])
    assert n_weights(uniform.shrunken(source.model, source.dataset)) == found
    assert abs(found - wanted) == min(abs(size - wanted) for size in (below, found, above))


@pytest.mark.filterwarnings("ignore:density .* would empty")
@pytest.mark.parametrize("density", [0.2, 0.05])
@pytest.mark.parametrize("network", [VGG, PRERESNET, DENSENET])
def test_uniform_masks_have_as_many_active_weights_as_magnitude_leaves_to_half_a_weight_a_layer(network, density):
    state = lively(**network)
    source, magnitude = prune(state, **network, pruning="magnitude", density=density)
    _, uniform = prune(state, **network, pruning="uniform_weights", density=density)
    _, other = prune(state, **network, pruning="uniform_weights", density=density, seed=1)
    sizes = {name: weight.numel() for name, weight in conv_weights(source.model).items()}
    assert n_active(magnitude) == round(density * sum(sizes.values()))
    assert {name: int(mask.sum()) for name, mask in uniform.masks.items()} == {
        name: max(1, round(density * size)) for name, size in sizes.items()
    }
    assert not is_equal(uniform.masks, other.masks)


@pytest.mark.filterwarnings("ignore:density .* would empty")
@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
@pytest.mark.parametrize("strength", [10.0, 1.0, 0.1])
def test_guided_masks_have_as_many_active_weights_as_magnitude_leaves_to_half_a_step_and_half_a_weight_a_layer(
    strength, density
):
    _, magnitude = prune(lively(**VGG), **VGG, pruning="magnitude", density=density)
    source, guided = prune(lively(**VGG), centred(strength), **VGG, pruning="guided_weights", density=density)
    sizes = {name: weight.numel() for name, weight in conv_weights(source.model).items()}
    step = sum(sizes.values()) / N_STEPS  # at most: where every position is as dense as it can be
    assert abs(n_active(guided) - n_active(magnitude)) <= (step + len(sizes)) / 2


def n_active(pruned):
    return sum(int(mask.sum()) for mask in pruned.masks.values())


def centred(strength):
    """A VGG whose weights at the centres of all kernels are larger, or smaller, by a factor; so is its first stage."""
    state = lively(**VGG)
    for i in range(8):
        state.model[f"blocks.{i}.conv.weight"][..., 1, 1] *= strength
    state.model["blocks.0.conv.weight"] *= strength
    return state


@pytest.mark.filterwarnings("ignore:density .* would empty")
def test_guided_masks_are_dense_where_those_of_their_source_are():
    at_centre, in_front = [], []
    for strength in (10.0, 0.1):
        _, pruned = prune(lively(**VGG), centred(strength), **VGG, pruning="guided_weights", density=0.2)
        _, magnitude = prune(centred(strength), **VGG, pruning="magnitude", density=0.2)
        for stage, blocks in STAGES.items():
            shares, wanted = (
                sum(found.masks[f"blocks.{i}.conv"].double().mean(dim=(0, 1)) for i in blocks) / len(blocks)
                for found in (pruned, magnitude)
            )
            scale = float(shares.sum() / wanted.sum())
            # A position of a stage has its source's share, to scale and to one weight of its smallest layer.
            smallest = min(pruned.masks[f"blocks.{i}.conv"][:, :, 0, 0].numel() for i in blocks)
            assert torch.allclose(shares, (wanted * scale).clamp(max=1.0), rtol=0, atol=1.5 / smallest), stage
        masks = torch.cat([mask.flatten(0, 1) for mask in pruned.masks.values()]).double().mean(dim=0)
        at_centre.append(float(masks[1, 1]) / float(masks[0, 0]))
        in_front.append(float(pruned.masks["blocks.0.conv"].double().mean()))
    assert at_centre[0] > 2 and at_centre[1] < 0.5 and in_front[0] > 2 * in_front[1]


# Selection.


def test_block_whose_factor_is_zero_is_gone_and_the_network_computes_the_same():
    source, pruned = prune(selective(**PRERESNET), **PRERESNET, pruning="selection")
    assert pruned.removed == ("blocks.1", "blocks.5") and pruned.kept == {}
    smaller = pruned.shrunken(pruned.model, source.dataset)
    assert isinstance(smaller.blocks[1], nn.Identity) and not isinstance(smaller.blocks[3], nn.Identity)
    assert torch.allclose(outputs(smaller), outputs(pruned.model), rtol=0, atol=1e-12)


def test_groups_whose_factors_are_zero_are_gone_and_the_network_computes_the_same():
    source, pruned = prune(selective(**RESNEXT), **RESNEXT, pruning="selection")
    smaller = pruned.shrunken(pruned.model, source.dataset)
    # Block i loses the groups at multiples of i + 2: 4 of 8, then 3, 2, 2, 2 and 2.
    assert [block.conv2.groups for block in smaller.blocks] == [4, 5, 6, 6, 6, 6]
    assert [block.conv1.out_channels for block in smaller.blocks] == [
        block.conv2.out_channels for block in smaller.blocks
    ]
    assert torch.allclose(outputs(smaller), outputs(pruned.model), rtol=0, atol=1e-12)


def test_channels_whose_factors_are_zero_are_gone_but_for_one_of_a_layer_that_would_have_none():
    _, pruned = prune(selective(**VGG), **VGG, pruning="selection")
    for i, n in enumerate(WIDTHS):
        wanted = [0] if i == 4 else [k for k in range(n) if k % 3]
        assert pruned.kept[f"blocks.{i}.conv"].tolist() == wanted


@pytest.mark.parametrize(
    "network, n_factors",
    [
        (VGG, WIDTHS),
        (PRERESNET, [1, 1, 1]),  # the second block of each stage; the first one has a projection
        (RESNEXT, [8] * 6),
        (RESNET, [8, 16, 32]),  # its blocks have no bottleneck: the channels inside them
    ],
)
def test_folded_network_computes_what_its_factors_made_of_it(network, n_factors):
    result = execute(**network, pruning="selection", penalty=0.5)
    factors = result["state"].factors
    assert [len(value) for value in factors.values()] == n_factors
    assert any((value != 1).any() and value.any() for value in factors.values())
    model = build(**network)
    model.load_state_dict(result["state"].model)
    loss, accuracy = evaluate(model, digits())
    assert loss == pytest.approx(result["metrics"]["test_loss"], rel=1e-5)
    assert accuracy == pytest.approx(result["metrics"]["test_accuracy"], abs=0.01)


def test_prepared_networks_are_trained_otherwise_than_plain_ones():
    curves = [large(**VGG)["curves"]]
    for preparation in PREPARATIONS:
        options = {"density": 0.5} if preparation == "soft" else {"penalty": 0.03}
        curves.append(execute(**VGG, pruning=preparation, **options)["curves"])
    assert all(a != b for a, b in itertools.combinations(curves, 2))


def test_soft_pruning_ends_on_zeroed_filters_which_are_those_that_go():
    parent = large(**VGG, pruning="soft", density=0.5)
    _, pruned = prune(parent["state"], **VGG, pruning="soft", density=0.5)
    for name, kept in pruned.kept.items():
        weight = parent["state"].model[f"{name}.weight"]
        assert weight.flatten(1).any(dim=1).nonzero().flatten().tolist() == kept.tolist()
        assert len(kept) == len(weight) // 2


# What is refused.


@pytest.mark.parametrize(
    "options, n_parents, message",
    [
        ({"training": "tuned"}, 0, "unknown training 'tuned'; there are dense, fine_tune, scratch_e, scratch_b"),
        ({"start": "warm"}, 0, "unknown start 'warm'; there are reinitialised, ticket"),
        ({"pruning": "l1"}, 0, "unknown pruning 'l1'; there are None, slimming, selection, soft"),
        ({"training": "scratch_e"}, 0, "unknown pruning None; there are predefined, l1, thinet"),
        ({"training": "scratch_e", "pruning": "magic"}, 1, "unknown pruning 'magic'; there are predefined, l1"),
        ({"pruning": "soft", "target": "vgg16_z"}, 0, "unknown target 'vgg16_z'; there are vgg16_a"),
        ({"density": 0.0}, 0, "density"),
        ({"density": 1.5}, 0, "density"),
        ({}, 1, "training=dense pruning=None needs 0 parents, got 1"),
        ({"training": "scratch_b", "pruning": "predefined"}, 1, "pruning=predefined needs 0 parents, got 1"),
        ({"training": "fine_tune", "pruning": "l1"}, 0, "training=fine_tune pruning=l1 needs 1 parents, got 0"),
        ({"training": "fine_tune", "pruning": "l1"}, 2, "training=fine_tune pruning=l1 needs 1 parents, got 2"),
        ({"training": "scratch_e", "pruning": "guided"}, 1, "pruning=guided needs 2 parents, got 1"),
        ({"training": "scratch_e", "pruning": "guided_weights"}, 1, "pruning=guided_weights needs 2 parents, got 1"),
        ({"training": "fine_tune", "pruning": "predefined"}, 0, "a predefined structure has no values to inherit"),
        (
            {"training": "scratch_e", "pruning": "predefined", "start": "ticket"},
            0,
            "a predefined structure has no values to inherit",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, n_parents, message):
    with pytest.raises(ValueError, match=message):
        execute(*[{"state": None}] * n_parents, **VGG, **options)


def test_large_network_has_no_ticket_to_start_from():
    with pytest.raises(ValueError, match="ticket"):
        execute(**VGG, start="ticket")


@pytest.mark.parametrize("options", [RESNET | {"pruning": "l1"}, VGG | {"pruning": "selection"}])
def test_parent_that_does_not_fit_is_refused(options):
    with pytest.raises(ValueError, match="parent"):
        execute(large(**VGG), **options, training="fine_tune", density=0.5)


@pytest.mark.parametrize("pruning, preparation", [("guided", "slimming"), ("guided_weights", None)])
def test_design_is_carried_to_images_of_other_classes(pruning, preparation, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    target = {"dataset": "glyphs:greek:5", "image_size": 8} | VGG
    parents = [execute(**network, pruning=preparation) for network in (target, VGG)]
    result = execute(*parents, **target, training="scratch_e", pruning=pruning, density=0.4)
    assert result["status"] == "finished"


# Forecasts.


def forecast(**options):
    return runner.forecast(RETHINKING, RETHINKING.run(seed=0, **TINY | VGG | options))


def test_forecast_is_what_training_costs():
    dense, workload = large(**VGG)["metrics"], forecast()
    assert (workload.macs, workload.n_steps) == (dense["macs"], dense["n_steps"])
    assert workload.training_macs == dense["training_macs"]
    for training in SCRATCH:
        structure = {"training": training, "pruning": "predefined", "density": 0.5}
        found, workload = execute(**VGG, **structure)["metrics"], forecast(**structure)
        assert (workload.macs, workload.n_steps) == (found["macs"], found["n_steps"])
        masked = forecast(training=training, pruning="magnitude", density=0.25)  # whose zeros cost time
        assert (masked.macs, masked.n_steps) == (dense["macs"], {"scratch_e": 4, "scratch_b": 16}[training])
    assert forecast(training="scratch_b", pruning="magnitude", density=0.25, max_epochs=3).n_steps == 6
    assert forecast(training="fine_tune", pruning="l1", density=0.5, fine_tune_epochs=5).n_steps == 10


def test_forecast_counts_tested_images_at_each_evaluation():
    n_test = len(digits().test_labels)
    assert forecast(n_epochs=5, eval_every=2).n_evaluated == 3 * n_test


def test_fine_tuning_goes_on_from_what_the_parent_is_or_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    masked = execute(large(**RESNET), **RESNET, training="fine_tune", pruning="magnitude", density=0.5)
    for pruning in ("uniform_weights", "l1"):  # which know nothing of the mask
        with pytest.raises(ValueError, match="would not keep to its masks"):
            execute(masked, **RESNET, training="fine_tune", pruning=pruning, density=0.4)
    fewer = {"dataset": "glyphs:greek:5", "image_size": 8}
    with pytest.raises(ValueError, match="the parent tells 10 classes apart, glyphs:greek:5 has 5"):
        execute(large(**RESNET), **RESNET | fewer, training="fine_tune", pruning="l1", density=0.5)
