r"""Which teacher makes codes that are worth learning, and for how long?

    KERAS_BACKEND=jax python benchmarks/quality/teachers.py image --steps 4000
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py speech --steps 4000
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py clips --steps 4000
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py plateau --steps 4000
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py speech --steps 800 \
        --study informed --cpu 6000 600 1500
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py clips --steps 800 \
        --study round --cpu 6000 800 1500
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py speech --steps 800 \
        --study levels --cpu 6000 800 1500
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py speech --steps 800 \
        --study changes --seeds 0 --cpu 6000 800 1500
    KERAS_BACKEND=jax python benchmarks/quality/teachers.py plateau --steps 1500 \
        --ways "tubes 0.75, centered" --rates 1e-3 --seeds 0 1 --cpu 6000 800 1500

Needs JAX and, but for those with `--cpu`, an accelerator, and the data that
`synthetic_data.py` names. Tiny encoders (128 x 3 x 4) are pretrained in many ways,
three seeds each, and probed with 20 and 100 labels a class and by nearest neighbors, on
validation and on test examples; settings are to be chosen by the former and claims made
by the latter. `--steps` are those of an encoder phase, S; a tokenizer phase has a
quarter of them. Ways:

- the cold start alone, for S / 4, S / 2, S, 2.25 S and 3.5 S steps, 4 x 256 codes, and
  for S and 2.25 S with 1 x 1024; regression of masked patches for S and 2.25 S;
- a tokenizer from the cold start's S steps, then an encoder, fresh or continued, on its
  codes for S steps: 2.25 S in all. The teacher's features as they are, or centered at
  each place and scaled; new codes alone or beside the cold start's; then once more;
- the same with a teacher that was fine-tuned on all labels, or on 100 or 20 a class.

Results go to one JSON file, written after each stage.
"""

import argparse
import copy
import functools
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import many_runs
import numpy as np
from keras import ops
from many_runs import (
    Runs,
    code_statistics,
    cosine,
    few_at_a_time,
    in_chunks,
    likeness,
    mapped,
    neighbors,
    numbers_of,
    of_run,
    on_cpu,
    probes,
    stacked,
)
from masked_regression import MaskedRegression
from synthetic_data import all_voices, clothes, moving_clothes, speech

import keras_bridle as kb
from keras_bridle.models.presets import decoder_size, estimator_size
from keras_bridle.training.examples import draw_few

DECODER = {"hidden_dim": 96, "num_layers": 1, "num_heads": 3, "mlp_dim": 384}
SEEDS = (0, 1, 2)


class Data:
    """Examples on the accelerator, and the networks for them.

    `arrays` has the maps as integers; `self.to_maps` makes floats of rows of them.
    Examples are in the order training, validation, test.
    """

    segments = 1
    centered = True
    mirrored = False
    quota = {20: 3, 100: 3}  # draws of so many labels a class
    probed = 10000  # training examples that labels and neighbors are drawn from
    layout = None

    def mask(self):
        return kb.RandomMask(0.5, seed=0)

    def backbone(self, **options):
        given = {"front_end": None, "trained_grid": None, "load_weights": False}
        given |= {"input_dims": self.dims, "patch_size": self.patch_size}
        if self.layout is not None:
            given["position_layout"] = self.layout
        return kb.BridleBackbone.from_preset(self.preset, **{**given, **options})

    def place(self, maps, labels, parts, mean, std):
        """Takes arrays, and the numbers of training, validation and test examples."""
        self.count, self.dims = parts[0], maps.shape[1:]
        edges = np.cumsum((0, *parts))
        self.rows = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
        self.labels = {k: np.asarray(v, "int32") for k, v in labels.items()}
        arrays = {"maps": jnp.asarray(maps)}
        arrays |= {name: jnp.asarray(values) for name, values in self.labels.items()}
        self.common = arrays
        self.mean, self.std = mean, std

    def to_maps(self, maps):
        return (maps.astype("float32") - self.mean) / self.std

    def batch(self, common, rows):
        """Maps of rows; those beyond the training examples are mirrored."""
        maps = self.to_maps(common["maps"][rows % self.count])
        if not self.mirrored:
            return maps
        mirror = (rows >= self.count)[:, None, None, None]
        return jnp.where(mirror, maps[:, :, ::-1], maps)

    @property
    def size(self):
        """The number of training rows, mirrored ones included."""
        return self.count * (1 + self.mirrored)


class Pictures(Data):
    preset, patch_size, batch_size = "bridle_image_tiny", (7, 7), 256
    mirrored = True
    classifier = kb.BridleImageClassifier

    def __init__(self, args):
        pictures, labels = clothes(args.clothes)
        parts = args.cpu or (55000, 5000, 10000)
        keep = np.r_[: sum(parts[:2]), 60000 : 60000 + parts[2]]
        self.place(
            pictures[keep][..., None],
            {"class": labels[keep]},
            parts,
            0.286 * 255,
            0.353 * 255,
        )


class Speech(Data):
    preset, patch_size, batch_size = "bridle_audio_tiny", (4, 32), 128
    segments, centered = 6, False
    classifier = kb.BridleAudioClassifier

    def __init__(self, args):
        parts = args.cpu or (16000, 1500, 3000)
        found = [
            speech(count, voices, seed, args.espeak, os.cpu_count())
            for seed, (count, voices) in enumerate(
                zip(parts, all_voices(), strict=True)
            )
        ]
        waveforms, words = (np.concatenate(x) for x in zip(*found, strict=True))
        log_mel = jax.jit(kb.LogMelSpectrogram())
        maps = [
            np.asarray(log_mel(part / np.float32(32768)))[:, :96].astype("float16")
            for part in np.array_split(waveforms, max(1, len(waveforms) // 500))
        ]
        self.place(np.concatenate(maps), {"word": words}, parts, 0.0, 1.0)


class Clips(Data):
    preset, patch_size, batch_size = "bridle_video_tiny", (2, 8, 8), 64
    segments = 4
    classifier = kb.BridleVideoClassifier

    def mask(self):
        return kb.TubeMask(0.75, seed=0)

    def __init__(self, args):
        pictures, labels = clothes(args.clothes)
        parts = args.cpu or (20000, 2000, 4000)
        sources = pictures[:55000], pictures[55000:60000], pictures[60000:]
        of = np.cumsum([0, 55000, 5000])
        clips, which, direction = zip(
            *(
                moving_clothes(source, count, seed)
                for seed, (source, count) in enumerate(zip(sources, parts, strict=True))
            ),
            strict=True,
        )
        figure = np.concatenate([labels[w + o] for w, o in zip(which, of, strict=True)])
        self.place(
            np.concatenate(clips)[..., None],
            {"direction": np.concatenate(direction), "figure": figure},
            parts,
            70.0,
            60.0,
        )


class Teacher(keras.layers.Layer):
    """A teacher whose features are centered at each place and scaled.

    They are those of the last block, or the mean of the last few, each normalized.
    """

    def __init__(self, backbone, places, blocks=1):
        super().__init__(autocast=False)
        self.backbone, self.blocks = backbone, blocks
        self.hidden_dim = backbone.hidden_dim
        shape = (places, backbone.hidden_dim)
        options = {"trainable": False, "autocast": False, "dtype": "float32"}
        self.center = self.add_weight(shape, "zeros", name="center", **options)
        self.scale = self.add_weight(shape[1:], "ones", name="scale", **options)
        for name in ("maps", "grid", "patch_padding_mask", "drop_class_token"):
            setattr(self, name, getattr(backbone, name))
        self.built = True

    def encode(self, maps, padding_mask=None, training=False):
        tokens = last_blocks(self.backbone, maps, self.blocks)
        tokens = (tokens - self.center) / self.scale
        # A place for the class token, which is dropped again.
        first = 0 if self.backbone.class_token is None else 1
        return ops.concatenate([tokens[:, :first], tokens], axis=1)


def last_blocks(backbone, maps, count):
    """Patch tokens of the last block, or the mean of the last ones, normalized."""
    if count == 1:
        tokens = backbone.drop_class_token(backbone.encode(maps))
        return ops.cast(tokens, "float32")
    tokens = backbone.patch_tokens(maps)
    if backbone.class_token is not None:
        tokens = backbone.class_token(tokens)
    found = []
    for block in backbone.blocks:
        tokens = block(tokens)
        values = ops.cast(backbone.drop_class_token(tokens), "float32")
        mean = ops.mean(values, axis=-1, keepdims=True)
        deviation = ops.std(values, axis=-1, keepdims=True)
        found.append((values - mean) / (deviation + 1e-6))
    return sum(found[-count:]) / count


class Lab:
    """Trains and probes on one kind of data, and keeps what it finds."""

    def __init__(self, data, args):
        self.data, self.args, self.found = data, args, []
        self.runs_of, self.backbones = {}, {}
        self.started = time.perf_counter()
        with on_cpu():
            self.probe_backbone = data.backbone()
        self.new = {seed: self.new_networks(seed) for seed in SEEDS}
        grid = self.probe_backbone.grid(np.zeros((1, *data.dims)))
        self.places, self.rows_of_grid = int(np.prod(grid)), grid[0]
        self.chunk = 32000 // self.places
        self.features = mapped(self.probe_backbone, self.features_of)
        self.tokens = mapped(self.probe_backbone, self.tokens_of)

    # Networks.

    def decoder(self, levels, codes):
        backbone = self.probe_backbone
        return kb.CodeDecoder(
            levels,
            codes,
            use_class_token=backbone.use_class_token,
            **{**decoder_size(backbone), **DECODER},
        )

    def quantizer(self, levels, codes, seed=0):
        return kb.ResidualQuantizer(
            levels,
            codes,
            dim=64,
            normalize="level",
            restart_threshold=0.1,
            seed=seed,
        )

    def cold_tokenizer(self, levels, codes, seed=0):
        data = self.data
        tokenizer = kb.RandomProjectionTokenizer(
            data.patch_size,
            self.probe_backbone.hidden_dim,
            self.quantizer(levels, codes, seed),
            center_patches=data.centered,
        )
        tokenizer.build(self.probe_backbone.maps_shape)
        return tokenizer

    def tokenizer(self, levels, codes):
        backbone = self.data.backbone(name="tokenizer_backbone")
        return kb.BridleTokenizer(backbone, self.quantizer(levels, codes))

    def estimator(self):
        backbone = self.probe_backbone
        return kb.FeatureEstimator(backbone.hidden_dim, **estimator_size(backbone))

    def new_networks(self, seed):
        """New weights of an encoder, as a function draws them from a seed."""
        with on_cpu():
            keras.utils.set_random_seed(seed)
            return {"backbone": numbers_of(self.data.backbone())}

    @functools.cache  # noqa: B019
    def new_part(self, kind, seed, *options):
        """New weights of another part, from a seed."""
        with on_cpu():
            keras.utils.set_random_seed(100 + seed)
            part = getattr(self, kind)(*options)
            if not part.built:
                dim = 64 if kind == "estimator" else self.probe_backbone.hidden_dim
                part.build((None, None, dim))
            return numbers_of(part)

    # Trainings.

    def runs(self, kind, levels=4, codes=256, *more):
        """The `Runs` of a kind of trainer, made once."""
        key = kind, levels, codes, *more
        if key not in self.runs_of:
            with on_cpu():
                self.runs_of[key] = getattr(self, f"make_{kind}")(levels, codes, *more)
        return self.runs_of[key]

    def make_encoder(self, levels, codes):
        """Learns codes that are known before: those in `own["codes"]`."""
        data = self.data
        # All levels of codes from one tokenizer or from two.
        trainer = kb.EncoderPretrainer(
            data.backbone(),
            self.decoder(levels, codes),
            self.cold_tokenizer(levels, codes),
            mask=data.mask(),
        )

        def inputs(common, own, rows):
            codes = own["codes"][rows].astype("int32")
            return {"inputs": data.batch(common, rows), "codes": codes}

        def loss(outputs, common, own, rows):
            return trainer.loss_share(outputs)

        return Runs(trainer, inputs, loss, data.batch_size)

    def make_tokenizer(self, levels, codes, blocks=1):
        data = self.data
        trainer = kb.TokenizerPretrainer(
            self.tokenizer(levels, codes),
            self.estimator(),
            Teacher(data.backbone(name="teacher"), self.places, blocks),
        )
        return Runs(trainer, self.maps_alone, self.share(trainer), data.batch_size)

    def make_regression(self, levels, codes):
        data = self.data
        backbone = data.backbone()
        size = {**decoder_size(backbone), **DECODER}
        trainer = MaskedRegression(backbone, size, data.mask())

        def loss(outputs, common, own, rows):
            return outputs

        return Runs(trainer, self.maps_alone, loss, data.batch_size)

    def make_classifier(self, levels, codes):
        """Learns labels: the first of the data's kinds of them."""
        name, labels = next(iter(self.data.labels.items()))
        classifier = self.data.classifier(
            self.data.backbone(), num_classes=int(labels.max()) + 1, preprocessor=None
        )

        def loss(outputs, common, own, rows):
            labels = common[name][rows % self.data.count]
            found = keras.losses.sparse_categorical_crossentropy(
                labels, outputs, from_logits=True
            )
            return ops.mean(found)

        return Runs(classifier, self.maps_alone, loss, self.data.batch_size, 0.05)

    def maps_alone(self, common, own, rows):
        return self.data.batch(common, rows)

    def share(self, trainer):
        return lambda outputs, common, own, rows: trainer.loss_share(outputs)

    def train(self, runs, starts, rates, own=None, **more):
        """Trains runs from pairs of parts and a seed; all rows, or those of a pool."""
        own = {"size": len(starts) * [np.int32(self.data.size)], **(own or {})}
        return runs.train(starts, rates, self.data.common, own, **more)

    # Codes.

    def codes_of(self, part, weights):
        """Codes of all training rows, int array `(runs, rows, patches, levels)`."""
        kind = "uint8" if part.quantizer.codebook_size <= 256 else "int16"

        def tokenize(maps):
            return part(maps, training=False).codes.astype(kind)

        data = self.data
        return in_chunks(
            mapped(part, tokenize),
            weights,
            data.size,
            lambda rows: data.batch(data.common, jnp.asarray(rows)),
            self.chunk,
        )

    def adapted(self, vectors, levels, codes, seed):
        """Weights of a quantizer from k-means on vectors."""
        with on_cpu():
            quantizer = self.quantizer(levels, codes, seed)
            quantizer.build((None, None, 64))
            quantizer.adapt(np.asarray(vectors, "float32"), max_vectors=16384)
            return numbers_of(quantizer)

    def vectors_of(self, part, weights, function):
        count = min(self.data.count, 2 * 16384 // self.places)
        data = self.data
        found = in_chunks(
            mapped(part, function),
            weights,
            count,
            lambda rows: data.batch(data.common, jnp.asarray(rows)),
            size=min(500, count),
        )
        return np.asarray(found, "float32")

    def with_codebooks(self, part, weights, seeds):
        """Sets the codebooks of tokenizers by k-means, all runs side by side."""
        found = self.vectors_of(part, stacked(weights), part.vectors)
        quantizer = part.quantizer
        sizes = quantizer.num_levels, quantizer.codebook_size
        with ThreadPoolExecutor(6) as pool:
            adapted = [*pool.map(lambda x, s: self.adapted(x, *sizes, s), found, seeds)]
        first = [id(weight) for weight in part.weights].index(id(quantizer.weights[0]))
        last = first + len(quantizer.weights)
        return [
            [*w[:first], *a, *w[last:]] for w, a in zip(weights, adapted, strict=True)
        ]

    def cold_codes(self, levels, codes):
        """Codes of a random projection, one array for each seed."""
        with on_cpu():
            part = self.cold_tokenizer(levels, codes)
        weights = [self.new_part("cold_tokenizer", s, levels, codes, s) for s in SEEDS]
        weights = self.with_codebooks(part, weights, SEEDS)
        return np.asarray(self.codes_of(part, stacked(weights)))

    def teacher_statistics(self, backbones, blocks):
        """Center and scale of teachers' features."""
        data, backbone = self.data, self.probe_backbone
        found = in_chunks(
            mapped(backbone, lambda maps: last_blocks(backbone, maps, blocks)),
            stacked(backbones),
            min(data.count, 2000),
            lambda rows: data.batch(data.common, jnp.asarray(rows)),
            size=min(500, data.count),
        )
        center = found.mean(axis=1)
        scale = jnp.sqrt(jnp.mean(jnp.square(found - center[:, None]), axis=(1, 2)))
        return [
            [np.asarray(c), np.asarray(s) + 1e-6]
            for c, s in zip(center, scale, strict=True)
        ]

    def learned_codes(
        self, ways, steps, levels=4, codes=256, blocks=1, start="encoder"
    ):
        """Trains a tokenizer for each teacher, and tokenizes all examples.

        Args:
            ways: list of tuples: a name, the teacher's weights, whether to center its
                features, a seed.

        Returns:
            Array of codes, `(ways, rows, patches, levels)`.
        """
        runs = self.runs("tokenizer", levels, codes, blocks)
        tokenizer = runs.trainer.tokenizer
        statistics = self.teacher_statistics([way[1] for way in ways], blocks)
        weights = []
        for _, teacher, _, seed in ways:
            new = self.new_part("tokenizer", seed, levels, codes)
            first = [id(w) for w in tokenizer.weights].index(
                id(tokenizer.backbone.weights[0])
            )
            if start == "encoder":
                new = [*new[:first], *teacher, *new[first + len(teacher) :]]
            weights.append(new)
        weights = self.with_codebooks(tokenizer, weights, [way[3] for way in ways])
        starts = []
        for (_, teacher, is_centered, seed), own, about in zip(
            ways, weights, statistics, strict=True
        ):
            center, scale = about
            if not is_centered:
                center, scale = np.zeros_like(center), np.ones_like(scale)
            parts = {"tokenizer": own, "teacher": [center, scale, *teacher]}
            parts["estimator"] = self.new_part("estimator", seed)
            starts.append((parts, seed))
        rates = len(ways) * [cosine(5e-4, steps)]
        losses, read = self.train(runs, starts, rates)
        trained = read("tokenizer")
        found = np.asarray(self.codes_of(tokenizer, trained))
        quantized = self.probe_codes(tokenizer, trained)
        for index, (name, _, _, seed) in enumerate(ways):
            about = code_statistics(found[index, :4000, :, 0], codes)
            about["loss"] = float(losses[index])
            about |= {key: values[index] for key, values in quantized.items()}
            self.note(f"codes {levels} x {codes}: {name}", seed, about, steps)
        return found

    def probe_codes(self, tokenizer, weights):
        """What a linear probe finds in the sums of code vectors."""

        def decode(maps):
            found = tokenizer(maps, training=False).quantized
            return {"mean": jnp.mean(found.astype("float32"), axis=1)}

        return self.probe(weights, mapped(tokenizer, decode))

    # Probes.

    def tokens_of(self, maps):
        return last_blocks(self.probe_backbone, maps, 1)

    def features_of(self, maps):
        tokens = self.tokens_of(maps)
        found = {"mean": jnp.mean(tokens, axis=1)}
        if self.data.segments > 1:
            shape = (len(tokens), self.data.segments, -1, tokens.shape[-1])
            in_order = jnp.mean(tokens.reshape(shape), axis=2)
            found["in order"] = in_order.reshape(len(tokens), -1)
        return found

    def probe(self, weights, function=None):
        """Probes encoders, stacked weights; gives lists of pairs, one for each run."""
        data = self.data
        # Enough to draw labels from, and all that is held out.
        train = data.rows[0][: data.probed]
        rows = np.concatenate([train, data.rows[1], data.rows[2]])
        edges = len(train), len(train) + len(data.rows[1])
        maps = data.common["maps"]
        features = in_chunks(
            function or self.features,
            weights,
            len(rows),
            lambda some: data.to_maps(maps[jnp.asarray(rows[some])]),
            self.chunk,
        )
        found = {}
        for (kind, x), (name, all_labels) in itertools.product(
            features.items(), data.labels.items()
        ):
            x = jnp.split(x.astype("float32"), edges, axis=1)
            y = np.split(all_labels[rows], edges)
            for per_class, draws in data.quota.items():
                few = [draw_few(y[0], per_class, seed=draw) for draw in range(draws)]
                few = np.stack(few)

                def fit(a, b, c, few=few, y=y):
                    return probes(a, y[0][few], b, y[1], c, y[2])

                both = few_at_a_time(fit, x[0][:, few], x[1], x[2])
                found[f"{name}, {kind}, {per_class}"] = np.stack(both, axis=1).tolist()
            if kind == "mean":
                near = [neighbors(x[0], y[0], x[i], y[i]) for i in (1, 2)]
                found[f"{name}, neighbors"] = np.stack(near, axis=1).tolist()
        return found

    def note(self, way, seed, about, encoder_steps=0, total_steps=None):
        minutes = (time.perf_counter() - self.started) / 60
        total = encoder_steps if total_steps is None else total_steps
        steps = {"encoder steps": encoder_steps, "total steps": total}
        line = {
            "way": way,
            "seed": seed,
            **steps,
            **about,
            "minutes": round(minutes, 2),
        }
        self.found.append(line)

    def note_probes(self, ways, weights, losses=None):
        """Probes runs and notes them; ways are `(name, seed, encoder, total steps)`."""
        found = self.probe(weights)
        data = self.data
        tokens = in_chunks(
            self.tokens,
            weights,
            200,
            lambda rows: data.batch(data.common, jnp.asarray(rows)),
            size=200,
        )
        alike = np.stack(few_at_a_time(likeness, tokens))
        for index, (way, seed, *steps) in enumerate(ways):
            about = {name: values[index] for name, values in found.items()}
            about["deviation"], about["rank"] = map(float, alike[:, index])
            if losses is not None:
                about["loss"] = float(losses[index])
            self.note(way, seed, about, *steps)

    def write(self, stage):
        minutes = (time.perf_counter() - self.started) / 60
        kind = "" if self.args.study == "whole" else f"_{self.args.study}"
        kind += "_cpu" * bool(self.args.cpu)
        path = Path(self.args.out, f"{self.args.data}{kind}.json")
        head = {"data": self.args.data, "steps": self.args.steps, "date": DATE}
        head["machine"] = jax.devices()[0].device_kind
        lines = ",\n".join(json.dumps(rounded(line)) for line in self.found)
        path.write_text(f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n')
        print(f"{self.args.data} {stage}: {minutes:.2f} min", flush=True)

    # Stages.

    def encoders(self, ways, codes, steps, levels=4, size=256, longest=None, rate=1e-3):
        """Trains encoders on codes.

        Args:
            ways: list of tuples: name, start (parts, or `None` for new ones), index
                into `codes`, seed, steps of the encoder, all steps (both with those of
                phases before).
        """
        runs = self.runs("encoder", levels, size)
        starts, rates = [], []
        for _, start, _, seed, *_ in ways:
            parts = {
                "backbone": self.new[seed]["backbone"],
                "decoder": self.new_part("decoder", seed, levels, size),
            }
            starts.append((parts | (start or {}), seed))
        counts = steps if isinstance(steps, list) else len(ways) * [steps]
        rates = [cosine(rate, count, max(counts)) for count in counts]
        own = {"codes": [codes[way[2]] for way in ways]}
        began = time.perf_counter()
        losses, read = self.train(runs, starts, rates, own)
        each = 1000 * (time.perf_counter() - began) / max(counts)
        weights = read("backbone")
        noted = [(name, seed, *more) for name, _, _, seed, *more in ways]
        self.note_probes(noted, weights, losses)
        print(
            f"{self.args.data}: {len(ways)} encoders, {each:.2f} ms a step", flush=True
        )
        decoders = read("decoder")
        return [
            {"backbone": of_run(weights, i), "decoder": of_run(decoders, i)}
            for i in range(len(ways))
        ]

    def fine_tuned(self, ways, steps):
        """Fine-tunes encoders: tuples of name, encoder, labels a class or 0, seed."""
        runs = self.runs("classifier")
        labels = next(iter(self.data.labels.values()))[self.data.rows[0]]
        starts, pools, sizes = [], [], []
        for _, backbone, per_class, seed in ways:
            rows = np.arange(self.data.count)
            if per_class:
                rows = draw_few(labels[: min(10000, len(labels))], per_class, seed=seed)
            if self.data.mirrored:
                rows = np.concatenate([rows, rows + self.data.count])
            sizes.append(np.int32(len(rows)))
            pools.append(np.resize(rows, self.data.size).astype("int32"))
            starts.append(({"backbone": backbone}, seed))
        rates = len(ways) * [cosine(5e-4, steps)]
        losses, read = self.train(runs, starts, rates, {"size": sizes, "pool": pools})
        weights = read("backbone")
        found = self.accuracy(runs.trainer, read)
        for (name, _, _, seed), pair, loss in zip(ways, found, losses, strict=True):
            self.note(f"fine-tuned: {name}", seed, {"accuracy": pair, "loss": loss})
        return [of_run(weights, i) for i in range(len(ways))]

    def accuracy(self, classifier, read):
        """Accuracy of classifiers on validation and test examples."""
        weights = read()
        data, pairs = self.data, []
        labels = next(iter(data.labels.values()))
        function = mapped(classifier, lambda maps: jnp.argmax(classifier(maps), -1))
        maps = data.common["maps"]
        for rows in data.rows[1:]:
            answers = in_chunks(
                function,
                weights,
                len(rows),
                lambda some, rows=rows: data.to_maps(maps[jnp.asarray(rows[some])]),
                self.chunk,
            )
            pairs.append(np.mean(np.asarray(answers) == labels[rows], axis=1))
        return np.stack(pairs, axis=1).tolist()


def rounded(value):
    """Numbers with four digits, for JSON."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(item) for item in value]
    return round(float(value), 4) if isinstance(value, (float, np.floating)) else value


DATE = time.strftime("%Y-%m-%d")
DATA = {"image": Pictures, "speech": Speech, "clips": Clips, "plateau": Clips}


class Study:
    """The stages, in the order of what they are worth."""

    def __init__(self, lab, steps, minutes):
        self.lab, self.steps, self.minutes = lab, steps, minutes
        self.tokenizer_steps = steps // 4
        self.began = time.perf_counter()

    def __call__(self):
        for stage in (
            self.untrained,
            self.cold_starts,
            self.long_cold_starts,
            self.teachers,
            self.students,
            self.regression,
            self.students_of_both,
            self.one_level,
            self.second_round,
            self.fine_tuning_again,
        ):
            if time.perf_counter() - self.began > 60 * self.minutes:
                print(f"{self.lab.args.data}: no time for {stage.__name__}", flush=True)
                continue
            stage()
            self.lab.write(stage.__name__)

    def untrained(self):
        encoders = [self.lab.new[seed]["backbone"] for seed in SEEDS]
        ways = [("untrained", seed, 0, 0) for seed in SEEDS]
        self.lab.note_probes(ways, stacked(encoders))

    def alone(self, name, shares, codes, **sizes):
        """Cold starts of several lengths."""
        counts = [round(share * self.steps) for share in shares]
        pairs = [*itertools.product(counts, SEEDS)]
        ways = [(name, None, seed, seed, count, count) for count, seed in pairs]
        longest = [count for count, _ in pairs]
        return self.lab.encoders(ways, codes, longest, **sizes)

    def cold_starts(self):
        self.cold_codes = self.lab.cold_codes(4, 256)
        name = "cold start, 4 x 256"
        self.cold = self.alone(name, (0.25, 0.5, 1), self.cold_codes)[-len(SEEDS) :]

    def long_cold_starts(self):
        found = self.alone("cold start, 4 x 256", (2.25, 3.5), self.cold_codes)
        self.longest = found[-len(SEEDS) :]

    def teachers(self):
        """Fine-tunes cold starts and untrained encoders, and trains tokenizers."""
        lab, kinds = self.lab, {"all": 0, "100": 100, "20": 20}
        ways = [
            (f"{start}, {name} labels", encoder, number, seed)
            for name, number in kinds.items()
            for start in ("cold start", "untrained")
            for seed, encoder in zip(
                SEEDS,
                [x["backbone"] for x in self.cold]
                if start == "cold start"
                else [lab.new[seed]["backbone"] for seed in SEEDS],
                strict=True,
            )
        ]
        found = lab.fine_tuned(ways, max(250, self.steps // 4))
        informed = {
            name: [
                x
                for x, way in zip(found, ways, strict=True)
                if way[0] == f"cold start, {name} labels"
            ]
            for name in kinds
        }
        cold = [x["backbone"] for x in self.cold]
        self.teaching = {
            "cold start": (cold, False),
            "cold start, centered": (cold, True),
            "all labels": (informed["all"], False),
            "all labels, centered": (informed["all"], True),
            "100 labels, centered": (informed["100"], True),
            "20 labels, centered": (informed["20"], True),
        }
        ways = [
            (name, encoder, is_centered, seed)
            for name, (encoders, is_centered) in self.teaching.items()
            for seed, encoder in zip(SEEDS, encoders, strict=True)
        ]
        codes = lab.learned_codes(ways, self.tokenizer_steps)
        self.codes = {(way[0], way[3]): x for way, x in zip(ways, codes, strict=True)}

    def continued(self, run, seed, levels, size, keep=False):
        """The start of an encoder that goes on: its decoder has a new head."""
        runs = self.lab.runs("encoder", levels, size)
        new = [*self.lab.new_part("decoder", seed, levels, size)]
        decoder = runs.trainer.decoder
        head = {id(weight) for weight in decoder.head.weights}
        for index, weight in enumerate(decoder.weights):
            old = run["decoder"][index]
            if id(weight) not in head:
                new[index] = old
            elif keep:
                # The cold start's levels are the last.
                count = self.cold_codes.shape[-1] * size
                first = new[index][..., : new[index].shape[-1] - count]
                new[index] = np.concatenate([first, old[..., -count:]], axis=-1)
        return {"backbone": run["backbone"], "decoder": new}

    def after(self, kinds, codes, before, steps, levels=4, size=256, keep=False):
        """Encoders on learned codes: `kinds` are pairs of a teacher and a start."""
        used, total = steps
        pairs = [*itertools.product(kinds, SEEDS)]
        ways, tables = [], []
        for (teacher, start), seed in pairs:
            begin = None
            if start == "continued":
                run = before.get((teacher, seed), before.get(seed))
                begin = self.continued(run, seed, levels, size, keep)
            beside = " and the cold start's" if keep else ""
            name = f"codes of {teacher}{beside}, {start}, {levels} x {size}"
            encoder_steps = self.steps + (used if start == "continued" else 0)
            ways.append((name, begin, len(tables), seed, encoder_steps, total))
            both = [codes[teacher, seed]] + ([self.cold_codes[seed]] if keep else [])
            tables.append(np.concatenate(both, axis=-1))
        found = self.lab.encoders(ways, tables, self.steps, levels, size)
        return {
            (*kind, seed): run for (kind, seed), run in zip(pairs, found, strict=True)
        }

    def students(self):
        kinds = [(teacher, "fresh") for teacher in self.teaching]
        kinds += [("cold start", "continued"), ("cold start, centered", "continued")]
        before = dict(zip(SEEDS, self.cold, strict=True))
        total = 2 * self.steps + self.tokenizer_steps
        self.first = self.after(kinds, self.codes, before, (self.steps, total))

    def students_of_both(self):
        names = "cold start", "cold start, centered"
        kinds = [*itertools.product(names, ("fresh", "continued"))]
        kinds.append(("100 labels, centered", "fresh"))
        before = dict(zip(SEEDS, self.cold, strict=True))
        total = 2 * self.steps + self.tokenizer_steps
        self.both = self.after(
            kinds, self.codes, before, (self.steps, total), 8, keep=True
        )

    def regression(self, shares=(1, 2.25), name="masked regression"):
        runs = self.lab.runs("regression")
        counts = [round(share * self.steps) for share in shares]
        pairs = [*itertools.product(counts, SEEDS)]
        starts = [({"backbone": self.lab.new[s]["backbone"]}, s) for _, s in pairs]
        rates = [cosine(1e-3, count, counts[-1]) for count, _ in pairs]
        losses, read = self.lab.train(runs, starts, rates)
        ways = [(name, s, count, count) for count, s in pairs]
        self.lab.note_probes(ways, read("backbone"), losses)

    def one_level(self):
        """The same with 1 x 1024 codes."""
        cold_codes = self.lab.cold_codes(1, 1024)
        shares, sizes = (1, 2.25), {"levels": 1, "size": 1024}
        found = self.alone("cold start, 1 x 1024", shares, cold_codes, **sizes)
        before = dict(zip(SEEDS, found[: len(SEEDS)], strict=True))
        names = "cold start", "cold start, centered"
        ways = [
            (name, before[seed]["backbone"], name != "cold start", seed)
            for name in names
            for seed in SEEDS
        ]
        codes = self.lab.learned_codes(ways, self.tokenizer_steps, 1, 1024)
        codes = {(way[0], way[3]): x for way, x in zip(ways, codes, strict=True)}
        kinds = [*itertools.product(names, ("fresh", "continued"))]
        total = 2 * self.steps + self.tokenizer_steps
        self.after(kinds, codes, before, (self.steps, total), 1, 1024)

    def second_round(self):
        """Once more, from the encoder that went on with both kinds of codes."""
        names = "cold start", "cold start, centered"
        before = {
            (name, seed): self.both[name, "continued", seed]
            for name in names
            for seed in SEEDS
        }
        ways = [
            (name, before[name, seed]["backbone"], name != "cold start", seed)
            for name in names
            for seed in SEEDS
        ]
        codes = self.lab.learned_codes(
            [(f"second round of {way[0]}", *way[1:]) for way in ways],
            self.tokenizer_steps,
        )
        label = "second round of {}".format
        found = {(label(way[0]), way[3]): x for way, x in zip(ways, codes, strict=True)}
        self.after(
            [(label(name), "continued") for name in names],
            found,
            {(label(name), seed): run for (name, seed), run in before.items()},
            (2 * self.steps, 3 * self.steps + 2 * self.tokenizer_steps),
            8,
            keep=True,
        )

    def fine_tuning_again(self):
        """Few labels, from students of encoders fine-tuned on as many, and others."""
        ways = []
        for number in (100, 20):
            teacher = f"{number} labels, centered"
            for seed in SEEDS:
                student = self.first[teacher, "fresh", seed]["backbone"]
                longest = self.longest[seed]["backbone"]
                ways.append((f"student of {number} labels", student, number, seed))
                ways.append(
                    (f"long cold start, {number} labels", longest, number, seed)
                )
        self.lab.fine_tuned(ways, max(250, self.steps // 4))


class Informed(Study):
    """The cold start, its rival, and the student of a teacher that knows all labels."""

    def __call__(self):
        self.untrained()
        self.cold_codes = self.lab.cold_codes(4, 256)
        self.cold = self.alone("cold start, 4 x 256", (1,), self.cold_codes)
        self.lab.write("cold starts")
        ways = [
            ("cold start, all labels", run["backbone"], 0, seed)
            for seed, run in zip(SEEDS, self.cold, strict=True)
        ]
        teachers = self.lab.fine_tuned(ways, self.steps // 2)
        self.teaching = {"all labels, centered": (teachers, True)}
        ways = [
            ("all labels, centered", teacher, True, seed)
            for seed, teacher in zip(SEEDS, teachers, strict=True)
        ]
        codes = self.lab.learned_codes(ways, self.tokenizer_steps)
        self.codes = {(way[0], way[3]): x for way, x in zip(ways, codes, strict=True)}
        self.lab.write("codes")
        steps = self.steps, 2 * self.steps + self.tokenizer_steps
        self.after([("all labels, centered", "fresh")], self.codes, {}, steps)
        self.lab.write("students")
        self.regression((1,))
        self.lab.write("regression")


class Targets(Study):
    """What in the targets matters: one change at a time, fresh students."""

    def __call__(self):
        self.cold_starts()
        self.longest = self.alone("cold start, 4 x 256", (3.5,), self.cold_codes)
        self.lab.write("cold starts")
        quarter, whole = self.tokenizer_steps, self.steps
        short, long = self.cold, self.longest
        for name, teachers, is_centered, steps, options in (
            ("last block", short, True, quarter, {}),
            ("three blocks", short, True, quarter, {"blocks": 3}),
            ("three blocks, as they are", short, False, quarter, {"blocks": 3}),
            ("long tokenizer", short, True, whole, {}),
            ("tokenizer from new weights", short, True, whole, {"start": "random"}),
            ("long cold start", long, True, quarter, {}),
            ("long cold start, three blocks", long, True, quarter, {"blocks": 3}),
            ("two levels", short, True, quarter, {"levels": 2}),
            ("one level", short, True, quarter, {"levels": 1}),
        ):
            if time.perf_counter() - self.began > 60 * self.minutes:
                print(f"{self.lab.args.data}: no time for {name}", flush=True)
                continue
            ways = [
                (name, run["backbone"], is_centered, seed)
                for seed, run in zip(SEEDS, teachers, strict=True)
            ]
            codes = self.lab.learned_codes(ways, steps, **options)
            codes = {(name, seed): x for seed, x in zip(SEEDS, codes, strict=True)}
            before = dict(zip(SEEDS, teachers, strict=True))
            taught = self.steps * (1 if teachers is short else 3.5)
            self.after(
                [(name, "fresh"), (name, "continued")],
                codes,
                before,
                (round(taught), round(taught + steps + self.steps)),
                options.get("levels", 4),
            )
            self.lab.write(name)


class OneRound(Study):
    """One round against the cold start and masked regression at equal total steps.

    The round is as by default: the tokenizer learns from the cold start's encoder,
    which goes on with its codes and the cold start's; with 4 x 256 and 1 x 1024 codes.
    """

    def __call__(self):
        self.untrained()
        total = 2 * self.steps + self.tokenizer_steps
        for levels, size in ((4, 256), (1, 1024)):
            name, sizes = f"cold start, {levels} x {size}", (levels, size)
            self.cold_codes = self.lab.cold_codes(*sizes)
            shares = dict(zip(("levels", "size"), sizes, strict=True))
            cold = self.alone(name, (1,), self.cold_codes, **shares)
            ways = [
                ("cold start", run["backbone"], False, seed)
                for seed, run in zip(SEEDS, cold, strict=True)
            ]
            codes = self.lab.learned_codes(ways, self.tokenizer_steps, *sizes)
            codes = {(way[0], way[3]): x for way, x in zip(ways, codes, strict=True)}
            self.both_codes(codes, dict(zip(SEEDS, cold, strict=True)), sizes, total)
            self.lab.write(f"a round of {levels} x {size}")
            if levels > 1:
                self.alone(name, (2.25,), self.cold_codes)
                self.lab.write("cold start alone")
                self.regression((2.25,))
                self.lab.write("regression")

    def both_codes(self, codes, before, sizes, total):
        """Encoders that go on with learned codes and the cold start's."""
        kinds, steps = [("cold start", "continued")], (self.steps, total)
        levels = 2 * sizes[0]
        self.after(kinds, codes, before, steps, levels, sizes[1], keep=True)


class Levels(Study):
    """Cold starts with other numbers of levels and codes, at equal steps."""

    def __call__(self):
        self.untrained()
        for levels, size in ((1, 1024), (4, 256), (2, 256), (8, 256), (1, 256)):
            name, codes = f"{levels} x {size}", self.lab.cold_codes(levels, size)
            shares = {"levels": levels, "size": size}
            self.alone(f"cold start, {name}", (1,), codes, **shares)
            self.lab.write(name)


class Changes(Study):
    """One change of the cold start, or of masked regression, at a time."""

    def __call__(self):
        self.untrained()
        masks = {
            ratio: {"mask": lambda ratio=ratio: kb.RandomMask(ratio, seed=0)}
            for ratio in (0.3, 0.75)
        }
        for name, levels, size, changes in (
            ("cold start, 4 x 256", 4, 256, {}),
            ("masked regression", 0, 0, {}),
            ("centered", 4, 256, {"centered": True}),
            ("centered, mask 0.3", 4, 256, {"centered": True, **masks[0.3]}),
            ("masked regression, mask 0.3", 0, 0, masks[0.3]),
            ("mask 0.75", 4, 256, masks[0.75]),
            ("masked regression, mask 0.75", 0, 0, masks[0.75]),
            ("rate 3e-3", 4, 256, {"rate": 3e-3}),
            ("1 x 32", 1, 32, {}),
            ("1 x 256", 1, 256, {}),
            ("1 x 1024", 1, 1024, {}),
            ("2 x 64", 2, 64, {}),
            ("8 x 256", 8, 256, {}),
            ("8 x 256, centered", 8, 256, {"centered": True}),
        ):
            if self.lab.args.ways and name not in self.lab.args.ways:
                continue
            data = copy.copy(self.lab.data)
            for attribute, value in changes.items():
                setattr(data, attribute, value)
            lab = Lab(data, self.lab.args)
            lab.found = self.lab.found
            study = Study(lab, self.steps, self.minutes)
            if levels:
                sizes = {"levels": levels, "size": size}
                sizes["rate"] = changes.get("rate", 1e-3)
                study.alone(name, (1,), lab.cold_codes(levels, size), **sizes)
            else:
                study.regression((1,), name)
            self.lab.write(name)


STUDIES = {
    "whole": Study,
    "changes": Changes,
    "informed": Informed,
    "round": OneRound,
    "targets": Targets,
    "levels": Levels,
}


def plateau(data, args):
    """How long moving pictures teach nothing, and what shortens that."""
    variants = {
        "tubes 0.75, centered": {},
        "random 0.5": {"mask": lambda: kb.RandomMask(0.5, seed=0)},
        "random 0.75": {"mask": lambda: kb.RandomMask(0.75, seed=0)},
        "random 0.9": {"mask": lambda: kb.RandomMask(0.9, seed=0)},
        "not centered": {"centered": False},
        "learned positions": {"layout": "learned"},
        "one level of 256": {"levels": 1},
        "warm-up of a third": {"warmup": 0.33},
        "patches 4 x 8 x 8": {"patch_size": (4, 8, 8)},
        "batches of 16": {"batch_size": 16},
        "regression, tubes 0.75": {"regression": True},
        "regression, random 0.75": {
            "regression": True,
            "mask": lambda: kb.RandomMask(0.75, seed=0),
        },
    }
    found = []
    for name, changes in variants.items():
        if args.ways and name not in args.ways:
            continue
        if time.perf_counter() - args.began > 60 * args.minutes:
            print(f"plateau: no time for {name}", flush=True)
            continue
        some = copy.copy(data)
        some.quota, some.probed = {100: 1}, 3000
        for attribute, value in changes.items():
            setattr(some, attribute, value)
        lab = Lab(some, args)
        lab.found = found
        rates, seeds = args.rates, SEEDS[:2]
        pairs = [*itertools.product(rates, seeds)]
        ways = [(f"{name}, rate {rate:g}", seed) for rate, seed in pairs]
        starts = [{"backbone": lab.new[seed]["backbone"]} for _, seed in pairs]
        if not found:
            lab.note_probes(
                [("untrained", seed, 0) for seed in seeds],
                stacked([lab.new[seed]["backbone"] for seed in seeds]),
            )

        def each(step, read, lab=lab, ways=ways):
            lab.note_probes([(*way, step) for way in ways], read("backbone"))

        kind, own = "regression", {}
        if not changes.get("regression"):
            kind, levels = "encoder", changes.get("levels", 4)
            codes = lab.cold_codes(levels, 256)
            own = {"codes": [codes[seed] for _, seed in pairs]}
            for start, (_, seed) in zip(starts, pairs, strict=True):
                start["decoder"] = lab.new_part("decoder", seed, levels, 256)
            runs = lab.runs(kind, levels)
        else:
            runs = lab.runs(kind)
        warmup = changes.get("warmup", 0.05)
        lab.train(
            runs,
            [(start, seed) for start, (_, seed) in zip(starts, pairs, strict=True)],
            [cosine(rate, args.steps, warmup=warmup) for rate, _ in pairs],
            own,
            each=each,
            every=max(250, args.steps // 8 // 250 * 250),
        )
        lab.write(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--steps", type=int, default=4000, help="of an encoder phase")
    parser.add_argument(
        "--minutes", type=float, default=60, help="start no stage after"
    )
    parser.add_argument("--out", default="benchmarks/quality/results")
    parser.add_argument("--clothes", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--espeak", default="espeak-ng")
    add = parser.add_argument
    add("--study", choices=STUDIES, default="whole", help="stages to run")
    add("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="of plateau")
    add("--ways", nargs="+", help="of plateau and of --study changes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--cpu",
        type=int,
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="so few examples, and one run at a time",
    )
    args = parser.parse_args()
    args.began = time.perf_counter()
    global SEEDS
    SEEDS = tuple(args.seeds)
    if args.cpu:
        many_runs.GROUP = many_runs.FEW = 1
        many_runs.STEPS_OF_A_CALL = 50
        for kind in DATA.values():
            kind.batch_size, kind.probed = 32, 4000
        Speech.patch_size = (8, 32)
    else:
        keras.config.set_dtype_policy("mixed_bfloat16")
    # Fused attention gains nothing with so few tokens, and knows no vmap.
    keras.config.disable_flash_attention()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    data = DATA[args.data](args)
    print(
        f"{args.data}: data after {time.perf_counter() - args.began:.0f} s", flush=True
    )
    if args.data == "plateau":
        plateau(data, args)
    else:
        STUDIES[args.study](Lab(data, args), args.steps, args.minutes)()


if __name__ == "__main__":
    main()
