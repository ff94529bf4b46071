#include "tests/unit/memory/counters.h"

#include <cstdlib>
#include <cstring>
#include <numeric>

#include "dataplane/pages/page.h"

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kPlaces = 8;

constexpr std::uint64_t offset_of(std::uint64_t place, std::uint64_t id) {
  return place * (pages::kPageSize / kPlaces) + id * sizeof(std::uint64_t);
}

}  // namespace

std::chrono::seconds torture_time(std::chrono::seconds usual) {
  const char* const seconds = std::getenv("GODWIT_TORTURE_SECONDS");
  return seconds != nullptr ? std::chrono::seconds(std::atoi(seconds)) : usual;
}

Counters::Counters(std::byte* ram, std::uint64_t page_count, std::uint32_t threads)
    : ram_(ram), counts_(threads, std::vector<std::uint64_t>(page_count)) {}

void Counters::begin() {
  running_ = counts_.size();
  for (std::uint32_t id = 0; id < counts_.size(); ++id) {
    threads_.emplace_back([this, id] {
      run(id);
      const std::lock_guard lock(mutex_);
      --running_;
      ended_.notify_all();
    });
  }
}

void Counters::stop() {
  stop_ = true;
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
}

bool Counters::stop_within(std::chrono::seconds limit) {
  stop_ = true;
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, limit, [this] { return running_ == 0; });
}

std::uint64_t Counters::additions() const {
  std::uint64_t sum = 0;
  for (const auto& counts : counts_) {
    sum = std::accumulate(counts.begin(), counts.end(), sum);
  }
  return sum;
}

void Counters::write_to(pages::PageNumber page, std::span<std::byte> content) const {
  for (std::uint64_t id = 0; id < counts_.size(); ++id) {
    for (std::uint64_t place = 0; place < kPlaces; ++place) {
      std::memcpy(&content[offset_of(place, id)], &counts_[id][page], sizeof counts_[id][page]);
    }
  }
}

void Counters::run(std::uint32_t id) {
  std::vector<std::uint64_t>& counts = counts_[id];
  for (std::uint64_t random = 0x9e3779b97f4a7c15U * (id + 1); !stop_;) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    // Mostly near each other, so that pages are written while they are chosen, held, punched and placed.
    const std::uint64_t page = (random >> 20) % (random % 4 == 0 ? counts.size() : counts.size() / 8);
    for (std::uint64_t place = 0; place < kPlaces; ++place) {
      auto* const word = reinterpret_cast<std::uint64_t*>(ram_ + page * pages::kPageSize + offset_of(place, id));
      const std::atomic_ref counter(*word);
      if (counter.fetch_add(1, std::memory_order_relaxed) != counts[page]) {
        ++wrong_met_;
        counter.store(counts[page] + 1, std::memory_order_relaxed);
      }
    }
    ++counts[page];
  }
}

}  // namespace godwit::memory::test
