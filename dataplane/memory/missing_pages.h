#pragma once
// The missing set: which pages of a guest that runs here are not here yet. A bitmap in a mapped file on tmpfs, so that
// it outlives the process, however that ends.
//
// Owns the file (guest_state_file.h). Sequentially consistent, as page_flags.h. Thread: add(), test(), clear() and
// count() from any thread at any time; the rest from one, with no other call under way. Units: pages. Failure: one line
// of text; a file that is not beyond doubt is refused.
//
// Rules that make it sound at any kill: a page is entered before its memory is taken away, and cleared after its
// content is in place. A page that is entered but in place is no harm (placing it says EEXIST, or writes the same again
// before QEMU can see it); a page that is neither would be lost. The source serves any page that it is asked for until
// the end.
//
//   body: a bit a page, in words of 64, lowest bit first

#include <atomic>
#include <cstdint>
#include <expected>
#include <string>

#include "dataplane/memory/error.h"
#include "dataplane/memory/guest_state_file.h"
#include "dataplane/pages/bitmap.h"

namespace godwit::memory {

class MissingPages {
 public:
  /// Begins anew, with nothing missing, in place of any former file. Must be on tmpfs: no write may wait for a disk.
  static std::expected<MissingPages, Error> create(const std::string& path, const MissingOf& of);
  /// Takes over what a former process left; kBadArgument: why that cannot be believed.
  static std::expected<MissingPages, Error> adopt(const std::string& path, const MissingOf& of);
  /// Removing what is not there is fine.
  static std::expected<void, Error> remove(const std::string& path) { return GuestStateFile::remove(path); }

  MissingPages(MissingPages&& other) noexcept;
  MissingPages& operator=(MissingPages&&) = delete;
  ~MissingPages() = default;

  /// From now on adopt() takes it: the memory that goes with it is as it says.
  void let_take_over() { file_.let_take_over(); }

  void add(pages::PageNumber first, std::uint64_t count);
  [[nodiscard]] bool test(pages::PageNumber page) const;
  /// True: it was missing until this call.
  bool clear(pages::PageNumber page);
  [[nodiscard]] std::uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  /// A moment's picture.
  [[nodiscard]] pages::Bitmap all() const;
  [[nodiscard]] std::uint64_t page_count() const { return file_.page_count(); }

 private:
  explicit MissingPages(GuestStateFile file) : file_(std::move(file)) {}
  [[nodiscard]] std::atomic_ref<std::uint64_t> word_of(pages::PageNumber page) const;

  GuestStateFile file_;
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace godwit::memory
