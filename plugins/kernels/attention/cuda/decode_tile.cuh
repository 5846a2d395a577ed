// The decode attention of one warp: few query rows against subtiles of 16 keys, with mma m16n8k16. Keys and values are
// the 16-wide side and query rows the 8-wide one, so that up to 8 rows cost no more than 8:
//   scores   S^T[16 keys, 8 rows] = K[16 keys, d] · Q^T[d, 8 rows]
//   output   O^T[16 columns, 8 rows] += V^T[16 columns, 16 keys] · P^T[16 keys, 8 rows]
//
// Tiles lie in shared memory as the copy engine swizzles them: panels of 128 bytes a key, the 16-byte chunk c of key r
// at chunk c ^ (r % 8). 8-bit elements become T in registers; as the reduction over d may take any order and the
// columns of the output any place, each lane converts the bytes it gets and no byte moves between lanes.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/args.cuh"
#include "kernels/attention/cuda/row_softmax.cuh"
#include "kernels/common/eight_bit.cuh"

namespace fdpp {

inline constexpr int kSubtileKeys = 16;
inline constexpr int kPanelRow = 128;  // bytes

// Four fragments of 8 x 8 16-bit elements are transposed within one: row r of lanes 4 r .. 4 r + 3 becomes column r.
__device__ __forceinline__ uint32_t transpose8x8(uint32_t fragment) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(fragment));
  return transposed;
}

// What one warp needs to know of a piece of work besides tiles.
struct DecodeRows {
  int batch, kv_head;
  int first_row;     // this warp's first query row of the KV head
  int rows;          // query rows of the KV head in all
  int first;         // cache place of the first new token
};

// What is seldom needed of a query row: in shared memory, since registers are scarce.
struct DecodeRow {
  float phi;     // log2 units; NaN outside the unified mode
  int token;     // among the new ones
  bool unified;
};

// A tile of keys or values in shared memory.
struct TileView {
  const unsigned char* data;
  int panel_stride;  // bytes
};

// D: head size up to a multiple of 64. NT: groups of 8 query rows. SUB: subtiles at a time.
template <typename T, typename C, int D, int NT, int SUB, bool kQueryInRegisters>
class DecodeTile {
 public:
  static constexpr bool kBytes = sizeof(C) == 1;
  static constexpr int kSteps = D / 16;
  static constexpr int kLoads = kBytes ? kSteps / 2 : kSteps;  // of 32 bytes a key
  static constexpr int kQueryPitch = D + 8;                    // elements between query rows in shared memory
  static_assert(NT == 1 || NT == 2, "a load of the query is two groups of 8 rows, or two steps of one");
  static constexpr int kQuerySteps = 2 / NT;
  // [0], [1]: key lane / 4, query rows 2 * (lane % 4) and the next; [2], [3]: key + 8
  using Scores = float[SUB][NT][4];

  float o[kSteps][NT][4];  // columns column(j, 0), the same rows; [2], [3]: column(j, 1)
  float l[NT][2];          // this lane's part of the sum of weights

  // `query`: this warp's rows, rotated and scaled; `table`: what is known of them. Both in shared memory.
  __device__ __forceinline__ void start(const T* query, const DecodeRow* table) {
    query_ = query;
    table_ = table;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      l[n][0] = l[n][1] = 0;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) o[j][n][0] = o[j][n][1] = o[j][n][2] = o[j][n][3] = 0;
    }
    if constexpr (kQueryInRegisters) {
#pragma unroll
      for (int step = 0; step < kSteps; step += kQuerySteps) load_query(step, query_fragments_ + step);
    }
  }

  // Subtiles first_subtile .. of a tile of keys against the query.
  __device__ __forceinline__ void score(const TileView& keys, int first_subtile, int subtiles, Scores& s) const {
    // One warp's subtile is a chain of dependent products; two shorter chains finish sooner.
    constexpr int kChains = SUB * NT == 1 ? 2 : 1;
    float sums[kChains][SUB][NT][4];
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
#pragma unroll
      for (int u = 0; u < SUB; ++u) {
#pragma unroll
        for (int n = 0; n < NT; ++n) sums[c][u][n][0] = sums[c][u][n][1] = sums[c][u][n][2] = sums[c][u][n][3] = 0;
      }
    }
    // Matrices 0, 2: keys 0-7; 1, 3: keys 8-15; 2, 3: the second chunk.
    const int lane = threadIdx.x % 32;
    const int chunk = lane / 16 ^ lane % 8;
    const unsigned char* const rows = keys.data + (first_subtile * kSubtileKeys + lane % 16) * kPanelRow;
    uint32_t loaded[kQuerySteps][NT][2];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const unsigned char* const from = rows + load / 4 * keys.panel_stride + ((chunk ^ load * 2 % 8) * 16);
      uint32_t q[kBytes ? 2 : 1][NT][2];
#pragma unroll
      for (int h = 0; h < (kBytes ? 2 : 1); ++h) query_at(kBytes ? 2 * load + h : load, loaded, q[h]);
#pragma unroll
      for (int u = 0; u < SUB; ++u) {
        if (u >= subtiles) break;
        uint32_t r[4];
        ldmatrix_x4(r, from + u * kSubtileKeys * kPanelRow);
        float(&into)[NT][4] = sums[load % kChains][u];
        if constexpr (!kBytes) {
#pragma unroll
          for (int n = 0; n < NT; ++n) mma_m16n8k16<T>(into[n], r, q[0][n][0], q[0][n][1]);
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            uint32_t a[4];
            widen4<T, C>(r[2 * h], a[0], a[2]);
            widen4<T, C>(r[2 * h + 1], a[1], a[3]);
#pragma unroll
            for (int n = 0; n < NT; ++n) mma_m16n8k16<T>(into[n], a, q[h][n][0], q[h][n][1]);
          }
        }
      }
    }
#pragma unroll
    for (int u = 0; u < SUB; ++u) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[u][n][i] = sums[0][u][n][i];
          if (kChains == 2) s[u][n][i] += sums[kChains - 1][u][n][i];
        }
      }
    }
  }

  // Scores become weights 2^(score - reference). `place`: of the first key of this lane in the cache, key u, i of the
  // scores stands at key_place(place, u, i); places from `end` on count as not there. `edge`: some row may not see all
  // of these keys. `factor`: of raw scores, where the cache is scaled.
  __device__ __forceinline__ void weigh(Scores& s, int place, int end, bool edge, int subtiles, float factor,
                                        const DecodeRows& rows, const AttentionArgs<T, C>& args) {
    float unit = args.softmax.to_log2;
    if constexpr (kBytes) {
      for_each(s, [&](int, int, int, float x) { return x * factor; });
    }
    if (rarely(args.softmax.cap_factor != 0)) {
      for_each(s, [&](int, int, int, float x) {
        return 1 - __fdividef(2, 1 + exp2_approx(x * args.softmax.cap_factor));
      });
    }
    if (rarely(args.bias.data != nullptr)) {
      for_each(s, [&](int u, int n, int i, float x) {
        const int row = row_of(rows, n, i % 2), key = key_place(place, u, i);
        if (row >= rows.rows || key >= end) return x * unit;
        const int token = table_[local_row(n, i % 2)].token;
        const T* bias = args.bias.at(rows.batch, rows.kv_head * args.group + row - token * args.group, token);
        return x * unit + to_float<T>(bias[key]) * kLog2E;
      });
      unit = 1;
    }
    if (edge) {
      for_each(s, [&](int u, int n, int i, float x) {
        const int key = key_place(place, u, i);
        const int own = rows.first + table_[local_row(n, i % 2)].token;
        const bool seen = u < subtiles && key < end && key <= own && (args.window == 0 || key > own - args.window);
        return seen ? x : -INFINITY;
      });
    }
    float top[NT][2];
    bool grows = false;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        top[n][i] = -INFINITY;
#pragma unroll
        for (int u = 0; u < SUB; ++u) top[n][i] = fmaxf(top[n][i], fmaxf(s[u][n][i], s[u][n][i + 2]));
        top[n][i] *= unit;
        grows = grows || reference_[n][i].is_exceeded(top[n][i]);
      }
    }
    if (__any_sync(~0u, grows)) move_references(top, args.softmax);
    float subtrahend[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) subtrahend[n][i] = reference_[n][i].subtrahend();
    }
    for_each(s, [&](int, int n, int i, float x) {
      const float weight = exp2_approx(fmaf(x, unit, -subtrahend[n][i % 2]));
      l[n][i % 2] += weight;
      return weight;
    });
  }

  // Where this lane's first key of subtiles first_subtile .. lies in the tile.
  static __device__ __forceinline__ int first_place(int first_subtile) {
    return first_subtile * kSubtileKeys + threadIdx.x % 32 / 4;
  }

  // Adds the values of the same keys. Where kMasked, the tile's keys from `valid` on are taken as 0, whatever lies
  // there: 0 * NaN would be NaN.
  template <bool kMasked>
  __device__ __forceinline__ void add_values(const Scores& weights, const TileView& values, int first_subtile,
                                             int subtiles, int valid) {
    // Matrices 2, 3: keys 8-15; 1, 3: the second chunk.
    const int lane = threadIdx.x % 32;
    const int chunk = lane / 8 % 2 ^ lane % 8;
    const unsigned char* const rows =
        values.data + (first_subtile * kSubtileKeys + lane % 8 + lane / 16 * 8) * kPanelRow;
#pragma unroll
    for (int u = 0; u < SUB; ++u) {
      if (u >= subtiles) break;
      uint32_t p[NT][2];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        p[n][0] = transpose8x8(pack2<T>(weights[u][n][0], weights[u][n][1]));
        p[n][1] = transpose8x8(pack2<T>(weights[u][n][2], weights[u][n][3]));
      }
      const int left = valid - (first_subtile + u) * kSubtileKeys - lane % 4 * 2;
      const uint32_t keep[2] = {keep_mask(left), keep_mask(left - 8)};
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        uint32_t r[4];
        ldmatrix_x4_trans(r, rows + u * kSubtileKeys * kPanelRow + load / 4 * values.panel_stride +
                                 ((chunk ^ load * 2 % 8) * 16));
#pragma unroll
        for (int i = 0; kMasked && i < 4; ++i) r[i] &= keep[i / 2];
        if constexpr (!kBytes) {
#pragma unroll
          for (int n = 0; n < NT; ++n) mma_m16n8k16<T>(o[load][n], r, p[n][0], p[n][1]);
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            // Bytes: columns 2 c and 2 c + 1 of one key, then of the next; crossed they are two rows of V^T.
            uint32_t a[4];
            widen4<T, C, true>(r[h], a[0], a[1]);
            widen4<T, C, true>(r[h + 2], a[2], a[3]);
#pragma unroll
            for (int n = 0; n < NT; ++n) mma_m16n8k16<T>(o[2 * load + h][n], a, p[n][0], p[n][1]);
          }
        }
      }
    }
  }

  // Bits that depend on all keys that score() has read, and on all values that add_values() has.
  static __device__ __forceinline__ uint32_t bits_of_keys(const Scores& s) {
    uint32_t bits = 0;
#pragma unroll
    for (int u = 0; u < SUB; ++u) bits ^= __float_as_uint(s[u][0][0]);
    return bits;
  }
  __device__ __forceinline__ uint32_t bits_of_values() const {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) bits ^= __float_as_uint(o[j][0][0]);
    return bits;
  }

  // Brings the lanes' parts of l together.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) l[n][i] += __shfl_xor_sync(~0u, l[n][i], distance);
      }
    }
  }

  // A row's reference (-inf where it saw no key) and sum of weights, the latter negative where the row left the
  // interval around phi.
  __device__ __forceinline__ float2 norm(int n, int i) const {
    const RowReference& reference = reference_[n][i];
    if (l[n][i] == 0) return make_float2(reference.m, 0);
    const DecodeRow& row = table_[local_row(n, i)];
    const bool left = row.unified && reference.has_left(row.phi);
    // Without a finite score l may be NaN, which must show: a part at -inf would count as none.
    return make_float2(reference.subtrahend(), left ? -l[n][i] : l[n][i]);
  }

  // The query row of this lane's accumulator n, i within the warp's rows, and the column of o[j][...][2 * half].
  static __device__ __forceinline__ int local_row(int n, int i) { return n * 8 + threadIdx.x % 4 * 2 + i; }
  static __device__ __forceinline__ int column(int j, int half) {
    const int c = threadIdx.x % 32 / 4;
    return j * 16 + (kBytes ? 2 * c + half : c + 8 * half);
  }

 private:
  static __device__ __forceinline__ int row_of(const DecodeRows& rows, int n, int i) {
    return rows.first_row + local_row(n, i);
  }
  static __device__ __forceinline__ int key_place(int place, int u, int i) {
    return place + u * kSubtileKeys + i / 2 * 8;
  }
  // For a pair of neighbouring keys, `left` of which are there.
  static __device__ __forceinline__ uint32_t keep_mask(int left) { return left >= 2 ? ~0u : left == 1 ? 0xffffu : 0u; }

  template <typename F>
  static __device__ __forceinline__ void for_each(Scores& s, F f) {
#pragma unroll
    for (int u = 0; u < SUB; ++u) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[u][n][i] = f(u, n, i, s[u][n][i]);
      }
    }
  }

  // Some row's scores exceed its limit: such rows get a new reference.
  __device__ __forceinline__ void move_references(float (&top)[NT][2], const SoftmaxSettings& settings) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2)
          top[n][i] = fmaxf(top[n][i], __shfl_xor_sync(~0u, top[n][i], distance));
        if (!reference_[n][i].is_exceeded(top[n][i])) continue;
        const float factor = reference_[n][i].move(top[n][i], table_[local_row(n, i)].phi, settings);
        l[n][i] *= factor;
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          o[j][n][i] *= factor;
          o[j][n][i + 2] *= factor;
        }
      }
    }
  }

  // Fragments of kQuerySteps steps from `step` on: as many as one load brings.
  __device__ __forceinline__ void load_query(int step, uint32_t (*to)[NT][2]) const {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    if constexpr (!kBytes) {
      const int row = NT == 1 ? lane % 8 : lane / 16 * 8 + lane % 8, half = NT == 1 ? lane / 8 : lane / 8 % 2;
      ldmatrix_x4(r, query_ + row * kQueryPitch + step * 16 + half * 8);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int s = NT == 1 ? i : 0, n = NT == 1 ? 0 : i;
      if constexpr (kBytes) {
        const uint2 pair = *reinterpret_cast<const uint2*>(query_ + (n * 8 + lane / 4) * kQueryPitch +
                                                           (step + s) * 16 + lane % 4 * 4);
        r[2 * i] = pair.x;
        r[2 * i + 1] = pair.y;
      }
      to[s][n][0] = r[2 * i];
      to[s][n][1] = r[2 * i + 1];
    }
  }

  // Fragments of `step`; `loaded` holds those of the last load, where registers do not hold all.
  __device__ __forceinline__ void query_at(int step, uint32_t (&loaded)[kQuerySteps][NT][2],
                                           uint32_t (&q)[NT][2]) const {
    if (!kQueryInRegisters && step % kQuerySteps == 0) load_query(step, loaded);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        q[n][i] = kQueryInRegisters ? query_fragments_[kQueryInRegisters ? step : 0][n][i]
                                    : loaded[step % kQuerySteps][n][i];
    }
  }

  const T* query_;
  uint32_t query_fragments_[kQueryInRegisters ? kSteps : 1][NT][2];
  RowReference reference_[NT][2];
  const DecodeRow* table_;
};

}  // namespace fdpp
