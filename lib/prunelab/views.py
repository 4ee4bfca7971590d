"""Random views of images, from which networks learn without labels: cut on the device, from batches that lie there.

Source: Caron et al. 2021, arXiv:2104.14294, App. C and Sec. 3.2 ("multi-crop"); `DataAugmentationDINO` in their code.
Differs: Boxes are resized bilinearly. Of the changes of colour there are no hue, blur or solarisation, and pixels are
    clipped once, after all of them.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.data import LabelledImages

N_GLOBAL = 2  # those that a teacher sees
LOG_RATIO = math.log(4 / 3)  # of a box's width to its height, at most, either way
JITTER = (0.4, 0.4, 0.2)  # most that brightness, contrast and saturation change by
P_JITTER, P_GREY = 0.8, 0.2
LUMINANCE = (0.299, 0.587, 0.114)
_N_BOX, _N_COLOUR = 4, 5  # random numbers that a box takes, and a change of colours


def boxes(draws: Tensor, scale: tuple[float, float]) -> Tensor:
    """Chooses a box in each image, of uniform area and log-uniform shape, anywhere.

    Args:
        draws: Uniform in [0, 1), (4, n).
        scale: Least and largest area, as shares of the image's.
    Returns:
        Left, top, width and height, as shares of the image's side, (4, n).
    Source: torchvision's RandomResizedCrop.
    Differs: A box longer than the image becomes as long as it; there another is drawn.
    """
    area, shape, x, y = draws
    area = scale[0] + (scale[1] - scale[0]) * area
    ratio = (LOG_RATIO * (2 * shape - 1)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    return torch.stack([x * (1 - width), y * (1 - height), width, height])


def cut(images: Tensor, boxes: Tensor, flips: Tensor, *, size: int) -> Tensor:
    """Cuts a box from each image, and resizes it.

    Args:
        images: (n, c, h, h).
        boxes: As `boxes` gives them.
        flips: Bool (n,); True mirrors left and right.
        size: Side of what is returned.
    Returns:
        (n, c, size, size).
    """
    left, top, width, height = (edge[:, None] for edge in boxes)
    centres = (torch.arange(size, device=images.device) + 0.5) / size  # of a view's pixels, as shares of its side
    x = left + width * torch.where(flips[:, None], 1 - centres, centres)
    y = top + height * centres
    shape = len(images), size, size
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(images, 2 * grid - 1, padding_mode="border", align_corners=False)


def factors(draws: Tensor) -> Tensor:
    """Chooses by what brightness, contrast and saturation of images change, as `recolour` takes it.

    Args:
        draws: Uniform in [0, 1), (5, n).
    """
    jitter, grey, *changes = draws
    factors = torch.stack([1 + most * (2 * change - 1) for most, change in zip(JITTER, changes, strict=True)])
    factors = torch.where(jitter < P_JITTER, factors, 1.0)
    factors[2] *= grey >= P_GREY
    return factors


def recolour(images: Tensor, factors: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Changes brightness, contrast and saturation of normalised images, in this order.

    Args:
        images: (n, 3, h, w).
        factors: One for each of these and each image, (3, n); 1 changes nothing, a saturation of 0 makes grey.
        mean: By which the images are normalised, (3,).
        std: Likewise.
    """
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    luminance = torch.tensor(LUMINANCE, device=images.device).view(3, 1, 1)
    brightness, contrast, saturation = factors.view(3, -1, 1, 1, 1)
    pixels = (images * std + mean) * brightness
    grey = (pixels * luminance).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    pixels = grey + contrast * (pixels - grey)
    grey = (pixels * luminance).sum(dim=1, keepdim=True)
    pixels = grey + saturation * (pixels - grey)
    return (pixels.clamp(0, 1) - mean) / std


class Views:
    """Cuts random views of normalised images: two global ones, and some local ones, which are smaller and show less.

    Views are mirrored in one case of two where images of the data set may be; colours change where there are any.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        *,
        n_local: int,
        local_size: int,
        generator: torch.Generator,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
    ) -> None:
        """Args:
        dataset: Of the images; global views have their size.
        n_local: Local views of each image.
        local_size: Their side in pixels.
        generator: Of all that is random, on the CPU.
        global_scale: Least and largest area of what a global view shows, as shares of the image's.
        local_scale: Likewise of a local one.
        Raises:
            ValueError: A number, size or area that cannot be.
        """
        if n_local < 0 or local_size < 1:
            raise ValueError(f"n_local must be at least 0 and local_size at least 1, got {n_local} and {local_size}")
        for least, most in (global_scale, local_scale):
            if not 0 < least <= most <= 1:
                raise ValueError(f"areas of views must rise within (0, 1], got {least} to {most}")
        self.dataset, self.generator = dataset, generator
        kinds = [(N_GLOBAL, dataset.image_size, global_scale), (n_local, local_size, local_scale)]
        self.kinds = [kind for kind in kinds if kind[0]]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Returns the global views, (2 * b, c, h, h), and the local ones, (n_local * b, c, s, s), where there are any.

        Of each kind the first views of all images come first.
        """
        return [self._draw(images.repeat(n, 1, 1, 1), size, scale) for n, size, scale in self.kinds]

    def _draw(self, images: Tensor, size: int, scale: tuple[float, float]) -> Tensor:
        draws = torch.rand(_N_BOX + 1 + _N_COLOUR, len(images), generator=self.generator).to(images.device)
        flips = (draws[_N_BOX] < 0.5) & self.dataset.flip
        views = cut(images, boxes(draws[:_N_BOX], scale), flips, size=size)
        if self.dataset.channels != 3:
            return views
        return recolour(views, factors(draws[-_N_COLOUR:]), mean=self.dataset.mean, std=self.dataset.std)
