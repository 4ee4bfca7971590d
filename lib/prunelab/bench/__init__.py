"""The speed claims, each a ratio of two things measured side by side in one run on this machine.

The two sides take turns, so that a machine that slows down slows both. A ratio is taken each round; what is
reported is the median round, with the lowest and the highest. Wall clock counts, with the start of processes
and the test. Nothing else should run meanwhile: beside a busy process two threads are slower than one.

`steps` has what a training step takes, `channels` what choosing and removing channels does, `widths` what learning
their number does, `scores` what scoring weights does, `transfer` what probes on sparse networks take, `strangers` what
can be removed of networks that others wrote, `streaming` what images that stay on disk take, `plans` what takes the
engine or a notebook, `scale` what takes the engine and the store with very many runs, `front` what the networks of
`06_frontier` take.
"""

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from prunelab import data, deepsparse, frontier, paths, recipes, records, stores, workers
from prunelab.bench import channels, front, plans, scale, scores, steps, strangers, streaming, transfer, widths
from prunelab.files import atomic_write
from prunelab.precision import best_precision


def profile(*, quick: bool = False) -> dict[str, float]:
    """Returns the shares of ResNet-20's step that its operations take; `quick` as for `measure`."""
    return steps.profile(_images(quick=quick))


def _images(*, quick: bool) -> dict:
    """Returns options of the images that are trained on, which are decoded and cached before any clock starts."""
    images = {"dataset": "glyphs", "n_train": 512}
    if not quick:  # long beside the start of a process
        images = {"dataset": "cifar10", "n_train": 50_000 if _on_gpu() else 10_000}
    for image_size in (None, 16):
        data.load(images["dataset"], image_size=image_size)
    return images


def measure(group: str, *, quick: bool = False) -> Iterator[dict]:
    """Measures the claims of a group; yields each one's row as soon as it is known.

    Args:
        group: A key of `GROUPS`.
        quick: One short round each, on images that need no download; a rough look, nothing to quote.
    Returns:
        Rows with `claim`, `unit` ("x" for ratios, "s", "ms", "ppm", "images/s" or "cores"), `target`, `median`, `low`,
        `high` and `verdict`.
    Raises:
        ValueError: No such group.
        DatasetNotFoundError: CIFAR-10, which most groups need, is not here, and not `quick`.
    """
    if group not in GROUPS:
        raise ValueError(
            f"unknown group {group!r} of measurements; there are {', '.join(GROUPS)}, curves, networks and front"
        )
    yield from GROUPS[group](quick)


def _rounds(quick: bool, measurement: Callable[..., float], *arguments: object) -> list[float]:
    return [measurement(*arguments) for _ in range(1 if quick else 3)]


def _on_gpu() -> bool:
    return workers.resolve_device("auto") == "cuda"


def _engine(quick: bool) -> Iterator[dict]:
    spent = _rounds(quick, plans.schedule_milliseconds, 100 if quick else 1000)
    yield row("scheduling 1,000 children of a run, each", "<= 1", spent, unit="ms")
    images = _images(quick=quick)
    gains = _rounds(quick, plans.engine_gain, images)
    yield row("engine over ordinary script, samples/s", ">= 8" if _on_gpu() else ">= 1.5", gains)
    if _on_gpu():
        yield row("8 runs at once over one at a time", ">= 3", _rounds(quick, plans.at_once_gain, images))
        spent = _rounds(quick, plans.seconds_a_run, images | {"n_epochs": 2 if quick else 60})
        yield row("ResNet-20 for 60 epochs, each of 8 runs", "<= 10", spent, unit="s")
    else:
        smoke = plans.SMOKE | {"n_epochs": 2 if quick else 30}
        small = images | {"model": "resnet8", "image_size": 16, "n_epochs": 3, "eval_every": 3}
        for name, runs in (("smoke", smoke), ("small", small)):
            gains = _rounds(quick, plans.parallel_gain, runs)
            yield row(f"8 {name} runs, one a core over all threads", ">= 1.3", gains)


def _steps(quick: bool) -> Iterator[dict]:
    images = _images(quick=quick)
    masked, moving = zip(*_rounds(quick, steps.method_ratios, images), strict=True)
    yield row("masked step over dense step", "<= 1.05", masked)
    yield row("RigL over static, update every 100 steps", "<= 1.02", moving)
    shares = _rounds(quick, steps.share_of_limit, images)
    yield row("ResNet-20 FLOP/s over matrix product's", "none" if _on_gpu() else ">= 0.5", shares)
    half = best_precision(workers.resolve_device("auto"), "resnet20")
    if half != "fp32":
        gains = _rounds(quick, steps.gain, images, {"precision": "fp32"}, {"precision": half})
        yield row(f"float32 step over {half} step", ">= 1.2", gains)
    gains = _rounds(quick, steps.gain, images, {"layout": torch.contiguous_format}, {"layout": torch.channels_last})
    yield row("contiguous step over channels-last step", ">= 1", gains)
    if _on_gpu():
        gains = _rounds(quick, steps.gain, images, {"is_captured": False}, {"is_captured": True})
        yield row("eager step over captured step", ">= 1", gains)


def _channels(quick: bool) -> Iterator[dict]:
    images = _images(quick=quick)
    for model, label, least in (
        ("vgg16", "VGG-16", ">= 0.6"),
        ("resnet56", "ResNet-56", ">= 0.6"),
        ("densenet40", "DenseNet-40", "none"),
    ):
        for batch_size, target in ((128, least), (1, "none")):
            gains = channels.gains(model, batch_size=batch_size, n_rounds=2 if quick else 9)
            yield row(f"{label} at half the MACs: speed-up over MAC ratio, batch {batch_size}", target, gains)
    yield row("surgery of a ResNet-110", "<= 2", _rounds(quick, channels.surgery_seconds), unit="s")
    for method in channels.SELECTIONS:
        spent = _rounds(quick, channels.selection_seconds, method, images)
        yield row(f"{method}: selection for VGG-16", "<= 60", spent, unit="s")


def _widths(quick: bool) -> Iterator[dict]:
    spent = _rounds(quick, widths.sandwich_ratio, _images(quick=quick))
    yield row("sandwich step of ResNet-20 over four plain steps", "<= 1.15", spent)
    spent = _rounds(quick, widths.gradient_milliseconds)
    yield row("gradient of ResNet-50's expected MACs", "<= 2", spent, unit="ms")
    for batch_size, target in ((128, ">= 0.6"), (1, "none")):
        gains = widths.found_gains(batch_size=batch_size, n_rounds=2 if quick else 9)
        yield row(
            f"DMCP's ResNet-20 at a quarter of the MACs: speed-up over MAC ratio, batch {batch_size}", target, gains
        )


def _scores(quick: bool) -> Iterator[dict]:
    images, n_rounds = _images(quick=quick), 2 if quick else 9
    ratios = scores.time_ratios(images, n_rounds=n_rounds)
    for name, label, target in (("afr", "AFR", "<= 3"), ("refer", "ReFer", "<= 3"), ("grasp", "GraSP", "none")):
        yield row(f"scoring a ViT's weights: {label} over SNIP, time", target, ratios[name])
    yield row("scoring a ViT's weights: AFR over SNIP, peak memory", "<= 1.5", [scores.memory_ratio(images)])
    adamw = images | scores.NETWORK | {"optimizer": "adamw", "density": 0.05}
    gains = _rounds(quick, steps.gain, adamw, {"method": "static"}, {"method": "dense"})
    yield row("masked step of a ViT, density 0.05, over dense step", "<= 1.05", gains)
    ratios, error = scores.polar_ratios(n_rounds=n_rounds), scores.polar_error()
    yield row("polar factor of 512 x 768: Gram matrix over SVD, time", "none", ratios)
    yield row("polar factor of 512 x 768: largest error, of its largest entry", "none", [error], unit="ppm")


def _transfer(quick: bool) -> Iterator[dict]:
    images, n_rounds = _images(quick=quick), 2 if quick else 9
    gains = transfer.probe_ratios(n_epochs=1 if quick else 20, n_rounds=n_rounds)
    label = "8 probes of 96 features: one after another"
    yield row(f"{label} by an ordinary loop over all together", ">= 4", gains["ordinary"])
    yield row(f"{label} by our code over all together", "none", gains["alone"])
    spent = _rounds(quick, lambda: transfer.woodfisher_seconds(images, n_gradients=64 if quick else 1000))
    yield row("WoodFisher on ResNet-20, 1,000 gradients", "<= 60", spent, unit="s")
    engine = [] if deepsparse.unavailable() else ["deepsparse"]
    for network, density in [(name, density) for name in transfer.NETWORKS for density in (0.2, 0.1, 0.05)]:
        if quick and network != next(iter(transfer.NETWORKS)):
            continue
        options = {"density": density, "n_rounds": n_rounds}
        ratios = transfer.way_ratios(network, ["removed"], dead_share=0.5, **options)
        ratios |= transfer.way_ratios(network, ["csr", *engine], **options)
        for way, own in ratios.items():
            masks = "half of the filters dead" if way == "removed" else "at random"
            yield row(f"{network}, density {density}, {masks}: {way} over dense, time", "none", own)


def _surgery(quick: bool) -> Iterator[dict]:
    if not find_spec("torch_pruning"):
        return
    for name, label in strangers.TIMED.items():
        ratios = _rounds(quick, strangers.surgery_ratio, name)
        yield row(f"half of {label}'s channels removed, over Torch-Pruning, time", "<= 1", ratios)


def _streaming(quick: bool) -> Iterator[dict]:
    n_rounds = 2 if quick else 9
    one, two = streaming.decoding_rates((1, 2), n_images=64 if quick else 512, n_rounds=n_rounds).values()
    yield row("JPEGs of 500 x 375 pixels to crops of 224, one thread", "none", one, unit="images/s")
    gains = [its / own for its, own in zip(two, one, strict=True)]
    yield row("JPEGs to crops: two threads over one, images/s", ">= 1.8", gains)
    pace, where = streaming.PUBLISHED_PACE, f"an A100, {streaming.PUBLISHED_PACE:,} images/s by NVIDIA; no GPU here"
    if _on_gpu():
        rates = streaming.training_rates(n_rounds=n_rounds)
        yield row("training of ResNet-50 at 224 pixels, batch 128", "none", rates, unit="images/s")
        pace, where = statistics.median(rates), "this GPU"
    yield row(f"threads that decode for ResNet-50 on {where}", "none", [pace / own for own in one], unit="cores")


def _scale(quick: bool) -> Iterator[dict]:
    n_runs = 1_000 if quick else scale.N_RUNS
    spent = scale.measure(n_runs)
    label = f"{n_runs:,} runs on {scale.N_WORKERS} workers"
    yield row(f"{label}: engine, each run, CPU time", "<= 1", [spent.engine], unit="ms")
    yield row(f"{label}: a worker writes a record", "none", [spent.write], unit="ms")
    yield row(f"{label}: memory, plan and records", "<= 1000", [spent.memory], unit="MB")
    yield row(f"{label}: store of records", "none", [spent.disk], unit="MB")
    yield row(f"{label}: all found on record, CPU time", "<= 10", [spent.read], unit="s")
    yield row(f"{label}: prunelab status, CPU time", "<= 30", [spent.status], unit="s")
    check, size = scale.state_cost()
    yield row("ResNet-20 that children start from: engine checks it, CPU time", "none", [check], unit="ms")
    yield row("ResNet-20 that children start from: on disk", "none", [size], unit="MB")


def _cluster(quick: bool) -> Iterator[dict]:
    if find_spec("ray"):
        ratios = _rounds(quick, plans.cluster_ratio, plans.SMOKE | {"model": "lenet_300_100", "width": 0.1})
        yield row("one more run of next to no training, on a cluster of this machine over locally", "<= 2", ratios)


def _notebooks(quick: bool) -> Iterator[dict]:
    if (paths.NOTEBOOKS / "01_rigl.ipynb").exists():
        yield row("01_rigl replayed from records", "<= 30", _rounds(quick, plans.replay_seconds), unit="s")
        if not quick:
            yield row("01_rigl trained afresh, smoke", "<= 120", _rounds(quick, plans.fresh_seconds), unit="s")


# What is measured together, by name.
GROUPS: dict[str, Callable[[bool], Iterator[dict]]] = {
    "engine": _engine,
    "steps": _steps,
    "channels": _channels,
    "widths": _widths,
    "scores": _scores,
    "transfer": _transfer,
    "surgery": _surgery,
    "streaming": _streaming,
    "scale": _scale,
    "cluster": _cluster,
    "notebooks": _notebooks,
}


def curves(*, quick: bool = False) -> Iterator[dict]:
    """Measures what cost depends on; yields the points of each curve as it is known.

    Returns:
        Curves with `name`, `x`, `y` (the names of the axes) and `points`, pairs of numbers.
    """
    runs = plans.SMOKE | {"n_epochs": 2 if quick else 20}
    counts, jobs, sizes = ((1, 2), (1, 2), (8, 16)) if quick else ((1, 2, 4, 8, 16), (1, 2, 4, 8), (8, 16, 24, 32))
    shared = {"workers": runs}
    if _on_gpu():  # networks that are worth a GPU, and more of them at once
        jobs = counts
        images = _images(quick=quick)
        shared = {f"workers_{name}": images | {"model": name} for name in ("resnet20", "wrn22_2")}
    yield _curve("runs", "runs in a plan", "seconds a run", counts, lambda n: plans.seconds_a_run(runs, n_runs=n))
    for name, own in shared.items():
        yield _curve(
            name,
            f"runs at once, of {jobs[-1]}",
            "seconds a run",
            jobs,
            lambda n, own=own: plans.seconds_a_run(own, n_runs=jobs[-1], jobs=n),
        )
    yield _curve("image_size", "side of the images, pixels", "milliseconds a step", sizes, steps.milliseconds)


def networks(*, quick: bool = False) -> Iterator[dict]:
    """Follows and shrinks the networks of `strangers`; yields a row for each one as soon as it is known.

    Returns:
        Rows with `library`, `network`, and what `strangers.compared` finds; of one that is refused only `why`.
    """
    for library, name in strangers.names()[: 3 if quick else None]:
        model, image = strangers.network(library, name)
        try:
            found, _ = strangers.compared(model, **image)
        except Exception as error:  # a crash is a finding, too
            found = {"why": f"{type(error).__name__}: {error}"}
        yield {"library": library, "network": name, **found}


def times(*, quick: bool = False) -> Iterator[dict]:
    """Times the networks of `06_frontier` that are on record, of `smoke` and `small`; yields rows of `front.times`."""
    for profile in ("smoke",) if quick else ("smoke", "small"):
        experiments = recipes.STUDIES["frontier"].experiments(profile)
        of_front = [run for name, runs in experiments.items() if name in frontier.KINDS for run in runs]
        found = stores.on_record(of_front)
        yield from front.times(found.values(), n_rounds=2 if quick else 100).replace({np.nan: None}).to_dict("records")


def save(group: str, measured: Mapping) -> Path:
    """Writes what was measured, and on what, to `bench.json`, where other groups stay as they are.

    In a clone that is the one in `data/records`, which ships.

    Args:
        group: A key of `GROUPS`, "curves", "networks" or "front".
        measured: Its `claims`; of the curves `curves` and `profile`, of the networks `networks`, of the front `times`.
    Returns:
        The path.
    """
    machine = {"processor": _processor(), "cores": os.cpu_count(), "device": workers.resolve_device("auto")}
    if _on_gpu():
        machine["gpu"] = torch.cuda.get_device_name()
    path = (paths.RECORDS if paths.IS_CLONE else paths.DATA) / "bench.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[group] = {"provenance": records.provenance() | machine, **measured}
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def row(claim: str, target: str, values: Sequence[float], *, unit: str = "x") -> dict:
    """Judges one claim: `target` is a sign and a number, or "none"."""
    median = statistics.median(values)
    verdict = "measured"
    if target != "none":
        sign, number = target.split()
        missed_by = float(number) - median if sign == ">=" else median - float(number)
        verdict = f"missed by {missed_by:.3f}" if missed_by > 0 else "met"
    return {
        "claim": claim,
        "unit": unit,
        "target": target,
        "median": round(median, 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
        "verdict": verdict,
    }


def _curve(name: str, x: str, y: str, values: Iterable[int], measurement: Callable[[int], float]) -> dict:
    return {"name": name, "x": x, "y": y, "points": [[value, round(measurement(value), 3)] for value in values]}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # which only Linux has
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"
