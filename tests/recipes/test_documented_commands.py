"""The commands, tables and Python lines of the READMEs are right."""

import ast
import functools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from recipe_runs import RECIPES, load_recipe, save_encoder, write_preset_config

import keras_bridle as kb
from keras_bridle.cli import RecipeParser, Setup
from keras_bridle.data.layouts import LAYOUTS
from keras_bridle.modalities import MODALITIES
from keras_bridle.models.presets import backbone_preset

README, RECIPES_README = RECIPES.parent / "README.md", RECIPES / "README.md"
SCRIPTS = sorted(RECIPES.glob("*.py"))
DOCS = sorted((RECIPES.parent / "docs").glob("*.md"))
# Flags in the READMEs that are of other programs, or of all.
OTHERS = {
    "--no-deps",
    "--backend",
    "--help",
    "--kills",
    "--nnodes",
    "--nproc-per-node",
    "--signal",
}
# Flags whose values are files or folders to read.
PATHS = {"--data", "--segments", "--settings", "--test-data", "--test-segments"}
INPUT_DIMS = {"audio": (None,), "image": (8, 8, 3), "video": (4, 8, 8, 3)}
# What tells the modality where no layout does.
WORDS = {"images": "image", "image": "image", "video": "video"}
LAYOUT_OF_ROW = {
    "AudioSet-20K": "audioset",
    "ESC-50": "esc50",
    "ImageNet-1K": "imagenet",
    "Kinetics-400": "kinetics",
}
NUMBER = r"(\d(?:[\d,.]*\d)?(?:e-\d+)?)"

load = functools.cache(load_recipe)


class Command(NamedTuple):
    """A line that runs a recipe, and the comment above it."""

    recipe: str
    arguments: list
    comment: str


def place(path):
    return f"{path.relative_to(README.parent)}:"


def shell_blocks(path):
    text = path.read_text()
    if path.suffix == ".md":
        return re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    docstring = ast.get_docstring(ast.parse(text))
    return re.findall(r"(?:^    .*\n)+", docstring, re.MULTILINE)


def commands():
    found = {}
    for path in [README, RECIPES_README, *DOCS, *SCRIPTS]:
        for block in shell_blocks(path):
            comment = ""
            for line in re.sub(r"\\\n *", "", block).splitlines():
                if line.startswith("#"):
                    comment = line.strip("# ")
                match = re.search(r"\brecipes/(\w+)\.py(.*)", line)
                if match:
                    arguments = shlex.split(match[2], comments=True)
                    # At the end it stands for more flags, elsewhere for a value.
                    if arguments[-1:] == ["..."]:
                        arguments.pop()
                    key = f"{place(path)} {shlex.join([match[1], *arguments])}"
                    found[key] = Command(match[1], arguments, comment)
    return found


COMMANDS = commands()


@functools.cache
def options_and_flags(recipe):
    """The names of a recipe's options, and the flags that `--help` lists."""
    module = load(recipe)
    parser = RecipeParser(module.Options, "", {})
    flags = {flag for action in parser._actions for flag in action.option_strings}
    return set(module.Options.fields()), flags


class Parsed(Exception):
    """Stops a recipe that has parsed its arguments."""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """A function that has a command's arguments parsed by its recipe."""

    def stop(setup):
        raise Parsed(setup)

    def parse(command):
        make_paths(command)
        with pytest.raises(Parsed) as stopped:
            load(command.recipe).main(command.arguments)
        setup = stopped.value.args[0]
        setup.refuse_idle(MODALITIES[modality(command)])
        return setup.options

    monkeypatch.setattr(Setup, "__enter__", stop)
    monkeypatch.chdir(tmp_path)
    return parse


def modality(command):
    layouts = [
        name
        for name, layouts in LAYOUTS.items()
        if set(command.arguments) & set(layouts) - {"folder"}
    ]
    words = re.findall("|".join(WORDS), " ".join([command.recipe, *command.arguments]))
    return (layouts or [WORDS[word] for word in words] or ["audio"])[0]


def make_paths(command):
    """Makes the files and folders that parsing looks at."""
    flag = None
    for word in command.arguments:
        if word.startswith("--"):
            flag = word
        elif flag == "--from":
            Path(word).mkdir(parents=True)
            dims = INPUT_DIMS[modality(command)]
            write_preset_config(Path(word, "preset"), dims)
        elif flag in PATHS:
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            Path(word).touch() if Path(word).suffix else Path(word).mkdir()


@pytest.mark.parametrize("path", [README, RECIPES_README, *SCRIPTS], ids=place)
def test_every_recipe_has_commands(path):
    found = {COMMANDS[key].recipe for key in COMMANDS if key.startswith(place(path))}
    own = {path.stem} if path in SCRIPTS else {script.stem for script in SCRIPTS}
    assert found == own


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_documented_command(command, parse):
    options = parse(command)
    if getattr(options, "preset", None):
        assert backbone_preset(f"bridle_{modality(command)}_{options.preset}")


@pytest.mark.parametrize(
    ("recipe", "most"),
    [
        *((f"pretrain_{name}", 25) for name in MODALITIES),
        ("fine_tune", 30),
        ("probe", 20),
        ("extract_features", 20),
        ("export", 20),
    ],
)
def test_recipes_have_few_flags(recipe, most):
    _, flags = options_and_flags(recipe)
    assert {"--set", "--settings", "--directory"} < flags
    assert len(flags - {"-h", "--help"}) <= most


@pytest.mark.parametrize("path", [README, RECIPES_README, *DOCS], ids=place)
def test_flags_in_the_text(path):
    text = path.read_text()
    found = [options_and_flags(script.stem) for script in SCRIPTS]
    names, flags = (set().union(*sets) for sets in zip(*found, strict=True))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) - OTHERS
    assert named <= flags
    assert set(re.findall(r"--set (\w+)=", text)) - {"name"} <= names


def table(heading):
    """The rows of the first table below a heading, as dicts by their names."""
    text = RECIPES_README.read_text().split(f"\n### {heading}\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def numbers(text):
    return [float(found.replace(",", "")) for found in re.findall(NUMBER, text)]


def command_for(recipe, row):
    (found,) = [
        command
        for key, command in COMMANDS.items()
        if key.startswith(place(RECIPES_README)) and command.recipe == recipe
        if command.comment.split(",")[0] == row
        and "joint=true" not in command.arguments
    ]
    return found


def test_published_settings_of_fine_tuning():
    module, rows = load("fine_tune"), table("Fine-tuning")
    names = ("batch_size", "epochs", "warmup_epochs", "learning_rate")
    defaults = {name: field.default for name, field in module.Options.fields().items()}

    def ours(kind, layout):
        found = {**defaults, **module.settings(kind, layout)}
        return [found[name] for name in names]

    kinds = {layout: kind for kind in LAYOUTS for layout in LAYOUTS[kind]}
    for name, layout in LAYOUT_OF_ROW.items():
        columns = ("batch", "epochs / warm-up", "learning rate")
        said = [x for column in columns for x in numbers(rows[name][column])]
        assert said == ours(kinds[layout], layout)
    # Of these nothing was published, and the text says what is ours.
    text = " ".join(RECIPES_README.read_text().split())
    said = re.search(
        rf"\(batch {NUMBER}, {NUMBER} epochs, {NUMBER} of warm-up, {NUMBER}\)", text
    )
    assert [float(x) for x in said.groups()] == ours("audio", "speech_commands")
    assert {*LAYOUT_OF_ROW.values(), "speech_commands"} == set(module.PUBLISHED)


@pytest.mark.parametrize("row", ["AudioSet-2M", *LAYOUT_OF_ROW])
def test_commands_of_fine_tuning_give_the_published_settings(parse, row):
    options, said = parse(command_for("fine_tune", row)), table("Fine-tuning")[row]
    assert [options.batch_size] == numbers(said["batch"])
    times = [options.epochs, options.warmup_epochs]
    assert times == numbers(said["epochs / warm-up"])
    assert [options.learning_rate] == numbers(said["learning rate"])
    assert options.balanced == ("balanced sampling" in said["other"])
    assert options.repeats == (2 if "each clip twice" in said["other"] else 1)
    if row == "AudioSet-20K":
        found = (options.layer_decay, options.weight_decay, options.drop_path)
        assert found == (0.75, 5e-4, 0.1) and options.mix_rate == 0.5
        assert (options.hide_bins, options.hide_frames) == (48, 192)
        assert options.token_drop == (0.2, 0.2)
    if row == "ImageNet-1K":
        assert (options.mixup, options.cutmix, options.mix_rate) == (0.8, 0, 1)


@pytest.mark.parametrize("row", ["AudioSet-2M", "AudioSet-20K", "ImageNet-1K"])
def test_commands_of_linear_probes_give_the_published_settings(parse, row):
    args, said = parse(command_for("probe", row)), table("Linear probes")[row]
    assert args.probe == ("dense",)
    assert [args.probe_batch_size] == numbers(said["batch"])
    assert [args.epochs] == numbers(said["epochs"])
    assert [args.learning_rate] == numbers(said["learning rate"])


@pytest.mark.parametrize(
    ("recipe", "row", "said"),
    [
        ("pretrain_audio", "AudioSet-2M", "audio encoder"),
        ("pretrain_image", "ImageNet-1K", "image encoder / tokenizer"),
        ("pretrain_video", "Kinetics-400", "video encoder"),
    ],
)
def test_commands_of_pretraining_give_the_published_settings(parse, recipe, row, said):
    options, said = parse(command_for(recipe, row)), table("Pretraining")[said]
    batch = options.batch_size * options.gradient_accumulation_steps
    assert [batch] == numbers(said["batch"])
    assert options.encoder_learning_rate == numbers(said["learning rate"])[0]
    epochs = numbers(said["epochs / warm-up"])
    assert options.cold_start_epochs == epochs[0]
    assert options.encoder_epochs in epochs
    published = ("mask_ratio", "num_levels", "codebook_size", "code_dim")
    found = [getattr(options, name) for name in published]
    assert found == [0.9 if recipe == "pretrain_video" else 0.8, 4, 256, 256]
    assert not options.keep_cold_start_codes and not options.cold_start_centered


def python_block(path, words):
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if words in block]
    return found


def noises(count):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(count, 2960))
    return noise.astype("float32")


def test_classifier_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder("runs/birds/preset", "audio")
    heard = {
        "kb": kb,
        "species": ["owl", "tit", "crow"],
        "labeled_waveforms": noises(6),
        "labels": np.arange(6) % 3,
        "waveform": noises(1)[0],
    }
    lines = python_block(README, "classifier.fit(").splitlines()
    exec("\n".join(lines[:-1]), heard)
    (found,) = eval(lines[-1], heard)
    assert sorted(score.name for score in found) == ["crow", "owl", "tit"]
    assert sum(score.probability for score in found) == pytest.approx(1.0, rel=1e-5)


def test_fine_tuned_classifier_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_encoder("encoder", "audio")
    kb.BridleAudioClassifier.from_preset(
        "encoder", class_names=["owl", "tit", "crow"]
    ).save_to_preset("runs/audio_fine_tuned/preset")
    block = python_block(RECIPES_README, "runs/audio_fine_tuned/preset")
    exec(block, {"waveform": noises(1)[0]})
    shown = capsys.readouterr().out
    assert all(f"name='{name}'" in shown for name in ("owl", "tit", "crow"))


def test_fine_tuning_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_encoder("runs/audio_sample/preset", "audio")
    given = {
        "names": ["owl", "tit"],
        "waveforms": noises(4),
        "labels": np.arange(4) % 2,
        "test_waveforms": noises(2),
        "test_labels": np.array([0, 1]),
    }
    block = python_block(RECIPES_README, "fine_tune(tuner")
    assert "print(" in block.splitlines()[-1]
    exec(block, given)
    shown = capsys.readouterr().out
    assert given["classifier"].class_names == ["owl", "tit"]
    last = shown[shown.rindex("[[") :]
    found = np.array(numbers(last)).reshape(2, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
