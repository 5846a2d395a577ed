// The flat GEMM: few rows of A (tokens) on tensor cores with the operands swapped, so that rows of B fill the 16-wide side
// of m16n8k16 and tokens the 8-wide one: M is padded to 8 only.
//
// The grid is as many blocks as run at once. Clusters of blocks share tiles of B's rows evenly, and within a cluster the
// blocks share its tiles' slices of K evenly: a tile that two blocks meet in is summed up by the one that has its
// beginning, out of the others' shared memory. So no multiprocessor waits for another, whatever N and K are.
//
// Slices of weights and tokens pass through a ring of stages, which copies fill ahead across the borders of tiles. A
// stage's row of B is `kRowBytes` long; the block's eight warps lie kRows / warp_rows high and side by side in K.
#pragma once

#include <algorithm>

#include "kernels/common/pipeline.cuh"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/stream.cuh"
#include "kernels/gemm/cuda/weights.cuh"

namespace fdpp {

constexpr int kFlatWarps = 8;
constexpr int kFlatThreads = 32 * kFlatWarps;
constexpr int kFlatStageBytes = 16384;  // of weights in a stage
constexpr int kFlatMaxStages = 16;

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
  bool release_late;
};

constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

// Where things lie in a block's shared memory, and how its warps share a stage.
template <typename W, int kTokenTiles, int kRows_>
struct FlatShape {
  static constexpr int kRows = kRows_;
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kRowTiles = kRows >= 64 ? 2 : 1;           // of 16 rows, of a warp
  static constexpr int kWarpsHigh = kRows / (16 * kRowTiles);
  static constexpr int kWarpsWide = kFlatWarps / kWarpsHigh;      // side by side in K
  static constexpr int kRowBytes = kFlatStageBytes / kRows;       // of B in a stage
  static constexpr int kSlice = kRowBytes * 8 / W::kBits;         // elements of K
  static constexpr int kSliceLog = log2_of(kSlice);
  static constexpr int kTokenBytes = kSlice * 2;                  // of a row of A in a stage
  static constexpr int kSteps = kRowBytes / kWarpsWide / 64;      // that a warp multiplies 64 bytes of its rows
  static constexpr int kSumsStride = kRows + 4;
  static constexpr int kSumsFloats = kTokens * kSumsStride;
  static_assert(kSteps >= 1, "a warp takes 64 bytes of a row at a time");

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
    return (bytes + 127) / 128 * 128;
  }
  // Sums of the tile at hand, and of the one that another block finishes.
  __host__ __device__ int shared_bytes(int stages, bool cluster) const {
    return stages * stage_bytes() + (cluster ? 2 : 1) * kSumsFloats * 4 + 2 * stages * 8;
  }
};

template <typename T, WeightFormat kFormat, int kTokenTiles, int kRows, bool kAligned>
__global__ void __launch_bounds__(kFlatThreads, 2) flat_kernel(const FlatArgs<T> args) {
  using W = Weights<T, kFormat>;
  using Shape = FlatShape<W, kTokenTiles, kRows>;
  constexpr int kTokens = Shape::kTokens, kRowTiles = Shape::kRowTiles;
  constexpr int kWarpsWide = Shape::kWarpsWide;
  const Shape shape(args.block_log);
  extern __shared__ __align__(128) char shared[];
  const int stages = args.stages, stage_bytes = shape.stage_bytes();
  float* const sums = reinterpret_cast<float*>(shared + stages * stage_bytes);
  float* const carry = sums + (args.cluster > 1 ? Shape::kSumsFloats : 0);
  Barrier* const full = reinterpret_cast<Barrier*>(carry + Shape::kSumsFloats);
  Barrier* const empty = full + stages;

  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int rank = blockIdx.x % args.cluster, cluster = blockIdx.x / args.cluster;

  // This block's slices, counted from the first of its cluster's first tile.
  const int first_tile = static_cast<int>(static_cast<int64_t>(args.tiles) * cluster / args.clusters);
  const int end_tile = static_cast<int>(static_cast<int64_t>(args.tiles) * (cluster + 1) / args.clusters);
  const int64_t total = static_cast<int64_t>(end_tile - first_tile) * args.slices;
  const auto begin_of = [&](int r) { return static_cast<int>(total * r / args.cluster); };
  const int begin = begin_of(rank), end = begin_of(rank + 1);

  const int outputs = args.gated ? kRows / 2 : kRows;
  const int64_t rows_total = args.gated ? 2 * args.n : args.n;

  // ---- copies
  struct Place {
    int tile, slice;
  };
  const auto next_place = [&](Place& at) {
    if (++at.slice == args.slices) at.slice = 0, ++at.tile;
  };
  // Row of B that a row of a tile is; from rows_total on where there is none.
  const auto row_of = [&](int row_tile, int row) -> int64_t {
    if (!args.gated) return static_cast<int64_t>(row_tile) * kRows + row;
    const int64_t output = static_cast<int64_t>(row_tile) * (kRows / 2) + row % (kRows / 2);
    return output >= args.n ? rows_total : row < kRows / 2 ? output : args.n + output;
  };

  // Vector v of row r of weights lies at v ^ 4 (r % 2): the eight lanes that read together, four vectors of two rows, hit
  // all banks. Tokens likewise, four vectors kTokenVectors apart.
  const auto weight_place = [](int row, int v) { return row * Shape::kRowBytes + (v ^ row % 2 * 4) * 16; };
  const auto token_place = [](int row, int v) {
    const int key = W::kTokenVectors == 1 ? row % 2 * 4 : W::kTokenVectors == 2 ? row % 2 : v / 8 % 2 + row % 2 * 2;
    return row * Shape::kTokenBytes + (v ^ key) * 16;
  };

  const auto fill_weights = [&](const Place& at, int stage) {
    char* const to = shared + stage * stage_bytes;
    const int row_tile = at.tile / args.token_blocks;
    constexpr int kVectors = Shape::kRowBytes / 16, kRowsAtOnce = kFlatThreads / kVectors;
    const int v = tid % kVectors;
    const int64_t byte = static_cast<int64_t>(at.slice) * Shape::kRowBytes + v * 16;
#pragma unroll
    for (int r = tid / kVectors; r < kRows; r += kRowsAtOnce) {
      const int64_t row = row_of(row_tile, r);
      const bool there = row < rows_total && byte < args.row_bytes;
      const unsigned char* from = args.b + (there ? row * args.row_bytes + byte : 0);
      if constexpr (kAligned) {
        cp_async_16(to + weight_place(r, v), from, there);
      } else {
        const int left = there ? static_cast<int>(min(args.row_bytes - byte, int64_t{16})) : 0;
        for (int i = 0; i < 16; ++i) to[weight_place(r, v) + i] = i < left ? static_cast<char>(from[i]) : 0;
      }
    }
    if constexpr (W::kBlocks) {
      // A slice has 2^in_row_log scales of a row, at least two.
      const int in_row_log = Shape::kSliceLog - args.block_log, first = at.slice << in_row_log;
      unsigned short* const scales = reinterpret_cast<unsigned short*>(to + shape.scales_at());
      const auto* const from = reinterpret_cast<const unsigned short*>(args.scales);
      const auto for_each = [&](int log, auto&& copy) {  // of pieces of 2^log scales: copy(to, from, whether it is there)
        for (int i = tid; i < kRows << (in_row_log - log); i += kFlatThreads) {
          const int64_t row = row_of(row_tile, i >> (in_row_log - log));
          const int block = first + ((i << log) & ((1 << in_row_log) - 1));
          const bool there = row < rows_total && block < args.blocks;
          copy(scales + (i << log), from + (there ? row * args.blocks + block : 0), there);
        }
      };
      if (kAligned && in_row_log >= 3 && args.blocks % 8 == 0)
        for_each(3, [](void* dst, const void* src, bool there) { cp_async_16(dst, src, there); });
      else if (kAligned && args.blocks % 2 == 0)
        for_each(1, [](void* dst, const void* src, bool there) { cp_async_4(dst, src, there); });
      else
        for_each(0, [](unsigned short* dst, const unsigned short* src, bool there) { *dst = there ? *src : 0; });
      if (args.zero_points != nullptr) {
        const int log = in_row_log - 1, stride = (args.blocks + 1) / 2;
        for (int i = tid; i < kRows << log; i += kFlatThreads) {
          const int r = i >> log, in_row = i & ((1 << log) - 1), byte = (at.slice << log) + in_row;
          const int64_t row = row_of(row_tile, r);
          to[shape.zeros_at() + r * shape.zero_row_bytes() + in_row] =
              row < rows_total && byte < stride ? static_cast<char>(args.zero_points[row * stride + byte]) : 0;
        }
      }
    }
  };
  const auto fill_tokens = [&](const Place& at, int stage) {
    char* const to = shared + stage * stage_bytes + shape.tokens_at();
    const int64_t first = static_cast<int64_t>(at.tile % args.token_blocks) * kTokens;
    const int count = static_cast<int>(min(args.m - first, int64_t{kTokens}));
    constexpr int kVectors = Shape::kTokenBytes / 16;
    for (int i = tid; i < count * kVectors; i += kFlatThreads) {
      const int token = i / kVectors, v = i % kVectors, element = at.slice * Shape::kSlice + v * 8;
      const T* const from = args.a + (first + token) * args.k;
      if constexpr (kAligned) {
        cp_async_16(to + token_place(token, v), from + (element < args.k ? element : 0), element < args.k);
      } else {
        T* const t = reinterpret_cast<T*>(to + token_place(token, v));
        for (int e = 0; e < 8; ++e) t[e] = element + e < args.k ? from[element + e] : from_float<T>(0.0f);
      }
    }
  };
  // Which copies pass through registers; those are there when the thread arrives.
  const bool stored = !kAligned || (W::kBlocks && (args.zero_points != nullptr || args.blocks % 2 != 0));
  const auto arrive = [&](int stage) {
    full[stage].arrive_after_copies();
    if (stored) full[stage].arrive();
  };

  if (tid == 0) {
    for (int s = 0; s < stages; ++s) {
      full[s].init(stored ? 2 * kFlatThreads : kFlatThreads);
      empty[s].init(kFlatWarps);
    }
    publish_barriers();
  }
  __syncthreads();

  Place filling = {first_tile + begin / args.slices, begin % args.slices};
  {
    // Nobody writes weights; A, the residual and what lies at Y may still be in use.
    Place at = filling;
    for (int s = 0; s < stages && begin + s < end; ++s, next_place(at)) fill_weights(at, s);
    if (!args.release_late) release_successor();
    wait_for_predecessor();
    for (int s = 0; s < stages && begin + s < end; ++s, next_place(filling)) {
      fill_tokens(filling, s);
      arrive(s);
    }
  }
  // A block that has no tile for another to finish has nothing to say.
  const bool carries = begin < end && begin % args.slices != 0;
  if (args.cluster > 1 && !carries) cluster_arrive();

  // ---- products
  const int wide = warp % kWarpsWide, high = warp / kWarpsWide, g = lane / 4, t = lane % 4;
  const int warp_row = high * 16 * kRowTiles;
  float acc[kRowTiles][kTokenTiles][4] = {};
  const auto multiply = [&](int stage) {
    const char* const weights = shared + stage * stage_bytes;
    const char* const tokens = weights + shape.tokens_at();
#pragma unroll
    for (int step = 0; step < Shape::kSteps; ++step) {
      const int v = (wide * Shape::kSteps + step) * 4 + t;
      uint32_t rows[2 * kRowTiles][4];
      BlockScale block[2 * kRowTiles][W::kBlocks ? 2 : 1];
#pragma unroll
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        const int row = warp_row + 8 * r + g;
        const uint4 x = *reinterpret_cast<const uint4*>(weights + weight_place(row, v));
        rows[r][0] = x.x, rows[r][1] = x.y, rows[r][2] = x.z, rows[r][3] = x.w;
        if constexpr (W::kBlocks) {
          const auto* scales = reinterpret_cast<const unsigned short*>(weights + shape.scales_at() +
                                                                       row * shape.scale_row_bytes());
          const auto* zeros = reinterpret_cast<const unsigned char*>(weights + shape.zeros_at() +
                                                                     row * shape.zero_row_bytes());
          const auto block_at = [&](int i) -> BlockScale {
            return {scales[i] * 0x00010001u, args.zero_points == nullptr ? 8u : zeros[i / 2] >> i % 2 * 4 & 15u};
          };
          // 16 bytes are a block of 32, a part of one, or two of 16.
          const int i = v * 32 >> args.block_log;
          block[r][0] = block_at(i);
          block[r][1] = args.block_log > 4 ? block[r][0] : block_at(i + 1);
        }
      }
#pragma unroll
      for (int p = 0; p < W::kProducts; p += 2) {  // the 8 elements of a vector of tokens
        uint32_t a[2][kRowTiles][4];
#pragma unroll
        for (int q = 0; q < 2; ++q)
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            const int half = W::kBlocks ? (p + q) / 4 : 0;
            W::fragment(rows[2 * r], p + q, block[2 * r][half], a[q][r][0], a[q][r][2]);
            W::fragment(rows[2 * r + 1], p + q, block[2 * r + 1][half], a[q][r][1], a[q][r][3]);
          }
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
          const uint4 x =
              *reinterpret_cast<const uint4*>(tokens + token_place(8 * i + g, v * W::kTokenVectors + p / 2));
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            mma_m16n8k16<T>(acc[r][i], a[0][r], x.x, x.y);
            mma_m16n8k16<T>(acc[r][i], a[1][r], x.z, x.w);
          }
        }
      }
    }
  };

  // ---- the end of a tile
  const auto gather = [&](float* to) {  // the warps' sums, in order
    __syncthreads();                    // nobody reads what the last tile left there
    for (int w = 0; w < kWarpsWide; ++w) {
      if (wide == w) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float* const sum = to + (8 * i + 2 * t + e % 2) * Shape::kSumsStride + warp_row + 16 * r + g + e / 2 * 8;
              *sum = w == 0 ? acc[r][i][e] : *sum + acc[r][i][e];
              acc[r][i][e] = 0;
            }
      }
      __syncthreads();
    }
  };
  // `sharers`: blocks of the cluster, from the next rank on, that have the rest of the tile.
  const auto store_tile = [&](int tile, int sharers) {
    const int64_t first_output = static_cast<int64_t>(tile / args.token_blocks) * outputs;
    const int64_t first_token = static_cast<int64_t>(tile % args.token_blocks) * kTokens;
    const int tokens = static_cast<int>(min(args.m - first_token, int64_t{kTokens}));
    const auto sum_at = [&](int i) {
      float sum = sums[i];
      for (int s = 1; s <= sharers; ++s) sum += load_remote(remote_address(carry + i, rank + s));
      return sum;
    };
    for (int i = tid; i < tokens * outputs; i += kFlatThreads) {
      const int token = i / outputs, output = i % outputs;
      if (first_output + output >= args.n) continue;
      const int at = token * Shape::kSumsStride + output;
      if (args.gated)
        args.out.store_gated(first_token + token, first_output + output, sum_at(at), sum_at(at + kRows / 2));
      else
        args.out.store(first_token + token, first_output + output, sum_at(at));
    }
  };

  bool carrying = carries, waited = false;
  Place at = {first_tile + begin / args.slices, begin % args.slices};
  int stage = 0, last_stage = 0;
  uint32_t phase = 0, last_phase = 0;
  for (int i = begin; i < end; ++i, next_place(at)) {
    if (i > begin) {  // the stage that the last slice left
      if (i - 1 + stages < end) {
        empty[last_stage].wait(last_phase);
        fill_weights(filling, last_stage);
        fill_tokens(filling, last_stage);
        arrive(last_stage);
        next_place(filling);
      }
    }
    full[stage].wait(phase);
    multiply(stage);
    __syncwarp();
    if (lane == 0) empty[stage].arrive();
    last_stage = stage, last_phase = phase;
    if (++stage == stages) stage = 0, phase ^= 1;

    const bool tile_ends = at.slice + 1 == args.slices;
    if (!tile_ends && i + 1 < end) continue;
    if (i + 1 == end && args.release_late) release_successor();
    if (carrying) {
      gather(carry);
      cluster_arrive();
      carrying = false;
      continue;
    }
    gather(sums);
    int sharers = 0;
    if (!tile_ends) {
      const int tile_end = (at.tile + 1 - first_tile) * args.slices;
      for (int r = rank + 1; r < args.cluster && begin_of(r) < tile_end; ++r) ++sharers;
      cluster_wait();
      waited = true;
    }
    store_tile(at.tile, sharers);
  }
  if (args.cluster > 1) {
    if (!waited) cluster_wait();
    cluster_arrive();  // a block's sums stay while another reads them
    cluster_wait();
  }
}

}  // namespace fdpp
