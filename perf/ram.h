#pragma once
// Guest RAM of a benchmark: a populated memfd, mapped here to fill and compare. Owner: the benchmark; failure: a text.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <expected>
#include <string>
#include <utility>

#include "base/unique_fd.h"
#include "dataplane/pages/page.h"

namespace godwit::perf {

class Ram {
 public:
  static std::expected<Ram, std::string> make(const char* name, std::uint64_t bytes);
  Ram(Ram&& other) noexcept
      : file_(std::move(other.file_)), bytes_(other.bytes_), words_(std::exchange(other.words_, nullptr)) {}
  Ram& operator=(Ram&&) = delete;
  ~Ram() {
    if (words_ != nullptr) ::munmap(words_, bytes_);
  }

  [[nodiscard]] int file() const { return file_.get(); }
  void fill_random();
  /// Another value in every word than fill_random() is likely to give.
  void fill() { std::memset(words_, kFill, bytes_); }
  [[nodiscard]] bool operator==(const Ram& other) const { return std::memcmp(words_, other.words_, bytes_) == 0; }
  /// The page is as at `other`.
  [[nodiscard]] bool same_page(const Ram& other, pages::PageNumber page) const {
    return std::memcmp(at(page), other.at(page), pages::kPageSize) == 0;
  }
  /// Nothing has been written to the page since fill().
  [[nodiscard]] bool untouched(pages::PageNumber page) const;

 private:
  static constexpr unsigned char kFill = 0xa5;
  Ram() = default;
  [[nodiscard]] const std::uint64_t* at(pages::PageNumber page) const {
    return words_ + page * (pages::kPageSize / sizeof(std::uint64_t));
  }
  UniqueFd file_;
  std::uint64_t bytes_ = 0;
  std::uint64_t* words_ = nullptr;
};

/// Random pages, and as many that wait for them.
struct RamPair {
  static std::expected<RamPair, std::string> make(std::uint64_t bytes);
  Ram source, destination;
};

}  // namespace godwit::perf
