#pragma once
// Page traces of real programs (perf/traces), and how often a cache of pages has to fetch a page again under the rivals
// of our policy, which know each access. Pure but for the file. Units: pages, windows of accesses. Failure: one line.

#include <cstdint>
#include <expected>
#include <functional>
#include <string>
#include <vector>

namespace godwit::perf {

struct PageTrace {
  std::vector<std::vector<std::uint32_t>> windows;  // pages in the order of their first touch within a window
  std::uint32_t pages = 0;
};

std::expected<PageTrace, std::string> load_page_trace(const std::string& path);

/// How often a page that was here before is not any more. `touch`: true if the page is here; if not, it is put in.
std::uint64_t count_refaults(
    const PageTrace& trace, const std::function<bool(std::uint32_t page)>& touch,
    const std::function<void()>& end_window = [] {});

// ---- the rivals, with room for `budget` pages ----
std::uint64_t refaults_lru(const PageTrace& trace, std::uint64_t budget);
std::uint64_t refaults_fifo(const PageTrace& trace, std::uint64_t budget);
/// The mean of several draws.
double refaults_random(const PageTrace& trace, std::uint64_t budget);
/// Belady's: the page that is wanted latest goes (L. Belady, IBM Systems Journal 5, 1966).
std::uint64_t refaults_optimum(const PageTrace& trace, std::uint64_t budget);

}  // namespace godwit::perf
