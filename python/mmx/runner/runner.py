"""A model, its pages and its sampler on one device."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mmx import ops
from mmx.backend import Backend, resolve_backend
from mmx.batch import SampledToken, ScheduledBatch, ScheduledSeq
from mmx.config import EngineConfig, SamplingParams
from mmx.distributed import Ranks
from mmx.layers import ForwardBatch
from mmx.model_config import ModelConfig, load_eos_token_ids, load_model_config
from mmx.models import CausalLM, build_model
from mmx.runner.graphs import DecodeGraphs, graph_sizes, state_size
from mmx.runner.inputs import Holder, make_inputs
from mmx.runner.kv_pool import PageTypes, PoolPlan, allocate_pool, page_types, plan_pool
from mmx.runner.memory import Limit, Needs, check_weights, memory_limit, pool_budget, size
from mmx.runner.parts import Part, part_of
from mmx.runner.prompt_logprobs import PromptLogprobs
from mmx.runner.sampler import Controls, MaskSource, Sampled, attached_masks, draw_largest, sample_tokens
from mmx.runner.trace import Trace
from mmx.runner.upload import Mailbox
from mmx.tokenizer import Tokenizer
from mmx.weights import fill_random, load_weights

GRAPH_BYTES = 12 << 20  # what a driver keeps per recorded graph, seen at most
log = logging.getLogger("mmx.engine")


class ModelRunner:
    """Executes steps; the facts that scheduler and front end need are attributes."""

    def __init__(
        self,
        model: CausalLM,
        config: ModelConfig,
        backend: Backend,
        plan: PoolPlan,
        eos_token_ids: tuple[int, ...],
        never_sampled: tuple[int, ...] = (),
        max_num_seqs: int = 64,
        types: PageTypes | None = None,
    ) -> None:
        """``config`` is the whole model's; ``never_sampled`` are ids of the whole vocabulary."""
        self.model = model
        self.ranks = model.ranks
        first_id, end_id = self.ranks.share.vocab
        here = [i - first_id for i in never_sampled if first_id <= i < end_id]
        self.num_blocks, self.max_model_len, self.max_model_len_reason = plan
        decode = self.ranks.decode
        self.block_size = decode.size * config.block_size
        self._holder = Holder(decode.rank, decode.size, config.block_size) if decode.size > 1 else None
        self.vocab_size = config.vocab_size
        self.eos_token_ids = eos_token_ids
        self.family = config.family
        self.device = backend.name
        dtype = model.lm_head.weight.dtype
        self.dtype = str(dtype).removeprefix("torch.")
        self._device = backend.device
        self._backend = backend
        self._never_sampled = torch.tensor(here, dtype=torch.int64, device=backend.device)
        types = types or PageTypes(dtype, dtype)
        self._caches = allocate_pool(self.ranks.share.config, types, backend.device, plan.num_blocks)
        table = ops.rope_table(plan.max_model_len, config.rotary_dim, config.rope_theta)
        self._cos_sin = table.to(backend.device)
        self._graphs: DecodeGraphs | None = None
        # Why the ranks: of a context group, one alone has the id that feeds the next step of all.
        self.asynchronous = backend.has_graphs and self.ranks.context.size == 1
        self._max_num_seqs = max_num_seqs
        self._prompts = PromptLogprobs(2 * max_num_seqs)
        self._state = torch.zeros(state_size(max_num_seqs), dtype=torch.int64, device=backend.device)
        self._mailbox = Mailbox(state_size(max_num_seqs), backend.device)
        self._sampled_rows: dict[str, int] = {}  # places in the state's ids of the latest sampled tokens

    @torch.inference_mode()
    def capture_graphs(self, progress: Callable[[float], None]) -> None:
        """Record the decode step for every batch size up to ``max_num_seqs``."""
        self._graphs = DecodeGraphs(
            self._decode,
            state=self._state,
            mailbox=self._mailbox,
            block_size=self.block_size,
            max_blocks=-(-self.max_model_len // self.block_size),
            max_num_seqs=self._max_num_seqs,
            cos_sin=self._cos_sin,
            caches=self._caches,
            num_spread=self.ranks.spread.size,
        )
        self._graphs.capture(progress)

    def execute(self, batch: ScheduledBatch) -> list[SampledToken]:
        """Compute this rank's part of the step; one result per sampling sequence of it, in batch order."""
        return self.launch(batch).result()

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch, masks: MaskSource = attached_masks) -> Sampled:
        """``execute`` without waiting: ``result()`` of what is returned does. ``PENDING`` tokens are those
        that the launch before this one samples for the same request. ``masks`` are asked for after the
        forward pass is launched."""
        part = part_of(batch, self.ranks.layout, self.ranks.rank)
        with self._backend.faults():
            sampled = self._launch(part, masks)
        sampled.faults = self._backend.faults
        return sampled

    def _launch(self, part: Part, masks: MaskSource) -> Sampled:
        seqs = [seq for seq in part.batch.seqs if seq.samples]
        ids = self._state[: len(seqs)]
        if part.idle:
            return Sampled(seqs, ids)
        logits = None if self._graphs is None else self._graphs.run(part, self._sampled_rows)
        alone = self.ranks.tensor.size == 1
        drawn = logits is not None and (alone or all(seq.params.greedy for seq in seqs))
        if logits is None:
            logits = self.forward(part)
            if any(seq.prompt_targets for seq in part.batch.seqs):
                logits = self._prompts.take(logits, part.batch.seqs, self.ranks.tensor)
            self._forbid(logits)
        if not seqs:
            sampled = Sampled(seqs, ids)
        else:
            out = ids if drawn else None
            sampled = sample_tokens(
                logits,
                seqs,
                self.ranks.tensor,
                out=out,
                drawn=drawn,
                masks=masks,
                fetch_ids=self._mailbox.fetch,
            )
            if not drawn:  # last: a launch that failed must find them as they were
                ids.copy_(sampled.token_ids)
        self._sampled_rows = {seq.request_id: row for row, seq in enumerate(seqs)}
        sampled.prompts = self._prompts.complete(seqs)
        return sampled

    @torch.inference_mode()
    def forward(self, part: Part) -> torch.Tensor:
        """Store the step's K and V; logits of the sampling sequences for this rank's part of the vocabulary:
        [num_rows, vocab] f32."""
        logits: torch.Tensor = self.model(self._inputs(part))
        return logits

    def _inputs(self, part: Part) -> ForwardBatch:
        return make_inputs(
            part.batch,
            block_size=self.block_size,
            device=self._device,
            cos_sin=self._cos_sin,
            caches=self._caches,
            part=part,
            holder=self._holder,
            sampled=self._state,
            sampled_rows=self._sampled_rows,
        )

    def close(self) -> None:
        """Leave the other ranks; nothing can be run afterwards. Why graphs go first: a library of collectives
        waits at its end for all graphs that hold calls of it."""
        self._graphs = None
        self.ranks.leave()

    def start_trace(self, *, with_stack: bool) -> Trace:
        """Record what host and device do from now on."""
        return Trace(with_stack=with_stack)

    @torch.inference_mode()
    def rehearse(self, num_seqs: int, num_tokens: int, max_blocks: int) -> None:
        """A step of ``num_seqs`` new sequences of ``num_tokens`` each with page tables of ``max_blocks``, to
        see what it takes; everything is stored into page 0. ``max_blocks`` must cover ``num_tokens``."""
        dp = self.ranks.layout.dp
        pages = [0] * -(-num_tokens // self.block_size)
        seq = ScheduledSeq(
            request_id="",
            token_ids=[0] * num_tokens,
            start=0,
            block_ids=pages,
            samples=True,
            params=SamplingParams(temperature=0.0),
            seed=0,
            num_output_tokens=0,
            num_prompt_tokens=num_tokens,
        )
        sizes = [num_seqs] * dp if dp > 1 else []
        batch = ScheduledBatch(step=0, seqs=[seq] * (num_seqs * dp), group_sizes=sizes)
        part = part_of(batch, self.ranks.layout, self.ranks.rank)
        inputs = self._inputs(part)
        tables = inputs.block_table.new_zeros((inputs.block_table.shape[0], max_blocks))
        logits = self.model(dataclasses.replace(inputs, block_table=tables))
        seqs = [seq for seq in part.batch.seqs if seq.samples]
        if seqs:
            sample_tokens(logits, seqs, self.ranks.tensor).result()

    def _decode(self, inputs: ForwardBatch, controls: Controls) -> torch.Tensor:
        """A decode step as graphs record it. Ranks that share a vocabulary draw greedily in it; whole rows,
        which others than greedy sequences need, are too much to send when nobody asks for them."""
        logits: torch.Tensor = self.model(inputs)
        self._forbid(logits)
        ids, group = self._state[: logits.shape[0]], self.ranks.tensor
        if group.size == 1:
            ops.sample(logits, *controls, out=ids)
        else:
            draw_largest(logits, group, ids)
        return logits

    def _forbid(self, logits: torch.Tensor) -> None:
        if self._never_sampled.numel():
            logits.index_fill_(1, self._never_sampled, -math.inf)


def build_runner(
    config: EngineConfig, progress: Callable[[str, float], None], ranks: Ranks | None = None
) -> ModelRunner:
    """Load the model that ``config`` names, or what one of ``ranks`` holds of it. ``progress`` gets a phase
    and the share of it that is done.

    Raises ConfigError, WeightsError or MemoryPlanError.
    """
    folder = Path(config.model)
    backend = resolve_backend(config.device)
    model_config = load_model_config(folder, config.dequantize_weights or not backend.has_fp8)
    dtype = getattr(torch, model_config.dtype if config.dtype == "auto" else config.dtype)
    if model_config.w8a8 or (model_config.fp8_blocks and model_config.dequantize):
        kind = "int8" if model_config.w8a8 else "fp8"
        log.info("the checkpoint's %s weights are widened to %s", kind, str(dtype).removeprefix("torch."))
    ranks = ranks or Ranks.alone(model_config)
    types = page_types(dtype, config.kv_cache_dtype, config.index_kv_dtype)
    model = build_model(model_config, dtype, ranks, config.deterministic)
    with ranks.in_turn(backend.planning(), backend.device):
        limit = memory_limit(config, backend)
        weights = sum(parameter.numel() * parameter.dtype.itemsize for parameter in model.parameters())
        check_weights(weights, limit, backend)
        free = backend.free_memory()
        model.to_empty(device=backend.device)
        needs = _needs(model, model_config, backend, config, types, weights)
        if backend.has_graphs:  # rounding and what libraries keep are counted there
            needs = needs._replace(weights=max(weights, free - backend.free_memory()))
        runner = ModelRunner(
            model,
            model_config,
            backend,
            _plan(ranks, config, types, backend, limit, needs),
            load_eos_token_ids(folder),
            _never_sampled(folder, model_config.vocab_size),
            config.max_num_seqs,
            types,
        )
    parameters = dict(model.named_parameters())
    progress("load weights", 0.0)
    if config.load_format == "dummy":
        fill_random(parameters, config.seed, model_config.gemma)
    else:
        load_weights(
            folder, model_config, parameters, lambda done: progress("load weights", done), ranks.share
        )
    progress("load weights", 1.0)
    # Why not with a context group: its ranks share single tokens unequally; nor with a decode group, whose
    # attention goes sequence by sequence, nor with exchanged counts, which the host reads.
    fixed = ranks.context.size == ranks.decode.size == 1 and not ranks.layout.all_to_all
    if backend.has_graphs and not config.enforce_eager and fixed:
        runner.capture_graphs(lambda done: progress("capture graphs", done))
    return runner


def _never_sampled(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Ids that have no text and placeholders of media; none where the folder has no tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        return ()
    tokenizer = Tokenizer(folder)
    return tuple(i for i in (*tokenizer.unused_ids, *tokenizer.input_only_ids) if i < vocab_size)


def _needs(
    model: CausalLM,
    model_config: ModelConfig,
    backend: Backend,
    config: EngineConfig,
    types: PageTypes,
    weights: int,
) -> Needs:
    """Rehearse the largest steps with weights of 0 and one page."""
    num_tokens, num_seqs = config.max_num_batched_tokens, config.max_num_seqs
    longest = min(config.max_model_len or model_config.max_positions, model_config.max_positions)
    max_blocks = -(-longest // model_config.block_size)
    length = min(num_tokens, longest)
    if backend.has_graphs:
        for parameter in model.parameters():
            parameter.zero_()
    plan = PoolPlan(1, num_tokens, "for a rehearsal")
    probe = ModelRunner(model, model_config, backend, plan, (), max_num_seqs=num_seqs, types=types)
    many = min(num_seqs, num_tokens)
    steps = [(-(-num_tokens // length), length), (many, min(length, num_tokens // many))]
    step = max(backend.peak_memory(partial(probe.rehearse, *shape, max_blocks)) for shape in steps)
    graphs = 0
    if backend.has_graphs and not config.enforce_eager:
        decode = backend.peak_memory(partial(probe.rehearse, num_seqs, 1, max_blocks))
        graphs = decode + len(graph_sizes(num_seqs)) * GRAPH_BYTES
    return Needs(weights, step, graphs)


def _plan(
    ranks: Ranks, config: EngineConfig, types: PageTypes, backend: Backend, limit: Limit, needs: Needs
) -> PoolPlan:
    """The page pool within the limit, and a line about all of it."""
    budget, rule = pool_budget(config, backend, limit, needs)
    budget = ranks.world.least(budget, backend.device)
    plan = plan_pool(ranks.share.config, types, budget, rule, config.max_model_len, ranks.decode.size)
    log.info(
        "memory of %s: %s may be used (%s); %s, pages %s (%d pages of %d tokens, %s); %s are free",
        *(backend.name, size(limit.num_bytes), limit.rule, needs, size(budget), plan.num_blocks),
        *(ranks.share.config.block_size, str(types.kv).removeprefix("torch."), size(backend.free_memory())),
    )
    return plan
