"""Data sets, and streams of their batches in a fixed order."""

from kdjax.data.augmentation import Augmentation, augmentations
from kdjax.data.captions import CaptionDataset, caption_dataset, load_captions
from kdjax.data.corpora import Corpus, Document, load_text
from kdjax.data.packing import prompts
from kdjax.data.registry import load
from kdjax.data.source import Dataset, Split
from kdjax.data.streams import example_keys, host, iterator, numbered, resident, sequential
from kdjax.data.text import TextDataset, text_dataset, tokenize

__all__ = [
    "Augmentation",
    "CaptionDataset",
    "Corpus",
    "Dataset",
    "Document",
    "Split",
    "TextDataset",
    "augmentations",
    "caption_dataset",
    "example_keys",
    "host",
    "iterator",
    "load",
    "load_captions",
    "load_text",
    "numbered",
    "prompts",
    "resident",
    "sequential",
    "text_dataset",
    "tokenize",
]
