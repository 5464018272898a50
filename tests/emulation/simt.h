// A work group on one CPU thread: every work item is a fiber, a barrier hands over to the next one.
//
// Divergence is checked: when one item has returned or waits at another barrier than its neighbours, the group fails.
// Kernels without a barrier run as plain loops. Subgroups are 32 neighbours
// that exchange values between barriers of the whole group. What this does not show: races, memory order, divergent warps.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace simt {

struct Dim {
  unsigned x, y, z;
};

struct Item {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Dim local;
  int barrier = -1;  // line of the barrier it waits at
  bool done = false;
};

inline thread_local Dim local_id, group_id, local_size, group_count;
inline thread_local Item* current = nullptr;
inline thread_local ucontext_t scheduler;
inline thread_local const std::function<void()>* body = nullptr;
inline thread_local const char* failure = nullptr;

inline void entry() {
  (*body)();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline void wait(int line) {
  if (current == nullptr) {
    failure = "a barrier in a kernel that was declared to have none";
    return;
  }
  current->barrier = line;
  swapcontext(&current->context, &scheduler);
}

// The value of item `other` (row-major in its group), of all items of a group at once.
template <class T>
inline T exchange(T value, unsigned other) {
  static thread_local std::vector<char> slots;
  const unsigned count = local_size.x * local_size.y * local_size.z;
  if (slots.size() < count * sizeof(T)) slots.resize(count * sizeof(T));
  const unsigned own = local_id.x + local_size.x * (local_id.y + local_size.y * local_id.z);
  std::memcpy(slots.data() + own * sizeof(T), &value, sizeof(T));
  wait(-2);
  if (other < count) std::memcpy(&value, slots.data() + other * sizeof(T), sizeof(T));
  wait(-3);
  return value;
}

// The same from the item whose place in its 32 neighbours differs by `mask`.
template <class T>
inline T exchange_xor(T value, unsigned mask) {
  return exchange(value, (local_id.x + local_size.x * (local_id.y + local_size.y * local_id.z)) ^ mask);
}

inline void run_group(const std::function<void()>& work, bool fibers) {
  const Dim n = local_size;
  if (!fibers) {
    for (unsigned z = 0; z < n.z; ++z)
      for (unsigned y = 0; y < n.y; ++y)
        for (unsigned x = 0; x < n.x; ++x) {
          local_id = {x, y, z};
          work();
        }
    return;
  }
  constexpr size_t kStack = 64 << 10;
  static thread_local std::vector<Item> items;
  items.resize(static_cast<size_t>(n.x) * n.y * n.z);
  body = &work;
  size_t k = 0;
  for (unsigned z = 0; z < n.z; ++z)
    for (unsigned y = 0; y < n.y; ++y)
      for (unsigned x = 0; x < n.x; ++x) {
        Item& item = items[k++];
        if (!item.stack) item.stack = std::make_unique<char[]>(kStack);
        item.local = {x, y, z};
        item.barrier = -1;
        item.done = false;
        getcontext(&item.context);
        item.context.uc_stack.ss_sp = item.stack.get();
        item.context.uc_stack.ss_size = kStack;
        item.context.uc_link = &scheduler;
        makecontext(&item.context, entry, 0);
      }
  for (;;) {
    for (Item& item : items) {
      current = &item;
      local_id = item.local;
      swapcontext(&scheduler, &item.context);
    }
    current = nullptr;
    for (const Item& item : items)
      if (item.done != items[0].done || (!item.done && item.barrier != items[0].barrier)) {
        failure = "divergent barrier: some work items of a group are at another barrier or have returned";
        return;
      }
    if (items[0].done) return;
  }
}

// Runs the grid; returns what went wrong, or nullptr.
inline const char* run(const unsigned* groups, const unsigned* local, bool fibers, const std::function<void()>& work) {
  failure = nullptr;
  local_size = {local[0], local[1], local[2]};
  group_count = {groups[0], groups[1], groups[2]};
  for (unsigned z = 0; z < groups[2] && failure == nullptr; ++z)
    for (unsigned y = 0; y < groups[1] && failure == nullptr; ++y)
      for (unsigned x = 0; x < groups[0] && failure == nullptr; ++x) {
        group_id = {x, y, z};
        run_group(work, fibers);
      }
  return failure;
}

}  // namespace simt
