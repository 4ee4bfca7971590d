"""The loop: learns, resumes bit for bit, keeps its books, survives damage."""

import math
from functools import partial

import pytest
import torch
from conftest import build_method, train_step
from torch import nn

from prunelab import training
from prunelab.checkpoints import load_checkpoint
from prunelab.methods import METHODS
from prunelab.models import build_model
from prunelab.steps import OPTIMIZERS, build_optimizer, cross_entropy, set_learning_rate
from prunelab.training import evaluate, mean_per_class, top_1, train

DECAYED = {"layer_decay": 0.65}
SETTINGS = {
    "n_epochs": 3,
    "batch_size": 64,
    "learning_rate": 0.05,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": True,
    "eval_every": 1,
}


def build(name, *, model_name="resnet8"):
    torch.manual_seed(0)
    model = build_model(model_name, num_classes=10, in_channels=1, image_size=8, width=0.25)
    generator = torch.Generator().manual_seed(0)
    return model, build_method(name, model, density=0.3, generator=generator, update_every=3, stop_step=9)


def run(name, dataset, *, model_name="resnet8", **changes):
    model, method = build(name, model_name=model_name)
    generator = torch.Generator().manual_seed(1)
    result = train(model, dataset, method=method, generator=generator, **SETTINGS | changes)
    return model, method, result


class Killed(Exception):
    pass


def kill_after(n_reports):
    calls = []

    def report(share):
        calls.append(share)
        if len(calls) == n_reports:
            raise Killed

    return report


def kill_at(share_done):
    def report(share):
        if share >= share_done:
            raise Killed

    return report


@pytest.mark.parametrize(
    "name, changes",
    [(name, {}) for name in METHODS]
    + [(name, {"model_name": "wrn22_2"}) for name in ("dense", "set")]  # these have dropout
    + [(name, {"optimizer": "adam"}) for name in ("dense", "static", "rigl")]
    + [("static", {"optimizer": "adamw", "layer_decay": 0.5})],
)
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(name, changes, digits, tmp_path, saved_each_step):
    whole_model, whole_method, whole = run(name, digits, **changes)
    for n_reports in (2, 2, 3):  # killed in the first epoch of four steps, at its end, in the second
        with pytest.raises(Killed):
            run(name, digits, checkpoint=tmp_path / "state", report=kill_after(n_reports), **changes)
    model, method, result = run(name, digits, checkpoint=tmp_path / "state", **changes)

    assert result.curves == whole.curves
    assert (result.n_steps, result.n_batches) == (whole.n_steps, whole.n_batches)
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    if method is not None:
        assert all(torch.equal(mask, whole_method.masks[layer]) for layer, mask in method.masks.items())
        assert method.moves == whole_method.moves


@pytest.mark.parametrize("name", ["dense", "rigl", "snfs"])
def test_training_that_is_killed_at_each_step_is_bit_for_bit_uninterrupted(name, digits, tmp_path, saved_each_step):
    whole_model, _, whole = run(name, digits, eval_every=2)
    for n_killed in range(100):
        try:
            model, _, result = run(
                name, digits, eval_every=2, checkpoint=tmp_path / "state", report=kill_after(1 + n_killed % 2)
            )
            break
        except Killed:
            continue
    assert n_killed >= 8  # of 12 steps
    assert result.curves == whole.curves and result.n_batches == whole.n_batches
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in whole_model.state_dict().items())


def test_resumed_training_does_not_start_over(digits, tmp_path, saved_each_step):
    with pytest.raises(Killed):
        run("dense", digits, checkpoint=tmp_path / "state", report=kill_at(6 / 12))
    assert load_checkpoint(tmp_path / "state")["result"]["n_steps"] == 6
    shares = []
    run("dense", digits, checkpoint=tmp_path / "state", report=shares.append)
    assert shares == [step / 12 for step in range(7, 13)]


def test_state_is_saved_now_and_then_and_less_often_where_saving_takes_long(digits, tmp_path, monkeypatch):
    now, saved, shares = [0.0], [], []

    def save(state, path):
        saved.append(state["result"]["n_batches"])
        now[0] += 3.0

    monkeypatch.setattr(training, "save_checkpoint", save)
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 10.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", 0.1)
    model, _ = build("dense")
    turns = training.training(
        model,
        digits,
        generator=torch.Generator(),
        checkpoint=tmp_path / "state",
        report=shares.append,
        **SETTINGS | {"n_epochs": 6, "eval_every": 6},
    )
    for _ in turns:  # a step takes 4 seconds
        now[0] += 4.0
    # Due after 10 seconds; then 3 seconds are a tenth of the 30 to the next.
    assert saved == [4, 12, 20]
    assert shares == [4 / 24, 12 / 24, 20 / 24, 1.0]


def test_damaged_checkpoint_is_named_and_training_starts_again(digits, tmp_path, saved_each_step):
    _, _, whole = run("rigl", digits)
    with pytest.raises(Killed):
        run("rigl", digits, checkpoint=tmp_path / "state", report=kill_after(1))
    content = bytearray((tmp_path / "state").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state").write_bytes(content)
    with pytest.warns(UserWarning, match="state is damaged.*starts again from its beginning"):
        _, _, result = run("rigl", digits, checkpoint=tmp_path / "state")
    assert result.curves == whole.curves


def test_checkpoint_of_another_format_is_named_and_training_starts_again(
    digits, tmp_path, monkeypatch, saved_each_step
):
    with pytest.raises(Killed):
        run("set", digits, checkpoint=tmp_path / "state", report=kill_after(1))
    monkeypatch.setattr(training, "CHECKPOINT_FORMAT", 4)
    with pytest.warns(UserWarning, match="has format 3, this version reads 4; this run starts again"):
        _, _, result = run("set", digits, checkpoint=tmp_path / "state")
    assert result.curves["epoch"] == [1, 2, 3]


def test_network_learns_digits(digits):
    _, _, result = run("dense", digits, n_epochs=15)
    assert result.curves["test_accuracy"][-1] > 0.4  # chance is 0.1
    assert result.curves["train_loss"][-1] < result.curves["train_loss"][0]


def test_steps_are_counted_without_mask_updates_and_batches_with_them(digits):
    _, method, result = run("rigl", digits)
    assert result.n_steps == 3 * (256 // 64)
    assert method.moves["step"] == [0, 3, 6, 9]
    assert method.n_dense_gradients == 4
    assert result.n_batches == result.n_steps + 4
    _, method, result = run("set", digits)
    assert method.moves["step"] == [1, 4, 7]
    assert result.n_batches == result.n_steps


def test_curves_have_one_entry_an_epoch(digits):
    _, _, result = run("static", digits)
    assert result.curves["epoch"] == [1, 2, 3]
    assert {len(values) for values in result.curves.values()} == {3}


def test_evaluations_come_at_their_interval_and_at_the_end(digits):
    _, _, often = run("static", digits)
    _, _, seldom = run("static", digits, eval_every=2)
    assert seldom.curves["epoch"] == [2, 3]
    assert seldom.curves["test_accuracy"] == often.curves["test_accuracy"][1:]
    assert seldom.curves["train_loss"][0] == pytest.approx(sum(often.curves["train_loss"][:2]) / 2)


def test_divergence_is_recorded_not_raised(digits):
    _, _, result = run("dense", digits, learning_rate=1e30, n_epochs=5)
    assert result.diverged
    assert len(result.curves["epoch"]) < 5


def test_accuracy_counts_every_test_image_once(digits, monkeypatch):
    class Always(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    share_of_threes = float((digits.test_labels == 3).float().mean())
    for batch_size in (1, 7, 10_000):  # the last batch is a short one
        monkeypatch.setitem(training.EVALUATION_PIXELS, "cpu", 64 * batch_size)
        loss, accuracy = evaluate(Always(), digits)
        assert accuracy == pytest.approx(share_of_threes)
        # Cross-entropy of a one-hot output: log(e + 9), less 1 where it is right.
        assert loss == pytest.approx(torch.log(torch.e + torch.tensor(9.0)).item() - share_of_threes, rel=1e-5)


def test_metrics_by_hand():
    n_correct, n_images = torch.tensor([3, 1, 0, 0]), torch.tensor([4, 2, 1, 0])
    assert top_1(n_correct, n_images) == 4 / 7
    assert mean_per_class(n_correct, n_images) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)  # no image of the last class


def test_the_metric_is_given_what_was_counted_of_each_class(digits, monkeypatch):
    monkeypatch.setitem(training.EVALUATION_PIXELS, "cpu", 64 * 7)  # in many batches
    model, _ = build("dense")
    model.eval()
    with torch.no_grad():
        images = torch.cat([images for images, _ in digits.test_batches(batch_size=7)])
        is_right = model(images).argmax(dim=1) == digits.test_labels
    counted = []
    _, accuracy = evaluate(model, digits, metric=lambda *counts: counted.extend(counts) or 0.25)
    assert accuracy == 0.25
    n_correct, n_images = counted
    assert n_images.tolist() == [int((digits.test_labels == label).sum()) for label in range(10)]
    assert n_correct.tolist() == [int(is_right[digits.test_labels == label].sum()) for label in range(10)]


def test_training_tests_by_the_metric_that_it_is_given(digits):
    model, _, result = run("dense", digits, metric=mean_per_class)
    assert result.curves["test_accuracy"][-1] == evaluate(model, digits, metric=mean_per_class)[1]
    assert result.curves["test_accuracy"] != run("dense", digits)[2].curves["test_accuracy"]


def test_evaluation_leaves_the_model_in_its_mode_and_its_statistics(digits):
    model, _ = build("dense")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for mode in (True, False):
        model.train(mode)
        evaluate(model, digits)
        assert model.training == mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_label_smoothing_by_hand():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[3.0], [1.0]]).log()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    objective = partial(cross_entropy, label_smoothing=0.2)
    loss, stepped = train_step(model, optimizer, torch.ones(1, 1), torch.tensor([0]), 0, objective=objective)
    # Probabilities 3/4 and 1/4, targets 0.8 + 0.2 / 2 and 0.2 / 2.
    assert loss.item() == pytest.approx(-(0.9 * math.log(0.75) + 0.1 * math.log(0.25)))
    assert stepped


def test_weight_decay_spares_biases_and_normalisation():
    model, _ = build("dense")
    decayed, others = build_optimizer(model, momentum=0.9, weight_decay=0.5).param_groups
    assert decayed["weight_decay"] == 0.5 and others["weight_decay"] == 0.0
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_batch_larger_than_the_training_set_is_refused(digits):
    with pytest.raises(ValueError, match="batch_size 257 exceeds the 256 training images"):
        run("dense", digits, batch_size=257)


def test_sgd_is_the_default_and_has_nesterov_momentum_where_it_has_any():
    model, _ = build("dense")
    for options in ({}, {"optimizer": "sgd"}):
        for momentum in (0.0, 0.9):
            optimizer = build_optimizer(model, momentum=momentum, weight_decay=0.5, **options)
            assert type(optimizer) is torch.optim.SGD
            assert all(group["momentum"] == momentum for group in optimizer.param_groups)
            assert all(group["nesterov"] == (momentum > 0) for group in optimizer.param_groups)


def test_plain_sgd_steps_by_hand():
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(layer, optimizer="plain_sgd", momentum=0.5, weight_decay=0.1)
    set_learning_rate(optimizer, 1.0)
    for parameter in layer.parameters():  # the bias decays as the weight does
        nn.init.constant_(parameter, 2.0)
    for expected in (0.8, -0.88):  # gradient 1 + 0.1 * 2 = 1.2; then 1 + 0.1 * 0.8 + half of 1.2 = 1.68
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert [parameter.item() for parameter in layer.parameters()] == pytest.approx([expected, expected])


def test_adam_steps_by_hand():
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(layer, optimizer="adam", momentum=0.5, weight_decay=0.1)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 2.0)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    expected = {"weight": 2.0, "bias": 2.0}
    moments = {"weight": (0.0, 0.0), "bias": (0.0, 0.0)}
    for step, gradient in enumerate((1.0, -3.0, 0.5), start=1):
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        optimizer.step()
        for name, decay in (("weight", 0.1), ("bias", 0.0)):
            decayed = gradient + decay * expected[name]  # L2: through both moments
            first, second = moments[name]
            first, second = 0.5 * first + 0.5 * decayed, 0.999 * second + 0.001 * decayed**2
            moments[name] = first, second
            expected[name] -= 0.1 * (first / (1 - 0.5**step)) / math.sqrt(second / (1 - 0.999**step))
            assert getattr(layer, name).item() == pytest.approx(expected[name], rel=1e-5)


def test_adamw_steps_by_hand():
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(layer, optimizer="adamw", momentum=0.5, weight_decay=0.2)
    set_learning_rate(optimizer, 0.1)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 2.0)
    # First and second moment over their corrections: 1 / 1; (-3 + 0.5 * 1) / 1.5 over sqrt((9 + 0.999) / 1.999).
    for gradient, adam in ((1.0, 1.0), (-3.0, -2.5 / 1.5 / math.sqrt(9.999 / 1.999))):
        before = layer.weight.item(), layer.bias.item()
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        optimizer.step()
        assert layer.weight.item() == pytest.approx(0.98 * before[0] - 0.1 * adam)  # 1 - 0.1 * 0.2, beside the moments
        assert layer.bias.item() == pytest.approx(before[1] - 0.1 * adam)


class Blocks(nn.Module):
    """Two blocks, with what a transformer has before and after them."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Conv2d(1, 2, 1), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
        self.norm, self.head = nn.LayerNorm(2), nn.Linear(2, 10)
        self.token = nn.Parameter(torch.ones(2))

    def forward(self, images):
        return self.head(self.norm(self.blocks(self.embed(images).mean(dim=(2, 3)) + self.token)))


def test_each_block_learns_more_slowly_than_the_one_after_it():
    model = Blocks()
    optimizer = build_optimizer(model, optimizer="adamw", momentum=0.9, weight_decay=0.3, layer_decay=0.5)
    set_learning_rate(optimizer, 0.8)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {
        **{"token": 0.1, "embed.weight": 0.1, "embed.bias": 0.1},  # 0.8 * 0.5**3
        **{"blocks.0.weight": 0.2, "blocks.0.bias": 0.2, "blocks.1.weight": 0.4},
        **{"norm.weight": 0.8, "norm.bias": 0.8, "head.weight": 0.8, "head.bias": 0.8},
    }
    decays = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    weights = {"embed.weight", "blocks.0.weight", "blocks.1.weight", "head.weight"}
    assert decays == {name: 0.3 if name in weights else 0.0 for name in names.values()}
    set_learning_rate(optimizer, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_layer_decay_groups_are_two_and_have_no_factor(name):
    optimizer = build_optimizer(Blocks(), optimizer=name, momentum=0.9, weight_decay=0.3, layer_decay=1.0)
    assert len(optimizer.param_groups) == (1 if name == "plain_sgd" else 2)
    assert not any("factor" in group for group in optimizer.param_groups)


def test_training_decays_rates_by_layer(digits):
    """One step of SGD from equal values: what a block moves by is its factor times what it moves by without decay."""
    moved = {}
    for layer_decay in (1.0, 0.5):
        torch.manual_seed(0)
        model = Blocks()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        settings = {"n_epochs": 1, "batch_size": 256, "weight_decay": 0.0, "momentum": 0.0}
        train(model, digits, generator=torch.Generator(), **SETTINGS | settings | {"layer_decay": layer_decay})
        moved[layer_decay] = {name: value - before[name] for name, value in model.state_dict().items()}
    for name, factor in (("token", 1 / 8), ("blocks.0.weight", 1 / 4), ("blocks.1.weight", 1 / 2), ("head.bias", 1)):
        torch.testing.assert_close(moved[0.5][name], factor * moved[1.0][name], rtol=1e-3, atol=1e-6)
        assert moved[0.5][name].abs().max() > 1e-5


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_layer_decay_is_refused(layer_decay):
    with pytest.raises(ValueError, match=rf"layer_decay must lie in \(0, 1\], got {layer_decay}"):
        build_optimizer(Blocks(), momentum=0.9, weight_decay=0.0, layer_decay=layer_decay)


def test_layer_decay_of_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"layer_decay=0.5 needs a network with a sequence of blocks, not Linear"):
        build_optimizer(nn.Linear(1, 1), momentum=0.9, weight_decay=0.0, layer_decay=0.5)


def test_unknown_optimizer_is_refused(digits):
    with pytest.raises(ValueError, match="unknown optimizer 'lamb'; there are sgd, plain_sgd, adam, adamw"):
        run("dense", digits, optimizer="lamb")


def test_training_uses_the_optimizer_it_is_told(digits):
    sgd, adam = (run("dense", digits, n_epochs=1, optimizer=name)[2] for name in ("sgd", "adam"))
    assert run("dense", digits, n_epochs=1)[2].curves == sgd.curves != adam.curves


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"optimizer": "adamw", **DECAYED}])
def test_adam_leaves_pruned_weights_at_zero_and_their_moments_too(options):
    model, method = build("static")
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=0.1, **options)
    set_learning_rate(optimizer, 0.01)
    before = {name: weight.clone() for name, weight in method.weights.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        images = torch.randn(16, 1, 8, 8, generator=generator)
        train_step(model, optimizer, images, torch.arange(16) % 10, step, method=method)
    for name, weight in method.weights.items():
        assert not weight[~method.masks[name]].any() and not torch.equal(weight, before[name])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not optimizer.state[weight][moment][~method.masks[name]].any()


def test_depthwise_weights_are_decayed_though_never_masked():
    model = build_model("mobilenet_v1", num_classes=10, in_channels=1, image_size=8, width=0.1)
    decayed, _ = build_optimizer(model, momentum=0.9, weight_decay=0.5).param_groups
    assert any(model.blocks[0].depthwise.weight is weight for weight in decayed["params"])
    assert len(decayed["params"]) == 28
