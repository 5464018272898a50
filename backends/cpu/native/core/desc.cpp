// Element types, attribute access and the kernel registry.
#include <algorithm>
#include <unordered_map>

#include "core/core.h"

namespace mnnpy {
namespace {

struct TypeRow {
  const char* name;
  size_t size;
};
// In the order of DType.
constexpr TypeRow kTypes[] = {
    {"bool", 1}, {"i2", 1},       {"i4", 1},         {"i8", 1},     {"i16", 2},        {"i32", 4},       {"i64", 8},
    {"u2", 1},   {"u4", 1},       {"u8", 1},         {"u16", 2},    {"u32", 4},        {"u64", 8},       {"f16", 2},
    {"bf16", 2}, {"f32", 4},      {"f64", 8},        {"f8e4m3fn", 1}, {"f8e4m3fnuz", 1}, {"f8e5m2", 1},    {"f8e5m2fnuz", 1},
    {"f8e8m0fnu", 1}, {"f4e2m1", 1}, {"c64", 8},     {"c128", 16},
};

const Attr* find(const NodeDesc& n, const std::string& key) {
  auto it = n.attrs.find(key);
  return it == n.attrs.end() ? nullptr : &it->second;
}

[[noreturn]] void wrong_type(const NodeDesc& n, const std::string& key, const char* wanted) {
  throw std::invalid_argument("attribute '" + key + "' of " + n.op + " '" + n.name + "' is not " + wanted);
}

}  // namespace

DType dtype_from_name(const std::string& name) {
  for (size_t k = 0; k < std::size(kTypes); ++k)
    if (name == kTypes[k].name) return static_cast<DType>(k);
  throw std::invalid_argument("unknown element type '" + name + "'");
}

const char* dtype_name(DType t) { return kTypes[static_cast<size_t>(t)].name; }
size_t dtype_size(DType t) { return kTypes[static_cast<size_t>(t)].size; }

int64_t NodeDesc::i(const std::string& key, int64_t fallback) const {
  const Attr* a = find(*this, key);
  if (a == nullptr) return fallback;
  if (auto* v = std::get_if<int64_t>(a)) return *v;
  wrong_type(*this, key, "an integer");
}

double NodeDesc::f(const std::string& key, double fallback) const {
  const Attr* a = find(*this, key);
  if (a == nullptr) return fallback;
  if (auto* v = std::get_if<double>(a)) return *v;
  if (auto* v = std::get_if<int64_t>(a)) return static_cast<double>(*v);
  wrong_type(*this, key, "a number");
}

std::string NodeDesc::s(const std::string& key, const std::string& fallback) const {
  const Attr* a = find(*this, key);
  if (a == nullptr) return fallback;
  if (auto* v = std::get_if<std::string>(a)) return *v;
  wrong_type(*this, key, "a string");
}

std::vector<int64_t> NodeDesc::ints(const std::string& key) const {
  const Attr* a = find(*this, key);
  if (a == nullptr) return {};
  if (auto* v = std::get_if<std::vector<int64_t>>(a)) return *v;
  if (auto* v = std::get_if<int64_t>(a)) return {*v};
  wrong_type(*this, key, "a list of integers");
}

std::vector<double> NodeDesc::floats(const std::string& key) const {
  const Attr* a = find(*this, key);
  if (a == nullptr) return {};
  if (auto* v = std::get_if<std::vector<double>>(a)) return *v;
  if (auto* v = std::get_if<std::vector<int64_t>>(a)) return {v->begin(), v->end()};
  if (auto* v = std::get_if<double>(a)) return {*v};
  wrong_type(*this, key, "a list of numbers");
}

std::vector<std::string> NodeDesc::strings(const std::string& key) const {
  const Attr* a = find(*this, key);
  if (a == nullptr) return {};
  if (auto* v = std::get_if<std::vector<std::string>>(a)) return *v;
  if (auto* v = std::get_if<std::vector<int64_t>>(a); v != nullptr && v->empty()) return {};
  wrong_type(*this, key, "a list of strings");
}

// ---- registry ------------------------------------------------------------------------------------------------------

#if defined(__APPLE__)
extern const Registration* const registrations_begin[] __asm("section$start$__DATA$mnnpy_kernels");
extern const Registration* const registrations_end[] __asm("section$end$__DATA$mnnpy_kernels");
#else
extern "C" const Registration* const __start_mnnpy_kernels[] __attribute__((visibility("hidden")));
extern "C" const Registration* const __stop_mnnpy_kernels[] __attribute__((visibility("hidden")));
#define registrations_begin __start_mnnpy_kernels
#define registrations_end __stop_mnnpy_kernels
#endif

namespace {

using Table = std::unordered_map<std::string, std::vector<const Registration*>>;

const Table& table() {
  static const Table t = [] {
    Table made;
    for (auto p = registrations_begin; p != registrations_end; ++p) made[(*p)->op].push_back(*p);
    for (auto& [op, rows] : made)
      std::stable_sort(rows.begin(), rows.end(), [](const Registration* a, const Registration* b) {
        return a->isa != b->isa ? a->isa > b->isa : a->priority > b->priority;
      });
    return made;
  }();
  return t;
}

std::string describe(const TensorDesc& t) {
  if (!t.present) return "-";
  std::string text = dtype_name(t.dtype);
  text += '[';
  for (size_t k = 0; k < t.shape.size(); ++k) text += (k ? "," : "") + std::to_string(t.shape[k]);
  return text + ']';
}

}  // namespace

std::vector<std::string> known_ops() {
  std::vector<std::string> ops;
  for (auto& [op, rows] : table()) ops.push_back(op);
  std::sort(ops.begin(), ops.end());
  return ops;
}

std::unique_ptr<Kernel> try_kernel(const NodeDesc& node, const BuildContext& ctx, std::string& why) {
  auto it = table().find(node.op);
  if (it == table().end()) {
    why = "the CPU backend has no kernel called " + node.op;
    return nullptr;
  }
  std::string reason;
  for (const Registration* r : it->second) {
    if (r->isa > static_cast<int>(ctx.isa)) continue;
    std::string said;
    BuildContext inner{static_cast<Isa>(r->isa), ctx.threads, &said};
    if (auto kernel = r->factory(node, inner)) return kernel;
    if (!said.empty() && reason.find(said) == std::string::npos) reason += (reason.empty() ? "" : "; ") + said;
  }
  why = reason.empty() ? "no kernel takes these dtypes and shapes" : reason;
  return nullptr;
}

std::unique_ptr<Kernel> make_kernel(const NodeDesc& node, const BuildContext& ctx) {
  std::string why;
  if (auto kernel = try_kernel(node, ctx, why)) return kernel;
  std::string text = "no CPU kernel for " + node.op + " '" + node.name + "' (";
  for (size_t k = 0; k < node.inputs.size(); ++k) text += (k ? ", " : "") + describe(node.inputs[k]);
  text += ") -> (";
  for (size_t k = 0; k < node.outputs.size(); ++k) text += (k ? ", " : "") + describe(node.outputs[k]);
  throw std::invalid_argument(text + "): " + why);
}

}  // namespace mnnpy
