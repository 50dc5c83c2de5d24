"""A frozen tokenizer's codes, computed once and kept in a file."""

import hashlib
import zlib

import numpy as np

from keras_bridle.pretraining.array_batches import ArrayBatches, in_floatx
from keras_bridle.pretraining.atomic_files import atomic_file


def cached_codes(tokenize, tokenizers, inputs, batch_size, folder=None):
    """Computes the codes of all examples, or finds those of an earlier start.

    The file has one or two bytes for each code, and a name that tells inputs and the
    tokenizer's weights apart.

    Args:
        tokenize: function of a batch of inputs that returns codes, -1 at padding.
        tokenizers: list of the tokenizers in it, which have a `quantizer`.
        inputs: array of shape `(num_examples, ...)`.
        batch_size: int, examples at a time: as in training, so that numbers are rounded
            in the same way.
        folder: optional path, where the file goes. Without one, codes stay in memory.

    Returns:
        Integer array of shape `(num_examples, num_patches, num_levels)`, or with a last
        axis more where several codes of a level count. Codes at padding are 0: they
        have no weight.
    """
    if folder is None:
        return _compute(tokenize, tokenizers, inputs, batch_size, np.empty)
    path = folder / f"codes_{_key(tokenizers, inputs, batch_size)}.npy"
    if not path.exists():
        with atomic_file(path) as unfinished:

            def new_file(shape, dtype):
                return np.lib.format.open_memmap(unfinished, "w+", dtype, shape)

            _compute(tokenize, tokenizers, inputs, batch_size, new_file).flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def delete_cached_codes(folder):
    """Removes the files of `cached_codes()` in a folder."""
    for path in folder.glob("codes_*.npy"):
        path.unlink()


def check_cacheable(batches, augmentation, tokenize):
    """Raises a `ValueError` where codes change from one look at an example to the next.

    Args:
        batches: what `fit()` is to be given.
        augmentation: the augmentation, or `None`.
        tokenize: string, what the tokenizer sees.
    """
    reasons = {
        "inputs must be an array: files are read at another place in each epoch. "
        f"Received: {type(batches).__name__}": isinstance(batches, ArrayBatches),
        "an augmentation changes inputs, and codes with them. "
        f"Received: augmentation={augmentation}": augmentation is None,
        "codes depend on the mask unless the tokenizer sees all patches. "
        f"Received: tokenize={tokenize!r}": tokenize == "all",
    }
    for reason, is_right in reasons.items():
        if not is_right:
            raise ValueError(f"`cache_codes=True` is not possible: {reason}")


def _compute(tokenize, tokenizers, inputs, batch_size, new_array):
    codebook_size = max(tokenizer.quantizer.codebook_size for tokenizer in tokenizers)
    dtype = np.min_scalar_type(codebook_size - 1)
    size, codes = min(batch_size, len(inputs)), None
    for start in range(0, len(inputs), size):
        # The last batch is full as well, with some examples once more.
        start = min(start, len(inputs) - size)
        batch = np.maximum(tokenize(in_floatx(inputs[start : start + size])), 0)
        if codes is None:
            codes = new_array((len(inputs), *batch.shape[1:]), dtype)
        codes[start : start + size] = batch
    return codes


def _key(tokenizers, inputs, batch_size):
    # A sum of all bytes is fast next to computing codes, and goes through files in
    # pieces that fit into memory.
    total = 0
    for start in range(0, len(inputs), batch_size):
        batch = np.ascontiguousarray(inputs[start : start + batch_size])
        total = zlib.crc32(batch.tobytes(), total)
    about = (inputs.shape, str(inputs.dtype), total)
    digest = hashlib.sha256(repr(about).encode())
    for tokenizer in tokenizers:
        for weight in tokenizer.get_weights():
            digest.update(np.asarray(weight).tobytes())
    return digest.hexdigest()[:16]
