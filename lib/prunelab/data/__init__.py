"""Images on the device: `load` a data set by name, cut batches from it with `batches`."""

from prunelab.data.batches import LabelledImages
from prunelab.data.dataset import Dataset
from prunelab.data.registry import (
    STREAMED,
    DatasetNotFoundError,
    check,
    decoded_file,
    foresee,
    gigabytes,
    load,
    load_from,
    require,
)

__all__ = [
    "STREAMED",
    "Dataset",
    "DatasetNotFoundError",
    "LabelledImages",
    "check",
    "decoded_file",
    "foresee",
    "gigabytes",
    "load",
    "load_from",
    "require",
]
