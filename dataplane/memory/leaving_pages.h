#pragma once
// Pages that have left a guest's memory, and are not confirmed elsewhere yet. From here they are sent, and whoever asks
// for one meanwhile gets it from here.
//
// Owns slots in a file on tmpfs (guest_state_file.h), and a pipe. Thread: free(), begin() to finish() from the
// evictor's; find(), forget() and all() from any. Units: pages. Failure: one line of text; a file that is not
// beyond doubt is refused.
//
// A batch goes through the pipe: it is pinned there (vmsplice), then taken out of the RAM file, then read from the pipe
// into the slots. In between the pipe alone has the last content of what was taken out. So that a kill loses nothing,
// somebody else must keep the pipe open, too (duplicates of both ends); the file says which pages are in it, in which
// order. What of them was read shows in what the pipe still has; what of them has left is missing.
//
//   body: version of the next page u64, pages of the batch u32, 0; slots from 4096 on (page u64, version u64, state
//   u32: 0 free, 1 in the batch, 2 here; place in the batch u32); their contents, from the next page on

#include <atomic>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/guest_state_file.h"

namespace godwit::memory {

/// Both ends, blocking or not.
struct PinPipe {
  UniqueFd read;
  UniqueFd write;
  static std::expected<PinPipe, Error> make();
  /// Somebody else's pipe, or FIFO that is open for both: made large enough for a batch.
  static std::expected<PinPipe, Error> take(UniqueFd read, UniqueFd write);
};

struct LeavingPage {
  pages::PageNumber page = 0;
  std::uint64_t version = 0;         // higher than that of anything that left before
  std::span<const std::byte> bytes;  // until this version is forgotten
};

class LeavingPages {
 public:
  /// Pages that are pinned at once: a pipe of 256 KiB, as anybody may have. In that time a fault on one of them waits.
  static constexpr std::uint32_t kBatchPagesMax = 64;

  /// Begins with nothing, in place of any former file. `version_first`: above all that a holder may know.
  static std::expected<LeavingPages, Error> create(const std::string& path, const MissingOf& of, std::uint32_t slots,
                                                   PinPipe pipe, std::uint64_t version_first);
  /// Goes on where a former process stopped. `missing`: of the pager that has taken over (demand_pager.h).
  static std::expected<LeavingPages, Error> adopt(const std::string& path, const MissingOf& of, std::uint32_t slots,
                                                  PinPipe pipe, const pages::Bitmap& missing);
  LeavingPages(LeavingPages&& other) noexcept;

  // ---- a batch ----
  [[nodiscard]] std::uint32_t free() const;
  /// These pages, no more than free() and kBatchPagesMax, are the batch.
  void begin(std::span<const pages::PageNumber> batch);
  /// Pins the batch; how many of its first pages are.
  std::expected<std::uint32_t, Error> pin(const GuestRam& ram);
  /// Reads all that is pinned into the slots.
  std::expected<void, Error> read_pinned(std::uint32_t pages);
  [[nodiscard]] pages::PageBytes content(std::uint32_t place) const;
  /// What of the batch, by place, has left and is not zero stays here; the rest is forgotten.
  void finish(std::span<const bool> stays, std::vector<LeavingPage>& out);

  /// A version that nothing has: above all that have left, and below all that will. Any thread.
  [[nodiscard]] std::uint64_t draw_version();

  // ---- what is here ----
  /// Copies the page, if it is here, and returns its version. Where it is not, its holder has it by now.
  [[nodiscard]] std::optional<std::uint64_t> find(pages::PageNumber page, pages::MutablePageBytes out) const;
  /// This version of it is held elsewhere, or in the guest's memory again. False: it is not the last one here; who
  /// holds it may drop it.
  bool forget(pages::PageNumber page, std::uint64_t version);
  /// All that is here, to be sent again by a successor.
  [[nodiscard]] std::vector<LeavingPage> all() const;

 private:
  enum class State : std::uint32_t { kFree = 0, kInBatch = 1, kHere = 2 };
  struct Slot {
    std::uint64_t page;
    std::uint64_t version;
    State state;
    std::uint32_t place;
  };
  struct Control {
    std::uint64_t version_next;
    std::uint32_t batch_pages;
  };
  LeavingPages(GuestStateFile file, PinPipe pipe, std::uint32_t slots);
  static std::size_t body_bytes(std::uint32_t slots);
  std::expected<void, Error> recover(const std::string& path, const pages::Bitmap& missing);
  std::expected<void, Error> recover_batch(const std::string& path, const pages::Bitmap& missing);
  std::expected<void, Error> read_pipe(std::span<const std::uint32_t> slots);

  [[nodiscard]] Control& control() const;
  [[nodiscard]] Slot& slot(std::uint32_t index) const;
  [[nodiscard]] std::byte* bytes_of(std::uint32_t index) const;
  [[nodiscard]] LeavingPage leaving(std::uint32_t index) const;
  void set_state(std::uint32_t index, State state);
  void set_batch_pages(std::uint32_t count);
  void settle(std::uint32_t index);
  void give_back(std::uint32_t index);

  GuestStateFile file_;
  PinPipe pipe_;
  const std::uint32_t slots_;
  std::vector<std::uint32_t> batch_;  // slots, in the order of the pipe
  mutable std::mutex mutex_;          // of what follows
  std::unordered_map<pages::PageNumber, std::uint32_t> here_;
  std::vector<std::uint32_t> free_;
};

}  // namespace godwit::memory
