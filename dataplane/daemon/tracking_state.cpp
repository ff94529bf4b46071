#include "dataplane/daemon/tracking_state.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace godwit::daemon {

struct TrackingState::Header {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t in_doubt;  // 1: a scan or a store is under way
  std::uint32_t epoch;
  std::int32_t qemu_pid;
  std::uint64_t qemu_start;
  std::uint64_t page_count;
  std::uint64_t shape_hash;
  std::array<std::uint8_t, 16> vm_uuid;
  std::array<std::uint8_t, 16> image_id;
  std::array<std::uint8_t, 16> boot_id;
};

namespace {

constexpr std::uint64_t kMagic = 0x6b63617274777467;  // "gtwtrack"
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 4096;

std::string path_of(const std::string& run_dir, const Id128& vm_uuid) {
  return run_dir + "/" + vm_uuid.text() + ".tracking";
}

std::string system_error(const std::string& call, const std::string& path) {
  return call + " of " + path + ": " + std::strerror(errno);
}

}  // namespace

std::expected<TrackingState, std::string> TrackingState::map(UniqueFd file, std::size_t bytes,
                                                             const std::string& path) {
  void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (mapping == MAP_FAILED) {
    return std::unexpected(system_error("mmap", path));
  }
  return TrackingState(std::move(file), mapping, bytes);
}

std::expected<TrackingState, std::string> TrackingState::create(const std::string& run_dir, const TrackedGuest& guest) {
  static_assert(sizeof(Header) <= kHeaderBytes);
  const std::string path = path_of(run_dir, guest.vm_uuid);
  unlink(path.c_str());
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) {
    return std::unexpected(system_error("open", path));
  }
  const std::size_t bytes = kHeaderBytes + guest.page_count * sizeof(pages::Generation);
  // Allocated now: a full file system is an error here, not a SIGBUS later.
  if (const int error = posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)); error != 0) {
    errno = error;
    const std::string text = system_error("allocating " + std::to_string(bytes) + " bytes", path);
    unlink(path.c_str());
    return std::unexpected(text);
  }
  auto state = map(std::move(file), bytes, path);
  if (!state) {
    unlink(path.c_str());
    return state;
  }
  Header& header = state->header();
  header.version = kVersion;
  header.in_doubt = 1;
  header.qemu_pid = guest.qemu_pid;
  header.qemu_start = guest.qemu_start;
  header.page_count = guest.page_count;
  header.shape_hash = guest.shape_hash;
  header.vm_uuid = guest.vm_uuid.bytes();
  header.image_id = guest.image_id.bytes();
  header.boot_id = guest.boot_id.bytes();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  header.magic = kMagic;
  return state;
}

std::expected<TrackingState, std::string> TrackingState::adopt(const std::string& run_dir, const TrackedGuest& guest) {
  const std::string path = path_of(run_dir, guest.vm_uuid);
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) {
    return std::unexpected(system_error("open", path));
  }
  const std::size_t bytes = kHeaderBytes + guest.page_count * sizeof(pages::Generation);
  struct stat status {};
  if (fstat(file.get(), &status) != 0 || static_cast<std::size_t>(status.st_size) != bytes) {
    return std::unexpected(path + ": its size is not that of a guest of " + std::to_string(guest.page_count) +
                           " pages");
  }
  auto state = map(std::move(file), bytes, path);
  if (!state) {
    return state;
  }
  const Header& header = state->header();
  if (header.magic != kMagic || header.version != kVersion) {
    return std::unexpected(path + ": not a tracking file of this version");
  }
  if (header.vm_uuid != guest.vm_uuid.bytes() || header.image_id != guest.image_id.bytes()) {
    return std::unexpected(path + ": of another VM or another cold boot");
  }
  if (header.boot_id != guest.boot_id.bytes() || header.qemu_pid != guest.qemu_pid ||
      header.qemu_start != guest.qemu_start) {
    return std::unexpected(path + ": of another QEMU process (pid " + std::to_string(header.qemu_pid) + ")");
  }
  if (header.page_count != guest.page_count || header.shape_hash != guest.shape_hash) {
    return std::unexpected(path + ": the memory regions differ");
  }
  if (header.in_doubt != 0) {
    return std::unexpected(path + ": the former daemon died during a scan");
  }
  return state;
}

std::uint32_t TrackingState::epoch_floor(const std::string& run_dir, const TrackedGuest& guest) {
  const UniqueFd file(::open(path_of(run_dir, guest.vm_uuid).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  Header header{};
  if (!file.valid() || pread(file.get(), &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header) ||
      header.magic != kMagic || header.version != kVersion || header.vm_uuid != guest.vm_uuid.bytes() ||
      header.image_id != guest.image_id.bytes()) {
    return 0;
  }
  return header.epoch;
}

void TrackingState::remove(const std::string& run_dir, const Id128& vm_uuid) {
  unlink(path_of(run_dir, vm_uuid).c_str());
}

TrackingState::TrackingState(TrackingState&& other) noexcept
    : file_(std::move(other.file_)), mapping_(std::exchange(other.mapping_, nullptr)), bytes_(other.bytes_) {}

TrackingState::~TrackingState() {
  if (mapping_ != nullptr) {
    munmap(mapping_, bytes_);
  }
}

TrackingState::Header& TrackingState::header() const { return *static_cast<Header*>(mapping_); }

pages::Generation* TrackingState::entries() const {
  return reinterpret_cast<pages::Generation*>(static_cast<std::byte*>(mapping_) + kHeaderBytes);
}

void TrackingState::set_in_doubt(bool in_doubt) {
  // The process may be killed between any two stores: what the flag covers must lie between its two stores.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::atomic_ref<std::uint32_t>(header().in_doubt).store(in_doubt ? 1 : 0, std::memory_order_seq_cst);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

std::uint32_t TrackingState::epoch() const { return header().epoch; }

pages::GenerationTable TrackingState::table() const {
  pages::GenerationTable table(header().page_count);
  std::copy_n(entries(), header().page_count, table.entries().data());
  return table;
}

void TrackingState::store(const pages::GenerationTable& table, std::uint32_t epoch) {
  GW_ASSERT(table.size() == header().page_count);
  set_in_doubt(true);
  std::copy_n(table.entries().data(), table.size(), entries());
  header().epoch = std::max(header().epoch, epoch);
  set_in_doubt(false);
}

void TrackingState::raise_epoch(std::uint32_t epoch) {
  std::atomic_ref<std::uint32_t>(header().epoch).store(std::max(header().epoch, epoch), std::memory_order_seq_cst);
}

void TrackingState::begin_scan() { set_in_doubt(true); }

void TrackingState::end_scan(const pages::Bitmap& written) {
  GW_ASSERT(written.size() == header().page_count);
  written.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    std::fill_n(entries() + first, count, pages::kUnknownGeneration);
  });
  set_in_doubt(false);
}

}  // namespace godwit::daemon
