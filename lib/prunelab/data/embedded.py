"""Images that need no download: scikit-learn's digits, and glyphs drawn from matplotlib's own fonts."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from prunelab.data.dataset import Images, balanced_sample

# Of characters that differ in little but size or position, such as C and c, O and 0, I and l, a family has
# one. A set of n classes takes the first n.
FAMILIES = {
    "latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghmnrty23456789ßþðæØ",
    "greek": "αβγδεζηθικλμνξοπρσςτυφχψωΓΔΛΞΠΣΦΩ",
    "cyrillic": "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЂЉЊЋѢѲЇЎабҐЃЌЁ",
    "symbols": ("+−×÷=≠≈≡≤≥±∞∂∇∑∏∫√∈∉∋∅∩∪⊂⊃⊆⊇∧∨¬∀∃→←↑↓↔⇒⇐⇔∝∠⊥⊕⊗♠♣♥♦§¶©€£¥&@#%?!{}[]<>/\\~*◊†∘⊢▲▼■●○□"),
}
_LETTER_FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
)
_SYMBOL_FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "STIXGeneral")
FACES = {family: _SYMBOL_FACES if family == "symbols" else _LETTER_FACES for family in FAMILIES}

GLYPH_SIZE = 32
TRAIN_PER_CLASS, TEST_PER_CLASS = 300, 100
_CANVAS = 2 * GLYPH_SIZE  # drawn at twice the size, so that thin strokes survive being moved
_FONT_SIZE = 44


def digits() -> Images:
    """Loads the 1,797 handwritten digits of scikit-learn, 8x8 grey; a fifth of each is the test set."""
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(-1)
    labels = torch.from_numpy(bunch.target).long()
    held_out = balanced_sample(labels, len(labels) // 5, generator=torch.Generator().manual_seed(0))
    is_test = torch.zeros_like(labels, dtype=torch.bool).index_fill(0, held_out, True)
    return Images(
        images[~is_test],
        labels[~is_test],
        images[is_test],
        labels[is_test],
        tuple(map(str, bunch.target_names)),
    )


def glyphs(family: str = "latin", n_classes: int = 10) -> Images:
    """Draws characters of one script, 32x32 grey, in several faces, turned, bent, thickened, faded and noisy.

    A class depends on its character alone: with more classes, the first ones keep their images.

    Args:
        family: A key of `FAMILIES`.
        n_classes: The first so many characters of the family.
    Raises:
        ValueError: No such family, or not so many characters in it.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown glyph family {family!r}; there are {', '.join(FAMILIES)}")
    if not 2 <= n_classes <= len(FAMILIES[family]):
        raise ValueError(f"glyphs:{family} has 2 to {len(FAMILIES[family])} classes to choose from, got {n_classes}")
    characters = FAMILIES[family][:n_classes]
    drawn = torch.stack([_draw_class(character, FACES[family]) for character in characters])
    labels = torch.arange(n_classes)
    return Images(
        drawn[:, :TRAIN_PER_CLASS].flatten(0, 1),
        labels.repeat_interleave(TRAIN_PER_CLASS),
        drawn[:, TRAIN_PER_CLASS:].flatten(0, 1),
        labels.repeat_interleave(TEST_PER_CLASS),
        tuple(characters),
    )


def _draw_class(character: str, faces: tuple[str, ...]) -> Tensor:
    """Draws training and test images of one class, uint8 (n, 32, 32, 1)."""
    n = TRAIN_PER_CLASS + TEST_PER_CLASS
    generator = torch.Generator().manual_seed(ord(character))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)

    masters = torch.stack([_master(character, face) for face in faces])
    ink = masters[torch.randint(len(faces), (n,), generator=generator)].unsqueeze(1)
    ink = _transform(
        ink,
        angle=uniform(-0.3, 0.3),
        shear=uniform(-0.25, 0.25),
        width=uniform(0.85, 1.2),
        height=uniform(0.85, 1.2),
        shift_x=uniform(-0.15, 0.15),
        shift_y=uniform(-0.15, 0.15),
    )
    ink = F.avg_pool2d(_thicken(ink, uniform(-0.4, 0.8)), 2)

    contrast, floor = uniform(0.5, 0.95), uniform(0, 1)
    shade = ink * contrast + floor * (1 - contrast)
    shade = torch.where(uniform(0, 1) < 0.5, shade, 1 - shade)
    noise = torch.randn(shade.shape, generator=generator) * uniform(0.02, 0.1)
    return ((shade + noise).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _master(character: str, face: str) -> Tensor:
    """Draws the character in one face, white on black, its ink centred; float (64, 64) in [0, 1]."""
    import matplotlib  # only to know where its fonts lie

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not path.is_file():
        raise FileNotFoundError(f"glyphs are drawn from matplotlib's own fonts, and {path} is missing: reinstall it")
    font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(character)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    corner = ((_CANVAS - right - left) / 2, (_CANVAS - bottom - top) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
    return torch.from_numpy(np.array(canvas)).float() / 255


def _transform(
    images: Tensor,
    *,
    angle: Tensor,
    shear: Tensor,
    width: Tensor,
    height: Tensor,
    shift_x: Tensor,
    shift_y: Tensor,
) -> Tensor:
    """Scales, shears, turns and shifts each image (n, 1, h, h) by its own amounts, tensors of n values.

    `angle` is in radians; shifts are shares of half the image, in the character's own axes.
    """
    cosine, sine = angle.cos(), angle.sin()
    # grid_sample asks where a new pixel comes from: this is the inverse, turned back, unsheared, unscaled.
    rows = [(cosine + shear * sine) / width, (sine - shear * cosine) / width, -shift_x]
    rows += [-sine / height, cosine / height, -shift_y]
    theta = torch.stack([entry.flatten() for entry in rows], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _thicken(ink: Tensor, amount: Tensor) -> Tensor:
    """Moves strokes `amount` of the way to their dilation by a 3x3 square, or if negative their erosion."""
    dilated = F.max_pool2d(ink, 3, stride=1, padding=1)
    eroded = -F.max_pool2d(-ink, 3, stride=1, padding=1)
    return ink + amount.clamp(min=0) * (dilated - ink) - amount.clamp(max=0) * (eroded - ink)
