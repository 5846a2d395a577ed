// The flat GEMM: few rows of A (tokens) on tensor cores with the operands swapped, so that rows of B fill the 16-wide side
// of m16n8k16 and tokens the 8-wide one: M is padded to 8 only.
//
// The grid is as many blocks as run at once. Clusters of blocks share tiles of B's rows evenly, and within a cluster the
// blocks share its tiles' slices of K evenly: a tile that two blocks meet in is summed up by the one that has its
// beginning, out of the others' shared memory. So no multiprocessor waits for another, whatever N and K are.
//
// Slices of weights and tokens pass through a ring of stages: four warps fill it, ahead across the borders of tiles;
// eight multiply, in two groups that take the stages in turns, each group all rows of its stage, so that a stage's
// latency counts half.
#pragma once

#include <algorithm>

#include "kernels/common/pipeline.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/weights.cuh"

namespace fdpp {

constexpr int kFlatWarps = 8;  // that multiply
constexpr int kFlatThreads = 32 * kFlatWarps;
constexpr int kFlatFillers = 128;  // threads that copy
constexpr int kFlatGroups = 2;
constexpr int kFlatStageBytes = 16384;  // of weights in a stage
constexpr int kFlatMaxStages = 16;
constexpr int kFlatBarrier = 1;  // of those that multiply

template <typename T>
struct FlatArgs {
  const T* a;
  const unsigned char* b;
  const T* scales;                   // of blocks of K, or null
  const unsigned char* zero_points;  // or null
  Epilogue<T> out;
  int64_t m, n;
  int k;
  int64_t row_bytes;  // of B
  int blocks;         // of a row of B, in formats that have them
  int block_log;      // the binary logarithm of the block size
  int tiles;          // row tiles times token blocks, tokens fastest
  int token_blocks;
  int slices;         // of a tile
  int clusters;
  int cluster;        // blocks in one
  int stages;
  bool gated;         // a tile's upper half of rows are the gates' partners
};

constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

// Where things lie in a block's shared memory, and how its warps share a stage.
template <typename W, int kTokenTiles, int kRows_, bool kWgmma>
struct FlatShape {
  static constexpr int kRows = kRows_;
  static constexpr int kRowsLog = log2_of(kRows);
  static constexpr int kTokens = 8 * kTokenTiles;
  // 16 rows of B; with two of them a warp reads tokens half as often.
  static constexpr int kRowTiles =
      !kWgmma && (kRows >= 128 || (kRows >= 32 && (kTokenTiles > 1 || W::kBits < 16))) ? 2 : 1;
  static constexpr int kWarpsHigh = kRows / (16 * kRowTiles);
  static constexpr int kWarpsWide = kFlatWarps / kFlatGroups / kWarpsHigh;  // side by side in K
  static constexpr int kParts = kFlatGroups * kWarpsWide;                   // sums of a tile
  static constexpr int kRowBytes = kFlatStageBytes / kRows;       // of B in a stage
  static constexpr int kSlice = kRowBytes * 8 / W::kBits;         // elements of K
  static constexpr int kSliceLog = log2_of(kSlice);
  static constexpr int kTokenBytes = kSlice * 2;                  // of a row of A in a stage
  static constexpr int kUnits = kRowBytes / kWarpsWide / W::kUnitBytes;  // of a warp's product
  static constexpr int kSumsStride = kRows + 4;
  static constexpr int kSumsFloats = kTokens * kSumsStride;
  // The parts side by side, as far as they are small.
  static constexpr int kSumsBuffers = kSumsFloats * 4 * kParts <= 8192 ? kParts : 1;

  int block_log;
  __host__ __device__ explicit FlatShape(int block_log_) : block_log(block_log_) {}
  __host__ __device__ int scales_in_row() const { return W::kBlocks ? kSlice >> block_log : 0; }
  // Rows of scales and of zero points keep 4-byte alignment.
  __host__ __device__ int scale_row_bytes() const { return 2 * scales_in_row(); }
  __host__ __device__ int zero_row_bytes() const { return W::kBlocks ? (scales_in_row() / 2 + 3) / 4 * 4 : 0; }
  __host__ __device__ int tokens_at() const { return kFlatStageBytes; }
  __host__ __device__ int scales_at() const { return tokens_at() + kTokens * kTokenBytes; }
  __host__ __device__ int zeros_at() const { return scales_at() + kRows * scale_row_bytes(); }
  __host__ __device__ int stage_bytes() const {
    const int bytes = zeros_at() + kRows * zero_row_bytes();
    return (bytes + 127) / 128 * 128;  // of 16-bit weights a multiple of 1024, which panels want
  }
  // Sums of the tile at hand, and of the one that another block finishes.
  __host__ __device__ int shared_bytes(int stages, bool cluster) const {
    return stages * stage_bytes() + (kSumsBuffers + (cluster ? 1 : 0)) * kSumsFloats * 4 + 2 * stages * 8;
  }
};

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
// multiplies out of shared memory (sm_90a, 16-bit weights, 64 rows); rows then lie in panels of 128 bytes.
template <typename T, WeightFormat kFormat, int kTokenTiles, int kRows, bool kAligned, bool kPlain, bool kWgmma>
__global__ void __launch_bounds__(kFlatThreads + kFlatFillers, 2) flat_kernel(const FlatArgs<T> args) {
  using W = Weights<T, kFormat>;
  using Shape = FlatShape<W, kTokenTiles, kRows, kWgmma>;
  static_assert(!kWgmma || (kAligned && W::kBits == 16 && kRows == 64), "a stage is two panels of 64 rows");
  constexpr int kTokens = Shape::kTokens, kRowTiles = Shape::kRowTiles;
  const Shape shape(args.block_log);
  extern __shared__ __align__(1024) char shared[];
  const int stages = args.stages, stage_bytes = shape.stage_bytes();
  float* const sums = reinterpret_cast<float*>(shared + stages * stage_bytes);
  float* const carry = sums + Shape::kSumsBuffers * Shape::kSumsFloats;
  Barrier* const full = reinterpret_cast<Barrier*>(carry + (args.cluster > 1 ? Shape::kSumsFloats : 0));
  Barrier* const empty = full + stages;

  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int rank = blockIdx.x % args.cluster, cluster = blockIdx.x / args.cluster;

  // This block's slices, counted from the first of its cluster's first tile.
  const int first_tile = static_cast<int>(static_cast<int64_t>(args.tiles) * cluster / args.clusters);
  const int end_tile = static_cast<int>(static_cast<int64_t>(args.tiles) * (cluster + 1) / args.clusters);
  const int64_t total = static_cast<int64_t>(end_tile - first_tile) * args.slices;
  const auto begin_of = [&](int r) { return static_cast<int>(total * r / args.cluster); };
  const int begin = begin_of(rank), end = begin_of(rank + 1);

  const int outputs = args.gated ? kRows / 2 : kRows, outputs_log = Shape::kRowsLog - (args.gated ? 1 : 0);

  struct Place {
    int row_tile, token_block, slice;
  };
  const auto next_place = [&](Place& at) {
    if (++at.slice < args.slices) return;
    at.slice = 0;
    if (++at.token_block == args.token_blocks) at.token_block = 0, ++at.row_tile;
  };
  const int start_tile = first_tile + begin / args.slices;
  const Place start = {start_tile / args.token_blocks, start_tile % args.token_blocks, begin % args.slices};
  // Where vector v of a row lies: lanes that read together, units of some rows, hit all banks.
  const auto panel_place = [](int rows, int row, int v) {
    return (v / 8 * rows + row) * kPanelRowBytes + (v % 8 ^ row % 8) * 16;
  };
  const auto weight_place = [&](int row, int v) {
    if constexpr (kWgmma) return panel_place(kRows, row, v);
    constexpr int kVectors = W::kUnitBytes / 16;
    return row * Shape::kRowBytes + (v ^ row % (8 / kVectors) * kVectors) * 16;
  };
  const auto token_place = [&](int row, int v) {
    if constexpr (kWgmma) return panel_place(kTokens, row, v);
    return row * Shape::kTokenBytes + (v ^ row % 2 * 4) * 16;
  };

  // Which copies pass through registers; those are there when the thread arrives.
  const int zeros_at_once = kAligned && shape.scales_in_row() >= 8 && args.blocks % 8 == 0 ? 4 : 1;
  const bool stored = !kAligned || (W::kBlocks && (args.blocks % 2 != 0 ||
                                                   (!kPlain && args.zero_points != nullptr && zeros_at_once == 1)));
  if (tid == 0) {
    for (int s = 0; s < stages; ++s) {
      full[s].init(stored ? 2 * kFlatFillers : kFlatFillers);
      empty[s].init(kFlatWarps / kFlatGroups * (kAligned ? 1 : 32));
    }
    publish_barriers();
  }
  __syncthreads();
  const bool carries = begin < end && begin % args.slices != 0;  // ends a tile that another block began

  if (warp >= kFlatWarps) {  // ---- copies
    lower_registers<56>();
    const int filler = tid - kFlatThreads;
    constexpr int kVectors = Shape::kRowBytes / 16, kRowsAtOnce = kFlatFillers / kVectors;
    constexpr int kPasses = kRows / kRowsAtOnce;
    const int fill_row = filler / kVectors, fill_vector = filler % kVectors;
    // Whether a vector's place in its row changes from pass to pass.
    constexpr bool kPlaceMoves = kRowsAtOnce % (kWgmma ? 8 : 128 / W::kUnitBytes) != 0;
    constexpr int kPassStride = kRowsAtOnce * (kWgmma ? kPanelRowBytes : Shape::kRowBytes);
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
    const auto fill_weights = [&](const Place& at, int stage) {
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
        return kPlaceMoves ? to + weight_place(fill_row + pass * kRowsAtOnce, fill_vector)
                           : to + weight_place(fill_row, fill_vector) + pass * kPassStride;
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
          const int in_row = (filler << log) & ((1 << in_row_log) - 1), rows_at_once = kFlatFillers >> (in_row_log - log);
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
          const int in_row = 1 << (in_row_log - 1), stride = (args.blocks + 1) / 2, size = zeros_at_once;
          for (int i = filler; i < kRows * in_row / size; i += kFlatFillers) {
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
    constexpr int kTokensAtOnce = kFlatFillers / kTokenVectors > 0 ? kFlatFillers / kTokenVectors : 1;
    constexpr int kVectorPasses = kTokenVectors > kFlatFillers ? kTokenVectors / kFlatFillers : 1;
    const int fill_token = kVectorPasses > 1 ? 0 : filler / kTokenVectors;
    const auto fill_tokens = [&](const Place& at, int stage) {
      char* const to = shared + stage * stage_bytes + shape.tokens_at();
      const int64_t first = static_cast<int64_t>(at.token_block) * kTokens;
      const int count = static_cast<int>(min(args.m - first, int64_t{kTokens}));
#pragma unroll
      for (int vector_pass = 0; vector_pass < kVectorPasses; ++vector_pass) {
        const int v = filler % kTokenVectors + vector_pass * kFlatFillers;
        const int element = at.slice * Shape::kSlice + v * 8;
        const bool inside = element < args.k;
        const T* const from = args.a + (first + fill_token) * args.k + (inside ? element : 0);
#pragma unroll
        for (int pass = 0; pass * kTokensAtOnce < kTokens; ++pass) {
          const int token = fill_token + pass * kTokensAtOnce;
          if (token >= count) break;
          const T* const vector = from + static_cast<int64_t>(pass) * kTokensAtOnce * args.k;
          if constexpr (kAligned) {
            cp_async_16(to + token_place(token, v), vector, inside);
          } else {
            T* const t = reinterpret_cast<T*>(to + token_place(token, v));
            for (int e = 0; e < 8; ++e) t[e] = element + e < args.k ? vector[e] : from_float<T>(0.0f);
          }
        }
      }
    };
    const auto arrive = [&](int stage) {
      full[stage].arrive_after_copies();
      if (stored) full[stage].arrive();
    };

    // Nobody writes weights; A, the residual and what lies at Y may still be in use until the wait: the first round of
    // tokens comes after that of the weights.
    Place weights_at = start, tokens_at = start;
    int stage = 0, token_stage = 0, token_i = begin;
    uint32_t phase = 1;
#pragma unroll 1
    for (int i = begin; i < end; ++i, next_place(weights_at)) {
      if (i - begin >= stages) empty[stage].wait(phase);
      fill_weights(weights_at, stage);
      if (++stage == stages) stage = 0, phase ^= 1;
      if (i - begin < stages - 1 && i + 1 < end) continue;
      if (token_i == begin) {
        release_successor();
        wait_for_predecessor();
      }
#pragma unroll 1
      for (; token_i <= i; ++token_i, next_place(tokens_at)) {
        fill_tokens(tokens_at, token_stage);
        arrive(token_stage);
        if (++token_stage == stages) token_stage = 0;
      }
    }
    if (args.cluster > 1) {
      cluster_arrive();
      cluster_wait();
      cluster_arrive();
      cluster_wait();
    }
    return;
  }

  // ---- products
  raise_registers<88>();
  wait_for_predecessor();
  if (args.cluster > 1 && !carries) cluster_arrive();
  const int part = warp / Shape::kWarpsHigh, group = part / Shape::kWarpsWide, wide = part % Shape::kWarpsWide;
  const int warp_row = warp % Shape::kWarpsHigh * 16 * kRowTiles, g = lane / 4, t = lane % 4;
  float acc[kRowTiles][kTokenTiles][4] = {};
  // The lane's part of a stage: where its bytes of a warp's first unit lie. A warp's units are a multiple of 128 bytes, so
  // that those of the others follow by XOR within 128 bytes and addition beyond.
  static_assert(Shape::kUnits * W::kUnitBytes % 128 == 0 && Shape::kUnits % 2 == 0, "units are at XORed places");
  const auto place_of_unit = [](int first, int bytes) { return (first ^ (bytes & 127)) + (bytes & ~127); };
  const int lane_weights =
      weight_place(warp_row + g, wide * Shape::kUnits * W::kUnitBytes / 16 + t * W::kWords / 4) + t * W::kWords % 4 * 4;
  const int lane_tokens = shape.tokens_at() + token_place(g, wide * Shape::kUnits * 4 + t);
  const int lane_scales = shape.scales_at() + (warp_row + g) * shape.scale_row_bytes();
  const int lane_zeros = shape.zeros_at() + (warp_row + g) * shape.zero_row_bytes();
  const auto multiply_panels = [&](int stage) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (kWgmma) {
      const char* const weights = shared + stage * stage_bytes;
      const char* const tokens = weights + shape.tokens_at();
      publish_to_async_proxy();  // copies that ended before the barrier did
      wgmma_fence();
#pragma unroll
      for (int panel = 0; panel < 2; ++panel) {
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
  const auto multiply = [&](int stage) {
    const char* const weights = shared + stage * stage_bytes;
    constexpr int kBatch = Shape::kUnits < 4 ? Shape::kUnits : 4;  // of units, with their scales
#pragma unroll 1
    for (int first_unit = 0; first_unit < Shape::kUnits; first_unit += kBatch) {
      uint32_t scales[2 * kRowTiles][2];  // of each row four, or fewer repeated
      if constexpr (W::kBlocks && kPlain) {
        const int at = lane_scales + ((wide * Shape::kUnits + first_unit) >> (args.block_log - 5)) * 2;
#pragma unroll
        for (int r = 0; r < 2 * kRowTiles; ++r) {
          const char* const from = weights + at + 8 * r * shape.scale_row_bytes();
          if (args.block_log == 5) {
            load_words(from, scales[r]);
          } else if (args.block_log == 6) {
            const uint32_t two = *reinterpret_cast<const uint32_t*>(from);
            scales[r][0] = __byte_perm(two, 0, 0x1010), scales[r][1] = __byte_perm(two, 0, 0x3232);
          } else {
            scales[r][0] = scales[r][1] = *reinterpret_cast<const unsigned short*>(from) * 0x00010001u;
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const int unit = wide * Shape::kUnits + first_unit + u;
        uint32_t x[kTokenTiles][4];
        const char* const unit_tokens = weights + place_of_unit(lane_tokens, u * 64) + first_unit * 64;
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) load_words(unit_tokens + 8 * i * Shape::kTokenBytes, x[i]);
        uint32_t a[kRowTiles][2][4];
        const int unit_bytes = (first_unit + u) * W::kUnitBytes;
        const char* const unit_weights = weights + place_of_unit(lane_weights, unit_bytes);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          uint32_t words[2][W::kWords];
#pragma unroll
          for (int h = 0; h < 2; ++h) load_words(unit_weights + (16 * r + 8 * h) * Shape::kRowBytes, words[h]);
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

  // ---- the end of a tile
  const auto sync = [] { sync_threads(kFlatBarrier, kFlatThreads); };
  const auto put = [&](float* to, bool add) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float* const sum = to + (8 * i + 2 * t + e % 2) * Shape::kSumsStride + warp_row + 16 * r + g + e / 2 * 8;
          *sum = add ? *sum + acc[r][i][e] : acc[r][i][e];
          acc[r][i][e] = 0;
        }
  };
  // The parts, side by side or, where they are large, one after the other on top of the first.
  const auto gather = [&] {
    sync();  // nobody reads what the last tile left there
    if constexpr (Shape::kSumsBuffers > 1) {
      put(sums + part * Shape::kSumsFloats, false);
      sync();
    } else {
#pragma unroll 1
      for (int other = 0; other < Shape::kParts; ++other) {
        if (part == other) put(sums, other > 0);
        sync();
      }
    }
  };
  const auto sum_here = [&](int i) {
    float sum = sums[i];
#pragma unroll
    for (int other = 1; other < Shape::kSumsBuffers; ++other) sum += sums[other * Shape::kSumsFloats + i];
    return sum;
  };
  // `sharers`: blocks of the cluster, from the next rank on, that have the rest of the tile.
  const auto store_tile = [&](const Place& at, int sharers) {
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

  bool carrying = carries, waited = false;
  Place at = start;
  // A stage is always the same group's: so a single one leaves the other group idle.
  const int groups = stages > 1 ? kFlatGroups : 1;
  int stage = 0, turn = 0;
  uint32_t phase = 0;
  for (int i = begin; i < end; ++i, next_place(at)) {
    if (turn == group) {
      full[stage].wait(phase);
      if constexpr (kWgmma)
        multiply_panels(stage);
      else
        multiply(stage);
      __syncwarp();
      // Where copies are ordinary stores every lane says that it has left: racecheck follows nothing else.
      if (lane == 0 || !kAligned) empty[stage].arrive();
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
      for (int r = rank + 1; r < args.cluster && begin_of(r) < tile_end; ++r) ++sharers;
      cluster_wait();
      waited = true;
    }
    store_tile(at, sharers);
  }
  if (args.cluster > 1) {
    if (!waited) cluster_wait();
    cluster_arrive();  // a block's sums stay while another reads them
    cluster_wait();
  }
}

}  // namespace fdpp
