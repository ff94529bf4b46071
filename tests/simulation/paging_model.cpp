#include "tests/simulation/paging_model.h"

#include <algorithm>
#include <utility>

namespace godwit::simulation {
namespace {
/// What nobody may ever read: content of a page that is not there.
constexpr std::byte kNothing{0xdd};
}  // namespace

bool PagingModel::touch(pages::PageNumber page, bool faults) {
  if (!missing_.test(page)) {
    return true;
  }
  if (stores_ != nullptr && stores_->is_stored(page)) {
    if (stores_->serve()) {
      if (random_.below(2) == 0 && !memory_.frozen()) {
        store_gives(page);
        return true;
      }
      return false;
    }
    if (faults) {
      awaited_.set(page);
    }
  }
  if (faults) {
    events_.faults.push_back(page);
  }
  return false;
}

void PagingModel::store_gives(pages::PageNumber page) {
  stores_->give(page);
  missing_.clear(page);
  if (awaited_.test(page)) {
    awaited_.clear(page);
    events_.given_back.push_back({page, 1});
  }
}

void PagingModel::give_back(pages::PageNumber first, std::uint64_t count) {
  missing_.clear_range(first, count);
  for (pages::PageNumber page = first; stores_ != nullptr && page < first + count; ++page) {
    stores_->forget(page);
    awaited_.clear(page);
  }
  if (armed_ && random_.below(4) != 0) {  // nobody promises to tell
    events_.given_back.push_back({first, count});
  }
}

std::expected<void, transfer::GuestError> PagingModel::punch(const pages::Bitmap& missing, const pages::Bitmap& zero) {
  verdict_.require(!armed_, "punch", "pages were punched out of memory that a guest may use");
  for (pages::PageNumber page = 0; page < missing.size(); ++page) {
    if (missing.test(page) || zero.test(page)) {
      PageContent content;
      content.fill(missing.test(page) ? kNothing : std::byte{0});
      memory_.place(page, content);
    }
  }
  return {};
}

std::expected<bool, transfer::GuestError> PagingModel::guard() {
  verdict_.require(!armed_, "guard", "memory is guarded that a guest may use already");
  guarded_ = true;
  for (pages::PageNumber page = 0; page < memory_.page_count(); ++page) {
    const PageContent& content = memory_.page(page);
    if (std::ranges::any_of(content, [&](std::byte b) { return b != content[0]; }) ||
        (content[0] != kNothing && content[0] != std::byte{0})) {
      return false;
    }
  }
  return true;
}

std::expected<void, transfer::GuestError> PagingModel::arm(const pages::Bitmap& missing) {
  missing_ = missing;
  armed_ = true;
  memory_.rearm();
  return {};
}

std::expected<void, transfer::GuestError> PagingModel::disarm() {
  verdict_.require(none_to_come(), "disarm", "faults are caught no more, and pages are missing");
  armed_ = stores_ != nullptr;  // what is stored is missing still
  return {};
}

std::expected<void, transfer::GuestError> PagingModel::read_events(transfer::PagingEvents& out) {
  std::swap(out.faults, events_.faults);
  std::swap(out.given_back, events_.given_back);
  events_ = {};
  return {};
}

std::expected<void, transfer::GuestError> PagingModel::place(std::uint32_t, std::span<transfer::PageWrite> pages) {
  for (transfer::PageWrite& write : pages) {
    verdict_.require(
        !std::all_of(write.bytes.begin(), write.bytes.end(), [](std::byte b) { return b == std::byte{0}; }),
        "zero-pages", "page " + std::to_string(write.page) + " is zero and came with its content");
    if (stored(write.page)) {  // it was asked for before the commit: too late, and right
      verdict_.require(std::ranges::equal(write.bytes, stores_->copy_of(write.page)), "stores",
                       "page " + std::to_string(write.page) + " came, and is not what its store has");
      continue;
    }
    if (missing_.test(write.page) && !refused()) {
      memory_.place(write.page, write.bytes);
      missing_.clear(write.page);
      if (awaited_.test(write.page)) {
        stores_->forget(write.page);
        awaited_.clear(write.page);
      }
      write.placed = true;
    }
  }
  return {};
}

std::expected<void, transfer::GuestError> PagingModel::place_zero(std::uint32_t, pages::PageNumber first,
                                                                  std::uint64_t count,
                                                                  std::vector<transfer::PageRun>& placed) {
  for (pages::PageNumber page = first; page < first + count; ++page) {
    verdict_.require(!stored(page), "stores", "page " + std::to_string(page) + " came as zero, and a store has it");
    if (missing_.test(page) && !refused()) {
      memory_.place(page, PageContent{});
      missing_.clear(page);
      placed.push_back({page, 1});
    }
  }
  return {};
}

bool PagingModel::none_to_come() const {
  for (auto page = missing_.next_set(0); page < missing_.size(); page = missing_.next_set(page + 1)) {
    if (!stored(page)) {
      return false;
    }
  }
  return true;
}

void PagingModel::leave_to_stores() {
  awaited_.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    events_.given_back.push_back({first, count});
  });
  awaited_.clear_all();
}

void PagingModel::fetch_stored() {
  for (auto page = missing_.next_set(0); page < missing_.size(); page = missing_.next_set(page + 1)) {
    if (stores_ != nullptr && stores_->is_stored(page)) {
      store_gives(page);
    }
  }
}

Vcpus::Vcpus(std::size_t count, std::vector<PageContent> truth, ModelMemory& memory, PagingModel& paging,
             Random& random, Verdict& verdict)
    : truth_(std::move(truth)), memory_(memory), paging_(paging), random_(random), verdict_(verdict), vcpus_(count) {}

pages::PageNumber Vcpus::choose(Vcpu& vcpu) {
  vcpu.at = random_.below(3) == 0 ? random_.below(truth_.size()) : (vcpu.at + 1) % truth_.size();
  return vcpu.at;
}

void Vcpus::step() {
  Vcpu& vcpu = vcpus_[random_.below(vcpus_.size())];
  const bool waited = vcpu.waits_for.has_value();
  const pages::PageNumber page = waited ? *vcpu.waits_for : choose(vcpu);
  if (!paging_.touch(page, !waited)) {
    vcpu.waits_for = page;
    return;
  }
  vcpu.waits_for.reset();
  access(page);
  if (running_ && random_.below(60) == 0) {
    const pages::PageNumber first = random_.below(truth_.size());
    const std::uint64_t count = std::min<std::uint64_t>(random_.between(1, 40), truth_.size() - first);
    paging_.give_back(first, count);
    memory_.give_back(first, count);
    std::fill_n(truth_.begin() + static_cast<std::ptrdiff_t>(first), count, PageContent{});
  }
}

void Vcpus::access(pages::PageNumber page) {
  verdict_.require(memory_.page(page) == truth_[page], "content",
                   "a vCPU reads page " + std::to_string(page) + ", and it is not what was written last");
  if (running_ && random_.below(2) == 0) {
    memory_.write_page(page, random_);
    truth_[page] = memory_.page(page);
  }
}

void Vcpus::wake_all() {
  for (Vcpu& vcpu : vcpus_) {
    if (vcpu.waits_for && !paging_.touch(*vcpu.waits_for, true)) {
      continue;
    }
    vcpu.waits_for.reset();
  }
}

void Vcpus::check_all() {
  for (pages::PageNumber page = 0; page < truth_.size(); ++page) {
    verdict_.require(!paging_.missing(page) && memory_.page(page) == truth_[page], "content",
                     "all is there, but page " + std::to_string(page) + " is not what was written last");
  }
}

std::size_t Vcpus::blocked() const {
  return static_cast<std::size_t>(
      std::count_if(vcpus_.begin(), vcpus_.end(), [](const Vcpu& vcpu) { return vcpu.waits_for.has_value(); }));
}

}  // namespace godwit::simulation
