// What a lane keeps that stands still, and whether it has to.

#include <torch/csrc/inductor/cpp_prefix.h>

// Write over `now`, of so many bytes a lane, in the lanes that do not go on.
extern "C" void purerl_keep(void* now, const void* before, const bool* going, int64_t lanes, int64_t bytes) {
    for (int64_t i = 0; i < lanes; i++)
        if (!going[i]) std::memcpy((char*)now + i * bytes, (const char*)before + i * bytes, bytes);
}

// For each lane, whether its n numbers are finite or as they were; lanes lie so many numbers apart.
extern "C" void purerl_sound(const float* now, int64_t now_lane, const float* before, int64_t before_lane, bool* sound, int64_t lanes, int64_t n) {
    using Vector = at::vec::Vectorized<float>;
    constexpr int64_t SIZE = Vector::size(), SUMS = 4, BLOCK = 64 * SUMS * SIZE;
    const Vector zero(0.0f);
    for (int64_t i = 0; i < lanes; i++, now += now_lane, before += before_lane) {
        sound[i] = true;
        int64_t start = 0;
        for (; start + BLOCK <= n; start += BLOCK) {
            Vector sums[SUMS] = {zero, zero, zero, zero};  // of zero times each number, which is NaN for those that are not finite
            for (int64_t j = start; j < start + BLOCK; j += SUMS * SIZE)
                for (int64_t k = 0; k < SUMS; k++) sums[k] = at::vec::fmadd(Vector::loadu(now + j + k * SIZE), zero, sums[k]);
            float each[SIZE];
            ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(each);
            bool finite = true;
            for (float x : each) finite = finite && x == 0.0f;
            for (int64_t j = start; !finite && j < start + BLOCK; j++)
                sound[i] = sound[i] && (std::isfinite(now[j]) || now[j] == before[j]);
        }
        for (int64_t j = start; j < n; j++) sound[i] = sound[i] && (std::isfinite(now[j]) || now[j] == before[j]);
    }
}
