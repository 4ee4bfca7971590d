"""A folder of images and a latency in, a smaller network out: by hand, to its end, stopped, and with bad input."""

import json
from shutil import make_archive

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import nn

from prunelab import cli, cost, data, export, paths, shrinking, training
from prunelab.channels import surgery, timed
from prunelab.channels.timed import Found, density_for, narrowed, widest
from prunelab.channels.trace import UntraceableError, trace
from prunelab.latency import Latency
from prunelab.models.named import named_network
from prunelab.shrinking import report, shrink_to, table
from prunelab.training import evaluate

SIZE = 32
IMAGE = {"in_channels": 3, "image_size": SIZE}
OPTIONS = {"model": "resnet8", "weights": "none", "n_epochs": 2, "batch_size": 4, "image_size": SIZE}
COMMAND = ["--model", "resnet8", "--weights", "none", "--epochs", "2", "--batch-size", "4", "--size", f"{SIZE}"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "data" / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(home):
    """Photographs of two classes, of two sizes, six of each to train on and two to test."""
    draw = np.random.default_rng(0)
    for split, n_images in (("train", 6), ("val", 2)):
        for class_name, level in (("day", 150), ("night", 20)):
            for number in range(n_images):
                path = home / "photos" / split / class_name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = level + draw.integers(100, size=(40, 50 + number, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return home / "photos"


to_onnx = export.to_onnx


@pytest.fixture
def half(monkeypatch):
    """The search finds half of the channels at once, nothing is exported; what was searched for."""
    asked = []

    def found(model, traced, wanted, **options):
        asked.append((wanted, options["is_share"]))
        return Found(0.5, 0.4, 0.01)

    monkeypatch.setattr(shrinking, "density_for", found)
    monkeypatch.setattr(report, "N_ROUNDS", 2)
    monkeypatch.setattr(export, "to_onnx", lambda model, path, **image: path.write_text("exported"))
    return asked


@pytest.fixture
def trainings(monkeypatch):
    """How many epochs each training was asked for."""
    asked = []

    def train(*arguments, **options):
        asked.append(options["n_epochs"])
        return training.train(*arguments, **options)

    monkeypatch.setattr(shrinking, "train", train)
    return asked


class Net(nn.Module):
    """A reader's own."""

    def __init__(self, n_outputs=2):
        super().__init__()
        self.conv1, self.bn1, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3)
        self.fc = nn.Linear(16, n_outputs)

    def forward(self, x):
        return self.fc(self.conv2(self.bn1(self.conv1(x)).relu()).relu().mean((2, 3)))


def own_network(**options):
    torch.manual_seed(0)
    return Net(**options)


def files_of(out):
    return {path.name for path in out.glob("[!.]*")}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# --- which share of channels


@pytest.mark.parametrize(
    "share, step, took", [(0.5, 32, 0.5), (0.51, 32, 0.5), (0.984375, 63, 63 / 64), (1 / 64, 1, 1 / 64)]
)
def test_widest_step_that_takes_at_most_a_share_is_found_by_halving(share, step, took):
    tried = []

    def share_at(step):
        tried.append(step)
        return step / 64

    assert widest(share_at, share, most=63) == (step, took)
    assert tried[0] == 32 and len(tried) == 7 and tried[-1] == step


def test_a_lucky_measurement_does_not_decide():
    tried = []

    def share_at(step):
        tried.append(step)
        return 0.4 if step == 40 and tried.count(40) == 1 else step / 64

    assert widest(share_at, 0.5, most=63) == (32, 0.5)
    assert tried[-9:] == list(range(40, 31, -1))


def test_narrowest_step_may_be_too_slow_still():
    assert widest(lambda step: 0.3 + step / 64, 0.2, most=63) == (1, 0.3 + 1 / 64)


@pytest.fixture
def clock(monkeypatch):
    """Networks take 2 ms, and 1 ms for each channel of their first convolution; every third round is slow."""

    def compare(models, *, n_rounds, **options):
        assert options == {"batch_size": 1, **IMAGE}
        slow = [10 if number % 3 == 2 else 1 for number in range(n_rounds)]
        own = {name: 2e-3 + 1e-3 * model.conv1.out_channels for name, model in models.items()}
        return {name: Latency(tuple(seconds * each for each in slow)) for name, seconds in own.items()}

    monkeypatch.setattr(timed, "compare", compare)
    monkeypatch.setattr(timed, "measure", lambda model, **options: compare({"model": model}, **options)["model"])


@pytest.mark.parametrize(
    # The whole one, of 8 channels, takes 10 ms. Of the densities, 36/64 is the last
    # that leaves 4 channels, round(4.5), and 11/64 the last that leaves 1.
    "wanted, is_share, density, share",
    [(6e-3, False, 36 / 64, 0.6), (0.6, True, 36 / 64, 0.6), (6.9e-3, False, 36 / 64, 0.6), (0.31, True, 11 / 64, 0.3)],
)
def test_density_is_the_largest_whose_latency_is_low_enough(clock, wanted, is_share, density, share):
    net = own_network()
    found = density_for(net, trace(net, **IMAGE), wanted, is_share=is_share, **IMAGE)
    assert (found.density, found.seconds) == (density, pytest.approx(0.01))
    assert found.share == pytest.approx(share) and round(8 * density) == 10 * share - 2


@pytest.mark.parametrize(
    "wanted, is_share, said",
    [
        (0.02, False, "nothing to do: Net takes 10 ms for an image here, and 20 ms were asked for"),
        (1.0, True, "nothing to do: Net takes 10 ms for an image here, and 10 ms"),
        (2e-3, False, "Net takes 10 ms .* with the fewest channels 3 ms, 30%: more than the 2 ms, 20%, asked for"),
        (0.1, True, "with the fewest channels 3 ms, 30%: more than the 1 ms, 10%, asked for; take another network"),
    ],
)
def test_latency_that_is_had_already_or_out_of_reach_is_told_with_what_was_measured(clock, wanted, is_share, said):
    net = own_network()
    with pytest.raises(ValueError, match=said):
        density_for(net, trace(net, **IMAGE), wanted, is_share=is_share, **IMAGE)


def test_network_without_channels_that_may_go_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2))
    with pytest.raises(UntraceableError, match="Sequential has no channels that may go"):
        density_for(net, trace(net, **IMAGE), 0.5, is_share=True, **IMAGE)


def test_wide_network_that_is_timed_for_real_keeps_some_of_its_channels(monkeypatch):
    monkeypatch.setattr(timed, "N_ROUNDS", 5)
    net = nn.Sequential(nn.Conv2d(3, 96, 3), nn.Conv2d(96, 96, 3), nn.Flatten(), nn.Linear(96 * 28 * 28, 2))
    found = density_for(net, trace(net, **IMAGE), 0.7, is_share=True, **IMAGE)
    assert 1 / 64 <= found.density < 1 and 0 < found.share <= 0.7 and found.seconds > 0


def test_wanted_seconds_are_compared_with_those_of_networks_that_run_alone(clock, monkeypatch):
    monkeypatch.setattr(timed, "compare", None)
    net = own_network()
    assert density_for(net, trace(net, **IMAGE), 6e-3, is_share=False, **IMAGE) == (36 / 64, 0.6, 0.01)


@pytest.mark.parametrize(
    "name",
    [
        *("densenet22", "densenet40", "preresnet20", "preresnet110", "resnet8", "resnet18", "resnext20", "wrn22_2"),
        *("mobilenet_v1", "mobilenet_v2", "vgg11", "vit_micro4", "lenet_300_100", "squeezenet1_1"),
        *("shufflenet_v2_x0_5", "regnet_y_400mf", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5"),
    ],
)
def test_every_family_of_named_networks_becomes_narrower(name):
    net = named_network(name, num_classes=2, image_size=SIZE, weights="none")
    before, after = (
        cost.total(cost.layer_table(each, **IMAGE), "macs")
        for each in (net, narrowed(net, trace(net, **IMAGE), 0.5, **IMAGE))
    )
    assert after < before


def test_filters_of_largest_weights_stay():
    net = own_network()
    with torch.no_grad():
        net.conv1.weight.copy_(
            torch.tensor([3.0, 1, 8, 2, 7, 4, 6, 5])[:, None, None, None].expand_as(net.conv1.weight)
        )
    narrower = narrowed(net, trace(net, **IMAGE), 0.5, **IMAGE)
    assert narrower.conv1.weight[:, 0, 0, 0].tolist() == [8, 7, 6, 5] and narrower.conv2.weight.shape[:2] == (8, 4)


# --- from a folder to a file


def test_folder_becomes_two_networks_a_file_for_other_runtimes_and_a_report(folder, half, trainings, home):
    said, out = [], home / "out"
    told = shrink_to(folder, "5ms", out=out, tell=said.append, **OPTIONS)
    assert half == [(5e-3, False)] and trainings == [2, 1]
    files = {"dense.prunelab", "5ms.prunelab", "5ms.onnx", "5ms.json", "5ms.found", "options.json"}
    assert files_of(out) == files
    assert told == json.loads((out / "5ms.json").read_text())

    with torch.device("meta"):
        bare = named_network("resnet8", num_classes=2, image_size=SIZE, weights="none")
    dataset = data.load_from(folder, image_size=SIZE)
    for name, side in (("dense", "before"), ("5ms", "after")):
        network = surgery.load(bare, out / f"{name}.prunelab")
        layers = cost.layer_table(network, **IMAGE)
        assert told[side]["accuracy"] == evaluate(network, dataset)[1]
        assert [told[side][key] for key in ("n_weights", "macs")] == [
            cost.total(layers, key) for key in ("n_weights", "macs")
        ]
        assert 0 < told[side]["seconds"]["low"] <= told[side]["seconds"]["median"] <= told[side]["seconds"]["high"]
    assert trace(network, **IMAGE).widths == {name: n // 2 for name, n in trace(bare, **IMAGE).widths.items()}
    assert 0.4 < told["after"]["macs"] / told["before"]["macs"] < 0.6
    assert (told["n_test"], told["classes"], told["density"]) == (4, ["day", "night"], 0.5)
    assert told["input"]["mean"] == pytest.approx(dataset.mean.tolist(), abs=1e-5)
    assert said[0] == "12 images to train on, 4 to test on, 2 classes"
    assert [row["before"] for row in table(told)][1:3] == [f"{told['before'][key]:,}" for key in ("n_weights", "macs")]


def test_exported_network_gives_the_outputs_of_the_one_that_is_saved(folder, half, home, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "to_onnx", to_onnx)
    net = own_network()
    shrink_to(folder, "40%", out=home / "out", model=net, **without("model", "weights"))
    assert equal(net.state_dict(), own_network().state_dict())  # a copy was trained
    images = torch.randn(3, 3, SIZE, SIZE)
    network = surgery.load(own_network(), home / "out" / "40percent.prunelab").eval()
    assert network.conv1.out_channels == 4
    session = runtime.InferenceSession(home / "out" / "40percent.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), network(images).detach(), rtol=0, atol=1e-5)


def without(*names):
    return {name: value for name, value in OPTIONS.items() if name not in names}


@pytest.mark.parametrize(
    "error, told", [(ImportError("get onnx"), "get onnx"), (RuntimeError("no\nway"), "no"), (TypeError(), "TypeError")]
)
def test_network_that_cannot_be_exported_is_written_all_the_same(folder, half, home, monkeypatch, error, told):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(export, "to_onnx", fail)
    said = []
    shrink_to(folder, "5ms", out=home / "out", tell=said.append, **OPTIONS)
    assert f"no ONNX file: {told}" in said
    assert (home / "out" / "5ms.json").exists() and not (home / "out" / "5ms.onnx").exists()


def test_another_latency_takes_the_large_network_that_is_there(folder, half, trainings, home):
    out = home / "out"
    first = shrink_to(folder, "5ms", out=out, **OPTIONS)
    written = (out / "dense.prunelab").read_bytes(), (out / "5ms.prunelab").read_bytes()
    second = shrink_to(folder, "60%", out=out, **OPTIONS)
    assert half == [(5e-3, False), (0.6, True)] and trainings == [2, 1, 1]
    assert written == ((out / "dense.prunelab").read_bytes(), (out / "5ms.prunelab").read_bytes())
    assert first["before"]["accuracy"] == second["before"]["accuracy"]
    assert {"5ms.json", "60percent.json"} <= files_of(out)


def test_latency_that_is_missed_in_the_end_is_told(folder, half, home):
    said = {latency: [] for latency in ("0.001ms", "100s", "0.01%", "900%")}
    for latency, lines in said.items():
        shrink_to(folder, latency, out=home / "out", tell=lines.append, **OPTIONS)
    missed = {latency for latency, lines in said.items() if "more than asked for" in lines[-1]}
    assert missed == {"0.001ms", "0.01%"}


@pytest.mark.parametrize("accuracy, n_said", [(0.5, 1), (0.51, 0)])
def test_network_that_only_guesses_is_told_of(accuracy, n_said):
    said, report = [], {"reached": 0.5, "wanted": 0.5, "before": {"accuracy": accuracy}, "classes": ["day", "night"]}
    shrinking._tell_doubts(report, said.append)
    assert len(said) == n_said and all("no better than guessing" in line for line in said)


def test_nothing_is_overwritten(folder, half, trainings, home):
    told, said = shrink_to(folder, "5ms", out=home / "out", **OPTIONS), []
    assert shrink_to(folder, "5ms", out=home / "out", tell=said.append, **OPTIONS) == told
    assert said[-1].endswith("5ms.json is there already, timed on cpu; remove 5ms.* to have it made anew")
    for changes, said in (
        ({"n_epochs": 3}, "n_epochs 2, not 3"),
        ({"model": "resnet20"}, "model resnet8, not resnet20; weights"),
        ({"batch_size": 3}, "batch_size 4, not 3"),
    ):
        with pytest.raises(FileExistsError, match=f"is of calls with {said}.*choose another folder"):
            shrink_to(folder, "6ms", out=home / "out", **OPTIONS | changes)
    next((folder / "train" / "day").iterdir()).unlink()
    with pytest.raises(FileExistsError, match="is of calls with images "):
        shrink_to(folder, "6ms", out=home / "out", **OPTIONS)
    assert trainings == [2, 1]


def test_network_that_is_trained_is_only_shrunk(folder, half, trainings, home):
    net = own_network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = shrink_to(folder, "50%", out=home / "out", model=net, is_trained=True, **without("model", "weights"))
    assert trainings == [1] and not (home / "out" / "dense.prunelab").exists()
    assert equal(net.state_dict(), before) and net.training
    assert told["before"]["accuracy"] == evaluate(net, data.load_from(folder, image_size=SIZE))[1]


def test_seconds_are_of_networks_alone_and_ratios_of_networks_in_turn(folder, half, home, monkeypatch):
    alone = iter([(8.0, 8.0), (4.0, 4.0)] * 2)
    monkeypatch.setattr(report, "measure", lambda network, **options: Latency(next(alone)))
    monkeypatch.setattr(report, "compare", lambda *a, **options: {"before": Latency((9, 9)), "after": Latency((6, 6))})
    for latency, wanted, reached in (("5s", 5.0, 4.0), ("70%", 0.7, 6 / 9)):
        told = shrink_to(folder, latency, out=home / "out", **OPTIONS)
        assert [told[side]["seconds"]["median"] for side in ("before", "after")] == [8, 4]
        assert told["speed_up"]["median"] == 1.5
        assert (told["wanted"], told["reached"]) == pytest.approx((wanted, reached))


@pytest.mark.parametrize(
    "suffix, said",
    [
        ("", "shorter side resized to 37 by bilinear filtering, 32x32 cut out of the centre"),
        (".zip", "the largest square at the centre cut out, shrunk by area averaging; what is transparent on white"),
    ],
)
def test_report_says_what_is_done_to_an_image(folder, half, home, suffix, said):
    make_archive("photos", "zip", folder.parent, "photos")
    told = shrink_to(home / f"photos{suffix}", "50%", out=home / "out", **OPTIONS)
    assert told["input"]["pixels"].startswith(f"{said}; orientation tags are ignored; then float32 (images, 3, ")


def test_weights_may_be_those_of_an_earlier_call_and_narrower(folder, half, home):
    first = shrink_to(folder, "5ms", out=home / "out", **OPTIONS)
    options = OPTIONS | {"weights": str(home / "out" / "5ms.prunelab"), "is_trained": True}
    second = shrink_to(folder, "4ms", out=home / "again", **options)
    assert second["before"]["n_weights"] == first["after"]["n_weights"] > second["after"]["n_weights"]
    assert second["before"]["accuracy"] == first["after"]["accuracy"]


def test_trained_weights_of_other_classes_are_refused(folder, half, home):
    net = named_network("resnet8", num_classes=5, image_size=SIZE, weights="none")
    torch.save(net.state_dict(), home / "five.pth")
    with pytest.raises(ValueError, match=r"five.pth has no head for 2 classes: it was not trained on these images"):
        shrink_to(folder, "5ms", out=home / "out", **OPTIONS | {"weights": "five.pth", "is_trained": True})
    shrink_to(folder, "5ms", out=home / "out", **OPTIONS | {"weights": "five.pth"})


def test_all_images_are_a_batch_where_there_are_few(folder, half, home):
    told = shrink_to(folder, "5ms", out=home / "out", **without("batch_size"))
    assert told["options"]["batch_size"] == 12


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel, lambda net: torch.compile(nn.DataParallel(net))])
def test_network_is_taken_out_of_what_wraps_it(folder, half, home, wrapped):
    told = shrink_to(folder, "50%", out=home / "out", model=wrapped(own_network()), **without("model", "weights"))
    assert told["options"]["model"] == "Net"
    assert surgery.load(own_network(), home / "out" / "50percent.prunelab").conv1.out_channels == 4


# --- a folder that is there already


def test_new_network_may_have_other_numbers_after_a_stop_a_trained_one_may_not(folder, half, trainings, home):
    for weights in ("none", "imagenet"):
        options = {"out": home / weights, "weights": weights, **without("model", "weights")}
        shrink_to(folder, "50%", model=own_network(), **options)
        other = Net()
        if weights == "none":
            shrink_to(folder, "60%", model=other, **options)
        else:
            with pytest.raises(FileExistsError, match="is of calls with weights "):
                shrink_to(folder, "60%", model=other, **options)
    assert trainings == [2, 1, 1, 2, 1]


def test_rate_of_learning_belongs_to_the_options(folder, half, home):
    net = own_network()
    shrink_to(folder, "50%", out=home / "out", model=net, weights="none", **without("model", "weights"))
    with pytest.raises(FileExistsError, match=r"; learning_rate 0.05, not 0.01"):
        shrink_to(folder, "60%", out=home / "out", model=net, **without("model", "weights"))


def test_call_that_came_to_nothing_gives_its_folder_to_the_next(folder, half, home, monkeypatch):
    with monkeypatch.context() as stopping:
        stopping.setattr(shrinking, "train", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shrink_to(folder, "50%", out=home / "out", **OPTIONS)
    assert files_of(home / "out") == {"options.json", "50percent.found"}
    told = shrink_to(folder, "50%", out=home / "out", **OPTIONS | {"n_epochs": 1})
    assert told["options"]["n_epochs"] == 1 and len(half) == 2  # it is searched for anew


def test_what_was_found_on_another_device_is_searched_for_anew(folder, half, home, monkeypatch):
    with monkeypatch.context() as stopping:
        stopping.setattr(shrinking, "train", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shrink_to(folder, "50%", out=home / "out", **OPTIONS)
    found_file = home / "out" / "50percent.found"
    found_file.write_text(found_file.read_text().replace('"cpu"', '"cuda"'))
    shrink_to(folder, "50%", out=home / "out", **OPTIONS)
    assert len(half) == 2 and '"cpu"' in found_file.read_text()


def test_report_that_is_made_anew_tells_of_the_file_that_is_there(folder, half, trainings, home, monkeypatch):
    first, out = shrink_to(folder, "50%", out=home / "out", **OPTIONS), home / "out"
    monkeypatch.setattr(shrinking, "density_for", lambda *arguments, **options: Found(0.25, 0.2, 0.01))
    (out / "50percent.json").unlink()
    second = shrink_to(folder, "50%", out=out, **OPTIONS)
    assert (second["density"], second["after"]["n_weights"]) == (0.5, first["after"]["n_weights"])
    (out / "50percent.json").unlink()
    (out / "50percent.found").write_text("[0.5, 0.")  # damaged: searched anew, and trained anew
    third = shrink_to(folder, "50%", out=out, **OPTIONS)
    assert third["density"] == 0.25 and third["after"]["n_weights"] < first["after"]["n_weights"]
    assert trainings == [2, 1, 1]


@pytest.mark.parametrize("content", ["", "[1]", "{", "\xff"])
@pytest.mark.parametrize("name", ["options.json", "5ms.json", "dense.prunelab"])
def test_damaged_file_is_named_with_what_to_do(folder, half, home, name, content):
    out = home / "out"
    shrink_to(folder, "5ms", out=out, **OPTIONS)
    (out / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name} is damaged.*; remove "):
        shrink_to(folder, "6ms" if name.endswith(".prunelab") else "5ms", out=out, **OPTIONS)


def test_folder_that_another_call_writes_to_is_told(folder, half, home):
    (home / "out").mkdir()
    with FileLock(home / "out" / ".lock"), pytest.raises(RuntimeError, match=r"another call is writing to .*; wait"):
        shrink_to(folder, "5ms", out=home / "out", **OPTIONS)
    shrink_to(folder, "5ms", out=home / "out", **OPTIONS)


def test_folder_that_cannot_be_is_told_before_anything_is_timed(folder, half, home):
    (home / "out").touch()
    with pytest.raises(OSError, match=r"out .*; allow it, or choose another folder, with --out"):
        shrink_to(str(folder), "5ms", out=str(home / "out"), **OPTIONS)
    assert not half


class Stopped(Exception):
    pass


@pytest.mark.parametrize("n_reports, kept", [(2, {"dense.checkpoint"}), (9, {"dense.prunelab", "5ms.checkpoint"})])
def test_stopped_call_goes_on_and_ends_as_if_it_had_not_been(
    folder, half, trainings, home, monkeypatch, saved_each_step, n_reports, kept
):
    whole = shrink_to(folder, "5ms", out=home / "whole", **OPTIONS)
    reports = []

    def train(*arguments, report, **options):
        def stop(share):
            reports.append(share)
            report(share)
            if len(reports) == n_reports:
                raise Stopped

        return training.train(*arguments, report=stop, **options)

    out = home / "out"
    with monkeypatch.context() as stopping:
        stopping.setattr(shrinking, "train", train)
        with pytest.raises(Stopped):
            shrink_to(folder, "5ms", out=out, **OPTIONS)
    assert files_of(out) == {"options.json", "5ms.found"} | kept
    n_searched = len(half)
    again = shrink_to(folder, "5ms", out=out, **OPTIONS)
    assert len(half) == n_searched  # widths found once stay, whatever a second timing might say
    assert again["after"]["accuracy"] == whole["after"]["accuracy"]
    for name in ("dense.prunelab", "5ms.prunelab"):
        one, other = (surgery.load_checkpoint(home / run / name)["state"] for run in ("whole", "out"))
        assert equal(one, other), name


def test_diverged_training_is_told_and_leaves_no_network(folder, half, home):
    net = own_network()
    nn.init.constant_(net.fc.weight, float("inf"))
    with pytest.raises(RuntimeError, match="training has diverged"):
        shrink_to(folder, "50%", out=home / "out", model=net, **without("model", "weights"))
    assert files_of(home / "out") == {"options.json", "50percent.found"}


# --- bad input


@pytest.mark.parametrize("latency", ["5", "ms", "-5ms", "0ms", "0%", "5 m", "5ms ", "1e3s", "٥ms", ""])
def test_latency_that_is_none_is_refused_before_anything_is_read(home, latency):
    with pytest.raises(ValueError, match="latency must be a time or a share above 0, such as 5ms"):
        shrink_to(home / "nowhere", latency, out=home / "out", **OPTIONS)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model": "resnet_18"}, "unknown model 'resnet_18'; .* Did you mean 'resnet18'"),
        ({"batch_size": 13}, r"batch_size must lie in 1..12, the training images; got 13"),
        ({"weights": "imagenet"}, "torchvision has no weights of resnet8; choose the weights 'none'"),
        ({"weights": "my.pth"}, "there is no file my.pth"),
        ({"model": "vit_b_16"}, r"VisionTransformer fails \(Wrong image height! Expected 224 but got 32!\) for images"),
        ({"is_trained": True}, "trained on these images has weights: name their file instead of 'none'"),
        ({"n_epochs": 0}, "n_epochs must be a whole number from 1 on; got 0"),
        ({"n_epochs": 2.5}, "n_epochs must be a whole number from 1 on; got 2.5"),
        ({"image_size": 32.0}, "image_size must be a whole number from 1 on; got 32.0"),
        ({"batch_size": 4.0}, "batch_size must lie in 1..12, the training images; got 4.0"),
        ({"device": "auto"}, "unknown device 'auto'; there are cpu, cuda"),
        ({"model": None}, "model must be the name of a network, or a torch.nn.Module; got None"),
        ({"model": Net}, "model must be the name of a network, or a torch.nn.Module; got <class"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, half, home, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        shrink_to(folder, "5ms", out=home / "out", **OPTIONS | changes)
    assert not (home / "out").exists()


class Pair(Net):
    """Gives two tensors in training."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, x) if self.training else logits


class Fickle(Net):
    """Runs otherwise for some images."""

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


def on_meta():
    with torch.device("meta"):
        return Net()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Net(n_outputs=5), r"Net gives \(2, 5\) for images \(2, 3, 32, 32\) in evaluation; it must give one "),
        (lambda: Net().double(), "Net needs parameters in float32"),
        (lambda: Net().requires_grad_(False), "some of which require gradients, to be trained; call float"),
        (nn.Flatten, "Flatten needs parameters in float32"),
        (on_meta, "Net is on the meta device"),
        (
            Pair,
            r"Pair gives tuple for images \(2, 3, 32, 32\) in training; .* tensor \(2, 2\), .* 2 classes: day, night",
        ),
        (Fickle, "Fickle fails .* in evaluation"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(2)), "Sequential .* in evaluation"),
        (lambda: nn.Conv2d(1, 2, 3), r"Conv2d fails \(.*\) for images \(2, 3, 32, 32\)"),
    ],
)
def test_network_that_cannot_be_trained_is_refused_before_it_is_timed(folder, half, home, make, said):
    with pytest.raises(ValueError, match=said):
        shrink_to(folder, "5ms", out=home / "out", model=make(), **without("model", "weights"))
    assert not half and not (home / "out").exists()


def test_network_without_finite_outputs_is_told(folder, half, home, monkeypatch):
    monkeypatch.setattr(report, "evaluate", lambda *arguments: (float("nan"), 0.5))
    with pytest.raises(RuntimeError, match="network before shrinking gives outputs that are not finite"):
        shrink_to(folder, "5ms", out=home / "out", **OPTIONS)


def test_damaged_photograph_is_named_before_anything_is_trained(folder, half, trainings, home):
    path = folder / "train" / "day" / "3.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"1 images cannot be used, such as train/day/3\.png"):
        shrink_to(folder, "5ms", out=home / "out", **OPTIONS)
    assert not trainings and files_of(home / "out") == {"options.json"}


# --- the command


def test_command_trains_shrinks_and_shows_what_came_of_it(folder, half, home, capsys):
    arguments = ["shrink", "photos", "--latency", "80%", *COMMAND, "--device", "cpu"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    told = json.loads((home / "photos-smaller" / "80percent.json").read_text())
    assert told["options"].items() >= {"model": "resnet8", "image_size": 32, "n_epochs": 2, "batch_size": 4}.items()
    assert f"{told['after']['macs']:,}" in printed and "in photos-smaller: 80percent.found, 80percent.json" in printed
    assert cli.main(arguments) == 0
    again = capsys.readouterr().out
    assert "is there already" in again and printed.splitlines()[-3:] == again.splitlines()[-3:]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere", "--latency", "5ms"], "there is no folder or archive of images nowhere; it needs train/ and test/"),
        (["photos/val", "--latency", "5ms"], "photos/val has 0 training and 0 test images; it needs train/"),
        (["photos", "--latency", "5"], "such as 5ms"),
        (["photos", "--latency", "5ms", "--model", "resnet9"], "Did you mean 'resnet"),
        (["photos", "--latency", "5ms", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(folder, capsys, arguments, said):
    assert cli.main(["shrink", *COMMAND, *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and err.startswith("prunelab: ")


@pytest.mark.parametrize(
    "arguments, said",
    [(["--epochs", "0"], "epochs must be a whole number from 1 on; got '0'"), ([], "required: --latency")],
)
def test_command_refuses_options_that_are_no_such(folder, capsys, arguments, said):
    with pytest.raises(SystemExit):
        cli.main(["shrink", "photos", *arguments])
    assert said in capsys.readouterr().err


def test_stopped_command_says_how_to_go_on(folder, half, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shrinking, "train", stop)
    assert cli.main(["shrink", "photos", "--latency", "50%", *COMMAND, "--device", "cpu"]) == 130
    assert "start it again to go on from there" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_folder_that_is_written_to_is_named_after_the_images(folder, home, monkeypatch, capsys, suffix):
    asked = []

    def shrink(source, latency, *, out, **options):
        asked.append((source, out))
        raise ValueError("stop here")

    monkeypatch.setattr(shrinking, "shrink_to", shrink)
    for source in (f"photos{suffix}", f"photos{suffix}/", f"./photos{suffix}"):
        assert cli.main(["shrink", source, "--latency", "5ms"]) == 2
    assert {str(out) for _, out in asked} == {"photos-smaller"}
