// The variant cuda_flat_int4: up to 8 tokens with int4 weights. Unpacking the weights is most of the work there is, so all
// that belongs to the tokens is done once: a warp has the same 256 elements of K in all tiles, its part of the tokens and
// what takes the weights' offsets away in registers.
//
// A tile is 16 rows of B; the warps of a block lie side by side in K, and where K is longer than those reach, the blocks of
// a cluster do too. The grid is no more than runs at once, so every block has a run of tiles. Copies of the next ones are
// always under way, each warp's to a ring of its own, and a warp waits for another only, steps later, for its sums, which
// all add up in turns. What is left for the end of the kernel: the sums of a cluster's blocks, and the epilogue.
#include <algorithm>
#include <limits>

#include "kernels/common/ceil_div.h"
#include "kernels/common/overlapped_launch.h"
#include "kernels/common/pipeline.cuh"
#include "kernels/common/shared_memory_grant.h"
#include "kernels/common/tensor_map.h"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/flat_mma.h"
#include "kernels/gemm/cuda/normalise.h"
#include "kernels/gemm/cuda/prefetch.cuh"
#include "kernels/gemm/cuda/stream.cuh"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/cuda/weights.cuh"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 16;
constexpr int kWarpsAtOnce = 16;  // of a multiprocessor, by their registers
constexpr int kMaxCluster = 8;
constexpr int kTokens = 8;
constexpr int kRows = 16;      // of a tile
constexpr int kStepTiles = 2;  // that a warp multiplies between two barriers
constexpr int kStepRows = kStepTiles * kRows;
constexpr int kPartLog = 8;    // a warp's part of K: 256 elements, of a row 128 bytes of B: 8 vectors of 32 elements
constexpr int kVectorLog = 5;
constexpr int kVectors = 1 << (kPartLog - kVectorLog);
constexpr int kDepth = 2;      // steps: the one at hand, and those of which copies are under way
constexpr int kTurns = 3;      // steps whose sums wait for being added up

// What a warp's ring holds of a step. All rings' weights come first: the copy engine's swizzle counts from 1024 bytes.
using StageWeights = uint4[kStepRows][kVectors];  // vector v of row r at v ^ r % 8
template <int kBlocks>
struct StageScales {
  uint32_t scales[kStepRows][kBlocks / 2];  // two each
};
template <int kBlocks>
struct StageZeros : StageScales<kBlocks> {
  uint32_t zeros[kStepRows];  // eight zero points
};
int stage_bytes(const GemmProblem& p) {
  const int scales = kStepRows * (2 << kPartLog) / static_cast<int>(p.block_size);
  return static_cast<int>(sizeof(StageWeights) + sizeof(Barrier)) + scales + (p.has_zero_points ? kStepRows * 4 : 0);
}
constexpr int kSumsBytes = kWarp * sizeof(float4);  // of a tile

template <typename T>
struct FlatInt4Args {
  const T* a;
  const T* scales;
  const unsigned char* zero_points;
  int m, n, k, a_row_stride;   // elements
  int blocks;                  // of a row
  int upper;                   // rows of B from a step's first 16 to its other 16: 16, of gated products N
  int tile_rows;               // of N: 16, of gated products 8
  int tiles_each, tiles_over;  // so many for each cluster, and one more for the first few
  int cluster;                 // blocks in one
  NextWeight next;
};

// How a product is shared out.
struct Shares {
  int cluster;      // blocks
  int warps;        // of a block
  int per_sm;       // blocks of a multiprocessor
  int clusters;     // at once, no more than tiles
  int tiles;
  int most_tiles;   // of a cluster
  int shared_bytes;
};

bool gated(const GemmProblem& p) { return p.activation == Activation::silu_mul; }
int tile_rows(const GemmProblem& p) { return gated(p) ? kRows / 2 : kRows; }

// False: so many blocks of a cluster do not do.
bool share(const GemmProblem& p, const DeviceInfo& d, int cluster, Shares* out) {
  const int parts = static_cast<int>(p.k >> kPartLog);
  Shares s;
  s.cluster = cluster, s.warps = static_cast<int>(ceil_div(parts, cluster));
  if (s.warps > kMaxWarps || s.warps * (cluster - 1) >= parts) return false;
  s.tiles = static_cast<int>(ceil_div(p.n, tile_rows(p)));
  constexpr int kReserved = 1024;  // of a block
  const int fixed = s.warps * (kDepth * stage_bytes(p) + kTurns * kStepTiles * kSumsBytes) +
                    2 * kTurns * static_cast<int>(sizeof(Barrier));
  for (s.per_sm = kWarpsAtOnce / s.warps; s.per_sm > 0; --s.per_sm) {
    s.clusters = std::min(s.tiles, flat_clusters(d, cluster) * s.per_sm);
    if (s.clusters == 0) return false;
    s.most_tiles = static_cast<int>(ceil_div(s.tiles, s.clusters));
    s.shared_bytes = fixed + s.most_tiles * kSumsBytes;
    if (s.per_sm * (s.shared_bytes + kReserved) <= d.shared_memory_per_block + kReserved) break;
  }
  *out = s;
  return s.per_sm > 0;
}

template <typename T, int kBlockLog, bool kZeros>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1)
    flat_int4_kernel(const FlatInt4Args<T> args, const Epilogue<T> out, const __grid_constant__ CUtensorMap weights_map) {
#if __CUDA_ARCH__ >= 900
  using W = Weights<T, WeightFormat::int4>;
  constexpr int kBlocks = 1 << (kPartLog - kBlockLog);          // of a row in a part
  constexpr int kBlockVectors = 1 << (kBlockLog - kVectorLog);  // of a block
  using Numbers = std::conditional_t<kZeros, StageZeros<kBlocks>, StageScales<kBlocks>>;
  extern __shared__ __align__(1024) char shared[];
  const int tid = threadIdx.x, threads = blockDim.x, warps = threads / kWarp, warp = tid / kWarp, lane = tid % kWarp;
  const int g = lane / 4, t = lane % 4;
  const int stages = warps * kDepth;
  StageWeights* const all_weights = reinterpret_cast<StageWeights*>(shared);
  Numbers* const all_numbers = reinterpret_cast<Numbers*>(all_weights + stages);
  Barrier* const all_arrived = reinterpret_cast<Barrier*>(all_numbers + stages);
  Barrier* const full = all_arrived + stages;  // a step's sums are there
  Barrier* const empty = full + kTurns;        // they have been added up
  float4* const sums = reinterpret_cast<float4*>(empty + kTurns);  // [kTurns][kStepTiles][warps][lanes]
  float4* const totals = sums + kTurns * kStepTiles * threads;     // [tiles][lanes]
  StageWeights* const weights = all_weights + warp * kDepth;
  Numbers* const numbers = all_numbers + warp * kDepth;
  Barrier* const arrived = all_arrived + warp * kDepth;
  const int rank = cluster_rank(), which = cluster_index();
  const int part = rank * warps + warp;
  const bool part_there = part << kPartLog < args.k;
  const int first_tile = which * args.tiles_each + min(which, args.tiles_over);
  const int tiles = args.tiles_each + (which < args.tiles_over ? 1 : 0), steps = (tiles + kStepTiles - 1) / kStepTiles;
  const bool gated = args.tile_rows < kRows;

  if (lane < kDepth) {
    arrived[lane].init(1);
    publish_barriers();
  }
  if (tid < 2 * kTurns) full[tid].init(threads);
  __syncwarp();

  // ---- copies: weights by the copy engine; scales and zero points by lanes, each those of a row
  const uint64_t policy = evict_first_policy();
  const int first_row = first_tile * args.tile_rows, step_rows = kStepTiles * args.tile_rows;  // of N
  const auto copy_weights = [&](int step) {
    if (step >= steps || !part_there) return;
    if (lane == 0) {
      const int slot = step % kDepth, row = first_row + step * step_rows;
      arrived[slot].arrive_expecting(sizeof(StageWeights));
      copy_box(weights[slot][0], &weights_map, part * kVectors * 16, row, 0, arrived + slot, policy);
    }
    __syncwarp();
    if (tid == 0 && step == steps - 1) prefetch(args.next);
  };
  const uint32_t lane_row = first_row + (lane < kRows ? lane : args.upper + lane - kRows);
  const uint32_t lane_scales = lane_row * args.blocks + part * kBlocks;  // elements
  const uint32_t lane_zeros = kZeros ? lane_row * (args.blocks / 2) + (part * kBlocks & ~7) / 2 : 0;  // bytes
  const int lane_row_of_step = gated ? lane % kRows : lane;
  const auto copy_numbers = [&](int step) {
    // Sums of rows past the end are dropped, so what they have of these is arbitrary.
    if (step < steps && part_there && first_row + step * step_rows + lane_row_of_step < args.n) {
      Numbers& to = numbers[step % kDepth];
      const T* const from = args.scales + lane_scales + step * step_rows * args.blocks;
      if constexpr (kBlocks == 8)
        cp_async_16(to.scales[lane], from);
      else if constexpr (kBlocks == 4)
        cp_async_8(to.scales[lane], from);
      else
        cp_async_4(to.scales[lane], from);
      if constexpr (kZeros)
        cp_async_4(&to.zeros[lane], args.zero_points + lane_zeros + step * step_rows * (args.blocks / 2));
    }
    cp_async_commit();
  };
  // What is ordered later comes later, by as much as is under way: so scales go first, and tokens ahead of the last slot.
#pragma unroll 1
  for (int i = 0; i < kDepth; ++i) copy_numbers(i);
#pragma unroll 1
  for (int i = 0; i < kDepth - 1; ++i) copy_weights(i);

  // ---- tokens, once
  release_successor();
  wait_for_predecessor();  // nobody writes weights, but A may still be on its way
  uint32_t x[kVectors][4];
  const T* const tokens = args.a + static_cast<int64_t>(g) * args.a_row_stride + (part << kPartLog) + 8 * t;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const bool there = g < args.m && part_there;
    const uint4 four = there ? *reinterpret_cast<const uint4*>(tokens + (v << kVectorLog)) : make_uint4(0, 0, 0, 0);
    x[v][0] = four.x, x[v][1] = four.y, x[v][2] = four.z, x[v][3] = four.w;
  }
  copy_weights(kDepth - 1);
  // What takes the weights' offsets away is a product of its own: of a row's scales and, for each block and token, this.
  PairOfTf32 offsets[2], plain_sums[2];  // of token g, blocks t and t + 4
  {
    // With the tokens as rows, and ones in a block's own column. Rows 8 and on have the pairs that take the second offset.
    float sums[4] = {};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int b = v / kBlockVectors;
      const uint32_t ones = g == b % 4 * 2 + b / 4 ? W::kOnes : 0;
      mma_into<T>(sums, x[v], ones, ones, sums);
    }
    const float first = unpack2<T>(W::kFirstOffset).x, second = unpack2<T>(W::kSecondOffset).x;
    for (int i = 0; i < 2; ++i) {
      offsets[i] = PairOfTf32(fmaf(first, sums[i], second * sums[2 + i]));
      plain_sums[i] = PairOfTf32(sums[i] + sums[2 + i]);
    }
  }

  // ---- products
  // A tile's rows 0 to 7 and 8 to 15 are neighbours; of gated products gates and what they gate, half a stage apart.
  const int half_rows = gated ? kRows : kRows / 2;
  // Of ldmatrix: lane l gives row l % 8 of matrix l / 8; matrices are rows 0 to 7 and 8 to 15 of one vector, then of the next.
  const uint32_t lane_weights = ((lane / 8 % 2 * half_rows + lane % 8) * kVectors + (lane / 16 ^ lane % 8)) * 16;
  const auto multiply = [&](int slot, int first_row) {
    const Numbers& own = numbers[slot];
    uint32_t scales[2][kBlocks / 2];
    float acc[4] = {}, own_scales[4];  // rows g and g + 8 in block t, then in t + 4
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first_row + g + h * half_rows;
      const uint32_t* const from = own.scales[row];
      if constexpr (kBlocks == 8) {
        const uint4 four = *reinterpret_cast<const uint4*>(from);
        scales[h][0] = four.x, scales[h][1] = four.y, scales[h][2] = four.z, scales[h][3] = four.w;
      } else if constexpr (kBlocks == 4) {
        const uint2 two = *reinterpret_cast<const uint2*>(from);
        scales[h][0] = two.x, scales[h][1] = two.y;
      } else {
        scales[h][0] = from[0];
      }
      const T* const halves = reinterpret_cast<const T*>(from);
      own_scales[h] = kBlocks >= 4 || t < kBlocks ? to_float(halves[t]) : 0.0f;
      own_scales[2 + h] = kBlocks == 8 ? to_float(halves[t + 4]) : 0.0f;
    }
    mma_tf32(acc, own_scales, offsets[0].high, offsets[1].high);
    mma_tf32(acc, own_scales, offsets[0].low, offsets[1].low);
    if constexpr (kZeros) {
      // A scale times 8 - zero point has too many digits for one of these numbers.
      float high[4], low[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t zeros = own.zeros[first_row + g + e % 2 * half_rows] >> ((part * kBlocks % 8 + t + e / 2 * 4) * 4 & 31);
        const PairOfTf32 product(own_scales[e] * static_cast<float>(8 - static_cast<int>(zeros & 15)));
        high[e] = product.high, low[e] = product.low;
      }
      mma_tf32(acc, high, plain_sums[0].high, plain_sums[1].high);
      mma_tf32(acc, high, plain_sums[0].low, plain_sums[1].low);
      mma_tf32(acc, low, plain_sums[0].high, plain_sums[1].high);
    }
    const uint32_t stage_weights = shared_address(weights[slot][first_row]) + lane_weights;
    float sum[4];
#pragma unroll
    for (int pair = 0; pair < kVectors; pair += 2) {
      uint32_t words[4];
      ldmatrix_x4(words, stage_weights ^ pair * 16);
#pragma unroll
      for (int v = pair; v < pair + 2; ++v) {
        const int b = v / kBlockVectors;
        if (v % kBlockVectors == 0) sum[0] = sum[1] = sum[2] = sum[3] = 0;
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          uint32_t fragment[4];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t word[1] = {words[2 * (v - pair) + h]};
            W::fragment(word, q, fragment[h], fragment[2 + h]);
          }
          mma_into<T>(sum, fragment, x[v][2 * q], x[v][2 * q + 1], sum);
        }
        if ((v + 1) % kBlockVectors == 0) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float2 two = unpack2<T>(scales[h][b / 2]);
            const float scale = b % 2 == 0 ? two.x : two.y;
            acc[2 * h] = fmaf(scale, sum[2 * h], acc[2 * h]);
            acc[2 * h + 1] = fmaf(scale, sum[2 * h + 1], acc[2 * h + 1]);
          }
        }
      }
    }
    return make_float4(acc[0], acc[1], acc[2], acc[3]);
  };

  // Of a step's sums, 32 numbers of a tile at a time: each warp has its turns.
  int piece = warp;
  const auto add_up = [&](int i) {
    constexpr int kPieces = sizeof(float4) / sizeof(float);  // of a tile
    const int turn = i % kTurns, pieces = kPieces * min(kStepTiles, tiles - i * kStepTiles);
    full[turn].wait(i / kTurns & 1);
#pragma unroll 1
    for (; piece < pieces; piece += warps) {
      const int tile = piece / kPieces, number = piece % kPieces * kWarp + lane;
      const float* const from = reinterpret_cast<const float*>(sums + (turn * kStepTiles + tile) * threads) + number;
      float total = from[0];
#pragma unroll 4
      for (int w = 1; w < warps; ++w) total += from[w * kWarp * kPieces];
      reinterpret_cast<float*>(totals + (i * kStepTiles + tile) * kWarp)[number] = total;
    }
    piece -= pieces;
    empty[turn].arrive();
  };
  int slot = 0;
  uint32_t phase = 0;
  __syncthreads();  // all see the barriers
  for (int i = 0; i < steps; ++i) {
    const int turn = i % kTurns, step_tiles = min(kStepTiles, tiles - i * kStepTiles);
    cp_async_wait<kDepth - 1>();
    if (part_there) arrived[slot].wait(phase);
    __syncwarp();
    float4* const here = sums + turn * kStepTiles * threads + tid;
#pragma unroll 1
    for (int tile = 0; tile < step_tiles; ++tile) {
      const float4 sum = part_there ? multiply(slot, tile * args.tile_rows) : make_float4(0, 0, 0, 0);
      if (tile == 0 && i >= kTurns) empty[turn].wait(i / kTurns - 1 & 1);
      here[tile * threads] = sum;
    }
    full[turn].arrive();
    __syncwarp();  // the slot has been read by all
    copy_numbers(i + kDepth);
    copy_weights(i + kDepth);
    if (++slot == kDepth) slot = 0, phase ^= 1;
    if (i > 0) add_up(i - 1);
  }
  add_up(steps - 1);
  cp_async_wait<0>();

  // ---- the end: of the cluster's tiles each block finishes some
  if (args.cluster > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
#pragma unroll 1
  for (int i = rank + args.cluster * warp; i < tiles; i += args.cluster * warps) {
    float4 total = totals[i * kWarp + lane];
    if (args.cluster > 1) {
      total = make_float4(0, 0, 0, 0);
      for (int r = 0; r < args.cluster; ++r) {
        const float4 other = load_remote_4(remote_address(&totals[i * kWarp + lane], r));
        total.x += other.x, total.y += other.y, total.z += other.z, total.w += other.w;
      }
    }
    const int64_t column = static_cast<int64_t>(first_tile + i) * args.tile_rows + g;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = 2 * t + e;
      if (token >= args.m || column >= args.n) continue;
      const float low = e == 0 ? total.x : total.y, high = e == 0 ? total.z : total.w;
      if (gated) {
        out.store_gated(token, column, low, high);
      } else {
        out.store(token, column, low);
        if (column + 8 < args.n) out.store(token, column + 8, high);
      }
    }
  }
  if (args.cluster > 1) {  // a block's sums stay while another reads them
    cluster_arrive_relaxed();
    cluster_wait();
  }
#endif
}

// In microseconds on an H200, but for what all shares have in common: a multiprocessor reads a part in 0.07, a warp works
// through its ring at 0.33 a part.
double cost(const Shares& s) {
  return s.most_tiles * std::max(0.07 * s.warps * s.per_sm, 0.33) + (s.cluster > 1 ? 0.6 : 0);
}

// Visits all numbers of blocks in a cluster that do, until a visit returns true; whether one did.
template <typename Visit>
bool visit_shares(const GemmProblem& p, const DeviceInfo& d, const Visit& visit) {
  Shares shares;
  for (int cluster = 1; cluster <= kMaxCluster; ++cluster)
    if (share(p, d, cluster, &shares) && visit(shares)) return true;
  return false;
}

void splits(const GemmProblem& p, const DeviceInfo& d, std::vector<GemmSplit>* out) {
  visit_shares(p, d, [out](const Shares& s) { return out->push_back({s.cluster}), false; });
}

// More than twice as many blocks as have to be only wait for each other.
GemmSplit split(const GemmProblem& p, const DeviceInfo& d) {
  GemmSplit best;
  int fewest = 0;
  double least = std::numeric_limits<double>::infinity();
  visit_shares(p, d, [&](const Shares& s) {
    if (fewest == 0) fewest = s.cluster;
    if (cost(s) < least) best.pieces = s.cluster, least = cost(s);
    return s.cluster >= 2 * fewest;
  });
  return best;
}

// What an H200 liked: weights large enough to make up for the start.
bool suits(const GemmProblem& p, const DeviceInfo&) {
  return p.weight_format == WeightFormat::int4 && p.weight_rows() * p.k >= int64_t{1} << 26;
}

bool supports(const GemmProblem& p, const DeviceInfo& d, std::string* why) {
  if (!supports_half_gemm(p, d, why)) return false;
  if (p.weight_format != WeightFormat::int4) {
    *why = "takes int4 only";  // of all calls: short enough for no allocation
  } else if (p.m > kTokens) {
    *why = "M is above " + std::to_string(kTokens);
  } else if (d.compute_capability < 90) {
    *why = "takes compute capability 9.0 or later";
  } else if (p.k % (1 << kPartLog) != 0) {
    *why = "K is not a multiple of " + std::to_string(1 << kPartLog);
  } else if (product_row_stride(p) % 8 != 0) {
    *why = "takes rows of A that lie a multiple of 8 elements apart";
  } else if (has_whole_vectors(p, why)) {
    if (visit_shares(p, d, [](const Shares&) { return true; })) return true;
    *why = "K is more than a cluster's warps have registers for, or N more than a block keeps sums of";
  }
  return false;
}

// A box is a step's rows of a part; where gates lie apart from what they gate, half of them from each.
Status make_map(const GemmParams& params, CUtensorMap* map) {
  const GemmProblem& p = params.problem;
  const int64_t row_bytes = weight_row_bytes(p);
  const int halves = gated(p) ? 2 : 1;
  return make_tensor_map(params.b,
                         {.element_bytes = 1,
                          .columns = row_bytes,
                          .rows = p.n,
                          .planes = halves,
                          .row_stride = row_bytes,
                          .plane_stride = row_bytes * p.n,
                          .box_columns = kVectors * 16,
                          .box_rows = kStepRows / halves,
                          .box_planes = halves},
                         map);
}

template <typename T, int kBlockLog>
Status launch(const GemmParams& params, const Shares& shares, const DeviceInfo& device, cudaStream_t stream) {
  const GemmProblem& p = params.problem;
  FlatInt4Args<T> args{static_cast<const T*>(params.a), static_cast<const T*>(params.scales),
                       static_cast<const unsigned char*>(params.zero_points)};
  args.m = static_cast<int>(p.m), args.k = static_cast<int>(p.k), args.n = static_cast<int>(p.n);
  args.a_row_stride = static_cast<int>(p.a_row_stride);
  args.blocks = static_cast<int>(p.blocks());
  args.tile_rows = tile_rows(p);
  args.upper = gated(p) ? args.n : kRows;
  args.tiles_each = shares.tiles / shares.clusters, args.tiles_over = shares.tiles % shares.clusters;
  args.cluster = shares.cluster;
  args.next = NextWeight(params, int64_t{shares.clusters} * shares.cluster);

  CUtensorMap map;
  FDPP_RETURN_IF_ERROR(make_map(params, &map));
  static SharedMemoryGrant grants[2];
  const bool zeros = params.zero_points != nullptr;
  const auto kernel = zeros ? flat_int4_kernel<T, kBlockLog, true> : flat_int4_kernel<T, kBlockLog, false>;
  FDPP_RETURN_IF_ERROR(grants[zeros].ensure(reinterpret_cast<const void*>(kernel)));
  const OverlappedLaunch launched(int64_t{shares.clusters} * shares.cluster, shares.warps * kWarp,
                                  static_cast<size_t>(shares.shared_bytes), stream, device, shares.cluster);
  return check_gpu(cudaLaunchKernelEx(&launched.config, kernel, args, Epilogue<T>(params), map), "cuda_flat_int4");
}

template <typename T>
Status launch_blocks(const GemmParams& params, const Shares& shares, const DeviceInfo& device, cudaStream_t stream) {
  switch (params.problem.block_size) {
    case 32: return launch<T, 5>(params, shares, device, stream);
    case 64: return launch<T, 6>(params, shares, device, stream);
    default: return launch<T, 7>(params, shares, device, stream);
  }
}

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit&) { return normalise_bytes(problem); }

Status run(const GemmParams& given, const GemmSplit& split_, void* workspace, const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  GemmParams params;
  FDPP_RETURN_IF_ERROR(normalise(given, &workspace, stream, &params));
  const GemmProblem& p = params.problem;
  const bool half = p.dtype == DType::f16;
  // Addresses that its copies do not take: the planner knows nothing of them.
  const auto at = [](const void* data, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; };
  if (!at(params.a, 16) || !at(params.b, 16) || !at(params.scales, 16) || !at(params.zero_points, 4))
    return (half ? kFlatHalfInt4 : kFlatBf16Int4)(params, {}, device, stream);
  Shares shares;
  if (!share(p, device, split_.pieces, &shares)) (void)share(p, device, split(p, device).pieces, &shares);
  return half ? launch_blocks<__half>(params, shares, device, stream)
              : launch_blocks<__nv_bfloat16>(params, shares, device, stream);
}

}  // namespace

extern const GemmVariant kCudaFlatInt4;
const GemmVariant kCudaFlatInt4 = {"cuda_flat_int4",
                                   Backend::cuda,
                                   GemmKind::flat,
                                   "M up to 8 with int4 weights on tensor cores, tokens in registers, K shared by warps",
                                   supports,
                                   split,
                                   workspace_bytes,
                                   run,
                                   splits,
                                   suits};

}  // namespace fdpp
