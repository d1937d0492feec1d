"""The networks that a config names."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from kdjax.networks.convnet import ConvNet
from kdjax.networks.cross_encoder import CrossEncoder
from kdjax.networks.denoisers import DenoisingMLP
from kdjax.networks.dual_encoder import DualEncoder, TextEncoder
from kdjax.networks.fusion import Fusion
from kdjax.networks.linen import from_linen
from kdjax.networks.max_pool_convnet import MaxPoolConvNet
from kdjax.networks.mlp import MLP
from kdjax.networks.nasbench201 import NASBench201
from kdjax.networks.network import Network
from kdjax.networks.normalized_convnet import NormalizedConvNet
from kdjax.networks.resnet import ResNet
from kdjax.networks.text_classifier import TextClassifier
from kdjax.networks.transformer import Decoder, DecoderConfig
from kdjax.networks.vit import ViT
from kdjax.networks.wrn import WideResNet

_WIDE = (32, 64, 128, 256)
NAMES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "mlp": (MLP, {}),
    "max_pool_convnet": (MaxPoolConvNet, {}),
    "convnet": (ConvNet, {}),
    "normalized_convnet": (NormalizedConvNet, {}),
    "nasbench201": (NASBench201, {}),
    "resnet": (ResNet, {"depth": (3, 3, 3)}),  # of any number of blocks a stage
    **{f"resnet{depth}": (ResNet, {"depth": depth}) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": (ResNet, {"depth": depth, "widths": _WIDE}) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{widen}": (WideResNet, {"depth": depth, "widen": widen})
        for depth, widen in ((16, 1), (16, 2), (28, 10), (40, 1), (40, 2))
    },
    "vit": (ViT, {}),
    # The dimensions of DeiT-Ti, Touvron et al. 2021 (arXiv:2012.12877), with patches of 4.
    "vit_tiny": (ViT, {"width": 192, "depth": 12, "heads": 3}),
    "fusion": (Fusion, {}),
    "dual_encoder": (DualEncoder, {"image": "resnet8", "text": {}}),
    "cross_encoder": (CrossEncoder, {"image": "resnet8", "text": {}}),
    "denoising_mlp": (DenoisingMLP, {}),
}
OF_PAIRS = (DualEncoder, CrossEncoder)
TEXT: dict[str, type] = {"decoder": DecoderConfig, "text_classifier": TextClassifier}  # of tokens


def build(name: str, num_classes: int, **options: Any) -> Network:
    """The network of that name. The same arguments give the same object.

    So programs that are built on it share their compilation.

    Args:
      name: one of `NAMES`, or `wrn_<depth>_<widen>` of any depth 6n + 4 and width, or one of
        `TEXT`.
      num_classes: C, at least 1; the vocabulary of a decoder, a dual or a cross-encoder; the
        number of values of an example of a denoiser.
      **options: attributes of the module that differ from what the name stands for; the fields of
        `DecoderConfig` for a decoder. A network within (`encoders` of a fusion, `image` of a dual
        or a cross-encoder) is a name, or a mapping of `name` and options; `text` is options of
        `TextEncoder`.

    Raises:
      ValueError: unknown name or option (the nearest valid one is named), or a bad value.

    >>> build("resnet20", num_classes=10) is build("resnet20", num_classes=10)
    True
    >>> both = build("fusion", 10, encoders=("resnet8", {"name": "mlp", "widths": (32,)}))
    """
    module, options = _resolve(name, options)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    return _build(module, num_classes, options)


def changed(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A network's options with some changed; `"depth/0"` is entry 0 of the tuple `depth`.

    Raises:
      ValueError: an entry of what is no tuple, or has no such entry.

    >>> changed({"depth": (3, 3, 3), "remat": ""}, {"depth/0": 1, "remat": "block"})
    {'depth': (1, 3, 3), 'remat': 'block'}
    """
    out = dict(options)
    for path, value in changes.items():
        name, _, entry = path.partition("/")
        if not entry:
            out[name] = value
            continue
        entries = out.get(name)
        if not isinstance(entries, tuple | list) or entry not in map(str, range(len(entries))):
            raise ValueError(
                f"{path!r} is an entry of a tuple, but {name} is {entries!r}: give the network "
                f"{name} as a tuple with that entry"
            )
        out[name] = tuple(value if str(i) == entry else x for i, x in enumerate(entries))
    return out


def _resolve(name: str, options: Mapping[str, Any]) -> tuple[type, tuple]:
    """The class that a name stands for, and its options, checked and hashable."""
    if name in NAMES:
        module, preset = NAMES[name]
    elif match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        module, preset = WideResNet, {"depth": int(match[1]), "widen": int(match[2])}
    elif name in TEXT:
        module, preset = TEXT[name], {}
    else:
        raise ValueError(f"unknown network {name!r}; {_nearest(name, [*NAMES, *TEXT])}")
    fields = {field.name for field in dataclasses.fields(module)}
    named = {"num_classes"} if module is TextClassifier else {"num_classes", "vocabulary"}
    valid = sorted(fields - {"parent", "name", "dimension"} - named)
    for option in options:
        if option not in valid:
            raise ValueError(f"{name} has no option {option!r}; {_nearest(option, valid)}")
    merged = {**preset, **options}
    if module is TextClassifier and "vocabulary" not in merged:
        raise ValueError(f"{name} needs the option 'vocabulary', the number of token ids")
    if module is Fusion:
        if not merged.get("encoders"):
            raise ValueError("fusion needs encoders: names of networks, one a modality")
        merged["encoders"] = [_within("encoders", x) for x in merged["encoders"]]
    if module in OF_PAIRS:
        merged["image"] = _within("image", merged["image"])
        wrong = [x for x in merged["text"] if x not in TextEncoder.__dataclass_fields__]
        if wrong:
            raise ValueError(f"text of {name} has no option {wrong[0]!r}")
        merged["text"] = tuple(sorted(merged["text"].items()))
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in merged.items()}
    return module, tuple(sorted(frozen.items()))


def _within(where: str, given: Any) -> tuple[type, tuple]:
    """An encoder inside another network, as `_resolve` gives it."""
    options = {"name": given} if isinstance(given, str) else dict(given)
    module, options = _resolve(str(options.pop("name", None)), options)
    if module in (Fusion, *OF_PAIRS, DenoisingMLP, *TEXT.values()):
        raise ValueError(f"{where} must name image networks, got {given!r}")
    return module, options


@functools.cache
def _build(module: type, num_classes: int, options: tuple) -> Network:
    if module is DecoderConfig:
        return from_linen(Decoder(DecoderConfig(vocabulary=num_classes, **dict(options))))
    given = dict(options)
    if module is Fusion:
        given["encoders"] = tuple(kind(1, **dict(x)) for kind, x in given["encoders"])
    if module in OF_PAIRS:
        kind, inner = given.pop("image")
        text = TextEncoder(num_classes, **dict(given.pop("text")))
        return from_linen(module(kind(1, **dict(inner)), text, **given))
    return from_linen(module(num_classes, **given))


def _nearest(word: str, valid) -> str:
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Valid: {', '.join(sorted(valid))}"
