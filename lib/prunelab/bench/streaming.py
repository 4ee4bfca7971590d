"""How fast images that stay on disk are decoded, and how fast a GPU trains on them."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prunelab import data, latency, workers
from prunelab.bench.steps import N_WARM_UP, as_in_training
from prunelab.data import folders
from prunelab.models import build_model
from prunelab.precision import best_precision
from prunelab.steps import Stepper, build_optimizer, set_learning_rate

# Images of ImageNet as they are on average: 500 x 375 pixels, 100 KB.
WIDTH, HEIGHT, QUALITY = 500, 375, 90
ROUGHNESS = 1.1  # amplitudes fall with this power of the frequency, in photographs with about the first
N_FILES = 32  # in either split; all of them fit into the cache of the file system
CROP_SIZE, BATCH_SIZE = 224, 128
# Images a second that the training of a ResNet-50 takes on one A100 of 80 GB in mixed precision. Source: NVIDIA,
# DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5, "Training performance".
PUBLISHED_PACE = 2470


@as_in_training()
def decoding_rates(threads: Sequence[int], *, n_images: int, n_rounds: int) -> dict[int, list[float]]:
    """Measures training crops a second of made-up photographs, by numbers of threads that take turns.

    Returns:
        Of each number of threads the images a second, one entry a round.
    """
    from prunelab.data import streams  # and with it torchvision, which takes a second to import

    def decode(n_threads: int, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        batches = replace(dataset, n_threads=n_threads).train_batches(
            batch_size=N_FILES, augment=True, generator=generator
        )
        for _ in range(n_images // N_FILES):
            batches.advance()

    with tempfile.TemporaryDirectory() as name:
        write_photographs(folder := Path(name))
        dataset = streams.open_listing(
            folder, folders.list_images(folder), name="made up", source="made up", image_size=CROP_SIZE
        )
        repeated = [index % N_FILES for index in range(n_images)]  # a pass that is long beside its start and its end
        dataset = dataset.take(torch.tensor(repeated))
        spent = latency.in_turn({n: partial(decode, n) for n in threads}, n_rounds=n_rounds, n_warm_up=1)
    return {n: [n_images / seconds for seconds in own] for n, own in spent.items()}


def write_photographs(folder: Path) -> None:
    """Makes an ImageFolder of coloured noise that is as rough as photographs, as JPEGs."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(np.fft.rfftfreq(WIDTH), np.fft.fftfreq(HEIGHT)[:, None])
    amplitude = np.divide(1, frequency**ROUGHNESS, out=np.zeros_like(frequency), where=frequency > 0)

    def noise() -> np.ndarray:
        plane = np.fft.irfft2(amplitude * np.fft.rfft2(draw.standard_normal((HEIGHT, WIDTH))), s=(HEIGHT, WIDTH))
        return plane / plane.std()

    for split in ("train", "test"):
        (folder / split / "noise").mkdir(parents=True)
        for number in range(N_FILES):
            light = noise()
            pixels = np.stack([128 + 50 * light + 15 * noise() for _ in range(3)], axis=-1)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / split / "noise" / f"{number}.jpg", quality=QUALITY)


@as_in_training()
def training_rates(model: str = "resnet50", *, image_size: int = CROP_SIZE, n_rounds: int) -> list[float]:
    """Measures images a second that a network is trained on, on noise that lies on the device; one entry a round."""
    device, n_classes = workers.resolve_device("auto"), 1000
    images = torch.randint(256, (BATCH_SIZE, image_size, image_size, 3), dtype=torch.uint8)
    labels = torch.arange(BATCH_SIZE)
    names = tuple(map(str, range(n_classes)))
    dataset = data.Dataset("noise", images, labels, images, labels, names, flip=True, source="noise", sha256="0")
    dataset = dataset.to(device)
    network = build_model(model, num_classes=n_classes, in_channels=3, image_size=image_size)
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network, momentum=0.9, weight_decay=1e-4)
    set_learning_rate(optimizer, 0.01)
    batches = dataset.train_batches(batch_size=BATCH_SIZE, augment=False, generator=torch.Generator())
    stepper = Stepper(network, optimizer, batches, precision=best_precision(device, model))

    def step(number: int) -> None:
        stepper.step(number)
        float(stepper.loss_sum)  # waits for a GPU

    spent = latency.in_turn({"step": step}, n_rounds=n_rounds, n_warm_up=N_WARM_UP)
    return [BATCH_SIZE / seconds for seconds in spent["step"]]
