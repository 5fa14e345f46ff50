// Products of float32 matrices with oneDNN's micro-kernel, which computes c (+)= a b where the columns of each lie next to each other.

#include <torch/csrc/inductor/cpp_prefix.h>

namespace at::native::cpublas {
void brgemm(int64_t M, int64_t N, int64_t K, int64_t ld_a, int64_t ld_b, int64_t ld_c, const bool add_C, const float* A,
            const float* B, float* C, bool is_vnni);
}

namespace {

constexpr int64_t BLOCK = 512;        // numbers on each side of a block: those of b stay in the second cache
constexpr int64_t LARGE = 1 << 20;    // multiplications of a product that is worth a second thread

struct Matrix {
    const float* data;
    int64_t row, column;  // how far the next one is

    Matrix at(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
    Matrix transposed() const { return {data, column, row}; }
};

// Memory of a thread, which grows.
struct Room {
    std::unique_ptr<float[]> memory;
    int64_t size = 0;

    float* get(int64_t n) {
        if (size < n) {
            memory.reset(new float[n]);
            size = n;
        }
        return memory.get();
    }
};

// The block of a matrix with its columns next to each other: where it is, or copied.
Matrix in_rows(Matrix x, int64_t rows, int64_t columns, Room& room) {
    if (x.column == 1) return x;
    float* copy = room.get(rows * columns);
    if (x.row == 1)
        at::vec::transpose_mxn<float>(x.data, x.column, copy, columns, columns, rows);
    else
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j) copy[i * columns + j] = *x.at(i, j).data;
    return {copy, columns, 1};
}

float dot(const float* x, const float* y, int64_t n) {
    using Vec = at::vec::Vectorized<float>;
    constexpr int64_t W = Vec::size();
    Vec sums[4] = {Vec(0), Vec(0), Vec(0), Vec(0)};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int64_t j = 0; j < 4; ++j) sums[j] = at::vec::fmadd(Vec::loadu(x + i + j * W), Vec::loadu(y + i + j * W), sums[j]);
    for (; i + W <= n; i += W) sums[0] = at::vec::fmadd(Vec::loadu(x + i), Vec::loadu(y + i), sums[0]);
    if (i < n) sums[1] = at::vec::fmadd(Vec::loadu(x + i, n - i), Vec::loadu(y + i, n - i), sums[1]);
    float lanes[W];
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(lanes);
    float sum = 0;
    for (int64_t j = 0; j < W; ++j) sum += lanes[j];
    return sum;
}

// c [M, N] (+)= a [M, K] b [K, N].
void product(int64_t M, int64_t N, int64_t K, Matrix a, Matrix b, float* c, int64_t c_row, bool add) {
    static thread_local Room a_room, b_room;
    if (N == 1 && c_row == 1) {  // a vector: as the row that it is the transpose of
        std::swap(M, N);
        std::swap(a, b);
        a = a.transposed(), b = b.transposed(), c_row = N;
    }
    if (M == 1) a.row = K, a.column = K == 1 ? 1 : a.column;
    if (M == 1 && b.row == 1 && N > 1) {
        a = in_rows(a, 1, K, a_room);
        for (int64_t n = 0; n < N; ++n) c[n] = dot(a.data, b.at(0, n).data, K) + (add ? c[n] : 0.0f);
        return;
    }
    for (int64_t n = 0; n < N; n += BLOCK)
        for (int64_t k = 0; k < K; k += BLOCK) {
            const int64_t n_now = std::min(BLOCK, N - n), k_now = std::min(BLOCK, K - k);
            const Matrix b_now = in_rows(b.at(k, n), k_now, n_now, b_room);
            for (int64_t m = 0; m < M; m += BLOCK) {
                const int64_t m_now = std::min(BLOCK, M - m);
                const Matrix a_now = in_rows(a.at(m, k), m_now, k_now, a_room);
                at::native::cpublas::brgemm(m_now, n_now, k_now, a_now.row, b_now.row, c_row, add || k > 0, a_now.data, b_now.data,
                                            c + m * c_row + n, false);
            }
        }
}

}  // namespace

// c [L, M, N] = bias [L, M, N] + a [L, M, K] b [L, K, N], without a bias where it is null; the strides of each in that order.
extern "C" void purerl_products(int64_t L, int64_t M, int64_t N, int64_t K, const float* a, int64_t a_l, int64_t a_m, int64_t a_k,
                                const float* b, int64_t b_l, int64_t b_k, int64_t b_n, const float* bias, int64_t bias_l,
                                int64_t bias_m, int64_t bias_n, float* c, int64_t c_l, int64_t c_m, int64_t threads) {
    const bool large = threads > 1 && L * M * N * K >= LARGE;
    const int64_t parts = large && L < threads ? std::min((M + 15) / 16, threads) : 1;
    const int64_t rows = ((M + parts - 1) / parts + 15) / 16 * 16;
#pragma omp parallel for num_threads(threads) if (large && L * parts > 1) collapse(2)
    for (int64_t l = 0; l < L; ++l)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t m = part * rows, m_now = std::min(rows, M - m);
            float* here = c + l * c_l + m * c_m;
            for (int64_t i = 0; bias && i < m_now; ++i) {
                const float* row = bias + l * bias_l + (m + i) * bias_m;
                if (bias_n == 1)
                    std::copy_n(row, N, here + i * c_m);
                else
                    for (int64_t n = 0; n < N; ++n) here[i * c_m + n] = row[n * bias_n];
            }
            if (m_now > 0) product(m_now, N, K, {a + l * a_l + m * a_m, a_m, a_k}, {b + l * b_l, b_k, b_n}, here, c_m, bias != nullptr);
        }
}
