import itertools
import math
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image
from sklearn.datasets import load_digits

from prunelab.data import embedded


@pytest.fixture(scope="module")
def latin():
    started = time.process_time()
    glyphs = embedded.glyphs()
    assert time.process_time() - started < 10  # takes about one second of one core
    return glyphs


def test_digits_are_scikit_learns_with_sixteen_as_white():
    digits = embedded.digits()
    images = torch.cat([digits.train_images, digits.test_images])
    assert images.shape == (1797, 8, 8, 1) and images.dtype == torch.uint8
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, -1)
    assert sorted(map(bytes, images.numpy().reshape(1797, -1))) == sorted(map(bytes, expected))
    assert digits.class_names == tuple("0123456789")


def test_digits_keep_their_labels():
    bunch = load_digits()
    label_of = {
        bytes(image): label
        for image, label in zip(np.rint(bunch.images * 255 / 16).astype(np.uint8), bunch.target, strict=True)
    }
    digits = embedded.digits()
    for images, labels in (
        (digits.train_images, digits.train_labels),
        (digits.test_images, digits.test_labels),
    ):
        assert [label_of[bytes(image)] for image in images.numpy().reshape(-1, 8, 8)] == labels.tolist()


def test_a_fifth_of_the_digits_tests_evenly_over_the_classes():
    digits = embedded.digits()
    assert len(digits.test_labels) == 1797 // 5
    assert set(digits.test_labels.bincount().tolist()) == {35, 36}


def test_glyphs_are_small_grey_and_balanced(latin):
    assert latin.train_images.shape == (3000, 32, 32, 1) and latin.test_images.shape == (1000, 32, 32, 1)
    assert latin.train_images.dtype == torch.uint8
    assert latin.train_labels.bincount().tolist() == [300] * 10
    assert latin.test_labels.bincount().tolist() == [100] * 10
    assert latin.class_names == tuple("ABCDEFGHIJ")


def test_glyphs_are_the_same_on_every_call_and_seed():
    torch.manual_seed(1)
    first = embedded.glyphs("greek", 2)
    torch.manual_seed(2)
    second = embedded.glyphs("greek", 2)
    assert torch.equal(first.train_images, second.train_images)
    assert torch.equal(first.test_images, second.test_images)


def test_more_classes_leave_the_first_ones_as_they_were(latin):
    two = embedded.glyphs("latin", 2)
    assert torch.equal(two.train_images, latin.train_images[:600])
    assert torch.equal(two.test_images, latin.test_images[:200])


def test_no_glyph_is_drawn_twice(latin):
    images = torch.cat([latin.train_images, latin.test_images]).flatten(1)
    assert len(set(map(bytes, images.numpy()))) == len(images)


def test_each_class_is_drawn_with_random_numbers_of_its_own(latin):
    brighter_than_half = latin.train_images[:, 0, 0, 0].view(10, 300) > 127  # the ground, mostly
    assert len(set(map(tuple, brighter_than_half.tolist()))) == 10


def test_glyphs_show_ink_on_ground_both_ways_round(latin):
    images = latin.train_images[..., 0].float()
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1).mean(dim=1)
    middle = images[:, 8:24, 8:24].mean(dim=(1, 2))
    assert (images.amax(dim=(1, 2)) - images.amin(dim=(1, 2))).min() > 80
    assert 0.4 < (middle > border).float().mean() < 0.6


@pytest.mark.parametrize("family", embedded.FAMILIES)
def test_every_character_exists_in_every_face(family):
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for face in embedded.FACES[family]:
        charmap = FT2Font(str(folder / f"{face}.ttf")).get_charmap()
        assert [character for character in embedded.FAMILIES[family] if ord(character) not in charmap] == []


def shape(character, face):
    """A character's ink, cut out and brought to 24 pixels: what is left when size and place do not count."""
    ink = Image.fromarray((embedded._master(character, face) * 255).byte().numpy())
    ink = ink.crop(ink.getbbox())
    square = Image.new("L", (max(ink.size),) * 2)
    square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
    return np.asarray(square.resize((24, 24), Image.Resampling.BOX), dtype=float)


def differences(characters, faces):
    """Share of ink that two characters do not have in common, averaged over the faces, for each pair."""
    shapes = {character: np.stack([shape(character, face) for face in faces]) for character in characters}
    return {
        a + b: np.abs(shapes[a] - shapes[b]).sum() / (shapes[a] + shapes[b]).sum()
        for a, b in itertools.combinations(characters, 2)
    }


@pytest.mark.parametrize("family", embedded.FAMILIES)
def test_no_two_classes_of_a_family_look_alike(family):
    characters = embedded.FAMILIES[family]
    assert len(set(characters)) == len(characters) and all(map(str.strip, characters))
    pair, smallest = min(differences(characters, embedded.FACES[family]).items(), key=lambda item: item[1])
    assert smallest > 0.08, f"{pair[0]} and {pair[1]} differ by {smallest:.3f}"


@pytest.mark.parametrize("pair", ["AΑ", "oο", "РP"], ids=["alpha", "omicron", "er"])
def test_look_alikes_of_two_scripts_would_be_noticed(pair):
    assert differences(pair, embedded.FACES["greek"])[pair] < 0.08


@pytest.mark.parametrize(
    "family, n_classes, message",
    [
        ("latin", 52, "has 2 to 51 classes to choose from, got 52"),
        ("greek", 1, "got 1"),
        ("runes", 10, "'runes'; there are latin, greek, cyrillic, symbols"),
    ],
)
def test_impossible_glyphs_are_refused(family, n_classes, message):
    with pytest.raises(ValueError, match=message):
        embedded.glyphs(family, n_classes)


def test_forty_cyrillic_classes_exist():
    assert all(len(characters) >= 30 for characters in embedded.FAMILIES.values())
    assert len(embedded.FAMILIES["cyrillic"]) >= 40


def test_a_missing_font_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"DejaVuSans\.ttf is missing"):
        embedded.glyphs()


NEUTRAL = {"angle": 0.0, "shear": 0.0, "width": 1.0, "height": 1.0, "shift_x": 0.0, "shift_y": 0.0}


def transform(image, **amounts):
    amounts = {name: torch.full((1, 1, 1, 1), value) for name, value in (NEUTRAL | amounts).items()}
    return embedded._transform(image[None, None], **amounts)[0, 0]


def test_a_neutral_transform_changes_nothing():
    image = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(transform(image), image)


def test_a_transform_turns_scales_and_shifts():
    image = torch.zeros(8, 8)
    image[3:5, 1:7] = 1  # a lying bar
    torch.testing.assert_close(transform(image, angle=math.pi / 2), image.T)
    torch.testing.assert_close(transform(image, shift_x=0.25), image.roll(1, dims=1))
    torch.testing.assert_close(transform(image, shift_y=0.5), image.roll(2, dims=0))
    torch.testing.assert_close(transform(image, height=2.0).sum(dim=0), 2 * image.sum(dim=0))
    leaning = transform(image.T.contiguous(), shear=0.5)  # a standing bar: its ends move opposite ways
    columns = torch.arange(8.0)
    centre = (leaning * columns).sum(dim=1) / leaning.sum(dim=1)
    torch.testing.assert_close(centre[1] - centre[6], torch.tensor(-2.5))
    turned_after = transform(leaning, angle=math.pi / 2)
    torch.testing.assert_close(transform(image.T.contiguous(), shear=0.5, angle=math.pi / 2), turned_after)


def test_thickening_goes_to_dilation_and_erosion():
    ink = torch.zeros(1, 1, 7, 7)
    ink[..., 2:5, 2:5] = 1

    def thicken(amount):
        return embedded._thicken(ink, torch.full((1, 1, 1, 1), amount))

    assert torch.equal(thicken(0.0), ink)
    assert thicken(1.0).sum() == 25 and thicken(-1.0).sum() == 1
    assert thicken(0.5)[0, 0, 1, 1] == 0.5 and thicken(-0.5)[0, 0, 2, 2] == 0.5
