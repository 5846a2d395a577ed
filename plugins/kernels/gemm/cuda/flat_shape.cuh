// What the flat GEMM's parts share: its arguments, how a stage lies in shared memory, and which slices a block takes.
#pragma once

#include "kernels/common/pipeline.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/prefetch.cuh"
#include "kernels/gemm/cuda/weights.cuh"

namespace fdpp {

constexpr int kFlatWarps = 8;  // that multiply
constexpr int kFlatThreads = 32 * kFlatWarps;
constexpr int kFlatGroups = 2;     // of them, which take stages in turns
constexpr int kFlatMaxStages = 16;

// How stages are filled: by the copy engine (sm_90; rows of whole panels), by cp.async of 16 bytes, or by ordinary
// stores where rows are not aligned to that.
enum class FlatFill { tensor, copies, stores };

template <FlatFill kFill>
constexpr int kFlatFillers = kFill == FlatFill::tensor ? 32 : 128;  // threads

template <typename T>
struct FlatArgs {
  const T* a;
  const unsigned char* b;
  const T* scales;                   // of blocks of K, or null
  const unsigned char* zero_points;  // or null
  Epilogue<T> out;
  NextWeight next;
  int64_t m, n;
  int k, a_row_stride;  // elements
  int64_t row_bytes;  // of B
  int blocks;         // of a row of B, in formats that have them
  int block_log;      // the binary logarithm of the block size
  // Row tiles times token blocks, tokens fastest: so many for each cluster, and one more for the first few.
  int tiles_each, tiles_over;
  int token_blocks;
  int slices;         // of a tile
  int cluster;        // blocks in one: 2^cluster_log
  int cluster_log;
  int stages;
  bool gated;         // a tile's upper half of rows are the gates' partners
};

// For FlatFill::tensor: B as [N, panels], A as [M, panels] and the scales as [N, blocks].
struct FlatMaps {
  CUtensorMap weights, tokens, scales;
};
struct NoFlatMaps {};

constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

// Where things lie in a block's shared memory, and how its warps share a stage. With the copy engine rows of weights and
// of tokens lie in panels of 128 bytes as it swizzles them.
template <typename W, int kTokenTiles, int kRows_, FlatFill kFill, bool kWgmma>
struct FlatShape {
  static constexpr bool kPanels = kFill == FlatFill::tensor;
  static constexpr int kRows = kRows_;
  static constexpr int kRowsLog = log2_of(kRows);
  static constexpr int kTokens = 8 * kTokenTiles;
  // Of weights; with four bits each a stage of half the bytes has twice the work still.
  static constexpr int kStageBytes = W::kBlocks && kRows < 128 ? 8192 : 16384;
  // 16 rows of B; with two of them a warp reads tokens half as often.
  static constexpr int kRowTiles =
      !kWgmma && (kRows >= 128 || (kRows >= 32 && (kTokenTiles > 1 || W::kBits < 16))) ? 2 : 1;
  static constexpr int kWarpsHigh = kRows / (16 * kRowTiles);
  static constexpr int kWarpsWide = kFlatWarps / kFlatGroups / kWarpsHigh;  // side by side in K
  static constexpr int kParts = kFlatGroups * kWarpsWide;                   // sums of a tile
  static constexpr int kRowBytes = kStageBytes / kRows;       // of B in a stage
  static constexpr int kSlice = kRowBytes * 8 / W::kBits;         // elements of K
  static constexpr int kSliceLog = log2_of(kSlice);
  static constexpr int kTokenBytes = kSlice * 2;                  // of a row of A in a stage
  static constexpr int kUnits = kRowBytes / kWarpsWide / W::kUnitBytes;  // of a warp's product
  static constexpr int kUnitVectors = W::kUnitBytes / 16;
  static constexpr int kWeightStride = kPanels ? kPanelRowBytes : kRowBytes;  // from row to row in a stage
  static constexpr int kTokenStride = kPanels ? kPanelRowBytes : kTokenBytes;
  static constexpr int kWeightPanels = kRowBytes / kPanelRowBytes;
  static constexpr int kTokenPanels = kTokenBytes / kPanelRowBytes;
  static constexpr int kSumsStride = kRows + 4;
  static constexpr int kSumsFloats = kTokens * kSumsStride;
  // Parts side by side, as far as they are small.
  static constexpr int kSumsFit = 8192 / (kSumsFloats * 4);
  static constexpr int kSumsBuffers = kSumsFit >= kParts ? kParts : kSumsFit >= 2 ? 1 << log2_of(kSumsFit) : 1;

  int block_log;
  __host__ __device__ explicit FlatShape(int block_log_) : block_log(block_log_) {}
  __host__ __device__ int scales_in_row() const { return W::kBlocks ? kSlice >> block_log : 0; }
  // The copy engine brings 16 bytes of a row at least; otherwise rows of scales and zero points keep 4-byte alignment.
  __host__ __device__ int scale_row_bytes() const {
    const int bytes = 2 * scales_in_row();
    return W::kBlocks && kPanels && bytes < 16 ? 16 : bytes;
  }
  __host__ __device__ int zero_row_bytes() const { return W::kBlocks ? (scales_in_row() / 2 + 3) / 4 * 4 : 0; }
  __host__ __device__ int tokens_at() const { return kStageBytes; }
  __host__ __device__ int scales_at() const { return tokens_at() + kTokens * kTokenBytes; }
  __host__ __device__ int zeros_at() const { return scales_at() + kRows * scale_row_bytes(); }
  __host__ __device__ int stage_bytes() const {
    constexpr int kAlignment = kPanels ? 1024 : 128;
    const int bytes = kPanels ? zeros_at() : zeros_at() + kRows * zero_row_bytes();
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  // Sums of the tile at hand, and of the one that another block finishes.
  __host__ __device__ int shared_bytes(int stages, bool cluster) const {
    return stages * stage_bytes() + (kSumsBuffers + (cluster ? 1 : 0)) * kSumsFloats * 4 + 2 * stages * 8;
  }

  // Where vector v of a row lies: lanes that read together, units of some rows, hit all banks.
  static __device__ __forceinline__ int panel_place(int rows, int row, int v) {
    return (v / 8 * rows + row) * kPanelRowBytes + (v % 8 ^ row % 8) * 16;
  }
  static __device__ __forceinline__ int weight_place(int row, int v) {
    if constexpr (kPanels) return panel_place(kRows, row, v);
    return row * kRowBytes + (v ^ row % (8 / kUnitVectors) * kUnitVectors) * 16;
  }
  static __device__ __forceinline__ int token_place(int row, int v) {
    if constexpr (kPanels) return panel_place(kTokens, row, v);
    return row * kTokenBytes + (v ^ row % 2 * 4) * 16;
  }
  // Where a row's unit lies that is `bytes` after the one at `first`. A warp's first unit starts at a multiple of 128
  // bytes, or its units are fewer: so the others follow by XOR within 128 bytes and by addition beyond.
  static_assert(kWgmma || kUnits * W::kUnitBytes % 128 == 0 || 128 % (kUnits * W::kUnitBytes) == 0,
                "units are at XORed places");
  static __device__ __forceinline__ int unit_place(int rows, int first, int bytes) {
    return (first ^ (bytes & 127)) + (kPanels ? (bytes >> 7) * rows * kPanelRowBytes : bytes & ~127);
  }
  // The row of eight that lane group g multiplies: in panels, lanes that read together take rows whose swizzles differ.
  static __device__ __forceinline__ int row_of_group(int g, int unit_vectors) {
    if constexpr (!kPanels || kWgmma) return g;
    const int together = 8 / unit_vectors;
    return g % together * unit_vectors + g / together;
  }
  static __device__ __forceinline__ int weight_row(int g) { return row_of_group(g, kUnitVectors); }
  static __device__ __forceinline__ int token_row(int g) { return row_of_group(g, 4); }
};

// A slice of a tile.
struct FlatPlace {
  int row_tile, token_block, slice;

  template <typename T>
  __device__ __forceinline__ void advance(const FlatArgs<T>& args) {
    if (++slice < args.slices) return;
    slice = 0;
    if (++token_block == args.token_blocks) token_block = 0, ++row_tile;
  }
};

// A block's slices, counted from the first of its cluster's first tile. Without a division of 64 bits, which takes as long
// as a copy from memory.
struct FlatWork {
  int64_t total;  // of the cluster
  int cluster_log;
  int rank, begin, end;
  FlatPlace start;

  template <typename T>
  __device__ __forceinline__ explicit FlatWork(const FlatArgs<T>& args) : cluster_log(args.cluster_log) {
    rank = blockIdx.x & (args.cluster - 1);
    const int which = blockIdx.x >> cluster_log;
    const int first_tile = which * args.tiles_each + min(which, args.tiles_over);
    total = static_cast<int64_t>(args.tiles_each + (which < args.tiles_over ? 1 : 0)) * args.slices;
    begin = begin_of(rank);
    end = begin_of(rank + 1);
    const int whole = begin / args.slices, tile = first_tile + whole;
    const int row_tile = tile / args.token_blocks;
    start = {row_tile, tile - row_tile * args.token_blocks, begin - whole * args.slices};
  }
  __device__ __forceinline__ int begin_of(int r) const { return static_cast<int>(total * r >> cluster_log); }
};

}  // namespace fdpp
