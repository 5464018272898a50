// Runs single kernels through the registry and compares them with plain loops in double precision.
//
// Operands lie in blocks of exactly their size, so that a sanitizer sees every step beyond them.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/core.h"

namespace mnnpy::test {

using Values = std::vector<double>;

// What every check runs on; set by main().
struct Settings {
  std::vector<Isa> isas;
  std::vector<int> threads;
  bool trace = false;  // print every case before it runs, to find the one that crashes
};
extern Settings settings;

// A failed expectation: counted, and printed with the check's name.
void fail(const std::string& what);
// Counts a check, and a failure unless `ok`.
void expect(bool ok, const std::string& what);

int64_t count(const Dims& shape);
// Seeded numbers of a bell-like shape around 0, within ±3.
Values random_values(int64_t n, uint64_t seed = 1);
Values random_values(const Dims& shape, uint64_t seed = 1);

// One node: operands, attributes and what should come out of it.
class Case {
 public:
  explicit Case(std::string op);
  Case& attr(const std::string& key, Attr value);
  Case& in(const Dims& shape, const Values& values, DType dtype = DType::F32);
  Case& weight(const Dims& shape, const Values& values, DType dtype = DType::F32);  // constant at build time
  Case& absent();
  Case& out(const Dims& shape, DType dtype = DType::F32);
  // Operands after the first are fed at run time, not known when the kernel is built.
  Case& variable();
  // Runs on every instruction set and number of threads. Each output may differ by `tolerance` of its largest
  // magnitude; NaN must meet NaN. `algorithm` must be part of the kernel's name where it is given.
  void check(const std::vector<Values>& wanted, double tolerance = 2e-6, const std::string& algorithm = "") const;
  // The kernel must throw std::runtime_error when it runs.
  void check_throws() const;

 private:
  struct Operand {
    DType dtype;
    Dims shape;
    bool present, constant;
    std::vector<std::byte> bytes;
  };
  void run(Isa isa, int threads, std::vector<std::vector<std::byte>>& results, std::string& name) const;

  NodeDesc node_;
  std::vector<Operand> inputs_, outputs_;
};

void dense_checks();
void convolution_checks();
void light_checks();
void moving_checks();
void core_checks();

}  // namespace mnnpy::test
