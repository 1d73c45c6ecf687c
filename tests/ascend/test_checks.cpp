// Every check of the emulator refuses a kernel of a few lines that breaks its rule.
#include "tests/ascend/probe.h"

using namespace probe;
using emu::Kind;

namespace {

using Calc = TBuf<TPosition::VECCALC>;

/// Check 1: what the chip does not have does not compile, or is refused where only the run knows.
template <class T>
concept CanAdd = requires(LocalTensor<T> t) { Add(t, t, t, 1); };
template <class T>
concept CanExp = requires(LocalTensor<T> t) { Exp(t, t, 1); };
template <class T>
concept CanAnd = requires(LocalTensor<T> t) { And(t, t, t, 1); };
template <class T>
concept CanFill = requires(LocalTensor<T> t, T x) { Duplicate(t, x, 1); };
template <class T>
concept CanIndex = requires(LocalTensor<T> t, T x) { CreateVecIndex(t, x, 1u); };
template <class D, class S>
concept CanCast = requires(LocalTensor<D> d, LocalTensor<S> s) { Cast(d, s, RoundMode::CAST_RINT, 1u); };
template <class T>
concept CanReduce = requires(LocalTensor<T> t) { WholeReduceMax(t, t, 1, 1, 1, 1, 8); };
template <class C, class A>
concept CanMultiply = requires(LocalTensor<C> c, LocalTensor<A> a, MmadParams p) { Mmad(c, a, a, p); };
template <class Out, class Acc>
concept CanFix =
    requires(GlobalTensor<Out> o, LocalTensor<Acc> a, FixpipeParamsV220 p) { Fixpipe<Out, Acc>(o, a, p); };

static_assert(CanAdd<float> && CanAdd<half> && CanAdd<int16_t> && CanAdd<int32_t>);
static_assert(!CanAdd<bfloat16_t> && !CanAdd<uint32_t> && !CanAdd<int8_t>);
static_assert(CanExp<float> && !CanExp<int32_t> && !CanExp<bfloat16_t>);
static_assert(CanAnd<uint16_t> && !CanAnd<uint32_t> && !CanAnd<int32_t>);
static_assert(CanFill<bfloat16_t> && !CanFill<uint8_t>);
static_assert(CanIndex<int32_t> && !CanIndex<uint32_t>);
static_assert(CanCast<bfloat16_t, float> && CanCast<half, uint8_t> && !CanCast<half, bfloat16_t>);
static_assert(!CanCast<int8_t, float> && !CanCast<bfloat16_t, int32_t> && !CanCast<float, uint32_t>);
static_assert(CanReduce<float> && !CanReduce<int32_t> && !CanReduce<bfloat16_t>);
static_assert(CanMultiply<float, bfloat16_t> && CanMultiply<int32_t, int8_t> && !CanMultiply<float, int8_t>);
static_assert(CanFix<bfloat16_t, float> && CanFix<int32_t, int32_t> && !CanFix<bfloat16_t, int32_t>);

void tables_and_limits() {
    EXPECT_CHECK(on_aiv([](TPipe&, Calc& b) {
                     Duplicate(b.Get<float>(), 1.0f, 64);
                     PipeBarrier<PIPE_V>();
                     Cast(b.Get<bfloat16_t>()[256], b.Get<float>(), RoundMode::CAST_NONE, 64);
                 }),
                 1, "no such mode");
    EXPECT_CHECK(run(
                     [] {
                         TPipe pipe;
                         Calc b;
                         pipe.InitBuffer(b, 1024);
                     },
                     Kind::kAicOnly),
                 1, "UB is not on an AIC");
    EXPECT_CHECK(on_aiv([](TPipe& pipe, Calc&) {
                     Calc more;
                     pipe.InitBuffer(more, 188160 - 64 * 1024 + 32);
                 }),
                 2, "usable are 188160");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc& b) { Duplicate(b.Get<float>()[1], 1.0f, 8); }), 3,
                 "must be a multiple of 32");
    Gm<float> gm(64);
    EXPECT_CHECK(on_aiv([&](TPipe&, Calc& b) { DataCopy(b.Get<float>(), gm.tensor(), 9); }, {gm.buffer()}), 4,
                 "cut to a multiple of 32");
    EXPECT_CHECK(on_aiv(
                     [&](TPipe&, Calc& b) {
                         DataCopyParams p;
                         p.blockCount = 5000;
                         p.blockLen = 1;
                         DataCopy(b.Get<float>(), gm.tensor(), p);
                     },
                     {gm.buffer()}),
                 5, "blockCount 5000");
    EXPECT_CHECK(on_aiv([&](TPipe&, Calc& b) { DataCopy(b.Get<float>(), gm.tensor(), 72); }, {gm.buffer()}),
                 6, "of a global tensor");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc& b) { Duplicate(b.Get<float>(), 0.0f, 20000); }), 6, "touches");
    EXPECT_CHECK(on_aiv(
                     [&](TPipe&, Calc& b) {
                         Duplicate(b.Get<float>(), 0.0f, 64);
                         SetFlag<HardEvent::V_MTE3>(0);
                         WaitFlag<HardEvent::V_MTE3>(0);
                         DataCopy(gm.tensor(), b.Get<float>(), 64);
                     },
                     {gm.buffer(false)}),
                 6, "which is an input");
    EXPECT_CHECK(
        on_aiv([](TPipe&, Calc& b) { Duplicate(b.Get<float>(), 0.0f, static_cast<uint64_t>(65), 1, 1, 8); }),
        7, "mask 65");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { SetAtomicAdd<float>(); }), 7, "atomic mode is still on");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc& b) {
                     Duplicate(b.Get<float>(), 0.0f, 128);
                     PipeBarrier<PIPE_V>();
                     Adds(b.Get<float>()[8], b.Get<float>(), 1.0f, 64);
                 }),
                 8, "overlap in part");
}

void memory_and_queues() {
    EXPECT_CHECK(on_aiv([](TPipe&, Calc& b) { Adds(b.Get<float>(), b.Get<float>()[64], 1.0f, 64); }), 9,
                 "nobody wrote");
    const auto with_queue = [](auto&& f) {
        return on_aiv([f](TPipe& pipe, Calc& b) {
            TQue<TPosition::VECIN, 1> queue;
            pipe.InitBuffer(queue, 2, 1024);
            f(pipe, queue, b);
        });
    };
    using Queue = TQue<TPosition::VECIN, 1>;
    EXPECT_CHECK(with_queue([](TPipe&, Queue& q, Calc&) { q.DeQue<float>(); }), 10,
                 "DeQue from an empty queue");
    EXPECT_CHECK(with_queue([](TPipe&, Queue& q, Calc&) {
                     for (int i = 0; i < 3; ++i) q.AllocTensor<float>();
                 }),
                 10, "all 2 buffers");
    EXPECT_CHECK(with_queue([](TPipe&, Queue& q, Calc&) { q.AllocTensor<float>(); }), 10, "still in use");
    EXPECT_CHECK(with_queue([](TPipe&, Queue& q, Calc&) { q.FreeTensor(q.AllocTensor<float>()); }), 10,
                 "not queued yet");
    EXPECT_CHECK(with_queue([](TPipe&, Queue& q, Calc&) {
                     const LocalTensor<float> t = q.AllocTensor<float>();
                     q.EnQue(t);
                     Duplicate(t, 0.0f, 8);
                 }),
                 10, "is queued");
    EXPECT_CHECK(with_queue([](TPipe&, Queue& q, Calc& b) { q.EnQue(b.Get<float>()); }), 10, "another queue");
    EXPECT_CHECK(with_queue([](TPipe& pipe, Queue&, Calc&) {
                     Queue more;
                     pipe.InitBuffer(more, 7, 32);
                 }),
                 10, "at most 8");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { Calc().Get<float>(); }), 22, "without InitBuffer");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { TPipe second; }), 10, "second TPipe");
}

void hazards() {
    Gm<float> gm(256);
    EXPECT_CHECK(on_aiv(
                     [&](TPipe&, Calc& b) {
                         DataCopy(b.Get<float>(), gm.tensor(), 64);
                         Adds(b.Get<float>()[64], b.Get<float>(), 1.0f, 64);
                     },
                     {gm.buffer()}),
                 11, "needs a flag MTE2_V");
    EXPECT_CHECK(on_aiv([&](TPipe&, Calc& b) {
                     Duplicate(b.Get<float>(), 1.0f, 64);
                     Adds(b.Get<float>()[64], b.Get<float>(), 1.0f, 64);
                 }),
                 11, "needs PipeBarrier<PIPE_V>");
    EXPECT_CHECK(on_aiv(
                     [&](TPipe&, Calc& b) {
                         Duplicate(b.Get<float>(), 1.0f, 64);
                         SetFlag<HardEvent::V_MTE3>(0);
                         WaitFlag<HardEvent::V_MTE3>(0);
                         DataCopy(gm.tensor(), b.Get<float>(), 64);
                         PipeBarrier<PIPE_V>();
                         Duplicate(b.Get<float>(), 2.0f, 64);
                     },
                     {gm.buffer()}),
                 11, "WAR hazard");
    EXPECT_CHECK(on_aiv(
                     [&](TPipe&, Calc& b) {
                         DataCopy(b.Get<float>(), gm.tensor(), 64);
                         DataCopy(b.Get<float>(), gm.tensor()[64], 64);
                     },
                     {gm.buffer()}),
                 11, "WAW hazard");
    EXPECT_CHECK(run(
                     [&] {
                         TPipe pipe;
                         Calc b;
                         pipe.InitBuffer(b, 256);
                         Duplicate(b.Get<float>(), 1.0f, 64);
                         SetFlag<HardEvent::V_MTE3>(0);
                         WaitFlag<HardEvent::V_MTE3>(0);
                         DataCopy(gm.tensor(), b.Get<float>(), 64);
                     },
                     Kind::kAivOnly, 2, {gm.buffer()}),
                 11, "unordered access");
}

void flags() {
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { WaitFlag<HardEvent::MTE2_V>(0); }), 12, "was not set");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { SetFlag<HardEvent::MTE2_V>(0); }), 12, "never waited for");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) {
                     SetFlag<HardEvent::MTE2_V>(0);
                     SetFlag<HardEvent::MTE2_V>(0);
                 }),
                 12, "already set");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { SetFlag<HardEvent::MTE1_M>(0); }), 12, "no such event");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { SetFlag<HardEvent::MTE2_V>(6); }), 12, "must be 0 to 5");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { CrossCoreSetFlag<0, PIPE_MTE3>(1); }), 13, "scheduling module");
    const auto mix = [](auto&& f) { return run(f, Kind::kMix12, 1); };
    EXPECT_CHECK(mix([] { CrossCoreSetFlag<2, PIPE_MTE2>(16); }), 13, "must be below 16");
    EXPECT_CHECK(mix([] { CrossCoreSetFlag<2, PIPE_ALL>(1); }), 13, "concrete one");
    EXPECT_CHECK(mix([] {
                     if ASCEND_IS_AIC
                         for (int i = 0; i < 16; ++i) CrossCoreSetFlag<2, PIPE_FIX>(1);
                 }),
                 13, "more than 15");
    EXPECT_CHECK(mix([] {
                     if ASCEND_IS_AIC
                         CrossCoreSetFlag<2, PIPE_FIX>(1);
                 }),
                 13, "still set");
    EXPECT_CHECK(mix([] {
                     SyncAll<false>();
                     if ASCEND_IS_AIC
                         CrossCoreSetFlag<2, PIPE_FIX>(12);
                     if ASCEND_IS_AIV
                         CrossCoreWaitFlag(12);
                 }),
                 13, "belong to SyncAll");
    EXPECT_CHECK(mix([] { SyncAll(); }), 14, "write SyncAll<false>()");
    EXPECT_CHECK(mix([] {
                     if ASCEND_IS_AIC
                         SyncAll<false>();
                 }),
                 14, "deadlock");
    EXPECT_CHECK(mix([] {
                     if ASCEND_IS_AIC
                         CrossCoreWaitFlag(3);
                 }),
                 14, "waits for flag 3");
}

void cube_and_rest() {
    const auto product = [](auto&& f) {
        return run(
            [f] {
                TPipe pipe;
                TBuf<TPosition::A1> l1;
                TBuf<TPosition::A2> a;
                TBuf<TPosition::B2> b;
                TBuf<TPosition::CO1> c;
                pipe.InitBuffer(l1, 4096);
                pipe.InitBuffer(a, 4096);
                pipe.InitBuffer(b, 4096);
                pipe.InitBuffer(c, 8192);
                f(l1, a, b, c);
            },
            Kind::kAicOnly);
    };
    using L1 = TBuf<TPosition::A1>;
    using A = TBuf<TPosition::A2>;
    using B = TBuf<TPosition::B2>;
    using C = TBuf<TPosition::CO1>;
    const auto filled = [](L1& l1, A& a, B& b) {
        InitConstValueParams<bfloat16_t> one;
        one.repeatTimes = 1;
        one.blockNum = 64;
        one.initValue = bfloat16_t(1.0f);
        InitConstValue(l1.Get<bfloat16_t>(), one);
        SetFlag<HardEvent::MTE2_MTE1>(0);
        WaitFlag<HardEvent::MTE2_MTE1>(0);
        LoadData2DParams once;
        once.repeatTimes = 1;
        LoadData(a.Get<bfloat16_t>(), l1.Get<bfloat16_t>(), once);
        LoadData(b.Get<bfloat16_t>(), l1.Get<bfloat16_t>(), once);
        SetFlag<HardEvent::MTE1_M>(0);
        WaitFlag<HardEvent::MTE1_M>(0);
    };
    MmadParams small;
    small.m = 16, small.n = 16, small.k = 16;
    EXPECT_CHECK(product([&](L1&, A& a, B& b, C& c) {
                     MmadParams one = small;
                     one.m = 1;
                     Mmad(c.Get<float>(), a.Get<bfloat16_t>(), b.Get<bfloat16_t>(), one);
                 }),
                 15, "m = 1");
    EXPECT_CHECK(product([&](L1& l1, A& a, B& b, C& c) {
                     filled(l1, a, b);
                     MmadParams again = small;
                     again.cmatrixInitVal = false;
                     Mmad(c.Get<float>(), a.Get<bfloat16_t>(), b.Get<bfloat16_t>(), small);
                     Mmad(c.Get<float>(), a.Get<bfloat16_t>(), b.Get<bfloat16_t>(), again);
                 }),
                 11, "PIPE_M");
    Gm<float> gm(4096);
    const auto fix = [&](uint16_t n, uint16_t stride, bool flag) {
        return run(
            [&] {
                TPipe pipe;
                TBuf<TPosition::CO1> c;
                TBuf<TPosition::A1> l1;
                TBuf<TPosition::A2> a;
                TBuf<TPosition::B2> b;
                pipe.InitBuffer(l1, 4096);
                pipe.InitBuffer(a, 4096);
                pipe.InitBuffer(b, 4096);
                pipe.InitBuffer(c, 8192);
                filled(l1, a, b);
                Mmad(c.Get<float>(), a.Get<bfloat16_t>(), b.Get<bfloat16_t>(), small);
                if (flag) {
                    SetFlag<HardEvent::M_FIX>(0);
                    WaitFlag<HardEvent::M_FIX>(0);
                }
                FixpipeParamsV220 p;
                p.nSize = n, p.mSize = 16, p.srcStride = stride, p.dstStride = 16;
                Fixpipe<float, float, CFG_ROW_MAJOR>(gm.tensor(), c.Get<float>(), p);
            },
            Kind::kAicOnly, 1, {gm.buffer()});
    };
    EXPECT_CHECK(fix(8, 16, true), 16, "multiple of 16");
    EXPECT_CHECK(fix(16, 32, true), 16, "must be 16");
    EXPECT_CHECK(fix(16, 16, false), 11, "needs a flag M_FIX");
    EXPECT_CLEAN(fix(16, 16, true));
    EXPECT(gm.values[5] == 16.0f);

    Gm<int32_t> numbers(64);
    EXPECT_CHECK(run(
                     [&] {
                         if ASCEND_IS_AIC
                             numbers.tensor().SetValue(0, 7);
                         SyncAll<false>();
                         if ASCEND_IS_AIV
                             numbers.tensor().GetValue(0);
                     },
                     Kind::kMix12, 1, {numbers.buffer()}),
                 17, "did not clean");
    EXPECT_CHECK(on_aiv([](TPipe&, Calc& b) {
                     Duplicate(b.Get<float>(), 1.0f, 128);
                     PipeBarrier<PIPE_V>();
                     CompareScalar(b.Get<uint8_t>()[1024], b.Get<float>(), 1.0f, CMPMODE::EQ, 65);
                 }),
                 18, "multiple of 256");
    EXPECT_CHECK(run([] {}, Kind::kAivOnly, 49), 20, "49 blocks on 48 cores");

    // Check 19: a kernel that relies on the imprecise instructions gets a visibly wrong number.
    Gm<float> root(64);
    EXPECT_CLEAN(on_aiv(
        [&](TPipe&, Calc& b) {
            Duplicate(b.Get<float>(), 4.0f, 64);
            PipeBarrier<PIPE_V>();
            Rsqrt(b.Get<float>(), b.Get<float>(), 64);
            SetFlag<HardEvent::V_MTE3>(0);
            WaitFlag<HardEvent::V_MTE3>(0);
            DataCopy(root.tensor(), b.Get<float>(), 64);
        },
        {root.buffer()}));
    EXPECT(root.values[0] != 0.5f && std::fabs(root.values[0] - 0.5f) < 2e-4f);

    EXPECT_CHECK(on_aiv([](TPipe&, Calc&) { SetVectorMask<float, MaskMode::NORMAL>(0, 0xFF); }), 7,
                 "not restored");

    // Check 21 is a statistic: operands in one bank, copies off 512 bytes or short.
    Gm<float> place(64);
    const emu::Report slow = on_aiv(
        [&](TPipe&, Calc& b) {
            Duplicate(b.Get<float>(), 1.0f, 64);
            PipeBarrier<PIPE_V>();
            Adds(b.Get<float>()[128], b.Get<float>(), 1.0f, 64);
            SetFlag<HardEvent::V_MTE2>(0);
            WaitFlag<HardEvent::V_MTE2>(0);
            DataCopy(b.Get<float>()[256], place.tensor(), 64);
        },
        {place.buffer()});
    EXPECT_CLEAN(slow);
    EXPECT(slow.bank_conflicts == 1 && slow.unaligned_copies == 1);

    // Check 22, beside its error, is a warning: data that nobody read was overwritten.
    const emu::Report report = on_aiv([](TPipe&, Calc& b) {
        Duplicate(b.Get<float>(), 1.0f, 64);
        PipeBarrier<PIPE_V>();
        Duplicate(b.Get<float>(), 2.0f, 64);
    });
    EXPECT_CLEAN(report);
    EXPECT(report.warnings == 8);
}

}  // namespace

int main() {
    tables_and_limits();
    memory_and_queues();
    hazards();
    flags();
    cube_and_rest();
    return mmx::test::finish("emulator checks");
}
