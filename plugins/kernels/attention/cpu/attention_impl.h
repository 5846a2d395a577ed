// Causal grouped-query attention over a Vec of any width: append to the cache, attend, merge. Include after a simd_*.h.
//
// A task takes a tile of query rows that share a key-value head (tokens x heads of the group, heads fastest) and one
// piece of their context, and walks that in tiles of keys. It holds scores in one of two ways:
//   many rows: lanes are query rows. Scores are [key][row]; keys are broadcast, so neither keys nor values need
//              packing, and maxima and sums need no reduction across lanes.
//   few rows:  lanes run along the head for scores and along keys for the softmax. Scores are [row][key].
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/attention/params.h"
#include "kernels/common/parallel.h"
#include "kernels/common/simd_math.h"

namespace fdpp {
namespace {

constexpr int kMaxHeadSize = 256;
constexpr int kRows = 4 * kWidth;   // query rows of a tile
constexpr int kKeys = 64;           // keys of a tile
constexpr int kFewRows = kWidth < 8 ? kWidth : 8;
constexpr int kAppendRows = 64;     // cache rows that one append task writes
constexpr int kRowBlock = 4;        // query rows that share a load of values
constexpr int kVectorBlock = kAccumulators >= 16 ? 4 : 2;  // Vecs side by side in the register blocks
constexpr int kSharers = kAccumulators / kRowBlock < 4 ? kAccumulators / kRowBlock : 4;  // few rows that share keys
constexpr float kInfinity = __builtin_inff();

// How far scores may exceed the running maximum before the lazy softmax moves it: 8 in log2 units.
constexpr float kLazyThreshold = 8 / kLog2E;
// How far from phi scores may be at most: the further away, the fewer digits their distance has.
constexpr float kFurthestFromPhi = 20;

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One task's state; lives on its stack.
struct Scratch {
  alignas(64) float query[kRows * kMaxHeadSize];   // many rows: [D][kRows]; few rows: [row][D up to whole Vecs]
  alignas(64) float scores[kKeys * kRows];
  alignas(64) float output[kRows * kMaxHeadSize];  // [row][D up to whole Vecs]: sum of weight * value
  alignas(64) float widened[kKeys * kMaxHeadSize]; // a tile of a narrow cache, or of the attention bias
  alignas(64) float reference[kRows];              // what scores are measured against; -inf: no key was seen yet
  alignas(64) float sum[kRows];                    // of weights
  alignas(64) float rescale[kRows];                // what the coming tile of keys makes of the output so far
  alignas(64) float first[kRows], last[kRows];     // keys that a row sees, counted from the tile's first
  alignas(64) float phi[kRows];                    // unified alone
  int32_t position[kRows];
};

// A tile of query rows of one key-value head.
struct RowTile {
  int64_t batch, kv_head;
  int64_t first_row;  // row = token * group + head of the group
  int rows;
  int valid;          // rows before right padding
};

// scores[key][row] = scale * query · key for NK keys and NV Vecs of rows.
template <int NV, int NK>
inline void score_block(const float* query, const float* keys, int64_t key_stride, int64_t head_size, float scale,
                        float* scores) {
  Vec sums[NK][NV];
#pragma GCC unroll 8
  for (int k = 0; k < NK; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sums[k][v] = set(0);
  }
  for (int64_t d = 0; d < head_size; ++d) {
    Vec q[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      q[v] = load(query + d * kRows + v * kWidth);
      keep_in_register(q[v]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < NK; ++k) {
      const Vec x = set(keys[k * key_stride + d]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sums[k][v] = fma(x, q[v], sums[k][v]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < NK; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(scores + k * kRows + v * kWidth, mul(sums[k][v], set(scale)));
  }
}

template <int NV>
inline void score_rows(const float* query, const float* keys, int64_t key_stride, int nk, int64_t head_size,
                       float scale, float* scores) {
  constexpr int NK = NV == 1 ? 8 : 4;
  int k = 0;
  for (; k + NK <= nk; k += NK)
    score_block<NV, NK>(query, keys + k * key_stride, key_stride, head_size, scale, scores + k * kRows);
  for (; k < nk; ++k)
    score_block<NV, 1>(query, keys + k * key_stride, key_stride, head_size, scale, scores + k * kRows);
}

// scores[row][key] = query · key for R rows and the four keys at `keys`.
template <int R, typename C>
inline void dot_block(const float* query, int64_t query_stride, const C* const keys[4], int64_t head_size,
                      float* scores) {
  Vec sums[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < 4; ++k) sums[r][k] = set(0);
  }
  int64_t d = 0;
  for (; d + kWidth <= head_size; d += kWidth) {
    Vec x[4];
#pragma GCC unroll 8
    for (int k = 0; k < 4; ++k) {
      x[k] = load(keys[k] + d);
      keep_in_register(x[k]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec q = load(query + r * query_stride + d);
#pragma GCC unroll 8
      for (int k = 0; k < 4; ++k) sums[r][k] = fma(q, x[k], sums[r][k]);
    }
  }
  if (d < head_size) {
    const int tail = static_cast<int>(head_size - d);
#pragma GCC unroll 8
    for (int k = 0; k < 4; ++k) {
      const Vec x = load_first(keys[k] + d, tail);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][k] = fma(load(query + r * query_stride + d), x, sums[r][k]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store_sums(scores + r * kKeys, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
}

template <int R, typename C>
inline void dot_rows(const float* query, int64_t query_stride, const C* keys, int64_t key_stride, int nk,
                     int64_t head_size, float* scores) {
  for (int k = 0; k < nk; k += 4) {
    const C* four[4];  // the last key stands in for those beyond it, whose scores are masked
    for (int i = 0; i < 4; ++i) four[i] = keys + (k + i < nk ? k + i : nk - 1) * key_stride;
    dot_block<R>(query, query_stride, four, head_size, scores + k);
  }
}

// output[row][...] = rescale[row] * output + sum over keys of weight * value, for R rows and NV Vecs of columns.
template <int R, int NV, bool kPartial, typename C>
inline void value_block(const float* weights, int64_t row_stride, int64_t key_stride, const C* values,
                        int64_t value_stride, int nk, int tail, const float* rescale, float* output,
                        int64_t output_stride) {
  Vec sums[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sums[r][v] = set(0);
  }
  for (int k = 0; k < nk; ++k) {
    Vec x[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const C* p = values + k * value_stride + v * kWidth;
      x[v] = kPartial ? load_first(p, tail) : load(p);
      keep_in_register(x[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec w = set(weights[r * row_stride + k * key_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sums[r][v] = fma(w, x[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vec factor = set(rescale[r]);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      float* o = output + r * output_stride + v * kWidth;
      store(o, fma(load(o), factor, sums[r][v]));
    }
  }
}

// value_block for R rows and all columns.
template <int R, typename C>
inline void value_rows(const float* weights, int64_t row_stride, int64_t key_stride, const C* values, int64_t stride,
                       int nk, int64_t head_size, const float* rescale, float* output, int64_t output_stride) {
  int64_t d = 0;
  const auto columns = [&](auto block, int width) {
    for (; d + width <= head_size; d += width)
      block(weights, row_stride, key_stride, values + d, stride, nk, 0, rescale, output + d, output_stride);
  };
  columns(value_block<R, kVectorBlock, false, C>, kVectorBlock * kWidth);
  columns(value_block<R, 1, false, C>, kWidth);
  if (d < head_size)
    value_block<R, 1, true, C>(weights, row_stride, key_stride, values + d, stride, nk,
                               static_cast<int>(head_size - d), rescale, output + d, output_stride);
}

// What scores are reduced by: the reference, or 0 where no key was seen yet, since -inf - -inf is no number.
inline Vec subtrahend(Vec reference) { return select_greater(reference, set(-kInfinity), reference, set(0)); }

inline float exp_of(float x) {
  float y;
  store_first(&y, exp(set(x)), 1);
  return y;
}

// What turns the stored numbers of a head back into values, by column.
struct ChannelScales {
  const float* first;
  int64_t step;
  float operator[](int64_t d) const { return first[d * step]; }
};

template <typename T, typename C>
class Attention {
 public:
  Attention(const AttentionParams& params, int splits, float* partials, uint64_t* out_of_range_rows)
      : params_(params), p_(params.problem), splits_(splits), partials_(partials),
        out_of_range_rows_(out_of_range_rows), group_(p_.q_heads / p_.kv_heads),
        padded_(ceil_div(p_.head_size, kWidth) * kWidth), tiles_(ceil_div(p_.query_length * group_, kRows)) {}

  void run(const HostRuntime* host) const {
    const double heads = static_cast<double>(p_.batch * p_.kv_heads);
    const double tokens = heads * static_cast<double>(p_.query_length * group_);
    parallel_for(host, append_tasks(), 2 * heads * static_cast<double>(written_rows() * p_.head_size),
                 [this](size_t i) { append(static_cast<int64_t>(i)); });
    const double context = static_cast<double>(p_.window > 0 ? lesser(p_.window, p_.total_length) : p_.total_length);
    parallel_for(host, static_cast<size_t>(p_.batch * p_.kv_heads * tiles_ * splits_),
                 2 * tokens * context * static_cast<double>(p_.head_size),
                 [this](size_t i) { attend(static_cast<int64_t>(i)); });
    if (splits_ > 1)
      parallel_for(host, static_cast<size_t>(p_.batch * p_.kv_heads * tiles_),
                   tokens * static_cast<double>(splits_ * p_.head_size),
                   [this](size_t i) { merge(static_cast<int64_t>(i)); });
  }

 private:
  int64_t length(int64_t batch) const { return static_cast<int64_t>(params_.seqlens_k[batch]) + 1; }
  // Position of the first new token.
  int64_t base(int64_t batch) const { return p_.prompt ? 0 : length(batch) - p_.query_length; }

  ChannelScales key_scales(int64_t head) const { return scales(params_.key_scale, p_.key_quantization, head); }
  ChannelScales value_scales(int64_t head) const { return scales(params_.value_scale, p_.value_quantization, head); }
  ChannelScales scales(const float* values, CacheQuantization quantization, int64_t head) const {
    if (quantization == CacheQuantization::per_tensor) return {values, 0};
    return {values + head * p_.head_size, 1};
  }

  // ---- append

  bool in_place() const {
    return params_.past_key.data == params_.present_key.data && params_.past_value.data == params_.present_value.data;
  }
  int64_t written_rows() const { return in_place() ? p_.query_length : p_.capacity; }
  size_t append_tasks() const {
    return static_cast<size_t>(p_.batch * p_.kv_heads * ceil_div(written_rows(), kAppendRows));
  }

  void append(int64_t index) const {
    const int64_t tiles = ceil_div(written_rows(), kAppendRows);
    const int64_t batch = index / tiles / p_.kv_heads, head = index / tiles % p_.kv_heads;
    const int64_t start = in_place() ? base(batch) : 0;
    const int64_t begin = start + index % tiles * kAppendRows;
    const int64_t end = lesser(begin + kAppendRows, start + written_rows());
    for (int64_t position = begin; position < end; ++position) {
      append_row<true>(params_.new_key, params_.past_key, params_.present_key, batch, head, position);
      append_row<false>(params_.new_value, params_.past_value, params_.present_value, batch, head, position);
    }
  }

  // Row `position` of a present cache: a new token, else the past's, else zeros.
  template <bool kIsKey>
  void append_row(const TokenView& tokens, const CacheView& past, const CacheView& present, int64_t batch, int64_t head,
                  int64_t position) const {
    C* to = static_cast<C*>(present.data) + batch * present.batch_stride + head * present.head_stride +
            position * present.token_stride;
    const int64_t token = position - base(batch);
    const size_t bytes = static_cast<size_t>(p_.head_size) * sizeof(C);
    if (token >= 0 && token < p_.query_length) {
      float row[kMaxHeadSize];
      convert(static_cast<const T*>(tokens.data) + batch * tokens.batch_stride + token * tokens.token_stride +
                  head * tokens.head_stride,
              row, p_.head_size);
      if (kIsKey) norm_and_rotate(row, params_.k_norm, batch, token, position);
      if constexpr (kQuantized) {
        const ChannelScales scales = kIsKey ? key_scales(head) : value_scales(head);
        for (int64_t d = 0; d < p_.head_size; ++d) row[d] /= scales[d];
      }
      convert(row, to, p_.head_size);
    } else if (past.data == present.data) {
      return;
    } else if (token < 0) {
      std::memcpy(to,
                  static_cast<const C*>(past.data) + batch * past.batch_stride + head * past.head_stride +
                      position * past.token_stride,
                  bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }

  // What a query or key head of a token at `position` goes through before it is used or stored.
  void norm_and_rotate(float* x, const void* norm, int64_t batch, int64_t token, int64_t position) const {
    if (norm != nullptr) normalise(x, static_cast<const T*>(norm));
    if (p_.rotary_dim == 0) return;
    rotate(x, p_.has_position_ids ? params_.position_ids[batch * p_.query_length + token] : position);
  }

  // Sums in a fixed order, so that stored keys are the same on every processor.
  void normalise(float* x, const T* weights) const {
    float squares[8] = {};
    for (int64_t d = 0; d < p_.head_size; d += 8)
      for (int64_t i = 0; i < 8; ++i) squares[i] += x[d + i] * x[d + i];
    const float sum = ((squares[0] + squares[1]) + (squares[2] + squares[3])) +
                      ((squares[4] + squares[5]) + (squares[6] + squares[7]));
    const float factor = 1 / __builtin_sqrtf(sum / static_cast<float>(p_.head_size) + p_.norm_epsilon);
    for (int64_t d = 0; d < p_.head_size; ++d) x[d] = x[d] * factor * to_float(weights[d]);
  }

  void rotate(float* x, int64_t position) const {
    const int64_t pairs = p_.rotary_dim / 2;
    float cosine[kMaxHeadSize / 2], sine[kMaxHeadSize / 2];
    convert(static_cast<const T*>(params_.cos_cache) + position * pairs, cosine, pairs);
    convert(static_cast<const T*>(params_.sin_cache) + position * pairs, sine, pairs);
    const int64_t step = p_.rotary_interleaved ? 2 : 1, distance = p_.rotary_interleaved ? 1 : pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const float a = x[i * step], b = x[i * step + distance];
      x[i * step] = a * cosine[i] - b * sine[i];
      x[i * step + distance] = b * cosine[i] + a * sine[i];
    }
  }

  // ---- attend

  // Causal tiles grow with their index: pairing first with last gives every contiguous run of tasks a like share.
  RowTile row_tile(int64_t index) const {
    RowTile tile;
    tile.batch = index / tiles_ / p_.kv_heads;
    tile.kv_head = index / tiles_ % p_.kv_heads;
    const int64_t i = index % tiles_;
    tile.first_row = (i % 2 == 0 ? i / 2 : tiles_ - 1 - i / 2) * kRows;
    tile.rows = static_cast<int>(lesser(kRows, p_.query_length * group_ - tile.first_row));
    const int64_t rows_before_padding = (length(tile.batch) - base(tile.batch)) * group_;
    tile.valid = static_cast<int>(lesser(tile.rows, greater(rows_before_padding - tile.first_row, 0)));
    return tile;
  }
  int64_t token_of(const RowTile& tile, int row) const { return (tile.first_row + row) / group_; }
  int64_t head_of(const RowTile& tile, int row) const {
    return tile.kv_head * group_ + (tile.first_row + row) % group_;
  }

  void attend(int64_t index) const {
    const RowTile tile = row_tile(index / splits_);
    const int64_t split = index % splits_;
    if (splits_ == 1) zero_padding(tile);
    if (tile.valid == 0) return;

    Scratch s;
    const int64_t first_position = base(tile.batch);
    for (int r = 0; r < tile.valid; ++r) s.position[r] = static_cast<int32_t>(first_position + token_of(tile, r));
    const int64_t lowest = s.position[0], highest = s.position[tile.valid - 1];
    const int64_t context_begin = p_.window > 0 ? greater(0, lowest - p_.window + 1) : 0;
    const int64_t piece = ceil_div(ceil_div(highest + 1 - context_begin, splits_), kKeys) * kKeys;
    const int64_t begin = context_begin + split * piece;
    const int64_t end = lesser(begin + piece, highest + 1);

    const bool few = tile.valid <= kFewRows;
    const int vectors = few ? 0 : static_cast<int>(ceil_div(tile.valid, kWidth));
    const int held = few ? tile.valid : vectors * kWidth;
    for (int r = tile.valid; r < held; ++r) s.position[r] = static_cast<int32_t>(highest);
    start(tile, few, held, &s);

    const C* keys = cache_of(params_.present_key, tile);
    const C* values = cache_of(params_.present_value, tile);
    const int64_t key_stride = params_.present_key.token_stride, value_stride = params_.present_value.token_stride;
    for (int64_t k = begin; k < end; k += kKeys) {
      const int nk = static_cast<int>(lesser(kKeys, end - k));
      // Some row may not see all of these keys.
      const bool edge = k + nk - 1 > lowest || (p_.window > 0 && k <= highest - p_.window) || nk % kWidth != 0;
      if (edge) set_limits(k, nk, held, &s);
      if (few) {
        const float* bias = bias_rows(tile, k, nk, s.widened);
        few_rows(tile.valid, keys + k * key_stride, key_stride, values + k * value_stride, value_stride, nk, edge, bias,
                 &s);
      } else {
        const float* k_tile = widen(keys + k * key_stride, key_stride, nk, s.widened);
        many_row_scores(vectors, k_tile, widened_stride(key_stride), nk, &s);
        const float* bias = bias_columns(tile, k, nk, held, s.widened);
        many_row_weights(vectors, nk, edge, bias, &s);
        const float* v_tile = widen(values + k * value_stride, value_stride, nk, s.widened);
        add_values(tile.valid, 1, kRows, v_tile, widened_stride(value_stride), nk, &s);
      }
    }
    if (splits_ == 1)
      write(tile, s);
    else
      write_partial(tile, split, s);
  }

  const C* cache_of(const CacheView& cache, const RowTile& tile) const {
    return static_cast<const C*>(cache.data) + tile.batch * cache.batch_stride + tile.kv_head * cache.head_stride;
  }

  // Makes the query ready; sets references, sums and output to those of no key.
  void start(const RowTile& tile, bool few, int held, Scratch* s) const {
    for (int r = 0; r < tile.valid; ++r) {
      alignas(64) float row[kMaxHeadSize];
      const T* from = static_cast<const T*>(params_.query.data) + tile.batch * params_.query.batch_stride +
                      token_of(tile, r) * params_.query.token_stride + head_of(tile, r) * params_.query.head_stride;
      convert(from, row, p_.head_size);
      norm_and_rotate(row, params_.q_norm, tile.batch, token_of(tile, r), s->position[r]);
      if constexpr (kQuantized) {
        const ChannelScales scales = key_scales(tile.kv_head);
        for (int64_t d = 0; d < p_.head_size; ++d) row[d] *= scales[d];
      }
      if (few) {
        for (int64_t d = 0; d < padded_; ++d) s->query[r * padded_ + d] = d < p_.head_size ? row[d] : 0;
      } else {
        for (int64_t d = 0; d < p_.head_size; ++d) s->query[d * kRows + r] = row[d];
      }
    }
    if (!few) {
      for (int r = tile.valid; r < held; ++r)
        for (int64_t d = 0; d < p_.head_size; ++d) s->query[d * kRows + r] = 0;
    }
    for (int r = 0; r < held; ++r) {
      s->reference[r] = -kInfinity;
      s->sum[r] = 0;
      s->phi[r] = r < tile.valid ? phi_of(tile, r) : 0;
    }
    std::memset(s->output, 0, sizeof(float) * static_cast<size_t>(tile.valid * padded_));
  }

  void set_limits(int64_t tile_begin, int nk, int held, Scratch* s) const {
    for (int r = 0; r < held; ++r) {
      s->last[r] = static_cast<float>(lesser(s->position[r] - tile_begin, nk - 1));
      s->first[r] = p_.window > 0 ? static_cast<float>(s->position[r] - p_.window + 1 - tile_begin) : 0.0f;
    }
  }

  // What the unified softmax measures the row's scores against first; no number but a finite one serves.
  float phi_of(const RowTile& tile, int row) const {
    if (p_.softmax_mode != SoftmaxMode::unified) return 0;
    const float phi = params_.phi[head_of(tile, row)];
    return phi - phi == 0 ? phi : kInfinity;
  }

  const float* widen(const float* from, int64_t, int, float*) const { return from; }
  template <typename Narrow>
  const float* widen(const Narrow* from, int64_t stride, int rows, float* to) const {
    for (int i = 0; i < rows; ++i) convert(from + i * stride, to + i * p_.head_size, p_.head_size);
    return to;
  }
  int64_t widened_stride(int64_t stride) const { return sizeof(C) == sizeof(float) ? stride : p_.head_size; }

  // The attention bias of `nk` keys, ordered as the scores of few or of many rows are; null where there is none.
  const float* bias_rows(const RowTile& tile, int64_t key, int nk, float* to) const {
    if (params_.attention_bias == nullptr) return nullptr;
    for (int r = 0; r < tile.valid; ++r) {
      convert(bias_row(tile, r) + key, to + r * kKeys, nk);
      for (int k = nk; k < kKeys; ++k) to[r * kKeys + k] = 0;
    }
    return to;
  }
  const float* bias_columns(const RowTile& tile, int64_t key, int nk, int held, float* to) const {
    if (params_.attention_bias == nullptr) return nullptr;
    for (int r = 0; r < held; ++r) {
      float row[kKeys] = {};
      if (r < tile.valid) convert(bias_row(tile, r) + key, row, nk);
      for (int k = 0; k < nk; ++k) to[k * kRows + r] = row[k];
    }
    return to;
  }
  const T* bias_row(const RowTile& tile, int row) const {
    return static_cast<const T*>(params_.attention_bias) + tile.batch * params_.bias_batch_stride +
           head_of(tile, row) * params_.bias_head_stride + token_of(tile, row) * p_.total_length;
  }

  // A scaled score as the softmax takes it: capped, biased, and -inf where `key` lies outside [first, last].
  Vec finish_score(Vec score, const float* bias, bool edge, Vec key, Vec first, Vec last) const {
    if (p_.softcap > 0) score = mul(set(p_.softcap), tanh(div(score, set(p_.softcap))));
    if (bias != nullptr) score = add(score, load(bias));
    if (!edge) return score;
    score = select_greater(key, last, set(-kInfinity), score);
    return select_greater(first, key, set(-kInfinity), score);
  }

  // What to measure against once scores up to `highest` came.
  Vec next_reference(Vec before, Vec highest, Vec phi) const {
    Vec limit = before;
    if (p_.softmax_mode != SoftmaxMode::online) limit = add(before, set(kLazyThreshold));
    if (p_.softmax_mode == SoftmaxMode::unified) return next_unified_reference(before, highest, phi, limit);
    return select_greater(highest, limit, highest, before);
  }
  Vec next_unified_reference(Vec before, Vec highest, Vec phi, Vec lazy_limit) const {
    const Vec lower = add(phi, set(p_.phi_lower > -kFurthestFromPhi ? p_.phi_lower : -kFurthestFromPhi));
    const Vec upper = add(phi, set(p_.phi_upper < kFurthestFromPhi ? p_.phi_upper : kFurthestFromPhi));
    const Vec within = select_greater(highest, lower, select_greater(upper, highest, phi, highest), highest);
    const Vec below_or_at_phi = select_greater(phi, before, lazy_limit, upper);
    const Vec limit = select_greater(before, phi, lazy_limit, below_or_at_phi);
    const Vec moved = select_greater(highest, limit, highest, before);
    return select_greater(before, set(-kInfinity), moved, within);
  }

  void many_row_scores(int vectors, const float* keys, int64_t key_stride, int nk, Scratch* s) const {
    int v = 0;
    for (; v + kVectorBlock <= vectors; v += kVectorBlock)
      score_rows<kVectorBlock>(s->query + v * kWidth, keys, key_stride, nk, p_.head_size, p_.scale,
                               s->scores + v * kWidth);
    for (; v < vectors; ++v)
      score_rows<1>(s->query + v * kWidth, keys, key_stride, nk, p_.head_size, p_.scale, s->scores + v * kWidth);
  }

  // Scores become weights.
  void many_row_weights(int vectors, int nk, bool edge, const float* bias, Scratch* s) const {
    for (int v = 0; v < vectors; ++v) {
      float* scores = s->scores + v * kWidth;
      const int r = v * kWidth;
      Vec highest = set(-kInfinity);
      if (edge || p_.softcap > 0 || bias != nullptr) {
        const Vec first = load(s->first + r), last = load(s->last + r);
        for (int k = 0; k < nk; ++k) {
          const float* b = bias == nullptr ? nullptr : bias + k * kRows + r;
          const Vec x = finish_score(load(scores + k * kRows), b, edge, set(static_cast<float>(k)), first, last);
          store(scores + k * kRows, x);
          highest = max(x, highest);
        }
      } else {
        for (int k = 0; k < nk; ++k) highest = max(load(scores + k * kRows), highest);
      }
      const Vec before = load(s->reference + r);
      const Vec now = next_reference(before, highest, load(s->phi + r));
      const Vec reference = subtrahend(now);
      const Vec factor = exp(sub(before, reference));
      Vec sum = set(0);
      for (int k = 0; k < nk; ++k) {
        const Vec weight = exp(sub(load(scores + k * kRows), reference));
        store(scores + k * kRows, weight);
        sum = add(sum, weight);
      }
      store(s->reference + r, now);
      store(s->rescale + r, factor);
      store(s->sum + r, fma(load(s->sum + r), factor, sum));
    }
  }

  void few_rows(int rows, const C* keys, int64_t key_stride, const C* values, int64_t value_stride, int nk, bool edge,
                const float* bias, Scratch* s) const {
    int r = 0;
    const auto dots = [&](auto block, int count) {
      for (; r + count <= rows; r += count)
        block(s->query + r * padded_, padded_, keys, key_stride, nk, p_.head_size, s->scores + r * kKeys);
    };
    dots(dot_rows<kSharers, C>, kSharers);
    if constexpr (kSharers > 3) dots(dot_rows<3, C>, 3);
    if constexpr (kSharers > 2) dots(dot_rows<2, C>, 2);
    dots(dot_rows<1, C>, 1);

    for (r = 0; r < rows; ++r) {
      float* scores = s->scores + r * kKeys;
      Vec highest = set(-kInfinity);
      const Vec first = set(edge ? s->first[r] : 0), last = set(edge ? s->last[r] : 0);
      for (int k = 0; k < nk; k += kWidth) {
        const float* b = bias == nullptr ? nullptr : bias + r * kKeys + k;
        const Vec x = finish_score(mul(load(scores + k), set(p_.scale)), b, edge,
                                   add(iota(), set(static_cast<float>(k))), first, last);
        store(scores + k, x);
        highest = max(x, highest);
      }
      const Vec before = set(s->reference[r]);
      const Vec now = next_reference(before, set(max_of(highest)), set(s->phi[r]));
      const Vec reference = subtrahend(now);
      const Vec factor = exp(sub(before, reference));
      Vec sum = set(0);
      for (int k = 0; k < nk; k += kWidth) {
        const Vec weight = exp(sub(load(scores + k), reference));
        store(scores + k, weight);
        sum = add(sum, weight);
      }
      store_first(s->reference + r, now, 1);
      store_first(s->rescale + r, factor, 1);
      s->sum[r] = s->sum[r] * s->rescale[r] + sum_of(sum);
    }
    add_values(rows, kKeys, 1, values, value_stride, nk, s);
  }

  template <typename V>
  void add_values(int rows, int64_t row_stride, int64_t key_stride, const V* values, int64_t value_stride, int nk,
                  Scratch* s) const {
    int r = 0;
    const auto block = [&](auto value_rows_of, int count) {
      for (; r + count <= rows; r += count)
        value_rows_of(s->scores + r * row_stride, row_stride, key_stride, values, value_stride, nk, p_.head_size,
                      s->rescale + r, s->output + r * padded_, padded_);
    };
    block(value_rows<kRowBlock, V>, kRowBlock);
    block(value_rows<3, V>, 3);
    block(value_rows<2, V>, 2);
    block(value_rows<1, V>, 1);
  }

  // ---- results

  T* output_row(const RowTile& tile, int row) const {
    return static_cast<T*>(params_.output.data) + tile.batch * params_.output.batch_stride +
           token_of(tile, row) * params_.output.token_stride + head_of(tile, row) * params_.output.head_stride;
  }

  void zero_padding(const RowTile& tile) const {
    for (int r = tile.valid; r < tile.rows; ++r)
      std::memset(output_row(tile, r), 0, static_cast<size_t>(p_.head_size) * sizeof(T));
  }

  void write(const RowTile& tile, Scratch& s) const {
    uint64_t out_of_range = 0;
    for (int r = 0; r < tile.valid; ++r) {
      write_row(tile, r, s.reference[r], s.sum[r], s.output + r * padded_);
      out_of_range += left_range(s.reference[r], s.phi[r]);
    }
    count(out_of_range);
  }

  // `total` and `sums`: of the weights and of weight * value, measured against `reference`.
  void write_row(const RowTile& tile, int row, float reference, float total, float* sums) const {
    float rescale = 1;
    if (params_.head_sink != nullptr) {
      const float sink = to_float(static_cast<const T*>(params_.head_sink)[head_of(tile, row)]);
      if (sink > reference) {
        rescale = exp_of(reference - sink);
        total = total * rescale + 1;
      } else if (reference > -kInfinity) {
        total += exp_of(sink - reference);
      }
    }
    const float factor = total == 0 ? 0 : rescale / total;
    for (int64_t d = 0; d < p_.head_size; ++d) sums[d] *= factor;
    if constexpr (kQuantized) {
      const ChannelScales scales = value_scales(tile.kv_head);
      for (int64_t d = 0; d < p_.head_size; ++d) sums[d] *= scales[d];
    }
    convert(sums, output_row(tile, row), p_.head_size);
  }

  // Whether the unified softmax gave phi up for what the row saw.
  bool left_range(float reference, float phi) const {
    return p_.softmax_mode == SoftmaxMode::unified && reference != -kInfinity && reference != phi;
  }
  void count(uint64_t rows) const {
    if (rows != 0 && out_of_range_rows_ != nullptr) __atomic_fetch_add(out_of_range_rows_, rows, __ATOMIC_RELAXED);
  }

  // A piece's result: reference, sum of weights, D sums of weight * value.
  float* partial(const RowTile& tile, int row, int64_t split) const {
    const int64_t index = (tile.batch * p_.query_length + token_of(tile, row)) * p_.q_heads + head_of(tile, row);
    return partials_ + (index * splits_ + split) * (p_.head_size + 2);
  }

  void write_partial(const RowTile& tile, int64_t split, const Scratch& s) const {
    for (int r = 0; r < tile.valid; ++r) {
      float* to = partial(tile, r, split);
      to[0] = s.reference[r];
      to[1] = s.sum[r];
      std::memcpy(to + 2, s.output + r * padded_, static_cast<size_t>(p_.head_size) * sizeof(float));
    }
  }

  void merge(int64_t index) const {
    const RowTile tile = row_tile(index);
    zero_padding(tile);
    uint64_t out_of_range = 0;
    for (int r = 0; r < tile.valid; ++r) {
      const float phi = phi_of(tile, r);
      float highest = -kInfinity;
      bool left = false;
      for (int64_t i = 0; i < splits_; ++i) {
        const float reference = *partial(tile, r, i);
        if (reference > highest) highest = reference;
        left |= left_range(reference, phi);
      }
      out_of_range += left;
      float total = 0;
      float sums[kMaxHeadSize] = {};
      for (int64_t i = 0; i < splits_; ++i) {
        const float* from = partial(tile, r, i);
        if (from[1] == 0) continue;  // saw no key
        const float factor = exp_of(from[0] - highest);
        total += factor * from[1];
        for (int64_t d = 0; d < p_.head_size; ++d) sums[d] += factor * from[2 + d];
      }
      write_row(tile, r, highest, total, sums);
    }
    count(out_of_range);
  }

  static constexpr bool kQuantized = sizeof(C) == 1;

  const AttentionParams& params_;
  const AttentionProblem& p_;
  const int64_t splits_;
  float* const partials_;
  uint64_t* const out_of_range_rows_;
  const int64_t group_;
  const int64_t padded_;  // head size up to whole Vecs
  const int64_t tiles_;   // of query rows, per key-value head
};

template <typename T, typename C>
inline void run_typed(const AttentionParams& params, int splits, float* partials, const ExecutionContext& context) {
  Attention<T, C>(params, splits, partials, context.out_of_range_rows).run(context.host);
}

inline void run_attention_kernel(const AttentionParams& params, int splits, float* partials,
                                 const ExecutionContext& context) {
  const AttentionProblem& p = params.problem;
  if (p.dtype == DType::f16) return run_typed<Half, Half>(params, splits, partials, context);
  switch (p.cache_dtype) {
    case DType::f16: return run_typed<float, Half>(params, splits, partials, context);
    case DType::i8: return run_typed<float, Int8>(params, splits, partials, context);
    case DType::f8e4m3: return run_typed<float, Float8>(params, splits, partials, context);
    default: return run_typed<float, float>(params, splits, partials, context);
  }
}

}  // namespace
}  // namespace fdpp
