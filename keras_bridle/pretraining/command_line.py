"""The command line that the recipes of all modalities share."""

import argparse
from pathlib import Path

from keras_bridle.pretraining.interleaved import InterleavedPretraining


def pretraining_parser(description, sample_settings, own_data_settings):
    """Makes the parser of a pretraining recipe.

    Args:
        description: string, what the recipe's `--help` starts with.
        sample_settings: dict, values of the flags for a run on the sample data.
        own_data_settings: dict, values of the flags for a run on `--data`.

    Returns:
        An `argparse.ArgumentParser`. Flags that are not given are `None`; see
        `parse_pretraining_arguments()`.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without --data: " + _as_flags(sample_settings) + ".\n\n"
        "With --data: " + _as_flags(own_data_settings) + ".",
    )
    parser.set_defaults(settings=(sample_settings, own_data_settings))
    add = parser.add_argument
    add("--data", metavar="PATH", help="your data; without it, the sample data")
    add("--preset", help="size of the encoder: tiny, small, base, large, or a folder")
    add("--rounds", type=int, help="tokenizer and encoder phases after the cold start")
    add("--cold-start-epochs", type=int)
    add("--tokenizer-epochs", type=int)
    add("--encoder-epochs", type=int)
    add("--joint", action="store_true", help="train tokenizer and encoder in one phase")
    add("--batch-size", type=int)
    add("--encoder-learning-rate", type=float)
    add("--tokenizer-learning-rate", type=float)
    add("--warmup", type=float, help="share of a phase's steps in which the rate rises")
    add("--weight-decay", type=float)
    add("--clip-norm", type=float, help="largest norm of the gradients")
    add("--gradient-accumulation-steps", type=int, help="batches to each step")
    add("--ema-momentum", type=float, help="end phases with moving averages of weights")
    add("--num-levels", type=int, help="levels of the residual quantizer")
    add("--codebook-size", type=int, help="codes of each level")
    add("--code-dim", type=int, help="size of the code vectors")
    add("--restart-threshold", type=float, help="re-seat codes used less than this")
    add("--mask-ratio", type=float, help="share of the patches that is hidden")
    add("--directory", help="folder of the run")
    add("--resume", action="store_true", help="go on with the run in --directory")
    add("--seed", type=int, default=0)
    add("--dtype-policy", default="float32", help="such as mixed_bfloat16")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


def parse_pretraining_arguments(parser, arguments=None):
    """Parses a recipe's flags and fills in the settings for the data at hand.

    Args:
        parser: what `pretraining_parser()` made.
        arguments: optional list of strings; the command line's by default.

    Returns:
        An `argparse.Namespace`.
    """
    args = parser.parse_args(arguments)
    sample_settings, own_data_settings = args.settings
    settings = sample_settings if args.data is None else own_data_settings
    for name, value in settings.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    del args.settings
    if Path(args.directory, "settings.json").exists() and not args.resume:
        parser.error(
            f"--directory {args.directory} holds a run already: pass --resume to go on "
            "with it, or name another directory"
        )
    if args.data is not None and not Path(args.data).exists():
        parser.error(f"--data {args.data} does not exist")
    return args


def pretraining_from_arguments(args, backbone, **kwargs):
    """Makes the `InterleavedPretraining` that flags describe.

    Args:
        args: what `parse_pretraining_arguments()` returned.
        backbone: `BridleBackbone`.
        **kwargs: more arguments of `InterleavedPretraining`.

    Returns:
        An `InterleavedPretraining`.
    """
    return InterleavedPretraining(
        backbone,
        num_levels=args.num_levels,
        codebook_size=args.codebook_size,
        code_dim=args.code_dim,
        quantizer_options={"restart_threshold": args.restart_threshold},
        seed=args.seed,
        **kwargs,
    )


def fit_from_arguments(pretraining, args, inputs, **kwargs):
    """Runs `InterleavedPretraining.fit()` as flags describe.

    Args:
        pretraining: `InterleavedPretraining`.
        args: what `parse_pretraining_arguments()` returned.
        inputs: as of `InterleavedPretraining.fit()`.
        **kwargs: more arguments of `InterleavedPretraining.fit()`.

    Returns:
        The history.
    """
    names = (
        "rounds",
        "cold_start_epochs",
        "tokenizer_epochs",
        "encoder_epochs",
        "joint",
        "batch_size",
        "encoder_learning_rate",
        "tokenizer_learning_rate",
        "warmup",
        "weight_decay",
        "clip_norm",
        "gradient_accumulation_steps",
        "ema_momentum",
        "directory",
        "resume",
    )
    settings = {name: getattr(args, name) for name in names}
    return pretraining.fit(inputs, verbose=0 if args.quiet else 1, **settings, **kwargs)


def _as_flags(settings):
    return ", ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in settings.items()
    )
