// MatMul on bf16 pairs with f32 sums, for precision="low".
#include "gemm_bf16.h"
#include "matmul.h"

#if MNNPY_ISA == 2

namespace mnnpy::MNNPY_NS {
namespace {

class MatMulBf16 final : public Kernel {
 public:
  MatMulBf16(const NodeDesc& node, const BuildContext& ctx, MatMulProblem p, const Epilogue& e)
      : p_(std::move(p)), epilogue_(e), panels_(p_.n), constant_(node.inputs[1].constant != nullptr) {
    has_bias_ = node.inputs.size() > 2 && node.inputs[2].present;
    has_residual_ = node.inputs.size() > 3 && node.inputs[3].present;
    matrix_ = static_cast<size_t>(panels_.width * pairs_of(p_.k));
    // Many small products: one chunk each. Otherwise each product is shared by all threads.
    by_batch_ = p_.batches > 1 && (p_.batches >= 2 * ctx.threads || ctx.threads == 1);
    blocks_ = plan_blocks(p_.m, 1, pairs_of(p_.k), panels_, by_batch_ ? 1 : ctx.threads);
    if (constant_) {
      packed_ = Floats(matrix_ * static_cast<size_t>(p_.b_count));
      auto* to = reinterpret_cast<uint32_t*>(packed_.data());
      for (int64_t q = 0; q < p_.b_count; ++q)
        pack(static_cast<const float*>(node.inputs[1].constant), q, to + static_cast<size_t>(q) * matrix_, 0, panels_.list.size());
    }
  }

  size_t packed_bytes() const override { return packed_.bytes(); }
  bool consumed(int input) const override { return input == 1 && constant_; }
  // A partial sum in the output would destroy a residual that shares its memory.
  bool in_place(int input) const override { return input == 3 && !blocks_.split(); }
  std::string algorithm() const override {
    return constant_ ? (p_.m == 1 ? "gemv-packed-bf16" : "gemm-packed-bf16") : "gemm-bf16";
  }
  size_t scratch_bytes(int threads) const override {
    const auto slots = static_cast<size_t>(threads);
    return operand_bytes() * (by_batch_ ? slots : 1) + staged_bytes(blocks_) * slots;
  }

  void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const override {
    const auto* a = static_cast<const float*>(inputs[0]);
    const auto* b = static_cast<const float*>(inputs[1]);
    auto* c = static_cast<float*>(outputs[0]);
    Epilogue e = epilogue_;
    e.bias = has_bias_ ? static_cast<const float*>(inputs[2]) : nullptr;
    e.residual = has_residual_ ? static_cast<const float*>(inputs[3]) : nullptr;
    if (by_batch_) {
      const size_t per_slot = operand_bytes() + staged_bytes(blocks_);
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

  void pack(const float* b, int64_t matrix, uint32_t* to, size_t first, size_t last) const {
    const BView view{b + matrix * p_.k * p_.n, 0, p_.trans_b ? 1 : p_.n, p_.trans_b ? p_.k : 1};
    pack_pairs(panels_, 1, p_.k, view, to, first, last);
  }

  void one(int64_t q, const float* a, const float* b, float* c, Epilogue e, std::byte* scratch, Pool* pool) const {
    const auto at = static_cast<size_t>(q);
    const auto* packed = reinterpret_cast<const uint32_t*>(packed_.data()) + static_cast<size_t>(p_.b_batch[at]) * matrix_;
    if (!constant_) {
      auto* to = reinterpret_cast<uint32_t*>(scratch);
      if (pool == nullptr || matrix_ < size_t{1} << 15) {
        pack(b, p_.b_batch[at], to, 0, panels_.list.size());
      } else {
        pool->parallel_for(static_cast<int64_t>(panels_.list.size()), [&](int64_t p, int) {
          pack(b, p_.b_batch[at], to, static_cast<size_t>(p), static_cast<size_t>(p) + 1);
        });
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
    run_pair_blocks<float>(blocks_, panels_, packed, p_.m, 1, p_.k, c + q * p_.m * p_.n, p_.n, e, pool,
                           scratch + operand_bytes(), rows);
  }

  MatMulProblem p_;
  Epilogue epilogue_;
  Panels panels_;
  Blocking blocks_;
  Floats packed_;
  size_t matrix_ = 0;  // pairs of one packed B
  bool constant_, by_batch_ = false, has_bias_ = false, has_residual_ = false;
};

std::unique_ptr<Kernel> make_matmul_bf16(const NodeDesc& node, const BuildContext& ctx) {
  if (!wants_bf16(node, ctx)) return nullptr;
  if (node.inputs.size() < 2 || node.inputs.size() > 4 || node.outputs.size() != 1)
    return decline(ctx, "takes two to four operands");
  for (const auto& t : node.inputs)
    if (t.present && t.dtype != DType::F32) return decline(ctx, "activations are f32 in memory");
  if (node.outputs[0].dtype != DType::F32) return decline(ctx, "activations are f32 in memory");
  const char* why = "";
  auto problem = matmul_problem(node, why);
  if (!problem) return decline(ctx, why);
  const auto epilogue = epilogue_from(node);
  if (!epilogue) return decline(ctx, "unknown act");
  if (node.inputs.size() > 2 && node.inputs[2].present && node.inputs[2].count() != problem->n)
    return decline(ctx, "the bias is not a vector over the columns");
  if (node.inputs.size() > 3 && node.inputs[3].present && node.inputs[3].count() != node.outputs[0].count())
    return decline(ctx, "the residual has another size");
  if (problem->n < 8 || problem->k < 8) return decline(ctx, "too small to gain from bf16");
  if (problem->m == 1 && node.inputs[1].constant == nullptr) return decline(ctx, "B is read once: rounding it would cost more");
  return std::make_unique<MatMulBf16>(node, ctx, std::move(*problem), *epilogue);
}

}  // namespace

MNNPY_REGISTER_AT("MatMul", make_matmul_bf16, 40);

}  // namespace mnnpy::MNNPY_NS

#endif
