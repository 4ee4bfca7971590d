"""ONNX files compute what the network does, and come whole or not at all."""

import copy
import os
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunelab.export import to_onnx


class Net(nn.Module):
    """What the networks of the library consist of: normalisation, addition, concatenation, selection, padding."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(6)
        self.register_buffer("indices", torch.tensor([0, 3, 7, 11]))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))
        out = F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)
        x = torch.cat([out, shortcut], dim=1).index_select(1, self.indices)
        return self.fc(x.mean(dim=(2, 3)))


@pytest.fixture
def net():
    """In training mode, with running statistics of its own, in the layout of training."""
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(32, 3, 8, 8) * 2 + 1)
    return net.to(memory_format=torch.channels_last)


def test_file_gives_the_logits_of_the_network_for_batches_of_any_size_and_says_nothing(net, tmp_path, capfd, recwarn):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    before = copy.deepcopy(net.state_dict())
    path = tmp_path / "new" / "net.onnx"
    to_onnx(net, path, in_channels=3, image_size=8)
    assert os.listdir(path.parent) == ["net.onnx"]
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["images"]
    net.eval()
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 8, 8)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), net(images).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_packages_are_named_with_the_way_to_get_them(net, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install prunelab\[onnx\]"):
        to_onnx(net, tmp_path / "net.onnx", in_channels=3, image_size=8)
    assert not os.listdir(tmp_path)
