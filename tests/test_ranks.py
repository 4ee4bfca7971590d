"""Ranks: two processes that train together give what one gives, and leave nothing behind."""

import itertools
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import forkserver

import numpy as np
import psutil
import pytest
import torch
from conftest import build_method
from PIL import Image
from torch import nn

from prunelab import data, engine, paths, ranks, training, workers
from prunelab.channels.dmcp import Search
from prunelab.channels.selection import Selection
from prunelab.channels.slimmable import Slimmable
from prunelab.checkpoints import load_checkpoint
from prunelab.data import streams
from prunelab.data.dataset import Images
from prunelab.recipes import DMCP, RETHINKING, RIGL, TRANSFER
from prunelab.training import train
from prunelab.turns import exhaust

N_STEPS, BATCH = 20, 16
SHAPE = {"in_channels": 3, "image_size": 12}
SETTINGS = {
    **{"n_epochs": 4, "batch_size": BATCH, "learning_rate": 0.05, "schedule": "cosine", "warmup_epochs": 0},
    **{"momentum": 0.9, "weight_decay": 5e-4, "augment": True, "eval_every": 2},
}
# All whose decisions follow from gradients, from images of their own, or from random numbers.
CASES = ("dense", "dropout", "static", "rigl", "set", "snfs", "snip", "woodfisher", "str", "selection", "dmcp")


def streamed():
    """Digits as if they were photographs: 80 to train on, 33 to test, which two ranks cannot share equally."""
    digits = data.load("digits", n_train=80, in_colour=True)
    tested = digits.test_images[:33], digits.test_labels[:33]
    images = Images(digits.train_images, digits.train_labels, *tested, digits.class_names)
    return streams.enlarge(images, name="digits:enlarged", source="digits", sha256="", image_size=SHAPE["image_size"])


def trained(name, dataset, *, device="cpu", **options):
    """Trains one of `CASES`, and gives all that must be the same."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    dropout = nn.Dropout() if name == "dropout" else nn.Identity()
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), dropout, nn.Linear(8, 10)]
    model = nn.Sequential(*layers).to(device)
    if name == "selection":
        method = Selection(model, {"1": 8}, penalty=1e-3)
    elif name == "dmcp":
        slimmable = Slimmable(model, **SHAPE)
        search = {"budget": slimmable.macs.of(slimmable.full) / 2, "n_batches": N_STEPS, "warm_up": 0.5, "penalty": 0.1}
        method = Search(slimmable, slimmable.macs, **search, generator=generator)
        options |= {"objective": method.objective}
    elif name == "dropout":
        method = None
    else:
        method = build_method(name, model, density=0.3, generator=generator, update_every=3, stop_step=N_STEPS)
    result = train(model, dataset, method=method, generator=torch.Generator().manual_seed(1), **SETTINGS | options)
    found = {"model": model.state_dict(), "curves": result.curves, "n_batches": result.n_batches}
    if method is not None:
        found |= {"masks": dict(method.masks), "moves": dict(method.moves), "state": method.state_dict()}
    return found


class Killed(Exception):
    pass


def interrupted(checkpoint):
    """Trains into the middle of an epoch, and leaves a checkpoint there."""

    def stop(share):
        if share > 0.5:
            raise Killed

    with pytest.raises(Killed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
        trained("rigl", streamed(), checkpoint=checkpoint, report=stop)


def train_all(folder):
    """What each of two ranks does."""
    torch.set_num_threads(1)
    dataset, own = streamed(), folder / str(ranks.number())
    own.mkdir()
    if ranks.number():
        training.save_checkpoint = None  # is for rank 0 to call
    for name in CASES:
        torch.save(trained(name, dataset), own / name)
    interrupted(folder / "by two")
    torch.save(trained("rigl", dataset, checkpoint=folder / "by one"), own / "resumed")
    for name, images, changes in (("held", data.load("digits"), {}), ("odd", dataset, {"batch_size": 15})):
        with pytest.raises(ValueError) as refused:
            trained("dense", images, **changes)
        (own / name).write_text(str(refused.value))
    ranks.check_equal([torch.ones(2)])
    with pytest.raises(RuntimeError) if ranks.number() else pytest.MonkeyPatch.context():
        ranks.check_equal([torch.ones(2), torch.tensor([float(ranks.number()), 0.0])])
    return ranks.number(), ranks.count()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    interrupted(folder / "by one")
    assert exhaust(ranks.together(2, train_all, folder, device="cpu")) == (0, 2)
    assert multiprocessing.active_children() == []
    return folder


def distance(one, other):
    """The largest difference of numbers in two results, as a share of those above 1; all else must be the same."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((distance(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return max(itertools.starmap(distance, zip(one, other, strict=True)), default=0.0)
    if isinstance(one, torch.Tensor) and one.is_floating_point():
        one, other = one.detach(), other.detach()
        return float(((one - other) / other.abs().clamp(min=1)).abs().max())
    assert torch.equal(one, other) if isinstance(one, torch.Tensor) else type(one) is float or one == other
    return abs(one - other) if type(one) is float else 0.0


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_agree_with_one_process_and_are_equal_to_each_other(name, made):
    first, second, alone = read(made / "0" / name), read(made / "1" / name), trained(name, streamed())
    assert distance(first, second) == 0
    assert distance(first, alone) < 1e-5
    assert alone["n_batches"] >= N_STEPS and alone["curves"]["epoch"] == [2, 4]
    assert name not in ("set", "rigl", "snfs") or len(alone["moves"]["step"]) > 4


def test_a_checkpoint_is_resumed_on_another_number_of_ranks(made):
    alone = trained("rigl", streamed())
    assert distance(read(made / "0" / "resumed"), alone) < 1e-5
    assert distance(trained("rigl", streamed(), checkpoint=made / "by two"), alone) < 1e-5
    for name in ("by one", "by two"):  # neither began again
        assert load_checkpoint(made / name)["result"]["n_steps"] == N_STEPS / 2 + 1


def test_what_ranks_cannot_share_is_told(made):
    for rank in ("0", "1"):
        assert (made / rank / "odd").read_text() == "a batch of 15 images cannot be divided equally among 2 processes"
        assert (made / rank / "held").read_text().startswith("digits lies on one device, where one process trains;")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_statistics_and_gradients_of_a_shared_batch_are_those_of_the_whole(affine, dtype, tolerance, monkeypatch):
    """Three ranks of which two are imagined: they have the same images as this one, so the whole is these repeated."""

    def add_up(own):
        return own.copy_(own[1].expand_as(own)) if own.dim() == 3 else own.mul_(3)

    for name, fake in {"count": lambda: 3, "number": lambda: 1, "add_up": add_up}.items():
        monkeypatch.setattr(ranks, name, fake)
    draw = torch.Generator().manual_seed(0)
    images, wanted = (torch.randn(4, 2, 3, 3, generator=draw).mul(3).add(5).to(dtype) for _ in range(2))
    one, whole = (nn.BatchNorm2d(2, affine=affine, momentum=0.3) for _ in range(2))
    own, repeated = images.clone().requires_grad_(), images.repeat(3, 1, 1, 1).requires_grad_()
    with ranks.over_all_images():
        outputs = one(own)
        one.eval()
        fixed = one(images)
    expected = whole(repeated)
    (outputs - wanted).square().sum().backward()
    (expected - wanted.repeat(3, 1, 1, 1)).square().sum().backward()
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(outputs, expected[:4])
    close(own.grad, repeated.grad[:4], atol=10 * tolerance)
    close(one.running_mean, whole.running_mean)
    close(one.running_var, whole.running_var)
    close(fixed, whole.eval()(images))
    for mine, its in zip(one.parameters(), whole.parameters(), strict=True):
        close(3 * mine.grad, its.grad, atol=10 * tolerance)  # of this rank's images alone, until they are averaged


def test_an_error_of_a_rank_ends_all_and_is_told():
    with pytest.raises(RuntimeError, match=r"rank [01] of 2: ZeroDivisionError: division by zero\nTraceback"):
        exhaust(ranks.together(2, operator.truediv, 1, 0, device="cpu"))
    assert multiprocessing.active_children() == []


def test_a_killed_rank_ends_all_and_is_told():
    turns = ranks.together(2, time.sleep, 600, device="cpu")
    next(turns)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(ranks.RankDied, match=r"rank [01] of 2 died"):
        exhaust(turns)
    assert multiprocessing.active_children() == []


def test_a_killed_process_leaves_none_of_its_ranks():
    script = "import time\nfrom prunelab import ranks, turns\n"
    script += "if __name__ == '__main__': turns.exhaust(ranks.together(2, time.sleep, 600, device='cpu'))"
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT / "lib")}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        own = until(lambda: [child for child in psutil.Process(process.pid).children() if is_rank(child)], 2)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(own, timeout=60)
    assert alive == []


def is_rank(process):
    return any("spawn_main" in part for part in process.cmdline())


def until(look, n):
    """What is found, once there are as many."""
    for _ in range(1200):
        if len(found := look()) == n:
            return found
        time.sleep(0.1)
    raise TimeoutError


def test_a_run_takes_as_many_gpus_as_it_may_have_and_its_batch_can_be_divided_among():
    def n_ranks(n_gpus, there, **options):
        return workers.n_ranks(RIGL.run(seed=0, n_gpus=n_gpus, **{"dataset": "imagenet"} | options), there)

    assert n_ranks(8, 8, batch_size=256) == 8 and n_ranks(8, 4, batch_size=256) == 4
    assert n_ranks(8, 6, batch_size=256) == 4 and n_ranks(8, 6, batch_size=96) == 6
    assert n_ranks(2, 8, batch_size=256) == 2 and n_ranks(8, 4, batch_size=7) == 1
    assert n_ranks(1, 8) == n_ranks(8, 1) == n_ranks(8, 0) == n_ranks(8, 8, dataset="cifar10") == 1


def test_a_plan_has_workers_of_as_many_gpus_as_one_of_its_runs_uses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    plan = [RIGL.run(seed=0), RIGL.run(seed=1, n_gpus=2, dataset="imagenet", batch_size=64)]
    assert workers.gpus_each(plan, "cuda") == 2 and workers.gpus_each(plan[:1], "cuda") == 1
    assert workers.gpus_each(plan, "cpu") == 1
    assert workers.share_out(48, "cuda", 2) == (3, 1) and workers.share_out(1, "cuda", 2) == (1, 1)
    assert workers.share_out(48, "cuda", 1) == (6, 8)


def test_trainings_on_imagenet_may_have_eight_gpus_and_what_trains_nothing_has_one():
    runs = engine.with_parents([*DMCP.plan("paper"), *RETHINKING.plan("paper")])
    for run in runs:
        assert run.n_gpus == (1 if run.options.get("training") == "none" else 8)
    assert {run.n_gpus for recipe in (DMCP, RETHINKING, TRANSFER) for run in recipe.plan("full")} == {1}


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """ImageNet in small, where other processes find it too."""
    monkeypatch.setenv("PRUNELAB_DATA", str(tmp_path))
    for name, path in {"DATA": tmp_path, "CACHE": tmp_path / "cache", "RUNS": tmp_path / "runs"}.items():
        monkeypatch.setattr(paths, name, path)
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")
    draw = np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "val"), ("n01", "n02"), range(16)):
        path = tmp_path / "imagenet" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(12, 14, 3), dtype=np.uint8)).save(path)
    forkserver._forkserver._stop()  # workers have the environment in which their server started
    yield
    forkserver._forkserver._stop()


@pytest.mark.slow
def test_a_run_whose_rank_is_killed_is_tried_again_by_the_engine_and_gives_the_numbers_of_one_process(
    photographs, monkeypatch, tmp_path, capfd
):
    options = {"model": "resnet8", "width": 0.25, "dataset": "imagenet", "image_size": 12, "batch_size": 8}
    options |= {"n_epochs": 8, "method": "rigl", "density": 0.3, "update_every": 3, "learning_rate": 0.01}
    run = RIGL.run(seed=0, n_gpus=2, **options)
    assert run == RIGL.run(seed=0, **options)
    killed = []

    def answer(worker, timeout):
        if not killed and worker[0].n_done:
            victim = next(child for child in psutil.Process(worker[0].process.pid).children() if is_rank(child))
            victim.send_signal(signal.SIGKILL)
            killed.append(victim)
        return wait(worker, timeout=min(timeout, 0.05))

    wait = workers.wait
    monkeypatch.setattr(workers, "wait", answer)
    monkeypatch.setattr(workers, "gpus_each", lambda plan, device: 2)
    monkeypatch.setattr(workers, "share_out", lambda *_: (1, 1))
    (record,) = engine.run([run], device="cpu", progress=False)
    assert killed and "RankDied" in capfd.readouterr().err
    assert multiprocessing.active_children() == []
    assert len(psutil.Process().children(recursive=True)) <= 2, "the server of forks, and what tracks resources"
    alone = workers.execute(run, store=tmp_path / "alone", device="cpu")
    assert [record["provenance"]["device"], alone["provenance"]["device"]] == ["2 x cpu", "cpu"]
    for key in ("metrics", "curves", "layers", "moves"):
        assert distance(record[key], alone[key]) < 1e-5
    assert sorted(os.listdir(paths.RUNS / run.id)) == ["lock", "record.json"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_agree_with_one(tmp_path):
    exhaust(ranks.together(2, train_on_gpu, tmp_path, device="cuda"))
    first, second = (read(tmp_path / str(rank)) for rank in range(2))
    assert distance(first, second) == 0
    assert distance(first["model"], trained_on_gpu()["model"]) < 1e-4


def train_on_gpu(folder):
    """What each of two ranks does on its own GPU; they keep what they found where anybody may read it."""
    torch.save(trained_on_gpu(), folder / str(ranks.number()))


def trained_on_gpu():
    found = trained("rigl", streamed().to("cuda"), device="cuda")
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, found)
