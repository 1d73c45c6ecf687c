"""One NVIDIA GPU."""

from __future__ import annotations

import torch

# Why not all: activations, workspaces of the kernels and graph capture come on top of weights and pages.
RESERVED_SHARE = 0.1


class CudaBackend:
    """The current CUDA device; dense products in full fp32 where the model is fp32."""

    name = "cuda"
    has_graphs = True

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        torch.backends.cuda.matmul.allow_tf32 = False

    def free_memory(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def pool_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        return max(0, free - int(total * RESERVED_SHARE))

    def pool_rule(self) -> str:
        return f"the free GPU memory less {RESERVED_SHARE:.0%} of all"
