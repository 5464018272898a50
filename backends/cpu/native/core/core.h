// What the parts of the core share: CPU features, the pool, buffers, the program.
#pragma once

#include <chrono>
#include <mutex>

#include "kernel.h"

namespace mnnpy {

// Names of the instruction set extensions found by CPUID that matter to kernels.
// Only those that kernels of an instruction set up to `limit` may use.
std::vector<std::string> cpu_features(Isa limit);
Isa best_isa();  // what this CPU can do and this build contains
const char* isa_name(Isa isa);
Isa isa_from_name(const std::string& name);  // throws std::invalid_argument

// The process-wide pool of `threads` participants (0: one per CPU this process may run on).
class WorkPool;
WorkPool* shared_pool(int threads);
int default_threads();

class WorkPool : public Pool {
 public:
  // Marks a stretch in which more regions will follow soon: workers keep spinning a little longer.
  struct Lease {
    explicit Lease(WorkPool* pool);
    ~Lease();
    WorkPool* pool;
  };
};

std::vector<std::string> known_ops();
// As make_kernel, but returns nullptr and says why where no kernel fits.
std::unique_ptr<Kernel> try_kernel(const NodeDesc& node, const BuildContext& ctx, std::string& why);

// 64-byte aligned memory; from 2 MiB on it asks for huge pages.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

struct Place {
  enum Kind { ARENA, CONSTANT, INPUT, OUTPUT, ALIAS } kind = ARENA;
  int64_t index = 0;                // of the input, output or aliased tensor
  size_t offset = 0;                // bytes into the arena, or into the aliased tensor
  const void* constant = nullptr;
  bool mapped = false;  // the constant lies in a map of a file that nobody writes: its pages may be dropped
};

struct TensorSpec {
  DType dtype;
  Dims shape;
  Place place;
};

struct StepSpec {
  std::string op, name;
  std::map<std::string, Attr> attrs;
  std::vector<int64_t> inputs, outputs;  // tensor indices, -1: absent
};

struct Profile {
  int64_t step, start_ns, duration_ns;
};

// A sequence of kernels with its memory plan. run() may be called from several threads at once.
class Plan {
 public:
  Plan(std::vector<TensorSpec> tensors, std::vector<StepSpec> steps, size_t arena_bytes, int threads, Isa isa);
  ~Plan();

  size_t input_count() const { return input_bytes_.size(); }
  size_t output_count() const { return output_bytes_.size(); }
  size_t input_bytes(size_t k) const { return input_bytes_[k]; }
  size_t output_bytes(size_t k) const { return output_bytes_[k]; }
  // Tensor index of an output, -1 where nothing writes it.
  int64_t output_tensor(size_t k) const { return output_tensor_[k]; }
  // Throws std::runtime_error with the node's name in front.
  void run(const void* const* inputs, void* const* outputs, std::vector<Profile>* profile = nullptr);

  size_t step_count() const { return steps_.size(); }
  const StepSpec& spec(size_t k) const { return specs_[k]; }
  const Kernel& kernel(size_t k) const { return *steps_[k].kernel; }
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  // True for constants that no kernel reads any more.
  std::vector<bool> released_constants() const { return released_; }
  size_t arena_bytes() const { return arena_bytes_; }
  size_t scratch_bytes() const { return scratch_bytes_; }
  size_t packed_bytes() const;
  int threads() const;
  Isa isa() const { return isa_; }
  void trim();  // gives idle arenas back

 private:
  struct Step {
    std::unique_ptr<Kernel> kernel;
    size_t first_input, first_output;  // into State::pointers
  };
  struct Patch {  // a pointer that depends on the call
    size_t slot;
    int64_t index;
    size_t offset;
  };
  struct State {
    Buffer memory;
    std::vector<void*> pointers;
  };

  std::unique_ptr<State> take();
  void give(std::unique_ptr<State> state);

  std::vector<TensorSpec> tensors_;
  std::vector<StepSpec> specs_;
  std::vector<Step> steps_;
  std::vector<Patch> input_patches_, output_patches_;
  struct Fixed {
    size_t slot;
    size_t offset;  // arena
    const void* constant;
  };
  std::vector<Fixed> fixed_;
  std::vector<Buffer> staged_;  // constants that kernels read in another form than they were given
  size_t pointer_count_ = 0;
  std::vector<size_t> input_bytes_, output_bytes_;
  std::vector<int64_t> output_tensor_;
  std::vector<bool> released_;
  size_t arena_bytes_, scratch_bytes_ = 0;
  WorkPool* pool_;
  Isa isa_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<State>> idle_;
};

}  // namespace mnnpy
