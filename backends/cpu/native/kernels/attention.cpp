// FusedAttention: softmax(scale · Q·Kᵀ + mask) · V for every batch item, without an array of all scores
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2022, "FlashAttention").
//
// A chunk is a block of up to kQueries queries of one batch item. Scores are kept turned, [key][query]: rows of K are
// then the left operand of the product as they lie in memory, the largest score and the sum of a query are a lane each,
// and only the queries have to be turned. With precision="low" both products multiply bf16 pairs (of features, of keys),
// where the CPU has them; scores, weights and sums stay f32.
//
// Operands q, k, v and optionally mask; attributes:
//   batch                 sizes of the batch axes (any number; heads are one of them)
//   q_len, k_len, dim, v_dim
//   q, k, v, out          [offset, stride per batch axis…, stride per position]; features lie next to each other
//   mask                  [offset, stride per batch axis…, stride per query, stride per key], 0 where it repeats
//   scale, mask_value     an f32 mask is added; a bool mask puts mask_value where it is false
// All offsets and strides count elements.
#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "gemm_bf16.h"
#include "kernels/attention.h"
#include "kernels/light.h"

namespace mnnpy::MNNPY_NS {
namespace {

constexpr int64_t kQueries = kMaxNV * W;  // per chunk
constexpr int64_t kKeys = 128;            // per block: its scores stay in L1
constexpr int64_t kFew = 3;               // up to so many queries run as dot products
constexpr float kInf = std::numeric_limits<float>::infinity();

// e^x for x <= 0 (not above 88); exactly 0 from about -104 on, NaN stays NaN.
MNNPY_INLINE VF exp_score(VF x) {
#if MNNPY_ISA == 2
  const VF in = max_second(splat(-110.0f), x);
  const VF n = round_small(in * 1.44269504f);
  VF r = in - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  VF q = r * 1.381459638e-03f + 8.368717091e-03f;
  q = q * r + 4.166838809e-02f;
  q = q * r + 1.666652063e-01f;
  q = q * r + 4.999999345e-01f;
  const VF y = (q * r) * r + r + 1.0f;
  return reinterpret_cast<VF>(_mm512_scalef_ps(reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(n)));
#else
  const VF y = vexp_fast(x);
  return x < -87.0f ? VF{} : y;
#endif
}

// ---- O[query][column] = Σ over keys P[key][query] · V[key][column] ---------------------------------------------------

template <int MR, int NV>
[[gnu::noinline]] void weighted(const WeightedArgs& t) {
  VF acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = VF{};
  const float *p = t.p, *b = t.v;
  for (int64_t k = 0; k < t.depth; ++k, p += t.ldp, b += NV * W) {
    VF bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const VF x = splat(p[r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
    }
  }
  finish_weighted(acc, t);
}

template <int NV, int... R>
constexpr void fill_column(WeightedFn (&table)[kMaxRows + 1], std::integer_sequence<int, R...>) {
  ((table[R + 1] = &weighted<R + 1, NV>), ...);
}

struct WeightedTiles {
  WeightedFn fn[kMaxNV + 1][kMaxRows + 1] = {};
  constexpr WeightedTiles() {
    fill_column<1>(fn[1], std::make_integer_sequence<int, kRows[1]>{});
    fill_column<2>(fn[2], std::make_integer_sequence<int, kRows[2]>{});
    fill_column<3>(fn[3], std::make_integer_sequence<int, kRows[3]>{});
    if constexpr (kMaxNV >= 4) fill_column<kMaxNV>(fn[kMaxNV], std::make_integer_sequence<int, kRows[kMaxNV]>{});
  }
};
constinit const WeightedTiles weighted_tiles;

// Calls f(first, rows) for tiles of nearly equal height.
template <class F>
MNNPY_INLINE void tiles_of(int64_t count, int most, F&& f) {
  const int64_t tiles = (count + most - 1) / most;
  const int64_t base = count / tiles, extra = count % tiles;
  int64_t r = 0;
  for (int64_t q = 0; q < tiles; ++q) {
    const int64_t rows = base + (q < extra ? 1 : 0);
    f(r, static_cast<int>(rows));
    r += rows;
  }
}

// ---- scores -> weights -----------------------------------------------------------------------------------------------

enum class Mask { NONE, ADD_KEYS, ADD, PICK_KEYS, PICK };  // KEYS: the same for all queries

// What the block of scores [keys][NV·W] is combined with: a number per key, or a block of its own.
template <Mask kMask, int NV>
MNNPY_INLINE void masked_row(float* s, const float* mask, int64_t key, float value, VF (&out)[NV]) {
  const float* m = kMask == Mask::ADD || kMask == Mask::PICK ? mask + key * NV * W : mask;
  const bool pick_row = kMask == Mask::PICK_KEYS && mask[key] == 0.0f;
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    VF x = load(s + v * W);
    if (kMask == Mask::ADD_KEYS) x = x + splat(m[key]);
    if (kMask == Mask::ADD) x = x + load(m + v * W);
    if (kMask == Mask::PICK_KEYS && pick_row) x = splat(value);
    if (kMask == Mask::PICK) x = load(m + v * W) == 0.0f ? splat(value) : x;
    if (kMask != Mask::NONE) store(s + v * W, x);
    out[v] = x;
  }
}

struct Block {
  float* s;           // scores in, weights out: [keys][NV·W]
  int64_t keys;
  const float* mask;
  float value;
  float *top, *sum;   // per query, over the keys so far
  float* decay;       // out: what earlier sums must be multiplied with
  bool first;
};

template <Mask kMask, int NV>
[[gnu::noinline]] void weights(const Block& t) {
  VF top[NV], sum[NV], safe[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) top[v] = t.first ? splat(-kInf) : load(t.top + v * W), sum[v] = VF{};
  for (int64_t k = 0; k < t.keys; ++k) {
    VF x[NV];
    masked_row<kMask, NV>(t.s + k * NV * W, t.mask, k, t.value, x);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) top[v] = max_second(top[v], x[v]);  // a NaN may be lost here, the sum keeps it
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    // Where all scores are -inf the weights are 0 (and the quotient in the end is NaN, as the formula gives).
    safe[v] = top[v] == -kInf ? VF{} : top[v];
    const VF decay = t.first ? VF{} : exp_score(load(t.top + v * W) - safe[v]);
    store(t.decay + v * W, decay);
    store(t.top + v * W, top[v]);
  }
  for (int64_t k = 0; k < t.keys; ++k) {
    float* s = t.s + k * NV * W;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const VF e = exp_score(load(s + v * W) - safe[v]);
      sum[v] += e;
      store(s + v * W, e);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v)
    store(t.sum + v * W, t.first ? sum[v] : load(t.sum + v * W) * load(t.decay + v * W) + sum[v]);
}

using WeightsFn = void (*)(const Block&);

template <Mask kMask>
WeightsFn weights_of(int nv) {
  switch (nv) {
    case 1: return &weights<kMask, 1>;
    case 2: return &weights<kMask, 2>;
    case 3: return &weights<kMask, 3>;
    default: return &weights<kMask, kMaxNV>;
  }
}

WeightsFn weights_fn(Mask mask, int nv) {
  switch (mask) {
    case Mask::NONE: return weights_of<Mask::NONE>(nv);
    case Mask::ADD_KEYS: return weights_of<Mask::ADD_KEYS>(nv);
    case Mask::ADD: return weights_of<Mask::ADD>(nv);
    case Mask::PICK_KEYS: return weights_of<Mask::PICK_KEYS>(nv);
    case Mask::PICK: return weights_of<Mask::PICK>(nv);
  }
  return nullptr;
}

// ---- the kernel ------------------------------------------------------------------------------------------------------

struct View {
  int64_t offset = 0, step = 0, key_step = 0;
  std::vector<int64_t> batch;
};

struct Problem {
  std::vector<int64_t> batch;
  int64_t items = 1, q_len = 0, k_len = 0, dim = 0, v_dim = 0;
  View q, k, v, out, mask;
  float scale = 1.0f, mask_value = -kInf;
  bool has_mask = false, pick = false;
};

class FusedAttention final : public Kernel {
 public:
  FusedAttention(Problem p, bool low) : p_(std::move(p)), panels_(p_.v_dim) {
    for (int64_t item = 0; item < p_.items; ++item)
      for (const View* view : {&p_.q, &p_.k, &p_.v, &p_.out, &p_.mask}) offsets_.push_back(offset_of(*view, item));
    const int64_t vectors = (p_.q_len + W - 1) / W;
    blocks_ = (vectors + kMaxNV - 1) / kMaxNV;
    const int64_t key_blocks = std::max<int64_t>(1, (p_.k_len + kKeys - 1) / kKeys);
    keys_ = (p_.k_len + key_blocks - 1) / key_blocks;
    few_ = p_.q_len <= kFew;
    pairs_ = low && !few_ && std::min(p_.dim, p_.v_dim) >= 8;
    for (int nv = 1; nv <= kMaxNV && pairs_; ++nv) query_panels_[nv] = Panels(nv * W);
    mask_ = !p_.has_mask ? Mask::NONE
            : p_.mask.step == 0 || p_.q_len == 1 ? (p_.pick ? Mask::PICK_KEYS : Mask::ADD_KEYS)
                                                 : (p_.pick ? Mask::PICK : Mask::ADD);
  }

  std::string algorithm() const override { return few_ ? "rows" : pairs_ ? "blocks-bf16" : "blocks"; }

  size_t scratch_bytes(int threads) const override { return slot_floats() * sizeof(float) * static_cast<size_t>(threads); }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    if (p_.items * p_.q_len * p_.v_dim == 0) return;
    const int64_t chunks = p_.items * (few_ ? p_.q_len : blocks_);
    const double flops = 2.0 * static_cast<double>(p_.q_len * p_.k_len) * static_cast<double>(p_.dim + p_.v_dim);
    const int64_t parts = chunk_count(ctx.pool->threads(), chunks, flops / 16 * static_cast<double>(p_.items));
    const int64_t count = parts == 1 ? 1 : chunks;
    ctx.pool->parallel_for(count, [&](int64_t chunk, int slot) {
      float* scratch = reinterpret_cast<float*>(ctx.scratch) + slot_floats() * static_cast<size_t>(slot);
      const int64_t begin = count == 1 ? 0 : chunk, end = count == 1 ? chunks : chunk + 1;
      for (int64_t c = begin; c < end; ++c) {
        if (few_) one_query(c, inputs, outputs, scratch);
        else block(c, inputs, outputs, scratch);
      }
    });
  }

 private:
  static size_t up(int64_t n) { return (static_cast<size_t>(n) + 15) / 16 * 16; }
  size_t slot_floats() const {
    if (few_) return up(p_.k_len) * 2;
    return up(p_.dim * kQueries) + up(keys_ * kQueries) * (mask_ == Mask::NONE ? 1 : 2) + up(keys_ * panels_.width) +
           up(kQueries * panels_.width) + 4 * up(kQueries) + (pairs_ ? pair_floats() : 0);
  }
  // Queries as pairs of features, keys as bf16, weights as pairs of keys.
  size_t pair_floats() const { return up((p_.dim + 1) / 2 * kQueries) + up(keys_ * key_pitch() / 2) + up((keys_ + 1) / 2 * kQueries); }
  int64_t key_pitch() const { return (p_.dim + 31) / 32 * 32 + 32; }  // no power of two

  int64_t offset_of(const View& view, int64_t item) const {
    int64_t at = view.offset;
    for (size_t k = p_.batch.size(); k-- > 0;) {
      if (!view.batch.empty()) at += item % p_.batch[k] * view.batch[k];
      item /= p_.batch[k];
    }
    return at;
  }
  enum Operand { Q, K, V, OUT, MASK };
  int64_t at(int64_t item, Operand what) const { return offsets_[static_cast<size_t>(item * 5 + what)]; }

  float mask_at(const void* mask, int64_t index) const {
    if (p_.pick) return static_cast<const uint8_t*>(mask)[index] != 0 ? 1.0f : 0.0f;
    return static_cast<const float*>(mask)[index];
  }

  // The mask of keys [key, key + keys) and `queries` queries, turned like the scores.
  void fill_mask(const void* mask, int64_t start, int64_t key, int64_t keys, int64_t query, int64_t queries, int64_t width,
                 float* to) const {
    const int64_t from = start + key * p_.mask.key_step;
    if (mask_ == Mask::ADD_KEYS || mask_ == Mask::PICK_KEYS) {
      for (int64_t k = 0; k < keys; ++k) to[k] = mask_at(mask, from + k * p_.mask.key_step);
      return;
    }
    const int64_t first = from + query * p_.mask.step;
    if (!p_.pick && p_.mask.key_step == 1) {
      transpose(static_cast<const float*>(mask) + first, p_.mask.step, to, width, queries, keys);
    } else {
      for (int64_t k = 0; k < keys; ++k)
        for (int64_t q = 0; q < queries; ++q) to[k * width + q] = mask_at(mask, first + q * p_.mask.step + k * p_.mask.key_step);
    }
    for (int64_t k = 0; k < keys && queries < width; ++k)
      std::fill(to + k * width + queries, to + (k + 1) * width, 0.0f);
  }

  void block(int64_t chunk, const void* const* inputs, void* const* outputs, float* scratch) const {
    const int64_t item = chunk / blocks_, which = chunk % blocks_;
    const int64_t vectors = (p_.q_len + W - 1) / W;
    // Vectors are dealt out evenly, so that no block is much narrower than the others.
    const int64_t v0 = vectors * which / blocks_, v1 = vectors * (which + 1) / blocks_;
    const auto nv = static_cast<int>(v1 - v0);
    const int64_t query = v0 * W, width = nv * W, queries = std::min(p_.q_len - query, width);

    float* turned = scratch;
    float* s = turned + up(p_.dim * kQueries);
    float* v_packed = s + up(keys_ * kQueries);
    float* sums = v_packed + up(keys_ * panels_.width);
    float* top = sums + up(kQueries * panels_.width);
    float* sum = top + kQueries;
    float* decay = sum + kQueries;
    float* factor = decay + kQueries;
    float* mask = factor + kQueries;
    float* pairs = scratch + slot_floats() - (pairs_ ? pair_floats() : 0);

    const float* q = static_cast<const float*>(inputs[0]) + at(item, Q) + query * p_.q.step;
    const float* k = static_cast<const float*>(inputs[1]) + at(item, K);
    const float* v = static_cast<const float*>(inputs[2]) + at(item, V);
    float* out = static_cast<float*>(outputs[0]) + at(item, OUT) + query * p_.out.step;
    turn_queries(q, queries, width, turned);
    if (pairs_) pair_rows(turned, p_.dim, nv, pairs);
    const WeightsFn to_weights = weights_fn(mask_, nv);
    if (p_.k_len == 0) {  // a sum over nothing
      for (int64_t r = 0; r < queries; ++r) std::fill(out + r * p_.out.step, out + r * p_.out.step + p_.v_dim, 0.0f);
      return;
    }
    for (int64_t key = 0; key < p_.k_len; key += keys_) {
      const int64_t keys = std::min(keys_, p_.k_len - key);
      const bool last = key + keys == p_.k_len;
      if (pairs_) pair_scores(k + key * p_.k.step, keys, pairs, nv, s);
      else scores(k + key * p_.k.step, keys, turned, nv, s);
      if (p_.has_mask) fill_mask(inputs[3], at(item, MASK), key, keys, query, queries, width, mask);
      to_weights({s, keys, mask, p_.mask_value, top, sum, decay, key == 0});
      if (last)
        for (int64_t r = 0; r < width; r += W) store(factor + r, 1.0f / load(sum + r));
      const BView values{v + key * p_.v.step, 0, p_.v.step, 1};
      const float* p = s;
      if (pairs_) {
        float* rounded = pairs + pair_floats() - up((keys_ + 1) / 2 * kQueries);
        pair_rows(s, keys, nv, rounded);
        pair_values(values, keys, v_packed);
        p = rounded;
      } else {
        pack_b(panels_, 1, keys, values, v_packed, 0, panels_.list.size());
      }
      for (const auto& panel : panels_.list) {
        WeightedArgs t;
        t.ldp = width;
        t.depth = pairs_ ? (keys + 1) / 2 : keys;
        t.v = v_packed + panel.offset * t.depth;
        t.ld_before = panels_.width;
        t.ld_out = last ? p_.out.step : panels_.width;
        t.cols = last ? panel.cols : panel.nv * W;
        tiles_of(queries, kRows[panel.nv], [&](int64_t r, int rows) {
          t.p = p + r;
          t.before = key == 0 ? nullptr : sums + r * panels_.width + panel.column;
          t.decay = decay + r;
          t.factor = last ? factor + r : nullptr;
          t.out = last ? out + r * p_.out.step + panel.column : sums + r * panels_.width + panel.column;
          weighted_fn(rows, panel.nv)(t);
        });
      }
    }
  }

#if MNNPY_ISA == 2
  WeightedFn weighted_fn(int rows, int nv) const { return pairs_ ? weighted_pairs_fn(rows, nv) : weighted_tiles.fn[nv][rows]; }

  // Rows of nv vectors, two by two.
  void pair_rows(const float* from, int64_t rows, int nv, float* to) const {
    pack_pairs(query_panels_[nv], 1, rows, BView{from, 0, nv * W, 1}, reinterpret_cast<uint32_t*>(to), 0, 1);
  }

  void pair_values(const BView& v, int64_t keys, float* to) const {
    pack_pairs(panels_, 1, keys, v, reinterpret_cast<uint32_t*>(to), 0, panels_.list.size());
  }

  void pair_scores(const float* k, int64_t keys, float* pairs, int nv, float* s) const {
    const int64_t pitch = key_pitch();
    auto* rounded = reinterpret_cast<uint16_t*>(pairs + up((p_.dim + 1) / 2 * kQueries));
    const uint16_t* rows[kKeys];
    for (int64_t r = 0; r < keys; ++r) {
      to_bf16(k + r * p_.k.step, rounded + r * pitch, p_.dim);
      rows[r] = rounded + r * pitch;
    }
    Epilogue e;
    PairTile t;
    t.tap_stride = 0, t.taps = 1, t.depth = p_.dim, t.k_begin = 0;
    t.b = reinterpret_cast<const uint32_t*>(pairs);
    t.ldc = nv * W, t.cols = nv * W;
    t.epilogue = &e;
    t.column = 0;
    run_pair_panel(t, nv, rows, 0, keys, s);
  }
#else
  static WeightedFn weighted_fn(int rows, int nv) { return weighted_tiles.fn[nv][rows]; }
  static void pair_rows(const float*, int64_t, int, float*) {}
  static void pair_values(const BView&, int64_t, float*) {}
  static void pair_scores(const float*, int64_t, float*, int, float*) {}
#endif

  void turn_queries(const float* q, int64_t queries, int64_t width, float* to) const {
    transpose(q, p_.q.step, to, width, queries, p_.dim);
    for (int64_t d = 0; d < p_.dim; ++d) {
      float* row = to + d * width;
      for (int64_t r = queries; r < width; ++r) row[r] = 0.0f;
      for (int64_t r = 0; r < width; r += W) store(row + r, load(row + r) * p_.scale);
    }
  }

  void scores(const float* k, int64_t keys, const float* turned, int nv, float* s) const {
    const float* rows[kKeys];
    for (int64_t r = 0; r < keys; ++r) rows[r] = k + r * p_.k.step;
    Epilogue e;
    TileArgs t;
    t.tap_stride = 0;
    t.taps = 1;
    t.depth = p_.dim;
    t.k_begin = 0;
    t.b = turned;
    t.ldc = nv * W;
    t.cols = nv * W;
    t.epilogue = &e;
    t.column = 0;
    t.offset = 0;
    tiles_of(keys, kRows[nv], [&](int64_t r, int count) {
      t.rows = rows + r;
      t.c = s + r * t.ldc;
      tile_fn(count, nv)(t);
    });
  }

  // One query on its own, as in decoding: K and V are read once, as they lie.
  void one_query(int64_t chunk, const void* const* inputs, void* const* outputs, float* scratch) const {
    const int64_t item = chunk / p_.q_len, query = chunk % p_.q_len;
    const float* q = static_cast<const float*>(inputs[0]) + at(item, Q) + query * p_.q.step;
    const float* k = static_cast<const float*>(inputs[1]) + at(item, K);
    const float* v = static_cast<const float*>(inputs[2]) + at(item, V);
    float* out = static_cast<float*>(outputs[0]) + at(item, OUT) + query * p_.out.step;
    float top = -kInf;
    for (int64_t key = 0; key < p_.k_len; ++key) {
      float x = dot(q, k + key * p_.k.step) * p_.scale;
      if (p_.has_mask) {
        const float m = mask_at(inputs[3], at(item, MASK) + query * p_.mask.step + key * p_.mask.key_step);
        x = !p_.pick ? x + m : m == 0.0f ? p_.mask_value : x;
      }
      scratch[key] = x;
      top = x > top ? x : top;
    }
    VF total{};
    const float safe = top == -kInf ? 0.0f : top;
    for (int64_t key = 0; key < p_.k_len; key += W) {
      const int left = static_cast<int>(std::min<int64_t>(W, p_.k_len - key));
      VF x = load_partial(scratch + key, left) - safe;
      for (int lane = left; lane < W; ++lane) x[lane] = -kInf;
      const VF e = exp_score(x);
      total += e;
      store_partial(scratch + key, e, left);
    }
    const float factor = p_.k_len == 0 ? 0.0f : 1.0f / sum_lanes(total);
    for (int64_t j = 0; j < p_.v_dim; j += 4 * W) {
      const int64_t count = std::min<int64_t>(4 * W, p_.v_dim - j);
      VF acc[4] = {};
      if (count == 4 * W) {
        for (int64_t key = 0; key < p_.k_len; ++key) {
          const float* from = v + key * p_.v.step + j;
#pragma GCC unroll 4
          for (int a = 0; a < 4; ++a) acc[a] += scratch[key] * load(from + a * W);
        }
      } else {
        for (int64_t key = 0; key < p_.k_len; ++key) {
          const float* from = v + key * p_.v.step + j;
#pragma GCC unroll 4
          for (int a = 0; a < 4; ++a)
            if (a * W < count) acc[a] += scratch[key] * load_partial(from + a * W, static_cast<int>(std::min<int64_t>(W, count - a * W)));
        }
      }
      for (int a = 0; a < 4; ++a)
        if (a * W < count) store_partial(out + j + a * W, acc[a] * factor, static_cast<int>(std::min<int64_t>(W, count - a * W)));
    }
  }

  float dot(const float* a, const float* b) const {
    VF s0{}, s1{};
    int64_t i = 0;
    for (; i + 2 * W <= p_.dim; i += 2 * W) {
      s0 += load(a + i) * load(b + i);
      s1 += load(a + i + W) * load(b + i + W);
    }
    for (; i < p_.dim; i += W) {
      const int left = static_cast<int>(std::min<int64_t>(W, p_.dim - i));
      s0 += load_partial(a + i, left) * load_partial(b + i, left);
    }
    return sum_lanes(s0 + s1);
  }

  Problem p_;
  Panels panels_;
  Panels query_panels_[kMaxNV + 1];
  std::vector<int64_t> offsets_;  // per item: q, k, v, out, mask
  int64_t blocks_ = 0, keys_ = 0;
  bool few_ = false, pairs_ = false;
  Mask mask_ = Mask::NONE;
};

// Whether all that a view touches lies inside the tensor.
bool inside(const View& view, const std::vector<int64_t>& batch, int64_t steps, int64_t keys, int64_t features, const TensorDesc& t) {
  int64_t low = view.offset, high = view.offset + features - 1;
  const auto reach = [&](int64_t size, int64_t stride) { (stride < 0 ? low : high) += (size - 1) * stride; };
  for (size_t k = 0; k < batch.size(); ++k) reach(batch[k], view.batch[k]);
  reach(steps, view.step);
  reach(keys, view.key_step);
  return low >= 0 && high < t.count();
}

bool read_view(const NodeDesc& node, const char* name, size_t rank, bool mask, View& view) {
  const auto list = node.ints(name);
  if (list.size() != rank + (mask ? 3 : 2)) return false;
  view.offset = list[0];
  view.batch.assign(list.begin() + 1, list.begin() + 1 + static_cast<std::ptrdiff_t>(rank));
  view.step = list[rank + 1];
  view.key_step = mask ? list[rank + 2] : 0;
  return true;
}

std::unique_ptr<Kernel> make_attention(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() < 3 || node.inputs.size() > 4 || node.outputs.size() != 1) return decline(ctx, "takes q, k, v and a mask");
  for (size_t k = 0; k < 3; ++k)
    if (!node.inputs[k].present || node.inputs[k].dtype != DType::F32) return decline(ctx, "q, k and v must be f32");
  if (node.outputs[0].dtype != DType::F32) return decline(ctx, "the result is f32");
  Problem p;
  p.batch = node.ints("batch");
  p.q_len = node.i("q_len", -1), p.k_len = node.i("k_len", -1), p.dim = node.i("dim", -1), p.v_dim = node.i("v_dim", -1);
  if (std::min({p.q_len, p.k_len, p.dim, p.v_dim}) < 0) return decline(ctx, "q_len, k_len, dim and v_dim are needed");
  for (int64_t d : p.batch) p.items *= d;
  p.scale = static_cast<float>(node.f("scale", 1.0));
  p.mask_value = static_cast<float>(node.f("mask_value", -std::numeric_limits<double>::infinity()));
  p.has_mask = node.inputs.size() > 3 && node.inputs[3].present;
  const size_t rank = p.batch.size();
  if (!read_view(node, "q", rank, false, p.q) || !read_view(node, "k", rank, false, p.k) || !read_view(node, "v", rank, false, p.v) ||
      !read_view(node, "out", rank, false, p.out) || (p.has_mask && !read_view(node, "mask", rank, true, p.mask)))
    return decline(ctx, "strides do not match the batch axes");
  if (p.has_mask) {
    const DType t = node.inputs[3].dtype;
    if (t != DType::F32 && t != DType::BOOL) return decline(ctx, "the mask must be f32 or bool");
    p.pick = t == DType::BOOL;
  }
  if (p.items * p.q_len * p.v_dim > 0) {
    const bool keys = p.k_len > 0;
    if ((keys && p.dim > 0 && !inside(p.q, p.batch, p.q_len, 1, p.dim, node.inputs[0])) ||
        (keys && p.dim > 0 && !inside(p.k, p.batch, p.k_len, 1, p.dim, node.inputs[1])) ||
        (keys && !inside(p.v, p.batch, p.k_len, 1, p.v_dim, node.inputs[2])) ||
        !inside(p.out, p.batch, p.q_len, 1, p.v_dim, node.outputs[0]) ||
        (keys && p.has_mask && !inside(p.mask, p.batch, p.q_len, p.k_len, 1, node.inputs[3])))
      return decline(ctx, "strides reach outside an operand");
  }
  return std::make_unique<FusedAttention>(std::move(p), MNNPY_ISA == 2 && wants_bf16(node, ctx));
}

}  // namespace

MNNPY_REGISTER("FusedAttention", make_attention);

}  // namespace mnnpy::MNNPY_NS
