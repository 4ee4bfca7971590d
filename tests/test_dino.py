"""DINO: its loss against the slow formula of the paper, its teacher step by step, and collapses that are seen."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import train_step
from test_data_registry import stand_in
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from prunelab import data, training
from prunelab.dino import N_SNAPSHOTS, Dino, ProjectionHead, Prototypes, Student
from prunelab.neighbours import knn_test
from prunelab.steps import build_optimizer, set_learning_rate
from prunelab.training import train
from prunelab.views import Views

N_OUTPUTS = 12


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels, changed each by itself and averaged: images of any such size."""

    def __init__(self, channels, dim):
        super().__init__()
        self.patch, self.hidden = nn.Conv2d(channels, dim, 4, stride=4), nn.Linear(dim, dim)

    def features(self, images):
        return self.hidden(F.gelu(self.patch(images).flatten(2).transpose(1, 2))).mean(dim=1)


class Headed(nn.Module):
    """A backbone with a head, by which its features are known."""

    def __init__(self, backbone, dim):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(dim, 1)

    def forward(self, images):
        return self.head(self.backbone.features(images))


def student_of(kind=Tokens, *, channels=1, dim=16, **sizes):
    torch.manual_seed(0)
    sizes = {"n_hidden": 24, "n_bottleneck": 8, "n_outputs": N_OUTPUTS} | sizes
    return Student(kind(channels, dim), ProjectionHead(dim, **sizes))


def views_of(dataset, *, n_local=2, **options):
    return Views(dataset, n_local=n_local, local_size=4, generator=torch.Generator().manual_seed(5), **options)


def dino_of(digits, *, student=None, n_local=2, **options):
    return Dino(student or student_of(), views_of(digits, n_local=n_local), **{"n_steps": 10} | options)


def batch(n=6, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(n)


def steps(dino, n, *, rate=0.05, seeds=None):
    """Trains with the hooks in place; the losses of the steps."""
    optimizer = build_optimizer(dino.student, optimizer="adamw", momentum=0.9, weight_decay=0.04)
    set_learning_rate(optimizer, rate)
    return [
        train_step(
            dino.student, optimizer, *batch(seed=seed), step, method=dino, objective=dino.objective, is_static=False
        )[0].item()
        for step, seed in enumerate(seeds or range(n))
    ]


def slow_loss(student_outputs, teacher_outputs, centre, temperature):
    """View by view, image by image, as the paper writes it."""
    total, n = 0.0, 0
    for i, teacher in enumerate(teacher_outputs):
        for v, student in enumerate(student_outputs):
            if i == v:
                continue
            for t, s in zip(teacher.double().numpy(), student.double().numpy(), strict=True):
                p = np.exp((t - centre.double().numpy()) / temperature)
                q = np.exp(s / 0.1)
                total -= float((p / p.sum() * np.log(q / q.sum())).sum())
                n += 1
    return total / n


@pytest.mark.parametrize("n_local", [0, 1, 3])
def test_loss_is_that_of_every_pair_of_different_views(digits, n_local):
    dino = dino_of(digits, n_local=n_local, temperatures=(0.05, 0.05))
    for parameter in dino.teacher.parameters():  # another network than the student
        parameter.mul_(1.5)
    dino.centre.copy_(torch.linspace(-0.2, 0.3, N_OUTPUTS))
    images, labels = batch()
    drawn = views_of(digits, n_local=n_local)(images)
    with torch.no_grad():
        teacher = dino.teacher(drawn[0]).view(2, 6, N_OUTPUTS)
        student = torch.cat([dino.student(views) for views in drawn]).view(2 + n_local, 6, N_OUTPUTS)
    expected = slow_loss(student, teacher, dino.centre, 0.05)
    centre = 0.9 * dino.centre + 0.1 * teacher.mean(dim=(0, 1))
    (loss,) = dino.objective(dino.student, images, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(dino.centre, centre)  # moved, but only after the targets were made
    assert dino.n_batches == 1


def test_targets_are_centred_then_sharpened_by_hand(digits, monkeypatch):
    dino = dino_of(digits, student=student_of(n_outputs=2), temperatures=(0.5, 0.5))
    monkeypatch.setattr(dino, "teacher", lambda views: torch.tensor([[0.4, 0.0], [0.0, 0.2]]))
    dino.centre.copy_(torch.tensor([0.2, 0.0]))
    _, targets = dino._teach(None, n_images=1)
    # Centred 0.2 and 0, then -0.2 and 0.2; of two outputs the first has 1 / (1 + exp(-difference / temperature)).
    first = [1 / (1 + math.exp(-0.2 / 0.5)), 1 / (1 + math.exp(0.4 / 0.5))]
    torch.testing.assert_close(targets, torch.tensor([[[p, 1 - p]] for p in first]))
    torch.testing.assert_close(dino.centre, torch.tensor([0.9 * 0.2 + 0.1 * 0.2, 0.1 * 0.1]))


def test_the_teacher_sees_global_views_only_and_gets_no_gradient(digits):
    dino, seen = dino_of(digits), {"teacher": [], "student": []}
    for name, network in (("teacher", dino.teacher.module), ("student", dino.student)):
        network.register_forward_pre_hook(lambda _, views, name=name: seen[name].extend(v.shape for v in views))
    images, labels = batch()
    for loss in dino.objective(dino.student, images, labels):
        loss.backward()
    assert seen == {"teacher": [(12, 1, 8, 8)], "student": [(12, 1, 8, 8), (12, 1, 4, 4)]}
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in dino.teacher.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in dino.student.parameters())
    dino.student.train()
    assert not any(module.training for module in dino.teacher.modules())


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_teacher_is_the_running_average_whose_momentum_rises_to_one(digits, momentum):
    dino = dino_of(digits, momentum=momentum, n_steps=4)
    expected = {name: value.clone() for name, value in dino.student.named_parameters()}
    optimizer = build_optimizer(dino.student, optimizer="adamw", momentum=0.9, weight_decay=0.04)
    set_learning_rate(optimizer, 0.05)
    # As cosine_scheduler in the authors' utils.py gives it.
    schedule = 1 + 0.5 * (momentum - 1) * (1 + np.cos(np.pi * np.arange(4) / 4))
    assert schedule[0] == momentum and 0.85 < schedule[3] < 1
    for step, own in enumerate(schedule):
        options = {"method": dino, "objective": dino.objective, "is_static": False}
        train_step(dino.student, optimizer, *batch(seed=step), step, **options)
        for name, value in dino.student.named_parameters():
            expected[name] = own * expected[name] + (1 - own) * value.detach()
            torch.testing.assert_close(dino.teacher.module.get_parameter(name), expected[name], msg=name)
        assert dino.teacher.module.get_parameter("backbone.hidden.weight") is dino.backbone.hidden.weight


def test_the_temperature_rises_in_its_warm_up_and_stays():
    dino = dino_of(data.load("digits"), n_steps=20, warm_up=0.5, temperatures=(0.04, 0.06))
    found = []
    for dino.n_batches in range(20):
        found.append(dino.temperature)
    assert found == pytest.approx([0.04 + 0.002 * i for i in range(10)] + [0.06] * 10)
    assert dino_of(data.load("digits"), warm_up=0.0, temperatures=(0.04, 0.06)).temperature == 0.06


def test_prototypes_stay_in_the_first_part_of_the_training(digits):
    dino = dino_of(digits, n_steps=10, frozen=0.3)
    own, other = dino.student.projection.prototypes.weight, dino.student.projection.mlp[0].weight
    before, others = own.clone(), other.clone()
    steps(dino, 3)
    assert torch.equal(own, before) and not torch.equal(other, others)
    steps(dino, 1)
    assert not torch.equal(own, before)
    thawed = dino_of(digits, frozen=0.0)
    before = thawed.student.projection.prototypes.weight.clone()
    steps(thawed, 1)
    assert not torch.equal(thawed.student.projection.prototypes.weight, before)


def test_prototypes_are_a_layer_normalised_by_its_weights():
    prototypes, x = Prototypes(3, 5), torch.randn(4, 3)
    layer = nn.Linear(3, 5, bias=False)
    layer.weight.data = prototypes.weight.data.clone()
    layer = parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.fill_(1)
    torch.testing.assert_close(prototypes(x), layer(x))
    assert student_of()(torch.randn(2, 1, 8, 8)).abs().max() <= 1 + 1e-6  # cosines


def test_collapses_are_seen(digits):
    class Blind(Tokens):
        def features(self, images):
            return 0 * super().features(images) + 1

    same, other = (dino_of(digits, student=student_of(kind)) for kind in (Blind, Tokens))
    for dino in (same, other):
        list(dino.objective(dino.student, *batch()))
    (blind,), (seeing,) = same.history, other.history
    assert blind["deviation"] < 1e-6 and seeing["deviation"] > 0.01
    # To one output, and to none above the others.
    for scale, entropy in ((100.0, 0.0), (0.0, math.log(N_OUTPUTS))):
        dino = dino_of(digits, student=student_of(Blind))
        dino.teacher.forward = lambda views, scale=scale: scale * F.one_hot(torch.zeros(len(views)).long(), N_OUTPUTS)
        list(dino.objective(dino.student, *batch()))
        assert dino.history[0]["entropy"] == pytest.approx(entropy, abs=1e-5) and dino.history[0]["deviation"] == 0


def test_divergence_and_entropy_add_up_to_the_loss(digits):
    dino = dino_of(digits)
    losses = steps(dino, 3)
    assert [snapshot["batch"] for snapshot in dino.history] == [0, 1, 2]
    for snapshot, loss in zip(dino.history, losses, strict=True):
        assert snapshot["entropy"] + snapshot["divergence"] == pytest.approx(loss, rel=1e-5)
        assert snapshot["divergence"] > 0 and 0 < snapshot["entropy"] < math.log(N_OUTPUTS)


def test_a_long_training_has_so_many_snapshots_evenly_spread(digits):
    dino = dino_of(digits, n_steps=250)
    for dino.n_batches in range(250):
        dino._observe(torch.zeros(2, 3, 4), torch.ones(2, 3, 4), torch.tensor(1.0))
    taken = [snapshot["batch"] for snapshot in dino.history]
    assert len(taken) == N_SNAPSHOTS and set(np.diff(taken)) == {2, 3} and taken[0] == 0


def pretrain(dataset, *, dino=None, n_epochs=3, **changes):
    """Trains for so many epochs, of 4 steps on 256 images; the objective and the result."""
    student = student_of(channels=dataset.channels)
    dino = dino or Dino(student, views_of(dataset), n_steps=4 * n_epochs, frozen=0.1, warm_up=0.5)
    options = {"batch_size": 64, "optimizer": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "momentum": 0.9}
    options |= {"weight_decay": 0.04, "augment": False, "eval_every": 1, "generator": torch.Generator().manual_seed(1)}
    options |= {"method": dino, "objective": dino.objective, "is_static": False, "n_epochs": n_epochs}
    return dino, train(dino.student, dataset, **options | changes)


class Killed(Exception):
    pass


def kill(share):
    raise Killed


@pytest.mark.parametrize("in_colour", [False, True])
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(in_colour, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    dataset = data.load("digits", n_train=256, in_colour=in_colour)
    whole, result = pretrain(dataset)
    for _ in range(2):  # killed twice, each time further
        with pytest.raises(Killed):
            pretrain(dataset, checkpoint=tmp_path / "state", report=kill)
    resumed, again = pretrain(dataset, checkpoint=tmp_path / "state")
    assert again.curves == result.curves and resumed.history == whole.history and len(whole.history) == 12
    for own, its in ((whole.student, resumed.student), (whole.teacher, resumed.teacher)):
        for key, value in own.state_dict().items():
            assert torch.equal(value, its.state_dict()[key]), key
    assert torch.equal(whole.centre, resumed.centre)
    assert torch.equal(whole.views.generator.get_state(), resumed.views.generator.get_state())


def stripes(n, *, seed):
    """Noisy stripes of four directions, 8 x 8 pixels, anywhere in their period."""
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(n) % 4
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    along = torch.stack([x, y, x + y, x - y])[labels] / 4 + torch.rand(n, 1, 1, generator=generator)
    strength = 0.5 + torch.rand(n, 1, 1, generator=generator)
    pixels = strength * torch.cos(2 * math.pi * along) + 1.5 * torch.randn(n, 8, 8, generator=generator)
    return (128 + 40 * pixels).clamp(0, 255).to(torch.uint8)[..., None], labels


def test_features_get_better_without_a_label_and_nothing_collapses():
    """Two views of an image have the direction in common, not the noise."""
    (images, labels), (test_images, test_labels) = stripes(512, seed=0), stripes(2048, seed=1)
    fields = {"train_images": images, "test_images": test_images, "test_labels": test_labels}
    dataset = stand_in(labels.tolist(), class_names=tuple("abcd"), **fields)
    student = student_of(dim=32, n_hidden=64, n_bottleneck=64, n_outputs=64)
    before = knn_test(Headed(student.backbone, 32), dataset)
    views = views_of(dataset, n_local=0, global_scale=(0.8, 1.0))
    dino = Dino(student, views, n_steps=480, momentum=0.98, temperatures=(0.04, 0.04))
    pretrain(dataset, dino=dino, n_epochs=60, eval_every=60, warmup_epochs=6)
    first, *_, last = dino.history
    assert knn_test(Headed(dino.backbone, 32), dataset) > before + 0.02
    assert last["deviation"] > first["deviation"] and 0.5 < last["entropy"] < math.log(64) - 1


def test_half_precision_ends_with_the_networks(digits):
    dino, outputs = dino_of(digits, temperatures=(0.05, 0.05)), {}
    for name, network in (("teacher", dino.teacher.module), ("student", dino.student)):
        network.register_forward_hook(lambda _, views, out, name=name: outputs.update({name: out.detach()}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (loss,) = dino.objective(dino.student, *batch())
    assert {out.dtype for out in outputs.values()} == {torch.bfloat16} and dino.centre.dtype == torch.float32
    student, teacher = (outputs[name].float().unflatten(0, (-1, 6)) for name in ("student", "teacher"))
    assert loss.item() == pytest.approx(slow_loss(student, teacher, torch.zeros(N_OUTPUTS), 0.05), rel=1e-5)


def test_macs_of_a_step_by_hand(digits):
    """Four patches of a global view, one of a local one; a third of the teacher's two passes has no backward pass."""
    dino = dino_of(digits, n_local=3)
    head = 16 * 24 + 24 * 24 + 24 * 8 + 8 * N_OUTPUTS
    of_global, of_local = 4 * (16 * 16 + 16 * 16) + head, 1 * (16 * 16 + 16 * 16) + head
    assert dino.forward_macs() == pytest.approx(2 * of_global / 3 + 2 * of_global + 3 * of_local)
    assert dino_of(digits, n_local=0).forward_macs() == pytest.approx(8 / 3 * of_global)


def test_what_is_handed_on_is_the_teachers(digits):
    dino = dino_of(digits)
    before = copy.deepcopy(dino.backbone.state_dict())
    with torch.no_grad():
        for parameter in dino.student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in dino.backbone.state_dict().items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], got 1.5"),
        ({"warm_up": -0.1}, r"warm_up must lie in \[0, 1\], got -0.1"),
        ({"frozen": 2}, r"frozen must lie in \[0, 1\], got 2"),
        ({"temperatures": (0.0, 0.07)}, r"temperatures must be above 0, got \(0.0, 0.07\)"),
    ],
)
def test_impossible_options_are_refused(digits, changes, message):
    with pytest.raises(ValueError, match=message):
        dino_of(digits, **changes)
