#pragma once

#include "tests/ascend/emulator/tensor.h"

namespace AscendC {

/// The two pipes between which a queue of this position passes buffers; equal: none.
constexpr std::pair<int, int> queue_pipes(TPosition position) {
    switch (position) {
        case TPosition::VECIN: return {PIPE_MTE2, PIPE_V};
        case TPosition::VECOUT: return {PIPE_V, PIPE_MTE3};
        case TPosition::A1:
        case TPosition::B1: return {PIPE_MTE2, PIPE_MTE1};
        case TPosition::A2:
        case TPosition::B2: return {PIPE_MTE1, PIPE_M};
        case TPosition::CO1: return {PIPE_M, PIPE_FIX};
        default: return {PIPE_S, PIPE_S};
    }
}

template <TPosition position, int32_t depth>
class TQue {
  public:
    template <class T>
    LocalTensor<T> AllocTensor(emu::At at = emu::At::current()) {
        emu::require(!slots_.empty(), 22, at, "AllocTensor from a queue without InitBuffer");
        for (emu::BufferState* slot : slots_) {
            if (slot->state != 0) continue;
            slot->state = 1;
            if (!slot->released.clock.empty())
                emu::receive(*emu::core, queue_pipes(position).first, slot->released);
            emu::memory_of(position).poison(slot->offset, slot->bytes);
            return {position, slot, slot->offset, slot->offset + slot->bytes};
        }
        emu::fail(10, at, "AllocTensor: all ", slots_.size(), " buffers of the queue are in use");
    }
    template <class T>
    bool EnQue(const LocalTensor<T>& tensor, emu::At at = emu::At::current()) {
        emu::BufferState* slot = own(tensor, 1, "EnQue", at);
        emu::require(queued_.size() < static_cast<size_t>(depth), 10, at,
                     "EnQue: the queue holds its depth of ", depth);
        slot->state = 2;
        slot->filled = emu::snapshot(*emu::core, queue_pipes(position).first, at);
        queued_.push_back(slot);
        return true;
    }
    template <class T>
    LocalTensor<T> DeQue(emu::At at = emu::At::current()) {
        emu::require(!queued_.empty(), 10, at, "DeQue from an empty queue");
        emu::BufferState* slot = queued_.front();
        queued_.erase(queued_.begin());
        slot->state = 3;
        emu::receive(*emu::core, queue_pipes(position).second, slot->filled);
        return {position, slot, slot->offset, slot->offset + slot->bytes};
    }
    template <class T>
    void FreeTensor(const LocalTensor<T>& tensor, emu::At at = emu::At::current()) {
        emu::BufferState* slot = own(tensor, 3, "FreeTensor", at);
        slot->state = 0;
        slot->released = emu::snapshot(*emu::core, queue_pipes(position).second, at);
        emu::memory_of(position).poison(slot->offset, slot->bytes);
    }
    bool HasTensorInQue() const { return !queued_.empty(); }
    bool VacantInQue() const { return queued_.size() < static_cast<size_t>(depth); }
    void adopt(emu::BufferState* slot) { slots_.push_back(slot); }

  private:
    template <class T>
    emu::BufferState* own(const LocalTensor<T>& tensor, int state, const char* name, const emu::At& at) {
        emu::BufferState* slot = tensor.buffer();
        emu::require(slot && std::count(slots_.begin(), slots_.end(), slot) == 1, 10, at, name,
                     ": the tensor belongs to another queue");
        emu::require(slot->state == state, 10, at, name, ": the tensor is ",
                     slot->state == 0   ? "free"
                     : slot->state == 1 ? "not queued yet"
                     : slot->state == 2 ? "queued"
                                        : "taken out");
        return slot;
    }
    std::vector<emu::BufferState*> slots_, queued_;
};

template <TPosition position>
class TBuf {
  public:
    template <class T>
    LocalTensor<T> Get(emu::At at = emu::At::current()) const {
        emu::require(state_ != nullptr, 22, at, "Get from a TBuf without InitBuffer");
        return {position, state_, state_->offset, state_->offset + state_->bytes};
    }
    template <class T>
    LocalTensor<T> GetWithOffset(uint32_t count, uint32_t byte_offset,
                                 emu::At at = emu::At::current()) const {
        emu::require(state_ != nullptr, 22, at, "GetWithOffset from a TBuf without InitBuffer");
        emu::require(byte_offset + count * sizeof(T) <= state_->bytes, 6, at, "GetWithOffset: ", count,
                     " elements at byte ", byte_offset, " of a buffer of ", state_->bytes);
        return {position, state_, state_->offset + byte_offset,
                state_->offset + byte_offset + count * sizeof(T)};
    }
    void adopt(emu::BufferState* state) { state_ = state; }

  private:
    emu::BufferState* state_ = nullptr;
};

class TPipe {
  public:
    explicit TPipe(emu::At at = emu::At::current()) {
        emu::require(++emu::core->pipes_alive == 1, 10, at, "a second TPipe lives on this core");
    }
    ~TPipe() { --emu::core->pipes_alive; }
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;

    template <TPosition position, int32_t depth>
    bool InitBuffer(TQue<position, depth>& queue, uint8_t num, uint32_t bytes,
                    emu::At at = emu::At::current()) {
        int& used = emu::core->queue_buffers[static_cast<int>(position)];
        used += num;
        emu::require(used <= 8, 10, at, "InitBuffer: ", used, " queue buffers at one position, at most 8");
        for (int i = 0; i < num; ++i) {
            emu::BufferState* slot = give(position, bytes, at);
            slot->state = 0;
            queue.adopt(slot);
        }
        return true;
    }
    template <TPosition position>
    bool InitBuffer(TBuf<position>& buffer, uint32_t bytes, emu::At at = emu::At::current()) {
        buffer.adopt(give(position, bytes, at));
        return true;
    }

  private:
    emu::BufferState* give(TPosition position, uint32_t bytes, const emu::At& at) {
        emu::Core& c = *emu::core;
        emu::LocalMemory& m = emu::memory_of(position);
        emu::require(c.is_aic == emu::on_aic(position), 1, at, "InitBuffer: ", m.name, " is not on an ",
                     c.is_aic ? "AIC" : "AIV");
        const size_t usable = &m == &c.ub   ? emu::Chip::kUbUsable
                              : &m == &c.l1 ? emu::Chip::kL1Usable
                                            : m.bytes;
        size_t& top = c.top[&m];
        auto state = std::make_unique<emu::BufferState>();
        state->offset = top;
        state->bytes = (bytes + 31) / 32 * 32;
        top += state->bytes;
        emu::require(top <= usable, 2, at, "InitBuffer: ", top, " bytes of ", m.name, ", usable are ",
                     usable);
        c.buffers.push_back(std::move(state));
        emu::require(c.buffers.size() <= 64, 10, at, "InitBuffer: more than 64 buffers");
        return c.buffers.back().get();
    }
};

}  // namespace AscendC
