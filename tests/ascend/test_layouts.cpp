// Layout identities: matrices that go through L1, L0 and the cube come out as a plain product.
#include "ascend/common/cube.h"
#include "tests/ascend/probe.h"

using namespace probe;
using emu::Kind;

namespace {

template <class T>
T element(int i) {
    if constexpr (std::is_same_v<T, int8_t>) return static_cast<int8_t>(i % 251 - 125);
    if constexpr (!std::is_same_v<T, int8_t>) return bfloat16_t(static_cast<float>(i % 17 - 8));
}
template <class T>
int32_t number(T x) {
    if constexpr (std::is_same_v<T, int8_t>) return x;
    if constexpr (!std::is_same_v<T, int8_t>) return static_cast<int32_t>(static_cast<float>(x));
}

/// D[m, n] = A[m, k] . B[n, k]^T, or with B stored as [k, n] when `transposed`.
template <class T, class Acc>
void product(uint32_t m, uint32_t n, uint32_t k, bool transposed) {
    using namespace mmx::ascend;
    constexpr uint32_t group = 32 / sizeof(T);
    Gm<T> a(m * k), b(n * k);
    Gm<Acc> d(m * n, Acc(-1));
    for (uint32_t i = 0; i < m * k; ++i) a.values[i] = element<T>(static_cast<int>(i * 7 + 3));
    for (uint32_t i = 0; i < n * k; ++i) b.values[i] = element<T>(static_cast<int>(i * 5 + 1));
    const uint32_t m16 = round_up(m, 16), n16 = round_up(n, 16), k_pad = round_up(k, transposed ? 16 : group);
    EXPECT_CLEAN(run(
        [&] {
            TPipe pipe;
            TBuf<TPosition::A1> l1_a;
            TBuf<TPosition::B1> l1_b;
            TBuf<TPosition::A2> l0_a;
            TBuf<TPosition::B2> l0_b;
            TBuf<TPosition::CO1> l0_c;
            pipe.InitBuffer(l1_a, m16 * k_pad * sizeof(T));
            pipe.InitBuffer(l1_b, n16 * k_pad * sizeof(T));
            pipe.InitBuffer(l0_a, m16 * k_pad * sizeof(T));
            pipe.InitBuffer(l0_b, n16 * k_pad * sizeof(T));
            pipe.InitBuffer(l0_c, m16 * n16 * sizeof(Acc));
            load_matrix(l1_a.Get<T>(), a.tensor(), m, m16, k, k, m16);
            if (transposed)
                load_matrix(l1_b.Get<T>(), b.tensor(), k, k_pad, n, n, k_pad);
            else
                load_matrix(l1_b.Get<T>(), b.tensor(), n, n16, k, k, n16);
            SetFlag<HardEvent::MTE2_MTE1>(0);
            WaitFlag<HardEvent::MTE2_MTE1>(0);
            load_left(l0_a.Get<T>(), l1_a.Get<T>(), m16, k_pad);
            if constexpr (sizeof(T) == 2) {
                if (transposed) load_right_transposed(l0_b.Get<T>(), l1_b.Get<T>(), k_pad, n16);
            }
            if (!transposed) load_right(l0_b.Get<T>(), l1_b.Get<T>(), 0, n16, n16, k_pad);
            SetFlag<HardEvent::MTE1_M>(0);
            WaitFlag<HardEvent::MTE1_M>(0);
            multiply(l0_c.Get<Acc>(), l0_a.Get<T>(), l0_b.Get<T>(), m16, n16, k_pad, true);
            SetFlag<HardEvent::M_FIX>(0);
            WaitFlag<HardEvent::M_FIX>(0);
            store_tile(d.tensor(), l0_c.Get<Acc>(), m, m16, n, n);
        },
        Kind::kAicOnly, 1, {a.buffer(false), b.buffer(false), d.buffer()}));
    int wrong = 0;
    for (uint32_t i = 0; i < m; ++i)
        for (uint32_t j = 0; j < n; ++j) {
            int32_t sum = 0;
            for (uint32_t t = 0; t < k; ++t)
                sum += number(a.values[i * k + t]) * number(b.values[transposed ? t * n + j : j * k + t]);
            wrong += static_cast<int32_t>(d.values[i * n + j]) != sum;
        }
    EXPECT(wrong == 0);
}

}  // namespace

int main() {
    int products = 0;
    // n must be a multiple of 16 to leave L0C row by row.
    for (const uint32_t m : {1, 2, 15, 16, 17, 40, 64})
        for (const uint32_t n : {16, 32, 80})
            for (const uint32_t k : {1, 15, 16, 17, 31, 32, 33, 64}) {
                product<bfloat16_t, float>(m, n, k, false);
                product<bfloat16_t, float>(m, n, k, true);
                product<int8_t, int32_t>(m, n, k, false);
                products += 3;
            }
    std::printf("%d products\n", products);
    return mmx::test::finish("emulator layouts");
}
