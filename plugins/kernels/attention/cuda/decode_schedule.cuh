// Who does what in decode attention, from the true lengths of the rows.
//
// A unit is one tile of query rows of one KV head of one row of the batch, with the past keys that these may see. Units
// are cut into pieces of about equal numbers of key tiles, as many in all as the GPU is to work on, and a cluster of
// blocks takes a piece at a time. Pieces of a unit leave partial sums, and the last of them to arrive puts the result
// together.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/args.cuh"
#include "kernels/attention/cuda/decode.h"

namespace fdpp {

// x / y for x below 2^22, in fewer steps than the compiler takes for all integers.
__device__ __forceinline__ int quotient(int x, int y) {
  int q = static_cast<int>(__fdividef(static_cast<float>(x), static_cast<float>(y)));
  const int rest = x - q * y;
  if (rest < 0) --q;
  if (rest >= y) ++q;
  return q;
}
__device__ __forceinline__ int quotient_up(int x, int y) { return quotient(x + y - 1, y); }

// The past keys that some query row of a row of the batch may see.
struct PastKeys {
  CacheSpan span;
  int begin;  // first cache place
  int tiles;
};

// An element of seqlens_k. Not through the L1, which may hold what stood there before the predecessor wrote.
template <typename T, typename C>
__device__ __forceinline__ int32_t seqlen(const AttentionArgs<T, C>& args, int batch) {
  return __ldcg(args.seqlens_k + batch);
}

// `last`: the row's seqlen().
template <typename T, typename C>
__device__ __forceinline__ PastKeys past_keys(const AttentionArgs<T, C>& args, const DecodeLaunch& launch,
                                              int32_t last) {
  PastKeys keys;
  keys.span = span_of(args, last);
  keys.begin = args.window > 0 ? max(keys.span.first - args.window + 1, 0) : 0;
  keys.tiles = (keys.span.first - keys.begin + launch.tile_keys - 1) >> launch.tile_shift;
  return keys;
}

// One piece of a unit.
struct Piece {
  int batch, kv_head, row_tile;
  PastKeys keys;
  int first_tile, end_tile;  // of the unit's tiles
  int index, count;          // among the unit's pieces
  int id;                    // among all pieces; a unit's next piece comes after one of each unit of the row

  __device__ bool ends_unit() const { return index == count - 1; }
};

// What is known of seqlens_k.
struct RowLengths {
  int32_t first;         // of first_seqlens()
  const int32_t* later;  // of rows 32 ..; null: to be looked up
};

namespace decode_detail {

__device__ __forceinline__ int warp_scan(int x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(~0u, x, distance);
    if (static_cast<int>(threadIdx.x % 32) >= distance) x += below;
  }
  return x;
}

// Rows first_row .. first_row + 31 of the batch, one a lane; rows beyond the batch have no tiles.
template <typename T, typename C>
__device__ __forceinline__ PastKeys lane_keys(const AttentionArgs<T, C>& args, const DecodeLaunch& launch,
                                              int first_row, const RowLengths& lengths) {
  const int row = first_row + threadIdx.x % 32;
  if (row >= launch.batch) return {{}, 0, -1};
  return past_keys(args, launch, first_row == 0             ? lengths.first
                                 : lengths.later != nullptr ? lengths.later[row - 32]
                                                            : seqlen(args, row));
}

}  // namespace decode_detail

// Where pieces are whole units, the seqlen() of the row of piece `id`; else of the first 32 rows, one a lane, beyond the
// batch that of its last row.
template <typename T, typename C>
__device__ __forceinline__ int32_t first_seqlens(const AttentionArgs<T, C>& args, const DecodeLaunch& launch, int id) {
  const int row = launch.whole_units ? quotient(id, launch.kv_heads * launch.row_tiles)
                                     : static_cast<int>(threadIdx.x % 32);
  return seqlen(args, min(row, launch.batch - 1));
}

// Whether find_piece() needs no other lengths than those of first_seqlens().
__device__ __forceinline__ bool first_seqlens_suffice(const DecodeLaunch& launch) {
  return launch.whole_units || launch.batch <= 32;
}

// What of a unit of `tiles` tiles goes to which piece.
struct Cut {
  int pieces;
  int size;  // tiles of each but the last
};
__device__ __forceinline__ Cut cut(int tiles, int piece_tiles) {
  const int pieces = tiles <= piece_tiles ? 1 : quotient_up(tiles, piece_tiles);
  return {pieces, pieces == 1 ? tiles : quotient_up(tiles, pieces)};
}

__device__ __forceinline__ void set_piece(const PastKeys& keys, const Cut& cut, int id, int local, int units,
                                          const DecodeLaunch& launch, Piece* p) {
  p->keys = keys;
  p->count = cut.pieces;
  p->index = cut.pieces == 1 ? 0 : quotient(local, units);
  const int unit = local - p->index * units;
  p->kv_head = launch.row_tiles == 1 ? unit : quotient(unit, launch.row_tiles);
  p->row_tile = unit - p->kv_head * launch.row_tiles;
  p->id = id;
  p->first_tile = min(p->index * cut.size, keys.tiles);
  p->end_tile = min(p->first_tile + cut.size, keys.tiles);
}

// Piece `id`, by all lanes of a warp; false where there is none. `more`: whether this cluster has another one after it.
template <typename T, typename C>
__device__ __forceinline__ bool find_piece(const AttentionArgs<T, C>& args, const DecodeLaunch& launch, int id,
                                           const RowLengths& lengths, Piece* piece, bool* more) {
  using namespace decode_detail;
  const int units = launch.kv_heads * launch.row_tiles;
  // In float32: a quotient that is whole must not round up.
  const auto tiles_of_piece = [&](int tiles) {
    const float share = __fdividef(static_cast<float>(tiles) * units, launch.pieces);
    return max(static_cast<int>(ceilf(share * (1 - 1e-6f))), launch.least_tiles);
  };
  if (launch.whole_units || launch.batch == 1) {
    const PastKeys keys = past_keys(args, launch, lengths.first);
    const Cut parts = cut(keys.tiles, launch.whole_units ? keys.tiles : tiles_of_piece(keys.tiles));
    piece->batch = launch.whole_units ? quotient(id, units) : 0;
    const int local = id - piece->batch * units, end = (launch.whole_units ? launch.batch : parts.pieces) * units;
    *more = id + launch.clusters < end;
    if (id >= end) return false;
    set_piece(keys, parts, id, local, units, launch, piece);
    return true;
  }
  PastKeys keys = lane_keys(args, launch, 0, lengths);
  int tiles = __reduce_add_sync(~0u, max(keys.tiles, 0));
  for (int first = 32; first < launch.batch; first += 32)
    tiles += __reduce_add_sync(~0u, max(lane_keys(args, launch, first, lengths).tiles, 0));
  const int piece_tiles = tiles_of_piece(tiles);
  int before = 0;
  bool found = false;
  for (int first = 0; first < launch.batch; first += 32) {
    if (first > 0) keys = lane_keys(args, launch, first, lengths);
    const Cut parts = keys.tiles < 0 ? Cut{0, 0} : cut(keys.tiles, piece_tiles);
    const int end = before + warp_scan(parts.pieces * units);
    const unsigned later = __ballot_sync(~0u, end > id);
    before = __shfl_sync(~0u, end, 31);
    if (later == 0 || found) continue;
    found = true;
    const int lane = __ffs(later) - 1;
    const Cut own{__shfl_sync(~0u, parts.pieces, lane), __shfl_sync(~0u, parts.size, lane)};
    const int begin = __shfl_sync(~0u, end, lane) - own.pieces * units;
    PastKeys own_keys;
    own_keys.span.first = __shfl_sync(~0u, keys.span.first, lane);
    own_keys.span.tokens = __shfl_sync(~0u, keys.span.tokens, lane);
    own_keys.begin = __shfl_sync(~0u, keys.begin, lane);
    own_keys.tiles = __shfl_sync(~0u, keys.tiles, lane);
    piece->batch = first + lane;
    set_piece(own_keys, own, id, id - begin, units, launch, piece);
  }
  *more = id + launch.clusters < before;
  return found;
}

}  // namespace fdpp
