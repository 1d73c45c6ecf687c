"""The M3 text model in plain torch, for training: full sequences, no cache, autograd throughout.

Shapes: rows of ``[batch, length]`` tokens are flattened to ``[num_tokens, hidden]``, so that everything but
the attention itself sees one shape however long the rows are. Formulas: the M3 text model (gemma norms,
partial rope, per-head q/k norm, clamped SwiGLU, sigmoid router with correction bias, block selection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE, TRAINED, RANDOM = "dense", "trained", "random"


@dataclass(frozen=True)
class Shape:
    """Sizes of the demo model; the names follow the raw M3 ``config.json``."""

    vocab: int = 4096
    hidden: int = 256
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 32
    rope_theta: float = 5_000_000.0
    dense_inter: int = 768
    inter: int = 96
    shared_inter: int = 192
    num_experts: int = 8
    num_experts_per_tok: int = 2
    routed_scale: float = 2.0
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    eps: float = 1e-6
    block_size: int = 128
    topk_blocks: int = 16
    max_positions: int = 32768

    def config(self, bos: int, eos: int, pad: int) -> dict[str, Any]:
        """Return the raw checkpoint's ``config.json``; the first layer is dense, all others sparse."""
        sparse = [0] + [1] * (self.num_layers - 1)
        return {
            "architectures": ["MiniMaxM3SparseForCausalLM"],
            "model_type": "minimax_m3_vl_text",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "dense_intermediate_size": self.dense_inter,
            "shared_intermediate_size": self.shared_inter,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "partial_rotary_factor": self.rotary_dim / self.head_dim,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.eps,
            "use_gemma_norm": True,
            "attention_output_gate": False,
            "use_qk_norm": True,
            "qk_norm_type": "per_head",
            "hidden_act": "swigluoai",
            "swiglu_alpha": self.swiglu_alpha,
            "swiglu_limit": self.swiglu_limit,
            "num_local_experts": self.num_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "n_shared_experts": 1,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "routed_scaling_factor": self.routed_scale,
            "moe_layer_freq": sparse,
            "sparse_attention_config": {
                "use_sparse_attention": True,
                "sparse_attention_freq": sparse,
                "sparse_index_dim": self.head_dim,
                "sparse_num_index_heads": self.num_kv_heads,
                "sparse_topk_blocks": self.topk_blocks,
                "sparse_block_size": self.block_size,
                "sparse_local_block": 1,
                "sparse_init_block": 0,
                "sparse_score_type": "max",
                "sparse_disable_index_value": sparse,
            },
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
        }


def gemma_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``x / rms(x) * (1 + weight)`` over the last dimension, computed in fp32, in the dtype of x."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * (1.0 + weight.float())).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first ``2 * cos.shape[-1]`` channels of ``x [num_tokens, heads, dim]``, half pairing."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], -1)


def swiglu(gate: Tensor, up: Tensor, s: Shape) -> Tensor:
    """Return the clamped SwiGLU-OAI activation of two equally shaped tensors."""
    gate = gate.clamp(max=s.swiglu_limit)
    up = up.clamp(-s.swiglu_limit, s.swiglu_limit)
    return gate * torch.sigmoid(s.swiglu_alpha * gate) * (up + 1.0)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


class Layer(nn.Module):
    """One decoder layer; ``sparse`` adds the indexer and replaces the MLP by routed plus shared experts."""

    router_bias: Tensor

    def __init__(self, s: Shape, sparse: bool) -> None:
        super().__init__()
        self.s, self.sparse = s, sparse
        heads, kv, dim = s.num_heads, s.num_kv_heads, s.head_dim

        def weight(*shape: int, zero: bool = False) -> nn.Parameter:
            data = torch.zeros(shape) if zero else torch.randn(shape) * shape[-1] ** -0.5
            return nn.Parameter(data)

        self.input_norm, self.post_norm = (nn.Parameter(torch.zeros(s.hidden)) for _ in range(2))
        self.q_norm, self.k_norm = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.q, self.k, self.v = (weight(n * dim, s.hidden) for n in (heads, kv, kv))
        self.o = weight(s.hidden, heads * dim, zero=True)
        inter = s.shared_inter if sparse else s.dense_inter
        self.gate, self.up = weight(inter, s.hidden), weight(inter, s.hidden)
        self.down = weight(s.hidden, inter, zero=True)
        if sparse:
            self.index_q, self.index_k = weight(kv * dim, s.hidden), weight(dim, s.hidden)
            self.index_q_norm, self.index_k_norm = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
            self.router = weight(s.num_experts, s.hidden)
            self.register_buffer("router_bias", torch.zeros(s.num_experts))
            self.w1, self.w3 = (weight(s.num_experts, s.inter, s.hidden) for _ in range(2))
            self.w2 = weight(s.num_experts, s.hidden, s.inter, zero=True)

    def project(self, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Return rotated q, k, plain v and, on sparse layers, rotated index q and k (``[tokens, heads, d]``).

        The index projections see the normed input without its gradient: they learn from the attention only.
        """
        s, dim = self.s, self.s.head_dim
        a = gemma_norm(h, self.input_norm, s.eps)
        q = rope(gemma_norm(linear(a, self.q).unflatten(-1, (-1, dim)), self.q_norm, s.eps), cos, sin)
        k = rope(gemma_norm(linear(a, self.k).unflatten(-1, (-1, dim)), self.k_norm, s.eps), cos, sin)
        v = linear(a, self.v).unflatten(-1, (-1, dim))
        if not self.sparse:
            return q, k, v
        a = a.detach()
        iq = gemma_norm(linear(a, self.index_q).unflatten(-1, (-1, dim)), self.index_q_norm, s.eps)
        ik = gemma_norm(linear(a, self.index_k).unflatten(-1, (-1, dim)), self.index_k_norm, s.eps)
        return q, k, v, rope(iq, cos, sin), rope(ik, cos, sin)

    def finish(self, h: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Add attention output and MLP; return the new hidden state and the expert loads ``[experts]``."""
        s = self.s
        h = h + linear(attended, self.o)
        m = gemma_norm(h, self.post_norm, s.eps)
        out = linear(swiglu(linear(m, self.gate), linear(m, self.up), s), self.down)
        if not self.sparse:
            return h + out, torch.zeros(s.num_experts, device=h.device)
        scores = torch.sigmoid(F.linear(m.float(), self.router))
        picked = (scores + self.router_bias).topk(s.num_experts_per_tok, -1).indices
        chosen = torch.zeros_like(scores).scatter(-1, picked, 1.0)
        weights = scores * chosen
        weights = s.routed_scale * weights / weights.sum(-1, keepdim=True)
        # Why: at this size all experts on all tokens in two wide products beat any grouping of tokens.
        inner = swiglu(linear(m, self.w1.flatten(0, 1)), linear(m, self.w3.flatten(0, 1)), s)
        inner = inner.unflatten(-1, (s.num_experts, s.inter)) * weights.to(h.dtype)[..., None]
        out = out + linear(inner.flatten(-2), self.w2.transpose(0, 1).flatten(1))
        return h + out, chosen.sum(0)


def block_scores(iq: Tensor, ik: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Score blocks for some queries of one row: the largest visible token score of each block, fp32.

    ``iq [queries, heads, dim]``, ``ik [length, dim]``, ``positions [queries]`` give
    ``[heads, queries, blocks]`` with -inf for blocks that hold no visible token.
    """
    scores = torch.einsum("qhd,kd->hqk", iq.float(), ik.float())
    keys = torch.arange(ik.shape[0], device=ik.device)
    scores = scores.masked_fill(keys > positions[:, None], float("-inf"))
    pad = -ik.shape[0] % block_size
    return F.pad(scores, (0, pad), value=float("-inf")).unflatten(-1, (-1, block_size)).amax(-1)


def select(scores: Tensor, positions: Tensor, s: Shape) -> Tensor:
    """Turn block scores ``[heads, queries, blocks]`` into a mask of kept blocks: the own and the top ones."""
    own = F.one_hot(positions // s.block_size, scores.shape[-1]).bool()
    scores = scores.masked_fill(own, float("inf"))
    picked = scores.topk(min(s.topk_blocks, scores.shape[-1]), -1).indices
    keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, picked, True)
    return keep & (scores > float("-inf"))


class Model(nn.Module):
    """The whole model. ``forward`` returns hidden states; ``logits`` is applied to the rows that need it."""

    cos: Tensor
    sin: Tensor

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embed = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.3)
        self.layers = nn.ModuleList(Layer(s, sparse=i > 0) for i in range(s.num_layers))
        self.norm = nn.Parameter(torch.zeros(s.hidden))
        self.head = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.02)
        inv_freq = s.rope_theta ** (-torch.arange(0, s.rotary_dim, 2).double() / s.rotary_dim)
        angles = torch.arange(s.max_positions).double()[:, None] * inv_freq
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def decoder_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def attend(self, layer: Layer, parts: tuple[Tensor, ...], batch: int, selector: str) -> Tensor:
        """Causal attention of each row; beyond ``topk * block`` tokens a selector other than DENSE bites."""
        q, k, v = (p.unflatten(0, (batch, -1)).transpose(1, 2) for p in parts[:3])
        group, length = self.s.num_heads // self.s.num_kv_heads, q.shape[2]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if not layer.sparse or selector == DENSE or length <= self.s.topk_blocks * self.s.block_size:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            iq, ik = (p.detach().unflatten(0, (batch, -1)) for p in parts[3:])
            out = torch.cat(
                [
                    self._attend_selected(
                        q[i : i + 1], k[i : i + 1], v[i : i + 1], iq[i], ik[i, :, 0], selector
                    )
                    for i in range(batch)
                ]
            )
        return out.transpose(1, 2).flatten(0, 1).flatten(1)

    def _attend_selected(
        self, q: Tensor, k: Tensor, v: Tensor, iq: Tensor, ik: Tensor, selector: str
    ) -> Tensor:
        """One row, in chunks of queries so that masks stay small: q, k, v ``[1, heads, length, dim]``."""
        s, length, outs = self.s, q.shape[2], []
        for begin in range(0, length, 2048):
            end = min(begin + 2048, length)
            positions = torch.arange(begin, end, device=q.device)
            with torch.no_grad():
                scores = block_scores(iq[begin:end], ik[:end], positions, s.block_size)
                if selector == RANDOM:
                    scores = torch.rand_like(scores).masked_fill(scores == float("-inf"), float("-inf"))
                keep = select(scores, positions, s).repeat_interleave(s.block_size, -1)[..., :end]
                keep &= torch.arange(end, device=q.device) <= positions[:, None]
                keep = keep.repeat_interleave(s.num_heads // s.num_kv_heads, 0)[None]
            outs.append(
                F.scaled_dot_product_attention(
                    q[:, :, begin:end], k[:, :, :end], v[:, :, :end], attn_mask=keep
                )
            )
        return torch.cat(outs, 2)

    def forward(
        self, tokens: Tensor, selector: str = DENSE, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, list[tuple[Tensor, ...]], Tensor]:
        """Run rows of equal length.

        Args:
            tokens: ``[batch, length]`` ids, every row from position 0.
            selector: which blocks the sparse layers keep: DENSE (all), TRAINED (the index) or RANDOM.
            dtype: activation dtype; weights are converted where they are used.

        Returns:
            Final normed hidden states ``[batch * length, hidden]``, the projections of every sparse layer
            (for the index loss) and expert loads ``[sparse layers, experts]``.
        """
        batch, length = tokens.shape
        cos, sin = self.cos[:length].repeat(batch, 1), self.sin[:length].repeat(batch, 1)
        h = F.embedding(tokens.flatten(), self.embed).to(dtype)
        projections, loads = [], []
        for layer in self.decoder_layers():
            parts = layer.project(h, cos, sin)
            h, load = layer.finish(h, self.attend(layer, parts, batch, selector))
            if layer.sparse:
                projections.append(parts)
                loads.append(load)
        return gemma_norm(h, self.norm, self.s.eps), projections, torch.stack(loads)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits ``[rows, vocab]`` of final hidden states."""
        return linear(hidden, self.head).float()


def index_loss(parts: tuple[Tensor, ...], batch: int, rows: Tensor, s: Shape) -> Tensor:
    """Distil the attention into the indexer at the query positions ``rows [batch, queries]`` of each row.

    The target is the attention's own mass per block, summed over the query heads of a KV head; the loss is
    the cross entropy between it and the softmax of the block scores. Only index weights get a gradient.
    """
    q, k, _, iq, ik = (p.unflatten(0, (batch, -1)) for p in parts)
    group, dim = s.num_heads // s.num_kv_heads, s.head_dim
    losses = []
    for i in range(batch):
        positions = rows[i]
        with torch.no_grad():
            keys = k[i].repeat_interleave(group, 1).float()
            att = torch.einsum("qhd,khd->hqk", q[i, positions].float(), keys) * dim**-0.5
            hidden = torch.arange(k.shape[1], device=k.device) > positions[:, None]
            mass = att.masked_fill(hidden, float("-inf")).softmax(-1)
            pad = -mass.shape[-1] % s.block_size
            mass = F.pad(mass, (0, pad)).unflatten(-1, (-1, s.block_size)).sum(-1)
            target = mass.unflatten(0, (s.num_kv_heads, group)).mean(1)
            # The own block is always kept, so only the shares of the other blocks matter.
            own = F.one_hot(positions // s.block_size, target.shape[-1]).bool()
            target = target.masked_fill(own, 0.0)
            share = target.sum(-1, keepdim=True)
            target = target / share.clamp(min=1e-6)
        scores = block_scores(iq[i, positions], ik[i, :, 0], positions, s.block_size) * dim**-0.5
        logp = scores.masked_fill(own, float("-inf")).log_softmax(-1)
        cross = -(target * logp.masked_fill(target == 0, 0.0)).sum(-1)
        losses.append((cross * share[..., 0].clamp(min=0.02)).mean())
    return torch.stack(losses).mean()
