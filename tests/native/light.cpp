// Element-wise functions, reductions, softmax and normalisation against the functions of <cmath>.
#include "check.h"

#include <array>
#include <limits>

namespace mnnpy::test {
namespace {

using List = std::vector<int64_t>;
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Function {
  const char* name;
  double (*truth)(double);
  double low, high;  // where it is tried
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

const Function kUnary[] = {
    {"Abs", [](double x) { return std::abs(x); }, -9, 9},
    {"Neg", [](double x) { return -x; }, -9, 9},
    {"Sign", [](double x) { return static_cast<double>((x > 0) - (x < 0)); }, -9, 9},
    {"Floor", [](double x) { return std::floor(x); }, -9, 9},
    {"Ceil", [](double x) { return std::ceil(x); }, -9, 9},
    {"Round", [](double x) { return std::nearbyint(x); }, -9, 9},
    {"Trunc", [](double x) { return std::trunc(x); }, -9, 9},
    {"Sqrt", [](double x) { return std::sqrt(x); }, 0, 99},
    {"Rsqrt", [](double x) { return 1 / std::sqrt(x); }, 0.01, 99},
    {"Reciprocal", [](double x) { return 1 / x; }, 0.1, 9},
    {"Square", [](double x) { return x * x; }, -9, 9},
    {"Exp", [](double x) { return std::exp(x); }, -100, 80},
    {"Expm1", [](double x) { return std::expm1(x); }, -20, 20},
    {"Log", [](double x) { return std::log(x); }, 1e-6, 1e6},
    {"Log1p", [](double x) { return std::log1p(x); }, -0.99, 99},
    {"Sin", [](double x) { return std::sin(x); }, -99, 99},
    {"Cos", [](double x) { return std::cos(x); }, -99, 99},
    {"Tan", [](double x) { return std::tan(x); }, -1.4, 1.4},
    {"Asin", [](double x) { return std::asin(x); }, -1, 1},
    {"Acos", [](double x) { return std::acos(x); }, -1, 1},
    {"Atan", [](double x) { return std::atan(x); }, -99, 99},
    {"Sinh", [](double x) { return std::sinh(x); }, -9, 9},
    {"Cosh", [](double x) { return std::cosh(x); }, -9, 9},
    {"Tanh", [](double x) { return std::tanh(x); }, -12, 12},
    {"Asinh", [](double x) { return std::asinh(x); }, -99, 99},
    {"Acosh", [](double x) { return std::acosh(x); }, 1, 99},
    {"Atanh", [](double x) { return std::atanh(x); }, -0.99, 0.99},
    {"Erf", [](double x) { return std::erf(x); }, -5, 5},
    {"Sigmoid", [](double x) { return sigmoid(x); }, -30, 30},
    {"Softplus", [](double x) { return std::log1p(std::exp(x)); }, -30, 30},
    {"Relu", [](double x) { return std::max(x, 0.0); }, -9, 9},
    {"Silu", [](double x) { return x * sigmoid(x); }, -30, 30},
    {"Gelu", [](double x) { return x / 2 * std::erfc(-x / std::sqrt(2.0)); }, -12, 12},
    {"HardSwish", [](double x) { return x * std::min(std::max(x / 6 + 0.5, 0.0), 1.0); }, -9, 9},
    {"Mish", [](double x) { return x * std::tanh(std::log1p(std::exp(x))); }, -20, 20},
};

void unary() {
  for (const Function& f : kUnary)
    for (int64_t n : {1, 5, 67, 1029}) {
      Values x(static_cast<size_t>(n)), y;
      for (int64_t k = 0; k < n; ++k)
        x[k] = static_cast<float>(f.low + (f.high - f.low) * (static_cast<double>(k) + 0.5) / static_cast<double>(n));
      for (double v : x) y.push_back(f.truth(v));
      Case("Unary").attr("fn", std::string(f.name)).in({n}, x).out({n}).check({y}, 1e-6);
    }
  const Values odd = {0.0, -0.0, kInf, -kInf, kNaN, 1e-40, -1e-40, 3e38, -3e38, 1.0, -1.0};
  for (const Function& f : kUnary) {
    const std::string name = f.name;
    if (name != "Exp" && name != "Log" && name != "Tanh" && name != "Sigmoid" && name != "Sqrt" && name != "Erf" && name != "Relu") continue;
    Values x, y;
    for (double v : odd) x.push_back(static_cast<float>(v));
    for (double v : x) y.push_back(name == "Relu" && std::isnan(v) ? v : static_cast<float>(f.truth(v)));
    Case("Unary").attr("fn", name).in({11}, x).out({11}).check({y}, 1e-6);
  }
}

void binary() {
  const struct {
    const char* name;
    double (*truth)(double, double);
  } all[] = {
      {"Add", [](double a, double b) { return a + b; }},
      {"Sub", [](double a, double b) { return a - b; }},
      {"Mul", [](double a, double b) { return a * b; }},
      {"Div", [](double a, double b) { return a / b; }},
      {"Max", [](double a, double b) { return std::max(a, b); }},
      {"Min", [](double a, double b) { return std::min(a, b); }},
      {"Pow", [](double a, double b) { return std::pow(a, b); }},
      {"SquaredDifference", [](double a, double b) { return (a - b) * (a - b); }},
  };
  const struct {
    Dims a, b;
  } shapes[] = {{{37}, {37}}, {{5, 33}, {33}}, {{5, 33}, {5, 1}}, {{2, 1, 19}, {3, 1}}, {{4, 1030}, {1}}};
  for (const auto& f : all)
    for (const auto& s : shapes) {
      const size_t rank = std::max(s.a.size(), s.b.size());
      Dims out(rank);
      const auto size = [&](const Dims& d, size_t k) { return k + d.size() < rank ? 1 : d[k + d.size() - rank]; };
      for (size_t k = 0; k < rank; ++k) out[k] = std::max(size(s.a, k), size(s.b, k));
      Values a = random_values(s.a, 1), b = random_values(s.b, 2), y;
      for (Values* v : {&a, &b})
        for (double& x : *v) x = std::abs(x) + 0.5;
      for (int64_t k = 0; k < count(out); ++k) {
        int64_t rest = k, at_a = 0, at_b = 0, step_a = 1, step_b = 1;
        for (size_t d = rank; d-- > 0; rest /= out[d]) {
          const int64_t i = rest % out[d];
          at_a += size(s.a, d) == 1 ? 0 : i * step_a;
          at_b += size(s.b, d) == 1 ? 0 : i * step_b;
          step_a *= size(s.a, d);
          step_b *= size(s.b, d);
        }
        y.push_back(f.truth(static_cast<float>(a[at_a]), static_cast<float>(b[at_b])));
      }
      Case("Binary").attr("fn", std::string(f.name)).in(s.a, a).in(s.b, b).out(out).check({y}, 1e-6);
    }
  Case("Binary").attr("fn", std::string("Less")).in({3}, {1, 2, 3}).in({3}, {2, 2, 2}).out({3}, DType::BOOL).check({{1, 0, 0}});
  Case("Select").in({3}, {1, 0, 1}, DType::BOOL).in({3}, {1, 2, 3}).in({3}, {4, 5, 6}).out({3}).check({{1, 5, 3}});
}

// x·2 + bias, then Tanh, as one program: registers 0 and 1 are the operands.
void fused() {
  const Values x = random_values(7 * 65, 1), bias = random_values(65, 2);
  Values y;
  for (size_t k = 0; k < x.size(); ++k) y.push_back(std::tanh(x[k] * bias[k % 65] + x[k]));
  Case("Elementwise")
      .attr("ops", std::vector<std::string>{"Mul", "Add", "Tanh"})
      .attr("args", List{0, 1, -1, 2, 0, -1, 3, -1, -1})
      .attr("dtypes", std::vector<std::string>{"f32", "f32", "f32"})
      .attr("params", Values(6, 0.0))
      .attr("results", List{4})
      .in({7, 65}, x)
      .in({65}, bias)
      .out({7, 65})
      .check({y}, 1e-6);
}

void reduce() {
  const Dims shape = {3, 5, 4, 37};
  const Values x = random_values(shape);
  const struct {
    const char* name;
    double first;
    double (*step)(double, double);
    double (*last)(double, double);
  } all[] = {
      {"Sum", 0, [](double a, double v) { return a + v; }, [](double a, double) { return a; }},
      {"Mean", 0, [](double a, double v) { return a + v; }, [](double a, double n) { return a / n; }},
      {"Max", -kInf, [](double a, double v) { return std::max(a, v); }, [](double a, double) { return a; }},
      {"Min", kInf, [](double a, double v) { return std::min(a, v); }, [](double a, double) { return a; }},
      {"Prod", 1, [](double a, double v) { return a * v; }, [](double a, double) { return a; }},
      {"SumSquare", 0, [](double a, double v) { return a + v * v; }, [](double a, double) { return a; }},
      {"L1", 0, [](double a, double v) { return a + std::abs(v); }, [](double a, double) { return a; }},
      {"L2", 0, [](double a, double v) { return a + v * v; }, [](double a, double) { return std::sqrt(a); }},
  };
  for (const auto& f : all)
    for (const List& axes : {List{3}, List{0}, List{1, 2}, List{0, 2}, List{1, 3}, List{0, 1, 2, 3}}) {
      Dims out = shape;
      double n = 1;
      for (int64_t a : axes) {
        n *= static_cast<double>(shape[a]);
        out[a] = 1;
      }
      Values y(static_cast<size_t>(count(out)), f.first);
      for (int64_t k = 0; k < count(shape); ++k) {
        int64_t rest = k, at = 0, step = 1;
        for (size_t d = 4; d-- > 0; rest /= shape[d]) {
          if (out[d] != 1) at += rest % shape[d] * step;
          step *= out[d];
        }
        y[at] = f.step(y[at], x[k]);
      }
      for (double& v : y) v = f.last(v, n);
      Case("Reduce").attr("fn", std::string(f.name)).attr("axes", axes).in(shape, x).out(out).check({y}, 5e-6);
    }
}

void rows() {
  for (const auto& [outer, n, inner] : {std::array<int64_t, 3>{7, 33, 1}, {3, 500, 1}, {2, 10, 19}, {1, 1, 1}, {40, 5, 1}}) {
    const Dims shape = {outer, n, inner};
    const Values x = random_values(shape);
    Values soft(x.size()), logs(x.size());
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t j = 0; j < inner; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < n; ++k) sum += std::exp(x[(o * n + k) * inner + j]);
        for (int64_t k = 0; k < n; ++k) {
          const int64_t at = (o * n + k) * inner + j;
          soft[at] = std::exp(x[at]) / sum;
          logs[at] = x[at] - std::log(sum);
        }
      }
    Case("Softmax").attr("axis", int64_t{1}).in(shape, x).out(shape).check({soft}, 2e-6);
    Case("LogSoftmax").attr("axis", int64_t{1}).in(shape, x).out(shape).check({logs}, 2e-6);
  }
  for (const auto& [m, n] : {std::array<int64_t, 2>{5, 1}, {7, 33}, {3, 768}, {50, 64}}) {
    const Values x = random_values(m * n, 1), more = random_values(m * n, 2), scale = random_values(n, 3), bias = random_values(n, 4);
    const auto normal = [&](const Values& v, bool centre, bool shift) {
      Values y;
      for (int64_t r = 0; r < m; ++r) {
        double mean = 0, square = 0;
        for (int64_t k = 0; k < n && centre; ++k) mean += v[r * n + k] / static_cast<double>(n);
        for (int64_t k = 0; k < n; ++k) square += (v[r * n + k] - mean) * (v[r * n + k] - mean) / static_cast<double>(n);
        for (int64_t k = 0; k < n; ++k) y.push_back((v[r * n + k] - mean) / std::sqrt(square + 1e-2) * scale[k] + (shift ? bias[k] : 0));
      }
      return y;
    };
    Values sum = x;
    for (size_t k = 0; k < sum.size(); ++k) sum[k] = static_cast<float>(sum[k] + more[k]);
    Case("LayerNormalization").attr("axis", int64_t{-1}).attr("epsilon", 1e-2).in({m, n}, x).in({n}, scale).in({n}, bias).out({m, n}).check({normal(x, true, true)}, 5e-6);
    Case("RMSNormalization").attr("axis", int64_t{-1}).attr("epsilon", 1e-2).in({m, n}, x).in({n}, scale).out({m, n}).check({normal(x, false, false)}, 5e-6);
  }
}

}  // namespace

void light_checks() {
  unary();
  binary();
  fused();
  reduce();
  rows();
}

}  // namespace mnnpy::test
