// Every instruction of the emulator against a plain loop.
#include <random>

#include "tests/ascend/probe.h"

using namespace probe;
using emu::Kind;

namespace {

using Calc = TBuf<TPosition::VECCALC>;

void to_vector() {
    SetFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE2_V>(0);
}
void to_store() {
    SetFlag<HardEvent::V_MTE3>(0);
    WaitFlag<HardEvent::V_MTE3>(0);
}

/// Loads `in` to UB, runs f(out, in as tensors), returns `count` results.
template <class D, class S, class F>
std::vector<D> apply(std::vector<S> in, size_t count, F&& f, int line) {
    Gm<S> source(std::move(in));
    Gm<D> target(count);
    const emu::Report report = on_aiv(
        [&](TPipe&, Calc& b) {
            const uint32_t bytes = static_cast<uint32_t>(source.values.size() * sizeof(S));
            const LocalTensor<S> from = b.GetWithOffset<S>(bytes / sizeof(S), 32 * 1024);
            DataCopyPad(from, source.tensor(), DataCopyExtParams{1, bytes, 0, 0, 0},
                        DataCopyPadExtParams<S>{});
            to_vector();
            f(b.Get<D>(), from);
            to_store();
            DataCopyPad(target.tensor(), b.Get<D>(),
                        DataCopyExtParams{1, static_cast<uint32_t>(count * sizeof(D)), 0, 0, 0});
        },
        {source.buffer(false), target.buffer()});
    expect_clean(report, __FILE__, line);
    return target.values;
}

std::vector<float> randoms(size_t count, float low = -4, float high = 4) {
    std::mt19937 rng(static_cast<uint32_t>(count));
    std::uniform_real_distribution<float> uniform(low, high);
    std::vector<float> values(count);
    for (float& x : values) x = uniform(rng);
    return values;
}

template <class T>
bool same(T a, T b) {
    return std::memcmp(&a, &b, sizeof(T)) == 0;
}

void counted() {
    constexpr size_t n = 100;
    const std::vector<float> x = randoms(n, 0.1f);
#define CHECK_OP(call, formula)                                                                          \
    {                                                                                                    \
        const auto out = apply<float>(                                                                   \
            x, n, [&](LocalTensor<float> d, [[maybe_unused]] LocalTensor<float> s) { call; }, __LINE__); \
        for (size_t i = 0; i < n; ++i) {                                                                 \
            [[maybe_unused]] const float v = x[i];                                                       \
            EXPECT(same(out[i], static_cast<float>(formula)));                                           \
        }                                                                                                \
    }
    CHECK_OP(Add(d, s, s, n), v + v)
    CHECK_OP(Sub(d, s, s, n), v - v)
    CHECK_OP(Mul(d, s, s, n), v * v)
    CHECK_OP(Div(d, s, s, n), v / v)
    CHECK_OP(Max(d, s, s, n), v)
    CHECK_OP(Min(d, s, s, n), v)
    CHECK_OP(Adds(d, s, 1.5f, n), v + 1.5f)
    CHECK_OP(Muls(d, s, 1.5f, n), v * 1.5f)
    CHECK_OP(Maxs(d, s, 1.5f, n), std::max(v, 1.5f))
    CHECK_OP(Mins(d, s, 1.5f, n), std::min(v, 1.5f))
    CHECK_OP(Exp(d, s, n), std::exp(v))
    CHECK_OP(Ln(d, s, n), std::log(v))
    CHECK_OP(Sqrt(d, s, n), std::sqrt(v))
    CHECK_OP(Abs(d, s, n), std::fabs(v))
    CHECK_OP(Relu(d, s, n), std::max(v, 0.0f))
    CHECK_OP(Duplicate(d, 3.0f, n), 3.0f)
    CHECK_OP((Duplicate(d, 2.0f, n), PipeBarrier<PIPE_V>(), Axpy(d, s, 3.0f, n)), v * 3.0f + 2.0f)
    CHECK_OP((Duplicate(d, 2.0f, n), PipeBarrier<PIPE_V>(), MulAddDst(d, s, s, n)), v * v + 2.0f)
#undef CHECK_OP
}

void special_values() {
    const float nan = std::nanf(""), inf = INFINITY;
    const std::vector<float> x{nan, 1, 0.0f, -0.0f, inf, -inf, 2, nan};
    const auto most = apply<float>(x, 8, [](auto d, auto s) { Maxs(d, s, 0.0f, 8); }, __LINE__);
    EXPECT(std::isnan(most[0]) && std::isnan(most[7]) && !std::signbit(most[3]) && most[4] == inf &&
           most[5] == 0);
    std::vector<float> padded(64, 0.0f);
    std::copy(x.begin(), x.end(), padded.begin());
    for (const CMPMODE mode : {CMPMODE::EQ, CMPMODE::NE, CMPMODE::LE, CMPMODE::GT}) {
        const auto bits = apply<uint8_t>(
            padded, 32,
            [mode](auto d, auto s) {
                Duplicate(d.template ReinterpretCast<int16_t>(), int16_t(0), 16), PipeBarrier<PIPE_V>(),
                    CompareScalar(d, s, 1.0f, mode, 64);
            },
            __LINE__);
        EXPECT((bits[0] & 1) == 0 && (bits[0] >> 7 & 1) == 0);  // NaN compares false, with NE too
        EXPECT((bits[0] >> 1 & 1) == (mode == CMPMODE::EQ || mode == CMPMODE::LE));
    }
    const auto chosen = apply<float>(
        padded, 64,
        [](auto d, auto s) {
            const auto bits = d[1024].template ReinterpretCast<uint8_t>();
            Compare(bits, s, s, CMPMODE::EQ, 64);
            PipeBarrier<PIPE_V>();
            Select(d, bits, s, -5.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 64);
        },
        __LINE__);
    EXPECT(chosen[0] == -5 && chosen[7] == -5 && chosen[1] == 1 && chosen[4] == inf);
}

void integers() {
    const std::vector<uint16_t> x{0x8001, 0x1234, 0xFFFF, 0, 0x7FFF, 0x00FF, 0x0F0F, 0xAAAA};
    const auto left =
        apply<uint16_t>(x, 8, [](auto d, auto s) { ShiftLeft(d, s, uint16_t(4), 8); }, __LINE__);
    const auto negated = apply<uint16_t>(x, 8, [](auto d, auto s) { Not(d, s, 8); }, __LINE__);
    const auto both = apply<uint16_t>(
        x, 8,
        [](auto d, auto s) {
            Duplicate(d, uint16_t(0x0FF0), 8);
            PipeBarrier<PIPE_V>();
            And(d, d, s, 8);
        },
        __LINE__);
    const auto right = apply<int16_t>(
        std::vector<int16_t>{-32767, 0x1234}, 2, [](auto d, auto s) { ShiftRight(d, s, int16_t(4), 2); },
        __LINE__);
    const auto kept = apply<int16_t>(
        std::vector<int16_t>{-32767, 0x1234}, 2, [](auto d, auto s) { ShiftLeft(d, s, int16_t(4), 2); },
        __LINE__);
    for (size_t i = 0; i < 8; ++i) {
        EXPECT(left[i] == static_cast<uint16_t>(x[i] << 4));
        EXPECT(negated[i] == static_cast<uint16_t>(~x[i]));
        EXPECT(both[i] == (x[i] & 0x0FF0));
    }
    EXPECT(right[0] == -2048 && right[1] == 0x123);
    EXPECT(kept[0] == -32752 && kept[1] == 0x2340);  // the sign bit stays
}

/// All 65,536 bit patterns of the 16-bit types through their casts, and float to them in every mode.
void casts() {
    constexpr size_t part = 4096;
    for (size_t base = 0; base < 65536; base += part) {
        std::vector<uint16_t> bits(part);
        for (size_t i = 0; i < part; ++i) bits[i] = static_cast<uint16_t>(base + i);
        const auto wide = apply<float>(
            bits, part,
            [](auto d, auto s) {
                Cast(d, s.template ReinterpretCast<bfloat16_t>(), RoundMode::CAST_NONE, part);
            },
            __LINE__);
        const auto halves = apply<float>(
            bits, part,
            [](auto d, auto s) { Cast(d, s.template ReinterpretCast<half>(), RoundMode::CAST_NONE, part); },
            __LINE__);
        const auto back = apply<bfloat16_t>(
            wide, part, [](auto d, auto s) { Cast(d, s, RoundMode::CAST_RINT, part); }, __LINE__);
        const auto half_back = apply<half>(
            halves, part, [](auto d, auto s) { Cast(d, s, RoundMode::CAST_NONE, part); }, __LINE__);
        for (size_t i = 0; i < part; ++i) {
            const uint32_t shifted = static_cast<uint32_t>(bits[i]) << 16;
            uint16_t h;
            std::memcpy(&h, &half_back[i], 2);
            EXPECT(std::isnan(wide[i]) || std::memcmp(&wide[i], &shifted, 4) == 0);
            EXPECT(std::isnan(wide[i]) || back[i].bits == bits[i]);
            EXPECT(std::isnan(halves[i]) || h == bits[i]);
        }
    }
    const std::vector<float> x{1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f, 1e-40f, 0.5f,     1.5f,
                               2.5f,        -2.5f,       300.0f,       -300.0f, NAN,    INFINITY, -INFINITY};
    const size_t n = x.size();
    const auto rounded = [&](RoundMode mode) {
        return apply<bfloat16_t>(x, n, [mode, n](auto d, auto s) { Cast(d, s, mode, n); }, __LINE__);
    };
    // 1 + 2^-8 lies halfway between 1 and 1 + 2^-7.
    EXPECT(rounded(RoundMode::CAST_RINT)[0].bits == 0x3F80 &&
           rounded(RoundMode::CAST_RINT)[1].bits == 0x3F82);
    EXPECT(rounded(RoundMode::CAST_ROUND)[0].bits == 0x3F81 &&
           rounded(RoundMode::CAST_TRUNC)[1].bits == 0x3F81);
    EXPECT(rounded(RoundMode::CAST_CEIL)[0].bits == 0x3F81 &&
           rounded(RoundMode::CAST_CEIL)[2].bits == 0xBF80);
    EXPECT(rounded(RoundMode::CAST_FLOOR)[0].bits == 0x3F80 &&
           rounded(RoundMode::CAST_FLOOR)[2].bits == 0xBF81);
    const auto whole = [&](RoundMode mode) {
        return apply<int16_t>(x, n, [mode, n](auto d, auto s) { Cast(d, s, mode, n); }, __LINE__);
    };
    EXPECT(whole(RoundMode::CAST_RINT)[5] == 0 && whole(RoundMode::CAST_RINT)[6] == 2 &&
           whole(RoundMode::CAST_RINT)[7] == 2);
    EXPECT(whole(RoundMode::CAST_ROUND)[5] == 1 && whole(RoundMode::CAST_ROUND)[8] == -3);
    EXPECT(whole(RoundMode::CAST_FLOOR)[8] == -3 && whole(RoundMode::CAST_CEIL)[8] == -2);
    EXPECT(whole(RoundMode::CAST_RINT)[11] == 0 && whole(RoundMode::CAST_RINT)[12] == 32767 &&
           whole(RoundMode::CAST_RINT)[13] == -32768);
    const auto bytes = apply<int8_t>(
        std::vector<half>{half(1.5f), half(300.0f), half(-300.0f), half(NAN)}, 4,
        [](auto d, auto s) { Cast(d, s, RoundMode::CAST_NONE, 4); }, __LINE__);
    EXPECT(bytes[0] == 2 && bytes[1] == 127 && bytes[2] == -128 && bytes[3] == 0);
    const auto numbers = apply<float>(
        std::vector<int32_t>{16777217, -5}, 2, [](auto d, auto s) { Cast(d, s, RoundMode::CAST_NONE, 2); },
        __LINE__);
    EXPECT(numbers[0] == 16777216.0f && numbers[1] == -5.0f);
}

void strided_forms() {
    const std::vector<float> x = randoms(4 * 128);
    // 40 lanes of each of 4 rows of 128, plus one row for all.
    const auto sum = apply<float>(
        x, 4 * 128,
        [](auto d, auto s) {
            Duplicate(d, 0.0f, 4 * 128);
            PipeBarrier<PIPE_V>();
            Add(d, s, s[64], uint64_t(40), 4, BinaryRepeatParams{1, 1, 1, 16, 16, 0});
        },
        __LINE__);
    // A block stride of 0 spreads the first 8 values over the repeat.
    const auto spread = apply<float>(
        x, 128,
        [](auto d, auto s) { Mul(d, s, s[256], uint64_t(64), 2, BinaryRepeatParams{1, 1, 0, 8, 8, 1}); },
        __LINE__);
    for (size_t r = 0; r < 4; ++r)
        for (size_t i = 0; i < 128; ++i)
            EXPECT(sum[r * 128 + i] == (i < 40 ? x[r * 128 + i] + x[64 + i] : 0.0f));
    for (size_t r = 0; r < 2; ++r)
        for (size_t i = 0; i < 64; ++i) EXPECT(spread[r * 64 + i] == x[r * 64 + i] * x[256 + r * 8 + i % 8]);
    const auto marked = apply<float>(
        x, 128,
        [](auto d, auto s) {
            Adds(d, s, 0.0f, 128);
            PipeBarrier<PIPE_V>();
            uint64_t lanes[2] = {~uint64_t{0} << 60, 0};
            Duplicate(d, 7.0f, lanes, 2, 1, 8);
        },
        __LINE__);
    for (size_t i = 0; i < 128; ++i) EXPECT(marked[i] == (i % 64 >= 60 ? 7.0f : x[i]));
    const auto wide = apply<float>(x, 128, [](auto d, auto s) { Brcb(d, s, 2, {1, 8}); }, __LINE__);
    for (size_t i = 0; i < 128; ++i) EXPECT(wide[i] == x[i / 8]);
    const auto index = apply<int32_t>(x, 70, [](auto d, auto) { CreateVecIndex(d, 5, 70); }, __LINE__);
    for (int i = 0; i < 70; ++i) EXPECT(index[i] == 5 + i);
}

void reductions() {
    std::vector<float> x = randoms(4 * 64);
    x[70] = x[90] = 9;  // a tie: the lower index
    const auto best =
        apply<float>(x, 8, [](auto d, auto s) { WholeReduceMax(d, s, 64, 4, 1, 1, 8); }, __LINE__);
    const auto only = apply<float>(
        x, 4, [](auto d, auto s) { WholeReduceMax(d, s, 50, 4, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE); },
        __LINE__);
    const auto least =
        apply<float>(x, 8, [](auto d, auto s) { WholeReduceMin(d, s, 64, 4, 1, 1, 8); }, __LINE__);
    const auto sums =
        apply<float>(x, 4, [](auto d, auto s) { WholeReduceSum(d, s, 64, 4, 1, 1, 8); }, __LINE__);
    const auto blocks =
        apply<float>(x, 32, [](auto d, auto s) { BlockReduceMax(d, s, 4, 64, 1, 1, 8); }, __LINE__);
    const auto block_sums =
        apply<float>(x, 32, [](auto d, auto s) { BlockReduceSum(d, s, 4, 64, 1, 1, 8); }, __LINE__);
    for (size_t r = 0; r < 4; ++r) {
        const auto begin = x.begin() + r * 64;
        const auto top = std::max_element(begin, begin + 64), bottom = std::min_element(begin, begin + 64);
        uint32_t at;
        std::memcpy(&at, &best[2 * r + 1], 4);
        EXPECT(best[2 * r] == *top && at == static_cast<uint32_t>(top - begin));
        std::memcpy(&at, &least[2 * r + 1], 4);
        EXPECT(least[2 * r] == *bottom && at == static_cast<uint32_t>(bottom - begin));
        EXPECT(only[r] == *std::max_element(begin, begin + 50));
        double total = 0;
        for (size_t i = 0; i < 64; ++i) total += begin[i];
        EXPECT(std::fabs(sums[r] - total) < 1e-4);
        for (size_t b = 0; b < 8; ++b) {
            EXPECT(blocks[r * 8 + b] == *std::max_element(begin + b * 8, begin + b * 8 + 8));
            double part = 0;
            for (size_t i = 0; i < 8; ++i) part += begin[b * 8 + i];
            EXPECT(std::fabs(block_sums[r * 8 + b] - part) < 1e-5);
        }
    }
}

void sorting() {
    std::vector<float> x = randoms(128);
    for (size_t i = 0; i < 128; ++i) x[i] = std::floor(x[i]);  // ties
    const auto best = apply<uint32_t>(
        x, 64,
        [](LocalTensor<uint32_t> d, LocalTensor<float> s) {
            const LocalTensor<int32_t> index = d[1024].ReinterpretCast<int32_t>();
            const LocalTensor<float> records = d[2048].ReinterpretCast<float>(),
                                     merged = d[3072].ReinterpretCast<float>();
            CreateVecIndex(index, 0, 128);
            PipeBarrier<PIPE_V>();
            Sort32(records, s, index.ReinterpretCast<uint32_t>(), 4);
            PipeBarrier<PIPE_V>();
            MrgSort4Info info;
            for (uint16_t& length : info.elementLengths) length = 32;
            info.validBit = 15;
            MrgSort(merged, MrgSortSrcList<float>{records, records[64], records[128], records[192]}, info);
            PipeBarrier<PIPE_V>();
            uint64_t taken = 0;
            GatherMask(d, merged.ReinterpretCast<uint32_t>(), 2, true, 128, GatherMaskParams{1, 1, 8, 8},
                       taken);
            EXPECT(taken == 64);
        },
        __LINE__);
    std::vector<uint32_t> expected(128);
    for (uint32_t i = 0; i < 128; ++i) expected[i] = i;
    std::stable_sort(expected.begin(), expected.end(), [&](uint32_t a, uint32_t b) { return x[a] > x[b]; });
    for (size_t i = 0; i < 64; ++i) EXPECT(best[i] == expected[i]);
    const auto picked = apply<float>(
        x, 16,
        [](LocalTensor<float> d, LocalTensor<float> s) {
            const LocalTensor<int32_t> offsets = d[64].ReinterpretCast<int32_t>();
            CreateVecIndex(offsets, 0, 16);
            PipeBarrier<PIPE_V>();
            Muls(offsets, offsets, 12, 16);
            PipeBarrier<PIPE_V>();
            Gather(d, s, offsets.ReinterpretCast<uint32_t>(), 4, 16);
        },
        __LINE__);
    for (size_t i = 0; i < 16; ++i) EXPECT(picked[i] == x[1 + 3 * i]);
}

void copies() {
    Gm<float> in(std::vector<float>(randoms(300))), out(300, -1.0f);
    // Rows of 5 values, 7 apart, padded with 9 to 8; back as rows of 5, 6 apart.
    // `bad`: a copy that begins off a 32-byte boundary of UB.
    const auto kernel = [&](bool bad) {
        return on_aiv(
            [&, bad](TPipe&, Calc& b) {
                const LocalTensor<float> t = b.Get<float>();
                DataCopyPad(t, in.tensor()[1], DataCopyExtParams{4, 20, 8, 0, 0},
                            DataCopyPadExtParams<float>{true, 0, 3, 9.0f});
                to_vector();
                Adds(t, t, 1.0f, 32);
                to_store();
                DataCopyPad(out.tensor()[2], t, DataCopyExtParams{4, 20, 0, 4, 0});
                if (bad) DataCopyPad(out.tensor()[100], t[5], DataCopyExtParams{1, 4, 0, 0, 0});
            },
            {in.buffer(false), out.buffer()});
    };
    EXPECT_CHECK(kernel(true), 3, "multiple of 32");
    EXPECT_CLEAN(kernel(false));
    for (size_t r = 0; r < 4; ++r)
        for (size_t i = 0; i < 6; ++i)
            EXPECT(out.values[2 + r * 6 + i] == (i < 5 ? in.values[1 + r * 7 + i] + 1 : -1.0f));
    // Atomic adds of two cores meet in one place.
    Gm<float> total(64, 0.0f);
    EXPECT_CLEAN(run(
        [&] {
            TPipe pipe;
            Calc b;
            pipe.InitBuffer(b, 256);
            Duplicate(b.Get<float>(), 2.0f, 64);
            to_store();
            SetAtomicAdd<float>();
            DataCopy(total.tensor(), b.Get<float>(), 64);
            SetAtomicNone();
        },
        Kind::kAivOnly, 3, {total.buffer()}));
    EXPECT(total.values[63] == 6.0f);
}

void queues() {
    Gm<float> in(randoms(640)), out(640);
    const auto kernel = [&] {
        TPipe pipe;
        TQue<TPosition::VECIN, 1> from;
        TQue<TPosition::VECOUT, 1> to;
        pipe.InitBuffer(from, 2, 256);
        pipe.InitBuffer(to, 2, 256);
        for (int i = 0; i < 10; ++i) {
            LocalTensor<float> a = from.AllocTensor<float>();
            DataCopy(a, in.tensor()[i * 64], 64);
            from.EnQue(a);
            a = from.DeQue<float>();
            LocalTensor<float> b = to.AllocTensor<float>();
            Muls(b, a, 2.0f, 64);
            to.EnQue(b);
            from.FreeTensor(a);
            b = to.DeQue<float>();
            DataCopy(out.tensor()[i * 64], b, 64);
            to.FreeTensor(b);
        }
    };
    EXPECT_CLEAN(run(kernel, Kind::kAivOnly, 1, {in.buffer(false), out.buffer()}));
    for (size_t i = 0; i < 640; ++i) EXPECT(out.values[i] == in.values[i] * 2);
}

/// A ring between cube and vector cores over many schedules: nothing is lost, no counter is left.
void cross_core() {
    for (int schedule = 0; schedule < 20; ++schedule) {
        Gm<int32_t> order(64, 0);
        EXPECT_CLEAN(run(
            [] {
                for (int i = 0; i < 5; ++i) {
                    if ASCEND_IS_AIC {
                        CrossCoreSetFlag<2, PIPE_FIX>(0);
                        CrossCoreWaitFlag(1);
                    } else {
                        CrossCoreWaitFlag(0);
                        CrossCoreSetFlag<2, PIPE_MTE3>(1);
                    }
                }
                SyncAll<false>();
                SyncAll<false>();
            },
            Kind::kMix12, 3, {order.buffer()}, schedule));
    }
}

}  // namespace

int main() {
    counted();
    special_values();
    integers();
    casts();
    strided_forms();
    reductions();
    sorting();
    copies();
    queues();
    cross_core();
    return mmx::test::finish("emulator instructions");
}
