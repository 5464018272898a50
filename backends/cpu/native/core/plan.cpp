// The executor: resolves the memory plan once, then runs kernel after kernel.
#include <algorithm>

#include "core/core.h"
#include "core/staging.h"

namespace mnnpy {
namespace {

constexpr size_t kAlign = 64;
size_t round_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

TensorDesc desc_of(const std::vector<TensorSpec>& tensors, int64_t index) {
  TensorDesc d;
  if (index < 0) {
    d.present = false;
    return d;
  }
  const TensorSpec& t = tensors[static_cast<size_t>(index)];
  d.dtype = t.dtype;
  d.shape = t.shape;
  return d;
}

size_t spec_bytes(const TensorSpec& t) {
  size_t n = dtype_size(t.dtype);
  for (int64_t d : t.shape) {
    if (d < 0) throw std::invalid_argument("a tensor has a negative dimension");
    if (__builtin_mul_overflow(n, static_cast<size_t>(d), &n)) throw std::invalid_argument("a tensor is too large");
  }
  return n;
}

// Where a tensor's bytes are once aliases are followed.
Place resolve(const std::vector<TensorSpec>& tensors, int64_t index) {
  size_t offset = 0;
  const size_t need = spec_bytes(tensors[static_cast<size_t>(index)]);
  for (size_t hops = 0; hops <= tensors.size(); ++hops) {
    const TensorSpec& t = tensors[static_cast<size_t>(index)];
    if (t.place.kind != Place::ALIAS) {
      if (offset + need > spec_bytes(t)) throw std::invalid_argument("an alias reaches beyond its tensor");
      Place p = t.place;
      p.offset = (p.kind == Place::ARENA ? p.offset : 0) + offset;
      return p;
    }
    offset += t.place.offset;
    index = t.place.index;
    if (index < 0 || static_cast<size_t>(index) >= tensors.size())
      throw std::invalid_argument("an alias names tensor " + std::to_string(index) + ", which does not exist");
  }
  throw std::invalid_argument("aliases form a cycle");
}

}  // namespace

Plan::Plan(std::vector<TensorSpec> tensors, std::vector<StepSpec> steps, size_t arena_bytes, int threads, Isa isa)
    : tensors_(std::move(tensors)), specs_(std::move(steps)), arena_bytes_(round_up(arena_bytes)),
      pool_(shared_pool(threads)), isa_(isa) {
  std::vector<Place> places;
  std::vector<int64_t> root(tensors_.size());  // index of the tensor that owns the bytes
  for (size_t k = 0; k < tensors_.size(); ++k) {
    places.push_back(resolve(tensors_, static_cast<int64_t>(k)));
    root[k] = static_cast<int64_t>(k);
    while (tensors_[static_cast<size_t>(root[k])].place.kind == Place::ALIAS)
      root[k] = tensors_[static_cast<size_t>(root[k])].place.index;
    const Place& p = tensors_[k].place;
    const size_t bytes = spec_bytes(tensors_[k]);
    if (p.kind == Place::ARENA && (p.offset > arena_bytes || bytes > arena_bytes - p.offset))
      throw std::invalid_argument("tensor " + std::to_string(k) + " does not fit in the arena");
    if (p.kind == Place::INPUT || p.kind == Place::OUTPUT) {
      auto& sizes = p.kind == Place::INPUT ? input_bytes_ : output_bytes_;
      if (p.index < 0 || p.index > 1 << 20) throw std::invalid_argument("a bad input or output index");
      const auto at = static_cast<size_t>(p.index);
      if (sizes.size() <= at) sizes.resize(at + 1, 0);
      sizes[at] = std::max(sizes[at], bytes);
      if (p.kind == Place::OUTPUT) {
        if (output_tensor_.size() <= at) output_tensor_.resize(at + 1, -1);
        output_tensor_[at] = static_cast<int64_t>(k);
      }
    }
  }

  std::vector<NodeDesc> nodes(specs_.size());
  std::vector<std::vector<Source>> sources(specs_.size());
  for (size_t s = 0; s < specs_.size(); ++s) {
    StepSpec& spec = specs_[s];
    NodeDesc& node = nodes[s];
    node.op = spec.op;
    node.name = spec.name;
    auto check = [&](int64_t index, bool output) {
      if (index < -1 || index >= static_cast<int64_t>(tensors_.size()))
        throw std::invalid_argument("step '" + spec.name + "' names tensor " + std::to_string(index));
      if (output && index >= 0) {
        const auto kind = places[static_cast<size_t>(index)].kind;
        if (kind != Place::ARENA && kind != Place::OUTPUT)
          throw std::invalid_argument("step '" + spec.name + "' writes an input or a constant");
      }
    };
    for (int64_t t : spec.inputs) {
      check(t, false);
      node.inputs.push_back(desc_of(tensors_, t));
      if (t >= 0 && places[static_cast<size_t>(t)].kind == Place::CONSTANT) {
        const Place& p = places[static_cast<size_t>(t)];
        node.inputs.back().constant = static_cast<const std::byte*>(p.constant) + p.offset;
        sources[s].push_back({node.inputs.size() - 1, p.mapped, {}});
        const std::string key = node.inputs.size() == 2 ? "weight_scale" : "weight_scale_" + std::to_string(node.inputs.size() - 1);
        const auto scale = spec.attrs.extract(key);
        if (!scale.empty()) sources[s].back().factors = std::get<std::vector<double>>(scale.mapped());
      }
    }
    for (int64_t t : spec.outputs) {
      check(t, true);
      node.outputs.push_back(desc_of(tensors_, t));
    }
    for (const auto& [key, value] : spec.attrs)
      if (key.starts_with("weight_scale")) throw std::invalid_argument("step '" + spec.name + "': " + key + " without constant weights");
    node.attrs = spec.attrs;
  }

  // Packing moves the bytes of all weights, mostly into pages that the system clears first: a job for all threads.
  std::vector<std::unique_ptr<Kernel>> kernels(specs_.size());
  std::vector<std::vector<Staged>> kept(specs_.size());
  pool_->parallel_for(static_cast<int64_t>(specs_.size()), [&](int64_t k, int) {
    const auto s = static_cast<size_t>(k);
    kernels[s] = build_staged(nodes[s], sources[s], BuildContext{isa_, pool_->threads()}, kept[s]);
  });

  std::vector<bool> read(tensors_.size(), false), needed(tensors_.size(), false);
  for (size_t s = 0; s < specs_.size(); ++s) {
    const StepSpec& spec = specs_[s];
    Step step;
    step.kernel = std::move(kernels[s]);
    scratch_bytes_ = std::max(scratch_bytes_, step.kernel->scratch_bytes(pool_->threads()));

    auto place = [&](int64_t t, int input) {
      const size_t slot = pointer_count_++;
      if (t < 0) return;
      const Place& p = places[static_cast<size_t>(t)];
      const auto owner = static_cast<size_t>(root[static_cast<size_t>(t)]);
      switch (p.kind) {
        case Place::ARENA: fixed_.push_back({slot, p.offset, nullptr}); break;
        case Place::INPUT: input_patches_.push_back({slot, p.index, p.offset}); break;
        case Place::OUTPUT: output_patches_.push_back({slot, p.index, p.offset}); break;
        default:
          read[owner] = true;
          if (step.kernel->consumed(input)) break;  // stays nullptr
          for (Staged& staged : kept[s]) {
            if (staged.input != static_cast<size_t>(input)) continue;
            fixed_.push_back({slot, 0, staged.copy.data()});
            staged_.push_back(std::move(staged.copy));
            return;
          }
          needed[owner] = true;
          fixed_.push_back({slot, 0, static_cast<const std::byte*>(p.constant) + p.offset});
      }
    };
    step.first_input = pointer_count_;
    for (size_t k = 0; k < spec.inputs.size(); ++k) place(spec.inputs[k], static_cast<int>(k));
    step.first_output = pointer_count_;
    for (int64_t t : spec.outputs) place(t, -1);
    steps_.push_back(std::move(step));
  }
  scratch_bytes_ = round_up(scratch_bytes_);
  released_.resize(tensors_.size());
  for (size_t k = 0; k < tensors_.size(); ++k)
    released_[k] = tensors_[k].place.kind == Place::CONSTANT && !needed[k];
  for (TensorSpec& t : tensors_) t.place.constant = nullptr;  // the owner may let go of them now
}

Plan::~Plan() = default;

std::unique_ptr<Plan::State> Plan::take() {
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      auto state = std::move(idle_.back());
      idle_.pop_back();
      return state;
    }
  }
  auto state = std::make_unique<State>();
  state->memory = Buffer(arena_bytes_ + scratch_bytes_);
  state->pointers.assign(pointer_count_, nullptr);
  for (const Fixed& f : fixed_)
    state->pointers[f.slot] = f.constant != nullptr ? const_cast<void*>(f.constant) : state->memory.data() + f.offset;
  return state;
}

void Plan::give(std::unique_ptr<State> state) {
  std::lock_guard lock(mutex_);
  idle_.push_back(std::move(state));
}

void Plan::trim() {
  std::lock_guard lock(mutex_);
  idle_.clear();
}

void Plan::run(const void* const* inputs, void* const* outputs, std::vector<Profile>* profile) {
  struct Guard {
    Plan* plan;
    std::unique_ptr<State> state;
    ~Guard() { plan->give(std::move(state)); }
  } guard{this, take()};
  void** pointers = guard.state->pointers.data();
  for (const Patch& p : input_patches_)
    pointers[p.slot] = const_cast<std::byte*>(static_cast<const std::byte*>(inputs[p.index]) + p.offset);
  for (const Patch& p : output_patches_) pointers[p.slot] = static_cast<std::byte*>(outputs[p.index]) + p.offset;

  WorkPool::Lease lease(pool_);
  const RunContext ctx{pool_, guard.state->memory.data() + arena_bytes_};
  for (size_t k = 0; k < steps_.size(); ++k) {
    const Step& step = steps_[k];
    const int64_t start = profile != nullptr ? now_ns() : 0;
    try {
      step.kernel->run(ctx, pointers + step.first_input, pointers + step.first_output);
    } catch (const std::exception& e) {
      throw std::runtime_error(specs_[k].op + " '" + specs_[k].name + "': " + e.what());
    }
    if (profile != nullptr) profile->push_back({static_cast<int64_t>(k), start, now_ns() - start});
  }
}

size_t Plan::packed_bytes() const {
  size_t n = 0;
  for (const Step& s : steps_) n += s.kernel->packed_bytes();
  return n;
}

int Plan::threads() const { return pool_->threads(); }

}  // namespace mnnpy
