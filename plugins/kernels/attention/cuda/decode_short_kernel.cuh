// Decode attention over short contexts: one new token, 8 query rows of a KV head at a time. The four warps of a block
// share its keys and values, which come straight from global memory into their registers, all at once. What a longer
// context pays for once, rings and clusters, would take most of the time here.
//
// Both products are those of decode_tile.cuh. Since the reduction over d may take any order and the columns of the
// output any place, a lane's 16-byte loads are its fragments: lane (g, t) = (lane / 4, lane % 4) brings chunks t + 4 j of
// keys g and g + 8, and chunks g + 8 j of values 2 t, 2 t + 1, 2 t + 8 and 2 t + 9.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/decode_schedule.cuh"
#include "kernels/attention/cuda/decode_tile.cuh"
#include "kernels/attention/cuda/joint_sum.cuh"
#include "kernels/common/pipeline.cuh"

namespace fdpp {

inline constexpr int kShortWarps = 4;  // of a block
inline constexpr int kShortRows = 8;

inline constexpr int kShortSubtiles = 2;  // of a warp
inline constexpr int kShortWarpKeys = kShortSubtiles * kSubtileKeys;
inline constexpr int kShortContext = kShortWarps * kShortWarpKeys;

// D: head size up to 64 or 128. A block has 8 query rows of a KV head of a row of the batch.
template <typename T, int D>
class ShortDecode {
 public:
  static constexpr int kQuads = D / 4;
  static constexpr int kSumPitch = D + 4;

  // What a warp lays down for itself: the prepared query, the new token's key and value, what is known of the rows.
  struct Notes {
    alignas(16) T query[kShortRows][D];  // only where it is not taken as it is
    alignas(16) T key[D];
    alignas(16) T value[D];
    float query_rms[kShortRows];
    DecodeRow rows[kShortRows];
  };
  // The warps' results.
  struct Sums {
    float values[kShortWarps][kShortRows][kSumPitch];
    float2 norms[kShortWarps][kShortRows];
  };
  union Shared {
    Notes notes[kShortWarps];
    Sums sums;
  };

  __device__ __forceinline__ ShortDecode(const AttentionArgs<T>& args, unsigned char* shared)
      : args_(args), shared_(*reinterpret_cast<Shared*>(shared)), notes_(shared_.notes[warp_]) {}

  __device__ __forceinline__ void run(int kv_heads, int row_tiles) {
    const int heads = quotient(blockIdx.x, row_tiles);
    first_row_ = (blockIdx.x - heads * row_tiles) * kShortRows;
    rows_ = min(args_.group - first_row_, kShortRows);
    batch_ = quotient(heads, kv_heads);
    kv_head_ = heads - batch_ * kv_heads;
    if (first_key_ < args_.total_length) prefetch();
    wait_for_predecessor();

    // Everything that needs no length is under way before the length is there.
    const int32_t last = seqlen(args_, batch_);
    const bool as_it_is = args_.rotary_dim == 0 && args_.q_norm == nullptr;
    if (as_it_is) load_query(args_.query.at(batch_, 0, query_head(0)), args_.query.head_stride);
    if (first_key_ < args_.total_length) load();
    release_successor();
    span_ = span_of(args_, last);
    if (rarely(!span_.valid())) {
      if (warp_ == 0) {
        if (lane_ == 0) report_fault(args_.fault, kBadSeqlens);
        fill_output(args_, batch_, kv_head_, first_row_, rows_, NAN, lane_, 32);
      }
      return;
    }
    if (!as_it_is) prepare_query();
    note_rows();
    if (span_.first / kShortWarpKeys == warp_) take_new_token();
    __syncwarp();
    if (!as_it_is) load_query(notes_.query[0], D);

    tile_.start(nullptr, notes_.rows);
    if (first_key_ < span_.length()) {
      const bool edge = first_key_ + kShortWarpKeys > span_.first || args_.window > 0;
      if (edge) put_new_token();
      score();
      const DecodeRows rows{batch_, kv_head_, first_row_, args_.group, span_.first};
      tile_.weigh(scores_, first_key_ + lane_ / 4, span_.length(), edge, kShortSubtiles, 1, rows, args_);
      add_values();
    }
    tile_.finish();
    emit();
  }

 private:
  __device__ __forceinline__ int query_head(int row) const { return kv_head_ * args_.group + first_row_ + row; }

  // The cache's row of a key; what lies beyond the longest context may not be there.
  __device__ __forceinline__ int row_of(int key) const { return min(key, args_.total_length - 1); }

  __device__ __forceinline__ void prefetch() const {
    constexpr int kLines = D * sizeof(T) / 128;
    for (int i = lane_; i < kShortWarpKeys * kLines; i += 32) {
      const int row = row_of(first_key_ + i / kLines), column = i % kLines * (128 / static_cast<int>(sizeof(T)));
      if (column >= args_.head_size) continue;
      prefetch_line(args_.key.at(batch_, kv_head_, row) + column);
      prefetch_line(args_.value.at(batch_, kv_head_, row) + column);
    }
  }
  static __device__ __forceinline__ void prefetch_line(const T* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
  }

  __device__ __forceinline__ uint4 chunk_of(const T* row, int chunk) const {
    if (chunk * 8 >= args_.head_size) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(row + chunk * 8);
  }

  __device__ __forceinline__ int key_of(int u, int i) const { return u * kSubtileKeys + lane_ / 4 + 8 * i; }
  __device__ __forceinline__ int value_of(int u, int i) const {
    return u * kSubtileKeys + lane_ % 4 * 2 + i % 2 + i / 2 * 8;
  }

  __device__ __forceinline__ void load() {
    const T* const keys = args_.key.at(batch_, kv_head_, 0);
    const T* const values = args_.value.at(batch_, kv_head_, 0);
#pragma unroll
    for (int u = 0; u < kShortSubtiles; ++u) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const T* const row = keys + row_of(first_key_ + key_of(u, i)) * args_.key.token_stride;
#pragma unroll
        for (int j = 0; j < D / 32; ++j) keys_[u][i][j] = chunk_of(row, lane_ % 4 + 4 * j);
      }
    }
#pragma unroll
    for (int u = 0; u < kShortSubtiles; ++u) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* const row = values + row_of(first_key_ + value_of(u, i)) * args_.value.token_stride;
#pragma unroll
        for (int j = 0; j < D / 64; ++j) values_[u][i][j] = chunk_of(row, lane_ / 4 + 8 * j);
      }
    }
  }

  // Rotated, into this warp's notes.
  __device__ __forceinline__ void prepare_query() {
    if (rarely(args_.q_norm != nullptr)) {
      for (int row = 0; row < rows_; ++row) {
        const float rms = inverse_rms(args_.query.at(batch_, 0, query_head(row)), args_.q_norm,
                                      args_.head_size, args_.norm_epsilon);
        if (lane_ == 0) notes_.query_rms[row] = rms;
      }
      __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < kShortRows * kQuads; i += 32) {
      const int row = (i + lane_) / kQuads, column = (i + lane_) % kQuads * 4;
      if (row >= rows_ || column >= args_.head_size) continue;
      const T* const head = args_.query.at(batch_, 0, query_head(row));
      *reinterpret_cast<uint2*>(&notes_.query[row][column]) =
          pack4<T>(prepared4(args_, head, args_.q_norm, notes_.query_rms[row], column,
                             rotary_position(args_, span_, batch_, 0)));
    }
  }

  __device__ __forceinline__ void note_rows() {
    if (lane_ >= kShortRows) return;
    DecodeRow row{};
    row.unified = args_.softmax.phi != nullptr;
    row.phi = phi_log2(args_.softmax, query_head(min(lane_, rows_ - 1)));
    notes_.rows[lane_] = row;
  }

  // The fragments of this lane's query row.
  __device__ __forceinline__ void load_query(const T* rows, int64_t row_stride) {
    const int row = lane_ / 4;
#pragma unroll
    for (int j = 0; j < D / 32; ++j)
      query_[j] = row < rows_ ? chunk_of(rows + row * row_stride, lane_ % 4 + 4 * j) : make_uint4(0, 0, 0, 0);
  }

  // Into this warp's notes, and into the cache.
  __device__ __forceinline__ void take_new_token() {
    const float rms =
        inverse_rms(args_.new_key.at(batch_, 0, kv_head_), args_.k_norm, args_.head_size, args_.norm_epsilon);
    for (int column = lane_ * 4; column < D; column += 128) {
      uint2 key{}, value{};
      if (column < args_.head_size) {
        key = new_key4(args_, span_, batch_, kv_head_, 0, column, rms);
        value = new_value4(args_, batch_, kv_head_, 0, column);
        if (first_row_ == 0) {
          *reinterpret_cast<uint2*>(args_.key.at(batch_, kv_head_, span_.first) + column) = key;
          *reinterpret_cast<uint2*>(args_.value.at(batch_, kv_head_, span_.first) + column) = value;
        }
      }
      *reinterpret_cast<uint2*>(notes_.key + column) = key;
      *reinterpret_cast<uint2*>(notes_.value + column) = value;
    }
  }

  // The new token's key and value take the place of what the cache held there, and values beyond it become 0, whatever
  // lies there: 0 * NaN would be NaN.
  __device__ __forceinline__ void put_new_token() {
    const int place = span_.first - first_key_;
    if (place < 0 || place >= kShortWarpKeys) return;
#pragma unroll
    for (int u = 0; u < kShortSubtiles; ++u) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (key_of(u, i) != place) continue;
#pragma unroll
        for (int j = 0; j < D / 32; ++j)
          keys_[u][i][j] = reinterpret_cast<const uint4*>(notes_.key)[lane_ % 4 + 4 * j];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (value_of(u, i) < place) continue;
        const bool is_new = value_of(u, i) == place;
#pragma unroll
        for (int j = 0; j < D / 64; ++j)
          values_[u][i][j] = is_new ? reinterpret_cast<const uint4*>(notes_.value)[lane_ / 4 + 8 * j] : uint4{};
      }
    }
  }

  __device__ __forceinline__ void score() {
#pragma unroll
    for (int u = 0; u < kShortSubtiles; ++u) scores_[u][0][0] = scores_[u][0][1] = scores_[u][0][2] = scores_[u][0][3] = 0;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
      const uint4& q = query_[j];
#pragma unroll
      for (int u = 0; u < kShortSubtiles; ++u) {
        const uint4 &x = keys_[u][0][j], &y = keys_[u][1][j];
        const uint32_t low[4] = {x.x, y.x, x.y, y.y}, high[4] = {x.z, y.z, x.w, y.w};
        mma_m16n8k16<T>(scores_[u][0], low, q.x, q.y);
        mma_m16n8k16<T>(scores_[u][0], high, q.z, q.w);
      }
    }
  }

  __device__ __forceinline__ void add_values() {
#pragma unroll
    for (int u = 0; u < kShortSubtiles; ++u) {
      const float(&w)[4] = scores_[u][0];
      const uint32_t p0 = transpose8x8(pack2<T>(w[0], w[1])), p1 = transpose8x8(pack2<T>(w[2], w[3]));
#pragma unroll
      for (int j = 0; j < D / 64; ++j) {
        const auto word = [&](int i, int m) {
          const uint4& x = values_[u][i][j];
          return m == 0 ? x.x : m == 1 ? x.y : m == 2 ? x.z : x.w;
        };
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          // Two columns of neighbouring keys become two rows of V^T.
          const uint32_t a[4] = {__byte_perm(word(0, m), word(1, m), 0x5410),
                                 __byte_perm(word(0, m), word(1, m), 0x7632),
                                 __byte_perm(word(2, m), word(3, m), 0x5410),
                                 __byte_perm(word(2, m), word(3, m), 0x7632)};
          mma_m16n8k16<T>(tile_.o[4 * j + m][0], a, p0, p1);
        }
      }
    }
  }

  // The column of tile_.o[j][0][i] (i < 2) and, one further, of [i + 2].
  __device__ __forceinline__ int column_of(int j) const { return (lane_ / 4 + j / 4 * 8) * 8 + j % 4 * 2; }

  __device__ __forceinline__ void emit() {
    const float2 norms[2] = {tile_.norm(0, 0), tile_.norm(0, 1)};
    __syncthreads();  // nobody reads the notes any more
    Sums& sums = shared_.sums;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = tile_.local_row(0, i);
#pragma unroll
      for (int j = 0; j < kSteps; ++j)
        *reinterpret_cast<float2*>(&sums.values[warp_][row][column_of(j)]) =
            make_float2(tile_.o[j][0][i], tile_.o[j][0][i + 2]);
      if (lane_ < 4) sums.norms[warp_][row] = norms[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows_ * kQuads; i += 32 * kShortWarps) {
      const int row = i / kQuads, column = i % kQuads * 4;
      if (column >= args_.head_size) continue;
      float2 part_norms[kShortWarps];
      float4 parts[kShortWarps];
#pragma unroll
      for (int w = 0; w < kShortWarps; ++w) {
        part_norms[w] = sums.norms[w][row];
        parts[w] = *reinterpret_cast<const float4*>(&sums.values[w][row][column]);
      }
      JointSum joint;
      joint.add(part_norms, parts);
      const float factor = output_factor(joint.m, joint.l, sink_log2(args_, kv_head_, first_row_ + row));
      const float4 x = make_float4(joint.sum.x * factor, joint.sum.y * factor, joint.sum.z * factor,
                                   joint.sum.w * factor);
      *reinterpret_cast<uint2*>(args_.output.at(batch_, 0, query_head(row)) + column) = pack4<T>(x);
      if (joint.left && column == 0 && args_.out_of_range_rows != nullptr)
        atomicAdd(reinterpret_cast<unsigned long long*>(args_.out_of_range_rows), 1ull);
    }
  }

  using Tile = DecodeTile<T, T, D, 1, kShortSubtiles, false>;
  static constexpr int kSteps = Tile::kSteps;

  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;
  const int first_key_ = warp_ * kShortWarpKeys;
  const AttentionArgs<T>& args_;
  Shared& shared_;
  Notes& notes_;
  int batch_, kv_head_, first_row_, rows_;
  CacheSpan span_;
  Tile tile_;
  typename Tile::Scores scores_;
  uint4 query_[D / 32];
  uint4 keys_[kShortSubtiles][2][D / 32];
  uint4 values_[kShortSubtiles][4][D / 64];
};

template <typename T, int D>
__global__ void __launch_bounds__(32 * kShortWarps, D == 64 ? 4 : 2)
    short_decode_kernel(const __grid_constant__ AttentionArgs<T> args, int kv_heads, int row_tiles) {
  using Decode = ShortDecode<T, D>;
  __shared__ __align__(16) unsigned char shared[sizeof(typename Decode::Shared)];
  Decode(args, shared).run(kv_heads, row_tiles);
}

}  // namespace fdpp
