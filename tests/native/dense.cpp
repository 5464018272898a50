// MatMul, FusedAttention and the recurrent cells against plain loops.
#include "amx.h"
#include "check.h"

#include <array>

namespace mnnpy::test {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double activate(const std::string& act, double x, double alpha, double beta) {
  if (act == "Relu") return std::max(0.0, x);
  if (act == "Clip") return std::min(std::max(x, alpha), beta);
  if (act == "Sigmoid") return sigmoid(x);
  if (act == "Tanh") return std::tanh(x);
  if (act == "Gelu") return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
  if (act == "GeluTanh") return x * sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
  if (act == "Silu") return x * sigmoid(x);
  if (act == "HardSwish") return x * std::min(std::max(x / 6 + 0.5, 0.0), 1.0);
  if (act == "LeakyRelu") return x < 0 ? alpha * x : x;
  if (act == "HardSigmoid") return std::min(std::max(alpha * x + beta, 0.0), 1.0);
  return x;
}

struct Product {
  int64_t batch = 1, m, n, k;
  bool trans_a = false, trans_b = false, shared_b = true;
  std::string act = "";
  bool bias = false, residual = false;
  double alpha = 1;
  std::string algorithm = "direct";
};

void matmul(const Product& p) {
  const Dims a_shape = p.trans_a ? Dims{p.batch, p.k, p.m} : Dims{p.batch, p.m, p.k};
  Dims b_shape = p.trans_b ? Dims{p.n, p.k} : Dims{p.k, p.n};
  if (!p.shared_b) b_shape.insert(b_shape.begin(), p.batch);
  const Dims c_shape = {p.batch, p.m, p.n};
  const Values a = random_values(a_shape, 1), b = random_values(b_shape, 2), bias = random_values(p.n, 3),
               residual = random_values(c_shape, 4);
  Values want;
  for (int64_t z = 0; z < p.batch; ++z)
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j) {
        double sum = 0;
        const int64_t from_a = z * p.m * p.k, from_b = p.shared_b ? 0 : z * p.n * p.k;
        for (int64_t k = 0; k < p.k; ++k)
          sum += a[from_a + (p.trans_a ? k * p.m + i : i * p.k + k)] * b[from_b + (p.trans_b ? j * p.k + k : k * p.n + j)];
        sum *= p.alpha;
        if (p.bias) sum += bias[j];
        if (p.residual) sum += residual[want.size()];
        want.push_back(activate(p.act, sum, 0.25, 1.5));
      }
  Case c("MatMul");
  c.attr("trans_a", int64_t{p.trans_a}).attr("trans_b", int64_t{p.trans_b}).out(c_shape);
  if (p.alpha != 1) c.attr("alpha", p.alpha);
  if (!p.act.empty()) c.attr("act", p.act).attr("act_alpha", 0.25).attr("act_beta", 1.5);
  c.in(a_shape, a).weight(b_shape, b);
  if (p.bias || p.residual) p.bias ? c.weight({p.n}, bias) : c.absent();
  if (p.residual) c.in(c_shape, residual);
  c.attr("algorithm", p.algorithm);
  if (p.algorithm != "direct") return c.check({want}, 3e-5, p.algorithm);
  c.check({want}, 5e-6);
  c.variable().check({want}, 5e-6);
}

void attention(int64_t heads, int64_t queries, int64_t keys, int64_t dim, int64_t v_dim, bool mask) {
  const Values q = random_values(heads * queries * dim, 1), k = random_values(heads * keys * dim, 2),
               v = random_values(heads * keys * v_dim, 3), m = random_values(queries * keys, 4);
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  Values want;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < queries; ++i) {
      Values score(static_cast<size_t>(keys));
      double top = -1e300, sum = 0;
      for (int64_t j = 0; j < keys; ++j) {
        double s = 0;
        for (int64_t d = 0; d < dim; ++d) s += q[(h * queries + i) * dim + d] * k[(h * keys + j) * dim + d];
        score[j] = s * scale + (mask ? m[i * keys + j] : 0);
        top = std::max(top, score[j]);
      }
      for (double& s : score) sum += s = std::exp(s - top);
      for (int64_t d = 0; d < v_dim; ++d) {
        double s = 0;
        for (int64_t j = 0; j < keys; ++j) s += score[j] / sum * v[(h * keys + j) * v_dim + d];
        want.push_back(s);
      }
    }
  using List = std::vector<int64_t>;
  Case c("FusedAttention");
  c.attr("batch", List{heads}).attr("q_len", queries).attr("k_len", keys).attr("dim", dim).attr("v_dim", v_dim).attr("scale", scale);
  c.attr("q", List{0, queries * dim, dim}).attr("k", List{0, keys * dim, dim}).attr("v", List{0, keys * v_dim, v_dim});
  c.attr("out", List{0, queries * v_dim, v_dim});
  c.in({heads, queries, dim}, q).in({heads, keys, dim}, k).in({heads, keys, v_dim}, v).out({heads, queries, v_dim});
  if (mask) c.in({queries, keys}, m).attr("mask", List{0, 0, keys, 1});
  c.check({want}, 2e-6);
}

// One direction of LSTM, GRU or RNN as the ONNX specification writes it, with bias and an initial state.
struct Cell {
  std::string op;
  int64_t gates, steps, batch, input, hidden;
  bool reverse, reset_after = false;  // linear_before_reset
};

void recurrent(const Cell& c) {
  const int64_t gh = c.gates * c.hidden;
  const Values x = random_values(c.steps * c.batch * c.input, 1), w = random_values(gh * c.input, 2),
               r = random_values(gh * c.hidden, 3), bias = random_values(2 * gh, 4), h0 = random_values(c.batch * c.hidden, 5),
               c0 = random_values(c.batch * c.hidden, 6);
  Values y(static_cast<size_t>(c.steps * c.batch * c.hidden)), h = h0, state = c0;
  for (int64_t step = 0; step < c.steps; ++step) {
    const int64_t t = c.reverse ? c.steps - 1 - step : step;
    const Values before = h;
    for (int64_t b = 0; b < c.batch; ++b) {
      const auto from_x = [&](int64_t row) {
        double s = bias[row];
        for (int64_t k = 0; k < c.input; ++k) s += w[row * c.input + k] * x[(t * c.batch + b) * c.input + k];
        return s;
      };
      const auto from_h = [&](int64_t row, const Values& left) {
        double s = bias[gh + row];
        for (int64_t k = 0; k < c.hidden; ++k) s += r[row * c.hidden + k] * left[k];
        return s;
      };
      const Values own(before.begin() + b * c.hidden, before.begin() + (b + 1) * c.hidden);
      Values reset(static_cast<size_t>(c.hidden));
      if (c.op == "GRU")
        for (int64_t j = 0; j < c.hidden; ++j) reset[j] = sigmoid(from_x(c.hidden + j) + from_h(c.hidden + j, own));
      Values gated = own;
      for (int64_t j = 0; j < c.hidden; ++j) gated[j] *= c.op == "GRU" ? reset[j] : 1;
      for (int64_t j = 0; j < c.hidden; ++j) {
        const int64_t at = b * c.hidden + j;
        const auto gate = [&](int64_t g) { return from_x(g * c.hidden + j) + from_h(g * c.hidden + j, own); };
        if (c.op == "LSTM") {  // gates i, o, f, c
          state[at] = sigmoid(gate(2)) * state[at] + sigmoid(gate(0)) * std::tanh(gate(3));
          h[at] = sigmoid(gate(1)) * std::tanh(state[at]);
        } else if (c.op == "GRU") {  // gates z, r, h
          const int64_t row = 2 * c.hidden + j;
          const double fresh = std::tanh(c.reset_after ? from_x(row) + reset[j] * from_h(row, own) : from_x(row) + from_h(row, gated));
          const double z = sigmoid(gate(0));
          h[at] = (1 - z) * fresh + z * own[j];
        } else {
          h[at] = std::tanh(gate(0));
        }
        y[(t * c.batch + b) * c.hidden + j] = h[at];
      }
    }
  }
  Case k(c.op);
  k.attr("direction", std::string(c.reverse ? "reverse" : "forward")).attr("hidden_size", c.hidden);
  if (c.op == "GRU") k.attr("linear_before_reset", int64_t{c.reset_after});
  k.in({c.steps, c.batch, c.input}, x).weight({1, gh, c.input}, w).weight({1, gh, c.hidden}, r).weight({1, 2 * gh}, bias);
  k.absent().in({1, c.batch, c.hidden}, h0).out({c.steps, 1, c.batch, c.hidden}).out({1, c.batch, c.hidden});
  if (c.op == "LSTM") k.in({1, c.batch, c.hidden}, c0).out({1, c.batch, c.hidden});
  std::vector<Values> want = {y, h};
  if (c.op == "LSTM") want.push_back(state);
  k.check(want, 1e-5);
  k.variable().check(want, 1e-5);
}

}  // namespace

void dense_checks() {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1}, {1, 70, 33}, {3, 5, 0}, {7, 33, 17}, {16, 64, 64}, {29, 131, 50}, {65, 47, 300}}) {
    matmul({.m = m, .n = n, .k = k});
    matmul({.m = m, .n = n, .k = k, .trans_b = true, .act = "Relu", .bias = true, .residual = true});
    matmul({.m = m, .n = n, .k = k, .trans_a = true, .bias = true, .alpha = 0.5});
  }
  matmul({.m = 20, .n = 35, .k = 1100});  // more than one panel of k
  matmul({.m = 70, .n = 200, .k = 90, .act = "Relu", .bias = true, .residual = true, .algorithm = "strassen"});
  matmul({.m = 33, .n = 131, .k = 61, .trans_b = true, .algorithm = "strassen"});
  emulate_amx(true);
  matmul({.m = 1, .n = 8, .k = 8, .algorithm = "bf16x3"});
  matmul({.m = 33, .n = 49, .k = 70, .act = "Relu", .bias = true, .residual = true, .algorithm = "bf16x3"});
  matmul({.m = 17, .n = 33, .k = 31, .trans_a = true, .trans_b = true, .alpha = 0.5, .algorithm = "bf16x3"});
  matmul({.batch = 3, .m = 5, .n = 20, .k = 12, .shared_b = false, .residual = true, .algorithm = "bf16x3"});
  matmul({.m = 20, .n = 9, .k = 5500, .algorithm = "bf16x3"});  // more than one partial sum
  emulate_amx(false);
  matmul({.batch = 3, .m = 9, .n = 20, .k = 12, .residual = true});
  matmul({.batch = 4, .m = 9, .n = 20, .k = 12, .trans_b = true, .shared_b = false});
  for (const char* act : {"Clip", "Sigmoid", "Tanh", "Gelu", "GeluTanh", "Silu", "HardSwish", "LeakyRelu", "HardSigmoid"})
    matmul({.m = 5, .n = 37, .k = 8, .act = act, .bias = true});
  for (bool mask : {false, true}) {
    attention(2, 1, 1, 16, 16, mask);
    attention(2, 1, 150, 32, 24, mask);
    attention(1, 3, 40, 8, 7, mask);
    attention(2, 70, 139, 24, 33, mask);
    attention(1, 20, 17, 64, 64, mask);
  }
  for (bool reverse : {false, true}) {
    recurrent({"LSTM", 4, 5, 3, 11, 18, reverse});
    recurrent({"LSTM", 4, 3, 1, 40, 33, reverse});
    recurrent({"GRU", 3, 5, 3, 11, 18, reverse});
    recurrent({"GRU", 3, 4, 2, 7, 20, reverse, true});
    recurrent({"RNN", 1, 5, 3, 11, 18, reverse});
  }
}

}  // namespace mnnpy::test
