#include "dataplane/transfer/share.h"

#include <algorithm>

#include "base/check.h"

namespace godwit::transfer {
namespace {
constexpr std::size_t kReportsMax = 4096;

TransferError broken(std::string_view peer, std::string_view text) {
  return {Failure::kPeerProtocol, "the " + std::string(peer) + " broke the protocol: it " + std::string(text)};
}
}  // namespace

SourceShare::SourceShare(GuestMemory& memory, const std::vector<std::uint16_t>& lanes, bool hashes)
    : memory_(memory), hashes_(hashes), reports_(kReportsMax) {
  for (const std::uint16_t lane : lanes) {
    feeds_.push_back(std::make_unique<Feed>(lane));
  }
}

bool SourceShare::next_work(std::uint16_t lane, transport::Work& out) {
  const auto feed = std::find_if(feeds_.begin(), feeds_.end(), [lane](const auto& f) { return f->lane == lane; });
  GW_ASSERT(feed != feeds_.end());
  const bool got = (*feed)->works.pop(out);
  if ((*feed)->works.size() < kWorksMax / 2) {
    tell();  // more is wanted
  }
  return got;
}

void SourceShare::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  memory_.read_page(page, offset, out);
}

std::span<const std::byte> SourceShare::page_in_place(pages::PageNumber page, bool hash_in_tag) {
  return memory_.page_in_place(page, hash_in_tag);
}

bool SourceShare::wants_hash(pages::PageNumber /*page*/, std::uint32_t offset) const {
  return memory_.compares_content() || (hashes_ && offset == 0);
}

void SourceShare::note_sent(pages::PageNumber page, pages::PageHash hash) {
  memory_.note_sent(page, hash);
  if (hashes_) {
    report({.work = {.page = page}, .hash = hash});
  }
}

void SourceShare::on_acknowledged(const transport::Work& work) { report({.acknowledged = true, .work = work}); }

void SourceShare::report(Report report) {
  tell();
  if (!waiting_.empty() || !reports_.push(std::move(report))) {
    waiting_.push_back(report);
  }
}

bool SourceShare::flush() {
  auto next = waiting_.begin();
  while (next != waiting_.end() && reports_.push(std::move(*next))) {
    ++next;
  }
  if (next != waiting_.begin()) {
    tell();
    waiting_.erase(waiting_.begin(), next);
  }
  return waiting_.empty();
}

void SourceShare::on_page(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint32_t, std::span<const std::byte>) {
  fail(broken("destination", "sent a page"));
}

void SourceShare::on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) {
  fail(broken("destination", "sent zero pages"));
}

void SourceShare::on_message(std::span<const std::byte>) { GW_ASSERT(!"a bulk lane carries no messages"); }

DestinationShare::DestinationShare(GuestMemory& memory, PagingGuest* paging, std::uint32_t lcore,
                                   pages::GenerationTable& table, const RoundGate& gate)
    : placer_(memory, table, gate), pull_(paging, lcore, table.size(), gate), reports_(kReportsMax) {}

void DestinationShare::read_page(pages::PageNumber, std::uint32_t, std::span<std::byte>) {
  GW_ASSERT(!"a destination hands out no pages");
}

void DestinationShare::on_page(std::uint16_t, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                               std::span<const std::byte> bytes) {
  round == kPullRound ? pull_.on_page(page, offset, bytes) : placer_.on_page(round, page, offset, bytes);
}

void DestinationShare::on_zero_run(std::uint16_t, std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  round == kPullRound ? pull_.on_zero_run(first, count) : placer_.on_zero_run(round, first, count);
}

void DestinationShare::on_message(std::span<const std::byte>) { GW_ASSERT(!"a bulk lane carries no messages"); }

bool DestinationShare::flush() {
  placer_.place();
  pull_.place();
  report(placer_.placed());
  report(pull_.placed());
  for (const auto* error : {&placer_.error(), &pull_.error()}) {
    if (*error) {
      fail(**error);
    }
  }
  return placer_.placed().empty() && pull_.placed().empty();
}

void DestinationShare::report(std::vector<PlacedRun>& placed) {
  auto next = placed.begin();
  while (next != placed.end() && reports_.push(std::move(*next))) {
    ++next;
  }
  if (next != placed.begin()) {
    tell();
    placed.erase(placed.begin(), next);
  }
}

}  // namespace godwit::transfer
