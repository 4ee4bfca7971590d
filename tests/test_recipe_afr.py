"""The recipe of 05_afr: what it compares is comparable, and what is recorded of a network is true of it."""

import functools
from dataclasses import replace

import pytest
import torch

from prunelab import data, paths, records, stores
from prunelab.masks import global_masks
from prunelab.models import build_model, pretrained
from prunelab.models.vit import load_backbone
from prunelab.recipes import PROFILES, runner
from prunelab.recipes.afr import AFR, looks
from prunelab.recipes.afr.plan import PRETRAININGS
from prunelab.recipes.common import generator_of
from prunelab.scores import SCORES, score
from prunelab.training import evaluate

TINY = {"dataset": "digits", "n_train": 128, "model": "vit_micro4", "width": 0.25, "batch_size": 32, "n_epochs": 2}
TINY |= {"n_scored": 64, "warmup_epochs": 0}


def execute(*parents, seed=0, **options):
    run = AFR.run(seed=seed, **TINY | options)
    return runner.execute(AFR, run, device="cpu", parents=[parent["state"] for parent in parents])


@functools.cache
def pretrain(kind):
    return execute(training=kind)


def network(state, **shape):
    model = build_model("vit_micro4", num_classes=10, in_channels=1, image_size=8, width=0.25, **shape)
    load_backbone(model, state.model)
    return model


@pytest.mark.parametrize("kind", PRETRAININGS)
@pytest.mark.parametrize("name", SCORES)
def test_fine_tuned_network_is_as_dense_as_asked_and_stays_so(kind, name):
    tuned = execute(pretrain(kind), pretrained=kind, score=name, density=0.1, n_rounds=3)
    state = tuned["state"]
    blocks = [layer for layer in tuned["layers"] if layer["name"].startswith("blocks.") and layer["n_weights"]]
    assert sum(layer["n_active"] for layer in blocks) == round(0.1 * sum(layer["n_weights"] for layer in blocks))
    assert {layer["name"] for layer in tuned["layers"] if layer["masked"]} == {layer["name"] for layer in blocks}
    for layer, mask in state.masks.items():
        assert not state.model[f"{layer}.weight"][~mask].any()
    counted = {(row["block"], row["matrix"]) for row in tuned["matrices"]}
    assert counted == {(block, matrix) for block in range(4) for matrix in ("q", "k", "v", "proj", "fc1", "fc2")}
    assert sum(row["n_active"] for row in tuned["matrices"]) == sum(layer["n_active"] for layer in blocks)
    assert tuned["emptied"] == [layer["name"] for layer in blocks if not layer["n_active"]]


def test_masks_are_those_of_the_score_on_the_pretrained_network_with_a_fresh_head():
    tuned = execute(pretrain("supervised"), pretrained="supervised", score="afr", density=0.1, n_epochs=1, seed=3)
    torch.manual_seed(3)
    model = network(pretrain("supervised")["state"]).eval()
    images = data.load("digits", n_train=128)
    drawn = images.train_batches(batch_size=32, augment=False, generator=generator_of("scored", 3))
    batches = [next(drawn) for _ in range(2)]
    weights = looks.block_weights(model)
    masks = global_masks(score("afr", model, weights, batches), density=0.1)
    assert all(torch.equal(tuned["state"].masks[name], mask) for name, mask in masks.items())


def test_pretrainings_tell_how_good_their_features_are_and_hand_on_what_they_have_learned():
    supervised, dino = pretrain("supervised"), pretrain("dino")
    for result in (supervised, dino):
        assert 0.1 < result["metrics"]["knn_accuracy"] <= 1
        assert not result["state"].masks
    assert "test_accuracy" in supervised["metrics"] and "test_accuracy" not in dino["metrics"]
    assert dino["history"][0]["batch"] == 0 and {"deviation", "entropy", "divergence"} < dino["history"][0].keys()
    assert dino["metrics"]["n_stored_weights"] == supervised["metrics"]["n_stored_weights"]  # no projection
    assert dino["metrics"]["macs"] == supervised["metrics"]["macs"]
    assert dino["metrics"]["training_macs"] > 2 * supervised["metrics"]["training_macs"]
    network(dino["state"])


def test_dense_network_is_not_masked_and_layer_decay_reaches_the_optimizer():
    plain = execute(pretrain("supervised"), pretrained="supervised")
    decayed = execute(pretrain("supervised"), pretrained="supervised", layer_decay=0.1)
    assert not plain["state"].masks and plain["metrics"]["measured_density"] == 1
    first = pretrain("supervised")["state"].model["patch_embed.proj.weight"]
    moved = [(run["state"].model["patch_embed.proj.weight"] - first).abs().max() for run in (plain, decayed)]
    assert moved[1] < moved[0] / 10


def test_other_image_sizes_take_the_pretrained_positions():
    small = execute(pretrain("supervised"), pretrained="supervised", score="snip", density=0.2, image_size=4)
    assert small["state"].model["pos_embed"].shape[1] == 2
    large = execute(pretrain("supervised"), pretrained="supervised", enlarged_to=16)
    assert large["state"].model["pos_embed"].shape[1] == 17
    assert large["metrics"]["macs"] > 3 * pretrain("supervised")["metrics"]["macs"]


def test_look_tells_of_each_score_what_its_masks_do():
    looked = execute(pretrain("dino"), pretrained="dino", training="inspect", density=0.05)
    whole, *ways = looked["looks"]
    assert looked["state"] is None and whole["score"] == "" and [way["score"] for way in ways] == list(SCORES)
    for way in ways:
        assert way["agree"][way["score"]] == 1 and all(0 <= share <= 1 for share in way["agree"].values())
        assert set(way["singular_values"]) == {f"blocks.{i}" for i in range(4)}
        assert len(way["log_quantiles"]) == looks.N_QUANTILES
        assert way["log_quantiles"] == sorted(way["log_quantiles"])
    model = network(pretrain("dino")["state"])
    assert sum(row["n_weights"] for row in ways[0]["matrices"]) == sum(
        weight.numel() for weight in looks.block_weights(model).values()
    )


def test_looking_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = network(pretrain("supervised")["state"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.rand(8, 1, 8, 8), torch.arange(8))]
    ways = {name: functools.partial(score, name, generator=torch.Generator()) for name in ("magnitude", "snip")}
    looks.look_at(model, looks.block_weights(model), batches, ways, density=0.1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fitted_head_is_better_than_a_fresh_one():
    torch.manual_seed(0)
    images, model = data.load("digits"), network(pretrain("supervised")["state"])
    drawn = images.train_batches(batch_size=256, augment=False, generator=generator_of("scored", 0))
    backbone = model.blocks[0].attn.qkv.weight.clone()
    before = evaluate(model, images)[1]
    looks.fit_head(model, [next(drawn) for _ in range(2)])
    assert evaluate(model, images)[1] > before + 0.1
    assert torch.equal(model.blocks[0].attn.qkv.weight, backbone) and model.head.weight.grad is None


def test_head_is_fitted_for_the_scores_alone():
    """Nothing is learned at a learning rate of zero."""
    given = {"pretrained": "supervised", "score": "snip", "density": 0.1, "n_epochs": 1, "learning_rate": 0.0}
    plain, probed = (execute(pretrain("supervised"), **given, probed=probed)["state"] for probed in (False, True))
    assert torch.equal(plain.model["head.weight"], probed.model["head.weight"])
    assert any(not torch.equal(mask, probed.masks[name]) for name, mask in plain.masks.items())


def test_released_weights_are_read_by_their_name(monkeypatch):
    torch.manual_seed(1)
    released = build_model("vit_micro4", num_classes=10, in_channels=1, image_size=8, width=0.25).state_dict()
    monkeypatch.setattr(pretrained, "read", lambda name: {"vit_b16_dino": released}[name])
    tuned = execute(pretrained="vit_b16_dino", score="magnitude", density=0.5, n_epochs=1)
    kept = global_masks({name: released[f"{name}.weight"].abs() for name in tuned["state"].masks}, density=0.5)
    assert all(torch.equal(tuned["state"].masks[name], mask) for name, mask in kept.items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"score": "snap", "density": 0.5}, "unknown score 'snap'; there are None, magnitude"),
        ({"score": "snip"}, "a density below 1 needs a score, and no other does; got score=snip density=1"),
        ({"density": 0.5}, "a density below 1 needs a score, and no other does; got score=None density=0.5"),
        ({"score": "snip", "density": 0.0}, "density must lie in"),
        ({"pretrained": "supervised"}, "training=fine_tune pretrained=supervised needs 1 parents, got 0"),
        (
            {"pretrained": "imagenet"},
            "unknown pretrained 'imagenet'; there are None, supervised, dino, vit_b16_imagenet",
        ),
        ({"training": "dino", "pretrained": "vit_b16_dino"}, "training=dino pretrained=vit_b16_dino"),
        ({"features": "all"}, "unknown features 'all'; there are cls, mean, tokens"),
        ({"training": "dino", "score": "snip", "density": 0.5}, "only fine_tune prunes by a score; got training=dino"),
        ({"n_scored": 0}, "n_scored must be at least 1, got 0"),
        ({"enlarged_to": -8}, "enlarged_to must be at least 1, got -8"),
        ({"mixture": 1.5}, "mixture is a share, got 1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing is a share, got 1.0"),
        ({"score": "snip", "density": 0.5, "n_scored": 50}, "must be a multiple of 32, .*, and at most 128.*; got 50"),
        ({"score": "snip", "density": 0.5, "n_scored": 160}, "got 160"),
        ({"training": "supervised", "n_train": 10}, "tested by 20 neighbours, got 10 training images"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        execute(**options)


def test_parent_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the state is another network's"):
        execute(pretrain("supervised"), pretrained="supervised", width=0.5)


def test_network_that_ships_is_the_pretrained_one_of_a_record_and_small():
    pretraining = next(run for run in AFR.experiments("small", seeds=(0,))["pretrainings"])
    state = stores.load_state(pretraining, paths.RECORDS)
    assert (paths.RECORDS / pretraining.id / "state").stat().st_size <= 2_000_000
    (record,) = [record for record in records.load(AFR.notebook) if record["id"] == pretraining.id]
    assert record["options"]["training"] == "supervised" and state.options == record["options"]
    assert sum(value.numel() for name, value in state.model.items() if name.endswith("weight")) > 400_000


@pytest.mark.gpu
def test_on_a_gpu_almost_the_same_weights_are_kept():
    here, there = (
        runner.execute(
            AFR,
            AFR.run(seed=0, **TINY | {"pretrained": "supervised", "score": "afr", "density": 0.1, "n_epochs": 1}),
            device=device,
            parents=[pretrain("supervised")["state"]],
        )["state"].masks
        for device in ("cpu", "cuda")
    )
    kept = sum(int(mask.sum()) for mask in here.values())
    assert sum(int((mask & there[name].cpu()).sum()) for name, mask in here.items()) > 0.95 * kept


def test_parent_that_is_pruned_has_diverged_or_is_another_is_refused():
    pruned = execute(pretrain("supervised"), pretrained="supervised", score="magnitude", density=0.5, n_epochs=1)
    diverged = {"state": replace(pretrain("supervised")["state"], diverged=True)}
    for parent, message in (
        (pruned, "the parent is pruned already"),
        (diverged, "the parent has diverged"),
        (pretrain("dino"), "pretrained=supervised needs a parent of that training, got dino"),
    ):
        with pytest.raises(ValueError, match=message):
            execute(parent, pretrained="supervised", score="snip", density=0.5)


@pytest.mark.parametrize("kind", PRETRAININGS)
def test_pretraining_is_judged_on_images_that_are_held_out_and_not_at_all_where_it_diverged(kind):
    held_out = execute(training=kind, n_train=64, n_validation=50, n_epochs=1)
    assert 0 < held_out["metrics"]["knn_accuracy"] <= 1 and "test_accuracy" not in held_out["metrics"]
    diverged = execute(training=kind, learning_rate=1e30)
    assert diverged["status"] == "diverged" and diverged["metrics"]["knn_accuracy"] is None


@pytest.mark.parametrize("profile", PROFILES)
def test_only_what_is_compared_differs_between_rivals(profile):
    for name, runs in AFR.experiments(profile, seeds=(0,)).items():
        if name.startswith(("general", "specific")):
            shared = [
                {key: value for key, value in run.options.items() if key not in ("score", "n_rounds")} for run in runs
            ]
            for options in shared:
                assert shared.count(options) >= 3, name
