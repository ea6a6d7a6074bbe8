"""Lets a torchvision for CUDA be imported beside PyTorch for CPUs: declares the operators that its Python side expects.

Python imports this where `tests.serving` puts the folder on PYTHONPATH. The operators stay unusable; LLaVA calls none.
"""

import importlib.metadata
import sys


class _BeforeTorchvision:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            global library
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def needed() -> bool:
    """Whether PyTorch is a build for CPUs and torchvision is not."""
    try:
        both = [importlib.metadata.version(name).endswith("+cpu") for name in ("torch", "torchvision")]
    except importlib.metadata.PackageNotFoundError:
        return False
    return both == [True, False]


if __name__ == "sitecustomize" and needed():
    sys.meta_path.insert(0, _BeforeTorchvision())
