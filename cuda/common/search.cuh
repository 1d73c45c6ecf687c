#pragma once

namespace mmx::cuda {

/// The last of `size` places whose value in the ascending list `cu` is at most `value`; the first one if none
/// is.
template <class T, class Index>
__device__ __forceinline__ Index place_in(const T* cu, Index size, Index value) {
    Index low = 0, high = size;
    while (high - low > 1) {
        const Index middle = (low + high) / 2;
        (cu[middle] <= value ? low : high) = middle;
    }
    return low;
}

}  // namespace mmx::cuda
