// The thread pool. A region is published in one of a few slots; idle workers look there, claim chunks and leave.
//
// The caller claims chunks as well and can finish a region alone, so a descheduled worker delays a region by at most
// the chunk it holds. Workers spin briefly, then sleep on a futex. Programs that run at once are threads of work
// themselves: workers stand back while callers already fill the processors, and regions then run in their callers
// without a join. Pools live as long as the process; after fork() the child starts fresh workers when it first needs them.
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <thread>
#include <utility>

#include "core/core.h"

namespace mnnpy {
namespace {

using Clock = std::chrono::steady_clock;

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local bool inside_region = false;

struct Inside {
  const bool before = std::exchange(inside_region, true);
  ~Inside() { inside_region = before; }
};

// Programs that are running now, in whatever pool: each keeps one thread busy.
std::atomic<int> callers{0};

struct Region {
  int64_t count;
  void (*call)(void*, int64_t, int);
  void* body;
  alignas(64) std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void work(int slot) {
    for (;;) {
      const int64_t chunk = next.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= count) return;
      try {
        call(body, chunk, slot);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(count, std::memory_order_relaxed);
      }
    }
  }
};

struct alignas(64) Slot {
  std::atomic<bool> taken{false};
  std::atomic<Region*> region{nullptr};
  std::atomic<uint32_t> users{0};  // workers that may be looking at `region`
};

class SharedPool final : public WorkPool {
 public:
  explicit SharedPool(int threads) : threads_(threads), limit_(std::max(threads, default_threads())) {}

  int threads() const override { return threads_; }

  void run(int64_t count, void (*call)(void*, int64_t, int), void* body) override {
    Slot* slot = nullptr;
    if (count > 1 && threads_ > 1 && !inside_region) slot = claim();
    if (slot == nullptr) {
      const Inside inside;  // a single chunk is a region as well: what it starts runs inline
      for (int64_t c = 0; c < count; ++c) call(body, c, 0);
      return;
    }
    start();
    Region region{count, call, body, {}, {}, {}};
    slot->region.store(&region, std::memory_order_seq_cst);
    wake();
    inside_region = true;
    region.work(0);
    inside_region = false;
    slot->region.store(nullptr, std::memory_order_seq_cst);
    await_workers(*slot);
    slot->taken.store(false, std::memory_order_release);
    if (region.failed.load(std::memory_order_acquire)) std::rethrow_exception(region.error);
  }

  void lease() { callers.fetch_add(1, std::memory_order_relaxed); }

  // The processor that becomes free may help with a region that was left to its caller.
  void release() {
    if (callers.fetch_sub(1, std::memory_order_seq_cst) > 1 && any_region()) wake();
  }

  // In the child after fork(): the workers are gone, and so is whatever other threads were doing.
  void reset_after_fork() {
    for (Slot& s : slots_) {
      s.taken.store(false);
      s.region.store(nullptr);
      s.users.store(0);
    }
    sleepers_.store(0);
    started_.store(false);
    inside_region = false;
  }

 private:
  static constexpr int kSlots = 16;

  Slot* claim() {
    for (Slot& s : slots_) {
      bool expected = false;
      if (!s.taken.load(std::memory_order_relaxed) &&
          s.taken.compare_exchange_strong(expected, true, std::memory_order_acquire))
        return &s;
    }
    return nullptr;
  }

  void start() {
    if (started_.load(std::memory_order_acquire) || started_.exchange(true)) return;
    for (int w = 1; w < threads_; ++w) {
      try {
        std::thread([this, w] { loop(w); }).detach();
      } catch (const std::system_error&) {
        return;  // fewer workers: regions still finish, the caller claims what nobody else does
      }
    }
  }

  void wake() {
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0 && welcome(1)) epoch_.notify_all();
  }

  // Whether a processor is left for this worker: callers first, then workers in the order of their numbers.
  bool welcome(int worker) const { return callers.load(std::memory_order_seq_cst) + worker <= limit_; }

  static void await_workers(Slot& slot) {
    for (int spin = 0; slot.users.load(std::memory_order_seq_cst) != 0; ++spin) {
      if (spin < 4000) {
        pause_cpu();
        continue;
      }
      const uint32_t seen = slot.users.load(std::memory_order_seq_cst);
      if (seen != 0) slot.users.wait(seen);
    }
  }

  bool help(int worker) {
    if (!welcome(worker)) return false;
    bool found = false;
    for (Slot& s : slots_) {
      if (s.region.load(std::memory_order_relaxed) == nullptr) continue;
      s.users.fetch_add(1, std::memory_order_seq_cst);
      if (Region* region = s.region.load(std::memory_order_seq_cst)) {
        if (region->next.load(std::memory_order_relaxed) < region->count) {
          found = true;
          region->work(worker);
        }
      }
      if (s.users.fetch_sub(1, std::memory_order_seq_cst) == 1) s.users.notify_all();
    }
    return found;
  }

  void loop(int worker) {
    inside_region = true;
    for (;;) {
      if (help(worker)) continue;
      const auto begin = Clock::now();
      bool again = false;
      for (int spin = 1;; ++spin) {
        pause_cpu();
        if (help(worker)) {
          again = true;
          break;
        }
        if (spin % 32 == 0) {
          const auto limit = std::chrono::microseconds(callers.load(std::memory_order_relaxed) > 0 && welcome(worker) ? 150 : 5);
          if (Clock::now() - begin > limit) break;
        }
      }
      if (again) continue;
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      const uint32_t seen = epoch_.load(std::memory_order_seq_cst);
      if (!welcome(worker) || !any_region()) epoch_.wait(seen, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  bool any_region() const {
    for (const Slot& s : slots_) {
      Region* r = s.region.load(std::memory_order_seq_cst);
      if (r != nullptr) return true;
    }
    return false;
  }

  const int threads_;
  const int limit_;  // threads that may be busy at once
  Slot slots_[kSlots];
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> started_{false};
};

std::mutex registry_mutex;
std::map<int, SharedPool*>& registry() {
  static auto* pools = new std::map<int, SharedPool*>();  // never freed: workers outlive static destruction
  return *pools;
}

void before_fork() { registry_mutex.lock(); }
void after_fork_parent() { registry_mutex.unlock(); }
void after_fork_child() {
  callers.store(0);
  for (auto& [threads, pool] : registry()) pool->reset_after_fork();
  registry_mutex.unlock();
}

}  // namespace

WorkPool::Lease::Lease(WorkPool* p) : pool(p) { static_cast<SharedPool*>(pool)->lease(); }
WorkPool::Lease::~Lease() { static_cast<SharedPool*>(pool)->release(); }

int default_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

WorkPool* shared_pool(int threads) {
  if (threads <= 0) threads = default_threads();
  if (threads > 1024) throw std::invalid_argument("threads is " + std::to_string(threads) + ", more than 1024");
  std::lock_guard lock(registry_mutex);
  static const int installed = pthread_atfork(before_fork, after_fork_parent, after_fork_child);
  (void)installed;
  SharedPool*& pool = registry()[threads];
  if (pool == nullptr) pool = new SharedPool(threads);
  return pool;
}

}  // namespace mnnpy
