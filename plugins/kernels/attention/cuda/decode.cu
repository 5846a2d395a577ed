// Decode attention: up to 16 new tokens a row over a long context. Chooses the kernel instance and how many blocks
// share the work, and lays out the workspace.
#include "kernels/attention/cuda/decode.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/cuda/launch.h"
#include "kernels/attention/variant.h"
#include "kernels/common/tensor_map.h"

namespace fdpp {

extern const DecodeInstance* const kDecodeHalfSameBulk;
extern const DecodeInstance* const kDecodeHalfSameAsync;
extern const DecodeInstance* const kDecodeHalfInt8Bulk;
extern const DecodeInstance* const kDecodeHalfInt8Async;
extern const DecodeInstance* const kDecodeHalfFp8Bulk;
extern const DecodeInstance* const kDecodeHalfFp8Async;
extern const DecodeInstance* const kDecodeBf16SameBulk;
extern const DecodeInstance* const kDecodeBf16SameAsync;
extern const DecodeInstance* const kDecodeBf16Int8Bulk;
extern const DecodeInstance* const kDecodeBf16Int8Async;
extern const DecodeInstance* const kDecodeBf16Fp8Bulk;
extern const DecodeInstance* const kDecodeBf16Fp8Async;

const DecodeInstance* decode_instances(DType dtype, DType cache_dtype, bool bulk) {
  const bool half = dtype == DType::f16;
  const auto pick = [&](const DecodeInstance* half_bulk, const DecodeInstance* half_async,
                        const DecodeInstance* bf16_bulk, const DecodeInstance* bf16_async) {
    if (half) return bulk ? half_bulk : half_async;
    return bulk ? bf16_bulk : bf16_async;
  };
  switch (cache_dtype) {
    case DType::i8:
      return pick(kDecodeHalfInt8Bulk, kDecodeHalfInt8Async, kDecodeBf16Int8Bulk, kDecodeBf16Int8Async);
    case DType::f8e4m3:
      return pick(kDecodeHalfFp8Bulk, kDecodeHalfFp8Async, kDecodeBf16Fp8Bulk, kDecodeBf16Fp8Async);
    default:
      return pick(kDecodeHalfSameBulk, kDecodeHalfSameAsync, kDecodeBf16SameBulk, kDecodeBf16SameAsync);
  }
}

namespace {

constexpr int kFewestSlots = 2;            // keys and values of one tile
constexpr int64_t kReservedShared = 1024;  // of each block, for the system

// The smallest instance that holds the head and, where one does, all query rows. But up to 16 rows are worked on 8 at a
// time where keys are few, and the L2 holds them for those who read them again: a block's way through 16 rows takes
// longer.
const DecodeInstance& instance_of(const AttentionProblem& p, bool bulk) {
  constexpr int64_t kFewKeys = 16384;
  const int64_t rows = p.query_length * p.group(), keys = p.batch * p.kv_heads * p.total_length;
  const int64_t wanted = rows <= 16 && keys <= kFewKeys ? std::min<int64_t>(rows, 8) : rows;
  const DecodeInstance* best = nullptr;
  for (const DecodeInstance* i = decode_instances(p.dtype, p.cache_dtype, bulk); i->head_size != 0; ++i) {
    if (i->head_size < p.head_size || (best != nullptr && i->head_size > best->head_size)) continue;
    if (best == nullptr || best->rows < wanted) best = i;
  }
  return *best;
}

// The ring of a block where `blocks` of them share a multiprocessor's shared memory.
struct Ring {
  int slots = 0;  // 0: so many do not fit
  int shared_bytes = 0;
};

// `shared_memory`: bytes that one block can have.
Ring ring_of(const AttentionProblem& p, const DecodeInstance& instance, int64_t shared_memory, int blocks,
             bool flows = false) {
  const int64_t bytes = (shared_memory + kReservedShared) / blocks - kReservedShared;
  const int64_t row_bytes = instance.tile_bytes / instance.tile_keys;
  // The new tokens' keys and values have one row each.
  const int64_t other_bytes =
      instance.fixed_bytes + 2 * p.query_length * row_bytes + (flows ? instance.sum_bytes : 0);
  const int64_t slots = std::min<int64_t>((bytes - other_bytes) / instance.tile_bytes, kMaxDecodeSlots);
  if (slots < kFewestSlots || (!flows && slots * instance.tile_bytes < instance.sum_bytes)) return {};
  return {static_cast<int>(slots), static_cast<int>(slots * instance.tile_bytes + other_bytes)};
}

// Tiles of past keys that a unit can have.
int64_t most_tiles(const AttentionProblem& p, const DecodeInstance& instance) {
  const int64_t past = p.total_length - p.query_length;
  const int64_t seen = p.window > 0 ? std::min(past, p.window - 1) : past;
  return ceil_div(seen, instance.tile_keys);
}

// The same, for sharing them out.
int64_t unit_tiles(const AttentionProblem& p, const DecodeInstance& instance) {
  return std::max<int64_t>(most_tiles(p, instance), 1);
}

int row_tiles_of(const AttentionProblem& p, const DecodeInstance& instance) {
  return static_cast<int>(ceil_div(p.query_length * p.group(), instance.rows));
}

int64_t units_of(const AttentionProblem& p, const DecodeInstance& instance) {
  return std::max<int64_t>(p.batch * p.kv_heads * row_tiles_of(p, instance), 1);
}

AttentionSplit split_of(int cluster, int64_t pieces, int blocks_per_multiprocessor) {
  AttentionSplit d;
  d.cluster = cluster;
  d.pieces = static_cast<int>(std::max<int64_t>(pieces, 1));
  d.blocks_per_multiprocessor = blocks_per_multiprocessor;
  return d;
}

// Many units: one, two or four blocks for each, the least number whose blocks come in almost whole rounds of one a
// multiprocessor, three rounds only where it holds three blocks (`most_blocks`); two where one leaves no second block to
// overlap with, unless pairs of units share their keys and values anyway. Pieces, which cost a combination through
// memory, are for longer ones.
AttentionSplit split_many(int64_t units, int64_t tiles, int64_t multiprocessors, int most_blocks, bool shared) {
  constexpr int64_t kWorthPieces = 128;  // tiles
  // Of two and three blocks a multiprocessor, what takes fewer rounds.
  const int two_or_three = ceil_div(units, 2 * multiprocessors) <= ceil_div(units, 3 * multiprocessors) ? 2 : 3;
  if (tiles < 4) return split_of(1, 1, two_or_three);
  const int most = tiles >= kWorthPieces ? 4 : 2;
  for (int blocks = units <= multiprocessors && !shared && most_blocks > 1 ? 2 : 1; blocks <= most; blocks *= 2) {
    const int64_t rounds = ceil_div(units * blocks, multiprocessors);
    if (100 * units * blocks < 93 * rounds * multiprocessors || (rounds == 3 && most_blocks < 3)) continue;
    if (blocks == 1) return split_of(1, 1, rounds == 3 ? 3 : tiles < 16 ? two_or_three : 2);
    return split_of(2, blocks / 2, rounds == 3 || (rounds > 3 && blocks == 2 && tiles < 64) ? 3 : 2);
  }
  if (units <= multiprocessors) return split_of(1, 1, 2);
  return most_blocks < 3 ? split_of(2, 1, 2) : split_of(1, 1, 3);
}

// Few units, each on a cluster: the largest power of two that stays near one block a multiprocessor; nearer where a
// multiprocessor does not hold three, and clusters of eight need more room. Where they leave most of the GPU idle they
// are cut into pieces, up to the dozen clusters of eight that draw all of the memory's speed; so are small clusters
// that have a long way to go.
AttentionSplit split_few(int64_t units, int64_t tiles, int64_t multiprocessors, int most_blocks) {
  const auto fits = [&](int64_t next) {
    return next < 8 ? 10 * units * next <= (most_blocks < 3 ? 8 : 14) * multiprocessors
                    : 4 * units * next <= 3 * multiprocessors;
  };
  const auto has_work = [&](int64_t next) { return (next < 8 ? 2 * next : next) <= tiles; };
  int cluster = 1;
  while (cluster < kLargestCluster && fits(2 * cluster) && has_work(2 * cluster)) cluster *= 2;
  const int64_t blocks = units * cluster;
  int64_t pieces = 1;
  if (3 * blocks < multiprocessors && tiles >= 16 * cluster) pieces = std::min(tiles / cluster / 4, 12 / units);
  if (cluster <= 2 && tiles >= 128 * cluster) pieces = multiprocessors / blocks;
  return split_of(cluster, pieces, cluster == 4 && 5 * blocks > 4 * multiprocessors ? 3 : 2);
}

// How many pieces units are cut into and for how many blocks each, by times measured on an H200 over the benchmark's grid.
AttentionSplit shares(const AttentionProblem& p, const DecodeInstance& instance, int64_t multiprocessors) {
  const int64_t units = units_of(p, instance), tiles = unit_tiles(p, instance);
  if (!instance.clusters) return split_of(1, 2 * multiprocessors / units, 2);
  // Where computing takes as long as reading, small clusters keep one block a multiprocessor at work; two for int8,
  // whose conversion takes longer, and for small heads, whose scores take longer beside it.
  if (p.quantized() && 3 * units <= multiprocessors && tiles * units >= 2048) {
    const int64_t blocks = multiprocessors / units * (p.cache_dtype == DType::i8 || p.head_size <= 64 ? 2 : 1);
    const int cluster = blocks % 2 == 0 ? 2 : 1;
    return split_of(cluster, blocks / cluster, 2);
  }
  const int most_blocks = instance.blocks_per_multiprocessor;
  if (instance.rows > 8 && units >= 8 && 4 * units <= multiprocessors && tiles >= (units < 16 ? 256 : 64))
    return split_of(units < 16 ? 4 : 2, multiprocessors / (2 * units), 2);
  const bool shared = row_tiles_of(p, instance) == 2;
  if (shared && units >= 16 && 4 * units <= multiprocessors && tiles >= 128)
    return split_of(2, multiprocessors / units, 2);
  return 9 * units > 4 * multiprocessors ? split_many(units, tiles, multiprocessors, most_blocks, shared)
                                         : split_few(units, tiles, multiprocessors, most_blocks);
}

// Within a step the first multiprocessors that the kernel before leaves would get several blocks and the last ones none.
// So where blocks are no more than multiprocessors and have a long way to go, each is to have one for itself, which
// takes up to 8 % from a step of four layers on an H200. With a short way it matters more that the next kernel's blocks
// find room beside them. A kernel by itself shows nothing of this: timing it does not tell.
template <bool kBulk>
bool have_own_multiprocessors(const AttentionProblem& p, const DeviceInfo& device, const AttentionSplit& d) {
  constexpr int64_t kLongWay = 16;  // tiles of a block
  const DecodeInstance& instance = instance_of(p, kBulk);
  const int64_t unit_blocks = static_cast<int64_t>(d.cluster) * d.pieces;
  return kBulk && units_of(p, instance) * unit_blocks <= device.multiprocessors &&
         unit_tiles(p, instance) >= kLongWay * unit_blocks;
}

template <bool kBulk>
AttentionSplit split(const AttentionProblem& p, const DeviceInfo& device) {
  AttentionSplit d = shares(p, instance_of(p, kBulk), device.multiprocessors);
  if (have_own_multiprocessors<kBulk>(p, device, d)) d.blocks_per_multiprocessor = 1;
  return d;
}

constexpr int kLeastTiles = 4;  // of a piece, for each block of its cluster

// Clusters of all sizes that have a tile for each block, with pieces that make for about one and two blocks a
// multiprocessor, and uncut where that alone leaves no more than three in four multiprocessors idle. A third block on a
// multiprocessor takes room from the other two, which pays where it has a third block to hold, if at all.
template <bool kBulk>
void splits(const AttentionProblem& p, const DeviceInfo& device, std::vector<AttentionSplit>* out) {
  const DecodeInstance& instance = instance_of(p, kBulk);
  const int64_t multiprocessors = device.multiprocessors, units = units_of(p, instance);
  const int64_t tiles = unit_tiles(p, instance);
  for (int cluster = 1; cluster <= (instance.clusters ? kLargestCluster : 1) && cluster <= tiles; cluster *= 2) {
    const int64_t blocks = units * cluster, most_pieces = std::max<int64_t>(tiles / (kLeastTiles * cluster), 1);
    for (int64_t filled : {0, 1, 2}) {
      if (filled == 0 && 4 * blocks < multiprocessors) continue;
      const int64_t pieces = std::clamp<int64_t>(filled * multiprocessors / blocks, 1, most_pieces);
      AttentionSplit d = split_of(cluster, pieces, 2);
      if (have_own_multiprocessors<kBulk>(p, device, d)) d.blocks_per_multiprocessor = 1;
      out->push_back(d);
      if (instance.blocks_per_multiprocessor > 2 && blocks * pieces > multiprocessors)
        out->push_back(split_of(cluster, pieces, 3));
    }
  }
}

// The launch's share of what a split says.
struct Deal {
  int cluster, clusters;
  int pieces, least_tiles;
};

Deal deal(const AttentionProblem& p, const DecodeInstance& instance, const AttentionSplit& split) {
  constexpr int64_t kMost = 1 << 20;
  const int64_t units = units_of(p, instance);
  Deal d{};
  d.cluster = instance.clusters ? split.cluster : 1;
  d.pieces = d.clusters = static_cast<int>(std::min(units * split.pieces, kMost));
  d.least_tiles = kLeastTiles * d.cluster;
  if (p.batch > 1) {
    // What is a quarter longer than the average is cut, and may be taken in a second round.
    d.pieces = std::max(d.pieces * 4 / 5, 1);
  }
  return d;
}

// What a launch gets of the GPU.
struct Room {
  Ring ring;
  bool flows;
  int clusters;  // of the grid
};

// Many short pieces: as many blocks as there is room for take one after the other, the next keys on their way.
Room room_of(const AttentionProblem& p, const DecodeInstance& instance, const AttentionSplit& split, const Deal& d,
             const DeviceInfo& device, bool bulk) {
  constexpr int64_t kShort = 64;  // tiles
  constexpr int kFlowSlots = 3;   // with fewer, the next keys would not be on their way
  const int most_blocks = std::min(split.blocks_per_multiprocessor, instance.blocks_per_multiprocessor);
  const int64_t shared_memory = device.shared_memory_per_block;
  Room room{};
  room.flows = bulk && d.cluster == 1 && most_tiles(p, instance) <= kShort &&
               d.clusters > most_blocks * device.multiprocessors &&
               ring_of(p, instance, shared_memory, most_blocks, true).slots >= kFlowSlots;
  int blocks = most_blocks + 1;
  while (room.ring.slots == 0 && blocks > 1) room.ring = ring_of(p, instance, shared_memory, --blocks, room.flows);
  room.clusters = room.flows ? blocks * device.multiprocessors : d.clusters;
  return room;
}

template <bool kBulk>
bool supports(const AttentionProblem& p, const DeviceInfo& device, std::string* why) {
  if (!takes_attention(p, device, why)) return false;
  if (kBulk && device.compute_capability < 90) {
    *why = "needs compute capability 9.0";
  } else if (p.query_length > kMaxDecodeTokens) {
    *why = "takes at most " + std::to_string(kMaxDecodeTokens) + " new tokens, not " + std::to_string(p.query_length);
  } else if (ring_of(p, instance_of(p, kBulk), device.shared_memory_per_block, 1).slots == 0) {
    *why = "needs more shared memory than the " + std::to_string(device.shared_memory_per_block) + " bytes of a block";
  } else {
    return true;
  }
  return false;
}

struct Workspace {
  size_t norms, sums;  // bytes before each
  size_t bytes;
};

int partial_rows_of(const AttentionProblem& p, const DecodeInstance& instance) {
  return static_cast<int>(std::min<int64_t>(p.query_length * p.group(), instance.rows));
}

Workspace workspace_of(const AttentionProblem& p, const DecodeInstance& instance, const Deal& d) {
  if (most_tiles(p, instance) <= d.least_tiles) return {};  // every unit is one piece
  // Each row of the batch rounds its share up.
  const size_t pieces = static_cast<size_t>(d.pieces) + static_cast<size_t>(units_of(p, instance));
  const size_t rows = static_cast<size_t>(partial_rows_of(p, instance)), cluster = static_cast<size_t>(d.cluster);
  const auto whole = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  Workspace w{};
  w.norms = whole(pieces * cluster * sizeof(uint64_t));
  w.sums = w.norms + whole(pieces * cluster * rows * sizeof(float2));
  w.bytes = w.sums + pieces * rows * p.head_size * sizeof(float);
  return w;
}

template <bool kBulk>
size_t workspace_bytes(const AttentionProblem& p, const AttentionSplit& split) {
  const DecodeInstance& instance = instance_of(p, kBulk);
  return workspace_of(p, instance, deal(p, instance, split)).bytes;
}

// A number that no other launch has and that memory does not hold by chance.
uint64_t launch_number() {
  static std::atomic<uint64_t> next{[] {
    std::random_device device;
    return static_cast<uint64_t>(device()) << 32 | device();
  }()};
  return next.fetch_add(0x9E3779B97F4A7C15, std::memory_order_relaxed) | 1;  // never 0, the cleared flag
}

// Panels of a tile that one copy brings: all where the head is whole panels.
int tile_panels(const AttentionProblem& p) {
  const int64_t bytes = p.head_size * static_cast<int64_t>(dtype_size(p.cache_dtype));
  return bytes % 128 == 0 ? static_cast<int>(bytes / 128) : 1;
}

Status make_cache_map(const CacheView& cache, const AttentionProblem& p, int tile_keys, CUtensorMap* map) {
  const int bytes = static_cast<int>(dtype_size(p.cache_dtype));
  TensorMapShape shape;
  shape.element_bytes = bytes;
  shape.columns = p.head_size;
  shape.rows = p.capacity;
  shape.planes = p.batch * p.kv_heads;
  shape.row_stride = cache.token_stride * bytes;
  shape.plane_stride = cache.head_stride * bytes;
  shape.box_columns = 128 / bytes;
  shape.box_rows = tile_keys;
  if (const int panels = tile_panels(p); panels > 1) {
    shape.columns = shape.box_columns;
    shape.groups = panels;
    shape.group_stride = 128;
  }
  return make_tensor_map(cache.data, shape, map);
}

template <bool kBulk>
Status run(const AttentionParams& params, const AttentionSplit& split, void* workspace,
           const ExecutionContext& context) {
  const AttentionProblem& p = params.problem;
  FDPP_RETURN_IF_ERROR(check_alignment(params));
  FDPP_RETURN_IF_ERROR(copy_past(params, static_cast<cudaStream_t>(context.stream)));
  const DecodeInstance& instance = instance_of(p, kBulk);
  const Deal d = deal(p, instance, split);
  const Workspace w = workspace_of(p, instance, d);
  char* const memory = static_cast<char*>(workspace);

  DecodeLaunch launch{};
  if (kBulk) {
    FDPP_RETURN_IF_ERROR(make_cache_map(params.present_key, p, instance.tile_keys, &launch.key_map));
    FDPP_RETURN_IF_ERROR(make_cache_map(params.present_value, p, instance.tile_keys, &launch.value_map));
  }
  launch.flags = reinterpret_cast<uint64_t*>(memory);
  launch.norms = reinterpret_cast<float2*>(memory + w.norms);
  launch.sums = reinterpret_cast<float*>(memory + w.sums);
  launch.number = launch_number();
  launch.batch = static_cast<int>(p.batch);
  launch.kv_heads = static_cast<int>(p.kv_heads);
  launch.rows = static_cast<int>(p.query_length * p.group());
  launch.row_tiles = row_tiles_of(p, instance);
  launch.partial_rows = partial_rows_of(p, instance);
  launch.pieces = d.pieces;
  launch.least_tiles = d.least_tiles;
  launch.whole_units = most_tiles(p, instance) <= d.least_tiles;
  launch.cluster = d.cluster;
  while ((1 << launch.cluster_shift) < launch.cluster) ++launch.cluster_shift;
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const Room room = room_of(p, instance, split, d, device, kBulk);
  launch.slots = room.ring.slots;
  launch.flows = room.flows;
  launch.clusters = room.clusters;
  launch.whole_rows = tile_panels(p) > 1;
  launch.tile_keys = instance.tile_keys;
  while ((1 << launch.tile_shift) < launch.tile_keys) ++launch.tile_shift;
  return instance.launch(params, launch, room.ring.shared_bytes, context);
}

}  // namespace

extern const AttentionVariant kCudaDecodeBulkAttention;
const AttentionVariant kCudaDecodeBulkAttention = {
    "cuda_decode_hopper",
    Backend::cuda,
    "decode: one launch for norm, rotary embedding, append and attention; keys and values through the bulk copy "
    "engine, blocks joined in clusters",
    supports<true>,
    split<true>,
    workspace_bytes<true>,
    run<true>,
    splits<true>,
};

extern const AttentionVariant kCudaDecodeAttention;
const AttentionVariant kCudaDecodeAttention = {
    "cuda_decode",
    Backend::cuda,
    "the same on cp.async, for compute capability 8.0 and later",
    supports<false>,
    split<false>,
    workspace_bytes<false>,
    run<false>,
    splits<false>,
};

}  // namespace fdpp
