// Decode attention in one launch. A cluster of blocks works on one piece (decode_schedule.cuh): in each block a
// producer warp streams tiles of keys and values through a ring of shared memory and four consumer warps compute on
// them; then the blocks of the cluster, and the pieces of a unit, put their sums together.
//
// No block waits for another that may not run yet: within a cluster all blocks run at once, and of the pieces of a unit
// the last one to arrive combines. The arrival flags lie in the workspace, whose contents are arbitrary: a flag counts
// as set where it holds the launch's own 64-bit number, and who combines clears them for a replay of the same launch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/decode.h"
#include "kernels/attention/cuda/decode_schedule.cuh"
#include "kernels/attention/cuda/decode_tile.cuh"
#include "kernels/common/pipeline.cuh"

namespace fdpp {

inline constexpr int kConsumerWarps = 4;
inline constexpr int kConsumers = 32 * kConsumerWarps;
inline constexpr int kDecodeThreads = kConsumers + 32;
inline constexpr int kConsumerBarrier = 1, kNewTokensBarrier = 2, kStartBarrier = 3;  // 0 is __syncthreads()'s

// NT groups of 8 query rows a warp, WR warps side by side over rows, the others over keys.
template <typename C, int D, int NT, int WR>
struct DecodeShape {
  static constexpr int kRows = 8 * NT * WR;
  static constexpr int kKeyWarps = kConsumerWarps / WR;
  // Short rows make long tiles, unless many query rows need the registers.
  static constexpr int kTileKeys = NT == 1 && D * sizeof(C) <= kPanelRow ? 128 : 64;
  static constexpr int kSubtiles = kTileKeys / kSubtileKeys / kKeyWarps;  // of a tile, for one warp
  static constexpr int kPanels = D * sizeof(C) / kPanelRow;
  static constexpr int kPanelColumns = kPanelRow / sizeof(C);
  static constexpr int kTilePanel = kTileKeys * kPanelRow;
  static constexpr int kTileBytes = kPanels * kTilePanel;
  static constexpr int kNewPanel = kMaxDecodeTokens * kPanelRow;
  static constexpr int kUnits = D / 4;    // quads of columns
  // Many rows give many blocks enough to do by themselves: they need no clusters.
  static constexpr bool kClusters = WR == 1;
  static constexpr int kInbox = kClusters ? kRows * kUnits + kLargestCluster : 1;
  static constexpr int kSumPitch = D + 4;  // rows 2 t and 2 t + 1 of four lanes fall into different banks

  struct Fixed {
    unsigned char new_keys[kPanels * kNewPanel], new_values[kPanels * kNewPanel];
    alignas(16) unsigned char query[kRows * (D + 8) * 2];
    float query_rms[kRows];
    int left_rows;
    int wasted_slots;
    alignas(8) Barrier full[kMaxDecodeSlots], empty[kMaxDecodeSlots];
    Barrier inbox_full;
    // What the blocks of the cluster send of the part of the sums that this one is to finish, block after block.
    alignas(16) float4 inbox[kInbox];
    float2 inbox_norms[kInbox];
  };
  // Takes the place of the ring once the keys are done with.
  struct Sums {
    float values[kKeyWarps][kRows][kSumPitch];
    float2 norms[kKeyWarps][kRows];
  };
  static_assert(kMaxDecodeTokens == kSubtileKeys, "new tokens are one subtile");
};

// Blocks that a multiprocessor's registers are to hold without spilling: while one starts or ends, others stream.
// Filling the ring with cp.async takes more registers than telling the copy engine.
template <int D, int NT, int WR, bool kBulk>
inline constexpr int kDecodeBlocks = std::max(
    (WR > 1 || NT * D >= 384 ? 1 : NT * D <= 64 ? 4 : NT * D <= 128 ? 3 : 2) - (kBulk ? 0 : 1), 1);

// Sums with one reference: m, the reference; l, the sum of weights; left: some part left phi's interval.
struct JointSum {
  float4 sum = make_float4(0, 0, 0, 0);
  float m = -INFINITY;
  float l = 0;
  bool left = false;

  // Joins N more parts at once; `norms` as DecodeTile::norm() gives them, m = -inf for a part that is none.
  template <int N>
  __device__ __forceinline__ void add(const float2 (&norms)[N], const float4 (&parts)[N]) {
    float top = m;
#pragma unroll
    for (int i = 0; i < N; ++i) top = fmaxf(top, norms[i].x);
    if (top == -INFINITY) return;
    const float own = exp2_approx(m - top);
    l *= own;
    sum.x *= own;
    sum.y *= own;
    sum.z *= own;
    sum.w *= own;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float weight = exp2_approx(norms[i].x - top);
      l += fabsf(norms[i].y) * weight;
      left = left || signbit(norms[i].y);
      sum.x += parts[i].x * weight;
      sum.y += parts[i].y * weight;
      sum.z += parts[i].z * weight;
      sum.w += parts[i].w * weight;
    }
    m = top;
  }
  __device__ __forceinline__ float2 norm() const { return make_float2(m, left ? -l : l); }
};

template <typename T, typename C, int D, int NT, int WR, bool kBulk>
class DecodeBlock {
 public:
  using Shape = DecodeShape<C, D, NT, WR>;
  using Fixed = typename Shape::Fixed;
  using Sums = typename Shape::Sums;
  using Args = AttentionArgs<T, C>;
  using Tile = DecodeTile<T, C, D, NT, Shape::kSubtiles>;
  static constexpr bool kClusters = kBulk && Shape::kClusters;

  __device__ __forceinline__ DecodeBlock(const Args& args, const DecodeLaunch& launch, unsigned char* shared)
      : args_(args), launch_(launch), ring_(shared), sums_(*reinterpret_cast<Sums*>(shared)),
        fixed_(*reinterpret_cast<Fixed*>(shared + launch.slots * Shape::kTileBytes)) {}

  __device__ __forceinline__ void run() {
    if (threadIdx.x < launch_.slots) {
      fixed_.full[threadIdx.x].init(kBulk ? 1 : 32);
      fixed_.empty[threadIdx.x].init(kConsumerWarps);
      publish_barriers();
    }
    if (threadIdx.x == kConsumers) {
      fixed_.inbox_full.init(1);
      fixed_.left_rows = 0;
      publish_barriers();
      if constexpr (kBulk) {
        prefetch_map(&launch_.key_map);
        prefetch_map(&launch_.value_map);
      }
    }
    __syncthreads();
    if constexpr (kClusters) {
      if (launch_.cluster > 1) cluster_arrive_relaxed();
    }
    blocks_ = kClusters ? launch_.cluster : 1;
    rank_ = blockIdx.x & (blocks_ - 1);

    // The first piece is looked for, and its keys and values are brought into the L2, while the predecessor may still be
    // working: from lengths that it may be about to change. Then all but what changes memory is begun, and only then
    // it is seen whether the lengths have stayed.
    bool guesses = kBulk, begun = false;
    Piece guess;
    int32_t seqlens = first_seqlens(args_, launch_, 0);
#pragma unroll 1
    for (int round = 0;;) {
      Piece piece;
      const bool there = find_piece(args_, launch_, round, seqlens, &piece);
      const bool as_guessed = begun && there && piece == guess;
      int wasted_slots = 0;
      if (guesses) {
        if (there && is_producer()) prefetch_first_tile(piece);
        wait_for_predecessor();
      } else if (round > 0) {
        // The ring and the inboxes are free once all are done with them; all blocks of a cluster go the same rounds.
        if (!there) return;
        if constexpr (kBulk) publish_to_async_proxy();  // of insert_new()
        arrive_at_cluster();
        wait_for_cluster();
        __syncthreads();
      } else if (begun && !as_guessed) {
        wasted_slots = filled_slots_;
        if (!is_producer()) sync_threads(kConsumerBarrier, kConsumers);  // nobody reads what prepare() left
      }
      const int32_t new_seqlens = first_seqlens(args_, launch_, round);
      if (there && !as_guessed) begin(piece);
      if (guesses) {
        guesses = false;
        if (!there || !first_seqlens_suffice(launch_) || !__all_sync(~0u, seqlens == new_seqlens)) {
          begun = there;
          guess = piece;
          seqlens = new_seqlens;
          continue;
        }
      }
      if (round == 0) wait_for_cluster();
      if (!there) {
        // What was fetched for nothing must have arrived before the block ends.
        if (is_producer()) {
          for (int slot = 0; slot < wasted_slots; ++slot) fixed_.full[slot].wait(0);
        }
        return;
      }
      work(piece, wasted_slots);
      if (!piece.more) return;
      ++round;
      begun = false;
      guess = {};
      seqlens = first_seqlens(args_, launch_, round);
    }
  }

 private:
  static __device__ __forceinline__ bool is_producer() { return threadIdx.x >= kConsumers; }

  __device__ __forceinline__ void arrive_at_cluster() {
    if constexpr (kClusters) {
      if (launch_.cluster > 1) cluster_arrive();
    }
  }
  __device__ __forceinline__ void wait_for_cluster() {
    if constexpr (kClusters) {
      if (launch_.cluster > 1) cluster_wait();
    }
  }

  // What can be done for a piece that may turn out to be another one.
  __device__ __forceinline__ void begin(const Piece& p) {
    if (is_producer()) {
      next_tile_ = fill_tiles(p, first_tile(p), end_of_first_lap(p));
      filled_slots_ = 2 * ((next_tile_ - first_tile(p)) >> launch_.cluster_shift);
    } else if (p.keys.span.valid) {
      factor_ = prepare(p);
    }
  }

  // `wasted_slots`: in the producer, slots that were filled for another piece.
  __device__ __forceinline__ void work(const Piece& p, int wasted_slots) {
    id_ = p.id;
    // The new tokens go with the last tile of past keys, into whose unused rows they mostly fit.
    const int tiles = p.end_tile - p.first_tile;
    takes_new_ = p.ends_unit() && rank_ == (tiles > 0 ? (tiles - 1) & (blocks_ - 1) : 0);
    if constexpr (kClusters) {
      if (blocks_ > 1 && threadIdx.x == 0 && p.keys.span.valid) {
        const int rows = min(launch_.rows - p.row_tile * Shape::kRows, Shape::kRows);
        const int quads = first_quad(rows, rank_ + 1) - first_quad(rows, rank_);
        fixed_.inbox_full.arrive_expecting(quads * blocks_ * static_cast<uint32_t>(sizeof(float4) + sizeof(float2)));
      }
    }
    if (is_producer())
      produce(p, wasted_slots);
    else
      consume(p);
  }

  // The slot of the ring that comes next, and the parity of its phase.
  struct RingPosition {
    int slot = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance(int slots) {
      if (++slot == slots) {
        slot = 0;
        parity ^= 1;
      }
    }
  };

  // The new token of query row `row`; one token, the usual case, needs no division.
  __device__ __forceinline__ int token_of(int row) const { return args_.query_length == 1 ? 0 : row / args_.group; }

  // ---- producer

  __device__ __forceinline__ void produce(const Piece& p, int wasted_slots) {
    if (!p.keys.span.valid) return;
    if (threadIdx.x == kConsumers) fixed_.wasted_slots = wasted_slots;
    arrive_threads(kStartBarrier, kDecodeThreads);
    // The new tokens' work fits in while the first copies are under way.
    if (takes_new_) take_new_tokens(p);
    release_successor();
    fill_tiles(p, next_tile_, p.end_tile);
  }

  // A piece's tiles are dealt to the blocks of the cluster in turn: neighbours read neighbouring memory.
  __device__ __forceinline__ int first_tile(const Piece& p) const { return p.first_tile + static_cast<int>(rank_); }
  // The first tile that comes once the ring was filled.
  __device__ __forceinline__ int end_of_first_lap(const Piece& p) const {
    return min(first_tile(p) + (launch_.slots / 2 << launch_.cluster_shift), p.end_tile);
  }

  // The first tile of keys and values, into the L2.
  __device__ __forceinline__ void prefetch_first_tile(const Piece& p) const {
    if (threadIdx.x % 32 != 0 || first_tile(p) >= p.end_tile) return;
    const int first = p.keys.begin + first_tile(p) * Shape::kTileKeys, plane = plane_of(p);
    for (const CUtensorMap* map : {&launch_.key_map, &launch_.value_map}) {
      if (Shape::kPanels > 1 && launch_.whole_rows) {
        prefetch_panels(map, first, plane);
      } else {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel)
          prefetch_box(map, panel * Shape::kPanelColumns, first, plane);
      }
    }
  }
  __device__ __forceinline__ int plane_of(const Piece& p) const { return p.batch * launch_.kv_heads + p.kv_head; }

  __device__ __forceinline__ int fill_tiles(const Piece& p, int begin, int end) {
    int tile = begin;
    for (; tile < end; tile += blocks_) {
      const int first = p.keys.begin + tile * Shape::kTileKeys;
      fill(args_.key, &launch_.key_map, p, first);
      fill(args_.value, &launch_.value_map, p, first);
    }
    return tile;
  }

  // The next slot gets the tile of keys from place `first` on. What lies beyond the past keys may be anything.
  __device__ __forceinline__ void fill(const CacheRows<C>& cache, const CUtensorMap* map, const Piece& p, int first) {
    RingPosition& position = position_;
    Barrier& full = fixed_.full[position.slot];
    unsigned char* const to = ring_ + position.slot * Shape::kTileBytes;
    const int lane = threadIdx.x % 32;
    if constexpr (kBulk) {
      if (lane == 0) {
        fixed_.empty[position.slot].wait(position.parity ^ 1);
        full.arrive_expecting(Shape::kTileBytes);
        const int plane = plane_of(p);
        if (Shape::kPanels > 1 && launch_.whole_rows) {
          copy_panels(to, map, first, plane, &full);
        } else {
#pragma unroll
          for (int panel = 0; panel < Shape::kPanels; ++panel)
            copy_box(to + panel * Shape::kTilePanel, map, panel * Shape::kPanelColumns, first, plane, &full);
        }
      }
    } else {
      fixed_.empty[position.slot].wait(position.parity ^ 1);
      constexpr int kChunks = Shape::kPanels * 8;  // of 16 bytes, a key
      const C* const source = cache.at(p.batch, p.kv_head, first);
      const int valid = p.keys.span.first - first, bytes = args_.head_size * static_cast<int>(sizeof(C));
#pragma unroll 8
      for (int i = lane; i < Shape::kTileKeys * kChunks; i += 32) {
        const int key = i / kChunks, chunk = i % kChunks;
        const bool there = key < valid && chunk * 16 < bytes;
        const unsigned char* const from =
            reinterpret_cast<const unsigned char*>(source + (there ? key * cache.token_stride : 0)) +
            (there ? chunk * 16 : 0);
        cp_async_16(to + chunk / 8 * Shape::kTilePanel + key * kPanelRow + ((chunk ^ key) % 8) * 16, from, there);
      }
      full.arrive_after_copies();
    }
    position.advance(launch_.slots);
  }

  // New tokens into shared memory as the cache stores them, and into the cache.
  __device__ __forceinline__ void take_new_tokens(const Piece& p) {
    const CacheSpan& span = p.keys.span;
    const int lane = threadIdx.x % 32;
    for (int token = 0; token < span.tokens; ++token) {
      const float rms = inverse_rms(args_.new_key.at(p.batch, token, p.kv_head), args_.k_norm, args_.head_size,
                                    args_.norm_epsilon);
#pragma unroll
      for (int unit = lane; unit < kUnits; unit += 32) {
        const int column = unit * 4, byte = column * static_cast<int>(sizeof(C)), chunk = byte / 16;
        const int offset = chunk / 8 * Shape::kNewPanel + token * kPanelRow + ((chunk ^ token) % 8) * 16 + byte % 16;
        Quad<C> key{}, value{};
        if (column < args_.head_size) {
          key = new_key4(args_, span, p.batch, p.kv_head, token, column, rms);
          value = new_value4(args_, p.batch, p.kv_head, token, column);
          if (p.row_tile == 0) {
            *reinterpret_cast<Quad<C>*>(args_.key.at(p.batch, p.kv_head, span.first + token) + column) = key;
            *reinterpret_cast<Quad<C>*>(args_.value.at(p.batch, p.kv_head, span.first + token) + column) = value;
          }
        }
        *reinterpret_cast<Quad<C>*>(fixed_.new_keys + offset) = key;
        *reinterpret_cast<Quad<C>*>(fixed_.new_values + offset) = value;
      }
    }
    arrive_threads(kNewTokensBarrier, kDecodeThreads);
  }

  // ---- consumers

  __device__ __forceinline__ void consume(const Piece& p) {
    const int warp = threadIdx.x / 32;
    const int row_warp = warp % WR, key_warp = warp / WR;
    const int first_row = p.row_tile * Shape::kRows;
    const int rows = min(launch_.rows - first_row, Shape::kRows);
    const CacheSpan& span = p.keys.span;
    if (!span.valid) {
      if (rank_ == 0) {
        if (threadIdx.x == 0) report_fault(args_.fault, kBadSeqlens);
        fill_output(args_, p.batch, p.kv_head, first_row, rows, NAN, threadIdx.x, kConsumers);
      }
      return;
    }
    const float factor = factor_;
    const DecodeRows warp_rows{p.batch, p.kv_head, first_row + row_warp * 8 * NT, launch_.rows, span.first};
    Tile tile;
    tile.start(warp_rows, args_);
    sync_threads(kStartBarrier, kDecodeThreads);
    tile.take_query(reinterpret_cast<const T*>(fixed_.query) + row_warp * 8 * NT * Tile::kQueryPitch);
    const int first_subtile = key_warp * Shape::kSubtiles;
    const int first_place = Tile::first_place(first_subtile);
    RingPosition& position = position_;
    for (int i = fixed_.wasted_slots; i > 0; --i) {
      fixed_.full[position.slot].wait(position.parity);
      release(position);
    }
    typename Tile::Scores scores;
    const int last_key = p.keys.begin + (p.end_tile - 1) * Shape::kTileKeys;
    const bool joins = takes_new_ && p.end_tile > p.first_tile && span.length() <= last_key + Shape::kTileKeys;
    for (int t = first_tile(p); t < p.end_tile; t += blocks_) {
      const int first_key = p.keys.begin + t * Shape::kTileKeys;
      const bool with_new = joins && t == p.end_tile - 1;
      const int end = with_new ? span.length() : span.first;
      const bool edge = first_key + Shape::kTileKeys > span.first ||
                        (args_.window > 0 && first_key <= span.first + span.tokens - args_.window);
      fixed_.full[position.slot].wait(position.parity);
      unsigned char* slot = ring_ + position.slot * Shape::kTileBytes;
      if (with_new) sync_threads(kNewTokensBarrier, kDecodeThreads);
      if (with_new) insert_new(slot, fixed_.new_keys, span, first_key, first_subtile);
      tile.score({slot, Shape::kTilePanel}, first_subtile, Shape::kSubtiles, scores);
      release(position);
      tile.weigh(scores, first_key + first_place, end, edge, Shape::kSubtiles, factor, warp_rows, args_);
      fixed_.full[position.slot].wait(position.parity);
      slot = ring_ + position.slot * Shape::kTileBytes;
      if (with_new) insert_new(slot, fixed_.new_values, span, first_key, first_subtile);
      tile.add_values(scores, {slot, Shape::kTilePanel}, first_subtile, Shape::kSubtiles, end - first_key);
      release(position);
    }
    if (takes_new_ && !joins) {
      sync_threads(kNewTokensBarrier, kDecodeThreads);
      if (key_warp == Shape::kKeyWarps - 1) {
        tile.score({fixed_.new_keys, Shape::kNewPanel}, 0, 1, scores);
        tile.weigh(scores, span.first + Tile::first_place(0), span.length(), true, 1, factor, warp_rows, args_);
        tile.add_values(scores, {fixed_.new_values, Shape::kNewPanel}, 0, 1, span.tokens);
      }
    }
    tile.finish();

    sync_threads(kConsumerBarrier, kConsumers);  // nobody reads the ring any more
    leave_sums(tile, row_warp, key_warp);
    sync_threads(kConsumerBarrier, kConsumers);
    if constexpr (kClusters) {
      if (blocks_ > 1) send_sums(rows);
    }
    conclude(p, first_row, rows);
  }

  // New tokens into the rows of a tile that follow its past keys, as far as they are this warp's to work on.
  __device__ __forceinline__ void insert_new(unsigned char* slot, const unsigned char* from, const CacheSpan& span,
                                             int first_key, int first_subtile) {
    const int own_rows = first_key + first_subtile * kSubtileKeys;
    const int begin = max(span.first, own_rows), end = min(span.length(), own_rows + Shape::kSubtiles * kSubtileKeys);
#pragma unroll 1
    for (int key = begin; key < end; ++key) {
      const int row = key - first_key, token = key - span.first;
#pragma unroll
      for (int chunk = threadIdx.x % 32; chunk < Shape::kPanels * 8; chunk += 32) {  // of 16 bytes
        *reinterpret_cast<uint4*>(slot + chunk / 8 * Shape::kTilePanel + row * kPanelRow + ((chunk ^ row) % 8) * 16) =
            *reinterpret_cast<const uint4*>(from + chunk / 8 * Shape::kNewPanel + token * kPanelRow +
                                            ((chunk ^ token) % 8) * 16);
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void release(RingPosition& position) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) fixed_.empty[position.slot].arrive();
    position.advance(launch_.slots);
  }

  // Queries into shared memory, rotated. Returns what scores are to be multiplied by.
  __device__ __forceinline__ float prepare(const Piece& p) {
    const CacheSpan& span = p.keys.span;
    const int first_row = p.row_tile * Shape::kRows;
    const int rows = min(launch_.rows - first_row, Shape::kRows);
    const int group = args_.group;
    if (args_.q_norm != nullptr) {
      for (int row = threadIdx.x / 32; row < rows; row += kConsumerWarps) {
        const int token = token_of(first_row + row), head = first_row + row - token * group;
        const float rms = inverse_rms(args_.query.at(p.batch, token, p.kv_head * group + head), args_.q_norm,
                                      args_.head_size, args_.norm_epsilon);
        if (threadIdx.x % 32 == 0) fixed_.query_rms[row] = rms;
      }
      sync_threads(kConsumerBarrier, kConsumers);
    }
    const float factor = key_unit(args_, p.kv_head);

    static_assert(Shape::kRows * kUnits % kConsumers == 0);
#pragma unroll 1
    for (int step = 0; step < Shape::kRows * kUnits / kConsumers; ++step) {
      const int i = step * kConsumers + threadIdx.x, row = i / kUnits, column = i % kUnits * 4;
      const int token = token_of(first_row + row), head = first_row + row - token * group;
      float4 x = make_float4(0, 0, 0, 0);
      if (row < rows && token < span.tokens && column < args_.head_size) {
        x = prepared4(args_, args_.query.at(p.batch, token, p.kv_head * group + head), args_.q_norm,
                      fixed_.query_rms[row], column, rotary_position(args_, span, p.batch, token));
        if (args_.key_scale.per_channel)
          x = scaled4(x, args_.key_scale.at4(p.kv_head, args_.head_size, column), 1 / factor);
      }
      *reinterpret_cast<uint2*>(reinterpret_cast<T*>(fixed_.query) + row * Tile::kQueryPitch + column) = pack4<T>(x);
    }
    return factor;
  }

  __device__ __forceinline__ void leave_sums(const Tile& tile, int row_warp, int key_warp) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = row_warp * 8 * NT + Tile::local_row(n, i);
        float* const to = sums_.values[key_warp][row];
#pragma unroll
        for (int j = 0; j < Tile::kSteps; ++j) {
          to[Tile::column(j, 0)] = tile.o[j][n][i];
          to[Tile::column(j, 1)] = tile.o[j][n][i + 2];
        }
        if (threadIdx.x % 32 < 4) sums_.norms[key_warp][row] = tile.norm(n, i);
      }
    }
  }

  __device__ __forceinline__ JointSum joined_warps(int row, int column) const {
    float2 norms[Shape::kKeyWarps];
    float4 parts[Shape::kKeyWarps];
#pragma unroll
    for (int w = 0; w < Shape::kKeyWarps; ++w) {
      norms[w] = sums_.norms[w][row];
      parts[w] = *reinterpret_cast<const float4*>(&sums_.values[w][row][column]);
    }
    JointSum joint;
    joint.add(norms, parts);
    return joint;
  }

  // Block `rank` of the cluster finishes quads first_quad(rank) .. first_quad(rank + 1) - 1 of rows x units.
  __device__ __forceinline__ int first_quad(int rows, uint32_t rank) const {
    return (rows * kUnits * rank + blocks_ - 1) >> launch_.cluster_shift;
  }

  // Each quad of this block's sums goes to the block that finishes it.
  __device__ __forceinline__ void send_sums(int rows) {
    for (int i = threadIdx.x; i < rows * kUnits; i += kConsumers) {
      const JointSum joint = joined_warps(i / kUnits, i % kUnits * 4);
      const uint32_t owner = i * blocks_ / (rows * kUnits);
      const int begin = first_quad(rows, owner), count = first_quad(rows, owner + 1) - begin;
      const int place = rank_ * count + i - begin;
      const uint32_t remote_barrier = remote_address(&fixed_.inbox_full, owner);
      store_remote(remote_address(&fixed_.inbox[place], owner), joint.sum, remote_barrier);
      store_remote(remote_address(&fixed_.inbox_norms[place], owner), joint.norm(), remote_barrier);
    }
  }

  __device__ __forceinline__ JointSum joined_blocks(int quad, int count) const {
    JointSum joint;
    for (uint32_t first = 0; first < blocks_; first += kBatch) {
      float2 norms[kBatch];
      float4 parts[kBatch];
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) {
        const bool there = first + i < blocks_;
        const int place = (there ? first + i : 0) * count + quad;
        norms[i] = fixed_.inbox_norms[place];
        parts[i] = fixed_.inbox[place];
        if (!there) norms[i] = make_float2(-INFINITY, 0);
      }
      joint.add(norms, parts);
    }
    return joint;
  }

  // Where piece number `id` leaves what others of its unit need.
  __device__ __forceinline__ uint64_t* flag_of(int id) const {
    return launch_.flags + static_cast<int64_t>(id) * blocks_ + rank_;
  }
  __device__ __forceinline__ float2* norm_of(int id, int row) const {
    return launch_.norms + (static_cast<int64_t>(id) * blocks_ + rank_) * launch_.partial_rows + row;
  }
  __device__ __forceinline__ float4* sum_of(int id, int row, int column) const {
    return reinterpret_cast<float4*>(launch_.sums +
                                     (static_cast<int64_t>(id) * launch_.partial_rows + row) * args_.head_size + column);
  }

  // Where a quad of the output goes, and what it is multiplied by.
  struct Target {
    T* to;
    float4 scale;  // of the values
    float sink;    // log2 units
    bool padding;
    bool counts;   // one quad counts for its row
  };
  __device__ __forceinline__ Target target_of(const Piece& p, int row, int column) const {
    const int token = token_of(row), head = p.kv_head * args_.group + row - token * args_.group;
    Target t;
    t.to = args_.output.at(p.batch, token, head) + column;
    t.scale = make_float4(1, 1, 1, 1);
    if constexpr (sizeof(C) == 1) t.scale = args_.value_scale.at4(p.kv_head, args_.head_size, column);
    t.sink = sink_log2(args_, p.kv_head, row);
    t.padding = token >= p.keys.span.tokens;
    t.counts = column == 0;
    return t;
  }

  // This block's part of a piece's sums becomes output, or goes to the other pieces of the unit.
  __device__ __forceinline__ void conclude(const Piece& p, int first_row, int rows) {
    const int begin = first_quad(rows, rank_), end = first_quad(rows, rank_ + 1);
    const bool whole = p.count == 1;
    bool waits = blocks_ > 1;
    for (int i = begin + threadIdx.x; i < end; i += kConsumers) {
      const int row = i / kUnits, column = i % kUnits * 4;
      const bool there = column < args_.head_size;
      // Looked up while the other blocks' sums are under way.
      const Target target = target_of(p, first_row + row, there ? column : 0);
      if (waits) wait_for_inbox();
      waits = false;
      if (!there) continue;
      const JointSum joint = blocks_ > 1 ? joined_blocks(i - begin, end - begin) : joined_warps(row, column);
      if (whole) {
        emit(target, joint);
      } else {
        *sum_of(id_, row, column) = joint.sum;
        if (column == 0 || i == begin) *norm_of(id_, row) = joint.norm();
      }
    }
    if (waits) wait_for_inbox();  // nobody may still send when this block ends
    bool mine = true;
    if (!whole) {
      if (!arrive_last(p, &mine)) return;
      for (int i = begin + threadIdx.x; i < end; i += kConsumers) {
        const int row = i / kUnits, column = i % kUnits * 4;
        if (column < args_.head_size) emit(target_of(p, first_row + row, column), joined_pieces(p, row, column));
      }
    }
    if (args_.softmax.phi != nullptr) count_left(mine);
  }

  __device__ __forceinline__ void wait_for_inbox() {
    if constexpr (kClusters) {
      fixed_.inbox_full.wait_cluster(inbox_parity_);
      inbox_parity_ ^= 1;
    }
  }

  // Says that this piece's sums are there. True where all pieces' are; two pieces may both find that, then both write
  // the same output, and `mine` is true, in thread 0, in one of them.
  __device__ __forceinline__ bool arrive_last(const Piece& p, bool* mine) {
    __threadfence();
    sync_threads(kConsumerBarrier, kConsumers);
    if (threadIdx.x == 0) {
      *static_cast<volatile uint64_t*>(flag_of(id_)) = launch_.number;
      __threadfence();
    }
    sync_threads(kConsumerBarrier, kConsumers);
    bool there = true;
    for (int i = threadIdx.x; i < p.count; i += kConsumers)
      there = there && *static_cast<volatile const uint64_t*>(flag_of(p.id_of(i))) == launch_.number;
    if (!sync_threads_and(kConsumerBarrier, kConsumers, there)) return false;
    __threadfence();
    for (int i = threadIdx.x; i < p.count; i += kConsumers) {
      const bool first = atomicExch(reinterpret_cast<unsigned long long*>(flag_of(p.id_of(i))), 0ull) == launch_.number;
      if (i == 0) *mine = first;
    }
    return true;
  }

  __device__ __forceinline__ JointSum joined_pieces(const Piece& p, int row, int column) const {
    JointSum joint;
    for (int first = 0; first < p.count; first += kBatch) {
      float2 norms[kBatch];
      float4 parts[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int id = p.id_of(min(first + i, p.count - 1));
        norms[i] = __ldcg(norm_of(id, row));
        parts[i] = __ldcg(sum_of(id, row, column));
        if (first + i >= p.count) norms[i] = make_float2(-INFINITY, 0);
      }
      joint.add(norms, parts);
    }
    return joint;
  }

  __device__ __forceinline__ void emit(const Target& target, const JointSum& joint) {
    float4 x = make_float4(0, 0, 0, 0);
    if (!target.padding) {
      x = scaled4(joint.sum, target.scale, output_factor(joint.m, joint.l, target.sink));
      if (joint.left && target.counts) atomicAdd(&fixed_.left_rows, 1);
    }
    *reinterpret_cast<uint2*>(target.to) = pack4<T>(x);
  }

  __device__ __forceinline__ void count_left(bool mine) {
    sync_threads(kConsumerBarrier, kConsumers);
    if (threadIdx.x != 0 || fixed_.left_rows == 0) return;
    if (mine && args_.out_of_range_rows != nullptr)
      atomicAdd(reinterpret_cast<unsigned long long*>(args_.out_of_range_rows),
                static_cast<unsigned long long>(fixed_.left_rows));
    fixed_.left_rows = 0;  // the block's next piece counts its own
  }

  static constexpr int kUnits = Shape::kUnits;
  static constexpr int kBatch = 8;  // parts that are joined at a time

  const Args& args_;
  const DecodeLaunch& launch_;
  unsigned char* const ring_;
  Sums& sums_;
  Fixed& fixed_;
  RingPosition position_;           // the producer's, or a consumer's
  int next_tile_, filled_slots_;    // the producer's: where it goes on, and what it filled for the piece so far
  float factor_;                    // of raw scores
  uint32_t inbox_parity_ = 0;
  uint32_t blocks_ = 1, rank_ = 0;  // of the cluster
  int id_;                          // the piece's number
  bool takes_new_;                  // this block has the new tokens
};

template <typename T, typename C, int D, int NT, int WR, bool kBulk>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks<D, NT, WR, kBulk>)
    decode_kernel(const __grid_constant__ AttentionArgs<T, C> args, const __grid_constant__ DecodeLaunch launch) {
#if __CUDA_ARCH__ >= 900
  constexpr bool kRuns = true;
#else
  constexpr bool kRuns = !kBulk;  // no copy engine: the variant asks for sm_90
#endif
  if constexpr (kRuns) {
    extern __shared__ __align__(1024) unsigned char shared[];
    DecodeBlock<T, C, D, NT, WR, kBulk>(args, launch, shared).run();
  }
}

}  // namespace fdpp
