"""Networks that others wrote: followed, shrunk, and the same numbers come out; of timm's where it is installed."""

from importlib.util import find_spec

import pytest
import torch

from prunelab.bench import strangers
from prunelab.channels.surgery import load, save

QUICK = ("mobilenet_v3_small", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1")
FAMILIES = (  # the small ones of each; `prunelab bench networks` has them all
    *("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "regnet_y_400mf"),
    *("mobilenet_v3_small", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
    *("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
)


def check(library, name, path):
    model, image = strangers.network(library, name)
    row, smaller = strangers.compared(model, **image)
    assert row["difference"] <= 1e-7  # in single precision rounding adds up
    x = torch.randn(2, 3, image["image_size"], image["image_size"], dtype=torch.float64)
    if row["left"] < 1:
        save(smaller, path)
        one, other = (strangers.outputs(each.eval()(x))[0] for each in (load(model, path), smaller))
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]
)
def test_networks_of_torchvision_are_followed(name, tmp_path):
    check("torchvision", name, tmp_path / "network")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("timm"), reason="timm is not installed")
@pytest.mark.parametrize("name", strangers.TIMM)
def test_networks_of_timm_are_followed(name, tmp_path):
    check("timm", name, tmp_path / "network")


def test_all_are_in_the_census():
    listed = strangers.names()
    assert {("torchvision", name) for name in FAMILIES} <= {*listed} and len({*listed}) == len(listed)
    assert len(strangers.TIMM) == 60
