// MatMul for f32: numpy.matmul with transposed operands, bias, residual and activation.
#include "matmul.h"

#include "strassen.h"

namespace mnnpy::MNNPY_NS {

std::optional<MatMulProblem> matmul_problem(const NodeDesc& node, const char*& why) {
  const TensorDesc &a = node.inputs[0], &b = node.inputs[1];
  MatMulProblem p;
  if (a.rank() < 1 || b.rank() < 1) return why = "operands need rank >= 1", std::nullopt;
  p.trans_a = node.i("trans_a", 0) != 0 && a.rank() > 1;
  p.trans_b = node.i("trans_b", 0) != 0 && b.rank() > 1;
  const size_t ra = a.shape.size(), rb = b.shape.size();
  const int64_t a0 = ra > 1 ? a.shape[ra - 2] : 1, a1 = a.shape[ra - 1];
  const int64_t b0 = rb > 1 ? b.shape[rb - 2] : b.shape[0], b1 = rb > 1 ? b.shape[rb - 1] : 1;
  p.m = p.trans_a ? a1 : a0;
  p.k = p.trans_a ? a0 : a1;
  p.n = p.trans_b ? b0 : b1;
  if (p.k != (p.trans_b ? b1 : b0)) return why = "inner sizes differ", std::nullopt;
  const size_t ba = ra > 2 ? ra - 2 : 0, bb = rb > 2 ? rb - 2 : 0, rank = std::max(ba, bb);
  Dims dims(rank), sa(rank, 0), sb(rank, 0);
  int64_t na = 1, nb = 1;
  for (size_t q = 0; q < rank; ++q) {  // from the innermost
    const int64_t da = q < ba ? a.shape[ba - 1 - q] : 1, db = q < bb ? b.shape[bb - 1 - q] : 1;
    if (da != db && da != 1 && db != 1) return why = "batch dimensions do not broadcast", std::nullopt;
    dims[q] = da == 1 ? db : da;
    sa[q] = da == 1 ? 0 : na;
    sb[q] = db == 1 ? 0 : nb;
    na *= da, nb *= db;
    p.batches *= dims[q];
  }
  p.b_count = nb;
  // Rows of A may be seen as one tall matrix where one B serves all batches.
  const bool folded = nb == 1 && !p.trans_a;
  if (folded) {
    p.m *= p.batches;
    p.batches = 1;
  }
  for (int64_t q = 0; q < p.batches; ++q) {
    int64_t rest = q, ia = 0, ib = 0;
    for (size_t d = 0; d < rank && !folded; ++d) {
      ia += rest % dims[d] * sa[d], ib += rest % dims[d] * sb[d];
      rest /= dims[d];
    }
    p.a_batch.push_back(ia);
    p.b_batch.push_back(ib);
  }
  int64_t total = 1;
  for (int64_t d : node.outputs[0].shape) total *= d;
  if (total != p.batches * p.m * p.n) return why = "the output has another size", std::nullopt;
  return p;
}

namespace {

float dot(const float* a, const float* b, int64_t k) {
  VF s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * W <= k; i += 4 * W) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + W) * load(b + i + W);
    s2 += load(a + i + 2 * W) * load(b + i + 2 * W);
    s3 += load(a + i + 3 * W) * load(b + i + 3 * W);
  }
  for (; i < k; i += W) {
    const int left = static_cast<int>(std::min<int64_t>(W, k - i));
    s1 += load_partial(a + i, left) * load_partial(b + i, left);
  }
  return sum_lanes((s0 + s1) + (s2 + s3));
}

class MatMulF32 final : public Kernel {
 public:
  MatMulF32(const NodeDesc& node, const BuildContext& ctx, MatMulProblem p, const Epilogue& e)
      : p_(std::move(p)), epilogue_(e), threads_(ctx.threads) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    const TensorDesc& b = node.inputs[1];
    if (p_.k == 0) {
      mode_ = FILL;
    } else if (p_.n <= 2 && !p_.trans_a && (p_.trans_b || p_.n == 1) && p_.m > 1) {
      mode_ = DOT;  // columns of B are contiguous and too few for a panel
    } else if (b.constant != nullptr) {
      mode_ = PACKED;
    } else if (p_.m == 1 && p_.trans_b) {
      mode_ = DOT;
    } else if (p_.m == 1) {
      mode_ = AXPY;
    } else {
      mode_ = PACK;
    }
    if (mode_ == PACKED || mode_ == PACK) {
      // Many small products: one chunk each. Otherwise each product is shared by all threads.
      by_batch_ = p_.batches >= 2 * ctx.threads || ctx.threads == 1;
      strassen_ = Strassen::plan(p_.m, p_.n, p_.k, by_batch_ ? 1 : ctx.threads, node.s("algorithm", "auto"), node.i("levels", 0));
      panels_ = strassen_.levels() > 0 ? strassen_.panels() : Panels(p_.n);
      matrix_ = static_cast<size_t>(panels_.width * p_.k);
      blocks_ = plan_blocks(p_.m, 1, p_.k, panels_, by_batch_ ? 1 : ctx.threads);
    }
    if (mode_ == PACKED) {
      packed_ = Floats(matrix_ * static_cast<size_t>(p_.b_count));
      for (int64_t q = 0; q < p_.b_count; ++q)
        pack(static_cast<const float*>(b.constant), q, packed_.data() + static_cast<size_t>(q) * matrix_, 0, panels_.list.size());
      packed_.share();
    }
  }

  size_t packed_bytes() const override { return packed_.bytes(); }
  bool consumed(int input) const override { return input == 1 && mode_ == PACKED; }
  // A partial sum in the output would destroy a residual that shares its memory.
  bool in_place(int input) const override {
    return input == 3 && (mode_ == DOT || ((mode_ == PACK || mode_ == PACKED) && !(strassen_.levels() > 0 ? strassen_.split() : blocks_.split())));
  }
  std::string algorithm() const override {
    static constexpr const char* kModes[] = {"fill", "dot", "gemv", "gemm-packed", "gemm"};
    if (strassen_.levels() > 0) return strassen_.levels() == 1 ? "gemm-strassen" : "gemm-strassen-2";
    return mode_ == PACKED && p_.m == 1 ? "gemv-packed" : kModes[mode_];
  }

  size_t scratch_bytes(int threads) const override {
    const size_t slots = by_batch_ ? static_cast<size_t>(threads) : 1;
    return per_slot(by_batch_ && p_.batches > 1 ? 1 : threads) * slots * sizeof(float);
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* a = static_cast<const float*>(inputs[0]);
    const auto* b = static_cast<const float*>(inputs[1]);
    auto* c = static_cast<float*>(outputs[0]);
    Epilogue e = epilogue_;
    e.bias = has_bias_ ? static_cast<const float*>(inputs[2]) : nullptr;
    const auto* residual = static_cast<const float*>(residual_input(inputs));
    e.residual = residual;
    switch (mode_) {
      case FILL: return fill(e, c);
      case DOT: return dots(ctx, a, b, c, e);
      case AXPY: return axpys(ctx, a, b, c, e);
      default: break;
    }
    auto* scratch = reinterpret_cast<float*>(ctx.scratch);
    if (by_batch_ && p_.batches > 1) {
      ctx.pool->parallel_for(p_.batches, [&](int64_t q, int slot) {
        one(q, a, b, c, e, residual, scratch + per_slot(1) * static_cast<size_t>(slot), nullptr);
      });
    } else {
      for (int64_t q = 0; q < p_.batches; ++q) one(q, a, b, c, e, residual, scratch, ctx.pool);
    }
  }

  bool strassen() const { return strassen_.levels() > 0; }
  void residual_at(bool present) { has_residual_ = present; }

 private:
  enum Mode { FILL, DOT, AXPY, PACKED, PACK };

  size_t packing_floats() const { return mode_ == PACK ? round_up_64(matrix_) : 0; }
  size_t turning_floats() const {
    return p_.trans_a && (mode_ == PACK || mode_ == PACKED) ? round_up_64(static_cast<size_t>(p_.m * p_.k)) : 0;
  }
  // Floats of scratch for one product that `threads` work on.
  size_t per_slot(int threads) const { return packing_floats() + turning_floats() + strassen_.scratch_floats(threads); }
  const void* residual_input(const void* const* inputs) const { return has_residual_ ? inputs[3] : nullptr; }

  void pack(const float* b, int64_t matrix, float* to, size_t first, size_t last) const {
    const BView view{b + matrix * p_.k * p_.n, 0, p_.trans_b ? 1 : p_.n, p_.trans_b ? p_.k : 1};
    pack_b(panels_, 1, p_.k, view, to, first, last);
  }

  void one(int64_t q, const float* a, const float* b, float* c, Epilogue e, const float* residual, float* scratch,
           Pool* pool) const {
    const auto at = static_cast<size_t>(q);
    const float* packed = packed_.data() + static_cast<size_t>(p_.b_batch[at]) * matrix_;
    if (mode_ == PACK) {
      const auto count = static_cast<int64_t>(panels_.list.size());
      if (pool == nullptr || matrix_ < size_t{1} << 15) {
        pack(b, p_.b_batch[at], scratch, 0, panels_.list.size());
      } else {
        pool->parallel_for(count, [&](int64_t p, int) {
          pack(b, p_.b_batch[at], scratch, static_cast<size_t>(p), static_cast<size_t>(p) + 1);
        });
      }
      packed = scratch;
    }
    MatrixRows rows{a + p_.a_batch[at] * p_.m * p_.k, p_.k};
    if (p_.trans_a) {
      float* turned = scratch + packing_floats();
      transpose(rows.a, p_.m, turned, p_.k, p_.k, p_.m);
      rows.a = turned;
    }
    if (residual != nullptr) e.residual = residual + q * p_.m * p_.n;
    c += q * p_.m * p_.n;
    if (strassen_.levels() > 0)
      strassen_.run(rows.a, p_.k, packed, c, p_.n, e, scratch + packing_floats() + turning_floats(), pool);
    else
      run_blocks(blocks_, panels_, packed, p_.m, 1, p_.k, c, p_.n, e, pool, rows);
  }

  // act(scale · sum + bias + residual) for a run of outputs that starts at column 0 of one row.
  void finish(float* c, const float* residual, int64_t count, int64_t column, const Epilogue& e) const {
    for (int64_t j = 0; j < count; ++j) {
      float y = c[j] * e.scale;
      if (e.bias != nullptr) y += e.bias[column + j];
      if (residual != nullptr) y += residual[j];
      c[j] = y;
    }
    activate_row(e.act, e.act_alpha, e.act_beta, c, count);
  }

  void fill(const Epilogue& e, float* c) const {
    for (int64_t r = 0; r < p_.batches * p_.m; ++r) {
      // The residual may share the output's memory: finish() adds it last.
      std::vector<float> zero(static_cast<size_t>(p_.n), 0.0f);
      finish(zero.data(), e.residual != nullptr ? e.residual + r * p_.n : nullptr, p_.n, 0, e);
      std::copy(zero.begin(), zero.end(), c + r * p_.n);
    }
  }

  int64_t chunk_rows(int64_t rows, int64_t work_per_row) const {
    return std::clamp<int64_t>((int64_t{1} << 17) / std::max<int64_t>(1, work_per_row), 1, std::max<int64_t>(1, rows));
  }

  // One output element per dot product: B has one column, or A one row and B contiguous columns.
  void dots(const RunContext& ctx, const float* a, const float* b, float* c, const Epilogue& e) const {
    const int64_t total = p_.batches * p_.m;
    if (p_.m == 1) {  // columns are shared among threads
      const int64_t step = chunk_rows(p_.n, p_.k), parts = (p_.n + step - 1) / step;
      ctx.pool->parallel_for(total * parts, [&](int64_t chunk, int) {
        const int64_t q = chunk / parts, j0 = chunk % parts * step, j1 = std::min(p_.n, j0 + step);
        const auto at = static_cast<size_t>(q);
        float* out = c + q * p_.n;
        float sums[256];
        for (int64_t j = j0; j < j1; j += 256) {
          const int64_t count = std::min<int64_t>(256, j1 - j);
          for (int64_t i = 0; i < count; ++i)
            sums[i] = dot(a + p_.a_batch[at] * p_.k, b + (p_.b_batch[at] * p_.n + j + i) * p_.k, p_.k);
          finish(sums, e.residual != nullptr ? e.residual + q * p_.n + j : nullptr, count, j, e);
          std::copy(sums, sums + count, out + j);
        }
      });
      return;
    }
    const int64_t step = chunk_rows(p_.m, p_.k * p_.n), parts = (p_.m + step - 1) / step;
    ctx.pool->parallel_for(p_.batches * parts, [&](int64_t chunk, int) {
      const int64_t q = chunk / parts, i0 = chunk % parts * step, i1 = std::min(p_.m, i0 + step);
      const auto at = static_cast<size_t>(q);
      for (int64_t i = i0; i < i1; ++i) {
        float sums[2];
        for (int64_t j = 0; j < p_.n; ++j)
          sums[j] = dot(a + (p_.a_batch[at] * p_.m + i) * p_.k, b + (p_.b_batch[at] * p_.n + j) * p_.k, p_.k);
        float* out = c + (q * p_.m + i) * p_.n;
        finish(sums, e.residual != nullptr ? e.residual + (q * p_.m + i) * p_.n : nullptr, p_.n, 0, e);
        std::copy(sums, sums + p_.n, out);
      }
    });
  }

  // One row of A against a B that is used once: streams B as it lies, a few rows of it at a time.
  void axpys(const RunContext& ctx, const float* a, const float* b, float* c, const Epilogue& e) const {
    constexpr int64_t kColumns = 1024;
    const int64_t wanted = ctx.pool->threads() == 1 || p_.k * p_.n < 65536 ? 1 : ctx.pool->threads() * 4;
    const int64_t even = ((p_.n + wanted - 1) / wanted + W - 1) / W * W;
    const int64_t step = std::clamp<int64_t>(even, std::min<int64_t>(256, kColumns), kColumns), parts = (p_.n + step - 1) / step;
    ctx.pool->parallel_for(p_.batches * parts, [&](int64_t chunk, int) {
      const int64_t q = chunk / parts, j0 = chunk % parts * step, count = std::min(step, p_.n - j0);
      const auto at = static_cast<size_t>(q);
      const float* x = a + p_.a_batch[at] * p_.k;
      const float* from = b + p_.b_batch[at] * p_.k * p_.n + j0;
      alignas(64) float sums[kColumns];
      for (int64_t j = 0; j < count; j += W) store(sums + j, VF{});
      int64_t k = 0;
      for (; k + 4 <= p_.k; k += 4, from += 4 * p_.n) {
        const VF x0 = splat(x[k]), x1 = splat(x[k + 1]), x2 = splat(x[k + 2]), x3 = splat(x[k + 3]);
        const auto rows = [&](auto read, int64_t j) {
          const float* p = from + j;
          const VF s = load(sums + j) + x0 * read(p) + x1 * read(p + p_.n);
          store(sums + j, s + (x2 * read(p + 2 * p_.n) + x3 * read(p + 3 * p_.n)));
        };
        int64_t j = 0;
        for (; j + W <= count; j += W) rows([](const float* p) { return load(p); }, j);
        const int left = static_cast<int>(count - j);
        if (left > 0) rows([left](const float* p) { return load_partial(p, left); }, j);
      }
      for (; k < p_.k; ++k, from += p_.n)
        for (int64_t j = 0; j < count; j += W) {
          const int lanes = static_cast<int>(std::min<int64_t>(W, count - j));
          store(sums + j, load(sums + j) + x[k] * load_partial(from + j, lanes));
        }
      finish(sums, e.residual != nullptr ? e.residual + q * p_.n + j0 : nullptr, count, j0, e);
      std::copy(sums, sums + count, c + q * p_.n + j0);
    });
  }

  MatMulProblem p_;
  Epilogue epilogue_;
  Strassen strassen_;
  Panels panels_;
  Blocking blocks_;
  Floats packed_;
  size_t matrix_ = 0;  // floats of one packed B
  Mode mode_ = PACK;
  bool by_batch_ = true, has_bias_ = false, has_residual_ = false;
  int threads_;
};

std::unique_ptr<Kernel> make_matmul(const NodeDesc& node, const BuildContext& ctx) {
  if (node.inputs.size() < 2 || node.inputs.size() > 4 || node.outputs.size() != 1)
    return decline(ctx, "takes two to four operands");
  const std::string algorithm = node.s("algorithm", "auto");
  if (algorithm != "auto" && algorithm != "direct" && algorithm != "strassen") return decline(ctx, "another algorithm was asked for");
  for (const auto& t : node.inputs)
    if (t.present && t.dtype != DType::F32) return decline(ctx, "the fast product is f32 only");
  if (node.outputs[0].dtype != DType::F32) return decline(ctx, "the fast product is f32 only");
  const char* why = "";
  auto problem = matmul_problem(node, why);
  if (!problem) return decline(ctx, why);
  const auto epilogue = epilogue_from(node);
  if (!epilogue) return decline(ctx, "unknown act");
  if (node.inputs.size() > 2 && node.inputs[2].present && node.inputs[2].count() != problem->n)
    return decline(ctx, "the bias is not a vector over the columns");
  const bool residual = node.inputs.size() > 3 && node.inputs[3].present;
  if (residual && node.inputs[3].count() != node.outputs[0].count()) return decline(ctx, "the residual has another size");
  auto kernel = std::make_unique<MatMulF32>(node, ctx, std::move(*problem), *epilogue);
  kernel->residual_at(residual);
  if (algorithm == "strassen" && !kernel->strassen())
    return decline(ctx, "Strassen's algorithm needs at least two rows, k and panels of columns");
  return kernel;
}

}  // namespace

MNNPY_REGISTER_AT("MatMul", make_matmul, 10);

}  // namespace mnnpy::MNNPY_NS
