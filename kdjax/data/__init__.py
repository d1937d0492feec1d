"""Data sets, and streams of their batches in a fixed order."""

from kdjax.data.augmentation import Augmentation, augmentations
from kdjax.data.corpora import Corpus, Document, load_text
from kdjax.data.packing import prompts
from kdjax.data.registry import load
from kdjax.data.source import Dataset, Split
from kdjax.data.streams import host, iterator, resident, sequential
from kdjax.data.text import TextDataset, labelled_dataset, text_dataset, tokenize

__all__ = [
    "Augmentation",
    "Corpus",
    "Dataset",
    "Document",
    "Split",
    "TextDataset",
    "augmentations",
    "host",
    "iterator",
    "labelled_dataset",
    "load",
    "load_text",
    "prompts",
    "resident",
    "sequential",
    "text_dataset",
    "tokenize",
]
