#include "dataplane/memory/leaving_pages.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace godwit::memory {
namespace {

constexpr std::size_t kPage = pages::kPageSize;
constexpr GuestStateFile::Kind kKind{0x67776c656176696e, 1, "file of pages on their way out"};  // "gwleavin"

}  // namespace

std::expected<PinPipe, Error> PinPipe::make() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return std::unexpected(kernel_error("pipe2", "pages on their way out", errno));
  }
  return take(UniqueFd(ends[0]), UniqueFd(ends[1]));
}

std::expected<PinPipe, Error> PinPipe::take(UniqueFd read, UniqueFd write) {
  PinPipe pipe{std::move(read), std::move(write)};
  if (fcntl(pipe.write.get(), F_SETPIPE_SZ, LeavingPages::kBatchPagesMax * kPage) < 0) {
    return std::unexpected(kernel_error("fcntl (F_SETPIPE_SZ)", "pages on their way out", errno));
  }
  return pipe;
}

LeavingPages::LeavingPages(GuestStateFile file, PinPipe pipe, std::uint32_t slots)
    : file_(std::move(file)), pipe_(std::move(pipe)), slots_(slots) {}

LeavingPages::LeavingPages(LeavingPages&& other) noexcept
    : file_(std::move(other.file_)),
      pipe_(std::move(other.pipe_)),
      slots_(other.slots_),
      batch_(std::move(other.batch_)),
      here_(std::move(other.here_)),
      free_(std::move(other.free_)) {}

std::size_t LeavingPages::body_bytes(std::uint32_t slots) {
  return kPage + (slots * sizeof(Slot) + kPage - 1) / kPage * kPage + slots * kPage;
}

std::expected<LeavingPages, Error> LeavingPages::create(const std::string& path, const MissingOf& of,
                                                        std::uint32_t slots, PinPipe pipe,
                                                        std::uint64_t version_first) {
  static_assert(std::is_trivially_copyable_v<Slot> && sizeof(Slot) == 24 && sizeof(Control) <= kPage);
  auto file = GuestStateFile::create(path, kKind, of, body_bytes(slots));
  if (!file) {
    return std::unexpected(file.error());
  }
  LeavingPages leaving(std::move(*file), std::move(pipe), slots);
  leaving.control().version_next = version_first;
  for (std::uint32_t index = slots; index > 0; --index) {
    leaving.free_.push_back(index - 1);
  }
  leaving.file_.let_take_over();
  return leaving;
}

std::expected<LeavingPages, Error> LeavingPages::adopt(const std::string& path, const MissingOf& of,
                                                       std::uint32_t slots, PinPipe pipe,
                                                       const pages::Bitmap& missing) {
  auto file = GuestStateFile::adopt(path, kKind, of, body_bytes(slots));
  if (!file) {
    return std::unexpected(file.error());
  }
  LeavingPages leaving(std::move(*file), std::move(pipe), slots);
  if (auto recovered = leaving.recover(path, missing); !recovered) {
    return std::unexpected(recovered.error());
  }
  return leaving;
}

std::expected<void, Error> LeavingPages::recover(const std::string& path, const pages::Bitmap& missing) {
  for (std::uint32_t index = 0; index < slots_; ++index) {
    const Slot& one = slot(index);
    const bool used = one.state == State::kInBatch || one.state == State::kHere;
    if ((!used && one.state != State::kFree) ||
        (used && (one.page >= missing.size() || one.version >= control().version_next))) {
      return std::unexpected(Error{ErrorCode::kBadArgument, path + ": slot " + std::to_string(index) + " cannot be"});
    }
  }
  if (auto recovered = recover_batch(path, missing); !recovered) {
    return recovered;
  }
  for (std::uint32_t index = 0; index < slots_; ++index) {
    // What is not missing is back in memory.
    if (slot(index).state == State::kHere && missing.test(slot(index).page)) {
      settle(index);
    } else {
      give_back(index);
    }
  }
  return {};
}

std::expected<void, Error> LeavingPages::recover_batch(const std::string& path, const pages::Bitmap& missing) {
  constexpr std::uint32_t kNone = UINT32_MAX;
  const std::uint32_t count = control().batch_pages;
  std::array<std::uint32_t, kBatchPagesMax> at;
  at.fill(kNone);
  int left_bytes = 0;
  if (ioctl(pipe_.read.get(), FIONREAD, &left_bytes) != 0) {
    return std::unexpected(kernel_error("ioctl (FIONREAD)", "the pipe of pages on their way out", errno));
  }
  const auto left = static_cast<std::uint32_t>(left_bytes) / kPage;
  bool wrong = count > kBatchPagesMax || left > count;
  for (std::uint32_t index = 0; index < slots_ && !wrong; ++index) {
    if (slot(index).state == State::kInBatch && slot(index).place < count) {
      wrong = std::exchange(at[slot(index).place], index) != kNone;
    }
  }
  const auto batch = std::span(at).first(wrong ? 0 : count);
  // With all of it read, some of it may be settled already.
  if (wrong || (left > 0 && std::ranges::find(batch, kNone) != batch.end())) {
    return std::unexpected(
        Error{ErrorCode::kBadArgument, path + ": it does not fit what its pipe has: " + std::to_string(left) +
                                           " pages of a batch of " + std::to_string(count)});
  }
  // Nothing is missing before all is pinned. Without that, it does not matter what is read where.
  if (auto read = read_pipe(batch.last(left)); !read) {
    return read;
  }
  for (const std::uint32_t index : batch) {
    if (index != kNone) {
      set_state(index, missing.test(slot(index).page) ? State::kHere : State::kFree);
    }
  }
  set_batch_pages(0);
  return {};
}

std::uint64_t LeavingPages::draw_version() { return std::atomic_ref(control().version_next).fetch_add(1); }

std::uint32_t LeavingPages::free() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::uint32_t>(free_.size());
}

void LeavingPages::begin(std::span<const pages::PageNumber> batch) {
  GW_ASSERT(batch_.empty() && batch.size() <= kBatchPagesMax);
  {
    const std::lock_guard lock(mutex_);
    GW_ASSERT(batch.size() <= free_.size());
    batch_.assign(free_.rbegin(), free_.rbegin() + static_cast<std::ptrdiff_t>(batch.size()));
    free_.resize(free_.size() - batch.size());
  }
  const std::uint64_t version = std::atomic_ref(control().version_next).fetch_add(batch.size());
  for (std::uint32_t place = 0; place < batch.size(); ++place) {
    Slot& one = slot(batch_[place]);
    one.page = batch[place];
    one.version = version + place;
    one.place = place;
    set_state(batch_[place], State::kInBatch);
  }
  set_batch_pages(static_cast<std::uint32_t>(batch.size()));
}

std::expected<std::uint32_t, Error> LeavingPages::pin(const GuestRam& ram) {
  std::array<iovec, kBatchPagesMax> runs;
  std::size_t count = 0;
  for (const std::uint32_t index : batch_) {
    std::byte* const from = ram.mapped(slot(index).page).data();
    if (count > 0 && static_cast<std::byte*>(runs[count - 1].iov_base) + runs[count - 1].iov_len == from) {
      runs[count - 1].iov_len += kPage;
    } else {
      runs[count++] = {from, kPage};
    }
  }
  const ssize_t pinned = vmsplice(pipe_.write.get(), runs.data(), count, SPLICE_F_NONBLOCK);
  if (pinned < 0) {
    return std::unexpected(kernel_error("vmsplice", "guest RAM", errno));
  }
  return static_cast<std::uint32_t>(static_cast<std::size_t>(pinned) / kPage);
}

std::expected<void, Error> LeavingPages::read_pinned(std::uint32_t pages) {
  return read_pipe(std::span(batch_).first(pages));
}

std::expected<void, Error> LeavingPages::read_pipe(std::span<const std::uint32_t> slots) {
  std::array<iovec, kBatchPagesMax> into;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    into[i] = {bytes_of(slots[i]), kPage};
  }
  for (std::size_t done = 0; done < slots.size();) {
    const ssize_t got = readv(pipe_.read.get(), &into[done], static_cast<int>(slots.size() - done));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    // Each buffer of the pipe is a page, so a read ends between two.
    if (got <= 0 || static_cast<std::size_t>(got) % kPage != 0) {
      return std::unexpected(kernel_error("read", "the pipe of pages on their way out", got < 0 ? errno : EIO));
    }
    done += static_cast<std::size_t>(got) / kPage;
  }
  return {};
}

pages::PageBytes LeavingPages::content(std::uint32_t place) const {
  return pages::PageBytes(bytes_of(batch_[place]), kPage);
}

void LeavingPages::finish(std::span<const bool> stays, std::vector<LeavingPage>& out) {
  GW_ASSERT(stays.size() == batch_.size());
  const std::lock_guard lock(mutex_);
  for (std::size_t place = 0; place < batch_.size(); ++place) {
    if (stays[place]) {
      settle(batch_[place]);
      out.push_back(leaving(batch_[place]));
    } else {
      give_back(batch_[place]);
    }
  }
  set_batch_pages(0);
  batch_.clear();
}

/// The newer of two of one page counts: the other one was placed back before.
void LeavingPages::settle(std::uint32_t index) {
  set_state(index, State::kHere);
  const auto [at, fresh] = here_.try_emplace(slot(index).page, index);
  if (!fresh) {
    const bool newer = slot(index).version > slot(at->second).version;
    give_back(newer ? std::exchange(at->second, index) : index);
  }
}

void LeavingPages::give_back(std::uint32_t index) {
  set_state(index, State::kFree);
  free_.push_back(index);
}

std::optional<std::uint64_t> LeavingPages::find(pages::PageNumber page, pages::MutablePageBytes out) const {
  const std::lock_guard lock(mutex_);
  const auto at = here_.find(page);
  if (at == here_.end()) {
    return std::nullopt;
  }
  std::memcpy(out.data(), bytes_of(at->second), kPage);
  return slot(at->second).version;
}

bool LeavingPages::forget(pages::PageNumber page, std::uint64_t version) {
  const std::lock_guard lock(mutex_);
  const auto at = here_.find(page);
  if (at == here_.end() || slot(at->second).version != version) {
    return false;
  }
  give_back(at->second);
  here_.erase(at);
  return true;
}

std::vector<LeavingPage> LeavingPages::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<LeavingPage> all;
  for (const auto& [page, index] : here_) {
    all.push_back(leaving(index));
  }
  return all;
}

LeavingPages::Control& LeavingPages::control() const { return *reinterpret_cast<Control*>(file_.body().data()); }

LeavingPages::Slot& LeavingPages::slot(std::uint32_t index) const {
  GW_ASSERT(index < slots_);
  return reinterpret_cast<Slot*>(file_.body().data() + kPage)[index];
}

std::byte* LeavingPages::bytes_of(std::uint32_t index) const {
  return file_.body().data() + body_bytes(slots_) - (slots_ - index) * kPage;
}

LeavingPage LeavingPages::leaving(std::uint32_t index) const {
  return {slot(index).page, slot(index).version, {bytes_of(index), kPage}};
}

// Stores that a successor relies on: what was written before is there whenever these are, however this process ends.

void LeavingPages::set_state(std::uint32_t index, State state) {
  std::atomic_ref(slot(index).state).store(state, std::memory_order_seq_cst);
}

void LeavingPages::set_batch_pages(std::uint32_t count) {
  std::atomic_ref(control().batch_pages).store(count, std::memory_order_seq_cst);
}

}  // namespace godwit::memory
