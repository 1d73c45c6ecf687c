#pragma once

/// Programmatic dependent launch: a kernel launched with `LaunchChain` may start while its predecessor
/// drains. Rules of this library: every thread block waits before it touches memory that an earlier kernel
/// writes or reads, also the blocks that then find nothing to do; only the second kernel of one op may read
/// the op's inputs earlier, because the first one triggers after its own wait. Before the wait a block may
/// also look at lengths, page tables and offsets of experts, past the L1, if it stays within bounds whatever
/// it sees and looks again behind the wait.
namespace mmx::cuda::ptx {

__device__ __forceinline__ void wait_for_predecessors() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ __forceinline__ void let_successors_start() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace mmx::cuda::ptx
