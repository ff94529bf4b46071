#include "dataplane/memory/missing_pages.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <xxhash.h>

#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace godwit::memory {

struct MissingPages::Head {
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

constexpr std::uint64_t kMagic = 0x676e697373696d67;  // "gmissing"
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHeadBytes = 4096;
constexpr std::uint64_t kWordPages = 64;

std::size_t file_bytes(std::uint64_t page_count) {
  return kHeadBytes + (page_count + kWordPages - 1) / kWordPages * sizeof(std::uint64_t);
}

Error refused(const std::string& path, const std::string& why) { return {ErrorCode::kBadArgument, path + ": " + why}; }

}  // namespace

std::expected<MissingPages, Error> MissingPages::map(UniqueFd file, std::size_t bytes, const std::string& path) {
  void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (mapping == MAP_FAILED) {
    return std::unexpected(kernel_error("mmap", path, errno));
  }
  return MissingPages(std::move(file), mapping, bytes);
}

std::expected<MissingPages, Error> MissingPages::create(const std::string& path, const MissingOf& of) {
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
  const std::size_t bytes = file_bytes(of.page_count);
  // Allocated now: a full file system is an error here, not a SIGBUS later.
  if (const int failed = posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)); failed != 0) {
    return fail(kernel_error("posix_fallocate", path, failed));
  }
  auto missing = map(std::move(file), bytes, path);
  if (!missing) {
    return fail(missing.error());
  }
  Head& head = missing->head();
  head = {.magic = kMagic,
          .version = kVersion,
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
  return missing;
}

std::expected<MissingPages, Error> MissingPages::adopt(const std::string& path, const MissingOf& of) {
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct stat status {};
  if (!file.valid() || fstat(file.get(), &status) != 0) {
    return std::unexpected(kernel_error("open", path, errno));
  }
  const std::size_t bytes = file_bytes(of.page_count);
  if (static_cast<std::size_t>(status.st_size) != bytes) {
    return std::unexpected(refused(path, "its size is not that of " + std::to_string(of.page_count) + " pages"));
  }
  auto missing = map(std::move(file), bytes, path);
  if (!missing) {
    return missing;
  }
  const Head& head = missing->head();
  if (head.magic != kMagic || head.version != kVersion || head.checksum != head.computed_checksum()) {
    return std::unexpected(refused(path, "no file of missing pages of this version, or it is damaged"));
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
  const pages::Bitmap all = missing->all();
  const std::uint64_t tail = of.page_count % kWordPages;
  if (tail != 0 && all.words().back() >> tail != 0) {
    return std::unexpected(refused(path, "it names pages that the guest does not have"));
  }
  missing->count_ = all.count();
  return missing;
}

std::expected<void, Error> MissingPages::remove(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return std::unexpected(kernel_error("unlink", path, errno));
  }
  return {};
}

MissingPages::MissingPages(MissingPages&& other) noexcept
    : file_(std::move(other.file_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      bytes_(other.bytes_),
      count_(other.count()) {}

MissingPages::~MissingPages() {
  if (mapping_ != nullptr) {
    munmap(mapping_, bytes_);
  }
}

MissingPages::Head& MissingPages::head() const { return *static_cast<Head*>(mapping_); }

std::uint64_t MissingPages::page_count() const { return head().page_count; }

std::atomic_ref<std::uint64_t> MissingPages::word_of(pages::PageNumber page) const {
  GW_ASSERT(page < page_count());
  auto* const words = reinterpret_cast<std::uint64_t*>(static_cast<std::byte*>(mapping_) + kHeadBytes);
  return std::atomic_ref<std::uint64_t>(words[page / kWordPages]);
}

void MissingPages::let_take_over() {
  std::atomic_ref<std::uint32_t>(head().may_be_taken_over).store(1, std::memory_order_seq_cst);
}

void MissingPages::add(pages::PageNumber first, std::uint64_t count) {
  for (const pages::PageNumber end = first + count; first < end;) {
    const std::uint64_t here = std::min(end - first, kWordPages - first % kWordPages);
    const std::uint64_t mask = (here == kWordPages ? ~std::uint64_t{0} : (std::uint64_t{1} << here) - 1)
                               << first % kWordPages;
    const std::uint64_t before = word_of(first).fetch_or(mask);
    count_ += static_cast<std::uint64_t>(std::popcount(mask & ~before));
    first += here;
  }
}

bool MissingPages::test(pages::PageNumber page) const { return (word_of(page).load() >> page % kWordPages & 1) != 0; }

bool MissingPages::clear(pages::PageNumber page) {
  const std::uint64_t bit = std::uint64_t{1} << page % kWordPages;
  const bool was = (word_of(page).fetch_and(~bit) & bit) != 0;
  count_ -= was ? 1U : 0U;
  return was;
}

pages::Bitmap MissingPages::all() const {
  pages::Bitmap all(page_count());
  for (pages::PageNumber page = 0; page < page_count(); page += kWordPages) {
    all.words()[page / kWordPages] = word_of(page).load();
  }
  return all;
}

}  // namespace godwit::memory
