// The attention of one warpgroup on sm_90a: 64 query rows of one head against tiles of keys and values that the copy
// engine brings, with asynchronous products. Scores, weights and sums stay in registers, the query in shared memory.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/row_softmax.cuh"
#include "kernels/common/pipeline.cuh"
#include "kernels/common/wgmma.cuh"

namespace fdpp {

inline constexpr int kGroupThreads = 128;
inline constexpr int kGroupWarps = 4;
inline constexpr int kGroupRows = 64;
inline constexpr int kFragmentRows = 16;  // of a warp
inline constexpr int kTileKeys = 128;

// Sizes of one kernel instance. Capped: scores have a softcap.
template <typename Element, int HeadSize, bool Capped>
struct HopperShape {
  using T = Element;
  static constexpr int D = HeadSize;
  static constexpr bool kCapped = Capped;
  static constexpr int kPanels = D / kPanelColumns;
  // Warpgroups that compute. A third one fits where the sums are narrow and nothing else wants registers.
  static constexpr int kGroups = D == 64 && !kCapped ? 3 : 2;
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kThreads = kGroupThreads * (1 + kGroups);
  static constexpr int kStages = 2;
  // Of a thread that only starts copies, and of one that computes; together no more than the launch grants.
  static constexpr int kCopyRegisters = kGroups == 2 ? 40 : 32;
  static constexpr int kComputeRegisters = kGroups == 2 ? 232 : 160;

  using QueryTile = T[kPanels][kGroupRows][kPanelColumns];
  using KeyTile = T[kPanels][kTileKeys][kPanelColumns];
  using OutputTile = T[kPanels][kFragmentRows][kPanelColumns];
};

// Tiles swizzled as wgmma.cuh says, and their barriers.
template <typename S>
struct HopperShared {
  alignas(1024) typename S::QueryTile query[S::kGroups];
  alignas(1024) typename S::OutputTile output[S::kGroups][kGroupWarps];
  alignas(1024) typename S::KeyTile key[S::kStages];
  alignas(1024) typename S::KeyTile value[S::kStages];
  Barrier query_full[S::kGroups], query_empty[S::kGroups];
  Barrier key_full[S::kStages], key_empty[S::kStages];
  Barrier value_full[S::kStages], value_empty[S::kStages];
};

// A place in a ring of stages, and the parity of the phase in which it is filled.
template <int Stages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Where the element of an operand's row `row` and column `column` lies, given panels of `rows` rows.
__device__ __forceinline__ int panel_offset(int rows, int row, int column) {
  const int chunk = column % kPanelColumns / 8 ^ row % 8;
  return (column / kPanelColumns * rows + row) * kPanelColumns + chunk * 8 + column % 8;
}

template <typename S>
class GroupAttention {
 public:
  using T = typename S::T;
  static constexpr int D = S::D;

  float phi;
  RowReference reference[2];  // of rows lane / 4 and lane / 4 + 8 of the warp's 16
  float l[2];                 // sums of weights: after finish() of whole rows, before this lane's part
  float o[D / 8][4];          // sums of weighted values

  // `position`: the place of the warp's first row in the cache.
  __device__ __forceinline__ void start(const SoftmaxSettings& settings, int head, int position, int window) {
    const int first = position + threadIdx.x % 32 / 4 - threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      reference[i] = {};
      l[i] = 0;
      key_end_[i] = first + 8 * i + 1;
      key_begin_[i] = window > 0 ? first + 8 * i + 1 - window : INT32_MIN / 2;
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    phi = phi_log2(settings, head);
  }

  // Starts scores = query · keysᵀ.
  __device__ __forceinline__ void start_scores(const typename S::QueryTile& query, const typename S::KeyTile& keys) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const uint64_t step = k % 4 * kRowOperandStep;
      wgmma_rows<T>(s_, row_operand(query[k / 4]) + step, row_operand(keys[k / 4]) + step, k > 0);
    }
    wgmma_commit();
  }
  template <int Pending>
  __device__ __forceinline__ void wait_for_scores() {
    wgmma_wait<Pending>(s_);
  }

  // Starts sums += weights · values.
  __device__ __forceinline__ void start_values(const typename S::KeyTile& values) {
    const uint64_t operand = column_operand(values[0], sizeof(values[0]));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) wgmma_columns<T>(o, weights_[k], operand + k * kColumnOperandStep);
    wgmma_commit();
  }
  __device__ __forceinline__ void wait_for_values() { wgmma_wait<0>(o); }

  // Scores of keys first_key .. first_key + kTileKeys - 1 become weights 2^(score - reference), in float32 still.
  // kEdge: some rows see some of these keys alone.
  template <bool kEdge>
  __device__ __forceinline__ void weigh(int first_key, const SoftmaxSettings& settings) {
    if constexpr (S::kCapped) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s_[n][i] = 1 - __fdividef(2, 1 + exp2_approx(s_[n][i] * settings.cap_factor));
      }
    }
    if constexpr (kEdge) {
      const int end[2] = {key_end_[0] - first_key, key_end_[1] - first_key};
      const int begin[2] = {key_begin_[0] - first_key, key_begin_[1] - first_key};
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = n * 8 + i % 2;
          if (column < begin[i / 2] || column >= end[i / 2]) s_[n][i] = -INFINITY;
        }
      }
    }
    float subtrahend[2];
    bool moves[2];
    float top[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float even = s_[0][2 * i], odd = s_[0][2 * i + 1];
#pragma unroll
      for (int n = 1; n < kTileKeys / 8; ++n) {
        even = fmaxf(even, s_[n][2 * i]);
        odd = fmaxf(odd, s_[n][2 * i + 1]);
      }
      top[i] = fmaxf(even, odd);
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2)) * settings.to_log2;
      moves[i] = reference[i].is_exceeded(top[i]);
    }
    rescales_ = __any_sync(~0u, moves[0] || moves[1]);
    if (rescales_) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        factor_[i] = moves[i] ? reference[i].move(top[i], phi, settings) : 1;
        l[i] *= factor_[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      subtrahend[i] = reference[i].subtrahend();
      float even = 0, odd = 0;
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
        s_[n][2 * i] = exp2_approx(fmaf(s_[n][2 * i], settings.to_log2, -subtrahend[i]));
        s_[n][2 * i + 1] = exp2_approx(fmaf(s_[n][2 * i + 1], settings.to_log2, -subtrahend[i]));
        even += s_[n][2 * i];
        odd += s_[n][2 * i + 1];
      }
      l[i] += even + odd;
    }
  }

  // What the last weigh() makes of the sums; none may be under way.
  __device__ __forceinline__ void rescale() {
    if (!rescales_) return;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] *= factor_[i / 2];
    }
  }

  // The weights become the operand of start_values(); products that read the previous ones must be done.
  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      const float(&left)[4] = s_[2 * k];
      const float(&right)[4] = s_[2 * k + 1];
      weights_[k][0] = pack2<T>(left[0], left[1]);
      weights_[k][1] = pack2<T>(left[2], left[3]);
      weights_[k][2] = pack2<T>(right[0], right[1]);
      weights_[k][3] = pack2<T>(right[2], right[3]);
    }
  }

  // The sums of weights become those of whole rows, in every lane that holds a part of the row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i) l[i] = quad_sum(l[i]);
  }

 private:
  float s_[kTileKeys / 8][4];
  uint32_t weights_[kTileKeys / 16][4];
  float factor_[2];
  int key_begin_[2], key_end_[2];  // of what the lane's rows see, less the lane's first column
  bool rescales_;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace fdpp
