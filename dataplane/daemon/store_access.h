#pragma once
// One VM's pages in a page store, as the sub host's side of a flow sees them. The store outlives this. Thread: the
// store's. No failure of its own.

#include <expected>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/memserver/page_store.h"
#include "dataplane/split/sub_host.h"

namespace godwit::daemon {

class PageStoreAccess final : public split::StoreAccess {
 public:
  PageStoreAccess(memserver::PageStore& store, memserver::VmNumber vm) : store_(store), vm_(vm) {}

  split::PutResult put(pages::PageNumber page, split::Version version, pages::PageBytes content) override {
    switch (store_.put(key(page), version, content)) {
      case memserver::Put::kHeld:
        return split::PutResult::kHeld;
      case memserver::Put::kOlder:
        return split::PutResult::kSuperseded;
      case memserver::Put::kFull:
      case memserver::Put::kInvalid:
        break;
    }
    return split::PutResult::kFull;
  }
  std::expected<std::optional<split::Version>, std::string> get(pages::PageNumber page,
                                                                pages::MutablePageBytes out) override {
    auto version = store_.get(key(page), out);
    if (!version) {
      return std::unexpected(version.error().text);
    }
    return *version;
  }
  void remove(pages::PageNumber page, split::Version version) override { store_.remove(key(page), version); }
  bool list(std::uint64_t& cursor, std::vector<split::Entry>& out) const override {
    auto at = static_cast<std::uint32_t>(cursor);
    const bool more = store_.for_some(
        vm_, at, kRecordsAtOnce, [&out](const memserver::PageKey& held, memserver::Version version, bool) {
          out.push_back({.page = std::uint64_t{held.region} << 32 | held.page, .version = version});
        });
    cursor = at;
    return more;
  }

 private:
  static constexpr std::uint32_t kRecordsAtOnce = split::kEntriesMax;
  /// The store counts pages by region. A VM's pages are numbered through, so here a region is 2^32 of them.
  [[nodiscard]] memserver::PageKey key(pages::PageNumber page) const {
    return {.vm = vm_,
            .region = static_cast<std::uint16_t>(page >> 32),
            .page = static_cast<std::uint32_t>(page & UINT32_MAX)};
  }

  memserver::PageStore& store_;
  const memserver::VmNumber vm_;
};

}  // namespace godwit::daemon
