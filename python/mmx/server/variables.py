"""Variables of the guides that are not settings of mmx: who reads them, or that nobody does."""

from __future__ import annotations

from collections.abc import Mapping

PASSED_THROUGH = {
    "HCCL_OP_EXPANSION_MODE": "HCCL",
    "HCCL_BUFFSIZE": "HCCL",
    "HCCL_INTRA_PCIE_ENABLE": "HCCL",
    "HCCL_INTRA_ROCE_ENABLE": "HCCL",
    "HCCL_IF_IP": "HCCL",
    "HCCL_SOCKET_IFNAME": "HCCL",
    "HCCL_CONNECT_TIMEOUT": "HCCL",
    "HCCL_DETERMINISTIC": "HCCL",
    "GLOO_SOCKET_IFNAME": "gloo",
    "TP_SOCKET_IFNAME": "tensorpipe",
    "PYTORCH_NPU_ALLOC_CONF": "torch_npu",
    "TASK_QUEUE_ENABLE": "torch_npu",
    "ASCEND_RT_VISIBLE_DEVICES": "CANN",
    "LD_PRELOAD": "the loader",
    "OMP_NUM_THREADS": "OpenMP",
    "OMP_PROC_BIND": "OpenMP",
}
MODELSCOPE = "VLLM_USE_MODELSCOPE"
MODELSCOPE_NOTE = "nothing is downloaded; give the folder of the checkpoint"


def variable_notes(environ: Mapping[str, str]) -> list[str]:
    """At most one sentence for all that is passed through, and one for the hub."""
    notes = []
    if passed := [f"{name}={environ[name]}" for name in PASSED_THROUGH if name in environ]:
        notes.append("left to the libraries that read them: " + ", ".join(passed))
    if environ.get(MODELSCOPE, "").lower() in ("1", "true"):
        notes.append(f"{MODELSCOPE} has no effect here: {MODELSCOPE_NOTE}")
    return notes
