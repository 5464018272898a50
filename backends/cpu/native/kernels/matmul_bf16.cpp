// MatMul on bf16 with f32 sums: pairs of AVX512_BF16 (precision="low"), tiles of AMX (one plane, or two: bf16x3).
#include "gemm_amx.h"
#include "gemm_bf16.h"
#include "matmul.h"

namespace mnnpy::MNNPY_NS {
namespace {

// Many small products are a chunk each. Otherwise each product is shared by all threads.
bool by_batch(const MatMulProblem& p, int threads) { return p.batches > 1 && (p.batches >= 2 * threads || threads == 1); }

template <class Product>
class MatMulBf16 final : public Kernel {
 public:
  MatMulBf16(const NodeDesc& node, const BuildContext& ctx, MatMulProblem p, const Epilogue& e, Product product)
      : p_(std::move(p)), epilogue_(e), product_(std::move(product)), matrix_(product_.packed_words()),
        constant_(node.inputs[1].constant != nullptr), by_batch_(by_batch(p_, ctx.threads)) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    if (constant_) {
      packed_ = Floats(matrix_ * static_cast<size_t>(p_.b_count));
      auto* to = reinterpret_cast<uint32_t*>(packed_.data());
      for (int64_t q = 0; q < p_.b_count; ++q)
        pack(static_cast<const float*>(node.inputs[1].constant), q, to + static_cast<size_t>(q) * matrix_, 0, product_.panels());
      packed_.share();
    }
  }

  size_t packed_bytes() const override { return packed_.bytes(); }
  bool consumed(int input) const override { return input == 1 && constant_; }
  // A partial sum in the output would destroy a residual that shares its memory.
  bool in_place(int input) const override { return input == 3 && !product_.split(); }
  std::string algorithm() const override {
    return (constant_ ? (p_.m == 1 ? "gemv-packed-" : "gemm-packed-") : "gemm-") + product_.name();
  }
  size_t scratch_bytes(int threads) const override {
    const auto slots = static_cast<size_t>(threads);
    return operand_bytes() * (by_batch_ ? slots : 1) + product_.scratch_bytes() * slots;
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* a = static_cast<const float*>(inputs[0]);
    const auto* b = static_cast<const float*>(inputs[1]);
    auto* c = static_cast<float*>(outputs[0]);
    Epilogue e = epilogue_;
    e.bias = has_bias_ ? static_cast<const float*>(inputs[2]) : nullptr;
    e.residual = has_residual_ ? static_cast<const float*>(inputs[3]) : nullptr;
    if (by_batch_) {
      const size_t per_slot = operand_bytes() + product_.scratch_bytes();
      ctx.pool->parallel_for(p_.batches, [&](int64_t q, int slot) {
        std::byte* scratch = ctx.scratch + per_slot * static_cast<size_t>(slot);
        one(q, a, b, c, e, scratch, nullptr);
      });
    } else {
      for (int64_t q = 0; q < p_.batches; ++q) one(q, a, b, c, e, ctx.scratch, ctx.pool);
    }
  }

 private:
  size_t packing_bytes() const { return constant_ ? 0 : round_up_64(matrix_ * sizeof(uint32_t)); }
  size_t operand_bytes() const {
    return packing_bytes() + (p_.trans_a ? round_up_64(static_cast<size_t>(p_.m * p_.k) * sizeof(float)) : 0);
  }

  void pack(const float* b, int64_t matrix, uint32_t* to, int64_t first, int64_t last) const {
    const BView view{b + matrix * p_.k * p_.n, 0, p_.trans_b ? 1 : p_.n, p_.trans_b ? p_.k : 1};
    product_.pack(view, to, first, last);
  }

  void one(int64_t q, const float* a, const float* b, float* c, Epilogue e, std::byte* scratch, Pool* pool) const {
    const auto at = static_cast<size_t>(q);
    const auto* packed = reinterpret_cast<const uint32_t*>(packed_.data()) + static_cast<size_t>(p_.b_batch[at]) * matrix_;
    if (!constant_) {
      auto* to = reinterpret_cast<uint32_t*>(scratch);
      if (pool == nullptr || matrix_ < size_t{1} << 15) {
        pack(b, p_.b_batch[at], to, 0, product_.panels());
      } else {
        pool->parallel_for(product_.panels(), [&](int64_t p, int) { pack(b, p_.b_batch[at], to, p, p + 1); });
      }
      packed = to;
    }
    MatrixRows rows{a + p_.a_batch[at] * p_.m * p_.k, p_.k};
    if (p_.trans_a) {
      auto* turned = reinterpret_cast<float*>(scratch + packing_bytes());
      transpose(rows.a, p_.m, turned, p_.k, p_.k, p_.m);
      rows.a = turned;
    }
    if (e.residual != nullptr) e.residual += q * p_.m * p_.n;
    product_.template run<float>(packed, c + q * p_.m * p_.n, p_.n, e, pool, scratch + operand_bytes(), {}, rows);
  }

  MatMulProblem p_;
  Epilogue epilogue_;
  Product product_;
  Floats packed_;
  size_t matrix_;  // words of one packed B
  bool constant_, by_batch_, has_bias_ = false, has_residual_ = false;
};

// What both units need; nullopt with the reason in ctx.why.
std::optional<MatMulProblem> common_problem(const NodeDesc& node, const BuildContext& ctx, Epilogue& e) {
  const auto no = [&](const char* why) { return decline(ctx, why), std::nullopt; };
  if (node.inputs.size() < 2 || node.inputs.size() > 4 || node.outputs.size() != 1) return no("takes two to four operands");
  for (const auto& t : node.inputs)
    if (t.present && t.dtype != DType::F32) return no("activations are f32 in memory");
  if (node.outputs[0].dtype != DType::F32) return no("activations are f32 in memory");
  const char* why = "";
  auto problem = matmul_problem(node, why);
  if (!problem) return no(why);
  const auto epilogue = epilogue_from(node);
  if (!epilogue) return no("unknown act");
  if (node.inputs.size() > 2 && node.inputs[2].present && node.inputs[2].count() != problem->n)
    return no("the bias is not a vector over the columns");
  if (node.inputs.size() > 3 && node.inputs[3].present && node.inputs[3].count() != node.outputs[0].count())
    return no("the residual has another size");
  if (problem->n < 8 || problem->k < 8) return no("too small to gain from bf16");
  const bool constant = node.inputs[1].constant != nullptr || node.s("weights", "") == "constant";
  if (problem->m == 1 && !constant) return no("B is read once: rounding it would cost more");
  e = *epilogue;
  return problem;
}

std::unique_ptr<Kernel> make_matmul_amx(const NodeDesc& node, const BuildContext& ctx) {
  if (amx_planes(node, ctx, true) == 0) return nullptr;
  Epilogue e;
  auto p = common_problem(node, ctx, e);
  if (!p) return nullptr;
  const int planes = amx_planes(node, ctx, amx_pays(p->m, p->n, 1, p->k));
  if (planes == 0) return nullptr;
  AmxProduct product(p->m, p->n, 1, p->k, planes, amx_unit(), by_batch(*p, ctx.threads) ? 1 : ctx.threads);
  return std::make_unique<MatMulBf16<AmxProduct>>(node, ctx, std::move(*p), e, std::move(product));
}

#if MNNPY_ISA == 2
std::unique_ptr<Kernel> make_matmul_pairs(const NodeDesc& node, const BuildContext& ctx) {
  if (!wants_bf16(node, ctx)) return nullptr;
  Epilogue e;
  auto p = common_problem(node, ctx, e);
  if (!p) return nullptr;
  PairProduct product(p->m, p->n, 1, p->k, by_batch(*p, ctx.threads) ? 1 : ctx.threads);
  return std::make_unique<MatMulBf16<PairProduct>>(node, ctx, std::move(*p), e, std::move(product));
}
#endif

}  // namespace

MNNPY_REGISTER_AT("MatMul", make_matmul_amx, 50);
#if MNNPY_ISA == 2
MNNPY_REGISTER_AT("MatMul", make_matmul_pairs, 40);
#endif

}  // namespace mnnpy::MNNPY_NS
