#include "tests/simulation/transfer_model.h"

#include <algorithm>
#include <cstring>

namespace godwit::simulation {

void ModelMemory::write(Random& random) {
  // Half of the writes go to an eighth of the pages.
  const std::uint64_t count = random.below(2) == 0 ? pages_.size() : pages_.size() / 8 + 1;
  write_page(random.below(count), random);
}

void ModelMemory::write_page(pages::PageNumber page, Random& random) {
  const std::size_t length = random.below(8) == 0 ? pages::kPageSize : 64;
  const std::size_t offset = random.below(pages::kPageSize - length + 1);
  const bool zero = random.below(6) == 0;
  touch(page);
  keep(page);
  for (std::size_t at = 0; at < length; at += sizeof(std::uint64_t)) {
    const std::uint64_t word = zero ? 0 : random.next();
    std::memcpy(pages_[page].data() + offset + at, &word, sizeof(word));
  }
  written_.set(page);
}

void ModelMemory::write_at(std::span<const std::byte> bytes, Random& random) {
  const auto at = static_cast<std::size_t>(bytes.data() - pages_[0].data()) + random.below(bytes.size() / 8) * 8;
  const std::uint64_t word = random.next();
  const pages::PageNumber page = at / pages::kPageSize;
  touch(page);
  keep(page);
  std::memcpy(pages_[page].data() + at % pages::kPageSize, &word, sizeof(word));
  written_.set(page);
}

void ModelMemory::keep(pages::PageNumber page) {
  constexpr std::size_t kEarlierMax = 4;
  if (earlier_.size() == kEarlierMax) {
    earlier_.pop_front();
  }
  earlier_.push_back({page, pages_[page]});
}

void ModelMemory::write_back(Random& random) {
  if (earlier_.empty()) {
    return;
  }
  const auto which = earlier_.begin() + static_cast<std::ptrdiff_t>(random.below(earlier_.size()));
  touch(which->page);
  pages_[which->page] = which->content;
  written_.set(which->page);
  earlier_.erase(which);
}

void ModelMemory::rearm() {
  written_.clear_all();
  for (pages::PageNumber page = 0; page < pages_.size(); ++page) {
    known_.set(page, pages::hash_page(pages_[page]));
  }
}

pages::Bitmap ModelMemory::written() const {
  if (!compares_content_) {
    return written_;
  }
  pages::Bitmap changed(pages_.size());
  for (pages::PageNumber page = 0; page < pages_.size(); ++page) {
    if (known_.get(page) == memory::KnownHashes::kUnknown || known_.get(page) != pages::hash_page(pages_[page])) {
      changed.set(page);
    }
  }
  return changed;
}

void ModelMemory::balloon(Random& random) {
  const pages::PageNumber first = random.below(pages_.size());
  give_back(first, std::min<std::uint64_t>(random.between(1, 40), pages_.size() - first));
}

void ModelMemory::give_back(pages::PageNumber first, std::uint64_t count) {
  for (pages::PageNumber page = first; page < first + count; ++page) {
    touch(page);
    pages_[page].fill(std::byte{0});
    written_.set(page);
  }
}

pages::PageNumber ModelMemory::first_difference(const ModelMemory& other) const {
  return static_cast<pages::PageNumber>(std::mismatch(pages_.begin(), pages_.end(), other.pages_.begin()).first -
                                        pages_.begin());
}

std::expected<void, transfer::GuestError> ModelMemory::check_whole() const {
  if (lost_) {
    return std::unexpected(transfer::GuestError{"simulated: the RAM file was cut short"});
  }
  return {};
}

std::expected<void, transfer::GuestError> ModelMemory::fault(const char* call) {
  if (fail_next_) {
    fail_next_ = false;
    return std::unexpected(transfer::GuestError{std::string(call) + ": made to fail"});
  }
  return {};
}

void ModelMemory::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  GW_ASSERT(offset + out.size() <= pages::kPageSize);
  std::copy_n(pages_.at(page).begin() + offset, out.size(), out.begin());
}

std::expected<void, transfer::GuestError> ModelMemory::place_pages(std::span<const transfer::Arrival> arrivals) {
  ++place_calls_;
  placed_while_frozen_ = placed_while_frozen_ || frozen_;
  for (const transfer::Arrival& arrival : arrivals) {
    GW_ASSERT(arrival.offset + arrival.bytes.size() <= pages::kPageSize);
    std::copy(arrival.bytes.begin(), arrival.bytes.end(), pages_.at(arrival.page).begin() + arrival.offset);
    known_.set(arrival.page, pages::hash_page(pages_[arrival.page]));
    if (damage_in_ != 0 && --damage_in_ == 0) {
      flip_bit(arrival.page, arrival.offset);
    }
  }
  return fault("place_pages");
}

std::expected<void, transfer::GuestError> ModelMemory::zero_pages(pages::PageNumber first, std::uint64_t count) {
  placed_while_frozen_ = placed_while_frozen_ || frozen_;
  for (pages::PageNumber page = first; page < first + count; ++page) {
    pages_.at(page).fill(std::byte{0});
    known_.set(page, pages::zero_page_hash());
  }
  return fault("zero_pages");
}

std::expected<void, transfer::GuestError> ModelMemory::collect_written(pages::Bitmap& out) {
  out |= written();
  rearm();
  return fault("collect_written");
}

std::expected<void, transfer::GuestError> ModelMemory::find_zero(const pages::Bitmap& among, pages::Bitmap& out) {
  for (pages::PageNumber page = among.next_set(0); page < among.size(); page = among.next_set(page + 1)) {
    if (std::all_of(pages_[page].begin(), pages_[page].end(), [](std::byte b) { return b == std::byte{0}; })) {
      out.set(page);
      known_.note_sent(page, pages::zero_page_hash());
    }
  }
  return fault("find_zero");
}

void ModelExecutor::submit(std::function<void()> work, std::function<void()> done) {
  const Instant after = queue_.empty() ? now_ : std::max(now_, queue_.back().done_at);
  const Instant work_at =
      after + microseconds(static_cast<std::int64_t>(random_.below(random_.below(20) == 0 ? 20'000 : 300)));
  const Instant done_at = work_at + microseconds(static_cast<std::int64_t>(random_.below(200)));
  queue_.push_back({std::move(work), std::move(done), work_at, done_at});
  waiting_max_ = std::max(waiting_max_, queue_.size());
}

void ModelExecutor::run(Instant now) {
  now_ = now;
  while (!queue_.empty() && next() <= now) {
    if (!queue_.front().worked) {
      queue_.front().work();
      queue_.front().worked = true;
      continue;
    }
    const Job job = std::move(queue_.front());
    queue_.pop_front();
    job.done();
  }
}

void ModelExecutor::drain() {
  while (!queue_.empty()) {
    run(next());
  }
}

}  // namespace godwit::simulation
