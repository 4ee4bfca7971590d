"""The recipe of 01_rigl: what it compares is comparable."""

import pytest
import torch

from prunelab import cost, data, paths
from prunelab.methods import METHODS
from prunelab.methods.gradual import scheduled_count
from prunelab.methods.static import active_counts
from prunelab.models import MODELS, TORCHVISION_MODELS, build_model
from prunelab.recipes import RIGL, runner
from prunelab.recipes.common import network_of
from prunelab.recipes.masking import STARTS, width_of
from prunelab.recipes.recipe import State
from prunelab.recipes.rigl import setup
from prunelab.recipes.rigl.plan import RigLOptions
from prunelab.runs import Run

TINY = {"model": "resnet8", "width": 0.5, "dataset": "digits", "n_train": 128, "batch_size": 64, "n_epochs": 2}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", n_train=128)


def execute(*parents, grow_score=None, seed=0, **options):
    run = RIGL.run(seed=seed, parents=(), **TINY | options)
    states = [parent["state"] for parent in parents]
    return runner.execute(RIGL, run, device="cpu", parents=states, grow_score=grow_score)


def build(dataset, /, **options):
    options = RigLOptions(**options)
    return network_of(options, dataset, width=width_of(options, dataset))


# Two hidden layers, (30, 64) and (10, 30); the output is (10, 10). Plain steps of constant size.
MLP = {"model": "lenet_300_100", "width": 0.1, "augment": False, "schedule": "constant", "learning_rate": 0.05}
STILL = MLP | {"learning_rate": 1e-30}  # moves nothing that is not zero
N_TICKET = 64 * 30 + 30 * 10


@pytest.fixture(scope="module")
def first_round():
    """A trained dense network, the first round of a lottery."""
    return execute(method="lottery", density=1.0, **MLP)


@pytest.fixture(scope="module")
def second_round(first_round):
    return execute(first_round, method="lottery", density=0.5, start="ticket", **MLP)


def weights(state):
    return {name: state[f"{name}.weight"] for name in ("1", "3", "5")}


def masked(values, masks):
    return {name: value * masks[name] if name in masks else value for name, value in weights(values).items()}


def is_near(a, b):
    return all(torch.allclose(a[name], b[name], rtol=0, atol=1e-20) for name in a)


def ids(runs):
    return [run.id for run in runs]


@pytest.mark.parametrize("method, column", [("small_dense", "n_active"), ("small_dense_macs", "macs")])
@pytest.mark.parametrize("density", [0.5, 0.05])
@pytest.mark.parametrize("model", ["resnet8", "lenet_300_100"])
def test_small_dense_is_as_large_as_its_rival_and_no_width_is_nearer(method, column, density, model, digits):
    options = {"method": method, "density": density, "model": model}
    image = {"in_channels": 1, "image_size": 8}
    dense = build(digits, **options | {"method": "dense"})
    counts = active_counts(dense, density=density, distribution="erk")
    target = cost.total(cost.layer_table(dense, n_active=counts, **image), column)

    def size(width):
        with torch.device("meta"):
            network = build(digits, **options | {"method": "dense", "width": width})
        return cost.total(cost.layer_table(network, **image), column)

    found = cost.total(cost.layer_table(build(digits, **options), **image), column)
    nearest = min((size(k / 256) for k in range(1, 257)), key=lambda size: abs(size - target))
    assert abs(found - target) == abs(nearest - target)


def test_small_dense_draws_its_weights_from_the_seed_alone(digits):
    torch.manual_seed(3)
    first = build(digits, method="small_dense", model="resnet8")
    share = first.fc.in_features / 64
    torch.manual_seed(3)
    second = build(digits, method="dense", model="resnet8", width=share)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_methods_of_a_seed_start_from_the_same_mask_and_see_the_same_images():
    kinds = {name: execute(method=name, learning_rate=1e-30) for name in ("static", "set", "dense")}
    assert kinds["static"]["metrics"]["n_active"] == kinds["set"]["metrics"]["n_active"]
    # At a learning rate of nothing only dense and sparse differ, whatever moves.
    first, moved = kinds["static"]["curves"]["train_loss"], kinds["set"]["curves"]["train_loss"]
    assert first == pytest.approx(moved, rel=0.2) and first != kinds["dense"]["curves"]["train_loss"]


def test_seeds_differ():
    assert execute(seed=0)["curves"] != execute(seed=1)["curves"]


def dense_macs(model="resnet8"):
    dense = build(data.load("digits"), **TINY | {"method": "dense", "model": model})
    return cost.total(cost.layer_table(dense, in_channels=1, image_size=8), "macs")


@pytest.mark.parametrize("name", METHODS)
def test_costs_are_measured_on_the_final_network(name):
    density = 1.0 if name in ("dense", "lottery") else 0.1
    result = execute(method=name, density=density, update_every=1, fisher_gradients=8)
    metrics, layers = result["metrics"], result["layers"]
    assert metrics["n_active"] == sum(layer["n_active"] for layer in layers)
    assert metrics["measured_density"] == metrics["n_active"] / metrics["n_reference_weights"]
    assert metrics["macs"] == sum(layer["macs"] for layer in layers)
    assert metrics["n_steps"] == 4
    if "dense" not in name and name != "str":  # which reaches a density that nobody sets
        assert metrics["n_active"] == round((1.0 if name == "lottery" else 0.1) * metrics["n_reference_weights"])
    # RigL's updates, at every step up to three quarters of training, took a batch each, and SNIP's pruning took one;
    # these needed dense gradients. SNFS needs them on all of its four batches.
    n_extra, n_dense_gradients = {"rigl": (4, 4), "snip": (1, 1), "snfs": (0, 4)}.get(name, (0, 0))
    assert metrics["n_batches"] == 4 + n_extra
    sparse, dense = metrics["macs"], dense_macs()
    spent = 64 * ((4 + n_extra - n_dense_gradients) * 3 * sparse + n_dense_gradients * (2 * sparse + dense))
    if name not in ("gmp", "woodfisher", "acdc", "str"):  # denser at first; see below, and their own tests
        assert metrics["training_macs"] == pytest.approx(spent, rel=1e-12)
    assert metrics["training_macs_ratio"] == pytest.approx(metrics["training_macs"] / (64 * 4 * 3 * dense))


@pytest.mark.parametrize("update_every, begin_pruning", [(1, 0.2), (3, 0.2), (2, 0.0), (100, 0.5)])
def test_gradual_pruning_costs_what_each_of_its_batches_did(update_every, begin_pruning):
    options = {"n_epochs": 4, "density": 0.2, "update_every": update_every, "begin_pruning": begin_pruning}
    result = execute(**TINY | options, method="gmp")
    begin, end = round(begin_pruning * 8), 6  # of 8 steps; the first prunings come after step 1
    per_weight = {layer["name"]: layer["macs"] / layer["n_active"] for layer in result["layers"]}
    sizes = {layer["name"]: layer["n_weights"] for layer in result["layers"]}
    final = {layer["name"]: layer["n_active"] for layer in result["layers"]}
    active, macs_of_batches = sizes, []
    for step in range(8):
        if step >= 1 and (step == end or (begin <= step < end and (step - begin) % update_every == 0)):
            active = {
                name: scheduled_count(step, size=n, n_active=final[name], begin_step=begin, end_step=end)
                for name, n in sizes.items()
            }
        macs_of_batches.append(sum(n * per_weight[name] for name, n in active.items()))
    assert macs_of_batches[0] == dense_macs() and macs_of_batches[-1] == result["metrics"]["macs"]
    assert result["metrics"]["training_macs"] == pytest.approx(64 * 3 * sum(macs_of_batches))


def test_woodfisher_pays_for_the_images_of_its_matrix():
    options = {"method": "woodfisher", "density": 1.0 - 1e-3, "update_every": 1, "begin_pruning": 0.5}
    plain, averaged = (execute(**options, fisher_gradients=8, fisher_images=n)["metrics"] for n in (1, 3))
    # Prunings after steps 2 and 3 of 4, the first of which takes nothing: 8 * 2 images more cost 3 passes each.
    spent = averaged["training_macs"] - plain["training_macs"]
    assert spent == pytest.approx(16 * 3 * dense_macs(), rel=0.01)
    assert averaged["n_batches"] == plain["n_batches"] == 4


WIDENED = {"resnet8": (8, 16, 32), "resnet8_wide_early": (16, 16, 32), "resnet8_wide_late": (8, 16, 64)}


@pytest.mark.parametrize("model", WIDENED)
def test_widened_network_has_as_many_active_weights_as_the_plain_one(model):
    plain = execute(method="static")["metrics"]
    result = execute(method="rigl", model=model, density_of="resnet8", update_every=1)
    shapes = [layer["shape"][:2] for layer in result["layers"]]
    early, middle, late = WIDENED[model]
    stages = [(early, 1), (early, early), (early, early), (middle, early), (middle, middle), (late, middle)]
    assert shapes == [*map(list, stages), [late, late], [10, late]]
    assert abs(result["metrics"]["n_active"] - plain["n_active"]) <= 1
    assert result["metrics"]["measured_density"] == pytest.approx(plain["measured_density"], rel=1e-3)
    assert result["metrics"]["n_reference_weights"] == plain["n_reference_weights"]
    small = execute(method="small_dense", model=model, density_of="resnet8")["metrics"]
    assert small["n_active"] == pytest.approx(plain["n_active"], rel=0.1)


def test_widened_network_costs_the_macs_of_an_erk_one_where_these_are_to_be_equal():
    network = {"method": "static", "model": "resnet8_wide_late", "density_of": "resnet8", "density": 0.2}
    erk = execute(**network)["metrics"]["macs"]
    uniform = execute(**network, distribution="uniform", equal="macs")["metrics"]["macs"]
    assert uniform == pytest.approx(erk, rel=0.002)


def test_tickets_of_more_images_are_tried_where_the_others_are_and_on_the_same_images():
    runs = RIGL.experiments("small", seeds=[0])["transfer"]
    moved = [run for run in runs if run.options.get("method") == "static"]
    larger = [run for run in moved if run.parents[0].options["n_train"] == 12_000]
    assert [run.options.get("dataset", "cifar10") for run in larger] == ["cifar10", "mnist10k", "omniglot-small"]
    assert {run.parents[0].options["dataset"] for run in larger} == {"tiny-imagenet-200-32px"}
    assert {run.options["n_train"] for run in moved} == {3_000}
    assert len(moved) == len(larger) + 3 * 2 + 2  # from each of three to two others; from SGD to Adam, and back


def test_uniform_names_its_first_layer_as_dense():
    layers = execute(method="static", distribution="uniform")["layers"]
    assert [layer["masked"] for layer in layers] == [False] + [True] * (len(layers) - 1)
    assert layers[0]["n_active"] == layers[0]["n_weights"]


def forecast(**options):
    parents = (Run("rigl"), Run("rigl", seed=1)) if "path" in options else ()
    return runner.forecast(RIGL, RIGL.run(seed=0, parents=parents, **TINY | options))


def test_forecast_is_what_dense_training_costs_for_masked_networks_too():
    dense = execute(method="dense", density=1.0)["metrics"]
    for method in ("dense", "static", "rigl"):
        workload = forecast(method=method)
        assert workload.training_macs == dense["training_macs"] and workload.n_steps == dense["n_steps"]


def test_forecast_of_a_small_dense_network_is_that_of_its_width():
    small = forecast(method="small_dense", density=0.2)
    assert small.macs == execute(method="small_dense", density=0.2)["metrics"]["macs"]
    assert small.width < forecast(method="dense").width and small.kind == forecast(method="dense").kind


def test_forecast_counts_tested_images_at_each_evaluation():
    n_test = len(data.load("digits").test_labels)
    assert forecast(n_epochs=5, eval_every=2).n_evaluated == 3 * n_test
    assert forecast(n_epochs=5, eval_every=2, train_multiplier=2.0).n_evaluated == 5 * n_test


def test_forecast_of_a_path_is_its_fit_and_its_positions():
    line, curve = forecast(path="line", method="dense"), forecast(path="cubic_sparse", method="dense")
    assert line.n_steps == 0 < curve.n_steps
    assert line.n_evaluated == curve.n_evaluated == 21 * TINY["n_train"]


def test_every_model_of_the_registry_can_be_forecast():
    # Those of torchvision are for colour images, and patches of 16 pixels for larger ones.
    for model in MODELS.keys() - TORCHVISION_MODELS.keys() - {"vit_s16", "vit_b16"}:
        assert forecast(model=model, width=1.0).macs > 0


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("method", ["static", "set", "snfs", "rigl", "lottery"])
def test_every_start_trains_with_every_method_that_takes_one(start, method, first_round, second_round):
    density = {"fresh": 1.0, "ticket": 0.3}.get(start, 0.5)
    parents = () if start == "fresh" else (second_round,)
    result = execute(*parents, method=method, start=start, density=density, update_every=1, **MLP)
    assert result["status"] == "finished" and result["metrics"]["n_steps"] == 4
    # The ticket's own mask, but a lottery prunes it; drawn afresh, a mask covers the output too, dense here.
    n_kept = round((density if method == "lottery" else 0.5) * N_TICKET)
    assert result["metrics"]["n_active"] == (N_TICKET if start == "fresh" else n_kept) + 100
    for name, mask in result["state"].masks.items():
        assert not result["state"].model[f"{name}.weight"][~mask].any()


def test_next_round_keeps_the_largest_trained_weights_of_the_last(first_round, second_round):
    third = execute(second_round, method="lottery", density=0.25, start="ticket", **STILL)
    for before, after, n_left in ((first_round, second_round, N_TICKET // 2), (second_round, third, N_TICKET // 4)):
        old, new = before["state"].masks, after["state"].masks
        assert old.keys() == new.keys() == {"1", "3"}
        ranked = torch.cat([(before["state"].model[f"{name}.weight"].abs() * old[name]).flatten() for name in old])
        threshold = ranked.sort(descending=True).values[n_left - 1]
        for name in new:
            assert torch.equal(new[name], before["state"].model[f"{name}.weight"].abs() * old[name] >= threshold)
        # Each round starts where the first did, whatever was pruned since.
        for name, value in first_round["state"].start.items():
            assert torch.equal(after["state"].start[name], value)
    # A round that does not move ends where it started: the first values under its mask.
    assert is_near(weights(third["state"].model), masked(first_round["state"].start, third["state"].masks))


@pytest.mark.parametrize("method", ["static", "lottery"])
def test_starts_take_values_and_mask_from_the_parent_or_not(method, second_round):
    parent = second_round["state"]
    children = {
        start: execute(second_round, method=method, start=start, density=0.5, **STILL)["state"]
        for start in ("ticket", "reinitialised", "shuffled", "solution")
    }
    for start, child in children.items():
        for name, mask in parent.masks.items():
            assert int(child.masks[name].sum()) == int(mask.sum())
            assert torch.equal(child.masks[name], mask) == (start != "shuffled")
    assert is_near(weights(children["ticket"].model), masked(parent.start, parent.masks))
    assert is_near(weights(children["shuffled"].model), masked(parent.start, children["shuffled"].masks))
    assert is_near(weights(children["solution"].model), weights(parent.model))
    new = children["reinitialised"].model
    for name, value in weights(parent.start).items():
        mask = parent.masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert (new[f"{name}.weight"][mask] != value[mask]).all() and not new[f"{name}.weight"][~mask].any()


def test_controls_differ_between_seeds(second_round):
    for start, key in (("reinitialised", "model"), ("shuffled", "masks")):
        options = {"method": "static", "start": start, **STILL}
        first, again, other = (getattr(execute(second_round, seed=seed, **options)["state"], key) for seed in (0, 0, 1))
        name = "1.weight" if key == "model" else "1"
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_original_values_of_a_dynamic_run_come_back_under_its_final_mask():
    found = execute(method="rigl", density=0.3, update_every=1, **MLP)
    again = execute(found, method="static", start="ticket", density=0.3, **STILL)
    assert again["state"].masks.keys() == {"1", "3", "5"}
    assert is_near(weights(again["state"].model), masked(found["state"].start, found["state"].masks))
    torch.manual_seed(0)  # the run's seed: its values before any mask
    untrained = build(data.load("digits"), **TINY | MLP).state_dict()
    assert is_near(weights(found["state"].start), weights(untrained))


def test_values_of_the_rewind_epoch_are_those_of_a_run_that_ends_there():
    options = {"method": "lottery", "density": 1.0, **MLP}
    rewinding = execute(**options, rewind_epochs=1.0)
    short = execute(**TINY | options | {"n_epochs": 1})
    for name, value in short["state"].model.items():
        assert torch.equal(rewinding["state"].start[name], value)
        assert not torch.equal(rewinding["state"].model[name], value)
    child = execute(rewinding, **STILL, method="lottery", density=0.5, start="ticket", rewind_epochs=1.0)
    for name, value in short["state"].model.items():
        assert torch.equal(child["state"].start[name], value)
    assert is_near(weights(child["state"].model), masked(short["state"].model, child["state"].masks))


def test_costs_of_all_rounds_add_up(first_round, second_round):
    third = execute(second_round, method="lottery", density=0.25, start="ticket", **MLP)
    ratios = [result["metrics"]["training_macs_ratio"] for result in (first_round, second_round, third)]
    # 2,220 weights of the hidden layers and 100 of the output; a weight of a perceptron is a MAC.
    assert ratios == pytest.approx([1.0, (1110 + 100) / 2320, (555 + 100) / 2320])
    macs = [result["metrics"]["training_macs"] for result in (first_round, second_round, third)]
    for n, result in enumerate((first_round, second_round, third), start=1):
        assert result["metrics"]["total_training_macs"] == sum(macs[:n]) == result["state"].training_macs


def test_ticket_moves_to_other_classes_with_a_new_output(first_round, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    target = {"dataset": "glyphs:greek:5", "image_size": 8}
    found = execute(first_round, **TINY | STILL | target, method="static", start="ticket")["state"]
    start, masks = first_round["state"].start, first_round["state"].masks
    assert torch.equal(found.masks["1"], masks["1"]) and is_near({"1": found.model["1.weight"]}, weights(start))
    assert found.model["5.weight"].shape == (5, 10)


@pytest.mark.parametrize("path", ["line", "quadratic_sparse", "cubic_sparse", "quadratic_dense"])
def test_path_bends_between_its_parents_in_the_space_it_is_given(path, monkeypatch):
    options = TINY | MLP | {"n_train": 256, "density": 0.2, "update_every": 1}
    parents = [execute(**options, method=method) for method in ("static", "gmp")]
    fitted = []
    fit_curve = setup.landscape.fit_curve

    def spy(*arguments, **named):
        fitted.extend(fit_curve(*arguments, **named))
        assert named["n_steps"] == 8  # two epochs of 256 images in batches of 64
        return fitted

    monkeypatch.setattr(setup.landscape, "fit_curve", spy)
    result = execute(*parents, **options, method="dense", path=path)
    line = execute(*parents, **options, method="dense", path="line")
    assert result["status"] == "finished" and result["state"] is None and result["layers"] == []
    losses = result["curves"]["train_loss"]
    assert result["curves"]["position"] == pytest.approx([k / 20 for k in range(21)])
    assert result["metrics"]["loss_barrier"] == max(losses) - max(losses[0], losses[-1])
    assert result["metrics"]["train_loss"] == max(losses)
    assert (losses[0], losses[-1]) == pytest.approx(
        (line["curves"]["train_loss"][0], line["curves"]["train_loss"][-1]), rel=1e-6
    )

    static, gmp = (parent["state"] for parent in parents)
    assert len(fitted) == {"line": 0, "cubic_sparse": 2}.get(path, 1)
    for control in fitted:
        outside = torch.cat([
            control[f"{name}.weight"][~(mask | gmp.masks[name])] for name, mask in static.masks.items()
        ])  # fmt: skip
        assert len(outside) and outside.any() == (path == "quadratic_dense")


def test_path_from_a_dense_solution_is_free_everywhere():
    options = TINY | MLP | {"n_train": 256, "n_epochs": 1}
    dense, static = (execute(**options, method=method) for method in ("dense", "static"))
    sparse, free = (
        execute(dense, static, **options, method="dense", path=path) for path in ("quadratic_sparse", "quadratic_dense")
    )
    assert sparse["curves"] == free["curves"]


def test_methods_that_end_with_as_many_macs_as_erk_match_it_closely():
    erk = execute(method="static", density=0.2)["metrics"]["macs"]
    for distribution in ("erdos_renyi", "uniform"):
        options = {"method": "static", "density": 0.2, "distribution": distribution}
        assert execute(**options, equal="macs")["metrics"]["macs"] == pytest.approx(erk, rel=0.002)
        assert abs(execute(**options)["metrics"]["macs"] / erk - 1) > 0.01
    first_dense = {"method": "static", "density": 0.2, "first_layer": "dense"}
    same = [execute(**first_dense, equal=equal)["metrics"]["macs"] for equal in ("weights", "macs")]
    assert same[0] == pytest.approx(same[1], rel=1e-4) and same[0] > erk


def test_training_twice_as_long_costs_twice_and_stretches_the_schedules():
    short, long = (execute(method="dense", density=1.0, train_multiplier=m, **MLP)["metrics"] for m in (1.0, 2.0))
    assert (short["n_steps"], long["n_steps"]) == (4, 8)
    assert (short["training_macs_ratio"], long["training_macs_ratio"]) == (1.0, 2.0)
    moving = TINY | {"method": "rigl", "update_every": 1}
    assert execute(**moving, train_multiplier=2.0)["moves"]["step"] == list(range(7))  # up to three quarters of 8
    longer = execute(**moving | {"n_epochs": 4})
    stretched = execute(**moving, train_multiplier=2.0)
    assert stretched["curves"] == longer["curves"] and stretched["moves"] == longer["moves"]


def test_own_criterion_that_is_rigls_gives_rigls_accuracy():
    options = {"method": "rigl", "density": 0.2, "update_every": 1}
    usual = execute(**options)
    own = execute(**options, grow_score=lambda weight, gradient: gradient.abs())
    other = execute(**options, grow_score=lambda weight, gradient: -gradient.abs())
    assert own["curves"] == usual["curves"] and own["moves"] == usual["moves"]
    assert other["curves"] != usual["curves"]


@pytest.mark.parametrize(
    "score, message",
    [
        (lambda weight, gradient: gradient / 0, "score returned NaN or infinity for"),
        (lambda weight, gradient: torch.ones_like(gradient), "score returned 1.0 for all"),
        (lambda weight, gradient: gradient.flatten(), r"score returned a tensor of shape \(1920,\)"),
    ],
)
def test_own_criterion_that_ranks_nothing_is_refused(score, message):
    with pytest.raises(ValueError, match=message):
        execute(method="rigl", **MLP, grow_score=score)


@pytest.mark.parametrize("method, n_active", [("dense", 2320), ("static", 232)])
def test_units_are_those_of_the_final_network(method, n_active):
    result = execute(method=method, **MLP)
    found = result["units"]
    assert len(found["surviving"]) == 4 and found["surviving"][-1] == 10
    assert result["metrics"]["n_active"] == n_active
    if method == "dense":
        assert found["surviving"] == [64, 30, 10, 10] and found["input_connections"] == [30] * 64
        assert (found["n_weights"], found["n_bytes"]) == (2320, 4 * (2320 + 50) + 290)
        assert (result["metrics"]["input_share"], result["metrics"]["central_share"]) == (1.0, 0.25)
    else:
        mask = result["state"].masks["1"]
        assert found["input_connections"] == [int(mask[:, pixel].sum()) for pixel in range(64)]
        assert found["n_weights"] <= n_active
        assert result["metrics"]["input_share"] == pytest.approx(float(mask.any(dim=0).float().mean()))
    assert "units" not in execute(method=method)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"start": "warm"}, "unknown start 'warm'; there are fresh, ticket, reinitialised, shuffled, solution"),
        ({"equal": "bytes"}, "unknown equal 'bytes'; there are weights, macs"),
        ({"path": "spiral"}, "unknown path 'spiral'; there are None, line, quadratic_sparse"),
        ({"method": "magic"}, "unknown method 'magic'; there are dense, small_dense"),
        ({"method": "lottery", "density": 0.5}, "the first round of a lottery is dense: density 1.0; later rounds"),
        ({"method": "lottery", "density": 1.0, "rewind_epochs": 2.5}, "cannot rewind to epoch 2.5: training has 2;"),
        ({"method": "lottery", "density": 1.0, "rewind_epochs": -1.0}, "cannot rewind to epoch -1: training has 2;"),
        ({"start": "ticket"}, "start=ticket path=None needs 1 parents, got 0"),
        ({"path": "line"}, "start=fresh path=line needs 2 parents, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        execute(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "start=fresh path=None needs 0 parents, got 1"),
        ({"path": "line"}, "start=fresh path=line needs 2 parents, got 1"),
        ({"start": "ticket", "width": 0.2}, r"a ticket for another network: 1.weight is \(30, 64\) in the ticket"),
        ({"start": "solution", "width": 0.2}, r"a ticket for another network: 1.weight is \(30, 64\) in the ticket"),
        ({"start": "reinitialised", "width": 0.2}, r"mask '1' of shape \(30, 64\) fits no layer of Sequential"),
        ({"start": "ticket", "model": "resnet8"}, "a ticket for another network: conv.weight is absent"),
        ({"start": "ticket", "method": "lottery", "density": 0.6}, "density 0.6 asks for 1332 weights, but only 1110"),
        *(
            ({"start": "ticket", "method": method}, f"{method} chooses its own mask and takes none from a parent")
            for method in ("dense", "small_dense", "small_dense_macs", "snip", "gmp")
        ),
    ],
)
def test_parent_that_does_not_fit_is_refused(options, message, second_round):
    with pytest.raises(ValueError, match=message):
        execute(second_round, **TINY | MLP | {"method": "static"} | options)


def test_dense_parent_has_no_mask_to_start_from():
    dense = execute(method="dense", density=1.0, **MLP)
    with pytest.raises(ValueError, match="the parent has no mask to start from"):
        execute(dense, method="static", start="ticket", **MLP)


@pytest.mark.gpu
def test_starts_and_paths_on_a_gpu_take_states_from_the_cpu():
    options = TINY | MLP | {"n_train": 256, "density": 0.2}

    def on_gpu(*parents, **changes):
        run = RIGL.run(seed=0, **options | changes)
        return runner.execute(RIGL, run, device="cuda", parents=parents)

    static, gmp = (execute(**options, method=method)["state"] for method in ("static", "gmp"))
    for start in set(STARTS) - {"fresh"}:
        assert on_gpu(static, method="rigl", start=start)["status"] == "finished"
    for path in ("line", "quadratic_sparse", "quadratic_dense"):
        assert on_gpu(static, gmp, method="dense", path=path)["status"] == "finished"


def test_own_criterion_without_rigl_and_training_of_no_epoch_are_refused():
    with pytest.raises(ValueError, match="method 'set' does not grow by it"):
        execute(method="set", grow_score=lambda weight, gradient: gradient.abs())
    with pytest.raises(ValueError, match=r"2 epochs times 0\.1 leave no training"):
        execute(train_multiplier=0.1)


@pytest.mark.parametrize("name", ["gmp", "woodfisher", "acdc"])
def test_method_that_chooses_its_own_mask_goes_on_from_a_dense_solution_only(name):
    images = data.load("digits", n_train=128)
    options = {"model": "resnet8", "width": 0.25, "dataset": "digits", "n_train": 128, "batch_size": 64}
    own = RIGL.options_of(RIGL.run(seed=3, method=name, start="solution", parents=(RIGL.run(seed=0),), **options))
    model = build_model("resnet8", num_classes=10, in_channels=1, image_size=8, width=0.25)
    parent = State(model.state_dict(), 10, {}, 0.0)
    begun = RIGL.setup(own, images, [parent], seed=3)
    assert all(torch.equal(value, parent.model[key]) for key, value in begun.model.state_dict().items())
    assert all(mask.all() for mask in begun.method.masks.values())
    parent.masks = {"conv": model.conv.weight > 0}
    with pytest.raises(ValueError, match=f"{name} chooses its own mask: it goes on from a dense parent, not a masked"):
        RIGL.setup(own, images, [parent], seed=3)
