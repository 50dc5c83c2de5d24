"""Sharing of presets, with model cards."""

import importlib
import json
import re
from pathlib import Path

import keras_hub

from keras_bridle.config import ArgumentError
from keras_bridle.models.presets import (
    preset_folder,
    preset_modality,
    saved_classifier_config,
    saved_encoder_config,
)

CARD = "README.md"
# Options of a run to list in the model card.
_OPTIONS = (
    *("data", "layout", "preset", "teacher", "num_levels", "codebook_size", "rounds"),
    *("cold_start_epochs", "tokenizer_epochs", "encoder_epochs"),
)


def upload_preset(folder, uri, license=None):
    """Writes a model card into a preset's folder, and uploads the folder.

    The card says how to load the preset, and lists its data, settings, probe results
    and the encoder that it started from. Add what it cannot know, such as the source of
    the data: an existing card is uploaded unchanged.

    Args:
        folder: string or path of a preset, or of a run, whose preset is uploaded.
        uri: string, such as `"hf://me/name"` or `"kaggle://me/model/keras/name"`.
        license: optional string, the license of the weights, as the hub spells it.

    Raises:
        FileNotFoundError: if the folder holds no preset.
        ArgumentError: for a folder without an encoder or classifier of this library.
        ValueError: for an address that KerasHub does not know.

    Example:
    ```python
    import tempfile
    from pathlib import Path
    import keras_bridle as kb
    from keras_bridle.sharing import model_card

    backbone = kb.BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    folder = tempfile.mkdtemp()
    backbone.save_to_preset(folder)
    print(model_card(folder, "hf://me/name", "apache-2.0"))
    # kb.upload_preset(folder, "hf://me/name", "apache-2.0")
    ```
    """
    preset = Path(preset_folder(folder))
    card = preset / CARD
    if not card.exists():
        card.write_text(model_card(folder, uri, license), "utf-8")
    if uri.startswith("hf://"):
        # KerasHub would replace our model card, unless the hub has one already.
        hub = importlib.import_module("huggingface_hub")
        created = hub.create_repo(repo_id=uri.removeprefix("hf://"), exist_ok=True)
        hub.upload_file(
            path_or_fileobj=str(card), path_in_repo=CARD, repo_id=created.repo_id
        )
    keras_hub.upload_preset(uri, str(preset))


def model_card(folder, uri, license=None):
    """Writes the text of the card of `upload_preset()`."""
    preset = Path(preset_folder(folder))
    config = saved_encoder_config(preset)
    if config is None or "patch_size" not in config:
        raise ArgumentError("folder", "an encoder or a classifier", str(folder))
    # A run's preset is in its folder.
    folders = Path(folder), preset.parent
    run = next((x for x in folders if (x / "settings.json").exists()), None)
    modality = preset_modality(preset)
    classifier = saved_classifier_config(preset)
    options = {} if run is None else _options_of(run)
    starts = [str(options.get(name)) for name in ("preset", "teacher", "from")]
    base = next((start for start in starts if start.startswith("hf://")), "")
    front = {
        "library_name": "keras-hub",
        "license": license,
        "pipeline_tag": f"{modality}-classification" if classifier else None,
        # An address may name a file.
        "base_model": "/".join(base.removeprefix("hf://").split("/")[:2]),
        "tags": "[keras-bridle, self-supervised, residual-quantization]",
    }
    lines = ["---", *(f"{x}: {y}" for x, y in front.items() if y), "---"]
    lines += [f"# {uri.rsplit('/', 1)[-1]}", "", _what(config, modality, classifier)]
    lines += ["", "```python", "import keras_bridle as kb", ""]
    if classifier is not None:
        name = f"Bridle{modality.capitalize()}Classifier"
        lines.append(f'classifier = kb.{name}.from_preset("{uri}")')
    else:
        lines.append(f'backbone = kb.BridleBackbone.from_preset("{uri}")')
        lines.append("features = backbone.pooled_features(inputs)")
    lines.append("```")
    if options:
        names = [x for x in _OPTIONS if isinstance(options.get(x), (str, int))]
        lines += ["", "## Training", ""]
        lines += [f"- {x.replace('_', ' ')}: `{options[x]}`" for x in names]
    if base:
        lines += ["", f"It started from `{base}`, whose license applies as well."]
    if run is not None:
        for name in ("probes.md", "metrics.md"):
            table = run / "results" / name
            if table.exists():
                lines += ["", "## Results", "", table.read_text("utf-8").strip()]
    return "\n".join(lines) + "\n"


def _options_of(run):
    """Returns the options of a run, those of the recipe if there was one."""
    content = json.loads((run / "settings.json").read_text())
    options = content.get("recipe") or content.get("settings", {})
    if options.get("data"):
        # Only the last folder, as the full path is private.
        options["data"] = Path(options["data"]).name
    return options


def _what(config, modality, classifier):
    size = f"{config['num_layers']} blocks of width {config['hidden_dim']}"
    patch = re.sub(r"[^\dx]", "", str(config["patch_size"]).replace(",", "x"))
    kind = f"An encoder of {modality}, {size} on patches of {patch}, "
    if classifier is not None:
        return f"{kind}fine-tuned as a classifier with keras-bridle."
    return f"{kind}pretrained without labels by keras-bridle (arXiv 2502.02118)."
