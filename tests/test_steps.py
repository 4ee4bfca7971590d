"""Captured steps: what a GPU replays is what Python would have done, for every method; and the precisions."""

import copy
import math
from functools import partial

import pytest
import torch
from conftest import build_method, train_step
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunelab import precision, steps, training
from prunelab.channels.slimming import Slimming
from prunelab.methods import METHODS
from prunelab.methods.static import Static
from prunelab.models import MODELS, build_model
from prunelab.steps import OPTIMIZERS, build_optimizer, cross_entropy, set_learning_rate
from prunelab.training import train


class Recorder(TorchDispatchMode):
    """Stands in for the capture of a CUDA graph: keeps each operation with the tensors it read and wrote.

    As on a GPU, a replay runs the same operations on the same tensors, whatever Python has done since, and reading a
    number while recording is an error.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation is not torch.ops.aten._local_scalar_dense.default, "a number was read: a GPU would stall"
        results = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, results))
        return results

    def replay(self):
        for operation, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def recorded(work, captured):
    """What `steps.capture` gives on a GPU: `work` is recorded and undone, since a capture runs nothing."""
    captured.append(work.__name__)
    stepper = work.__self__
    kept = [*stepper.model.state_dict().values(), stepper.loss_sum]
    kept += [value for state in stepper.optimizer.state.values() for value in state.values()]
    kept += [leaf for leaf in tree_leaves(stepper.method.state_dict()) if isinstance(leaf, torch.Tensor)]
    before, rng = copy.deepcopy(kept), torch.get_rng_state()
    with torch.enable_grad(), Recorder() as recorder:
        work()
    for tensor, value in zip(kept, before, strict=True):
        tensor.detach().copy_(value)
    torch.set_rng_state(rng)
    return torch.no_grad()(recorder.replay)


class TwoWidths(nn.Module):
    """A network of which all hidden units compute, or the first half of them."""

    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.share = 1.0

    def forward(self, images):
        n = int(self.share * 16)
        units = F.linear(images.flatten(1), self.hidden.weight[:n], self.hidden.bias[:n])
        units = self.norm(F.pad(units, (0, 16 - n)))[:, :n]
        return F.linear(units.relu(), self.head.weight[:, :n], self.head.bias)


def sandwich(model, images, labels):
    """Two widths, the narrow one taught by the wide one."""
    wide = model(images)
    yield F.cross_entropy(wide, labels)
    model.share = 0.5
    yield F.kl_div(model(images).log_softmax(1), wide.detach().softmax(1), reduction="batchmean")
    model.share = 1.0


def head_alone(model, images, labels):
    """A backbone whose statistics are frozen too."""
    model.norm.eval()
    yield F.cross_entropy(model(images), labels)


OBJECTIVES = {"smoothed": partial(cross_entropy, label_smoothing=0.1), "sandwich": sandwich, "head_alone": head_alone}


def build_two_widths(objective):
    model = TwoWidths()
    if objective == "head_alone":
        model.requires_grad_(False).head.requires_grad_(True)
    return model


def run(
    name, digits, *, model_name="resnet8", objective="smoothed", density=0.3, optimizer="sgd", device="cpu", **changes
):
    """Trains 12 steps, 4 an epoch, with mask updates at every third."""
    torch.manual_seed(0)
    if model_name == "two_widths":
        model = build_two_widths(objective)
    else:
        model = build_model(model_name, num_classes=10, in_channels=1, image_size=8, width=0.25)
    model = model.to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    method = build_method(name, model, density=density, generator=generator, update_every=3, stop_step=9)
    settings = {"n_epochs": 3, "batch_size": 64, "learning_rate": 0.05, "schedule": "cosine", "warmup_epochs": 1}
    settings |= {"momentum": 0.9, "weight_decay": 5e-4, "augment": True, "eval_every": 1}
    settings["objective"] = OBJECTIVES[objective]
    generator = torch.Generator().manual_seed(1)
    result = train(model, digits, method=method, generator=generator, optimizer=optimizer, **settings | changes)
    return model, method, result


@pytest.fixture
def captured(monkeypatch):
    """Lets `train` do on a CPU what it does on a GPU; the names of the functions that were captured."""
    names = []
    monkeypatch.setattr(steps, "can_capture", lambda device: True)  # the optimizers, too, are those of a GPU
    monkeypatch.setattr(steps, "capture", lambda work: recorded(work, names))
    return names


def assert_equal(one, other):
    (model, method, result), (other_model, other_method, other_result) = one, other
    assert other_result.curves == result.curves
    assert (other_result.n_steps, other_result.n_batches) == (result.n_steps, result.n_batches)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other_model.state_dict()[key]), key
    if method is not None:
        assert all(torch.equal(mask, other_method.masks[layer]) for layer, mask in method.masks.items())


@pytest.mark.parametrize(
    "name, changes",
    [(name, {}) for name in METHODS]
    + [(name, {"optimizer": "adam"}) for name in ("dense", "rigl", "set")]
    + [(name, {"optimizer": "adamw", "layer_decay": 0.65}) for name in ("dense", "static")]
    + [(name, {"precision": p}) for name in ("dense", "rigl", "snfs", "str") for p in ("bf16", "fp16")]
    + [("rigl", {"model_name": m}) for m in ("lenet_300_100", "mobilenet_v1", "wrn22_2")]  # the last has dropout
    + [("rigl", {"augment": False}), ("rigl", {"warmup_epochs": 0, "momentum": 0.0})]
    + [(name, {"model_name": "two_widths", "objective": o}) for name in ("dense", "snfs", "rigl") for o in OBJECTIVES]
    + [("rigl", {"model_name": "two_widths", "objective": "sandwich", "precision": "fp16"})],
)
def test_replayed_steps_are_those_that_python_would_take(name, changes, digits, captured, monkeypatch):
    replayed = run(name, digits, **changes)
    assert captured == ["_compute_gradients", "_update_weights"]
    monkeypatch.setattr(steps, "N_WARM_UP", 10**9)
    assert_equal(replayed, run(name, digits, **changes))
    assert len(captured) == 2


class Killed(Exception):
    pass


def kill(share):
    if share >= 0.5:  # when steps are captured
        raise Killed


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": name} for name in ("sgd", "adam")]
    + [{"optimizer": "adamw", "layer_decay": 0.65}]
    + [{"model_name": "two_widths", "objective": name} for name in OBJECTIVES],
)
def test_captured_training_goes_on_from_its_checkpoint(changes, digits, captured, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        run("rigl", digits, checkpoint=tmp_path / "state", report=kill, **changes)
    resumed = run("rigl", digits, checkpoint=tmp_path / "state", **changes)
    assert len(captured) == 4
    assert_equal(resumed, run("rigl", digits, **changes))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_masks_of_ones_give_the_numbers_of_dense_training(objective, digits):
    dense, masked = (
        run(name, digits, model_name="two_widths", objective=objective, density=1.0) for name in ("dense", "static")
    )
    assert all(mask.all() for mask in masked[1].masks.values())
    assert_equal((masked[0], None, masked[2]), dense)


def test_gradients_of_several_losses_are_those_of_their_sum():
    torch.manual_seed(0)
    model = TwoWidths()
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    loss = sum(sandwich(model, images, labels))
    expected = torch.autograd.grad(loss, list(model.parameters()))
    loss_sum, _ = train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), images, labels, 0, objective=sandwich)
    assert loss_sum.item() == pytest.approx(loss.item())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_losses_are_worked_out_in_half_precision_and_backpropagated_outside_it():
    seen = []

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(("backward", torch.is_autocast_enabled("cpu")))
            return gradient

    def two(model, images, labels):
        for _ in range(2):
            seen.append(("forward", torch.is_autocast_enabled("cpu")))
            yield Layer.apply(model(images)).float().mean()

    model = nn.Linear(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, optimizer, torch.ones(1, 1), torch.tensor([0]), 0, objective=two, precision="bf16")
    assert seen == [("forward", True), ("backward", False)] * 2


@pytest.mark.parametrize(
    "name, optimizer",
    [(name, "sgd") for name in METHODS if name != "lottery"]  # which needs a layer besides the head
    + [("static", "plain_sgd"), ("static", "adam"), ("static", "adamw")],
)
@pytest.mark.parametrize("is_captured", [False, True])
def test_frozen_layers_keep_their_weights_and_have_no_mask(name, optimizer, is_captured, digits, request):
    if is_captured:
        request.getfixturevalue("captured")  # with it, the optimizers are fused
    torch.manual_seed(0)
    before = TwoWidths().state_dict()
    changes = {"model_name": "two_widths", "objective": "head_alone", "weight_decay": 0.1}
    model, method, _ = run(name, digits, optimizer=optimizer, **changes)
    if method is not None:
        assert list(method.masks) == ["head"]
        assert not model.head.weight[~method.masks["head"]].any()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("head")), key


def test_a_frozen_layer_keeps_a_mask_that_it_was_given():
    model = TwoWidths()
    mask = torch.rand(model.hidden.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    method, before = Static(model.requires_grad_(False), {"hidden": mask}), model.hidden.weight.clone()
    assert torch.equal(before != 0, mask)
    method.change_gradients()
    method.change_weights()
    assert torch.equal(model.hidden.weight, before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.filterwarnings("error")  # torch's, of a parameter that it is given twice
def test_a_weight_that_layers_share_is_stepped_once(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    rule = build_optimizer(model, optimizer=optimizer, momentum=0.0, weight_decay=0.0)
    set_learning_rate(rule, 0.1)
    before = model[0].weight.detach().clone()
    model(torch.randn(3, 4)).pow(2).sum().backward()
    rule.step()
    step = model[0].weight.grad.sign() if optimizer in ("adam", "adamw") else model[0].weight.grad
    torch.testing.assert_close(model[1].weight, before - 0.1 * step)


def test_masks_of_frozen_layers_alone_do_not_end_training():
    model = build_two_widths("head_alone")
    mask = torch.ones(16, 64).tril() > 0
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=0.1)
    set_learning_rate(optimizer, 0.1)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    for method in (Static(model, {"hidden": mask}), Slimming(model, ["norm"], penalty=0.1)):
        before = model.head.weight.clone()
        train_step(model, optimizer, images, labels, 0, method=method, objective=head_alone)
        assert not model.hidden.weight[~mask].any() and (model.norm.weight == 1).all()
        assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize("n_good", [0, 1])
def test_training_goes_on_where_capture_fails(n_good, digits, captured, monkeypatch):
    def fail_later(work):
        if len(captured) == n_good:
            raise RuntimeError("no graphs in this driver")
        return recorded(work, captured)

    monkeypatch.setattr(steps, "N_WARM_UP", 10**9)
    eager = run("rigl", digits)
    monkeypatch.setattr(steps, "N_WARM_UP", 3)
    monkeypatch.setattr(steps, "capture", fail_later)
    with pytest.warns(UserWarning, match="cannot be captured here .no graphs in this driver.; they go on"):
        assert_equal(run("rigl", digits), eager)


def test_reading_a_number_while_captured_is_noticed():
    with pytest.raises(AssertionError, match="a number was read"), Recorder():
        torch.ones(3).sum().item()


def test_replay_sees_new_values_but_no_new_python(captured):
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model, momentum=0.0, weight_decay=0.0)
    set_learning_rate(optimizer, 0.5)
    rate = optimizer.param_groups[0]["lr"]
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25


def test_without_capture_the_learning_rate_is_a_number():
    optimizer = build_optimizer(nn.Linear(2, 1), momentum=0.9, weight_decay=0.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert isinstance(optimizer.param_groups[0]["lr"], float) and not optimizer.defaults["fused"]


@pytest.mark.parametrize("name", [key for key in precision.PRECISIONS if key != "fp32"])
def test_half_precision_gives_the_gradients_of_float32_within_its_rounding(name):
    gradients = {}
    for key in ("fp32", name):
        torch.manual_seed(0)
        model = build_model("resnet8", num_classes=10, in_channels=3, width=0.5)
        images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        loss, _ = train_step(model, optimizer, images, labels, 0, precision=key)
        gradients[key] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        assert loss.dtype == gradients[key].dtype == torch.float32
    exact, rounded = gradients["fp32"], gradients[name]
    error = ((rounded - exact).norm() / exact.norm()).item()
    assert 0 < error < {"bf16": 0.2, "fp16": 0.05}[name]


def test_small_gradients_survive_float16():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[18.0], [0.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, optimizer, torch.ones(1, 1), torch.tensor([0]), 0, precision="fp16")
    missing = 1 / (1 + math.exp(18))  # 1.5e-8, of which float16 makes zero
    assert model.weight.grad[1].item() == pytest.approx(missing, rel=0.01)


def test_unknown_precision_is_named_with_the_known_ones(digits):
    with pytest.raises(ValueError, match="unknown precision 'fp8'; there are fp32, bf16, fp16"):
        run("dense", digits, precision="fp8")


@pytest.mark.parametrize(
    "capability, expected", [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")]
)
def test_a_gpu_gets_the_half_precision_that_it_has(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert precision.best_precision("cuda", "mobilenet_v1") == expected


@pytest.mark.parametrize("has_instructions", [True, False])
def test_a_processor_trains_in_bfloat16_what_gains_by_it(has_instructions, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert precision.best_precision("cpu", "resnet20") == ("bf16" if has_instructions else "fp32")
    assert precision.best_precision("cpu", "resnet8") == "fp32"


def test_networks_for_bfloat16_have_a_name():
    assert set(precision.BF16_ON_CPU) <= set(MODELS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("key", precision.PRECISIONS)
def test_on_a_gpu_captured_and_eager_steps_agree(name, optimizer, key, digits, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    on_gpu = digits.to("cuda")
    _, _, captured = run(name, on_gpu, device="cuda", optimizer=optimizer, precision=key, n_epochs=2)
    monkeypatch.setattr(steps, "N_WARM_UP", 10**9)
    _, _, eager = run(name, on_gpu, device="cuda", optimizer=optimizer, precision=key, n_epochs=2)
    tolerance = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}[key]
    assert (captured.n_steps, captured.n_batches) == (eager.n_steps, eager.n_batches)
    assert captured.curves["train_loss"] == pytest.approx(eager.curves["train_loss"], rel=tolerance)


@pytest.mark.gpu
def test_on_a_gpu_captured_training_goes_on_from_its_checkpoint(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    on_gpu = digits.to("cuda")
    with pytest.raises(Killed):
        run("rigl", on_gpu, device="cuda", checkpoint=tmp_path / "state", report=kill)
    _, _, resumed = run("rigl", on_gpu, device="cuda", checkpoint=tmp_path / "state")
    _, _, whole = run("rigl", on_gpu, device="cuda")
    assert resumed.curves["train_loss"] == pytest.approx(whole.curves["train_loss"], rel=1e-3)
