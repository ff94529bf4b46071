#pragma once
// Flow ids, and whom a received datagram is for. An id has a table index in its low 12 bits and random bits above, so
// that a datagram of an earlier flow in the same place is foreign. 0 is no flow. Not synchronised: one on the control
// thread draws, one on each lcore finds. Failure: draw() returns 0 when all places are taken; find() says nullptr for
// whatever is not exactly a live flow.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/check.h"

namespace godwit::daemon {

inline constexpr std::uint32_t kFlowIndexBits = 12;
inline constexpr std::size_t kFlowsMax = std::size_t{1} << kFlowIndexBits;

constexpr std::size_t flow_index(std::uint32_t flow_id) { return flow_id & (kFlowsMax - 1); }

/// Draws ids that no live flow has. `random` gives 32 random bits; defaults to the kernel's generator.
class FlowIds {
 public:
  FlowIds();
  explicit FlowIds(std::function<std::uint32_t()> random) : random_(std::move(random)) {}
  [[nodiscard]] std::uint32_t draw();
  void release(std::uint32_t flow_id);
  [[nodiscard]] std::size_t size() const { return used_; }

 private:
  std::function<std::uint32_t()> random_;
  std::array<std::uint32_t, kFlowsMax> ids_{};
  std::size_t used_ = 0;
};

template <class T>
class FlowTable {
 public:
  void insert(std::uint32_t flow_id, T& owner) {
    Entry& entry = (*entries_)[flow_index(flow_id)];
    GW_ASSERT(flow_id != 0 && entry.owner == nullptr);
    entry = {flow_id, &owner};
  }
  void erase(std::uint32_t flow_id) {
    Entry& entry = (*entries_)[flow_index(flow_id)];
    if (entry.flow_id == flow_id) {
      entry = {};
    }
  }
  [[nodiscard]] T* find(std::uint32_t flow_id) const {
    const Entry& entry = (*entries_)[flow_index(flow_id)];
    return flow_id != 0 && entry.flow_id == flow_id ? entry.owner : nullptr;
  }

 private:
  struct Entry {
    std::uint32_t flow_id = 0;
    T* owner = nullptr;
  };
  std::unique_ptr<std::array<Entry, kFlowsMax>> entries_ = std::make_unique<std::array<Entry, kFlowsMax>>();
};

}  // namespace godwit::daemon
