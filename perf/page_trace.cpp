#include "perf/page_trace.h"

#include <isa-l/igzip_lib.h>

#include <list>
#include <random>
#include <set>

#include "base/atomic_file.h"

namespace godwit::perf {
namespace {

constexpr std::size_t kTraceBytesMax = 64U << 20;
constexpr int kDraws = 5;

std::expected<std::vector<std::uint8_t>, std::string> unpack(const std::string& packed) {
  inflate_state state;
  isal_inflate_init(&state);
  state.crc_flag = ISAL_GZIP;
  std::string in = packed;  // ISA-L takes no const
  state.next_in = reinterpret_cast<std::uint8_t*>(in.data());
  state.avail_in = static_cast<std::uint32_t>(in.size());
  std::vector<std::uint8_t> out(kTraceBytesMax);
  state.next_out = out.data();
  state.avail_out = static_cast<std::uint32_t>(out.size());
  if (isal_inflate(&state) != ISAL_DECOMP_OK || state.block_state != ISAL_BLOCK_FINISH) {
    return std::unexpected("is no gzip file of at most 64 MiB");
  }
  out.resize(state.total_out);
  return out;
}

/// The format is told in perf/traces/page_filter.cpp.
class Numbers {
 public:
  explicit Numbers(const std::vector<std::uint8_t>& bytes) : bytes_(bytes) {}
  [[nodiscard]] bool more() const { return at_ < bytes_.size(); }
  std::uint64_t next() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; more() && shift < 64; shift += 7) {
      const std::uint8_t byte = bytes_[at_++];
      value |= static_cast<std::uint64_t>(byte & 127U) << shift;
      if (byte < 128) {
        break;
      }
    }
    return value;
  }

 private:
  const std::vector<std::uint8_t>& bytes_;
  std::size_t at_ = 0;
};

std::uint64_t refaults_queue(const PageTrace& trace, std::uint64_t budget, bool touch_renews) {
  std::list<std::uint32_t> queue;
  std::vector<std::list<std::uint32_t>::iterator> places(trace.pages, queue.end());
  return count_refaults(trace, [&](std::uint32_t page) {
    if (places[page] != queue.end()) {
      if (touch_renews) {
        queue.splice(queue.end(), queue, places[page]);
      }
      return true;
    }
    if (queue.size() >= budget) {
      places[queue.front()] = queue.end();
      queue.pop_front();
    }
    places[page] = queue.insert(queue.end(), page);
    return false;
  });
}

}  // namespace

std::expected<PageTrace, std::string> load_page_trace(const std::string& path) {
  const auto packed = read_file(path);
  if (!packed) {
    return std::unexpected(packed.error().text());
  }
  const auto bytes = unpack(*packed);
  if (!bytes) {
    return std::unexpected(path + " " + bytes.error());
  }
  PageTrace trace;
  Numbers numbers(*bytes);
  std::uint64_t page = 0;
  while (numbers.more()) {
    auto& window = trace.windows.emplace_back();
    for (std::uint64_t count = numbers.next(); count != 0 && numbers.more(); --count) {
      const std::uint64_t step = numbers.next();
      page += (step >> 1) ^ (0 - (step & 1));
      if (page > trace.pages) {  // pages are numbered as they appear
        return std::unexpected(path + ": page " + std::to_string(page) + " before those below it");
      }
      trace.pages = std::max(trace.pages, static_cast<std::uint32_t>(page) + 1);
      window.push_back(static_cast<std::uint32_t>(page));
    }
  }
  return trace;
}

std::uint64_t count_refaults(const PageTrace& trace, const std::function<bool(std::uint32_t)>& touch,
                             const std::function<void()>& end_window) {
  std::vector<bool> seen(trace.pages);
  std::uint64_t refaults = 0;
  for (const auto& window : trace.windows) {
    for (const std::uint32_t page : window) {
      if (!touch(page)) {
        refaults += seen[page] ? 1U : 0U;
        seen[page] = true;
      }
    }
    end_window();
  }
  return refaults;
}

std::uint64_t refaults_lru(const PageTrace& trace, std::uint64_t budget) { return refaults_queue(trace, budget, true); }
std::uint64_t refaults_fifo(const PageTrace& trace, std::uint64_t budget) {
  return refaults_queue(trace, budget, false);
}

double refaults_random(const PageTrace& trace, std::uint64_t budget) {
  double sum = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    std::mt19937_64 random(static_cast<std::uint64_t>(draw));
    std::vector<std::uint32_t> here;
    std::vector<bool> is_here(trace.pages);
    sum += static_cast<double>(count_refaults(trace, [&](std::uint32_t page) {
      if (is_here[page]) {
        return true;
      }
      if (here.size() < budget) {
        here.push_back(page);
      } else {
        std::uint32_t& place = here[random() % budget];
        is_here[place] = false;
        place = page;
      }
      is_here[page] = true;
      return false;
    }));
  }
  return sum / kDraws;
}

std::uint64_t refaults_optimum(const PageTrace& trace, std::uint64_t budget) {
  std::vector<std::uint32_t> order;
  for (const auto& window : trace.windows) {
    order.insert(order.end(), window.begin(), window.end());
  }
  std::vector<std::uint64_t> next(order.size());
  std::vector<std::uint64_t> wanted(trace.pages, UINT64_MAX);  // when each page is touched next, from `at` on
  for (std::size_t at = order.size(); at-- > 0;) {
    next[at] = wanted[order[at]];
    wanted[order[at]] = at;
  }
  std::set<std::pair<std::uint64_t, std::uint32_t>> here;
  std::size_t at = 0;
  return count_refaults(trace, [&](std::uint32_t page) {
    const bool hit = here.erase({at, page}) != 0;  // what is here is filed under its next touch: now
    if (!hit && here.size() >= budget) {
      here.erase(std::prev(here.end()));
    }
    here.insert({next[at], page});
    ++at;
    return hit;
  });
}

}  // namespace godwit::perf
