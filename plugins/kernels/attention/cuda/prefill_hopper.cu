// Attention of many new tokens on sm_90a. A block stays on its multiprocessor and works through tiles of 128 or 192
// query rows of one head: one warp starts copies of queries, keys and values, warpgroups of 64 rows compute, and while
// one turns its scores into weights the tensor cores belong to the other.
//
// New values of a prompt, and its keys where they go into the cache as they come, are read where the caller has them,
// and the tiles go on to the cache from shared memory: each by a block whose query rows hold the tile's first token.
// Everything else is appended by a launch before this one.
#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/append.cuh"
#include "kernels/attention/cuda/hopper_tile.cuh"
#include "kernels/attention/cuda/launch.h"
#include "kernels/common/tensor_map.h"

namespace fdpp {
namespace {

// Where head `head` of batch row `batch` lies in a tensor map.
struct HeadPlace {
  int x_head, z_batch, z_head;

  __device__ int x(int head) const { return x_head * head; }
  __device__ int z(int batch, int head) const { return z_batch * batch + z_head * head; }
};

struct HopperLaunch {
  CUtensorMap query, key, value, output;
  CUtensorMap key_cache, value_cache;  // of the new tokens' places alone
  HeadPlace key_place, value_place, cache_place;
  bool stores_key, stores_value;  // tiles go on to the cache
  bool prepares_query;            // norm or rotary embedding: warpgroups fetch their queries themselves
  int q_heads;
  int heads;       // query heads of all batch rows
  int row_tiles;   // of each head
  int bundle;      // row tiles of one head that are neighbours in the order of work
  int tiles;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Switches for looking for faults; both cost speed when off.
constexpr bool kOverlap = true;     // scores of the next keys beside the values of the last ones
constexpr bool kTakesTurns = true;  // warpgroups start their products one after the other

// Rows first_token .. of query head `head`, and the tiles of keys that they see, if any.
struct Work {
  int batch, head, kv_head;
  int first_token;
  CacheSpan span;
  int first_tile, end_tile;

  __device__ bool empty() const { return first_tile == end_tile; }
};

// The tile that this block takes in a round. Tiles are in the order of their lengths, longest first, and every second
// round deals them out in reverse, so that blocks end together.
__device__ __forceinline__ int tile_of_round(int round) {
  return round * gridDim.x + (round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
}

template <typename S, typename T>
__device__ __forceinline__ Work find_work(const AttentionArgs<T>& args, const HopperLaunch& launch, int tile) {
  const int bundle = tile / (launch.heads * launch.bundle);
  const int end_row_tile = launch.row_tiles - bundle * launch.bundle;
  const int row_tiles = min(launch.bundle, end_row_tile);
  const int place = tile - bundle * launch.heads * launch.bundle;
  const int head = place / row_tiles;
  Work work;
  work.batch = head / launch.q_heads;
  work.head = head % launch.q_heads;
  work.kv_head = work.head / args.group;
  work.first_token = (end_row_tile - 1 - place % row_tiles) * S::kRows;
  work.span = locate(args, work.batch);
  work.first_tile = work.end_tile = 0;
  const int tokens = min(work.span.tokens - work.first_token, S::kRows);
  if (tokens <= 0) return work;
  const int first_place = work.span.first + work.first_token;
  if (args.window > 0) work.first_tile = max(first_place - args.window + 1, 0) / kTileKeys;
  work.end_tile = (first_place + tokens - 1) / kTileKeys + 1;
  return work;
}

template <typename S, typename T, typename F>
__device__ __forceinline__ void for_each_work(const AttentionArgs<T>& args, const HopperLaunch& launch, F&& f) {
  for (int round = 0; round * static_cast<int>(gridDim.x) < launch.tiles; ++round) {
    const int tile = tile_of_round(round);
    if (tile < launch.tiles) f(find_work<S>(args, launch, tile));
  }
}

template <typename S>
__device__ __forceinline__ void copy_tile(typename S::KeyTile* ring, Barrier* full, Barrier* empty,
                                          RingPlace<S::kStages>& place, const CUtensorMap& map, int x, int y, int z) {
  empty[place.stage].wait(place.parity ^ 1);
  Barrier* const barrier = &full[place.stage];
  barrier->arrive_expecting(sizeof(*ring));
#pragma unroll
  for (int panel = 0; panel < S::kPanels; ++panel)
    copy_box(ring[place.stage][panel], &map, x + panel * kPanelColumns, y, z, barrier);
  place.advance();
}

// One thread: starts all copies into shared memory, in the order in which they are used.
template <typename S, typename T>
__device__ void copy_in(const AttentionArgs<T>& args, const HopperLaunch& launch, HopperShared<S>& shared) {
  RingPlace<S::kStages> key_place, value_place;
  uint32_t query_parity = 1;
  for_each_work<S>(args, launch, [&](const Work& work) {
    if (work.empty()) return;
    if (!launch.prepares_query) {
#pragma unroll 1
      for (int group = 0; group < S::kGroups; ++group) {
        Barrier* const barrier = &shared.query_full[group];
        shared.query_empty[group].wait(query_parity);
        barrier->arrive_expecting(sizeof(shared.query[group]));
#pragma unroll
        for (int panel = 0; panel < S::kPanels; ++panel)
          copy_box(shared.query[group][panel], &launch.query, work.head * S::D + panel * kPanelColumns,
                   work.first_token + group * kGroupRows, work.batch, barrier);
      }
      query_parity ^= 1;
    }
    const auto copy_keys = [&](int tile) {
      copy_tile<S>(shared.key, shared.key_full, shared.key_empty, key_place, launch.key,
                launch.key_place.x(work.kv_head), tile * kTileKeys, launch.key_place.z(work.batch, work.kv_head));
    };
    const auto copy_values = [&](int tile) {
      copy_tile<S>(shared.value, shared.value_full, shared.value_empty, value_place, launch.value,
                launch.value_place.x(work.kv_head), tile * kTileKeys, launch.value_place.z(work.batch, work.kv_head));
    };
    copy_keys(work.end_tile - 1);
#pragma unroll 1
    for (int tile = work.end_tile - 2; tile >= work.first_tile; --tile) {
      copy_keys(tile);
      copy_values(tile + 1);
    }
    copy_values(work.first_tile);
  });
}

template <typename S>
__device__ __forceinline__ void store_tile(typename S::KeyTile* ring, Barrier* full, Barrier* empty,
                                           RingPlace<S::kStages>& place, const CUtensorMap& map, bool mine, int y,
                                           int z) {
  full[place.stage].wait(place.parity);
  if (mine) {
#pragma unroll
    for (int panel = 0; panel < S::kPanels; ++panel)
      store_box(&map, panel * kPanelColumns, y, z, ring[place.stage][panel]);
    commit_stores();
    wait_for_store_reads();
  }
  empty[place.stage].arrive();
  place.advance();
}

// One thread: tiles of new tokens go on to the cache.
template <typename S, typename T>
__device__ void copy_out(const AttentionArgs<T>& args, const HopperLaunch& launch, HopperShared<S>& shared) {
  RingPlace<S::kStages> key_place, value_place;
  for_each_work<S>(args, launch, [&](const Work& work) {
    const int z = launch.cache_place.z(work.batch, work.kv_head);
#pragma unroll 1
    for (int tile = work.end_tile - 1; tile >= work.first_tile; --tile) {
      const int token = tile * kTileKeys;
      const bool mine = token >= work.first_token && tile % args.group == work.head % args.group;
      if (launch.stores_key)
        store_tile<S>(shared.key, shared.key_full, shared.key_empty, key_place, launch.key_cache, mine, token, z);
      if (launch.stores_value)
        store_tile<S>(shared.value, shared.value_full, shared.value_empty, value_place, launch.value_cache, mine, token,
                      z);
    }
  });
  wait_for_stores();
}

// One warpgroup of a block; its threads' place in it.
struct Group {
  int index, thread, warp, lane;

  // Named barriers: 1 .. kGroups are the groups' turns, then come their own.
  template <int Groups>
  __device__ __forceinline__ void sync() const {
    sync_threads(1 + Groups + index, kGroupThreads);
  }
  template <int Groups>
  __device__ __forceinline__ void wait_for_turn() const {
    if constexpr (kTakesTurns) sync_threads(1 + index, 2 * kGroupThreads);
  }
  template <int Groups>
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (kTakesTurns) arrive_threads(1 + (index + 1 == Groups ? 0 : index + 1), 2 * kGroupThreads);
  }
};

// The group's rows of the output become `value`.
template <int D, typename T>
__device__ __forceinline__ void fill_rows(const AttentionArgs<T>& args, const Work& work, const Group& group,
                                          float value) {
  const uint32_t pair = pack2<T>(value, value);
  const int first = work.first_token + group.index * kGroupRows;
  const int rows = min(args.query_length - first, kGroupRows);
  for (int i = group.thread; i < rows * (D / 8); i += kGroupThreads)
    *reinterpret_cast<uint4*>(args.output.at(work.batch, first + i / (D / 8), work.head) + i % (D / 8) * 8) =
        make_uint4(pair, pair, pair, pair);
}

// The group's queries after norm and rotary embedding; two threads a row.
template <typename S, typename T>
__device__ __forceinline__ void prepare_query(typename S::QueryTile& query, const AttentionArgs<T>& args,
                                              const Work& work, const Group& group) {
  constexpr int D = S::D;
  const int row = group.thread / 2, first_column = group.thread % 2 * (D / 2);
  const int token = work.first_token + group.index * kGroupRows + row;
  const bool real = token < work.span.tokens;
  const T* const vector = args.query.at(work.batch, real ? token : 0, work.head);
  float factor = 1;
  if (args.q_norm != nullptr) {
    float sum = 0;
#pragma unroll 4
    for (int column = first_column; column < first_column + D / 2; column += 4) {
      const float4 x = load4(vector + column);
      sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    factor = rsqrtf(sum / D + args.norm_epsilon);
  }
  const int position = real && args.rotary_dim > 0 ? rotary_position(args, work.span, work.batch, token) : 0;
#pragma unroll 2
  for (int column = first_column; column < first_column + D / 2; column += 8) {
    uint2 low = make_uint2(0, 0), high = low;
    if (real) {
      low = pack4<T>(prepared4(args, vector, args.q_norm, factor, column, position));
      high = pack4<T>(prepared4(args, vector, args.q_norm, factor, column + 4, position));
    }
    *reinterpret_cast<uint4*>(&query[0][0][0] + panel_offset(kGroupRows, row, column)) =
        make_uint4(low.x, low.y, high.x, high.y);
  }
}

// Values that no token has written may be NaN, which a weight of 0 would not hide: rows from `first` on become zero.
template <typename S>
__device__ __forceinline__ void clear_rows(typename S::KeyTile& tile, int first, int thread) {
  constexpr int kChunks = kPanelColumns / 8;
#pragma unroll
  for (int panel = 0; panel < S::kPanels; ++panel) {
    for (int i = first * kChunks + thread; i < kTileKeys * kChunks; i += kGroupThreads)
      *reinterpret_cast<uint4*>(&tile[panel][0][0] + i * 8) = make_uint4(0, 0, 0, 0);
  }
  publish_to_async_proxy();
}

// The sums of the warp's rows, divided, by way of shared memory to the output.
template <typename S, typename T>
__device__ __forceinline__ void write_rows(const AttentionArgs<T>& args, const HopperLaunch& launch, const Work& work,
                                           const Group& group, const GroupAttention<S>& attention,
                                           typename S::OutputTile& staging) {
  constexpr int D = S::D;
  const int first = work.first_token + group.index * kGroupRows + group.warp * kFragmentRows;
  const float sink = args.head_sink == nullptr ? -INFINITY : to_float<T>(args.head_sink[work.head]) * kLog2E;
  bool real[2], left_phi[2];
  if (group.lane == 0) wait_for_store_reads();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = group.lane / 4 + 8 * i;
    real[i] = first + row < work.span.tokens;
    left_phi[i] = real[i] && group.lane % 4 == 0 && attention.reference[i].has_left(attention.phi);
    const float factor = output_factor(attention.reference[i].m, attention.l[i], sink);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const uint32_t pair = pack2<T>(attention.o[n][2 * i] * factor, attention.o[n][2 * i + 1] * factor);
      *reinterpret_cast<uint32_t*>(&staging[0][0][0] +
                                   panel_offset(kFragmentRows, row, n * 8 + group.lane % 4 * 2)) = real[i] ? pair : 0;
    }
  }
  count_out_of_range(args, left_phi[0], left_phi[1]);
  publish_to_async_proxy();
  __syncwarp();
  if (group.lane == 0 && first < args.query_length) {
#pragma unroll
    for (int panel = 0; panel < S::kPanels; ++panel)
      store_box(&launch.output, work.head * S::D + panel * kPanelColumns, first, work.batch, staging[panel]);
    commit_stores();
  }
}

template <typename S, typename T>
__device__ __forceinline__ void compute(const AttentionArgs<T>& args, const HopperLaunch& launch,
                                        HopperShared<S>& shared, const Group& group) {
  RingPlace<S::kStages> key_place, value_place;
  uint32_t query_parity = 0;
  GroupAttention<S> attention;
  // All lanes of a warp have waited for the products that read the stage.
  const auto release = [&](Barrier& empty) {
    if (group.lane == 0) empty.arrive();
  };
  if (group.index == S::kGroups - 1) group.pass_turn<S::kGroups>();

  for_each_work<S>(args, launch, [&](const Work& work) {
    if (work.empty()) {
      if (!work.span.valid() && group.thread == 0) report_fault(args.fault, kBadSeqlens);
      fill_rows<S::D>(args, work, group, work.span.valid() ? 0 : NAN);
      return;
    }
    const int position = work.span.first + work.first_token + group.index * kGroupRows;
    attention.start(args.softmax, work.head, position + group.warp * kFragmentRows, args.window);
    auto& query = shared.query[group.index];
    if (launch.prepares_query) {
      group.sync<S::kGroups>();  // every warp is done with the previous queries
      prepare_query<S>(query, args, work, group);
      publish_to_async_proxy();
      group.sync<S::kGroups>();
    } else {
      shared.query_full[group.index].wait(query_parity);
      query_parity ^= 1;
    }

    int tile = work.end_tile - 1;
    shared.key_full[key_place.stage].wait(key_place.parity);
    attention.start_scores(query, shared.key[key_place.stage]);
    attention.template wait_for_scores<0>();
    release(shared.key_empty[key_place.stage]);
    key_place.advance();
    attention.template weigh<true>(tile * kTileKeys, args.softmax);
    attention.pack_weights();
    if (work.end_tile * kTileKeys > work.span.length()) {
      shared.value_full[value_place.stage].wait(value_place.parity);
      clear_rows<S>(shared.value[value_place.stage], work.span.length() - tile * kTileKeys, group.thread);
      group.sync<S::kGroups>();
    }
    --tile;

    const auto step = [&](auto edge) {
      shared.key_full[key_place.stage].wait(key_place.parity);
      group.wait_for_turn<S::kGroups>();
      attention.start_scores(query, shared.key[key_place.stage]);
      if constexpr (!kOverlap) attention.template wait_for_scores<0>();
      shared.value_full[value_place.stage].wait(value_place.parity);
      attention.start_values(shared.value[value_place.stage]);
      group.pass_turn<S::kGroups>();
      attention.template wait_for_scores<1>();
      release(shared.key_empty[key_place.stage]);
      key_place.advance();
      attention.template weigh<decltype(edge)::value>(tile * kTileKeys, args.softmax);
      attention.wait_for_values();
      release(shared.value_empty[value_place.stage]);
      value_place.advance();
      attention.rescale();
      attention.pack_weights();
      --tile;
    };
    // From the last keys down: those that only some rows see yet, those that all see, those that some see no more.
    const int all_see_below = (position + 1) / kTileKeys;
    const int last_position = position + kGroupRows - 1;
    const int all_see_from =
        args.window > 0 ? (max(last_position - args.window + 1, 0) + kTileKeys - 1) / kTileKeys : 0;
    for (; tile >= max(all_see_below, work.first_tile);) step(std::true_type{});
    for (; tile >= max(all_see_from, work.first_tile);) step(std::false_type{});
    for (; tile >= work.first_tile;) step(std::true_type{});

    if (!launch.prepares_query) release(shared.query_empty[group.index]);
    shared.value_full[value_place.stage].wait(value_place.parity);
    attention.start_values(shared.value[value_place.stage]);
    attention.finish();
    attention.wait_for_values();
    release(shared.value_empty[value_place.stage]);
    value_place.advance();
    write_rows(args, launch, work, group, attention, shared.output[group.index][group.warp]);
  });
  if (group.index == 0) group.wait_for_turn<S::kGroups>();  // the turn that nobody takes any more
  if (group.lane == 0) wait_for_stores();
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    prefill_hopper_kernel(const __grid_constant__ AttentionArgs<typename S::T> args,
                          const __grid_constant__ HopperLaunch launch) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char raw[];
  auto& shared = *reinterpret_cast<HopperShared<S>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kGroups; ++i) {
      shared.query_full[i].init(1);
      shared.query_empty[i].init(kGroupWarps);
    }
    for (int i = 0; i < S::kStages; ++i) {
      shared.key_full[i].init(1);
      shared.value_full[i].init(1);
      shared.key_empty[i].init(S::kGroups * kGroupWarps + (launch.stores_key ? 1 : 0));
      shared.value_empty[i].init(S::kGroups * kGroupWarps + (launch.stores_value ? 1 : 0));
    }
    publish_barriers();
  }
  __syncthreads();
  wait_for_predecessor();
  if (warp < kGroupWarps) {
    lower_registers<S::kCopyRegisters>();
    if (threadIdx.x == 0) copy_in(args, launch, shared);
    if (threadIdx.x == 32 && (launch.stores_key || launch.stores_value)) copy_out(args, launch, shared);
  } else {
    raise_registers<S::kComputeRegisters>();
    const int thread = threadIdx.x % kGroupThreads;
    compute(args, launch, shared,
            Group{static_cast<int>(threadIdx.x) / kGroupThreads - 1, thread, thread / 32, thread % 32});
  }
#endif
}

bool supports(const AttentionProblem& p, const DeviceInfo& device, std::string* why) {
  if (!takes_attention(p, device, why)) return false;
  if (device.compute_capability != 90) {
    *why = "is for compute capability 9.0";
  } else if (p.head_size != 64 && p.head_size != 128) {
    *why = "takes head sizes 64 and 128";
  } else if (p.quantized() || p.has_bias()) {
    *why = "takes no 8-bit cache and no attention_bias";
  } else if (p.batch * p.q_heads * ceil_div(p.query_length, kGroupRows) > INT32_MAX / 2) {
    *why = "takes at most 2^30 tiles of query rows";
  } else {
    return true;
  }
  return false;
}

AttentionSplit split(const AttentionProblem&, const DeviceInfo&) { return {}; }
size_t workspace_bytes(const AttentionProblem&, const AttentionSplit&) { return 0; }

Status map_tokens(const TokenView& view, const AttentionProblem& p, int64_t heads, int box_rows, CUtensorMap* map) {
  const int64_t size = 2;
  return make_tensor_map(view.data,
                         {2, heads * p.head_size, p.query_length, p.batch, view.token_stride * size,
                          view.batch_stride * size, kPanelColumns, box_rows},
                         map);
}

// The first `tokens` places of each head.
Status map_cache(const CacheView& view, const AttentionProblem& p, int64_t tokens, CUtensorMap* map) {
  const int64_t size = 2;
  return make_tensor_map(view.data,
                         {2, p.head_size, tokens, p.batch * p.kv_heads, view.token_stride * size,
                          view.head_stride * size, kPanelColumns, kTileKeys},
                         map);
}

// Neighbours in the order of work run at the same time and should share keys and values in the L2 cache: about four do,
// be they heads of a group, row tiles of a head, or row tiles that follow from there being few heads.
int bundle_of(const AttentionProblem& p, int multiprocessors) {
  constexpr int64_t kSharers = 4;
  const int64_t wanted = ceil_div(kSharers * p.batch * p.kv_heads, multiprocessors);
  return static_cast<int>(std::max<int64_t>(std::min(wanted, kSharers / p.group()), 1));
}

template <typename S>
Status launch_kernel(const AttentionParams& params, const ExecutionContext& context) {
  using T = typename S::T;
  constexpr int kSharedBytes = sizeof(HopperShared<S>) + 1024;
  static_assert(kSharedBytes <= 227 * 1024, "fits the shared memory of sm_90");
  const AttentionProblem& p = params.problem;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const auto args = make_args<T, T>(params, context);

  HopperLaunch launch{};
  launch.prepares_query = p.has_norm || p.rotary_dim > 0;
  launch.stores_value = p.prompt;
  launch.stores_key = p.prompt && !launch.prepares_query;
  const HeadPlace in_cache = {0, static_cast<int>(p.kv_heads), 1};
  const HeadPlace in_tokens = {S::D, 1, 0};
  launch.cache_place = in_cache;
  launch.key_place = launch.stores_key ? in_tokens : in_cache;
  launch.value_place = launch.stores_value ? in_tokens : in_cache;
  FDPP_RETURN_IF_ERROR(map_tokens(params.query, p, p.q_heads, kGroupRows, &launch.query));
  FDPP_RETURN_IF_ERROR(map_tokens(params.output, p, p.q_heads, kFragmentRows, &launch.output));
  FDPP_RETURN_IF_ERROR(launch.stores_key ? map_tokens(params.new_key, p, p.kv_heads, kTileKeys, &launch.key)
                                         : map_cache(params.present_key, p, p.capacity, &launch.key));
  FDPP_RETURN_IF_ERROR(launch.stores_value ? map_tokens(params.new_value, p, p.kv_heads, kTileKeys, &launch.value)
                                           : map_cache(params.present_value, p, p.capacity, &launch.value));
  FDPP_RETURN_IF_ERROR(map_cache(params.present_key, p, p.total_length, &launch.key_cache));
  FDPP_RETURN_IF_ERROR(map_cache(params.present_value, p, p.total_length, &launch.value_cache));
  launch.q_heads = static_cast<int>(p.q_heads);
  launch.heads = static_cast<int>(p.batch * p.q_heads);
  launch.row_tiles = static_cast<int>(ceil_div(p.query_length, S::kRows));
  launch.bundle = std::min(bundle_of(p, device.multiprocessors), launch.row_tiles);
  launch.tiles = launch.heads * launch.row_tiles;

  const bool appends = !launch.stores_key;
  if (appends) FDPP_RETURN_IF_ERROR(launch_append(args, p, !launch.stores_value, stream));
  static SharedMemoryGrant grant;
  const auto kernel = &prefill_hopper_kernel<S>;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(kernel), kSharedBytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(launch.tiles, device.multiprocessors)));
  config.blockDim = dim3(S::kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = appends ? 1 : 0;
  return check_gpu(cudaLaunchKernelEx(&config, kernel, args, launch), "prefill_hopper_kernel");
}

Status run(const AttentionParams& params, const AttentionSplit&, void*, const ExecutionContext& context) {
  FDPP_RETURN_IF_ERROR(check_alignment(params));
  FDPP_RETURN_IF_ERROR(copy_past(params, static_cast<cudaStream_t>(context.stream)));
  const AttentionProblem& p = params.problem;
  const auto with_type = [&](auto element) {
    using T = typename decltype(element)::type;
    if (p.head_size == 64)
      return p.softcap > 0 ? launch_kernel<HopperShape<T, 64, true>>(params, context)
                           : launch_kernel<HopperShape<T, 64, false>>(params, context);
    return p.softcap > 0 ? launch_kernel<HopperShape<T, 128, true>>(params, context)
                         : launch_kernel<HopperShape<T, 128, false>>(params, context);
  };
  return p.dtype == DType::f16 ? with_type(ElementTag<__half>{}) : with_type(ElementTag<__nv_bfloat16>{});
}

}  // namespace

extern const AttentionVariant kCudaPrefillHopperAttention;
const AttentionVariant kCudaPrefillHopperAttention = {
    "cuda_prefill_hopper",
    Backend::cuda,
    "many new tokens on sm_90a: tiles of 128 or 192 query rows, copy engine and asynchronous tensor-core products",
    supports,
    split,
    workspace_bytes,
    run,
};

}  // namespace fdpp
