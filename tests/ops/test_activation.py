from __future__ import annotations

import pytest
import torch

from cases import load
from mmx import ops
from mmx.ops import Activation, reference
from ops.compare import assert_close_to_truth, assert_equal, strided

DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.bfloat16, id="bf16")]


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", load("activation", "gated_act"))
def test_gated_act(dims, dtype, activation, device, rng):
    gate_up = 4 * torch.randn(dims["num_tokens"], 2 * dims["inter"], generator=rng)
    gate_up = gate_up.to(dtype).to(device)
    out = ops.gated_act(strided(gate_up), activation)
    truth = reference.gated_act(gate_up.double(), activation)
    assert_close_to_truth(out, truth, reference.gated_act(gate_up, activation))
    into = strided(torch.empty_like(out))
    ops.gated_act(gate_up, activation, out=into)
    assert_equal(into, out)


def test_swiglu_oai_values_worked_out_by_hand(device):
    gate, up = [1.0, -1, 10, 7, 0.5], [1.0, 2, 0, -8, -0.5]
    expected = torch.tensor([[1.69159153, -0.462612702, 6.99995313, -41.9997188, 0.175194218]])
    out = ops.gated_act(torch.tensor([gate + up], device=device), Activation.SWIGLU_OAI, 1.702, 7.0)
    torch.testing.assert_close(out.cpu(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("activation", list(Activation))
def test_gated_act_of_all_magnitudes(activation, device):
    gate = torch.cat([sign * torch.logspace(-38, 38, 1001) for sign in (1, -1)])[None]
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1).to(device)
    out = ops.gated_act(gate_up, activation).double().cpu()
    truth = reference.gated_act(gate_up.double(), activation).cpu()
    # fp32 rounds alpha * gate (up to 87 before the result vanishes) by up to 4e-6, which the exponential
    # turns into a relative error; results below the smallest normal number have fewer digits.
    torch.testing.assert_close(out, truth, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("activation", list(Activation))
def test_gated_act_passes_nan_on(activation, device):
    gate_up = torch.tensor([[float("nan"), 1, 1, 1, float("nan"), 1]], device=device)
    assert_equal(ops.gated_act(gate_up, activation).isnan(), torch.tensor([[True, True, False]]))


def test_gated_act_does_not_depend_on_threads(rng):
    gate_up = torch.randn(301, 2 * 99, generator=rng)
    outs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        outs.append(ops.gated_act(gate_up, Activation.SWIGLU_OAI))
    torch.set_num_threads(1)
    assert_equal(outs[1], outs[0])
    assert_equal(outs[2], outs[0])


def test_gated_act_names_the_fault(device):
    gate_up = torch.zeros(2, 8, device=device)
    with pytest.raises(RuntimeError, match=r"gated_act: gate_up must be \[num_tokens=2, 6\], got \[2, 8\]"):
        ops.gated_act(gate_up, Activation.SILU, out=torch.zeros(2, 3, device=device))
    with pytest.raises(RuntimeError, match=r"activation must be 0 \(silu\) or 1 \(swiglu_oai\), got 2"):
        torch.ops.mmx.gated_act(torch.zeros(2, 4, device=device), gate_up, 2, 1.0, 1.0)
    with pytest.raises(RuntimeError, match="gated_act: out must be float32, got bfloat16"):
        ops.gated_act(gate_up, Activation.SILU, out=torch.zeros(2, 4, device=device).bfloat16())


def test_opcheck(device, rng):
    gate_up = torch.randn(3, 10, generator=rng).to(device)
    out = torch.empty(3, 5, device=device)
    torch.library.opcheck(torch.ops.mmx.gated_act.default, (out, gate_up, 1, 1.702, 7.0))
