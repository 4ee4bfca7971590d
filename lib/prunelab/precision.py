"""In which numbers a network is trained: half precision where the hardware has it and it pays, else float32.

Weights, momentum and masks are float32 in every case; what is halved are the activations and the products (`autocast`).
"""

import torch

# Of each precision: the type of activations, and what the loss is multiplied by so that no gradient of an activation
# is rounded to zero. Mean losses of small networks have gradients far below float16's largest number, 65,504.
PRECISIONS: dict[str, tuple[torch.dtype, float]] = {
    "fp32": (torch.float32, 1.0),
    "bf16": (torch.bfloat16, 1.0),
    "fp16": (torch.float16, 1024.0),
}
# Networks that processors with bfloat16 instructions train at least 1.2 times as fast so (`make bench` measures it of
# ResNet-20). Narrower ones gain nothing, and MobileNet's depthwise layers take twice the time; transformers gain by
# what `models.vit.attend` does.
BF16_ON_CPU = ("resnet20", "resnet32", "resnet56", "wrn22_2", "vit_micro4", "vit_s4")


def best_precision(device: str, model: str) -> str:
    """Returns the key of `PRECISIONS` that suits a network on a device.

    Args:
        device: "cpu" or "cuda".
        model: A key of `models.MODELS`.
    """
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    return "bf16" if model in BF16_ON_CPU and torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns a context in which products on a device are in a precision.

    Raises:
        ValueError: An unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; there are {', '.join(PRECISIONS)}")
    dtype, _ = PRECISIONS[precision]
    # Nothing is cached from one context to the next: a captured step would read casts that were never made anew.
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
