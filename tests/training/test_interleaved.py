"""The plan of phases, really run: hand-over, files, and going on after a stop."""

import csv
import json
import re
import shutil
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny_pretraining
from keras import ops
from tiny_pretraining import (
    Stop,
    all_weights,
    assert_same_bits,
    backbone,
    code_vectors,
    maps,
    num_changed,
    weights_of,
)

from keras_bridle.config import ArgumentError, TrainingOptions
from keras_bridle.data.files import FileList
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.training.interleaved import InterleavedPretraining, load_run
from keras_bridle.training.phases import by_size, phases, remarks

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
    settings = {
        # Seeds may be dates.
        "seed": 20991231,
        # All that is drawn or counted must survive a stop.
        "quantizer_options": {"restart_threshold": 0.1},
        "keep_cold_start_codes": False,
    }
    return tiny_pretraining.pretraining(noise=0.1, **{**settings, **kwargs})


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


def features_of(pretraining):
    return ops.convert_to_numpy(pretraining.backbone.pooled_features(INPUTS))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from its start to its end."""
    directory = tmp_path_factory.mktemp("runs") / "unbroken"
    pretraining, recorder, ends, outputs = new_pretraining(), Recorder(), [], []

    def on_phase_end(phase, pretraining):
        ends.append((phase, weights_of(pretraining.backbone)))
        outputs.append((pretraining.codes(INPUTS), features_of(pretraining)))

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
        outputs=outputs,
        returned=returned,
        parts=all_weights(pretraining),
    )


def test_phases_and_history(finished):
    history = finished.pretraining.history
    assert list(history) == PHASES
    assert history is finished.returned
    kinds = [record.kind for record in finished.recorder.phases]
    assert kinds == ["EncoderPretrainer", "TokenizerPretrainer", "EncoderPretrainer"]
    names = ("usage", "perplexity", "dead_codes")
    levels = {"loss", "mine"} | {f"{name}_{i}" for name in names for i in (1, 2)}
    encoder = {"accuracy_1", "accuracy_2"} | levels
    assert set(history["0_cold_start"]) == set(history["2_encoder"]) == encoder
    assert set(history["1_tokenizer"]) == {"cosine", "quantizer_loss"} | levels
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


def test_decoders_and_codebooks_can_start_anew(finished):
    """Also with several codes a level."""
    options = {"decoder_start": "random", "quantizer_options": {"top_k": 2}}
    pretraining, recorder = new_pretraining(**options), Recorder()
    settings = {**SETTINGS, "encoder_epochs": 1, "adapt_batches": 0}
    history = pretraining.fit(INPUTS, **settings, callbacks=[recorder])
    cold, _, encoder = recorder.phases
    trained = weights_of(cold.trainer.decoder)
    assert num_changed(encoder.parts["decoder"], trained) == len(trained)
    assert np.isfinite(history["2_encoder"]["loss"]).all()
    assert pretraining.codes(INPUTS[:4]).shape == (4, 8, 2, 2)
    drawn = cold.codebooks[0]
    assert (drawn != finished.recorder.phases[0].codebooks[0]).any()
    fresh = new_pretraining()._new_quantizer()
    fresh.build((None, None, 4))
    np.testing.assert_array_equal(drawn, ops.convert_to_numpy(fresh.code_vectors))


def test_codebooks_move_in_tokenizer_phases_alone(finished):
    for name, record in finished.records.items():
        start, *others = record.codebooks
        moves = [(other != start).any() for other in others]
        assert moves == [name == "1_tokenizer"] * 2
    cold, tokenizer, encoder = finished.recorder.phases
    assert (cold.codebooks[0] != tokenizer.codebooks[0]).any()
    np.testing.assert_array_equal(encoder.codebooks[0], tokenizer.codebooks[-1])
    # They start as k-means of the data, so that all codes are in use.
    first = finished.pretraining.history["0_cold_start"]
    assert first["usage_1"][0] == first["usage_2"][0] == 1.0


def test_files(finished):
    directory = finished.directory
    settings = json.loads((directory / "settings.json").read_text())["settings"]
    assert settings["augmentation"]["class_name"] == "GaussianNoise"
    assert (settings["codebook_size"], settings["num_batches"]) == (8, 2)
    assert settings["plan"][1] == ["1_tokenizer", "tokenizer", 2, 0.01]
    for name in PHASES:
        folder = directory / "phases" / name
        history = finished.pretraining.history[name]
        for epoch, row in enumerate(rows_of(folder)):
            assert row.pop("epoch") == str(epoch)
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


def rows_of(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_codes(finished):
    pretraining = finished.pretraining
    codes = pretraining.codes(INPUTS, batch_size=4)
    assert codes.shape == (10, 8, 2)
    assert codes.dtype == np.int32
    features, padding_mask = pretraining.backbone.features(INPUTS)
    expected = pretraining.tokenizer(features, padding_mask).codes
    # Rounding in other shapes may tip the balance between two codes.
    assert (codes == ops.convert_to_numpy(expected)).mean() > 0.97
    with pytest.raises(ValueError):
        new_pretraining().codes(INPUTS)


def test_a_stopped_run_goes_on_as_if_nothing_had_been(finished, tmp_path):
    """Stopped inside and between phases, and resumed in new objects each time."""
    stops = [
        ("EncoderPretrainer", "on_epoch_begin", 1),
        ("TokenizerPretrainer", "on_train_begin", None),
        ("TokenizerPretrainer", "on_train_batch_end", 3),
        ("EncoderPretrainer", "on_train_end", None),
    ]
    settings = {"directory": tmp_path / "run", "resume": True, "tensorboard": False}
    for stop in stops:
        pretraining = new_pretraining()
        with pytest.raises(Stop):
            pretraining.fit(
                INPUTS, callbacks=[Interrupt(*stop)], **settings, **SETTINGS
            )
        assert pretraining.backbone.trainable
    pretraining = new_pretraining()
    pretraining.fit(INPUTS, **settings, **SETTINGS)
    expected = {
        phase: {name: numbers for name, numbers in values.items() if name != "mine"}
        for phase, values in finished.pretraining.history.items()
    }
    assert pretraining.history == expected
    assert_same_bits(all_weights(pretraining), finished.parts)
    for name in PHASES:
        rows = rows_of(tmp_path / "run" / "phases" / name)
        assert [row["epoch"] for row in rows] == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("level", 0.1)),
        ({"normalize": None, "restart_threshold": None}, (None, None)),
        ({"quantizer_options": {"normalize": "input"}}, ("input", 0.1)),
        ({"quantizer_options": {"restart_threshold": 0.3}}, ("level", 0.3)),
        # Codebooks that are weights have nothing to restart by.
        ({"quantizer_options": {"codebook_update": "gradient"}}, ("level", None)),
    ],
)
def test_options_of_the_quantizer(options, expected):
    pretraining = InterleavedPretraining(backbone(), **options)
    made = pretraining.new_tokenizer(
        phases(by_size(TrainingOptions(), 16))[0]
    ).quantizer
    assert (made.normalize, made.restart_threshold) == expected


def test_codes_of_the_cold_start_can_stay(tmp_path):
    """Also in a run that is stopped after it, and resumed."""
    settings = {**SETTINGS, "rounds": 2, "tensorboard": False}
    settings |= {"encoder_epochs": 1, "tokenizer_epochs": 1}
    settings |= {"directory": tmp_path / "run", "resume": True}
    stopped = new_pretraining(keep_cold_start_codes=True)
    interrupt = Interrupt("TokenizerPretrainer", "on_train_begin", None)
    with pytest.raises(Stop):
        stopped.fit(INPUTS, callbacks=[interrupt], **settings)
    recorder, trained = Recorder(), []
    pretraining = new_pretraining(keep_cold_start_codes=True)
    pretraining.fit(
        INPUTS,
        callbacks=[recorder],
        on_phase_end=lambda phase, p: trained.append(weights_of(p.decoder)),
        **settings,
    )
    earlier = pretraining.cold_start_tokenizer
    before = stopped.cold_start_tokenizer
    assert_same_bits(weights_of(earlier), weights_of(before))
    _, first, _, second = recorder.phases
    for record in (first, second):
        assert record.trainer.earlier_tokenizer is earlier
        assert record.trainer.tokenizer is not earlier
    for name, levels in (("0_cold_start", 2), ("2_encoder", 4), ("4_encoder", 4)):
        assert f"accuracy_{levels}" in pretraining.history[name]
        assert f"accuracy_{levels + 1}" not in pretraining.history[name]
    # The heads of the codes that stay go on, in each round; those of new codes do not.
    for start, end in ((first, trained[0]), (second, trained[2])):
        kernel, trained_kernel = start.parts["decoder"][-2], end[-2]
        assert (kernel[..., -16:] == trained_kernel[..., -16:]).all()
        assert (kernel[..., :16] != trained_kernel[..., :16]).any()


class Interrupt(keras.callbacks.Callback):
    """Stops the training of one kind of trainer at an event."""

    def __init__(self, kind, event, count):
        super().__init__()
        self.kind, self.count, self.calls = kind, count, 0
        setattr(self, event, self.stop)

    def stop(self, at=None, logs=None):
        # Counted over the epochs.
        self.calls += 1
        reached = self.count is None or self.count in (at, self.calls)
        if type(self.model).__name__ == self.kind and reached:
            raise Stop


def test_a_finished_run_is_only_loaded(finished):
    pretraining, recorder = new_pretraining(), Recorder()
    settings = {**SETTINGS, "callbacks": [recorder], "directory": finished.directory}
    history = pretraining.fit(INPUTS, resume=True, **settings)
    assert recorder.phases == []
    assert history == finished.pretraining.history
    assert_same_bits(all_weights(pretraining), finished.parts)
    assert pretraining.backbone.trainable
    with pytest.raises(FileExistsError):
        pretraining.fit(INPUTS, **settings)
    settings["resume"] = True
    with pytest.raises(ValueError):
        pretraining.fit(INPUTS[:7], **settings)
    other = new_pretraining(augmentation=keras.layers.GaussianNoise(0.2))
    with pytest.raises(ValueError, match=r"augmentation: .*0\.1.*0\.2"):
        other.fit(INPUTS, **settings)


def test_runs_are_loaded_after_each_phase(finished, tmp_path):
    directory = shutil.copytree(finished.directory, tmp_path / "run")

    def check(done):
        loaded, (codes, features) = load_run(directory), finished.outputs[done - 1]
        np.testing.assert_array_equal(loaded.codes(INPUTS), codes)
        np.testing.assert_allclose(features_of(loaded), features, 1e-5, 1e-6)

    # Or any tokenizer would do.
    assert (finished.outputs[0][0] != finished.outputs[1][0]).any()
    # With a preset, the encoder keeps its name.
    finished.pretraining.backbone.save_to_preset(str(directory / "preset"))
    check(3)
    shutil.rmtree(directory / "preset")
    # A tokenizer phase saves no encoder, and an encoder phase no new tokenizer.
    for done in (3, 2, 1):
        text = json.dumps({"phases_done": PHASES[:done]})
        (directory / "state.json").write_text(text)
        check(done)
    for name in ("state.json", "settings.json"):
        (directory / name).unlink()
        with pytest.raises(FileNotFoundError):
            load_run(directory)


def test_joint_run_on_a_function_of_the_epoch():
    """With moving averages, accumulation, clipping, and a random tokenizer."""
    tf = pytest.importorskip("tensorflow")
    asked = []

    def batches(epoch):
        asked.append(epoch)
        dataset = tf.data.Dataset.from_tensor_slices(INPUTS)
        return dataset.shuffle(10, seed=epoch).batch(4, drop_remainder=True).repeat()

    recorder = Recorder()
    pretraining = new_pretraining(tokenizer_start="random", augmentation=None)
    history = pretraining.fit(
        batches,
        joint=True,
        tokenizer_every=3,
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
    assert num_changed(joint.parts["tokenizer_backbone"], joint.parts["backbone"]) > 5
    # The tokenizer is due at steps 0 and 3, one in each epoch.
    assert (joint.codebooks[0] != joint.codebooks[1]).any()
    assert (joint.codebooks[1] != joint.codebooks[2]).any()
    assert all(cosine != 0 for cosine in history["1_joint"]["cosine"])
    optimizer = joint.optimizer
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.5)
    assert optimizer.global_clipnorm == 0.1
    assert optimizer.gradient_accumulation_steps == 2
    # The schedule counts the 6 batches: half up, half down, and zero at the end.
    np.testing.assert_allclose(joint.rates, [1e-2, 0], atol=1e-8)


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


class ReadInputs:
    """A reader of files that hold nothing, whose names are numbers."""

    shape, dtype = INPUTS.shape[1:], "float32"

    def __call__(self, path, position, segment, report):
        return INPUTS[int(Path(path).stem)]


def test_progress_tells_whether_reading_keeps_up(capsys, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(len(INPUTS))]
    for file in files:
        file.touch()

    def batches(epoch, first_batch=0):
        return file_dataset(
            FileList("image", list(map(str, files))),
            ReadInputs(),
            batch_size=4,
            drop_remainder=True,
        )

    options = {**SETTINGS, "rounds": 0, "cold_start_epochs": 1, "verbose": 1}
    history = new_pretraining().fit(batches, **options)
    line = capsys.readouterr().out
    assert "2 steps in all" in line
    assert re.search(r"examples/s.*% waiting for input \s*\(alone [\d.]+/s\)", line)
    # Timed or not, batches are the same ones.
    again = new_pretraining().fit(batches, **{**options, "verbose": 0})
    assert history == again and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("batches", "accumulated", "is_short"),
    [(500, None, False), (499, None, True), (500, 2, True), (1000, 2, False)],
)
def test_steps_of_encoder_phases_count_and_those_of_tokenizers_do_not(
    batches, accumulated, is_short
):
    options = TrainingOptions(
        rounds=1,
        encoder_epochs=1,
        tokenizer_epochs=50,
        gradient_accumulation_steps=accumulated,
    )
    assert any(remarks(phases(options), batches, options, options)) == is_short


@pytest.mark.parametrize(
    ("batches", "given", "has_teacher", "expected"),
    [
        # 1,000, 10,000 and 100,000 examples.
        (16, {}, False, (0, None, 100, 400)),
        (157, {}, False, (0, None, 16, 64)),
        (1563, {}, False, (1, None, 5, 20)),
        (16, {}, True, (1, None, 100, 400)),
        (16, {"joint": True}, False, (1, None, 100, 400)),
        (16, {"gradient_accumulation_steps": 2}, False, (0, None, 100, 400)),
        (157, {"gradient_accumulation_steps": 2}, False, (0, None, 32, 128)),
        (16, {"rounds": 2, "encoder_epochs": 90}, False, (2, None, 23, 90)),
        (1563, {"rounds": 0, "cold_start_epochs": 7}, False, (0, 7, 5, 20)),
    ],
)
def test_rounds_and_epochs_follow_the_size_of_the_data(
    batches, given, has_teacher, expected
):
    options = TrainingOptions(batch_size=64, **given)
    found = by_size(options, batches, 64, has_teacher)
    names = "rounds", "cold_start_epochs", "tokenizer_epochs", "encoder_epochs"
    assert tuple(getattr(found, name) for name in names) == expected
    # Data sets may not tell their size.
    assert by_size(options, batches, None, has_teacher).rounds == (
        1 if options.rounds is None else options.rounds
    )
    left_open = options.rounds is None and found.rounds == 0
    assert len([*remarks(phases(found), batches, found, options)]) == left_open


@pytest.mark.parametrize(
    ("inputs", "settings", "argument"),
    [
        (INPUTS, {"rounds": -1}, "rounds"),
        (INPUTS, {"rounds": 0, "joint": True}, "rounds"),
        (INPUTS, {"warmup": 1.0}, "warmup"),
        (INPUTS, {"steps_per_epoch": 3}, "steps_per_epoch"),
        (INPUTS, {"gradient_accumulation_steps": 99}, "gradient_accumulation_steps"),
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


def test_a_run_keeps_to_its_dtype_policy():
    before = InterleavedPretraining(backbone()).settings()
    keras.config.set_dtype_policy("mixed_bfloat16")
    after = InterleavedPretraining(backbone()).settings()
    assert before["dtype_policy"] == "float32"
    assert after["dtype_policy"] == "mixed_bfloat16"
    assert before["backbone"] != after["backbone"]


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
    def settings(number):
        # The names that Keras numbers do not make another run of it.
        made = new_pretraining(
            augmentation=keras.Sequential([keras.layers.RandomFlip(seed=1)]),
            decoder_options={
                "num_layers": number,
                "dtype": keras.DTypePolicy("float32"),
            },
        )
        return json.loads(json.dumps(made.settings()))

    found = settings(np.int64(1))
    assert found["decoder_options"]["num_layers"] == 1
    assert found["mask"] is None
    assert settings(1) == found
