"""Detection in one stage: a head that looks for pictures in each cell of a network's last feature maps.

A cell says whether a picture's centre lies in it, where that picture is, and of which class.

Source: Redmon et al. 2016, arXiv:1506.02640 (YOLO), Sec. 2; asked of sparse networks by Iofinova et al. 2022,
    arXiv:2111.13445, in an appendix.
Differs: One box a cell; its sides go through a sigmoid. Presence and class have cross-entropies, not squared errors, as
    in YOLOv3 (Redmon & Farhadi 2018, arXiv:1804.02767), and a box's presence is 1, not its overlap. The head is
    convolutional.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.data.scenes import SIDES, Scenes
from prunelab.features import map_layer
from prunelab.models.layers import conv3x3
from prunelab.models.trunk import head_of

PLACE_WEIGHT, EMPTY_WEIGHT = 5.0, 0.5  # in the loss, as in the paper: most cells are empty
OVERLAP = 0.5  # intersection over union from which on a box is right, or doubles another
LEAST_SCORE = 0.01  # of what counts as found
_BATCH_SIZE = 256


class Readings(NamedTuple):
    """What each cell of n images says, row after row of cells.

    Attributes:
        presence: Logit of a picture's centre being in it, (n, cells).
        places: Column and row of the centre, width and height in pixels, (n, cells, 4).
        classes: Logits, (n, cells, classes).
    """

    presence: Tensor
    places: Tensor
    classes: Tensor


class Detector(nn.Module):
    """A network whose head is replaced by a dense one that reads each cell of its last feature maps, not their mean.

    Attributes:
        backbone: That network without its head; "backbone." stands before the names of its layers, see `masks_of`.
        head: A 3x3 convolution with BN-ReLU, then a 1x1 convolution whose channels `read` tells apart.
        n_cells: In a row or column of the maps.
    """

    def __init__(self, network: nn.Module, scenes: Scenes) -> None:
        """Args:
        network: Is taken over; on the scenes' device. The new head's values are torch's global generator's.
        scenes: Decide the classes and the size of a cell.
        Raises:
            ValueError: A network whose head does not read means of maps, or cells that may hold two centres.
        """
        super().__init__()
        image, _ = next(scenes.test_batches(batch_size=1))
        self.layer, maps = map_layer(network, image)
        self.size, (_, n_channels, _, self.n_cells) = scenes.image_size, maps.shape
        if self.n_cells < (least := 1 / SIDES[0]):  # centres are at least a picture's side apart in one direction
            raise ValueError(
                f"the maps of {type(network).__name__} have {self.n_cells} x {self.n_cells} cells on images of"
                f" {self.size} pixels; {least:g} x {least:g} keep pictures apart: make the scenes larger"
            )
        network.set_submodule(head_of(network), nn.Identity())
        self.backbone, self.num_classes = network, scenes.num_classes
        self.head = nn.Sequential(
            *(conv3x3(n_channels, n_channels), nn.BatchNorm2d(n_channels), nn.ReLU(inplace=True)),
            nn.Conv2d(n_channels, 5 + self.num_classes, 1),
        ).to(scenes.device)

    def forward(self, images: Tensor) -> Tensor:
        """Returns all that the head says of an image in one row, cell after cell, (n, cells * (5 + classes))."""
        seen = []
        hook = self.backbone.get_submodule(self.layer).register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            self.backbone(images)
        finally:
            hook.remove()
        return self.head(F.relu(seen[-1])).permute(0, 2, 3, 1).flatten(1)

    def read(self, outputs: Tensor) -> Readings:
        """Tells apart what the rows of `forward` say: a centre lies in its cell, sides are shares of a scene's."""
        cells = outputs.float().unflatten(1, (self.n_cells**2, 5 + self.num_classes))
        presence, offsets, sides, classes = cells.split([1, 2, 2, self.num_classes], dim=2)
        line = torch.arange(self.n_cells, device=outputs.device)
        corners = torch.cartesian_prod(line, line).flip(1)  # column and row of each cell
        centres = (corners + offsets.sigmoid()) * (self.size / self.n_cells)
        return Readings(presence.squeeze(2), torch.cat([centres, sides.sigmoid() * self.size], dim=2), classes)


def masks_of(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a network's masks under the names that its layers have in a detector."""
    return {f"backbone.{name}": mask for name, mask in masks.items()}


def objective(model: Detector, images: Tensor, boxes: Tensor) -> Iterator[Tensor]:
    """Yields the loss of a scene, on average, as `steps.Objective`; it does the same work each step.

    Args:
        model: In training mode.
        images: (b, c, size, size).
        boxes: (b, 3, 5), as `data.scenes.compose` gives them.
    Source: Redmon et al. 2016, Eq. 3.
    """
    presence, places, classes = model.read(model(images))
    own, wanted = boxes[..., 0].long(), boxes[..., 1:] / model.size
    is_there = (own >= 0).float()
    columns, rows = (wanted[..., :2] * model.n_cells).long().unbind(dim=2)
    cells = (rows * model.n_cells + columns).unsqueeze(2)  # (b, 3, 1)
    is_full = torch.zeros_like(presence).scatter_add_(1, cells.squeeze(2), is_there)  # no picture adds 0, to cell 0
    weights = is_full + EMPTY_WEIGHT * (1 - is_full)
    presence_loss = F.binary_cross_entropy_with_logits(presence, is_full, weights, reduction="sum")
    found = places.gather(1, cells.expand(-1, -1, 4)) / model.size
    # Of large boxes an error in the sides matters less.
    errors = [found[..., :2] - wanted[..., :2], found[..., 2:].sqrt() - wanted[..., 2:].sqrt()]
    place_losses = torch.cat(errors, dim=2).square().sum(dim=2)
    logits = classes.gather(1, cells.expand(-1, -1, model.num_classes))
    class_losses = F.cross_entropy(logits.mT, own.clamp(min=0), reduction="none")
    yield (presence_loss + (is_there * (PLACE_WEIGHT * place_losses + class_losses)).sum()) / len(images)


class Boxes(NamedTuple):
    """Boxes in images, found ones or true ones.

    Attributes:
        images: Number of the image that each is in, int64 (m,).
        classes: int64 (m,).
        corners: Left, top, right and bottom in pixels, (m, 4).
        scores: (m,); of true ones 1.
    """

    images: Tensor
    classes: Tensor
    corners: Tensor
    scores: Tensor

    def take(self, index: Tensor) -> "Boxes":
        """Returns those of an index, or of a mask."""
        return Boxes(*(part[index] for part in self))

    def rows(self, class_names: Sequence[str]) -> list[dict]:
        """Lists them for a record, or to be drawn by `figures.scene_boxes`; pixels and scores are rounded."""
        rows = []
        for image, label, corners, score in zip(*(part.tolist() for part in self), strict=True):
            sides = dict(zip(("left", "top", "right", "bottom"), (round(value, 2) for value in corners), strict=True))
            rows.append({"image": image, "class": class_names[label], **sides, "score": round(score, 3)})
        return rows


@torch.no_grad()
def detect(model: Detector, scenes: Scenes) -> Boxes:
    """Finds boxes in the test scenes, in evaluation mode: at most one a cell, and of those that double each other one.

    A box is of the likeliest class; its score is that class's probability times that of its being there.
    """
    from torchvision.ops import batched_nms, box_convert  # here: it takes a second

    was_training = model.training
    model.eval()
    outputs = torch.cat([model(images) for images, _ in scenes.test_batches(batch_size=_BATCH_SIZE)])
    model.train(was_training)
    presence, places, classes = model.read(outputs)
    likelihoods, likeliest = classes.softmax(dim=2).max(dim=2)
    scores = presence.sigmoid() * likelihoods
    is_found = scores >= LEAST_SCORE
    images, _ = is_found.nonzero(as_tuple=True)
    corners = box_convert(places, "cxcywh", "xyxy")
    found = Boxes(images, *(part[is_found] for part in (likeliest, corners, scores)))
    groups = found.images * scenes.num_classes + found.classes
    return found.take(batched_nms(found.corners, found.scores, groups, OVERLAP))


def true_boxes(scenes: Scenes) -> Boxes:
    """Lists the boxes of the test scenes."""
    from torchvision.ops import box_convert

    classes, places = scenes.test_labels[..., 0].long(), scenes.test_labels[..., 1:]
    images, slots = (classes >= 0).nonzero(as_tuple=True)
    corners = box_convert(places[images, slots], "cxcywh", "xyxy")
    return Boxes(images, classes[images, slots], corners, torch.ones_like(corners[:, 0]))


def mean_average_precision(found: Boxes, true: Boxes) -> float:
    """Returns the area under precision over recall, averaged over the classes that have true boxes.

    Of the true boxes of its class in its image, a found one answers to that which it overlaps most. It is right where
    this is by `OVERLAP` at least, and no box of a higher score is right by the same one. As precision counts the
    highest at the same recall or a larger one ("all-point interpolation").

    Source: Everingham et al. 2010, doi:10.1007/s11263-009-0275-4, Sec. 4.2; the area as in their challenges since.
    """
    from torchvision.ops import box_iou

    ranked, precisions = found.take(found.scores.argsort(descending=True, stable=True)), []
    for label in true.classes.unique():
        own, wanted = ranked.take(ranked.classes == label), true.take(true.classes == label)
        overlaps = box_iou(own.corners, wanted.corners) * (own.images[:, None] == wanted.images)
        most, match = overlaps.max(dim=1)
        n_found = len(match)
        ranks = torch.arange(n_found, device=match.device)
        # Of each true box the rank of the first one that is right by it; `n_found` where there is none.
        first = torch.full_like(wanted.images, n_found)
        first.scatter_reduce_(0, match, ranks.masked_fill(most < OVERLAP, n_found), "amin")
        is_right = torch.isin(ranks, first)
        precision = is_right.cumsum(dim=0).double() / (ranks + 1)
        highest = precision.flip(0).cummax(dim=0).values.flip(0)
        precisions.append(highest[is_right].sum() / len(first))
    return float(torch.stack(precisions).mean())


def evaluate(model: Detector, scenes: Scenes) -> float:
    """Returns the mean average precision of what a detector finds in the test scenes."""
    return mean_average_precision(detect(model, scenes), true_boxes(scenes))
