// From valgrind's lackey (--trace-mem=yes) on standard input to a trace of pages on standard output. Every WINDOW
// accesses make a window: the pages that were touched in it, each once, in the order of their first touch. So order is
// kept to a window, which is far shorter than a scan period and touches far fewer pages than a cache has.
//
// Format: per window a count, then so many pages, each as the difference from the page before it, zigzag. All are
// LEB128. Pages are numbered in the order of their first appearance. usage: page_filter WINDOW MAX_ACCESSES

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <vector>

namespace {

void put(std::uint64_t value) {
  for (; value >= 128; value >>= 7) {
    putchar(static_cast<int>(value & 127) | 128);
  }
  putchar(static_cast<int>(value));
}

class Windows {
 public:
  void touch(std::uint64_t address) {
    const std::uint64_t page = address >> 12;
    if (page == last_) {
      return;
    }
    last_ = page;
    const auto [known, is_new] = numbers_.try_emplace(page, numbers_.size());
    if (is_new) {
      seen_.push_back(0);
    }
    if (seen_[known->second] != window_) {
      seen_[known->second] = window_;
      pages_.push_back(known->second);
    }
  }
  void end() {
    put(pages_.size());
    for (const std::uint64_t page : pages_) {
      const auto difference = static_cast<std::int64_t>(page - before_);
      put(static_cast<std::uint64_t>(difference << 1) ^ static_cast<std::uint64_t>(difference >> 63));
      before_ = page;
    }
    pages_.clear();
    ++window_;
    last_ = UINT64_MAX;
  }

 private:
  std::unordered_map<std::uint64_t, std::uint64_t> numbers_;
  std::vector<std::uint64_t> seen_;  // the last window that has it
  std::vector<std::uint64_t> pages_;
  std::uint64_t window_ = 1, before_ = 0, last_ = UINT64_MAX;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    return 2;
  }
  const std::uint64_t window = std::strtoull(argv[1], nullptr, 10);
  const std::uint64_t limit = std::strtoull(argv[2], nullptr, 10);
  Windows windows;
  char line[256];
  for (std::uint64_t accesses = 0; accesses < limit && fgets(line, sizeof line, stdin) != nullptr;) {
    // "I  address,size", " L address,size", " S ...", " M ..."; valgrind's own lines begin with "==".
    if ((line[0] != 'I' && line[0] != ' ') || line[2] != ' ') {
      continue;
    }
    windows.touch(std::strtoull(line + 3, nullptr, 16));
    if (++accesses % window == 0) {
      windows.end();
    }
  }
  return ferror(stdin) != 0 ? 1 : 0;
}
