"""Released weights: their official names and addresses, what is checked, our names of layers; no download."""

import hashlib
import io
import re
import socket
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision

from prunelab import paths
from prunelab.models import build_model
from prunelab.models.layers import Widths
from prunelab.models.pretrained import RELEASES, Release, WeightsNotFoundError, find, read, renamed
from prunelab.models.trunk import misfit, without_head
from prunelab.models.vit import VisionTransformer, load_backbone

KIND = {"num_layers": 4, "num_heads": 3, "hidden_dim": 96, "mlp_dim": 384}  # in torchvision's words, vit_micro4


def theirs(*, image_size, patch_size, num_classes):
    """torchvision's network of the size of vit_micro4, with values that make everything matter."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(image_size, patch_size, **KIND, num_classes=num_classes)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def labelled():
    """What the file of a network with a head would hold, in torchvision's words."""
    return theirs(image_size=224, patch_size=4, num_classes=1000).state_dict()


@pytest.fixture(scope="module")
def backbone(labelled):
    """The same network's by our names, without a head."""
    return without_head(renamed(labelled), "head")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder for data, and two releases of vit_micro4: one with a head, one with none and no known hash."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setitem(RELEASES, "tiny_dino", Release("vit_micro4", "https://example.org/tiny/tiny_pretrain.pth"))
    return tmp_path


def release(monkeypatch, content):
    """Registers weights whose official name has the first digits of the hash of `content`."""
    digest = hashlib.sha256(content).hexdigest()
    source = f"https://example.org/tiny-{digest[:8]}.pth"
    monkeypatch.setitem(RELEASES, "tiny", Release("vit_micro4", source, num_classes=1000))
    return f"tiny-{digest[:8]}.pth", digest


@pytest.mark.parametrize("patch, image_size", [(4, 16), (8, 32)])
def test_outputs_are_torchvisions(patch, image_size):
    model = theirs(image_size=image_size, patch_size=patch, num_classes=10)
    kind = {"dim": 96, "depth": 4, "n_heads": 3, "patch": patch, "in_channels": 3, "width": 1.0, "widths": Widths({})}
    ours = VisionTransformer(**kind, num_classes=10, image_size=image_size)
    ours.load_state_dict(renamed(model.state_dict()))
    images = torch.randn(4, 3, image_size, image_size)
    torch.testing.assert_close(ours(images), model(images), rtol=0, atol=1e-5)
    assert model(images).std(dim=0).mean() > 0.1


def test_full_sized_state_of_torchvision_fits():
    with torch.device("meta"):
        their, ours = torchvision.models.vit_b_16(), build_model("vit_b16", num_classes=1000, image_size=224)
    assert misfit(renamed(their.state_dict()), ours.state_dict()) == ""


def test_files_from_before_torchvision_renamed_its_layers_are_read_alike(labelled):
    old = {
        re.sub(r"mlp\.([03])\.", lambda match: f"mlp.linear_{1 if match[1] == '0' else 2}.", name): value
        for name, value in labelled.items()
    }
    assert old.keys() != labelled.keys() and renamed(old).keys() == renamed(labelled).keys()


def test_names_of_ours_stay_as_they_are():
    with torch.device("meta"):
        own = build_model("vit_s16", num_classes=10, image_size=224).state_dict()
    assert list(renamed(own)) == list(own)


@pytest.mark.parametrize(
    "name, url, sha256, model, n_parameters",
    [  # Of torchvision's documentation and of DINO's hubconf.py; a backbone of DINO is what its code builds.
        ("vit_b16_imagenet", "/models/vit_b_16-c867db91.pth", "c867db91", "vit_b16", 86_567_656),
        (
            "vit_b16_dino",
            "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
            "",
            "vit_b16",
            85_798_656,
        ),
        (
            "vit_s16_dino",
            "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
            "",
            "vit_s16",
            21_665_664,
        ),
        ("resnet50_imagenet", "/models/resnet50-0676ba61.pth", "0676ba61", "resnet50", 25_557_032),
        ("resnet34_imagenet", "/models/resnet34-b627a593.pth", "b627a593", "resnet34", 21_797_672),
        ("resnet18_imagenet", "/models/resnet18-f37072fd.pth", "f37072fd", "resnet18", 11_689_512),
    ],
)
def test_releases_are_the_official_ones(name, url, sha256, model, n_parameters):
    found = RELEASES[name]
    assert found.url.startswith("https://") and found.url.endswith(url)
    assert (found.sha256, found.model) == (sha256, model)
    with torch.device("meta"):
        model = build_model(found.model, num_classes=found.num_classes or 1, image_size=224)
    state = dict(model.named_parameters())
    state = state if found.num_classes else without_head(state, "head")
    assert sum(value.numel() for value in state.values()) == n_parameters


@pytest.mark.parametrize("has_counts", [True, False])
def test_a_resnet_of_torchvision_is_read_with_or_without_counts_of_batches(home, monkeypatch, has_counts):
    theirs = torchvision.models.resnet18(num_classes=3)
    state = {name: value for name, value in theirs.state_dict().items() if has_counts or "num_batches" not in name}
    monkeypatch.setitem(RELEASES, "tiny", Release("resnet18", "https://example.org/r/r18.pth", num_classes=3))
    (home / "r18.pth").write_bytes(saved(state))
    ours = build_model("resnet18", num_classes=3, image_size=224)
    ours.load_state_dict(read("tiny"))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_weights_beside_the_archives_are_read(home, monkeypatch, labelled):
    content = saved(labelled)
    name, _ = release(monkeypatch, content)
    (home / name).write_bytes(content)
    monkeypatch.delattr(torch.hub, "download_url_to_file")
    assert find("tiny") == home / name
    state = read("tiny")
    model = build_model("vit_micro4", num_classes=1000, image_size=224)
    model.load_state_dict(state)
    assert torch.equal(
        model.blocks[3].attn.qkv.bias, labelled["encoder.layers.encoder_layer_3.self_attention.in_proj_bias"]
    )
    assert torch.equal(model.head.weight, labelled["heads.head.weight"])


def test_weights_without_a_head_are_read_for_other_images_and_classes(home, backbone):
    (home / "tiny_pretrain.pth").write_bytes(saved(backbone))
    model = build_model("vit_micro4", num_classes=7, image_size=16)
    head = model.head.weight.clone()
    load_backbone(model, read("tiny_dino"))
    assert torch.equal(model.blocks[0].mlp.fc1.weight, backbone["blocks.0.mlp.fc1.weight"])
    assert torch.equal(model.pos_embed[:, 0], backbone["pos_embed"][:, 0]) and model.pos_embed.shape[1] == 17
    assert torch.equal(model.head.weight, head)


def test_what_is_nowhere_is_downloaded_once(home, monkeypatch, labelled):
    content, asked = saved(labelled), []
    name, digest = release(monkeypatch, content)

    def download(url, path, hash_prefix):
        assert 0 < socket.getdefaulttimeout() <= 60
        asked.append((url, hash_prefix))
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert find("tiny") == find("tiny") == home / "cache" / "pretrained" / name
    assert asked == [(f"https://example.org/{name}", digest[:8])] and socket.getdefaulttimeout() is None
    assert read("tiny").keys() == renamed(labelled).keys()


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no network"), TimeoutError("timed out"), RuntimeError("invalid hash value")]
)
@pytest.mark.parametrize("name", ["vit_b16_imagenet", "vit_b16_dino", "vit_s16_dino", "resnet50_imagenet"])
def test_a_failed_download_says_what_to_do(home, monkeypatch, name, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsNotFoundError) as caught:
        read(name)
    said, file_name = str(caught.value), RELEASES[name].url.rpartition("/")[2]
    for helpful in (
        name,
        type(error).__name__,
        f"download {RELEASES[name].url} and put it into {home} as {file_name};",
    ):
        assert helpful in said
    assert "'smoke'" in said and caught.value.__cause__ is error and socket.getdefaulttimeout() is None


@pytest.mark.parametrize("position", [0.01, 0.5, 0.99])
def test_altered_file_is_refused_by_the_hash_in_its_name(home, monkeypatch, labelled, position):
    content = saved(labelled)
    name, digest = release(monkeypatch, content)
    altered = bytearray(content)
    altered[int(position * len(content))] ^= 1
    (home / name).write_bytes(altered)
    with pytest.raises(
        ValueError, match=rf"{name} is not the file expected: its SHA-256 begins \w{{16}}, not {digest[:8]}"
    ):
        read("tiny")


def test_another_file_is_refused_by_the_hash_that_the_reader_gives(tmp_path, home, backbone):
    path, content = tmp_path / "mine.pth", saved(backbone)
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    for given in (digest, digest.upper(), digest[:12]):
        assert read("tiny_dino", path, sha256=given).keys() == backbone.keys()
    with pytest.raises(ValueError, match=r"mine.pth is not the file expected: its SHA-256 begins"):
        read("tiny_dino", path, sha256="0" * 64)


def test_altered_and_truncated_files_are_noticed_without_a_known_hash(home, backbone):
    path, content = home / "tiny_pretrain.pth", saved(backbone)
    middle = content.index(backbone["blocks.1.mlp.fc1.weight"].numpy().tobytes()) + 1000
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    torch.load(path, weights_only=True)  # which notices nothing
    with pytest.raises(ValueError, match=r"tiny_pretrain.pth is damaged: the checksum of \S+/data/\d+ in it is wrong"):
        read("tiny_dino")
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"tiny_pretrain.pth is damaged, or holds more than tensors \(\w+\)"):
            read("tiny_dino")


def test_old_files_are_read_and_their_truncation_noticed(home, backbone):
    path, buffer = home / "tiny_pretrain.pth", io.BytesIO()
    torch.save(backbone, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue())
    assert read("tiny_dino").keys() == backbone.keys()
    path.write_bytes(buffer.getvalue()[:-1])
    with pytest.raises(ValueError, match=r"tiny_pretrain.pth is damaged"):
        read("tiny_dino")


class Planted:
    """What runs a command where a file is unpickled without care."""

    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def test_code_in_a_file_is_refused_and_does_not_run(home, backbone, monkeypatch):
    monkeypatch.chdir(home)
    (home / "tiny_pretrain.pth").write_bytes(saved(backbone | {"extra": Planted()}))
    with pytest.raises(
        ValueError, match=r"tiny_pretrain.pth is damaged, or holds more than tensors \(UnpicklingError\)"
    ):
        read("tiny_dino")
    assert not (home / "planted").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda state: {name: state[name] for name in state if "qkv" not in name}, "it lacks blocks.0.attn.qkv.bias"),
        (lambda state: state | {"head.weight": torch.zeros(10, 96)}, "it has, of no use here, head.weight"),
        (lambda state: state | {"pos_embed": torch.zeros(1, 197, 96)}, "it has in another shape pos_embed"),
        (lambda state: state | {"norm.bias": "none"}, "it has in another shape norm.bias"),
        (
            lambda state: {"teacher": state},
            "it lacks blocks.0.attn.proj.bias, .* and 51 more; it has, of no use here, teacher",
        ),
    ],
)
def test_file_of_another_network_is_refused(home, backbone, change, said):
    (home / "tiny_pretrain.pth").write_bytes(saved(change(backbone)))
    with pytest.raises(ValueError, match=rf"tiny_pretrain.pth does not hold the weights tiny_dino: {said}"):
        read("tiny_dino")


def test_file_of_no_state_is_refused(home, backbone):
    (home / "tiny_pretrain.pth").write_bytes(saved(list(backbone.values())))
    with pytest.raises(ValueError, match=r"tiny_pretrain.pth holds no state of a network, but a list"):
        read("tiny_dino")


def test_unknown_weights_and_a_missing_file_are_named(home):
    for ask in (find, read):
        with pytest.raises(
            ValueError, match="unknown weights 'vit_b16'; there are vit_b16_imagenet, vit_b16_dino, vit_s16_dino"
        ):
            ask("vit_b16")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        read("tiny_dino", home / "nowhere.pth")
