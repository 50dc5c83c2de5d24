"""The plan of phases, really run: hand-over, files, and going on after a stop."""

import csv
import json
import re
import types

import keras
import numpy as np
import pytest
from keras import ops
from tiny_pretraining import (
    assert_same_bits,
    backbone,
    code_vectors,
    maps,
    num_changed,
    weights_of,
)

from keras_bridle.config import ArgumentError, TrainingOptions, current_settings
from keras_bridle.data.readers import import_tensorflow
from keras_bridle.training.interleaved import InterleavedPretraining
from keras_bridle.training.phases import phases

PHASES = ["0_cold_start", "1_tokenizer", "2_encoder"]
SETTINGS = {
    "rounds": 1,
    "encoder_epochs": 2,
    "tokenizer_epochs": 2,
    "batch_size": 4,
    "encoder_learning_rate": 1e-2,
    "tokenizer_learning_rate": 1e-2,
    "verbose": 0,
}
INPUTS = maps(10)


def new_pretraining(**kwargs):
    """As in a fresh process: the same start every time."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)
    settings = {
        "num_levels": 2,
        "codebook_size": 8,
        "code_dim": 4,
        # All that is drawn or counted must survive a stop.
        "quantizer_options": {"restart_threshold": 0.1},
        "keep_cold_start_codes": False,
        "augmentation": keras.layers.GaussianNoise(0.1),
        "decoder_options": {"num_layers": 1, "num_heads": 2, "mlp_dim": 32},
        "estimator_options": {"num_heads": 2, "mlp_dim": 32},
    }
    return InterleavedPretraining(backbone(), **{**settings, **kwargs})


class Stop(Exception):
    """What the tests stop a run with."""


class Recorder(keras.callbacks.Callback):
    """Copies weights at the start of each phase, and codebooks after each epoch."""

    def __init__(self):
        super().__init__()
        self.phases, self.logs = [], []

    def on_train_begin(self, logs=None):
        model = self.model
        parts = {
            name: weights_of(getattr(model, name))
            for name in model.parts
            if getattr(model, name) is not None
        }
        parts["tokenizer_backbone"] = weights_of(
            getattr(model.tokenizer, "backbone", model.tokenizer)
        )
        record = types.SimpleNamespace(
            kind=type(model).__name__,
            parts=parts,
            trainer=model,
            tokenizer=model.tokenizer,
            codebooks=[code_vectors(model)],
            optimizer=model.optimizer,
            rates=[],
        )
        self.phases.append(record)

    def on_epoch_end(self, epoch, logs=None):
        logs["mine"] = epoch + 0.5
        self.logs.append(dict(logs))
        self.phases[-1].codebooks.append(code_vectors(self.model))
        rate = self.model.optimizer.learning_rate
        self.phases[-1].rates.append(float(ops.convert_to_numpy(rate)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from its start to its end."""
    directory = tmp_path_factory.mktemp("runs") / "unbroken"
    pretraining, recorder, ends = new_pretraining(), Recorder(), []

    def on_phase_end(phase, pretraining):
        ends.append((phase, weights_of(pretraining.backbone)))

    def on_start(pretraining):
        assert pretraining.history == {}
        assert (directory / "settings.json").exists()
        ends.append(weights_of(pretraining.backbone))

    returned = pretraining.fit(
        INPUTS,
        directory=directory,
        callbacks=[recorder],
        on_start=on_start,
        on_phase_end=on_phase_end,
        **SETTINGS,
    )
    start, *ends = ends
    return types.SimpleNamespace(
        pretraining=pretraining,
        directory=directory,
        recorder=recorder,
        records=dict(zip(PHASES, recorder.phases, strict=True)),
        start=start,
        ends=ends,
        returned=returned,
        parts=all_weights(pretraining),
    )


def all_weights(pretraining):
    names = ("backbone", "decoder", "tokenizer", "estimator")
    return weights_of(*(getattr(pretraining, name) for name in names))


def test_phases_and_history(finished):
    history = finished.pretraining.history
    assert list(history) == PHASES
    assert history is finished.returned
    kinds = [record.kind for record in finished.recorder.phases]
    assert kinds == ["EncoderPretrainer", "TokenizerPretrainer", "EncoderPretrainer"]
    for values in history.values():
        assert {len(numbers) for numbers in values.values()} == {2}
    levels = {
        f"{name}_{i}" for name in ("usage", "perplexity", "dead_codes") for i in (1, 2)
    }
    encoder = {"loss", "accuracy_1", "accuracy_2", "mine"} | levels
    assert set(history["0_cold_start"]) == set(history["2_encoder"]) == encoder
    tokenizer = {"loss", "cosine", "quantizer_loss", "mine"} | levels
    assert set(history["1_tokenizer"]) == tokenizer
    logged = [
        {name: numbers[epoch] for name, numbers in values.items()}
        for values in history.values()
        for epoch in (0, 1)
    ]
    assert logged == finished.recorder.logs


def test_weights_are_handed_over(finished):
    cold, tokenizer, encoder = finished.records.values()
    after_cold, after_tokenizer, after_encoder = (end[1] for end in finished.ends)
    assert [end[0].name for end in finished.ends] == PHASES
    assert_same_bits(cold.parts["backbone"], finished.start)
    assert num_changed(cold.parts["backbone"], after_cold) > 10
    assert_same_bits(tokenizer.parts["teacher"], after_cold)
    assert_same_bits(tokenizer.parts["tokenizer_backbone"], after_cold)
    assert_same_bits(after_tokenizer, after_cold)
    assert_same_bits(encoder.parts["backbone"], after_cold)
    assert num_changed(after_encoder, after_cold) > 10
    assert_same_bits(weights_of(finished.pretraining.backbone), after_encoder)
    # The encoder phase learns from what the tokenizer phase trained.
    assert encoder.tokenizer is tokenizer.tokenizer
    assert_same_bits(encoder.parts["tokenizer"], weights_of(tokenizer.tokenizer))
    assert num_changed(tokenizer.parts["tokenizer"], encoder.parts["tokenizer"]) > 10
    # Its decoder goes on from the last one, with a new head.
    names = [weight.path for weight in encoder.trainer.decoder.weights]
    start, trained = encoder.parts["decoder"], weights_of(cold.trainer.decoder)
    changed = [(x != y).any() for x, y in zip(start, trained, strict=True)]
    assert changed == ["/head/" in name for name in names]


def test_decoders_can_start_anew():
    recorder = Recorder()
    new_pretraining(decoder_start="random").fit(
        INPUTS, **{**SETTINGS, "encoder_epochs": 1}, callbacks=[recorder]
    )
    cold, _, encoder = recorder.phases
    trained = weights_of(cold.trainer.decoder)
    assert num_changed(encoder.parts["decoder"], trained) == len(trained)


def test_codebooks_move_in_tokenizer_phases_alone(finished):
    for name, record in finished.records.items():
        moves = [
            (before != after).any()
            for before, after in zip(
                record.codebooks, record.codebooks[1:], strict=False
            )
        ]
        assert moves == [name == "1_tokenizer"] * 2
    starts = [record.codebooks[0] for record in finished.recorder.phases]
    assert (starts[0] != starts[1]).any()
    np.testing.assert_array_equal(
        starts[2], finished.records["1_tokenizer"].codebooks[-1]
    )


def test_codebooks_start_as_k_means_of_the_data(finished):
    """The cold start's codes are all in use, and near to what they stand for."""
    first = finished.pretraining.history["0_cold_start"]
    assert first["usage_1"][0] == first["usage_2"][0] == 1.0


def test_codebooks_can_stay_as_they_were_drawn(finished):
    recorder = Recorder()
    settings = {**SETTINGS, "rounds": 0, "cold_start_epochs": 1, "adapt_batches": 0}
    new_pretraining().fit(INPUTS, **settings, callbacks=[recorder])
    drawn = recorder.phases[0].codebooks[0]
    assert (drawn != finished.recorder.phases[0].codebooks[0]).any()
    fresh = new_pretraining()._new_quantizer()
    fresh.build((None, None, 4))
    np.testing.assert_array_equal(drawn, ops.convert_to_numpy(fresh.code_vectors))


def test_learning_rates(finished):
    for record, rate in zip(finished.recorder.phases, (1e-2, 1e-2, 1e-2), strict=True):
        schedule = record.optimizer.get_config()["learning_rate"]["config"]
        # 2 epochs of 2 batches; 5 % of 4 batches is no warm-up.
        assert schedule["decay_steps"] == 4
        expected = [rate * 0.5 * (1 + np.cos(np.pi * done)) for done in (0.5, 1.0)]
        np.testing.assert_allclose(record.rates, expected, 1e-5, 1e-9)


def test_files(finished):
    directory = finished.directory
    settings = json.loads((directory / "settings.json").read_text())["settings"]
    assert settings["codebook_size"] == 8
    assert settings["augmentation"]["class_name"] == "GaussianNoise"
    assert settings["num_batches"] == 2
    assert (settings["tokenizer_every"], settings["tokenizer_loss_ratio"]) == (4, 0.2)
    assert settings["tokenize"] == "all"
    assert settings["plan"][1] == ["1_tokenizer", "tokenizer", 2, 0.01]
    assert json.loads((directory / "state.json").read_text()) == {"phases_done": PHASES}
    for name in PHASES:
        folder = directory / "phases" / name
        with (folder / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        history = finished.pretraining.history[name]
        assert [row.pop("epoch") for row in rows] == ["0", "1"]
        for epoch, row in enumerate(rows):
            numbers = {key: float(value) for key, value in row.items()}
            assert numbers == {key: values[epoch] for key, values in history.items()}
        assert json.loads((folder / "history.json").read_text()) == history
        events = list(folder.glob("tensorboard/**/events*"))
        assert sum(path.stat().st_size for path in events) > 500
        assert not (folder / "checkpoint.npz").exists()
    saved = {path.name for path in (directory / "phases" / PHASES[1]).glob("*.h5")}
    assert saved == {"tokenizer.weights.h5", "estimator.weights.h5"}
    other = backbone()
    other.load_weights(directory / "phases" / PHASES[0] / "backbone.weights.h5")
    assert_same_bits(weights_of(other), finished.ends[0][1])


def test_networks_come_back_trainable(finished):
    pretraining = finished.pretraining
    for part in (pretraining.backbone, pretraining.tokenizer, pretraining.estimator):
        assert part.trainable
        assert part.trainable_variables


def test_codes(finished):
    pretraining = finished.pretraining
    codes = pretraining.codes(INPUTS, batch_size=4)
    assert codes.shape == (10, 8, 2)
    assert codes.dtype == np.int32
    features, padding_mask = pretraining.backbone.features(INPUTS)
    expected = pretraining.tokenizer(features, padding_mask).codes
    # Rounding in other shapes may tip the balance between two codes.
    assert (codes == ops.convert_to_numpy(expected)).mean() > 0.97
    with pytest.raises(ValueError, match="no tokenizer yet"):
        new_pretraining().codes(INPUTS)


def test_a_stopped_run_goes_on_as_if_nothing_had_been(finished, tmp_path):
    """Stopped inside and between phases, and gone on with in new objects each time."""
    stops = [
        ("EncoderPretrainer", "on_epoch_begin", 1),
        ("TokenizerPretrainer", "on_train_begin", None),
        ("TokenizerPretrainer", "on_train_batch_end", 3),
        ("EncoderPretrainer", "on_train_end", None),
        (None, None, None),
    ]
    for kind, event, count in stops:
        pretraining = new_pretraining()
        interrupt = Interrupt(kind, event, count)
        settings = {**SETTINGS, "callbacks": [interrupt], "tensorboard": False}
        settings |= {"directory": tmp_path / "run", "resume": True}
        if kind is None:
            pretraining.fit(INPUTS, **settings)
        else:
            with pytest.raises(Stop):
                pretraining.fit(INPUTS, **settings)
            assert pretraining.backbone.trainable
            assert np.isfinite(weights_of(pretraining.backbone)[0]).all()
    expected = {
        phase: {name: numbers for name, numbers in values.items() if name != "mine"}
        for phase, values in finished.pretraining.history.items()
    }
    assert pretraining.history == expected
    assert_same_bits(all_weights(pretraining), finished.parts)
    for name in PHASES:
        with (tmp_path / "run" / "phases" / name / "history.csv").open() as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


def test_settings_that_serve_pretraining_are_the_defaults():
    pretraining = InterleavedPretraining(backbone())
    assert pretraining.keep_cold_start_codes
    for phase in phases(TrainingOptions())[:2]:
        quantizer = pretraining.new_tokenizer(phase).quantizer
        assert (quantizer.normalize, quantizer.restart_threshold) == ("level", 0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"normalize": None, "restart_threshold": None}, (None, None)),
        ({"quantizer_options": {"normalize": "input"}}, ("input", 0.1)),
        ({"quantizer_options": {"restart_threshold": 0.3}}, ("level", 0.3)),
        # Codebooks that are weights have nothing to restart by.
        ({"quantizer_options": {"codebook_update": "gradient"}}, ("level", None)),
    ],
)
def test_options_of_the_quantizer(options, expected):
    made = InterleavedPretraining(backbone(), **options)._new_quantizer()
    assert (made.normalize, made.restart_threshold) == expected


@pytest.mark.parametrize("decoder_start", ["previous", "random"])
def test_codes_of_the_cold_start_can_stay(tmp_path, decoder_start):
    options = {"keep_cold_start_codes": True, "decoder_start": decoder_start}
    settings = {**SETTINGS, "rounds": 2, "tensorboard": False}
    settings |= {"encoder_epochs": 1, "tokenizer_epochs": 1}
    recorder, trained = Recorder(), []
    pretraining = new_pretraining(**options)
    pretraining.fit(
        INPUTS,
        callbacks=[recorder],
        on_phase_end=lambda phase, p: trained.append(weights_of(p.decoder)),
        **settings,
    )
    cold, _, first, _, second = recorder.phases
    earlier = cold.trainer.tokenizer
    assert cold.trainer.earlier_tokenizer is None
    for record in (first, second):
        assert record.trainer.earlier_tokenizer is earlier
        assert record.trainer.tokenizer is not earlier
        assert_same_bits(weights_of(earlier), cold.parts["tokenizer"])
    for name, levels in (("0_cold_start", 2), ("2_encoder", 4), ("4_encoder", 4)):
        assert f"accuracy_{levels}" in pretraining.history[name]
        assert f"accuracy_{levels + 1}" not in pretraining.history[name]
    # The heads of the codes that stay go on, in each round; those of new codes do not.
    *_, kernel, bias = first.parts["decoder"]
    starts = [kernel, bias, *second.parts["decoder"][-2:]]
    ends = [*trained[0][-2:], *trained[2][-2:]]
    for start, end in zip(starts, ends, strict=True):
        goes_on = (start[..., -16:] == end[..., -16:]).all()
        if start.any():  # a new bias is zero, as that of the cold start may be
            assert goes_on == (decoder_start == "previous")
            assert (start[..., :16] != end[..., :16]).any()
    if decoder_start == "random":
        return
    for kind, event, count in [
        ("TokenizerPretrainer", "on_train_begin", None),
        ("EncoderPretrainer", "on_train_end", None),
        (None, None, None),
    ]:
        stopped = new_pretraining(**options)
        interrupt = Interrupt(kind, event, count)
        files = {"directory": tmp_path / "run", "resume": True}
        try:
            stopped.fit(INPUTS, callbacks=[interrupt], **files, **settings)
        except Stop:
            continue
    assert_same_bits(all_weights(stopped), all_weights(pretraining))


class Interrupt(keras.callbacks.Callback):
    """Stops the training of one kind of trainer at an event."""

    def __init__(self, kind, event, count):
        super().__init__()
        self.kind, self.count, self.batches = kind, count, 0
        if event is not None:
            setattr(self, event, self.stop)

    def stop(self, at=None, logs=None):
        if not isinstance(at, int):
            at = None
        self.batches += 1
        # Batches are counted over the epochs.
        reached = self.count is None or self.count in (at, self.batches)
        if type(self.model).__name__ == self.kind and reached:
            raise Stop


def test_a_finished_run_is_only_loaded(finished):
    pretraining = new_pretraining()
    recorder = Recorder()
    settings = {**SETTINGS, "callbacks": [recorder], "directory": finished.directory}
    history = pretraining.fit(INPUTS, resume=True, **settings)
    assert recorder.phases == []
    assert history == finished.pretraining.history
    assert_same_bits(all_weights(pretraining), finished.parts)
    assert pretraining.backbone.trainable
    with pytest.raises(FileExistsError, match="resume=True"):
        pretraining.fit(INPUTS, **settings)
    changed = {**settings, "resume": True, "weight_decay": 0.5}
    with pytest.raises(ValueError, match=r"weight_decay: 0\.0001 then, 0\.5 now"):
        pretraining.fit(INPUTS, **changed)
    with pytest.raises(ValueError, match="num_batches: 2 then, 1 now"):
        pretraining.fit(INPUTS[:7], resume=True, **settings)
    other = new_pretraining(augmentation=keras.layers.GaussianNoise(0.2))
    with pytest.raises(ValueError, match=r"augmentation: .*0\.1.*0\.2"):
        other.fit(INPUTS, resume=True, **settings)


def test_joint_run_on_a_function_of_the_epoch():
    """With moving averages, accumulation, clipping, and a random tokenizer."""
    asked = []

    def batches(epoch):
        asked.append(epoch)
        dataset = import_tensorflow().data.Dataset.from_tensor_slices(INPUTS)
        return dataset.shuffle(10, seed=epoch).batch(4, drop_remainder=True).repeat()

    recorder = Recorder()
    pretraining = new_pretraining(
        tokenizer_start="random", quantizer_options={}, augmentation=None
    )
    history = pretraining.fit(
        batches,
        joint=True,
        tokenizer_every=3,
        tokenizer_loss_ratio=0.5,
        steps_per_epoch=3,
        ema_momentum=0.5,
        gradient_accumulation_steps=2,
        clip_norm=0.1,
        warmup=0.5,
        callbacks=[recorder],
        **SETTINGS,
    )
    assert list(history) == ["0_cold_start", "1_joint"]
    assert set(asked) == {0}
    joint = recorder.phases[1]
    assert joint.kind == "JointPretrainer"
    assert num_changed(joint.parts["tokenizer_backbone"], joint.parts["backbone"]) > 5
    assert (joint.trainer.tokenizer_every, joint.trainer.tokenizer_loss_ratio) == (
        3,
        0.5,
    )
    # The tokenizer is due at steps 0 and 3, one in each epoch.
    assert (joint.codebooks[0] != joint.codebooks[1]).any()
    assert (joint.codebooks[1] != joint.codebooks[2]).any()
    assert all(cosine != 0 for cosine in history["1_joint"]["cosine"])
    optimizer = joint.optimizer
    assert optimizer.use_ema
    assert optimizer.ema_momentum == 0.5
    assert optimizer.global_clipnorm == 0.1
    assert optimizer.gradient_accumulation_steps == 2
    # The schedule counts the 6 batches: half up, half down, and zero at the end.
    np.testing.assert_allclose(joint.rates, [1e-2, 0], atol=1e-8)
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(variable), ops.convert_to_numpy(average)
        )


class Reread(keras.utils.PyDataset):
    """Three batches."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return INPUTS[index * 3 : index * 3 + 3]


def test_data_set_and_options_of_the_quantizer():
    pretraining = new_pretraining(quantizer_options={"top_k": 2}, augmentation=None)
    options = {**SETTINGS, "rounds": 0, "cold_start_epochs": 1, "adapt_batches": 2}
    history = pretraining.fit(Reread(), **options)
    assert list(history) == ["0_cold_start"]
    assert np.isfinite(history["0_cold_start"]["loss"]).all()
    assert pretraining.codes(INPUTS[:4]).shape == (4, 8, 2, 2)


def test_an_error_in_a_phase_end_can_be_made_good(tmp_path):
    """The phase counts as done only after its end was seen to, and is not repeated."""
    settings = {**SETTINGS, "rounds": 0, "directory": tmp_path, "tensorboard": False}

    def fail(phase, pretraining):
        raise Stop

    with pytest.raises(Stop):
        new_pretraining().fit(INPUTS, on_phase_end=fail, **settings)
    seen, recorder = [], Recorder()
    pretraining = new_pretraining()
    pretraining.fit(
        INPUTS,
        resume=True,
        callbacks=[recorder],
        on_phase_end=lambda phase, pretraining: seen.append(phase.name),
        **settings,
    )
    assert seen == PHASES[:1]
    assert recorder.logs == []
    assert [len(v) for v in pretraining.history[PHASES[0]].values()] == [2] * 9


def test_progress_tells_whether_reading_keeps_up(capsys):
    def batches(epoch):
        dataset = import_tensorflow().data.Dataset.from_tensor_slices(INPUTS)
        return dataset.batch(4, drop_remainder=True)

    options = {**SETTINGS, "rounds": 0, "cold_start_epochs": 1, "verbose": 1}
    history = new_pretraining().fit(batches, **options)
    line = capsys.readouterr().out
    assert "examples/s" in line
    assert re.search(r"\d %? ?waiting for input|\d% waiting for input", line)
    assert re.search(r"\(alone [\d.]+/s\)", line)
    # Timed or not, batches are the same ones.
    again = new_pretraining().fit(batches, **{**options, "verbose": 0})
    assert history == again


@pytest.mark.parametrize(
    ("inputs", "settings", "argument"),
    [
        (INPUTS, {"rounds": -1}, "rounds"),
        (INPUTS, {"rounds": 0, "joint": True}, "rounds"),
        (INPUTS, {"warmup": 1.0}, "warmup"),
        (INPUTS, {"steps_per_epoch": 3}, "steps_per_epoch"),
        (INPUTS[:0], {}, "inputs"),
        (INPUTS[..., 0], {}, "inputs"),
        (INPUTS[:, :16], {}, "inputs"),
        (iter([INPUTS]), {"steps_per_epoch": 1}, "inputs"),
        (lambda epoch: iter([INPUTS]), {}, "steps_per_epoch"),
    ],
)
def test_errors_before_anything_is_done(tmp_path, inputs, settings, argument):
    started = []
    with pytest.raises(ArgumentError) as caught:
        new_pretraining().fit(
            inputs,
            directory=tmp_path / "run",
            on_start=started.append,
            **{**SETTINGS, **settings},
        )
    assert caught.value.argument == argument
    assert not (tmp_path / "run").exists()
    assert not started


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenize": "visible"},
        {"quantizer_options": {"top_k": 99}},
        {"decoder_options": {"num_heads": 5}},
        {"estimator_options": {"attention": "local"}},
        {"seed": -1},
        {"augmentation": keras.layers.Normalization()},
    ],
)
def test_errors_of_the_constructor(settings):
    if "augmentation" in settings:
        settings["augmentation"].adapt(maps(8))
    with pytest.raises(ValueError):
        new_pretraining(**settings)


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def test_a_front_end_that_cannot_be_copied_is_an_error_now():
    with pytest.raises(TypeError, match="Unregistered"):
        InterleavedPretraining(backbone(front_end=Unregistered()))


def test_seeds_can_be_dates():
    pretraining = new_pretraining(seed=20991231)
    pretraining.fit(INPUTS, **{**SETTINGS, "rounds": 0, "encoder_epochs": 1})
    assert np.isfinite(pretraining.history["0_cold_start"]["loss"]).all()


def test_a_run_keeps_to_its_dtype_policy():
    before = InterleavedPretraining(backbone()).settings()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        after = InterleavedPretraining(backbone()).settings()
    finally:
        keras.config.set_dtype_policy("float32")
    assert before["dtype_policy"] == "float32"
    assert after["dtype_policy"] == "mixed_bfloat16"
    assert before["backbone"] != after["backbone"]
    assert "mixed_bfloat16" in json.dumps(after["backbone"])


def test_plan_of_phases():
    options = {"encoder_learning_rate": 0.1, "tokenizer_learning_rate": 0.2}
    options |= {"encoder_epochs": 5, "tokenizer_epochs": 3}
    assert phases(TrainingOptions(rounds=2, **options)) == [
        ("0_cold_start", "cold_start", 5, 0.1),
        ("1_tokenizer", "tokenizer", 3, 0.2),
        ("2_encoder", "encoder", 5, 0.1),
        ("3_tokenizer", "tokenizer", 3, 0.2),
        ("4_encoder", "encoder", 5, 0.1),
    ]
    options |= {"cold_start_epochs": 7, "cold_start_learning_rate": 0.4}
    assert phases(TrainingOptions(rounds=3, joint=True, **options)) == [
        ("0_cold_start", "cold_start", 7, 0.4),
        ("1_joint", "joint", 15, 0.1),
    ]


def test_settings_are_json_whatever_the_options():
    pretraining = new_pretraining(
        codebook_size=8,
        mask=None,
        augmentation=keras.Sequential([keras.layers.RandomFlip(seed=1)]),
        decoder_options={
            "num_layers": np.int64(1),
            "dtype": keras.DTypePolicy("float32"),
        },
    )
    settings = pretraining.settings()
    again = json.loads(json.dumps(settings))
    assert again["decoder_options"]["num_layers"] == 1
    assert again["mask"] is None
    # The names that Keras numbers do not make another run of it.
    other = new_pretraining(
        augmentation=keras.Sequential([keras.layers.RandomFlip(seed=1)]),
        decoder_options={"num_layers": 1, "dtype": keras.DTypePolicy("float32")},
    )
    assert json.loads(json.dumps(other.settings())) == again


def test_settings_of_an_earlier_version_have_the_same_form():
    today = new_pretraining(quantizer_options={"decay": 0.9}).settings()
    earlier = json.loads(json.dumps(today))
    names = ("normalize", "restart_threshold")
    earlier["quantizer_options"] |= {name: earlier.pop(name) for name in names}
    earlier["backbone"]["module"] = "keras_bridle.models.bridle_backbone"
    assert current_settings(earlier) == json.loads(json.dumps(current_settings(today)))
