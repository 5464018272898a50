#include "check.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <stdexcept>

namespace mnnpy::test {

Settings settings;

namespace {

std::mutex mutex;  // of the failures: kernels and pools are also checked from several threads
int failures = 0, runs = 0;
std::string current;

template <class T>
void put(std::vector<std::byte>& bytes, const Values& values) {
  std::vector<T> typed(values.begin(), values.end());
  bytes.resize(typed.size() * sizeof(T));
  if (!typed.empty()) std::memcpy(bytes.data(), typed.data(), bytes.size());
}

template <class T>
Values take(const std::vector<std::byte>& bytes) {
  std::vector<T> typed(bytes.size() / sizeof(T));
  if (!typed.empty()) std::memcpy(typed.data(), bytes.data(), bytes.size());
  return Values(typed.begin(), typed.end());
}

std::vector<std::byte> encode(DType t, const Values& values) {
  std::vector<std::byte> bytes;
  switch (t) {
    case DType::F32: put<float>(bytes, values); break;
    case DType::F64: put<double>(bytes, values); break;
    case DType::I64: put<int64_t>(bytes, values); break;
    case DType::I32: put<int32_t>(bytes, values); break;
    case DType::I8: put<int8_t>(bytes, values); break;
    case DType::U8: case DType::BOOL: put<uint8_t>(bytes, values); break;
    default: throw std::invalid_argument("operands of this type are not built in");
  }
  return bytes;
}

Values decode(DType t, const std::vector<std::byte>& bytes) {
  switch (t) {
    case DType::F32: return take<float>(bytes);
    case DType::F64: return take<double>(bytes);
    case DType::I64: return take<int64_t>(bytes);
    case DType::I32: return take<int32_t>(bytes);
    case DType::I8: return take<int8_t>(bytes);
    case DType::U8: case DType::BOOL: return take<uint8_t>(bytes);
    default: throw std::invalid_argument("results of this type are not built in");
  }
}

// The largest difference over the largest magnitude, infinite where only one of two is NaN or infinite.
double difference(const Values& got, const Values& want) {
  double scale = 1e-3, worst = 0;
  for (double w : want)
    if (std::isfinite(w)) scale = std::max(scale, std::abs(w));
  for (size_t k = 0; k < want.size(); ++k) {
    if (std::isnan(got[k]) && std::isnan(want[k])) continue;
    if (got[k] == want[k]) continue;
    const double d = std::abs(got[k] - want[k]);
    worst = std::max(worst, std::isfinite(d) ? d / scale : std::numeric_limits<double>::infinity());
  }
  return worst;
}

}  // namespace

void fail(const std::string& what) {
  const std::lock_guard lock(mutex);
  ++failures;
  std::fprintf(stderr, "FAILED %s: %s\n", current.c_str(), what.c_str());
}

void expect(bool ok, const std::string& what) {
  {
    const std::lock_guard lock(mutex);
    ++runs;
  }
  if (!ok) fail(what);
}

int64_t count(const Dims& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

Values random_values(int64_t n, uint64_t seed) {
  Values values(static_cast<size_t>(n));
  uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
  auto uniform = [&] {  // xorshift64*, Vigna 2016
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return static_cast<double>((state * 0x2545F4914F6CDD1Dull) >> 40) / (1 << 24) * 2 - 1;
  };
  for (double& v : values) v = static_cast<float>(uniform() + uniform() + uniform());
  return values;
}
Values random_values(const Dims& shape, uint64_t seed) { return random_values(count(shape), seed); }

Case::Case(std::string op) { node_.op = std::move(op); }

Case& Case::attr(const std::string& key, Attr value) {
  node_.attrs[key] = std::move(value);
  return *this;
}

Case& Case::in(const Dims& shape, const Values& values, DType dtype) {
  if (static_cast<int64_t>(values.size()) != count(shape)) throw std::invalid_argument(node_.op + ": values do not fit");
  inputs_.push_back({dtype, shape, true, false, encode(dtype, values)});
  return *this;
}

Case& Case::weight(const Dims& shape, const Values& values, DType dtype) {
  in(shape, values, dtype);
  inputs_.back().constant = true;
  return *this;
}

Case& Case::absent() {
  inputs_.push_back({DType::F32, {}, false, false, {}});
  return *this;
}

Case& Case::out(const Dims& shape, DType dtype) {
  outputs_.push_back({dtype, shape, true, false, {}});
  return *this;
}

Case& Case::variable() {
  for (Operand& o : inputs_) o.constant = false;
  return *this;
}

void Case::run(Isa isa, int threads, std::vector<std::vector<std::byte>>& results, std::string& name) const {
  NodeDesc node = node_;
  node.name = "node";
  // Copies: what a kernel consumed may be freed at once.
  auto constants = std::make_unique<std::vector<std::vector<std::byte>>>();
  constants->reserve(inputs_.size());
  for (const Operand& o : inputs_) {
    constants->push_back(o.bytes);
    node.inputs.push_back({o.dtype, o.shape, o.constant ? constants->back().data() : nullptr, o.present});
  }
  for (const Operand& o : outputs_) node.outputs.push_back({o.dtype, o.shape, nullptr, o.present});
  const auto kernel = make_kernel(node, BuildContext{isa, threads});
  name = kernel->algorithm();
  std::vector<const void*> in;
  std::vector<void*> out;
  for (size_t k = 0; k < inputs_.size(); ++k) {
    if (inputs_[k].constant && kernel->consumed(static_cast<int>(k))) {
      std::vector<std::byte>().swap((*constants)[k]);
      in.push_back(nullptr);
    } else {
      in.push_back(inputs_[k].present ? (*constants)[k].data() : nullptr);
    }
  }
  for (const Operand& o : outputs_) results.emplace_back(static_cast<size_t>(count(o.shape)) * dtype_size(o.dtype), std::byte{0x55});
  for (auto& block : results) out.push_back(block.data());
  WorkPool* pool = shared_pool(threads);
  const size_t need = kernel->scratch_bytes(pool->threads());
  void* scratch = nullptr;
  if (need > 0 && posix_memalign(&scratch, 64, need) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, void (*)(void*)> owner(scratch, std::free);
  if (need > 0) std::memset(scratch, 0xff, need);  // NaN: nobody may count on zeros
  kernel->run({pool, static_cast<std::byte*>(scratch)}, in.data(), out.data());
}

void Case::check(const std::vector<Values>& wanted, double tolerance, const std::string& algorithm) const {
  for (Isa isa : settings.isas)
    for (int threads : settings.threads) {
      current = node_.op;
      for (const Operand& o : inputs_) {
        current += o.present ? " " : " -";
        for (size_t k = 0; k < o.shape.size(); ++k) current += (k ? "x" : "") + std::to_string(o.shape[k]);
      }
      for (const char* key : {"fn", "act", "algorithm", "layout", "direction"})
        if (const std::string text = node_.s(key, ""); !text.empty()) current += std::string(" ") + key + "=" + text;
      current += std::string(" on ") + isa_name(isa) + ", " + std::to_string(threads) + " threads";
      ++runs;
      if (settings.trace) std::fprintf(stderr, "%s\n", current.c_str());
      std::vector<std::vector<std::byte>> results;
      std::string name;
      try {
        run(isa, threads, results, name);
      } catch (const std::exception& e) {
        fail(e.what());
        continue;
      }
      if (name.find(algorithm) == std::string::npos) fail("'" + name + "' ran, not '" + algorithm + "'");
      for (size_t k = 0; k < wanted.size(); ++k) {
        const Values got = decode(outputs_[k].dtype, results[k]);
        if (got.size() != wanted[k].size()) {
          fail("output " + std::to_string(k) + " has " + std::to_string(got.size()) + " elements, not " + std::to_string(wanted[k].size()));
          continue;
        }
        const double error = difference(got, wanted[k]);
        if (!(error <= tolerance)) fail(name + ": output " + std::to_string(k) + " is off by " + std::to_string(error * 1e6) + "e-6 of its maximum");
      }
    }
}

void Case::check_throws() const {
  for (Isa isa : settings.isas)
    for (int threads : settings.threads) {
      current = node_.op + ", which should throw, on " + isa_name(isa);
      ++runs;
      std::vector<std::vector<std::byte>> results;
      std::string name;
      try {
        run(isa, threads, results, name);
        fail("nothing was thrown");
      } catch (const std::runtime_error&) {
      }
    }
}

}  // namespace mnnpy::test

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (char c : text) {
    if (c == ',')
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

}  // namespace

// driver [--isa=generic,avx2] [--threads=1,2,7] [--trace] [dense convolution light moving core]
int main(int argc, char** argv) {
  using namespace mnnpy;
  using namespace mnnpy::test;
  const struct {
    const char* name;
    void (*run)();
  } groups[] = {{"core", core_checks}, {"dense", dense_checks}, {"convolution", convolution_checks}, {"light", light_checks}, {"moving", moving_checks}};
  std::vector<std::string> chosen;
  settings.threads = {1, 2, 7};
  for (int k = 0; k <= static_cast<int>(best_isa()); ++k) settings.isas.push_back(static_cast<Isa>(k));
  for (int k = 1; k < argc; ++k) {
    const std::string word = argv[k];
    if (word.rfind("--isa=", 0) == 0) {
      settings.isas.clear();
      for (const std::string& name : split(word.substr(6))) {
        const Isa isa = isa_from_name(name);
        if (isa > best_isa()) {
          std::fprintf(stderr, "this CPU or build has no %s; the best is %s\n", name.c_str(), isa_name(best_isa()));
          return 2;
        }
        settings.isas.push_back(isa);
      }
    } else if (word == "--trace") {
      settings.trace = true;
    } else if (word.rfind("--threads=", 0) == 0) {
      settings.threads.clear();
      for (const std::string& n : split(word.substr(10))) settings.threads.push_back(std::stoi(n));
    } else {
      chosen.push_back(word);
    }
  }
  for (const std::string& name : chosen) {
    bool known = false;
    for (const auto& g : groups) known = known || name == g.name;
    if (!known) {
      std::fprintf(stderr, "unknown group '%s'; there are core, dense, convolution, light, moving\n", name.c_str());
      return 2;
    }
  }
  for (const auto& g : groups) {
    bool wanted = chosen.empty();
    for (const std::string& name : chosen) wanted = wanted || name == g.name;
    if (!wanted) continue;
    const int before = runs;
    current = g.name;
    try {
      g.run();
    } catch (const std::exception& e) {
      fail(std::string("stopped: ") + e.what());
    }
    std::printf("%-12s %5d runs\n", g.name, runs - before);
  }
  std::string isas;
  for (Isa isa : settings.isas) isas += std::string(isas.empty() ? "" : ", ") + isa_name(isa);
  std::printf("%d runs on %s: %d failed\n", runs, isas.c_str(), failures);
  return failures == 0 ? 0 : 1;
}
