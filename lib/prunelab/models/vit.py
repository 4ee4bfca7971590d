"""Vision Transformers: patches of an image and a class token, which attend to each other block after block.

Layers are named as in timm and in the code of DINO, so that a state of theirs fits.

Source: Dosovitskiy et al. 2021, arXiv:2010.11929, Sec. 3.1; initialised as in the code of Caron et al. 2021,
arXiv:2104.14294.
Differs: No dropout of any kind. Of the last block only the class token is normalised: nothing else is read.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import Widths, scaled
from prunelab.models.trunk import load_trunk

EPSILON = 1e-6  # of layer normalisation
INIT_STD = 0.02


def n_patches(side: int, patch: int) -> int:
    """Returns how many patches lie along one side of an image.

    Raises:
        ValueError: The last one would be cut.
    """
    if side % patch:
        raise ValueError(f"the sides of images must be multiples of the patch, {patch} pixels; got {side}")
    return side // patch


def resize_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Interpolates learned positions of a square grid of patches to another grid, bicubically.

    The position of the class token stays; where the size does, all do.

    Args:
        positions: (1, 1 + side * side, dim), the class token's first.
        rows: Patches along the height.
        columns: Patches along the width.
    Returns:
        (1, 1 + rows * columns, dim).
    Raises:
        ValueError: The grid is not square, or there is not one class token.
    Source: Caron et al. 2021; `interpolate_pos_encoding` in their code.
    Differs: To exactly the new size; there the factor has a tenth of a patch added, against rounding.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if positions.shape[1] != 1 + side**2:
        raise ValueError(f"positions must be those of a class token and a square grid, got {positions.shape[1]}")
    if (rows, columns) == (side, side):
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def positions_for(images: Tensor, positions: Tensor, *, patch: int) -> Tensor:
    """Returns the positions of the class token and of the patches of images (n, c, h, w), of any size."""
    rows, columns = (n_patches(side, patch) for side in images.shape[2:])
    return resize_positions(positions, rows, columns)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns the values, averaged by how well queries and keys match; all are (n, heads, tokens, channels)."""
    if queries.dtype == torch.bfloat16 and queries.device.type == "cpu":
        # Of PyTorch's own, the backward pass takes two thirds of a whole step there.
        return (queries * queries.shape[3] ** -0.5 @ keys.transpose(2, 3)).softmax(dim=3) @ values
    return F.scaled_dot_product_attention(queries, keys, values)


class PatchEmbed(nn.Module):
    """One linear map of each patch: images (n, c, h, w) into tokens (n, patches, dim), row by row."""

    def __init__(self, in_channels: int, dim: int, *, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of several heads; the output channels of `qkv` are queries, keys, values, in each head by head."""

    def __init__(self, dim: int, *, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(queries, keys, values).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, n_hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, n_hidden), nn.Linear(n_hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP on normalised tokens, each added to what came in: (n, tokens, dim), class token first."""

    def __init__(self, dim: int, n_hidden: int, *, n_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=EPSILON), Attention(dim, n_heads=n_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=EPSILON), MLP(dim, n_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Tokens with learned positions, blocks, and a linear layer on the class token.

    Built for square images of one size, it takes others too: positions are interpolated, see `resize_positions`.

    Attributes:
        enlarged_to: Side in pixels to which images are enlarged before they are cut into patches; None leaves them.

    Args:
        dim: Channels of a token.
        depth: Number of blocks.
        n_heads: Heads of each attention, of dim / n_heads channels.
        patch: Height and width of a patch in pixels.
        width: Scales the channels of each head, and with them `dim` and the 4 * dim hidden units of each MLP.
    Raises:
        ValueError: `image_size` is no multiple of `patch`.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        n_heads: int,
        patch: int,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: float,
        widths: Widths,
    ) -> None:
        super().__init__()
        self.enlarged_to: int | None = None
        self.patch, dim = patch, n_heads * scaled(dim // n_heads, width)
        self.patch_embed = PatchEmbed(in_channels, dim, patch=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + n_patches(image_size, patch) ** 2, dim))
        n_hidden = [widths.get(f"blocks.{i}.mlp.fc1", 4 * dim) for i in range(depth)]
        self.blocks = nn.Sequential(*(Block(dim, n, n_heads=n_heads) for n in n_hidden))
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        self.head = nn.Linear(dim, num_classes)
        # The patches' map starts as torch's convolutions do.
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def features(self, images: Tensor) -> Tensor:
        """Returns what the head reads: the class token after the last block, normalised, (n, dim)."""
        if self.enlarged_to:
            images = F.interpolate(images, size=(self.enlarged_to, self.enlarged_to), mode="bicubic")
        positions = positions_for(images, self.pos_embed, patch=self.patch)  # first: it looks at the size
        tokens = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), self.patch_embed(images)], dim=1)
        return self.norm(self.blocks(tokens + positions)[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def load_backbone(model: VisionTransformer, state: Mapping[str, Tensor]) -> None:
    """Does what `load_trunk` does, with positions of images of another size interpolated by `resize_positions`.

    Args:
        model: Keeps its head.
        state: Of a network of the same blocks and patch; its head, if it has one, is left aside.
    Raises:
        ValueError: The state is another network's; `model` is as it was.
    """
    if "pos_embed" in state:
        side = math.isqrt(model.pos_embed.shape[1] - 1)
        state = {**state, "pos_embed": resize_positions(state["pos_embed"], side, side)}
    load_trunk(model, state)
