// Eviction of pages of tmpfs that a guest has mapped: pin, punch, read, on one core of this host, what left being
// confirmed at once. Contiguous pages; and pages far apart, of which none is punched
// together with another.

#include <fmt/core.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>

#include "dataplane/memory/evictor.h"
#include "perf/benchmark.h"
#include "perf/fault_pager.h"

namespace godwit::perf {
namespace {

/// Every page once, each so many from the one before it.
class Apart final : public memory::VictimPolicy {
 public:
  explicit Apart(std::uint64_t step) : step_(step) {}
  void choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) override {
    for (; count > 0 && next_ < here.size(); ++next_) {
      const pages::PageNumber page = next_ * step_ % here.size();
      if (here.test(page)) {
        out.push_back(page);
        --count;
      }
    }
    next_ = out.empty() ? 0 : next_;
  }

 private:
  const std::uint64_t step_;
  std::uint64_t next_ = 0;
};

constexpr std::uint64_t kFar = 1021;  // no divisor of a power of two

/// All of the guest's pages, as it expects them.
std::expected<void, std::string> fill(memory::GuestRam& ram) {
  std::vector<std::byte> content(pages::kPageSize);
  for (pages::PageNumber page = 0; page < ram.page_count(); ++page) {
    FaultGuest::number_page(page, content);
    const memory::PageWrite write{page, 0, content};
    if (auto written = ram.write({&write, 1}); !written) {
      return std::unexpected(written.error().text);
    }
  }
  return {};
}

/// Pages evicted a second.
std::expected<double, std::string> measure(std::uint64_t page_count, memory::VictimPolicy& policy) {
  const auto guest = FaultGuest::start({.pages = page_count, .touches = page_count, .cpu = 1});
  if (!guest) {
    return std::unexpected(guest.error());
  }
  const auto tracked = track(**guest);
  if (!tracked) {
    return std::unexpected(tracked.error());
  }
  if (auto filled = fill(*tracked->ram); !filled) {
    return std::unexpected(filled.error());
  }
  const auto pager = page_guest(*tracked, pages::Bitmap(page_count));
  if (!pager) {
    return std::unexpected(pager.error());
  }
  (*guest)->begin();  // its page tables have all pages then
  while (!(*guest)->done()) {
    sched_yield();
  }
  auto pipe = memory::PinPipe::make();
  if (!pipe) {
    return std::unexpected(pipe.error().text);
  }
  memory::MissingOf of;
  of.page_count = page_count;
  const std::string file = "/dev/shm/godwit-perf-leaving-" + std::to_string(getpid());
  auto leaving = memory::LeavingPages::create(file, of, 1024, std::move(*pipe), 1);
  static_cast<void>(memory::GuestStateFile::remove(file));  // nobody takes this over
  if (!leaving) {
    return std::unexpected(leaving.error().text);
  }
  const auto evictor = memory::Evictor::create({.ram = tracked->ram.get(),
                                                .tracker = tracked->tracker.get(),
                                                .pager = pager->get(),
                                                .leaving = &*leaving,
                                                .policy = &policy});
  if (!evictor) {
    return std::unexpected(evictor.error().text);
  }
  const auto since = std::chrono::steady_clock::now();
  for (bool left = true; left;) {
    const auto batch = (*evictor)->evict_batch();
    if (!batch) {
      return std::unexpected(batch.error().text);
    }
    for (const memory::LeavingPage& page : batch->pages) {
      leaving->forget(page.page, page.version);
    }
    left = !batch->nothing_left;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
  if ((*evictor)->stats().evicted_pages != page_count) {
    return std::unexpected(fmt::format("{} of {} pages were evicted", (*evictor)->stats().evicted_pages, page_count));
  }
  return static_cast<double>(page_count) / seconds;
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const std::uint64_t page_count = options.quick ? 2048 : 32768;
  pin_to(0);
  result.row({"pages", "evicted a second", "best"});
  for (const bool contiguous : {true, false}) {
    std::vector<double> rates;
    for (int turn = 0; turn < (options.quick ? 1 : 5); ++turn) {
      Apart policy(contiguous ? 1 : kFar);
      const auto rate = measure(page_count, policy);
      if (!rate) {
        return std::unexpected(rate.error());
      }
      rates.push_back(*rate);
    }
    std::ranges::sort(rates);
    const std::string name = contiguous ? "contiguous" : "far_apart";
    result.metric("evict_local_" + name + "_per_s", rates[rates.size() / 2]);
    result.metric("evict_local_" + name + "_best_per_s", rates.back());
    result.row({contiguous ? "contiguous" : "far apart", fmt::format("{:.0f}", rates[rates.size() / 2]),
                fmt::format("{:.0f}", rates.back())});
  }
  return {};
}

const Registration kRegistration{"evict-local", "eviction of pages that a guest has mapped, one core", run};

}  // namespace
}  // namespace godwit::perf
