// What the host hands to the decode kernels, and the kernels themselves, one instance for each shape.
#pragma once

#include <cstdint>

#include "kernels/attention/params.h"
#include "kernels/common/gpu.h"

namespace fdpp {

inline constexpr int kMaxDecodeTokens = 16;
inline constexpr int kMaxDecodeSlots = 16;
inline constexpr int kLargestCluster = 8;  // what every GPU with clusters grants

struct DecodeLaunch {
  CUtensorMap key_map, value_map;  // of the caches [B * Hkv, L, D], where the copy engine fills the ring
  uint64_t* flags;  // [pieces, blocks of a cluster]: arrivals
  float2* norms;    // [pieces, blocks of a cluster, rows]: reference and sum of weights
  float* sums;      // [pieces, rows, D]: sums of weighted values
  uint64_t number;  // of this launch; no other launch has it
  int batch, kv_heads;
  int rows;          // query rows of a KV head: S * group
  int row_tiles;     // tiles of query rows
  int partial_rows;  // rows of a tile that are there: what norms and sums hold
  int pieces;        // wanted in all
  int least_tiles;   // of a piece
  bool whole_units;  // no unit can have more: unit u is piece u, and there are no others
  bool flows;        // blocks go from piece to piece without a pause: sums have shared memory of their own
  int clusters;      // of the grid
  int cluster, cluster_shift;  // blocks of a cluster, and their logarithm
  int slots;         // of the ring
  bool whole_rows;   // the maps have panels as groups: one copy brings a tile
  int tile_keys, tile_shift;  // keys of a tile, and their logarithm
};

// Sizes of one kernel instance.
struct DecodeInstance {
  int head_size;  // template sizes
  int rows;
  int tile_keys;
  int tile_bytes;     // of shared memory: a slot of the ring
  int fixed_bytes;    // all but the ring and the new tokens
  int sum_bytes;      // of the sums, which take the ring's place once the keys are done with, unless the launch flows
  int blocks_per_multiprocessor;  // what registers allow
  bool clusters;
  Status (*launch)(const AttentionParams& params, const DecodeLaunch& launch, int shared_bytes,
                   const ExecutionContext& context);
};

// The instances for activations of `dtype` and a cache of `cache_dtype`, smaller ones first; `bulk`: the ring is filled
// by the bulk copy engine. The list ends with one of head_size 0.
const DecodeInstance* decode_instances(DType dtype, DType cache_dtype, bool bulk);

}  // namespace fdpp
