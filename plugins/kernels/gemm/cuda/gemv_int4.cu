// M = 1 with int4 weights, on tensor cores: unpacking the weights is most of the work there is, so the products are to
// cost next to nothing and no weight is scaled on its own.
//
// A warp takes 8 rows of B and 8 vectors (of 32 elements, within a block of K each) of every row at a time. Of m16n8k16
// lane (g, t) = (lane / 4, lane % 4) gives 16 bytes of row g's vectors t and t + 4 as rows g and g + 8. Column c of the
// other operand has vector c of A, where the lanes of t = c % 4 have their elements of K, and zeros elsewhere. So the 8
// columns are sums of 8 vectors, each to be multiplied by its block's scale: those of columns 0 to 3 in rows 0 to 7, the
// others' in rows 8 to 15.
//
// The grid is no more than runs at once. `splits` warps side by side in K take one tile of rows after the other, their
// copies of what comes next always under way, each lane's to a place of its own in shared memory.
#include <algorithm>

#include "kernels/common/ceil_div.h"
#include "kernels/common/overlapped_launch.h"
#include "kernels/common/pipeline.cuh"
#include "kernels/common/shared_memory_grant.h"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/gemv_int4.h"
#include "kernels/gemm/cuda/prefetch.cuh"
#include "kernels/gemm/cuda/stream.cuh"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/cuda/weights.cuh"

namespace fdpp {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 8;           // of a tile
constexpr int kVectors = 8;        // of a row in a step
constexpr int kVectorLog = 5;      // its elements: 32, in 16 bytes of B
constexpr int kMaxK = 32768;       // A lies in shared memory
constexpr int kBlocksAtOnce = 3;   // on a multiprocessor, where shared memory allows
constexpr int kDepth = 4;          // steps: the one at hand, and those of which copies are under way

// What a block has in shared memory, but for A and what goes with it.
template <bool kZeros>
struct Ring {
  uint4 weights[kDepth][2][kThreads];
  uint32_t scales[kDepth][kThreads];              // two, of neighbouring blocks
  uint32_t zeros[kZeros ? kDepth : 1][kThreads];  // eight zero points
  float sums[2][kWarps][kRows];                   // of this tile and of the one before
};

template <typename T>
struct Int4Args {
  const uint4* a;
  const uint4* b;
  const T* scales;
  const unsigned char* zero_points;
  int n, vectors, row_vectors;
  int steps;  // of a row
  int blocks, block_log;
  int splits;
  NextWeight next;
};

int row_steps(const GemmProblem& p) { return static_cast<int>(ceil_div(p.k >> kVectorLog, kVectors)); }
// After the ring: A's vectors, with zeros up to a whole step; of each what takes its weights' offsets away again; and, where
// there are zero points, its plain sum.
int shared_bytes(const GemmProblem& p) {
  const bool zeros = p.has_zero_points;
  const size_t ring = zeros ? sizeof(Ring<true>) : sizeof(Ring<false>);
  return static_cast<int>(ring) + row_steps(p) * kVectors * (64 + 4 + (zeros ? 4 : 0));
}
int64_t blocks_at_once(int bytes, const DeviceInfo& device) {
  constexpr int kReserved = 1024;  // of a block
  const int64_t fit = std::max<int64_t>(1, device.shared_memory_per_block / (bytes + kReserved));
  return std::min<int64_t>(kBlocksAtOnce, fit) * device.multiprocessors;
}

template <typename T, bool kZeros>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    gemv_int4_kernel(const Int4Args<T> args, const Epilogue<T> out) {
  using W = Weights<T, WeightFormat::int4>;
  extern __shared__ __align__(128) char shared[];
  Ring<kZeros>& ring = *reinterpret_cast<Ring<kZeros>*>(shared);
  uint4* const a = reinterpret_cast<uint4*>(shared + sizeof(ring));
  float* const offsets = reinterpret_cast<float*>(a + args.steps * kVectors * 4);
  float* const plain_sums = offsets + args.steps * kVectors;

  const int tid = threadIdx.x, warp = tid / kWarp, lane = tid % kWarp, g = lane / 4, t = lane % 4;
  const int splits = args.splits, teams = kWarps / splits, team = warp / splits, first_step = warp % splits;
  const int tiles = (args.n + kRows - 1) / kRows, tiles_at_once = gridDim.x * teams;
  const int first_tile = blockIdx.x * teams + team;
  const uint64_t policy = evict_first_policy();

  // ---- copies
  // A step has a whole, even number of blocks: so what a lane takes of their scales is the same in all steps.
  const int lane_block = (2 * t << kVectorLog) >> args.block_log;
  const int stride = splits * kVectors, block_stride = (stride << kVectorLog) >> args.block_log;
  const int first_vector = first_step * kVectors, first_block = (first_vector << kVectorLog) >> args.block_log;
  struct {
    int tile, slot;
    int vector;            // the step's first
    const uint4* weights;  // where the lane's first lies
    const T* scales;
    const unsigned char* zeros;
  } next;
  const auto go_to = [&](int tile) {
    next.tile = tile, next.vector = first_vector;
    const int64_t row = min(tile * kRows + g, args.n - 1);  // sums of rows past the end are dropped
    next.weights = args.b + row * args.row_vectors + first_vector + t;
    next.scales = args.scales + row * args.blocks + first_block + (lane_block & ~1);
    if constexpr (kZeros) next.zeros = args.zero_points + row * (args.blocks / 2);
  };
  const auto copy_next = [&] {
    if (next.tile < tiles) {
      const int left = args.vectors - next.vector;
      copy_streamed_16(&ring.weights[next.slot][0][tid], next.weights, t < left, policy);
      copy_streamed_16(&ring.weights[next.slot][1][tid], next.weights + 4, t + 4 < left, policy);
      cp_async_4(&ring.scales[next.slot][tid], next.scales, 2 * t < left);
      if constexpr (kZeros) {
        const int block = ((next.vector << kVectorLog) >> args.block_log) + lane_block;
        cp_async_4(&ring.zeros[next.slot][tid], next.zeros + (block & ~7) / 2, 2 * t < left);
      }
      next.vector += stride, next.weights += stride, next.scales += block_stride;
      if (next.vector >= args.steps * kVectors) {
        go_to(next.tile + tiles_at_once);
        if (tid == 0 && next.tile >= tiles) prefetch(args.next);  // no warp of the block has more tiles
      }
    }
    if (++next.slot == kDepth) next.slot = 0;
    cp_async_commit();
  };
  next.slot = 0;
  go_to(first_tile);
#pragma unroll 1
  for (int i = 0; i < kDepth - 1; ++i) copy_next();

  // ---- A, once
  release_successor();
  wait_for_predecessor();  // nobody writes weights, but A may still be on its way
  {
    const float2 one = unpack2<T>(W::kFirstOffset), other = unpack2<T>(W::kSecondOffset);
    for (int i = tid; i < args.steps * kVectors * 4; i += kThreads) {
      const uint4 piece = i < args.vectors * 4 ? args.a[i] : make_uint4(0, 0, 0, 0);
      a[i] = piece;
      const float2 x0 = unpack2<T>(piece.x), x1 = unpack2<T>(piece.y), x2 = unpack2<T>(piece.z), x3 = unpack2<T>(piece.w);
      const float first = x0.x + x0.y + x2.x + x2.y, second = x1.x + x1.y + x3.x + x3.y;
      float offset = one.x * first + other.x * second, plain = first + second;
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        offset += __shfl_xor_sync(0xffffffffu, offset, step);
        plain += __shfl_xor_sync(0xffffffffu, plain, step);
      }
      if (i % 4 == 0) {
        offsets[i / 4] = offset;
        if constexpr (kZeros) plain_sums[i / 4] = plain;
      }
    }
  }
  __syncthreads();

  // ---- products
  const bool gives_a = g % 4 == t;
  // Of the two scales that a lane has: both, or the one of a larger block twice.
  const uint32_t scale_choice = args.block_log == kVectorLog ? 0x3210 : lane_block % 2 == 0 ? 0x1010 : 0x3232;
  uint32_t x[16] = {};
  float acc = 0;
  const auto multiply = [&](int slot, int v) {
    if (gives_a) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 four = a[(v + g) * 4 + i];
        x[4 * i] = four.x, x[4 * i + 1] = four.y, x[4 * i + 2] = four.z, x[4 * i + 3] = four.w;
      }
    }
    const float2 offset = *reinterpret_cast<const float2*>(offsets + v + 2 * t);
    const uint4 low = ring.weights[slot][0][tid], high = ring.weights[slot][1][tid];
    const uint32_t words[4][2] = {{low.x, high.x}, {low.y, high.y}, {low.z, high.z}, {low.w, high.w}};
    float sums[2][4] = {{offset.x, offset.y, offset.x, offset.y}};
#pragma unroll
    for (int w = 0; w < 4; ++w)
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        uint32_t fragment[4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t word[1] = {words[w][h]};
          W::fragment(word, q, fragment[h], fragment[2 + h]);
        }
        mma_into<T>(sums[q], fragment, x[4 * w + 2 * q], x[4 * w + 2 * q + 1], sums[q]);
      }
    const float2 scale = unpack2<T>(__byte_perm(ring.scales[slot][tid], 0, scale_choice));
    float even = t < 2 ? sums[0][0] + sums[1][0] : sums[0][2] + sums[1][2];
    float odd = t < 2 ? sums[0][1] + sums[1][1] : sums[0][3] + sums[1][3];
    if constexpr (kZeros) {
      const int block = ((v << kVectorLog) >> args.block_log) + lane_block;
      const uint32_t zeros = ring.zeros[slot][tid] >> (block & 7) * 4;
      const float2 plain = *reinterpret_cast<const float2*>(plain_sums + v + 2 * t);
      even = fmaf(static_cast<float>(8 - static_cast<int>(zeros & 15)), plain.x, even);
      const uint32_t second = args.block_log > kVectorLog ? zeros & 15 : zeros >> 4 & 15;
      odd = fmaf(static_cast<float>(8 - static_cast<int>(second)), plain.y, odd);
    }
    acc = fmaf(scale.x, even, acc);
    acc = fmaf(scale.y, odd, acc);
  };

  int slot = 0, parity = 0;
  for (int tile = first_tile; tile < tiles; tile += tiles_at_once) {
#pragma unroll 1
    for (int v = first_vector; v < args.steps * kVectors; v += stride) {
      cp_async_wait<kDepth - 2>();
      copy_next();
      multiply(slot, v);
      if (++slot == kDepth) slot = 0;
    }
    acc += __shfl_xor_sync(0xffffffffu, acc, 1);
    acc += __shfl_xor_sync(0xffffffffu, acc, 2);
    if (t == 0) ring.sums[parity][warp][g] = acc;
    acc = 0;
    if (splits > 1)
      sync_threads(1 + team, splits * kWarp);
    else
      __syncwarp();
    if (first_step == 0 && lane < kRows && tile * kRows + lane < args.n) {
      float sum = 0;
      for (int s = 0; s < splits; ++s) sum += ring.sums[parity][warp + s][lane];
      out.store(0, tile * kRows + lane, sum);
    }
    parity ^= 1;
  }
  cp_async_wait<0>();
}

template <typename T>
Status launch(const GemmParams& params, const GemmSplit& split, cudaStream_t stream) {
  const GemmProblem& p = params.problem;
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  Int4Args<T> args{static_cast<const uint4*>(params.a), static_cast<const uint4*>(params.b),
                   static_cast<const T*>(params.scales), static_cast<const unsigned char*>(params.zero_points)};
  args.n = static_cast<int>(p.n), args.vectors = static_cast<int>(p.k >> kVectorLog);
  args.row_vectors = static_cast<int>(weight_row_bytes(p) / 16);
  args.steps = row_steps(p);
  args.blocks = static_cast<int>(p.blocks()), args.block_log = block_log(p);
  args.splits = 1;
  while (2 * args.splits <= std::min({split.pieces, kWarps, args.steps})) args.splits *= 2;

  static SharedMemoryGrant grants[2];
  const bool zeros = args.zero_points != nullptr;
  const auto kernel = zeros ? gemv_int4_kernel<T, true> : gemv_int4_kernel<T, false>;
  FDPP_RETURN_IF_ERROR(grants[zeros].ensure(reinterpret_cast<const void*>(kernel)));
  const int bytes = shared_bytes(p);
  const int64_t at_once = blocks_at_once(bytes, device);
  const int64_t blocks = std::min(at_once, ceil_div(p.n, kRows * (kWarps / args.splits)));
  args.next = NextWeight(params, blocks);
  const OverlappedLaunch launched(blocks, kThreads, static_cast<size_t>(bytes), stream, device);
  return check_gpu(cudaLaunchKernelEx(&launched.config, kernel, args, Epilogue<T>(params)), "cuda_gemv (int4)");
}

}  // namespace

bool supports_gemv_int4(const GemmProblem& problem, std::string* why) {
  if (problem.m > 1) {
    *why = "M is above 1 with int4 weights";
  } else if (problem.k > kMaxK) {
    *why = "K is above " + std::to_string(kMaxK) + " with int4 weights";
  } else {
    return has_whole_vectors(problem, why);
  }
  return false;
}

// Fewest steps one after the other, with half a step for the end of a tile.
GemmSplit gemv_int4_split(const GemmProblem& problem, const DeviceInfo& device) {
  const int64_t tiles = ceil_div(problem.n, kRows), steps = row_steps(problem);
  const int64_t warps = kWarps * blocks_at_once(shared_bytes(problem), device);
  GemmSplit best;
  double least = 0;
  for (int pieces = 1; pieces <= kWarps; pieces *= 2) {
    const int64_t rounds = ceil_div(tiles, warps / pieces);
    const double cost = static_cast<double>(rounds) * (static_cast<double>(ceil_div(steps, pieces)) + 0.5);
    if (pieces == 1 || cost < least) best.pieces = pieces, least = cost;
  }
  return best;
}

Status run_gemv_int4(const GemmParams& params, const GemmSplit& split, void* stream) {
  const auto misaligned = [](const void* data, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes != 0; };
  for (auto [name, data] : {std::pair{"A", params.a}, std::pair{"B", params.b}})
    if (misaligned(data, 16))
      return invalid_argument(std::string("FdppFlatGemm: ") + name + " does not start at a multiple of 16 bytes");
  for (auto [name, data] : {std::pair{"scales", params.scales}, std::pair{"zero_points", params.zero_points}})
    if (misaligned(data, 4))
      return invalid_argument(std::string("FdppFlatGemm: ") + name + " does not start at a multiple of 4 bytes");
  const auto on = static_cast<cudaStream_t>(stream);
  return params.problem.dtype == DType::f16 ? launch<__half>(params, split, on)
                                            : launch<__nv_bfloat16>(params, split, on);
}

}  // namespace fdpp
