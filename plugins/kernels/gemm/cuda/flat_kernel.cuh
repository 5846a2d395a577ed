// The flat GEMM: few rows of A (tokens) on tensor cores with the operands swapped, so that rows of B fill the 16-wide side
// of m16n8k16 and tokens the 8-wide one: M is padded to 8 only.
//
// The grid is as many blocks as run at once. Clusters of blocks share tiles of B's rows evenly, and within a cluster the
// blocks share its tiles' slices of K evenly: a tile that two blocks meet in is summed up by the one that has its
// beginning, out of the others' shared memory. So no multiprocessor waits for another, whatever N and K are.
//
// Slices of weights and tokens pass through a ring of stages that is filled ahead across the borders of tiles
// (flat_fill.cuh). Eight warps multiply, in two groups that take the stages in turns, each group all rows of its stage, so that a stage's
// latency counts half.
#pragma once

#include <algorithm>

#include "kernels/gemm/cuda/flat_fill.cuh"

namespace fdpp {

constexpr int kFlatBarrier = 1;  // of the warps that multiply

template <int kWords>
__device__ __forceinline__ void load_words(const void* from, uint32_t (&words)[kWords]) {
  if constexpr (kWords == 4) {
    const uint4 v = *static_cast<const uint4*>(from);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else if constexpr (kWords == 2) {
    const uint2 v = *static_cast<const uint2*>(from);
    words[0] = v.x, words[1] = v.y;
  } else {
    words[0] = *static_cast<const uint32_t*>(from);
  }
}

// kPlain: int4 without zero points, in blocks of 32 or more; all other formats. kWgmma: each group is a warpgroup that
// multiplies 64 rows out of shared memory (sm_90a, 16-bit weights).
template <typename T, WeightFormat kFormat, int kTokenTiles, int kRows, FlatFill kFill, bool kPlain, bool kWgmma>
__global__ void __launch_bounds__(kFlatThreads + kFlatFillers<kFill>, 2)
    flat_kernel(const FlatArgs<T> args,
                const __grid_constant__ std::conditional_t<kFill == FlatFill::tensor, FlatMaps, NoFlatMaps> maps) {
  using W = Weights<T, kFormat>;
  using Shape = FlatShape<W, kTokenTiles, kRows, kFill, kWgmma>;
  static_assert(!kWgmma || (kFill == FlatFill::tensor && W::kBits == 16 && kRows == 64),
                "a warpgroup multiplies 64 rows");
  static_assert(kFill != FlatFill::tensor || kPlain, "zero points come by threads");
  constexpr int kTokens = Shape::kTokens, kRowTiles = Shape::kRowTiles;
  const Shape shape(args.block_log);
  extern __shared__ __align__(1024) char shared[];
  const int stages = args.stages, stage_bytes = shape.stage_bytes();
  float* const sums = reinterpret_cast<float*>(shared + stages * stage_bytes);
  float* const carry = sums + Shape::kSumsBuffers * Shape::kSumsFloats;
  Barrier* const full = reinterpret_cast<Barrier*>(carry + (args.cluster > 1 ? Shape::kSumsFloats : 0));
  Barrier* const empty = full + stages;

  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const FlatWork work(args);
  const int begin = work.begin, end = work.end;
  const int outputs = args.gated ? kRows / 2 : kRows, outputs_log = Shape::kRowsLog - (args.gated ? 1 : 0);

  if constexpr (kFill == FlatFill::tensor)
    if (tid == kFlatThreads) prefetch_maps(maps, args.blocks > 0);
  if (tid < stages) {
    constexpr int kFillers = kFlatFillers<kFill>;
    const int arrivals = kFill == FlatFill::tensor                            ? 1
                         : stores_some<W, Shape, kFill, kPlain>(args, shape) ? 2 * kFillers
                                                                             : kFillers;
    full[tid].init(arrivals);
    empty[tid].init(kFlatWarps / kFlatGroups * (kFill == FlatFill::stores ? 32 : 1));
    publish_barriers();
  }
  __syncthreads();
  const bool carries = begin < end && begin % args.slices != 0;  // ends a tile that another block began

  if (warp >= kFlatWarps) {  // ---- copies
    if constexpr (kFill == FlatFill::tensor) {
      if (lane == 0) fill_by_tensor(args, maps, shape, work, shared, full, empty);
      __syncwarp();
    } else {
      lower_registers<56>();
      fill_by_threads<W, Shape, kFill, kPlain>(args, shape, work, shared, full, empty);
    }
    if (tid == kFlatThreads) prefetch(args.next);
    if (args.cluster > 1) {
      cluster_arrive_relaxed();
      cluster_wait();
      cluster_arrive_relaxed();
      cluster_wait();
    }
    return;
  }

  // ---- products
  if constexpr (kFill != FlatFill::tensor) raise_registers<88>();
  wait_for_predecessor();
  const int rank = work.rank, part = warp / Shape::kWarpsHigh;
  const int group = part / Shape::kWarpsWide, wide = part % Shape::kWarpsWide;
  const int warp_row = warp % Shape::kWarpsHigh * 16 * kRowTiles, g = lane / 4, t = lane % 4;
  float acc[kRowTiles][kTokenTiles][4] = {};
  // The lane's part of a stage: where its bytes of a warp's first unit lie.
  const int weight_row = warp_row + Shape::weight_row(g);
  const int lane_vector = wide * Shape::kUnits * Shape::kUnitVectors + t * W::kWords / 4;
  const int lane_weights = Shape::weight_place(weight_row, lane_vector) + t * W::kWords % 4 * 4;
  const int lane_tokens = shape.tokens_at() + Shape::token_place(Shape::token_row(g), wide * Shape::kUnits * 4 + t);
  const int lane_scales = shape.scales_at() + weight_row * shape.scale_row_bytes();
  const int lane_zeros = shape.zeros_at() + weight_row * shape.zero_row_bytes();
  const auto multiply_panels = [&](int stage) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (kWgmma) {
      const char* const weights = shared + stage * stage_bytes;
      const char* const tokens = weights + shape.tokens_at();
      wgmma_fence();
#pragma unroll
      for (int panel = 0; panel < Shape::kWeightPanels; ++panel) {
        const uint64_t w = row_operand(weights + panel * kRows * kPanelRowBytes);
        const uint64_t x = row_operand(tokens + panel * kTokens * kPanelRowBytes);
#pragma unroll
        for (int step = 0; step < kPanelColumns / 16; ++step)
          wgmma_rows<T, kTokenTiles>(acc[0], w + step * kRowOperandStep, x + step * kRowOperandStep, 1);
      }
      wgmma_commit();
      wgmma_wait<0>(acc[0]);
    }
#endif
  };
  const auto multiply = [&](int stage, int slice) {
    const char* const weights = shared + stage * stage_bytes;
    // The copy engine brings scales from a multiple of eight on.
    const int slice_scales = lane_scales + (Shape::kPanels ? (slice * shape.scales_in_row() & 7) * 2 : 0);
    constexpr int kBatch = Shape::kUnits < 4 ? Shape::kUnits : 4;  // of units, with their scales
#pragma unroll 1
    for (int first_unit = 0; first_unit < Shape::kUnits; first_unit += kBatch) {
      uint32_t scales[2 * kRowTiles][2];  // of each row four, or fewer repeated
      if constexpr (W::kBlocks && kPlain) {
        const int at = slice_scales + ((wide * Shape::kUnits + first_unit) >> (args.block_log - 5)) * 2;
        const auto for_each_row = [&](auto&& load) {
#pragma unroll
          for (int r = 0; r < 2 * kRowTiles; ++r) load(weights + at + 8 * r * shape.scale_row_bytes(), scales[r]);
        };
        if (args.block_log == 5) {
          for_each_row([](const char* from, uint32_t (&four)[2]) { load_words(from, four); });
        } else if (args.block_log == 6) {
          for_each_row([](const char* from, uint32_t (&four)[2]) {
            const uint32_t two = *reinterpret_cast<const uint32_t*>(from);
            four[0] = __byte_perm(two, 0, 0x1010), four[1] = __byte_perm(two, 0, 0x3232);
          });
        } else {
          for_each_row([](const char* from, uint32_t (&four)[2]) {
            four[0] = four[1] = *reinterpret_cast<const unsigned short*>(from) * 0x00010001u;
          });
        }
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int unit = wide * Shape::kUnits + first_unit + u;
        uint32_t x[kTokenTiles][4];
        const char* const unit_tokens = weights + Shape::unit_place(kTokens, lane_tokens, (first_unit + u) * 64);
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) load_words(unit_tokens + 8 * i * Shape::kTokenStride, x[i]);
        uint32_t a[kRowTiles][2][4];
        const int unit_bytes = (first_unit + u) * W::kUnitBytes;
        const char* const unit_weights = weights + Shape::unit_place(kRows, lane_weights, unit_bytes);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          uint32_t words[2][W::kWords];
#pragma unroll
          for (int h = 0; h < 2; ++h) load_words(unit_weights + (16 * r + 8 * h) * Shape::kWeightStride, words[h]);
#pragma unroll
          for (int q = 0; q < 2; ++q)
#pragma unroll
            for (int h = 0; h < 2; ++h) W::fragment(words[h], q, a[r][q][h], a[r][q][2 + h]);
        }
        if constexpr (!W::kBlocks) {
#pragma unroll
          for (int q = 0; q < 2; ++q)
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
              for (int i = 0; i < kTokenTiles; ++i)
                mma_into<T>(acc[r][i], a[r][q], x[i][2 * q], x[i][2 * q + 1], acc[r][i]);
        } else {
          // A block's own sums, scaled as they are added. Those of the offsets are the same for all rows.
          const uint32_t offsets[4] = {W::kFirstOffset, W::kFirstOffset, W::kSecondOffset, W::kSecondOffset};
          const uint32_t ones[4] = {W::kOnes, W::kOnes, W::kOnes, W::kOnes};
          const auto add_block = [&](const uint32_t (&x)[kTokenTiles][4], int block) {
            float base[kTokenTiles][4] = {}, plain_sum[kTokenTiles][4] = {};
#pragma unroll
            for (int q = 0; q < 2; ++q)
#pragma unroll
              for (int i = 0; i < kTokenTiles; ++i) {
                mma_into<T>(base[i], offsets, x[i][2 * q], x[i][2 * q + 1], base[i]);
                if constexpr (!kPlain) mma_into<T>(plain_sum[i], ones, x[i][2 * q], x[i][2 * q + 1], plain_sum[i]);
              }
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) {
              float scale[2], zero[2];
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                if constexpr (kPlain) {
                  const float2 pair = unpack2<T>(scales[2 * r + h][u / 2]);
                  scale[h] = u % 2 == 0 ? pair.x : pair.y;
                } else {
                  const char* const own = weights + lane_scales + (16 * r + 8 * h) * shape.scale_row_bytes();
                  scale[h] = to_float(reinterpret_cast<const T*>(own)[block]);
                  const char* const zeros = weights + lane_zeros + (16 * r + 8 * h) * shape.zero_row_bytes();
                  zero[h] = args.zero_points == nullptr
                                ? 0.0f
                                : static_cast<float>(8 - (zeros[block / 2] >> block % 2 * 4 & 15));
                }
              }
#pragma unroll
              for (int i = 0; i < kTokenTiles; ++i) {
                float sum[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                  sum[e] = base[i][e];
                  if constexpr (!kPlain) sum[e] = fmaf(zero[e / 2], plain_sum[i][e], sum[e]);
                }
                mma_into<T>(sum, a[r][0], x[i][0], x[i][1], sum);
                mma_into<T>(sum, a[r][1], x[i][2], x[i][3], sum);
#pragma unroll
                for (int e = 0; e < 4; ++e) acc[r][i][e] = fmaf(scale[e / 2], sum[e], acc[r][i][e]);
              }
            }
          };
          if (kPlain || args.block_log > 4) {
            add_block(x, kPlain ? 0 : unit >> (args.block_log - 5));
          } else {  // two blocks of 16: each takes the tokens of its own half alone
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {
              uint32_t own[kTokenTiles][4];
#pragma unroll
              for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e) own[i][e] = t / 2 == half ? x[i][e] : 0;
              add_block(own, 2 * unit + half);
            }
          }
        }
      }
    }
  };

  // Bits that depend on all that the products have read.
  const auto bits_of_products = [&] {
    uint32_t bits = 0;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) bits ^= __float_as_uint(acc[r][i][0]);
    return bits;
  };

  // ---- the end of a tile
  const auto sync = [] { sync_threads(kFlatBarrier, kFlatThreads); };
  const auto put = [&](float* to, bool add) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = 8 * i + Shape::token_row(2 * t + e % 2), row = weight_row + 16 * r + e / 2 * 8;
          float* const sum = to + token * Shape::kSumsStride + row;
          *sum = add ? *sum + acc[r][i][e] : acc[r][i][e];
          acc[r][i][e] = 0;
        }
  };
  // As many parts at a time as there are buffers, on top of those before.
  const auto gather = [&] {
    constexpr int kBuffers = Shape::kSumsBuffers;
    sync();  // nobody reads what the last tile left there
#pragma unroll 1
    for (int round = 0; round < Shape::kParts / kBuffers; ++round) {
      if (part / kBuffers == round) put(sums + part % kBuffers * Shape::kSumsFloats, round > 0);
      sync();
    }
  };
  const auto sum_here = [&](int i) {
    float sum = sums[i];
#pragma unroll
    for (int other = 1; other < Shape::kSumsBuffers; ++other) sum += sums[other * Shape::kSumsFloats + i];
    return sum;
  };
  // `sharers`: blocks of the cluster, from the next rank on, that have the rest of the tile.
  const auto store_tile = [&](const FlatPlace& at, int sharers) {
    const int64_t first_output = static_cast<int64_t>(at.row_tile) * outputs;
    const int64_t first_token = static_cast<int64_t>(at.token_block) * kTokens;
    const int tokens = static_cast<int>(min(args.m - first_token, int64_t{kTokens}));
    const auto sum_at = [&](int i) {
      float sum = sum_here(i);
      for (int s = 1; s <= sharers; ++s) sum += load_remote(remote_address(carry + i, rank + s));
      return sum;
    };
#pragma unroll 1
    for (int i = tid; i < tokens * outputs; i += kFlatThreads) {
      const int token = i >> outputs_log, output = i & (outputs - 1);
      if (first_output + output >= args.n) continue;
      const int at = token * Shape::kSumsStride + output;
      if (args.gated)
        args.out.store_gated(first_token + token, first_output + output, sum_at(at), sum_at(at + kRows / 2));
      else
        args.out.store(first_token + token, first_output + output, sum_at(at));
    }
  };

  // Once all have shown what they carry. Who carries nothing arrives no sooner than it waits: compute-sanitizer's memcheck
  // never comes to an end where warps in between wait for copies.
  bool waited = false;
  const auto wait_for_carries = [&] {
    if (!carries) cluster_arrive_relaxed();
    cluster_wait();
    waited = true;
  };
  bool carrying = carries;
  FlatPlace at = work.start;
  // A stage is always the same group's: so a single one leaves the other group idle.
  const int groups = stages > 1 ? kFlatGroups : 1;
  int stage = 0, turn = 0;
  uint32_t phase = 0;
  for (int i = begin; i < end; ++i, at.advance(args)) {
    if (turn == group) {
      full[stage].wait(phase);
      if constexpr (kWgmma)
        multiply_panels(stage);
      else
        multiply(stage, at.slice);
      __syncwarp();
      // Where copies are ordinary stores every lane says that it has left: racecheck follows nothing else.
      if (lane == 0 || kFill == FlatFill::stores) empty[stage].arrive_after(bits_of_products());
    }
    if (++turn == groups) turn = 0;
    if (++stage == stages) stage = 0, phase ^= 1;

    const bool tile_ends = at.slice + 1 == args.slices;
    if (!tile_ends && i + 1 < end) continue;
    gather();
    if (carrying) {
      for (int sum = tid; sum < Shape::kSumsFloats; sum += kFlatThreads) carry[sum] = sum_here(sum);
      cluster_arrive();
      carrying = false;
      continue;
    }
    int sharers = 0;
    if (!tile_ends) {
      const int tile_end = i - at.slice + args.slices;
      for (int r = rank + 1; r < args.cluster && work.begin_of(r) < tile_end; ++r) ++sharers;
      wait_for_carries();
    }
    store_tile(at, sharers);
  }
  if (args.cluster > 1) {
    if (!waited) wait_for_carries();
    cluster_arrive_relaxed();  // a block's sums stay while another reads them
    cluster_wait();
  }
}

}  // namespace fdpp
