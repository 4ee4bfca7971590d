"""Released weights of dense networks, as states of ours.

Source: torchvision, ViT-B/16 and ResNets trained on ImageNet-1k with its labels; `hubconf.py` in the code of Caron et
al. 2021, arXiv:2104.14294, ViT-B/16 and ViT-S/16 trained on the same images without (DINO).
"""

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from prunelab import files, paths
from prunelab.models import build_model
from prunelab.models.trunk import misfit, without_head

IMAGE = {"in_channels": 3, "image_size": 224}  # that all were trained on


@dataclass(frozen=True)
class Release:
    """Weights as their authors published them.

    Attributes:
        model: A key of `models.MODELS`, for images like `IMAGE`.
        source: Address of the file, or torchvision's name of the weights.
        num_classes: Outputs of the head; None where there is no head.
    """

    model: str
    source: str
    num_classes: int | None = None

    @property
    def url(self) -> str:
        """Address of the file."""
        if "://" in self.source:
            return self.source
        from torchvision.models import get_weight  # here: it takes seconds, and most work needs none of it

        return get_weight(self.source).url

    @property
    def file_name(self) -> str:
        """Last part of the address."""
        return self.url.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """First digits of the file's SHA-256, where its name ends in them; those of DINO tell none."""
        digits = re.search(r"-([0-9a-f]{8,64})\.pth$", self.file_name)
        return digits[1] if digits else ""


_DINO = "https://dl.fbaipublicfiles.com/dino"
RELEASES = {
    "vit_b16_imagenet": Release("vit_b16", "ViT_B_16_Weights.IMAGENET1K_V1", num_classes=1000),
    "vit_b16_dino": Release("vit_b16", f"{_DINO}/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"),
    "vit_s16_dino": Release("vit_s16", f"{_DINO}/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"),
    **{
        f"resnet{depth}_imagenet": Release(f"resnet{depth}", f"ResNet{depth}_Weights.IMAGENET1K_V1", num_classes=1000)
        for depth in (50, 34, 18)
    },
}
# What layers are called in torchvision and here; none of the former occurs in a name of timm's or DINO's.
_NAMES = {
    "class_token": "cls_token",
    "conv_proj.": "patch_embed.proj.",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln.": "norm.",
    "heads.head.": "head.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".self_attention.in_proj_": ".attn.qkv.",
    ".self_attention.out_proj.": ".attn.proj.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.3.": ".mlp.fc2.",
    ".mlp.linear_1.": ".mlp.fc1.",  # of files that are older than torchvision 0.14
    ".mlp.linear_2.": ".mlp.fc2.",
}


class WeightsNotFoundError(FileNotFoundError):
    """Weights that are not on this machine and could not be fetched; says how to get them."""


def find(name: str) -> Path:
    """Finds the file of released weights in `paths.DATA`, or else downloads it into the cache, once.

    Args:
        name: A key of `RELEASES`.
    Raises:
        ValueError: An unknown name.
        WeightsNotFoundError: Neither on this machine nor within reach.
    """
    return fetch(_release(name), name, instead="choose the profile 'smoke', which needs no download")


def fetch(release: Release, name: str, *, instead: str) -> Path:
    """Finds the file of a release as `find` does.

    Args:
        release: Any; not only of `RELEASES`.
        name: What errors call it.
        instead: What the error advises to do without it.
    Raises:
        WeightsNotFoundError: Neither on this machine nor within reach.
    """
    downloaded = paths.CACHE / "pretrained" / release.file_name
    for path in (paths.DATA / release.file_name, downloaded):
        if path.is_file():
            return path
    try:
        downloaded.parent.mkdir(parents=True, exist_ok=True)
        with files.download_timeout():
            torch.hub.download_url_to_file(release.url, str(downloaded), release.sha256)
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsNotFoundError(
            f"the weights {name} are not on this machine, and their download failed ({type(error).__name__}: {error}). "
            f"Either download {release.url} and put it into {paths.DATA} as {release.file_name}; or {instead}"
        ) from error
    return downloaded


def read(name: str, path: Path | None = None, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Reads released weights into a state for `build_model`, by our names of layers, on the CPU.

    `vit.load_backbone` takes it for other images and classes; a network with the head of the release, whole.

    Args:
        name: A key of `RELEASES`.
        path: A copy of its file; None takes what `find` finds.
        sha256: Of the file, or its first digits; None takes those of the official name. Where that has none, as of
            DINO, only checksums within the file are compared, which tell damage, but not another's weights; files
            older than torch 1.6 have none.
    Raises:
        ValueError: An unknown name; or a file that is damaged, not what was asked for, or another network's.
        WeightsNotFoundError: As for `find`.
        FileNotFoundError: There is nothing at `path`.
    """
    release = _release(name)
    path = find(name) if path is None else Path(path)
    state = renamed(unpacked(path, sha256=release.sha256 if sha256 is None else sha256))
    with torch.device("meta"):
        own = build_model(release.model, num_classes=release.num_classes or 1, **IMAGE).state_dict()
    state = with_counts(state, own)
    if wrong := misfit(state, own if release.num_classes else without_head(own, "head")):
        raise ValueError(f"{path} does not hold the weights {name}: {wrong}")
    return state


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state by our names of layers, of one by torchvision's; names of timm's and DINO's stay."""

    def ours(name: str) -> str:
        for theirs, our in _NAMES.items():
            name = name.replace(theirs, our)
        return name

    return {ours(name): value for name, value in state.items()}


def with_counts(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state with the counts of batch normalisation, which old files have not and no value depends on.

    Args:
        state: By our names of layers.
        own: Of our network; its values are not read.
    """
    counts = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}
    return {name: torch.zeros_like(value, device="cpu") for name, value in counts.items()} | dict(state)


def unpacked(path: Path, *, sha256: str = "") -> dict[str, Tensor]:
    """Returns what torch.save wrote, onto the CPU: a state, or a dict that holds one beside plain values.

    Args:
        path: Of the file.
        sha256: Of the file, or its first digits; empty compares none.
    Raises:
        ValueError: The file is another one, damaged, holds objects that would run code, or something that is no dict.
        FileNotFoundError: There is nothing at `path`.
    """
    content = path.read_bytes()
    if not (found := files.sha256(content)).startswith(sha256.lower()):
        raise ValueError(f"{path} is not the file expected: its SHA-256 begins {found[:16]}, not {sha256[:16]}")
    damaged = None
    try:  # a zip file, unless it is old; torch.load does not compare its checksums
        if zipfile.is_zipfile(io.BytesIO(content)):
            damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()
        state = None if damaged else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # readers meet damaged files with errors of many kinds
        raise ValueError(f"{path} is damaged, or holds more than tensors ({type(error).__name__})") from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} in it is wrong")
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state of a network, but a {type(state).__name__}")
    return {str(name): value for name, value in state.items()}


def _release(name: str) -> Release:
    if name not in RELEASES:
        raise ValueError(f"unknown weights {name!r}; there are {', '.join(RELEASES)}")
    return RELEASES[name]
