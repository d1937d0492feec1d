"""Published decoders: weights, settings and tokenizers from the files they come in."""

from kdjax.networks.importers.gguf import load_gguf
from kdjax.networks.importers.safetensors import load_safetensors
from kdjax.networks.importers.smollm2_wheel import smollm2

__all__ = ["load_gguf", "load_safetensors", "smollm2"]
