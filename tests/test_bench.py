"""What the benchmark measures is what it says: its parts, on made-up clocks and small images."""

import itertools
import sys
import tracemalloc
from contextlib import contextmanager, nullcontext

import pytest
import torch
from PIL import Image

from prunelab import bench, engine, files, latency, recipes, workers
from prunelab.bench import channels, plans, scale, scores, steps, streaming, transfer, widths
from prunelab.data import streams
from prunelab.methods.woodfisher import WoodFisher

GLYPHS = {"dataset": "glyphs", "n_train": 128}
SCORED = GLYPHS | {"n_train": 512}


def test_sides_take_turns_and_warm_up_uncounted():
    order = []
    sides = {name: (lambda step, name=name: order.append((name, step))) for name in "ab"}
    spent = steps._in_turn(sides, n_steps=2)
    assert order == [(name, step) for step in range(steps.N_WARM_UP + 2) for name in "ab"]
    assert {name: len(seconds) for name, seconds in spent.items()} == {"a": 2, "b": 2}


def test_steps_are_measured_on_a_stream_that_can_be_captured(monkeypatch):
    entered = []

    @contextmanager
    def own_stream(device):
        entered.append(device.type)
        yield nullcontext()
        entered.append("left")

    monkeypatch.setattr(steps, "own_stream", own_stream)
    monkeypatch.setattr(
        steps, "_in_turn", lambda sides, *, n_steps: entered.append("steps") or {"a": [1.0], "b": [1.0]}
    )
    steps._gain({})
    assert entered == ["cpu", "steps", "left"]


def test_gain_is_the_first_over_the_second(monkeypatch):
    monkeypatch.setattr(steps, "_in_turn", lambda sides, *, n_steps: {"slow": [6.0, 5.0, 9.0], "fast": [2.0]})
    assert steps._gain({}) == 3.0


def test_share_of_the_limit_counts_three_passes_of_the_batch(monkeypatch):
    # ResNet-20 at 32 pixels and one channel: a step of a second, a product of 1024^3 in as long.
    monkeypatch.setattr(steps, "_in_turn", lambda sides, *, n_steps: {"product": [1.0], "step": [1.0]})
    layers = 16 * 1024 + 6 * 16 * 16 * 1024, 16 * 32 * 256 + 5 * 32 * 32 * 256, 32 * 64 * 64 + 5 * 64 * 64 * 64
    macs = 9 * sum(layers) + 640  # of the output
    assert steps.share_of_limit(GLYPHS) == pytest.approx(3 * 128 * macs / 1024**3)


@pytest.mark.slow
def test_shares_of_a_step_are_a_whole():
    shares = steps.profile(GLYPHS)
    assert set(shares) == {*steps.OPERATIONS, "all else"}
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert shares["convolution"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "static", "rigl"])
def test_steppers_of_all_methods_step(method):
    step = steps._stepper(GLYPHS, method=method, batch_size=8)
    for number in range(3):
        step(number)


CHANNELS = {"vgg11": [64, 128, *[256] * 2, *[512] * 4], "vgg16": [64, 64, 128, 128, *[256] * 3, *[512] * 6]}
N_POSITIONS = {  # of each convolution's output, at 32 pixels
    "vgg11": [1024, 256, 64, 64, 16, 16, 4, 4],
    "vgg16": [1024, 1024, 256, 256, *[64] * 3, *[16] * 3, *[4] * 3],
}


def vgg_macs(name, n_channels):
    *inputs, last = 3, *n_channels
    convolutions = sum(9 * n * m * at for n, m, at in zip(inputs, n_channels, N_POSITIONS[name], strict=True))
    return convolutions + (10 * last if name == "vgg11" else 512 * last + 10 * 512)  # a VGG-16 has a hidden layer


@pytest.mark.parametrize("name", CHANNELS)  # the nearest is above half for VGG-11, below for VGG-16
def test_half_widths_are_those_of_the_share_nearest_to_half_the_macs(name):
    half = vgg_macs(name, CHANNELS[name]) / 2
    every = [[round(n * step / 256) for n in CHANNELS[name]] for step in range(1, 257)]
    nearest = min(every, key=lambda n_channels: abs(vgg_macs(name, n_channels) - half))
    assert channels.half_widths(name) == {f"blocks.{i}.conv": n for i, n in enumerate(nearest)}


# All layers of a DenseNet lose their next one of twelve channels at the same share.
@pytest.mark.parametrize("name, tolerance", [("resnet20", 0.01), ("densenet22", 0.05)])
def test_networks_of_half_widths_take_half_the_macs(name, tolerance):
    small = channels._macs(channels._network(name, channels.half_widths(name)))
    assert small / channels._macs(channels._network(name)) == pytest.approx(0.5, abs=tolerance)


def test_gain_is_the_speed_up_of_each_round_over_the_ratio_of_macs(monkeypatch):
    def compare(models, *, batch_size, in_channels, image_size, n_rounds):
        assert (list(models), batch_size, in_channels, image_size, n_rounds) == (["large", "small"], 2, 3, 32, 3)
        return {"large": latency.Latency((4.0, 6.0, 6.0)), "small": latency.Latency((2.0, 2.0, 6.0))}

    monkeypatch.setattr(latency, "compare", compare)
    small = channels.half_widths("vgg11").values()
    ratio = vgg_macs("vgg11", CHANNELS["vgg11"]) / vgg_macs("vgg11", small)
    gains = channels.gains("vgg11", batch_size=2, n_rounds=3)
    assert gains == pytest.approx([2 / ratio, 3 / ratio, 1 / ratio])


def test_gain_is_measured():
    assert all(gain > 0 for gain in channels.gains("resnet8", batch_size=1, n_rounds=2))


def test_scheduling_takes_each_run_of_the_plan_once_parents_first(monkeypatch):
    taken = []
    finished = plans.engine.Schedule.finished
    monkeypatch.setattr(
        plans.engine.Schedule, "finished", lambda self, run_id: taken.append(run_id) or finished(self, run_id)
    )
    assert plans.schedule_milliseconds(20) > 0
    assert len(taken) == len(set(taken)) == 21


@pytest.fixture
def no_disk(monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)


def test_at_scale_each_run_is_handed_over_once_parents_first_and_on_record(tmp_path, no_disk):
    runs = scale.plan(400)
    assert len({run.id for run in runs}) == 400 and [len(run.ancestors) for run in runs[:5]] == [0, 1, 2, 3, 0]
    crew = scale.train(runs[::-1], tmp_path, n_workers=40)
    place = {run.id: number for number, run in enumerate(crew.taken)}
    assert place.keys() == {run.id for run in runs} and len(crew.taken) == 400
    assert all(place[run.id] > place[parent.id] for run in runs for parent in run.parents)
    assert [record["id"] for record in engine.run(runs, fresh=True, train=False, store=tmp_path)] == [
        run.id for run in runs
    ]
    assert crew.writing_seconds > 0


def test_twice_as_many_runs_take_twice_the_work_and_the_memory(tmp_path, no_disk, monkeypatch):
    monkeypatch.setattr(engine, "POLL_SECONDS", float("inf"))
    asked, calls, held = [], [], []
    monkeypatch.setattr(workers, "share_done", lambda folder: asked.append(folder) or 0.0)
    for n_runs in (100, 200, 400):
        runs, count = scale.plan(n_runs), itertools.count()
        sys.setprofile(lambda frame, event, argument, count=count: event == "call" and next(count))
        try:
            scale.train(runs, tmp_path / str(n_runs), n_workers=20)
        finally:
            sys.setprofile(None)
        calls.append(next(count))
        tracemalloc.start()
        engine.run(runs, fresh=True, train=False, store=tmp_path / str(n_runs))
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for first, second, third in (calls, held):  # less what no run takes
        assert third - second < 2.1 * (second - first)
    assert len(asked) <= 3 * 2 * 20  # each worker's progress at the start and at the end, not at each answer


@pytest.mark.slow  # it asks `prunelab status`, in a process of its own
def test_at_scale_what_is_measured_is_there(no_disk):
    found = scale.measure(8, n_workers=3)
    assert all(value > 0 for value in found) and found.disk >= 8 * 4096 / 1e6
    check, size = scale.state_cost()
    # 270,896 weights, twice in four bytes, and their mask; with normalisation and names somewhat more.
    assert check > 0 and 9 * 270_896 / 1e6 < size < 1.2 * 9 * 270_896 / 1e6


def test_surgery_removes_half_of_each_layer(monkeypatch):
    removed = []
    monkeypatch.setattr(channels, "shrink", lambda model, kept, **image: removed.append(kept))
    assert channels.surgery_seconds() > 0
    halves = [8] * 18 + [16] * 18 + [32] * 18
    assert removed == [{f"blocks.{i}.conv1": range(n) for i, n in enumerate(halves)}]


@pytest.mark.parametrize("method", channels.SELECTIONS)
def test_selection_takes_half_of_each_convolution(method, monkeypatch):
    def prune(model, images, *, readers, counts, generator):
        names = [f"blocks.{i}.conv" for i in range(13)]
        assert images.shape[0] == channels.N_IMAGES
        assert counts == dict(zip(names, [32] * 2 + [64] * 2 + [128] * 3 + [256] * 6, strict=True))
        assert readers == dict(zip(names, [*names[1:], "hidden.0"], strict=True))

    monkeypatch.setitem(channels.SELECTIONS, method, prune)
    assert channels.selection_seconds(method, {"dataset": "glyphs", "n_train": 512}) > 0


def test_sandwich_is_compared_with_the_sum_of_four_steps(monkeypatch):
    def in_turn(sides, *, n_rounds, n_warm_up):
        assert list(sides) == ["sandwich", "plain 0", "plain 1", "plain 2", "plain 3"]
        return {name: [5.0 if name == "sandwich" else 1.0] * n_rounds for name in sides}

    monkeypatch.setattr(widths.latency, "in_turn", in_turn)
    assert widths.sandwich_ratio(GLYPHS) == 1.25


@pytest.mark.slow
def test_sandwich_and_gradient_are_measured(monkeypatch):
    monkeypatch.setattr(widths, "N_STEPS", 2)
    monkeypatch.setattr(widths, "BATCH_SIZE", 16)
    assert 0 < widths.sandwich_ratio(GLYPHS) < 10
    assert 0 < widths.gradient_milliseconds() < 1000


def test_gain_of_a_found_network_is_over_its_ratio_of_macs(monkeypatch):
    image = {"in_channels": 1, "image_size": 8, "num_classes": 10}
    main = recipes.get("dmcp").experiments("small")["main_long"]
    first = next(run.id for run in main if run.options.get("design") == "expected")
    record = {"id": first, "options": {"model": "resnet8", "width": 1.0}, "widths": {"conv": 8}, "image": image}
    monkeypatch.setattr(widths.records, "load", lambda notebook: [{"id": "another"}, record])
    spent = {"large": latency.Latency((6.0, 4.0)), "small": latency.Latency((3.0, 1.0))}
    monkeypatch.setattr(widths.latency, "compare", lambda networks, **options: spent)
    # The stream of 16 channels has 8: 16 x 16 x 9 weights at 64 positions are halved in both layers that touch it.
    image_layer, stem, rest = (
        64 * 9 * 16,
        64 * 9 * 16 * 16,
        (16 * 32 + 32 * 32) * 9 * 16 + (32 * 64 + 64 * 64) * 9 * 4 + 640,
    )
    halved = image_layer / 2 + stem + 16 * 32 * 9 * 16 / 2 + rest - 16 * 32 * 9 * 16
    ratio = (image_layer + 2 * stem + rest) / halved
    assert widths.found_gains(batch_size=1, n_rounds=2) == pytest.approx([2 / ratio, 4 / ratio])


def test_masks_of_a_transformer_are_compared_under_its_own_optimizer(monkeypatch):
    built = []

    def in_turn(sides, *, n_steps):
        for take_step in sides.values():
            take_step(0)
        return {"masked": [3.0], "dense": [2.0]}

    def build_optimizer(model, *, optimizer, **options):
        built.append((type(model).__name__, optimizer))
        return torch.optim.SGD(model.parameters())

    monkeypatch.setattr(steps, "build_optimizer", build_optimizer)
    monkeypatch.setattr(steps, "_in_turn", in_turn)
    options = GLYPHS | scores.NETWORK | {"optimizer": "adamw", "density": 0.05}
    assert steps.gain(options, {"method": "static"}, {"method": "dense"}) == 1.5
    assert built == [("VisionTransformer", "adamw")] * 2


def test_scores_are_compared_with_snip_round_by_round(monkeypatch):
    def in_turn(sides, *, n_rounds, n_warm_up):
        assert (set(sides), n_rounds) == ({"snip", "afr", "refer", "grasp"}, 2) and n_warm_up > 0
        return {"snip": [2.0, 4.0], "afr": [5.0, 8.0], "refer": [3.0, 4.0], "grasp": [8.0, 8.0]}

    monkeypatch.setattr(latency, "in_turn", in_turn)
    found = scores.time_ratios(SCORED, n_rounds=2)
    assert {name: found[name] for name in found if name != "snip"} == {
        "afr": [2.5, 2.0],
        "refer": [1.5, 1.0],
        "grasp": [4.0, 2.0],
    }


def test_scored_are_the_linear_layers_of_four_blocks_on_four_batches(monkeypatch):
    asked = []

    def score(name, model, weights, batches):
        asked.append((name, [tuple(images.shape) for images, _ in batches], sorted({n[:8] for n in weights})))
        return {name: weight.detach() for name, weight in weights.items()}

    monkeypatch.setattr(scores, "score", score)
    for name, scoring in scores._scorings(SCORED).items():
        scoring(0)
        assert asked.pop() == (name, [(128, 3, 16, 16)] * 4, [f"blocks.{i}" for i in range(4)])
    assert not asked


def test_peak_counts_tensors_that_live_at_the_same_time():
    before = torch.ones(1 << 20, device=workers.resolve_device("auto"))

    def work():
        first = before.clone()  # 4 MiB
        second = first.clone()  # 8
        del first
        both = torch.cat([second, second])  # 4, and 8 more
        del second
        both[: 1 << 20].clone()  # 8, and 4 more

    assert scores.peak_bytes(work) == 12 << 20


def test_memory_is_that_of_afr_over_that_of_snip(monkeypatch):
    def score(name, model, weights, batches):
        held = torch.ones({"afr": 3 << 20, "snip": 2 << 20}[name], device=batches[0][0].device)
        return {"last": held[:1]}

    monkeypatch.setattr(scores, "score", score)
    assert scores.memory_ratio(SCORED) == pytest.approx(1.5, abs=1e-3)


def test_polar_factors_of_both_ways_take_turns(monkeypatch):
    monkeypatch.setattr(latency, "in_turn", lambda sides, **rounds: {"gram": [1.0, 3.0], "svd": [2.0, 4.0]})
    assert scores.polar_ratios(n_rounds=2) == [0.5, 0.75]


def test_error_of_the_polar_factor_is_its_largest_in_millionths_of_the_largest_entry(monkeypatch):
    assert 0 < scores.polar_error() < 1  # single precision is known to 0.06
    monkeypatch.setattr(scores, "_polar_by_svd", lambda matrix: torch.tensor([[4.0, -8.0], [1.0, 0.0]]).to(matrix))
    monkeypatch.setattr(scores, "polar_factor", lambda matrix: torch.tensor([[3.5, -8.0], [1.25, 0.0]]).to(matrix))
    assert scores.polar_error() == 1e6 / 16


@pytest.mark.slow
def test_memory_of_scores_and_time_of_polar_factors_are_measured():
    assert 1 < scores.memory_ratio(SCORED) < 1.5
    assert 0 < scores.polar_ratios(n_rounds=1)[0] < 10


def test_probes_one_after_another_are_divided_by_all_together(monkeypatch):
    asked = []

    def train_probes(features, labels, *, generators, **options):
        asked.append((tuple(features.shape), len(generators), options["n_epochs"]))

    def in_turn(sides, *, n_rounds, n_warm_up):
        for side in sides.values():
            side(0)
        return {"together": [2.0, 4.0], "alone": [6.0, 8.0], "ordinary": [8.0, 40.0]}

    monkeypatch.setattr(transfer, "train_probes", train_probes)
    monkeypatch.setattr(latency, "in_turn", in_turn)
    assert transfer.probe_ratios(n_epochs=1, n_rounds=2) == {"alone": [3.0, 2.0], "ordinary": [4.0, 10.0]}
    assert asked == [((2000, 96), n, 1) for n in (8, *[1] * 8)]


def test_woodfisher_prunes_a_resnet20_once_after_as_many_gradients(monkeypatch):
    pruned = []

    def inverse_fisher(self):
        pruned.append((self.n_gradients, sum(weight.numel() for weight in self.weights.values())))
        return real(self)

    real = WoodFisher.inverse_fisher
    monkeypatch.setattr(WoodFisher, "inverse_fisher", inverse_fisher)
    assert transfer.woodfisher_seconds(GLYPHS, n_gradients=2) > 0
    n_weights = 9 * (16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64) + 640  # of one grey channel
    assert pruned == [(2, n_weights)]


def test_sparse_network_has_its_density_and_dead_filters():
    options = {"name": "resnet8", "width": 1.5, "image_size": 16}
    backbone = transfer.sparse_backbone(options, density=0.1, dead_share=0.5)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            active = module.weight.detach() != 0
            assert int(active.sum()) == round(0.1 * active.numel())
            n_dead = len(active) - int(active.flatten(1).any(dim=1).sum())
            assert n_dead >= len(active) / 2


def test_ways_are_compared_with_dense_round_by_round(monkeypatch):
    given, spent = [], {"dense": [2.0, 4.0], "removed": [1.0, 1.0], "csr": [3.0, 8.0]}

    def way(name):
        def begin(backbone, sample):
            given.append((name, tuple(sample.shape)))
            return lambda images: (given.append((name, len(images))), spent[name].pop(0))

        return begin

    monkeypatch.setattr(transfer, "WAYS", {name: way(name) for name in spent})
    found = transfer.way_ratios("ResNet-8, 16 px", ["removed", "csr"], density=0.1, n_rounds=2)
    assert found == {"removed": [0.5, 0.25], "csr": [1.5, 2.0]}
    batch = (250, 3, 16, 16)
    assert given == [(name, each) for each in (batch, 2000, 2000) for name in ("dense", "removed", "csr")]


@pytest.mark.slow
def test_transfer_is_measured_quickly_and_without_the_engine_not_by_it(monkeypatch):
    monkeypatch.setattr(bench.deepsparse, "unavailable", lambda: "absent")
    monkeypatch.setitem(transfer.NETWORKS, "ResNet-8, 16 px", ({"name": "resnet8", "image_size": 16}, 20, 10))
    rows = list(bench.measure("transfer", quick=True))
    assert [row["unit"] for row in rows] == ["x", "x", "s", *["x"] * 6] and all(row["median"] > 0 for row in rows)
    assert rows[3]["claim"] == "ResNet-8, 16 px, density 0.2, half of the filters dead: removed over dense, time"
    assert rows[4]["claim"] == "ResNet-8, 16 px, density 0.2, at random: csr over dense, time"


def test_photographs_are_made_up_as_large_as_those_of_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "N_FILES", 2)
    streaming.write_photographs(tmp_path)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 4 and len({file.read_bytes() for file in files}) == 4
    for file in files:
        assert 90_000 < file.stat().st_size < 120_000
        with Image.open(file) as image:
            assert image.size == (500, 375) and image.mode == "RGB"


def test_decoding_is_measured_by_threads_that_take_turns(monkeypatch):
    decoded = []

    def in_turn(sides, *, n_rounds, n_warm_up):
        for side in sides.values():
            side(0)
        return {1: [2.0, 4.0], 2: [1.0, 4.0]}

    monkeypatch.setattr(streaming, "N_FILES", 4)
    monkeypatch.setattr(latency, "in_turn", in_turn)
    monkeypatch.setattr(streams, "_decode_into", lambda pixels, dataset, *image: decoded.append(dataset.n_threads))
    rates = streaming.decoding_rates((1, 2), n_images=8, n_rounds=2)
    assert rates == {1: [4.0, 2.0], 2: [8.0, 2.0]}
    assert decoded == [1] * 8 + [2] * 8


def test_images_that_a_gpu_takes_are_divided_by_what_a_thread_decodes(monkeypatch):
    monkeypatch.setattr(streaming, "decoding_rates", lambda threads, **how: {1: [100.0, 200.0], 2: [150.0, 400.0]})
    *_, gain, cores = bench.measure("streaming", quick=True)
    assert (gain["median"], gain["low"], gain["high"]) == (1.75, 1.5, 2.0)
    assert (cores["low"], cores["high"], cores["unit"]) == (12.35, 24.7, "cores")
    assert "2,470 images/s by NVIDIA; no GPU here" in cores["claim"]
    monkeypatch.setattr(bench, "_on_gpu", lambda: True)
    monkeypatch.setattr(streaming, "training_rates", lambda **how: [3000.0, 2000.0, 2500.0])
    *_, pace, cores = bench.measure("streaming", quick=True)
    assert (pace["median"], cores["low"], cores["high"]) == (2500, 12.5, 25)
    assert cores["claim"] == "threads that decode for ResNet-50 on this GPU"


def test_images_that_are_trained_on_are_measured(monkeypatch):
    monkeypatch.setattr(streaming, "BATCH_SIZE", 4)
    rates = streaming.training_rates("resnet8", image_size=16, n_rounds=2)
    assert len(rates) == 2 and min(rates) > 0
