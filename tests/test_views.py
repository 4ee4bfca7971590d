"""Views are the boxes, colours and mirrors that they say, and nothing but their own generator decides which."""

import pytest
import torch
from test_data_registry import stand_in
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from prunelab import data
from prunelab.views import Views, boxes, cut, factors, recolour


def some_images(n=3, channels=2, size=8, seed=0):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def same_box(n, left, top, width, height):
    return torch.tensor([left, top, width, height])[:, None].expand(4, n)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_box_of_the_whole_image_is_the_image_or_its_mirror():
    images, flips = some_images(), torch.tensor([False, True, False])
    views = cut(images, same_box(3, 0, 0, 1, 1), flips, size=8)
    torch.testing.assert_close(views[[0, 2]], images[[0, 2]])
    torch.testing.assert_close(views[1], images[1].flip(-1))


def test_a_box_of_whole_pixels_is_cut_out():
    images, boxes = some_images(2), torch.tensor([[2, 0], [4, 1], [4, 4], [4, 4]]) / 8
    views = cut(images, boxes, torch.tensor([False, True]), size=4)
    torch.testing.assert_close(views[0], images[0, :, 4:8, 2:6])
    torch.testing.assert_close(views[1], images[1, :, 1:5, 0:4].flip(-1))


@pytest.mark.parametrize("size", [4, 8, 11, 16])
def test_the_whole_image_is_resized_as_torch_resizes_it(size):
    images = some_images()
    views = cut(images, same_box(3, 0, 0, 1, 1), torch.zeros(3, dtype=torch.bool), size=size)
    torch.testing.assert_close(views, F.interpolate(images, size=size, mode="bilinear", align_corners=False))


def test_each_image_has_a_box_of_its_own_and_nothing_comes_from_outside():
    """Row number plus ten times column number of each pixel, whose interpolation between centres is exact."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    images = (rows + 10 * columns).expand(50, 1, 8, 8) + 1000
    drawn = boxes(torch.rand(4, 50, generator=generator()), (0.05, 1.0))
    views = cut(images, drawn, torch.zeros(50, dtype=torch.bool), size=5)
    for view, (left, top, width, height) in zip(views, drawn.T.tolist(), strict=True):
        for i in range(5):
            for j in range(5):
                row, column = 8 * (top + height * (i + 0.5) / 5) - 0.5, 8 * (left + width * (j + 0.5) / 5) - 0.5
                row, column = min(max(row, 0), 7), min(max(column, 0), 7)  # half a pixel at the edge
                assert view[0, i, j].item() == pytest.approx(1000 + row + 10 * column, abs=1e-2)


def test_boxes_by_hand():
    # A quarter of the area, square, at the upper left; the whole area, 4:3, which must become shorter, at the right
    # lower end; three quarters, 3:4, as high as the image, in the middle.
    draws = torch.tensor([[0.0, 1.0, 2 / 3], [0.5, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    left, top, width, height = boxes(draws, (0.25, 1.0))
    torch.testing.assert_close(width, torch.tensor([0.5, 1.0, 0.75]))
    torch.testing.assert_close(height, torch.tensor([0.5, 0.75**0.5, 1.0]))
    torch.testing.assert_close(left, torch.tensor([0.0, 0.0, 0.125]))
    torch.testing.assert_close(top, torch.tensor([0.0, 1 - 0.75**0.5, 0.0]))


@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0), (1.0, 1.0)])
def test_boxes_lie_in_the_image_with_areas_and_shapes_in_their_range(scale):
    left, top, width, height = boxes(torch.rand(4, 5000, generator=generator()), scale)
    for start, length in ((left, width), (top, height)):
        assert start.min() >= 0 and (start + length).max() <= 1 + 1e-6
    ratio, area = width / height, width * height
    assert ratio.min() >= 3 / 4 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5
    assert area.min() >= scale[0] * 3 / 4 and area.max() <= scale[1] + 1e-6
    fits = (width < 1) & (height < 1)
    assert not fits.any() or area[fits].min() >= scale[0] - 1e-6
    if scale == (0.05, 0.4):
        assert fits.all() and area.mean().item() == pytest.approx(0.225, abs=0.01)
        assert ratio.log().mean().item() == pytest.approx(0, abs=0.01)
        assert (left / (1 - width)).mean().item() == pytest.approx(0.5, abs=0.02)


def normalised(pixels, mean, std):
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def test_colours_change_as_torchvision_changes_them():
    pixels = 0.35 + 0.2 * torch.rand(4, 3, 6, 6, generator=generator())  # so that nothing is clipped
    changes = torch.tensor([[1.0, 1.3, 0.8, 1.1], [1.0, 0.7, 1.2, 1.0], [1.0, 1.2, 0.9, 0.0]])
    changed = recolour(normalised(pixels, MEAN, STD), changes, mean=MEAN, std=STD)
    for image, view, (brightness, contrast, saturation) in zip(pixels, changed, changes.T.tolist(), strict=True):
        image = transforms.adjust_brightness(image, brightness)
        image = transforms.adjust_contrast(image, contrast)
        image = transforms.adjust_saturation(image, saturation)
        torch.testing.assert_close(view * STD.view(3, 1, 1) + MEAN.view(3, 1, 1), image, atol=1e-4, rtol=0)
    torch.testing.assert_close(changed[0], normalised(pixels[0], MEAN, STD))
    grey = changed[3] * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    torch.testing.assert_close(grey[0], grey[2])


def test_changed_pixels_are_still_between_black_and_white():
    pixels = torch.rand(2, 3, 4, 4, generator=generator())
    changed = recolour(normalised(pixels, MEAN, STD), torch.full((3, 2), 1.4), mean=MEAN, std=STD)
    back = changed * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert back.min().item() == pytest.approx(0, abs=1e-6) and back.max().item() == pytest.approx(1, abs=1e-6)


def test_factors_by_hand():
    # Changed to the ends of their ranges; left alone; left alone, then grey.
    draws = torch.tensor([[0.0, 0.8, 0.9], [0.2, 0.5, 0.1], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    torch.testing.assert_close(factors(draws), torch.tensor([[0.6, 1.0, 1.0], [1.4, 1.0, 1.0], [0.8, 1.0, 0.0]]))


def coloured(**changes):
    images = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8, generator=generator())
    return stand_in([0, 1, 2] * 2, train_images=images, **changes)


@pytest.mark.parametrize("n_local", [0, 1, 3])
def test_views_of_a_kind_come_one_view_of_all_images_after_another(n_local):
    """Each image is of one colour, which whatever is cut from it has."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    views = Views(data.load("digits"), n_local=n_local, local_size=4, generator=generator())
    kinds = views(images)
    assert [kind.shape for kind in kinds] == [(8, 1, 8, 8), (4 * n_local, 1, 4, 4)][: 1 + bool(n_local)]
    for kind, n in zip(kinds, (2, n_local), strict=False):
        shades = torch.arange(4.0).repeat(n).view(-1, 1, 1, 1)  # grey images keep theirs
        torch.testing.assert_close(kind, shades.expand_as(kind))


def test_every_view_is_another():
    images = some_images(2, channels=1)
    global_views, local_views = Views(data.load("digits"), n_local=3, local_size=8, generator=generator())(images)
    views = torch.cat([global_views, local_views])
    assert len({tuple(view.flatten().tolist()) for view in views}) == 10


def test_local_views_show_less():
    ramp = torch.arange(8.0).expand(200, 1, 8, 8)
    global_views, local_views = Views(data.load("digits"), n_local=1, local_size=8, generator=generator())(ramp)
    spans = [(views[..., -1] - views[..., 0]).mean().item() for views in (global_views, local_views)]
    assert spans[1] < 0.6 * spans[0]


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_mirrored_where_images_may_be_in_half_of_the_cases(flip):
    ramp = torch.arange(8.0).expand(300, 3, 8, 8) / 8
    views = Views(coloured(flip=flip), n_local=0, local_size=1, generator=generator())
    (cut_out,) = views(ramp)
    mirrored = (cut_out[:, 0, 4, -1] < cut_out[:, 0, 4, 0]).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.1) if flip else mirrored == 0


def test_some_coloured_images_become_grey_and_most_others_change():
    dataset = coloured()
    images, _ = dataset.train_batches(batch_size=6, augment=False, generator=generator()).current()
    images = images.repeat(50, 1, 1, 1)
    whole = (1.0, 1.0)
    (changed,) = Views(dataset, n_local=0, local_size=1, generator=generator(), global_scale=whole)(images)
    pixels = changed * dataset.std.view(3, 1, 1) + dataset.mean.view(3, 1, 1)
    grey = (pixels - pixels.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.05)
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6


def test_only_the_own_generator_decides():
    own, images = generator(), some_images(4, channels=3)
    views = Views(coloured(flip=True), n_local=2, local_size=4, generator=own)
    torch.manual_seed(0)
    before, state = torch.get_rng_state(), own.get_state()
    first, second = views(images), views(images)
    assert torch.equal(torch.get_rng_state(), before)
    own.set_state(state)
    torch.manual_seed(1)
    for again, expected in zip(views(images), first, strict=True):
        assert torch.equal(again, expected)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_local": -1}, "n_local must be at least 0 and local_size at least 1, got -1 and 4"),
        ({"local_size": 0}, "got 2 and 0"),
        ({"global_scale": (0.5, 0.4)}, r"areas of views must rise within \(0, 1\], got 0.5 to 0.4"),
        ({"local_scale": (0.0, 0.4)}, "got 0.0 to 0.4"),
        ({"local_scale": (0.5, 40)}, "got 0.5 to 40"),
    ],
)
def test_impossible_views_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Views(data.load("digits"), generator=generator(), **{"n_local": 2, "local_size": 4} | changes)


@pytest.mark.gpu
def test_on_a_gpu_views_are_those_of_the_processor():
    dataset, images = coloured(flip=True), some_images(4, channels=3)
    here, there = (
        Views(dataset.to(device), n_local=2, local_size=4, generator=generator())(images.to(device))
        for device in ("cpu", "cuda")
    )
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other.cpu(), atol=1e-4, rtol=1e-4)
