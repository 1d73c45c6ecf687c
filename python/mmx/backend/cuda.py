"""One NVIDIA GPU."""

from __future__ import annotations

import torch

from mmx.backend.accelerator import Accelerator


class CudaBackend(Accelerator):
    """The current CUDA device; dense products in full fp32 where the model is fp32."""

    name = "cuda"
    has_fp8 = True

    def __init__(self) -> None:
        device = torch.device("cuda", torch.cuda.current_device())
        super().__init__(torch.cuda, device, str(torch.cuda.get_device_properties(device).uuid), "GPU")
        torch.backends.cuda.matmul.allow_tf32 = False
