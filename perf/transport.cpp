// Page payload through the real port, wire and lane code: guest RAM of one process, memif, guest RAM of another, one
// lcore each; in clear text, and then encrypted. Both working sets are larger than any cache. Beside it testpmd's
// memif, that moves frames of the same size and touches no payload.

#include <fcntl.h>
#include <fmt/core.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <random>

#include "base/unique_fd.h"
#include "dataplane/pages/page.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/transport/page_layout.h"
#include "dataplane/wire/datagram.h"
#include "perf/benchmark.h"
#include "perf/testpmd.h"
#include "perf/transport_end.h"
#include "perf/transport_simulated.h"

namespace godwit::perf {
namespace {

constexpr Duration kRunMax = milliseconds(120'000);

constexpr std::size_t kComparisons = 5;  // of clear and encrypted

struct Settings {
  std::uint64_t mib = 512;
  std::uint32_t passes = 15;
  std::uint32_t mtu = 9000;
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;  // kNone: clear text only
  bool testpmd = true;
};

const std::map<std::string, transport::Cipher> kCiphers{{"none", transport::Cipher::kNone},
                                                        {"aes-128-gcm", transport::Cipher::kAes128Gcm},
                                                        {"aes-256-gcm", transport::Cipher::kAes256Gcm}};

std::expected<Settings, std::string> parse(const Options& options) {
  Settings settings;
  if (options.quick) {
    settings = {.mib = 16, .passes = 2, .testpmd = false};
  }
  bool no_testpmd = false;
  CLI::App app("transport");
  app.add_option("--mib", settings.mib, "guest RAM of each end")->check(CLI::Range(1, 65536));
  app.add_option("--passes", settings.passes, "times that all of it is sent")->check(CLI::Range(1U, kPassesMax - 1));
  app.add_option("--mtu", settings.mtu)->check(CLI::Range(port::kMtuMin, port::kMtuMax));
  std::string cipher = "aes-128-gcm";
  app.add_option("--cipher", cipher, "what is measured beside clear text")->check(CLI::IsMember(kCiphers));
  app.add_flag("--no-testpmd", no_testpmd);
  try {
    app.parse(std::vector<std::string>(options.arguments.rbegin(), options.arguments.rend()));
  } catch (const CLI::Error& error) {
    return std::unexpected(std::string(error.what()) +
                           "; options: --mib N --passes N --mtu N "
                           "--cipher none|aes-128-gcm|aes-256-gcm --no-testpmd");
  }
  settings.cipher = kCiphers.at(cipher);
  settings.testpmd = settings.testpmd && !no_testpmd;
  return settings;
}

/// Guest RAM: a populated memfd, mapped here to fill and compare.
class Ram {
 public:
  static std::expected<Ram, std::string> make(const char* name, std::uint64_t bytes) {
    Ram ram;
    ram.file_ = UniqueFd(::memfd_create(name, MFD_CLOEXEC));
    ram.bytes_ = bytes;
    if (!ram.file_.valid() || ::fallocate(ram.file_.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
      return std::unexpected(fmt::format("{} MiB of memory for {}: {}", bytes >> 20, name, std::strerror(errno)));
    }
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.file_.get(), 0);
    if (at == MAP_FAILED) {
      return std::unexpected(fmt::format("mapping {}: {}", name, std::strerror(errno)));
    }
    ram.words_ = static_cast<std::uint64_t*>(at);
    return ram;
  }
  Ram(Ram&& other) noexcept
      : file_(std::move(other.file_)), bytes_(other.bytes_), words_(std::exchange(other.words_, nullptr)) {}
  Ram& operator=(Ram&&) = delete;
  ~Ram() {
    if (words_ != nullptr) ::munmap(words_, bytes_);
  }

  [[nodiscard]] int file() const { return file_.get(); }
  void fill_random() {
    std::mt19937_64 random(1);
    for (std::uint64_t i = 0; i < bytes_ / sizeof(std::uint64_t); ++i) words_[i] = random();
  }
  /// Another value in every word than fill_random() is likely to give.
  void fill() { std::memset(words_, 0xa5, bytes_); }
  [[nodiscard]] bool operator==(const Ram& other) const { return std::memcmp(words_, other.words_, bytes_) == 0; }

 private:
  Ram() = default;
  UniqueFd file_;
  std::uint64_t bytes_ = 0;
  std::uint64_t* words_ = nullptr;
};

class TemporaryDirectory {
 public:
  TemporaryDirectory() : made_(::mkdtemp(path_.data()) != nullptr) {}
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (made_) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] bool made() const { return made_; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/godwit-perf-XXXXXX";
  bool made_;
};

/// While it lives, SIGINT and SIGTERM only say that somebody wants the end, so that everything is cleaned up.
class Interruptible {
 public:
  Interruptible() {
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted_ = 1; };
    for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &before_[i]);
  }
  ~Interruptible() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
  [[nodiscard]] static bool interrupted() { return interrupted_ != 0; }

 private:
  static constexpr std::array<int, 2> kSignals{SIGINT, SIGTERM};
  static inline volatile sig_atomic_t interrupted_ = 0;
  std::array<struct sigaction, 2> before_{};
};

/// The two ends; whatever happens, none outlives this object.
class Children {
 public:
  Children() = default;
  ~Children() {
    for (const pid_t pid : pids_) {
      if (pid > 0) {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
      }
    }
  }
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  bool start(const EndOptions& options, Shared& shared) {
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(1);
      ::_exit(run_end(options, shared));
    }
    pids_[static_cast<std::size_t>(options.role)] = pid;
    return pid > 0;
  }
  /// Until both have ended, or one has died, or the time or the user's patience is over; the error says which.
  std::expected<void, std::string> wait(Duration longest) {
    const Instant end = port::now() + longest;
    while (pids_[0] > 0 || pids_[1] > 0) {
      for (pid_t& pid : pids_) {
        int status = 0;
        if (pid <= 0 || ::waitpid(pid, &status, WNOHANG) == 0) continue;
        pid = 0;
        if (WIFSIGNALED(status)) return std::unexpected(fmt::format("an end died of signal {}", WTERMSIG(status)));
      }
      if (Interruptible::interrupted()) return std::unexpected("interrupted");
      if (port::now() > end) return std::unexpected(fmt::format("not done after {} s", longest.us() / 1'000'000));
      ::usleep(20'000);
    }
    return {};
  }

 private:
  std::array<pid_t, 2> pids_{};
};

std::expected<std::array<std::string, 2>, std::string> two_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<std::string> cpus;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) {
    for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(std::to_string(cpu));
    }
  }
  if (cpus.size() < 2) return std::unexpected("needs two CPUs, one for each end");
  return std::array{cpus[0], cpus[1]};
}

struct SharedMemory {
  Shared* shared = nullptr;
  SharedMemory() {
    void* const at = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at != MAP_FAILED) shared = new (at) Shared;
  }
  ~SharedMemory() {
    if (shared != nullptr) ::munmap(shared, sizeof(Shared));
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
};

std::expected<void, std::string> move_pages(const Settings& settings, transport::Cipher cipher,
                                            const std::array<std::string, 2>& cpus, Shared& shared) {
  const std::uint64_t bytes = settings.mib << 20;
  auto source = Ram::make("source-ram", bytes);
  if (!source) return std::unexpected(source.error());
  auto destination = Ram::make("destination-ram", bytes);
  if (!destination) return std::unexpected(destination.error());
  source->fill_random();
  destination->fill();
  const TemporaryDirectory directory;
  if (!directory.made()) return std::unexpected("no temporary directory: " + std::string(std::strerror(errno)));

  Children children;
  EndOptions options{.socket = directory.path() + "/memif.sock",
                     .pages = bytes / pages::kPageSize,
                     .passes = settings.passes + 1,  // the first one warms up
                     .mtu = settings.mtu,
                     .cipher = cipher};
  for (const Role role : {Role::kReceiver, Role::kSender}) {
    options.role = role;
    options.cpus = cpus[static_cast<std::size_t>(role)];
    options.ram = role == Role::kSender ? source->file() : destination->file();
    if (!children.start(options, shared)) return std::unexpected("fork: " + std::string(std::strerror(errno)));
  }
  const auto ended = children.wait(kRunMax);
  for (const EndReport& end : shared.ends) {
    if (end.error[0] != '\0') return std::unexpected(std::string(end.error.data()));
  }
  if (!ended) return ended;
  if (!(*source == *destination)) return std::unexpected("the destination's RAM is not the source's");
  return {};
}

struct Summary {
  double median = 0, best = 0, worst = 0;
};

/// Of (value at pass i + 1) - (value at pass i), over the passes but the first.
template <class Value>
Summary summarise(const EndReport& end, std::uint32_t passes, Value value) {
  std::vector<double> values;
  for (std::uint32_t pass = 1; pass <= passes; ++pass) values.push_back(value(end.marks[pass], end.marks[pass + 1]));
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

/// Figures' names begin with `prefix`.
void report_ends(const Settings& settings, const std::string& prefix, const Shared& shared, Result& result) {
  const double pages = static_cast<double>(settings.mib << 20) / pages::kPageSize;
  const double gigabits = pages * pages::kPageSize * 8e-9;
  const char* const names[] = {"sender", "receiver"};
  result.row({prefix, "Gbit/s", "best", "worst", "Gbit/s a core", "cycles a page"});
  for (const Role role : {Role::kSender, Role::kReceiver}) {
    const EndReport& end = shared.ends[static_cast<std::size_t>(role)];
    const std::string name = prefix + names[static_cast<std::size_t>(role)];
    const Summary ns = summarise(end, settings.passes, [](const PassMark& a, const PassMark& b) {
      return static_cast<double>(b.at_ns - a.at_ns);
    });
    const Summary cpu_ns = summarise(end, settings.passes, [](const PassMark& a, const PassMark& b) {
      return static_cast<double>(b.cpu_ns - a.cpu_ns);
    });
    const Summary cycles = summarise(end, settings.passes, [](const PassMark& a, const PassMark& b) {
      return static_cast<double>(b.busy_cycles - a.busy_cycles);
    });
    const double rate = gigabits / (ns.median * 1e-9);
    result.row({name, fmt::format("{:.2f}", rate), fmt::format("{:.2f}", gigabits / (ns.best * 1e-9)),
                fmt::format("{:.2f}", gigabits / (ns.worst * 1e-9)),
                fmt::format("{:.2f}", gigabits / (cpu_ns.median * 1e-9)),
                fmt::format("{:.0f}", cycles.median / pages)});
    result.metric(name + "_gbps_per_core", gigabits / (cpu_ns.median * 1e-9));
    result.metric(name + "_cycles_per_page", cycles.median / pages);
    result.metric(name + "_cycles_per_page_best", cycles.best / pages);
    if (role == Role::kSender) {
      result.metric(prefix + "goodput_gbps", rate);
      result.metric(prefix + "goodput_best_gbps", gigabits / (ns.best * 1e-9));
      result.metric(prefix + "goodput_worst_gbps", gigabits / (ns.worst * 1e-9));
    }
  }
}

void report_counters(const Settings& settings, const Shared& shared, Result& result) {
  const auto of = [&](Role role, auto field) {
    const auto& marks = shared.ends[static_cast<std::size_t>(role)].marks;
    return static_cast<double>(field(marks[settings.passes + 1].lane) - field(marks[1].lane));
  };
  const auto packets = [](const transport::LaneCounters& c) { return c.packets_sent; };
  result.metric("packets", of(Role::kSender, packets));
  result.metric("acknowledgements", of(Role::kReceiver, packets));
  result.metric("packets_lost", of(Role::kSender, [](const auto& c) { return c.packets_lost; }));
  result.metric("pages_retransmitted", of(Role::kSender, [](const auto& c) { return c.pages_retransmitted; }));
  result.metric("probe_timeouts", of(Role::kSender, [](const auto& c) { return c.probe_timeouts; }));
  result.metric("transmit_stalls", static_cast<double>(shared.ends[0].queue.transmit_stalls));
  result.row({"packets", fmt::format("{:.0f}", result.metrics().at("packets")), "acks",
              fmt::format("{:.0f}", result.metrics().at("acknowledgements")), "retransmitted",
              fmt::format("{:.0f}", result.metrics().at("pages_retransmitted"))});
}

void report_testpmd(const Settings& settings, const std::array<std::string, 2>& cpus, Result& result) {
  const auto layout = transport::page_layout(wire::payload_bytes_max(wire::IpFamily::kV4, settings.mtu));
  const auto frame_bytes =
      static_cast<std::uint32_t>(layout.packet_bytes + wire::datagram_header_bytes(wire::IpFamily::kV4));
  const TemporaryDirectory directory;
  const auto rate = testpmd_memif_gbps(directory.path(), frame_bytes, cpus);
  if (!rate) {
    result.row({"testpmd: " + rate.error()});
    return;
  }
  result.metric("testpmd_memif_gbps", *rate);
  result.ratio("vs_testpmd_memif", result.metrics().at("goodput_gbps") / *rate);
  result.row({"testpmd memif", fmt::format("{:.2f}", *rate), fmt::format("{} B", frame_bytes)});
}

/// Moves and reports; clear text's figures have no prefix.
std::expected<void, std::string> measure(const Settings& settings, transport::Cipher cipher,
                                         const std::array<std::string, 2>& cpus, Result& result) {
  const SharedMemory memory;
  if (memory.shared == nullptr) return std::unexpected("no shared memory");
  if (auto moved = move_pages(settings, cipher, cpus, *memory.shared); !moved) return moved;
  const bool clear = cipher == transport::Cipher::kNone;
  report_ends(settings, clear ? "" : "aead_", *memory.shared, result);
  if (clear) report_counters(settings, *memory.shared, result);
  return {};
}

/// Clear and encrypted in turns; the first two are reported, the ratio is the median of all: a machine that others use
/// is slower for seconds at a time.
std::expected<void, std::string> compare(const Settings& settings, std::size_t times,
                                         const std::array<std::string, 2>& cpus, Result& result) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < times; ++i) {
    Result again;
    Result& into = i == 0 ? result : again;
    for (const transport::Cipher cipher : {transport::Cipher::kNone, settings.cipher}) {
      if (auto done = measure(settings, cipher, cpus, into); !done) return done;
    }
    ratios.push_back(into.metrics().at("aead_goodput_gbps") / into.metrics().at("goodput_gbps"));
  }
  std::sort(ratios.begin(), ratios.end());
  result.ratio("aead_vs_clear", ratios[ratios.size() / 2]);
  return {};
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const auto settings = parse(options);
  if (!settings) return std::unexpected(settings.error());
  const auto cpus = two_cpus();
  if (!cpus) return std::unexpected(cpus.error());
  const Interruptible interruptible;
  if (settings->cipher == transport::Cipher::kNone) {
    if (auto done = measure(*settings, transport::Cipher::kNone, *cpus, result); !done) return done;
  } else if (auto done = compare(*settings, options.quick ? 1 : kComparisons, *cpus, result); !done) {
    return done;
  }
  if (settings->testpmd) report_testpmd(*settings, *cpus, result);
  report_simulated(options, result);
  return {};
}

const Registration kRegistration{"transport", "page payload over memif, from guest RAM to guest RAM, one core a side",
                                 run, TakesArguments::kYes};

}  // namespace
}  // namespace godwit::perf
