// Raster, Gather, Scatter, Convert, Sort, ArgReduce and PrefixScan against plain loops.
#include "check.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace mnnpy::test {
namespace {

using List = std::vector<int64_t>;

struct Region {
  int64_t origin;
  List size;
  int64_t src_offset;
  List src_strides;
  int64_t dst_offset;
  List dst_strides;
};

void raster(const std::vector<Dims>& sources, const std::vector<Region>& regions, const Dims& out, bool fill, DType dtype = DType::F32) {
  Case c("Raster");
  std::vector<Values> x;
  for (size_t k = 0; k < sources.size(); ++k) {
    x.push_back(random_values(sources[k], k + 1));
    for (double& v : x.back()) v = dtype == DType::F32 ? v : std::round(v * 20);
    c.in(sources[k], x.back(), dtype);
  }
  Values y(static_cast<size_t>(count(out)), 7.0);
  List origins, ranks, sizes, from, from_strides, to, to_strides;
  for (const Region& r : regions) {
    origins.push_back(r.origin);
    ranks.push_back(static_cast<int64_t>(r.size.size()));
    sizes.insert(sizes.end(), r.size.begin(), r.size.end());
    from.push_back(r.src_offset);
    from_strides.insert(from_strides.end(), r.src_strides.begin(), r.src_strides.end());
    to.push_back(r.dst_offset);
    to_strides.insert(to_strides.end(), r.dst_strides.begin(), r.dst_strides.end());
    for (int64_t k = 0; k < count(r.size); ++k) {
      int64_t rest = k, s = r.src_offset, d = r.dst_offset;
      for (size_t j = r.size.size(); j-- > 0; rest /= r.size[j]) {
        s += rest % r.size[j] * r.src_strides[j];
        d += rest % r.size[j] * r.dst_strides[j];
      }
      y[d] = x[r.origin][s];
    }
  }
  c.attr("origins", origins).attr("ranks", ranks).attr("sizes", sizes).attr("src_offsets", from).attr("src_strides", from_strides);
  c.attr("dst_offsets", to).attr("dst_strides", to_strides).attr("fill", 7.0).attr("fill_present", int64_t{fill});
  c.out(out, dtype).check({y}, 0);
}

void rasters(DType dtype) {
  raster({{7, 5, 9}}, {{0, {5, 7, 9}, 0, {9, 45, 1}, 0, {63, 9, 1}}}, {5, 7, 9}, false, dtype);            // swap outer axes
  raster({{3, 33, 18}}, {{0, {3, 18, 33}, 0, {594, 1, 18}, 0, {594, 33, 1}}}, {3, 18, 33}, false, dtype);  // swap inner axes
  raster({{130, 70}}, {{0, {70, 130}, 0, {1, 70}, 0, {130, 1}}}, {70, 130}, false, dtype);
  raster({{4, 6}, {4, 3}}, {{0, {4, 6}, 0, {6, 1}, 0, {9, 1}}, {1, {4, 3}, 0, {3, 1}, 6, {9, 1}}}, {4, 9}, false, dtype);  // concat
  raster({{6, 7}}, {{0, {6, 7}, 0, {7, 1}, 11, {10, 1}}}, {8, 10}, true, dtype);                              // pad
  raster({{20, 9}}, {{0, {7, 4}, 10, {27, 2}, 0, {4, 1}}}, {7, 4}, false, dtype);                            // slice with steps
  raster({{5, 8}}, {{0, {5, 8}, 7, {8, -1}, 0, {8, 1}}}, {5, 8}, false, dtype);                              // reverse
  raster({{1, 6}}, {{0, {9, 6}, 0, {0, 1}, 0, {6, 1}}}, {9, 6}, false, dtype);                               // expand
  raster({{2, 12, 3, 5}}, {{0, {2, 3, 3, 2, 5, 2}, 0, {180, 15, 5, 90, 1, 45}, 0, {180, 60, 20, 10, 2, 1}}}, {2, 3, 6, 10}, false, dtype);
}

void gather() {
  const Values x = random_values(4 * 11 * 6), index = {3, -1, 0, 10, 5, -11, 2};
  for (int64_t inner : {6, 1}) {
    const int64_t outer = 4 * 6 / inner;
    Values y;
    for (int64_t o = 0; o < outer; ++o)
      for (double at : index)
        for (int64_t j = 0; j < inner; ++j) y.push_back(x[(o * 11 + static_cast<int64_t>(at < 0 ? at + 11 : at)) * inner + j]);
    const auto make = [&](DType t, const Values& chosen) {
      Case c("Gather");
      c.attr("axis", int64_t{1}).in({outer, 11, inner}, x).in({7}, chosen, t).out({outer, 7, inner});
      return c;
    };
    make(DType::I64, index).check({y}, 0);
    make(DType::I32, index).check({y}, 0);
    Values bad = index;
    bad[2] = 11;
    make(DType::I64, bad).check_throws();
  }
  const Values data = random_values(5 * 40, 1), updates = random_values(4 * 40, 2), rows = {4, 0, -1, 2};
  for (const char* fn : {"none", "add", "max"}) {
    Values y = data;
    for (size_t k = 0; k < 4; ++k)
      for (int64_t j = 0; j < 40; ++j) {
        double& to = y[static_cast<size_t>((rows[k] < 0 ? rows[k] + 5 : rows[k]) * 40) + j];
        const double u = updates[k * 40 + j];
        to = std::string(fn) == "none" ? u : std::string(fn) == "add" ? to + u : std::max(to, u);
      }
    Case("Scatter").attr("fn", std::string(fn)).in({5, 40}, data).in({4}, rows, DType::I64).in({4, 40}, updates).out({5, 40}).check({y}, 1e-6);
  }
}

void convert() {
  Values x, whole;
  for (int64_t k = 0; k < 300; ++k) x.push_back(static_cast<float>(static_cast<double>(k - 150) * 0.37));
  for (double v : x) whole.push_back(std::trunc(v));
  for (DType t : {DType::I8, DType::I32, DType::I64, DType::F64}) {
    const Values& y = t == DType::F64 ? x : whole;
    Case("Convert").attr("to", std::string(dtype_name(t))).in({300}, x).out({300}, t).check({y}, 0);
    Case("Convert").attr("to", std::string("f32")).in({300}, y, t).out({300}).check({y}, 0);
  }
}

void along_axis() {
  for (const auto& [outer, n, inner] : {std::array<int64_t, 3>{5, 33, 1}, {3, 20, 7}, {1, 1000, 1}}) {
    const Dims shape = {outer, n, inner};
    const Values x = random_values(shape);
    for (bool largest : {true, false}) {
      const int64_t k = std::min<int64_t>(n, 5);
      Values top(static_cast<size_t>(outer * k * inner)), where = top, best(static_cast<size_t>(outer * inner));
      for (int64_t o = 0; o < outer; ++o)
        for (int64_t j = 0; j < inner; ++j) {
          List order(static_cast<size_t>(n));
          std::iota(order.begin(), order.end(), 0);
          const auto value = [&](int64_t i) { return x[(o * n + i) * inner + j]; };
          std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return largest ? value(a) > value(b) : value(a) < value(b); });
          for (int64_t i = 0; i < k; ++i) {
            top[(o * k + i) * inner + j] = value(order[i]);
            where[(o * k + i) * inner + j] = static_cast<double>(order[i]);
          }
          best[o * inner + j] = static_cast<double>(order[0]);
        }
      const Dims cut = {outer, k, inner};
      Case("Sort").attr("axis", int64_t{1}).attr("k", k).attr("descending", int64_t{largest}).in(shape, x).out(cut).out(cut, DType::I64).check({top, where}, 0);
      Case("ArgReduce").attr("fn", std::string(largest ? "Max" : "Min")).attr("axis", int64_t{1}).in(shape, x).out({outer, 1, inner}, DType::I64).check({best}, 0);
    }
    Values sums = x;
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t i = 1; i < n; ++i)
        for (int64_t j = 0; j < inner; ++j) sums[(o * n + i) * inner + j] += sums[(o * n + i - 1) * inner + j];
    Case("PrefixScan").attr("fn", std::string("Sum")).attr("axis", int64_t{1}).in(shape, x).out(shape).check({sums}, 1e-5);
  }
}

}  // namespace

void moving_checks() {
  for (DType t : {DType::F32, DType::I8, DType::I64}) rasters(t);
  gather();
  convert();
  along_axis();
}

}  // namespace mnnpy::test
