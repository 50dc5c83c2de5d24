"""Weights and arithmetic of the published PyTorch code."""

from keras_bridle.conversion.published_quantizer import (
    PublishedResidualQuantizer,
    load_published_quantizer,
)
from keras_bridle.conversion.published_state import read_published_state
from keras_bridle.conversion.published_video import from_published_video
from keras_bridle.conversion.published_weights import (
    PublishedWeight,
    load_published,
    load_published_backbone,
    load_published_classifier,
    load_published_decoder,
    load_published_estimator,
    load_published_random_projection,
    load_published_tokenizer,
    published_block_weights,
    published_weights,
)

__all__ = [
    "PublishedResidualQuantizer",
    "PublishedWeight",
    "from_published_video",
    "load_published",
    "load_published_backbone",
    "load_published_classifier",
    "load_published_decoder",
    "load_published_estimator",
    "load_published_quantizer",
    "load_published_random_projection",
    "load_published_tokenizer",
    "published_block_weights",
    "published_weights",
    "read_published_state",
]
