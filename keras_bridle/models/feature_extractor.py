"""A model from raw inputs to features, patches and codes."""

import keras
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.export import Exportable
from keras_bridle.models.arguments import Configured
from keras_bridle.quantizer.residual_quantizer import unit_vectors
from keras_bridle.replicas import SumsItself

OUTPUTS = ("features", "patches", "is_real", "codes", "vectors", "distances")


@keras.saving.register_keras_serializable(package="keras_bridle")
class FeatureModel(SumsItself, Exportable, Configured, keras.Model):
    """A model from raw inputs to a dict of outputs, for `predict()`.

    All have the shape `(batch, num_patches, ...)`, except `features`, and are float32,
    except `is_real` and `codes`:

    - `features`: the mean of the real patches, of shape `(batch, segments * dim)`.
    - `patches`: the encoder's patches without the class token.
    - `is_real`: bool, `False` at padding; beside `patches`, `vectors` or `codes`.
    - `codes`: int32, -1 at padding.
    - `vectors`: the tokenizer's vectors before quantization.
    - `distances`: from each vector to its code vector of the first level.

    Args:
        backbone: `BridleBackbone`.
        tokenizer: a tokenizer, for the last three outputs.
        wanted: tuple of strings, names of outputs.
        segments: int, as in `BridleBackbone.pooled_features()`.
        augmentation: optional layer that may crop, called with `training=False`.
        **kwargs: keyword arguments of `keras.Model`.
    """

    def __init__(
        self,
        backbone,
        tokenizer=None,
        wanted=("features",),
        segments=1,
        augmentation=None,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, "name": "feature_model", **kwargs})
        wanted = tuple(wanted)
        self.keep_arguments(locals())
        known = OUTPUTS if tokenizer is not None else OUTPUTS[:3]
        if not wanted or not set(wanted) <= set(known):
            raise ArgumentError("wanted", f"some of {known}", wanted)
        self.built = True

    def call(self, inputs):
        wanted, backbone = set(self.wanted), self.backbone
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=False)
        maps, padding_mask = backbone.maps(inputs)
        is_real = backbone.patch_padding_mask(maps, padding_mask)
        found = {}
        if wanted & {"features", "patches"}:
            patches = backbone.drop_class_token(backbone.encode(maps, padding_mask))
            found["patches"] = ops.cast(patches, "float32")
        if "features" in wanted:
            features = backbone.pooled(patches, maps, is_real, self.segments)
            found["features"] = ops.cast(features, "float32")
        if wanted & {"vectors", "codes", "distances"}:
            vectors = self.tokenizer.vectors(maps, padding_mask)
            found["vectors"] = ops.cast(vectors, "float32")
        # Codebooks that wait for k-means have no codes yet.
        if wanted & {"codes", "distances"}:
            found["codes"] = self.tokenizer.quantizer(vectors, is_real).codes
        if "distances" in wanted:
            found["distances"] = self._distances(found["vectors"], found["codes"])
        if is_real is None and "is_real" in wanted:
            like = found["patches" if "patches" in found else "vectors"]
            is_real = ops.ones(ops.shape(like)[:2], dtype="bool")
        found["is_real"] = is_real
        return {name: found[name] for name in self.wanted}

    def _distances(self, vectors, codes):
        quantizer = self.tokenizer.quantizer
        if quantizer.normalize is not None:
            vectors = unit_vectors(vectors)
        first = codes[:, :, :1]
        if quantizer.top_k > 1:
            first = ops.where(ops.arange(quantizer.top_k) == 0, first, -1)
        code_vectors = ops.cast(quantizer.decode(first), "float32")
        return ops.sqrt(ops.sum(ops.square(vectors - code_vectors), axis=-1))
