// A sub host's page store on one core: pages put, put again in a newer version, got, and compressed; and what it keeps
// beside the pages.

#include "dataplane/memserver/page_store.h"

#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <random>

#include "perf/benchmark.h"
#include "perf/fault_guest.h"

namespace godwit::perf {
namespace {

using memserver::PageStore;
using memserver::Put;

/// Half of each is new, half repeats: deflate makes it a bit more than half.
std::vector<std::byte> contents(std::uint64_t count) {
  std::vector<std::byte> bytes(count * pages::kPageSize);
  std::mt19937_64 random(1);
  for (std::size_t at = 0; at < bytes.size(); at += 32) {
    const std::uint64_t word = random();
    std::memcpy(&bytes[at], &word, sizeof word);
  }
  return bytes;
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const std::uint64_t budget = options.quick ? 16U << 20 : 512U << 20;
  pin_to(0);
  const std::string base = "/dev/shm/godwit-perf-store-" + std::to_string(getpid());
  const memserver::StoreOptions where{
      .records_file = base + ".records", .pages_file = base + ".pages", .budget_bytes = budget, .boot_id = {}};
  auto store = PageStore::create(where);
  unlink(where.records_file.c_str());  // nobody goes on with it
  unlink(where.pages_file.c_str());
  if (!store) {
    return std::unexpected(store.error().text);
  }
  const auto vm = store->add_vm({std::byte{1}}).value();
  constexpr std::uint64_t kContents = 8192;  // more than the caches hold
  const std::vector<std::byte> source = contents(kContents);
  const auto page_count = static_cast<std::uint32_t>(store->stats().pages_max * 9 / 10);
  const auto content = [&](std::uint64_t page) {
    return pages::PageBytes(&source[page % kContents * pages::kPageSize], pages::kPageSize);
  };
  result.row({"page store", "pages a second"});
  const auto measure = [&](const char* text, const std::string& key, std::uint64_t count, auto work) {
    const auto since = std::chrono::steady_clock::now();
    const bool right = work();
    const double rate =
        static_cast<double>(count) / std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
    result.metric(key, rate);
    result.row({text, fmt::format("{:.0f}", rate)});
    return right;
  };
  const auto put_all = [&](memserver::Version version) {
    bool held = true;
    for (std::uint32_t i = 0; i < page_count; ++i) {
      const std::uint32_t page = i * 1009U % page_count;
      held = store->put({vm, 0, page}, version, content(page + version)) == Put::kHeld && held;
    }
    return held;
  };
  std::vector<std::byte> out(pages::kPageSize);
  const auto get_all = [&] {
    bool right = true;
    for (std::uint32_t i = 0; i < page_count; ++i) {
      const auto got = store->get({vm, 0, i * 1013U % page_count}, std::span(out).first<pages::kPageSize>());
      right = got && *got == 2U && right;
    }
    return right;
  };
  bool right = measure("put, new", "store_put_per_s", page_count, [&] { return put_all(1); });
  right = measure("put, newer version", "store_put_newer_per_s", page_count, [&] { return put_all(2); }) && right;
  right = measure("get", "store_get_per_s", page_count, get_all) && right;
  const auto stats = store->stats();
  const double overhead = static_cast<double>(stats.resident_bytes + stats.index_bytes) / page_count -
                          static_cast<double>(pages::kPageSize);
  result.metric("store_overhead_bytes_a_page", overhead);
  result.row({"overhead, bytes a page held", fmt::format("{:.1f}", overhead)});
  static_cast<void>(store->compress_cold(page_count * 2));  // once round, so that all are cold
  std::uint64_t compressed = store->stats().compressed_pages;
  const std::uint64_t looked_at = page_count / 16;
  measure("looked at for compression", "store_compress_per_s", looked_at, [&] {
    compressed += store->compress_cold(looked_at);
    return true;
  });
  return right ? std::expected<void, std::string>{} : std::unexpected("a page was refused, or another one than put");
}

const Registration kRegistration{"page-store", "a sub host's page store: put, get, compress, overhead", run};

}  // namespace
}  // namespace godwit::perf
