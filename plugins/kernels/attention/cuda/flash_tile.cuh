// The attention of one warp: 16 query rows against tiles of keys and values in shared memory, with mma m16n8k16,
// float32 sums and the softmax in registers. D is the head size rounded up to one of the sizes in launch.h; columns
// beyond the real head size are zero.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/args.cuh"

namespace fdpp {

inline constexpr int kWarpRows = 16;

// A tile holds rows of D elements without padding. Its 16-byte chunks are permuted within each row so that the eight
// rows that one phase of ldmatrix reads (or eight neighbouring chunks that cp.async writes) fall into different banks.
template <int D>
struct TileLayout {
  static constexpr int kChunks = D / 8;

  static __device__ __forceinline__ int offset(int row, int chunk) {
    // Rows of whole 128-byte lines start in the same bank; the others (D = 32, 96) alternate between two.
    const int mix = kChunks % 8 == 0 ? row & 7 : (row >> 1) & 3;
    return row * D + (chunk ^ mix) * 8;
  }
};

// `rows` cache rows from `source` on, by `Threads` threads of which this is `thread`. Rows from `valid_rows` on and
// columns beyond the head size become zero without being read: an unwritten slot may hold NaN, and 0 * NaN = NaN.
template <typename T, int D, int Rows, int Threads>
__device__ __forceinline__ void copy_tile_async(T* tile, const T* source, int row_stride, int valid_rows, int head_size,
                                                int thread) {
  constexpr int kChunks = TileLayout<D>::kChunks;
  static_assert(Rows * kChunks % Threads == 0, "every thread copies the same number of chunks");
#pragma unroll
  for (int i = 0; i < Rows * kChunks / Threads; ++i) {
    const int index = thread + i * Threads;
    const int row = index / kChunks, chunk = index % kChunks;
    const bool valid = row < valid_rows && chunk * 8 < head_size;
    const T* from = valid ? source + row * row_stride + chunk * 8 : source;
    cp_async_16(tile + TileLayout<D>::offset(row, chunk), from, valid);
  }
}

// Query rows first .. first + Rows - 1 of one KV head, rotated, into a tile. Rows without a token become zero.
template <typename T, int D, int Rows>
__device__ __forceinline__ void load_query_tile(T* tile, const AttentionArgs<T>& args, const CacheSpan& span, int batch,
                                                int kv_head, int first) {
  constexpr int kChunks = TileLayout<D>::kChunks;
  for (int i = threadIdx.x; i < Rows * kChunks; i += blockDim.x) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int token = (first + row) / args.group;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (token < span.tokens && chunk * 8 < args.head_size) {
      const T* vector = args.query.at(batch, token, kv_head * args.group + (first + row) % args.group);
      const uint2 low = rotated4(args, vector, chunk * 8, span.first + token);
      const uint2 high = rotated4(args, vector, chunk * 8 + 4, span.first + token);
      value = make_uint4(low.x, low.y, high.x, high.y);
    }
    *reinterpret_cast<uint4*>(tile + TileLayout<D>::offset(row, chunk)) = value;
  }
}

// The keys that this lane's two rows (lane / 4 and lane / 4 + 8 of the warp) may see, and those that all 16 rows see.
struct WarpMask {
  int begin[2], end[2];
  int common_begin, common_end;

  __device__ bool covers(int first_key, int keys) const {
    return first_key >= common_begin && first_key + keys <= common_end;
  }
};

// For rows first_row .. first_row + 15; nobody sees keys from `end` on.
template <typename T>
__device__ WarpMask make_mask(const AttentionArgs<T>& args, const CacheSpan& span, int first_row, int end) {
  const auto begin_of = [&](int row) {
    return args.window > 0 ? max(span.first + row / args.group - args.window + 1, 0) : 0;
  };
  const auto end_of = [&](int row) { return min(span.first + row / args.group + 1, end); };
  const int row = first_row + threadIdx.x % 32 / 4;
  WarpMask mask;
  mask.begin[0] = begin_of(row);
  mask.begin[1] = begin_of(row + 8);
  mask.end[0] = end_of(row);
  mask.end[1] = end_of(row + 8);
  mask.common_begin = begin_of(first_row + kWarpRows - 1);
  mask.common_end = end_of(first_row);
  return mask;
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What turns a row's sum of weighted values into its output: 1 / l, the sink's share included.
__device__ __forceinline__ float output_factor(float m, float l, float sink) {
  if (l == 0) return 0;
  const float top = fmaxf(m, sink);
  const float own = exp2_approx(m - top);
  return __fdividef(own, l * own + exp2_approx(sink - top));
}

template <typename T, int D, int Keys>
class WarpAttention {
 public:
  using Scores = float[Keys / 8][4];  // accumulator layout: [n-tile][row lane/4: 2 columns, row lane/4 + 8: 2 columns]

  float o[D / 8][4];  // sums of values weighted by 2^(score - m), accumulator layout
  float m[2];         // per row: the maximum that weights refer to, in log2 units
  float l[2];         // per row: this lane's part of the sum of weights

  // `query_tile`: the warp's 16 rows.
  __device__ __forceinline__ explicit WarpAttention(const T* query_tile) : query_tile_(query_tile) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    m[0] = m[1] = -INFINITY;
    l[0] = l[1] = 0;
    if constexpr (kQueryInRegisters) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) load_query(query_[k], k);
    }
  }

  __device__ __forceinline__ void score(const T* key_tile, Scores& s) const {
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
    const int lane = threadIdx.x % 32;
    const int key = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t a[4];
      if constexpr (kQueryInRegisters) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = query_[k][i];
      } else {
        load_query(a, k);
      }
      const T* row = key_tile + TileLayout<D>::offset(key, 2 * k + half);
#pragma unroll
      for (int n = 0; n < Keys / 16; ++n) {
        uint32_t b[4];
        ldmatrix_x4(b, row + n * 16 * D);
        mma_m16n8k16<T>(s[2 * n], a, b[0], b[1]);
        mma_m16n8k16<T>(s[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // Scores of keys first_key .. first_key + Keys - 1 become weights 2^(score - m).
  __device__ __forceinline__ void weigh(Scores& s, int first_key, const WarpMask& mask,
                                        const SoftmaxSettings& settings) {
    if (settings.cap_factor != 0) {
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = 1 - __fdividef(2, 1 + exp2_approx(s[n][i] * settings.cap_factor));
      }
    }
    if (!mask.covers(first_key, Keys)) {
      const int key = first_key + threadIdx.x % 4 * 2;
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = key + n * 8 + i % 2;
          if (column < mask.begin[i / 2] || column >= mask.end[i / 2]) s[n][i] = -INFINITY;
        }
      }
    }
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) {
      top[0] = fmaxf(top[0], fmaxf(s[n][0], s[n][1]));
      top[1] = fmaxf(top[1], fmaxf(s[n][2], s[n][3]));
    }
    bool grows[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2)) * settings.to_log2;
      grows[i] = top[i] > m[i] + settings.growth;
    }
    if (__any_sync(~0u, grows[0] || grows[1])) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!grows[i]) top[i] = m[i];
        const float factor = grows[i] ? exp2_approx(m[i] - top[i]) : 1;
        m[i] = top[i];
        l[i] *= factor;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[n][2 * i] *= factor;
          o[n][2 * i + 1] *= factor;
        }
      }
    }
    // A row that has seen no key yet has m = -inf; its weights must come out as 0, not NaN.
    const float reference[2] = {m[0] == -INFINITY ? 0 : m[0], m[1] == -INFINITY ? 0 : m[1]};
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = exp2_approx(fmaf(s[n][i], settings.to_log2, -reference[i / 2]));
        l[i / 2] += s[n][i];
      }
    }
  }

  __device__ __forceinline__ void add_values(const Scores& weights, const T* value_tile) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < Keys / 16; ++k) {
      const float(&left)[4] = weights[2 * k];
      const float(&right)[4] = weights[2 * k + 1];
      const uint32_t a[4] = {pack2<T>(left[0], left[1]), pack2<T>(left[2], left[3]), pack2<T>(right[0], right[1]),
                             pack2<T>(right[2], right[3])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, value_tile + k * 16 * D + TileLayout<D>::offset(lane % 16, 2 * n + lane / 16));
        mma_m16n8k16<T>(o[2 * n], a, b[0], b[1]);
        mma_m16n8k16<T>(o[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // The sums of weights become those of whole rows, in every lane that holds a part of the row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      l[i] += __shfl_xor_sync(~0u, l[i], 1);
      l[i] += __shfl_xor_sync(~0u, l[i], 2);
    }
  }

 private:
  // The query stays in registers where the sums leave room for it.
  static constexpr bool kQueryInRegisters = D <= 128;

  __device__ __forceinline__ void load_query(uint32_t (&a)[4], int k) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, query_tile_ + TileLayout<D>::offset(lane % 16, 2 * k + lane / 16));
  }

  const T* query_tile_;
  uint32_t query_[kQueryInRegisters ? D / 16 : 1][4];
};

}  // namespace fdpp
