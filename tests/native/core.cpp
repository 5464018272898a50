// The executor and its thread pool: every chunk once, nesting, exceptions, many callers, plans run concurrently.
#include <atomic>
#include <stdexcept>
#include <thread>

#include "check.h"

namespace mnnpy::test {
namespace {

void every_chunk_once(int threads) {
  WorkPool* pool = shared_pool(threads);
  for (int64_t chunks : {0, 1, 2, 5, 64, 1000}) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(chunks));
    std::vector<int> busy(static_cast<size_t>(threads));  // plain: a slot belongs to one thread at a time
    std::atomic<int> nested{0};
    pool->parallel_for(chunks, [&](int64_t chunk, int slot) {
      ++busy.at(static_cast<size_t>(slot));
      ++seen[static_cast<size_t>(chunk)];
      pool->parallel_for(3, [&](int64_t, int inner) {
        // A single chunk runs inline before the pool is asked, so that what it starts may be a region of its own.
        if (chunks > 1 && inner != 0) fail("a nested region has slot " + std::to_string(inner));
        ++nested;
      });
    });
    int total = 0;
    for (int b : busy) total += b;
    bool once = total == chunks && nested == 3 * chunks;
    for (const auto& s : seen) once = once && s == 1;
    expect(once, std::to_string(chunks) + " chunks on " + std::to_string(threads) + " threads did not run once each");
  }
}

void exceptions_reach_the_caller(int threads) {
  WorkPool* pool = shared_pool(threads);
  for (int round = 0; round < 20; ++round) {
    std::string what;
    try {
      pool->parallel_for(50, [&](int64_t chunk, int) {
        if (chunk == 7 * round % 50) throw std::runtime_error("chunk failed");
      });
    } catch (const std::runtime_error& e) {
      what = e.what();
    }
    expect(what == "chunk failed", "an exception got lost on " + std::to_string(threads) + " threads");
  }
}

void many_callers(int threads) {
  WorkPool* pool = shared_pool(threads);
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 5; ++c)
    callers.emplace_back([&, c] {
      for (int round = 0; round < 60; ++round) {
        std::vector<int64_t> parts(17);  // written by workers, read by the caller
        const WorkPool::Lease lease(pool);
        pool->parallel_for(17, [&](int64_t chunk, int) { parts[static_cast<size_t>(chunk)] = chunk + c; });
        for (int64_t p : parts) sum += p;
      }
    });
  for (std::thread& t : callers) t.join();
  expect(sum == 60 * 5 * (17 * 16 / 2) + 60 * 17 * 10, "callers share a pool of " + std::to_string(threads) + " threads and get wrong sums");
}

// y = relu(x·w)·v, twice through the arena, from three threads at once.
void plans(Isa isa, int threads) {
  const int64_t m = 20, k = 30, n = 40;
  const Values x = random_values(m * k, 1), w = random_values(k * n, 2), v = random_values(n * k, 3);
  const auto floats = [](const Values& values) { return std::vector<float>(values.begin(), values.end()); };
  Values middle, want;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double s = 0;
      for (int64_t d = 0; d < k; ++d) s += x[i * k + d] * w[d * n + j];
      middle.push_back(std::max(0.0, s));
    }
  double scale = 0;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < k; ++j) {
      double s = 0;
      for (int64_t d = 0; d < n; ++d) s += middle[i * n + d] * v[d * k + j];
      want.push_back(s);
      scale = std::max(scale, std::abs(s));
    }
  auto first = floats(w), second = floats(v);
  const auto input = floats(x);
  std::vector<TensorSpec> tensors = {
      {DType::F32, {m, k}, {Place::INPUT, 0, 0, nullptr}},  {DType::F32, {k, n}, {Place::CONSTANT, 0, 0, first.data()}},
      {DType::F32, {m, n}, {Place::ARENA, 0, 64, nullptr}}, {DType::F32, {n, k}, {Place::CONSTANT, 0, 0, second.data()}},
      {DType::F32, {m, k}, {Place::OUTPUT, 0, 0, nullptr}},
  };
  std::vector<StepSpec> steps = {{"MatMul", "first", {{"act", std::string("Relu")}}, {0, 1}, {2}}, {"MatMul", "second", {}, {2, 3}, {4}}};
  Plan plan(tensors, steps, 64 + static_cast<size_t>(m * n) * 4, threads, isa);
  const auto released = plan.released_constants();
  if (released[1]) std::vector<float>().swap(first);
  if (released[3]) std::vector<float>().swap(second);
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 10; ++round) {
        std::vector<float> out(static_cast<size_t>(m * k));
        const void* in[] = {input.data()};
        void* to[] = {out.data()};
        plan.run(in, to);
        bool right = true;
        for (size_t e = 0; e < out.size(); ++e)
          right = right && std::abs(out[e] - want[e]) <= 1e-5 * scale;
        expect(right, std::string("a plan on ") + isa_name(isa) + " gives wrong results");
      }
    });
  for (std::thread& t : callers) t.join();
  plan.trim();
}

}  // namespace

void core_checks() {
  for (int threads : settings.threads) {
    every_chunk_once(threads);
    exceptions_reach_the_caller(threads);
    many_callers(threads);
    for (Isa isa : settings.isas) plans(isa, threads);
  }
  expect(cpu_features(Isa::GENERIC).size() <= cpu_features(best_isa()).size(), "a lower instruction set has more features");
  bool refused = false;
  try {
    shared_pool(5000);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  expect(refused, "a pool of 5000 threads was not refused");
}

}  // namespace mnnpy::test
