// Rows of B in each format, and how rows of A meet them. Include after a simd_*.h.
//
// Both operands have K contiguous, so a register block of A rows by B rows keeps one Vec of partial sums for each pair
// and adds up its lanes at the end.
#pragma once

#include <cstdint>

#include "kernels/common/parallel.h"
#include "kernels/common/simd_math.h"
#include "kernels/gemm/cpu/kernels.h"

namespace fdpp {
namespace {

// Bytes that B is asked for before their use: of each of the streams that rows lying apart are, or of the one that
// neighbours are together.
constexpr int64_t kAheadApart = 1024, kAheadTogether = 4096;

template <int M, int N>
inline void clear(Vec (&sums)[M][N]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sums[m][n] = set(0);
  }
}

// out[m][n] = the sum of sums[m][n]'s lanes.
template <int M, int N>
inline void add_lanes(const Vec (&sums)[M][N], float (*out)[4]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    store_sums(out[m], sums[m][0], N > 1 ? sums[m][N > 1 ? 1 : 0] : set(0), N > 2 ? sums[m][N > 2 ? 2 : 0] : set(0),
               N > 3 ? sums[m][N > 3 ? 3 : 0] : set(0));
  }
}

// One number of B is one W, and a row has one scale or none.
template <typename W>
class PlainWeights {
 public:
  static constexpr int kSums = kAccumulators;  // Vecs of partial sums that a register block may have
  static constexpr bool kApart = true;         // whether rows side by side come from different places

  explicit PlainWeights(const GemmParams& params)
      : a_(static_cast<const float*>(params.a)), b_(static_cast<const W*>(params.b)),
        scales_(static_cast<const float*>(params.scales)), one_scale_(params.problem.one_scale), k_(params.problem.k),
        a_stride_(params.problem.a_row_stride) {}

  int64_t row_bytes() const { return k_ * static_cast<int64_t>(sizeof(W)); }

  // out[m][n] = A's row first + m times B's row rows[n], for M rows of A and N of B.
  template <int M, int N>
  void products(int64_t first, const int64_t* rows, float (*out)[4]) const {
    const int64_t a_stride = a_stride_;  // a copy of its own stays in a register
    const float* a = a_ + first * a_stride;
    const W* b[N];
    for (int n = 0; n < N; ++n) b[n] = b_ + rows[n] * k_;
    Vec sums[M][N];
    clear(sums);
    const auto add_part = [&](int64_t i, auto lanes) {
      Vec w[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) w[n] = lanes.load(b[n] + i);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        Vec x = lanes.load(a + m * a_stride + i);
        keep_in_register(x);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) sums[m][n] = fma(x, w[n], sums[m][n]);
      }
    };
    // Line by line, so that each is asked for once.
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(W));
    int64_t line = 0;
    for (; line + kLine <= k_; line += kLine) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) prefetch(reinterpret_cast<const char*>(b[n] + line) + kAheadApart);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLine; i += kWidth) add_part(line + i, AllLanes{});
    }
    each_vector(k_ - line, [&](int64_t i, auto lanes) { add_part(line + i, lanes); });
    add_lanes(sums, out);
    if (scales_ == nullptr) return;
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) out[m][n] *= scale(rows[n]);
  }

  void dequantise(int64_t row, float* to) const {
    convert(b_ + row * k_, to, k_);
    if (scales_ == nullptr) return;
    const Vec factor = set(scale(row));
    each_vector(k_, [&](int64_t i, auto lanes) { lanes.store(to + i, mul(lanes.load(to + i), factor)); });
  }

 private:
  float scale(int64_t row) const { return scales_[one_scale_ ? 0 : row]; }

  const float* a_;
  const W* b_;
  const float* scales_;
  bool one_scale_;
  int64_t k_;
  int64_t a_stride_;  // from row to row
};

// A row of int4 weights.
struct Int4Row {
  const uint8_t* words;
  const float* scales;
  const uint8_t* zero_points;  // or null

  float zero_point(int64_t block) const {
    return zero_points == nullptr ? 8.0f : static_cast<float>(zero_points[block / 2] >> block % 2 * 4 & 15);
  }
  Levels levels_of(int64_t block) const { return levels(scales[block], zero_point(block)); }
};

class Int4Matrix {
 public:
  explicit Int4Matrix(const GemmParams& params)
      : words_(static_cast<const uint8_t*>(params.b)), scales_(static_cast<const float*>(params.scales)),
        zero_points_(static_cast<const uint8_t*>(params.zero_points)), blocks_(params.problem.blocks()),
        block_(params.problem.block_size) {}

  int64_t blocks() const { return blocks_; }
  int64_t block() const { return block_; }
  int64_t row_bytes() const { return blocks_ * block_ / 2; }
  Int4Row row(int64_t r) const {
    return {words_ + r * row_bytes(), scales_ + r * blocks_,
            zero_points_ == nullptr ? nullptr : zero_points_ + r * ((blocks_ + 1) / 2)};
  }

 private:
  const uint8_t* words_;
  const float* scales_;
  const uint8_t* zero_points_;
  int64_t blocks_;
  int64_t block_;
};

// int4 weights in float32 arithmetic.
class Int4Weights {
 public:
  // The levels of a block take registers too.
  static constexpr int kSums = kAccumulators * 2 / 3;
  // A task has little of B: the beginnings of several streams would be much of it.
  static constexpr bool kApart = false;

  explicit Int4Weights(const GemmParams& params)
      : a_(static_cast<const float*>(params.a)), b_(params), k_(params.problem.k),
        a_stride_(params.problem.a_row_stride) {}

  int64_t row_bytes() const { return b_.row_bytes(); }

  template <int M, int N>
  void products(int64_t first, const int64_t* rows, float (*out)[4]) const {
    const int64_t a_stride = a_stride_;  // as above
    const float* a = a_ + first * a_stride;
    Int4Row b[N];
    for (int n = 0; n < N; ++n) b[n] = b_.row(rows[n]);
    Vec sums[M][N];
    clear(sums);
    const auto add_part = [&](const Levels* values, int64_t i, auto lanes) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const Vec w = decode(values[n], b[n].words, i);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) sums[m][n] = fma(lanes.load(a + m * a_stride + i), w, sums[m][n]);
      }
    };
    for (int64_t block = 0, begin = 0; begin < k_; ++block, begin += b_.block()) {
      Levels values[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        values[n] = b[n].levels_of(block);
        prefetch(b[n].words + begin / 2 + kAheadTogether);
      }
      const int64_t count = k_ - begin < b_.block() ? k_ - begin : b_.block();
      each_vector(count, [&](int64_t i, auto lanes) { add_part(values, begin + i, lanes); });
    }
    add_lanes(sums, out);
  }

  void dequantise(int64_t row, float* to) const {
    const Int4Row b = b_.row(row);
    for (int64_t block = 0, begin = 0; begin < k_; ++block, begin += b_.block()) {
      const Levels values = b.levels_of(block);
      const int64_t count = k_ - begin < b_.block() ? k_ - begin : b_.block();
      each_vector(count, [&](int64_t i, auto lanes) {
        lanes.store(to + begin + i, decode(values, b.words, begin + i));
      });
    }
  }

 private:
  const float* a_;
  Int4Matrix b_;
  int64_t k_;
  int64_t a_stride_;  // from row to row
};

// int4 weights and A rounded to 8-bit integers. A block's product is
//   scale · (Σ q x - zero point · Σ x) with x = the integer times what it is worth,
// where the first sum is one of integers, and the second is known once A is rounded.
class Int4WeightsInt8 {
 public:
  static constexpr int kSums = kAccumulators * 2 / 3;
  static constexpr bool kApart = false;

  Int4WeightsInt8(const GemmParams& params, const GemmScratch& scratch) : b_(params), a_(scratch) {
    for (int64_t words = b_.block() / 8; words > 1; words /= 2) ++shift_;
  }

  int64_t row_bytes() const { return b_.row_bytes(); }

  template <int M, int N>
  void products(int64_t first, const int64_t* rows, float (*out)[4]) const {
    Int4Row b[N];
    for (int n = 0; n < N; ++n) b[n] = b_.row(rows[n]);
    Vec sums[M][N];
    clear(sums);
    const Int8* const integers = a_.integers + first * a_.padded;
    const float* const worths = a_.word_scales + first * (a_.padded / 8);
    const int64_t padded = a_.padded, blocks = b_.blocks(), words = row_bytes() / 4;
    const int shift = shift_;
    const auto add_words = [&](int64_t word, int count, int scales) {
      Words w[N];
      Vec scale[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        w[n] = load_words(b[n].words + 4 * word, count);
        scale[n] = spread(b[n].scales + (word >> shift), scales, shift);
        prefetch(b[n].words + 4 * word + kAheadTogether);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const Vec worth = load(worths + m * (padded / 8) + word);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n)
          sums[m][n] = fma(dot(w[n], integers + m * padded + 8 * word), mul(scale[n], worth), sums[m][n]);
      }
    };
    const int scales = kWidth >> shift > 0 ? kWidth >> shift : 1;
    int64_t word = 0;
    for (; word + kWidth <= words; word += kWidth) add_words(word, kWidth, scales);
    if (word < words) add_words(word, static_cast<int>(words - word), static_cast<int>(blocks - (word >> shift)));

    const float* const block_sums = a_.block_sums + first * a_.padded_blocks;
    each_vector(blocks, [&](int64_t block, auto lanes) {
      const int count = static_cast<int>(blocks - block < kWidth ? blocks - block : kWidth);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const Vec zero = b[n].zero_points == nullptr ? set(8) : load_nibbles(b[n].zero_points + block / 2, count);
        const Vec offset = mul(lanes.load(b[n].scales + block), zero);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
          sums[m][n] = fma(offset, load(block_sums + m * a_.padded_blocks + block), sums[m][n]);
      }
    });
    add_lanes(sums, out);
  }

 private:
  Int4Matrix b_;
  GemmScratch a_;
  int shift_ = 0;  // log2 of a block's words
};

// Rounds row m of A to integers, each block to its own largest magnitude.
inline void round_row(const GemmParams& params, const GemmScratch& to, int64_t m) {
  const GemmProblem& p = params.problem;
  const float* a = static_cast<const float*>(params.a) + m * p.a_row_stride;
  Int8* integers = to.integers + m * to.padded;
  float* worth = to.word_scales + m * (to.padded / 8);
  float* sums = to.block_sums + m * to.padded_blocks;
  for (int64_t i = 0; i < to.padded_blocks; i += kWidth) store(sums + i, set(0));

  constexpr int64_t kPart = 8 * kWidth;  // numbers in a vector of words
  for (int64_t begin = 0, block = 0; begin < to.padded; begin += p.block_size, ++block) {
    Int8 rounded[128] = {};
    float scale = 0;
    const int64_t count = p.k - begin < p.block_size ? p.k - begin : p.block_size;
    if (count > 0) {
      Vec largest = set(0), invalid = set(0);
      each_vector(count, [&](int64_t i, auto lanes) {
        const Vec x = lanes.load(a + begin + i);
        largest = max(max(x, sub(set(0), x)), largest);
        invalid = fma(x, set(0), invalid);  // 0, or NaN if there is NaN or infinity, which no integer stands for
      });
      const float most = max_of(largest);
      scale = most / 127 + sum_of(invalid);
      const Vec inverse = set(most > 1e-36f ? 127 / most : 0);  // which must be finite
      Vec total = set(0);
      each_vector(count, [&](int64_t i, auto lanes) {
        const Vec x = round_to_integer(mul(lanes.load(a + begin + i), inverse));
        store(rounded + i, x);
        total = add(x, total);
      });
      sums[block] = -scale * sum_of(total);
    }
    for (int64_t i = 0; i < p.block_size; i += 16) {
      const int64_t part = (begin + i) / kPart * kPart, word = (begin + i) % kPart / 8;
      split_for_words(rounded + i, integers + part + 4 * word, integers + part + 4 * (kWidth + word));
      worth[(begin + i) / 8] = worth[(begin + i) / 8 + 1] = scale;
    }
  }
}

inline void round_rows(const GemmParams& params, const GemmScratch& to, const HostRuntime* host) {
  const GemmProblem& p = params.problem;
  parallel_for(host, static_cast<size_t>(p.m), static_cast<double>(p.m) * static_cast<double>(p.k),
               [&](size_t m) { round_row(params, to, static_cast<int64_t>(m)); });
}

}  // namespace
}  // namespace fdpp
