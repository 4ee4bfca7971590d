import itertools

import pytest
import torch
import torch.nn.functional as F

from prunelab.data.batches import TrainBatches, crop_and_flip
from prunelab.data.dataset import Dataset


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dataset(n_train=10, n_test=5, size=8, channels=3, flip=True):
    """Random images; the labels number them."""

    def images(n, seed):
        return torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=generator(seed))

    return Dataset(
        name="random",
        train_images=images(n_train, 1),
        train_labels=torch.arange(n_train),
        test_images=images(n_test, 2),
        test_labels=torch.arange(n_test),
        class_names=tuple(map(str, range(max(n_train, n_test)))),
        flip=flip,
        source="test",
        sha256="0" * 64,
    )


def crop(image, *, row, column, flip=False, padding=1):
    """One grey image through `crop_and_flip`."""
    cut = crop_and_flip(
        torch.tensor(image, dtype=torch.uint8)[None, ..., None],
        torch.tensor([0]),
        torch.tensor([row]),
        torch.tensor([column]),
        torch.tensor([flip]),
        padding=padding,
    )
    return cut[0, ..., 0].tolist()


# Mirrored by one pixel:
#   5 4 5 6 5
#   2 1 2 3 2
#   5 4 5 6 5
#   8 7 8 9 8
#   5 4 5 6 5
IMAGE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    "row, column, flip, expected",
    [
        (1, 1, False, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (1, 1, True, [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        (0, 0, False, [[5, 4, 5], [2, 1, 2], [5, 4, 5]]),
        (0, 2, False, [[5, 6, 5], [2, 3, 2], [5, 6, 5]]),
        (2, 1, False, [[4, 5, 6], [7, 8, 9], [4, 5, 6]]),
        (1, 0, False, [[2, 1, 2], [5, 4, 5], [8, 7, 8]]),
        (1, 2, True, [[2, 3, 2], [5, 6, 5], [8, 9, 8]]),
        (2, 0, True, [[5, 4, 5], [8, 7, 8], [5, 4, 5]]),
    ],
)
def test_a_crop_moves_over_the_mirrored_border(row, column, flip, expected):
    assert crop(IMAGE, row=row, column=column, flip=flip) == expected


def test_a_flip_turns_the_crop_not_the_image():
    assert crop(IMAGE, row=1, column=0, flip=True) == [[2, 1, 2], [5, 4, 5], [8, 7, 8]]
    assert crop([[1, 2, 3, 4]] * 4, row=1, column=2, flip=True)[0] == [3, 4, 3, 2]


def test_without_padding_nothing_moves():
    assert crop(IMAGE, row=0, column=0, padding=0) == IMAGE


@pytest.mark.parametrize("size, padding, channels", [(8, 1, 3), (9, 2, 1), (4, 3, 3), (32, 4, 3), (1, 0, 1)])
def test_crops_agree_with_a_slow_loop(size, padding, channels):
    images = dataset(n_train=7, size=size, channels=channels).train_images
    draw = generator(3)
    index = torch.randint(7, (40,), generator=draw)
    rows, columns = (torch.randint(2 * padding + 1, (40,), generator=draw) for _ in range(2))
    flips = torch.randint(2, (40,), generator=draw).bool()
    cut = crop_and_flip(images, index, rows, columns, flips, padding=padding)

    padded = F.pad(images.permute(0, 3, 1, 2).float(), [padding] * 4, mode="reflect").permute(0, 2, 3, 1)
    for i, row, column, flip, result in zip(index, rows, columns, flips, cut, strict=True):
        expected = padded[i, row : row + size, column : column + size]
        assert torch.equal(result.float(), expected.flip(1) if flip else expected)
    assert cut.dtype == torch.uint8


def n_steps(batches, n):
    return list(itertools.islice(batches, n))


@pytest.mark.parametrize("augment", [False, True])
def test_every_image_appears_once_a_pass_in_full_batches_only(augment):
    batches = TrainBatches(dataset(n_train=11), batch_size=3, augment=augment, generator=generator())
    orders = []
    for _ in range(4):
        labels = [labels for _, labels in n_steps(batches, 3)]
        assert all(len(batch) == 3 for batch in labels)
        orders.append(torch.cat(labels).tolist())
        assert len(set(orders[-1])) == 9  # two of eleven wait for another pass
    assert len(set(map(tuple, orders))) == 4
    assert set(itertools.chain(*orders)) == set(range(11))


def test_images_come_with_their_own_labels_normalised_and_channels_last():
    data = dataset(n_train=6)
    images, labels = next(TrainBatches(data, batch_size=6, augment=False, generator=generator()))
    assert images.shape == (6, 3, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = (data.train_images[labels] / 255 - data.mean) / data.std
    torch.testing.assert_close(images, expected.permute(0, 3, 1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.var(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)


def shades(images, data):
    """Normalised images back to uint8 (b, h, h, c)."""
    pixels = images.permute(0, 2, 3, 1) * data.std + data.mean
    return (pixels * 255).round().to(torch.uint8)


def possible_crops(image, *, padding, flips):
    padded = F.pad(image.permute(2, 0, 1)[None].float(), [padding] * 4, mode="reflect")[0].permute(1, 2, 0)
    size = len(image)
    crops = {}
    for row, column, flip in itertools.product(range(2 * padding + 1), range(2 * padding + 1), flips):
        cut = padded[row : row + size, column : column + size]
        crops[bytes((cut.flip(1) if flip else cut).to(torch.uint8).numpy())] = row, column, flip
    return crops


@pytest.mark.parametrize("flip, n_kinds", [(True, 18), (False, 9)])
def test_crops_by_an_eighth_and_flips_where_allowed_all_occur(flip, n_kinds):
    data = dataset(n_train=2, flip=flip)
    crops = [possible_crops(image, padding=1, flips=(False, True)) for image in data.train_images]
    seen = set()
    for images, labels in n_steps(TrainBatches(data, batch_size=2, augment=True, generator=generator()), 200):
        for image, label in zip(shades(images, data), labels, strict=True):
            seen.add(crops[label][bytes(image.contiguous().numpy())])
    assert len(seen) == n_kinds and any(kind[2] for kind in seen) == flip


def test_each_image_of_a_batch_is_moved_by_its_own_amounts():
    data = dataset(n_train=64, size=16)
    data.train_images[:] = data.train_images[:1].clone()
    images, _ = next(TrainBatches(data, batch_size=64, augment=True, generator=generator()))
    assert len({bytes(image.contiguous().numpy()) for image in shades(images, data)}) > 30


def test_small_images_are_not_moved():
    data = dataset(size=7, flip=False)
    images, labels = next(TrainBatches(data, batch_size=10, augment=True, generator=generator()))
    assert torch.equal(shades(images, data), data.train_images[labels])


def assert_equal_steps(first, second):
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def test_equal_generators_give_equal_batches_and_others_do_not():
    def steps(seed):
        return n_steps(TrainBatches(dataset(), batch_size=4, augment=True, generator=generator(seed)), 6)

    assert_equal_steps(steps(0), steps(0))
    assert [labels.tolist() for _, labels in steps(0)] != [labels.tolist() for _, labels in steps(1)]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("n_before", [0, 1, 2, 3, 4, 7])  # two batches a pass
def test_resumed_batches_go_on_bit_for_bit(tmp_path, augment, n_before):
    data = dataset(n_train=9)
    batches = TrainBatches(data, batch_size=4, augment=augment, generator=generator())
    n_steps(batches, n_before)
    torch.save(batches.state_dict(), tmp_path / "state.pt")
    expected = n_steps(batches, 9)

    resumed = TrainBatches(data, batch_size=4, augment=augment, generator=generator(99))
    n_steps(resumed, 3)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_equal_steps(n_steps(resumed, 9), expected)


def test_a_state_is_not_changed_by_going_on():
    batches = TrainBatches(dataset(n_train=9), batch_size=4, augment=True, generator=generator())
    n_steps(batches, 1)
    state = batches.state_dict()
    first = n_steps(batches, 5)
    batches.load_state_dict(state)
    assert_equal_steps(n_steps(batches, 5), first)


def test_global_random_numbers_are_neither_used_nor_spent():
    before = torch.get_rng_state()
    n_steps(TrainBatches(dataset(), batch_size=4, augment=True, generator=generator()), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_images_themselves_are_never_changed():
    data = dataset()
    before = data.train_images.clone()
    for augment in (False, True):
        for images, _ in n_steps(TrainBatches(data, batch_size=5, augment=augment, generator=generator()), 5):
            images.zero_()
    assert torch.equal(data.train_images, before)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_impossible_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match=rf"1\.\.10, .* got {batch_size}"):
        TrainBatches(dataset(), batch_size=batch_size, augment=False, generator=generator())
    if batch_size < 1:
        with pytest.raises(ValueError, match=f"at least 1, got {batch_size}"):
            next(dataset().test_batches(batch_size=batch_size))


@pytest.mark.parametrize("batch_size, lengths", [(2, [2, 2, 1]), (5, [5]), (100, [5])])
def test_test_batches_cover_the_test_set_in_order(batch_size, lengths):
    data = dataset()
    steps = list(data.test_batches(batch_size=batch_size))
    assert [len(labels) for _, labels in steps] == lengths
    assert torch.cat([labels for _, labels in steps]).tolist() == list(range(5))
    images = torch.cat([images for images, _ in steps])
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in steps)
    assert torch.equal(shades(images, data), data.test_images)
    expected = (data.test_images / 255 - data.mean) / data.std  # by the training set's moments
    torch.testing.assert_close(images, expected.permute(0, 3, 1, 2), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("drawn_on", ["cpu", "cuda"])
def test_batches_on_the_device_are_those_of_the_cpu_and_resume(drawn_on):
    data = dataset(n_train=40).to("cuda")
    batches = TrainBatches(data, batch_size=8, augment=True, generator=torch.Generator(drawn_on).manual_seed(0))
    n_steps(batches, 7)
    state = batches.state_dict()
    expected = n_steps(batches, 9)
    assert all(images.is_cuda and labels.is_cuda for images, labels in expected)
    batches.load_state_dict(state)
    assert_equal_steps(n_steps(batches, 9), expected)
    if drawn_on == "cpu":
        on_cpu = TrainBatches(dataset(n_train=40), batch_size=8, augment=True, generator=generator())
        for (images, labels), (other, other_labels) in zip(n_steps(on_cpu, 16)[7:], expected, strict=True):
            assert torch.equal(labels, other_labels.cpu())
            torch.testing.assert_close(images, other.cpu())
