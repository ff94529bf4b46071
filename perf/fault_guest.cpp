#include "perf/fault_guest.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace godwit::perf {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

std::uint64_t times_slept() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return static_cast<std::uint64_t>(usage.ru_nvcsw);
}

}  // namespace

/// The touches, one a page, lie behind it.
struct alignas(Touch) FaultGuest::Shared {
  std::atomic<bool> done;
  std::atomic<bool> wrong;

  [[nodiscard]] Touch* touches() { return reinterpret_cast<Touch*>(this + 1); }
};

void pin_to(unsigned cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // Refused where there is no such CPU: then it runs anywhere.
  static_cast<void>(sched_setaffinity(0, sizeof set, &set));
}

std::expected<std::unique_ptr<FaultGuest>, std::string> FaultGuest::start(const FaultGuestOptions& options) {
  const auto failed = [](const char* what) { return std::unexpected(std::string(what) + ": " + std::strerror(errno)); };
  std::unique_ptr<FaultGuest> guest(new FaultGuest);
  guest->options_ = options;
  const std::uint64_t bytes = options.pages * kPage;
  guest->file_.reset(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!guest->file_.valid() || ftruncate(guest->file_.get(), static_cast<off_t>(bytes)) != 0) {
    return failed("RAM of the guest in /dev/shm");
  }
  void* const ram = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, guest->file_.get(), 0);
  guest->shared_bytes_ = sizeof(Shared) + options.pages * sizeof(Touch);
  void* const shared =
      mmap(nullptr, guest->shared_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  int begin[2];
  int ready[2];
  if (ram == MAP_FAILED || shared == MAP_FAILED || pipe2(begin, O_CLOEXEC) != 0 || pipe2(ready, O_CLOEXEC) != 0) {
    return failed("memory of the guest");
  }
  guest->ram_ = static_cast<std::byte*>(ram);
  guest->shared_ = static_cast<Shared*>(shared);
  const UniqueFd begin_read(begin[0]);
  guest->begin_.reset(begin[1]);
  const UniqueFd ready_read(ready[0]);
  UniqueFd ready_write(ready[1]);
  guest->pid_ = fork();
  if (guest->pid_ < 0) {
    return failed("fork");
  }
  if (guest->pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    guest->begin_.reset(begin_read.get());
    guest->run(ready_write.get());
  }
  munmap(ram, bytes);
  ready_write.reset();
  if (read(ready_read.get(), &guest->userfaultfd_, sizeof(int)) != sizeof(int) || guest->userfaultfd_ < 0) {
    return std::unexpected("the guest got no userfaultfd, or may not go first: run as root");
  }
  return guest;
}

void FaultGuest::run(int ready) {
  pin_to(options_.cpu);
  const sched_param priority{.sched_priority = 1};
  if (options_.goes_first && sched_setscheduler(0, SCHED_FIFO, &priority) != 0) {
    _exit(1);
  }
  const int userfaultfd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  char go = 0;
  if (write(ready, &userfaultfd, sizeof userfaultfd) < 0 || read(begin_.get(), &go, 1) != 1) {
    _exit(1);
  }
  for (std::uint64_t i = 0; i < options_.touches; ++i) {
    const pages::PageNumber page = page_of_touch(i, options_.pages);
    const std::uint64_t slept = times_slept();
    Touch touch{.from_ns = now_ns()};
    auto* const words = reinterpret_cast<volatile std::uint64_t*>(ram_ + page * kPage);
    const std::uint64_t first = words[0];
    touch.to_ns = now_ns();
    touch.waited = times_slept() != slept;
    if (options_.writes) {
      words[1] = touch.to_ns;
    }
    shared_->touches()[page] = touch;
    if (first != page + 1) {
      shared_->wrong = true;
    }
  }
  shared_->done = true;
  for (;;) {
    pause();
  }
}

FaultGuest::~FaultGuest() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (shared_ != nullptr) {
    munmap(shared_, shared_bytes_);
  }
}

void FaultGuest::begin() {
  const char go = 'g';
  [[maybe_unused]] const ssize_t put = write(begin_.get(), &go, 1);
}

bool FaultGuest::done() const { return shared_->done; }

bool FaultGuest::wrong() const { return shared_->wrong; }

std::span<const Touch> FaultGuest::touches() const { return {shared_->touches(), options_.pages}; }

pages::PageNumber FaultGuest::page_of_touch(std::uint64_t i, std::uint64_t pages) {
  // A step without a common divisor: every page once.
  return i * (pages % 1009 == 0 ? 1013 : 1009) % pages;
}

void FaultGuest::number_page(pages::PageNumber page, std::span<std::byte> content) {
  const std::uint64_t number = page + 1;
  std::memcpy(content.data(), &number, sizeof number);
}

memory::RegionFile FaultGuest::region_file() const {
  return {.name = "ram0",
          .bytes = options_.pages * kPage,
          .page_bytes = kPage,
          .qemu_address = reinterpret_cast<std::uint64_t>(ram_),
          .path = "",
          .file = UniqueFd(fcntl(file_.get(), F_DUPFD_CLOEXEC, 0))};
}

UniqueFd FaultGuest::userfaultfd() const {
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), userfaultfd_, 0)));
}

UniqueFd FaultGuest::pagemap() const {
  return UniqueFd(open(("/proc/" + std::to_string(pid_) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
}

std::uint64_t percentile_ns(std::span<const std::uint64_t> sorted, double share) {
  const auto at = static_cast<std::size_t>(share * static_cast<double>(sorted.size()));
  return sorted[std::min(at, sorted.size() - 1)];
}

}  // namespace godwit::perf
