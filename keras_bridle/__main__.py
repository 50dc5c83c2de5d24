"""The command `keras-bridle`, which runs the recipes."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from keras_bridle.training.progress import tune_jax

COMMANDS = {
    "pretrain audio": "pretrain_audio",
    "pretrain image": "pretrain_image",
    "pretrain video": "pretrain_video",
    "fine-tune": "fine_tune",
    "probe": "probe",
    "extract": "extract_features",
    "export": "export",
}


def main(arguments=None):
    """Runs the recipe named by the first words of a command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for command, recipe in COMMANDS.items():
        words = command.split()
        if arguments[: len(words)] == words:
            sys.argv[0] = f"keras-bridle {command}"
            tune_jax()
            _load(recipe).main(arguments[len(words) :])
            return
    lines = "\n".join(f"  keras-bridle {command} --help" for command in COMMANDS)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"Commands:\n{lines}")
        return
    print(
        f"Unknown command: {' '.join(arguments)}\nCommands:\n{lines}", file=sys.stderr
    )
    sys.exit(2)


def _load(recipe):
    # Wheels have the recipes beside this file, checkouts beside the package.
    here = Path(__file__).parent
    folder = next(x for x in (here, here.parent) if (x / "recipes").is_dir())
    name, path = f"keras_bridle.recipes.{recipe}", folder / "recipes" / f"{recipe}.py"
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
