// What a lane keeps that stands still, and whether it has to.

#include <torch/csrc/inductor/cpp_prefix.h>

// Write over `now`, of so many bytes a lane, in the lanes that do not go on.
extern "C" void purerl_keep(void* now, const void* before, const bool* going, int64_t lanes, int64_t bytes) {
    for (int64_t i = 0; i < lanes; i++)
        if (!going[i]) std::memcpy((char*)now + i * bytes, (const char*)before + i * bytes, bytes);
}

// For each lane, whether its n numbers are finite or as they were.
extern "C" void purerl_sound(const float* now, const float* before, bool* sound, int64_t lanes, int64_t n) {
    using Vector = at::vec::Vectorized<float>;
    constexpr int64_t BLOCK = 256 * Vector::size();
    const float infinity = std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < lanes; i++, now += n, before += n) {
        sound[i] = true;
        int64_t start = 0;
        for (; start + BLOCK <= n; start += BLOCK) {
            Vector highest(0.0f);  // which NaN passes through
            for (int64_t j = start; j < start + BLOCK; j += Vector::size())
                highest = at::vec::maximum(highest, Vector::loadu(now + j).abs());
            float each[Vector::size()];
            highest.store(each);
            bool finite = true;
            for (float x : each) finite = finite && x < infinity;
            for (int64_t j = start; !finite && j < start + BLOCK; j++)
                sound[i] = sound[i] && (std::abs(now[j]) < infinity || now[j] == before[j]);
        }
        for (int64_t j = start; j < n; j++) sound[i] = sound[i] && (std::abs(now[j]) < infinity || now[j] == before[j]);
    }
}
