// Convolution by every algorithm, and Pool, against plain loops.
#include "amx.h"
#include "check.h"

namespace mnnpy::test {
namespace {

using List = std::vector<int64_t>;

// Two spatial dims; x[n][c][h][w], w[m][c/group][kh][kw].
struct Conv {
  int64_t n = 1, c, h, w, m, kh = 3, kw = 3;
  List strides = {1, 1}, pads = {1, 1, 1, 1}, dilations = {1, 1};
  int64_t group = 1;
  bool bias = true, residual = false, relu = false;

  int64_t out_h() const { return (h + pads[0] + pads[2] - (kh - 1) * dilations[0] - 1) / strides[0] + 1; }
  int64_t out_w() const { return (w + pads[1] + pads[3] - (kw - 1) * dilations[1] - 1) / strides[1] + 1; }
};

Values channels_last(const Values& x, int64_t n, int64_t c, int64_t area) {
  Values y(x.size());
  for (int64_t b = 0; b < n; ++b)
    for (int64_t k = 0; k < c; ++k)
      for (int64_t p = 0; p < area; ++p) y[(b * area + p) * c + k] = x[(b * c + k) * area + p];
  return y;
}

Values convolved(const Conv& s, const Values& x, const Values& w, const Values& bias) {
  Values y;
  const int64_t cg = s.c / s.group, mg = s.m / s.group;
  for (int64_t b = 0; b < s.n; ++b)
    for (int64_t m = 0; m < s.m; ++m)
      for (int64_t i = 0; i < s.out_h(); ++i)
        for (int64_t j = 0; j < s.out_w(); ++j) {
          double sum = s.bias ? bias[m] : 0;
          for (int64_t c = 0; c < cg; ++c)
            for (int64_t a = 0; a < s.kh; ++a)
              for (int64_t e = 0; e < s.kw; ++e) {
                const int64_t row = i * s.strides[0] + a * s.dilations[0] - s.pads[0];
                const int64_t column = j * s.strides[1] + e * s.dilations[1] - s.pads[1];
                if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                sum += x[((b * s.c + m / mg * cg + c) * s.h + row) * s.w + column] * w[((m * cg + c) * s.kh + a) * s.kw + e];
              }
          y.push_back(sum);
        }
  return y;
}

void convolve(const Conv& s, const std::vector<std::string>& algorithms = {"direct"}) {
  const Dims w_shape = {s.m, s.c / s.group, s.kh, s.kw}, y_shape = {s.n, s.m, s.out_h(), s.out_w()};
  const int64_t area = s.out_h() * s.out_w();
  const Values x = random_values(s.n * s.c * s.h * s.w, 1), w = random_values(w_shape, 2), bias = random_values(s.m, 3);
  const Values plain = convolved(s, x, w, bias);
  const auto common = [&](Case& c) -> Case& {
    return c.attr("strides", s.strides).attr("pads", s.pads).attr("dilations", s.dilations).attr("group", s.group);
  };
  Case first("Convolution");  // channels first: the reference-like kernels of all types
  common(first).in({s.n, s.c, s.h, s.w}, x).weight(w_shape, w).out(y_shape);
  if (s.bias) first.weight({s.m}, bias);
  first.check({plain}, 5e-6);

  Values want = channels_last(plain, s.n, s.m, area);
  const Values residual = random_values(static_cast<int64_t>(want.size()), 4);
  for (size_t k = 0; k < want.size(); ++k) {
    if (s.residual) want[k] += residual[k];
    if (s.relu) want[k] = std::max(0.0, want[k]);
  }
  for (const std::string& algorithm : algorithms) {
    const Dims out = {s.n, s.out_h(), s.out_w(), s.m};
    Case last("Convolution");
    common(last).attr("layout", std::string("NHWC")).attr("algorithm", algorithm);
    last.in({s.n, s.h, s.w, s.c}, channels_last(x, s.n, s.c, s.h * s.w)).weight(w_shape, w).out(out);
    if (s.relu) last.attr("act", std::string("Relu"));
    if (s.bias || s.residual) s.bias ? last.weight({s.m}, bias) : last.absent();
    if (s.residual) last.in(out, residual);
    const bool fast = algorithm != "direct";
    last.check({want}, fast ? 3e-5 : 5e-6, fast ? algorithm : "");
    if (!fast) last.variable().check({want}, 5e-6);
  }
}

void pool(const std::string& fn, int64_t n, int64_t c, int64_t h, int64_t w, int64_t kernel, int64_t stride, int64_t pad, bool count_pad) {
  const int64_t oh = (h + 2 * pad - kernel) / stride + 1, ow = (w + 2 * pad - kernel) / stride + 1;
  const Values x = random_values(n * c * h * w);
  Values y;
  for (int64_t plane = 0; plane < n * c; ++plane)
    for (int64_t i = 0; i < oh; ++i)
      for (int64_t j = 0; j < ow; ++j) {
        double sum = 0, top = -1e300, seen = 0;
        for (int64_t a = i * stride - pad; a < i * stride - pad + kernel; ++a)
          for (int64_t b = j * stride - pad; b < j * stride - pad + kernel; ++b)
            if (a >= 0 && a < h && b >= 0 && b < w) {
              const double v = x[(plane * h + a) * w + b];
              sum += v;
              top = std::max(top, v);
              ++seen;
            }
        y.push_back(fn == "Max" ? top : sum / (count_pad ? static_cast<double>(kernel * kernel) : seen));
      }
  for (const char* layout : {"NCHW", "NHWC"}) {
    const bool last = std::string(layout) == "NHWC";
    Case k("Pool");
    k.attr("fn", fn).attr("kernel", List{kernel, kernel}).attr("strides", List{stride, stride}).attr("dilations", List{1, 1});
    k.attr("pads", List{pad, pad, pad, pad}).attr("out", List{oh, ow}).attr("count_include_pad", int64_t{count_pad});
    k.attr("layout", std::string(layout)).in(last ? Dims{n, h, w, c} : Dims{n, c, h, w}, last ? channels_last(x, n, c, h * w) : x);
    k.out(last ? Dims{n, oh, ow, c} : Dims{n, c, oh, ow});
    k.check({last ? channels_last(y, n, c, oh * ow) : y}, 1e-6);
  }
}

}  // namespace

void convolution_checks() {
  convolve({.c = 5, .h = 9, .w = 7, .m = 11});
  convolve({.n = 2, .c = 33, .h = 6, .w = 5, .m = 37, .kh = 1, .kw = 1, .pads = {0, 0, 0, 0}, .residual = true, .relu = true});
  convolve({.c = 3, .h = 17, .w = 19, .m = 16, .kh = 7, .kw = 7, .strides = {2, 2}, .pads = {3, 3, 3, 3}, .relu = true});
  convolve({.c = 6, .h = 12, .w = 11, .m = 9, .kh = 3, .kw = 5, .strides = {2, 1}, .pads = {0, 1, 2, 3}, .dilations = {2, 1}});
  convolve({.n = 2, .c = 12, .h = 8, .w = 9, .m = 20, .group = 4, .residual = true});
  convolve({.c = 6, .h = 9, .w = 8, .m = 6, .pads = {-1, 1, -2, 0}, .bias = false});
  const std::vector<std::string> winograd = {"direct", "winograd2", "winograd4", "winograd6"};
  convolve({.c = 8, .h = 8, .w = 8, .m = 8}, winograd);
  convolve({.n = 2, .c = 35, .h = 13, .w = 10, .m = 37, .residual = true, .relu = true}, winograd);
  convolve({.c = 20, .h = 5, .w = 17, .m = 19, .pads = {0, 2, 1, 0}, .bias = false}, winograd);
  emulate_amx(true);
  const std::vector<std::string> amx = {"bf16x3"};
  convolve({.c = 32, .h = 4, .w = 28, .m = 33, .relu = true}, amx);  // tiles as they lie
  convolve({.c = 40, .h = 5, .w = 19, .m = 20, .residual = true}, amx);  // gathered tiles
  convolve({.c = 3, .h = 17, .w = 19, .m = 16, .kh = 7, .kw = 7, .strides = {2, 2}, .pads = {3, 3, 3, 3}}, amx);
  convolve({.n = 2, .c = 21, .h = 7, .w = 6, .m = 17, .kh = 1, .kw = 1, .strides = {2, 1}, .pads = {1, 0, 2, 1}}, amx);
  convolve({.c = 32, .h = 9, .w = 14, .m = 12, .pads = {1, -2, -3, 4}, .bias = false}, amx);
  emulate_amx(false);
  for (int64_t channels : {4, 16, 37}) {  // depthwise
    convolve({.c = channels, .h = 9, .w = 11, .m = channels, .group = channels, .relu = true});
    convolve({.c = channels, .h = 12, .w = 7, .m = channels, .strides = {2, 2}, .group = channels});
    convolve({.c = channels, .h = 10, .w = 9, .m = channels, .kh = 5, .kw = 5, .pads = {2, 2, 2, 2}, .group = channels, .residual = true});
  }
  for (const char* fn : {"Max", "Average"}) {
    pool(fn, 2, 5, 9, 11, 3, 2, 1, false);
    pool(fn, 1, 37, 8, 8, 2, 2, 0, false);
    pool(fn, 1, 16, 7, 7, 7, 1, 0, false);
  }
  pool("Average", 1, 20, 9, 8, 3, 1, 1, true);
}

}  // namespace mnnpy::test
