#include "tests/unit/memory/guest_process.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <thread>

#include "base/check.h"

namespace godwit::memory::test {
namespace {

constexpr const char* kPool = "/proc/sys/vm/nr_hugepages";
constexpr std::uint64_t kPage = pages::kPageSize;

std::uint64_t read_pool() {
  std::uint64_t count = 0;
  std::ifstream(kPool) >> count;
  return count;
}

void write_pool(std::uint64_t count) { std::ofstream(kPool) << count; }

struct Command {
  char op;
  std::uint64_t page;
  std::uint64_t argument;
};

struct GuestSpan {
  std::byte* address;
  std::uint64_t pages;
  bool huge;
};

/// Runs in the forked process. Nothing here may use gtest.
class Guest {
 public:
  Guest(std::vector<GuestSpan> spans, int socket) : spans_(std::move(spans)), socket_(socket) {
    for (const GuestSpan& span : spans_) {
      page_count_ += span.pages;
    }
  }

  [[noreturn]] void run() {
    Command command{};
    while (recv(socket_, &command, sizeof command, 0) == sizeof command) {
      const char done = obey(command) ? 'k' : 'x';
      if (send(socket_, &done, 1, MSG_NOSIGNAL) != 1) {
        break;
      }
    }
    _exit(0);
  }

 private:
  std::byte* at(std::uint64_t page) const {
    for (const GuestSpan& span : spans_) {
      if (page < span.pages) {
        return span.address + page * kPage;
      }
      page -= span.pages;
    }
    _exit(9);
  }

  // Every value is new, so that a written page never looks like before.
  void write(std::uint64_t page, std::uint64_t random) {
    const std::uint64_t value = ++counter_;
    auto* word = reinterpret_cast<std::uint64_t*>(at(page) + (random % 512) * 8);
    std::atomic_ref<std::uint64_t>(*word).store(value << 8 | 1);
  }

  bool holds_pattern(std::uint64_t page) const {
    const auto* words = reinterpret_cast<const volatile std::uint64_t*>(at(page));
    for (std::uint64_t word = 0; word < kPage / 8; ++word) {
      if (words[word] != pattern_word(page, word)) {
        return false;
      }
    }
    return true;
  }

  /// The kernel reads, or writes, the page in a system call of ours.
  bool exchange_by_kernel(std::uint64_t page, bool into_page) {
    const UniqueFd file(memfd_create("exchange", MFD_CLOEXEC));
    const std::vector<std::byte> other = pattern_of(page + 1);
    if (into_page) {
      return pwrite(file.get(), other.data(), kPage, 0) == kPage && pread(file.get(), at(page), kPage, 0) == kPage &&
             std::memcmp(at(page), other.data(), kPage) == 0;
    }
    std::vector<std::byte> copy(kPage);
    return pwrite(file.get(), at(page), kPage, 0) == kPage && pread(file.get(), copy.data(), kPage, 0) == kPage &&
           copy == pattern_of(page);
  }

  bool work(std::uint64_t count) {
    std::atomic<bool> right{true};
    std::vector<std::thread> workers;
    for (std::uint64_t id = 0; id < count; ++id) {
      workers.emplace_back([&, id] {
        // A step without a common divisor: every page of its share once, far apart.
        const std::uint64_t share = page_count_ / count + 1;
        const std::uint64_t step = share % 89 == 0 ? 97 : 89;
        for (std::uint64_t i = 0; i < share; ++i) {
          const std::uint64_t page = (i * step + id * 7) % share * count + id;
          if (page < page_count_) {
            if (!holds_pattern(page)) {
              right = false;
            }
            if (workers_write(page)) {
              write(page, page);
            }
          }
        }
      });
    }
    for (std::thread& worker : workers) {
      worker.join();
    }
    return right;
  }

  bool obey(const Command& command) {
    switch (command.op) {
      case 'w':
        write(command.page, command.argument);
        break;
      case 'f':
        std::memset(at(command.page), static_cast<int>(command.argument), kPage);
        break;
      case 'r':
        sink_ += *reinterpret_cast<volatile std::uint64_t*>(at(command.page));
        break;
      case 'b':
        if (madvise(at(command.page), command.argument * kPage, MADV_REMOVE) != 0) {
          _exit(8);
        }
        break;
      case 'd':
        if (madvise(at(command.page), command.argument * kPage, MADV_DONTNEED) != 0) {
          _exit(7);
        }
        break;
      case 'v':
        return holds_pattern(command.page);
      case 'R':
        return exchange_by_kernel(command.page, true);
      case 'W':
        return exchange_by_kernel(command.page, false);
      case 'p':
        return work(command.page);
      case 's':
        start_writers(command.page, command.argument != 0);
        break;
      case 'e':
        stop_ = true;
        for (std::thread& writer : writers_) {
          writer.join();
        }
        writers_.clear();
        break;
      default:
        _exit(6);
    }
    return true;
  }

  void start_writers(std::uint64_t count, bool with_balloon) {
    stop_ = false;
    for (std::uint64_t id = 0; id < count; ++id) {
      writers_.emplace_back([this, id] {
        for (std::uint64_t random = 0x9e3779b97f4a7c15U * (id + 1); !stop_;) {
          random ^= random << 13, random ^= random >> 7, random ^= random << 17;
          write((random >> 20) % page_count_, random);
        }
      });
    }
    if (with_balloon) {
      // One thread gives back, as QEMU does under its lock.
      writers_.emplace_back([this] {
        for (std::uint64_t random = 88172645463325252U; !stop_;) {
          random ^= random << 13, random ^= random >> 7, random ^= random << 17;
          const std::uint64_t unit = spans_[0].huge ? kPagesPerHugePage : 1;
          madvise(at((random >> 20) % (spans_[0].pages / unit) * unit), unit * kPage, MADV_REMOVE);
          usleep(100);  // tidy-allow(sleep): the pace of a writer
        }
      });
    }
  }

  std::vector<GuestSpan> spans_;
  int socket_;
  std::uint64_t page_count_ = 0;
  std::atomic<std::uint64_t> counter_{0};
  std::uint64_t sink_ = 0;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> writers_;
};

}  // namespace

std::uint64_t pattern_word(pages::PageNumber page, std::uint64_t word) {
  return page % 5 == 4 ? 0 : (page + 1) * 0x9e3779b97f4a7c15U + word;
}

std::vector<std::byte> pattern_of(pages::PageNumber page) {
  std::vector<std::byte> bytes(kPage);
  for (std::uint64_t word = 0; word < kPage / 8; ++word) {
    const std::uint64_t value = pattern_word(page, word);
    std::memcpy(&bytes[word * 8], &value, 8);
  }
  return bytes;
}

std::optional<HugePages> HugePages::add(std::uint64_t count) {
  const std::uint64_t before = read_pool();
  write_pool(before + count);
  if (read_pool() < before + count) {
    write_pool(before);
    return std::nullopt;
  }
  return HugePages(count);
}

HugePages::~HugePages() {
  if (added_ > 0) {
    const std::uint64_t now = read_pool();
    write_pool(now > added_ ? now - added_ : 0);
  }
}

std::unique_ptr<GuestProcess> GuestProcess::start(const GuestOptions& options) {
  std::unique_ptr<GuestProcess> guest(new GuestProcess);
  std::vector<GuestSpan> spans;
  for (const GuestRegion& region : options.regions) {
    UniqueFd file(region.huge ? memfd_create("guest-ram", MFD_CLOEXEC | MFD_HUGETLB)
                              : open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    GW_ASSERT(file.valid() && ftruncate(file.get(), static_cast<off_t>(region.bytes)) == 0);
    void* address = mmap(nullptr, region.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (address == MAP_FAILED) {
      return nullptr;
    }
    spans.push_back({static_cast<std::byte*>(address), region.bytes / kPage, region.huge});
    guest->regions_.push_back({std::move(file), region.bytes, region.huge, static_cast<std::byte*>(address)});
  }
  int sockets[2];
  GW_ASSERT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) == 0);
  guest->socket_.reset(sockets[0]);
  guest->pid_ = fork();
  GW_ASSERT(guest->pid_ >= 0);
  if (guest->pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(sockets[0]);
    const int flags = O_CLOEXEC | O_NONBLOCK | (options.user_mode_only ? UFFD_USER_MODE_ONLY : 0);
    for (std::uint32_t i = 0; i < options.userfaultfds; ++i) {
      const int userfaultfd = static_cast<int>(syscall(SYS_userfaultfd, flags));
      if (send(sockets[1], &userfaultfd, sizeof userfaultfd, MSG_NOSIGNAL) < 0) {
        _exit(1);
      }
    }
    Guest(std::move(spans), sockets[1]).run();
  }
  close(sockets[1]);
  for (Mapped& region : guest->regions_) {
    munmap(region.address, region.bytes);
  }
  guest->userfaultfds_.resize(options.userfaultfds);
  for (int& userfaultfd : guest->userfaultfds_) {
    GW_ASSERT(recv(sockets[0], &userfaultfd, sizeof userfaultfd, 0) == sizeof userfaultfd);
  }
  return guest;
}

GuestProcess::~GuestProcess() { kill(); }

void GuestProcess::kill() {
  if (!reaped_) {
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    reaped_ = true;
  }
}

void GuestProcess::tell(char op, std::uint64_t page, std::uint64_t argument) {
  const Command command{op, page, argument};
  GW_ASSERT(send(socket_.get(), &command, sizeof command, MSG_NOSIGNAL) == sizeof command);
}

bool GuestProcess::finish() {
  char done = 0;
  GW_ASSERT(recv(socket_.get(), &done, 1, 0) == 1);
  return done == 'k';
}

void GuestProcess::begin_write(pages::PageNumber page) { tell('w', page, page * 7919); }
void GuestProcess::write(pages::PageNumber page) { begin_write(page), finish(); }
void GuestProcess::fill(pages::PageNumber page, std::uint8_t value) { tell('f', page, value), finish(); }
void GuestProcess::begin_read(pages::PageNumber page) { tell('r', page, 0); }
void GuestProcess::read(pages::PageNumber page) { begin_read(page), finish(); }
bool GuestProcess::holds_pattern(pages::PageNumber page) { return tell('v', page, 0), finish(); }
bool GuestProcess::kernel_reads_pattern(pages::PageNumber page) { return tell('W', page, 0), finish(); }
bool GuestProcess::kernel_writes(pages::PageNumber page) { return tell('R', page, 0), finish(); }
void GuestProcess::begin_workers(std::uint32_t count) { tell('p', count, 0); }
void GuestProcess::give_back(pages::PageNumber first, std::uint64_t count) { tell('b', first, count), finish(); }
void GuestProcess::unmap_entries(pages::PageNumber first, std::uint64_t count) { tell('d', first, count), finish(); }
void GuestProcess::start_writers(std::uint32_t count, bool with_balloon) { tell('s', count, with_balloon), finish(); }
void GuestProcess::stop_writers() { tell('e', 0, 0), finish(); }

std::vector<RegionFile> GuestProcess::region_files() const {
  std::vector<RegionFile> files;
  for (const Mapped& region : regions_) {
    files.push_back({.name = "ram" + std::to_string(files.size()),
                     .bytes = region.bytes,
                     .page_bytes = region.huge ? kHugePageSize : static_cast<std::uint32_t>(kPage),
                     .qemu_address = reinterpret_cast<std::uint64_t>(region.address),
                     .path = "",
                     .file = UniqueFd(fcntl(region.file.get(), F_DUPFD_CLOEXEC, 0))});
  }
  return files;
}

UniqueFd GuestProcess::userfaultfd(std::uint32_t index) const {
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), userfaultfds_.at(index), 0)));
}

UniqueFd GuestProcess::pagemap() const {
  return UniqueFd(open(("/proc/" + std::to_string(pid_) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
}

}  // namespace godwit::memory::test
