"""What is wrong on a command line is one line that names it, before any work."""

import pytest
from recipe_runs import SHORT, fails_in_one_line, load_recipe

PRETRAIN_AUDIO = {
    "--data=no/such/folder": "--data must be",
    "--preset=enormous": "enormous",
    "--seconds=-1": "--seconds must be",
    "--dtype-policy=float17": "float17",
    "--data=SOUNDS --layout=audioset": "--segments",
    "--data=SOUNDS --batch-size=32": "--batch-size",
    "--data=BROKEN --batch-size=1 --strict": "broken.wav",
    "--set=cache_codes=true": "augmentation",
}
PRETRAIN_IMAGE = {
    "--mask=tube": "--mask must be",
    "--image-size=32": "--image-size must be 28",
    "--preset=. --set=patch_size=4,4": "--set patch_size",
    "--data=EMPTY": "image",
}
PRETRAIN_VIDEO = {
    "--data=EMPTY/none.csv --layout=kinetics": "video",
}
FINE_TUNE = {
    "--from=no/such/run": "--from must be the directory of a run",
    "--preset=tiny": "--modality",
    "": "--from",
    "--modality=video --from=AUDIO": "--modality must be audio",
    "--from=AUDIO --preset=base": "--preset",
    "--from=AUDIO --set=flip=false": "--set flip is not for audio",
    "--from=AUDIO --layout=esc50": "--layout needs --data",
    "--from=AUDIO --set=mixup=0.8": "--set mixup must be",
    "--from=AUDIO --set=mix_rate=0.5": "--set mix_rate must be",
    "--from=AUDIO --epochs=2 --set=warmup_epochs=2": "warmup_epochs",
    "--from=AUDIO --set=epoch_length=1000": "epoch_length",
    "--from=AUDIO --directory=TABLE/run": "--directory",
    "--from=bridle_image_tiny": "--from",
    "--from=AUDIO --data=. --layout=audioset": "segments",
    "--preset=tiny --modality=image --data=. --image-size=2": "--image-size must be",
}
PROBE = {
    "--from AUDIO IMAGE": "--from must be encoders of one modality",
    "--from=IMAGE --data=PICTURES --layout=esc50": "layout",
    "--from=IMAGE --data=PICTURES --test-data=x": "--test-data must be",
    "--from=IMAGE --data=TABLE": "label",
    "--from=IMAGE --data=TABLE --label-column=kind --set=split_column=part": "part",
    "--from=IMAGE --data=PICTURES --set=fold=9": "fold",
    "--from=IMAGE --data=PICTURES --probe=attentive --set=most_gigabytes=1e-9": "GB",
    "--from=AUDIO --set=reader=soundfile": "--set reader needs --data",
    "--from=IMAGE --set=image_size=14": "--set image_size must be 28",
    "--from=IMAGE --set=segment_means=5": "--set segment_means must be at most 4",
    "--from=bridle_smell_tiny": "bridle_smell_tiny",
    "--from=EMPTY": "There is no preset",
}
EXTRACT_FEATURES = {
    "--data=PICTURES --from=no/run": "--from must be the directory of a run",
    "--data=SOUNDS --from=bridle_audio_tiny": "--seconds must be given",
    "--data=PICTURES --from=IMAGE --seconds=3": "--seconds is not for image",
    "--data=PICTURES/table.csv --from=IMAGE --label-column=class": "class",
    "--data=PICTURES --from=IMAGE --label-column=kind": "--label-column must be",
    "--data=TABLE --from=IMAGE --class-folders": "--class-folders must be",
    "--data=PICTURES --from=IMAGE --segment-means=9": "--segment-means must be at most",
    "--data=PICTURES --from=IMAGE --segment-means=2 --per=patch": "--segment-means",
}
EXPORT = {
    "": "--from must be given",
    "--from=no/run": "--from must be the directory of a run",
    "--from=AUDIO --format=litert": "--seconds must be given",
    "--from=IMAGE --seconds=1": "--seconds is not for image",
    "--from=IMAGE --format=coreml": "--format must be",
    "--from=IMAGE --outputs=codes": "wanted",
}
WRONG = {
    "pretrain_audio": PRETRAIN_AUDIO,
    "pretrain_image": PRETRAIN_IMAGE,
    "pretrain_video": PRETRAIN_VIDEO,
    "fine_tune": FINE_TUNE,
    "probe": PROBE,
    "extract_features": EXTRACT_FEATURES,
    "export": EXPORT,
}
DEFAULTS = {
    "pretrain_audio": [*SHORT, "--seconds=0.3"],
    "pretrain_image": SHORT,
    "pretrain_video": [*SHORT, "--image-size=16", "--num-frames=4"],
    "fine_tune": ["--epochs=1", "--set=warmup_epochs=0", "--batch-size=4"],
    "probe": ["--no-baselines"],
    "extract_features": [],
    "export": [],
}


@pytest.fixture(scope="module")
def paths(encoders, pictures, tmp_path_factory):
    """What the words in capitals stand for."""
    root = tmp_path_factory.mktemp("paths")
    (root / "empty").mkdir()
    (root / "empty" / "none.csv").touch()
    for name in ("one.wav", "broken.wav"):
        path = root / name.partition(".")[0] / name
        path.parent.mkdir()
        path.write_text("nothing")
    table = root / "table.csv"
    table.write_text(f"file,kind\n{pictures}/dark/1.png,dark\n")
    return {
        "AUDIO": encoders["audio"],
        "IMAGE": encoders["image"],
        "PICTURES": pictures,
        "SOUNDS": root / "one",
        "BROKEN": root / "broken",
        "EMPTY": root / "empty",
        "TABLE": table,
    }


@pytest.mark.parametrize(
    ("recipe", "flags"), [(name, flags) for name in WRONG for flags in WRONG[name]]
)
def test_one_line_before_any_work(recipe, flags, paths, tmp_path, capsys):
    given = flags.split()
    for word, path in paths.items():
        given = [text.replace(word, str(path)) for text in given]
    directory = tmp_path / "never"
    given = [*DEFAULTS[recipe], "--set=quiet=true", f"--directory={directory}", *given]
    fails_in_one_line(load_recipe(recipe), given, WRONG[recipe][flags], capsys)
    assert not directory.exists()
