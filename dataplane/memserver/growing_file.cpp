#include "dataplane/memserver/growing_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/check.h"

namespace godwit::memserver {

using memory::Error;
using memory::ErrorCode;
using memory::kernel_error;

std::expected<GrowingFile, Error> GrowingFile::open(const std::string& path, std::uint64_t bytes,
                                                    std::uint64_t chunk_bytes, bool fresh) {
  GW_ASSERT(bytes % chunk_bytes == 0);
  const auto refused = [&](const std::string& why) {
    return std::unexpected(Error{ErrorCode::kBadArgument, path + ": " + why});
  };
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | (fresh ? O_CREAT : 0), 0600));
  struct stat status {};
  struct statfs system {};
  if (!file.valid() || fstat(file.get(), &status) != 0 || fstatfs(file.get(), &system) != 0) {
    return std::unexpected(kernel_error("open", path, errno));
  }
  if (system.f_type != TMPFS_MAGIC && system.f_type != HUGETLBFS_MAGIC) {
    return refused("neither on tmpfs nor on hugetlbfs");
  }
  if (!S_ISREG(status.st_mode) || status.st_nlink != 1) {
    return refused("no file of its own");
  }
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    return refused("another process has it");
  }
  if (fresh && ftruncate(file.get(), 0) != 0) {
    return std::unexpected(kernel_error("ftruncate", path, errno));
  }
  if (!fresh && static_cast<std::uint64_t>(status.st_size) != bytes) {
    return refused("it has " + std::to_string(status.st_size) + " bytes, not " + std::to_string(bytes));
  }
  if (fresh && ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    return std::unexpected(kernel_error("ftruncate", path, errno));
  }
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.get(), 0);
  if (data == MAP_FAILED) {
    return std::unexpected(kernel_error("mmap", path, errno));
  }
  return GrowingFile(std::move(file), static_cast<std::byte*>(data), bytes, chunk_bytes);
}

GrowingFile::GrowingFile(UniqueFd file, std::byte* data, std::uint64_t bytes, std::uint64_t chunk_bytes)
    : file_(std::move(file)), data_(data), bytes_(bytes), chunk_bytes_(chunk_bytes), there_(bytes / chunk_bytes) {}

GrowingFile::GrowingFile(GrowingFile&& other) noexcept
    : file_(std::move(other.file_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(other.bytes_),
      chunk_bytes_(other.chunk_bytes_),
      there_(std::move(other.there_)) {}

GrowingFile::~GrowingFile() {
  if (data_ != nullptr) {
    munmap(data_, bytes_);
  }
}

bool GrowingFile::need(std::uint64_t offset, std::uint64_t bytes) {
  GW_ASSERT(bytes > 0 && offset + bytes <= bytes_);
  for (std::uint64_t chunk = offset / chunk_bytes_; chunk <= (offset + bytes - 1) / chunk_bytes_; ++chunk) {
    if (there_[chunk]) {
      continue;
    }
    // What was allocated by a former process is not touched.
    if (fallocate(file_.get(), 0, static_cast<off_t>(chunk * chunk_bytes_), static_cast<off_t>(chunk_bytes_)) != 0) {
      return false;
    }
    there_[chunk] = true;
  }
  return true;
}

bool GrowingFile::has_data(std::uint64_t chunk) const {
  const off_t data = lseek(file_.get(), static_cast<off_t>(chunk * chunk_bytes_), SEEK_DATA);
  return data >= 0 && static_cast<std::uint64_t>(data) < (chunk + 1) * chunk_bytes_;
}

void GrowingFile::give_back(std::uint64_t chunk) {
  if (fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(chunk * chunk_bytes_),
                static_cast<off_t>(chunk_bytes_)) == 0) {
    there_[chunk] = false;  // refused: it stays, and is used again
  }
}

std::uint64_t GrowingFile::allocated_bytes() const {
  struct stat status {};
  GW_ASSERT(fstat(file_.get(), &status) == 0);
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

}  // namespace godwit::memserver
