#include "tests/simulation/stores_model.h"

namespace godwit::simulation {
namespace {
/// What nobody may ever send: content of a page that is not there.
constexpr std::byte kAway{0xee};
constexpr std::uint64_t kVersionFirst = 7;
constexpr std::uint64_t kVersionNext = 100'000;
}  // namespace

StoresModel::StoresModel(ModelMemory& source, ModelMemory& destination, Random& random, Verdict& verdict)
    : source_(source),
      destination_(destination),
      random_(random),
      verdict_(verdict),
      away_(source.page_count()),
      lingering_(source.page_count()) {
  const std::uint64_t one_in = random_.between(1, 4);
  version_top_ = kVersionFirst;
  for (pages::PageNumber page = 0; page < source.page_count(); ++page) {
    if (random_.below(one_in) == 0) {
      take_out(page);
    }
  }
  if (random_.below(3) == 0) {
    room_ = random_.below(8);
  }
  room_there_ = random_.below(3) * random_.below(8);
  source_.on_touch([this](pages::PageNumber page) { touch_at_source(page); });
}

StoresModel::~StoresModel() { source_.on_touch(nullptr); }

/// A page of zeros costs no store anything, and is not away.
void StoresModel::take_out(pages::PageNumber page) {
  if (away_.test(page) || pages::is_zero_page(source_.page(page)) || version_top_ + 10 >= kVersionNext) {
    return;
  }
  PageContent nothing;
  nothing.fill(kAway);
  version_top_ += random_.between(1, 3);
  copies_[page] = {.version = version_top_, .content = source_.page(page)};
  away_.set(page);
  lingering_.clear(page);
  source_.place(page, nothing);
}

void StoresModel::begin_shrinking() {
  at_rest_ = false;
  may_leave_ = pages::Bitmap(source_.page_count());
  may_leave_.set_all();
}

bool StoresModel::at_rest() const {
  at_rest_ = at_rest_ || (rest_wanted_ && random_.below(3) == 0);
  return at_rest_;
}

std::expected<pages::Bitmap, transfer::GuestError> StoresModel::set_apart() {
  verdict_.require(!at_rest_, "stores", "something is set apart, and nothing leaves");
  const std::uint64_t one_in = random_.between(1, 4);
  for (pages::PageNumber page = 0; page < may_leave_.size(); ++page) {
    if (!away_.test(page) && !lingering_.test(page) && random_.below(one_in) != 0) {
      may_leave_.clear(page);
    }
  }
  return may_leave_;
}

void StoresModel::come_to_rest() {
  may_leave_.set_all();
  rest_wanted_ = true;
}

void StoresModel::touch_at_source(pages::PageNumber page) {
  if (away_.test(page)) {
    source_.place(page, copies_.at(page).content);
    away_.clear(page);
    ++came_back_;
    if (random_.below(2) == 0) {
      lingering_.set(page);
    }
  }
}

void StoresModel::settle_in() {
  if (random_.below(3) == 0) {
    lingering_.clear_all();
  }
  for (std::uint64_t left = at_rest_ ? 0 : random_.below(4); left > 0; --left) {
    if (const pages::PageNumber page = random_.below(source_.page_count()); may_leave_.test(page)) {
      take_out(page);
    }
  }
}

const PageContent& StoresModel::last_content(pages::PageNumber page) const {
  return away_.test(page) ? copies_.at(page).content : source_.page(page);
}

void StoresModel::all_back_at_source() {
  for (auto page = away_.next_set(0); page < away_.size(); page = away_.next_set(page + 1)) {
    source_.place(page, copies_.at(page).content);
  }
  away_.clear_all();
}

std::expected<transfer::KeptStores::Stored, transfer::GuestError> StoresModel::list(const pages::Bitmap& written) {
  verdict_.require(at_rest_, "stores", "a list is made while pages leave");
  Stored stored{.pages = {}, .version_next = kVersionNext};
  for (const auto& [page, copy] : copies_) {
    if (away_.test(page) || (lingering_.test(page) && !written.test(page))) {
      stored.pages.push_back({.page = page,
                              .version = copy.version,
                              .sub = static_cast<std::uint16_t>(page % 3),
                              .hash = pages::hash_page(copy.content)});
    }
  }
  return stored;
}

std::expected<void, transfer::GuestError> StoresModel::keep_stored(pages::Bitmap& stored,
                                                                   const pages::Bitmap& written) {
  pages::Bitmap missing = away_;
  missing |= lingering_;
  stored &= missing;
  pages::Bitmap here = written;
  here &= lingering_;
  stored.and_not(here);
  return {};
}

void StoresModel::note(std::span<const wire::StoredPage> pages) {
  for (const wire::StoredPage& page : pages) {
    verdict_.require(told_.empty() || told_.rbegin()->first < page.page, "stores", "pages of stores come out of order");
    told_[page.page] = page;
  }
}

std::expected<void, transfer::GuestError> StoresModel::settle(const pages::Bitmap& missing, const pages::Bitmap& stored,
                                                              std::uint64_t version_next) {
  verdict_.require(version_next == kVersionNext, "stores", "another version is told of as next");
  for (auto page = stored.next_set(0); page < stored.size(); page = stored.next_set(page + 1)) {
    const auto told = told_.find(page);
    verdict_.require(told != told_.end() && !missing.test(page) && copies_.contains(page) &&
                         told->second.version == copies_.at(page).version && told->second.sub == page % 3 &&
                         told->second.hash == pages::hash_page(copies_.at(page).content),
                     "stores", "page " + std::to_string(page) + " is not where the destination takes it to be");
  }
  stored_ = stored;
  return {};
}

bool StoresModel::is_here(pages::PageNumber page) {
  if (fetching_.contains(page) && random_.below(3) == 0) {
    fetching_.erase(page);
    touch_at_source(page);
    lingering_.clear(page);
  }
  return !away_.test(page) && !lingering_.test(page);
}

void StoresModel::give(pages::PageNumber page) {
  destination_.place(page, copies_.at(page).content);
  stored_.clear(page);
}

}  // namespace godwit::simulation
