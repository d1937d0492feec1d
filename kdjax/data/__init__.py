"""Data sets, and streams of their batches in a fixed order."""

from kdjax.data.augmentation import Augmentation, augmentations
from kdjax.data.registry import load
from kdjax.data.source import Dataset, Split
from kdjax.data.streams import host, iterator, resident, sequential

__all__ = [
    "Augmentation",
    "Dataset",
    "Split",
    "augmentations",
    "host",
    "iterator",
    "load",
    "resident",
    "sequential",
]
