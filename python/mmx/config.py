"""Settings that users give: sampling parameters of a request and the configuration of an engine.

Pure data without torch, so that the server, the scheduler and the tests can import it cheaply.
"""

from __future__ import annotations

from typing import get_type_hints

import msgspec

MAX_LOGPROBS = 20
CACHE_DTYPES = ("auto", "bf16", "bfloat16", "fp8", "fp8_e4m3")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one sequence is sampled and when it stops; names and meanings as in the OpenAI and vLLM APIs.

    ``temperature`` below 1e-5 is greedy. ``top_k`` 0 or -1 is off. ``logprobs`` is the number of
    alternatives reported beside each sampled token (0 = the sampled token only, None = none).
    ``stop`` strings are found by the front end, which sees text; the engine stops on token ids.
    ``prompt_logprobs`` is the same number for each prompt token but the first.
    ``n`` is expanded by the front end into independent sequences.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    n: int = 1

    def __post_init__(self) -> None:
        def check(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"{field} must be {expected}, got {getattr(self, field)!r}")

        msgspec.convert(self, _SamplingTypes, from_attributes=True)  # a ValueError that names the field
        check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1")
        check(self.min_tokens >= 0, "min_tokens", "at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        check(0.0 <= self.temperature <= 2.0, "temperature", "between 0 and 2")
        check(-1 <= self.top_k < 2**31, "top_k", "-1, 0 or positive and below 2^31")
        check(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1")
        check(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1")
        check(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", "a signed 64-bit integer")
        check(all(self.stop), "stop", "non-empty strings")
        for field, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            check(count is None or 0 <= count <= MAX_LOGPROBS, field, f"0 to {MAX_LOGPROBS}")
        check(1e-6 <= self.repetition_penalty <= 2.0, "repetition_penalty", "between 1e-6 and 2")
        check(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "between -2 and 2")
        check(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "between -2 and 2")
        check(all(-100.0 <= b <= 100.0 for b in self.logit_bias.values()), "logit_bias", "within [-100, 100]")
        check(1 <= self.n <= 128, "n", "between 1 and 128")

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    def of_sequence(self, index: int) -> SamplingParams:
        """Those of the ``index``-th of ``n`` sequences; its seed is a signed 64-bit integer again."""
        seed = None if self.seed is None else (self.seed + index + 2**63) % 2**64 - 2**63
        return msgspec.structs.replace(self, n=1, seed=seed)


_SamplingTypes = msgspec.defstruct("_SamplingTypes", list(get_type_hints(SamplingParams).items()))


class ParallelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model is spread over devices; all ranks must be given the same values.

    The world is ``data_parallel_size`` x ``prefill_context_parallel_size`` x ``tensor_parallel_size`` ranks.
    ``attention_dp`` turns the tensor-parallel ranks into data-parallel ones for attention.
    ``expert_parallel`` None: experts are cut by rows where that is legal, else dealt out whole;
    ``expert_parallel_size`` and ``moe_tensor_parallel_size`` fix both numbers. ``all2all_backend`` "alltoall"
    sends tokens to the ranks of their experts only, the others send them to all. With
    ``disable_custom_all_reduce`` the library of collectives makes small sums too. ``rendezvous_timeout`` and
    ``step_timeout`` are seconds until a missing rank, or a step that does not end, stops the engine.
    """

    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    expert_parallel: bool | None = None
    expert_parallel_size: int | None = None
    moe_tensor_parallel_size: int | None = None
    attention_dp: bool = False
    prefill_context_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    sequence_parallel_norm: bool = False
    all2all_backend: str = "auto"
    disable_custom_all_reduce: bool = False
    rendezvous_timeout: float = 600.0
    step_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.all2all_backend not in ("auto", "allgather", "alltoall"):
            raise ValueError(
                f"all2all_backend must be one of auto, allgather, alltoall, got {self.all2all_backend!r}"
            )
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{field} must be more than 0, got {value}")

    @property
    def world_size(self) -> int:
        return self.data_parallel_size * self.prefill_context_parallel_size * self.tensor_parallel_size

    @property
    def num_groups(self) -> int:
        """Groups of ranks with requests and pages of their own."""
        return self.data_parallel_size * (self.tensor_parallel_size if self.attention_dp else 1)

    def describe_world(self) -> str:
        """The product that makes the number of ranks, for messages."""
        names = ("tensor_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
        factors = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) > 1]
        return " x ".join(factors or ["tensor_parallel_size 1"])


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which ranks this process starts, and where rank 0 waits for the others.

    Ranks ``first_rank`` to ``first_rank + num_local - 1`` run on this machine. ``single``: the process is
    itself the one rank ``first_rank``, started by an outside launcher. ``local_rank`` is the number of the
    first rank among those of the machine, ``local_world`` how many they are. ``source`` says who told.
    ``tied``: the ranks end with the process that started them. ``log_level`` and ``log_format`` say what its
    processes print.
    """

    first_rank: int = 0
    num_local: int | None = None
    single: bool = False
    local_rank: int = 0
    local_world: int | None = None
    address: str = "127.0.0.1"
    port: int = 0
    source: str = "the flags"
    bind_cpus: bool = False
    tied: bool = True
    log_level: str = "info"
    log_format: str = "text"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one engine needs to know; None means "derive it from the model and the machine".

    ``model`` is a checkpoint folder. The page pool is ``kv_cache_bytes``, or the share
    ``kv_cache_free_gpu_memory_fraction`` of what is free beside weights and steps, or what these leave of the
    share ``gpu_memory_utilization`` of the whole device. ``kv_cache_dtype`` and ``index_kv_dtype`` "auto" are
    the model's. ``max_num_batched_tokens`` bounds the tokens of one step. ``enforce_eager`` keeps decode
    steps out of device graphs. ``async_scheduling`` plans a step while the one before it runs, where the
    device works on its own. ``deterministic``: a row's result does not depend on its batch, on a GPU in bf16
    either. ``dequantize_weights`` multiplies fp8 weights out when they are loaded. ``place`` is what this
    process adds to ``parallel``: it differs between nodes.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    load_format: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_num_queued_reqs: int | None = None
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    async_scheduling: bool = True
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_free_gpu_memory_fraction: float | None = None
    kv_cache_dtype: str = "auto"
    index_kv_dtype: str = "auto"
    deterministic: bool = False
    dequantize_weights: bool = False
    seed: int = 0
    parallel: ParallelConfig = ParallelConfig()
    place: Place = Place()

    def __post_init__(self) -> None:
        def choice(field: str, allowed: tuple[str, ...]) -> None:
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")

        choice("device", ("auto", "cpu", "cuda", "npu"))
        choice("dtype", ("auto", "bfloat16", "float32"))
        choice("kv_cache_dtype", CACHE_DTYPES)
        choice("index_kv_dtype", CACHE_DTYPES)
        choice("load_format", ("auto", "safetensors", "dummy"))
        shares = ("gpu_memory_utilization", "kv_cache_free_gpu_memory_fraction")
        for field in shares:
            share = getattr(self, field)
            if share is not None and not 0.0 < share <= 1.0:
                raise ValueError(f"{field} must be above 0 and at most 1, got {share}")
        if all(getattr(self, field) is not None for field in shares):
            raise ValueError(f"{' and '.join(shares)} exclude each other")
        for field in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")
