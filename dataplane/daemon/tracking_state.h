#pragma once
// What a restarted daemon must know of a running guest: its generation table, epoch, and whether a scan was under way
// when it died. One file a guest in run_dir, mapped; owns file and mapping. Thread: one at a time, control thread or a
// job. Units: pages. The kernel keeps marking written pages while no daemon runs; what a scan has taken and this file
// does not show is lost. Therefore the file says "scan under way" from before a scan until its pages are entered (as
// unknown). A file in doubt is refused with a reason: the guest's history is then lost, and every page counts as
// written. It survives the process, not the host: a host that went down took its guests along.

#include <cstdint>
#include <expected>
#include <string>

#include "base/unique_fd.h"
#include "base/uuid.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/generation_table.h"

namespace godwit::daemon {

/// What a file must be about; anything else is another guest's, or another QEMU's.
struct TrackedGuest {
  Id128 vm_uuid;
  Id128 image_id;
  Id128 boot_id;  // of the host
  std::int32_t qemu_pid = 0;
  std::uint64_t qemu_start = 0;  // clock ticks since boot, /proc/PID/stat
  std::uint64_t page_count = 0;
  std::uint64_t shape_hash = 0;  // of names, sizes, addresses of the regions
};

class TrackingState {
 public:
  /// Begins anew, in place of any former file: history is unknown until the first store().
  static std::expected<TrackingState, std::string> create(const std::string& run_dir, const TrackedGuest& guest);
  /// Takes over; error: why its history cannot be believed.
  static std::expected<TrackingState, std::string> adopt(const std::string& run_dir, const TrackedGuest& guest);
  /// The epoch that a file of this guest names, however much in doubt the rest is; 0: none.
  static std::uint32_t epoch_floor(const std::string& run_dir, const TrackedGuest& guest);
  static void remove(const std::string& run_dir, const Id128& vm_uuid);

  TrackingState(TrackingState&& other) noexcept;
  TrackingState& operator=(TrackingState&&) = delete;
  ~TrackingState();

  [[nodiscard]] std::uint32_t epoch() const;
  [[nodiscard]] pages::GenerationTable table() const;
  /// The whole table, and the epoch for what will be found written from here on.
  void store(const pages::GenerationTable& table, std::uint32_t epoch);
  /// Copies may get epochs below this: a later history must not use them.
  void raise_epoch(std::uint32_t epoch);
  void begin_scan();
  /// What the scan found; unknown until the next store().
  void end_scan(const pages::Bitmap& written);

 private:
  struct Header;
  TrackingState(UniqueFd file, void* mapping, std::size_t bytes)
      : file_(std::move(file)), mapping_(mapping), bytes_(bytes) {}
  static std::expected<TrackingState, std::string> map(UniqueFd file, std::size_t bytes, const std::string& path);
  [[nodiscard]] Header& header() const;
  [[nodiscard]] pages::Generation* entries() const;
  void set_in_doubt(bool in_doubt);

  UniqueFd file_;
  void* mapping_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace godwit::daemon
