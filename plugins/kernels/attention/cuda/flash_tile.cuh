// The attention of one warp: 16 query rows against tiles of keys and values in shared memory, with mma m16n8k16,
// float32 sums and the softmax in registers. D is the head size rounded up to a tile's width; columns beyond the real
// head size are zero. 8-bit caches enter tiles as T, unscaled: the key's scale goes into query and scores, the value's
// into the output.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/args.cuh"
#include "kernels/attention/cuda/row_softmax.cuh"
#include "kernels/common/eight_bit.cuh"

namespace fdpp {

inline constexpr int kWarpRows = 16;

// A tile holds rows of D elements without padding. Its 16-byte chunks are permuted within each row so that the eight
// rows that one phase of ldmatrix reads (or eight neighbouring chunks that cp.async writes) fall into different banks.
template <int D>
struct TileLayout {
  static constexpr int kChunks = D / 8;

  static __device__ __forceinline__ int offset(int row, int chunk) {
    // Rows of whole 128-byte lines start in the same bank; the others (D = 96) alternate between two.
    const int mix = kChunks % 8 == 0 ? row & 7 : (row >> 1) & 3;
    return row * D + (chunk ^ mix) * 8;
  }
};

// Calls f(row, chunk, index of the chunk) for those chunks of a tile of `Rows` rows that are thread `thread`'s share.
template <int D, int Rows, int Threads, typename F>
__device__ __forceinline__ void for_chunks(int thread, F&& f) {
  constexpr int kChunks = TileLayout<D>::kChunks;
  static_assert(Rows * kChunks % Threads == 0, "every thread takes the same number of chunks");
#pragma unroll
  for (int i = 0; i < Rows * kChunks / Threads; ++i) {
    const int index = thread + i * Threads;
    f(index / kChunks, index % kChunks, index);
  }
}

// `Rows` cache rows from `source` on, by `Threads` threads of which this is `thread`: elements of T to their places in
// the tile, 8-bit ones as they lie to `to`, from where widen_tile takes them. Rows from `valid_rows` on and columns
// beyond the head size become zero without being read: an unwritten slot may hold NaN, and 0 * NaN = NaN.
template <int D, int Rows, int Threads, typename C>
__device__ __forceinline__ void copy_tile_async(C* to, const C* source, int row_stride, int valid_rows, int head_size,
                                                int thread) {
  for_chunks<D, Rows, Threads>(thread, [&](int row, int chunk, int index) {
    const bool valid = row < valid_rows && chunk * 8 < head_size;
    const C* from = valid ? source + row * row_stride + chunk * 8 : source;
    if constexpr (sizeof(C) == 2) {
      cp_async_16(to + TileLayout<D>::offset(row, chunk), from, valid);
    } else {
      cp_async_8(to + index * 8, from, valid);
    }
  });
}

// What this thread itself has copied to `codes`, as T to its places in the tile.
template <typename T, int D, int Rows, int Threads, typename C>
__device__ __forceinline__ void widen_tile(T* tile, const C* codes, int thread) {
  for_chunks<D, Rows, Threads>(thread, [&](int row, int chunk, int index) {
    const uint2 bytes = *reinterpret_cast<const uint2*>(codes + index * 8);
    uint4 wide;
    widen4<T, C>(bytes.x, wide.x, wide.y);
    widen4<T, C>(bytes.y, wide.z, wide.w);
    *reinterpret_cast<uint4*>(tile + TileLayout<D>::offset(row, chunk)) = wide;
  });
}

// Query rows first .. first + Rows - 1 of one KV head into a tile, after norm, rotary embedding and the share of
// `key_scale` (key_unit) that their columns take. Rows without a token become zero. All threads of the block
// call it; `factors` holds a float for each row in shared memory.
template <int D, int Rows, typename T, typename C>
__device__ __forceinline__ void load_query_tile(T* tile, float* factors, const AttentionArgs<T, C>& args,
                                                const CacheSpan& span, int batch, int kv_head, int first,
                                                float key_scale) {
  const auto vector = [&](int row) {
    return args.query.at(batch, (first + row) / args.group, kv_head * args.group + (first + row) % args.group);
  };
  const int real_rows = min(Rows, span.tokens * args.group - first);
  if (args.q_norm != nullptr) {
    for (int row = threadIdx.x / 32; row < real_rows; row += blockDim.x / 32)
      factors[row] = inverse_rms(vector(row), args.q_norm, args.head_size, args.norm_epsilon);
    __syncthreads();
  }
  const bool scales_columns = sizeof(C) == 1 && args.key_scale.per_channel;
  constexpr int kChunks = TileLayout<D>::kChunks;
  for (int i = threadIdx.x; i < Rows * kChunks; i += blockDim.x) {
    const int row = i / kChunks, chunk = i % kChunks;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (row < real_rows && chunk * 8 < args.head_size) {
      const int position = args.rotary_dim == 0 ? 0 : rotary_position(args, span, batch, (first + row) / args.group);
      const float factor = args.q_norm == nullptr ? 1 : factors[row];
      const auto quad = [&](int column) {
        float4 x = prepared4(args, vector(row), args.q_norm, factor, column, position);
        if (scales_columns) x = scaled4(x, args.key_scale.at4(kv_head, args.head_size, column), 1 / key_scale);
        return pack4<T>(x);
      };
      const uint2 low = quad(chunk * 8), high = quad(chunk * 8 + 4);
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
template <typename T, typename C>
__device__ WarpMask make_mask(const AttentionArgs<T, C>& args, const CacheSpan& span, int first_row, int end) {
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

// What this lane's two rows get added to their scores: element [key]; null: nothing.
template <typename T>
struct RowBias {
  const T* row[2];
};

template <typename T, int D, int Keys>
class WarpAttention {
 public:
  using Scores = float[Keys / 8][4];  // accumulator layout: [n-tile][row lane/4: 2 columns, row lane/4 + 8: 2 columns]

  float o[D / 8][4];  // sums of values weighted by 2^(score - m), accumulator layout
  RowReference reference[2];
  float phi[2];
  float l[2];  // per row: this lane's part of the sum of weights

  // `query_tile`: the warp's 16 rows. `heads`: the query heads of this lane's rows. Scores are in units of `key_scale`.
  __device__ __forceinline__ WarpAttention(const T* query_tile, const SoftmaxSettings& settings, const int (&heads)[2],
                                           float key_scale)
      : query_tile_(query_tile),
        to_log2_(settings.cap_factor != 0 ? settings.to_log2 : settings.to_log2 * key_scale),
        cap_factor_(settings.cap_factor * key_scale) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      phi[i] = phi_log2(settings, heads[i]);
      l[i] = 0;
    }
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
  __device__ __forceinline__ void weigh(Scores& s, int first_key, const WarpMask& mask, const RowBias<T>& bias,
                                        const SoftmaxSettings& settings) {
    if (cap_factor_ != 0) {
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = 1 - __fdividef(2, 1 + exp2_approx(s[n][i] * cap_factor_));
      }
    }
    const int key = first_key + threadIdx.x % 4 * 2;
    float to_log2 = to_log2_;
    if (bias.row[0] != nullptr || bias.row[1] != nullptr) {
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = key + n * 8 + i % 2;
          const T* row = bias.row[i / 2];
          const float added = row != nullptr && column < mask.end[i / 2] ? to_float<T>(row[column]) : 0;
          s[n][i] = fmaf(s[n][i], to_log2, added * kLog2E);
        }
      }
      to_log2 = 1;
    }
    if (!mask.covers(first_key, Keys)) {
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
    bool moves[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2)) * to_log2;
      moves[i] = reference[i].is_exceeded(top[i]);
    }
    if (__any_sync(~0u, moves[0] || moves[1])) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float factor = moves[i] ? reference[i].move(top[i], phi[i], settings) : 1;
        l[i] *= factor;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[n][2 * i] *= factor;
          o[n][2 * i + 1] *= factor;
        }
      }
    }
    const float subtrahend[2] = {reference[0].subtrahend(), reference[1].subtrahend()};
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = exp2_approx(fmaf(s[n][i], to_log2, -subtrahend[i / 2]));
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
    for (int i = 0; i < 2; ++i) l[i] = quad_sum(l[i]);
  }

 private:
  // The query stays in registers where the sums leave room for it.
  static constexpr bool kQueryInRegisters = D <= 128;

  __device__ __forceinline__ void load_query(uint32_t (&a)[4], int k) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, query_tile_ + TileLayout<D>::offset(lane % 16, 2 * k + lane / 16));
  }

  const T* query_tile_;
  float to_log2_, cap_factor_;
  uint32_t query_[kQueryInRegisters ? D / 16 : 1][4];
};

}  // namespace fdpp
