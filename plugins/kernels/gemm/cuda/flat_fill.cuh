// How the flat GEMM's ring of stages is filled. Nobody writes weights; A, the residual and what lies at Y may still be in
// use by an earlier launch: so the first round of tokens comes after that of the weights, and after the wait.
#pragma once

#include "kernels/gemm/cuda/flat_shape.cuh"
#include "kernels/gemm/cuda/stream.cuh"

namespace fdpp {

// Calls fill_weights(place, stage) and fill_tokens(place, stage) for every slice of the block as stages become free.
template <typename T, typename Weights, typename Tokens>
__device__ __forceinline__ void fill_ring(const FlatArgs<T>& args, const FlatWork& work, Barrier* empty,
                                          const Weights& fill_weights, const Tokens& fill_tokens) {
  const int stages = args.stages;
  FlatPlace weights_at = work.start, tokens_at = work.start;
  int stage = 0, token_stage = 0, token_i = work.begin;
  uint32_t phase = 1;
#pragma unroll 1
  for (int i = work.begin; i < work.end; ++i, weights_at.advance(args)) {
    if (i - work.begin >= stages) empty[stage].wait(phase);
    fill_weights(weights_at, stage);
    if (++stage == stages) stage = 0, phase ^= 1;
    if (i - work.begin < stages - 1 && i + 1 < work.end) continue;
    if (token_i == work.begin) {
      release_successor();
      wait_for_predecessor();
    }
#pragma unroll 1
    for (; token_i <= i; ++token_i, tokens_at.advance(args)) {
      fill_tokens(tokens_at, token_stage);
      if (++token_stage == stages) token_stage = 0;
    }
  }
}

__device__ __forceinline__ void prefetch_maps(const FlatMaps& maps, bool scales) {
#if __CUDA_ARCH__ >= 900
  prefetch_map(&maps.weights);
  prefetch_map(&maps.tokens);
  if (scales) prefetch_map(&maps.scales);
#endif
}

// One thread, by the copy engine.
template <typename Shape, typename T>
__device__ __forceinline__ void fill_by_tensor(const FlatArgs<T>& args, const FlatMaps& maps, const Shape& shape,
                                               const FlatWork& work, char* shared, Barrier* full, Barrier* empty) {
#if __CUDA_ARCH__ >= 900
  constexpr int kRows = Shape::kRows;
  const int stage_bytes = shape.stage_bytes(), outputs = args.gated ? kRows / 2 : kRows;
  const int scale_bytes = args.blocks > 0 ? kRows * shape.scale_row_bytes() : 0;
  const uint32_t bytes = Shape::kStageBytes + Shape::kTokens * Shape::kTokenBytes + scale_bytes;
  const uint64_t policy = evict_first_policy();
  const auto fill_weights = [&](const FlatPlace& at, int stage) {
    char* const to = shared + stage * stage_bytes;
    full[stage].arrive_expecting(bytes);
    const int row = at.row_tile * outputs;
    copy_groups(to, &maps.weights, row, at.slice * Shape::kWeightPanels, &full[stage], policy);
    if (scale_bytes > 0)
      copy_box(to + shape.scales_at(), &maps.scales, at.slice * shape.scales_in_row() & ~7, row, 0, &full[stage], policy);
  };
  const auto fill_tokens = [&](const FlatPlace& at, int stage) {
    copy_box(shared + stage * stage_bytes + shape.tokens_at(), &maps.tokens, 0, at.token_block * Shape::kTokens,
             at.slice * Shape::kTokenPanels, &full[stage]);
  };
  fill_ring(args, work, empty, fill_weights, fill_tokens);
#endif
}

// Zero points that a copy brings at once.
template <typename Shape, typename T>
__device__ __forceinline__ int zeros_at_once(const FlatArgs<T>& args, const Shape& shape) {
  return shape.scales_in_row() >= 8 && args.blocks % 8 == 0 ? 4 : 1;
}
// Whether some copies of fill_by_threads() pass through registers, which are there when the thread arrives.
template <typename W, typename Shape, FlatFill kFill, bool kPlain, typename T>
__device__ __forceinline__ bool stores_some(const FlatArgs<T>& args, const Shape& shape) {
  if (kFill == FlatFill::stores) return true;
  return W::kBlocks && (args.blocks % 2 != 0 ||
                        (!kPlain && args.zero_points != nullptr && zeros_at_once(args, shape) == 1));
}

// Four warps, by copies of each thread.
template <typename W, typename Shape, FlatFill kFill, bool kPlain, typename T>
__device__ __forceinline__ void fill_by_threads(const FlatArgs<T>& args, const Shape& shape, const FlatWork& work,
                                                char* shared, Barrier* full, Barrier* empty) {
  constexpr bool kAligned = kFill == FlatFill::copies;
  constexpr int kRows = Shape::kRows, kTokens = Shape::kTokens, kFillers = kFlatFillers<kFill>;
  const int filler = threadIdx.x - kFlatThreads, stage_bytes = shape.stage_bytes();
  const int outputs = args.gated ? kRows / 2 : kRows;
  constexpr int kVectors = Shape::kRowBytes / 16, kRowsAtOnce = kFillers / kVectors;
  constexpr int kPasses = kRows / kRowsAtOnce;
  const int fill_row = filler / kVectors, fill_vector = filler % kVectors;
  // Whether a vector's place in its row changes from pass to pass.
  constexpr bool kPlaceMoves = kRowsAtOnce % (128 / W::kUnitBytes) != 0;
  constexpr int kPassStride = kRowsAtOnce * Shape::kRowBytes;
  // What stays while the row tile does: where the thread's vectors, scales and zero points of its first row lie.
  int row_tile = -1, rows_left = 0;
  const unsigned char* first_vector = nullptr;
  int64_t first_row = 0;
  const int64_t pass_bytes = kRowsAtOnce * args.row_bytes;
  // With gates, a tile's upper half of rows lies further on than its place in the tile says.
  const int64_t partner_rows = args.gated ? args.n - kRows / 2 : 0;
  const int64_t partner_bytes = partner_rows * args.row_bytes;
  const auto row_is_there = [&](int row) { return (args.gated ? row % (kRows / 2) : row) < rows_left; };
  const auto row_of = [&](int row) { return first_row + row + (row >= kRows / 2 ? partner_rows : 0); };
  const bool stored = stores_some<W, Shape, kFill, kPlain>(args, shape);
  const auto fill_weights = [&](const FlatPlace& at, int stage) {
    char* const to = shared + stage * stage_bytes;
    if (at.row_tile != row_tile) {
      row_tile = at.row_tile;
      first_row = static_cast<int64_t>(row_tile) * outputs;
      rows_left = static_cast<int>(min(args.n - first_row, static_cast<int64_t>(outputs)));
      first_vector = args.b + (first_row + fill_row) * args.row_bytes + fill_vector * 16;
    }
    const int64_t byte = static_cast<int64_t>(at.slice) * Shape::kRowBytes;
    const unsigned char* const from = first_vector + byte;
    const auto place = [&](int pass) {
      return kPlaceMoves ? to + Shape::weight_place(fill_row + pass * kRowsAtOnce, fill_vector)
                         : to + Shape::weight_place(fill_row, fill_vector) + pass * kPassStride;
    };
    const auto pass_offset = [&](int pass) { return pass * pass_bytes + (pass >= kPasses / 2 ? partner_bytes : 0); };
    // Without an L2 policy: ptxas 13.0 encodes cp.async with one and a size that may be 0 as an illegal instruction here.
    if (kAligned && rows_left == outputs && byte + Shape::kRowBytes <= args.row_bytes) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) cp_async_16(place(pass), from + pass_offset(pass));
    } else {
      const int64_t left = args.row_bytes - byte - fill_vector * 16;
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass) {
        const bool there = left > 0 && row_is_there(fill_row + pass * kRowsAtOnce);
        const unsigned char* const vector = there ? from + pass_offset(pass) : args.b;
        if constexpr (kAligned) {
          cp_async_16(place(pass), vector, there);
        } else {
          for (int i = 0; i < 16; ++i) place(pass)[i] = there && i < left ? static_cast<char>(vector[i]) : 0;
        }
      }
    }
    if constexpr (W::kBlocks) {
      // A slice has 2^in_row_log scales of a row, at least two.
      const int in_row_log = Shape::kSliceLog - args.block_log, first = at.slice << in_row_log;
      unsigned short* const scales = reinterpret_cast<unsigned short*>(to + shape.scales_at());
      const auto* const source = reinterpret_cast<const unsigned short*>(args.scales);
      const auto for_each = [&](int log, auto&& copy) {  // of pieces of 2^log scales: copy(to, from, whether it is there)
        const int in_row = (filler << log) & ((1 << in_row_log) - 1), rows_at_once = kFillers >> (in_row_log - log);
        const bool inside = first + in_row < args.blocks;
#pragma unroll 2
        for (int row = filler >> (in_row_log - log); row < kRows; row += rows_at_once) {
          const bool there = inside && row_is_there(row);
          copy(scales + (row << in_row_log) + in_row, source + (there ? row_of(row) * args.blocks + first + in_row : 0),
               there);
        }
      };
      if (kAligned && in_row_log >= 3 && args.blocks % 8 == 0)
        for_each(3, [](void* dst, const void* src, bool there) { cp_async_16(dst, src, there); });
      else if (kAligned && args.blocks % 2 == 0)
        for_each(1, [](void* dst, const void* src, bool there) { cp_async_4(dst, src, there); });
      else
        for_each(0, [](unsigned short* dst, const unsigned short* src, bool there) { *dst = there ? *src : 0; });
      if (!kPlain && args.zero_points != nullptr) {
        const int in_row = 1 << (in_row_log - 1), stride = (args.blocks + 1) / 2;
        const int size = kAligned ? zeros_at_once(args, shape) : 1;
        for (int i = filler; i < kRows * in_row / size; i += kFillers) {
          const int row = i * size >> (in_row_log - 1), byte = i * size & (in_row - 1), from_byte = first / 2 + byte;
          const bool there = from_byte < stride && row_is_there(row);
          const unsigned char* const from = args.zero_points + (there ? row_of(row) * stride + from_byte : 0);
          char* const dst = to + shape.zeros_at() + row * shape.zero_row_bytes() + byte;
          if (size == 4)
            cp_async_4(dst, from, there);
          else
            *dst = there ? static_cast<char>(*from) : 0;
        }
      }
    }
  };
  constexpr int kTokenVectors = Shape::kTokenBytes / 16;
  constexpr int kTokensAtOnce = kFillers / kTokenVectors > 0 ? kFillers / kTokenVectors : 1;
  constexpr int kVectorPasses = kTokenVectors > kFillers ? kTokenVectors / kFillers : 1;
  const int fill_token = kVectorPasses > 1 ? 0 : filler / kTokenVectors;
  const auto fill_tokens = [&](const FlatPlace& at, int stage) {
    char* const to = shared + stage * stage_bytes + shape.tokens_at();
    const int64_t first = static_cast<int64_t>(at.token_block) * kTokens;
    const int count = static_cast<int>(min(args.m - first, int64_t{kTokens}));
#pragma unroll
    for (int vector_pass = 0; vector_pass < kVectorPasses; ++vector_pass) {
      const int v = filler % kTokenVectors + vector_pass * kFillers;
      const int element = at.slice * Shape::kSlice + v * 8;
      const bool inside = element < args.k;
      const T* const from = args.a + (first + fill_token) * args.a_row_stride + (inside ? element : 0);
#pragma unroll
      for (int pass = 0; pass * kTokensAtOnce < kTokens; ++pass) {
        const int token = fill_token + pass * kTokensAtOnce;
        if (token >= count) break;
        const T* const vector = from + static_cast<int64_t>(pass) * kTokensAtOnce * args.a_row_stride;
        if constexpr (kAligned) {
          cp_async_16(to + Shape::token_place(token, v), vector, inside);
        } else {
          T* const t = reinterpret_cast<T*>(to + Shape::token_place(token, v));
          for (int e = 0; e < 8; ++e) t[e] = element + e < args.k ? vector[e] : from_float<T>(0.0f);
        }
      }
    }
    full[stage].arrive_after_copies();
    if (stored) full[stage].arrive();
  };
  fill_ring(args, work, empty, fill_weights, fill_tokens);
}

}  // namespace fdpp
