#include "dataplane/memory/guest_state_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/check.h"

namespace godwit::memory {

struct GuestStateFile::Head {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t epoch;
  std::int32_t qemu_pid;
  std::uint32_t zero;
  std::uint64_t qemu_start;
  std::uint64_t page_count;
  std::uint64_t shape_hash;
  Id vm_uuid;
  Id image_id;
  Id boot_id;
  std::uint64_t checksum;  // of all before it
  std::uint32_t may_be_taken_over;

  [[nodiscard]] std::uint64_t computed_checksum() const { return XXH3_64bits(this, offsetof(Head, checksum)); }
};

namespace {

constexpr std::size_t kHeadBytes = 4096;

Error refused(const std::string& path, const std::string& why) { return {ErrorCode::kBadArgument, path + ": " + why}; }

}  // namespace

std::expected<GuestStateFile, Error> GuestStateFile::map(UniqueFd file, std::size_t bytes, const std::string& path) {
  void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (mapping == MAP_FAILED) {
    return std::unexpected(kernel_error("mmap", path, errno));
  }
  return GuestStateFile(std::move(file), mapping, bytes);
}

std::expected<GuestStateFile, Error> GuestStateFile::create(const std::string& path, const Kind& kind,
                                                            const MissingOf& of, std::size_t body_bytes) {
  static_assert(sizeof(Head) <= kHeadBytes);
  if (auto removed = remove(path); !removed) {
    return std::unexpected(removed.error());
  }
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  struct statfs system {};
  if (!file.valid() || fstatfs(file.get(), &system) != 0) {
    return std::unexpected(kernel_error("open", path, errno));
  }
  const auto fail = [&](const Error& error) {
    static_cast<void>(remove(path));
    return std::unexpected(error);
  };
  if (system.f_type != TMPFS_MAGIC) {
    return fail(refused(path, "not on tmpfs; a post-copy cannot wait for a disk"));
  }
  const std::size_t bytes = kHeadBytes + body_bytes;
  // Allocated now: a full file system is an error here, not a SIGBUS later.
  if (const int failed = posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)); failed != 0) {
    return fail(kernel_error("posix_fallocate", path, failed));
  }
  auto state = map(std::move(file), bytes, path);
  if (!state) {
    return fail(state.error());
  }
  Head& head = state->head();
  head = {.magic = kind.magic,
          .version = kind.version,
          .epoch = of.epoch,
          .qemu_pid = of.qemu_pid,
          .zero = 0,
          .qemu_start = of.qemu_start,
          .page_count = of.page_count,
          .shape_hash = of.shape_hash,
          .vm_uuid = of.vm_uuid,
          .image_id = of.image_id,
          .boot_id = of.boot_id,
          .checksum = 0,
          .may_be_taken_over = 0};
  head.checksum = head.computed_checksum();
  return state;
}

std::expected<GuestStateFile, Error> GuestStateFile::adopt(const std::string& path, const Kind& kind,
                                                           const MissingOf& of, std::size_t body_bytes) {
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct stat status {};
  if (!file.valid() || fstat(file.get(), &status) != 0) {
    return std::unexpected(kernel_error("open", path, errno));
  }
  const std::size_t bytes = kHeadBytes + body_bytes;
  if (static_cast<std::size_t>(status.st_size) != bytes) {
    return std::unexpected(refused(path, "its size is not that of " + std::to_string(of.page_count) + " pages"));
  }
  auto state = map(std::move(file), bytes, path);
  if (!state) {
    return state;
  }
  const Head& head = state->head();
  if (head.magic != kind.magic || head.version != kind.version || head.checksum != head.computed_checksum()) {
    return std::unexpected(refused(path, std::string("no ") + kind.what + " of this version, or it is damaged"));
  }
  if (head.vm_uuid != of.vm_uuid || head.image_id != of.image_id || head.epoch != of.epoch) {
    return std::unexpected(refused(path, "of another VM, another cold boot or another migration"));
  }
  if (head.boot_id != of.boot_id || head.qemu_pid != of.qemu_pid || head.qemu_start != of.qemu_start) {
    return std::unexpected(refused(path, "of another QEMU process (pid " + std::to_string(head.qemu_pid) + ")"));
  }
  if (head.page_count != of.page_count || head.shape_hash != of.shape_hash) {
    return std::unexpected(refused(path, "the memory regions differ"));
  }
  if (head.may_be_taken_over != 1) {
    return std::unexpected(refused(path, "the former data plane died before memory was as the file says"));
  }
  return state;
}

std::expected<void, Error> GuestStateFile::remove(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return std::unexpected(kernel_error("unlink", path, errno));
  }
  return {};
}

void GuestStateFile::remove_unfinished(const std::string& directory, const std::string& ending) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string path = entry->path();
    const UniqueFd file(path.ends_with(ending) ? ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
                                               : -1);
    struct stat status {};
    if (!file.valid() || fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
      continue;
    }
    Head head{};
    const ssize_t got = pread(file.get(), &head, sizeof head, 0);
    if (got >= 0 && head.may_be_taken_over != 1) {
      static_cast<void>(remove(path));
    }
  }
}

GuestStateFile::GuestStateFile(GuestStateFile&& other) noexcept
    : file_(std::move(other.file_)), mapping_(std::exchange(other.mapping_, nullptr)), bytes_(other.bytes_) {}

GuestStateFile::~GuestStateFile() {
  if (mapping_ != nullptr) {
    munmap(mapping_, bytes_);
  }
}

GuestStateFile::Head& GuestStateFile::head() const { return *static_cast<Head*>(mapping_); }

std::uint64_t GuestStateFile::page_count() const { return head().page_count; }

std::span<std::byte> GuestStateFile::body() const {
  return std::span(static_cast<std::byte*>(mapping_), bytes_).subspan(kHeadBytes);
}

void GuestStateFile::let_take_over() {
  std::atomic_ref<std::uint32_t>(head().may_be_taken_over).store(1, std::memory_order_seq_cst);
}

}  // namespace godwit::memory
