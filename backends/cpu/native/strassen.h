// f32 products with fewer multiplications: Strassen's scheme in Winograd's form (7 products, 15 additions; see
// D. Coppersmith, S. Winograd, "Matrix multiplication via arithmetic progressions", 1990, section 1), one or two levels.
#pragma once

#include "gemm.h"

namespace mnnpy::MNNPY_NS {

// One way to cut C[rows, n] = A[rows, depth]·B[depth, n] into halves (one level) or quarters (two).
//
// Halves of columns are neighbouring panels, halves of k are stretches inside a group of k, halves of rows lie `leaf_rows`
// apart inside a block of rows. What the halves leave over (rows, panels, k) is done by the plain tile.
class Strassen {
 public:
  Strassen() = default;
  // The plan the cost model likes best. `algorithm` "direct" gives none, "auto" gives one only where it beats the plain
  // product, "strassen" wherever it is possible. `levels` 1 or 2 fixes the levels, 0 leaves them to the model.
  static Strassen plan(int64_t rows, int64_t n, int64_t depth, int threads, const std::string& algorithm, int64_t levels);

  int levels() const { return levels_; }  // 0: use the plain product
  const Panels& panels() const { return panels_; }
  bool split() const { return groups_ > 1 || tail_ > 0; }  // C holds partial sums meanwhile
  size_t scratch_floats(int slots) const;
  // A has rows of `lda` floats, `packed` is pack_b(panels(), 1, depth, …). pool may be nullptr.
  void run(const float* a, int64_t lda, const float* packed, float* c, int64_t ldc, const Epilogue& epilogue, float* scratch,
           Pool* pool) const;

 private:
  struct Operand {
    const float* data;
    int64_t ld;
  };
  struct Job;
  struct Next;
  Strassen(int64_t rows, int64_t n, int64_t depth, int threads, int levels, int nv);
  double cost(int threads) const;
  // Groups of panels, and panels that are left over.
  int64_t chunks_per_part() const { return static_cast<int64_t>(panels_.list.size()) - panel_groups_ * (cut_ - 1); }
  int64_t sum_floats() const;
  int64_t slot_floats() const;
  void form_left(const Job& job, int64_t first, int64_t last) const;
  void group_one(const Job& job, int64_t group, int64_t r0, int64_t r1, float* slot) const;
  void group_two(const Job& job, int64_t group, int64_t r0, int64_t r1, float* slot) const;
  void chunk(const Job& job, int64_t index, int64_t parts, float* slot) const;
  void upcoming(const Job& job, int64_t group, int64_t rows, Next& next) const;
  void plain(const Job& job, size_t panel, int64_t r0, int64_t r1, int64_t k0, int64_t k1) const;

  int levels_ = 0, nv_ = 0;
  int64_t rows_ = 0, depth_ = 0;
  int64_t cut_ = 1;        // 2^levels
  int64_t leaf_rows_ = 0;  // all leaf rows, in blocks of block_
  int64_t block_ = 0;
  int64_t leaf_ = 0, groups_ = 0, tail_ = 0;  // k of a leaf, groups of cut_ leaves, k left over
  int64_t panel_groups_ = 0;                  // cut_ neighbouring panels of nv_ vectors
  int64_t row_parts_ = 1;                     // chunks of rows per block, for threads
  Panels panels_;
};

}  // namespace mnnpy::MNNPY_NS
