// Random numbers by counter: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Element i depends on the seed and i only, so any number of threads gives the same tensor.
#include <memory>
#include <random>
#include <string>

#include "kernels/elementwise.h"

namespace mnnpy::MNNPY_NS {
namespace {

struct Block4 {
  uint32_t w[4];
};

Block4 philox(uint64_t block, uint64_t seed) {
  auto c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = 0, c3 = 0;
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

double unit(uint32_t w) { return static_cast<double>(w >> 8) * 0x1p-24; }

class Random final : public Kernel {
 public:
  Random(const NodeDesc& node, bool normal)
      : normal_(normal), seeded_(node.attrs.count("seed") != 0), seed_(static_cast<uint64_t>(node.i("seed", 0))), a_(node.f("a", 0)),
        b_(node.f("b", 1)), count_(node.outputs[0].count()), type_(node.outputs[0].dtype), round_(convert_op(DType::F64, type_)),
        store_(store_op(type_)) {
    if (limited()) find_limit();
  }

  void run(const RunContext& ctx, const void* const*, void* const* outputs) const override {
    uint64_t seed = seed_;
    if (!seeded_) {
      std::random_device device;
      seed = static_cast<uint64_t>(device()) << 32 | device();
    }
    const auto size = static_cast<int64_t>(dtype_size(type_));
    share(ctx, (count_ + kBlock - 1) / kBlock, kBlock * (normal_ ? 60.0 : 8.0), [&](int64_t begin, int64_t end, int) {
      double wide[kBlock];
      for (int64_t k = begin; k < end; ++k) {
        const int64_t at = k * kBlock, n = std::min(kBlock, count_ - at);
        fill(wide, at, n, seed);
        put(wide, static_cast<std::byte*>(outputs[0]) + at * size, n);
      }
    });
  }
  std::string algorithm() const override { return "philox"; }

 private:
  void fill(double* y, int64_t at, int64_t n, uint64_t seed) const {  // at is a multiple of 4
    for (int64_t k = 0; k < n; k += 4) {
      const Block4 words = philox(static_cast<uint64_t>(at + k) / 4, seed);
      double v[4];
      if (normal_) {
        for (int j = 0; j < 4; j += 2) {
          const double radius = std::sqrt(-2 * std::log(unit(words.w[j]) + 0x1p-24)), angle = 2 * 3.14159265358979323846 * unit(words.w[j + 1]);
          v[j] = a_ + b_ * (radius * std::cos(angle));
          v[j + 1] = a_ + b_ * (radius * std::sin(angle));
        }
      } else {
        for (int j = 0; j < 4; ++j) v[j] = a_ + (b_ - a_) * unit(words.w[j]);
      }
      for (int j = 0; j < 4 && k + j < n; ++j) y[k + j] = v[j];
    }
  }

  void put(const double* x, void* to, int64_t n) const {
    if (type_ == DType::F64) {
      auto* y = static_cast<double*>(to);
      for (int64_t k = 0; k < n; ++k) y[k] = limited() && x[k] >= b_ ? wide_limit_ : x[k];
      return;
    }
    float single[kBlock];
    round_.fn({x, nullptr, nullptr, single, n, 0, 0});
    if (store_ == nullptr) {
      auto* y = static_cast<float*>(to);
      for (int64_t k = 0; k < n; ++k) y[k] = limited() && static_cast<double>(single[k]) >= b_ ? limit_ : single[k];
      return;
    }
    store_(single, to, n, {});
    if (!limited()) return;
    float back[kBlock];
    load_op(type_)(to, back, n);
    for (int64_t k = 0; k < n; ++k)
      if (static_cast<double>(back[k]) >= b_) store_(&limit_, static_cast<std::byte*>(to) + k * static_cast<int64_t>(dtype_size(type_)), 1, {});
  }
  bool limited() const { return !normal_ && b_ > a_; }

  // Rounding may reach the open end b: then the last number of the type before it.
  void find_limit() {
    wide_limit_ = std::nextafter(b_, a_);
    double step = std::max(std::fabs(b_) * 0x1p-25, 0x1p-149);
    for (bool below = false; !below; step *= 2) {
      limit_ = static_cast<float>(b_ - step);
      if (store_ != nullptr) {
        uint16_t narrow = 0;
        store_(&limit_, &narrow, 1, {});
        load_op(type_)(&narrow, &limit_, 1);
      }
      below = static_cast<double>(limit_) < b_ || !std::isfinite(step);
    }
  }

  bool normal_, seeded_;
  uint64_t seed_;
  double a_, b_;
  int64_t count_;
  DType type_;
  BlockOp round_;
  StoreFn store_;
  float limit_ = 0;
  double wide_limit_ = 0;
};

std::unique_ptr<Kernel> make_random(const NodeDesc& node, const BuildContext& ctx) {
  if (node.outputs.size() != 1) return decline(ctx, "has one output");
  const DType t = node.outputs[0].dtype;
  if (t != DType::F32 && t != DType::F64 && !is_narrow_float(t)) return decline(ctx, "only floating-point types");
  const std::string fn = node.s("fn", "");
  if (fn != "Uniform" && fn != "Normal") return decline(ctx, "unknown fn");
  return std::make_unique<Random>(node, fn == "Normal");
}

}  // namespace

MNNPY_REGISTER("Random", make_random);

}  // namespace mnnpy::MNNPY_NS
