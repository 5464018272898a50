// The contract between the executor and the kernels.
//
// A kernel is built once per node from static descriptions (shapes, dtypes, attributes, constant operands)
// by a factory that is registered under the node's op name, then run any number of times, from several
// threads at once: run() is const and keeps no state outside the buffers and the scratch it asked for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

namespace mnnpy {

enum class DType : uint8_t {
  BOOL, I2, I4, I8, I16, I32, I64, U2, U4, U8, U16, U32, U64, F16, BF16, F32, F64,
  F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1, C64, C128
};

// Names are those of mnnpy.graph.dtypes.DType ("f32", "i64", …). Sub-byte types take one byte an element.
DType dtype_from_name(const std::string& name);
const char* dtype_name(DType t);
size_t dtype_size(DType t);

using Dims = std::vector<int64_t>;

struct TensorDesc {
  DType dtype = DType::F32;
  Dims shape;                   // dense, row-major
  const void* constant = nullptr;  // operand known at build time (weights): may be packed then; outlives the kernel
  bool present = true;          // false: an absent optional operand
  int64_t count() const { int64_t n = 1; for (int64_t d : shape) n *= d; return n; }
  size_t bytes() const { return static_cast<size_t>(count()) * dtype_size(dtype); }
  int rank() const { return static_cast<int>(shape.size()); }
};

// Attributes keep the names of the atomic op (mnnpy/decompose/ops/atomic.py).
using Attr = std::variant<int64_t, double, std::string, std::vector<int64_t>, std::vector<double>,
                          std::vector<std::string>>;

struct NodeDesc {
  std::string op;
  std::string name;  // for error messages
  std::vector<TensorDesc> inputs, outputs;
  std::map<std::string, Attr> attrs;

  int64_t i(const std::string& key, int64_t fallback) const;
  double f(const std::string& key, double fallback) const;
  std::string s(const std::string& key, const std::string& fallback) const;
  std::vector<int64_t> ints(const std::string& key) const;      // empty where absent
  std::vector<double> floats(const std::string& key) const;     // empty where absent
  std::vector<std::string> strings(const std::string& key) const;
};

// Work is split into `count` chunks that idle workers claim one by one; the caller takes part.
// `slot` in [0, threads) is unique among the participants of one call: index per-thread scratch with it.
// A parallel_for inside a body runs its chunks one after the other, as slot 0. Exceptions reach the caller.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int threads() const = 0;
  template <class Body>  // void(int64_t chunk, int slot)
  void parallel_for(int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    if (count == 1) {
      body(int64_t{0}, 0);
      return;
    }
    run(count, [](void* b, int64_t chunk, int slot) { (*static_cast<Plain*>(b))(chunk, slot); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 protected:
  virtual void run(int64_t count, void (*call)(void* body, int64_t chunk, int slot), void* body) = 0;
};

struct RunContext {
  Pool* pool;
  std::byte* scratch;  // scratch_bytes(pool->threads()) bytes, 64-byte aligned
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  // Operand pointers in NodeDesc order (nullptr where absent); inputs may be constants.
  // Throws std::runtime_error for faults that depend on the data (an index out of range).
  virtual void run(const RunContext& ctx, const void* const* inputs, void* const* outputs) const = 0;
  virtual size_t scratch_bytes(int threads) const { (void)threads; return 0; }
  // Packed weights and tables held besides the operands, for memory reports.
  virtual size_t packed_bytes() const { return 0; }
  // True where input k may share its buffer with output 0 (same size, element-wise access).
  virtual bool in_place(int input) const { (void)input; return false; }
  // Which variant was picked ("gemm-avx512-12x32"), for explain().
  virtual std::string algorithm() const { return "generic"; }
  // True where input k was packed at build time: the original constant is not read any more.
  virtual bool consumed(int input) const { (void)input; return false; }
};

// The one block of memory that holds these bytes: `block` itself, or an equal one that is alive already.
std::shared_ptr<const void> share_block(std::shared_ptr<const void> block, size_t bytes);

enum class Isa : int { GENERIC = 0, AVX2 = 1, AVX512 = 2 };

// Kernel sources are compiled once per instruction set with MNNPY_ISA defined; all of their code, templates
// included, lives in namespace mnnpy::MNNPY_NS so that no inline function of one variant can stand in for another's.
#ifndef MNNPY_ISA
#define MNNPY_ISA 0
#endif
#if MNNPY_ISA == 2
#define MNNPY_NS avx512
#elif MNNPY_ISA == 1
#define MNNPY_NS avx2
#else
#define MNNPY_NS generic
#endif

struct BuildContext {
  Isa isa;
  int threads;
  std::string* why = nullptr;  // set by a factory that declines
};

// Builds a kernel, or returns nullptr to say "not this dtype, shape or attribute" (see decline()).
// Weights may be absent (TensorDesc::constant == nullptr) and must then be read, or packed, at run time.
using Factory = std::unique_ptr<Kernel> (*)(const NodeDesc&, const BuildContext&);

// What a factory that does not fit returns: `return decline(ctx, "only f32");`
inline std::nullptr_t decline(const BuildContext& ctx, const char* reason) {
  if (ctx.why != nullptr) *ctx.why = reason;
  return nullptr;
}

struct Registration {
  const char* op;
  Factory factory;
  int isa;
  int priority;
};

// Throws std::invalid_argument naming op, dtypes and shapes where no kernel fits. Asks the best instruction set
// at or below ctx.isa first, within it the highest priority; the first factory that does not decline wins.
std::unique_ptr<Kernel> make_kernel(const NodeDesc& node, const BuildContext& ctx);

#define MNNPY_CAT2(a, b) a##b
#define MNNPY_CAT(a, b) MNNPY_CAT2(a, b)
// Registration is data, not code: a constructor in a source compiled for AVX-512 would run at load time on any CPU.
#if defined(__APPLE__)
#define MNNPY_SECTION "__DATA,mnnpy_kernels"
#else
#define MNNPY_SECTION "mnnpy_kernels"
#endif
#define MNNPY_REGISTER_ID(op, factory, priority, id)                                                       \
  static constexpr ::mnnpy::Registration MNNPY_CAT(registration_, id){op, factory, MNNPY_ISA, priority};   \
  [[gnu::used, gnu::section(MNNPY_SECTION)]] static const ::mnnpy::Registration* const MNNPY_CAT(          \
      registered_, id) = &MNNPY_CAT(registration_, id)
#define MNNPY_REGISTER_AT(op, factory, priority) MNNPY_REGISTER_ID(op, factory, priority, __COUNTER__)
#define MNNPY_REGISTER(op, factory) MNNPY_REGISTER_AT(op, factory, 0)

}  // namespace mnnpy
