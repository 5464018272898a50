"""Functions of doubles in GLSL, which has none: exp, log, sines, arc functions and what follows from them.

Argument reduction (Cody and Waite) and Taylor series; errors are some units in the last place, more for powers with
large exponents, sines of arguments above 10^6 and the error function between 2 and 3 (1e-12).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["FUNCTIONS", "definitions"]


def _horner(x: str, coefficients: Sequence[float]) -> str:
    """Σ coefficients[k]·x^k."""
    text = f"{coefficients[-1]!r}lf"
    for c in reversed(coefficients[:-1]):
        text = f"({text} * {x} + {c!r}lf)"
    return text


def _taylor(first: int, last: int, step: int, *, alternate: bool = False) -> list[float]:
    """1/n! for n = first, first + step, …"""
    signs = [(-1.0) ** k if alternate else 1.0 for k in range(len(range(first, last + 1, step)))]
    return [s / math.factorial(n) for s, n in zip(signs, range(first, last + 1, step), strict=True)]


_INF = "packDouble2x32(uvec2(0u, 0x7ff00000u))"
_NAN = "packDouble2x32(uvec2(0u, 0x7ff80000u))"
#: name → (functions it calls, definition)
_TABLE: dict[str, tuple[tuple[str, ...], str]] = {
    "exp": ((), f"""double exp64(double x) {{
  if (isnan(x)) return x;
  if (x > 709.79lf) return {_INF};
  if (x < -745.2lf) return 0.0lf;
  double k = roundEven(x * {1 / math.log(2)!r}lf);
  double r = (x - k * 0.6931471803691238lf) - k * 1.9082149292705877e-10lf;
  int n = int(k), h = n / 2;
  double low = packDouble2x32(uvec2(0u, uint(h + 1023) << 20));
  double high = packDouble2x32(uvec2(0u, uint(n - h + 1023) << 20));
  return {_horner("r", _taylor(0, 14, 1))} * low * high;
}}"""),
    "log": ((), f"""double log64(double x) {{
  if (isnan(x) || x < 0.0lf) return {_NAN};
  if (isinf(x)) return x;
  if (x == 0.0lf) return -{_INF};
  int e = 0;
  if (x < 2.2250738585072014e-308lf) {{ x *= 18014398509481984.0lf; e = -54; }}
  uvec2 w = unpackDouble2x32(x);
  e += int(w.y >> 20) - 1023;
  double m = packDouble2x32(uvec2(w.x, (w.y & 0xfffffu) | 0x3ff00000u));
  if (m > 1.4142135623730951lf) {{ m *= 0.5lf; e += 1; }}
  double s = (m - 1.0lf) / (m + 1.0lf), z = s * s;
  double tail = 2.0lf * s * {_horner("z", [1 / (2 * k + 1) for k in range(13)])};
  return double(e) * 0.6931471803691238lf + (double(e) * 1.9082149292705877e-10lf + tail);
}}"""),
    "expm1": (("exp",), f"""double expm164(double x) {{
  return abs(x) < 0.5lf ? x * {_horner("x", _taylor(1, 17, 1))} : exp64(x) - 1.0lf;
}}"""),
    "log1p": (("log",), """double log1p64(double x) {
  double u = 1.0lf + x;
  if (u == 1.0lf) return x;
  return u > 1e300lf || !(u > 0.0lf) ? log64(u) : log64(u) * (x / (u - 1.0lf));
}"""),
    "wave": ((), f"""double wave64(double x, int quarter) {{
  double q = roundEven(x * {2 / math.pi!r}lf);
  double r = ((x - q * 1.5707963267341256lf) - q * 6.077100506303966e-11lf) - q * 2.0222662487959506e-21lf;
  int k = (int(q - 4.0lf * floor(q * 0.25lf)) + quarter) & 3;
  double z = r * r;
  double s = r * {_horner("z", _taylor(1, 19, 2, alternate=True))};
  double c = {_horner("z", _taylor(0, 20, 2, alternate=True))};
  double v = (k & 1) == 0 ? s : c;
  return (k & 2) == 0 ? v : -v;
}}"""),
    "sin": (("wave",), "double sin64(double x) { return wave64(x, 0); }"),
    "cos": (("wave",), "double cos64(double x) { return wave64(x, 1); }"),
    "tan": (("wave",), "double tan64(double x) { return wave64(x, 0) / wave64(x, 1); }"),
    "atan": ((), f"""double atan64(double x) {{
  double a = abs(x), t = a > 1.0lf ? 1.0lf / a : a;
  for (int k = 0; k < 3; ++k) t = t / (1.0lf + sqrt(1.0lf + t * t));
  double z = t * t;
  double r = 8.0lf * t * {_horner("z", [(-1.0) ** k / (2 * k + 1) for k in range(10)])};
  if (a > 1.0lf) r = {math.pi / 2!r}lf - r;
  return x < 0.0lf ? -r : r;
}}"""),
    "atan2": (("atan",), f"""double atan264(double y, double x) {{
  if (isnan(x) || isnan(y)) return x + y;
  bool left = x < 0.0lf || (x == 0.0lf && 1.0lf / x < 0.0lf), below = y < 0.0lf || (y == 0.0lf && 1.0lf / y < 0.0lf);
  double a = abs(y), b = abs(x), r;
  if (a == 0.0lf) r = 0.0lf;
  else if (isinf(a) && isinf(b)) r = {math.pi / 4!r}lf;
  else r = b == 0.0lf || isinf(a) ? {math.pi / 2!r}lf : atan64(a / b);
  if (left) r = {math.pi!r}lf - r;
  return below ? -r : r;
}}"""),
    "asin": (("atan2",), "double asin64(double x) { return atan264(x, sqrt((1.0lf - x) * (1.0lf + x))); }"),
    "acos": (("atan2",), "double acos64(double x) { return atan264(sqrt((1.0lf - x) * (1.0lf + x)), x); }"),
    "sinh": (("expm1", "exp"), """double sinh64(double x) {
  double a = abs(x), e = expm164(min(a, 30.0lf));
  double r = a < 30.0lf ? 0.5lf * (e + e / (e + 1.0lf)) : exp64(a - 0.6931471805599453lf);
  return x < 0.0lf ? -r : r;
}"""),
    "cosh": (("exp",), """double cosh64(double x) {
  double e = exp64(abs(x) - 0.6931471805599453lf);
  return e + 0.25lf / e;
}"""),
    "tanh": (("expm1",), """double tanh64(double x) {
  if (isnan(x)) return x;
  double e = expm164(2.0lf * min(abs(x), 20.0lf)), r = e / (e + 2.0lf);
  return x < 0.0lf ? -r : r;
}"""),
    "asinh": (("log", "log1p"), """double asinh64(double x) {
  double a = abs(x), z = a * a;
  double r = a > 1e150lf ? log64(a) + 0.6931471805599453lf : log1p64(a + z / (1.0lf + sqrt(z + 1.0lf)));
  return x < 0.0lf ? -r : r;
}"""),
    "acosh": (("log", "log1p"), """double acosh64(double x) {
  double t = x - 1.0lf;
  return x > 1e150lf ? log64(x) + 0.6931471805599453lf : log1p64(t + sqrt(t * (t + 2.0lf)));
}"""),
    "atanh": (("log1p",), "double atanh64(double x) { return 0.5lf * log1p64(2.0lf * x / (1.0lf - x)); }"),
    "pow": (("exp", "log"), "double pow64(double x, double y) { return exp64(y * log64(x)); }"),
    "erf": (("exp",), f"""double erf64(double x) {{
  if (isnan(x)) return x;
  double a = abs(x), z = a * a, r;
  if (a < 3.0lf) {{
    double term = a, total = a;
    for (int n = 1; n < 60; ++n) {{ term *= -z / double(n); total += term / double(2 * n + 1); }}
    r = {2 / math.sqrt(math.pi)!r}lf * total;
  }} else {{
    double f = a;
    for (int n = 60; n > 0; --n) f = a + 0.5lf * double(n) / f;
    r = 1.0lf - exp64(-z) / (f * {math.sqrt(math.pi)!r}lf);
  }}
  return x < 0.0lf ? -r : r;
}}"""),
}  # fmt: skip
#: Functions of the kernel language that are defined here for doubles.
FUNCTIONS = frozenset(_TABLE) - {"wave"}


def definitions(names: Iterable[str]) -> list[str]:
    """GLSL text of these functions and of what they call, callees first."""
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in found:
            for callee in _TABLE[name][0]:
                add(callee)
            found[name] = _TABLE[name][1]

    for name in sorted(names):
        add(name)
    return list(found.values())
