"""What scoring a transformer's weights takes, in time and memory, and what the polar factor does inside of ReFer."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from prunelab import latency, workers
from prunelab.bench.steps import as_in_training
from prunelab.recipes.afr.looks import block_weights
from prunelab.recipes.afr.plan import AfrOptions
from prunelab.recipes.common import dataset_of, network_of
from prunelab.scores import score
from prunelab.scores.refer import polar_factor

NETWORK = {"model": "vit_micro4", "image_size": 16, "in_colour": True}  # of the small profile of 05_afr
COMPARED = ("snip", "afr", "refer", "grasp")
N_WARM_UP = 1


@as_in_training()
def time_ratios(images: dict, *, n_rounds: int) -> dict[str, list[float]]:
    """Divides the time of scoring by each of `COMPARED` by SNIP's on the same batches, each round."""
    spent = latency.in_turn(_scorings(images), n_rounds=n_rounds, n_warm_up=N_WARM_UP)
    return {name: _ratios(seconds, spent["snip"]) for name, seconds in spent.items()}


@as_in_training()
def memory_ratio(images: dict) -> float:
    """Divides the `peak_bytes` of scoring by AFR by SNIP's on the same batches, which are counted in neither."""
    scorings = _scorings(images)
    return peak_bytes(partial(scorings["afr"], 0)) / peak_bytes(partial(scorings["snip"], 0))


def peak_bytes(work: Callable[[], None]) -> int:
    """Counts the bytes of the tensors that live at the same time, at the most, while `work` runs a second time.

    On a CPU PyTorch's profiler tells of each tensor, which is the same each time, unlike what the process holds; the
    buffers of the libraries below it are not among them. Tensors that were there before do not count.
    """
    work()  # workspaces that stay are allocated by now
    if workers.resolve_device("auto") == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in changes))  # a tensor that is freed has them below 0


@as_in_training()
def polar_ratios(*, n_rounds: int) -> list[float]:
    """Divides the time of a polar factor by way of the Gram matrix by that by way of an SVD, each round."""
    matrix = _matrix()

    def find(way: Callable[[Tensor], Tensor], number: int) -> None:
        float(way(matrix)[0, 0])  # waits for a GPU

    sides = {"gram": partial(find, polar_factor), "svd": partial(find, _polar_by_svd)}
    spent = latency.in_turn(sides, n_rounds=n_rounds, n_warm_up=N_WARM_UP)
    return _ratios(spent["gram"], spent["svd"])


def polar_error() -> float:
    """Returns the largest error of the same factor against an SVD in double precision, in ppm of its largest entry."""
    matrix = _matrix()
    exact = _polar_by_svd(matrix.double())
    return 1e6 * float((polar_factor(matrix) - exact).abs().max() / exact.abs().max())


def _scorings(images: dict) -> dict[str, Callable[[int], None]]:
    """Returns what scores a fresh network by each of `COMPARED`, on batches as a run of 05_afr has them."""
    options = AfrOptions(**images, **NETWORK)
    dataset = dataset_of(options, workers.resolve_device("auto"))
    generator = torch.Generator().manual_seed(0)
    drawn = dataset.train_batches(batch_size=options.batch_size, augment=False, generator=generator)
    batches = [next(drawn) for _ in range(options.n_scored // options.batch_size)]
    model = network_of(options, dataset, width=options.width).to(dataset.device, memory_format=torch.channels_last)
    weights = block_weights(model)

    def find(name: str, number: int) -> None:
        *_, last = score(name, model, weights, batches).values()
        float(last.sum())  # waits for a GPU

    return {name: partial(find, name) for name in COMPARED}


def _matrix() -> Tensor:
    """512 x 768 in single precision, whose columns shrink to a thousandth, so that its singular values differ."""
    noise = torch.randn(512, 768, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 768)
    return noise.to(workers.resolve_device("auto"))


def _polar_by_svd(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def _ratios(first: list[float], second: list[float]) -> list[float]:
    return [one / other for one, other in zip(first, second, strict=True)]
