"""Small sums over the GPUs of one host: the kernels over mapped memory against NCCL, in one run.

    python bench/ops/peers_comm.py [--ranks 2] [--rows 1 8 32 128] [--hidden 6144]

Per row count: NCCL's all-reduce alone, with ``add_rms_norm`` behind it, and ``all_reduce_add_rms_norm``;
then mean squares of q and k of M2.5 with an all-reduce of NCCL, and in one kernel. Microseconds of one call
out of 20 in a CUDA graph, median of 20 replays, the slowest rank. The kernels must give the bits of sums in
the order of the ranks.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmx import ops
from mmx.distributed import peers as mapped

CALLS, REPLAYS, TIMEOUT = 20, 20, 30.0


def time_us(run: Callable[[], object]) -> float:
    """Of one call, on the slowest rank."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    times = []
    for _ in range(REPLAYS):
        dist.barrier()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    median = torch.tensor(1e6 * statistics.median(times) / CALLS, device="cuda")
    dist.all_reduce(median, op=dist.ReduceOp.MAX)
    return round(median.item(), 2)


def measure(rows: int, hidden: int, peers: mapped.Peers) -> dict[str, float | int]:
    torch.manual_seed(dist.get_rank())
    x = torch.randn(rows, hidden, device="cuda", dtype=torch.bfloat16)
    torch.manual_seed(99)
    residual = torch.randn_like(x)
    weight, work, out = torch.rand_like(x[0]), x.clone(), torch.empty_like(x)

    def library(stream: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(part)
        return ops.add_rms_norm(stream, part, weight, 1e-6, True, out=out)

    def fused(stream: torch.Tensor) -> torch.Tensor:
        return ops.all_reduce_add_rms_norm(stream, x, weight, 1e-6, True, *peers, out=out)[0]

    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    total = sum((part.float() for part in parts[1:]), parts[0].float()).bfloat16()
    streams = [residual.clone(), residual.clone()]
    expected = ops.add_rms_norm(streams[0], total, weight, 1e-6, True)
    if not (torch.equal(fused(streams[1]), expected) and torch.equal(*streams)):
        raise RuntimeError(f"{rows} rows of {hidden}: the kernel does not give the sum of the ranks")
    work.zero_()
    return {
        "bytes": x.numel() * x.element_size(),
        "nccl_us": time_us(lambda: dist.all_reduce(work)),
        "nccl_add_norm_us": time_us(lambda: library(residual, work)),
        "mapped_us": time_us(lambda: fused(residual)),
    }


def measure_squares(rows: int, peers: mapped.Peers) -> dict[str, float | int]:
    size = dist.get_world_size()
    qkv = torch.randn(rows, 64 // size, 128, device="cuda", dtype=torch.bfloat16)
    arguments = (qkv, 48 // size, 8 // size, size)
    own = ops.qk_mean_squares(*arguments)
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own)
    if not torch.equal(ops.qk_mean_squares(*arguments, *peers), sum(parts[1:], parts[0])):
        raise RuntimeError("mean squares: the kernel does not give the sum of the ranks")
    return {
        "rows": rows,
        "nccl_squares_us": time_us(lambda: dist.all_reduce(ops.qk_mean_squares(*arguments))),
        "mapped_squares_us": time_us(lambda: ops.qk_mean_squares(*arguments, *peers)),
    }


def run_rank(rank: int, args: argparse.Namespace, port: int) -> None:
    torch.set_grad_enabled(False)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    wait = timedelta(seconds=TIMEOUT)
    store = dist.TCPStore("127.0.0.1", port, args.ranks, is_master=rank == 0, timeout=wait)
    dist.init_process_group(
        "nccl", store=store, rank=rank, world_size=args.ranks, timeout=wait, device_id=device
    )
    mapped.MAX_SENT_ROWS = 2 * max(args.rows)
    peers = mapped.map_peers(range(args.ranks), rank, args.hidden, device, store, TIMEOUT)
    if peers is None:
        raise RuntimeError("the GPUs can not map each other's memory")
    lines = [measure(rows, args.hidden, peers) for rows in args.rows]
    lines += [measure_squares(rows, peers) for rows in args.rows]
    if rank == 0:
        print("\n".join(json.dumps({"hidden": args.hidden} | line) for line in lines), flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--hidden", type=int, default=6144)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(torch.cuda.get_device_name(), torch.__version__, "NCCL", torch.cuda.nccl.version(), flush=True)
    mp.spawn(run_rank, args=(args, port), nprocs=args.ranks)


if __name__ == "__main__":
    main()
