"""Networks: two pure functions, whatever they were written in, and taps into their values."""

from kdjax.networks.adapters import as_network
from kdjax.networks.augmentors import Augmentor, mix_images
from kdjax.networks.cross_encoder import CrossEncoder
from kdjax.networks.denoisers import DenoisingMLP, gaussian_mixture
from kdjax.networks.dual_encoder import DualEncoder, TextEncoder
from kdjax.networks.feature_masks import GateNet, MaskNet, mask_width, masked_feature
from kdjax.networks.functions import from_function
from kdjax.networks.fusion import Fusion
from kdjax.networks.heads import ClassifierHead, InstanceTemperature
from kdjax.networks.inheritance import inherit_weights
from kdjax.networks.linen import from_linen
from kdjax.networks.lora import LoRA, attach
from kdjax.networks.max_pool_convnet import MaxPoolConvNet
from kdjax.networks.mlp import MLP
from kdjax.networks.nasbench201 import NASBench201, edges_of
from kdjax.networks.network import (
    Applied,
    Network,
    available_taps,
    count_parameters,
    logits_of,
)
from kdjax.networks.nnx import from_nnx
from kdjax.networks.normalized_convnet import NormalizedConvNet
from kdjax.networks.precision import PRECISIONS, in_precision
from kdjax.networks.projectors import (
    ABF,
    ConvRegressor,
    FactorEncoder,
    LinearEmbedding,
    OFDConnector,
    Paraphraser,
    ReviewFusion,
    SemCKDAttention,
    SemCKDProjector,
    SimKDProjector,
    SRRLProjector,
    Translator,
    VIDHead,
)
from kdjax.networks.registry import NAMES, build, changed
from kdjax.networks.resnet import ResNet
from kdjax.networks.spatial_transforms import (
    affine_grid,
    affine_matrices,
    affine_transform,
    grid_sample_bilinear,
)
from kdjax.networks.text_classifier import TextClassifier
from kdjax.networks.transformer import Decoder, DecoderConfig
from kdjax.networks.variational_autoencoder import VariationalAutoencoder
from kdjax.networks.vit import ViT
from kdjax.networks.wrn import WideResNet

__all__ = [
    "ABF",
    "MLP",
    "NAMES",
    "PRECISIONS",
    "Applied",
    "Augmentor",
    "ClassifierHead",
    "ConvRegressor",
    "CrossEncoder",
    "Decoder",
    "DecoderConfig",
    "DenoisingMLP",
    "DualEncoder",
    "FactorEncoder",
    "Fusion",
    "GateNet",
    "InstanceTemperature",
    "LinearEmbedding",
    "LoRA",
    "MaskNet",
    "MaxPoolConvNet",
    "NASBench201",
    "Network",
    "NormalizedConvNet",
    "OFDConnector",
    "Paraphraser",
    "ResNet",
    "ReviewFusion",
    "SRRLProjector",
    "SemCKDAttention",
    "SemCKDProjector",
    "SimKDProjector",
    "TextClassifier",
    "TextEncoder",
    "Translator",
    "VIDHead",
    "VariationalAutoencoder",
    "ViT",
    "WideResNet",
    "affine_grid",
    "affine_matrices",
    "affine_transform",
    "as_network",
    "attach",
    "available_taps",
    "build",
    "changed",
    "count_parameters",
    "edges_of",
    "from_function",
    "from_linen",
    "from_nnx",
    "gaussian_mixture",
    "grid_sample_bilinear",
    "in_precision",
    "inherit_weights",
    "logits_of",
    "mask_width",
    "masked_feature",
    "mix_images",
]
