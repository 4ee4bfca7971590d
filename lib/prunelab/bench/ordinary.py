"""The ordinary PyTorch script of this field, which `bench` measures our engine against.

torchvision's way to augment and batch images, and the usual loop; run in a process of its own.
"""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import VisionDataset

from prunelab import data
from prunelab.models import build_model


class ImageArrays(VisionDataset):
    """As torchvision.datasets.CIFAR10: one array in memory, of which each item is made a PIL image."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: transforms.Compose) -> None:
        super().__init__(root=None, transform=transform)
        self.data, self.targets = images, labels

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]

    def __len__(self) -> int:
        return len(self.data)


def train(dataset: str, *, n_train: int, n_epochs: int, seed: int) -> None:
    """Trains a ResNet-20, and prints its loss and test accuracy after each epoch."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = data.load(dataset, n_train=n_train)
    normalize = [transforms.ToTensor(), transforms.Normalize(images.mean.tolist(), images.std.tolist())]
    augment = [transforms.RandomCrop(images.image_size, padding=4), transforms.RandomHorizontalFlip()]
    train_arrays, test_arrays = (split.squeeze(3).numpy() for split in (images.train_images, images.test_images))
    train_set = ImageArrays(train_arrays, images.train_labels.tolist(), transforms.Compose(augment + normalize))
    test_set = ImageArrays(test_arrays, images.test_labels.tolist(), transforms.Compose(normalize))
    pin = device.type == "cuda"
    train_loader = DataLoader(train_set, batch_size=128, shuffle=True, num_workers=2, pin_memory=pin)
    test_loader = DataLoader(test_set, batch_size=128, shuffle=False, num_workers=2, pin_memory=pin)

    model = build_model("resnet20", num_classes=images.num_classes, in_channels=images.channels).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_epochs)

    for epoch in range(n_epochs):
        model.train()
        running_loss = 0.0
        for inputs, targets in train_loader:
            inputs, targets = inputs.to(device), targets.to(device)
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        scheduler.step()

        model.eval()
        correct = 0
        with torch.no_grad():
            for inputs, targets in test_loader:
                predicted = model(inputs.to(device)).argmax(dim=1)
                correct += (predicted == targets.to(device)).sum().item()
        loss = running_loss / len(train_loader)
        print(f"epoch {epoch + 1}: loss {loss:.4f}, test accuracy {correct / len(test_set):.4f}")
