"""A pytest plugin: lets torchvision for CUDA be imported beside PyTorch for CPUs.

Its compiled operations do not load there, and its Python code, which is all that timm
uses, expects two of them to be declared.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
