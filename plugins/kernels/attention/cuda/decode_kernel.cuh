// Decode attention in one launch. A cluster of blocks works on one piece (decode_schedule.cuh): in each block a
// producer warp streams tiles of keys and values through a ring of shared memory and consumer warps compute on
// them; then the blocks of the cluster, and the pieces of a unit, put their sums together.
//
// Many short pieces flow: a block takes one after the other, and the producer brings in the next one's keys meanwhile.
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
#include "kernels/attention/cuda/joint_sum.cuh"
#include "kernels/common/pipeline.cuh"

namespace fdpp {

inline constexpr int kStagedRows = 128;
inline constexpr int kConsumerBarrier = 1, kStartBarrier = 2;  // 0 is __syncthreads()'s

// NT groups of 8 query rows a warp, WR warps side by side over rows. 16 rows are two by four warps where registers allow:
// while one waits for its products, another goes on.
template <typename C, int D, int NT, int WR>
struct DecodeShape {
  static constexpr int kRows = 8 * NT * WR;
  static constexpr int kKeyWarps = WR == 4 ? 1 : 4;  // side by side over the keys of a tile
  static constexpr int kConsumerWarps = WR * kKeyWarps;
  static constexpr int kThreads = 32 * kConsumerWarps + 32;
  // Short rows make long tiles, unless many query rows need the registers.
  static constexpr int kTileKeys = WR < 4 && D * sizeof(C) <= kPanelRow ? 128 : 64;
  static constexpr int kSubtiles = kTileKeys / kSubtileKeys / kKeyWarps;  // of a tile, for one warp
  static constexpr int kPanels = (D * sizeof(C) + kPanelRow - 1) / kPanelRow;
  static constexpr int kPanelColumns = kPanelRow / sizeof(C);
  static constexpr int kTilePanel = kTileKeys * kPanelRow;
  static constexpr int kTileBytes = kPanels * kTilePanel;
  // Eight warps leave no registers for it.
  static constexpr bool kQueryInRegisters = WR != 2 && NT * D <= (NT == 1 ? 256 : 128);
  static constexpr int kUnits = D / 4;    // quads of columns
  // Many rows give many blocks enough to do by themselves: they need no clusters.
  static constexpr bool kClusters = WR < 4;
  static constexpr int kInbox = kClusters ? kRows * kUnits + kLargestCluster : 1;
  static constexpr int kSumPitch = D + 4;  // rows 2 t and 2 t + 1 of four lanes fall into different banks

  // Shared memory holds the ring, the new tokens' keys and values, and this. Tiles of new tokens have fewer rows than
  // a subtile: what is read beyond them, of this, counts for nothing.
  struct Fixed {
    alignas(16) unsigned char query[kRows * (D + 8) * 2];
    float query_rms[kRows];
    DecodeRow rows[kRows];
    int left_rows;
    int wasted_slots;
    bool more[kThreads / 32];    // of a warp's piece: here, since registers are for the keys
    bool staged[kThreads / 32];  // a warp has seen that seqlens holds what it should
    int32_t seqlens[kStagedRows];  // of rows 32 .. of the batch
    alignas(8) Barrier full[kMaxDecodeSlots], empty[kMaxDecodeSlots];
    Barrier inbox_full, new_full, new_free;
    // What the blocks of the cluster send of the part of the sums that this one is to finish, block after block.
    alignas(16) float4 inbox[kInbox];
    float2 inbox_norms[kClusters ? kLargestCluster : 1][kRows];
  };
  // Takes the place of the ring once the keys are done with, or lies behind all else where the next piece's keys come
  // in meanwhile.
  struct Sums {
    float values[kKeyWarps][kRows][kSumPitch];
    float2 norms[kKeyWarps][kRows];
  };
  static_assert(kMaxDecodeTokens == kSubtileKeys, "new tokens are one subtile");
  static_assert(sizeof(Fixed) >= kSubtileKeys * kPanelRow, "what is read beyond the new tokens is there");
};

// Blocks that a multiprocessor's registers are to hold without spilling: while one starts or ends, others stream.
// Filling the ring with cp.async takes more registers than telling the copy engine.
template <int D, int NT, int WR, bool kBulk>
inline constexpr int kDecodeBlocks = std::max(
    (WR == 4 || NT * WR * D >= 384 ? 1 : WR == 1 && NT * D <= 128 ? 3 : 2) - (kBulk ? 0 : 1), 1);

template <typename T, typename C, int D, int NT, int WR, bool kBulk>
class DecodeBlock {
 public:
  using Shape = DecodeShape<C, D, NT, WR>;
  using Fixed = typename Shape::Fixed;
  using Sums = typename Shape::Sums;
  using Args = AttentionArgs<T, C>;
  using Tile = DecodeTile<T, C, D, NT, Shape::kSubtiles, Shape::kQueryInRegisters>;
  static constexpr bool kClusters = kBulk && Shape::kClusters;
  static constexpr int kConsumerWarps = Shape::kConsumerWarps;
  static constexpr int kConsumers = 32 * kConsumerWarps;

  __device__ __forceinline__ DecodeBlock(const Args& args, const DecodeLaunch& launch, unsigned char* shared)
      : args_(args), launch_(launch), ring_(shared), new_keys_(shared + launch.slots * Shape::kTileBytes),
        new_values_(new_keys_ + Shape::kPanels * new_panel()),
        fixed_(*reinterpret_cast<Fixed*>(new_values_ + Shape::kPanels * new_panel())),
        sums_(*reinterpret_cast<Sums*>(launch.flows ? reinterpret_cast<unsigned char*>(&fixed_ + 1) : shared)) {}

  __device__ __forceinline__ void run() {
    int id = blockIdx.x >> launch_.cluster_shift;
    RowLengths lengths{first_seqlens(args_, launch_, id), nullptr};
    if (launch_.whole_units || launch_.batch == 1) lengths.first = __shfl_sync(~0u, lengths.first, 0);  // one state
    if (can_guess() && !first_seqlens_suffice(launch_)) {
      for (int row = 32 + threadIdx.x; row < launch_.batch; row += Shape::kThreads)
        fixed_.seqlens[row - 32] = seqlen(args_, row);
      lengths.later = fixed_.seqlens;
    }
    fixed_.staged[threadIdx.x / 32] = false;
    if (threadIdx.x < launch_.slots) {
      fixed_.full[threadIdx.x].init(kBulk ? 1 : 32);
      fixed_.empty[threadIdx.x].init(kReleases * kConsumerWarps);
      publish_barriers();
    }
    if (threadIdx.x == kConsumers) {
      fixed_.inbox_full.init(1);
      fixed_.new_full.init(32);
      fixed_.new_free.init(kConsumerWarps);
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

    // The first piece is looked for, and its first keys and values are brought into the L2, while the predecessor may
    // still be working: from lengths that it may be about to change, and of which each warp may see another state.
    // After it has ended, all but what changes memory is begun, and only then it is seen whether the lengths have
    // stayed: by the producer for itself, by the consumers together.
    bool guesses = kBulk;
    int wasted_slots = 0;
#pragma unroll 1
    for (;;) {
      Piece piece;
      const bool is_first = id < launch_.clusters;
      bool* const more = &fixed_.more[threadIdx.x / 32];
      const bool there = (!guesses || can_guess()) && find_piece(args_, launch_, id, lengths, &piece, more);
      if (guesses) {
        if (there && is_producer()) prefetch_first_tile(piece);
        wait_for_predecessor();
      } else if (!is_first && !there) {
        return;
      } else if (!is_first && !launch_.flows) {
        // The ring and the inboxes are free once all are done with them; all blocks of a cluster go the same rounds.
        if constexpr (kBulk) publish_to_async_proxy();  // of insert_new() and clear_values()
        arrive_at_cluster();
        wait_for_cluster();
        __syncthreads();
      }
      const int32_t first = first_seqlens(args_, launch_, id);
      if (there && (is_producer() || !guesses || can_prepare_early())) begin(piece, wasted_slots);
      if (guesses) {
        guesses = false;
        const bool stayed = there && have_stayed(lengths, first);
        fixed_.staged[threadIdx.x / 32] = stayed && lengths.later != nullptr;
        const bool right = is_producer() ? stayed
                                         : sync_threads_and(kConsumerBarrier, kConsumers, stayed && can_prepare_early());
        if (!right) {
          lengths = {first, nullptr};
          if (there && is_producer()) wasted_slots = first_tile(piece) < piece.end_tile ? 2 : 0;
          continue;
        }
      }
      if (is_first) wait_for_cluster();
      if (!there) {
        // What was fetched for nothing must have arrived before the block ends.
        if (is_producer()) {
          for (int slot = 0; slot < wasted_slots; ++slot) fixed_.full[slot].wait(0);
        }
        return;
      }
      work(piece, is_first, wasted_slots);
      const bool goes_on = fixed_.more[threadIdx.x / 32];
      __syncwarp();  // no lane may find the next piece before all have read this
      if (!goes_on) return;
      id += launch_.clusters;
      wasted_slots = 0;
      lengths = {first_seqlens(args_, launch_, id), fixed_.staged[threadIdx.x / 32] ? fixed_.seqlens : nullptr};
    }
  }

 private:
  static __device__ __forceinline__ bool is_producer() { return threadIdx.x >= kConsumers; }

  __device__ __forceinline__ bool can_guess() const {
    return kBulk && (first_seqlens_suffice(launch_) || launch_.batch <= 32 + kStagedRows);
  }
  // Warps that guess differently must not meet at barriers in prepare(), which a norm takes.
  __device__ __forceinline__ bool can_prepare_early() const { return args_.q_norm == nullptr; }
  // Whether lengths, all or those that count here, still are what they were; `first`: what first_seqlens() has become.
  __device__ __forceinline__ bool have_stayed(const RowLengths& lengths, int32_t first) const {
    bool same = first == lengths.first;
    if (lengths.later != nullptr) {
#pragma unroll 4
      for (int row = 32 + threadIdx.x % 32; row < launch_.batch; row += 32)
        same = same && seqlen(args_, row) == lengths.later[row - 32];
    }
    return __all_sync(~0u, same);
  }

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
  __device__ __forceinline__ void begin(const Piece& p, int wasted_slots) {
    if (is_producer()) {
      fill_tiles(p, first_tile(p), end_of_begun(p, wasted_slots));
    } else if (p.keys.span.valid()) {
      factor_ = prepare(p);
    }
  }

  // `wasted_slots`: in the producer, slots that were filled for another piece.
  __device__ __forceinline__ void work(const Piece& p, bool is_first, int wasted_slots) {
    // The new tokens go with the last tile of past keys, into whose unused rows they mostly fit.
    const int tiles = p.end_tile - p.first_tile;
    takes_new_ = p.ends_unit() && rank_ == (tiles > 0 ? (tiles - 1) & (blocks_ - 1) : 0);
    if constexpr (kClusters) {
      if (blocks_ > 1 && threadIdx.x == 0) {
        const int rows = p.keys.span.valid() ? rows_of(p) : 0;
        const int begin = first_quad(rows, rank_), end = first_quad(rows, rank_ + 1);
        const uint32_t norms = begin < end ? (end - 1) / kUnits - begin / kUnits + 1 : 0;
        fixed_.inbox_full.arrive_expecting(blocks_ * ((end - begin) * sizeof(float4) + norms * sizeof(float2)));
      }
    }
    if (is_producer())
      produce(p, is_first, wasted_slots);
    else
      consume(p, is_first);
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

  // Bytes of a panel of new tokens.
  __device__ __forceinline__ int new_panel() const { return args_.query_length * kPanelRow; }

  // Query rows of the piece.
  __device__ __forceinline__ int rows_of(const Piece& p) const {
    return min(launch_.rows - p.row_tile * Shape::kRows, Shape::kRows);
  }

  // The new token of query row `row`; one token, the usual case, needs no division.
  __device__ __forceinline__ int token_of(int row) const { return args_.query_length == 1 ? 0 : row / args_.group; }

  // ---- producer

  __device__ __forceinline__ void produce(const Piece& p, bool is_first, int wasted_slots) {
    if (is_first) {
      if (threadIdx.x == kConsumers) fixed_.wasted_slots = wasted_slots;
      arrive_threads(kStartBarrier, Shape::kThreads);
    }
    if (!p.keys.span.valid()) return;
    // The new tokens' work fits in while the first copies are under way.
    const int end_of_lap = min(first_tile(p) + (launch_.slots / 2 << launch_.cluster_shift), p.end_tile);
    const int next = fill_tiles(p, end_of_begun(p, wasted_slots), end_of_lap);
    if (takes_new_) take_new_tokens(p);
    release_successor();
    fill_tiles(p, next, p.end_tile);
  }

  // A piece's tiles are dealt to the blocks of the cluster in turn: neighbours read neighbouring memory.
  __device__ __forceinline__ int first_tile(const Piece& p) const { return p.first_tile + static_cast<int>(rank_); }
  // Where what begin() fills ends: after the first tile, if there is one. After a wrong guess it fills none: it might
  // wait for slots that consumers free only once they have started.
  __device__ __forceinline__ int end_of_begun(const Piece& p, int wasted_slots) const {
    return first_tile(p) + (first_tile(p) < p.end_tile && wasted_slots == 0 ? static_cast<int>(blocks_) : 0);
  }

  // The first tile of keys and values, into the L2.
  __device__ __forceinline__ void prefetch_first_tile(const Piece& p) const {
    if (threadIdx.x % 32 != 0 || first_tile(p) >= p.end_tile) return;
    const int first = p.keys.begin + first_tile(p) * Shape::kTileKeys, plane = plane_of(p);
    for (const CUtensorMap* map : {&launch_.key_map, &launch_.value_map}) {
      if (Shape::kPanels > 1 && launch_.whole_rows) {
        prefetch_groups(map, first, plane);
      } else {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel)
          prefetch_box(map, panel * Shape::kPanelColumns, first, plane);
      }
    }
  }
  __device__ __forceinline__ int plane_of(const Piece& p) const { return p.batch * launch_.kv_heads + p.kv_head; }

  // Tiles from `begin` on; returns the first one that is not below `end`.
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
        const uint64_t policy = evict_first_policy();
        if (Shape::kPanels > 1 && launch_.whole_rows) {
          copy_groups(to, map, first, plane, &full, policy);
        } else {
#pragma unroll
          for (int panel = 0; panel < Shape::kPanels; ++panel)
            copy_box(to + panel * Shape::kTilePanel, map, panel * Shape::kPanelColumns, first, plane, &full, policy);
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
    fixed_.new_free.wait(new_parity_ ^ 1);
    for (int token = 0; token < span.tokens; ++token) {
      const float rms = inverse_rms(args_.new_key.at(p.batch, token, p.kv_head), args_.k_norm, args_.head_size,
                                    args_.norm_epsilon);
#pragma unroll
      for (int unit = lane; unit < kUnits; unit += 32) {
        const int column = unit * 4, byte = column * static_cast<int>(sizeof(C)), chunk = byte / 16;
        const int offset = chunk / 8 * new_panel() + token * kPanelRow + ((chunk ^ token) % 8) * 16 + byte % 16;
        Quad<C> key{}, value{};
        if (column < args_.head_size) {
          key = new_key4(args_, span, p.batch, p.kv_head, token, column, rms);
          value = new_value4(args_, p.batch, p.kv_head, token, column);
          if (p.row_tile == 0) {
            *reinterpret_cast<Quad<C>*>(args_.key.at(p.batch, p.kv_head, span.first + token) + column) = key;
            *reinterpret_cast<Quad<C>*>(args_.value.at(p.batch, p.kv_head, span.first + token) + column) = value;
          }
        }
        *reinterpret_cast<Quad<C>*>(new_keys_ + offset) = key;
        *reinterpret_cast<Quad<C>*>(new_values_ + offset) = value;
      }
    }
    fixed_.new_full.arrive();
    new_parity_ ^= 1;
  }

  // ---- consumers

  __device__ __forceinline__ void consume(const Piece& p, bool is_first) {
    const int warp = threadIdx.x / 32;
    const int row_warp = warp % WR, key_warp = warp / WR;
    const int first_row = p.row_tile * Shape::kRows;
    const CacheSpan& span = p.keys.span;
    if (is_first) {
      sync_threads(kStartBarrier, Shape::kThreads);
      for (int i = fixed_.wasted_slots; i > 0; --i) {
        fixed_.full[position_.slot].wait(position_.parity);
        release(0);
      }
    } else {
      sync_threads(kConsumerBarrier, kConsumers);  // what prepare() left is there
    }
    if (rarely(!span.valid())) {
      if (rank_ == 0) {
        if (threadIdx.x == 0) report_fault(args_.fault, kBadSeqlens);
        fill_output(args_, p.batch, p.kv_head, first_row, rows_of(p), NAN, threadIdx.x, kConsumers);
      }
      return;
    }
    const float factor = factor_;
    const DecodeRows warp_rows{p.batch, p.kv_head, first_row + row_warp * 8 * NT, launch_.rows, span.first};
    Tile tile;
    tile.start(reinterpret_cast<const T*>(fixed_.query) + row_warp * 8 * NT * Tile::kQueryPitch,
               fixed_.rows + row_warp * 8 * NT);
    const int first_subtile = key_warp * Shape::kSubtiles;
    const int first_place = Tile::first_place(first_subtile);
    typename Tile::Scores scores;
    const int last_key = p.keys.begin + (p.end_tile - 1) * Shape::kTileKeys;
    const bool joins = takes_new_ && p.end_tile > p.first_tile && span.length() <= last_key + Shape::kTileKeys;
    for (int t = first_tile(p); t < p.end_tile; t += blocks_) {
      const int first_key = p.keys.begin + t * Shape::kTileKeys;
      const bool with_new = joins && t == p.end_tile - 1;
      const int end = with_new ? span.length() : span.first;
      const bool edge = first_key + Shape::kTileKeys > span.first ||
                        (args_.window > 0 && first_key <= span.first + span.tokens - args_.window);
      unsigned char* slot = next_tile();
      const bool clears = kBulk && end < first_key + Shape::kTileKeys;
      // Rows are about to be written where other warps read before. The ring's barriers order that, but through one lane
      // of each warp, which racecheck does not follow.
      if (kBulk && WR > 1 && (with_new || clears)) sync_threads(kConsumerBarrier, kConsumers);
      if (with_new) {
        fixed_.new_full.wait(new_parity_);
        insert_new(slot, new_keys_, span, first_key, first_subtile, row_warp);
      }
      tile.score({slot, Shape::kTilePanel}, first_subtile, Shape::kSubtiles, scores);
      release(Tile::bits_of_keys(scores));
      tile.weigh(scores, first_key + first_place, end, edge, Shape::kSubtiles, factor, warp_rows, args_);
      slot = next_tile();
      if (with_new) insert_new(slot, new_values_, span, first_key, first_subtile, row_warp);
      if (clears) clear_values(slot, end - first_key, first_subtile, row_warp);
      tile.template add_values<false>(scores, {slot, Shape::kTilePanel}, first_subtile, Shape::kSubtiles, 0);
      release(tile.bits_of_values());
    }
    if (rarely(takes_new_ && !joins)) {
      fixed_.new_full.wait(new_parity_);
      if (key_warp == Shape::kKeyWarps - 1) {
        tile.score({new_keys_, new_panel()}, 0, 1, scores);
        tile.weigh(scores, span.first + Tile::first_place(0), span.length(), true, 1, factor, warp_rows, args_);
        tile.template add_values<true>(scores, {new_values_, new_panel()}, 0, 1, span.tokens);
      }
    }
    if (takes_new_) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) fixed_.new_free.arrive_after(tile.bits_of_values());
      new_parity_ ^= 1;
    }
    tile.finish();

    sync_threads(kConsumerBarrier, kConsumers);  // nobody reads the ring any more
    leave_sums(tile, row_warp, key_warp);
    sync_threads(kConsumerBarrier, kConsumers);
    if constexpr (kClusters) {
      if (blocks_ > 1) send_sums(rows_of(p));
    }
    conclude(p);
  }

  // New tokens into the rows of a tile that follow its past keys, as far as the warps of this key_warp work on them:
  // those that differ in row_warp share the work.
  __device__ __forceinline__ void insert_new(unsigned char* slot, const unsigned char* from, const CacheSpan& span,
                                             int first_key, int first_subtile, int row_warp) {
    const int own_rows = first_key + first_subtile * kSubtileKeys;
    const int begin = max(span.first, own_rows), end = min(span.length(), own_rows + Shape::kSubtiles * kSubtileKeys);
#pragma unroll 1
    for (int key = begin + row_warp; key < end; key += WR) {
      const int row = key - first_key, token = key - span.first;
#pragma unroll
      for (int chunk = threadIdx.x % 32; chunk < Shape::kPanels * 8; chunk += 32) {  // of 16 bytes
        *reinterpret_cast<uint4*>(slot + chunk / 8 * Shape::kTilePanel + row * kPanelRow + ((chunk ^ row) % 8) * 16) =
            *reinterpret_cast<const uint4*>(from + chunk / 8 * new_panel() + token * kPanelRow +
                                            ((chunk ^ token) % 8) * 16);
      }
    }
    publish_rows();
  }

  // Zeroes the rows of a tile of values from row `begin` on, as far as the warps of this key_warp work on them: weights
  // of 0 would make NaN of what may lie there. The copy engine cleared what lies beyond the cache, cp.async all of it.
  __device__ __forceinline__ void clear_values(unsigned char* slot, int begin, int first_subtile, int row_warp) {
    const int own_rows = first_subtile * kSubtileKeys, end = own_rows + Shape::kSubtiles * kSubtileKeys;
    constexpr int kChunks = Shape::kPanels * 8;  // of 16 bytes
    const int first = (max(begin, own_rows) - own_rows) * kChunks;
#pragma unroll 1
    for (int i = first + row_warp * 32 + threadIdx.x % 32; i < (end - own_rows) * kChunks; i += 32 * WR) {
      const int row = own_rows + i / kChunks, chunk = i % kChunks;
      *reinterpret_cast<uint4*>(slot + chunk / 8 * Shape::kTilePanel + row * kPanelRow + chunk % 8 * 16) = uint4{};
    }
    publish_rows();
  }

  // After writes to rows of a slot: to those who read them, and to the copy engine, which may fill the slot again.
  __device__ __forceinline__ void publish_rows() {
    if (kBulk && launch_.flows) publish_to_async_proxy();
    if constexpr (WR == 1)
      __syncwarp();
    else
      sync_threads(kConsumerBarrier, kConsumers);
  }

  // The next slot, once it is full.
  __device__ __forceinline__ unsigned char* next_tile() {
    fixed_.full[position_.slot].wait(position_.parity);
    return ring_ + position_.slot * Shape::kTileBytes;
  }

  // This warp is done with the next slot. `read`: bits that depend on what it has read there.
  __device__ __forceinline__ void release(uint32_t read) {
    __syncwarp();
    if (kReleases == 32 || threadIdx.x % 32 == 0) fixed_.empty[position_.slot].arrive_after(read);
    position_.advance(launch_.slots);
  }

  // Queries into shared memory, rotated. Returns what scores are to be multiplied by.
  __device__ __forceinline__ float prepare(const Piece& p) {
    const CacheSpan& span = p.keys.span;
    const int first_row = p.row_tile * Shape::kRows, rows = rows_of(p);
    const int group = args_.group;
    if (rarely(args_.q_norm != nullptr)) {
      for (int row = threadIdx.x / 32; row < rows; row += kConsumerWarps) {
        const int token = token_of(first_row + row), head = first_row + row - token * group;
        const float rms = inverse_rms(args_.query.at(p.batch, token, p.kv_head * group + head), args_.q_norm,
                                      args_.head_size, args_.norm_epsilon);
        if (threadIdx.x % 32 == 0) fixed_.query_rms[row] = rms;
      }
      sync_threads(kConsumerBarrier, kConsumers);
    }
    const float factor = key_unit(args_, p.kv_head);
    DecodeRow own_row{};
    if (threadIdx.x < Shape::kRows) {
      const int row = min(first_row + static_cast<int>(threadIdx.x), launch_.rows - 1);
      own_row.token = token_of(row);
      own_row.unified = args_.softmax.phi != nullptr;
      own_row.phi = phi_log2(args_.softmax, p.kv_head * group + row - own_row.token * group);
    }

    const auto place_of = [&](int i) {
      return reinterpret_cast<uint2*>(reinterpret_cast<T*>(fixed_.query) + i / kUnits * Tile::kQueryPitch +
                                      i % kUnits * 4);
    };
    const int there = rows * kUnits;
    const bool as_it_is = args_.rotary_dim == 0 && args_.q_norm == nullptr && !args_.key_scale.per_channel;
#pragma unroll 1
    for (int i = threadIdx.x; i < there; i += kConsumers) {
      const int row = i / kUnits, column = i % kUnits * 4, token = token_of(first_row + row);
      const T* const head = args_.query.at(p.batch, token, p.kv_head * group + first_row + row - token * group);
      if (token >= span.tokens || column >= args_.head_size) {
        *place_of(i) = make_uint2(0, 0);
      } else if (as_it_is) {
        *place_of(i) = *reinterpret_cast<const uint2*>(head + column);
      } else {
        float4 x = prepared4(args_, head, args_.q_norm, fixed_.query_rms[row], column,
                             rotary_position(args_, span, p.batch, token));
        if (args_.key_scale.per_channel)
          x = scaled4(x, args_.key_scale.at4(p.kv_head, args_.head_size, column), 1 / factor);
        *place_of(i) = pack4<T>(x);
      }
    }
    for (int i = there + threadIdx.x; i < Shape::kRows * kUnits; i += kConsumers) *place_of(i) = make_uint2(0, 0);
    if (threadIdx.x < Shape::kRows) fixed_.rows[threadIdx.x] = own_row;
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

  // Each quad of this block's sums goes to the block that finishes it, with the first one of a row the row's norm.
  __device__ __forceinline__ void send_sums(int rows) {
    for (int i = threadIdx.x; i < rows * kUnits; i += kConsumers) {
      const int row = i / kUnits, column = i % kUnits * 4;
      const JointSum joint = joined_warps(row, column);
      const uint32_t owner = i * blocks_ / (rows * kUnits);
      const int begin = first_quad(rows, owner), count = first_quad(rows, owner + 1) - begin;
      const uint32_t barrier = remote_address(&fixed_.inbox_full, owner);
      store_remote(remote_address(&fixed_.inbox[rank_ * count + i - begin], owner), joint.sum, barrier);
      if (column == 0 || i == begin)
        store_remote(remote_address(&fixed_.inbox_norms[rank_][row], owner), joint.norm(), barrier);
    }
  }

  __device__ __forceinline__ JointSum joined_blocks(int row, int quad, int count) const {
    JointSum joint;
    for (uint32_t first = 0; first < blocks_; first += kBatch) {
      float2 norms[kBatch];
      float4 parts[kBatch];
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) {
        const bool there = first + i < blocks_;
        const uint32_t block = there ? first + i : 0;
        norms[i] = there ? fixed_.inbox_norms[block][row] : make_float2(-INFINITY, 0);
        parts[i] = fixed_.inbox[block * count + quad];
      }
      joint.add(norms, parts);
    }
    return joint;
  }

  // The number of piece `index` of the unit that p belongs to.
  __device__ __forceinline__ int id_of(const Piece& p, int index) const {
    return p.id + (index - p.index) * launch_.kv_heads * launch_.row_tiles;
  }
  // Where piece number `id` leaves what others of its unit need.
  __device__ __forceinline__ uint64_t* flag_of(int id) const {
    return launch_.flags + static_cast<int64_t>(id) * blocks_ + rank_;
  }
  __device__ __forceinline__ float2* norm_of(int id, int row) const {
    return launch_.norms + (static_cast<int64_t>(id) * blocks_ + rank_) * launch_.partial_rows + row;
  }
  __device__ __forceinline__ float4* sum_of(int id, int row, int column) const {
    const int64_t vector = static_cast<int64_t>(id) * launch_.partial_rows + row;
    return reinterpret_cast<float4*>(launch_.sums + vector * args_.head_size + column);
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
  __device__ __forceinline__ void conclude(const Piece& p) {
    const int first_row = p.row_tile * Shape::kRows, rows = rows_of(p);
    const int begin = first_quad(rows, rank_), end = first_quad(rows, rank_ + 1);
    const bool whole = p.count == 1;
    bool waits = blocks_ > 1;
    for (int i = begin + threadIdx.x; i < end; i += kConsumers) {
      const int row = i / kUnits, column = i % kUnits * 4;
      const bool there = column < args_.head_size;
      // Looked up while the other blocks' sums are under way.
      const Target target = target_of(p, first_row + row, there ? column : 0);
      if (waits) wait_for_inbox(p);
      waits = false;
      if (!there) continue;
      const JointSum joint = blocks_ > 1 ? joined_blocks(row, i - begin, end - begin) : joined_warps(row, column);
      if (whole) {
        emit(target, joint);
      } else {
        *sum_of(p.id, row, column) = joint.sum;
        if (column == 0 || i == begin) *norm_of(p.id, row) = joint.norm();
      }
    }
    if (waits) wait_for_inbox(p);  // nobody may still send when this block ends
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

  __device__ __forceinline__ void wait_for_inbox(const Piece& p) {
    if constexpr (kClusters) {
      fixed_.inbox_full.wait_cluster(quotient(p.id, launch_.clusters) & 1);  // one phase a piece
    }
  }

  // Says that this piece's sums are there. True where all pieces' are; two pieces may both find that, then both write
  // the same output, and `mine` is true, in thread 0, in one of them.
  __device__ __forceinline__ bool arrive_last(const Piece& p, bool* mine) {
    __threadfence();
    sync_threads(kConsumerBarrier, kConsumers);
    if (threadIdx.x == 0) {
      *static_cast<volatile uint64_t*>(flag_of(p.id)) = launch_.number;
      __threadfence();
    }
    sync_threads(kConsumerBarrier, kConsumers);
    bool there = true;
    for (int i = threadIdx.x; i < p.count; i += kConsumers)
      there = there && *static_cast<volatile const uint64_t*>(flag_of(id_of(p, i))) == launch_.number;
    if (!sync_threads_and(kConsumerBarrier, kConsumers, there)) return false;
    __threadfence();
    for (int i = threadIdx.x; i < p.count; i += kConsumers) {
      auto* const flag = reinterpret_cast<unsigned long long*>(flag_of(id_of(p, i)));
      const bool first = atomicExch(flag, 0ull) == launch_.number;
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
        const int id = id_of(p, min(first + i, p.count - 1));
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
  // Lanes of a warp that free a slot. One is enough, but the race checker looks at cp.async's writes and takes each
  // thread's arrival for its own reads alone.
  static constexpr int kReleases = kBulk ? 1 : 32;

  const Args& args_;
  const DecodeLaunch& launch_;
  unsigned char* const ring_;
  unsigned char* const new_keys_;
  unsigned char* const new_values_;
  Fixed& fixed_;
  Sums& sums_;
  RingPosition position_;           // the producer's, or a consumer's
  float factor_;                    // of raw scores
  uint32_t blocks_ = 1, rank_ = 0;  // of the cluster
  bool takes_new_;                  // this block has the new tokens
  uint32_t new_parity_ = 0;         // of the next new tokens' phases
};

template <typename T, typename C, int D, int NT, int WR, bool kBulk>
__global__ void __launch_bounds__(DecodeShape<C, D, NT, WR>::kThreads, kDecodeBlocks<D, NT, WR, kBulk>)
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
