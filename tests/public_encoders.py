"""Random public encoders in their own layouts, with the tokens that they give.

`python tests/public_encoders.py` writes those of `STORED` to `tests/fixtures`, for
where transformers and timm are missing.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

STORED = ("mae", "video_mae", "beit", "beit_pretraining", "data2vec", "beit_v2")
FOLDER = Path(__file__).parent / "fixtures" / "public_encoders"
SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 4,
}
DECODER = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}
IMAGE, WIDER = (2, 16, 16, 3), (2, 24, 20, 3)


def randomized(model):
    """Every weight random, biases and scales included."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.3 * noise + (1.0 if weight.ndim == 1 else 0.0))
    return model.eval()


def pixels(*shape):
    return np.random.default_rng(1).integers(0, 256, shape).astype("uint8")


def normalized(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    """As networks of PyTorch take images or clips: channels in front of sides."""
    import torch

    images = torch.tensor((images / 255 - mean) / std, dtype=torch.float32)
    return images.movedim(-1, -3)


def tokens_of(run, *shapes):
    """What a function of normalized inputs gives, by the number of the size."""
    import torch

    found = {}
    for number, shape in enumerate(shapes):
        found[f"inputs_{number}"] = pixels(*shape)
        with torch.no_grad():
            found[f"tokens_{number}"] = run(normalized(found[f"inputs_{number}"]))
    return {name: np.asarray(array) for name, array in found.items()}


def mae(folder):
    import torch
    import transformers

    config = transformers.ViTMAEConfig(**SIZES, **DECODER, mask_ratio=0.0)
    model = randomized(transformers.ViTMAEForPreTraining(config))
    model.save_pretrained(folder)

    def run(inputs):
        """In the order of the patches, which MAE shuffles even if it hides none."""
        count = inputs.shape[2] * inputs.shape[3] // 16
        noise = torch.arange(count).float()[None].repeat(len(inputs), 1)
        options = {"noise": noise, "interpolate_pos_encoding": True}
        return model.vit(inputs, **options).last_hidden_state

    return tokens_of(run, IMAGE, WIDER)


def video_mae(folder, **settings):
    import transformers

    settings = {"num_frames": 4, "use_mean_pooling": False, **settings}
    settings = {**SIZES, **DECODER, **settings}

    def make(side):
        config = transformers.VideoMAEConfig(**{**settings, "image_size": side})
        return transformers.VideoMAEForPreTraining(config)

    model, wider = randomized(make(16)), make(24)
    wider.load_state_dict(model.state_dict())
    wider.eval()
    model.save_pretrained(folder)

    def run(inputs):
        fits = inputs.shape[-1] == 16
        return (model if fits else wider).videomae(inputs).last_hidden_state

    return tokens_of(run, (2, 4, 16, 16, 3), (2, 4, 24, 24, 3))


def pooled_video_mae(folder):
    return video_mae(folder, use_mean_pooling=True)


def beit_of(kind, name="Beit", encoder=None, final_norm=None, **settings):
    """Makes the function of a kind of BEiT in transformers.

    Args:
        kind: string, the end of the class' name.
        name: string, its beginning.
        encoder: optional string, the encoder's attribute.
        final_norm: optional string, the attribute of a norm behind the encoder.
        **settings: what to change in the configuration.
    """

    def write(folder):
        import transformers

        config = getattr(transformers, f"{name}Config")(**SIZES, **settings)
        model = randomized(getattr(transformers, f"{name}{kind}")(config))
        model.save_pretrained(folder)
        pixels = {"image_mean": [0.485, 0.456, 0.406]}
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels))

        def run(inputs):
            part = model if encoder is None else getattr(model, encoder)
            tokens = part(inputs).last_hidden_state
            return tokens if final_norm is None else getattr(model, final_norm)(tokens)

        return tokens_of(run, IMAGE, WIDER)

    return write


def of_timm(module, name, architecture, **settings):
    """Makes the function of a network of timm, given its module and class."""

    def write(folder):
        from safetensors.torch import save_file

        library = importlib.import_module(f"timm.models.{module}")
        sizes = {"patch_size": 4, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}

        def make(sides):
            return getattr(library, name)(sides, **sizes, **settings).eval()

        model, wider = randomized(make(IMAGE[1:3])), make(WIDER[1:3])
        state = model.state_dict()
        wider.load_state_dict(library.checkpoint_filter_fn(dict(state), wider))
        save_file(state, folder / "model.safetensors")
        about = {"architecture": architecture, "num_classes": 5}
        about["pretrained_cfg"] = {"input_size": [3, *IMAGE[1:3]]}
        (folder / "config.json").write_text(json.dumps(about))

        def run(inputs):
            fits = inputs.shape[2:] == IMAGE[1:3]
            return (model if fits else wider).forward_features(inputs)

        return tokens_of(run, IMAGE, WIDER)

    return write


def beit_of_timm(**settings):
    sizes = {"embed_dim": 12, "num_classes": 5, "init_values": 0.1}
    settings = {"use_abs_pos_emb": False, **sizes, **settings}
    return of_timm("beit", "Beit", "beitv2_base_patch16_224", **settings)


RELATIVE = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}
# Functions that write a folder and give its tokens.
ENCODERS = {
    "mae": mae,
    "video_mae": video_mae,
    "video_mae_pooled": pooled_video_mae,
    "beit": beit_of("Model", **RELATIVE, use_mean_pooling=False),
    "beit_classifier": beit_of("ForImageClassification", encoder="beit", **RELATIVE),
    "beit_pretraining": beit_of(
        "ForMaskedImageModeling",
        encoder="beit",
        final_norm="layernorm",
        use_mask_token=True,
        vocab_size=20,
        **SHARED,
    ),
    "beit_two_norms": beit_of(
        "ForMaskedImageModeling", encoder="beit", use_mean_pooling=False, **SHARED
    ),
    "beit_both_biases": beit_of("Model", **RELATIVE, **SHARED),
    "beit_absolute": beit_of("Model", use_absolute_position_embeddings=True),
    "data2vec": beit_of("Model", "Data2VecVision", **RELATIVE),
    "data2vec_classifier": beit_of(
        "ForImageClassification", "Data2VecVision", encoder="data2vec_vision", **SHARED
    ),
    # A width whose number of heads is known.
    "timm_mae": of_timm(
        "vision_transformer",
        "VisionTransformer",
        "vit_base_patch16_224",
        embed_dim=192,
        num_classes=0,
    ),
    "beit_v2": beit_of_timm(use_rel_pos_bias=True),
    "beit_v2_shared": beit_of_timm(use_shared_rel_pos_bias=True, global_pool="token"),
}


def written(name, folder):
    """Writes an encoder and its tokens to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "tokens.npz", **ENCODERS[name](folder))
    return folder


if __name__ == "__main__":
    for name in sys.argv[1:] or STORED:
        written(name, FOLDER / name)
