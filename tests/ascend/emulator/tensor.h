#pragma once

#include "tests/ascend/emulator/machine.h"

namespace emu {

inline LocalMemory& memory_of(AscendC::TPosition position) {
    using enum AscendC::TPosition;
    switch (position) {
        case A1:
        case B1:
        case C1: return core->l1;
        case A2: return core->l0a;
        case B2: return core->l0b;
        case CO1: return core->l0c;
        case C2:
        case C2PIPE2GM: return core->bt;
        default: return core->ub;
    }
}

inline bool on_aic(AscendC::TPosition position) {
    using enum AscendC::TPosition;
    return position != VECIN && position != VECOUT && position != VECCALC;
}

}  // namespace emu

namespace AscendC {

/// A checked view of a core's memory; `end` is where its buffer ends.
template <class T>
class LocalTensor {
  public:
    using PrimType = T;

    LocalTensor() = default;
    LocalTensor(TPosition position, emu::BufferState* buffer, size_t offset, size_t end)
        : memory_(&emu::memory_of(position)),
          buffer_(buffer),
          position_(position),
          offset_(offset),
          end_(end) {}

    LocalTensor operator[](uint32_t elements) const { return {*this, offset_ + elements * sizeof(T)}; }
    template <class U>
    LocalTensor<U> ReinterpretCast() const {
        return {position_, buffer_, offset_, end_};
    }
    uint32_t GetSize() const { return static_cast<uint32_t>((end_ - offset_) / sizeof(T)); }
    TPosition GetPosition() const { return position_; }

    T GetValue(uint32_t index, emu::At at = emu::At::current()) const {
        emu::Instruction op(PIPE_S, "GetValue", at);
        check(index * sizeof(T), sizeof(T), "GetValue", at);
        op.read(memory(), offset_ + index * sizeof(T), sizeof(T));
        op.done(1, 0);
        return at_index(index);
    }
    void SetValue(uint32_t index, T value, emu::At at = emu::At::current()) const {
        emu::Instruction op(PIPE_S, "SetValue", at);
        check(index * sizeof(T), sizeof(T), "SetValue", at);
        op.write(memory(), offset_ + index * sizeof(T), sizeof(T));
        at_index(index) = value;
        op.done(1, 0);
    }

    // What follows is the emulator's own.
    emu::LocalMemory& memory() const { return *memory_; }
    size_t offset() const { return offset_; }
    T& at_index(size_t index) const { return *at_byte(index * sizeof(T)); }
    T* at_byte(size_t byte) const { return reinterpret_cast<T*>(&memory_->data[offset_ + byte]); }
    void check(size_t byte, size_t bytes, const char* name, const emu::At& at) const {
        emu::require(memory_ != nullptr, 22, at, name, " on a tensor without a buffer");
        emu::require(offset_ + byte + bytes <= end_, 6, at, name, " touches ", bytes, " bytes at byte ", byte,
                     " of a tensor of ", end_ - offset_, " in ", memory_->name);
        emu::require(!buffer_ || buffer_->state == -1 || buffer_->state == 1 || buffer_->state == 3, 10, at,
                     name, " uses a tensor whose queue buffer is ",
                     buffer_ && buffer_->state == 2 ? "queued" : "free");
    }
    void aligned(size_t bytes, const char* name, const emu::At& at) const {
        emu::require(memory_ != nullptr, 22, at, name, " on a tensor without a buffer");
        emu::require(offset_ % bytes == 0, 3, at, name, ": address ", offset_, " in ", memory_->name,
                     " must be a multiple of ", bytes);
    }
    emu::BufferState* buffer() const { return buffer_; }

  private:
    template <class>
    friend class LocalTensor;
    LocalTensor(const LocalTensor& from, size_t offset)
        : memory_(from.memory_),
          buffer_(from.buffer_),
          position_(from.position_),
          offset_(offset),
          end_(from.end_) {
        if (offset_ > end_) throw emu::Violation{6, "check 6: a view begins behind the end of its tensor"};
    }
    emu::LocalMemory* memory_ = nullptr;
    emu::BufferState* buffer_ = nullptr;
    TPosition position_ = TPosition::VECCALC;
    size_t offset_ = 0, end_ = 0;
};

/// A view of global memory; every access is checked against the tensors of the launch.
template <class T>
class GlobalTensor {
  public:
    using PrimType = T;

    void SetGlobalBuffer(T* data, uint64_t count = ~0ull) {
        data_ = data;
        count_ = count;
    }
    GlobalTensor operator[](uint64_t elements) const {
        GlobalTensor t = *this;
        t.data_ = data_ + elements;
        t.count_ = count_ == ~0ull ? count_ : count_ - elements;
        if (count_ != ~0ull && elements > count_)
            throw emu::Violation{6, "check 6: a view begins behind the end of its global tensor"};
        return t;
    }
    void SetL2CacheHint(CacheMode) {}
    T* GetPhyAddr() const { return data_; }

    T GetValue(uint64_t index, emu::At at = emu::At::current()) const {
        emu::Instruction op(PIPE_S, "GetValue", at);
        check(index * sizeof(T), sizeof(T), "GetValue", at);
        op.read_gm(data_ + index, sizeof(T), true);
        op.done(4, 0);
        return data_[index];
    }
    void SetValue(uint64_t index, T value, emu::At at = emu::At::current()) const {
        emu::Instruction op(PIPE_S, "SetValue", at);
        check(index * sizeof(T), sizeof(T), "SetValue", at);
        op.write_gm(data_ + index, sizeof(T), true);
        data_[index] = value;
        op.done(4, 0);
    }

    // The emulator's own.
    void check(size_t byte, size_t bytes, const char* name, const emu::At& at) const {
        emu::require(data_ != nullptr, 22, at, name, " on a global tensor without SetGlobalBuffer");
        emu::require(count_ == ~0ull || byte + bytes <= count_ * sizeof(T), 6, at, name, " touches ", bytes,
                     " bytes at byte ", byte, " of a global tensor of ", count_ * sizeof(T));
    }
    uint8_t* at_byte(size_t byte) const { return reinterpret_cast<uint8_t*>(data_) + byte; }

  private:
    T* data_ = nullptr;
    uint64_t count_ = ~0ull;
};

template <class T, CacheLine line, DcciDst dst>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& gm, emu::At at = emu::At::current()) {
    emu::GmBuffer& b = emu::machine->find(gm.GetPhyAddr(), 1, at);
    const auto address = reinterpret_cast<uintptr_t>(gm.GetPhyAddr()) / 64 * 64;
    emu::core->fresh_lines.insert(address / 64);
    emu::core->time[PIPE_S] += 16;
    const size_t offset = address > b.base ? address - b.base : 0;
    for (size_t g = offset / 32; g <= offset / 32 + 1 && g < b.log.size(); ++g)
        for (emu::GmAccess& a : b.log[g])
            if (a.actor / emu::kNumPipes == static_cast<uint32_t>(emu::core->index)) a.dirty_line = false;
}

}  // namespace AscendC
